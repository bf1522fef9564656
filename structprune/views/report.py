"""Before and after, in numbers and as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from structprune.errors import printed
from structprune.passes.rewrite import Rewrite
from structprune.views.analysis import Analysis

MOST_NAMES = 4


@dataclass(frozen=True, slots=True)
class Layer:
    """One parameter's shape before and after."""

    name: str
    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """One group's width before and after."""

    name: str
    before: int
    after: int
    exact: bool


@dataclass(frozen=True, slots=True)
class Report:
    """What a plan does to a model."""

    model: str
    of: str
    asked: float
    reached: float
    parameters: tuple[int, int]
    macs: tuple[int, int]
    size: tuple[int, int]
    layers: tuple[Layer, ...]
    cuts: tuple[Cut, ...]
    frozen: tuple[tuple[str, float], ...]
    kind: str
    folded: int = 0
    note: str = ""
    # How far the result is from the zeroed original, in units of the largest output, where that was measured.
    error: float | None = None
    # The same in words: on what, in which type, or why nothing could be compared.
    verification: str = ""
    # What it was recorded on, and where that came from.
    inputs: str = ""
    # Trained parameters that nothing reads on these inputs.
    unread: tuple[str, ...] = ()
    # Conditions under which the code does something else than was recorded.
    branches: tuple[str, ...] = ()
    # Operators whose statistics run over what is removed.
    inexact: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"{self.model}: asked for {self.asked:.3g} of the {self.of}, removes {self.reached:.4f}",
            f"  {'':<22}{'before':>16}{'after':>16}{'removed':>10}",
        ]
        for name, (before, after) in (
            ("parameters", self.parameters),
            ("multiply-accumulates", self.macs),
            ("bytes", self.size),
        ):
            share = 1 - after / before if before else 0.0
            lines.append(f"  {name:<22}{before:>16,}{after:>16,}{share:>10.1%}")
        changed = [layer for layer in self.layers if layer.before != layer.after and len(layer.before) > 1]
        if changed:
            width = max(len(layer.name) for layer in changed)
            lines.append("  widths")
            lines.extend(f"    {each.name:<{width}}  {shape(each.before)} -> {shape(each.after)}" for each in changed)
        inexact = [cut for cut in self.cuts if not cut.exact]
        lines.append(
            f"  {len(self.cuts)} groups cut; "
            + (
                f"{len(inexact)} of them change the statistics of a normalisation"
                + (f" ({listed(self.inexact)})" if self.inexact else "")
                if inexact
                else "removing equals zeroing"
            )
        )
        if self.folded:
            lines.append(f"  {self.folded} removed channels were constant: folded into the biases behind them")
        lines.extend(f"  frozen: {share:.1%} of the parameters, {reason}" for reason, share in self.frozen)
        result = {"module": f"a {self.model}", "graph": "a torch.fx.GraphModule", "onnx": "an ONNX model"}
        own = f"the result is {result[self.kind]}"
        lines.append(f"  {own}" + (f": {self.note}" if self.note else ""))
        if self.inputs:
            lines.append(f"  recorded on {self.inputs}")
        if self.unread:
            lines.append(f"  not read on these inputs, and left as they are: {listed(self.unread)}")
        lines.extend(f"  decided by sizes of these inputs: {branch}" for branch in self.branches)
        if self.verification:
            lines.append(f"  {self.verification}")
        return printed(lines)


def listed(names: Sequence[str]) -> str:
    """A few names, and how many more."""
    more = f" and {len(names) - MOST_NAMES:,} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


def shape(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))


def make_report(analysis: Analysis, rewrite: Rewrite, of: str, asked: float, kind: str, note: str) -> Report:
    counts = {dim: len(kept) for dim, kept in rewrite.kept.items()}
    parameters, macs, target = (analysis.measure(each) for each in ("params", "macs", of))
    for each in (parameters, macs, target):
        each.set(counts)
    shapes = analysis.frontend.shapes()
    after = {name: rewrite.shape(value) for name, value in analysis.solution.graph.parameters.items()}
    sizes = analysis.frontend.itemsizes
    total = max(analysis.frontend.total, 1)
    return Report(
        model=analysis.frontend.model_name,
        of=of,
        asked=asked,
        reached=target.removed,
        parameters=(parameters.whole, parameters.total),
        macs=(macs.whole, macs.total),
        size=(
            int(sum(prod(each) * sizes[name] for name, each in shapes.items())),
            int(sum(prod(after.get(name, each)) * sizes[name] for name, each in shapes.items())),
        ),
        layers=tuple(Layer(name, before, after.get(name, before)) for name, before in shapes.items()),
        cuts=tuple(
            Cut(group.name, group.size, counts[group.dim], group.exact)
            for group in analysis.groups
            if group.dim in counts
        ),
        frozen=tuple(
            (cause.reason + (f" ({cause.where})" if cause.where is not None else ""), entries / total)
            for cause, entries in analysis.frozen
            if entries / total >= 0.01
        ),
        kind=kind,
        folded=sum(int(mask.sum()) for mask in analysis.folding(analysis.solution).folded(rewrite.kept).values()),
        note=note,
        inputs=analysis.frontend.recorded_on,
        unread=analysis.unread_names,
        branches=tuple(analysis.frontend.branches()) if kind == "module" else (),
        inexact=tuple(
            dict.fromkeys(op.name for group in analysis.groups if group.dim in counts for op in group.inexact)
        ),
    )


def unreachable(analysis: Analysis, groups: int, of: str, ratio: float, limit: str) -> str:
    """Why a ratio cannot be reached, and what holds it; `groups` is how many may be cut."""
    total = max(analysis.frontend.total, 1)
    causes = [
        f"{entries / total:.2f} of them by {cause.reason!r}" + (f" ({cause.where})" if cause.where is not None else "")
        for cause, entries in (analysis.frozen[:2] or analysis.partly_frozen[:2])
        if entries / total >= 0.01
    ]
    held = f" Frozen parameters: {', '.join(causes)}." if causes else ""
    if (unread := analysis.unread / total) >= 0.01:
        held += f" {unread:.2f} of the parameters are read by no operator on these inputs."
    if left_out := len(analysis.groups) - groups:
        held += f" exclude and only leave {left_out} of {len(analysis.groups)} groups whole."
    return (
        f"{ratio:g} of the {of} cannot be removed. {limit}.{held} "
        "structprune.analyze(model, example_inputs) lists what holds the rest."
    )
