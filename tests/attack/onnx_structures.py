"""Small ONNX graphs whose free width stands on every axis and meets numbers of both signs.

`h` is [N, 8], `s` [N, 8, 5] (channels before steps), `i` [N, 8, 6, 6]; the bare sum sees what is not zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from tests.onnx.build import build, weights

FLAT, FLAT_IN = "(float[N, 6] x) => (float[N, K] y)", (6,)
STEPS, STEPS_IN = "(float[N, 3, 5] x) => (float[N, K] y)", (3, 5)
IMAGE, IMAGE_IN = "(float[N, 3, 6, 6] x) => (float[N, K] y)", (3, 6, 6)


def ints(*numbers: int) -> Any:
    return np.array(numbers, dtype=np.int64)


def number(value: float, dtype: Any = np.float32) -> Any:
    return np.array(value, dtype=dtype)


@dataclass(frozen=True)
class Structure:
    """A graph, and the shape of one sample of its input."""

    name: str
    build: Callable[[], onnx.ModelProto]
    sample: tuple[int, ...]
    shrinks: bool = False
    batches: tuple[int, ...] = (2, 5)
    drawn: bool = False
    area: str = "onnx"


CASES: dict[str, Structure] = {}
SIGNED = np.array([0.7, -0.4, 1.3, -2.0, 0.3, -0.9, 0.5, -0.1], dtype=np.float32)


def add(
    name: str, signature: str, sample: tuple[int, ...], body: str, shapes: Mapping[str, Any],
    arrays: Mapping[str, Any], **options: Any,
) -> None:  # fmt: skip
    if name in CASES:
        raise ValueError(f"{name!r} stands here twice")
    opset = options.pop("opset", 20)

    def made() -> onnx.ModelProto:
        return build(signature, body, {**weights(shapes), **arrays}, opset=opset)

    CASES[name] = Structure(name, made, sample, **options)


SUM = "\ny = ReduceSum <keepdims = 1> (g, one)"
SUMS = "\nr = ReduceSum <keepdims = 0> (g, two)\ny = Unsqueeze (r, one)"
ONE, TWO = {"one": ints(1)}, {"two": ints(1, 2)}


def flat(name: str, body: str, arrays: Mapping[str, Any] = {}, end: str = SUM, **shapes: Any) -> None:
    options = {key: shapes.pop(key) for key in ("shrinks", "opset", "batches", "drawn") if key in shapes}
    add(name, FLAT, FLAT_IN, "h = MatMul (x, w0)\n" + body + end, {"w0": (6, 8), **shapes}, {**ONE, **arrays}, **options)


def steps(name: str, body: str, arrays: Mapping[str, Any] = {}, end: str = SUMS, **shapes: Any) -> None:
    options = {key: shapes.pop(key) for key in ("shrinks", "opset", "batches", "drawn") if key in shapes}
    start = "s = Conv <kernel_shape = [1]> (x, w0)\n"
    add(name, STEPS, STEPS_IN, start + body + end, {"w0": (8, 3, 1), **shapes}, {**ONE, **TWO, **arrays}, **options)


def image(name: str, body: str, arrays: Mapping[str, Any] = {}, end: str = "", **shapes: Any) -> None:
    options = {key: shapes.pop(key) for key in ("shrinks", "opset", "batches", "drawn") if key in shapes}
    start = "i = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w0)\n"
    end = end or "\nr = ReduceSum <keepdims = 0> (g, three)\ny = Unsqueeze (r, one)"
    add(name, IMAGE, IMAGE_IN, start + body + end, {"w0": (8, 3, 3, 3), **shapes},
        {**ONE, "three": ints(1, 2, 3), **arrays}, **options)  # fmt: skip


MATMUL = "\ny = MatMul (g, wh)"

# -- two operands: an initializer along the width, one number, a row; either first -------------------------------------------

CAST = "\ng = Cast <to = 1> (b)"
PAIRS = {
    "add": "g = Add ({a}, {t})",
    "sub": "g = Sub ({a}, {t})",
    "mul": "g = Mul ({a}, {t})",
    "div": "g = Div ({a}, {t})",
    "min": "g = Min ({a}, {t})",
    "max": "g = Max ({a}, {t})",
    "max_of_three": "g = Max ({a}, {t}, {a})",
    "mean": "g = Mean ({a}, {t})",
    "sum": "g = Sum ({a}, {t}, {a})",
    "pow": "q = Abs ({a})\ng = Pow (q, {t})",
    "mod": "g = Mod <fmod = 1> ({a}, {t})",
    "greater": "b = Greater ({a}, {t})" + CAST,
    "greater_equal": "b = GreaterOrEqual ({a}, {t})" + CAST,
    "less": "b = Less ({a}, {t})" + CAST,
    "less_equal": "b = LessOrEqual ({a}, {t})" + CAST,
    "equal": "ai = Cast <to = 7> ({a})\nti = Cast <to = 7> ({t})\nb = Equal (ai, ti)" + CAST,
    "prelu": "g = PRelu ({a}, {t})",
    "where_greater": "c = Greater ({a}, {t})\ng = Where (c, {a}, {t})",
    "where_flag": "c = Greater ({t}, zero)\ng = Where (c, {a}, {t})",
    "and": "p = Greater ({a}, zero)\nq = Greater ({t}, zero)\nb = And (p, q)" + CAST,
    "or": "p = Greater ({a}, zero)\nq = Greater ({t}, zero)\nb = Or (p, q)" + CAST,
    "xor": "p = Greater ({a}, zero)\nq = Greater ({t}, zero)\nb = Xor (p, q)" + CAST,
    "shift": "ai = Cast <to = 13> (five)\nta = Abs ({a})\nti = Cast <to = 13> (ta)\n"
             'b = BitShift <direction = "LEFT"> (ai, ti)' + CAST,
    "bit_and": "ai = Cast <to = 7> ({a})\nti = Cast <to = 7> ({t})\nb = BitwiseAnd (ai, ti)" + CAST,
    "bit_or": "ai = Cast <to = 7> ({a})\nti = Cast <to = 7> ({t})\nb = BitwiseOr (ai, ti)" + CAST,
    "bit_xor": "ai = Cast <to = 7> ({a})\nti = Cast <to = 7> ({t})\nb = BitwiseXor (ai, ti)" + CAST,
}  # fmt: skip
CONSTANTS = {"zero": number(0.0), "five": number(5.0)}
UNORDERED = ("prelu", "shift")
for _name, _pair in PAIRS.items():
    flat(f"{_name}_sum", _pair.format(a="h", t="t"), CONSTANTS, t=(8,))
    flat(f"{_name}_matmul", _pair.format(a="h", t="t"), CONSTANTS, end=MATMUL, t=(8,), wh=(8, 3))
    for _sign in (-1, 1):
        word = "below" if _sign < 0 else "above"
        flat(f"{_name}_{word}", _pair.format(a="h", t="t"), {**CONSTANTS, "t": number(0.4 * _sign)})
    flat(f"{_name}_one", _pair.format(a="h", t="t"), {**CONSTANTS, "t": np.array([-1.2], np.float32)})
    if _name not in UNORDERED:
        flat(f"{_name}_swapped", _pair.format(a="t", t="h"), CONSTANTS, t=(8,))
        flat(f"{_name}_swapped_number", _pair.format(a="t", t="h"), {**CONSTANTS, "t": number(-0.6)})
    image(f"{_name}_image", _pair.format(a="i", t="t"), CONSTANTS, t=(8, 1, 1))

# -- one operand --------------------------------------------------------------------------------------------------------------

SINGLES = {
    "clip_below": ("g = Clip (h, lo, hi)", {"lo": number(-2.0), "hi": number(-0.5)}),
    "clip_above": ("g = Clip (h, lo)", {"lo": number(0.3)}),
    "clip_around": ("g = Clip (h, lo, hi)", {"lo": number(-0.3), "hi": number(0.5)}),
    "clip_upper_alone": ("g = Clip (h, , hi)", {"hi": number(-0.1)}),
    "hard_sigmoid": ("g = HardSigmoid (h)", {}),
    "hard_sigmoid_no_offset": ("g = HardSigmoid <beta = 0.0> (h)", {}),
    "shrink_bias": ("g = Shrink <bias = 0.5, lambd = 0.2> (h)", {}),
    "shrink_all": ("g = Shrink <bias = 0.5, lambd = -1.0> (h)", {}),
    "thresholded": ("g = ThresholdedRelu <alpha = -1.0> (h)", {}),
    "elu": ("g = Elu <alpha = 2.0> (h)", {}),
    "selu": ("g = Selu (h)", {}),
    "celu": ("g = Celu <alpha = 1.5> (h)", {}),
    "softplus": ("g = Softplus (h)", {}),
    "softsign": ("g = Softsign (h)", {}),
    "mish": ("g = Mish (h)", {}),
    "gelu": ("g = Gelu (h)", {}),
    "hard_swish": ("g = HardSwish (h)", {}),
    "cos": ("g = Cos (h)", {}),
    "cosh": ("g = Cosh (h)", {}),
    "sinh": ("g = Sinh (h)", {}),
    "acos": ("q = Tanh (h)\ng = Acos (q)", {}),
    "exp": ("g = Exp (h)", {}),
    "erf": ("g = Erf (h)", {}),
    "not": ("b = Greater (h, zero)\nn = Not (b)\ng = Cast <to = 1> (n)", {"zero": number(0.0)}),
    "is_nan": ("b = IsNaN (h)\nn = Not (b)\ng = Cast <to = 1> (n)", {}),
    "is_inf": ("b = IsInf (h)\nn = Not (b)\ng = Cast <to = 1> (n)", {}),
    "sign": ("g = Sign (h)", {}),
    "ceil": ("q = Add (h, half)\ng = Ceil (q)", {"half": number(0.5)}),
    "round": ("g = Round (h)", {}),
    "reciprocal": ("q = Exp (h)\ng = Reciprocal (q)", {}),
    "bitwise_not": ("q = Cast <to = 7> (h)\nb = BitwiseNot (q)\ng = Cast <to = 1> (b)", {}),
    "to_text": ("q = Round (h)\nb = Cast <to = 8> (q)\ng = Cast <to = 1> (b)", {}),
    "quantize_zero_point": ("q = QuantizeLinear (h, sc, zp)\ng = Cast <to = 1> (q)",
                            {"sc": number(0.1), "zp": number(7, np.uint8)}),
    "quantize_no_zero_point": ("q = QuantizeLinear (h, sc, zp)\ng = Cast <to = 1> (q)",
                               {"sc": number(0.1), "zp": number(0, np.int8)}),
    "quantize_and_back": ("q = QuantizeLinear (h, sc, zp)\ng = DequantizeLinear (q, sc, zp)",
                          {"sc": number(0.1), "zp": number(7, np.uint8)}),
    "quantize_other_zero_point": ("q = QuantizeLinear (h, sc, zp)\ng = DequantizeLinear (q, sc, other)",
                                  {"sc": number(0.1), "zp": number(7, np.uint8), "other": number(9, np.uint8)}),
    "quantize_along_width": ("q = QuantizeLinear <axis = 1> (h, sc, zp)\ng = DequantizeLinear <axis = 1> (q, sc, zp)",
                             {"sc": np.abs(SIGNED) * 0.1 + 0.05, "zp": np.arange(8, dtype=np.uint8)}),
    "expand_of_shape": ("q = Shape (h)\ne = Expand (k, q)\ng = Mul (e, h)", {"k": number(-0.7)}),
    "size_of": ("q = Shape (h)\nc = Gather (q, at)\nf = Cast <to = 1> (c)\ng = Div (h, f)", {"at": ints(1)}),
    "eye": ("e = EyeLike (h)\ng = Add (h, e)", {}),
    "range": ("q = Shape (h)\nc = Gather (q, at)\nr = Range (lo, c, st)\nf = Cast <to = 1> (r)\ng = Mul (h, f)",
              {"at": number(1, np.int64), "lo": number(0, np.int64), "st": number(1, np.int64)}),
    "one_hot": ("q = Greater (h, zero)\nc = Cast <to = 7> (q)\no = OneHot (c, de, va)\ng = ReduceMax <keepdims = 0> (o, last)",
                {"zero": number(0.0), "de": ints(2), "va": np.array([0.2, 0.9], np.float32), "last": ints(2)}),
    "dropout": ("g = Dropout (h)", {}),
}  # fmt: skip
for _name, (_body, _arrays) in SINGLES.items():
    flat(f"{_name}_alone", _body, _arrays)
    flat(f"{_name}_then_matmul", _body, _arrays, end=MATMUL, wh=(8, 3))

# -- over the width ---------------------------------------------------------------------------------------------------------------

OVER = {
    **{f"reduce_{kind.lower()}": (f"y = Reduce{kind} <keepdims = 1> (h, one)", {})
       for kind in ("Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSumExp")},
    "arg_max": ("b = ArgMax <axis = 1> (h)\ny = Cast <to = 1> (b)", {}),
    "arg_max_last": ("b = ArgMax <axis = 1, select_last_index = 1> (h)\ny = Cast <to = 1> (b)", {}),
    "arg_min": ("b = ArgMin <axis = 1> (h)\ny = Cast <to = 1> (b)", {}),
    "softmax": ("q = Softmax <axis = 1> (h)\ny = ReduceMax <keepdims = 1> (q, one)", {}),
    "log_softmax": ("q = LogSoftmax <axis = 1> (h)\ny = ReduceMax <keepdims = 1> (q, one)", {}),
    "hardmax": ("q = Hardmax <axis = 1> (h)\nr = Mul (q, h)\ny = ReduceSum <keepdims = 1> (r, one)", {}),
    "top_k": ("y, n = TopK <axis = 1> (h, k)", {"k": ints(2)}),
    "top_k_smallest": ("y, n = TopK <axis = 1, largest = 0> (h, k)", {"k": ints(2)}),
    "cum_sum": ("q = CumSum (h, ax)\ny = ReduceSum <keepdims = 1> (q, one)", {"ax": number(1, np.int64)}),
    "cum_sum_exclusive": ("q = CumSum <exclusive = 1, reverse = 1> (h, ax)\ny = ReduceSum <keepdims = 1> (q, one)",
                          {"ax": number(1, np.int64)}),
    "pad": ("q = Pad (h, pads, v)\ny = ReduceSum <keepdims = 1> (q, one)", {"pads": ints(0, 1, 0, 2), "v": number(1.5)}),
    "pad_zero": ("q = Pad (h, pads)\ny = MatMul (q, wt)", {"pads": ints(0, 1, 0, 1), "wt": np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)}),
    "pad_reflect": ('q = Pad <mode = "reflect"> (h, pads)\ny = ReduceSum <keepdims = 1> (q, one)', {"pads": ints(0, 2, 0, 2)}),
    "layer_normalization": ("q = LayerNormalization <axis = 1> (h, t)\ny = ReduceL1 <keepdims = 1> (q, one)", {"t": SIGNED}),
    "lp_normalization": ("q = LpNormalization <axis = 1, p = 2> (h)\ny = ReduceSum <keepdims = 1> (q, one)", {}),
    "lp_normalization_1": ("q = LpNormalization <axis = 1, p = 1> (h)\ny = ReduceSum <keepdims = 1> (q, one)", {}),
    "einsum_square": ('q = Einsum <equation = "bi,bi->b"> (h, h)\ny = Unsqueeze (q, one)', {}),
    "einsum_outer": ('q = Einsum <equation = "bi,bj->bij"> (h, h)\nr = Exp (q)\nz = ReduceSum <keepdims = 0> (r, two)\ny = Unsqueeze (z, one)', TWO),
    "det": ('q = Einsum <equation = "bi,bj->bij"> (h, h)\nr = Add (q, e)\nz = Det (r)\ny = Unsqueeze (z, one)', {"e": np.eye(8, dtype=np.float32) * 3}),
    "trilu": ('q = Einsum <equation = "bi,bj->bij"> (h, h)\nr = Trilu (q)\nz = ReduceSum <keepdims = 0> (r, two)\ny = Unsqueeze (z, one)', TWO),
    "reverse": ("q = ReverseSequence <batch_axis = 0, time_axis = 1> (h, l)\nr = Mul (q, h)\ny = ReduceSum <keepdims = 1> (r, one)", {"l": ints(8, 3)}),
    "gather_first": ("q = Gather <axis = 1> (h, at)\ny = ReduceSum <keepdims = 1> (q, one)", {"at": ints(0, 0, 7, 3)}),
    "gather_elements": ("y = GatherElements <axis = 1> (h, at)", {"at": np.array([[0, 3], [7, 2]], np.int64)}),
    "gather_nd": ("q = GatherND <batch_dims = 1> (h, at)\ny = Unsqueeze (q, one)", {"at": np.array([[3], [5]], np.int64)}),
    "scatter_elements": ("q = ScatterElements <axis = 1> (h, at, up)\ny = ReduceSum <keepdims = 1> (q, one)", {"at": np.array([[0], [3]], np.int64), "up": np.array([[1.5], [-2.0]], np.float32)}),
    "scatter_nd": ("q = ScatterND (h, at, up)\ny = ReduceSum <keepdims = 1> (q, one)", {"at": np.array([[0]], np.int64), "up": SIGNED[None] * 1.1}),
    "scatter_nd_one": ("q = ScatterND (h, at, up)\ny = ReduceSum <keepdims = 1> (q, one)", {"at": np.array([[1, 4]], np.int64), "up": np.array([2.5], np.float32)}),
    "scatter_nd_max": ('q = ScatterND <reduction = "max"> (h, at, up)\ny = ReduceSum <keepdims = 1> (q, one)', {"at": np.array([[0]], np.int64), "up": np.abs(SIGNED)[None]}),
    "scatter_nd_learned": ('q = ScatterND <reduction = "add"> (h, at, t2)\ny = ReduceSum <keepdims = 1> (q, one)', {"at": np.array([[0]], np.int64), "t2": SIGNED[None]}),
    "compress": ("q = Compress <axis = 1> (h, c)\ny = ReduceSum <keepdims = 1> (q, one)", {"c": np.array([True, False] * 4)}),
    "unique": ("q = Round (h)\nu = Unique <sorted = 1> (q)\ns = ReduceSum <keepdims = 1> (u, nil)\ny = Add (s, sm)", {"nil": ints(0), "sm": np.zeros((2, 1), np.float32)}),
    "non_zero": ("b = NonZero (h)\nc = Shape (b)\nd = Gather (c, one)\nf = Cast <to = 1> (d)\ny = Add (f, sm)", {"sm": np.zeros((2, 1), np.float32)}),
    "split_max": ("p, q = Split <axis = 1, num_outputs = 2> (h)\ng = Max (p, q)\ny = ReduceSum <keepdims = 1> (g, one)", {}),
    "slice_steps": ("q = Slice (h, st, en, one, sp)\ny = ReduceSum <keepdims = 1> (q, one)", {"st": ints(0), "en": ints(8), "sp": ints(2)}),
    "slice_back": ("q = Slice (h, st, en, one, sp)\nr = Mul (q, t)\ny = ReduceSum <keepdims = 1> (r, one)", {"st": ints(-1), "en": ints(-100), "sp": ints(-1), "t": SIGNED}),
    "depth_to_space": ("q = Reshape (h, sh)\nd = DepthToSpace <blocksize = 2> (q)\nz = ReduceMax <keepdims = 0> (d, th)\ny = Unsqueeze (z, one)", {"sh": ints(0, 8, 1, 1), "th": ints(1, 2, 3)}),
    "bernoulli_free": ("q = Sigmoid (h)\nr = Sub (q, ha)\ny = ReduceSum <keepdims = 1> (r, one)", {"ha": number(0.5)}),
    "mean_variance": ("q = Reshape (h, sh)\nm = MeanVarianceNormalization <axes = [1]> (q)\nz = ReduceL1 <keepdims = 0> (m, th)\ny = Unsqueeze (z, one)", {"sh": ints(0, 8, 1, 1), "th": ints(1, 2, 3)}),
    "lrn": ("q = Reshape (h, sh)\nm = LRN <size = 3> (q)\nz = ReduceSum <keepdims = 0> (m, th)\ny = Unsqueeze (z, one)", {"sh": ints(0, 8, 1, 1), "th": ints(1, 2, 3)}),
    "loss": ("l = SoftmaxCrossEntropyLoss <reduction = \"none\"> (h, la)\ny = Unsqueeze (l, one)", {"la": ints(1, 5)}),
    "sequence": ("q = SplitToSequence <axis = 1, keepdims = 1> (h)\nz = SequenceAt (q, p)\ny = Exp (z)", {"p": number(3, np.int64)}),
}  # fmt: skip
FIXED_BATCH = ("reverse", "gather_elements", "gather_nd", "scatter_elements", "unique", "non_zero", "loss")
for _name, (_body, _arrays) in OVER.items():
    flat(f"{_name}_over_width", _body, _arrays, end="", batches=(2,) if _name in FIXED_BATCH else (2, 5))

# -- channels as steps, rows, positions; values along another axis -----------------------------------------------------------

RNN = {"B": 1, "H": 4}


def recurrent(kind: str, gates: int, layout: str, direction: str = "forward") -> None:
    both = 2 if direction == "bidirectional" else 1
    body = f"t = Transpose <perm = {layout}> (s)\n" + (
        f'g0, g1{", g2" if kind == "LSTM" else ""} = {kind} <hidden_size = 4, direction = "{direction}"> (t, w, r0)\n'
    )
    perm = "[1, 0, 2]" if layout == "[1, 0, 2]" else "[2, 0, 1]"
    name = f"{kind.lower()}_{'channels_as_steps' if perm == '[1, 0, 2]' else 'channels_as_features'}_{direction}"
    features = 5 if perm == "[1, 0, 2]" else 8
    end = "\nv = Transpose <perm = [2, 0, 1, 3]> (g0)\ng = Flatten (v)\nq = Tanh (g)\ny = ReduceSum <keepdims = 1> (q, one)"
    steps(
        name, body, end=end, w=(both, gates * 4, features), r0=(both, gates * 4, 4),
    )  # fmt: skip


for _kind, _gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
    for _layout in ("[1, 0, 2]", "[2, 0, 1]"):
        for _direction in ("forward", "bidirectional", "reverse"):
            recurrent(_kind, _gates, _layout, _direction)

steps("pad_other_axis", "g = Pad (s, pads, v)", {"pads": ints(0, 0, 1, 0, 0, 2), "v": number(1.5)})
steps("pad_other_axis_zero", "g = Pad (s, pads, v)", {"pads": ints(0, 0, 1, 0, 0, 2), "v": number(0.0)}, shrinks=True)
steps("pad_axes_given", "g = Pad (s, pads, v, ax)", {"pads": ints(2, 1), "v": number(-1.5), "ax": ints(-1)})
steps("arg_max_other_axis", "b = ArgMax <axis = 2, keepdims = 1> (s)\ng = Cast <to = 1> (b)")
steps("arg_max_last_other_axis", "b = ArgMax <axis = 2, select_last_index = 1> (s)\ng = Cast <to = 1> (b)")
steps("arg_min_last_other_axis", "b = ArgMin <axis = -1, select_last_index = 1> (s)\ng = Cast <to = 1> (b)")
steps("softmax_other_axis", "g = Softmax <axis = 2> (s)")
steps("log_softmax_other_axis", "g = LogSoftmax <axis = 2> (s)")
steps("hardmax_other_axis", "g = Hardmax <axis = 2> (s)")
steps("reduce_log_sum_exp_other_axis", "g = ReduceLogSumExp <keepdims = 1> (s, ax)", {"ax": ints(2)})
steps("reduce_prod_shifted", "q = Add (s, k)\ng = ReduceProd <keepdims = 1> (q, ax)", {"ax": ints(2), "k": number(1.0)})
steps("top_k_other_axis", "g, n = TopK <axis = 2> (s, k)", {"k": ints(2)})
steps("top_k_indices_other_axis", "v, n = TopK <axis = 2> (s, k)\ng = Cast <to = 1> (n)", {"k": ints(2)})
steps("cum_sum_other_axis", "g = CumSum (s, ax)", {"ax": number(2, np.int64)}, shrinks=True)
steps("layer_norm_other_axis", "g = LayerNormalization <axis = 2> (s, ga, be)", ga=(5,), be=(5,))
steps("instance_norm", "g = InstanceNormalization (s, ga, be)", ga=(8,), be=(8,))
steps("group_norm", "q = GroupNormalization <num_groups = 2> (s, ga, be)\ng = Exp (q)", opset=21, ga=(8,), be=(8,))
steps("resize_other_axis", 'g = Resize <mode = "linear"> (s, , sc)', {"sc": np.array([1, 1, 2], np.float32)}, shrinks=True)
steps("resize_crop", 'q = Unsqueeze (s, ax)\nz = Resize <mode = "linear", coordinate_transformation_mode = "tf_crop_and_resize", extrapolation_value = 3.0> (q, roi, sc)\ng = Squeeze (z, ax)',
      {"ax": ints(1), "roi": np.array([0, 0, 0, -0.3, 1, 1, 1, 1.2], np.float32), "sc": np.array([1, 1, 1, 2], np.float32)})
steps("average_pool_padded", "g = AveragePool <kernel_shape = [2], pads = [1, 1], count_include_pad = 1> (s)", shrinks=True)
steps("conv_with_bias", "q = Conv <kernel_shape = [3], pads = [1, 1]> (s, k, bk)\ng = Sigmoid (q)", k=(4, 8, 3), bk=(4,), shrinks=True)
steps("depthwise", "g = Conv <group = 8, kernel_shape = [3]> (s, k, bk)", k=(8, 1, 3), bk=(8,), shrinks=True)
steps("batch_norm", "g = BatchNormalization (s, ga, be, mean, var)", {"mean": SIGNED, "var": np.abs(SIGNED) + 0.5}, ga=(8,), be=(8,), shrinks=True)
steps("batch_norm_scaled_bias", "b2 = Add (be, k)\ng = BatchNormalization (s, ga, b2, mean, var)", {"mean": SIGNED, "var": np.abs(SIGNED) + 0.5, "k": number(0.5)}, ga=(8,), be=(8,))
steps("attention_by_hand", "t = Transpose <perm = [0, 2, 1]> (s)\nq = MatMul (s, t)\nz = Softmax <axis = 2> (q)\ng = MatMul (z, s)")
steps("causal_by_hand", "t = Transpose <perm = [0, 2, 1]> (s)\nq = MatMul (s, t)\nm = Trilu <upper = 0> (q)\ng = MatMul (m, s)")
steps("attention_over_channels", "g = Attention <q_num_heads = 1, kv_num_heads = 1> (s, s, s)", opset=23)
steps("causal_attention_over_channels", "g = Attention <q_num_heads = 1, kv_num_heads = 1, is_causal = 1> (s, s, s)", opset=23)
steps("causal_attention_of_features", "t = Transpose <perm = [0, 2, 1]> (s)\nz = Attention <q_num_heads = 2, kv_num_heads = 2, is_causal = 1> (t, t, t)\ng = MatMul (z, wo)", opset=23, wo=(8, 4))
steps("causal_learned_queries", "e = Expand (tok, sh)\nt = Transpose <perm = [0, 2, 1]> (s)\nz = Attention <q_num_heads = 1, kv_num_heads = 1, is_causal = 1> (e, t, t)\nu = MatMul (mix, z)\ng = Tanh (u)", {"sh": ints(2, 6, 8)}, opset=23, tok=(6, 8), mix=(3, 6), batches=(2,))
steps("learned_mask", "z = Attention <q_num_heads = 1, kv_num_heads = 1> (s, s, s, m)\ng = Tanh (z)", opset=23, m=(8, 8))
steps("scan_over_channels", "t = Transpose <perm = [1, 0, 2]> (s)\nst = ReduceSum <keepdims = 0> (s, one)\n"
      "fi, all = Scan <num_scan_inputs = 1, body = step (float[N, 5] a, float[N, 5] b) => (float[N, 5] c, float[N, 5] d) "
      "{ e = Add (a, b)\n c = Tanh (e)\n d = Identity (c) }> (st, t)\ng = Unsqueeze (fi, one)")
steps("loop_adds", "g = Loop <body = step (int64 n, bool c, float[N, 8, 5] a) => (bool d, float[N, 8, 5] b) { d = Identity (c)\n k = Constant <value = float {0.5}> ()\n b = Add (a, k) }> (tr, co, s)", {"tr": number(3, np.int64), "co": np.array(True)})
steps("if_by_sum", "t = ReduceSum <keepdims = 0> (s)\nc = Greater (t, ze)\ng = If <then_branch = yes () => (float[N, 8, 5] a) { k = Constant <value = float {1.5}> ()\n a = Add (s, k) }, else_branch = no () => (float[N, 8, 5] b) { b = Identity (s) }> (c)", {"ze": number(-1e9)})
steps("if_by_constant", "g = If <then_branch = yes () => (float[N, 8, 5] a) { k = Constant <value = float {1.5}> ()\n a = Mul (s, k) }, else_branch = no () => (float[N, 8, 5] b) { k = Constant <value = float {1.5}> ()\n b = Add (s, k) }> (c)", {"c": np.array(True)})
steps("concat_ones", "c = Concat <axis = 2> (s, ones)\ng = Exp (c)", {"ones": np.random.default_rng(3).uniform(0.5, 1.5, (2, 8, 2)).astype(np.float32)}, batches=(2,))
steps("concat_learned", "g = Concat <axis = 2> (s, ones)", ones=(2, 8, 2), batches=(2,))
steps("scatter_elements_other_axis", "g = ScatterElements <axis = 2> (s, at, up)", {"at": np.zeros((2, 8, 1), np.int64), "up": np.random.default_rng(4).uniform(0.5, 1.5, (2, 8, 1)).astype(np.float32)}, batches=(2,))
steps("where_mask_of_steps", "g = Where (m, s, k)", {"m": np.array([True, False, True, True, False]), "k": number(-4.0)})
steps("where_mask_zero", "g = Where (m, s, k)", {"m": np.array([True, False, True, True, False]), "k": number(0.0)}, shrinks=True)
steps("expand_number", "q = Shape (s)\ne = Expand (k, q)\ng = Max (e, s)", {"k": number(0.1)})
steps("flatten_then_linear", "f = Flatten (s)\nq = MatMul (f, wf)\ng = Tanh (q)", end="\ny = ReduceSum <keepdims = 1> (g, one)", wf=(40, 4), shrinks=True)
steps("matmul_integer", "q, sc, zp = DynamicQuantizeLinear (s)\ni = Cast <to = 1> (q)\ng = Mul (i, sc)")
steps("dft", "u = Unsqueeze (s, ax)\nd = DFT <onesided = 0> (u, , wi)\nz = ReduceL2 <keepdims = 0> (d, ax)\ng = Identity (z)", {"ax": ints(3), "wi": number(1, np.int64)})
steps("unpooled", "p, n = MaxPool <kernel_shape = [2], strides = [2]> (s)\nf = Cast <to = 1> (n)\ng = Mul (f, k)", {"k": number(0.01)})
image("global_max", "g = GlobalMaxPool (i)", shrinks=True)
image("global_lp", "g = GlobalLpPool (i)", shrinks=True)
image("space_to_depth", "q = SpaceToDepth <blocksize = 2> (i)\ng = Exp (q)")
image("depth_to_space", "q = DepthToSpace <blocksize = 2> (i)\ng = Exp (q)")
image("depth_to_space_crd", 'q = DepthToSpace <blocksize = 2, mode = "CRD"> (i)\ng = Conv <kernel_shape = [1, 1]> (q, k)', k=(4, 2, 1, 1), shrinks=True)
image("grid_sample", "g = GridSample (i, gr)", {"gr": np.random.default_rng(0).uniform(-1.5, 1.5, (2, 4, 4, 2)).astype(np.float32)}, batches=(2,))
image("roi_align", "g = RoiAlign <output_height = 2, output_width = 2> (i, ro, bi)", {"ro": np.array([[0, 0, 4, 4], [1, 1, 5, 5]], np.float32), "bi": ints(0, 1)}, batches=(2,))
image("transposed_conv", "g = ConvTranspose <kernel_shape = [2, 2], strides = [2, 2]> (i, k, bk)", k=(8, 4, 2, 2), bk=(4,), shrinks=True)
image("grouped_conv", "q = Conv <group = 2, kernel_shape = [1, 1]> (i, k, bk)\ng = Sigmoid (q)", k=(6, 4, 1, 1), bk=(6,), shrinks=True)
image("instance_norm_then_conv", "q = InstanceNormalization (i, ga, be)\ng = Conv <kernel_shape = [1, 1]> (q, k)", ga=(8,), be=(8,), k=(4, 8, 1, 1), shrinks=True)
image("channels_last_sum", "t = Transpose <perm = [0, 2, 3, 1]> (i)\nq = Add (t, t2)\ng = Relu (q)", t2=(8,), shrinks=True)
image("squeeze_excite", "p = GlobalAveragePool (i)\na = Conv <kernel_shape = [1, 1]> (p, k1)\nb = Conv <kernel_shape = [1, 1]> (a, k2)\ne = HardSigmoid (b)\ng = Mul (i, e)", k1=(4, 8, 1, 1), k2=(8, 4, 1, 1), shrinks=True)
image("reshape_literal", "q = Reshape (i, sh)\nt = Transpose <perm = [0, 2, 1, 3]> (q)\nz = Reshape (t, back)\ng = Conv <kernel_shape = [1, 1]> (z, k)", {"sh": ints(0, 2, 4, 36), "back": ints(0, 8, 6, 6)}, k=(4, 8, 1, 1), shrinks=True)
