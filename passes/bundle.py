"""The steps in which dimensions can shrink: alone, or several together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd

from structprune.algebra.axis import Dim
from structprune.passes.align import Alignment, JointWidth
from structprune.passes.group import Group
from structprune.passes.measure import Counts


@dataclass(frozen=True, slots=True)
class Bundle:
    """Dimensions that shrink in step: `sizes` gives, after each step, the count of each of them.

    `layers` says how many weights each dimension runs through.
    """

    dims: tuple[Dim, ...]
    sizes: tuple[tuple[int, ...], ...]
    layers: tuple[int, ...]

    def counts(self, step: int) -> Counts:
        return dict(zip(self.dims, self.sizes[step], strict=True))


@dataclass(frozen=True, slots=True)
class Tie:
    """Dimensions whose counts must stay in proportion, because the model's code derives one from another."""

    dims: tuple[Dim, ...]


def bundles(groups: Sequence[Group], alignment: Alignment, ties: Iterable[Tie]) -> list[Bundle]:
    """The independent choices: single dimensions, and those that are tied or make up one width."""
    free = {group.dim: place for place, group in enumerate(groups)}
    tied: dict[Dim, frozenset[Dim]] = {dim: frozenset((dim,)) for dim in free}
    for dims in [*(tie.dims for tie in ties), *(width.dims for width in alignment.joint)]:
        together = frozenset(dim for each in dims for dim in tied.get(each, (each,)))
        tied.update(dict.fromkeys(together, together))
    found: list[Bundle] = []
    for together in dict.fromkeys(tied.values()):
        # What is tied to a width that cannot change cannot change either.
        if all(dim in free for dim in together):
            dims = tuple(sorted(together, key=free.__getitem__))
            sizes = tuple(dim.size for dim in dims)
            multiples = tuple(alignment.multiples.get(dim, 1) for dim in dims)
            joint = [width for width in alignment.joint if width.dims[0] in together]
            if len(joint) == 1 and set(joint[0].dims) == together:
                steps = steps_together(dims, multiples, joint[0])
            else:
                steps = steps_of(sizes, multiples)
                steps = (sizes, *(step for step in steps[1:] if not any(width.excess(dims, step) for width in joint)))
            layers = tuple(max(1, groups[free[dim]].layers) for dim in dims)
            found.append(Bundle(dims, steps, layers))
    return [bundle for bundle in found if len(bundle.sizes) > 1]


@lru_cache(maxsize=1024)
def steps_of(sizes: tuple[int, ...], multiples: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """All counts from whole to least: proportional, and multiples of what each dimension asks for."""
    shared = gcd(*sizes)
    steps = [sizes]
    for part in range(shared - 1, 0, -1):
        counts = tuple(size * part // shared for size in sizes)
        if all(count % multiple == 0 for count, multiple in zip(counts, multiples, strict=True)):
            steps.append(counts)
    return tuple(steps)


def steps_together(dims: tuple[Dim, ...], multiples: tuple[int, ...], width: JointWidth) -> tuple[tuple[int, ...], ...]:
    """All counts from whole to least, nearly proportional, whose sum makes the width a multiple."""
    sizes = tuple(dim.size for dim in dims)
    steps = [sizes]
    # The part that may have any count makes up for the others.
    any_count = [k for k, dim in enumerate(dims) if multiples[k] == 1 and width.dims.count(dim) == 1]
    loosest = max(any_count, key=sizes.__getitem__, default=None)
    for total in range(sum(sizes) - 1, 0, -1):
        shares = [size * total // sum(sizes) for size in sizes]
        counts = [max(m, share // m * m) for share, m in zip(shares, multiples, strict=True)]
        if loosest is not None:
            counts[loosest] -= width.excess(dims, counts)
        is_possible = all(0 < count <= size for count, size in zip(counts, sizes, strict=True))
        if is_possible and not width.excess(dims, counts) and tuple(counts) != steps[-1]:
            steps.append(tuple(counts))
    return tuple(steps)
