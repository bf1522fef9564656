"""Sums, means and extremes over axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from structprune.algebra.axis import ONE
from structprune.graph.graph import Op
from structprune.graph.operator import Meeting, Operand, Operator, operator

How = Literal["sum", "mean", "extreme"]


@operator
@dataclass(frozen=True, slots=True)
class Reduce(Operator):
    """y[...] = f over the reduced axes of x[...]

    how: "sum" adds nothing for a zero, "mean" divides by the count, "extreme" may choose anything;
    keeps_zero: f(0, 0, ...) = 0; positions: the outputs that say where something was found.
    """

    kinds = ("reduce",)
    axes: tuple[int, ...]
    keeps_axes: bool
    how: How
    keeps_zero: bool = True
    positions: tuple[int, ...] = ()

    def meet(self, op: Op, x: Operand, *rest: Operand) -> Meeting:
        meeting = Meeting([], [])
        for position in self.axes:
            axis = x.axes[position]
            if self.how == "mean":
                meeting.statistics.append(axis)
            elif self.how == "extreme" or not x.zero[position]:
                meeting.frozen.append((axis, f"{op.name} is taken over it"))
        left = [k for k in range(len(x.axes)) if self.keeps_axes or k not in self.axes]
        axes = tuple(ONE if k in self.axes else x.axes[k] for k in left)
        zero = [self.keeps_zero and (k in self.axes or x.zero[k]) for k in left]
        meeting.outputs = [axes for _ in op.outputs]
        meeting.zero = [tuple(each and k not in self.positions for each in zero) for k in range(len(op.outputs))]
        return meeting
