"""The entries of attention and rotary embedding, in ONNX's form and in those that onnxruntime fuses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from structprune.frontends.onnx.read.lower import Call, Lowered, Place, Resized, entry, opaque
from structprune.frontends.onnx.record.trace import Type, shape_of
from structprune.graph.graph import Value

CONTRIB = "com.microsoft"


def count_of_heads(new: Resized, value: Value, heads: int) -> int:
    """How many heads are left in an axis that holds them, or in the second axis of four."""
    if len(value.shape) == 4:
        return new.shape(value)[1]
    axis = len(value.shape) - 1
    width = value.shape[axis] // heads
    kept = [new.before(value, axis, (h + 1) * width) - new.before(value, axis, h * width) for h in range(heads)]
    return sum(count > 0 for count in kept)


def width_of_heads(new: Resized, value: Value, heads: int) -> int:
    return new.shape(value)[-1] if len(value.shape) == 4 else new.shape(value)[-1] // count_of_heads(new, value, heads)


def scale_kept(call: Call, new: Resized, query: Value, heads: int) -> dict[Place, Any]:
    """The scale that a node derives from the width of its heads is spelled out when that width changes."""
    old = query.shape[-1] if len(query.shape) == 4 else query.shape[-1] // heads
    if call.get("scale", 0.0) or width_of_heads(new, query, heads) == old:
        return {}
    return {"scale": 1 / math.sqrt(old)}


@entry("Attention")
def attention(call: Call) -> Lowered:
    query, key, value = call.inputs[:3]
    if query is None or key is None or value is None or 3 in call.outputs_at:
        return opaque(call, "attention whose scores are read")
    is_packed = len(query.shape) == 3
    heads = call.get("q_num_heads", 0) if is_packed else query.shape[1]
    key_heads = call.get("kv_num_heads", 0) if is_packed else key.shape[1]

    def literals(new: Resized) -> dict[Place, Any]:
        found = scale_kept(call, new, query, heads)
        if is_packed:
            found["q_num_heads"] = count_of_heads(new, query, heads)
            found["kv_num_heads"] = count_of_heads(new, key, key_heads)
        return found

    given = [query, key, value, call.input(3), None, call.input(4), call.input(5)]
    attributes = {"heads": heads, "key_heads": key_heads, "is_causal": bool(call.get("is_causal", 0))}
    return Lowered("multihead_attention", given, attributes, literals)


@entry("MultiHeadAttention", domain=CONTRIB)
def multi_head_attention(call: Call) -> Lowered:
    query, key, value = (call.input(place) for place in range(3))
    if query is None or key is None or value is None or len(query.shape) != 3:
        return opaque(call, "attention of packed queries, keys and values")
    if 3 in call.outputs_at or call.has(8) or call.has(9):
        return opaque(call, "attention with a shared buffer, or whose scores are read")
    heads = call.get("num_heads", 1)

    def literals(new: Resized) -> dict[Place, Any]:
        return {"num_heads": count_of_heads(new, query, heads), **scale_kept(call, new, query, heads)}

    given = [query, key, value, call.input(5), call.input(3), call.input(6), call.input(7)]
    attributes = {"heads": heads, "key_heads": heads, "is_causal": bool(call.get("unidirectional", 0))}
    return Lowered("multihead_attention", given, attributes, literals)


@entry("GroupQueryAttention", domain=CONTRIB)
def group_query_attention(call: Call) -> Lowered | list[Lowered]:
    query, key, value = (call.input(place) for place in range(3))
    if query is None or call.has(10) or call.has(11) or 3 in call.outputs_at:
        return opaque(call, "attention with an input that is not understood")
    heads, key_heads = call.get("num_heads", 1), call.get("kv_num_heads", 1)
    steps: list[Lowered] = []
    if key is None or value is None:
        width = query.shape[-1] // (heads + 2 * key_heads)
        packed, sizes = query, [count * width for count in (heads, key_heads, key_heads)]
        query, key, value = parts(packed, sizes)
        steps.append(Lowered("split", [packed], {"dim": 2, "sizes": sizes}, outputs=[query, key, value]))
    query_given, key_given = query, key

    def literals(new: Resized) -> dict[Place, Any]:
        return {
            "num_heads": count_of_heads(new, query_given, heads),
            "kv_num_heads": count_of_heads(new, key_given, key_heads),
        }

    cosine, sine = call.input(7), call.input(8)
    if call.get("do_rotary", 0) and cosine is not None and sine is not None:
        turned: list[Value] = []
        for each, count in ((query, heads), (key, key_heads)):
            turned.append(Value(f"{each.name} turned", each.shape))
            attributes = {"heads": count, "is_interleaved": bool(call.get("rotary_interleaved", 0))}
            steps.append(Lowered("rotary", [each, cosine, sine], attributes, outputs=turned[-1:]))
        query, key = turned
    given = [query, key, value, None, None, call.input(3), call.input(4)]
    attributes = {"heads": heads, "key_heads": key_heads, "keeps_width": "onnxruntime takes heads of 8, 16, ..."}
    # It counts the positions itself, and is causal always.
    attributes.update(is_causal=True, has_lengths=True)
    return [*steps, Lowered("multihead_attention", given, attributes, literals)]


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
    heads, whole = call.get("num_heads", 1), weight.shape[1]
    sizes = call.get("qkv_hidden_sizes", None) or [whole // 3] * 3
    packed = Value(f"{x.name} projected", (*x.shape[:-1], whole))
    query, key, value = parts(packed, sizes)

    def literals(new: Resized) -> dict[Place, Any]:
        after = [new.shape(each)[-1] for each in (query, key, value)]
        found: dict[Place, Any] = {"num_heads": count_of_heads(new, query, heads)}
        if call.get("qkv_hidden_sizes", None) or len(set(after)) > 1:
            found["qkv_hidden_sizes"] = after
        return {**found, **scale_kept(call, new, query, heads)}

    attributes = {"heads": heads, "key_heads": heads, "is_causal": bool(call.get("unidirectional", 0))}
    return [
        Lowered("linear_transposed", [x, weight, bias], outputs=[packed]),
        Lowered("split", [packed], {"dim": len(x.shape) - 1, "sizes": sizes}, outputs=[query, key, value]),
        Lowered("multihead_attention", [query, key, value, mask], attributes, literals),
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

    def literals(new: Resized) -> dict[Place, Any]:
        found: dict[Place, Any] = {}
        if given:
            found["num_heads"] = new.shape(x)[1] if len(x.shape) == 4 else count_of_heads(new, x, heads)
        if turned:
            found["rotary_embedding_dim"] = 2 * new.shape(cosine)[-1]
        return found

    attributes = {"heads": heads, "is_interleaved": bool(call.get("interleaved", 0))}
    return Lowered("rotary", [x, cosine, sine], attributes, literals)


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
