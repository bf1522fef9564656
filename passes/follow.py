"""Follow what is constant from operator to operator: numbers that are the same whatever the inputs of the model are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any, Protocol

import numpy as np
from array_api_compat import array_namespace, device

from structprune.algebra.axis import Mask
from structprune.graph.constant import Array, Known, NotFinite, known
from structprune.graph.edit import Weights
from structprune.graph.graph import Graph, Op, Value
from structprune.passes.propagate import Names
from structprune.passes.score import to_numpy

# An operator, and what is known of its first operand and of its results.
Step = tuple[Op, Known | None, Sequence[Known | None]]


class Source(Protocol):
    """What a front end tells of numbers."""

    def arrays(self, names: Iterable[str]) -> Weights:
        """Parameters as arrays."""

    def numbers(self, value: Value) -> Array | None:
        """The numbers of a constant that is no parameter, where inputs of other sizes do not change them."""

    def computed(self, op: Op, operands: Sequence[Array]) -> Array | None:
        """A pointwise operator run on such numbers, in the types of the model; None where that cannot be done, or where
        inputs of other sizes change what the operator does."""


class Given(Sequence[Known | None]):
    """What is known of the operands of an operator, looked up when it asks: most weights are not looked at."""

    def __init__(self, follower: Follower, op: Op) -> None:
        self.follower = follower
        self.values = op.inputs

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, place: Any) -> Any:
        value = self.values[place]
        return None if value is None else self.follower.of(value)


class Follower:
    """Walks the operators in order. Nothing is run but where `may_run` says so."""

    def __init__(self, graph: Graph, source: Source) -> None:
        self.source = source
        self.may_run = False
        self.ops = [op for op in graph.ops if op not in graph.only_in_training]
        # What the model itself writes is another number in each run.
        written = {target.base or target for op in self.ops for target in op.overwrites}
        self.stored = {value for value in graph.parameters.values() if value not in written}
        self.arrays = source.arrays([str(value.parameter) for value in self.stored])
        self.known: dict[Value, Known | None] = {}

    def walk(self) -> list[Step]:
        """Every operator with what is known before and after it."""
        self.known.clear()
        names = Names()
        return [self.step(op, names) for op in self.ops]

    def step(self, op: Op, names: Names) -> Step:
        first = self.of(op.inputs[0]) if op.inputs and op.inputs[0] is not None else None
        results = self.results(op)
        # Whatever other names this memory has, nothing is known of it any more.
        for target in op.overwrites:
            self.known.update(dict.fromkeys(names.of(target)))
        for value, found in zip(op.outputs, results, strict=False):
            if found is not None and found.mask.any():
                self.known[value] = found
        for value in op.outputs:
            names.note(value)
        return op, first, results

    def results(self, op: Op) -> list[Known | None]:
        """What is known of each result. Where a rule does not fit the operator, nothing is."""
        try:
            found = op.operator.constants(op, Given(self, op), self)
        except (ValueError, IndexError):
            return []
        pairs = zip(found, op.outputs, strict=False)
        return [each if each is not None and each.fits(value.shape) else None for each, value in pairs]

    def of(self, value: Value) -> Known | None:
        """What is known of an operand. Stored tensors larger than vectors are no scales or shifts."""
        if value not in self.known and value.producer is None:
            is_vector = prod(value.shape) <= max(value.shape, default=1)
            self.known[value] = self.constant(value) if is_vector else None
        return self.known.get(value)

    def constant(self, value: Value) -> Known | None:
        if value.parameter is not None:
            return known(to_numpy(self.array(value))) if self.has_array(value) else None
        found = self.source.numbers(value) if self.may_run else None
        return known(found) if found is not None and found.shape == value.shape else None

    def has_array(self, value: Value | None) -> bool:
        """A tensor is stored. Complex numbers come as pairs, which are not followed."""
        return value in self.stored and value is not None and tuple(self.array(value).shape) == value.shape

    def array(self, value: Value) -> Any:
        return self.arrays[str(value.parameter)]

    def check_finite(self) -> None:
        """Zero times what is infinite, or no number, is not zero."""
        for array in map(self.array, self.stored):
            space = array_namespace(array)
            if space.isdtype(array.dtype, "real floating") and not space.all(space.isfinite(array)):
                raise NotFinite

    # -- what operators ask for ----------------------------------------------------------------

    def zero_slices(self, weight: Value | None, axis: int) -> Mask | None:
        """Few slices begin with a zero: only those are read to the end."""
        if weight is None or not self.has_array(weight):
            return None
        array = self.array(weight)
        first = tuple(slice(None) if k == axis else 0 for k in range(array.ndim))
        is_zero = np.asarray(to_numpy(array[first]) == 0)
        begun = np.flatnonzero(is_zero)
        if len(begun):
            space = array_namespace(array)
            taken = space.take(array, space.asarray(begun, device=device(array)), axis=axis)
            rows = space.reshape(space.moveaxis(taken, axis, 0), (len(begun), -1))
            is_zero[begun] = to_numpy(space.all(rows == 0, axis=1)) != 0
        return is_zero

    def filter_sums(self, weight: Value) -> Array:
        filters = to_numpy(self.array(weight))
        return np.asarray(filters.reshape(len(filters), -1).sum(1))

    def run(self, op: Op, operands: Sequence[Array]) -> Array | None:
        return self.source.computed(op, operands) if self.may_run else None
