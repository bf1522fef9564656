"""Operators that regroup axes: reshape, concatenation, slices, padding, repetition."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from math import prod
from operator import mul

import numpy as np

from structprune.algebra.axis import ONE, Axis, Product, Sum, fresh, total
from structprune.algebra.notation import parse
from structprune.graph.constant import UNKNOWN, Known, Numbers
from structprune.graph.graph import Op, Shape
from structprune.graph.operator import Meeting, Operand, Operator, Resized, contract, operator

# Constants that are spread over a tensor, at most.
MOST_CONSTANTS = 1 << 24


@operator
@dataclass(frozen=True, slots=True)
class Reshape(Operator):
    """The product of the axes stays the same; the new ones are those of `like`, if it is given.

    sizes: as given, those of the result from axis `first` on; a zero may stand for the size that the operand has.
    """

    kinds = ("reshape",)
    sizes: tuple[int, ...] = ()
    first: int = 0
    copies_zero: bool = False

    def meet(self, op: Op, x: Operand, like: Operand | None = None) -> Meeting:
        meeting = Meeting([], [])
        axes: list[Axis] = []
        zero: list[bool] = []
        for old, new in blocks(x.shape, op.outputs[0].shape):
            before = [x.axes[k] for k in old if x.axes[k].size != 1]
            sizes = [op.outputs[0].shape[k] for k in new]
            if sum(size != 1 for size in sizes) == 1:
                whole: Axis = before[0] if len(before) == 1 else Product(tuple(before))
                after = [ONE if size == 1 else whole for size in sizes]
            else:
                after = [fresh(size) for size in sizes]
                meeting.equal.append((Product(tuple(before)), Product(tuple(after))))
            axes.extend(after)
            sources = zip(spans([x.shape[k] for k in old]), (x.zero[k] for k in old), strict=True)
            known = [(span, is_zero) for span, is_zero in sources if span]
            # An axis is zero where all the axes that it is made of are: `(b h) d` has its d from the last one of
            # `b (h d)`.
            zero.extend(all(is_zero for span, is_zero in known if overlap(span, own)) for own in spans(sizes))
        if like is not None:
            meeting.equal.extend(zip(axes, like.axes, strict=True))
        meeting.outputs = [tuple(axes)]
        meeting.zero = [tuple(zero)]
        return meeting

    def resized(self, op: Op, new: Resized) -> Reshape:
        x = op.inputs[0]
        assert x is not None
        before, after = new.shape(x), new.shape(op.outputs[0])[self.first :]

        def size(place: int, old: int) -> int:
            is_copied = old == 0 and self.copies_zero and place < len(before) and before[place] == after[place]
            return old if old == -1 or is_copied else after[place]

        return replace(self, sizes=tuple(size(place, old) for place, old in enumerate(self.sizes)))

    def constants(self, op: Op, given: Sequence[Known | None], numbers: Numbers) -> Sequence[Known | None]:
        """An axis along which nothing changes is spread out only where it is merged with one along which much does."""
        x, told = op.inputs[0], given[0]
        if x is None or told is None:
            return ()
        after = op.outputs[0].shape
        before, sizes = list(told.mask.shape), [1] * len(after)
        for old, new in blocks(x.shape, after):
            if any(before[k] > 1 for k in old):
                for k in old:
                    before[k] = x.shape[k]
                for k in new:
                    sizes[k] = after[k]
        return (told.spread(before).reshaped(sizes).compact(),) if prod(before) <= MOST_CONSTANTS else ()


def spans(sizes: Sequence[int]) -> list[range]:
    """Where each axis lies in the block, from the innermost: axes of sizes 4, 3 and 2 reach from 6, 2 and 1 on."""
    outward = accumulate(reversed(sizes), mul, initial=1)
    return [range(first, last) for first, last in pairwise(outward)][::-1]


def overlap(a: range, b: range) -> bool:
    return max(a.start, b.start) < min(a.stop, b.stop)


def blocks(old: Shape, new: Shape) -> list[tuple[list[int], list[int]]]:
    """The smallest runs of axes of equal size: 'b h w c' and 'b (h w) c' give b|b, hw|(h w), c|c."""
    if 0 in old:
        return [(list(range(len(old))), list(range(len(new))))]
    found: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        left: list[int] = []
        right: list[int] = []
        size = other = 1
        while True:
            if size == other and (left or right) and size != 1:
                break
            if size <= other and i < len(old):
                size *= old[i]
                left.append(i)
                i += 1
            elif j < len(new):
                other *= new[j]
                right.append(j)
                j += 1
            elif i < len(old):
                size *= old[i]
                left.append(i)
                i += 1
            else:
                break
        found.append((left, right))
    return found


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
        shapes = [(*across[: self.dim], value.shape[self.dim], *across[self.dim + 1 :]) for value in op.inputs if value]
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


@operator
@dataclass(frozen=True, slots=True)
class Rearrange(Operator):
    """The operator's own notation; the axes whose size it fixes stay whole."""

    kinds = ("rearrange",)
    notation: str
    sizes: Mapping[str, int] = field(default_factory=dict)

    def meet(self, op: Op, x: Operand) -> Meeting:
        meeting = contract(parse(self.notation), 1, op, (x,), dict(self.sizes), frozen=self.sizes)
        meeting.multiplied = []
        return meeting


@operator
@dataclass(frozen=True, slots=True)
class Windows(Operator):
    """b c [h w] -> b (c kernel) [positions], or back"""

    kinds = ("windows", "unwindows")
    kernel: int
    is_back: bool = False

    @property
    def kind(self) -> str:
        return self.kinds[self.is_back]

    def meet(self, op: Op, x: Operand) -> Meeting:
        shape = op.outputs[0].shape
        kernel = fresh(self.kernel)
        batch, columns, *positions = x.axes
        if not self.is_back:
            made = [fresh(shape[-1])]
            outputs, equal = (batch, Product((columns, kernel)), *made), []
        else:
            channels = fresh(columns.size // self.kernel)
            made = [fresh(size) for size in shape[2:]]
            outputs, equal = (batch, channels, *made), [(columns, Product((channels, kernel)))]
        frozen = [(axis, f"{op.name} works on it as a whole") for axis in (*positions, kernel, *made)]
        return Meeting([outputs], [(x.zero[0], x.zero[1], *(False for _ in made))], [*equal], frozen)
