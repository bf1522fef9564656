"""The ONNX front end as the pipeline sees it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from structprune.axis import Dim
from structprune.errors import InvalidArgument, UnsupportedModel, VerificationError
from structprune.frontends.onnx import operators  # noqa: F401  registers the entries
from structprune.frontends.onnx.file import open_model, save
from structprune.frontends.onnx.inputs import Examples, data, describe, examples, restore, traced
from structprune.frontends.onnx.lower import Lowering, weights
from structprune.frontends.onnx.oracle import Zeroed, largest_error, run
from structprune.frontends.onnx.small import Conflict, Shrinker, Small
from structprune.frontends.onnx.trace import Numbers, Type, sizes, trace
from structprune.frontends.protocol import Choose, Constraints, Described, Realized
from structprune.graph import Graph, Op, Shape, Value
from structprune.passes.propagate import Solution
from structprune.passes.rewrite import Rewrite

# How far the result may be from the zeroed original, in units of its largest output.
TOLERANCES = {
    ir.DataType.DOUBLE: 1e-9,
    ir.DataType.FLOAT: 1e-4,
    ir.DataType.FLOAT16: 2e-2,
    ir.DataType.BFLOAT16: 1e-1,
}
ATTEMPTS = 40


class OnnxFrontend:
    """An ONNX model, traced."""

    # onnxruntime's convolutions run in blocks of 16 channels; other widths lose their fast path.
    block_of_convolutions = 16
    # A plan made a while ago is not carried out on what was read then: the file may have changed.
    follows_the_model = False

    def __init__(self, source: Any, model: ir.Model, given: Examples) -> None:
        self.source = source
        self.model = model
        self.given = given
        self.shapes_of_inputs, self.trace = traced(model, given)
        self.observed: dict[ir.Value, Type] = {}
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
        self.tolerance = max(
            TOLERANCES.get(each.dtype, TOLERANCES[ir.DataType.FLOAT]) for each in self.weights.values()
        )

    @classmethod
    def read(cls, source: Any, example_inputs: Any) -> OnnxFrontend:
        model = open_model(source)
        if isinstance(example_inputs, Described):
            example_inputs = restore(example_inputs.data)
        given = {} if example_inputs is None else examples(model, example_inputs)
        return cls(source, model, given)

    def arrays(self, names: Iterable[str]) -> Mapping[str, Numbers]:
        return Arrays({name: self.lowering.stored[name].tensor for name in names})

    def shapes(self) -> Mapping[str, Shape]:
        return shapes_of(self.weights)

    def inputs(self) -> Any:
        return describe(self.shapes_of_inputs)

    def realize(self, solution: Solution, choose: Choose, output: str) -> Realized:
        if output == "module":
            raise InvalidArgument("output='module' is for torch models: an ONNX model gives an ONNX model")
        constraints = Constraints()
        for _ in range(ATTEMPTS):
            rewrite = Rewrite(solution, choose(constraints))
            small = self.shrunk(rewrite)
            if not small.conflicts:
                return Realized(rewrite, "onnx", small.finish, constraints)
            if not any([learn(conflict, rewrite, constraints) for conflict in small.conflicts]):
                break
        raise VerificationError(
            f"the sizes in {self.model_name} could not be mended: {small.conflicts[0].op}: "
            f"{small.conflicts[0].problem}. This is a bug in structprune; please report it."
        )

    def shrunk(self, rewrite: Rewrite) -> Small:
        shrinker = Shrinker(self.lowering, rewrite, self.fixed())
        small = shrinker.shrink(self.shapes_of_inputs, self.observed)
        if not small.conflicts:
            small.conflicts.extend(self.differences(shrinker, rewrite))
        return small

    def fixed(self) -> set[ir.Value]:
        """Computed numbers that are the same for other sizes of the inputs."""
        if self._fixed is None:
            other = trace(self.model, self.other_shapes())
            self._fixed = {
                value for value, numbers in self.trace.numbers.items()
                if value in other.numbers and np.array_equal(other.numbers[value], numbers)
            }  # fmt: skip
        return self._fixed

    _fixed: set[ir.Value] | None = None

    def other_shapes(self) -> dict[ir.Value, Type]:
        """Other sizes wherever the model leaves them open."""
        return {
            value: Type(
                tuple(
                    size if value.shape is not None and isinstance(value.shape[axis], int) else other_size(size, axis)
                    for axis, size in enumerate(known.shape)
                ),
                known.dtype,
            )
            for value, known in self.shapes_of_inputs.items()
        }

    def differences(self, shrinker: Shrinker, rewrite: Rewrite) -> Iterator[Conflict]:
        """Read the new model again: every value must have the shape that the rewrite says."""
        again = trace(
            shrinker.model,
            {shrinker.values[value]: known for value, known in self.shapes_of_inputs.items()},
            {shrinker.values[value]: known for value, known in self.observed.items()},
        )
        for value, made in self.lowering.values.items():
            copied = shrinker.values[value]
            if made.producer is None or made not in rewrite.solution.axes:
                continue
            if again.shape(copied) != rewrite.shape(made):
                yield Conflict(
                    made.producer, f"it gives {again.shape(copied)} where {rewrite.shape(made)} was to come"
                )

    def error(self, rewrite: Rewrite, small: ir.Model) -> float:
        feeds = data(self.model, self.shapes_of_inputs, self.given)
        whole = Zeroed(self.lowering, rewrite, set()).build()
        return largest_error(run(whole, feeds, is_plain=True), run(small, feeds))

    def deliver(self, small: ir.Model, output_path: Any, force: bool) -> Any:
        """The result as the user gave the model: a file for a file, a proto for a proto."""
        is_file = isinstance(self.source, str | os.PathLike)
        if output_path is not None:
            save(small, Path(output_path))
        if is_file:
            return Path(output_path) if output_path is not None else small
        return ir.to_proto(small) if isinstance(self.source, onnx.ModelProto) else small


def stored_shapes(model: Any) -> dict[str, Shape]:
    """The shapes of what a model stores, by name."""
    return shapes_of(weights(open_model(model)))


def shapes_of(tensors: Mapping[str, ir.TensorProtocol]) -> dict[str, Shape]:
    return {name: sizes(tensor) for name, tensor in tensors.items()}


def other_size(size: int, axis: int) -> int:
    return size + 1 if axis == 0 else 2 * size


class Arrays(Mapping[str, Numbers]):
    """Weights as arrays, each read when it is asked for, in a type that numpy computes with."""

    def __init__(self, tensors: Mapping[str, ir.TensorProtocol]) -> None:
        self.tensors = tensors

    def __getitem__(self, name: str) -> Numbers:
        array = self.tensors[name].numpy()
        return array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def learn(conflict: Conflict, rewrite: Rewrite, constraints: Constraints) -> bool:
    """What made an operator's sizes change stays whole; True if that is news."""
    learnt = False
    for leaf in changed_leaves(conflict.op, rewrite):
        if leaf not in constraints.frozen:
            constraints.frozen[leaf] = f"{conflict.op}: {conflict.problem}"
            learnt = True
    return learnt


def changed_leaves(op: Op, rewrite: Rewrite) -> list[Dim]:
    values: list[Value] = [value for value in (*op.inputs, *op.outputs) if value is not None]
    axes = [axis for value in values if value.parameter is None for axis in rewrite.solution.expanded(value)]
    return [leaf for axis in axes for leaf in rewrite.solution.system.leaves(axis) if leaf in rewrite.kept]

