"""Why a parameter is as wide as it is: what is removed with it, and what is held in place. Data, and as text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from structprune.errors import printed


@dataclass(frozen=True, slots=True)
class Tied:
    """A parameter that loses the same indices, and the operators on the shortest way to it."""

    parameter: str
    through: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Width:
    """One dimension of an axis: free with what is tied to it, or frozen with the reason."""

    name: str
    size: int
    frozen: str = ""
    where: str = ""
    tied: tuple[Tied, ...] = ()
    statistics: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        if self.frozen:
            return [f"{self.name} is frozen: {self.frozen}" + (f" ({self.where})" if self.where else "")]
        lines = [f"{self.name}: {self.size} indices, removed together from"]
        for tied in self.tied:
            lines.append(f"  {tied.parameter} through {' -> '.join(tied.through) or 'the same parameter'}")
        if self.statistics:
            lines.append(f"  removing changes the statistics of {', '.join(self.statistics)}")
        return lines


@dataclass(frozen=True, slots=True)
class ExplainedAxis:
    """An axis in the notation of the rules, and its dimensions."""

    notation: str
    widths: tuple[Width, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """One parameter, axis by axis."""

    parameter: str
    shape: tuple[int, ...]
    axes: tuple[ExplainedAxis, ...]
    is_used: bool = True

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        if not self.is_used:
            return f"{self.parameter} is not used by the forward pass: it stays as it is."
        lines = [f"{self.parameter} {list(self.shape)}"]
        for position, axis in enumerate(self.axes):
            lines.append(f"  axis {position}: {axis.notation}")
            lines.extend(f"    {line}" for width in axis.widths for line in width.lines())
        return printed(lines)


@dataclass(frozen=True, slots=True)
class HeldAxis:
    """An axis of a trained parameter that a reason holds, and the operator that gives the reason."""

    parameter: str
    axis: int
    where: str


@dataclass(frozen=True, slots=True)
class Held:
    """One reason for which widths are frozen, and all that it holds; `entries` are those of parameters held whole."""

    reason: str
    entries: int
    axes: tuple[HeldAxis, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
