"""The pipeline: capture -> propagate -> group -> score -> select -> rewrite -> verify -> report."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from structprune.algebra.axis import Axis, unordered
from structprune.errors import InvalidArgument, PlanMismatch, UnsupportedRatio
from structprune.frontends import check_output, is_torch, neutral, plain, read, read_state, stored_shapes
from structprune.frontends.names import matching, numbered
from structprune.frontends.protocol import Constraints, Realized
from structprune.options import BLOCKS, Options, check_switches
from structprune.passes.align import movable
from structprune.passes.group import Group
from structprune.passes.measure import channels
from structprune.passes.propagate import Solution
from structprune.passes.rewrite import Rewrite
from structprune.passes.score import Criterion, random_scores
from structprune.passes.score import score as score_by
from structprune.passes.select import Choice, Target, select
from structprune.plan import Plan, make_plan
from structprune.views.analysis import Analysis
from structprune.views.progress import shown
from structprune.views.report import unreachable

if TYPE_CHECKING:
    from torch import fx


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
        options = Options(ratio, of, score, scope, exclude, only, align, output, verify, seed)
        decision = decide(model, example_inputs, options, note)
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
        options = Options(ratio, of, score, scope, exclude, only, align, output, verify, seed)
        return decide(model, example_inputs, options, note).plan


@dataclass(frozen=True, slots=True)
class Decision:
    """A plan, and what it was made from: the model was read a moment ago and need not be read again."""

    plan: Plan
    analysis: Analysis
    realized: Realized

    def carried_out(self, output_path: Any = None, force: bool = False) -> Any:
        small = self.plan.made(self.analysis, self.realized)
        return self.analysis.frontend.deliver(small, output_path, force)


def decide(model: Any, example_inputs: Any, options: Options, note: str = "") -> Decision:
    """Read the model and choose what stays of it."""
    if options.exclude or options.only:
        # Before the model is read, which takes longer.
        matching(stored_shapes(model), (*options.exclude, *options.only))
    with paused_collector():
        analysis = Analysis(read(model, example_inputs))
        target = aim(analysis, options)
        choice, realized = settle(analysis, target, options)
    aligned = ""
    if choice.block > 1 and not isinstance(options.align, int) and target.widths and choice.kept:
        aligned = f"widths of convolutions are multiples of {choice.block} where they can be (align=1 sets them free)"
    realized = replace(realized, note="; ".join(each for each in (note, realized.note, aligned) if each))
    return Decision(make_plan(analysis, realized, model, options), analysis, realized)


def aim(analysis: Analysis, options: Options) -> Target:
    """What shall go: the groups that may, with their scores, and the measure of the ratio."""
    frontend, solution = analysis.frontend, analysis.solution
    groups = admitted(analysis, options)
    names = {member.parameter for group in groups for member in group.members if member.is_trained}
    criterion = random_scores(options.seed) if options.score == "random" else options.score
    scores = score_by(groups, frontend.arrays(names), criterion)
    for dim, is_free in analysis.folding(solution).free.items():
        if dim in scores:
            scores[dim] = np.where(is_free, 0.0, scores[dim])
    is_by_channels = options.of == "channels"
    if is_by_channels:
        can_move = movable(widths(solution, of_convolutions=False), solution.system.frozen)
        groups = [group for group in groups if group.dim in can_move]
    block = BLOCKS[options.align] if isinstance(options.align, str) else frontend.block_of_convolutions
    return Target(
        options.ratio,
        "uniform" if is_by_channels else options.scope,
        groups,
        scores,
        channels(groups) if is_by_channels else analysis.measure(options.of),
        solution.system.frozen,
        widths(solution, of_convolutions=not isinstance(options.align, int)),
        # Where whole blocks are too coarse for the ratio, half blocks are tried, and so on.
        [options.align] if isinstance(options.align, int) else [block >> k for k in range(block.bit_length())],
    )


def settle(analysis: Analysis, target: Target, options: Options) -> tuple[Choice, Realized]:
    """Select under what the model asks. Where it cannot take the choice, it says what else it asks: rarely needed.

    Ends because each turn holds more widths whole, at most so many times, or asks for another kind of result.
    """
    frontend, solution = analysis.frontend, analysis.solution
    asked = frontend.constraints(solution, options.output)
    while True:
        try:
            choice = chosen(analysis, target, options.of, asked)
        except UnsupportedRatio as missed:
            asked = frontend.instead(asked, missed)
            continue
        found = frontend.realize(Rewrite(solution, choice.kept), asked)
        if isinstance(found, Realized):
            return choice, found
        asked = found


def chosen(analysis: Analysis, target: Target, of: str, asked: Constraints) -> Choice:
    try:
        return select(target, asked.ties, asked.frozen)
    except UnsupportedRatio as error:
        why = unreachable(analysis, len(target.groups), of, target.ratio, str(error))
        raise UnsupportedRatio(why) from error


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


def admitted(analysis: Analysis, options: Options) -> list[Group]:
    """The groups that touch nothing excluded, and that something wanted makes."""
    names = {*analysis.frontend.shapes(), *analysis.solution.graph.parameters}
    excluded, wanted = matching(names, options.exclude), matching(names, options.only) if options.only else names
    return [
        group
        for group in analysis.groups
        if not any(member.parameter in excluded for member in group.members)
        and any(member.parameter in wanted and not member.is_entering for member in group.members)
    ]


def widths(solution: Solution, of_convolutions: bool) -> list[Axis]:
    """The axes of trained weights; or those of convolutions alone, which run in blocks of channels."""
    if of_convolutions:
        weights = [op.inputs[1] for op in solution.graph.ops if op.kind in ("conv", "conv_transposed")]
        axes = [axis for weight in weights if weight is not None for axis in solution.expanded(weight)[:2]]
    else:
        trained = [value for value in solution.graph.parameters.values() if value.is_trained]
        axes = [axis for value in trained for axis in solution.expanded(value)]
    return list(map(unordered, axes))
