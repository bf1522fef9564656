"""Count what a choice of widths costs: parameters, multiply-accumulates or channels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from math import prod
from typing import cast

from structprune.algebra.axis import Axis, Dim, Sum, kept_size, variables
from structprune.passes.group import Group
from structprune.passes.propagate import Solution

Counts = dict[Dim, int]


@dataclass(frozen=True, slots=True)
class Term:
    """A product of axis sizes."""

    axes: tuple[Axis, ...]


class Measure:
    """A sum of terms, kept up to date as counts change."""

    def __init__(self, terms: Sequence[Term], constant: int = 0) -> None:
        self.terms = terms
        self.counts: Counts = {}
        self._sizes = {axis: axis.size for term in terms for axis in term.axes}
        self._values = [prod(axis.size for axis in term.axes) for term in terms]
        self.total = self.whole = constant + sum(self._values)
        self._terms_of: dict[Axis, list[int]] = {}
        for index, term in enumerate(terms):
            for axis in set(term.axes):
                self._terms_of.setdefault(axis, []).append(index)
        # In a plain sum a count enters as often as the variable occurs; elsewhere the size is computed anew.
        self._plain: dict[Dim, dict[Axis, int]] = {}
        self._mixed: dict[Dim, set[Axis]] = {}
        for axis in self._sizes:
            parts = axis.parts if isinstance(axis, Sum) else (axis,)
            if all(isinstance(part, Dim) for part in parts):
                for part, times in Counter(parts).items():
                    self._plain.setdefault(cast(Dim, part), {})[axis] = times
            else:
                for leaf in set(variables(axis)):
                    self._mixed.setdefault(leaf, set()).add(axis)

    def fresh(self) -> Measure:
        """The same terms, with nothing removed."""
        twin = copy(self)
        twin.counts, twin.total = {}, self.whole
        twin._sizes = {axis: axis.size for axis in self._sizes}
        twin._values = [prod(axis.size for axis in term.axes) for term in self.terms]
        return twin

    @property
    def removed(self) -> float:
        """The share that the counts remove."""
        return 1 - self.total / self.whole if self.whole else 0.0

    def set(self, changes: Counts) -> None:
        """Take over new counts."""
        touched: set[Axis] = set()
        changed: set[Axis] = set()
        for dim, count in changes.items():
            before = self.counts.get(dim, dim.size)
            if before == count:
                continue
            self.counts[dim] = count
            for axis, times in self._plain.get(dim, {}).items():
                self._sizes[axis] += times * (count - before)
                touched.add(axis)
            changed.update(self._mixed.get(dim, ()))
        for axis in changed:
            self._sizes[axis] = kept_size(axis, self.counts)
        for index in {index for axis in touched | changed for index in self._terms_of[axis]}:
            value = prod(self._sizes[axis] for axis in self.terms[index].axes)
            self.total += value - self._values[index]
            self._values[index] = value


def parameters(solution: Solution, whole: int) -> Measure:
    """Entries of trained parameters; `whole` counts those too that the graph never reads."""
    trained = [value for value in solution.graph.parameters.values() if value.is_trained]
    terms = [Term(solution.expanded(value)) for value in trained]
    return Measure(terms, whole - sum(prod(value.shape) for value in trained))


def macs(solution: Solution) -> Measure:
    """Multiply-accumulate operations of linear layers, convolutions, matrix products, attention."""
    return Measure([Term(tuple(map(solution.expand, axes))) for _, axes in solution.multiplied])


def channels(groups: Sequence[Group]) -> Measure:
    """The removable widths."""
    return Measure([Term((group.dim,)) for group in groups])
