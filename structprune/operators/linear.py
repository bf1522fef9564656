"""Operators that multiply and sum: linear layers, convolutions, matrix products."""

from structprune.algebra.notation import parse
from structprune.graph.graph import Op
from structprune.graph.operator import Meeting, Operand, contract, multilinear, rule

multilinear("linear", "... i, o i, o -> ... o")
multilinear("linear_transposed", "... i, i o, o -> ... o")
multilinear("bilinear", "... i, ... j, o i j, o -> ... o", factors=3)

CONVOLUTION = "(g i) [h w], (g o) i [kh kw], (g o) -> (g o) [y x]"
TRANSPOSED = "(g i) [h w], (g i) o [kh kw], (g o) -> (g o) [y x]"
# A window of one place, moved by one: the positions do not meet, and may be a width themselves (token mixing).
BY_POSITION = "(g i) ..., (g o) i [kh kw], (g o) -> (g o) ..."
BATCHED = {text: parse(f"b {text}".replace("-> ", "-> b ")) for text in (CONVOLUTION, TRANSPOSED, BY_POSITION)}


def convolution(text: str, op: Op, x: Operand, weight: Operand, bias: Operand | None, **sizes: int) -> Meeting:
    notation = BATCHED[text] if len(x.axes) == len(weight.axes) else parse(text)
    return contract(notation, 2, op, (x, weight, bias), {"g": int(str(op.attributes["groups"])), **sizes})


@rule("conv")
def conv(op: Op, x: Operand, weight: Operand, bias: Operand | None = None) -> Meeting:
    """y[g o] = sum over i and the window of x[g i] * w[g o, i]"""
    text = BY_POSITION if op.attributes.get("is_by_position") else CONVOLUTION
    return convolution(text, op, x, weight, bias, i=weight.shape[1])


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
