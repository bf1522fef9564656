"""Removing equals zeroing, checked with numbers: the smaller model against the original with its removed slices zeroed.

A front end offers trials, the best first; the first one on which both models run decides. Arrays are numpy's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from structprune.errors import VerificationError
from structprune.graph.progress import doing, within

Outputs = Mapping[str, NDArray[Any]]
# What rounding may do to a result: so many times what it does when every number is moved by units of its last place.
HEADROOM = 100.0
SEEDS = (1, 2, 3)
REPORT = "This is a bug in structprune; please report it"
WAY_OUT = "(verify='shapes' gives the result unchecked, and exclude=[...] keeps parameters whole)"

# The shares of the memory that is free which a copy in double precision may take, and one in the model's own types.
SHARE_DOUBLE, SHARE_OWN = 0.25, 0.5
# Multiply-accumulates of a forward pass that take a quarter of a second in float64. Beyond, its own types serve,
# and inputs of other sizes are computed only if they are no larger than those that were given.
CHEAP, NO_LARGER = 1e9, 1.25
# Torch's convolutions in float64 are slow on a CPU: more than that would take longer than the rest of the work.
CHEAP_FOR_TORCH = 2e8


class CannotRun(Exception):
    """A model does not run here, or not on these inputs; the text says why."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Both models on the same inputs, not yet run.

    `original` takes a seed: 0 for the zeroed original as it is; for others each of its numbers is moved by a few units
    of its last place, which shows what rounding does to the results. `elsewhere`: the inputs have other sizes than
    those that the model was recorded on; `binds`: the smaller model has to agree, or it is wrong; `of_shapes`: arrays
    have shapes alone, and a proof in numbers is still to come.
    """

    inputs: str
    dtype: str
    tolerance: float
    original: Callable[[int], Outputs]
    small: Callable[[], Outputs]
    elsewhere: bool = False
    binds: bool = True
    must_run: bool = True
    of_shapes: bool = False


@dataclass(frozen=True, slots=True)
class Verification:
    """What was compared, and how far apart it was. No error: nothing could be compared, and `note` says why."""

    error: float | None
    dtype: str = ""
    inputs: str = ""
    elsewhere: bool = False
    note: str = ""

    def __str__(self) -> str:
        if self.error is None:
            return f"not verified with numbers: {self.note or 'no inputs to run it on'}"
        where = f"{self.dtype}, {self.inputs}" + (", other sizes than recorded" if self.elsewhere else "")
        note = f"; {self.note}" if self.note else ""
        return f"verified: {self.error:.1e} of the largest output away from the zeroed original ({where}){note}"


@dataclass(frozen=True, slots=True)
class Difference:
    """Where two results are the farthest apart."""

    error: float
    what: str = ""


def verify(trials: Iterable[Trial], name: str) -> Verification:
    """Run the first trial that can be; raise where the results differ by more than rounding."""
    with within("verifying"):
        return first_that_runs(trials, name)


def first_that_runs(trials: Iterable[Trial], name: str) -> Verification:
    notes: dict[str, None] = {}
    for trial in trials:
        doing("comparing results")
        try:
            expected = trial.original(0)
        except CannotRun as problem:
            notes[f"the original does not run on {trial.inputs} in {trial.dtype}: {problem}"] = None
            continue
        try:
            found = trial.small()
        except CannotRun as problem:
            if trial.must_run:
                raise VerificationError(
                    f"the smaller {name} does not run on {trial.inputs}, where the original does: {problem}. "
                    f"{REPORT} {WAY_OUT}."
                ) from problem
            notes[f"on {trial.inputs} in {trial.dtype} the result does not run: {problem}"] = None
            continue
        difference = largest_difference(expected, found)
        if not difference.error <= trial.tolerance:
            if largest_difference(expected, trial.original(0)).error > trial.tolerance:
                notes[f"the original gives other results each time on {trial.inputs} in {trial.dtype}"] = None
                continue
            moved = [trial.original(seed) for seed in SEEDS]
            difference = largest_difference(expected, found, moved, trial.tolerance)
        if difference.error <= trial.tolerance:
            if trial.of_shapes:
                notes[f"on {trial.inputs} the shapes are right"] = None
                continue
            if all(not np.any(each) for each in expected.values()):
                notes["all outputs are zero on these inputs: little is proved"] = None
            note = "; ".join(notes)
            return Verification(difference.error, trial.dtype, trial.inputs, trial.elsewhere, note)
        if trial.binds:
            raise VerificationError(
                f"the smaller {name} differs from the original with the removed slices zeroed: {difference.what} "
                f"(on {trial.inputs} in {trial.dtype}; tolerance {trial.tolerance:g}). {REPORT} {WAY_OUT}."
            )
        notes[f"the result holds for inputs of the recorded sizes alone: on {trial.inputs} {difference.what}"] = None
    return Verification(None, note="; ".join(notes))


def largest_difference(
    expected: Outputs, found: Outputs, moved: Iterable[Outputs] = (), tolerance: float = 0.0
) -> Difference:
    """The largest difference, in units of the largest entry of each output.

    `moved` are results of the same model where each number was moved a little: what differs no more than they do
    comes from rounding, and counts as no more than the tolerance.
    """
    worst = Difference(0.0)
    if list(expected) != list(found):
        return Difference(float("inf"), f"it gives {listed(found)} in place of {listed(expected)}")
    others = list(moved)
    for name, a in expected.items():
        each = of_one(name, a, found[name], [other[name] for other in others if name in other], tolerance)
        if not each.error <= worst.error:
            worst = each
    return worst


def listed(outputs: Outputs) -> str:
    return ", ".join(list(outputs)[:4]) or "nothing"


def of_one(name: str, a: NDArray[Any], b: NDArray[Any], moved: list[NDArray[Any]], tolerance: float) -> Difference:
    if a.shape != b.shape:
        return Difference(float("inf"), f"{name} has shape {b.shape} in place of {a.shape}")
    if not a.size:
        return Difference(0.0)
    moved = [each for each in moved if each.shape == a.shape]
    if a.dtype.kind not in "fc":
        # Whole numbers are the same, but where rounding chooses between two that are nearly equal.
        is_other = a != b
        for each in moved:
            is_other &= each == a
        count = int(is_other.sum())
        return Difference(float("inf"), f"{count:,} of {a.size:,} entries of {name} differ") if count else Difference(0)
    is_number = np.isfinite(a) & np.isfinite(b)
    is_same = is_number | (a == b) | (np.isnan(a) & np.isnan(b))
    for each in moved:
        is_same |= np.isfinite(each) != np.isfinite(a)
    if not is_same.all():
        count = int((~is_same).sum())
        return Difference(float("inf"), f"{count:,} of {a.size:,} entries of {name} are finite in one of them alone")
    if not is_number.any():
        return Difference(0.0)
    scale = float(np.abs(a[is_number]).max()) or 1.0
    apart = farthest(a, b)
    error = apart / scale
    if moved and error > tolerance:
        by_rounding = max(map(partial(farthest, a), moved))
        error = error if apart > HEADROOM * by_rounding else min(error, tolerance)
    return Difference(error, f"{name} {a.shape} by {error:.3g} of its largest entry")


def farthest(a: NDArray[Any], b: NDArray[Any]) -> float:
    """The largest difference of two numbers."""
    is_number = np.isfinite(a) & np.isfinite(b)
    return float(np.abs(a[is_number] - b[is_number]).max(initial=0.0))


def free_memory() -> float:
    """Bytes of the machine's memory that nobody uses."""
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # not on every system
        return float(1 << 32)


def too_large(needed: float, free: float) -> str:
    """Why nothing is run; empty where there is room."""
    if needed <= SHARE_OWN * free:
        return ""
    return f"a copy takes {needed / 2**30:.1f} GB, and {free / 2**30:.1f} GB of memory are free"
