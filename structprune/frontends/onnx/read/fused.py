"""The entries of what onnxruntime's optimizers fuse: a norm with a sum, a product with an activation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx.shape_inference import infer_node_outputs

from structprune.frontends.lowering import Lowered
from structprune.frontends.onnx.read.attention import CONTRIB, first
from structprune.frontends.onnx.read.lower import Call, entry, has_borders, has_scales, opaque
from structprune.frontends.onnx.record.trace import Type, node_proto, read_type, shape_of
from structprune.graph.graph import Value
from structprune.operators.elementwise import Pointwise
from structprune.operators.linear import Convolution, Einsum, Linear
from structprune.operators.normalisation import LayerNorm
from structprune.operators.routing import Path, Route
from structprune.operators.zero import NEVER, all_of

# Activations that give zero for zero, whatever their parameters.
KEEP_ZERO = frozenset(("", "Relu", "LeakyRelu", "Tanh"))


@entry("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=CONTRIB)
def skip_layer_norm(call: Call) -> Lowered | list[Lowered]:
    """The normalisation of a sum; the sum itself is the fourth output."""
    is_centred = call.node.op_type == "SkipLayerNormalization"
    x, skip, scale = call.inputs[:3]
    shift, bias = (call.input(3), call.input(4)) if is_centred else (None, call.input(3))
    if x is None or not set(call.outputs_at) <= {0, 3}:
        return opaque(call, "the statistics of a normalisation are read")
    added = call.outputs_at.get(3) or Value(f"{x.name} and what is added", x.shape)
    summands = [each for each in (x, skip, bias) if each is not None]
    return [
        Lowered(Pointwise(all_of(len(summands))), summands, outputs=[added]),
        Lowered(LayerNorm(x.shape[-1:], is_centred), [added, scale, shift], outputs=[call.outputs_at[0]]),
    ]


@entry("EmbedLayerNormalization", domain=CONTRIB)
def embed_layer_norm(call: Call) -> Lowered | list[Lowered]:
    """The normalisation of what tables of words, positions and segments hold; the sum itself is the third output."""
    ids, segments = call.x(), call.input(1)
    tables = [(call.input(2), ids), (call.input(3), call.input(8)), (call.input(4), segments)]
    if 1 in call.outputs_at:
        return opaque(call, "the lengths of a mask are read")
    steps: list[Lowered] = []
    for table, chosen in tables:
        if table is None:
            continue
        found = Value(f"{table.name} by index", (*ids.shape, table.shape[1]))
        # Positions that are not given are counted.
        path: Path = [[(1, 0)], [(1, 1)], [(0, 1)]] if chosen is not None else [[], [], [(0, 1)]]
        reading = Route(path, {(0, 0): "reads it by index"})
        steps.append(Lowered(reading, [table] if chosen is None else [table, chosen], outputs=[found]))
    output = call.outputs_at[0]
    added = call.outputs_at.get(2) or Value(f"{output.name} before its norm", output.shape)
    summands = [value for step in steps for value in step.outputs or ()]
    return [
        *steps,
        Lowered(Pointwise(all_of(len(summands))), summands, outputs=[added]),
        Lowered(LayerNorm(output.shape[-1:]), [added, call.input(5), call.input(6)], outputs=[output]),
    ]


@entry("BiasGelu", "FastGelu", "QuickGelu", "Gelu", domain=CONTRIB)
def fused_gelu(call: Call) -> Lowered:
    """f(x + bias), with f(0) = 0."""
    summands = [value for value in call.inputs if value is not None]
    return Lowered(Pointwise(all_of(len(summands))), summands)


@entry("FusedMatMul", domain=CONTRIB)
def fused_matmul(call: Call) -> Lowered:
    if call.get("transBatchA", 0) or call.get("transBatchB", 0):
        return opaque(call, "a product of tensors whose batch axes are moved")
    left = "... k i" if call.get("transA", 0) else "... i k"
    right = "... j k" if call.get("transB", 0) else "... k j"
    return Lowered(Einsum(f"{left}, {right} -> ... i j"), call.inputs[:2])


@entry("FusedConv", domain=CONTRIB)
def fused_conv(call: Call) -> Lowered | list[Lowered]:
    """f(convolution + what is added)"""
    x, weight, output = call.x(), call.inputs[1], call.outputs[0]
    assert weight is not None
    conv = Value(f"{output.name} before its activation", output.shape)
    convolution = Convolution(call.get("group", 1), has_borders=has_borders(call))
    return [
        Lowered(convolution, [x, weight, call.input(2)], {"groups": "group"}, [conv]),
        activated(call, [conv, call.input(3)]),
    ]


@entry("FusedGemm", domain=CONTRIB)
def fused_gemm(call: Call) -> Lowered | list[Lowered]:
    """f(a b + bias)"""
    x, weight, bias, output = call.x(), call.inputs[1], call.input(2), call.outputs[0]
    if call.get("transA", 0) or (bias is not None and len(bias.shape) != 1):
        return opaque(call, "a product of transposed inputs, or with a matrix added")
    product = Value(f"{output.name} before its activation", output.shape)
    linear = Linear(not call.get("transB", 0), not has_scales(call))
    return [Lowered(linear, [x, weight, bias], outputs=[product]), activated(call, [product])]


def activated(call: Call, summands: Sequence[Value | None]) -> Lowered:
    keeps_zero = call.get("activation", "") in KEEP_ZERO
    present = [value for value in summands if value is not None]
    return Lowered(Pointwise(all_of(len(present)) if keeps_zero else NEVER), present)


# -- the shapes that they give ---------------------------------------------------------------------


@shape_of(CONTRIB, "BiasGelu", "FastGelu", "QuickGelu", "Gelu", "SimplifiedLayerNormalization")
@shape_of("", "SimplifiedLayerNormalization")
def same_as_first(node: ir.Node, types: Sequence[Type | None]) -> list[Type]:
    return [first(types)]


@shape_of("", "LayerNormalization")
def layer_norm_shapes(node: ir.Node, types: Sequence[Type | None]) -> list[Type]:
    """onnxruntime writes it into files of versions that did not have it yet."""
    x = first(types)
    axis = node.attributes.get_int("axis", -1) % len(x.shape)
    statistics = Type((*x.shape[:axis], *[1] * (len(x.shape) - axis)), ir.DataType.FLOAT)
    return [x, statistics, statistics]


@shape_of(CONTRIB, "SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
def skip_shapes(node: ir.Node, types: Sequence[Type | None]) -> list[Type]:
    x = first(types)
    statistics = Type((*x.shape[:-1], 1), ir.DataType.FLOAT)
    return [x, statistics, statistics, x]


@shape_of(CONTRIB, "EmbedLayerNormalization")
def embed_shapes(node: ir.Node, types: Sequence[Type | None]) -> list[Type]:
    ids, table = first(types), types[2]
    if table is None:
        raise ValueError("the table of words is missing")
    output = Type((*ids.shape, table.shape[1]), table.dtype)
    return [output, Type(ids.shape[:1], ir.DataType.INT32), output]


@shape_of(CONTRIB, "FusedMatMul", "FusedGemm")
def matmul_shape(node: ir.Node, types: Sequence[Type | None]) -> list[Type]:
    a, b = first(types), types[1]
    if b is None:
        raise ValueError("the second input is missing")
    rows, inner = a.shape[-2:][:: -1 if node.attributes.get_int("transA", 0) else 1]
    other, columns = b.shape[-2:][:: -1 if node.attributes.get_int("transB", 0) else 1]
    if inner != other:
        raise ValueError(f"shapes {a.shape} and {b.shape} cannot be multiplied")
    return [Type((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), rows, columns), a.dtype)]


@shape_of(CONTRIB, "FusedConv")
def conv_shape(node: ir.Node, types: Sequence[Type | None]) -> list[Type]:
    """That of the convolution in it."""
    proto = node_proto(node)
    names = list(proto.input)[:2]
    plain = onnx.helper.make_node("Conv", names, list(proto.output))
    plain.attribute.extend(each for each in proto.attribute if not each.name.startswith("activation"))
    given = {name: known.proto() for name, known in zip(names, types, strict=False) if known is not None}
    found = infer_node_outputs(onnx.defs.get_schema("Conv"), plain, given)
    return [known for each in found.values() if (known := read_type(each)) is not None]
