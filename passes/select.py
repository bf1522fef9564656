"""Turn a target into the indices that stay.

Every group can shrink in steps. The steps of all groups are put in one order, and the shortest
beginning of that order that reaches the target is taken; single steps then close the gap.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from structprune.algebra.axis import Axis, Dim
from structprune.errors import UnsupportedRatio
from structprune.graph.progress import doing
from structprune.graph.selection import Selection
from structprune.passes.align import alignment
from structprune.passes.bundle import Bundle, Tie, bundles
from structprune.passes.group import Group
from structprune.passes.measure import Counts, Measure
from structprune.passes.rank import ranking
from structprune.passes.score import Scores

TOLERANCE = 0.01
MOST_TRIES = 24
# No width loses more than this leaves, as long as the ratio can be reached so: layers that collapse cost most accuracy.
FLOORS = (0.4, 0.25, 0.1, 0.05, 0.02, 0.0)


@dataclass(frozen=True, slots=True)
class Target:
    """How much shall go, by which measure, and of what.

    `widths` are the axes that shall be multiples of a block: of the first of `blocks` with which the ratio is reached.
    """

    ratio: float
    scope: str
    groups: Sequence[Group]
    scores: Mapping[Dim, Scores]
    measure: Measure
    frozen: Mapping[Dim, object]
    widths: Sequence[Axis] = ()
    blocks: Sequence[int] = (1,)


@dataclass(frozen=True, slots=True)
class Choice:
    """What stays, and of which block widths are multiples."""

    kept: Selection
    block: int


def select(target: Target, ties: Iterable[Tie] = (), held: Container[Dim] = ()) -> Choice:
    """The indices that stay, so that the measure loses the ratio; nothing of what is held goes."""
    missed = UnsupportedRatio("Nothing can be removed")
    groups = [group for group in target.groups if group.dim not in held]
    for block in target.blocks:
        choices = bundles(groups, alignment(target.widths, target.frozen, block), ties)
        try:
            return Choice(selected(target, choices), block)
        except UnsupportedRatio as error:
            missed = error
    raise missed


def selected(target: Target, choices: Sequence[Bundle]) -> Selection:
    if target.ratio == 0:
        return Selection({})
    scores = target.scores
    taken = steps_to(target.ratio, choices, scores, target.measure.fresh(), target.scope)
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
