"""Count what a choice of widths costs: parameters, multiply-accumulates or channels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from structprune.axis import Axis, Dim, Product, Sum, kept_size
from structprune.passes.group import Group
from structprune.passes.propagate import Solution

Counts = dict[Dim, int]


@dataclass(frozen=True, slots=True)
class Term:
    """A product of axis sizes."""

    axes: tuple[Axis, ...]
    factor: int = 1

    def value(self, counts: Counts) -> int:
        return self.factor * prod(kept_size(axis, counts) for axis in self.axes)


def leaves(axis: Axis) -> Iterable[Dim]:
    match axis:
        case Dim():
            yield axis
        case Product(parts) | Sum(parts):
            for part in parts:
                yield from leaves(part)


class Measure:
    """A sum of terms, kept up to date as counts change."""

    def __init__(self, terms: Sequence[Term], constant: int = 0) -> None:
        self.terms = terms
        self.counts: Counts = {}
        self._values = [term.value(self.counts) for term in terms]
        self.total = self.whole = constant + sum(self._values)
        self._terms_of: dict[Dim, list[int]] = {}
        for index, term in enumerate(terms):
            for leaf in {leaf for axis in term.axes for leaf in leaves(axis)}:
                self._terms_of.setdefault(leaf, []).append(index)

    @property
    def removed(self) -> float:
        """The share that the counts remove."""
        return 1 - self.total / self.whole if self.whole else 0.0

    def set(self, changes: Counts) -> None:
        """Take over new counts."""
        touched: set[int] = set()
        for dim, count in changes.items():
            if self.counts.get(dim, dim.size) != count:
                self.counts[dim] = count
                touched.update(self._terms_of.get(dim, ()))
        for index in touched:
            value = self.terms[index].value(self.counts)
            self.total += value - self._values[index]
            self._values[index] = value


def parameters(solution: Solution, whole: int) -> Measure:
    """Entries of trained parameters; `whole` counts those too that the graph never reads."""
    trained = [value for value in solution.graph.parameters.values() if value.is_trained]
    terms = [Term(solution.expanded(value)) for value in trained]
    return Measure(terms, whole - sum(prod(value.shape) for value in trained))


def macs(solution: Solution) -> Measure:
    """Multiply-accumulate operations of linear layers, convolutions, matrix products, attention."""
    expand = solution.system.expand
    return Measure([Term(tuple(expand(axis) for axis in axes)) for _, axes in solution.multiplied])


def channels(groups: Sequence[Group]) -> Measure:
    """The removable widths."""
    return Measure([Term((group.dim,)) for group in groups])
