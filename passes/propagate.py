"""Walk the operators in order and let each one's rule relate the axes of its tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import structprune.operators  # noqa: F401  registers the rules
from structprune.algebra.axis import Axes, Axis, Dim, fresh, variables
from structprune.algebra.system import Expansion, System
from structprune.graph.graph import Graph, Op, Value
from structprune.graph.operator import RULES, Meeting, Operand, Zeros
from structprune.graph.progress import walk
from structprune.operators.routing import Opaque, Pick


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
    # Where zeroing makes a value infinite, or no number.
    poles: dict[Value, Zeros] = field(default_factory=dict)
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
        dict(solution.poles),
    )
    return solve(wider, in_training)


def variables_of(solution: Solution) -> Iterator[Dim]:
    """Those of the parameters, with repeats."""
    for value in solution.graph.parameters.values():
        for axis in solution.expanded(value):
            yield from variables(axis)


def solve(solution: Solution, graph: Graph) -> Solution:
    system = solution.system
    names = Names()
    for known in solution.zero:
        names.note(known)
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
            names.note(value)
        solution.poles.update(zip(op.outputs, meeting.poles, strict=False))
        if op.overwrites:
            overwrite(solution, op, names)
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
    is_parameter = value.parameter is not None
    return Operand(axes, solution.zero[value], value.shape, is_parameter, solution.poles.get(value, ()))


def meet(op: Op, operands: list[Operand | None]) -> Meeting:
    """The rule's answer; where a rule does not fit the operator, nothing is known of it."""
    found = RULES.get(op.kind)
    if found is None:
        return Opaque().meet(op, *operands)
    try:
        meeting = found(op, *operands)
        problem = misfit(op, meeting)
    except (ValueError, IndexError, KeyError, TypeError) as error:
        problem = f"{type(error).__name__}: {error}"
    if problem is None:
        return meeting
    return Opaque(f"the rule for {op.kind!r} does not fit {op.name!r}: {problem}").meet(op, *operands)


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


class Names:
    """The values that show one piece of memory: views of views have the same root."""

    def __init__(self) -> None:
        self.by_root: dict[Value, list[Value]] = {}

    def note(self, value: Value) -> None:
        if value.base is not None:
            self.by_root.setdefault(value.base, [value.base]).append(value)

    def of(self, value: Value) -> list[Value]:
        root = value.base or value
        return self.by_root.get(root, [root])


def overwrite(solution: Solution, op: Op, names: Names) -> None:
    """What an operator writes into memory is what every name of that memory shows from then on."""
    results = [value for value in op.outputs if value.base is not None] or list(op.outputs)
    for place, target in enumerate(op.overwrites):
        written = results[min(place, len(results) - 1)] if results else None
        if target not in op.inputs:  # the rule has not seen it
            hold_result(solution, op, target, written)
        if written is not None and all(solution.zero[written]):
            continue
        for value in names.of(target):
            if value not in op.outputs and value in solution.zero:
                solution.zero[value] = zeros_left(solution, value, written)
                solution.poles.pop(value, None)


def hold_result(solution: Solution, op: Op, target: Value, written: Value | None) -> None:
    """Memory that was given for a result (`out=`) has the axes of the result."""
    operand(solution, target)
    if written is not None and written.shape == target.shape:
        for axis, other in zip(solution.axes[target], solution.axes[written], strict=True):
            solution.system.unify(axis, other, op)
        return
    for axis in solution.axes[target]:
        solution.system.freeze(axis, f"{op.name} writes a result of another shape into it", op)


def zeros_left(solution: Solution, value: Value, written: Value | None) -> Zeros:
    """The zeros of a value, part of whose memory was written: along an axis of both, where both are zero."""
    if written is None:
        return (False,) * len(value.shape)
    resolve = solution.system.resolve
    new = [resolve(axis) for axis in solution.axes[written]]
    old = [resolve(axis) for axis in solution.axes[value]]

    def is_left(axis: Axis) -> bool:
        # An axis that stands twice in one of them may be another one there.
        places = [k for k, each in enumerate(new) if each is axis]
        return len(places) == 1 == sum(each is axis for each in old) and solution.zero[written][places[0]]

    pairs = zip(solution.zero[value], old, strict=True)
    return tuple(mark and (axis.size == 1 or is_left(axis)) for mark, axis in pairs)


def freeze_unsteady(solution: Solution) -> None:
    """An index that other inputs change cannot be given new numbers. To find that out is dear: free axes alone ask."""
    for op in solution.graph.ops:
        pick, x = op.operator, op.inputs[0] if op.inputs else None
        if not isinstance(pick, Pick) or pick.is_steady is None or x is None:
            continue
        axis = solution.axes[x][pick.dim]
        if not solution.system.is_frozen(axis) and not pick.is_steady():
            solution.system.freeze(axis, "is read by an index that follows from the sizes of the inputs", op)


def freeze_diagonals(solution: Solution) -> None:
    """A variable that appears twice in one product cannot be counted index by index."""
    seen: set[Axis] = set()
    for value, axes in solution.axes.items():
        for axis in axes:
            whole = solution.system.resolve(axis)
            if isinstance(whole, Dim) or whole in seen:
                continue
            seen.add(whole)
            factors = solution.system.factors(whole)
            if len(factors) < 2:
                continue
            found = Counter(leaf for factor in factors for leaf in set(solution.system.leaves(factor)))
            for leaf, count in found.items():
                if count > 1:
                    solution.system.freeze(leaf, "appears twice in one product", value.producer)
