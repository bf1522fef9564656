"""What a drawing of a model's groups shows: layers and ties row by row, each group in a lane.

A layer is an operator that brings parameters in. A tie is an operator without new parameters that joins
layers which had nothing to do with each other before, such as the addition of a residual.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from structprune.algebra.axis import Axes, Axis, Dim, Product, Reordered, Sum, variables
from structprune.graph.graph import Op, Value
from structprune.passes.group import Group
from structprune.passes.propagate import Solution


@dataclass(frozen=True, slots=True)
class Row:
    """The parameters that an operator brings in, those with the same axes together; none in a tie.

    `dots` are the dimensions that the row cuts, each with whether the layer gives fewer indices of it
    (if not, it gets fewer).
    """

    op: Op
    entries: list[tuple[list[str], Axes]] = field(default_factory=list)
    dots: dict[Dim, bool] = field(default_factory=dict)

    @property
    def is_tie(self) -> bool:
        return not self.entries


def rows_of(solution: Solution, groups: Sequence[Group]) -> list[Row]:
    """The layers and the ties between them, in the order of the graph."""
    gives: dict[tuple[str, Dim], bool] = {}
    for group in groups:
        for member in group.members:
            place = member.parameter, group.dim
            gives[place] = gives.get(place, False) or not member.is_entering
    dims = {group.dim for group in groups}
    clusters = Clusters()
    rows: list[Row] = []
    seen: set[Value] = set()
    for op in solution.graph.ops:
        touched = {value: dims.intersection(leaves(solution.expanded(value))) for value in values_of(op)}
        new = [value for value in touched if value.parameter is not None and value not in seen]
        seen.update(new)
        joined = clusters.join(touched, new)
        if joined:
            rows.append(Row(op, dots=dict.fromkeys(joined, True)))
        rows.extend(layers(op, {value: solution.expanded(value) for value in new}, gives))
    return rows


def layers(op: Op, new: Mapping[Value, Axes], gives: Mapping[tuple[str, Dim], bool]) -> list[Row]:
    """The rows of the parameters that an operator is the first to read."""
    rows: list[Row] = []
    for value, axes in new.items():
        name = str(value.parameter)
        # A bias stands beside its weight, whose axes are all of its own.
        row = next((row for row in rows if keys(axes) <= keys(a for _, known in row.entries for a in known)), None)
        if row is None:
            row = Row(op)
            rows.append(row)
        twin = next((names for names, known in row.entries if list(map(key, known)) == list(map(key, axes))), None)
        if twin is None:
            row.entries.append(([name], axes))
        else:
            twin.append(name)
        for dim in leaves(axes):
            if (name, dim) in gives:
                row.dots[dim] = row.dots.get(dim, False) or gives[name, dim]
    return rows


class Clusters:
    """Which values hang together along a dimension so far: one set for each (dimension, layers it comes from)."""

    def __init__(self) -> None:
        self.of: dict[tuple[Dim, Value], object] = {}
        self.parent: dict[object, object] = {}
        self.with_parameters: set[object] = set()

    def root(self, cluster: object) -> object:
        while (parent := self.parent.get(cluster)) is not None:
            cluster = parent
        return cluster

    def join(self, touched: Mapping[Value, set[Dim]], new: Sequence[Value]) -> list[Dim]:
        """Take note of an operator; the dimensions of which it made one set of layers out of several."""
        tied: list[Dim] = []
        for dim in dict.fromkeys(dim for dims in touched.values() for dim in dims):
            here = [value for value, dims in touched.items() if dim in dims]
            known = (self.of[dim, value] for value in here if (dim, value) in self.of)
            roots = list(dict.fromkeys(map(self.root, known))) or [object()]
            if len(self.with_parameters.intersection(roots)) > 1:
                tied.append(dim)
            self.parent.update(dict.fromkeys(roots[1:], roots[0]))
            self.of.update({(dim, value): roots[0] for value in here})
            if self.with_parameters.intersection(roots) or any(value in new for value in here):
                self.with_parameters.add(roots[0])
        return tied


def lanes_of(rows: Sequence[Row]) -> tuple[dict[Dim, int], dict[Dim, tuple[int, int]]]:
    """For each dimension the first lane that is free, and its first and last row."""
    spans: dict[Dim, tuple[int, int]] = {}
    for number, row in enumerate(rows):
        for dim in row.dots:
            spans[dim] = (spans.get(dim, (number, number))[0], number)
    lanes: dict[Dim, int] = {}
    ends: list[int] = []
    for dim, (first, last) in spans.items():
        lane = next((lane for lane, end in enumerate(ends) if end < first), len(ends))
        ends[lane : lane + 1] = [last]
        lanes[dim] = lane
    return lanes, spans


def values_of(op: Op) -> list[Value]:
    return [value for value in dict.fromkeys((*op.inputs, *op.outputs)) if value is not None]


def leaves(axes: Iterable[Axis]) -> Iterator[Dim]:
    for axis in axes:
        yield from variables(axis)


def keys(axes: Iterable[Axis]) -> set[object]:
    return set(map(key, axes))


def key(axis: Axis) -> object:
    """Equal for two expanded axes that are the same expression."""
    match axis:
        case Dim():
            return id(axis)
        case Product(inner) | Sum(inner):
            return type(axis), tuple(map(key, inner))
        case Reordered(whole, entries):
            return key(whole), entries.tobytes()
