"""Walk the operators in order and let each one's rule relate the axes of its tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import cast

import structprune.operators  # noqa: F401  registers the rules
from structprune.algebra.axis import Axes, Axis, Dim, fresh, variables
from structprune.algebra.system import Expansion, System
from structprune.graph.graph import Graph, Op, Value
from structprune.graph.operator import RULES, Meeting, Operand, Zeros
from structprune.graph.progress import walk


@dataclass(slots=True, repr=False)
class Solution:
    """The axes of every value, solved."""

    graph: Graph
    system: System = field(default_factory=System)
    axes: dict[Value, Axes] = field(default_factory=dict)
    zero: dict[Value, Zeros] = field(default_factory=dict)
    statistics: list[tuple[Op, Axis]] = field(default_factory=list)
    singular: list[tuple[Op, Axis]] = field(default_factory=list)
    multiplied: list[tuple[Op, tuple[Axis, ...]]] = field(default_factory=list)
    _expanded: dict[Value, Axes] = field(default_factory=dict)
    _held: dict[Axis, bool] = field(default_factory=dict)
    _variables: dict[Axis, frozenset[Dim]] = field(default_factory=dict)
    _expansion: Expansion = field(init=False)

    def __post_init__(self) -> None:
        self._expansion = Expansion(self.system)

    def expanded(self, value: Value) -> Axes:
        """The axes of a value in terms of unbound variables."""
        found = self._expanded.get(value)
        if found is None:
            found = self._expanded[value] = tuple(map(self.expand, self.axes[value]))
        return found

    def expand(self, axis: Axis) -> Axis:
        """The axis in terms of unbound variables; equal expressions are one object: what is known of it serves all."""
        return self._expansion(axis)

    def variables(self, axis: Axis) -> frozenset[Dim]:
        """Those of an expanded axis."""
        if isinstance(axis, Dim):
            return frozenset((axis,))
        found = self._variables.get(axis)
        if found is None:
            found = self._variables[axis] = frozenset(variables(axis))
        return found

    def is_held(self, axis: Axis) -> bool:
        """No index of this expanded axis can be removed."""
        found = self._held.get(axis)
        if found is None:
            found = self._held[axis] = all(leaf in self.system.frozen for leaf in variables(axis))
        return found


def propagate(graph: Graph) -> Solution:
    """Solve the equations of all operators."""
    return solve(Solution(graph), graph)


def extended(solution: Solution, in_training: Graph) -> Solution:
    """A new solution, which holds for what the model computes in training too."""
    wider = Solution(
        solution.graph.joined(in_training),
        solution.system.copy(set(variables_of(solution))),
        dict(solution.axes),
        dict(solution.zero),
        list(solution.statistics),
        list(solution.singular),
        list(solution.multiplied),
    )
    return solve(wider, in_training)


def variables_of(solution: Solution) -> Iterator[Dim]:
    """Those of the parameters, with repeats."""
    for value in solution.graph.parameters.values():
        for axis in solution.expanded(value):
            yield from variables(axis)


def solve(solution: Solution, graph: Graph) -> Solution:
    system = solution.system
    for value in graph.inputs:
        solution.axes[value] = tuple(system.fixed(size, "an input of the model") for size in value.shape)
        solution.zero[value] = (False,) * len(value.shape)
    for op in walk(graph.ops, "solving operator"):
        operands = [None if value is None else operand(solution, value) for value in op.inputs]
        meeting = meet(op, operands)
        for a, b in meeting.equal:
            system.unify(a, b, op)
        for taken, axis, index in meeting.picked:
            system.unify(taken, system.pick(axis, index, op), op)
        for axis, why in meeting.frozen:
            system.freeze(axis, why, op)
        for value, axes, zero in zip(op.outputs, meeting.outputs, meeting.zero, strict=True):
            solution.axes[value] = axes
            solution.zero[value] = zero
        if op.kind == "write" or op.attributes.get("writes"):
            forget_zeros(solution, op)
        solution.statistics.extend((op, axis) for axis in meeting.statistics)
        solution.singular.extend((op, axis) for axis in meeting.singular)
        if op not in solution.graph.only_in_training:
            solution.multiplied.extend((op, axes) for axes in meeting.multiplied)
    for value in graph.outputs:
        operand(solution, value)
        for axis in solution.axes[value]:
            system.freeze(axis, "reaches the model's output", value.producer)
    freeze_unsteady(solution)
    freeze_diagonals(solution)
    return solution


def operand(solution: Solution, value: Value) -> Operand:
    """The value as rules see it; parameters and constants get their axes at first sight."""
    axes = solution.axes.get(value)
    if axes is None:
        if value.parameter is not None:
            axes = tuple(fresh(size) for size in value.shape)
        else:
            axes = tuple(solution.system.fixed(size, "a constant made in forward") for size in value.shape)
        solution.axes[value] = axes
        solution.zero[value] = (value.is_trained,) * len(axes)
    return Operand(axes, solution.zero[value], value.shape, value.parameter is not None)


def meet(op: Op, operands: list[Operand | None]) -> Meeting:
    """The rule's answer; where a rule does not fit the operator, nothing is known of it."""
    found = RULES.get(op.kind)
    if found is None:
        return RULES["opaque"](op, *operands)
    try:
        meeting = found(op, *operands)
        problem = misfit(op, meeting)
    except (ValueError, IndexError, KeyError, TypeError) as error:
        problem = f"{type(error).__name__}: {error}"
    if problem is None:
        return meeting
    unknown = Op(
        "opaque",
        op.name,
        op.inputs,
        op.outputs,
        {"why": f"the rule for {op.kind!r} does not fit {op.name!r}: {problem}"},
        op.where,
    )
    return RULES["opaque"](unknown, *operands)


def misfit(op: Op, meeting: Meeting) -> str | None:
    """What is wrong with a meeting, before anything is learnt from it."""
    for value, axes in zip(op.outputs, meeting.outputs, strict=True):
        sizes = tuple(axis.size for axis in axes)
        if sizes != value.shape:
            return f"it gives {sizes}, the operator {value.shape}"
    for a, b in meeting.equal:
        if a.size != b.size:
            return f"it equates sizes {a.size} and {b.size}"
    for taken, axis, index in meeting.picked:
        if taken.size != len(index) or not ((index >= 0) & (index < axis.size)).all():
            return f"it takes {taken.size} of {axis.size} by {len(index)} indices"
    return None


def forget_zeros(solution: Solution, op: Op) -> None:
    """After a write, whatever shares the memory may no longer be zero."""
    target, written = op.inputs[0], op.outputs[0]
    if target is None or target.base is None or all(solution.zero[written]):
        return
    root = target.base
    for value in list(solution.zero):
        if value is root or value.base is root:
            is_same = same_axes(solution, value, written)
            pairs = zip(solution.zero[value], solution.zero[written], strict=True) if is_same else ()
            solution.zero[value] = tuple(a and b for a, b in pairs) if is_same else (False,) * len(value.shape)


def same_axes(solution: Solution, a: Value, b: Value) -> bool:
    resolve = solution.system.resolve
    pairs = zip(solution.axes[a], solution.axes[b], strict=False)
    return len(a.shape) == len(b.shape) and all(resolve(x) is resolve(y) for x, y in pairs)


def freeze_unsteady(solution: Solution) -> None:
    """An index that other inputs change cannot be given new numbers. To find that out is dear: free axes alone ask."""
    for op in solution.graph.ops:
        is_steady = cast(Callable[[], bool] | None, op.attributes.get("is_steady"))
        if op.kind != "pick" or is_steady is None or op.inputs[0] is None:
            continue
        (axis,) = (solution.axes[op.inputs[0]][place] for place in cast(Iterable[int], op.attributes["picks"]))
        if not solution.system.is_frozen(axis) and not is_steady():
            solution.system.freeze(axis, "is read by an index that follows from the sizes of the inputs", op)


def freeze_diagonals(solution: Solution) -> None:
    """A variable that appears twice in one product cannot be counted index by index."""
    for value, axes in solution.axes.items():
        for axis in axes:
            if isinstance(axis, Dim) and axis.size == 1:
                continue
            factors = solution.system.factors(axis)
            if len(factors) < 2:
                continue
            found = Counter(leaf for factor in factors for leaf in set(solution.system.leaves(factor)))
            for leaf, count in found.items():
                if count > 1:
                    solution.system.freeze(leaf, "appears twice in one product", value.producer)
