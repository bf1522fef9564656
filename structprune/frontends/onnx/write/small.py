"""The smaller model: the user's own graph with its weights cut and its sizes mended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from structprune.algebra.order import Indices
from structprune.frontends.onnx.read.lower import Call, Lowering, Stored
from structprune.frontends.onnx.record.file import give_back
from structprune.frontends.onnx.record.trace import (
    Numbers,
    Trace,
    Type,
    advance,
    constant,
    note_constant,
    sizes,
    subgraphs,
    taken_branch,
)
from structprune.frontends.onnx.write.mend import Mender, add_initializer
from structprune.graph.edit import Add, Change, Changes, Renumber, Slice, Zero, are_same, by_name, literals_in
from structprune.graph.graph import Op, Value
from structprune.passes.rewrite import Rewrite

SMALLEST_NORMAL = {np.dtype(np.float32): np.finfo(np.float32).tiny, np.dtype(np.float64): np.finfo(np.float64).tiny}


@dataclass(frozen=True, slots=True)
class Conflict:
    """A node that cannot get the size it needs."""

    op: Op
    problem: str


class Shrinker:
    """Carries one rewrite out on a copy of the model."""

    def __init__(self, lowering: Lowering, rewrite: Rewrite, fixed: Callable[[ir.Value], Numbers]) -> None:
        self.lowering = lowering
        self.rewrite = rewrite
        self.model = lowering.model.clone()
        self.nodes: dict[ir.Node, ir.Node] = {}
        self.values: dict[ir.Value, ir.Value] = {}
        self.pair(lowering.model.graph, self.model.graph)
        self.ops: dict[ir.Node, list[Op]] = {}
        for op in rewrite.solution.graph.ops:
            self.ops.setdefault(op.source.node, []).append(op)
        self.new = Trace()
        olds = {new: old for old, new in self.values.items()}
        self.mender = Mender(
            self.model, self.new, lambda value: fixed(olds[value]) if value in olds else np.zeros((), dtype=bool)
        )
        self.edits = list(rewrite.edits())
        self.literals = literals_in(self.edits)
        self.conflicts: list[Conflict] = []
        # Uses of a weight that became another than the rest.
        self.apart: dict[str, ir.Value] = {}
        # Something other than a weight had to change.
        self.is_mended = False

    def pair(self, old: ir.Graph, new: ir.Graph) -> None:
        """Which part of the copy each part of the original became."""
        self.values.update(zip(old.inputs, new.inputs, strict=True))
        self.values.update(zip(old.initializers.values(), new.initializers.values(), strict=True))
        for node, copied in zip(old, new, strict=True):
            self.nodes[node] = copied
            self.values.update(zip(node.outputs, copied.outputs, strict=True))
            for inner, other in zip(subgraphs(node), subgraphs(copied), strict=True):
                self.pair(inner, other)

    def shrink(self, inputs: Mapping[ir.Value, Type], observed: Mapping[ir.Value, Type]) -> None:
        self.put(by_name(self.edits))
        for value in self.model.graph.initializers.values():
            note_constant(self.new, value)
        self.new.sizes.update(self.lowering.trace.sizes)
        self.new.types.update({self.values[value]: found for value, found in inputs.items()})
        self.walk(self.lowering.model.graph, {self.values[value]: found for value, found in observed.items()})
        self.tidy()
        self.annotate()

    # -- weights -------------------------------------------------------------------------------

    def put(self, edits: Changes) -> None:
        """Let every weight become what its edits make of it."""
        by_value: dict[ir.Value, list[Stored]] = {}
        for stored in self.lowering.stored.values() if edits else ():
            by_value.setdefault(stored.value, []).append(stored)
        for value, (first, *others) in by_value.items():
            whole = edits.get(first.name, ())
            self.is_mended |= value.producer() is not None and bool(whole)
            set_constant(self.values[value], edited(first.tensor, whole))
            for each in others:
                own = edits.get(each.name, ())
                if each.name in self.apart or not are_same(own, whole):
                    self.set_apart(each, edited(each.tensor, own))

    def set_apart(self, stored: Stored, tensor: ir.TensorProtocol) -> None:
        """One use of a weight gets another tensor than the rest."""
        if stored.name in self.apart:
            set_constant(self.apart[stored.name], tensor)
            return
        assert stored.use is not None
        node, place = stored.use
        self.is_mended = True
        self.apart[stored.name] = add_initializer(self.model, str(stored.value.name), tensor)
        self.nodes[node].replace_input_with(place, self.apart[stored.name])

    # -- sizes ---------------------------------------------------------------------------------

    def walk(self, graph: ir.Graph, observed: Mapping[ir.Value, Type]) -> None:
        """Mend each node's sizes before the shapes of what it gives are inferred from them."""
        for value in graph.initializers.values():
            note_constant(self.new, self.values[value])
        for node in graph:
            branch = taken_branch(node, self.lowering.trace)
            if branch is not None:
                self.walk(branch, observed)
            for op in self.ops.get(node, ()):
                self.mend(op)
            advance(self.model, self.nodes[node], self.new, observed)

    def mend(self, op: Op) -> None:
        call: Call = op.source
        given = self.literals.get(op, {})
        node = self.nodes[call.node]
        for place, wanted in given.items():
            if isinstance(place, str):
                self.set_attribute(node, place, wanted)
        for place, value in enumerate(call.node.inputs):
            numbers = call.number(place)
            if place in given:
                numbers = np.asarray(given[place], dtype=np.int64 if numbers is None else numbers.dtype)
                self.set_input(op, node, place, numbers)
            elif value in self.lowering.arithmetic and numbers is not None and constant(value) is None:
                # A number derived from a width, such as the scale of attention, stays what it was.
                self.set_input(op, node, place, numbers)
        for place in sorted(key for key in given if isinstance(key, int) and key >= len(call.node.inputs)):
            self.set_input(op, node, place, np.asarray(given[place], dtype=np.int64))

    def set_attribute(self, node: ir.Node, name: str, wanted: Any) -> None:
        present = node.attributes.get(name)
        if wanted is None:
            self.is_mended |= node.attributes.pop(name, None) is not None
            return
        old = list(present.value) if present is not None and isinstance(present.value, tuple) else (
            present.value if present is not None else DEFAULTS.get(name)
        )  # fmt: skip
        if old == wanted:
            return
        self.is_mended = True
        kind = KINDS[type(wanted)]
        node.attributes[name] = ir.Attr(name, kind, wanted)

    def set_input(self, op: Op, node: ir.Node, place: int, wanted: Numbers) -> None:
        """The numbers of one input, which may be computed from shapes."""
        value = node.inputs[place] if place < len(node.inputs) else None
        if value is None:
            tensor = ir.tensor(wanted)
            made: ir.Value | None = add_initializer(self.model, f"{node.outputs[0].name}_sizes", tensor)
            if place >= len(node.inputs):
                node.resize_inputs(place + 1)
        else:
            present = self.new.numbers.get(value)
            if present is not None and present.size == wanted.size:
                wanted = wanted.reshape(present.shape)
            made = self.mender.mended(value, wanted)
            if made is None and op.kind == "reshape":
                made = self.copied_sizes(op, value, wanted)
        if made is None:
            self.conflicts.append(Conflict(op, f"its input {place} is computed, and cannot become {wanted.tolist()}"))
        elif made is not value:
            self.is_mended = True
            node.replace_input_with(place, made)

    def copied_sizes(self, op: Op, value: ir.Value, wanted: Numbers) -> ir.Value | None:
        """A zero tells a Reshape to take the size of its input: a shape computed from open sizes can be a constant."""
        call, x = op.source, op.inputs[0]
        assert x is not None
        is_copied = np.zeros(wanted.size, dtype=bool)
        if not call.get("allowzero", 0):
            both = min(wanted.size, len(x.shape))
            is_copied[:both] = call.number(1)[:both] == x.shape[:both]
            is_copied[:both] &= wanted[:both] == self.rewrite.shape(x)[:both]
        if not np.all(is_copied | self.mender.fixed(value)):
            return None
        tensor = ir.tensor(np.where(is_copied, 0, wanted), dtype=ir.DataType.INT64)
        found = add_initializer(self.model, str(value.name), tensor)
        note_constant(self.new, found)
        self.mender.replaced.setdefault(value, []).append(found)
        return found

    # -- the rest ------------------------------------------------------------------------------

    def tidy(self) -> None:
        """Where what was replaced stands unused, its replacement takes its place and its name."""
        kept = set(self.model.graph.outputs)
        for old, made in reversed(self.mender.replaced.items()):
            if old.uses() or old in kept:
                continue
            (new, *others), node = made, old.producer()
            if not old.is_initializer() and (node is None or node.graph is None):
                continue  # it went along with what was made of it
            maker = new.producer()
            if constant(old) is not None and not others:
                set_constant(old, new.const_value)
            elif node is not None and maker is not None and not others:
                for place, value in enumerate(maker.inputs):
                    node.replace_input_with(place, value)
            else:
                drop(old)
                continue
            new.replace_all_uses_with(old)
            drop(new)

    def annotate(self) -> None:
        """The shapes that the file states of its values."""
        for value, made in self.lowering.values.items():
            note_shape(self.values[value], made, self.rewrite)


def note_shape(value: ir.Value, made: Value, rewrite: Rewrite) -> None:
    if value.shape is None or len(value.shape) != len(made.shape) or made not in rewrite.solution.axes:
        return
    for axis, (old, new) in enumerate(zip(made.shape, rewrite.shape(made), strict=True)):
        if old != new:
            # A name stands for another number with each size of the inputs: what it stands for now is not known.
            value.shape[axis] = new if isinstance(value.shape[axis], int) else None


def drop(value: ir.Value) -> None:
    """Take away a value that nothing uses, and what was there for it alone."""
    node, graph = value.producer(), value.graph
    if node is None:
        if value.is_initializer() and graph is not None and value.name is not None:
            del graph.initializers[value.name]
            if value in graph.inputs:
                graph.inputs.remove(value)
        return
    if node.graph is None or any(each.uses() or each.is_graph_output() for each in node.outputs):
        return
    inputs = list(dict.fromkeys(each for each in node.inputs if each is not None))
    node.graph.remove(node, safe=True)
    for each in inputs:
        if not each.uses() and not each.is_graph_output() and not each.is_graph_input():
            drop(each)


def set_constant(value: ir.Value, tensor: ir.TensorProtocol | None) -> None:
    """Give an initializer, or a Constant node, another tensor."""
    assert tensor is not None
    node = value.producer()
    if node is None:
        value.const_value = tensor
    else:
        node.attributes.clear()
        node.attributes["value"] = ir.AttrTensor("value", tensor)
    value.shape = ir.Shape(sizes(tensor)) if value.type is not None or node is None else None


KINDS = {int: ir.AttributeType.INT, float: ir.AttributeType.FLOAT, list: ir.AttributeType.INTS}
# Attributes that count channels or heads, when a node leaves them out.
DEFAULTS = {"group": 1}


def edited(tensor: ir.TensorProtocol, edits: Sequence[Change], zero: Numbers | None = None) -> ir.TensorProtocol:
    """What becomes of a tensor, computed when it is read: no second copy of all weights exists.

    `zero` stands for zero in quantized weights.
    """
    lengths = {axis: len(kept) for edit in edits if isinstance(edit, Slice) for axis, kept in edit.kept.items()}
    shape = ir.Shape([lengths.get(axis, size) for axis, size in enumerate(sizes(tensor))])

    def evaluate() -> ir.TensorProtocol:
        array = tensor.numpy()
        for edit in edits:
            match edit:
                case Slice(kept=kept):
                    for axis, indices in kept.items():
                        array = np.take(array, indices, axis=axis)
                case Zero(kept=kept):
                    array = zeroed(array, kept, np.zeros((), array.dtype) if zero is None else zero)
                case Renumber(numbers=numbers):
                    array = numbers[array % len(numbers)].astype(array.dtype)
                case Add(values=values):
                    array = (array.astype(np.float64) + values).astype(array.dtype)
        array = without_denormals(array)
        give_back(tensor)
        return ir.Tensor(array, dtype=tensor.dtype, shape=shape, name=tensor.name)

    return ir.LazyTensor(evaluate, tensor.dtype, shape, name=tensor.name)


def zeroed(array: Numbers, axes: Mapping[int, Indices], zero: Numbers) -> Numbers:
    """All but the kept part is zero."""
    is_removed = np.zeros(array.shape, dtype=bool)
    for axis, kept in axes.items():
        is_gone = np.ones(array.shape[axis], dtype=bool)
        is_gone[kept] = False
        np.moveaxis(is_removed, axis, 0)[is_gone] = True
    return np.where(is_removed, zero.astype(array.dtype), array)


def without_denormals(array: Numbers) -> Numbers:
    """Numbers too small to be normal are zero: they can make a processor ten times slower."""
    least = SMALLEST_NORMAL.get(array.dtype)
    if least is None:
        return array
    is_tiny = (np.abs(array) < least) & (array != 0)
    return np.where(is_tiny, np.zeros((), array.dtype), array) if is_tiny.any() else array
