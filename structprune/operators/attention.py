"""Attention as one operator."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from structprune.algebra.axis import ONE, Axes, Axis, Product, Sum, fresh
from structprune.graph.graph import Op, Value
from structprune.graph.operator import Meeting, Operand, Operator, Resized, operator


def count_of_heads(new: Resized, value: Value, heads: int) -> int:
    """How many heads are left in an axis that holds them, or in the second axis of four."""
    if len(value.shape) == 4:
        return new.shape(value)[1]
    axis = len(value.shape) - 1
    width = value.shape[axis] // heads
    return len({new.before(value, axis, h * width) for h in range(heads + 1)}) - 1


def kept_scale(given: float | None, before: int, after: int) -> float | None:
    """A scale that is derived from the width of heads is spelled out when that width changes."""
    return given if given is not None or before == after else 1 / math.sqrt(before)


@operator
@dataclass(frozen=True, slots=True)
class Attention(Operator):
    """y[..., n, e] = softmax over m of (q[..., n, d] k[..., m, d]) times v[..., m, e]

    With fewer key heads than query heads, query heads are `(kv r)`. Under a causal mask rows and keys are counted.
    """

    kinds = ("attention",)
    is_causal: bool = False
    scale: float | None = None

    def meet(
        self, op: Op, query: Operand, key: Operand, value: Operand, mask: Operand | None = None
    ) -> Meeting:
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
        if self.is_causal:
            meeting.frozen.append((rows, f"{op.name} masks it by position"))
        if not (query.zero[-1] or key.zero[-1]):
            meeting.frozen.append((width, f"{op.name} sums over it, and it is not zero there"))
        if mask is not None:
            meet_mask(meeting, mask, (*batch, heads, rows, keys))
        lead = len(query.axes) - 3
        axes: tuple[Axis, ...] = (*query.axes[:-1], value_width)
        zero = [False] * len(axes)
        zero[-1] = value.zero[-1]
        if lead >= 0:
            # Query heads that share the values of one head do not go with it.
            zero[lead] = value.zero[lead] and len(value.axes) > 3 and value_heads.size == heads.size
        meeting.outputs, meeting.zero = [axes], [tuple(zero)]
        scores = (*batch, heads, rows, keys)
        meeting.multiplied = [(*scores, width), (*scores, value_width)]
        return meeting

    def resized(self, op: Op, new: Resized) -> Attention:
        query = op.inputs[0]
        assert query is not None
        return replace(self, scale=kept_scale(self.scale, query.shape[-1], new.shape(query)[-1]))


def meet_mask(meeting: Meeting, mask: Operand, scores: tuple[Axis, ...]) -> None:
    for axis, other in zip(mask.axes[::-1], scores[::-1], strict=False):
        if axis.size == other.size:
            meeting.equal.append((axis, other))


@operator
@dataclass(frozen=True, slots=True)
class MultiheadAttention(Operator):
    """Attention whose operands may hold their heads inside their last axis: [batch, n, (h d)] or [batch, h, n, d]

    keeps_width: why the width of heads must stay. The bias is that of queries, keys and values, one after another.
    Under a causal mask rows are counted. Outputs after the first are the keys and the values with those of the past
    before them, [batch, h, n, d].
    """

    kinds = ("multihead_attention",)
    heads: int
    key_heads: int
    scale: float | None = None
    is_causal: bool = False
    has_lengths: bool = False
    keeps_width: str | None = None

    def meet(
        self,
        op: Op,
        query: Operand,
        key: Operand,
        value: Operand,
        mask: Operand | None = None,
        bias: Operand | None = None,
        past_key: Operand | None = None,
        past_value: Operand | None = None,
    ) -> Meeting:
        heads, key_heads = self.heads, self.key_heads
        meeting = Meeting([], [])
        batch, q_heads, rows, width = opened(meeting, query, heads)
        k_batch, k_heads, keys, k_width = opened(meeting, key, key_heads)
        v_batch, v_heads, values, v_width = opened(meeting, value, key_heads)
        meeting.equal += [(width, k_width), (keys, values), (k_heads, v_heads), (batch, k_batch), (batch, v_batch)]
        if heads == key_heads:
            meeting.equal.append((q_heads, k_heads))
        else:
            meeting.equal.append((q_heads, Product((k_heads, fresh(heads // key_heads)))))
        if bias is not None:
            meeting.equal.append((bias.axes[0], Sum((query.axes[-1], key.axes[-1], value.axes[-1]))))
        biased = bias is None or bias.zero[0]
        if not biased or not (query.zero[-1] or key.zero[-1]):
            meeting.frozen.append((width, f"{op.name} sums over it, and it is not zero there"))
        meeting.frozen.append((keys, f"{op.name} takes a softmax over it"))
        if self.is_causal:
            meeting.frozen.append((rows, f"{op.name} masks it by position"))
        if self.keeps_width is not None:
            meeting.frozen += [(axis, f"{op.name}: {self.keeps_width}") for axis in (width, v_width)]
        every_key: Axis = keys
        if past_key is not None and past_value is not None:
            for past, own in ((past_key, k_width), (past_value, v_width)):
                meeting.equal += [(past.axes[0], batch), (past.axes[1], k_heads), (past.axes[3], own)]
                meeting.frozen += [(past.axes[2], f"{op.name} takes a softmax over it")]
        if any(value.shape[2] != keys.size for value in op.outputs[1:]):
            every_key = fresh(op.outputs[1].shape[2])
            meeting.frozen.append((every_key, f"{op.name} takes a softmax over it"))
        if mask is not None:
            meet_mask(meeting, mask, (batch, q_heads, rows, keys))
        if self.has_lengths:
            meeting.frozen.append((batch, f"{op.name} is told a length for each"))
        # Query heads that share the values of one head do not go with it.
        is_own = heads == key_heads
        is_zero = value.zero[-1] and biased
        if len(query.axes) == 3:
            meeting.outputs = [(batch, rows, Product((q_heads, v_width)))]
            meeting.zero = [(False, False, is_zero and is_own)]
        else:
            meeting.outputs = [(batch, q_heads, rows, v_width)]
            meeting.zero = [(False, value.zero[1] and is_own, False, is_zero)]
        present: list[Axes] = [(batch, k_heads, every_key, k_width), (batch, k_heads, every_key, v_width)]
        for axes, _ in zip(present, op.outputs[1:], strict=False):
            meeting.outputs.append(axes)
            meeting.zero.append((False,) * 4)
        scores = (batch, q_heads, rows, every_key)
        meeting.multiplied = [(*scores, width), (*scores, v_width)]
        return meeting

    def resized(self, op: Op, new: Resized) -> MultiheadAttention:
        query, key, *_ = op.inputs
        assert query is not None and key is not None
        heads = count_of_heads(new, query, self.heads)
        is_packed = len(query.shape) == 3
        old, after = (
            shape[-1] // (count if is_packed else 1)
            for shape, count in ((query.shape, self.heads), (new.shape(query), heads))
        )
        key_heads = count_of_heads(new, key, self.key_heads)
        return replace(self, heads=heads, key_heads=key_heads, scale=kept_scale(self.scale, old, after))


def opened(meeting: Meeting, operand: Operand, heads: int) -> Axes:
    """Batch, heads, positions, width."""
    if len(operand.axes) == 4:
        return operand.axes
    batch, positions, packed = operand.axes
    outer, inner = fresh(heads), fresh(packed.size // heads)
    meeting.equal.append((packed, Product((outer, inner))))
    return batch, outer, positions, inner


@operator
@dataclass(frozen=True, slots=True)
class Rotary(Operator):
    """Pairs of entries of each head turned by the angles of a table: halves (a + a), or neighbours (a 2)

    turned: how many entries of each head are.
    """

    kinds = ("rotary",)
    heads: int
    turned: int
    is_interleaved: bool = False

    def meet(self, op: Op, x: Operand, cosine: Operand, sine: Operand) -> Meeting:
        heads = self.heads
        angles = cosine.axes[-1]
        meeting = Meeting([x.axes], [x.zero], [(angles, sine.axes[-1])])
        # Heads that have an axis of their own are turned alike.
        own = x.axes[:1] + x.axes[2:-1] if len(x.axes) == 4 else x.axes[:-1]
        positions = (*cosine.axes[:-1], *sine.axes[:-1], *own)
        meeting.frozen = [(axis, f"{op.name} reads it by position") for axis in positions if axis is not ONE]
        if self.is_interleaved:
            pair = fresh(2)
            meeting.frozen.append((pair, f"{op.name} turns pairs"))
            turned: Axis = Product((angles, pair))
        else:
            turned = Sum((angles, angles))
        packed = x.axes[-1]
        if packed is ONE:
            return meeting
        width = packed.size // heads
        head = turned if width == turned.size else Sum((turned, fresh(width - turned.size)))
        meeting.equal.append((packed, Product((fresh(heads), head)) if heads > 1 else head))
        return meeting

    def resized(self, op: Op, new: Resized) -> Rotary:
        x, cosine, *_ = op.inputs
        assert x is not None and cosine is not None
        return replace(self, heads=count_of_heads(new, x, self.heads), turned=2 * new.shape(cosine)[-1])
