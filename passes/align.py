"""Which counts of each dimension keep widths multiples of what a runtime computes at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd, lcm

from structprune.algebra.axis import Axis, Dim, Product, Sum, variables


@dataclass(frozen=True, slots=True)
class JointWidth:
    """Parts of one width, each as often as it occurs, whose counts, with `fixed` more, must together be a multiple."""

    dims: tuple[Dim, ...]
    fixed: int
    multiple: int

    def excess(self, dims: Sequence[Dim], counts: Sequence[int]) -> int:
        """How much too wide these counts make it: zero where they fit."""
        own = sum(count * self.dims.count(dim) for dim, count in zip(dims, counts, strict=True))
        return (own + self.fixed) % self.multiple


@dataclass(frozen=True, slots=True)
class Alignment:
    """The multiple that each dimension's count must be, and widths whose parts are multiples only together."""

    multiples: Mapping[Dim, int]
    joint: tuple[JointWidth, ...] = ()


def alignment(axes: Iterable[Axis], frozen: Mapping[Dim, object], align: int) -> Alignment:
    """What makes kept widths multiples of `align`."""
    if align <= 1:
        return Alignment({})
    multiples: dict[Dim, int] = {}
    joint: dict[object, JointWidth] = {}
    for axis in axes:
        parts = axis.parts if isinstance(axis, Sum) else (axis,)
        odd = [part for part in parts if len(parts) > 1 and part.size % align]
        for part in parts:
            if part not in odd:
                align_part(part, frozen, align, multiples)
        if odd:
            loose = tuple(part for part in odd if isinstance(part, Dim) and part not in frozen)
            stiff = [part for part in odd if part not in loose]
            # A part that cannot be counted by itself stays whole: whole, it adds to the others what it always did.
            multiples.update({leaf: leaf.size for part in stiff for leaf in variables(part) if leaf not in frozen})
            for dim, times in Counter(loose).items():
                if times > 1:
                    multiples[dim] = lcm(multiples.get(dim, 1), align // gcd(align, times))
            if loose:
                width = JointWidth(loose, sum(part.size for part in stiff) % align, align)
                joint.setdefault((frozenset(Counter(loose).items()), width.fixed), width)
    return Alignment(multiples, tuple(joint.values()))


def align_part(part: Axis, frozen: Mapping[Dim, object], align: int, multiples: dict[Dim, int]) -> None:
    """The factors of a product share what is needed, the innermost first."""
    factors = part.factors if isinstance(part, Product) else (part,)
    needed = align
    for factor in factors:
        if not isinstance(factor, Dim) or factor in frozen:
            needed //= gcd(needed, factor.size)
    for factor in reversed(factors):
        if isinstance(factor, Dim) and factor not in frozen and needed > 1:
            is_alone = len(factors) == 1 and factor.size >= needed
            own = needed if is_alone else gcd(needed, factor.size)
            multiples[factor] = lcm(own, multiples.get(factor, 1))
            needed //= own


def movable(axes: Iterable[Axis], frozen: Mapping[Dim, object]) -> set[Dim]:
    """Of each product one factor, the largest: a width then loses the share that its factor loses."""
    held: set[Dim] = set()
    free: set[Dim] = set()
    for axis in axes:
        for part in axis.parts if isinstance(axis, Sum) else (axis,):
            leaves = [leaf for leaf in variables(part) if leaf not in frozen]
            free.update(leaves)
            if isinstance(part, Product) and len(leaves) > 1:
                largest = max(leaves, key=lambda leaf: leaf.size)
                held.update(leaf for leaf in leaves if leaf is not largest)
    return free - held
