"""Operators that multiply and sum: linear layers, convolutions, matrix products."""

from structprune.graph import Op
from structprune.notation import parse
from structprune.rule import Meeting, Operand, contract, multilinear, rule

multilinear("linear", "... i, o i, o -> ... o")
multilinear("bilinear", "... i, ... j, o i j, o -> ... o", factors=3)

CONVOLUTION = "(g i) [h w], (g o) i [kh kw], (g o) -> (g o) [y x]"
TRANSPOSED = "(g i) [h w], (g i) o [kh kw], (g o) -> (g o) [y x]"
BATCHED = {text: parse(f"b {text}".replace("-> ", "-> b ")) for text in (CONVOLUTION, TRANSPOSED)}


def convolution(text: str, op: Op, x: Operand, weight: Operand, bias: Operand | None, **sizes: int) -> Meeting:
    notation = BATCHED[text] if len(x.axes) == len(weight.axes) else parse(text)
    return contract(notation, 2, op, (x, weight, bias), {"g": int(str(op.attributes["groups"])), **sizes})


@rule("conv")
def conv(op: Op, x: Operand, weight: Operand, bias: Operand | None = None) -> Meeting:
    """y[g o] = sum over i and the window of x[g i] * w[g o, i]"""
    return convolution(CONVOLUTION, op, x, weight, bias, i=weight.shape[1])


@rule("conv_transposed")
def conv_transposed(op: Op, x: Operand, weight: Operand, bias: Operand | None = None) -> Meeting:
    """y[g o] = sum over i and the window of x[g i] * w[g i, o]"""
    meeting = convolution(TRANSPOSED, op, x, weight, bias, o=weight.shape[1])
    # Every input position meets every weight once, wherever it lands.
    meeting.multiplied = [(*x.axes, *weight.axes[1:])]
    return meeting


@rule("einsum")
def einsum(op: Op, *operands: Operand | None) -> Meeting:
    """Any product of tensors that the operator's own notation describes."""
    factors = int(str(op.attributes.get("factors", len(operands))))
    return contract(parse(str(op.attributes["notation"])), factors, op, operands)
