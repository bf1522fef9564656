"""What the pipeline asks of a front end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from structprune.algebra.axis import Dim
from structprune.errors import UnsupportedRatio
from structprune.graph.edit import Edit, Weights
from structprune.graph.graph import Graph, Shape
from structprune.passes.bundle import Tie
from structprune.passes.follow import Source
from structprune.passes.propagate import Solution
from structprune.passes.rewrite import Rewrite
from structprune.passes.verify import Trial

# How often a choice is made again because a model could not take it.
MOST_TURNS = 40


@dataclass(frozen=True, slots=True, repr=False)
class Constraints:
    """What a model asks of the choice, where the result shall be a "module" (the user's own class), "graph" or "onnx".

    `output` is what the user wants it to be. `why` is what stood in the way of the last choice, where there was one;
    `note` what is to be said of the result; `source` is the front end's own.
    """

    kind: str
    output: str
    ties: tuple[Tie, ...] = ()
    frozen: Mapping[Dim, str] = field(default_factory=dict)
    why: str = ""
    note: str = ""
    turn: int = 1
    source: Any = None

    def holding(self, dims: Mapping[Dim, str], why: str) -> Constraints | None:
        """The same, and these widths stay whole; None where that is no news, or was asked too often."""
        news = {dim: reason for dim, reason in dims.items() if dim not in self.frozen}
        if not news or self.turn == MOST_TURNS:
            return None
        return replace(self, frozen={**self.frozen, **news}, why=why, turn=self.turn + 1)


@dataclass(frozen=True, slots=True, repr=False)
class Realized:
    """A choice that a model can take, and what the result will be; `source` is what the front end makes it from."""

    rewrite: Rewrite
    kind: str
    note: str = ""
    source: Any = None


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

    def arrays(self, names: Iterable[str]) -> Weights:
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

    @property
    def constants(self) -> Source | None:
        """The numbers by which constants are followed; None where the model does what is not followed."""

    def inputs(self) -> Any:
        """The example inputs as data."""

    def constraints(self, solution: Solution, output: str) -> Constraints:
        """What is known of the model before anything is chosen."""

    def recorded(self, solution: Solution) -> Constraints:
        """The same for a result that serves as a check of rules: what was recorded, whatever other inputs would do."""

    def realize(self, rewrite: Rewrite, asked: Constraints) -> Realized | Constraints:
        """See whether the model can take a choice; where it cannot, what is asked of the next one."""

    def instead(self, asked: Constraints, missed: UnsupportedRatio) -> Constraints:
        """What is asked where no choice meets the constraints; the error again where none of them can be given up."""

    def make(self, realized: Realized, edits: Sequence[Edit]) -> Any:
        """The small model: these edits, carried out."""

    def trials(self, realized: Realized, small: Any, zeros: Sequence[Edit]) -> Iterator[Trial]:
        """Ways to compare the small model with the original whose removed slices are zeroed, the best first."""

    def deliver(self, small: Any, output_path: Any, force: bool) -> Any:
        """The small model as the caller wants it: written to a file, or in the form in which the model was given."""
