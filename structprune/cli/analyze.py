"""`structprune analyze` and `structprune explain`."""

from __future__ import annotations

from argparse import Namespace

import structprune
from structprune.cli.outcome import Outcome
from structprune.cli.source import read_source
from structprune.errors import InvalidArgument, printed
from structprune.views.analysis import Analysis


def read(options: Namespace) -> Analysis:
    source = read_source(options.model, options.weights, options.input)
    return structprune.analyze(source.model, source.inputs)


def analyze(options: Namespace) -> Outcome:
    """The groups, what is frozen, what could be removed."""
    analysis = read(options)
    most = " and ".join(
        f"{analysis.removable(of):.1%} of the {called}"
        for of, called in (("params", "parameters"), ("macs", "multiply-accumulates"))
    )
    text = f"{analysis}\n  at most {most} could be removed (one index of each group left)"
    return Outcome(text, {"command": "analyze", **analysis.as_dict(), "model": options.model})


def explain(options: Namespace) -> Outcome:
    """What is tied to a weight, or every reason for which widths are frozen."""
    if (options.weight is None) is not options.frozen:
        raise InvalidArgument("give the name of a WEIGHT, or --frozen")
    analysis = read(options)
    if options.weight is not None:
        explanation = analysis.explanation(options.weight)
        return Outcome(str(explanation), {"command": "explain", "model": options.model, **explanation.as_dict()})
    return Outcome(
        frozen(analysis),
        {
            "command": "explain",
            "model": options.model,
            "parameters": analysis.frontend.total,
            "frozen": [held.as_dict() for held in analysis.held],
        },
    )


def frozen(analysis: Analysis) -> str:
    """Each reason with the share of the parameters that are whole in its hold, and the axes that it holds."""
    total = max(analysis.frontend.total, 1)
    lines: list[str] = []
    for held in analysis.held:
        whole = f": {held.entries:,} parameters ({held.entries / total:.1%}) as a whole" if held.entries else ""
        lines.append(f"{held.reason}{whole}")
        width = max(len(axis.parameter) for axis in held.axes)
        lines.extend(
            f"  {axis.parameter:<{width}}  axis {axis.axis}" + (f"  ({axis.where})" if axis.where else "")
            for axis in held.axes
        )
    return printed(lines or ["nothing is frozen"])
