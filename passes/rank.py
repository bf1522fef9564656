"""In which order steps are taken: those first that lose the least for what they save."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from structprune.algebra.axis import Dim
from structprune.passes.bundle import Bundle
from structprune.passes.measure import Measure
from structprune.passes.score import Scores


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
