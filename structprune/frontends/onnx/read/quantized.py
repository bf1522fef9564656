"""The entries of operators over integers that stand for floating numbers."""

from __future__ import annotations

from structprune.frontends.onnx.read.fused import groups_of
from structprune.frontends.onnx.read.lower import Call, Lowered, entry, opaque
from structprune.frontends.onnx.read.movement import routed, straight
from structprune.graph.graph import Value
from structprune.operators.linear import matmul_notation


@entry("QuantizeLinear", "DequantizeLinear")
def quantize(call: Call) -> Lowered:
    x, scale, zero_point = call.x(), call.inputs[1], call.input(2)
    if scale is None or len(scale.shape) > 1:
        return opaque(call, "scales in blocks")
    return Lowered("quantize", [x, scale, zero_point], {"axis": call.get("axis", 1) % max(len(x.shape), 1)})


@entry("DynamicQuantizeLinear")
def quantize_by_range(call: Call) -> list[Lowered]:
    """The scale is that of the largest and the least entry, and of zero: zeros do not change it."""
    x = call.x()
    scales = [value for place, value in call.outputs_at.items() if place] or [Value(f"{x.name} range", ())]
    everything = {"axes": tuple(range(len(x.shape))), "keepdim": False, "how": "sum"}
    cast = routed(x, straight(x))
    cast.outputs = [call.outputs_at[0]]
    return [Lowered("reduce", [x], everything, outputs=scales), cast]


@entry("MatMulInteger")
def matmul(call: Call) -> Lowered | list[Lowered]:
    x, weight, shift = call.x(), call.inputs[1], call.input(2)
    assert weight is not None
    if shift is not None and shift.shape not in ((), (1,)):
        return opaque(call, "a zero point for each row")
    shifted = Value(f"{weight.name} around zero", weight.shape)
    notation = matmul_notation(len(x.shape), len(weight.shape))
    return [
        Lowered("quantize", [weight, None, call.input(3)], {"axis": len(weight.shape) - 1}, outputs=[shifted]),
        Lowered("einsum", [x, shifted], {"notation": notation}),
    ]


@entry("ConvInteger")
def conv(call: Call) -> list[Lowered]:
    x, weight = call.x(), call.inputs[1]
    assert weight is not None
    shifted = Value(f"{weight.name} around zero", weight.shape)
    return [
        Lowered("quantize", [weight, None, call.input(3)], {"axis": 0}, outputs=[shifted]),
        Lowered("conv", [x, shifted, None], {"groups": call.get("group", 1)}, groups_of(x, weight)),
    ]
