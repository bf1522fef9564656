"""Operators that treat every position alike, with broadcasting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from structprune.algebra.axis import ONE, Axis
from structprune.graph.constant import UNKNOWN, Known, Numbers, is_small, known
from structprune.graph.graph import Op
from structprune.graph.operator import Meeting, Operand, Operator, operator
from structprune.operators.zero import NEVER, Zero


@operator
@dataclass(frozen=True, slots=True)
class Pointwise(Operator):
    """y[...] = f(a[...], b[...], ...)

    `zero` tells which zeros among the operands make f zero; draws: f gives other numbers each time;
    adds: f is the sum of its operands.
    """

    kinds = ("pointwise",)
    zero: Zero = NEVER
    draws: bool = False
    adds: bool = False

    def meet(self, op: Op, *operands: Operand) -> Meeting:
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
            zero.append(self.zero.holds(marks, infinite))
            poles.append(self.zero.has_pole(marks) or any(infinite))
            if poles[-1]:
                meeting.singular.append(axis)
        meeting.outputs = [tuple(axes) for _ in op.outputs]
        meeting.zero = [tuple(zero) for _ in op.outputs]
        meeting.poles = [tuple(poles) for _ in op.outputs] if any(poles) else []
        return meeting

    def constants(self, op: Op, given: Sequence[Known | None], numbers: Numbers) -> Sequence[Known | None]:
        """Where all operands are known, f of them; zero where algebra says so of those that are."""
        present = [each or UNKNOWN for each in given]
        if not is_small(*(each.mask.shape for each in present)):
            return ()
        is_told = reduce(np.logical_and, (each.mask for each in present), np.asarray(True))
        may_run = is_told.any() and not self.draws and len(op.outputs) == 1
        found = numbers.run(op, [each.values for each in present]) if may_run else None
        result = UNKNOWN if found is None else known(found, is_told)
        for places in self.zero.where if not self.zero.unless else ():
            is_zero = reduce(np.logical_and, (present[place].is_zero for place in places))
            result = known(result.values, result.mask | is_zero)
        rank = len(op.outputs[0].shape)
        return [result.reshaped((1,) * (rank - result.mask.ndim) + result.mask.shape) for _ in op.outputs]


@operator
@dataclass(frozen=True, slots=True)
class Write(Pointwise):
    """target[...] = f(target[...], source[...]), in place"""

    kinds = ("write",)

    def meet(self, op: Op, *operands: Operand) -> Meeting:
        meeting = Pointwise.meet(self, op, *operands)
        meeting.outputs = [operands[0].axes]
        return meeting


@operator
@dataclass(frozen=True, slots=True)
class Prelu(Operator):
    """y[b, c, ...] = max(x, 0) + w[c] min(x, 0)"""

    kinds = ("prelu",)

    def meet(self, op: Op, x: Operand, weight: Operand) -> Meeting:
        meeting = Meeting([x.axes], [x.zero])
        if weight.axes and weight.axes[0].size != 1:
            meeting.equal.append((x.axes[1], weight.axes[0]))
        return meeting

    def constants(self, op: Op, given: Sequence[Known | None], numbers: Numbers) -> Sequence[Known | None]:
        x, weight = given
        if x is None or weight is None:
            return ()
        slope = weight.reshaped([-1 if k == min(1, x.mask.ndim - 1) else 1 for k in range(x.mask.ndim)])
        if not is_small(x.mask.shape, slope.mask.shape):
            return ()
        values = np.maximum(x.values, 0) + slope.values * np.minimum(x.values, 0)
        return (known(values, x.mask & (slope.mask | (x.values >= 0))),)


@operator
@dataclass(frozen=True, slots=True)
class Quantize(Operator):
    """y[..., c, ...] = x[..., c, ...] / scale[c] + zero_point[c], or back

    keeps_zero: what stands for zero stays so, since what reads it has the same zero point.
    """

    kinds = ("quantize",)
    axis: int
    keeps_zero: bool = True

    def meet(
        self, op: Op, x: Operand, scale: Operand | None = None, zero_point: Operand | None = None
    ) -> Meeting:
        meeting = Meeting([x.axes], [tuple(self.keeps_zero and each for each in x.zero)])
        for each in (scale, zero_point):
            if each is not None and each.shape not in ((), (1,)):
                meeting.equal.append((x.axes[self.axis], each.axes[0]))
        return meeting
