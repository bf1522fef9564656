"""The pipeline: capture -> propagate -> group -> score -> select -> rewrite -> verify -> report."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from structprune.algebra.axis import Axis, Kept, unordered
from structprune.errors import InvalidArgument, PlanMismatch, UnsupportedRatio
from structprune.frontends import check_output, neutral, read, stored_shapes
from structprune.frontends.names import matching, numbered
from structprune.frontends.protocol import Constraints
from structprune.passes.group import Group
from structprune.passes.measure import channels
from structprune.passes.score import CRITERIA, Criterion, random_scores, score
from structprune.passes.select import alignment, bundles, movable, select
from structprune.plan import MEASURES, OUTPUTS, VERIFICATIONS, Plan, make_plan
from structprune.views.analysis import Analysis
from structprune.views.progress import shown

SCOPES = ("global", "uniform")
# Channels that a runtime's convolutions are computed in at a time.
BLOCKS = {"onnxruntime": 16}


def shrink(
    model: Any,
    ratio: float,
    example_inputs: Any = None,
    *,
    of: str = "params",
    score: str | Criterion = "l2",
    scope: str = "global",
    exclude: Sequence[str] = (),
    only: Sequence[str] = (),
    align: int | str | None = None,
    output: str = "auto",
    verify: str | None = "shapes",
    seed: int = 0,
    progress: bool | None = None,
    output_path: str | os.PathLike[str] | None = None,
    force: bool = False,
) -> Any:
    """A smaller model that does the same task: `ratio` of its parameters (or macs, or channels) is gone.

    The model is left untouched: a torch.nn.Module, the path of an ONNX file (the result is written to
    `output_path`), an onnx.ModelProto or an onnx_ir.Model. `example_inputs` is a tensor, a tuple, or a dict of keyword
    arguments; left out, inputs that work are found. `align`: kept widths are multiples of it; left out, torch models
    are free, and convolutions of ONNX models keep multiples of 16, as onnxruntime wants them; so do those of torch
    models that will run there with `align="onnxruntime"`.
    `print(structprune.plan(...))` shows the same decision before it is carried out. `progress` shows long work on
    standard error; left out, it does so where that is a terminal.
    """
    check_output(model, output_path, force)
    with shown(progress):
        made = plan(
            model,
            ratio,
            example_inputs,
            of=of,
            score=score,
            scope=scope,
            exclude=exclude,
            only=only,
            align=align,
            output=output,
            verify=verify,
            seed=seed,
        )
        small = made.carry_out(model, at_once=True, output_path=output_path, force=force)
    if output == "auto" and made.report is not None and made.report.kind == "graph":
        warnings.warn(
            f"the result is a torch.fx.GraphModule: a {made.model} cannot take the new sizes. {made.report.note}",
            stacklevel=2,
        )
    return small


def plan(
    model: Any,
    ratio: float,
    example_inputs: Any = None,
    *,
    of: str = "params",
    score: str | Criterion = "l2",
    scope: str = "global",
    exclude: Sequence[str] = (),
    only: Sequence[str] = (),
    align: int | str | None = None,
    output: str = "auto",
    verify: str | None = "shapes",
    seed: int = 0,
    progress: bool | None = None,
) -> Plan:
    """The decision that `shrink` would carry out."""
    check_options(ratio, of, score, scope, align, output, verify, seed)
    exclude, only = as_patterns("exclude", exclude), as_patterns("only", only)
    if exclude or only:
        # Before the model is read, which takes longer.
        matching(stored_shapes(model), (*exclude, *only))
    with shown(progress), neutral(model), paused_collector():
        analysis = analyze(model, example_inputs)
        names = {*analysis.frontend.shapes(), *analysis.solution.graph.parameters}
        excluded, wanted = matching(names, exclude), matching(names, only) if only else names
        groups = admitted(analysis.groups, excluded, wanted)
        chooser = Chooser(analysis, groups, ratio, of, score, scope, align, seed)
        realized = analysis.frontend.realize(analysis.solution, chooser, output)
    options = {
        "ratio": float(ratio),
        "of": of,
        "score": score if isinstance(score, str) else getattr(score, "__name__", "a function"),
        "scope": scope,
        "exclude": list(exclude),
        "only": list(only),
        "align": align,
        "seed": seed,
    }
    realized.note = "; ".join(note for note in (realized.note, chooser.note) if note)
    return make_plan(analysis, realized, model, options, output, verify)


@contextmanager
def paused_collector() -> Iterator[None]:
    """Recording makes many small objects and drops none: collecting in between takes a fifth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def analyze(model: Any, example_inputs: Any = None, *, progress: bool | None = None) -> Analysis:
    """The groups of a model, what ties each together, what is frozen and why."""
    with shown(progress), neutral(model):
        return Analysis(read(model, example_inputs))


def load(
    model: Any, plan_path: str | Path, state_dict: Mapping[str, Any], *, progress: bool | None = None
) -> Any:
    """Rebuild a shrunk model from its original class, a saved plan and a state dict. No pickle."""
    plan = Plan.load(plan_path)
    plan.check(model)
    # An index that is drawn anew in each instance: the state dict brings the one that the plan was made for.
    with numbered(model, plan.indices):
        small = plan.apply(model, progress=progress)
    try:
        small.load_state_dict(state_dict)
    except RuntimeError as error:
        raise PlanMismatch(f"the state dict does not fit the plan {plan_path}: {error}") from error
    return small


def check_options(ratio: Any, of: Any, score: Any, scope: Any, align: Any, output: Any, verify: Any, seed: Any) -> None:
    if isinstance(ratio, bool) or not isinstance(ratio, Real) or not isfinite(ratio) or not 0 <= float(ratio) < 1:
        raise InvalidArgument(f"ratio={ratio!r} is not usable: give the share to remove, a number from 0 to below 1")
    for name, value, least, words in (("align", align, 1, (None, *BLOCKS)), ("seed", seed, 0, ())):
        if (isinstance(value, bool) or not isinstance(value, int) or value < least) and value not in words:
            others = "".join(f", or {word!r}" for word in words if word)
            raise InvalidArgument(f"{name}={value!r} is not usable: give a whole number, {least} or more{others}")
    for name, value, known in (
        ("of", of, MEASURES),
        ("scope", scope, SCOPES),
        ("output", output, OUTPUTS),
        ("verify", verify, VERIFICATIONS),
    ):
        if value not in known:
            raise InvalidArgument(f"{name}={value!r} is unknown; choose one of {', '.join(map(repr, known))}")
    if not callable(score) and (not isinstance(score, str) or score not in CRITERIA):
        raise InvalidArgument(
            f"score={score!r} is unknown; there are {', '.join(sorted(CRITERIA))}, or give a function "
            "(group, weights) -> one number per index"
        )


def as_patterns(name: str, patterns: Any) -> tuple[str, ...]:
    if isinstance(patterns, str):
        return (patterns,)
    if not isinstance(patterns, Sequence) or not all(isinstance(pattern, str) for pattern in patterns):
        raise InvalidArgument(f"{name}={patterns!r} is not usable: give a name pattern or a list of them")
    return tuple(patterns)


def admitted(groups: Sequence[Group], excluded: set[str], wanted: set[str]) -> list[Group]:
    """The groups that touch nothing excluded, and that something wanted makes."""
    return [
        group
        for group in groups
        if not any(member.parameter in excluded for member in group.members)
        and any(member.parameter in wanted and not member.is_entering for member in group.members)
    ]


class Chooser:
    """Scores once, then selects as often as the front end learns a constraint."""

    def __init__(
        self,
        analysis: Analysis,
        groups: Sequence[Group],
        ratio: float,
        of: str,
        how: str | Criterion,
        scope: str,
        align: int | str | None,
        seed: int,
    ) -> None:
        self.analysis = analysis
        self.groups = groups
        self.ratio = ratio
        self.of = of
        self.note = ""
        self.scope = "uniform" if of == "channels" else scope
        names = {member.parameter for group in groups for member in group.members if member.is_trained}
        criterion = random_scores(seed) if how == "random" else how
        self.scores = score(groups, analysis.frontend.arrays(names), criterion)
        for dim, is_free in analysis.frontend.free(analysis.solution).items():
            if dim in self.scores:
                self.scores[dim] = np.where(is_free, 0.0, self.scores[dim])
        self.align = align if isinstance(align, int) else None
        block = BLOCKS[align] if isinstance(align, str) else analysis.frontend.block_of_convolutions
        # Where whole blocks are too coarse for the ratio, half blocks are tried, and so on.
        self.blocks = [align] if isinstance(align, int) else [block >> k for k in range(block.bit_length())]
        if of == "channels":
            can_move = movable(self.widths(False), analysis.solution.system.frozen)
            self.groups = [group for group in groups if group.dim in can_move]

    def __call__(self, constraints: Constraints) -> Kept:
        for block in self.blocks:
            try:
                return self.choose(constraints, block)
            except UnsupportedRatio as error:
                missed = error
        raise UnsupportedRatio(self.why(str(missed))) from missed

    def choose(self, constraints: Constraints, block: int) -> Kept:
        groups = [group for group in self.groups if group.dim not in constraints.frozen]
        is_default = self.align is None
        widths = self.widths(is_default)
        aligned = alignment(widths, self.analysis.solution.system.frozen, block)
        choices = bundles(groups, aligned, constraints.ties)
        measure = channels(self.groups) if self.of == "channels" else self.analysis.measure(self.of)
        kept = select(choices, self.scores, measure, self.ratio, self.scope)
        if block > 1 and is_default and widths and kept:
            self.note = f"widths of convolutions are multiples of {block} where they can be (align=1 sets them free)"
        return kept

    def widths(self, of_convolutions: bool) -> list[Axis]:
        """The axes of trained weights; or those of convolutions alone, which run in blocks of channels."""
        solution = self.analysis.solution
        if of_convolutions:
            weights = [op.inputs[1] for op in solution.graph.ops if op.kind in ("conv", "conv_transposed")]
            axes = [axis for weight in weights if weight is not None for axis in solution.expanded(weight)[:2]]
        else:
            trained = [value for value in solution.graph.parameters.values() if value.is_trained]
            axes = [axis for value in trained for axis in solution.expanded(value)]
        return list(map(unordered, axes))

    def why(self, limit: str) -> str:
        total = max(self.analysis.frontend.total, 1)
        causes = [
            f"{entries / total:.2f} of them by {cause.reason!r}"
            + (f" ({cause.where})" if cause.where is not None else "")
            for cause, entries in (self.analysis.frozen[:2] or self.analysis.partly_frozen[:2])
            if entries / total >= 0.01
        ]
        held = f" Frozen parameters: {', '.join(causes)}." if causes else ""
        if (unread := self.analysis.unread / total) >= 0.01:
            held += f" {unread:.2f} of the parameters are read by no operator on these inputs."
        left_out = len(self.analysis.groups) - len(self.groups)
        if left_out:
            held += f" exclude and only leave {left_out} of {len(self.analysis.groups)} groups whole."
        return (
            f"{self.ratio:g} of the {self.of} cannot be removed. {limit}.{held} "
            "structprune.analyze(model, example_inputs) lists what holds the rest."
        )
