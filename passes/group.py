"""One group for each dimension that is free and reaches a parameter."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from structprune.algebra.axis import Axis, Dim, Sum, variables
from structprune.graph.graph import Op, Value
from structprune.graph.operator import Operator
from structprune.passes.propagate import Solution


@dataclass(frozen=True, slots=True)
class Member:
    """A parameter's axis that a group runs along.

    `places` are the parts of the axis in which the group occurs, each with where it starts; `roles` are
    what the operators that read the parameter do, each with the place among its operands.
    """

    parameter: str
    axis: int
    places: tuple[tuple[int, Axis], ...]
    is_trained: bool
    rank: int = 1
    roles: tuple[tuple[Operator, int], ...] = ()

    @property
    def is_entering(self) -> bool:
        """The axis of a weight that its layer sums over."""
        return any(
            each.weight == place and each.weight_axis % self.rank == self.axis
            for operator, place in self.roles
            for each in operator.contracted
        )

    @property
    def is_batch_scale(self) -> bool:
        """The scale of a batch norm."""
        return any(operator.kind == "batch_norm" and place == 1 for operator, place in self.roles)


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Indices that are removed together, each from every member."""

    name: str
    dim: Dim
    members: tuple[Member, ...]
    inexact: tuple[Op, ...] = ()

    @property
    def size(self) -> int:
        return self.dim.size

    @property
    def layers(self) -> int:
        """How many weights (biases and scales aside) lose a slice with each index."""
        return len({member.parameter for member in self.members if member.is_trained and member.rank > 1})

    @property
    def exact(self) -> bool:
        """Whether removing equals zeroing; if not, `inexact` names the operators that change."""
        return not self.inexact


def group(solution: Solution) -> list[Group]:
    """The groups of a solved graph, in the order in which its parameters appear."""
    found: dict[Dim, list[Member]] = {}
    roles = roles_of(solution)
    reaches_trained: set[Dim] = set()
    frozen = solution.system.frozen
    for name, value in solution.graph.parameters.items():
        read_by = tuple(roles.get(value, ()))
        for position, axis in enumerate(solution.expanded(value)):
            places: dict[Dim, list[tuple[int, Axis]]] = {}
            for start, part in parts_of(axis):
                for leaf in (part,) if isinstance(part, Dim) else dict.fromkeys(variables(part)):
                    if leaf not in frozen and leaf.size > 1:
                        places.setdefault(leaf, []).append((start, part))
            for leaf, where in places.items():
                member = Member(name, position, tuple(where), value.is_trained, len(value.shape), read_by)
                found.setdefault(leaf, []).append(member)
            if value.is_trained:
                reaches_trained.update(places)
    inexact: dict[Dim, list[Op]] = {}
    for op, axis in solution.statistics:
        for leaf in set(solution.system.leaves(axis)):
            inexact.setdefault(leaf, []).append(op)
    names = GroupNames()
    return [
        Group(names.of(members), dim, tuple(members), tuple(inexact.get(dim, ())))
        for dim, members in found.items()
        if dim in reaches_trained
    ]


def parts_of(axis: Axis) -> list[tuple[int, Axis]]:
    """The parts of a sum with their starts; any other axis is its own only part."""
    parts = axis.parts if isinstance(axis, Sum) else (axis,)
    starts = accumulate((part.size for part in parts), initial=0)
    return list(zip(starts, parts, strict=False))


def roles_of(solution: Solution) -> dict[Value, list[tuple[Operator, int]]]:
    roles: dict[Value, list[tuple[Operator, int]]] = {}
    for op in solution.graph.ops:
        for place, value in enumerate(op.inputs):
            if value is not None and value.parameter is not None:
                roles.setdefault(value, []).append((op.operator, place))
    return roles


class GroupNames:
    """A group is called after its first parameter; further groups of one axis get a number."""

    def __init__(self) -> None:
        self.used: dict[str, int] = {}

    def of(self, members: list[Member]) -> str:
        name = f"{members[0].parameter}:{members[0].axis}"
        count = self.used[name] = self.used.get(name, 0) + 1
        return name if count == 1 else f"{name}#{count}"
