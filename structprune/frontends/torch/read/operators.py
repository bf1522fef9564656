"""The entries of ATen operators that compute: products, normalisations, reductions, pointwise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from structprune.frontends.torch.read import (
    indexing,  # noqa: F401  registers their entries
    movement,  # noqa: F401  registers their entries
)
from structprune.frontends.torch.read.lower import Bound, Lowered, Resized, entry, opaque
from structprune.frontends.torch.record.record import Call, values_in
from structprune.graph.graph import Value
from structprune.operators import zero
from structprune.operators.linear import einsum_notation, matmul_notation

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@entry("linear")
def linear(call: Call, a: Bound) -> Lowered:
    if len(a["weight"].shape) != 2:
        return opaque(call)
    return Lowered("linear", [a["input"], a["weight"], a["bias"]])


@entry("bilinear")
def bilinear(call: Call, a: Bound) -> Lowered:
    return Lowered("bilinear", [a["input1"], a["input2"], a["weight"], a["bias"]])


@entry("conv1d", "conv2d", "conv3d", "convolution")
def conv(call: Call, a: Bound) -> Lowered:
    groups, x, weight = a["groups"], a["input"], a["weight"]
    channels = len(x.shape) - len(weight.shape) + 1
    is_padded = not isinstance(a["padding"], str) and any(a["padding"])
    is_by_position = math.prod(weight.shape[2:]) == 1 and set(a["stride"]) == {1} and not is_padded

    def literals(new: Resized) -> dict[str, Any]:
        wide = call.outputs[0] if a.get("transposed") else x
        return {"groups": new.shape(wide)[channels] // new.shape(weight)[1]}

    kind = "conv_transposed" if a.get("transposed") else "conv"
    return Lowered(kind, [x, weight, a["bias"]], {"groups": groups, "is_by_position": is_by_position}, literals)


@entry("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv_transposed(call: Call, a: Bound) -> Lowered:
    groups, x, weight = a["groups"], a["input"], a["weight"]
    output, channels = call.outputs[0], len(x.shape) - len(weight.shape) + 1

    def literals(new: Resized) -> dict[str, Any]:
        return {"groups": new.shape(output)[channels] // new.shape(weight)[1]}

    return Lowered("conv_transposed", [x, weight, a["bias"]], {"groups": groups}, literals)


@entry("matmul", "mm", "bmm", "mv", "dot", "vdot")
def matmul(call: Call, a: Bound) -> Lowered:
    left, right = list(values_in(list(a.values())))
    return Lowered("einsum", [left, right], {"notation": matmul_notation(len(left.shape), len(right.shape))})


@entry("addmm", "baddbmm", "addbmm", "addmv")
def addmm(call: Call, a: Bound) -> Lowered:
    added, left, right = list(values_in(list(a.values())))
    name = call.target._opname.rstrip("_")
    rank = len(added.shape)
    if name == "addmm":
        text = f"i k, k j, {' '.join('ij'[2 - rank :])} -> i j" if rank else None
    elif name == "baddbmm":
        text = f"b i k, b k j, {' '.join('bij'[3 - rank :])} -> b i j" if rank else None
    else:
        text = None
    if text is None:
        return opaque(call)
    return Lowered("einsum", [left, right, added], {"notation": text, "factors": 2})


@entry("einsum")
def einsum(call: Call, a: Bound) -> Lowered:
    notation = einsum_notation(a["equation"])
    if notation is None:
        return opaque(call, "einsum with a repeated index (a diagonal)")
    return Lowered("einsum", list(a["tensors"]), {"notation": notation})


@entry("scaled_dot_product_attention")
def attention(call: Call, a: Bound) -> Lowered:
    query, key = a["query"], a["key"]
    if {len(a[name].shape) for name in ("query", "key", "value")} - {3, 4} or len(query.shape) != len(key.shape):
        return opaque(call, "attention of an unusual rank")

    def literals(new: Resized) -> dict[str, Any]:
        if a["scale"] is not None or new.shape(query)[-1] == query.shape[-1]:
            return {}
        return {"scale": 1 / math.sqrt(query.shape[-1])}

    attributes = {"is_causal": a["is_causal"]}
    return Lowered("attention", [query, key, a["value"], a["attn_mask"]], attributes, literals)


@entry("batch_norm")
def batch_norm(call: Call, a: Bound) -> Lowered:
    inputs = [a["input"], a["weight"], a["bias"], a["running_mean"], a["running_var"]]
    return Lowered("batch_norm", inputs, {"by_batch": bool(a.get("training", False))})


@entry("instance_norm")
def instance_norm(call: Call, a: Bound) -> Lowered:
    return Lowered("instance_norm", [a["input"], a["weight"], a["bias"], a["running_mean"], a["running_var"]])


@entry("layer_norm")
def layer_norm(call: Call, a: Bound) -> Lowered:
    x = a["input"]
    rank = len(a["normalized_shape"])

    def literals(new: Resized) -> dict[str, Any]:
        return {"normalized_shape": list(new.shape(x)[-rank:])}

    return Lowered("layer_norm", [x, a["weight"], a["bias"]], {"rank": rank}, literals)


@entry("rms_norm")
def rms_norm(call: Call, a: Bound) -> Lowered:
    x = a["input"]
    rank = len(a["normalized_shape"])

    def literals(new: Resized) -> dict[str, Any]:
        return {"normalized_shape": list(new.shape(x)[-rank:])}

    return Lowered("layer_norm", [x, a["weight"]], {"rank": rank, "centred": False}, literals)


@entry("group_norm")
def group_norm(call: Call, a: Bound) -> Lowered:
    x, groups = a["input"], a["num_groups"]
    width = x.shape[1] // groups

    def literals(new: Resized) -> dict[str, Any]:
        kept = [new.before(x, 1, (g + 1) * width) - new.before(x, 1, g * width) for g in range(groups)]
        return {"num_groups": sum(count > 0 for count in kept)}

    return Lowered("group_norm", [x, a["weight"], a["bias"]], {"groups": groups}, literals)


def with_attribute(lowered: Lowered, **attributes: Any) -> Lowered:
    lowered.attributes.update(attributes)
    return lowered


# The results that say where something was found.
POSITIONS = {"argmax": (0,), "argmin": (0,), "max": (1,), "min": (1,), "median": (1,)}


def reduction(how: str) -> Callable[[Call, Bound], Lowered]:
    def lower(call: Call, a: Bound) -> Lowered:
        x = next(values_in(list(a.values())))
        dims = a.get("dim")
        if dims is None or dims == []:
            dims = range(len(x.shape))
        dims = [dims] if isinstance(dims, int) else dims
        axes = tuple(dim % max(len(x.shape), 1) for dim in dims)
        keeps = bool(a.get("keepdim", False)) or any(
            len(value.shape) == len(x.shape) for value in call.outputs[:1] if axes
        )
        attributes = {"axes": axes if x.shape else (), "keepdim": keeps, "how": how}
        found = POSITIONS.get(call.target._opname)
        if found is not None:
            attributes["positions"] = found
        return Lowered("reduce", [x], attributes)

    return lower


entry("sum", "count_nonzero", "nansum")(reduction("sum"))
entry("logsumexp")(lambda call, a: with_attribute(reduction("extreme")(call, a), is_zero=False))


@entry("linalg_vector_norm", "norm")
def norm(call: Call, a: Bound) -> Lowered:
    """Zeros add nothing to a norm, unless its order is negative."""
    order = a.get("ord", a.get("p", 2))
    is_plain = order is None or (isinstance(order, int | float) and order >= 0)
    return reduction("sum" if is_plain else "extreme")(call, a)


entry("mean", "var", "std", "var_mean", "std_mean")(reduction("mean"))
entry("amax", "amin", "max", "min", "prod", "all", "any", "argmax", "argmin", "median", "aminmax")(
    lambda call, a: reduction("extreme")(call, a) if len(list(values_in(list(a.values())))) == 1 else pointwise(call, a)
)


@entry("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(call: Call, a: Bound) -> Lowered:
    name = call.target._opname
    if "input" not in a or (a["bidirectional"] and len(a["input"].shape) not in (2, 3)):
        return opaque(call, "a packed recurrent layer")
    states = list(values_in(a["hx"]))
    directions = 2 if a["bidirectional"] else 1
    weights = list(a["params"])
    per_layer = len(weights) // (a["num_layers"] * directions)
    gates = {"lstm": 4, "gru": 3}.get(name, 1)
    attributes = {
        "states": len(states),
        "gates": gates,
        "directions": directions,
        "per_layer": per_layer,
        "is_projected": per_layer in (3, 5),
        "is_batch_first": a["batch_first"],
    }
    return Lowered("recurrent", [a["input"], *states, *weights], attributes)


@entry("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def recurrent_cell(call: Call, a: Bound) -> Lowered:
    states = list(values_in(a["hx"]))
    weights = [a[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh") if a[name] is not None]
    gates = {"lstm_cell": 4, "gru_cell": 3}.get(call.target._opname, 1)
    attributes = {"states": len(states), "gates": gates, "directions": 1, "per_layer": len(weights), "is_cell": True}
    return Lowered("recurrent", [a["input"], *states, *weights], attributes)


@entry("glu")
def glu(call: Call, a: Bound) -> Lowered:
    return Lowered("glu", [a["self"]], {"dim": a["dim"] % len(a["self"].shape)})


@entry("_weight_norm_interface")
def weight_norm(call: Call, a: Bound) -> Lowered:
    return Lowered("weight_norm", [a["v"], a["g"]], {"dim": a["dim"] % len(a["v"].shape)})


@entry("prelu")
def prelu(call: Call, a: Bound) -> Lowered:
    x, weight = list(values_in(list(a.values())))
    if len(x.shape) < 2 and weight.shape != (1,):
        return opaque(call)
    return Lowered("prelu", [x, weight])


# -- pointwise -------------------------------------------------------------------------------------


def zero_fact(call: Call, a: Bound) -> zero.Zero:
    """What the table says of an operator under its name in torch, in place or not."""
    name = call.target._opname
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    given = [a[each.name] for each in call.target._schema.arguments if each.name in a]
    return zero.fact(name, [zero.OPERAND if isinstance(each, Value) else each for each in given])


@entry("pointwise")
def pointwise(call: Call, a: Bound) -> Lowered:
    """Any operator that torch itself tags as pointwise."""
    inputs = list(values_in(list(a.values())))
    is_in_place = call.target._schema.is_mutable and call.target._opname.endswith("_")
    return Lowered("write" if is_in_place and len(inputs) > 1 else "pointwise", inputs, {"zero": zero_fact(call, a)})


@entry("copy_")
def copy_(call: Call, a: Bound) -> Lowered:
    return Lowered("write", [a["self"], a["src"]], {"zero": zero_fact(call, a)})


@entry("lerp", "where", "masked_fill", "clamp", "threshold", "addcmul", "addcdiv", "nan_to_num", "relu6", "hardtanh",
       "hardswish", "hardsigmoid", "heaviside", "logical_not", "bitwise_not", "complex", "polar")  # fmt: skip
def untagged(call: Call, a: Bound) -> Lowered:
    """Pointwise operators, some of which torch does not tag."""
    return pointwise(call, a)
