"""What is done to a model, as data: computed first, applied last, in this order.

A front end applies each kind in one place; a pass that changes values adds edits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from structprune.algebra.order import Indices
from structprune.graph.graph import Op, Place

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


@dataclass(frozen=True, slots=True, eq=False)
class Literal:
    """The numbers that the node behind an operator holds from then on, each at its place."""

    op: Op
    values: Mapping[Place, Any]


# What is done to something stored.
Change = Slice | Zero | Renumber | Add
Edit = Change | Literal
Changes = Mapping[str, Sequence[Change]]
Literals = Mapping[Op, Mapping[Place, Any]]


def by_name(edits: Iterable[Edit]) -> Changes:
    """What is done to each stored tensor, in that order."""
    found: dict[str, list[Change]] = {}
    for edit in edits:
        if not isinstance(edit, Literal):
            found.setdefault(edit.name, []).append(edit)
    return found


def literals_in(edits: Iterable[Edit]) -> Literals:
    """The numbers that each operator's node gets."""
    return {edit.op: edit.values for edit in edits if isinstance(edit, Literal)}


def are_same(these: Sequence[Change], others: Sequence[Change]) -> bool:
    """The same is done by both, to tensors of whatever names."""
    return len(these) == len(others) and all(map(is_same, these, others))


def is_same(edit: Change, other: Change) -> bool:
    match edit, other:
        case (Slice(kept=a), Slice(kept=b)) | (Zero(kept=a), Zero(kept=b)):
            return a.keys() == b.keys() and all(np.array_equal(a[axis], b[axis]) for axis in a)
        case (Renumber(numbers=a), Renumber(numbers=b)) | (Add(values=a), Add(values=b)):
            return np.array_equal(a, b)
    return False
