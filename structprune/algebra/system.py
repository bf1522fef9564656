"""The equations between axes, solved by unification.

Every equation refines variables in place of rewriting the axes that mention them, so an axis read later sees all
that was learnt since.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from structprune.algebra import entries, order
from structprune.algebra.axis import ONE, Axis, Dim, Product, Reordered, Sum, flat, fresh, product, reordered, total
from structprune.algebra.order import Indices


@dataclass(frozen=True, slots=True)
class Freeze:
    """Why a dimension must stay whole, and the operator (if any) that says so."""

    reason: str
    where: object = None


COMPOUND = (Product, Sum)


class System:
    """The equations met so far, solved."""

    def __init__(self) -> None:
        self._bound: dict[Axis, Axis] = {}
        self._freezes = 0
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
        if type(axis) is Dim and axis not in self._bound:
            return axis
        axis = self._unbound(axis)
        while isinstance(axis, Reordered):
            inner, places = self._unbound(axis.inner), axis.order
            while isinstance(inner, Reordered):
                places, inner = inner.order[places], self._unbound(inner.inner)
            opened = self._opened(inner, places)
            if isinstance(opened, Reordered):
                return axis if opened.inner is axis.inner else opened
            axis = self._unbound(opened)
        return axis

    def _unbound(self, axis: Axis) -> Axis:
        while True:
            bound = self._bound.get(axis)
            if bound is None:
                only = axis.only if isinstance(axis, COMPOUND) else None
                if only is None:
                    return axis
                axis = only
                continue
            deeper = self._bound.get(bound)
            if deeper is not None:
                self._bound[axis] = bound = deeper
            axis = bound

    def _opened(self, inner: Axis, places: Indices) -> Axis:
        """The order of a whole as orders of its factors or parts, as far as it is one."""
        if order.is_identity(places):
            return inner
        if isinstance(inner, Product):
            factors = self.factors(inner)
            if (orders := order.over_factors(places, [each.size for each in factors])) is not None:
                return product(reordered(factors[place], each) for place, each in orders)
        parts = self.parts(inner)
        orders = order.over_parts(places, [each.size for each in parts])
        if len(parts) > 1 and orders is not None:
            return total(reordered(parts[place], each) for place, each in orders)
        return Reordered(inner, places)

    def expand(self, axis: Axis) -> Axis:
        """The axis in terms of unbound variables only, products and sums flattened."""
        return Expansion(self)(axis)

    def factors(self, axis: Axis) -> list[Axis]:
        """The factors of a product, none of them a product or of size one."""
        found: list[Axis] = []
        waiting = [axis]
        while waiting:
            each = self.resolve(waiting.pop())
            if isinstance(each, Product):
                waiting.extend(reversed(each.factors))
            elif each.size != 1:
                found.append(each)
        return found

    def parts(self, axis: Axis) -> list[Axis]:
        """The parts of a sum, none of them a sum."""
        found: list[Axis] = []
        waiting = [axis]
        while waiting:
            each = self.resolve(waiting.pop())
            inner = self.terms(each)
            if inner is None:
                found.append(each)
            else:
                waiting.extend(reversed(inner))
        return found

    def terms(self, axis: Axis) -> tuple[Axis, ...] | None:
        """What a resolved axis is the sum of; an outer sum is distributed: `((p + q) c)` is `(p c) + (q c)`."""
        if isinstance(axis, Sum):
            return axis.parts
        if isinstance(axis, Product) and axis.factors:
            outer, *rest = self.factors(axis) or [axis]
            if isinstance(outer, Sum):
                return tuple(product((part, *rest)) for part in self.parts(outer))
        return None

    def leaves(self, axis: Axis) -> Iterator[Dim]:
        """The unbound variables of an axis, with repeats."""
        waiting = [axis]
        while waiting:
            match self.resolve(waiting.pop()):
                case Dim() as dim:
                    yield dim
                case Product(inner) | Sum(inner):
                    waiting.extend(reversed(inner))
                case Reordered(whole):
                    waiting.append(whole)

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
        freezes = self._freezes
        match a, b:
            case Dim(), _ if not (isinstance(b, Reordered) and b.inner is a):
                self.bind(a, b)
                return
            case (Reordered(), _) | (_, Reordered()):
                self._align_orders(a, b)
                return
            case Product(), Product():
                self._refine_products(a, b)
            case _:
                self._align_sums(a, b)
        if freezes == self._freezes and self.resolve(a) is a and self.resolve(b) is b:
            # The next to meet one of them sees the other: chains of sums are not compared from the start again.
            self._bound[a] = b

    def bind(self, dim: Dim, axis: Axis) -> None:
        self._bound[dim] = axis
        if (cause := self.frozen.pop(dim, None)) is not None:
            for leaf in self.leaves(axis):
                self.frozen.setdefault(leaf, cause)

    def _refine_products(self, a: Axis, b: Axis) -> None:
        """The common refinement of two products, from the innermost factor outwards."""

        def divide(axis: Axis, size: int) -> tuple[Axis, Axis] | None:
            halves = self.factor(axis, size)
            return halves and (halves[1], halves[0])

        self._meet([a], [b], divide, lambda axis: axis.factors if isinstance(axis, Product) else None)

    def _align_sums(self, a: Axis, b: Axis) -> None:
        """Cut both axes at every boundary of either, and unify part by part."""

        def backwards(axis: Axis) -> tuple[Axis, ...] | None:
            terms = self.terms(axis)
            return None if terms is None else terms[::-1]

        left, right = [a], [b]
        if self._next(left, right, backwards) is None:
            return
        rests = [total(reversed(rest)) for rest in (left, right)]
        inner = [set(self.parts(rest)) for rest in rests]
        # The same parts at other places: part by part, they would be cut into ever smaller ones.
        if len(inner[0]) > 1 and inner[0] == inner[1] and entries.tie(self, *rests):
            return
        self._meet(left, right, self.cut, backwards)

    def _next(
        self, left: list[Axis], right: list[Axis], opened: Callable[[Axis], tuple[Axis, ...] | None]
    ) -> tuple[Axis, Axis] | None:
        """What meets next at the ends of two lists, still there: both opened, and what is one already left out."""
        while left and right:
            x, y = left[-1], right[-1] = self.resolve(left[-1]), self.resolve(right[-1])
            if x is y or x.size == 1 == y.size:
                left.pop(), right.pop()
                continue
            if not (x.size and y.size):
                (right if x.size else left).pop()
                continue
            # The larger is opened first: a part of it may be the other. A variable takes the other as it is.
            sides = [(left, x), (right, y)] if x.size >= y.size else [(right, y), (left, x)]
            for side, axis in sides[:1] if isinstance(sides[0][1], Dim) else sides:
                if (inner := opened(axis)) is not None:
                    side.pop()
                    side.extend(inner)
                    break
            else:
                return x, y
        return None

    def _meet(
        self,
        left: list[Axis],
        right: list[Axis],
        divide: Callable[[Axis, int], tuple[Axis, Axis] | None],
        opened: Callable[[Axis], tuple[Axis, ...] | None],
    ) -> None:
        """Unify two lists of axes from their ends; the longer of two is divided into (what meets, what is left)."""
        # Unifying may refine what is left: it is resolved when its turn comes.
        while (pair := self._next(left, right, opened)) is not None:
            x, y = pair
            if x.size < y.size:
                left, right, x, y = right, left, y, x
            if x.size > y.size and isinstance(x, Dim) and divide == self.cut:
                left[-1] = self._fill(x, right)
                continue
            if x.size > y.size:
                halves = divide(x, y.size)
                if halves is None:
                    self.freeze_all([*left, *right])
                    return
                left[-1:] = [halves[1], halves[0]]
                x = halves[0]
            left.pop(), right.pop()
            self._unify(x, y)

    def _fill(self, dim: Dim, parts: list[Axis]) -> Axis:
        """Bind a variable to as many whole parts, from the end of their list, as its size takes; give back the rest."""
        taken: list[Axis] = []
        left = dim.size
        while left and parts[-1].size <= left:
            taken.append(parts.pop())
            left -= taken[-1].size
        rest = fresh(left) if left else Dim(0)
        self.bind(dim, total([*taken, rest]))
        return rest

    def _align_orders(self, a: Axis, b: Axis) -> None:
        """One of the axes, or both, has its entries in an order that none of its parts follows."""
        is_kept = isinstance(a, Reordered) and a.inner in self._kept
        for one, other in ((b, a), (a, b)) if is_kept else ((a, b), (b, a)):
            inside = other.inner if isinstance(other, Reordered) else other
            if isinstance(one, Reordered) and isinstance(one.inner, Dim) and one.inner is not inside:
                self.bind(one.inner, Reordered(other, order.inverse(one.order)))
                return
        if isinstance(a, Reordered) and isinstance(b, Reordered) and (a.order == b.order).all():
            self._unify(a.inner, b.inner)
        elif not entries.tie(self, a, b):
            self.freeze_all([a, b])

    def freeze_all(self, axes: Iterable[Axis], why: str = "") -> None:
        """Freeze what cannot be made one."""
        self._freezes += 1
        for axis in axes:
            self.freeze(axis, why or self._cause.reason, self._cause.where)

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
                self.bind(axis, Product(halves))
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
            case Reordered(Dim() as dim, places):
                halves = fresh(axis.size // inner), fresh(inner)
                self.bind(dim, Reordered(Product(halves), order.inverse(places)))
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
                self.bind(axis, Sum(halves))
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
                halves_of = entries.take(self, axis, [np.arange(at), np.arange(at, axis.size)])
                return None if halves_of is None else (halves_of[0], halves_of[1])

    def pick(self, axis: Axis, index: Indices, where: object = None) -> Axis:
        """The axis whose entry i is entry index[i] of this one. Where no expression says so, both are frozen."""
        return entries.pick(self, axis, index, where)

    def fixed(self, size: int, reason: str, where: object = None) -> Axis:
        """A dimension that must stay whole."""
        if size == 1:
            return ONE
        dim = Dim(size)
        self.frozen[dim] = Freeze(reason, where)
        return dim


class Expansion:
    """Axes in terms of unbound variables, once all is learnt. Equal expressions are one object."""

    def __init__(self, system: System) -> None:
        self.system = system
        self._known: dict[Axis, Axis] = {}
        self._shared: dict[object, Axis] = {}

    def __call__(self, axis: Axis) -> Axis:
        # Bindings are as deep as the model: no recursion.
        waiting = [(axis, self._inside(axis))]
        while waiting:
            each, inner = waiting[-1]
            missing = [part for part in inner if part not in self._known] if each not in self._known else []
            if missing:
                waiting.extend((part, self._inside(part)) for part in reversed(missing))
                continue
            waiting.pop()
            if each not in self._known:
                resolved = self.system.resolve(each)
                found = self._one_of(resolved, [self._known[part] for part in inner])
                self._known[each] = self._known[resolved] = found
        return self._known[axis]

    def _inside(self, axis: Axis) -> list[Axis]:
        """What an axis is made of, an outer sum in a sum distributed."""
        if axis in self._known:
            return []
        resolved = self.system.resolve(axis)
        match resolved:
            case Dim():
                return []
            case Product():
                return self.system.factors(resolved)
            case Sum(parts):
                return self._parts(parts)
            case Reordered(whole):
                return [whole]

    def _parts(self, parts: Sequence[Axis]) -> list[Axis]:
        """Sums opened but for those that are known already."""
        found: list[Axis] = []
        waiting = list(reversed(parts))
        while waiting:
            each = self.system.resolve(waiting.pop())
            is_known = isinstance(each, Sum) and each in self._known
            terms = None if is_known else self.system.terms(each)
            if terms is None:
                found.append(each)
            else:
                waiting.extend(reversed(terms))
        return found

    def _one_of(self, axis: Axis, inner: list[Axis]) -> Axis:
        match axis:
            case Dim():
                return axis
            case Product():
                made = product(inner)
                return self._shared.setdefault((Product, made.factors), made) if isinstance(made, Product) else made
            case Sum():
                made = total(flat(inner, Sum))
                return self._shared.setdefault((Sum, made.parts), made) if isinstance(made, Sum) else made
            case Reordered(_, places):
                return self._shared.setdefault((inner[0], places.tobytes()), Reordered(inner[0], places))
