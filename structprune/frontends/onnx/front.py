"""The ONNX front end as the pipeline sees it."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from structprune.algebra.axis import Dim
from structprune.errors import (
    CaptureError,
    InvalidArgument,
    UnsupportedModel,
    UnsupportedRatio,
    VerificationError,
    printable,
)
from structprune.frontends.onnx.read import operators  # noqa: F401  registers the entries
from structprune.frontends.onnx.read.arrays import COMPUTED, Arrays
from structprune.frontends.onnx.read.lower import Lowering, weights
from structprune.frontends.onnx.record.check import count_of
from structprune.frontends.onnx.record.elsewhere import growth, other_shapes, shapes_nearby
from structprune.frontends.onnx.record.external import external_tensors, slots
from structprune.frontends.onnx.record.file import is_same, open_model
from structprune.frontends.onnx.record.functions import inlined, with_weights_of
from structprune.frontends.onnx.record.inputs import Examples, data, describe, examples, restore, traced
from structprune.frontends.onnx.record.trace import Numbers, Trace, Type, run_order, sizes, trace
from structprune.frontends.onnx.write.constant import Constants
from structprune.frontends.onnx.write.file import save
from structprune.frontends.onnx.write.oracle import Zeroed, run_inside
from structprune.frontends.onnx.write.small import Conflict, Shrinker
from structprune.frontends.onnx.write.trial import impossible, trial
from structprune.frontends.onnx.write.widen import can_be_double
from structprune.frontends.protocol import Constraints, Described, Realized
from structprune.graph.edit import Edit, by_name
from structprune.graph.graph import Graph, Shape, Value
from structprune.passes.measure import macs
from structprune.passes.propagate import Solution
from structprune.passes.rewrite import Rewrite
from structprune.passes.verify import CHEAP, NO_LARGER, SHARE_DOUBLE, Trial, free_memory, too_large

# How far the result may be from the zeroed original, in units of its largest output.
TOLERANCES = {
    ir.DataType.DOUBLE: 1e-9,
    ir.DataType.FLOAT: 1e-4,
    ir.DataType.FLOAT16: 2e-2,
    ir.DataType.BFLOAT16: 1e-1,
}
# Entries of one tensor that is computed, or fed.
MOST_ENTRIES = 1 << 33


class OnnxFrontend:
    """An ONNX model, traced."""

    # onnxruntime's convolutions run in blocks of 16 channels; other widths lose their fast path.
    block_of_convolutions = 16

    def __init__(self, source: Any, model: ir.Model, given: Examples) -> None:
        self.source = source
        self.original = model
        self.model = model = inlined(model)
        self.given = given
        self.shapes_of_inputs, self.trace = traced(model, given)
        refuse_too_large(self.trace)
        self.observed = self.observe()
        if self.observed:
            self.trace = trace(model, self.shapes_of_inputs, self.observed)
        self.lowering = Lowering(model, self.trace)
        self.graph: Graph = self.lowering.graph()
        self.model_name = Path(source).stem if isinstance(source, str | os.PathLike) else model.graph.name or "model"
        self.weights = weights(model)
        self.itemsizes: Mapping[str, float] = {name: each.dtype.itemsize for name, each in self.weights.items()}
        unused = [each.size for name, each in self.weights.items() if name not in self.graph.parameters]
        # A vector that several nodes share counts once for each: they may come to need different parts of it.
        self.total = sum(unused) + sum(prod(each.shape) for each in self.graph.parameters.values() if each.is_trained)
        if not self.total:
            raise UnsupportedModel(f"{self.model_name} has no weights: there is nothing to remove")
        self.tolerance = max(TOLERANCES.get(each.dtype, 1e-4) for each in self.weights.values())
        kinds = {node.op_type for node in model.graph}
        if not kinds.isdisjoint(("QuantizeLinear", "DynamicQuantizeLinear")):
            # An activation in the middle of two steps may be rounded to either.
            self.tolerance = max(self.tolerance, 2e-2)

    @classmethod
    def read(cls, source: Any, example_inputs: Any) -> OnnxFrontend:
        model = open_model(source)
        if isinstance(example_inputs, Described):
            example_inputs = restore(example_inputs.data)
        given = {} if example_inputs is None else examples(model, example_inputs)
        return cls(source, model, given)

    def observe(self) -> dict[ir.Value, Type]:
        """The shapes that only a run can tell; none where onnxruntime does not know an operator either."""
        unknown = [
            value
            for node in run_order(self.model.graph, self.trace)
            for value in node.outputs
            if value.name and value not in self.trace.types and node.graph is self.model.graph
        ]
        if not unknown:
            return {}
        try:
            arrays = run_inside(self.model, unknown, data(self.model, self.shapes_of_inputs, self.given))
        except CaptureError:
            return {}
        return {
            value: Type(array.shape, ir.DataType.from_numpy(array.dtype))
            for value, array in zip(unknown, arrays, strict=True)
            if isinstance(array, np.ndarray)
        }

    def arrays(self, names: Iterable[str]) -> Mapping[str, Numbers]:
        return Arrays({name: self.lowering.stored[name] for name in names})

    def shapes(self) -> Mapping[str, Shape]:
        return shapes_of(self.weights)

    @property
    def constants(self) -> Constants:
        return Constants(self.lowering, self.arrays, self.fixed)

    def trained(self) -> Iterable[str]:
        return [name for name, each in self.weights.items() if each.dtype in COMPUTED and each.size > 1]

    def branches(self) -> Sequence[str]:
        """A condition that follows from sizes stays in the file."""
        return ()

    @property
    def recorded_on(self) -> str:
        shapes = [f"{name}: {'x'.join(map(str, known.shape))}" for name, known in self.named_shapes()]
        more = f" and {len(shapes) - 4} more" if len(shapes) > 4 else ""
        origin = "given" if len(self.given) == len(shapes) else "guessed where the model leaves them open"
        return f"inputs of {', '.join(shapes[:4])}{more} ({origin})"

    def named_shapes(self) -> list[tuple[str, Type]]:
        return [(printable(value.name), known) for value, known in self.shapes_of_inputs.items()]

    def inputs(self) -> Any:
        return describe(self.shapes_of_inputs)

    def constraints(self, solution: Solution, output: str) -> Constraints:
        if output == "module":
            raise InvalidArgument("output='module' is for torch models: an ONNX model gives an ONNX model")
        return Constraints("onnx", output)

    def recorded(self, solution: Solution) -> Constraints:
        return Constraints("onnx", "auto")

    def instead(self, asked: Constraints, missed: UnsupportedRatio) -> Constraints:
        raise missed

    def realize(self, rewrite: Rewrite, asked: Constraints) -> Realized | Constraints:
        small = Shrinker(self.lowering, rewrite, self.fixed)
        small.shrink(self.shapes_of_inputs, self.observed_after(rewrite))
        conflicts = small.conflicts or list(self.differences(small, rewrite))
        if not conflicts:
            return Realized(rewrite, "onnx", source=small, note=self.note_of(small))
        held: dict[Dim, str] = dict(asked.frozen)
        for conflict in conflicts:
            held.update(self.blamed(conflict, rewrite, held))
        why = f"{conflicts[0].op}: {conflicts[0].problem}"
        again = asked.holding(held, why)
        if again is None:
            raise VerificationError(
                f"the sizes in {self.model_name} could not be mended: {why}. "
                "This is a bug in structprune; please report it."
            )
        return again

    def note_of(self, small: Shrinker) -> str:
        if self.original is self.model or not small.is_mended:
            return ""
        names = list(dict.fromkeys(name for _, name, _ in self.original.functions))
        listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return f"the file's functions ({listed}) stand written out where they were called: they held sizes"

    def make(self, realized: Realized, edits: Sequence[Edit]) -> ir.Model:
        small: Shrinker = realized.source
        small.put(by_name(edits))
        if self.original is not self.model and not small.is_mended:
            # No size inside a function had to change: the user's functions hold as they are.
            return with_weights_of(self.original, small.model)
        return small.model

    def blamed(self, conflict: Conflict, rewrite: Rewrite, held: Container[Dim]) -> dict[Dim, str]:
        """What made an operator's sizes change, and is not held yet."""
        op = conflict.op
        own = [value for value in (*op.inputs, *op.outputs) if value is not None]
        # A size may follow from widths that the operator itself does not see.
        for values in (own, self.lowering.measured(op)):
            leaves = [leaf for leaf in changed_leaves(values, rewrite) if leaf not in held]
            if leaves:
                return dict.fromkeys(leaves, f"{op}: {conflict.problem}")
        return {}

    def observed_after(self, rewrite: Rewrite) -> dict[ir.Value, Type]:
        """What a run would tell of the smaller model."""
        found: dict[ir.Value, Type] = {}
        for value, known in self.observed.items():
            made = self.lowering.values.get(value)
            is_solved = made is not None and made in rewrite.solution.axes
            found[value] = Type(rewrite.shape(made), known.dtype) if made is not None and is_solved else known
        return found

    def fixed(self, value: ir.Value) -> Numbers:
        """Which of some computed numbers are the same for other sizes of the inputs."""
        here, there = self.trace.numbers.get(value), self.elsewhere.numbers.get(value)
        is_known = here is not None and there is not None and here.shape == there.shape
        return np.asarray(here == there if is_known else False)

    @cached_property
    def elsewhere(self) -> Trace:
        """The same model with other sizes wherever it leaves them open."""
        return trace(self.model, other_shapes(self.shapes_of_inputs))

    def differences(self, shrinker: Shrinker, rewrite: Rewrite) -> Iterator[Conflict]:
        """Read the new model again: every value must have the shape that the rewrite says."""
        observed = {shrinker.values[value]: known for value, known in self.observed_after(rewrite).items()}
        again = self.trace_copy(shrinker, self.shapes_of_inputs, observed)
        # What was mended for these sizes of the inputs must be right for others too.
        others = other_shapes(self.shapes_of_inputs)
        is_open = shrinker.is_mended and others != self.shapes_of_inputs
        far = self.trace_copy(shrinker, others, {}) if is_open else again
        for value, made in self.lowering.values.items():
            if made.producer is None or made not in rewrite.solution.axes:
                continue
            here, wanted = again.shape(shrinker.values[value]), rewrite.shape(made)
            there = far.shape(shrinker.values[value])
            if here != wanted:
                yield Conflict(made.producer, f"it gives {here} where {wanted} was to come")
            elif is_open and wanted == made.shape and there != self.elsewhere.shape(value):
                yield Conflict(made.producer, f"for other inputs it gives {there}, not {self.elsewhere.shape(value)}")

    def trace_copy(
        self, shrinker: Shrinker, shapes: Mapping[ir.Value, Type], observed: Mapping[ir.Value, Type]
    ) -> Trace:
        inputs = {shrinker.values[value]: known for value, known in shapes.items()}
        return trace(shrinker.model, inputs, observed)

    def trials(self, realized: Realized, small: ir.Model, zeros: Sequence[Edit]) -> Iterator[Trial]:
        """In float64 where onnxruntime has all operators in it; half precision is computed in single."""
        numbers = sum(each.size for each in self.weights.values())
        if why := too_large(sum(each.nbytes for each in self.weights.values()), free_memory()):
            yield impossible(self.recorded_on, why)
            return
        whole = Zeroed(self.lowering, realized.rewrite, self.fixed).build(by_name(zeros))
        own = ir.DataType.FLOAT if self.has_half else None
        work = macs(realized.rewrite.solution).whole
        has_room = 8 * numbers <= SHARE_DOUBLE * free_memory() and work <= CHEAP
        kinds = [ir.DataType.DOUBLE, own] if has_room and can_be_double(whole) and can_be_double(small) else [own]
        sizes = [(self.shapes_of_inputs, False)]
        others = shapes_nearby(self.model, self.shapes_of_inputs)
        if others is not None and work * growth(self.shapes_of_inputs, others) <= max(CHEAP, NO_LARGER * work):
            sizes.insert(0, (others, True))
        for shapes, elsewhere in sizes:
            feeds = data(self.model, shapes, self.given)
            for kind in kinds:
                yield trial(whole, small, feeds, kind, self.tolerance, elsewhere)

    @property
    def has_half(self) -> bool:
        return any(each.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) for each in self.weights.values())

    def deliver(self, small: ir.Model, output_path: Any, force: bool) -> Any:
        """The result as the user gave the model: a file for a file, a proto for a proto."""
        is_file = isinstance(self.source, str | os.PathLike)
        if output_path is not None:
            external = {Path(tensor.path).resolve() for tensor in external_tensors(self.original)}
            replaces = is_file and is_same(Path(self.source), Path(output_path))
            save(small, Path(output_path), is_external=bool(external), needed=() if replaces else external)
        if is_file:
            return Path(output_path) if output_path is not None else small
        if isinstance(self.source, onnx.ModelProto):
            return ir.to_proto(small)
        materialize(small)
        return small


def stored_shapes(model: Any) -> dict[str, Shape]:
    """The shapes of what a model stores, by name."""
    return shapes_of(weights(inlined(open_model(model))))


def shapes_of(tensors: Mapping[str, ir.TensorProtocol]) -> dict[str, Shape]:
    return {name: sizes(tensor) for name, tensor in tensors.items()}


def refuse_too_large(known: Trace) -> None:
    """A small file can ask for more than any machine holds."""
    for value, found in known.types.items():
        if (count := prod(found.shape)) > MOST_ENTRIES:
            raise CaptureError(
                f"'{printable(value.name)}' would have {count_of(count)} entries of shape {list(found.shape)}, more "
                "than can be worked with: if that follows from the inputs, give smaller example_inputs"
            )


def materialize(model: ir.Model) -> None:
    """Cut the weights now: a model that lives on must not hold on to the one that it was cut from."""
    for slot in slots(model):
        if isinstance(slot.tensor, ir.LazyTensor):
            slot.put(ir.Tensor(slot.tensor.numpy(), dtype=slot.tensor.dtype, name=slot.tensor.name))


def changed_leaves(values: Iterable[Value], rewrite: Rewrite) -> list[Dim]:
    solved = [value for value in values if value.parameter is None and value in rewrite.solution.axes]
    axes = [axis for value in solved for axis in rewrite.solution.expanded(value)]
    return [leaf for axis in axes for leaf in rewrite.solution.system.leaves(axis) if leaf in rewrite.kept]

