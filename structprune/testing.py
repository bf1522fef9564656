"""The oracle that this package's own tests use, for rules that you add.

    structprune.testing.check(module, example_inputs)

cuts each half of every group of the module, alone and all together, and compares what the smaller computation
gives with the original whose removed slices are zeroed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from structprune.algebra.axis import Dim, Kept
from structprune.algebra.order import Indices
from structprune.errors import VerificationError
from structprune.frontends import read
from structprune.passes.group import Group
from structprune.plan import make, prove, realize
from structprune.views.analysis import Analysis


def check(model: Any, example_inputs: Any = None, *, tolerance: float = 1e-9, seed: int = 0) -> Analysis:
    """Raise a VerificationError where removing is not zeroing; give back the analysis.

    Use a model in float64: the tolerance is a share of the largest output.
    """
    analysis = Analysis(read(model, example_inputs))
    for cause in analysis.solution.system.frozen.values():
        if "does not fit" in cause.reason:
            raise VerificationError(cause.reason)
    for groups in ([group] for group in analysis.groups):
        compare(analysis, groups, tolerance, seed)
    if len(analysis.groups) > 1:
        compare(analysis, analysis.groups, tolerance, seed)
    return analysis


def compare(analysis: Analysis, groups: Sequence[Group], tolerance: float, seed: int) -> None:
    """Cut about half of each group at random, put what stays in another order, and compare."""
    generator = np.random.default_rng(seed)
    first: dict[Dim, Indices] = {}
    other: dict[Dim, Indices] = {}
    for group in groups:
        order = generator.permutation(group.size).astype(np.int64)
        count = max(1, group.size // 2)
        first[group.dim], other[group.dim] = order[:count], order[count:]
    # Each half once: a rule that is wrong about one index alone shows in the half that loses it.
    for kept in (first, other):
        compare_kept(analysis, groups, kept, tolerance)


def compare_kept(analysis: Analysis, groups: Sequence[Group], kept: Kept, tolerance: float) -> None:
    names = ", ".join(group.name for group in groups[:3])
    # Whatever path other data would take: what was recorded is checked.
    realized = realize(analysis, kept, analysis.frontend.recorded(analysis.solution))
    try:
        found = prove(analysis, realized, make(analysis, realized), tolerance)
    except VerificationError as problem:
        raise VerificationError(
            f"removing indices of {names} does not equal zeroing them: {problem} "
            "A rule of an operator along these groups (see analyze(...).explain) says what is not true."
        ) from problem
    if found.error is None:
        raise VerificationError(f"without indices of {names} nothing can be compared: {found.note}")
