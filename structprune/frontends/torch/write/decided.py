"""What a model's code decided by its numbers while it was recorded."""

from __future__ import annotations

import linecache
from collections.abc import Iterator, Sequence

from structprune.frontends.torch.record.expression import Expression, Size, leaves
from structprune.frontends.torch.record.number import Comparison
from structprune.frontends.torch.record.record import Capture
from structprune.frontends.torch.record.surroundings import NOT_THE_USERS

MOST = 8


def decisions(captures: Sequence[Capture]) -> list[str]:
    """The conditions that follow from sizes of inputs, and what they were: other inputs may go another way."""
    found = [each for capture in captures for each in capture.compared.values() if is_decision(each, capture)]
    lines = dict.fromkeys(f"{each} was {each.answer} at {each.file}:{each.line}" for each in found)
    return list(lines)[:MOST]


def is_decision(comparison: Comparison, capture: Capture) -> bool:
    """Made in the user's code, over the size of something that is no parameter, and not to make sure of something."""
    if comparison.file.startswith(NOT_THE_USERS) or comparison.left == comparison.right:
        return False
    line = linecache.getline(comparison.file, comparison.line).strip()
    is_open = any(map(follows_inputs, (comparison.left, comparison.right)))
    return is_open and not line.startswith("assert")


def follows_inputs(expression: Expression) -> bool:
    return any(isinstance(leaf, Size) and leaf.value.parameter is None for leaf in leaves(expression))


def bound_to(captures: Sequence[Capture], sizes: Sequence[str], unfollowed: Sequence[str]) -> Iterator[str]:
    """What a graph does not hold for."""
    if unfollowed:
        more = f" and {len(unfollowed) - 1} more" if len(unfollowed) > 1 else ""
        yield f"the graph is bound to the example's sizes: {unfollowed[0]}{more} has numbers that follow them unseen"
    if sizes:
        yield f"the graph is bound to the example's sizes: inputs that differ in {', '.join(sizes)} go another way"
    if any(capture.plain.everything for capture in captures):
        yield "the graph is bound to the example's sizes where its numbers are plain: they could not be followed"
    if found := decisions(captures):
        yield f"the graph is bound to what the code decided by sizes: {'; '.join(found)}"
