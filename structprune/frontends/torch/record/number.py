"""Whole numbers that know where they come from.

While a model is recorded, what its objects hold and the sizes of its tensors are `Number`s: `torch.SymInt`s whose
node carries an expression. They behave as the `int`s that they stand for, pass through torch to the recorder, and
take note of what the code does with them besides: comparisons, and conversions that lose the expression.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

import numpy as np
import torch

from structprune.frontends.torch.record.expression import DEEPEST, Expression, Term

# Nodes have a method of the name `str`.
Text = str
Function = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The code compared two numbers."""

    left: Expression
    sign: str
    right: Expression
    answer: bool
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        return f"{self.left} {self.sign} {self.right}"


@dataclass(slots=True)
class Ledger:
    """What became of the numbers of one recording."""

    # What torch converted to plain numbers since the last operator: it has no place for a number with an expression.
    converted: list[tuple[Expression, int | float]] = field(default_factory=list)
    # By the code and the place in it.
    compared: dict[tuple[CodeType, int, str], Comparison] = field(default_factory=dict)
    # What the code turned into plain whole numbers, and into plain floats.
    integers: list[tuple[Expression, int]] = field(default_factory=list)
    floats: list[tuple[Expression, float]] = field(default_factory=list)
    # What the code wanted as a key of a dict.
    unhashed: list[Expression] = field(default_factory=list)

    def compare(self, left: Expression, sign: str, right: Expression, answer: bool, frame: FrameType) -> None:
        place = frame.f_code, frame.f_lasti, sign
        if place not in self.compared or self.compared[place].answer != answer:
            file, line = frame.f_code.co_filename, frame.f_lineno
            self.compared[place] = Comparison(left, sign, right, answer, file, line)


class Node:
    """What torch asks of a symbolic number."""

    __slots__ = ("expression", "ledger", "value")

    def __init__(self, expression: Expression, value: int | float | bool, ledger: Ledger) -> None:
        self.expression = expression
        self.value = value
        self.ledger = ledger

    def is_int(self) -> bool:
        return type(self.value) is int

    def is_float(self) -> bool:
        return type(self.value) is float

    def is_bool(self) -> bool:
        return type(self.value) is bool

    def is_nested_int(self) -> bool:
        return False

    def is_symbolic(self) -> bool:
        return True

    def is_constant(self) -> bool:
        return False

    def has_hint(self) -> bool:
        return True

    def maybe_as_int(self) -> None:
        return None

    def nested_int(self) -> None:
        return None

    def str(self) -> Text:
        return str(self.value)

    def _graph_repr(self) -> Text:
        return str(self.value)

    def clone(self) -> Node:
        return self

    def int_(self) -> int:
        self.ledger.integers.append((self.expression, int(self.value)))
        return int(self.value)

    def bool_(self) -> bool:
        return bool(self.value)

    def guard_int(self, file: Text, line: int) -> int:
        self.ledger.converted.append((self.expression, int(self.value)))
        return int(self.value)

    def guard_float(self, file: Text, line: int) -> float:
        self.ledger.converted.append((self.expression, float(self.value)))
        return float(self.value)

    def guard_bool(self, file: Text, line: int) -> bool:
        return bool(self.value)

    def wrap_int(self, number: int) -> Node:
        return Node(number, number, self.ledger)

    def wrap_float(self, number: float) -> Node:
        return Node(number, number, self.ledger)

    def wrap_bool(self, number: bool) -> Node:
        return Node(number, number, self.ledger)

    expect_true = expect_size = guard_size_oblivious = guard_bool
    guard_or_false = guard_or_true = guard_bool

    def statically_known_true(self, file: Text, line: int) -> bool:
        """Never: a slice that takes all of an axis here is recorded too, as it may take a part elsewhere."""
        return False

    def sym_float(self) -> Node:
        return self._made("float", float(self.value), (self,))

    def sym_not(self) -> Node:
        return Node(not self.value, not self.value, self.ledger)

    def _made(self, how: Text, value: int | float, operands: tuple[Node, ...]) -> Node:
        return Node(Term(how, tuple(each.expression for each in operands)), value, self.ledger)


def _operation(how: str, function: Callable[..., Any]) -> Callable[..., Node]:
    def method(self: Node, *others: Node) -> Node:
        return self._made(how, function(self.value, *(each.value for each in others)), (self, *others))

    return method


def _comparison(function: Callable[[Any, Any], bool]) -> Callable[[Node, Node], Node]:
    def method(self: Node, other: Node) -> Node:
        answer = bool(function(self.value, other.value))
        return Node(answer, answer, self.ledger)

    return method


for _name, _how in (
    *((each, each) for each in ("add", "sub", "mul", "floordiv", "mod", "pow", "neg", "truediv")),
    ("int_floordiv", "floordiv"),
    ("int_truediv", "truediv"),
    ("float_truediv", "truediv"),
    ("pow_by_natural", "pow"),
    ("float_pow", "pow"),
):
    setattr(Node, _name, _operation(_how, getattr(operator, _how)))
_ROUNDING: dict[str, Function] = {"ceil": math.ceil, "floor": math.floor, "round": round, "trunc": math.trunc}
_EXTREMES: dict[str, Function] = {"min": min, "max": max}
for _name, _function in _ROUNDING.items():
    setattr(Node, _name, _operation(_name, _function))
for _name, _function in _EXTREMES.items():
    setattr(Node, f"sym_{_name}", _operation(_name, _function))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Node, _name, _comparison(getattr(operator, _name)))
for _name in ("and", "or"):
    for _alias in (f"sym_{_name}", f"{_name}_"):
        setattr(Node, _alias, _comparison(getattr(operator, f"{_name}_")))


# -- in Python -------------------------------------------------------------------------------------


def plain(number: Any) -> Any:
    """The int or float that a number stands for."""
    node: Any = getattr(number, "node", None)
    if isinstance(number, np.integer | np.floating):
        return number.item()
    return node.value if isinstance(node, Node) else number


def expression_of(number: Any) -> Expression:
    node = getattr(number, "node", None)
    return node.expression if isinstance(node, Node) else plain(number)


def is_number(other: Any) -> bool:
    return isinstance(other, int | float | torch.SymInt | torch.SymFloat | np.integer | np.floating)


def result(how: str, value: Any, operands: tuple[Any, ...], ledger: Ledger) -> Any:
    """A number with its expression; a plain one where that grew too deep or there is no such number."""
    term = Term(how, tuple(map(expression_of, operands)))
    if type(value) is int:
        if term.depth <= DEEPEST:
            return Number(Node(term, value, ledger))
        ledger.integers.append((term, value))
    elif type(value) is float:
        if term.depth <= DEEPEST:
            return Real(Node(term, value, ledger))
        ledger.floats.append((term, value))
    return value


def _binary(how: str, function: Callable[[Any, Any], Any], is_reflected: bool) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        if not is_number(other):
            return NotImplemented
        operands = (other, self) if is_reflected else (self, other)
        return result(how, function(*map(plain, operands)), operands, self.node.ledger)

    return method


def _unary(how: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, *more: Any) -> Any:
        return result(how, function(plain(self), *more), (self, *more), self.node.ledger)

    return method


def _compared(sign: str, function: Callable[[Any, Any], bool]) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        if not is_number(other):
            return NotImplemented
        answer = bool(function(plain(self), plain(other)))
        ends = expression_of(self), expression_of(other)
        self.node.ledger.compare(ends[0], sign, ends[1], answer, sys._getframe(1))
        return answer

    return method


class Numeric:
    """What `Number` and `Real` do alike."""

    node: Any

    def __repr__(self) -> str:
        return repr(plain(self))

    def __str__(self) -> str:
        return str(plain(self))

    def __format__(self, how: str) -> str:
        return format(plain(self), how)

    def __bool__(self) -> bool:
        answer = bool(plain(self))
        self.node.ledger.compare(self.node.expression, "!=", 0, answer, sys._getframe(1))
        return answer

    def __float__(self) -> float:
        value = float(plain(self))
        self.node.ledger.floats.append((self.node.expression, value))
        return value

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __deepcopy__(self, memo: Any) -> Any:
        return plain(self)

    def __copy__(self) -> Any:
        return plain(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return type(plain(self)), (plain(self),)

    def __hash__(self) -> int:
        """No key of a dict: what is kept under it would outlive the recording."""
        self.node.ledger.unhashed.append(self.node.expression)
        raise TypeError(f"unhashable type: {type(self).__name__!r}")


for _name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "pow"):
    setattr(Numeric, f"__{_name}__", _binary(_name, getattr(operator, _name), False))
    setattr(Numeric, f"__r{_name}__", _binary(_name, getattr(operator, _name), True))
for _name, _sign in (("eq", "=="), ("ne", "!="), ("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">=")):
    setattr(Numeric, f"__{_name}__", _compared(_sign, getattr(operator, _name)))
_UNARY: dict[str, Function] = {**_ROUNDING, "neg": operator.neg, "abs": abs}
for _name, _function in _UNARY.items():
    setattr(Numeric, f"__{_name}__", _unary(_name, _function))


class Number(Numeric, torch.SymInt):
    """A whole number with its expression."""

    def __init__(self, node: Node) -> None:
        self.node = node

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """Code that asks whether it was given an int goes the way that it goes with one."""
        return int

    def __index__(self) -> int:
        return self.node.int_()  # type: ignore[no-any-return]

    __int__ = __index__

    def __invert__(self) -> int:
        return ~int(self)

    def bit_length(self) -> int:
        return int(self).bit_length()

    def is_integer(self) -> bool:
        return True

    real = property(lambda self: self)
    numerator = real


for _name, _how in (("lshift", "lshift"), ("rshift", "rshift"), ("and", "and"), ("or", "or"), ("xor", "xor")):
    _function = getattr(operator, {"and": "and_", "or": "or_"}.get(_name, _name))
    setattr(Number, f"__{_name}__", _binary(_how, _function, False))
    setattr(Number, f"__r{_name}__", _binary(_how, _function, True))


class Real(Numeric, torch.SymFloat):
    """A float made from whole numbers."""

    def __init__(self, node: Node) -> None:
        self.node = node

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return float

    def __int__(self) -> int:
        value = int(self.node.value)
        self.node.ledger.integers.append((Term("trunc", (self.node.expression,)), value))
        return value

    def is_integer(self) -> bool:
        return float(self.node.value).is_integer()
