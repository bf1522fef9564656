"""What the code of a model must hold for a smaller graph: equations over its own numbers.

An operator was given `model.dim // model.heads` as a size; the smaller graph needs 8 there. So every argument is an
equation between an expression and what the smaller graph needs. Attributes that appear in none stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from structprune.frontends.torch.read.lower import bind
from structprune.frontends.torch.record.expression import Attribute, Expression, Leaf, Size, evaluate, leaves, solved
from structprune.frontends.torch.record.record import Call
from structprune.frontends.torch.write.module import new_arguments
from structprune.graph.graph import Op
from structprune.passes.rewrite import Rewrite

Solved = Mapping[Attribute, int]


@dataclass(frozen=True, slots=True, eq=False)
class Equation:
    """The code gave an operator this expression as an argument, or as an entry of one."""

    op: Op
    argument: str
    place: int | None
    expression: Expression
    given: Any

    def __str__(self) -> str:
        return f"{self.op}: {self.argument} is {self.expression}"

    def wanted(self, changes: Mapping[str, Any]) -> Any:
        """What the smaller graph needs there."""
        if self.argument not in changes:
            return self.given
        value = changes[self.argument]
        if self.place is None:
            return value
        is_like = isinstance(value, list | tuple) and self.place < len(value)
        return value[self.place] if is_like else None


def arguments_of(op: Op) -> Mapping[str, Any]:
    call: Call = op.source
    return bind(call.target, call.args, call.kwargs) if hasattr(call.target, "_schema") else {}


def changes_of(op: Op, rewrite: Rewrite) -> dict[str, Any]:
    """The arguments of an operator that a rewrite changes."""
    return new_arguments(op.source, rewrite.literals(op))


def equations_of(op: Op) -> Iterator[Equation]:
    """One for each argument, or entry of one, that is made of numbers of the model."""
    expressions = op.source.expressions
    if not expressions:
        return
    given = arguments_of(op)
    for name, each in expressions.items():
        if isinstance(each, tuple):
            entries = given[name]
            for place, expression in enumerate(each):
                if is_made(expression):
                    yield Equation(op, name, place, expression, entries[place])
        elif is_made(each):
            yield Equation(op, name, None, each, given[name])


def is_made(expression: Any) -> bool:
    return expression is not None and not isinstance(expression, tuple) and next(leaves(expression), None) is not None


def literals_of(op: Op, changes: Mapping[str, Any], known: Sequence[Equation]) -> Iterator[Equation]:
    """The arguments that change and that no expression makes: the code holds them as they are."""
    have = {(equation.argument, equation.place) for equation in known}
    given = arguments_of(op)
    for name, after in changes.items():
        before = given.get(name)
        is_list = isinstance(before, list | tuple) and isinstance(after, list | tuple) and len(before) == len(after)
        pairs: Any = enumerate(zip(before, after, strict=True)) if is_list else [(None, (before, after))]  # type: ignore[arg-type]
        for place, (old, new) in pairs:
            if old != new and (name, place) not in have:
                yield Equation(op, name, place, old, old)


@dataclass(slots=True)
class Numbers:
    """The leaves of expressions in a smaller model: sizes follow from the rewrite, attributes are solved for."""

    rewrite: Rewrite
    attributes: dict[Attribute, int] = field(default_factory=dict)

    def size(self, leaf: Size) -> int:
        if leaf.value not in self.rewrite.solution.axes:
            return leaf.value.shape[leaf.axis]
        return self.rewrite.shape(leaf.value)[leaf.axis]


def solve(
    equations: Sequence[Equation], rewrite: Rewrite, old: Callable[[Leaf], int]
) -> tuple[dict[Attribute, int], list[Equation]]:
    """The attributes that the equations ask for, and the equations that do not hold with them."""
    numbers = Numbers(rewrite)
    wanted: dict[Equation, Any] = {}
    changes: dict[Op, dict[str, Any]] = {}
    unknown: dict[Attribute, list[Equation]] = {}
    for equation in equations:
        if equation.op not in changes:
            changes[equation.op] = changes_of(equation.op, rewrite)
        wanted[equation] = equation.wanted(changes[equation.op])
        for leaf in set(leaves(equation.expression)):
            if isinstance(leaf, Attribute):
                unknown.setdefault(leaf, []).append(equation)

    def number(leaf: Leaf) -> int:
        if isinstance(leaf, Size):
            return numbers.size(leaf)
        return numbers.attributes[leaf] if leaf in numbers.attributes else old(leaf)

    waiting = list(wanted)
    while waiting:
        left: list[Equation] = []
        for equation in waiting:
            free = {leaf for leaf in leaves(equation.expression)
                    if isinstance(leaf, Attribute) and leaf not in numbers.attributes}  # fmt: skip
            if len(free) == 1 and type(wanted[equation]) is int:
                (leaf,) = free
                found = attempt(equation.expression, leaf, wanted[equation], number, old)
                if found is not None:
                    numbers.attributes[leaf] = found
            elif len(free) > 1:
                left.append(equation)
        if len(left) == len(waiting):
            break
        waiting = left
    broken = [
        equation
        for equation in wanted
        if not holds(equation.expression, wanted[equation], number)
        or (wanted[equation] == equation.given and not is_steady(equation.expression, numbers, number, old))
    ]
    return {at: new for at, new in numbers.attributes.items() if new != old(at)}, broken


def is_steady(
    expression: Expression, numbers: Numbers, number: Callable[[Leaf], int], old: Callable[[Leaf], int]
) -> bool:
    """What stays the same on the example stays so for inputs of other sizes: `length % n` may not."""
    changed = any(isinstance(leaf, Attribute) and number(leaf) != old(leaf) for leaf in leaves(expression))
    is_open = any(isinstance(leaf, Size) and numbers.size(leaf) == old(leaf) for leaf in leaves(expression))
    if not changed or not is_open:
        return True

    def elsewhere(known: Callable[[Leaf], int], factor: int, more: int) -> int | float | None:
        def scaled(leaf: Leaf) -> int:
            return known(leaf) * factor + more if isinstance(leaf, Size) else known(leaf)

        try:
            return evaluate(expression, scaled)
        except (ArithmeticError, ValueError):
            return None

    return all(elsewhere(number, *by) == elsewhere(old, *by) for by in ((1, 1), (2, 1), (3, 2), (7, 5), (11, 0)))


def attempt(
    expression: Expression, leaf: Attribute, wanted: int, number: Callable[[Leaf], int], old: Callable[[Leaf], int]
) -> int | None:
    try:
        found = solved(expression, leaf, wanted, number, old)
    except (ArithmeticError, ValueError):
        return None
    return found if found is not None and found > 0 else None


def holds(expression: Expression, wanted: Any, number: Callable[[Leaf], int]) -> bool:
    try:
        found = evaluate(expression, number)
    except (ArithmeticError, ValueError):
        return False
    if isinstance(found, float) or isinstance(wanted, float):
        return isinstance(wanted, int | float) and abs(found - wanted) <= 1e-12 * max(abs(found), abs(wanted), 1e-300)
    return bool(found == wanted)
