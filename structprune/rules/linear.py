"""Operators that multiply and sum: linear layers, convolutions, matrix products."""

from structprune.graph import Op
from structprune.notation import parse
from structprune.rule import Meeting, Operand, contract, multilinear, rule

multilinear("linear", "... i, o i, o -> ... o")
multilinear("bilinear", "... i, ... j, o i j, o -> ... o", factors=3)

CONVOLUTION = parse("b (g i) [h w], (g o) i [kh kw], (g o) -> b (g o) [y x]")
TRANSPOSED = parse("b (g i) [h w], (g i) o [kh kw], (g o) -> b (g o) [y x]")


@rule("conv")
def conv(op: Op, x: Operand, weight: Operand, bias: Operand | None = None) -> Meeting:
    """y[g o] = sum over i and the window of x[g i] * w[g o, i]"""
    groups = int(str(op.attributes["groups"]))
    return contract(CONVOLUTION, 2, op, (x, weight, bias), {"g": groups, "i": weight.shape[1]})


@rule("conv_transposed")
def conv_transposed(op: Op, x: Operand, weight: Operand, bias: Operand | None = None) -> Meeting:
    """y[g o] = sum over i and the window of x[g i] * w[g i, o]"""
    groups = int(str(op.attributes["groups"]))
    meeting = contract(TRANSPOSED, 2, op, (x, weight, bias), {"g": groups, "o": weight.shape[1]})
    # Every input position meets every weight once, wherever it lands.
    meeting.multiplied = [(*x.axes, *weight.axes[1:])]
    return meeting


@rule("einsum")
def einsum(op: Op, *operands: Operand | None) -> Meeting:
    """Any product of tensors that the operator's own notation describes."""
    factors = int(str(op.attributes.get("factors", len(operands))))
    return contract(parse(str(op.attributes["notation"])), factors, op, operands)
