"""The entries of attention and rotary embedding, in ONNX's form and in those that onnxruntime fuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from structprune.frontends.lowering import Lowered
from structprune.frontends.onnx.read.lower import Call, entry, opaque
from structprune.frontends.onnx.record.trace import Type, shape_of
from structprune.graph.graph import Value
from structprune.operators.attention import MultiheadAttention, Rotary
from structprune.operators.joining import Split
from structprune.operators.linear import Linear

CONTRIB = "com.microsoft"


@entry("Attention")
def attention(call: Call) -> Lowered:
    query, key, value = call.inputs[:3]
    if query is None or key is None or value is None or 3 in call.outputs_at:
        return opaque(call, "attention whose scores are read")
    is_packed = len(query.shape) == 3
    heads = call.get("q_num_heads", 0) if is_packed else query.shape[1]
    key_heads = call.get("kv_num_heads", 0) if is_packed else key.shape[1]

    def arguments(new: MultiheadAttention) -> dict[str, Any]:
        counts = {"q_num_heads": new.heads, "kv_num_heads": new.key_heads} if is_packed else {}
        return {**counts, **scaled(new)}

    given = [query, key, value, call.input(3), None, call.input(4), call.input(5)]
    scale = call.get("scale", 0.0) or None
    return Lowered(MultiheadAttention(heads, key_heads, scale, bool(call.get("is_causal", 0))), given, arguments)


def scaled(new: MultiheadAttention) -> dict[str, Any]:
    return {} if new.scale is None else {"scale": new.scale}


def of_one_count(call: Call) -> MultiheadAttention:
    """The attention of a contrib operator with as many heads of keys as of queries."""
    heads = call.get("num_heads", 1)
    return MultiheadAttention(heads, heads, call.get("scale", 0.0) or None, bool(call.get("unidirectional", 0)))


@entry("MultiHeadAttention", domain=CONTRIB)
def multi_head_attention(call: Call) -> Lowered:
    query, key, value = (call.input(place) for place in range(3))
    if query is None or key is None or value is None or len(query.shape) != 3:
        return opaque(call, "attention of packed queries, keys and values")
    if 3 in call.outputs_at or call.has(8) or call.has(9):
        return opaque(call, "attention with a shared buffer, or whose scores are read")
    given = [query, key, value, call.input(5), call.input(3), call.input(6), call.input(7)]
    return Lowered(of_one_count(call), given, lambda new: {"num_heads": new.heads, **scaled(new)})


@entry("GroupQueryAttention", domain=CONTRIB)
def group_query_attention(call: Call) -> Lowered | list[Lowered]:
    query, key, value = (call.input(place) for place in range(3))
    if query is None or call.has(10) or call.has(11) or 3 in call.outputs_at:
        return opaque(call, "attention with an input that is not understood")
    heads, key_heads = call.get("num_heads", 1), call.get("kv_num_heads", 1)
    steps: list[Lowered] = []
    if key is None or value is None:
        width = query.shape[-1] // (heads + 2 * key_heads)
        packed, sizes = query, tuple(count * width for count in (heads, key_heads, key_heads))
        query, key, value = parts(packed, sizes)
        steps.append(Lowered(Split(2, sizes), [packed], outputs=[query, key, value]))
    cosine, sine = call.input(7), call.input(8)
    if call.get("do_rotary", 0) and cosine is not None and sine is not None:
        turned: list[Value] = []
        for each, count in ((query, heads), (key, key_heads)):
            turned.append(Value(f"{each.name} turned", each.shape))
            rotary = Rotary(count, 2 * cosine.shape[-1], bool(call.get("rotary_interleaved", 0)))
            steps.append(Lowered(rotary, [each, cosine, sine], outputs=turned[-1:]))
        query, key = turned
    given = [query, key, value, None, None, call.input(3), call.input(4)]
    # It counts the positions itself, and is causal always.
    width = "onnxruntime takes heads of 8, 16, ..."
    grouped = MultiheadAttention(
        heads, key_heads, call.get("scale", 0.0) or None, is_causal=True, has_lengths=True, keeps_width=width
    )
    return [*steps, Lowered(grouped, given, {"heads": "num_heads", "key_heads": "kv_num_heads"})]


def parts(packed: Value, sizes: Sequence[int]) -> list[Value]:
    """What queries, keys and values that lie beside each other are split into."""
    return [
        Value(f"{packed.name} {name}", (*packed.shape[:-1], size))
        for name, size in zip(("queries", "keys", "values"), sizes, strict=True)
    ]


@entry("Attention", domain=CONTRIB)
def fused_attention(call: Call) -> Lowered | list[Lowered]:
    """A projection to queries, keys and values, and attention between them."""
    x, weight, bias, mask = call.x(), call.inputs[1], call.input(2), call.input(5)
    if weight is None or call.has(4) or call.has(6) or call.get("do_rotary", 0) or 1 in call.outputs_at:
        return opaque(call, "fused attention with a past, or with rotary embedding")
    whole = weight.shape[1]
    sizes = tuple(call.get("qkv_hidden_sizes", None) or [whole // 3] * 3)
    packed = Value(f"{x.name} projected", (*x.shape[:-1], whole))
    query, key, value = parts(packed, sizes)

    def widths(new: Split) -> dict[str, Any]:
        is_told = call.get("qkv_hidden_sizes", None) or len(set(new.sizes)) > 1
        return {"qkv_hidden_sizes": list(new.sizes)} if is_told else {}

    attention = Lowered(
        of_one_count(call), [query, key, value, mask], lambda new: {"num_heads": new.heads, **scaled(new)}
    )
    return [
        Lowered(Linear(is_transposed=True), [x, weight, bias], outputs=[packed]),
        Lowered(Split(len(x.shape) - 1, sizes), [packed], widths, [query, key, value]),
        attention,
    ]


@entry("RotaryEmbedding")
@entry("RotaryEmbedding", domain=CONTRIB)
def rotary_embedding(call: Call) -> Lowered:
    is_contrib = call.node.domain == CONTRIB
    x, cosine, sine = call.x(), *(call.input(place) for place in ((2, 3) if is_contrib else (1, 2)))
    if cosine is None or sine is None:
        return opaque(call)
    given, turned = call.get("num_heads", 0), call.get("rotary_embedding_dim", 0)
    width = 2 * cosine.shape[-1]
    heads = 1 if len(x.shape) == 4 else given or x.shape[-1] // width

    def arguments(new: Rotary) -> dict[str, Any]:
        found = {"num_heads": new.heads} if given else {}
        return {**found, **({"rotary_embedding_dim": new.turned} if turned else {})}

    rotary = Rotary(heads, width, bool(call.get("interleaved", 0)))
    return Lowered(rotary, [x, cosine, sine], arguments)


# -- the shapes that they give ---------------------------------------------------------------------


def first(types: Sequence[Type | None]) -> Type:
    if not types or types[0] is None:
        raise ValueError("the first input is missing")
    return types[0]


@shape_of(CONTRIB, "RotaryEmbedding")
def rotary_shape(node: ir.Node, types: Sequence[Type | None]) -> list[Type]:
    return [first(types)]


@shape_of(CONTRIB, "MultiHeadAttention", "GroupQueryAttention")
def attention_shapes(node: ir.Node, types: Sequence[Type | None]) -> list[Type]:
    query = first(types)
    is_grouped = node.op_type == "GroupQueryAttention"
    key, value, past = (types[place] if len(types) > place else None for place in (1, 2, 3 if is_grouped else 6))
    heads = node.attributes.get_int("num_heads", 1)
    key_heads = node.attributes.get_int("kv_num_heads", heads)
    if is_grouped and key is None:
        batch, rows, wide = query.shape
        width = wide // (heads + 2 * key_heads)
        key = value = Type((batch, rows, key_heads * width), query.dtype)
        query = Type((batch, rows, heads * width), query.dtype)
    if key is None or value is None or len(query.shape) != 3:
        raise ValueError("packed queries, keys and values are not understood")
    batch, rows, wide = query.shape
    v_width = value.shape[-1] if len(value.shape) == 4 else value.shape[2] // key_heads
    if len(key.shape) == 3 and wide * key_heads != key.shape[2] * heads:
        raise ValueError(f"queries of width {wide} and keys of width {key.shape[2]} do not fit {heads} heads")
    total = key.shape[-2] + (past.shape[2] if past is not None else 0)
    present = [Type((batch, key_heads, total, width), query.dtype) for width in (wide // heads, v_width)]
    return [Type((batch, rows, heads * v_width), query.dtype), *present]


@shape_of(CONTRIB, "Attention")
def fused_attention_shape(node: ir.Node, types: Sequence[Type | None]) -> list[Type]:
    x, weight = first(types), types[1]
    if weight is None or weight.shape[0] != x.shape[-1]:
        raise ValueError("the weight does not fit the input")
    sizes = node.attributes.get_ints("qkv_hidden_sizes", None)
    width = sizes[2] if sizes else weight.shape[1] // 3
    return [Type((*x.shape[:-1], width), x.dtype)]
