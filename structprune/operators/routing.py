"""Operators that pass axes through: transposes, pools, gathers, softmax, constants, the unknown."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from structprune.algebra.axis import ONE, Axes, Axis, fresh, product
from structprune.algebra.order import Indices
from structprune.graph.constant import Known, Numbers
from structprune.graph.graph import Op, Value
from structprune.graph.operator import Meeting, Operand, Operator, Resized, operator

Source = tuple[int, int]
# For each axis of an output, the (operand, axis) pairs that it equals.
Path = Sequence[Sequence[Source]]


def straight(x: Value) -> list[list[Source]]:
    return [[(0, axis)] for axis in range(len(x.shape))]


@operator
@dataclass(frozen=True, slots=True)
class Route(Operator):
    """Each output axis is an axis of some operand, or a new one.

    path: that of every output; whole: (operand, axis) -> why it must stay whole; keeps_zero: f(0) = 0;
    keeps_constant: of an operand that is one number all over, the result is that number;
    copies: the output axes along which all entries are the same; nonzero: those that are never zero;
    positions: the outputs that hold positions or choices, of which none is zero for being made of zeros;
    singular: the axes of the first operand where zeroing gives 0 / 0.
    """

    kinds = ("route",)
    path: Path
    whole: Mapping[Source, str] = field(default_factory=dict)
    keeps_zero: bool = True
    copies: Collection[int] = ()
    nonzero: Collection[int] = ()
    positions: Collection[int] = ()
    singular: Sequence[int] = ()
    keeps_constant: bool = False

    def meet(self, op: Op, *operands: Operand) -> Meeting:
        meeting = Meeting([], [])
        for (operand, place), why in self.whole.items():
            meeting.frozen.append((operands[operand].axes[place], f"{op.name} {why}"))
        meeting.singular = [operands[0].axes[place] for place in self.singular]
        for number, value in enumerate(op.outputs):
            axes: list[Axis] = []
            zero: list[bool] = []
            for position, (size, sources) in enumerate(zip(value.shape, self.path, strict=True)):
                present = [(i, k) for i, k in sources if operands[i].axes[k].size == size]
                if not present:
                    axis = fresh(size)
                    if position not in self.copies:
                        meeting.frozen.append((axis, f"position in the output of {op.name}"))
                    axes.append(axis)
                    zero.append(False)
                    continue
                first, *others = (operands[i].axes[k] for i, k in present)
                meeting.equal.extend((first, other) for other in others)
                axes.append(first)
                is_kept = self.keeps_zero and position not in self.nonzero and number not in self.positions
                zero.append(is_kept and all(operands[i].zero[k] for i, k in present))
            meeting.outputs.append(tuple(axes))
            meeting.zero.append(tuple(zero))
        return meeting

    def constants(self, op: Op, given: Sequence[Known | None], numbers: Numbers) -> Sequence[Known | None]:
        """Along axes that pass; a zero stays where nothing else does."""
        x, first = (given or (None,))[0], (op.inputs or (None,))[0]
        if x is None or first is None or self.singular or self.nonzero or any(len(each) > 1 for each in self.path):
            return ()
        order = [each[0] if each else None for each in self.path]
        after = op.outputs[0].shape
        passing = {k for k, size in enumerate(first.shape) for at in (order.count((0, k)),) if at == 1
                   and (0, k) not in self.whole and after[order.index((0, k))] == size}  # fmt: skip
        if any(size > 1 and k not in passing for k, size in enumerate(x.mask.shape)):
            return ()
        told = x if self.keeps_constant else x.where((x.values == 0) & self.keeps_zero)
        turned = [each[1] for each in order if each is not None and each[0] == 0 and each[1] in passing]
        rest = [k for k in range(len(first.shape)) if k not in turned]
        shape = [x.mask.shape[each[1]] if each is not None and each[0] == 0 else 1 for each in order]
        found = Known(told.values.transpose(*turned, *rest), told.mask.transpose(*turned, *rest)).reshaped(shape)
        return [None if k in self.positions else found for k in range(len(op.outputs))]


@operator
@dataclass(frozen=True, slots=True)
class Resize(Operator):
    """Positions resized to given sizes; the other axes pass. `along` are the axes that `sizes` are of."""

    kinds = ("resize",)
    axes: Collection[int]
    sizes: tuple[int, ...] = ()
    along: tuple[int, ...] = ()
    keeps_zero: bool = True
    keeps_constant: bool = False

    def meet(self, op: Op, *operands: Operand) -> Meeting:
        return self.route(op).meet(op, *operands)

    def route(self, op: Op) -> Route:
        path: Path = [[] if k in self.axes else [(0, k)] for k in range(len(op.outputs[0].shape))]
        whole = {(0, k): "works on it as a whole" for k in self.axes}
        return Route(path, whole, self.keeps_zero, keeps_constant=self.keeps_constant)

    def constants(self, op: Op, given: Sequence[Known | None], numbers: Numbers) -> Sequence[Known | None]:
        return self.route(op).constants(op, given, numbers)

    def resized(self, op: Op, new: Resized) -> Resize:
        return replace(self, sizes=tuple(new.shape(op.outputs[0])[k] for k in self.along)) if self.sizes else self


def resized_sizes(given: Sequence[int], after: Sequence[int], kept: Collection[int] = (-1,)) -> tuple[int, ...]:
    """New sizes, with the numbers that stand for something else left in place."""
    return tuple(old if old in kept else size for old, size in zip(given, after, strict=True))


@operator
@dataclass(frozen=True, slots=True)
class Expand(Operator):
    """Copies along new axes and axes of one entry; `sizes` as given, of the last axes; `kept` are no sizes"""

    kinds = ("expand",)
    sizes: tuple[int, ...]
    kept: tuple[int, ...] = (-1,)

    def meet(self, op: Op, x: Operand) -> Meeting:
        shape = op.outputs[0].shape
        lead = len(shape) - len(x.shape)
        path = [[] if k < lead or x.shape[k - lead] != size else [(0, k - lead)] for k, size in enumerate(shape)]
        copies = [k for k, sources in enumerate(path) if not sources]
        return Route(path, copies=copies).meet(op, x)

    def resized(self, op: Op, new: Resized) -> Expand:
        after = new.shape(op.outputs[0])
        return replace(self, sizes=resized_sizes(self.sizes, after[len(after) - len(self.sizes) :], self.kept))


@operator
@dataclass(frozen=True, slots=True, eq=False)
class Pick(Operator):
    """y[..., i, ...] = x[..., index[i], ...], along one axis or several

    covers: the output axes that those of the index are, where it is stored and can be made smaller;
    stored: the name of what holds the index; is_gather: the index has the other axes of x too; is_steady: whether
    inputs of other sizes give the same index; shared: the axis of another tensor that was read by the same stored
    index: both lose the same entries.
    """

    kinds = ("pick",)
    indices: Mapping[int, Indices]
    covers: Collection[int] = ()
    stored: str | None = None
    is_gather: bool = False
    is_steady: Callable[[], bool] | None = None
    shared: int | None = None

    @property
    def dim(self) -> int:
        return min(self.indices)

    def meet(self, op: Op, x: Operand, index: Operand | None = None, other: Operand | None = None) -> Meeting:
        meeting = Meeting([], [])
        axes: list[Axis] = []
        zero: list[bool] = []
        for place, (axis, is_zero) in enumerate(zip(x.axes, x.zero, strict=True)):
            if place not in self.indices:
                axes.append(axis)
                zero.append(is_zero)
                continue
            taken = [fresh(size) for size in self.indices[place].shape]
            meeting.picked.append((product(taken), axis, self.indices[place].reshape(-1)))
            axes.extend(taken)
            zero.extend(is_zero for _ in taken)
        if index is not None and self.covers:
            pairs = zip(self.covers, index.axes, strict=True)
            meeting.equal.extend((axes[k], axis) for k, axis in pairs if axis.size != 1)
        elif index is not None and self.is_gather:
            others = enumerate(zip(x.axes, index.axes, strict=True))
            meeting.equal += [(a, b) for k, (a, b) in others if k not in self.indices and b.size == a.size]
        if other is not None and self.shared is not None:
            meeting.equal.append((x.axes[self.dim], other.axes[self.shared]))
        meeting.outputs, meeting.zero = [tuple(axes)], [tuple(zero)]
        return meeting

    def resized(self, op: Op, new: Resized) -> Pick:
        """Without what reads removed entries, in the numbers of those that stay."""
        x, output = op.inputs[0], op.outputs[0]
        assert x is not None
        found: dict[int, Indices] = {}
        shift = 0
        for dim, index in sorted(self.indices.items()):
            left = index
            for axis in range(index.ndim):
                kept = new.indices(output, dim + shift + axis)
                left = left if kept is None else left.take(kept, axis)
            found[dim] = new.places(x, dim)[left]
            shift += index.ndim - 1
        return replace(self, indices=found)

    @property
    def index(self) -> Indices:
        """That of the first axis, which is the only one where it is stored or made in forward."""
        return self.indices[self.dim]


@operator
@dataclass(frozen=True, slots=True)
class Roll(Operator):
    """x[(i - shift) % size] along each of some axes"""

    kinds = ("roll",)
    dims: tuple[int, ...]
    shifts: tuple[int, ...]

    def meet(self, op: Op, x: Operand) -> Meeting:
        turned = zip(self.dims, self.shifts, strict=True)
        return Pick({k: (np.arange(x.shape[k]) - shift) % x.shape[k] for k, shift in turned}).meet(op, x)

    def resized(self, op: Op, new: Resized) -> Roll:
        (x,) = op.inputs
        assert x is not None
        after = list(self.shifts)
        for place, (dim, shift) in enumerate(zip(self.dims, self.shifts, strict=True)):
            if new.shape(x)[dim] != x.shape[dim]:
                # A shift of -k brings the first k entries to the end, one of k the last k to the front.
                front = new.before(x, dim, -shift % x.shape[dim])
                after[place] = -front if shift < 0 else new.shape(x)[dim] - front
        return replace(self, shifts=tuple(after))


@operator
@dataclass(frozen=True, slots=True)
class Constant(Operator):
    """Every entry is the same: any of them can go. `sizes` as given; `kept` are no sizes."""

    kinds = ("constant",)
    sizes: tuple[int, ...]
    fills_zero: bool = False
    kept: tuple[int, ...] = ()

    def meet(self, op: Op, *operands: Operand) -> Meeting:
        outputs: list[Axes] = [tuple(fresh(size) for size in value.shape) for value in op.outputs]
        return Meeting(outputs, [tuple(self.fills_zero for _ in axes) for axes in outputs])

    def resized(self, op: Op, new: Resized) -> Constant:
        after = new.shape(op.outputs[0])
        return replace(self, sizes=resized_sizes(self.sizes, after[len(after) - len(self.sizes) :], self.kept))


@operator
@dataclass(frozen=True, slots=True)
class Opaque(Operator):
    """Nothing is known: every axis stays whole."""

    kinds = ("opaque",)
    why: str | None = None

    def meet(self, op: Op, *operands: Operand | None) -> Meeting:
        why = f"no rule for {op.name!r}" if self.why is None else self.why
        meeting = Meeting([], [])
        for operand in operands:
            if operand is not None:
                meeting.frozen.extend((axis, why) for axis in operand.axes)
        for value in op.outputs:
            axes = tuple(fresh(size) for size in value.shape)
            meeting.frozen.extend((axis, why) for axis in axes if axis is not ONE)
            meeting.outputs.append(axes)
            meeting.zero.append((False,) * len(axes))
        return meeting
