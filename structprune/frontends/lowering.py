"""What an entry of a front end says of one node: the operator that it is, and which argument holds which field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from structprune.graph.graph import Places, Value
from structprune.graph.operator import Operator


@dataclass(slots=True)
class Lowered:
    """How one node, or one step of it, reads as an operator of the neutral graph."""

    operator: Operator
    inputs: Sequence[Value | None]
    places: Places | None = None
    outputs: Sequence[Value] | None = None
