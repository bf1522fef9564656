"""The entries of ATen operators that compute: products, normalisations, reductions, pointwise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from structprune.frontends.lowering import Lowered
from structprune.frontends.torch.read import (
    indexing,  # noqa: F401  registers their entries
    movement,  # noqa: F401  registers their entries
)
from structprune.frontends.torch.read.lower import Bound, entry, opaque
from structprune.frontends.torch.record.record import Call, values_in
from structprune.graph.graph import Value
from structprune.operators import zero
from structprune.operators.attention import Attention
from structprune.operators.elementwise import Pointwise, Prelu, Write
from structprune.operators.joining import Glu
from structprune.operators.linear import Bilinear, Convolution, Einsum, Linear, einsum_notation, matmul_notation
from structprune.operators.normalisation import BatchNorm, GroupNorm, LayerNorm, WeightNorm
from structprune.operators.recurrent import Recurrent
from structprune.operators.reduction import How, Reduce


@entry("linear")
def linear(call: Call, a: Bound) -> Lowered:
    if len(a["weight"].shape) != 2:
        return opaque(call)
    return Lowered(Linear(), [a["input"], a["weight"], a["bias"]])


@entry("bilinear")
def bilinear(call: Call, a: Bound) -> Lowered:
    return Lowered(Bilinear(), [a["input1"], a["input2"], a["weight"], a["bias"]])


@entry("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv(call: Call, a: Bound) -> Lowered:
    is_padded = not isinstance(a["padding"], str) and any(a["padding"])
    has_borders = is_padded or a["padding"] == "same"
    is_by_position = math.prod(a["weight"].shape[2:]) == 1 and set(a["stride"]) == {1} and not is_padded
    is_transposed = a.get("transposed", "transpose" in call.target._opname)
    convolution = Convolution(a["groups"], is_transposed, is_by_position and not is_transposed, has_borders)
    return Lowered(convolution, [a["input"], a["weight"], a["bias"]], {"groups": "groups"})


@entry("matmul", "mm", "bmm", "mv", "dot", "vdot")
def matmul(call: Call, a: Bound) -> Lowered:
    left, right = list(values_in(list(a.values())))
    return Lowered(Einsum(matmul_notation(len(left.shape), len(right.shape))), [left, right])


@entry("addmm", "baddbmm", "addbmm", "addmv")
def addmm(call: Call, a: Bound) -> Lowered:
    added, left, right = list(values_in(list(a.values())))
    notation = {"addmm": ("i k, k j", "i j"), "baddbmm": ("b i k, b k j", "b i j")}.get(call.target._opname.rstrip("_"))
    if notation is None or not added.shape:
        return opaque(call)
    factors, result = notation
    shape = " ".join(result.split()[-len(added.shape) :])
    return Lowered(Einsum(f"{factors}, {shape} -> {result}", 2), [left, right, added])


@entry("einsum")
def einsum(call: Call, a: Bound) -> Lowered:
    notation = einsum_notation(a["equation"])
    if notation is None:
        return opaque(call, "einsum with a repeated index (a diagonal)")
    return Lowered(Einsum(notation), list(a["tensors"]))


@entry("scaled_dot_product_attention")
def attention(call: Call, a: Bound) -> Lowered:
    operands = [a["query"], a["key"], a["value"]]
    if {len(each.shape) for each in operands} - {3, 4} or len({len(each.shape) for each in operands[:2]}) > 1:
        return opaque(call, "attention of an unusual rank")
    return Lowered(Attention(a["is_causal"], a["scale"]), [*operands, a["attn_mask"]], {"scale": "scale"})


# -- normalisations --------------------------------------------------------------------------------


@entry("batch_norm", "instance_norm")
def batch_norm(call: Call, a: Bound) -> Lowered:
    norm = BatchNorm(bool(a.get("training", False)), call.target._opname == "instance_norm", a["eps"])
    return Lowered(norm, [a["input"], a["weight"], a["bias"], a["running_mean"], a["running_var"]])


@entry("layer_norm", "rms_norm")
def layer_norm(call: Call, a: Bound) -> Lowered:
    norm = LayerNorm(tuple(a["normalized_shape"]), is_centred=call.target._opname == "layer_norm")
    operands = [a[name] for name in ("input", "weight", "bias") if name in a]
    return Lowered(norm, operands, {"sizes": "normalized_shape"})


@entry("group_norm")
def group_norm(call: Call, a: Bound) -> Lowered:
    return Lowered(GroupNorm(a["num_groups"]), [a["input"], a["weight"], a["bias"]], {"groups": "num_groups"})


@entry("_weight_norm_interface")
def weight_norm(call: Call, a: Bound) -> Lowered:
    return Lowered(WeightNorm(a["dim"] % len(a["v"].shape)), [a["v"], a["g"]])


# -- reductions ------------------------------------------------------------------------------------

# The results that say where something was found.
POSITIONS = {"argmax": (0,), "argmin": (0,), "max": (1,), "min": (1,), "median": (1,)}


# Of numbers that are all the same, that number.
AVERAGES = frozenset(("mean", "amax", "amin", "max", "min", "median", "aminmax"))


def reduced(call: Call, a: Bound, how: How, keeps_zero: bool = True) -> Lowered:
    x = next(values_in(list(a.values())))
    dims = a.get("dim")
    if dims is None or dims == []:
        dims = range(len(x.shape))
    dims = [dims] if isinstance(dims, int) else dims
    axes = tuple(dim % len(x.shape) for dim in dims) if x.shape else ()
    keeps = bool(a.get("keepdim", False)) or any(len(each.shape) == len(x.shape) for each in call.outputs[:1] if axes)
    name = call.target._opname
    return Lowered(Reduce(axes, keeps, how, keeps_zero, POSITIONS.get(name, ()), name in AVERAGES), [x])


def reduction(how: How, keeps_zero: bool = True) -> Callable[[Call, Bound], Lowered]:
    return lambda call, a: reduced(call, a, how, keeps_zero)


entry("sum", "count_nonzero", "nansum")(reduction("sum"))
entry("mean", "var", "std", "var_mean", "std_mean")(reduction("mean"))
entry("logsumexp")(reduction("extreme", keeps_zero=False))


@entry("linalg_vector_norm", "norm")
def norm(call: Call, a: Bound) -> Lowered:
    """Zeros add nothing to a norm, unless its order is negative."""
    order = a.get("ord", a.get("p", 2))
    is_plain = order is None or (isinstance(order, int | float) and order >= 0)
    return reduced(call, a, "sum" if is_plain else "extreme")


@entry("amax", "amin", "max", "min", "prod", "all", "any", "argmax", "argmin", "median", "aminmax")
def extreme(call: Call, a: Bound) -> Lowered:
    """Over axes of one tensor, or of two, position by position."""
    return reduced(call, a, "extreme") if len(list(values_in(list(a.values())))) == 1 else pointwise(call, a)


# -- recurrent -------------------------------------------------------------------------------------


@entry("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def recurrent(call: Call, a: Bound) -> Lowered:
    name: str = call.target._opname
    is_cell = name.endswith("_cell")
    directions = 2 if a.get("bidirectional") else 1
    if "input" not in a or (directions == 2 and len(a["input"].shape) not in (2, 3)):
        return opaque(call, "a packed recurrent layer")
    states = list(values_in(a["hx"]))
    weights = list(values_in([a[k] for k in ("w_ih", "w_hh", "b_ih", "b_hh")] if is_cell else a["params"]))
    per_layer = len(weights) // (a.get("num_layers", 1) * directions)
    gates = {"lstm": 4, "gru": 3}.get(name.removesuffix("_cell"), 1)
    is_projected = not is_cell and per_layer in (3, 5)
    layer = Recurrent(
        len(states), gates, per_layer, directions, is_projected, bool(a.get("batch_first", False)), is_cell
    )
    return Lowered(layer, [a["input"], *states, *weights])


# -- position by position --------------------------------------------------------------------------


@entry("glu")
def glu(call: Call, a: Bound) -> Lowered:
    return Lowered(Glu(a["dim"] % len(a["self"].shape)), [a["self"]])


@entry("prelu")
def prelu(call: Call, a: Bound) -> Lowered:
    x, weight = list(values_in(list(a.values())))
    if len(x.shape) < 2 and weight.shape != (1,):
        return opaque(call)
    return Lowered(Prelu(), [x, weight])


def zero_fact(call: Call, a: Bound) -> zero.Zero:
    """What the table says of an operator under its name in torch, in place or not."""
    name = call.target._opname
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    given = [a[each.name] for each in call.target._schema.arguments if each.name in a]
    return zero.fact(name, [zero.OPERAND if isinstance(each, Value) else each for each in given])


@entry("pointwise", "copy_", "lerp", "where", "masked_fill", "clamp", "threshold", "addcmul", "addcdiv", "nan_to_num",
       "relu6", "hardtanh", "hardswish", "hardsigmoid", "heaviside", "logical_not", "bitwise_not", "complex",
       "polar")  # fmt: skip
def pointwise(call: Call, a: Bound) -> Lowered:
    """Any operator that torch itself tags as pointwise, and some that it does not."""
    inputs = list(values_in(list(a.values())))
    is_in_place = call.target._schema.is_mutable and call.target._opname.endswith("_")
    fact, draws = zero_fact(call, a), torch.Tag.nondeterministic_seeded in call.target.tags
    adds = call.target is torch.ops.aten.add.Tensor and a["alpha"] == 1
    found: Any = Write(fact, draws) if is_in_place and len(inputs) > 1 else Pointwise(fact, draws, adds)
    return Lowered(found, inputs)
