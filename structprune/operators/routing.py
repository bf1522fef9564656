"""Operators that pass axes through: transposes, pools, gathers, softmax, constants, the unknown."""

from collections.abc import Container, Mapping, Sequence
from typing import cast

from structprune.algebra.axis import ONE, Axes, Axis, fresh, product
from structprune.algebra.order import Indices
from structprune.graph.graph import Op
from structprune.graph.operator import Meeting, Operand, rule

Source = tuple[int, int]


@rule("route")
def route(op: Op, *operands: Operand) -> Meeting:
    """Each output axis is an axis of some operand, or a new one.

    routes: for each output, for each of its axes, the (operand, axis) pairs that it equals;
    whole: (operand, axis) -> why it must stay whole; keeps_zero: f(0) = 0;
    copies: the output axes along which all entries are the same; nonzero: those that are never zero;
    positions: the outputs that hold positions or choices, of which none is zero for being made of zeros;
    singular: the axes of the first operand where zeroing gives 0 / 0.
    """
    meeting = Meeting([], [])
    whole = cast(Mapping[Source, str], op.attributes.get("whole", {}))
    for (operand, place), why in whole.items():
        meeting.frozen.append((operands[operand].axes[place], f"{op.name} {why}"))
    keeps_zero = bool(op.attributes.get("keeps_zero", True))
    nonzero = cast(Container[int], op.attributes.get("nonzero", ()))
    copies = cast(Sequence[int], op.attributes.get("copies", ()))
    meeting.singular = [operands[0].axes[place] for place in cast(Sequence[int], op.attributes.get("singular", ()))]
    routes = cast(Sequence[Sequence[Sequence[Source]]], op.attributes["routes"])
    positions = cast(Container[int], op.attributes.get("positions", ()))
    for number, (value, paths) in enumerate(zip(op.outputs, routes, strict=True)):
        axes: list[Axis] = []
        zero: list[bool] = []
        for position, (size, sources) in enumerate(zip(value.shape, paths, strict=True)):
            present = [operands[i].axes[k] for i, k in sources if operands[i].axes[k].size == size]
            if not present:
                axis = fresh(size)
                if position not in copies:
                    meeting.frozen.append((axis, f"position in the output of {op.name}"))
                axes.append(axis)
                zero.append(False)
                continue
            meeting.equal.extend((present[0], other) for other in present[1:])
            axes.append(present[0])
            is_spread = position in nonzero
            zero.append(
                not is_spread
                and keeps_zero
                and number not in positions
                and all(operands[i].zero[k] for i, k in sources if operands[i].axes[k].size == size)
            )
        meeting.outputs.append(tuple(axes))
        meeting.zero.append(tuple(zero))
    return meeting


@rule("pick")
def pick(op: Op, x: Operand, index: Operand | None = None, other: Operand | None = None) -> Meeting:
    """y[..., i, ...] = x[..., picks[i], ...], along one axis or several

    covers: the output axes that those of the index are, where it is stored and can be made smaller;
    shared: the axis of another tensor that was read by the same stored index: both lose the same entries.
    """
    meeting = Meeting([], [])
    axes: list[Axis] = []
    zero: list[bool] = []
    picks = cast(Mapping[int, Indices], op.attributes["picks"])
    for place, (axis, is_zero) in enumerate(zip(x.axes, x.zero, strict=True)):
        if place not in picks:
            axes.append(axis)
            zero.append(is_zero)
            continue
        taken = [fresh(size) for size in picks[place].shape]
        meeting.picked.append((product(taken), axis, picks[place].reshape(-1)))
        axes.extend(taken)
        zero.extend(is_zero for _ in taken)
    covers = cast(Sequence[int], op.attributes.get("covers", ()))
    if index is not None and covers:
        meeting.equal.extend((axes[k], axis) for k, axis in zip(covers, index.axes, strict=True) if axis.size != 1)
    if index is not None and not covers and op.attributes.get("is_gather"):
        # The index has the other axes of x too.
        pairs = zip(x.axes, index.axes, strict=True)
        meeting.equal += [(a, b) for k, (a, b) in enumerate(pairs) if k not in picks and b.size == a.size]
    if other is not None:
        meeting.equal.append((x.axes[min(picks)], other.axes[cast(int, op.attributes["shared"])]))
    meeting.outputs, meeting.zero = [tuple(axes)], [tuple(zero)]
    return meeting


@rule("constant")
def constant(op: Op, *operands: Operand) -> Meeting:
    """Every entry is the same: any of them can go."""
    outputs: list[Axes] = [tuple(fresh(size) for size in value.shape) for value in op.outputs]
    is_zero = bool(op.attributes.get("fills_zero", False))
    return Meeting(outputs, [tuple(is_zero for _ in axes) for axes in outputs])


@rule("opaque")
def opaque(op: Op, *operands: Operand | None) -> Meeting:
    """Nothing is known: every axis stays whole."""
    why = str(op.attributes.get("why", f"no rule for {op.name!r}"))
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
