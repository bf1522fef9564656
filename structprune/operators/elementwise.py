"""Operators that treat every position alike, with broadcasting."""

from typing import cast

from structprune.algebra.axis import ONE, Axis
from structprune.graph.graph import Op
from structprune.graph.operator import Meeting, Operand, rule
from structprune.operators.zero import Zero


@rule("pointwise")
def pointwise(op: Op, *operands: Operand) -> Meeting:
    """y[...] = f(a[...], b[...], ...)

    `zero` tells which zeros among the operands make f zero.
    """
    fact = cast(Zero, op.attributes["zero"])
    rank = len(op.outputs[0].shape)
    meeting = Meeting([], [])
    axes: list[Axis] = []
    zero: list[bool] = []
    poles: list[bool] = []
    for position in range(rank):
        axis: Axis = ONE
        marks: list[bool] = []
        infinite: list[bool] = []
        for operand in operands:
            index = position - (rank - len(operand.axes))
            if index < 0 or operand.axes[index].size == 1:
                marks.append(False)
                continue
            marks.append(operand.zero[index])
            infinite.append(bool(operand.poles) and operand.poles[index])
            if axis is ONE:
                axis = operand.axes[index]
            else:
                meeting.equal.append((axis, operand.axes[index]))
        axes.append(axis)
        zero.append(fact.holds(marks, infinite))
        poles.append(fact.has_pole(marks) or any(infinite))
        if poles[-1]:
            meeting.singular.append(axis)
    meeting.outputs = [tuple(axes) for _ in op.outputs]
    meeting.zero = [tuple(zero) for _ in op.outputs]
    meeting.poles = [tuple(poles) for _ in op.outputs] if any(poles) else []
    return meeting


@rule("prelu")
def prelu(op: Op, x: Operand, weight: Operand) -> Meeting:
    """y[b, c, ...] = max(x, 0) + w[c] min(x, 0)"""
    meeting = Meeting([x.axes], [x.zero])
    if weight.axes and weight.axes[0].size != 1:
        meeting.equal.append((x.axes[1], weight.axes[0]))
    return meeting


@rule("quantize")
def quantize(op: Op, x: Operand, scale: Operand | None = None, zero_point: Operand | None = None) -> Meeting:
    """y[..., c, ...] = x[..., c, ...] / scale[c] + zero_point[c], or back

    keeps_zero: what stands for zero stays so, since what reads it has the same zero point.
    """
    keeps_zero = bool(op.attributes.get("keeps_zero", True))
    meeting = Meeting([x.axes], [tuple(keeps_zero and each for each in x.zero)])
    for each in (scale, zero_point):
        if each is not None and each.shape not in ((), (1,)):
            meeting.equal.append((x.axes[int(str(op.attributes["axis"]))], each.axes[0]))
    return meeting


@rule("write")
def write(op: Op, target: Operand, *sources: Operand) -> Meeting:
    """target[...] = source[...], in place"""
    meeting = pointwise(op, target, *sources)
    meeting.outputs = [target.axes]
    return meeting
