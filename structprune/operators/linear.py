"""Operators that multiply and sum: linear layers, convolutions, matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from structprune.algebra.axis import Mask
from structprune.algebra.notation import Name, names, parse
from structprune.graph.constant import Array, Known, Numbers, Summed, along, known
from structprune.graph.graph import Op
from structprune.graph.operator import Contraction, Meeting, Operand, Operator, Resized, contract, operator

LINEAR, TRANSPOSED_LINEAR = parse("... i, o i, o -> ... o"), parse("... i, i o, o -> ... o")
BILINEAR = parse("... i, ... j, o i j, o -> ... o")
CONVOLUTION = "(g i) [h w], (g o) i [kh kw], (g o) -> (g o) [y x]"
TRANSPOSED = "(g i) [h w], (g i) o [kh kw], (g o) -> (g o) [y x]"
# A window of one place, moved by one: the positions do not meet, and may be a width themselves (token mixing).
BY_POSITION = "(g i) ..., (g o) i [kh kw], (g o) -> (g o) ..."
BATCHED = {text: parse(f"b {text}".replace("-> ", "-> b ")) for text in (CONVOLUTION, TRANSPOSED, BY_POSITION)}


def shifted(op: Op, given: Sequence[Known | None], axis: int, values: Array, mask: Mask) -> Known | None:
    """Constants along that axis of the results, and the bias."""
    own = along(axis, len(op.outputs[0].shape), values, mask)
    if (*op.inputs, None)[2] is None:
        return own
    if (bias := given[2]) is None:
        return None
    added = along(axis, own.mask.ndim, bias.values, bias.mask)
    return known(own.values + added.values, own.mask & added.mask)


@operator
@dataclass(frozen=True, slots=True)
class Linear(Operator):
    """y[..., o] = sum over i of x[..., i] w[o, i] + b[o]; transposed, of x[..., i] w[i, o]

    Not `is_plain`: sum and bias are each scaled by a number.
    """

    kinds = ("linear", "linear_transposed")
    is_transposed: bool = False
    is_plain: bool = True

    @property
    def kind(self) -> str:
        return self.kinds[self.is_transposed]

    @property
    def contracted(self) -> tuple[Contraction, ...]:
        return (Contraction(-1, 1, 0 if self.is_transposed else 1),)

    def meet(self, op: Op, *operands: Operand | None) -> Meeting:
        return contract(TRANSPOSED_LINEAR if self.is_transposed else LINEAR, 2, op, operands)

    def constants(self, op: Op, given: Sequence[Known | None], numbers: Numbers) -> Sequence[Known | None]:
        """Filters of zeros give their bias."""
        is_zero = numbers.zero_slices(op.inputs[1], int(self.is_transposed))
        if is_zero is None or not is_zero.any() or not self.is_plain:
            return ()
        return (shifted(op, given, -1, np.zeros(len(is_zero)), is_zero),)

    def summed(self, op: Op) -> Summed | None:
        return Summed(-1, 0 if self.is_transposed else 1) if self.is_plain else None


@operator
@dataclass(frozen=True, slots=True)
class Bilinear(Operator):
    """y[..., o] = sum over i and j of x[..., i] z[..., j] w[o, i, j] + b[o]"""

    kinds = ("bilinear",)

    @property
    def contracted(self) -> tuple[Contraction, ...]:
        return (Contraction(-1, 2, 1),)

    def meet(self, op: Op, *operands: Operand | None) -> Meeting:
        return contract(BILINEAR, 3, op, operands)


@operator
@dataclass(frozen=True, slots=True)
class Convolution(Operator):
    """y[g o] = sum over i and the window of x[g i] w[g o, i], grouped and depthwise included

    Transposed, y[g o] = sum over i and the window of x[g i] w[g i, o]. `is_by_position`: a window of one place.
    `has_borders`: zeros stand around x.
    """

    kinds = ("conv", "conv_transposed")
    groups: int = 1
    is_transposed: bool = False
    is_by_position: bool = False
    has_borders: bool = False

    @property
    def kind(self) -> str:
        return self.kinds[self.is_transposed]

    @property
    def contracted(self) -> tuple[Contraction, ...]:
        return (Contraction(1, 1, 0 if self.is_transposed else 1),)

    def meet(self, op: Op, *operands: Operand | None) -> Meeting:
        x, weight, bias = (*operands, None)[:3]
        assert x is not None and weight is not None
        text = TRANSPOSED if self.is_transposed else BY_POSITION if self.is_by_position else CONVOLUTION
        notation = BATCHED[text] if len(x.axes) == len(weight.axes) else parse(text)
        sizes = {"g": self.groups, "o" if self.is_transposed else "i": weight.shape[1]}
        meeting = contract(notation, 2, op, (x, weight, bias), sizes)
        if self.is_transposed:
            # Every input position meets every weight once, wherever it lands.
            meeting.multiplied = [(*x.axes, *weight.axes[1:])]
        return meeting

    def resized(self, op: Op, new: Resized) -> Convolution:
        wide, weight = op.outputs[0] if self.is_transposed else op.inputs[0], op.inputs[1]
        assert wide is not None and weight is not None
        return replace(self, groups=new.shape(wide)[self.channels(op)] // new.shape(weight)[1])

    def constants(self, op: Op, given: Sequence[Known | None], numbers: Numbers) -> Sequence[Known | None]:
        """Filters of zeros give their bias, and one for each channel a constant for a constant."""
        weight = op.inputs[1]
        is_zero = numbers.zero_slices(weight, 0)
        if weight is None or is_zero is None or self.is_transposed or (given[0] is None and not is_zero.any()):
            return ()
        axis, x, values, mask = self.channels(op), given[0], np.zeros(len(is_zero)), is_zero
        is_row = x is not None and x.mask.size == x.mask.shape[axis]
        if x is not None and is_row and self.groups == len(is_zero) and weight.shape[1] == 1:
            constants = x.values.reshape(-1)
            values = constants * numbers.filter_sums(weight)
            # Zeros stand around: zero is the only constant there.
            mask = is_zero | x.mask.reshape(-1) & ((constants == 0) | (not self.has_borders))
        return (shifted(op, given, axis, values, mask),)

    def summed(self, op: Op) -> Summed | None:
        is_even = not self.has_borders and not self.is_transposed
        return Summed(self.channels(op), 0 if self.is_transposed else 1, self.groups, is_even)

    def channels(self, op: Op) -> int:
        """The axis of the channels: there may be no batch before it."""
        x, weight = op.inputs[:2]
        assert x is not None and weight is not None
        return len(x.shape) - len(weight.shape) + 1


@operator
@dataclass(frozen=True, slots=True)
class Einsum(Operator):
    """Any product of tensors that its own notation describes; operands after the factors are added."""

    kinds = ("einsum",)
    notation: str
    factors: int | None = None

    @property
    def contracted(self) -> tuple[Contraction, ...]:
        """Any factor may be the weight; its axes count from the end, behind those that `...` stands for."""
        notation = parse(self.notation)
        written = {name for terms in notation.outputs for name in names(terms)}
        summed = [
            {term.name: at - len(terms) for at, term in enumerate(terms) if isinstance(term, Name)}
            for terms in notation.inputs[: self.factors]
        ]
        return tuple(
            Contraction(other[name], place, own[name])
            for place, own in enumerate(summed)
            for k, other in enumerate(summed)
            for name in own
            if k != place and name in other and name not in written
        )

    def meet(self, op: Op, *operands: Operand | None) -> Meeting:
        return contract(parse(self.notation), len(operands) if self.factors is None else self.factors, op, operands)


def matmul_notation(left: int, right: int) -> str:
    """The notation of a matrix product of tensors of these ranks."""
    if left == 1 and right == 1:
        return "k, k ->"
    if left == 1:
        return "k, ... k j -> ... j"
    if right == 1:
        return "... i k, k -> ... i"
    return "... i k, ... k j -> ... i j"


def einsum_notation(equation: str) -> str | None:
    """An einsum equation in our notation; None where a letter is repeated in one term (a diagonal)."""
    equation = equation.replace(" ", "")
    if "->" not in equation:
        letters = sorted(set(equation) - set(",."))
        once = [letter for letter in letters if equation.count(letter) == 1]
        equation += "->" + ("..." if "..." in equation else "") + "".join(once)
    inputs, output = equation.split("->")
    terms = [*inputs.split(","), output]
    if any(len(set(term.replace(".", ""))) != len(term.replace(".", "")) for term in terms):
        return None

    def spaced(term: str) -> str:
        return " ".join(term.replace("...", ".")).replace(".", "...")

    return ", ".join(map(spaced, terms[:-1])) + " -> " + spaced(output)
