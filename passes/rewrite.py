"""What has to change: the indices that stay of each parameter, and the new shape of each value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from structprune.algebra.axis import Axis, Dim, Kept, kept_indices, kept_size
from structprune.algebra.order import Indices
from structprune.graph.edit import Edit, Literal, Renumber, Slice, Zero
from structprune.graph.graph import Op, Place, Shape, Value
from structprune.graph.selection import Selection
from structprune.operators.routing import Pick
from structprune.passes.propagate import Solution


@dataclass(slots=True, repr=False)
class Rewrite:
    """The consequences of keeping some indices, for every value of a solved graph."""

    solution: Solution
    kept: Kept
    counts: dict[Dim, int] = field(init=False)
    _indices: dict[Axis, Indices | None] = field(default_factory=dict)
    _sizes: dict[Axis, int] = field(default_factory=dict)
    _literals: dict[Op, Mapping[Place, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.kept = Selection(self.kept)
        self.counts = {dim: len(kept) for dim, kept in self.kept.items()}

    def indices(self, value: Value, axis: int) -> Indices | None:
        """The indices that stay along an axis; None for all."""
        expression = self.solution.expanded(value)[axis]
        if expression not in self._indices:
            self._indices[expression] = kept_indices(expression, self.kept)
        return self._indices[expression]

    def shape(self, value: Value) -> Shape:
        return tuple(map(self.size, self.solution.expanded(value)))

    def size(self, axis: Axis) -> int:
        """The new size of an expanded axis."""
        found = self._sizes.get(axis)
        if found is None:
            found = self._sizes[axis] = kept_size(axis, self.counts)
        return found

    def before(self, value: Value, axis: int, at: int) -> int:
        """How many of the indices before `at` stay."""
        kept = self.indices(value, axis)
        return at if kept is None else int(np.count_nonzero(kept < at))

    def places(self, value: Value, axis: int) -> Indices:
        """Where each index is in the smaller axis; of one that goes, where it would be."""
        size, kept = value.shape[axis], self.indices(value, axis)
        places = np.arange(size)
        if kept is not None:
            places = np.searchsorted(np.sort(kept), places).astype(np.int64)
            places[kept] = np.arange(len(kept))
        return places

    def literals(self, op: Op) -> Mapping[Place, Any]:
        """What stands at the places of an operator's node in the smaller model; nothing where it says nothing there."""
        if op.places is None:
            return {}
        if op not in self._literals:
            after = op.operator.resized(op, self)
            if isinstance(op.places, Mapping):
                fields = {place: getattr(after, name) for name, place in op.places.items()}
                found = {place: list(each) if isinstance(each, tuple) else each for place, each in fields.items()}
            else:
                found = {} if after == op.operator else dict(op.places(after))
            self._literals[op] = found
        return self._literals[op]

    def slices(self) -> dict[str, dict[int, Indices]]:
        """For each parameter that changes, the indices that stay along each axis that does."""
        found: dict[str, dict[int, Indices]] = {}
        for name, value in self.solution.graph.parameters.items():
            for axis in range(len(value.shape)):
                if (kept := self.indices(value, axis)) is not None:
                    found.setdefault(name, {})[axis] = kept
        return found

    def numbers(self) -> dict[str, Indices]:
        """For each stored index that reads an axis which loses entries: what every number in it becomes."""
        found: dict[str, Indices] = {}
        for op in self.solution.graph.ops:
            pick = op.operator
            if not isinstance(pick, Pick) or pick.stored is None or op.inputs[0] is None:
                continue
            if self.indices(op.inputs[0], pick.dim) is not None:
                found[pick.stored] = self.places(op.inputs[0], pick.dim)
        return found

    def edits(self) -> Iterator[Edit]:
        """What is done to what the model stores, and to the numbers that its nodes hold."""
        yield from (Slice(name, kept) for name, kept in self.slices().items())
        yield from (Renumber(name, numbers) for name, numbers in self.numbers().items())
        yield from (Literal(op, values) for op in self.solution.graph.ops if (values := self.literals(op)))

    def zeroing(self) -> Iterator[Edit]:
        """What is done to the original in place of it, where removing equals zeroing."""
        parameters = self.solution.graph.parameters
        yield from (Zero(name, kept) for name, kept in self.slices().items() if parameters[name].is_trained)
