"""Zero facts: for each pointwise operator, which zeros among its operands make its result zero.

This is algebra on finite numbers. What is not in the table is not zero, which is always sound. A factor
annihilates only what is finite: where an operand comes out of an operator with a pole at zero (`log`, `1 / x`),
zero times it is not called zero.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Stands among the arguments of an operator for a tensor; numbers stand for themselves.
OPERAND = object()


@dataclass(frozen=True, slots=True)
class Zero:
    """Zero where all operands of one of the sets in `where` are, unless one of `unless` is zero too.

    poles: operands whose zero gives infinity, or nothing at all.
    """

    where: tuple[frozenset[int], ...] = ()
    unless: frozenset[int] = frozenset()
    poles: frozenset[int] = frozenset()

    def holds(self, marks: Sequence[bool], infinite: Sequence[bool] = ()) -> bool:
        """Whether the result is zero where the marked operands are; `infinite` ones have a pole there."""
        marked = {place for place, mark in enumerate(marks) if mark}
        return not any(infinite) and not marked & self.unless and any(need <= marked for need in self.where)

    def has_pole(self, marks: Sequence[bool]) -> bool:
        return any(marks[place] for place in self.poles if place < len(marks))


NEVER = Zero()


def all_of(count: int) -> Zero:
    """Zero where all operands are."""
    return Zero((frozenset(range(count)),))


# f(0) = 0, whatever the further parameters.
ODD_OR_FLAT = (
    "abs arctan arctanh arcsin arcsinh asin asinh atan atanh ceil celu conj_physical _conj_physical deg2rad elu erf "
    "erfinv expm1 fix floor frac gelu hardshrink hardswish isinf isnan isneginf isposinf leaky_relu log1p mish "
    "nan_to_num neg negative positive prelu rad2deg relu relu6 round rrelu selu sgn sign silu sin sinh softshrink "
    "softsign special_bessel_j1 special_entr special_i1 special_i1e special_modified_bessel_i1 sqrt square swish "
    "tan tanh thresholded_relu trunc"
)
# In which sets of arguments zeros give a zero: `0 | 1` where either of two is, `0 1` where both are.
TERMS = {
    **dict.fromkeys(ODD_OR_FLAT.split(), "0"),
    **dict.fromkeys(("mul", "multiply", "logical_and", "bitwise_and", "lcm"), "0 | 1"),
    **dict.fromkeys(("add", "sub", "subtract", "rsub", "hypot", "gcd", "heaviside", "nextafter", "complex"), "0 1"),
    **dict.fromkeys(("logical_or", "bitwise_or", "logical_xor", "bitwise_xor", "__xor__", "__ixor__"), "0 1"),
    **dict.fromkeys(("copysign", "xlogy", "ldexp", "polar", "bitwise_left_shift", "bitwise_right_shift"), "0"),
    **dict.fromkeys(("__lshift__", "__ilshift__", "__rshift__", "__irshift__"), "0"),
    # x log(1 + y): the logarithm is zero too.
    "special_xlog1py": "0 | 1",
    **dict.fromkeys(("div", "divide", "true_divide", "fmod", "remainder"), "0 unless 1"),
    "addcmul": "0 1 | 0 2",
    "addcdiv": "0 1 unless 2",
    "lerp": "0 1 | 0 2",
    # Where the condition is zero (false), the second choice is taken; a mask of zeros fills nothing.
    "where": "1 2 | 0 2",
    "masked_fill": "0 1 | 0 2",
    "copy": "1",
}
POLES = {
    **dict.fromkeys(("log", "log2", "log10", "logit", "lgamma", "digamma", "reciprocal", "rsqrt"), 0),
    **dict.fromkeys(("special_ndtri", "special_modified_bessel_k0", "special_modified_bessel_k1"), 0),
    **dict.fromkeys(("div", "divide", "true_divide", "fmod", "remainder", "xlogy"), 1),
    "addcdiv": 2,
}


def clamp(x: Any, low: Any = None, high: Any = None) -> Any:
    x = x if low is None else np.maximum(x, low)
    return x if high is None else np.minimum(x, high)


def power(base: Any, exponent: Any) -> Any:
    """0 ** e is zero for e above zero alone."""
    return np.where(np.asarray(exponent) > 0, base, 1.0)


# What an operator gives where all of its tensors are zero, given its numbers.
AT_ZERO: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("minimum", "fmin", "min", "clamp_max"), np.minimum),
    **dict.fromkeys(("maximum", "fmax", "max", "clamp_min"), np.maximum),
    **dict.fromkeys(("clamp", "clip", "hardtanh"), clamp),
    "gt": operator.gt,
    "ge": operator.ge,
    "lt": operator.lt,
    "le": operator.le,
    "eq": operator.eq,
    "ne": operator.ne,
    **dict.fromkeys(("pow", "float_power"), power),
    "threshold": lambda x, limit, value: np.where(np.asarray(x) > limit, x, value),
    # alpha x + beta, between 0 and 1
    "linear_sigmoid": lambda x, alpha, beta: np.clip(beta, 0, 1),
    # x - bias above a limit, x + bias below minus the limit
    "shrink": lambda x, bias, limit: np.where(np.asarray(limit) < 0, bias, x),
    "sum": lambda *each: sum(each),
}


def fact(name: str, arguments: Sequence[Any], operands: Sequence[int] | None = None) -> Zero:
    """What is known of an operator: its arguments are numbers, None, or OPERAND.

    operands: the places of its tensors among the arguments, those of known numbers too; the fact counts in these.
    """
    places = [k for k, each in enumerate(arguments) if each is OPERAND] if operands is None else list(operands)
    number = {place: k for k, place in enumerate(places)}
    tensors = frozenset(number[place] for place in places if arguments[place] is OPERAND)
    pole = POLES.get(name)
    poles = frozenset((number[pole],)) if pole in number else frozenset()
    if name in AT_ZERO:
        values = [0 if each is OPERAND else each for each in arguments]
        is_zero = is_number(*values) and not np.any(AT_ZERO[name](*values))
        if AT_ZERO[name] is power:
            # The base alone counts, and the exponent must be a number.
            is_zero &= arguments[1] is not OPERAND
            poles = tensors & {0} if is_number(arguments[1]) and np.any(np.asarray(arguments[1]) < 0) else poles
        return Zero((tensors,) if is_zero and tensors else (), poles=poles)
    text, _, void = TERMS.get(name, "").partition(" unless ")
    found = [needed(term.split(), arguments, number) for term in text.split(" | ") if term]
    unless = frozenset(number[int(place)] for place in void.split() if int(place) in number)
    if void and any(is_number(arguments[int(place)]) and not np.all(arguments[int(place)]) for place in void.split()):
        return NEVER
    return Zero(tuple(need for need in found if need), unless, poles)


def needed(term: Sequence[str], arguments: Sequence[Any], number: dict[int, int]) -> frozenset[int] | None:
    """The tensors of one set of arguments; None where a number among them is not zero."""
    tensors = set()
    for place in map(int, term):
        given = arguments[place] if place < len(arguments) else None
        if given is OPERAND:
            tensors.add(number[place])
        elif not is_number(given) or given is None or np.any(given):
            return None
    return frozenset(tensors)


def is_number(*values: Any) -> bool:
    return all(value is None or isinstance(value, bool | int | float | np.ndarray | np.generic) for value in values)
