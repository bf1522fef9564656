"""Axes as expressions, and the unification that solves equations between them.

An axis is a free variable (`Dim`), a row-major product `(h d)` or a sum `(p + q)`, one part after
another. Every equation refines variables in place of rewriting the axes that mention them, so an
axis read later sees all that was learnt since.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", prod(factor.size for factor in self.factors))


@dataclass(frozen=True, slots=True, eq=False)
class Sum:
    """Parts, one after another."""

    parts: tuple[Axis, ...]
    size: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", sum(part.size for part in self.parts))


Axis = Dim | Product | Sum
Axes = tuple[Axis, ...]
ONE = Product(())


def product(factors: Iterable[Axis]) -> Axis:
    """The product without its factors of size one."""
    kept = tuple(factor for factor in factors if factor.size != 1)
    return kept[0] if len(kept) == 1 else Product(kept) if kept else ONE


def total(parts: Iterable[Axis]) -> Axis:
    """The sum without its empty parts."""
    kept = tuple(part for part in parts if part.size != 0)
    return kept[0] if len(kept) == 1 else Sum(kept)


def fresh(size: int) -> Axis:
    return ONE if size == 1 else Dim(size)


@dataclass(frozen=True, slots=True)
class Freeze:
    """Why a dimension must stay whole, and the operator (if any) that says so."""

    reason: str
    where: object = None


class System:
    """The equations met so far, solved."""

    def __init__(self) -> None:
        self._bound: dict[Dim, Axis] = {}
        self.frozen: dict[Dim, Freeze] = {}
        self._cause = Freeze("boundaries that do not nest")
        self._kept: frozenset[Dim] = frozenset()

    def copy(self, keeping: Iterable[Dim]) -> System:
        """The same equations, to learn others from. What is kept stays unbound where a newer variable can give way."""
        twin = System()
        twin._bound, twin.frozen, twin._kept = dict(self._bound), dict(self.frozen), frozenset(keeping)
        return twin

    # -- reading -------------------------------------------------------------------------------

    def resolve(self, axis: Axis) -> Axis:
        """The axis with its outermost variable replaced by what it is bound to."""
        while True:
            match axis:
                case Dim():
                    bound = self._bound.get(axis)
                    if bound is None:
                        return axis
                    deeper = self._bound.get(bound) if isinstance(bound, Dim) else None
                    if deeper is not None:
                        self._bound[axis] = bound = deeper
                    axis = bound
                case Product(inner) | Sum(inner):
                    # `(1 n)` and `(0 + n)` are n itself: bound to one of them, n would contain itself.
                    same = [each for each in inner if each.size == axis.size != 1]
                    if not same:
                        return axis
                    axis = same[0]

    def expand(self, axis: Axis) -> Axis:
        """The axis in terms of unbound variables only, products and sums flattened."""
        axis = self.resolve(axis)
        match axis:
            case Dim():
                return axis
            case Product():
                return product(self.expand(factor) for factor in self.factors(axis))
            case Sum():
                return total(self.expand(part) for part in self.parts(axis))

    def factors(self, axis: Axis) -> list[Axis]:
        axis = self.resolve(axis)
        if isinstance(axis, Product):
            return [inner for factor in axis.factors for inner in self.factors(factor)]
        return [] if axis.size == 1 else [axis]

    def parts(self, axis: Axis) -> list[Axis]:
        """The parts of a sum; an outer sum is distributed: `((p + q) c)` is `(p c) + (q c)`."""
        axis = self.resolve(axis)
        if isinstance(axis, Sum):
            return [inner for part in axis.parts for inner in self.parts(part)]
        if isinstance(axis, Product):
            outer, *rest = self.factors(axis) or [axis]
            if isinstance(outer, Sum):
                return [product((part, *rest)) for part in self.parts(outer)]
        return [axis]

    def leaves(self, axis: Axis) -> Iterator[Dim]:
        """The unbound variables of an axis, with repeats."""
        axis = self.resolve(axis)
        match axis:
            case Dim():
                yield axis
            case Product(factors):
                for factor in factors:
                    yield from self.leaves(factor)
            case Sum(parts):
                for part in parts:
                    yield from self.leaves(part)

    def is_frozen(self, axis: Axis) -> bool:
        """No index of this axis can be removed."""
        return all(leaf in self.frozen for leaf in self.leaves(axis))

    # -- learning ------------------------------------------------------------------------------

    def freeze(self, axis: Axis, reason: str, where: object = None) -> None:
        cause = Freeze(reason, where)
        for leaf in self.leaves(axis):
            self.frozen.setdefault(leaf, cause)

    def unify(self, a: Axis, b: Axis, where: object = None) -> None:
        """Make two axes one. Where their boundaries do not nest, freeze both."""
        self._cause = Freeze("boundaries that do not nest", where)
        self._unify(a, b)

    def _unify(self, a: Axis, b: Axis) -> None:
        a, b = self.resolve(a), self.resolve(b)
        if a is b or a.size == 1 == b.size:
            return
        if a.size != b.size:
            raise ValueError(f"axes of sizes {a.size} and {b.size} cannot be one")
        if isinstance(b, Dim) and not (isinstance(a, Dim) and b in self._kept):
            a, b = b, a
        match a, b:
            case Dim(), _:
                self._bind(a, b)
            case Product(), Product():
                self._refine_products(a, b)
            case _:
                self._align_sums(a, b)

    def _bind(self, dim: Dim, axis: Axis) -> None:
        self._bound[dim] = axis
        if (cause := self.frozen.pop(dim, None)) is not None:
            for leaf in self.leaves(axis):
                self.frozen.setdefault(leaf, cause)

    def _refine_products(self, a: Axis, b: Axis) -> None:
        """The common refinement of two products, from the innermost factor outwards."""
        left, right = self.factors(a), self.factors(b)
        while left and right:
            x, y = left.pop(), right.pop()
            if x.size < y.size:
                left, right, x, y = right, left, y, x
            if x.size == y.size:
                self._unify(x, y)
            elif (halves := self.factor(x, y.size)) is not None:
                outer, inner = halves
                self._unify(inner, y)
                left.append(outer)
            else:
                self._freeze_all([*left, *right, x, y])
                return
            # Unifying may have refined what is left: read it again.
            left = [factor for axis in left for factor in self.factors(axis)]
            right = [factor for axis in right for factor in self.factors(axis)]

    def _align_sums(self, a: Axis, b: Axis) -> None:
        """Cut both axes at every boundary of either, and unify part by part."""
        left, right = self.parts(a)[::-1], self.parts(b)[::-1]
        while left and right:
            x, y = left.pop(), right.pop()
            if x.size < y.size:
                left, right, x, y = right, left, y, x
            if x.size == y.size:
                self._unify(x, y)
            elif (halves := self.cut(x, y.size)) is not None:
                first, rest = halves
                self._unify(first, y)
                left.append(rest)
            else:
                self._freeze_all([*left, *right, x, y])
                return
            left = [part for axis in left for part in self.parts(axis)[::-1]]
            right = [part for axis in right for part in self.parts(axis)[::-1]]

    def _freeze_all(self, axes: Sequence[Axis]) -> None:
        for axis in axes:
            for leaf in self.leaves(axis):
                self.frozen.setdefault(leaf, self._cause)

    def factor(self, axis: Axis, inner: int) -> tuple[Axis, Axis] | None:
        """The axis as (outer, inner) with an inner factor of that size; None where it has none."""
        axis = self.resolve(axis)
        if inner == 1:
            return axis, ONE
        if axis.size == inner:
            return ONE, axis
        if axis.size % inner:
            return None
        match axis:
            case Dim():
                halves = fresh(axis.size // inner), fresh(inner)
                self._bind(axis, Product(halves))
                return halves
            case Product():
                *outer, last = self.factors(axis)
                if last.size % inner == 0:
                    within = self.factor(last, inner)
                    return within and (product((*outer, within[0])), within[1])
                if inner % last.size == 0:
                    within = self.factor(product(outer), inner // last.size)
                    return within and (within[0], product((within[1], last)))
                return None
            case Sum():
                parts = self.parts(axis)
                if any(part.size % inner for part in parts):
                    return None
                outers: list[Axis] = []
                shared: Axis | None = None
                for part in parts:
                    within = self.factor(part, inner)
                    if within is None:
                        return None
                    outers.append(within[0])
                    if shared is not None:
                        self._unify(shared, within[1])
                    shared = within[1]
                return None if shared is None else (Sum(tuple(outers)), shared)

    def cut(self, axis: Axis, at: int) -> tuple[Axis, Axis] | None:
        """The axis as (first, rest) with a first part of that size; None where none ends there."""
        axis = self.resolve(axis)
        if at <= 0 or at >= axis.size:
            return None
        match axis:
            case Dim():
                halves = fresh(at), fresh(axis.size - at)
                self._bind(axis, Sum(halves))
                return halves
            case Product():
                outer, *rest = self.factors(axis)
                inner = product(rest)
                within = self.cut(outer, at // inner.size) if at % inner.size == 0 else None
                return within and (product((within[0], inner)), product((within[1], inner)))
            case Sum():
                first: list[Axis] = []
                parts = self.parts(axis)
                while parts and parts[0].size <= at:
                    at -= parts[0].size
                    first.append(parts.pop(0))
                if at:
                    within = self.cut(parts[0], at)
                    if within is None:
                        return None
                    first.append(within[0])
                    parts[0] = within[1]
                return total(first), total(parts)

    def pieces(self, axis: Axis, sizes: Sequence[int], where: object = None) -> list[Axis]:
        """The axis cut into parts of these sizes; where it cannot be, frozen parts of a frozen axis."""
        pieces: list[Axis] = []
        rest = axis
        for size in sizes[:-1]:
            if size == 0:
                pieces.append(Dim(0))
                continue
            if rest.size == size:
                pieces.append(rest)
                rest = Dim(0)
                continue
            halves = self.cut(rest, size)
            if halves is None:
                self.freeze(axis, "is cut at a place where no part ends", where)
                return [self.fixed(size, "part of an axis that could not be cut") for size in sizes]
            pieces.append(halves[0])
            rest = halves[1]
        return [*pieces, rest]

    def fixed(self, size: int, reason: str, where: object = None) -> Axis:
        """A dimension that must stay whole."""
        if size == 1:
            return ONE
        dim = Dim(size)
        self.frozen[dim] = Freeze(reason, where)
        return dim


def variables(axis: Axis) -> Iterator[Dim]:
    """The variables of an expanded axis, with repeats."""
    match axis:
        case Dim():
            yield axis
        case Product(inner) | Sum(inner):
            for each in inner:
                yield from variables(each)


Kept = dict[Dim, Indices]


def kept_size(axis: Axis, counts: dict[Dim, int]) -> int:
    """The size of an expanded axis when each variable keeps that many indices."""
    match axis:
        case Dim():
            return counts.get(axis, axis.size)
        case Product(factors):
            return prod(kept_size(factor, counts) for factor in factors)
        case Sum(parts):
            return sum(kept_size(part, counts) for part in parts)


def kept_indices(axis: Axis, kept: Kept) -> Indices | None:
    """The indices of an expanded axis that stay, in order; None when all do."""
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
            inner = [kept_indices(part, kept) for part in parts]
            if all(indices is None for indices in inner):
                return None
            starts = np.cumsum([0, *(part.size for part in parts[:-1])])
            return np.concatenate(
                [
                    start + (np.arange(part.size) if indices is None else indices)
                    for start, part, indices in zip(starts, parts, inner, strict=True)
                ]
            )
