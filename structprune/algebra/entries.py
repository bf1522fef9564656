"""Axes entry by entry: what no expression of parts and factors says, the numbers of the entries do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from structprune.algebra import order
from structprune.algebra.axis import ONE, Axis, Dim, Product, Reordered, Sum, assemble, fresh, product, total
from structprune.algebra.order import Indices

if TYPE_CHECKING:
    from structprune.algebra.system import System

# Stands for every index that no variable can remove.
SINGLE = Dim(1)
# Orders of parts of orders of parts, as deep as they are read.
MOST_ORDERS = 8


class Numbering:
    """Gives each variable a start, after all the entries of those before it."""

    def __init__(self) -> None:
        self.starts: dict[Dim, int] = {}
        self.size = 0

    def of(self, dim: Dim) -> Indices:
        """The numbers of a variable's entries."""
        if dim not in self.starts:
            self.starts[dim] = self.size
            self.size += dim.size
        start = self.starts[dim]
        return np.arange(start, start + dim.size)


def pick(system: System, axis: Axis, index: Indices, where: object = None) -> Axis:
    """The axis whose entry i is entry index[i] of this one. Where no expression says so, both are frozen."""
    axis = system.resolve(axis)
    if not len(index):
        return system.fixed(0, "nothing is left of it", where)
    if system.is_frozen(axis):
        cause = next((system.frozen[leaf] for leaf in system.leaves(axis)), None)
        return system.fixed(len(index), cause.reason if cause else "has one entry", cause.where if cause else where)
    if at := order.rotation(index, axis.size):
        halves = system.cut(axis, at)
        if halves is not None:
            return total(reversed(halves))
    if (taken := take(system, axis, [index])) is not None:
        return taken[0]
    if order.takes_each_once(index, axis.size) and orders_inside(system, axis) < MOST_ORDERS:
        return Reordered(axis, index)
    if isinstance(axis, Product):
        outer, *rest = system.factors(axis)
        inner = product(rest)
        if (blocks := order.whole_blocks(index, inner.size)) is not None:
            return product((pick(system, outer, blocks, where), inner))
    reason = "is read by index, across its factors"
    system.freeze(axis, reason, where)
    return system.fixed(len(index), reason, where)


def orders_inside(system: System, axis: Axis) -> int:
    """How deep orders lie in orders."""
    deepest = 0
    waiting = [(axis, 0)]
    while waiting:
        each, depth = waiting.pop()
        deepest = max(deepest, depth)
        match system.resolve(each):
            case Reordered(whole):
                waiting.append((whole, depth + 1))
            case Product(inner) | Sum(inner):
                waiting.extend((part, depth) for part in inner)
    return deepest


def nodes_of(system: System, axis: Axis, numbering: Numbering) -> Indices | None:
    """Each entry as a number. None with a product in the way."""
    axis = system.resolve(axis)
    match axis:
        case Reordered(inner, places):
            nodes = nodes_of(system, inner, numbering)
            return None if nodes is None else nodes[places]
        case Sum():
            found: list[Indices] = []
            for part in system.parts(axis):
                if (nodes := nodes_of(system, part, numbering)) is None:
                    return None
                found.append(nodes)
            return np.concatenate(found)
        case Product() if axis.size > 1:
            return None
    return numbering.of(axis if isinstance(axis, Dim) else SINGLE)


def take(system: System, axis: Axis, indices: Sequence[Indices]) -> list[Axis] | None:
    """The axes that take these entries. A variable is divided by how often each of them takes its indices."""
    numbering = Numbering()
    nodes = nodes_of(system, axis, numbering)
    if nodes is None:
        return None
    taken = [nodes[index] for index in indices]
    counts = [np.bincount(each, minlength=len(nodes)) for each in taken]
    parts: list[Axis] = []
    owner, place = np.empty_like(nodes), np.empty_like(nodes)
    for dim, start in numbering.starts.items():
        span = slice(start, start + dim.size)
        kinds = order.classes([each[span] for each in counts])
        made = [fresh(int(size)) for size in np.bincount(kinds)]
        owner[span], place[span] = kinds + len(parts), order.occurrence(kinds)
        if len(made) == 1:
            made = [ONE if dim.size == 1 else dim]
        else:
            system.bind(dim, assemble(made, kinds, np.zeros_like(kinds), place[span]))
        parts += made
    return [assemble(parts, owner[each], order.occurrence(each), place[each]) for each in taken]


def tie(system: System, a: Axis, b: Axis) -> bool:
    """Make two axes one, entry by entry: cycles go together. False with a product in the way."""
    numbering = Numbering()
    left, right = nodes_of(system, a, numbering), nodes_of(system, b, numbering)
    if left is None or right is None:
        return False
    if (left == right).all():
        return True
    component = order.components(numbering.size, left, right)
    members = {dim: component[start : start + dim.size] for dim, start in numbering.starts.items()}
    kinds = order.classes([np.bincount(each, minlength=component.max() + 1) for each in members.values()])
    parts = [fresh(int(size)) for size in np.bincount(kinds)]
    if not any(isinstance(part, Dim) for part in parts):
        system.freeze_all([a, b], "its entries are tied to each other around a cycle")
        return True
    place = order.occurrence(kinds)
    for dim, each in members.items():
        if dim.size > 1:
            system.bind(dim, assemble(parts, kinds[each], order.occurrence(each), place[each]))
    return True
