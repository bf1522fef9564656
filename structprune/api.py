"""The pipeline: capture -> propagate -> group -> score -> select -> rewrite -> verify -> report."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np

from structprune.algebra.axis import Axis, Kept, unordered
from structprune.errors import InvalidArgument, PlanMismatch, UnsupportedRatio, short
from structprune.frontends import check_output, is_torch, neutral, plain, read, read_state, stored_shapes
from structprune.frontends.names import matching, numbered
from structprune.frontends.protocol import Constraints, Realized
from structprune.passes.group import Group
from structprune.passes.measure import channels
from structprune.passes.score import CRITERIA, Criterion, random_scores, score
from structprune.passes.select import alignment, bundles, movable, select
from structprune.plan import MEASURES, OUTPUTS, VERIFICATIONS, Plan, make_plan
from structprune.views.analysis import Analysis
from structprune.views.progress import shown

if TYPE_CHECKING:
    from torch import fx

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
    verify: str | None = "numeric",
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
    check_switches(progress=progress, force=force)
    model, note = plain(model)
    with shown(progress), neutral(model):
        decision = decide(
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
            note=note,
        )
        small = decision.carried_out(output_path, force)
    report = decision.plan.report
    if output == "auto" and report is not None and report.kind == "graph":
        warnings.warn(
            f"the result is a torch.fx.GraphModule: a {decision.plan.model} cannot take the new sizes. {report.note}",
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
    verify: str | None = "numeric",
    seed: int = 0,
    progress: bool | None = None,
) -> Plan:
    """The decision that `shrink` would carry out."""
    check_switches(progress=progress)
    model, note = plain(model)
    with shown(progress), neutral(model):
        return decide(
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
            note=note,
        ).plan


@dataclass(frozen=True, slots=True)
class Decision:
    """A plan, and what it was made from: the model was read a moment ago and need not be read again."""

    plan: Plan
    analysis: Analysis
    realized: Realized

    def carried_out(self, output_path: Any = None, force: bool = False) -> Any:
        small = self.plan.made(self.analysis, self.realized)
        return self.analysis.frontend.deliver(small, output_path, force)


def decide(
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
    verify: str | None = "numeric",
    seed: int = 0,
    note: str = "",
) -> Decision:
    """Read the model and choose what stays of it."""
    check_choices(of, score, scope, output, verify)
    ratio, seed = as_share(ratio), as_count("seed", seed, 0)
    align = align if align is None or isinstance(align, str) else as_count("align", align, 1, tuple(BLOCKS))
    if isinstance(align, str) and align not in BLOCKS:
        align = as_count("align", align, 1, tuple(BLOCKS))
    exclude, only = as_patterns("exclude", exclude), as_patterns("only", only)
    if exclude or only:
        # Before the model is read, which takes longer.
        matching(stored_shapes(model), (*exclude, *only))
    with paused_collector():
        analysis = Analysis(read(model, example_inputs))
        names = {*analysis.frontend.shapes(), *analysis.solution.graph.parameters}
        excluded, wanted = matching(names, exclude), matching(names, only) if only else names
        groups = admitted(analysis.groups, excluded, wanted)
        chooser = Chooser(analysis, groups, ratio, of, score, scope, align, seed)
        realized = analysis.frontend.realize(analysis.solution, chooser, output)
    options = {
        "ratio": ratio,
        "of": of,
        "score": score if isinstance(score, str) else str(getattr(score, "__name__", "a function")),
        "scope": scope,
        "exclude": list(exclude),
        "only": list(only),
        "align": align,
        "seed": seed,
    }
    realized.note = "; ".join(note for note in (note, realized.note, chooser.note) if note)
    return Decision(make_plan(analysis, realized, model, options, output, verify), analysis, realized)


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
    check_switches(progress=progress)
    model, _ = plain(model)
    with shown(progress), neutral(model):
        return Analysis(read(model, example_inputs))


def trace(model: Any, example_inputs: Any = None) -> fx.GraphModule:
    """What a torch model computes, as a `torch.fx.GraphModule` of ATen operators over the model's own parameters.

    It gives what the model gives, in eval mode and in training: where the model computes something else in training,
    a second graph takes over in that mode. Each node says in `node.meta` where it came from: "val" (the form of the
    result), "module", "line", "nn_module_stack", "stack_trace". A model whose path follows data cannot be traced.
    """
    model, _ = plain(model)
    if not is_torch(model):
        raise InvalidArgument(f"only a torch.nn.Module can be traced, not a {type(model).__name__}")
    with neutral(model), paused_collector():
        from structprune.frontends.torch.front import TorchFrontend

        return TorchFrontend.read(model, example_inputs).graph_module()


def load(
    model: Any,
    plan_path: str | os.PathLike[str] | Plan,
    state_dict: Mapping[str, Any] | str | os.PathLike[str],
    *,
    progress: bool | None = None,
) -> Any:
    """Rebuild a shrunk model from its original class, a saved plan and its weights. No pickle.

    The state dict may be given as the path of one: .safetensors, or a file of torch.save.
    """
    check_switches(progress=progress)
    model, _ = plain(model)
    plan = Plan.load(plan_path)
    state = read_state(model, state_dict)
    plan.check(model)
    # An index that is drawn anew in each instance: the state dict brings the one that the plan was made for.
    with numbered(model, plan.indices):
        small = plan.apply(model, progress=progress)
    try:
        small.load_state_dict(state)
    except (RuntimeError, AttributeError, TypeError) as error:  # the latter two: names that are no texts
        raise PlanMismatch(f"the state dict does not fit the plan: {error}") from error
    return small


# -- arguments ---------------------------------------------------------------------------------------


def as_share(ratio: Any) -> float:
    """A ratio as a number: of Python, of numpy, or in a tensor without axes."""
    problem = f"ratio={short(ratio)} is not usable: give the share to remove, a number from 0 to below 1"
    plain = ratio.item() if getattr(ratio, "shape", None) == () and hasattr(ratio, "item") else ratio
    if isinstance(plain, bool | np.bool_) or not isinstance(plain, Real | Decimal):
        raise InvalidArgument(problem)
    try:
        share = float(plain)
    except (ValueError, OverflowError) as error:
        raise InvalidArgument(problem) from error
    if not 0 <= share < 1:
        raise InvalidArgument(problem)
    return share


def as_count(name: str, value: Any, least: int, words: Sequence[str] = ()) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= int(value) < 1 << 64:
        others = "".join(f", or {word!r}" for word in words)
        raise InvalidArgument(f"{name}={short(value)} is not usable: give a whole number, {least} or more{others}")
    return int(value)


def check_switches(**switches: Any) -> None:
    for name, value in switches.items():
        if value is not None and not isinstance(value, bool):
            raise InvalidArgument(f"{name}={short(value)} is not usable: give True or False")


def check_choices(of: Any, score: Any, scope: Any, output: Any, verify: Any) -> None:
    for name, value, known in (
        ("of", of, MEASURES),
        ("scope", scope, SCOPES),
        ("output", output, OUTPUTS),
        ("verify", verify, VERIFICATIONS),
    ):
        if not (value is None or isinstance(value, str)) or value not in known:
            raise InvalidArgument(f"{name}={short(value)} is unknown; choose one of {', '.join(map(repr, known))}")
    is_function = callable(score) and not isinstance(score, type)
    if not is_function and (not isinstance(score, str) or score not in CRITERIA):
        raise InvalidArgument(
            f"score={short(score)} is unknown; there are {', '.join(sorted(CRITERIA))}, or give a function "
            "(group, weights) -> one number per index"
        )


def as_patterns(name: str, patterns: Any) -> tuple[str, ...]:
    if isinstance(patterns, str):
        return (patterns,)
    is_list = isinstance(patterns, Iterable) and not isinstance(patterns, bytes | Mapping)
    found = tuple(patterns) if is_list and getattr(patterns, "shape", None) != () else None
    if found is None or not all(isinstance(pattern, str) for pattern in found):
        raise InvalidArgument(f"{name}={short(patterns)} is not usable: give a name pattern or a list of them")
    return found


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
