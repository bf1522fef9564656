"""Sums, means and extremes over axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from structprune.algebra.axis import ONE
from structprune.graph.constant import Known, Numbers
from structprune.graph.graph import Op
from structprune.graph.operator import Meeting, Operand, Operator, operator

How = Literal["sum", "mean", "extreme"]


@operator
@dataclass(frozen=True, slots=True)
class Reduce(Operator):
    """y[...] = f over the reduced axes of x[...]

    how: "sum" adds nothing for a zero, "mean" divides by the count, "extreme" may choose anything;
    keeps_zero: f(0, 0, ...) = 0; keeps_constant: f(c, c, ...) = c; positions: the outputs that say where something was
    found.
    """

    kinds = ("reduce",)
    axes: tuple[int, ...]
    keeps_axes: bool
    how: How
    keeps_zero: bool = True
    positions: tuple[int, ...] = ()
    keeps_constant: bool = False

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

    def constants(self, op: Op, given: Sequence[Known | None], numbers: Numbers) -> Sequence[Known | None]:
        x = given[0]
        if x is None or any(x.mask.shape[k] != 1 for k in self.axes):
            return ()
        told = x if self.keeps_constant else x.where((x.values == 0) & self.keeps_zero)
        left = [size for k, size in enumerate(x.mask.shape) if self.keeps_axes or k not in self.axes]
        return [None if k in self.positions else told.reshaped(left) for k in range(len(op.outputs))]
