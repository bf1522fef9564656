"""One small graph for each operator: law 2 for every group alone and for all together, run by onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

import structprune
from structprune.frontends.onnx.write import trial
from structprune.testing import check
from tests.onnx.build import build, weights
from tests.test_rules import ONLY_IN_ONNX

TOLERANCE = 1e-5  # float32, a share of the largest output
FLAT = "(float[N, 6] x) => (float[N, 5] y)"
IMAGE = "(float[N, 3, 8, 8] x) => (float[N, 5] y)"
TOKENS = "(float[N, L, 6] x) => (float[N, L, 5] y)"
# A convolution before, a pool and a classifier after what is tested.
STEM = {"w0": (8, 3, 3, 3), "b0": (8,)}
HEAD = {"wh": (5, 8), "bh": (5,)}
CONV = "h = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w0, b0)\n"
POOL = "\np = GlobalAveragePool (g)\nf = Flatten (p)\ny = Gemm <transB = 1> (f, wh, bh)"
# A linear layer before and after.
UP = "h = MatMul (x, w0)\n"
DOWN = "\ny = MatMul (g, wh)"
WIDE = {"w0": (6, 8), "wh": (8, 5)}


@dataclass(frozen=True)
class Row:
    """`groups` are the sizes of the widths that can be cut."""

    name: str
    signature: str
    body: str
    shapes: Mapping[str, Sequence[int]]
    groups: Sequence[int]
    arrays: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 20
    inputs: Any = None


def image(name: str, body: str, groups: Sequence[int], more: Mapping[str, Any] = {}, **options: Any) -> Row:
    return Row(name, IMAGE, CONV + body + POOL, {**STEM, **HEAD, **more}, groups, **options)


def tokens(name: str, body: str, groups: Sequence[int], more: Mapping[str, Any] = {}, **options: Any) -> Row:
    return Row(name, TOKENS, UP + body + DOWN, {**WIDE, **more}, groups, **options)


def ints(*numbers: int) -> Any:
    return np.array(numbers, dtype=np.int64)


ATTENTION = {f"w{letter}": (6, 8) for letter in "qkv"} | {"wo": (8, 5)}
QKV = "q = MatMul (x, wq)\nk = MatMul (x, wk)\nv = MatMul (x, wv)\n"

LENGTHS = {"lengths": np.array([6, 6], dtype=np.int32), "total": np.array(7, dtype=np.int32)}

# What was summed over its width is spread over a new one.
SUMMED = "q = ReduceSum <keepdims = 1> (t, last)\ng = Mul (q, s)"

ROWS = [
    # products
    Row("gemm", FLAT, "h = Gemm (x, w0, b0)\ng = Relu (h)\ny = Gemm <transB = 1> (g, w1, b1)",
        {"w0": (6, 8), "b0": (8,), "w1": (5, 8), "b1": (5,)}, (8,)),
    Row("gemm_of_transposed", "(float[6, 4] x) => (float[4, 5] y)",
        "h = Gemm <transA = 1, alpha = 0.5, beta = 2.0> (x, w0, b0)\ny = Gemm (h, w1)",
        {"w0": (6, 8), "b0": (1, 8), "w1": (8, 5)}, (8,)),
    tokens("matmul", "g = Relu (h)", (8,)),
    tokens("weight_behind_transpose", "t = Transpose <perm = [1, 0]> (w1)\ng = MatMul (h, t)", (8, 8), {"w1": (8, 8)}),
    tokens("weight_behind_identity_and_cast", "i = Identity (w1)\nc = Cast <to = 1> (i)\ng = MatMul (h, c)", (8, 8),
           {"w1": (8, 8)}),
    tokens("einsum", 'g = Einsum <equation = "bnd,de->bne"> (h, w1)', (8, 8), {"w1": (8, 8)}),
    image("conv_grouped", "g = Conv <kernel_shape = [1, 1], group = 2> (h, w1, b1)", (2, 4, 4),
          {"w1": (8, 4, 1, 1), "b1": (8,)}),
    image("conv_depthwise", "g = Conv <kernel_shape = [3, 3], group = 8> (h, w1, b1)", (8,),
          {"w1": (8, 1, 3, 3), "b1": (8,)}),
    image("conv_transposed", "g = ConvTranspose <kernel_shape = [2, 2], strides = [2, 2]> (h, w1, b1)", (8, 8),
          {"w1": (8, 8, 2, 2), "b1": (8,)}),
    image("conv_transposed_grouped", "g = ConvTranspose <kernel_shape = [2, 2], group = 2> (h, w1, b1)", (2, 4, 4),
          {"w1": (8, 4, 2, 2), "b1": (8,)}),
    image("conv_fused", 'g = com.microsoft.FusedConv <kernel_shape = [1, 1], activation = "Relu"> (h, w1, b1)', (8, 8),
          {"w1": (8, 8, 1, 1), "b1": (8,)}),
    image("conv_fused_with_a_sum", 'g = com.microsoft.FusedConv <kernel_shape = [1, 1], activation = "Relu"> (h, w1, b1, h)',
          (8,), {"w1": (8, 8, 1, 1), "b1": (8,)}),
    *(image(f"conv_fused_with_{name.lower()}_summed",
            f'k = com.microsoft.FusedConv <kernel_shape = [1, 1], activation = "{name}"> (h, w1)\n'
            "q = ReduceSum <keepdims = 1> (k, one)\ng = Mul (q, s)", groups, {"w1": (8, 8, 1, 1), "s": (1, 8, 1, 1)},
            arrays={"one": ints(1)}) for name, groups in (("Relu", (8, 8, 8)), ("Sigmoid", (8, 8)))),
    Row("gemm_fused", FLAT, 'g = com.microsoft.FusedGemm <activation = "Tanh", transB = 1> (x, w0, b0)\n'
        "y = Gemm <transB = 1> (g, w1, b1)", {"w0": (8, 6), "b0": (8,), "w1": (5, 8), "b1": (5,)}, (8,)),
    tokens("matmul_fused", "g = com.microsoft.FusedMatMul <transB = 1, alpha = 0.5> (h, w1)", (8, 8), {"w1": (8, 8)}),
    # normalisations
    image("batch_norm", "g = BatchNormalization (h, s, t, m, v)", (8,), {"s": (8,), "t": (8,), "m": (8,)},
          arrays={"v": np.linspace(0.5, 2, 8, dtype=np.float32)}),
    image("instance_norm", "g = InstanceNormalization (h, s, t)", (8,), {"s": (8,), "t": (8,)}),
    image("group_norm", "g = GroupNormalization <num_groups = 2> (h, s, t)", (2, 4), {"s": (8,), "t": (8,)}, opset=21),
    image("group_norm_by_group", "g = GroupNormalization <num_groups = 2> (h, s, t)", (2, 4), {"s": (2,), "t": (2,)},
          opset=18),
    image("mean_variance_norm", "g = MeanVarianceNormalization (h)", (8,)),
    image("local_response_norm", "g = LRN <size = 3> (h)", ()),
    tokens("lp_norm", "g = LpNormalization <axis = -1> (h)", ()),
    tokens("layer_norm", "g = LayerNormalization (h, s, t)", (8,), {"s": (8,), "t": (8,)}),
    tokens("rms_norm", "g = RMSNormalization (h, s)", (8,), {"s": (8,)}, opset=23),
    tokens("simplified_layer_norm", "g = SimplifiedLayerNormalization <axis = -1, epsilon = 1e-5> (h, s)", (8,),
           {"s": (8,)}),
    tokens("layer_norm_written_out",
           "m = ReduceMean <keepdims = 1> (h, last)\nd = Sub (h, m)\nq = Mul (d, d)\nv = ReduceMean <keepdims = 1> (q, last)\n"
           "e = Add (v, epsilon)\nr = Sqrt (e)\nn = Div (d, r)\ng = Mul (n, s)", (8,), {"s": (8,)},
           arrays={"last": ints(-1), "epsilon": np.float32(1e-5)}),
    tokens("skip_layer_norm", "k = MatMul (x, w1)\ng = com.microsoft.SkipLayerNormalization (h, k, s, t, b)", (8,),
           {"w1": (6, 8), "s": (8,), "t": (8,), "b": (8,)}),
    tokens("skip_simplified_layer_norm",
           "k = MatMul (x, w1)\nn, , , a = com.microsoft.SkipSimplifiedLayerNormalization (h, k, s)\ng = Add (n, a)", (8,),
           {"w1": (6, 8), "s": (8,)}),
    Row("embed_layer_norm", "(int64[N, L] x) => (float[N, L, 5] y)",
        "i = Cast <to = 6> (x)\nh, m = com.microsoft.EmbedLayerNormalization (i, , words, places, , s, t)\n"
        "y = MatMul (h, wh)", {"words": (11, 8), "places": (64, 8), "s": (8,), "t": (8,), "wh": (8, 5)}, (8,)),
    Row("embed_layer_norm_with_all", "(int64[N, L] x) => (float[N, L, 5] y)",
        "i = Cast <to = 6> (x)\n"
        "h, m, e = com.microsoft.EmbedLayerNormalization (i, i, words, places, kinds, s, t, , i)\nk = Add (h, e)\n"
        "y = MatMul (k, wh)",
        {"words": (11, 8), "places": (64, 8), "kinds": (11, 8), "s": (8,), "t": (8,), "wh": (8, 5)}, (8,)),
    # pointwise
    *(tokens(name.lower(), f"g = {name} (h)", (8,)) for name in (
        "Abs", "Atan", "Ceil", "Elu", "Erf", "Gelu", "HardSwish", "LeakyRelu", "Mish", "Neg", "Selu", "Sign", "Sin",
        "Softsign", "Tanh", "ThresholdedRelu", "Floor", "Celu", "Identity")),
    tokens("tanh_summed", "t = Tanh (h)\n" + SUMMED, (8, 8), {"s": (8,)}, arrays={"last": ints(2)}),
    *(tokens(f"{name.lower()}_summed", f"t = {name} (h)\n" + SUMMED, (8,), {"s": (8,)}, arrays={"last": ints(2)})
      for name in ("Sigmoid", "Exp", "Cos", "Softplus")),
    *(tokens(f"{name.lower()}_summed", f"t = {name} (h)\n" + SUMMED, (8, 8), {"s": (8,)}, arrays={"last": ints(2)})
      for name in ("Gelu", "HardSwish", "Mish")),
    *(tokens(name.lower(), f"q = Abs (h)\nr = Add (q, more)\ng = {name} (r)", (8,), arrays={"more": np.float32(1.5)})
      for name in ("Acosh", "Log", "Reciprocal", "Sqrt")),
    *(tokens(name.lower(), f"q = Clip (h, low, high)\ng = {name} (q)", (8,),
             arrays={"low": np.float32(-0.5), "high": np.float32(0.5)})
      for name in ("Acos", "Asin", "Asinh", "Atanh", "Cosh", "HardSigmoid", "Round", "Shrink", "Sinh", "Tan")),
    tokens("swish", "g = Swish (h)", (8,), opset=24),
    *(tokens(f"{name.lower()}_of_two", f"k = MatMul (x, w1)\ng = {name} (h, k)", (8,), {"w1": (6, 8)})
      for name in ("Max", "Mean", "Min", "Sum", "Sub")),
    tokens("cast_like", "k = MatMul (x, w1)\ng = CastLike (h, k)", (8, 8), {"w1": (6, 8)}),
    *(tokens(name.lower(), f"k = MatMul (x, w1)\nc = {name} (h, k)\nn = Not (c)\nd = Cast <to = 1> (n)\ng = Mul (d, s)",
             (8,), {"w1": (6, 8), "s": (8,)}) for name in ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal")),
    *(tokens(name.lower(), f"p = Greater (h, s)\nq = Less (h, s)\nc = {name} (p, q)\nd = Cast <to = 1> (c)\ng = Mul (d, s)",
             (8,), {"s": (8,)}) for name in ("And", "Or", "Xor")),
    *(tokens(name.lower(), f"c = {name} (h)\nd = Cast <to = 1> (c)\ng = Mul (d, s)", (8,), {"s": (8,)})
      for name in ("IsInf", "IsNaN")),
    *(tokens(name.lower(), f"q = Cast <to = 6> (h)\nc = {name} (q, two)\nd = Cast <to = 1> (c)\ng = Mul (d, s)", (8,),
             {"s": (8,)}, arrays={"two": np.int32(2)}) for name in ("BitwiseAnd", "BitwiseOr", "BitwiseXor", "Mod")),
    tokens("bitwise_not", "q = Cast <to = 6> (h)\nc = BitwiseNot (q)\nd = Cast <to = 1> (c)\ng = Mul (d, s)", (8,), {"s": (8,)}),
    tokens("bit_shift", 'a = Abs (h)\nq = Cast <to = 12> (a)\nc = BitShift <direction = "LEFT"> (q, two)\nd = Cast <to = 1> (c)\n'
           "g = Mul (d, s)", (8,), {"s": (8,)}, arrays={"two": np.uint32(2)}),
    tokens("power", "g = Pow (h, two)", (8,), arrays={"two": np.float32(2)}),
    *(tokens(f"{name.lower()}_fused", f"g = com.microsoft.{name} (h)", (8,)) for name in ("Gelu", "QuickGelu")),
    tokens("bias_gelu", "g = com.microsoft.BiasGelu (h, b)", (8,), {"b": (8,)}),
    tokens("fast_gelu", "g = com.microsoft.FastGelu (h, b)", (8,), {"b": (8,)}),
    tokens("clip", "g = Clip (h, low, high)", (8,), arrays={"low": np.float32(-0.5), "high": np.float32(0.5)}),
    tokens("clip_above_zero_summed", "t = Clip (h, low)\n" + SUMMED, (8,), {"s": (8,)},
           arrays={"low": np.float32(0.1), "last": ints(2)}),
    tokens("number_added_and_summed", "t = Add (h, one)\n" + SUMMED, (8,), {"s": (8,)},
           arrays={"one": np.float32(1), "last": ints(2)}),
    tokens("prelu", "g = PRelu (h, s)", (8,), {"s": (8,)}),
    tokens("gated", "s = Sigmoid (h)\nk = MatMul (x, w1)\ng = Mul (k, s)", (8,), {"w1": (6, 8)}),
    tokens("where", "c = Greater (h, zero)\ng = Where (c, h, zero)", (8,), arrays={"zero": np.float32(0)}),
    # quantization
    tokens("quantized_weight", "d = DequantizeLinear <axis = 1> (q, s, z)\ng = MatMul (h, d)", (8, 8), {"s": (8,)},
           arrays={"q": np.arange(-32, 32, dtype=np.int8).reshape(8, 8), "z": np.full(8, 3, dtype=np.int8)}),
    *(tokens(f"matmul_of_integers_{kind}", "q, a, b = DynamicQuantizeLinear (h)\nk = MatMulInteger (q, w1, b, z)\n"
             "c = Cast <to = 1> (k)\nt = Mul (a, s)\nm = Mul (c, t)\ng = Add (m, b1)", (8, 8), {"s": (8,), "b1": (8,)},
             arrays={"w1": np.arange(-32, 32, dtype=np.int8).reshape(8, 8), "z": z})
      for kind, z in (("by_column", np.arange(8, dtype=np.int8)), ("by_tensor", np.int8(3)))),
    tokens("quantized_by_range_where_it_is_not_zero", "e = Exp (h)\nq, a, b = DynamicQuantizeLinear (e)\n"
           "k = MatMulInteger (q, w1, b)\nc = Cast <to = 1> (k)\ng = Mul (c, a)", (8,),
           arrays={"w1": np.arange(-32, 32, dtype=np.int8).reshape(8, 8)}),
    *(image(f"conv_of_integers_by_{groups}", "q, a, b = DynamicQuantizeLinear (h)\n"
            f"k = ConvInteger <kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = {groups}> (q, w1, b)\n"
            "c = Cast <to = 1> (k)\ng = Mul (c, a)", widths,
            arrays={"w1": np.arange(576 // groups, dtype=np.uint8).reshape(8, 8 // groups, 3, 3)})
      for groups, widths in ((1, (8, 8)), (2, (2, 4, 4)))),
    *(tokens(f"quantized_activation_{what}", f"q = QuantizeLinear (h, scale, {first})\n"
             f"d = DequantizeLinear (q, scale, {second})\nr = ReduceSum <keepdims = 1> (d, last)\ng = Mul (r, s)", groups,
             {"s": (8,)}, arrays={"scale": np.float32(0.05), "z": np.uint8(128), "z2": np.uint8(100), "last": ints(2)})
      for what, first, second, groups in (
          ("and_back", "z", "z", (8, 8)), ("around_another_point", "z", "z2", (8,)), ("of_one_point", "z2", "z", (8,)))),
    tokens("quantized_activation_read_as_it_is", "q = QuantizeLinear (h, scale, z)\nc = Cast <to = 1> (q)\n"
           "r = ReduceSum <keepdims = 1> (c, last)\ng = Mul (r, s)", (8,), {"s": (8,)},
           arrays={"scale": np.float32(0.05), "z": np.uint8(128), "last": ints(2)}),
    tokens("quantized_by_range_and_read_as_it_is", "q, a, b = DynamicQuantizeLinear (h)\nc = Cast <to = 1> (q)\n"
           "r = ReduceSum <keepdims = 1> (c, last)\ng = Mul (r, s)", (8,), {"s": (8,)}, arrays={"last": ints(2)}),
    *(tokens(f"{name.lower()}_with_signs_and_summed", f"i = MatMul (x, w1)\nj = Cos (i)\nk = Sub (j, half)\nt = {name} (h, k)\n"
             + cast + SUMMED.replace("(t,", "(u,"), (8,), {"s": (8,), "w1": (6, 8)},
             arrays={"half": np.float32(0.4), "last": ints(2)})
      for name, cast in (("Min", "u = Identity (t)\n"), ("Max", "u = Identity (t)\n"), ("Greater", "u = Cast <to = 1> (t)\n"),
                         ("LessOrEqual", "u = Cast <to = 1> (t)\n"))),
    tokens("padded_with_ones_along_another_axis", "t = Pad (h, pads, fill)\n" + SUMMED, (8,), {"s": (8,)},
           arrays={"pads": ints(0, 1, 0, 0, 1, 0), "fill": np.float32(1), "last": ints(2)}),
    tokens("argmax_of_the_last", "a = ArgMax <axis = 1, keepdims = 1, select_last_index = 1> (h)\nt = Cast <to = 1> (a)\n" + SUMMED,
           (8,), {"s": (8,)}, arrays={"last": ints(2)}),
    image("positions_in_a_pool", "v, i = MaxPool <kernel_shape = [2, 2]> (h)\nc = Cast <to = 1> (i)\n"
          "q = ReduceSum <keepdims = 1> (c, one)\ng = Mul (q, s)", (8,), {"s": (1, 8, 1, 1)}, arrays={"one": ints(1)}),
    *(Row(f"attention_of_learned_rows_{causal}", TOKENS, "k = MatMul (x, wk)\nv = MatMul (x, wv)\nq = Add (q0, b0)\n"
          f"o = Attention <q_num_heads = 2, kv_num_heads = 2, is_causal = {causal}> (q, k, v)\n"
          "t = Transpose <perm = [0, 2, 1]> (o)\nf = MatMul (t, mix)\nu = Transpose <perm = [0, 2, 1]> (f)\ny = MatMul (u, wo)",
          {"q0": (1, 6, 8), "b0": (8,), "wk": (6, 8), "wv": (6, 8), "mix": (6, 7), "wo": (8, 5)}, groups, opset=23,
          inputs={"x": (1, 7, 6)}) for causal, groups in ((0, (2, 4, 4, 6)), (1, (2, 4, 4)))),
    *(Row(f"{name.lower()}_over_channels", "(float[N, 6, 3] x) => (float[7, N, 5] y)",
          f"c = Conv <kernel_shape = [1]> (x, wc)\nt = Transpose <perm = [1, 0, 2]> (c)\n"
          f"h = {name} <hidden_size = 4> (t, w, r, b)\ns = Squeeze (h, one)\ny = MatMul (s, wh)",
          {"wc": (7, 6, 1), "w": (1, gates * 4, 3), "r": (1, gates * 4, 4), "b": (1, gates * 8), "wh": (4, 5)}, (4,),
          arrays={"one": ints(1)}) for name, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1))),
    # moving axes
    image("flatten", "r = Relu (h)\nq = Flatten (r)\nk = Gemm <transB = 1> (q, w1)\ng = Reshape (k, four)", (8, 8),
          {"w1": (8, 512)}, arrays={"four": ints(0, -1, 1, 1)}),
    tokens("heads_by_constant", "r = Reshape (h, shape)\nt = Transpose <perm = [0, 2, 1, 3]> (r)\n"
           "s = Transpose <perm = [0, 2, 1, 3]> (t)\ng = Reshape (s, back)", (2, 4),
           arrays={"shape": ints(0, 0, 2, 4), "back": ints(0, 0, 8)}),
    tokens("heads_by_arithmetic",
           "s = Shape (h)\nb = Gather (s, zero)\nn = Gather (s, one)\nc = Gather (s, two)\nd = Div (c, heads)\n"
           "b1 = Unsqueeze (b, zero1)\nn1 = Unsqueeze (n, zero1)\nd1 = Unsqueeze (d, zero1)\n"
           "to = Concat <axis = 0> (b1, n1, heads1, d1)\nr = Reshape (h, to)\n"
           "t = Transpose <perm = [0, 2, 1, 3]> (r)\nv = Transpose <perm = [0, 2, 1, 3]> (t)\n"
           "c1 = Unsqueeze (c, zero1)\nback = Concat <axis = 0> (b1, n1, c1)\ng = Reshape (v, back)", (2, 4),
           arrays={"zero": np.int64(0), "one": np.int64(1), "two": np.int64(2), "heads": np.int64(2),
                   "zero1": ints(0), "heads1": ints(2)}),
    image("concat", "k = Conv <kernel_shape = [1, 1]> (x, w1)\nc = Concat <axis = 1> (h, k, h)\n"
          "g = Conv <kernel_shape = [1, 1]> (c, w2)", (8, 4, 8), {"w1": (4, 3, 1, 1), "w2": (8, 20, 1, 1)}),
    tokens("split_even", "a, b = Split <axis = -1, num_outputs = 2> (h)\ns = Sigmoid (b)\nm = Mul (a, s)\n"
           "g = MatMul (m, w1)", (4, 8), {"w1": (4, 8)}),
    tokens("split_uneven", "a, b = Split <axis = -1> (h, parts)\nq = MatMul (a, w1)\nr = MatMul (b, w2)\ng = Add (q, r)",
           (3, 5, 8), {"w1": (3, 8), "w2": (5, 8)}, arrays={"parts": ints(3, 5)}),
    tokens("split_unnamed", "a, b = Split <axis = 2> (h)\nq = MatMul (a, w1)\nr = MatMul (b, w2)\ng = Add (q, r)",
           (4, 4, 8), {"w1": (4, 8), "w2": (4, 8)}, opset=13),
    tokens("split_by_attribute", "a, b = Split <axis = 2, split = [3, 5]> (h)\nq = MatMul (a, w1)\nr = MatMul (b, w2)\n"
           "g = Add (q, r)", (3, 5, 8), {"w1": (3, 8), "w2": (5, 8)}, opset=11),
    tokens("slices", "a = Slice (h, zero, three, last)\nb = Slice (h, three, end, last)\nq = MatMul (a, w1)\n"
           "r = MatMul (b, w2)\ng = Add (q, r)", (3, 5, 8), {"w1": (3, 8), "w2": (5, 8)},
           arrays={"zero": ints(0), "three": ints(3), "end": ints(2**63 - 1), "last": ints(-1)}),
    tokens("slice_from_the_end", "a = Slice (h, minus, end, last)\ng = MatMul (a, w1)", (3, 5, 8), {"w1": (5, 8)},
           arrays={"minus": ints(-5), "end": ints(2**63 - 1), "last": ints(2)}),
    tokens("slices_strided", "a = Slice (h, zero, end, last, two)\nb = Slice (h, one, end, last, two)\nc = Sigmoid (b)\n"
           "m = Mul (a, c)\ng = MatMul (m, w1)", (4, 8), {"w1": (4, 8)},
           arrays={"zero": ints(0), "one": ints(1), "two": ints(2), "end": ints(2**63 - 1), "last": ints(-1)}),
    tokens("slice_strided_ragged", "a = Slice (h, one, end, last, three)\ng = MatMul (a, w1)", (2, 8), {"w1": (3, 8)},
           arrays={"one": ints(1), "three": ints(3), "end": ints(8), "last": ints(-1)}),
    tokens("slice_reversed", "g = Slice (h, minus, end, last, minus)", (8,),
           arrays={"minus": ints(-1), "end": ints(-(2**63) + 1), "last": ints(-1)}),
    tokens("slice_reversed_and_added", "a = Slice (h, seven, end, last, minus)\ng = Add (a, h)", (4,),
           arrays={"minus": ints(-1), "seven": ints(7), "end": ints(-9), "last": ints(-1)}),
    tokens("slices_of_a_weight", "a = Slice (w1, zero, three, zero)\nb = Slice (w1, three, eight, zero)\n"
           "p, q = Split <axis = -1> (h, parts)\nr = MatMul (p, a)\ns = MatMul (q, b)\ng = Add (r, s)", (3, 5, 8),
           {"w1": (8, 8)}, arrays={"zero": ints(0), "three": ints(3), "eight": ints(8), "parts": ints(3, 5)}),
    image("pad_channels", "q = Pad (h, pads)\ng = Conv <kernel_shape = [1, 1]> (q, w1)", (2, 2, 8, 8), {"w1": (8, 12, 1, 1)},
          arrays={"pads": ints(0, 2, 0, 0, 0, 2, 0, 0)}),
    image("resize_by_scale", 'g = Resize <mode = "nearest"> (h, , scales)', (8,),
          arrays={"scales": np.array([1, 1, 2, 2], dtype=np.float32)}),
    image("resize_by_size", 'g = Resize <mode = "linear"> (h, , , sizes)', (8,), arrays={"sizes": ints(2, 8, 5, 5)}),
    image("depth_to_space", "q = Conv <kernel_shape = [1, 1]> (h, w1)\ng = DepthToSpace <blocksize = 2> (q)", (8, 8),
          {"w1": (32, 8, 1, 1)}),
    image("depth_to_space_crd", 'q = Conv <kernel_shape = [1, 1]> (h, w1)\ng = DepthToSpace <blocksize = 2, mode = "CRD"> (q)',
          (8, 8), {"w1": (32, 8, 1, 1)}),
    image("space_to_depth", "q = SpaceToDepth <blocksize = 2> (h)\ng = Conv <kernel_shape = [1, 1]> (q, w1)", (8, 8),
          {"w1": (8, 32, 1, 1)}),
    image("squeeze_and_excite", "q = GlobalAveragePool (h)\nr = Conv <kernel_shape = [1, 1]> (q, w1)\n"
          "s = Relu (r)\nt = Conv <kernel_shape = [1, 1]> (s, w2)\nu = Sigmoid (t)\ng = Mul (h, u)", (8, 4),
          {"w1": (4, 8, 1, 1), "w2": (8, 4, 1, 1)}),
    image("channel_shuffle", "q = Reshape (h, apart)\nr = Transpose <perm = [0, 2, 1, 3, 4]> (q)\n"
          "g = Reshape (r, together)", (2, 4), arrays={"apart": ints(0, 2, 4, 8, 8), "together": ints(0, -1, 8, 8)}),
    image("pools", "q = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (h)\n"
          "g = AveragePool <kernel_shape = [2, 2]> (q)", (8,)),
    tokens("expand", "e = Expand (s, shape)\ng = Mul (h, e)", (8,), {"s": (1, 1, 8)}, arrays={"shape": ints(1, 1, 8)}),
    tokens("tile", "t = Tile (h, times)\ng = MatMul (t, w1)", (2, 8, 8), {"w1": (16, 8)}, arrays={"times": ints(1, 1, 2)}),
    tokens("unsqueeze_and_squeeze", "u = Unsqueeze (h, axes)\nr = Relu (u)\ng = Squeeze (r, axes)", (8,),
           arrays={"axes": ints(1)}),
    Row("embedding", "(int64[N, L] x) => (float[N, L, 5] y)", "h = Gather (table, x)\ny = MatMul (h, wh)",
        {"table": (11, 8), "wh": (8, 5)}, (8,)),
    tokens("select", "a = Gather <axis = 2> (h, three)\nu = Unsqueeze (a, last)\ng = Mul (u, s)", (3, 4, 8), {"s": (8,)},
           arrays={"three": np.int64(3), "last": ints(-1)}),
    tokens("gather_of_a_width", "g = Gather <axis = 2> (h, order)", (8,), arrays={"order": ints(7, 6, 5, 4, 0, 1, 2, 3)}),
    tokens("gather_of_some", "a = Gather <axis = 2> (h, some)\ng = MatMul (a, w1)", (3, 5, 8), {"w1": (3, 8)},
           arrays={"some": ints(-1, 2, 4)}),
    tokens("gather_in_two_axes", "a = Gather <axis = 2> (h, some)\nb = Reshape (a, flat)\ng = MatMul (b, w1)", (2, 2, 4, 8),
           {"w1": (4, 8)}, arrays={"some": ints(7, 2, 4, 1).reshape(2, 2), "flat": ints(0, 0, 4)}),
    tokens("flipped", "f = Slice (h, minus, least, last, minus)\nm = MatMul (x, w1)\ng = Mul (f, m)", (8,),
           {"w1": (6, 8)}, arrays={"minus": ints(-1), "least": ints(-(2**63)), "last": ints(2)}),
    tokens("gather_nd", "i = Cast <to = 7> (pairs)\na = GatherND (table, i)\ng = Mul (h, a)", (8,),
           {"table": (5, 4, 8)}, arrays={"pairs": np.array([[3, 2]], dtype=np.int32)}),
    tokens("reduce_sum", "q = ReduceSum <keepdims = 1> (h, last)\ng = Mul (q, s)", (8, 8), {"s": (8,)},
           arrays={"last": ints(2)}),
    *(tokens(f"{name.lower()}_over_positions", f"q = {name} <keepdims = 1> (h, one)\ng = Mul (q, s)", (8,), {"s": (8,)},
             arrays={"one": ints(1)}) for name in (
        "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSumSquare")),
    *(tokens(f"{name.lower()}_over_a_width", f"q = {name} <keepdims = 1> (h, last)\ng = Mul (q, s)", groups, {"s": (8,)},
             arrays={"last": ints(2)}) for name, groups in (
        ("ReduceL1", (8, 8)), ("ReduceL2", (8, 8)), ("ReduceLogSum", (8,)), ("ReduceLogSumExp", (8,)), ("ReduceMax", (8,)),
        ("ReduceMin", (8,)), ("ReduceProd", (8,)), ("ReduceSumSquare", (8, 8)))),
    *(image(name.lower(), f"g = {name} (h)", (8,)) for name in ("GlobalLpPool", "GlobalMaxPool")),
    image("lp_pool", "g = LpPool <kernel_shape = [2, 2]> (h)", (8,)),
    *(tokens(f"{name.lower()}_over_positions", f"g = {name} <axis = 1> (h)", (8,)) for name in ("Hardmax", "LogSoftmax", "Softmax")),
    tokens("top_k", "v, i = TopK <axis = 1> (h, two)\nc = Cast <to = 1> (i)\nd = Mul (c, s)\ng = Add (v, d)", (8,),
           {"s": (8,)}, arrays={"two": ints(2)}, inputs={"x": (2, 7, 6)}),
    tokens("cumulative_sum", "g = CumSum (h, one)", (8,), arrays={"one": np.int64(1)}),
    tokens("argmin", "a = ArgMin <axis = 1, keepdims = 1> (h)\nc = Cast <to = 1> (a)\ng = Mul (c, s)", (8,), {"s": (8,)}),
    tokens("dropout", "g = Dropout (h)", (8,)),
    tokens("triangle", "g = Trilu (h)", ()),
    tokens("zeros_of_a_shape", "z = ConstantOfShape (shape)\ng = Add (h, z)", (8,), arrays={"shape": ints(1, 1, 8)}),
    tokens("gather_elements", "a = Abs (h)\nb = Clip (a, low, low)\ni = Cast <to = 7> (b)\ng = GatherElements <axis = 1> (h, i)", (8,),
           arrays={"low": np.float32(1)}, inputs={"x": (2, 7, 6)}),
    tokens("scatter_elements", "a = Abs (h)\nb = Clip (a, low, low)\ni = Cast <to = 7> (b)\nk = MatMul (x, w1)\n"
           "g = ScatterElements <axis = 1> (h, i, k)", (8,), {"w1": (6, 8)}, arrays={"low": np.float32(0)},
           inputs={"x": (2, 1, 6)}),
    tokens("scatter_nd", "g = ScatterND (h, at, u)", (8,), {"u": (1, 8)}, arrays={"at": ints(1, 2).reshape(1, 2)},
           inputs={"x": (2, 7, 6)}),
    image("grid_sample", 'g = GridSample (h, grid)', (8,), arrays={"grid": np.linspace(-1, 1, 32, dtype=np.float32).reshape(2, 4, 2, 2)},
          inputs={"x": (2, 3, 8, 8)}),
    image("upsample", 'g = Upsample <mode = "nearest"> (h, scales)', (8,), opset=9,
          arrays={"scales": np.array([1, 1, 2, 2], dtype=np.float32)}),
    tokens("softmax_over_a_width", "g = Softmax <axis = -1> (h)", ()),
    tokens("argmax", "a = ArgMax <axis = -1, keepdims = 1> (h)\nc = Cast <to = 1> (a)\ng = Mul (c, s)", (8,), {"s": (8,)}),
    # attention
    Row("attention_written_out", TOKENS, QKV + "t = Transpose <perm = [0, 2, 1]> (k)\na = MatMul (q, t)\n"
        "m = Mul (a, scale)\np = Softmax (m)\no = MatMul (p, v)\ny = MatMul (o, wo)", ATTENTION, (8, 8),
        arrays={"scale": np.float32(0.3)}),
    Row("attention", TOKENS, QKV + "o = Attention <q_num_heads = 2, kv_num_heads = 2> (q, k, v)\ny = MatMul (o, wo)",
        ATTENTION, (2, 4, 4), opset=23),
    Row("attention_grouped", TOKENS, QKV + "o = Attention <q_num_heads = 4, kv_num_heads = 2, is_causal = 1> (q, k, v)\n"
        "y = MatMul (o, wo)", {**ATTENTION, "wk": (6, 4), "wv": (6, 4)}, (2, 2, 2, 2), opset=23),
    Row("group_query_attention", TOKENS, QKV + "o = com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2> "
        "(q, k, v, , , lengths, total)\ny = MatMul (o, wo)", {"wq": (6, 32), "wk": (6, 16), "wv": (6, 16), "wo": (32, 5)},
        (2, 2), arrays=LENGTHS, inputs={"x": (2, 7, 6)}),
    Row("group_query_attention_packed_and_turned", TOKENS,
        "q = MatMul (x, w)\no = com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2, do_rotary = 1> "
        "(q, , , , , lengths, total, c, s)\ny = MatMul (o, wo)", {"w": (6, 128), "wo": (64, 5), "c": (20, 8), "s": (20, 8)},
        (2, 2), arrays=LENGTHS, inputs={"x": (2, 7, 6)}),
    Row("group_query_attention_with_a_past",
        "(float[2, 1, 6] x, float[2, 2, 8, 16] pk, float[2, 2, 8, 16] pv) => "
        "(float[2, 1, 5] y, float[2, 2, T, 16] nk, float[2, 2, T, 16] nv)",
        QKV + "o, nk, nv = com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2, do_rotary = 1> "
        "(q, k, v, pk, pv, lengths, total, c, s)\ny = MatMul (o, wo)",
        {"wq": (6, 64), "wk": (6, 32), "wv": (6, 32), "wo": (64, 5), "c": (20, 8), "s": (20, 8)}, (2,),
        arrays={"lengths": np.array([8, 8], dtype=np.int32), "total": np.array(9, dtype=np.int32)}),
    Row("multi_head_attention", TOKENS,
        QKV + "o = com.microsoft.MultiHeadAttention <num_heads = 2> (q, k, v, b)\ny = MatMul (o, wo)",
        {**ATTENTION, "b": (24,)}, (2, 4, 4)),
    Row("fused_attention", TOKENS, "o = com.microsoft.Attention <num_heads = 2> (x, w, b)\ny = MatMul (o, wo)",
        {"w": (6, 24), "b": (24,), "wo": (8, 5)}, (2, 4, 4)),
    tokens("rotary", "g = com.microsoft.RotaryEmbedding <num_heads = 2> (h, at, c, s)", (2, 2), {"c": (20, 2), "s": (20, 2)},
           arrays={"at": ints(0)}),
    tokens("rotary_of_onnx", "g = RotaryEmbedding <num_heads = 2> (h, c, s, at)", (2, 2), {"c": (20, 2), "s": (20, 2)},
           arrays={"at": np.arange(14).reshape(2, 7)}, opset=23, inputs={"x": (2, 7, 6)}),
    tokens("rotary_of_onnx_interleaved", "r = Reshape (h, apart)\nt = Transpose <perm = [0, 2, 1, 3]> (r)\n"
           "u = RotaryEmbedding <interleaved = 1> (t, c, s, at)\nv = Transpose <perm = [0, 2, 1, 3]> (u)\n"
           "g = Reshape (v, back)", (2, 2), {"c": (20, 2), "s": (20, 2)}, opset=23, inputs={"x": (2, 7, 6)},
           arrays={"at": np.arange(14).reshape(2, 7), "apart": ints(0, 0, 2, 4), "back": ints(0, 0, 8)}),
    # recurrent
    *(Row(name.lower(), "(float[7, N, 6] x) => (float[7, N, 5] y)",
          f"h, = {name} <hidden_size = 4> (x, w, r, b)\ns = Squeeze (h, one)\ny = MatMul (s, wh)".replace("h, =", "h ="),
          {"w": (1, gates * 4, 6), "r": (1, gates * 4, 4), "b": (1, gates * 8), "wh": (4, 5)}, (4,),
          arrays={"one": ints(1)}) for name, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1))),
    Row("lstm_both_ways", "(float[7, N, 6] x) => (float[7, N, 5] y)",
        'h = LSTM <hidden_size = 4, direction = "bidirectional"> (x, w, r, b)\nt = Transpose <perm = [0, 2, 1, 3]> (h)\n'
        "s = Reshape (t, shape)\ny = MatMul (s, wh)",
        {"w": (2, 16, 6), "r": (2, 16, 4), "b": (2, 32), "wh": (8, 5)}, (4,), arrays={"shape": ints(0, 0, -1)}),
]  # fmt: skip


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS])
def test_removing_is_zeroing(row: Row) -> None:
    model = build(row.signature, row.body, {**weights(row.shapes), **row.arrays}, row.opset)
    analysis = structprune.analyze(model, row.inputs)
    assert sorted(group.size for group in analysis.groups) == sorted(row.groups), str(analysis)
    if row.groups:
        check(model, row.inputs, tolerance=TOLERANCE)


@pytest.mark.parametrize(("name", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_layers_with_their_batch_first(name: str, gates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime has none on the CPU: ONNX's own reference runs them."""

    def run(model: ir.Model, feeds: Any, is_plain: bool = False) -> Any:
        return ReferenceEvaluator(ir.to_proto(model)).run(None, dict(feeds))

    monkeypatch.setattr(trial, "run", run)
    body = f"h, l = {name} <hidden_size = 4, layout = 1> (x, w, r, b, , s)\na = Squeeze (h, two)\nc = Add (a, l)\ny = MatMul (c, wh)"
    shapes = {"w": (1, gates * 4, 6), "r": (1, gates * 4, 4), "b": (1, gates * 8), "s": (2, 1, 4), "wh": (4, 5)}
    model = build("(float[2, 7, 6] x) => (float[2, 7, 5] y)", body, {**weights(shapes), "two": ints(2)})
    assert [group.size for group in structprune.analyze(model).groups] == [4]
    check(model, tolerance=TOLERANCE)


def test_every_rule_that_torch_does_not_use_is_met() -> None:
    kinds = set()
    for row in ROWS:
        model = build(row.signature, row.body, {**weights(row.shapes), **row.arrays}, row.opset)
        kinds |= {op.kind for op in structprune.analyze(model, row.inputs).solution.graph.ops}
    assert kinds >= ONLY_IN_ONNX


def test_names_are_different() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
