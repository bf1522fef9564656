"""Give the nodes of a smaller graph the sizes that they need.

A node may hold a size itself, in a constant, or have it computed from the shapes of other values. Numbers that
come out right by themselves are left alone. Where they do not, the constant at fault is replaced, for this one
consumer alone if others share it; the computation around it is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from structprune.frontends.onnx.record.trace import Numbers, Trace, Type, constant, sizes
from structprune.graph.graph import Shape

PASSING = frozenset(("Identity", "Cast", "Unsqueeze", "Squeeze", "Reshape", "Flatten"))


class Mender:
    """Finds, for a value of the new graph, one with the numbers wanted."""

    def __init__(self, model: ir.Model, new: Trace, fixed: Callable[[ir.Value], Numbers]) -> None:
        self.model = model
        self.new = new
        # What is the same for every size of the inputs may become a constant.
        self.fixed = fixed
        self.made: dict[tuple[ir.Value, Shape, bytes], ir.Value] = {}
        self.replaced: dict[ir.Value, list[ir.Value]] = {}

    def mended(self, value: ir.Value, wanted: Numbers) -> ir.Value | None:
        """A value with these numbers: the given one, one made before, or a new one. None where there is none."""
        present = self.new.numbers.get(value)
        if present is None or (present.shape != wanted.shape and constant(value) is None):
            return None
        wanted = wanted.astype(present.dtype)
        if np.array_equal(present, wanted):
            return value
        key = (value, wanted.shape, wanted.tobytes())
        if key not in self.made:
            found = self.make(value, wanted)
            if found is None:
                return None
            self.made[key] = found
            self.new.numbers[found] = wanted
            self.new.types[found] = Type(wanted.shape, self.new.types[value].dtype)
            self.replaced.setdefault(value, []).append(found)
        return self.made[key]

    def make(self, value: ir.Value, wanted: Numbers) -> ir.Value | None:
        node = value.producer()
        if constant(value) is not None:
            return self.add_constant(value, wanted)
        if node is None:
            return None
        inputs = self.inputs_for(node, wanted)
        if inputs is not None:
            return self.copy(node, inputs)
        if self.fixed(value).all():
            return self.add_constant(value, wanted)
        inputs = self.solved(node, wanted)
        return None if inputs is None else self.copy(node, inputs)

    def inputs_for(self, node: ir.Node, wanted: Numbers) -> list[ir.Value | None] | None:
        """Inputs with which a node that only moves numbers gives those wanted."""
        numbers = [None if value is None else self.new.numbers.get(value) for value in node.inputs]
        if node.domain or any(n is None for n, v in zip(numbers, node.inputs, strict=True) if v is not None):
            return None
        first = numbers[0]
        assert first is not None
        wishes: list[Numbers | None] = list(numbers)
        if node.op_type in PASSING and first.size == wanted.size:
            wishes[0] = wanted.reshape(first.shape).astype(first.dtype)
        elif node.op_type == "Concat" and wanted.ndim == 1:
            widths = [0 if n is None else n.size for n in numbers]
            wishes = list(np.split(wanted, np.cumsum(widths)[:-1]))
        elif node.op_type == "Where" and all(n is not None and n.shape == wanted.shape for n in numbers):
            condition, yes, no = (n for n in numbers if n is not None)
            wishes[1:] = [np.where(condition, wanted, yes), np.where(condition, no, wanted)]
        else:
            return None
        return self.all_mended(node.inputs, wishes)

    def solved(self, node: ir.Node, wanted: Numbers) -> list[ir.Value | None] | None:
        """Inputs with which a node that computes gives the numbers wanted: one operand is changed."""
        if node.domain or node.op_type not in ("Mul", "Div", "Add", "Sub") or wanted.size != 1:
            return None
        left, right = (self.new.numbers.get(value) for value in node.inputs if value is not None)
        if left is None or right is None or not np.issubdtype(wanted.dtype, np.integer):
            return None
        a, b, c = int(left.reshape(())), int(right.reshape(())), int(wanted.reshape(()))
        for place, answer in solutions(node.op_type, a, b, c):
            wishes: list[Numbers | None] = [left, right]
            wishes[place] = np.full((left, right)[place].shape, answer, dtype=left.dtype)
            found = self.all_mended(node.inputs, wishes)
            if found is not None:
                return found
        return None

    def all_mended(
        self, values: Sequence[ir.Value | None], wishes: Sequence[Numbers | None]
    ) -> list[ir.Value | None] | None:
        found: list[ir.Value | None] = []
        for value, wish in zip(values, wishes, strict=True):
            mended = None if value is None or wish is None else self.mended(value, wish)
            if value is not None and mended is None:
                return None
            found.append(mended)
        return found

    # -- new parts of the graph ----------------------------------------------------------------

    def add_constant(self, value: ir.Value, numbers: Numbers) -> ir.Value:
        tensor = ir.tensor(numbers, dtype=self.new.types[value].dtype)
        return add_initializer(self.model, str(value.name), tensor)

    def copy(self, node: ir.Node, inputs: Sequence[ir.Value | None]) -> ir.Value:
        old = node.outputs[0]
        name = free_name(self.model, str(old.name))
        made = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            list(node.attributes.values()),
            version=node.version,
            name=f"{node.name}_{name}" if node.name else None,
            metadata_props=dict(node.metadata_props),
        )
        made.outputs[0].name = name
        made.outputs[0].type = old.type
        made.outputs[0].shape = old.shape.copy() if old.shape is not None and old.type is not None else None
        assert node.graph is not None
        node.graph.insert_after(node, made)
        return made.outputs[0]


def solutions(op_type: str, a: int, b: int, c: int) -> list[tuple[int, int]]:
    """Which operand (0 or 1) could be what number, so that `a op b` becomes c; the second operand first."""
    found: list[tuple[int, int]] = []
    match op_type:
        case "Mul":
            found = [(1, c // a)] if a and c % a == 0 else []
            found += [(0, c // b)] if b and c % b == 0 else []
        case "Div" if c:
            found = [(1, a // c)] if a // c and a // (a // c) == c else []
            found += [(0, c * b)]
        case "Add":
            found = [(1, c - a), (0, c - b)]
        case "Sub":
            found = [(1, a - c), (0, c + b)]
    return found


def add_initializer(model: ir.Model, like: str, tensor: ir.TensorProtocol) -> ir.Value:
    """A new initializer of the model's main graph, which every graph inside it sees."""
    name = free_name(model, like)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(sizes(tensor)), const_value=tensor)
    model.graph.register_initializer(value)
    if model.ir_version < 4:
        # Before, every initializer had to be an input too.
        model.graph.inputs.append(value)
    return value


def free_name(model: ir.Model, like: str) -> str:
    taken = model.meta.get("names")
    if taken is None:
        taken = model.meta["names"] = names_of(model)
    count = 1
    while (name := f"{like}_{count}") in taken:
        count += 1
    taken.add(name)
    return name


def names_of(model: ir.Model) -> set[str]:
    """Every name of a value or node, in all graphs of a model."""
    found: set[str] = set()
    for graph in model.graphs():
        found.update(str(value.name) for value in (*graph.inputs, *graph.initializers.values()))
        for node in graph:
            found.update((str(node.name), *(str(value.name) for value in node.outputs)))
    return found

