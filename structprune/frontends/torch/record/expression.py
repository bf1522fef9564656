"""Where a whole number comes from: an expression in what the model's objects hold and in sizes of tensors."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from structprune.graph.graph import Value


@dataclass(frozen=True, slots=True)
class Attribute:
    """A number that an object of the model holds: `blocks.0.attention.heads`, or an entry of a sequence or a dict."""

    owner: tuple[str, ...]
    name: str
    index: tuple[int | str, ...] = ()

    def __str__(self) -> str:
        return ".".join(("model", *self.owner, self.name)) + "".join(f"[{each!r}]" for each in self.index)


@dataclass(frozen=True, slots=True)
class Size:
    """The size of an axis of a recorded tensor."""

    value: Value
    axis: int

    def __str__(self) -> str:
        return f"{self.value.name}.shape[{self.axis}]"


@dataclass(frozen=True, slots=True)
class Term:
    """An operation on other expressions."""

    how: str
    operands: tuple[Expression, ...]
    depth: int = field(init=False, compare=False)

    def __post_init__(self) -> None:
        inner = (each.depth for each in self.operands if isinstance(each, Term))
        object.__setattr__(self, "depth", 1 + max(inner, default=0))

    def __str__(self) -> str:
        sign = SIGNS.get(self.how)
        if sign is None or len(self.operands) != 2:
            return f"{self.how}({', '.join(map(str, self.operands))})"
        return f"({self.operands[0]} {sign} {self.operands[1]})"


Leaf = Attribute | Size
Expression = int | float | Attribute | Size | Term
Numbers = Callable[[Leaf], int]

SIGNS = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "floordiv": "//",
    "truediv": "/",
    "mod": "%",
    "pow": "**",
}
OPERATIONS: Mapping[str, Callable[..., int | float]] = {
    **{name: getattr(operator, name) for name in SIGNS},
    "neg": operator.neg,
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "round": round,
    "trunc": math.trunc,
    "sqrt": math.sqrt,
    "float": float,
    "max": max,
    "min": min,
    "lshift": operator.lshift,
    "rshift": operator.rshift,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
}
# Deeper ones come from loops that add to a number; evaluating them is a recursion.
DEEPEST = 64


def evaluate(expression: Expression, numbers: Numbers) -> int | float:
    """The value for given values of the leaves; raises ArithmeticError where it has none."""
    match expression:
        case Attribute() | Size():
            return numbers(expression)
        case Term(how, operands):
            return OPERATIONS[how](*(evaluate(each, numbers) for each in operands))
    return expression


def leaves(expression: Expression) -> Iterator[Leaf]:
    """What an expression is made of, with repeats."""
    match expression:
        case Attribute() | Size():
            yield expression
        case Term(_, operands):
            for each in operands:
                yield from leaves(each)


def solved(expression: Expression, leaf: Leaf, wanted: int, numbers: Numbers, old: Numbers) -> int | None:
    """What a leaf must be, so that the expression is what is wanted; None where no whole number is found.

    `numbers` knows the other leaves. Of several answers (`n // 2`), the one that leaves the remainder it had.
    """
    if expression == leaf:
        return wanted
    if not isinstance(expression, Term) or len(expression.operands) != 2:
        if isinstance(expression, Term) and expression.how == "neg":
            return solved(expression.operands[0], leaf, -wanted, numbers, old)
        return None
    a, b = expression.operands
    is_left = leaf in leaves(a)
    if is_left and leaf in leaves(b):
        return None
    inner, outer = (a, b) if is_left else (b, a)
    other = evaluate(outer, numbers)
    if not isinstance(other, int):
        return None
    before = evaluate(inner, old)
    needed = operand(expression.how, is_left, other, wanted, before)
    return None if needed is None else solved(inner, leaf, needed, numbers, old)


def operand(how: str, is_left: bool, other: int, wanted: int, before: int | float) -> int | None:
    """One operand of an operation, from the other one and the result."""
    match how, is_left:
        case "add", _:
            return wanted - other
        case "sub", True:
            return wanted + other
        case "sub", False:
            return other - wanted
        case "mul", _:
            return wanted // other if other and wanted % other == 0 else None
        case "floordiv", True:
            return wanted * other + int(before) % other if other > 0 else None
        case "floordiv", False:
            return other // wanted if wanted > 0 else None
    return None
