"""What a model's own numbers ask of the widths, known before any is chosen.

In logarithms, `model.dim == heads * width` is a linear equation between shares: the share that `dim` keeps is that of
the heads times that of their width. Attributes are eliminated; what is left between widths are ties (two widths keep
the same share) and widths that stay whole.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import gcd

from structprune.algebra.axis import Axis, Dim, Product, Sum, unordered, variables
from structprune.frontends.torch.record.expression import Attribute, Expression, Size, Term

Unknown = Attribute | Axis
Shares = dict[Unknown, Fraction]
AxisOf = Callable[[Size], Axis | None]


def shares_of(expression: Expression, axis_of: AxisOf) -> Shares | None:
    """The share that an expression keeps, as exponents of those of its leaves; None where it is no product."""
    match expression:
        case Attribute():
            return {expression: Fraction(1)}
        case Size():
            axis = axis_of(expression)
            return {} if axis is None else shares_of_axis(axis)
        case Term("mul", (a, b)):
            return combined(shares_of(a, axis_of), shares_of(b, axis_of), 1)
        case Term("floordiv" | "truediv", (a, b)):
            return combined(shares_of(a, axis_of), shares_of(b, axis_of), -1)
        case Term("pow", (a, int() | float() as power)):
            inner = shares_of(a, axis_of)
            exponent = Fraction(power).limit_denominator(64)
            return None if inner is None else {each: share * exponent for each, share in inner.items()}
        case Term("float" | "neg" | "trunc" | "floor" | "ceil" | "round", (a,)):
            return shares_of(a, axis_of)
        case Term("sqrt", (a,)):
            inner = shares_of(a, axis_of)
            return None if inner is None else {each: share / 2 for each, share in inner.items()}
        case int() | float():
            return {}
    return None


def combined(a: Shares | None, b: Shares | None, sign: int) -> Shares | None:
    if a is None or b is None:
        return None
    result = dict(a)
    for each, share in b.items():
        result[each] = result.get(each, Fraction(0)) + sign * share
    return {each: share for each, share in result.items() if share}


def shares_of_axis(axis: Axis) -> Shares:
    """Factors keep their own shares; a sum is one unknown."""
    axis = unordered(axis)
    result: Shares = {}
    for factor in axis.factors if isinstance(axis, Product) else (axis,):
        if factor.size > 1:
            result[factor] = result.get(factor, Fraction(0)) + 1
    return result


def eliminated(system: Iterable[tuple[Shares, str]]) -> list[tuple[Shares, str]]:
    """The equations `sum of exponents x log share = 0`, each with its reason, that are left without attributes."""
    left: list[tuple[Shares, str]] = []
    solved: dict[Attribute, Shares] = {}
    for equation, why in system:
        current = substituted(equation, solved)
        pivot = next((each for each in current if isinstance(each, Attribute)), None)
        if pivot is None:
            if current:
                left.append((current, why))
            continue
        factor = -current.pop(pivot)
        value = {each: share / factor for each, share in current.items()}
        for known, other in list(solved.items()):
            if pivot in other:
                solved[known] = substituted(other, {pivot: value})
        solved[pivot] = value
    return left


def substituted(equation: Shares, solved: dict[Attribute, Shares]) -> Shares:
    result: Shares = {}
    for each, share in equation.items():
        parts = solved[each] if isinstance(each, Attribute) and each in solved else {each: Fraction(1)}
        for inner, exponent in parts.items():
            result[inner] = result.get(inner, Fraction(0)) + share * exponent
    return {each: share for each, share in result.items() if share}


@dataclass(slots=True)
class Proportions:
    """Widths that keep the same share, and widths that keep all."""

    held: Container[Dim]
    frozen: dict[Dim, str] = field(default_factory=dict)
    _root: dict[Dim, Dim] = field(default_factory=dict)

    def root(self, dim: Dim) -> Dim:
        while (parent := self._root.get(dim)) is not None:
            dim = parent
        return dim

    def is_frozen(self, dim: Dim) -> bool:
        return dim in self.held or dim in self.frozen or self.root(dim) in self.frozen

    def freeze(self, dims: Iterable[Dim], why: str) -> bool:
        """True if that is news."""
        new = [dim for dim in dims if not self.is_frozen(dim)]
        for dim in new:
            self.frozen[dim] = self.frozen[self.root(dim)] = why
        return bool(new)

    def tie(self, a: Dim, b: Dim, why: str) -> None:
        a, b = self.root(a), self.root(b)
        if a is b:
            return
        if self.is_frozen(a) or self.is_frozen(b):
            self.freeze((a, b), why)
        self._root[b] = a

    def ties(self) -> list[tuple[Dim, ...]]:
        groups: dict[Dim, list[Dim]] = {}
        for dim in self._root:
            groups.setdefault(self.root(dim), [self.root(dim)]).append(dim)
        return [tuple(dict.fromkeys(group)) for group in groups.values()]

    def require(self, equation: Shares, why: str) -> None:
        """Make an equation between widths hold, with as much freedom left as one tie leaves."""
        shares: dict[Dim, Fraction] = {}
        for axis, share in equation.items():
            assert not isinstance(axis, Attribute)
            for dim in self.representatives(axis, why):
                root = self.root(dim)
                if not self.is_frozen(root):
                    shares[root] = shares.get(root, Fraction(0)) + share
        shares = {dim: share for dim, share in shares.items() if share}
        above = [dim for dim, share in shares.items() if share > 0]
        below = [dim for dim, share in shares.items() if share < 0]
        # Of several, the first: of heads and their width, the heads.
        pairs = ((a, b) for a in above for b in below if shares[a] == -shares[b] and gcd(a.size, b.size) > 1)
        pair = next(pairs, ())
        self.freeze((dim for dim in shares if dim not in pair), why)
        if pair:
            self.tie(*pair, why)

    def representatives(self, axis: Axis, why: str) -> Sequence[Dim]:
        """The variables whose shares, multiplied, are that of an axis; parts of a sum keep equal shares for that."""
        if isinstance(axis, Dim):
            return [axis]
        free = [dim for dim in dict.fromkeys(variables(axis)) if not self.is_frozen(dim)]
        if not isinstance(axis, Sum):
            return free
        movable: list[Dim] = []
        for part in axis.parts:
            inner = [dim for dim in dict.fromkeys(variables(part)) if not self.is_frozen(dim)]
            if not inner or not isinstance(part, Dim | Product):
                self.freeze(free, why)
                return []
            chosen = max(inner, key=lambda dim: dim.size)
            if isinstance(part, Product):
                self.freeze((dim for dim in inner if dim is not chosen), why)
            movable.append(chosen)
        for other in movable[1:]:
            self.tie(movable[0], other, why)
        return [] if self.is_frozen(movable[0]) else movable[:1]
