"""The entries of ONNX operators that compute: products, normalisations, reductions, pointwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from structprune.frontends.onnx.read import (
    attention,  # noqa: F401  registers their entries
    fused,  # noqa: F401  registers their entries
    quantized,  # noqa: F401  registers their entries
)
from structprune.frontends.onnx.read.fused import groups_of
from structprune.frontends.onnx.read.lower import Call, Entry, Lowered, Place, Resized, entry, opaque
from structprune.frontends.onnx.read.movement import routed, straight
from structprune.frontends.onnx.record.trace import Type, shape_of
from structprune.operators import zero
from structprune.operators.linear import einsum_notation, matmul_notation


@entry("Conv", "ConvTranspose")
def conv(call: Call) -> Lowered:
    x, weight = call.x(), call.inputs[1]
    is_transposed = call.node.op_type == "ConvTranspose"
    assert weight is not None
    literals = groups_of(call.outputs[0] if is_transposed else x, weight)
    kind = "conv_transposed" if is_transposed else "conv"
    return Lowered(kind, [x, weight, call.input(2)], {"groups": call.get("group", 1)}, literals)


@entry("Gemm")
def gemm(call: Call) -> Lowered:
    x, weight, bias = call.x(), call.inputs[1], call.input(2)
    if not call.get("transA", 0) and (bias is None or len(bias.shape) == 1):
        return Lowered("linear" if call.get("transB", 0) else "linear_transposed", [x, weight, bias])
    left = "k i" if call.get("transA", 0) else "i k"
    right = "j k" if call.get("transB", 0) else "k j"
    if bias is None:
        return Lowered("einsum", [x, weight], {"notation": f"{left}, {right} -> i j"})
    added = " ".join("ij"[2 - len(bias.shape) :])
    return Lowered("einsum", [x, weight, bias], {"notation": f"{left}, {right}, {added} -> i j", "factors": 2})


@entry("MatMul")
def matmul(call: Call) -> Lowered:
    left, right = call.x(), call.inputs[1]
    assert right is not None
    if right.parameter is not None and len(right.shape) == 2 and len(left.shape) > 1:
        return Lowered("linear_transposed", [left, right])
    return Lowered("einsum", [left, right], {"notation": matmul_notation(len(left.shape), len(right.shape))})


@entry("Einsum")
def einsum(call: Call) -> Lowered:
    notation = einsum_notation(call.get("equation", ""))
    if notation is None:
        return opaque(call, "einsum with a repeated index (a diagonal)")
    return Lowered("einsum", call.inputs, {"notation": notation})


# -- normalisations --------------------------------------------------------------------------------


@entry("BatchNormalization")
def batch_norm(call: Call) -> Lowered:
    by_batch = bool(call.get("training_mode", 0)) and call.version >= 14
    return Lowered("batch_norm", call.inputs[:5], {"by_batch": by_batch})


@entry("InstanceNormalization")
def instance_norm(call: Call) -> Lowered:
    return Lowered("instance_norm", call.inputs[:3])


@entry("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
@entry("SimplifiedLayerNormalization", domain="com.microsoft")
def layer_norm(call: Call) -> Lowered:
    x = call.x()
    rank = len(x.shape) - call.get("axis", -1) % len(x.shape)
    is_centred = call.node.op_type == "LayerNormalization"
    return Lowered("layer_norm", [x, call.input(1), call.input(2)], {"rank": rank, "centred": is_centred})


@entry("GroupNormalization")
def group_norm(call: Call) -> Lowered:
    x, groups = call.x(), call.get("num_groups", 1)
    width = x.shape[1] // groups

    def literals(new: Resized) -> dict[Place, Any]:
        kept = [new.before(x, 1, (g + 1) * width) - new.before(x, 1, g * width) for g in range(groups)]
        return {"num_groups": sum(count > 0 for count in kept)}

    return Lowered("group_norm", call.inputs[:3], {"groups": groups}, literals)


@entry("MeanVarianceNormalization")
def mean_variance_norm(call: Call) -> Lowered:
    """(x - mean) / deviation over some axes: 0 / 0 where an index of another one is zeroed."""
    x = call.x()
    over = {axis % len(x.shape) for axis in call.get("axes", [0, 2, 3])}
    others = [axis for axis in range(len(x.shape)) if axis not in over]
    whole = {(0, axis): "is taken over it" for axis in over}
    return routed(x, straight(x), whole=whole, singular=others)


@entry("LRN")
def local_response(call: Call) -> Lowered:
    x = call.x()
    return routed(x, straight(x), whole={(0, 1): "looks at neighbours along it"})


@entry("LpNormalization")
def lp_normalization(call: Call) -> Lowered:
    x = call.x()
    axis = call.get("axis", -1) % len(x.shape)
    others = [k for k in range(len(x.shape)) if k != axis]
    return routed(x, straight(x), whole={(0, axis): "is taken over it"}, singular=others)


@shape_of("", "GroupNormalization")
def group_norm_shape(node: ir.Node, types: Sequence[Type | None]) -> list[Type]:
    """ONNX defines it by a function, whose shapes it does not infer."""
    return [each for each in types[:1] if each is not None]


# -- reductions ------------------------------------------------------------------------------------


def reduced_axes(call: Call) -> list[int] | None:
    """The axes of a reduction; None where they are computed from data."""
    rank = len(call.x().shape)
    if call.has(1) and call.number(1) is None:
        return None
    given = call.integers(1, "axes")
    if not given:
        return [] if call.get("noop_with_empty_axes", 0) else list(range(rank))
    return [axis % rank for axis in given]


def reduction(how: str, **more: Any) -> Entry:
    def lower(call: Call) -> Lowered:
        axes = reduced_axes(call)
        if axes is None:
            return opaque(call, "its axes are computed from data")
        keeps = bool(call.get("keepdims", 1))
        return Lowered("reduce", [call.x()], {"axes": tuple(axes), "keepdim": keeps, "how": how, **more})

    return lower


entry("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare")(reduction("sum"))
entry("ReduceMean")(reduction("mean"))
entry("ReduceMax", "ReduceMin", "ReduceProd")(reduction("extreme"))
entry("ReduceLogSum", "ReduceLogSumExp")(reduction("extreme", is_zero=False))


@entry("ArgMax", "ArgMin")
def arg(call: Call) -> Lowered:
    x = call.x()
    axes = (call.get("axis", 0) % len(x.shape),)
    attributes = {"axes": axes, "keepdim": bool(call.get("keepdims", 1)), "how": "extreme", "positions": (0,)}
    return Lowered("reduce", [x], attributes)


# -- pointwise -------------------------------------------------------------------------------------

UNARY = (
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Ceil", "Celu", "Cos", "Cosh", "Elu"),
    *("Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg"),
    *("Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign"),
    *("Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu"),
)
SEVERAL = (
    *("Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Clip", "Div", "Equal", "Greater"),
    *("GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum"),
    *("Where", "Xor"),
)
# Their names in the table of zero facts, where those are others.
NAMES = {
    **{"And": "logical_and", "Or": "logical_or", "Xor": "logical_xor", "Not": "logical_not", "Mod": "fmod"},
    **{"BitShift": "bitwise_left_shift", "BitwiseAnd": "bitwise_and", "BitwiseOr": "bitwise_or"},
    **{"BitwiseXor": "bitwise_xor", "Clip": "clamp", "Equal": "eq", "Greater": "gt", "GreaterOrEqual": "ge"},
    **{"Less": "lt", "LessOrEqual": "le", "Mean": "sum", "LeakyRelu": "leaky_relu"},
    **{"ThresholdedRelu": "thresholded_relu", "HardSigmoid": "linear_sigmoid"},
}


@entry(*UNARY, *SEVERAL)
def pointwise(call: Call) -> Lowered:
    places = [place for place, value in enumerate(call.inputs) if value is not None]
    return Lowered("pointwise", [call.inputs[place] for place in places], {"zero": zero_fact(call, places)})


def zero_fact(call: Call, places: Sequence[int]) -> zero.Zero:
    """What the table says of an operator; a number that the graph holds stands for itself."""
    kind = call.node.op_type
    given = [known_number(call, place) for place in range(len(call.inputs))]
    if kind in ("Max", "Min"):
        # Of any number of operands: all must be zero, and no number may decide otherwise.
        numbers = [each for each in given if each is not zero.OPERAND]
        worst = max if kind == "Max" else min
        is_held = all(zero.AT_ZERO[kind.lower()](0, each) == 0 for each in [worst(numbers, default=0)])
        tensors = [k for k, place in enumerate(places) if given[place] is zero.OPERAND]
        return zero.Zero((frozenset(tensors),)) if is_held and tensors else zero.NEVER
    if kind == "HardSigmoid":
        given += [call.get("alpha", 0.2), call.get("beta", 0.5)]
    if kind == "Shrink":
        given += [call.get("bias", 0.0), call.get("lambd", 0.5)]
    if kind == "Clip" and call.version < 11:
        given += [call.get("min", -np.inf), call.get("max", np.inf)]
    return zero.fact(NAMES.get(kind, kind.lower()), given, places)


def known_number(call: Call, place: int) -> Any:
    numbers = call.number(place)
    if call.inputs[place] is None:
        return None
    return numbers.reshape(()) if numbers is not None and numbers.size == 1 else zero.OPERAND


@entry("LSTM", "GRU", "RNN")
def recurrent(call: Call) -> Lowered:
    x, w, u = call.inputs[:3]
    assert x is not None and w is not None and u is not None
    if any(call.get(name, None) for name in ("activations", "activation_alpha", "activation_beta")):
        plain_ones = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
        directions = w.shape[0]
        if call.get("activations", []) != plain_ones[call.node.op_type] * directions:
            return opaque(call, "a recurrent layer with functions of its own")

    def literals(new: Resized) -> dict[Place, Any]:
        return {"hidden_size": new.shape(u)[2]}

    states = [call.input(place) for place in (5, 6, 7)]
    attributes = {"is_batch_first": bool(call.get("layout", 0)), "has_lengths": call.has(4)}
    return Lowered("recurrent_stacked", [x, w, u, call.input(3), *states], attributes, literals)
