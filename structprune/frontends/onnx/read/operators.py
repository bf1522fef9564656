"""The entries of ONNX operators that compute: products, normalisations, reductions, pointwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from structprune.frontends.lowering import Lowered
from structprune.frontends.onnx.read import (
    attention,  # noqa: F401  registers their entries
    fused,  # noqa: F401  registers their entries
    movement,  # noqa: F401  registers their entries
    quantized,  # noqa: F401  registers their entries
)
from structprune.frontends.onnx.read.lower import Call, Entry, entry, has_borders, has_scales, opaque
from structprune.frontends.onnx.record.trace import Type, shape_of
from structprune.operators import zero
from structprune.operators.elementwise import Pointwise
from structprune.operators.linear import (
    Convolution,
    Einsum,
    Linear,
    einsum_notation,
    matmul_notation,
)
from structprune.operators.normalisation import BatchNorm, GroupNorm, LayerNorm
from structprune.operators.recurrent import RecurrentStacked
from structprune.operators.reduction import How, Reduce
from structprune.operators.routing import Route, straight


@entry("Conv", "ConvTranspose")
def conv(call: Call) -> Lowered:
    is_transposed = call.node.op_type == "ConvTranspose"
    operands = [call.x(), call.inputs[1], call.input(2)]
    convolution = Convolution(call.get("group", 1), is_transposed, has_borders=has_borders(call))
    return Lowered(convolution, operands, {"groups": "group"})


@entry("Gemm")
def gemm(call: Call) -> Lowered:
    x, weight, bias = call.x(), call.inputs[1], call.input(2)
    if not call.get("transA", 0) and (bias is None or len(bias.shape) == 1):
        return Lowered(Linear(not call.get("transB", 0), not has_scales(call)), [x, weight, bias])
    left = "k i" if call.get("transA", 0) else "i k"
    right = "j k" if call.get("transB", 0) else "k j"
    if bias is None:
        return Lowered(Einsum(f"{left}, {right} -> i j"), [x, weight])
    added = " ".join("ij"[2 - len(bias.shape) :])
    return Lowered(Einsum(f"{left}, {right}, {added} -> i j", 2), [x, weight, bias])


@entry("MatMul")
def matmul(call: Call) -> Lowered:
    left, right = call.x(), call.inputs[1]
    assert right is not None
    if right.parameter is not None and len(right.shape) == 2 and len(left.shape) > 1:
        return Lowered(Linear(is_transposed=True), [left, right])
    return Lowered(Einsum(matmul_notation(len(left.shape), len(right.shape))), [left, right])


@entry("Einsum")
def einsum(call: Call) -> Lowered:
    notation = einsum_notation(call.get("equation", ""))
    if notation is None:
        return opaque(call, "einsum with a repeated index (a diagonal)")
    return Lowered(Einsum(notation), call.inputs)


# -- normalisations --------------------------------------------------------------------------------


@entry("BatchNormalization")
def batch_norm(call: Call) -> Lowered:
    by_batch = bool(call.get("training_mode", 0)) and call.version >= 14
    return Lowered(BatchNorm(by_batch, eps=call.get("epsilon", 1e-5)), call.inputs[:5])


@entry("InstanceNormalization")
def instance_norm(call: Call) -> Lowered:
    return Lowered(BatchNorm(by_sample=True), call.inputs[:3])


@entry("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
@entry("SimplifiedLayerNormalization", domain="com.microsoft")
def layer_norm(call: Call) -> Lowered:
    x = call.x()
    norm = LayerNorm(x.shape[call.get("axis", -1) % len(x.shape) :], call.node.op_type == "LayerNormalization")
    return Lowered(norm, [x, call.input(1), call.input(2)])


@entry("GroupNormalization")
def group_norm(call: Call) -> Lowered:
    return Lowered(GroupNorm(call.get("num_groups", 1)), call.inputs[:3], {"groups": "num_groups"})


@entry("MeanVarianceNormalization")
def mean_variance_norm(call: Call) -> Lowered:
    """(x - mean) / deviation over some axes: 0 / 0 where an index of another one is zeroed."""
    x = call.x()
    over = {axis % len(x.shape) for axis in call.get("axes", [0, 2, 3])}
    others = [axis for axis in range(len(x.shape)) if axis not in over]
    whole = {(0, axis): "is taken over it" for axis in over}
    return Lowered(Route(straight(x), whole, singular=others), [x])


@entry("LRN")
def local_response(call: Call) -> Lowered:
    x = call.x()
    return Lowered(Route(straight(x), {(0, 1): "looks at neighbours along it"}), [x])


@entry("LpNormalization")
def lp_normalization(call: Call) -> Lowered:
    x = call.x()
    axis = call.get("axis", -1) % len(x.shape)
    others = [k for k in range(len(x.shape)) if k != axis]
    return Lowered(Route(straight(x), {(0, axis): "is taken over it"}, singular=others), [x])


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


def reduction(how: How, keeps_zero: bool = True, keeps_constant: bool = False) -> Entry:
    def lower(call: Call) -> Lowered:
        axes = reduced_axes(call)
        if axes is None:
            return opaque(call, "its axes are computed from data")
        keeps = bool(call.get("keepdims", 1))
        return Lowered(Reduce(tuple(axes), keeps, how, keeps_zero, keeps_constant=keeps_constant), [call.x()])

    return lower


entry("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare")(reduction("sum"))
entry("ReduceMean")(reduction("mean", keeps_constant=True))
entry("ReduceMax", "ReduceMin")(reduction("extreme", keeps_constant=True))
entry("ReduceProd")(reduction("extreme"))
entry("ReduceLogSum", "ReduceLogSumExp")(reduction("extreme", keeps_zero=False))


@entry("ArgMax", "ArgMin")
def arg(call: Call) -> Lowered:
    x = call.x()
    axes = (call.get("axis", 0) % len(x.shape),)
    return Lowered(Reduce(axes, bool(call.get("keepdims", 1)), "extreme", positions=(0,)), [x])


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
    found = Pointwise(zero_fact(call, places), adds=call.node.op_type == "Add")
    return Lowered(found, [call.inputs[place] for place in places])


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

    states = [call.input(place) for place in (5, 6, 7)]
    layer = RecurrentStacked(u.shape[2], bool(call.get("layout", 0)), has_lengths=call.has(4))
    return Lowered(layer, [x, w, u, call.input(3), *states], {"hidden": "hidden_size"})
