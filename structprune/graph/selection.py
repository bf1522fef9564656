"""What a decision is: which indices of each dimension stay, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from structprune.algebra.axis import Dim
from structprune.algebra.order import Indices, is_identity


class Selection(Mapping[Dim, Indices]):
    """The indices that stay of each dimension that changes, in any order: entry j of the new one is old entry kept[j].

    A dimension that is left out stays as it is. In another order than before, a dimension means the same: every
    parameter, index and size that it runs through follows.
    """

    __slots__ = ("_kept",)

    def __init__(self, kept: Mapping[Dim, Indices]) -> None:
        self._kept: dict[Dim, Indices] = {}
        for dim, given in kept.items():
            indices = np.array(given, dtype=np.int64)
            if not are_distinct(indices, dim.size):
                raise ValueError(f"of a dimension of {dim.size} cannot be kept: {given}")
            if len(indices) < dim.size or not is_identity(indices):
                self._kept[dim] = indices

    def __getitem__(self, dim: Dim) -> Indices:
        return self._kept[dim]

    def __iter__(self) -> Iterator[Dim]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def __repr__(self) -> str:
        return f"Selection({', '.join(f'{len(kept)} of {dim.size}' for dim, kept in self.items())})"


def are_distinct(indices: Indices, size: int) -> bool:
    """At least one, each inside the dimension, none twice."""
    if indices.ndim != 1 or not len(indices) or indices.min() < 0 or indices.max() >= size:
        return False
    return bool(np.bincount(indices, minlength=size).max() == 1)
