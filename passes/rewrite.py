"""What has to change: the indices that stay of each parameter, and the new shape of each value."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from structprune.axis import Indices, Kept, kept_indices
from structprune.graph import Shape, Value
from structprune.passes.propagate import Solution


@dataclass(slots=True)
class Rewrite:
    """The consequences of keeping some indices, for every value of a solved graph."""

    solution: Solution
    kept: Kept
    _indices: dict[tuple[Value, int], Indices | None] = field(default_factory=dict)

    def indices(self, value: Value, axis: int) -> Indices | None:
        """The indices that stay along an axis; None for all."""
        key = (value, axis)
        if key not in self._indices:
            expression = self.solution.expanded(value)[axis]
            self._indices[key] = kept_indices(expression, self.kept)
        return self._indices[key]

    def shape(self, value: Value) -> Shape:
        found = (self.indices(value, axis) for axis in range(len(value.shape)))
        return tuple(size if kept is None else len(kept) for size, kept in zip(value.shape, found, strict=True))

    def before(self, value: Value, axis: int, at: int) -> int:
        """How many of the indices before `at` stay."""
        kept = self.indices(value, axis)
        return at if kept is None else int(np.searchsorted(kept, at))

    def is_changed(self, value: Value) -> bool:
        return self.shape(value) != value.shape

    def edits(self) -> dict[str, dict[int, Indices]]:
        """For each parameter that changes, the indices that stay along each axis that does."""
        found: dict[str, dict[int, Indices]] = {}
        for name, value in self.solution.graph.parameters.items():
            for axis in range(len(value.shape)):
                if (kept := self.indices(value, axis)) is not None:
                    found.setdefault(name, {})[axis] = kept
        return found
