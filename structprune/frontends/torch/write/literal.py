"""The numbers that a model's code gives its operators: which of them are sizes, and how they differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

from structprune.algebra.axis import Axis
from structprune.frontends.torch.read.lower import bind
from structprune.frontends.torch.record.record import Call
from structprune.frontends.torch.write.compare import Difference
from structprune.graph.graph import Op
from structprune.passes.propagate import Solution
from structprune.passes.rewrite import Rewrite


def source(op: Op) -> tuple[Call, Any]:
    call, literals = op.source
    return call, literals


def runs_around(position: int, length: int) -> list[tuple[int, int]]:
    """The runs of positions that hold a given one, the shortest first."""
    spans = [(first, last) for first in range(position + 1) for last in range(position + 1, length + 1)]
    return sorted(spans, key=lambda span: span[1] - span[0])


def numbers_in(value: Any) -> list[int]:
    """The whole numbers of an argument or an attribute, without their signs."""
    values = value if isinstance(value, list | tuple) else [value]
    return [abs(each) for each in values] if all(type(each) is int for each in values) else []


def changes_of(before: Sequence[int], after: Sequence[int]) -> set[tuple[int, int]]:
    """What replacing an attribute changes: its numbers, and their product (the places of a window)."""
    return {*zip(before, after, strict=True), (prod(before), prod(after))}


def literal_axes(op: Op, name: str, solution: Solution) -> Sequence[Axis] | None:
    """The axes whose sizes a list of literals gives, where they are those of the result."""
    call, _ = source(op)
    given = bind(call.target, call.args, call.kwargs).get(name)
    output = op.outputs[0]
    if isinstance(given, list | tuple) and len(given) == len(output.shape) and name in ("size", "shape", "repeats"):
        return solution.expanded(output)
    return None


def literal_sizes(op: Op, rewrite: Rewrite) -> Iterator[tuple[int, int]]:
    """Old and new of each number that an operator was given as a size which can change."""
    call, literals = source(op)
    if literals is None:
        return
    bound = bind(call.target, call.args, call.kwargs)
    outputs = call.outputs
    axes_of = [rewrite.solution.expanded(value) for value in outputs]
    for name, value in literals(rewrite).items():
        given = bound.get(name)
        if not isinstance(given, list | tuple) or not isinstance(value, list | tuple) or len(given) != len(value):
            given, value = [given], [value]
        aligned = len(given) == len(outputs[0].shape) if outputs else False
        for position, (old, new) in enumerate(zip(given, value, strict=True)):
            if type(old) is not int or type(new) is not int:
                continue
            # A size that could change and did not is as strong a word as one that did.
            axes = axes_of[0][position : position + 1] if aligned else [axis for axes in axes_of for axis in axes]
            if old != new or any(axis.size == old and not rewrite.solution.is_held(axis) for axis in axes):
                yield old, new


def fixed_numbers(op: Op, rewrite: Rewrite) -> set[int]:
    """The whole numbers above 1 in lists that an operator was given as anything but sizes which can change."""
    call, _ = source(op)
    lists = (value for value in bind(call.target, call.args, call.kwargs).values() if isinstance(value, list | tuple))
    numbers = {number for each in lists for number in numbers_in(each) if number > 1}
    return numbers - {old for old, _ in literal_sizes(op, rewrite)}


def explains(ratio: float, width_ratio: float) -> bool:
    return any(abs(ratio - width_ratio**power) < 1e-6 for power in (1, -1, 0.5, -0.5))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def number_ratio(difference: Difference) -> float | None:
    """Found over expected, where the graphs differ in one number."""
    for name, expected in difference.expected.items():
        found = difference.found.get(name)
        if is_number(expected) and is_number(found) and expected and found != expected:
            return float(found / expected)
    return None
