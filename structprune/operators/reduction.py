"""Sums, means and extremes over axes."""

from collections.abc import Container, Iterable
from typing import cast

from structprune.algebra.axis import ONE
from structprune.graph.graph import Op
from structprune.graph.operator import Meeting, Operand, rule


@rule("reduce")
def reduce(op: Op, x: Operand, *rest: Operand) -> Meeting:
    """y[...] = f over the reduced axes of x[...]

    how: 'sum' adds nothing for a zero, 'mean' divides by the count, 'extreme' may choose anything;
    positions: the outputs that say where something was found.
    """
    reduced = set(cast(Iterable[int], op.attributes["axes"]))
    keep = bool(op.attributes["keepdim"])
    how = op.attributes["how"]
    meeting = Meeting([], [])
    for position in reduced:
        axis = x.axes[position]
        if how == "mean":
            meeting.statistics.append(axis)
        elif how == "extreme" or not x.zero[position]:
            meeting.frozen.append((axis, f"{op.name} is taken over it"))
    axes = [ONE if k in reduced else axis for k, axis in enumerate(x.axes) if keep or k not in reduced]
    zero = [k in reduced or x.zero[k] for k in range(len(x.axes)) if keep or k not in reduced]
    if how == "extreme" and op.attributes.get("is_zero") is False:
        zero = [False] * len(zero)
    meeting.outputs = [tuple(axes) for _ in op.outputs]
    positions = cast(Container[int], op.attributes.get("positions", ()))
    meeting.zero = [tuple(each and k not in positions for each in zero) for k in range(len(op.outputs))]
    return meeting
