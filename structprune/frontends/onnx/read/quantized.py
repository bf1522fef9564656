"""The entries of operators over integers that stand for floating numbers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from structprune.frontends.lowering import Lowered
from structprune.frontends.onnx.read.lower import MOVING, Call, entry, is_one_of, opaque, readers
from structprune.frontends.onnx.record.trace import Trace, constant
from structprune.graph.graph import Value
from structprune.operators.elementwise import Quantize
from structprune.operators.linear import Convolution, Einsum, matmul_notation
from structprune.operators.reduction import Reduce
from structprune.operators.routing import Route, straight

# Integers that stand for floating numbers have a zero point, which stands for zero: where nodes take both.
POINTS = {
    "DequantizeLinear": ((0, 2),),
    "MatMulInteger": ((0, 2), (1, 3)),
    "ConvInteger": ((0, 2), (1, 3)),
}


def input_of(node: ir.Node, place: int) -> ir.Value | None:
    return node.inputs[place] if place < len(node.inputs) else None


def origin(value: ir.Value | None) -> ir.Value | None:
    """The tensor whose numbers these are, moved about."""
    while value is not None and (node := value.producer()) is not None and is_one_of(node, MOVING - {"Cast"}):
        value = node.inputs[0]
    return value


def is_same_point(a: ir.Value | None, b: ir.Value | None, trace: Trace) -> bool:
    """Two zero points are one; a missing one is 0."""
    x, y = (np.zeros(()) if value is None else trace.numbers.get(value) for value in (a, b))
    return a is b or (x is not None and y is not None and np.array_equal(np.ravel(x), np.ravel(y)))


def stands_for_zero(call: Call, place: int, point_place: int) -> bool:
    """What is zero in front of the quantization of an operand is zero in what the node computes with."""
    source, point = origin(input_of(call.node, place)), input_of(call.node, point_place)
    if source is not None and constant(source) is not None:
        return True  # a stored weight loses what it has there: the zero point
    maker = None if source is None else source.producer()
    if maker is not None and is_one_of(maker, frozenset(("QuantizeLinear",))):
        return is_same_point(input_of(maker, 2), point, call.trace)
    if maker is not None and is_one_of(maker, frozenset(("DynamicQuantizeLinear",))):
        return point is maker.outputs[2]
    return is_same_point(point, None, call.trace)


def is_read_around(call: Call, value: ir.Value, point: ir.Value | None) -> bool:
    """Every reader of quantized numbers takes this point for zero; or it is zero."""
    if is_same_point(point, None, call.trace):
        return True
    for node in readers(value):
        pairs = POINTS.get(node.op_type, ()) if not node.domain else ()
        met = [input_of(node, at) for place, at in pairs if origin(input_of(node, place)) is value]
        if not met or not all(is_same_point(each, point, call.trace) for each in met):
            return False
    return not value.is_graph_output()


@entry("QuantizeLinear", "DequantizeLinear")
def quantize(call: Call) -> Lowered:
    x, scale, zero_point = call.x(), call.inputs[1], call.input(2)
    if scale is None or len(scale.shape) > 1:
        return opaque(call, "scales in blocks")
    if call.node.op_type == "QuantizeLinear":
        keeps_zero = is_read_around(call, call.node.outputs[0], input_of(call.node, 2))
    else:
        keeps_zero = stands_for_zero(call, 0, 2)
    return Lowered(Quantize(call.get("axis", 1) % max(len(x.shape), 1), keeps_zero), [x, scale, zero_point])


@entry("DynamicQuantizeLinear")
def quantize_by_range(call: Call) -> list[Lowered]:
    """The scale is that of the largest and the least entry, and of zero: zeros do not change it."""
    x = call.x()
    scales = [value for place, value in call.outputs_at.items() if place] or [Value(f"{x.name} range", ())]
    everything = Reduce(tuple(range(len(x.shape))), False, "sum")
    point = call.node.outputs[2] if len(call.node.outputs) > 2 else None
    keeps_zero = point is not None and is_read_around(call, call.node.outputs[0], point)
    cast = Lowered(Route(straight(x), keeps_zero=keeps_zero), [x], outputs=[call.outputs_at[0]])
    return [Lowered(everything, [x], outputs=scales), cast]


@entry("MatMulInteger")
def matmul(call: Call) -> Lowered | list[Lowered]:
    x, weight, shift = call.x(), call.inputs[1], call.input(2)
    assert weight is not None
    if shift is not None and shift.shape not in ((), (1,)):
        return opaque(call, "a zero point for each row")
    if not stands_for_zero(call, 0, 2) or not stands_for_zero(call, 1, 3):
        return opaque(call, "its zero point is not that of its input")
    shifted = Value(f"{weight.name} around zero", weight.shape)
    notation = matmul_notation(len(x.shape), len(weight.shape))
    return [
        Lowered(Quantize(len(weight.shape) - 1), [weight, None, call.input(3)], outputs=[shifted]),
        Lowered(Einsum(notation), [x, shifted]),
    ]


@entry("ConvInteger")
def conv(call: Call) -> list[Lowered]:
    x, weight = call.x(), call.inputs[1]
    assert weight is not None
    if not stands_for_zero(call, 0, 2) or not stands_for_zero(call, 1, 3):
        return [opaque(call, "its zero point is not that of its input")]
    shifted = Value(f"{weight.name} around zero", weight.shape)
    return [
        Lowered(Quantize(0), [weight, None, call.input(3)], outputs=[shifted]),
        Lowered(Convolution(call.get("group", 1)), [x, shifted], {"groups": "group"}),
    ]
