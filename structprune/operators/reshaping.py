"""Operators that regroup axes: reshape, concatenation, slices, padding, repetition."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from operator import mul
from typing import cast

from structprune.algebra.axis import ONE, Axis, Product, Sum, fresh, total
from structprune.algebra.notation import parse
from structprune.graph.graph import Op, Shape
from structprune.graph.operator import Meeting, Operand, contract, rule


def integers(op: Op, name: str) -> Sequence[int]:
    return cast(Sequence[int], op.attributes[name])


def integer(op: Op, name: str) -> int:
    return cast(int, op.attributes[name])


@rule("reshape")
def reshape(op: Op, x: Operand, like: Operand | None = None) -> Meeting:
    """The product of the axes stays the same; the new ones are those of `like`, if it is given."""
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
        # An axis is zero where all the axes that it is made of are: `(b h) d` has its d from the last one of `b (h d)`.
        zero.extend(all(is_zero for span, is_zero in known if overlap(span, own)) for own in spans(sizes))
    if like is not None:
        meeting.equal.extend(zip(axes, like.axes, strict=True))
    meeting.outputs = [tuple(axes)]
    meeting.zero = [tuple(zero)]
    return meeting


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


@rule("concat")
def concat(op: Op, *operands: Operand) -> Meeting:
    """One after another along one axis, the same along the others."""
    dim = integer(op, "dim")
    first = operands[0]
    meeting = Meeting([], [])
    for operand in operands[1:]:
        pairs = zip(first.axes, operand.axes, strict=True)
        meeting.equal.extend(pair for k, pair in enumerate(pairs) if k != dim)
    axes = list(first.axes)
    axes[dim] = Sum(tuple(operand.axes[dim] for operand in operands))
    meeting.outputs = [tuple(axes)]
    meeting.zero = [tuple(all(operand.zero[k] for operand in operands) for k in range(len(axes)))]
    return meeting


@rule("split")
def split(op: Op, x: Operand) -> Meeting:
    """The parts of one axis, each a tensor of its own."""
    dim, sizes = integer(op, "dim"), integers(op, "sizes")
    parts = [fresh(size) for size in sizes]
    meeting = Meeting([], [x.zero for _ in parts], [(x.axes[dim], Sum(tuple(parts)))])
    meeting.outputs = [(*x.axes[:dim], part, *x.axes[dim + 1 :]) for part in parts]
    return meeting


@rule("slice")
def slice_(op: Op, x: Operand) -> Meeting:
    """x[start:end:step] along one axis: the same entry of each block of `step` of them."""
    dim, start, end, step = (integer(op, name) for name in ("dim", "start", "end", "step"))
    axis = x.axes[dim]
    count = len(range(start, end, step))
    meeting = Meeting([], [x.zero])
    taken: Axis = axis
    if count != axis.size:
        first = start // step * step
        # The axis may end inside of the last block: what is left of that one stays whole.
        blocks = min(count, (axis.size - first) // step)
        outer, inner = fresh(blocks), fresh(step)
        before, after = fresh(first), fresh(axis.size - first - blocks * step)
        taken = total((outer, *(ONE,) * (count - blocks)))
        meeting.equal.append((axis, total((before, Product((outer, inner)), after))))
        if step > 1:
            meeting.frozen.append((inner, f"{op.name} takes one of every {step}"))
        if blocks < count:
            meeting.frozen.append((after, f"{op.name} takes one of what is left of {step}"))
        if x.is_parameter and not op.attributes.get("is_partition"):
            # What a slice leaves of a parameter is kept: other inputs may read it.
            meeting.frozen.extend((part, f"{op.name} reads a part of a parameter") for part in (before, after))
    meeting.outputs = [(*x.axes[:dim], taken, *x.axes[dim + 1 :])]
    return meeting


@rule("glu")
def glu(op: Op, x: Operand) -> Meeting:
    """y = a * sigmoid(b), a and b the halves of one axis of x"""
    dim = integer(op, "dim")
    half = fresh(x.axes[dim].size // 2)
    axes = (*x.axes[:dim], half, *x.axes[dim + 1 :])
    return Meeting([axes], [x.zero], [(x.axes[dim], Sum((half, half)))])


@rule("select")
def select(op: Op, x: Operand) -> Meeting:
    """x[index] along one axis, which disappears."""
    dim, index = integer(op, "dim"), integer(op, "index")
    axis = x.axes[dim]
    sizes = (index, 1, axis.size - index - 1)
    parts = [fresh(size) for size in sizes if size]
    meeting = Meeting([(*x.axes[:dim], *x.axes[dim + 1 :])], [(*x.zero[:dim], *x.zero[dim + 1 :])])
    meeting.equal.append((axis, Sum(tuple(parts))))
    if x.is_parameter:
        meeting.frozen.extend((part, f"{op.name} reads a part of a parameter") for part in parts)
    return meeting


@rule("unbind")
def unbind(op: Op, x: Operand) -> Meeting:
    """Every index of one axis as a tensor of its own."""
    dim = integer(op, "dim")
    axes, zero = (*x.axes[:dim], *x.axes[dim + 1 :]), (*x.zero[:dim], *x.zero[dim + 1 :])
    meeting = Meeting([axes for _ in op.outputs], [zero for _ in op.outputs])
    meeting.frozen.append((x.axes[dim], f"{op.name} takes it apart"))
    return meeting


@rule("stack")
def stack(op: Op, *operands: Operand) -> Meeting:
    """Tensors side by side along a new axis."""
    dim = integer(op, "dim")
    first = operands[0]
    meeting = Meeting([], [])
    for operand in operands[1:]:
        meeting.equal.extend(zip(first.axes, operand.axes, strict=True))
    side = fresh(len(operands))
    meeting.frozen.append((side, f"{op.name} makes it"))
    zero = tuple(all(operand.zero[k] for operand in operands) for k in range(len(first.axes)))
    meeting.outputs = [(*first.axes[:dim], side, *first.axes[dim:])]
    meeting.zero = [(*zero[:dim], False, *zero[dim:])]
    return meeting


@rule("pad")
def pad(op: Op, x: Operand) -> Meeting:
    """Constant entries before and after an axis; a negative width cuts."""
    widths = cast(Sequence[tuple[int, int]], op.attributes["widths"])
    fills_zero = bool(op.attributes["fills_zero"])
    meeting = Meeting([], [])
    axes: list[Axis] = []
    zero: list[bool] = []
    for axis, is_zero, (before, after) in zip(x.axes, x.zero, widths, strict=True):
        if before == 0 == after:
            axes.append(axis)
            zero.append(is_zero)
            continue
        if before < 0 or after < 0 or not op.attributes["is_constant"]:
            size = axis.size + before + after
            moved = fresh(size)
            meeting.frozen.extend((each, f"{op.name} mixes its positions") for each in (axis, moved))
            axes.append(moved)
            zero.append(False)
            continue
        axes.append(
            Sum(
                tuple(
                    part for part in (fresh(before) if before else None, axis, fresh(after) if after else None) if part
                )
            )
        )
        zero.append(is_zero and fills_zero)
    if not fills_zero and any(max(each) > 0 for each in widths):
        # What is padded along one axis is not zero at any index of the others either.
        zero = [False] * len(zero)
    meeting.outputs = [tuple(axes)]
    meeting.zero = [tuple(zero)]
    return meeting


@rule("repeat")
def repeat(op: Op, x: Operand) -> Meeting:
    """Copies: `(r n)` when the whole axis is tiled, `(n r)` when each entry is repeated."""
    times = integers(op, "times")
    is_tiled = bool(op.attributes["is_tiled"])
    axes: list[Axis] = []
    for axis, count in zip(x.axes, times, strict=True):
        copies = fresh(count)
        axes.append(Product((copies, axis) if is_tiled else (axis, copies)))
    zero = tuple(is_zero and count == 1 for is_zero, count in zip(x.zero, times, strict=True))
    # A copy is not zero when its twin is removed; a tiled axis of zeros stays zero.
    zero = tuple(z or (is_zero and axis.size != 1) for z, is_zero, axis in zip(zero, x.zero, x.axes, strict=True))
    return Meeting([tuple(axes)], [zero])


@rule("rearrange")
def rearrange(op: Op, x: Operand) -> Meeting:
    """The operator's own notation; the axes whose size it fixes stay whole."""
    sizes = cast(dict[str, int], op.attributes["sizes"])
    meeting = contract(parse(str(op.attributes["notation"])), 1, op, (x,), sizes, frozen=sizes)
    meeting.multiplied = []
    return meeting


@rule("windows")
def windows(op: Op, x: Operand) -> Meeting:
    """b c [h w] -> b (c kernel) [positions]"""
    batch, channels, *positions = x.axes
    kernel, places = fresh(integer(op, "kernel")), fresh(op.outputs[0].shape[-1])
    frozen = [(axis, f"{op.name} works on it as a whole") for axis in (*positions, kernel, places)]
    return Meeting([(batch, Product((channels, kernel)), places)], [(x.zero[0], x.zero[1], False)], frozen=frozen)


@rule("unwindows")
def unwindows(op: Op, x: Operand) -> Meeting:
    """b (c kernel) [positions] -> b c [h w]"""
    batch, columns, places = x.axes
    kernel = fresh(integer(op, "kernel"))
    channels = fresh(columns.size // kernel.size)
    positions = tuple(fresh(size) for size in op.outputs[0].shape[2:])
    frozen = [(axis, f"{op.name} works on it as a whole") for axis in (*positions, kernel, places)]
    equal: list[tuple[Axis, Axis]] = [(columns, Product((channels, kernel)))]
    zero = (x.zero[0], x.zero[1], *(False for _ in positions))
    return Meeting([(batch, channels, *positions)], [zero], equal, frozen)
