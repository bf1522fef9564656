"""The neutral graph that both front ends lower to: operators over values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from structprune.graph.operator import Operator

Shape = tuple[int, ...]
# Where a node holds something: an argument or an attribute by name, an input by number.
Place = str | int
# The place of each field of an operator that may change; or a function from the changed operator to what stands where.
Places = Mapping[str, Place] | Callable[[Any], Mapping[Any, Any]]


@dataclass(frozen=True, slots=True)
class Where:
    """Where in the user's code an operator came from."""

    line: str = ""
    module: str = ""

    def __str__(self) -> str:
        return " in ".join(part for part in (self.line, self.module) if part)


@dataclass(slots=True, eq=False)
class Value:
    """A tensor. A parameter has the name of what stores it; a view has its base."""

    name: str
    shape: Shape
    parameter: str | None = None
    is_trained: bool = False
    is_mask: bool = False
    # Not shown: a value would show the whole graph behind it.
    producer: Op | None = field(default=None, repr=False)
    base: Value | None = field(default=None, repr=False)


@dataclass(slots=True, eq=False)
class Op:
    """One operator: what it does, to which values.

    `source` is the front end's own node; `places` say where that holds what may change.
    """

    operator: Operator
    name: str
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    where: Where = Where()
    # The values whose memory the operator writes.
    overwrites: tuple[Value, ...] = ()
    source: Any = field(default=None, repr=False)
    places: Places | None = field(default=None, repr=False)

    @property
    def kind(self) -> str:
        return self.operator.kind

    @property
    def attributes(self) -> Mapping[str, Any]:
        """The plain arguments of an operator whose rule was registered from outside."""
        return self.operator.arguments

    def __str__(self) -> str:
        return f"{self.name} at {self.where}" if str(self.where) else self.name


@dataclass(slots=True, repr=False)
class Graph:
    """Operators in the order in which they run."""

    ops: list[Op]
    parameters: dict[str, Value]
    inputs: list[Value]
    outputs: list[Value]
    # Operators of another mode of the model: they relate axes, but cost nothing.
    only_in_training: frozenset[Op] = frozenset()

    def joined(self, in_training: Graph) -> Graph:
        """This graph and that of the same model in training, over the same parameters."""
        return Graph(
            [*self.ops, *in_training.ops],
            {**self.parameters, **in_training.parameters},
            [*self.inputs, *in_training.inputs],
            [*self.outputs, *in_training.outputs],
            frozenset(in_training.ops),
        )
