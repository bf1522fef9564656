"""What is done to what a model stores, as data: computed first, applied last, in this order.

A front end applies each kind in one place; a pass that changes values adds edits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from structprune.algebra.order import Indices

# What a model stores, by name. It may be lazy: a tensor is read when it is asked for.
Weights = Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """Along some axes, the indices that stay, in the order in which they stand from then on."""

    name: str
    kept: Mapping[int, Indices]


@dataclass(frozen=True, slots=True, eq=False)
class Zero:
    """Along some axes, the indices that stay; all others become zero."""

    name: str
    kept: Mapping[int, Indices]


@dataclass(frozen=True, slots=True, eq=False)
class Renumber:
    """Of a stored index: each number k becomes numbers[k]. Negative ones count from the end."""

    name: str
    numbers: Indices


@dataclass(frozen=True, slots=True, eq=False)
class Add:
    """Values of the same shape are added."""

    name: str
    values: Any


Edit = Slice | Zero | Renumber | Add
Edits = Mapping[str, Sequence[Edit]]


def by_name(edits: Iterable[Edit]) -> Edits:
    """The edits of each stored tensor, in their order."""
    found: dict[str, list[Edit]] = {}
    for edit in edits:
        found.setdefault(edit.name, []).append(edit)
    return found


def are_same(these: Sequence[Edit], others: Sequence[Edit]) -> bool:
    """The same is done by both, to tensors of whatever names."""
    return len(these) == len(others) and all(map(is_same, these, others))


def is_same(edit: Edit, other: Edit) -> bool:
    match edit, other:
        case (Slice(kept=a), Slice(kept=b)) | (Zero(kept=a), Zero(kept=b)):
            return a.keys() == b.keys() and all(np.array_equal(a[axis], b[axis]) for axis in a)
        case (Renumber(numbers=a), Renumber(numbers=b)) | (Add(values=a), Add(values=b)):
            return np.array_equal(a, b)
    return False
