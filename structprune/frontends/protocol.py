"""What the pipeline asks of a front end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from structprune.algebra.axis import Dim, Kept, Mask
from structprune.graph.graph import Graph, Shape
from structprune.passes.propagate import Solution
from structprune.passes.rewrite import Rewrite
from structprune.passes.select import Tie
from structprune.passes.verify import Trial


@dataclass(slots=True)
class Constraints:
    """What the code of a model asks of the choice."""

    ties: list[Tie] = field(default_factory=list)
    frozen: dict[Dim, str] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return len(self.ties) + len(self.frozen)


Choose = Callable[[Constraints], Kept]


@dataclass(slots=True, repr=False)
class Realized:
    """A choice and the model that it gives. `kind` is "module" (the user's own class), "graph" or "onnx".

    `finish(at_once)` makes it; `at_once` says that the model cannot have changed since.
    """

    rewrite: Rewrite
    kind: str
    finish: Callable[[bool], Any]
    constraints: Constraints
    note: str = ""


@dataclass(frozen=True, slots=True)
class Described:
    """Inputs as a plan describes them: shapes and types, no data."""

    data: Any


class Frontend(Protocol):
    """A model, read."""

    graph: Graph
    model_name: str
    total: int
    itemsizes: Mapping[str, float]
    tolerance: float
    # Channels that convolutions are computed in at a time where the result will run; 1 where that does not matter.
    block_of_convolutions: int
    # A choice made earlier is carried out on the model as it is now.
    follows_the_model: bool

    def arrays(self, names: Iterable[str]) -> Mapping[str, Any]:
        """Parameters as arrays."""

    def shapes(self) -> Mapping[str, Shape]:
        """Every stored tensor's shape, used or not."""

    def branches(self) -> Sequence[str]:
        """Conditions over sizes of inputs that the code decided while it was recorded."""

    @property
    def recorded_on(self) -> str:
        """The shapes of the inputs that the model was recorded on, and where they came from."""

    def trained(self) -> Iterable[str]:
        """The names of what is trained, shared ones once."""

    def free(self, solution: Solution) -> Mapping[Dim, Mask]:
        """Which indices can be removed without any change: constants that a bias behind them takes over."""

    def inputs(self) -> Any:
        """The example inputs as data."""

    def realize(self, solution: Solution, choose: Choose, output: str) -> Realized:
        """Find a choice that the model can take, and build the result."""

    def trials(self, realized: Realized, small: Any) -> Iterator[Trial]:
        """Ways to compare the small model with the original whose removed slices are zeroed, the best first."""

    def deliver(self, small: Any, output_path: Any, force: bool) -> Any:
        """The small model as the caller wants it: written to a file, or in the form in which the model was given."""
