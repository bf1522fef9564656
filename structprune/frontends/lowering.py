"""What an entry of a front end says of one node: the operator that it is, and which argument holds which field."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from structprune.graph.graph import Op, Value
from structprune.graph.operator import Operator, Resized

# Where a node holds something: an argument or an attribute by name, an input by number.
Place = str | int
# The place of each field that may change; or a function from the changed operator to what stands where.
Arguments = Mapping[str, Place] | Callable[[Any], Mapping[Any, Any]]
Literals = Callable[[Resized], dict[Any, Any]]


@dataclass(slots=True)
class Lowered:
    """How one node, or one step of it, reads as an operator of the neutral graph."""

    operator: Operator
    inputs: Sequence[Value | None]
    arguments: Arguments | None = None
    outputs: Sequence[Value] | None = None


def literals_of(op: Op, arguments: Arguments | None) -> Literals | None:
    """The arguments of a node in the smaller model: those of its operator, as that one is there."""
    if arguments is None:
        return None

    def literals(new: Resized) -> dict[Any, Any]:
        after = op.operator.resized(op, new)
        if isinstance(arguments, Mapping):
            fields = {place: getattr(after, name) for name, place in arguments.items()}
            return {place: list(field) if isinstance(field, tuple) else field for place, field in fields.items()}
        return {} if after == op.operator else dict(arguments(after))

    return literals
