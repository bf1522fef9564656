"""Attention as one operator."""

from structprune.axis import Axis, Product, fresh
from structprune.graph import Op
from structprune.rule import Meeting, Operand, rule


@rule("attention")
def attention(op: Op, query: Operand, key: Operand, value: Operand, mask: Operand | None = None) -> Meeting:
    """y[..., n, e] = softmax over m of (q[..., n, d] k[..., m, d]) times v[..., m, e]

    With fewer key heads than query heads, query heads are `(kv r)`.
    """
    *batch, heads, rows, width = query.axes if len(query.axes) > 3 else (fresh(1), *query.axes)
    *key_batch, key_heads, keys, key_width = key.axes if len(key.axes) > 3 else (fresh(1), *key.axes)
    *value_batch, value_heads, values, value_width = value.axes if len(value.axes) > 3 else (fresh(1), *value.axes)
    meeting = Meeting([], [])
    meeting.equal += [(width, key_width), (keys, values), (key_heads, value_heads)]
    for axis, *others in zip(batch, key_batch, value_batch, strict=True):
        meeting.equal += [(axis, other) for other in others if other.size == axis.size]
    if heads.size == key_heads.size:
        meeting.equal.append((heads, key_heads))
    elif key_heads.size != 1:
        meeting.equal.append((heads, Product((key_heads, fresh(heads.size // key_heads.size)))))
    meeting.frozen.append((keys, f"{op.name} takes a softmax over it"))
    if not (query.zero[-1] or key.zero[-1]):
        meeting.frozen.append((width, f"{op.name} sums over it, and it is not zero there"))
    if mask is not None:
        meet_mask(meeting, mask, (*batch, heads, rows, keys))
    lead = len(query.axes) - 3
    axes: tuple[Axis, ...] = (*query.axes[:-1], value_width)
    zero = [False] * len(axes)
    zero[-1] = value.zero[-1]
    if lead >= 0:
        zero[lead] = value.zero[lead] and len(value.axes) > 3
    meeting.outputs, meeting.zero = [axes], [tuple(zero)]
    scores = (*batch, heads, rows, keys)
    meeting.multiplied = [(*scores, width), (*scores, value_width)]
    return meeting


def meet_mask(meeting: Meeting, mask: Operand, scores: tuple[Axis, ...]) -> None:
    for axis, other in zip(mask.axes[::-1], scores[::-1], strict=False):
        if axis.size == other.size:
            meeting.equal.append((axis, other))
