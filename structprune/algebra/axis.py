"""Axes as expressions.

An axis is a variable (`Dim`), a row-major product `(h d)`, a sum `(p + q)`, one part after another, or one of
these in another order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
from numpy.typing import NDArray

from structprune.algebra import order
from structprune.algebra.order import Indices

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Dim:
    """A variable: its indices can be removed one by one, unless the system froze it."""

    size: int


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """Factors from outer to inner."""

    factors: tuple[Axis, ...]
    size: int = field(init=False)
    only: Axis | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", prod(factor.size for factor in self.factors))
        object.__setattr__(self, "only", only_of(self.factors, self.size))


@dataclass(frozen=True, slots=True, eq=False)
class Sum:
    """Parts, one after another."""

    parts: tuple[Axis, ...]
    size: int = field(init=False)
    only: Axis | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", sum([part.size for part in self.parts]))
        object.__setattr__(self, "only", only_of(self.parts, self.size))


@dataclass(frozen=True, slots=True, eq=False)
class Reordered:
    """Every entry of an axis once, in another order: entry i is entry `order[i]` of it."""

    inner: Axis
    order: Indices
    size: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", len(self.order))


Axis = Dim | Product | Sum | Reordered
Axes = tuple[Axis, ...]


def only_of(inner: tuple[Axis, ...], size: int) -> Axis | None:
    """`(1 n)` and `(0 + n)` are n itself: bound to one of them, n would contain itself."""
    return next((each for each in inner if each.size == size), None) if size != 1 else None


ONE = Product(())


def product(factors: Iterable[Axis]) -> Axis:
    """The product without its factors of size one."""
    kept = tuple(factor for factor in factors if factor.size != 1)
    return kept[0] if len(kept) == 1 else Product(kept) if kept else ONE


def total(parts: Iterable[Axis]) -> Axis:
    """The sum without its empty parts."""
    kept = tuple(part for part in parts if part.size != 0)
    return kept[0] if len(kept) == 1 else Sum(kept)


def reordered(inner: Axis, entries: Indices) -> Axis:
    """The axis itself where nothing moves."""
    return inner if order.is_identity(entries) else Reordered(inner, entries)


def assemble(parts: Sequence[Axis], owner: Indices, copy: Indices, place: Indices) -> Axis:
    """The axis whose entry i is entry place[i] of one copy of parts[owner[i]], with all entries of each copy."""
    copies, which = np.unique(np.stack([owner, copy]), axis=1, return_inverse=True)
    chosen = [parts[number] for number in copies[0]]
    starts = np.cumsum([0, *(part.size for part in chosen)])
    return reordered(total(chosen), starts[which.reshape(-1)] + place)


def fresh(size: int) -> Axis:
    return ONE if size == 1 else Dim(size)


def variables(axis: Axis) -> Iterator[Dim]:
    """The variables of an expanded axis, with repeats."""
    match axis:
        case Dim():
            yield axis
        case Product(inner) | Sum(inner):
            for each in inner:
                if isinstance(each, Dim):
                    yield each
                else:
                    yield from variables(each)
        case Reordered(whole):
            yield from variables(whole)


def unordered(axis: Axis) -> Axis:
    """An expanded axis of the same sizes, whatever the order of its entries; itself where there is none."""
    match axis:
        case Reordered(whole):
            return unordered(whole)
        case Product(inner) | Sum(inner):
            plain = tuple(map(unordered, inner))
            if all(after is before for after, before in zip(plain, inner, strict=True)):
                return axis
            return product(flat(plain, Product)) if isinstance(axis, Product) else total(flat(plain, Sum))
    return axis


def flat(axes: Iterable[Axis], form: type[Product] | type[Sum]) -> Iterator[Axis]:
    """The axes, those of one form opened."""
    for axis in axes:
        if isinstance(axis, Product | Sum) and isinstance(axis, form):
            yield from axis.factors if isinstance(axis, Product) else axis.parts
        else:
            yield axis


# In any order: entry j of the smaller dimension is the old entry kept[j].
Kept = Mapping[Dim, Indices]


def kept_size(axis: Axis, counts: dict[Dim, int]) -> int:
    """The size of an expanded axis when each variable keeps that many indices."""
    match axis:
        case Dim():
            return counts.get(axis, axis.size)
        case Product(factors):
            return prod(kept_size(factor, counts) for factor in factors)
        case Sum(parts):
            return sum(kept_size(part, counts) for part in parts)
        case Reordered(whole):
            return kept_size(whole, counts)


def kept_indices(axis: Axis, kept: Kept) -> Indices | None:
    """The indices of an expanded axis that stay, in their new order; None when all do, where they were."""
    match axis:
        case Dim():
            return kept.get(axis)
        case Product(factors):
            inner = [kept_indices(factor, kept) for factor in factors]
            if all(indices is None for indices in inner):
                return None
            result = np.zeros(1, dtype=np.int64)
            for factor, indices in zip(factors, inner, strict=True):
                each = np.arange(factor.size) if indices is None else indices
                result = (result[:, None] * factor.size + each[None, :]).reshape(-1)
            return result
        case Sum(parts):
            return kept_of_parts(parts, kept)
        case Reordered(whole, entries):
            stay = kept_indices(whole, kept)
            return None if stay is None else kept_of_reordered(entries, stay)


def kept_of_reordered(entries: Indices, stay: Indices) -> Indices:
    """The positions that stay of an axis whose entries are those of another one, in another order.

        kept_of_reordered([3, 2, 1, 0], [0, 2]) == [1, 3]       a flip: entry 3 - 2, then entry 3 - 0
        kept_of_reordered([3, 2, 1, 0], [2, 0]) == [3, 1]       what was flipped follows the order of what stays
    """
    places = np.flatnonzero(np.isin(entries, stay))
    if (np.diff(stay) > 0).all():
        return places
    # The operator that reorders does to what stays what it would do to the same entries in their old order.
    reordered_again = np.searchsorted(np.sort(stay), entries[places])
    return order.inverse(entries)[stay[reordered_again]]


def kept_of_parts(parts: Sequence[Axis], kept: Kept) -> Indices | None:
    """The same for parts one after another; those that stay whole are not looked at one by one."""
    found: list[Indices] = []
    start = done = 0
    for part in parts:
        stay = kept.get(part) if isinstance(part, Dim) else kept_indices(part, kept)
        if stay is not None:
            if done < start:
                found.append(np.arange(done, start))
            found.append(stay + start)
            done = start + part.size
        start += part.size
    if not found:
        return None
    return np.concatenate([*found, np.arange(done, start)])
