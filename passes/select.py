"""Turn a target into the indices that stay.

Every group can shrink in steps. The steps of all groups are put in one order, and the shortest
beginning of that order that reaches the target is taken; single steps then close the gap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, gcd, lcm

import numpy as np

from structprune.algebra.axis import Axis, Dim, Product, Sum, variables
from structprune.errors import UnsupportedRatio
from structprune.graph.progress import doing
from structprune.graph.selection import Selection
from structprune.passes.group import Group
from structprune.passes.measure import Counts, Measure
from structprune.passes.score import Scores

TOLERANCE = 0.01
MOST_TRIES = 24
# No width loses more than this leaves, as long as the ratio can be reached so: layers that collapse cost most accuracy.
FLOORS = (0.4, 0.25, 0.1, 0.05, 0.02, 0.0)


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


def select(
    choices: Sequence[Bundle],
    scores: Mapping[Dim, Scores],
    measure: Measure,
    ratio: float,
    scope: str,
) -> Selection:
    """The indices that stay, so that the measure loses the ratio."""
    if ratio == 0:
        return Selection({})
    taken = steps_to(ratio, choices, scores, measure, scope)
    return Selection(
        {
            dim: keep(scores[dim], count)
            for bundle, step in zip(choices, taken, strict=True)
            for dim, count in bundle.counts(step).items()
            if count < dim.size
        }
    )


def steps_to(
    ratio: float, choices: Sequence[Bundle], scores: Mapping[Dim, Scores], measure: Measure, scope: str
) -> list[int]:
    """The steps of each bundle under the highest floor under which the ratio can be met."""
    reachable, missed = 0.0, UnsupportedRatio("Nothing can be removed")
    for floor in FLOORS:
        limits = [last_step_above(bundle, floor) for bundle in choices]
        apply(choices, measure, limits)
        reachable = measure.removed
        apply(choices, measure, [0] * len(choices))
        if reachable < ratio - TOLERANCE:
            continue
        try:
            order = ranking(choices, scores, measure, scope, limits)
            return near_enough(order, choices, measure, ratio, limits)
        except UnsupportedRatio as error:
            missed = error
    if reachable < ratio - TOLERANCE:
        raise UnsupportedRatio(f"Largest reachable ratio: {np.floor(reachable * 1000) / 1000:g}")
    raise missed


def near_enough(
    order: Sequence[int], choices: Sequence[Bundle], measure: Measure, ratio: float, limits: Sequence[int]
) -> list[int]:
    """Steps that reach the ratio. Where one coarse step overshoots, try without it, and with it but fewer others."""
    waiting = [([0] * len(choices), list(limits))]
    nearest = float("inf")
    for _ in range(MOST_TRIES):
        if not waiting:
            break
        least, most = waiting.pop(0)
        taken, last = shortest_reaching(order, choices, measure, ratio, least, most)
        close_the_gap(choices, measure, ratio, taken, most)
        error = measure.removed - ratio
        if abs(error) <= TOLERANCE:
            return taken
        nearest = min(nearest, error, key=abs)
        if last is None:  # all that may be taken is taken, or all that must be is too much
            continue
        index, step = last
        waiting.append((least, [step - 1 if k == index else each for k, each in enumerate(most)]))
        waiting.append(([step if k == index else each for k, each in enumerate(least)], most))
    raise UnsupportedRatio(f"The nearest ratio that can be reached: {ratio + nearest:.4f}")


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


def keep(scores: Scores, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The indices with the highest scores, in their old order."""
    return np.sort(np.argsort(-scores, kind="stable")[:count]).astype(np.int64)


def last_step_above(bundle: Bundle, floor: float) -> int:
    least = max(1, ceil(floor * bundle.dims[0].size))
    steps = [step for step, counts in enumerate(bundle.sizes) if counts[0] >= least]
    return max(steps[-1], min(1, len(bundle.sizes) - 1))


def apply(choices: Sequence[Bundle], measure: Measure, taken: Sequence[int]) -> None:
    counts: Counts = {}
    for bundle, step in zip(choices, taken, strict=True):
        counts.update(bundle.counts(step))
    measure.set(counts)


def ranking(
    choices: Sequence[Bundle], scores: Mapping[Dim, Scores], measure: Measure, scope: str, limits: Sequence[int]
) -> list[int]:
    """The bundles in the order in which they take steps."""
    keyed: list[tuple[float, int, int]] = []
    for index, bundle in enumerate(choices):
        if scope == "uniform":
            keys = [1 - bundle.sizes[step][0] / bundle.dims[0].size for step in range(1, limits[index] + 1)]
        else:
            keys = costs(bundle, scores, measure, limits[index])
        keyed.extend((key, step, index) for step, key in enumerate(keys, start=1))
    keyed.sort()
    return [index for _, _, index in keyed]


def costs(bundle: Bundle, scores: Mapping[Dim, Scores], measure: Measure, limit: int) -> list[float]:
    """What each step loses for what it saves, never less than the step before.

    What is lost is the squared scores of a layer that go, for those that stay (the more of it is gone, the dearer is
    the rest), summed over the layers that the dimension runs through: with each index of a residual width many
    layers lose a slice.
    """
    if limit == 0:
        return []
    before = measure.total
    measure.set(bundle.counts(limit))
    saved = (before - measure.total) / max(measure.whole, 1)
    measure.set(bundle.counts(0))
    lost = np.zeros(limit)
    for position, (dim, layers) in enumerate(zip(bundle.dims, bundle.layers, strict=True)):
        ordered = np.sort(scores[dim]) ** 2
        running = np.concatenate([[0.0], np.cumsum(ordered)]) / (float(ordered.sum()) or 1.0)
        removed = [dim.size - bundle.sizes[step][position] for step in range(limit + 1)]
        gone = running[removed]
        lost += layers * np.diff(gone / np.maximum(1 - gone, 1e-9))
    per_step = np.diff([bundle.dims[0].size - bundle.sizes[step][0] for step in range(limit + 1)])
    price = per_step / per_step.sum() * saved
    return np.maximum.accumulate(lost / np.maximum(price, 1e-12)).tolist()  # type: ignore[no-any-return]


def shortest_reaching(
    order: Sequence[int],
    choices: Sequence[Bundle],
    measure: Measure,
    ratio: float,
    least: Sequence[int],
    most: Sequence[int],
) -> tuple[list[int], tuple[int, int] | None]:
    """Bisect for the shortest beginning of the order that removes at least the ratio, and name its last step."""

    def steps(length: int) -> list[int]:
        taken = np.bincount(order[:length], minlength=len(choices))
        return [int(step) for step in np.clip(taken, least, most)]

    low, high = 0, len(order) + 1
    while low < high:
        middle = (low + high) // 2
        apply(choices, measure, steps(middle))
        if measure.removed >= ratio:
            high = middle
        else:
            low = middle + 1
    taken = steps(low)
    apply(choices, measure, taken)
    reached = 0 < low <= len(order)
    return taken, (order[low - 1], taken[order[low - 1]]) if reached else None


def close_the_gap(
    choices: Sequence[Bundle], measure: Measure, ratio: float, taken: list[int], limits: Sequence[int]
) -> None:
    """Take or undo single steps, or pairs of them, as long as that brings the measure nearer to the ratio."""
    for _ in range(64):
        doing("choosing widths")
        error = abs(measure.removed - ratio)
        if error < TOLERANCE / 10:
            return
        moves = single_moves(choices, taken, limits)
        better = best_of(moves, choices, measure, ratio, taken, error)
        if better is None and error > TOLERANCE / 2:
            better = best_of(pairs(moves), choices, measure, ratio, taken, error)
        if better is None:
            break
        for index, step in better:
            taken[index] = step
        apply(choices, measure, taken)


Move = tuple[tuple[int, int], ...]
# Pairs of moves are only tried where that many suffice: larger models have finer single steps.
MOST_PAIRS = 1000


def single_moves(choices: Sequence[Bundle], taken: Sequence[int], limits: Sequence[int]) -> list[Move]:
    reach = max(1, 32 // max(len(choices), 1))
    return [
        ((index, other),)
        for index, step in enumerate(taken)
        for other in range(max(0, step - reach), min(limits[index], step + reach) + 1)
        if other != step
    ]


def pairs(moves: Sequence[Move]) -> list[Move]:
    both = [a + b for k, a in enumerate(moves) for b in moves[:k] if a[0][0] != b[0][0]]
    return both[:: max(1, len(both) // MOST_PAIRS)]


def best_of(
    moves: Iterable[Move], choices: Sequence[Bundle], measure: Measure, ratio: float, taken: Sequence[int], error: float
) -> Move | None:
    """The move that brings the measure nearest to the ratio, if any brings it nearer."""
    best: Move | None = None
    for move in moves:
        for index, step in move:
            measure.set(choices[index].counts(step))
        found = abs(measure.removed - ratio)
        if found < error:
            best, error = move, found
        for index, _ in move:
            measure.set(choices[index].counts(taken[index]))
    return best
