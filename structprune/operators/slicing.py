"""Operators that take a part of an axis, or put more beside it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from structprune.algebra.axis import ONE, Axis, Product, Sum, fresh, total
from structprune.graph.constant import Known, Numbers
from structprune.graph.graph import Op
from structprune.graph.operator import Meeting, Operand, Operator, Resized, operator


@operator
@dataclass(frozen=True, slots=True)
class Slice(Operator):
    """x[start:end:step] along some axes: the same entry of each block of `step` of them; bounds as given

    partitioned: axes of a stored tensor that slices take apart, every part read; is_exact: the end is a number of
    entries, and no bound that may lie outside.
    """

    kinds = ("slice",)
    takes_parts = True
    dims: tuple[int, ...]
    starts: tuple[int | None, ...]
    ends: tuple[int | None, ...]
    steps: tuple[int, ...]
    partitioned: Collection[int] = ()
    is_exact: bool = False

    def meet(self, op: Op, x: Operand) -> Meeting:
        meeting = Meeting([], [x.zero])
        axes = list(x.axes)
        for dim, start, end, step in zip(self.dims, self.starts, self.ends, self.steps, strict=True):
            bounds = range(x.shape[dim])[start:end:step]
            if step > 0:
                axes[dim] = self.taken(op, meeting, x, dim, bounds)
            elif step == -1 and len(bounds) == x.shape[dim]:
                axes[dim] = fresh(x.shape[dim])
                meeting.picked.append((axes[dim], x.axes[dim], np.array(bounds)))
            else:
                axes[dim] = fresh(len(bounds))
                meeting.frozen += [(axis, f"{op.name} takes some of it backwards") for axis in (x.axes[dim], axes[dim])]
        meeting.outputs = [tuple(axes)]
        return meeting

    def taken(self, op: Op, meeting: Meeting, x: Operand, dim: int, bounds: range) -> Axis:
        axis, count, step = x.axes[dim], len(bounds), bounds.step
        if count == axis.size:
            return axis
        first = bounds.start // step * step
        # The axis may end inside of the last block: what is left of that one stays whole.
        blocks = min(count, (axis.size - first) // step)
        outer, inner = fresh(blocks), fresh(step)
        before, after = fresh(first), fresh(axis.size - first - blocks * step)
        meeting.equal.append((axis, total((before, Product((outer, inner)), after))))
        if step > 1:
            meeting.frozen.append((inner, f"{op.name} takes one of every {step}"))
        if blocks < count:
            meeting.frozen.append((after, f"{op.name} takes one of what is left of {step}"))
        if x.is_parameter and dim not in self.partitioned:
            # What a slice leaves of a parameter is kept: other inputs may read it.
            meeting.frozen.extend((part, f"{op.name} reads a part of a parameter") for part in (before, after))
        return total((outer, *(ONE,) * (count - blocks)))

    def resized(self, op: Op, new: Resized) -> Slice:
        (x,) = op.inputs
        assert x is not None
        starts, ends = list(self.starts), list(self.ends)
        for k, (dim, step) in enumerate(zip(self.dims, self.steps, strict=True)):
            size, after, given, last = x.shape[dim], new.shape(x)[dim], starts[k], ends[k]
            if size == after or step < 0:
                continue
            start, end, _ = slice(given, last, step).indices(size)
            if given is not None:
                # Blocks of `step` entries go or stay as a whole.
                starts[k] = new.before(x, dim, start // step * step) + start % step - (after if given < 0 else 0)
            if last is not None and (self.is_exact or -size <= last < size):
                ends[k] = new.before(x, dim, end) - (after if last < 0 else 0)
        return replace(self, starts=tuple(starts), ends=tuple(ends))

    def constants(self, op: Op, given: Sequence[Known | None], numbers: Numbers) -> Sequence[Known | None]:
        x, told = op.inputs[0], given[0]
        if x is None or told is None:
            return ()
        for dim, start, end, step in zip(self.dims, self.starts, self.ends, self.steps, strict=True):
            told = told.taken(dim, np.arange(x.shape[dim])[start:end:step])
        return (told,)


@operator
@dataclass(frozen=True, slots=True)
class Select(Operator):
    """x[index] along one axis, which disappears; a negative index counts from the end"""

    kinds = ("select",)
    dim: int
    index: int

    def meet(self, op: Op, x: Operand) -> Meeting:
        dim, axis = self.dim, x.axes[self.dim]
        index = self.index % axis.size
        sizes = (index, 1, axis.size - index - 1)
        parts = [fresh(size) for size in sizes if size]
        meeting = Meeting([(*x.axes[:dim], *x.axes[dim + 1 :])], [(*x.zero[:dim], *x.zero[dim + 1 :])])
        meeting.equal.append((axis, Sum(tuple(parts))))
        if x.is_parameter:
            meeting.frozen.extend((part, f"{op.name} reads a part of a parameter") for part in parts)
        return meeting

    def resized(self, op: Op, new: Resized) -> Select:
        (x, *_) = op.inputs
        assert x is not None
        place = new.before(x, self.dim, self.index % x.shape[self.dim])
        return replace(self, index=place if self.index >= 0 else place - new.shape(x)[self.dim])


@operator
@dataclass(frozen=True, slots=True)
class Pad(Operator):
    """Constant entries (before, after) each axis; a negative width cuts."""

    kinds = ("pad",)
    widths: tuple[tuple[int, int], ...]
    is_constant: bool = True
    fills_zero: bool = True

    def adds(self, axis: int) -> bool:
        return self.is_constant and any(self.widths[axis]) and min(self.widths[axis]) >= 0

    def meet(self, op: Op, x: Operand) -> Meeting:
        meeting = Meeting([], [])
        axes: list[Axis] = []
        zero: list[bool] = []
        for k, (axis, is_zero, (before, after)) in enumerate(zip(x.axes, x.zero, self.widths, strict=True)):
            if before == 0 == after:
                axes.append(axis)
                zero.append(is_zero)
            elif self.adds(k):
                axes.append(total((fresh(before), axis, fresh(after))))
                zero.append(is_zero and self.fills_zero)
            else:
                moved = fresh(axis.size + before + after)
                meeting.frozen.extend((each, f"{op.name} mixes its positions") for each in (axis, moved))
                axes.append(moved)
                zero.append(False)
        if not self.fills_zero and any(max(each) > 0 for each in self.widths):
            # What is padded along one axis is not zero at any index of the others either.
            zero = [False] * len(zero)
        meeting.outputs = [tuple(axes)]
        meeting.zero = [tuple(zero)]
        return meeting

    def resized(self, op: Op, new: Resized) -> Pad:
        output = op.outputs[0]
        widths = list(self.widths)
        for k, (before, after) in enumerate(self.widths):
            if self.adds(k):
                left = new.shape(output)[k] - new.before(output, k, output.shape[k] - after)
                widths[k] = new.before(output, k, before), left
        return replace(self, widths=tuple(widths))

    def constants(self, op: Op, given: Sequence[Known | None], numbers: Numbers) -> Sequence[Known | None]:
        """Where numbers are put around x, zero is the only constant; in other modes they are those of x."""
        x = given[0]
        if x is None or any(size > 1 and any(width) for size, width in zip(x.mask.shape, self.widths, strict=True)):
            return ()
        fills = self.is_constant and any(width > 0 for pair in self.widths for width in pair)
        return (x.where((x.values == 0) & self.fills_zero) if fills else x,)
