"""Operators that write the product of some axes in other factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from operator import mul

from structprune.algebra.axis import ONE, Axis, Product, fresh
from structprune.algebra.notation import parse
from structprune.graph.constant import Known, Numbers, is_small
from structprune.graph.graph import Op, Shape
from structprune.graph.operator import Meeting, Operand, Operator, Resized, contract, operator


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
        return (told.spread(before).reshaped(sizes).compact(),) if is_small(before) else ()


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
