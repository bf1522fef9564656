"""Operators that put tensors one after another along an axis, or take one apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from structprune.algebra.axis import Axis, Product, Sum, fresh
from structprune.graph.constant import UNKNOWN, Known, Numbers, is_small
from structprune.graph.graph import Op
from structprune.graph.operator import Meeting, Operand, Operator, Resized, operator


@operator
@dataclass(frozen=True, slots=True)
class Concat(Operator):
    """One after another along one axis, the same along the others."""

    kinds = ("concat",)
    dim: int

    def meet(self, op: Op, *operands: Operand) -> Meeting:
        first = operands[0]
        meeting = Meeting([], [])
        for operand in operands[1:]:
            pairs = zip(first.axes, operand.axes, strict=True)
            meeting.equal.extend(pair for k, pair in enumerate(pairs) if k != self.dim)
        axes = list(first.axes)
        axes[self.dim] = Sum(tuple(operand.axes[self.dim] for operand in operands))
        meeting.outputs = [tuple(axes)]
        meeting.zero = [tuple(all(operand.zero[k] for operand in operands) for k in range(len(axes)))]
        return meeting

    def constants(self, op: Op, given: Sequence[Known | None], numbers: Numbers) -> Sequence[Known | None]:
        if not any(given):
            return ()
        parts = [each or UNKNOWN.reshaped((1,) * len(op.outputs[0].shape)) for each in given]
        across = np.broadcast_shapes(*(each.taken(self.dim, [0]).mask.shape for each in parts))
        shapes = [
            (*across[: self.dim], value.shape[self.dim], *across[self.dim + 1 :])
            for value in (*op.inputs, op.outputs[0])
            if value is not None
        ]
        if not is_small(shapes.pop()):
            return ()
        wide = [part.spread(shape) for part, shape in zip(parts, shapes, strict=True)]
        values, mask = ([each.values for each in wide], [each.mask for each in wide])
        return (Known(np.concatenate(values, self.dim), np.concatenate(mask, self.dim)),)


@operator
@dataclass(frozen=True, slots=True)
class Split(Operator):
    """The parts of one axis, each a tensor of its own."""

    kinds = ("split",)
    takes_parts = True
    dim: int
    sizes: tuple[int, ...]

    def meet(self, op: Op, x: Operand) -> Meeting:
        dim = self.dim
        parts = [fresh(size) for size in self.sizes]
        meeting = Meeting([], [x.zero for _ in parts], [(x.axes[dim], Sum(tuple(parts)))])
        meeting.outputs = [(*x.axes[:dim], part, *x.axes[dim + 1 :]) for part in parts]
        return meeting

    def resized(self, op: Op, new: Resized) -> Split:
        return replace(self, sizes=tuple(new.shape(value)[self.dim] for value in op.outputs))

    def constants(self, op: Op, given: Sequence[Known | None], numbers: Numbers) -> Sequence[Known | None]:
        ends = np.cumsum(self.sizes)
        parts = zip(self.sizes, ends, strict=True)
        return [given[0] and given[0].taken(self.dim, np.arange(end - size, end)) for size, end in parts]


def even_parts(size: int, count: int) -> list[int]:
    """The parts that are made when only their number is told."""
    step = -(-size // count)
    return [min(step, size - start) for start in range(0, size, step)]


@operator
@dataclass(frozen=True, slots=True)
class Glu(Operator):
    """y = a * sigmoid(b), a and b the halves of one axis of x"""

    kinds = ("glu",)
    dim: int

    def meet(self, op: Op, x: Operand) -> Meeting:
        dim = self.dim
        half = fresh(x.axes[dim].size // 2)
        axes = (*x.axes[:dim], half, *x.axes[dim + 1 :])
        return Meeting([axes], [x.zero], [(x.axes[dim], Sum((half, half)))])


@operator
@dataclass(frozen=True, slots=True)
class Unbind(Operator):
    """Every index of one axis as a tensor of its own."""

    kinds = ("unbind",)
    dim: int

    def meet(self, op: Op, x: Operand) -> Meeting:
        dim = self.dim
        axes, zero = (*x.axes[:dim], *x.axes[dim + 1 :]), (*x.zero[:dim], *x.zero[dim + 1 :])
        meeting = Meeting([axes for _ in op.outputs], [zero for _ in op.outputs])
        meeting.frozen.append((x.axes[dim], f"{op.name} takes it apart"))
        return meeting


@operator
@dataclass(frozen=True, slots=True)
class Stack(Operator):
    """Tensors side by side along a new axis."""

    kinds = ("stack",)
    dim: int

    def meet(self, op: Op, *operands: Operand) -> Meeting:
        dim, first = self.dim, operands[0]
        meeting = Meeting([], [])
        for operand in operands[1:]:
            meeting.equal.extend(zip(first.axes, operand.axes, strict=True))
        side = fresh(len(operands))
        meeting.frozen.append((side, f"{op.name} makes it"))
        zero = tuple(all(operand.zero[k] for operand in operands) for k in range(len(first.axes)))
        meeting.outputs = [(*first.axes[:dim], side, *first.axes[dim:])]
        meeting.zero = [(*zero[:dim], False, *zero[dim:])]
        return meeting


@operator
@dataclass(frozen=True, slots=True)
class Repeat(Operator):
    """Copies: `(r n)` when the whole axis is tiled, `(n r)` when each entry is repeated; new axes come first."""

    kinds = ("repeat",)
    times: tuple[int, ...]
    is_tiled: bool = True

    def meet(self, op: Op, x: Operand) -> Meeting:
        lead = len(self.times) - len(x.axes)
        axes: list[Axis] = [fresh(count) for count in self.times[:lead]]
        zero = [False] * lead
        for axis, is_zero, count in zip(x.axes, x.zero, self.times[lead:], strict=True):
            copies = fresh(count)
            axes.append(Product((copies, axis) if self.is_tiled else (axis, copies)))
            # An index of the copies is one whole copy, and that is not zero where x has lost an index.
            zero.append(is_zero and count == 1)
        return Meeting([tuple(axes)], [tuple(zero)])

    def resized(self, op: Op, new: Resized) -> Repeat:
        (x, *_) = op.inputs
        assert x is not None
        shape = (1,) * (len(self.times) - len(x.shape)) + new.shape(x)
        return replace(self, times=tuple(b // a for b, a in zip(new.shape(op.outputs[0]), shape, strict=True)))
