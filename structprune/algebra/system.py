"""The equations between axes, solved by unification.

Every equation refines variables in place of rewriting the axes that mention them, so an axis read later sees all
that was learnt since.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from structprune.algebra import order
from structprune.algebra.axis import ONE, Axis, Dim, Product, Reordered, Sum, assemble, fresh, product, reordered, total
from structprune.algebra.order import Indices

# Stands for every index that no variable can remove.
SINGLE = Dim(1)


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
                case Reordered(whole, entries):
                    axis = self._opened(self.resolve(whole), entries)
                    if isinstance(axis, Reordered):
                        return axis

    def _opened(self, inner: Axis, entries: Indices) -> Axis:
        """The order of a whole as orders of its factors or parts, as far as it is one."""
        if isinstance(inner, Reordered):
            entries = inner.order[entries]
            inner = inner.inner
        if order.is_identity(entries):
            return inner
        if isinstance(inner, Product):
            factors = self.factors(inner)
            if (orders := order.over_factors(entries, [each.size for each in factors])) is not None:
                return product(reordered(factors[place], each) for place, each in orders)
        parts = self.parts(inner)
        orders = order.over_parts(entries, [each.size for each in parts])
        if len(parts) > 1 and orders is not None:
            return total(reordered(parts[place], each) for place, each in orders)
        return Reordered(inner, entries)

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
            case Reordered(inner, entries):
                return Reordered(self.expand(inner), entries)

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
            case Reordered(inner):
                yield from self.leaves(inner)

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
            case Dim(), _ if not (isinstance(b, Reordered) and b.inner is a):
                self._bind(a, b)
            case (Reordered(), _) | (_, Reordered()):
                self._align_orders(a, b)
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

        def divide(axis: Axis, size: int) -> tuple[Axis, Axis] | None:
            halves = self.factor(axis, size)
            return halves and (halves[1], halves[0])

        self._meet(self.factors(a), self.factors(b), divide, self.factors)

    def _align_sums(self, a: Axis, b: Axis) -> None:
        """Cut both axes at every boundary of either, and unify part by part."""

        def backwards(axis: Axis) -> list[Axis]:
            return self.parts(axis)[::-1]

        left, right = backwards(a), backwards(b)
        if left != right and set(left) == set(right) and self._tie(a, b):
            return
        self._meet(left, right, self.cut, backwards)

    def _meet(
        self,
        left: list[Axis],
        right: list[Axis],
        divide: Callable[[Axis, int], tuple[Axis, Axis] | None],
        opened: Callable[[Axis], list[Axis]],
    ) -> None:
        """Unify two lists of axes from their ends; the longer of two is divided into (what meets, what is left)."""
        while left and right:
            x, y = left.pop(), right.pop()
            if x.size < y.size:
                left, right, x, y = right, left, y, x
            if x.size > y.size:
                halves = divide(x, y.size)
                if halves is None:
                    self._freeze_all([*left, *right, x, y])
                    return
                x, rest = halves
                left.append(rest)
            self._unify(x, y)
            # Unifying may have refined what is left: read it again.
            left, right = ([inner for axis in each for inner in opened(axis)] for each in (left, right))

    def _align_orders(self, a: Axis, b: Axis) -> None:
        """One of the axes, or both, has its entries in an order that none of its parts follows."""
        is_kept = isinstance(a, Reordered) and a.inner in self._kept
        for one, other in ((b, a), (a, b)) if is_kept else ((a, b), (b, a)):
            inside = other.inner if isinstance(other, Reordered) else other
            if isinstance(one, Reordered) and isinstance(one.inner, Dim) and one.inner is not inside:
                self._bind(one.inner, Reordered(other, order.inverse(one.order)))
                return
        if isinstance(a, Reordered) and isinstance(b, Reordered) and (a.order == b.order).all():
            self._unify(a.inner, b.inner)
        elif not self._tie(a, b):
            self._freeze_all([a, b])

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
            case Reordered(Dim() as dim, entries):
                halves = fresh(axis.size // inner), fresh(inner)
                self._bind(dim, Reordered(Product(halves), order.inverse(entries)))
                return halves
            case Reordered():
                return None

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
            case Reordered():
                halves_of = self._take(axis, [np.arange(at), np.arange(at, axis.size)])
                return None if halves_of is None else (halves_of[0], halves_of[1])

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

    # -- entry by entry ------------------------------------------------------------------------

    def pick(self, axis: Axis, index: Indices, where: object = None) -> Axis:
        """The axis whose entry i is entry index[i] of this one. Where no expression says so, both are frozen."""
        axis = self.resolve(axis)
        causes = [self.frozen[leaf] for leaf in self.leaves(axis) if leaf in self.frozen]
        if self.is_frozen(axis) or not len(index):
            cause = causes[0] if causes else Freeze("nothing is left of it")
            return self.fixed(len(index), cause.reason, cause.where)
        if at := order.rotation(index, axis.size):
            halves = self.cut(axis, at)
            if halves is not None:
                return total(reversed(halves))
        if (taken := self._take(axis, [index])) is not None:
            return taken[0]
        if order.takes_each_once(index, axis.size):
            return Reordered(axis, index)
        if isinstance(axis, Product):
            outer, *rest = self.factors(axis)
            inner = product(rest)
            if (blocks := order.whole_blocks(index, inner.size)) is not None:
                return product((self.pick(outer, blocks, where), inner))
        reason = "is read by index, across its factors"
        self.freeze(axis, reason, where)
        return self.fixed(len(index), reason, where)

    def _nodes(self, axis: Axis, starts: dict[Dim, int]) -> Indices | None:
        """Each entry as a number: where its variable starts, and its place there. None with a product in the way."""
        axis = self.resolve(axis)
        match axis:
            case Reordered(inner, entries):
                nodes = self._nodes(inner, starts)
                return None if nodes is None else nodes[entries]
            case Sum():
                parts = [self._nodes(part, starts) for part in self.parts(axis)]
                found = [part for part in parts if part is not None]
                return np.concatenate(found) if len(found) == len(parts) else None
            case Product() if axis.size > 1:
                return None
        dim = axis if isinstance(axis, Dim) else SINGLE
        start = starts.setdefault(dim, sum(each.size for each in starts))
        return np.arange(start, start + dim.size)

    def _take(self, axis: Axis, indices: Sequence[Indices]) -> list[Axis] | None:
        """The axes that take these entries. A variable is divided by how often each of them takes its indices."""
        starts: dict[Dim, int] = {}
        nodes = self._nodes(axis, starts)
        if nodes is None:
            return None
        taken = [nodes[index] for index in indices]
        counts = [np.bincount(each, minlength=len(nodes)) for each in taken]
        parts: list[Axis] = []
        owner, place = np.empty_like(nodes), np.empty_like(nodes)
        for dim, start in starts.items():
            span = slice(start, start + dim.size)
            kinds = order.classes([each[span] for each in counts])
            made = [fresh(int(size)) for size in np.bincount(kinds)]
            owner[span], place[span] = kinds + len(parts), order.occurrence(kinds)
            if len(made) == 1:
                made = [ONE if dim.size == 1 else dim]
            else:
                self._bind(dim, assemble(made, kinds, np.zeros_like(kinds), place[span]))
            parts += made
        return [assemble(parts, owner[each], order.occurrence(each), place[each]) for each in taken]

    def _tie(self, a: Axis, b: Axis) -> bool:
        """Make two axes one, entry by entry: cycles go together. False with a product in the way."""
        starts: dict[Dim, int] = {}
        left, right = self._nodes(a, starts), self._nodes(b, starts)
        if left is None or right is None:
            return False
        if (left == right).all():
            return True
        component = order.components(sum(dim.size for dim in starts), left, right)
        members = {dim: component[start : start + dim.size] for dim, start in starts.items()}
        kinds = order.classes([np.bincount(each, minlength=component.max() + 1) for each in members.values()])
        parts = [fresh(int(size)) for size in np.bincount(kinds)]
        if not any(isinstance(part, Dim) for part in parts):
            self._cause = Freeze("its entries are tied to each other around a cycle", self._cause.where)
            self._freeze_all([a, b])
            return True
        place = order.occurrence(kinds)
        for dim, each in members.items():
            if dim.size > 1:
                self._bind(dim, assemble(parts, kinds[each], order.occurrence(each), place[each]))
        return True

    def fixed(self, size: int, reason: str, where: object = None) -> Axis:
        """A dimension that must stay whole."""
        if size == 1:
            return ONE
        dim = Dim(size)
        self.frozen[dim] = Freeze(reason, where)
        return dim
