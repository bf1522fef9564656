"""The entries of ATen operators that move axes: views, slices, concatenations, pools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from structprune.frontends.torch.read.lower import Bound, Lowered, Resized, entry, moves, opaque
from structprune.frontends.torch.record.record import Call, values_in
from structprune.graph.graph import Value

Route = list[list[tuple[int, int]]]


def new_sizes(new: Resized, value: Value, given: Sequence[int]) -> list[int]:
    """The sizes of a value, with the -1 that the user wrote left in place."""
    return [old if old == -1 else size for old, size in zip(given, new.shape(value), strict=True)]


@moves
@entry("view", "reshape", "_unsafe_view", "_reshape_copy", "view_copy")
def view(call: Call, a: Bound) -> Lowered:
    if "size" not in a and "shape" not in a:
        return opaque(call, "a view as another type")
    name = "size" if "size" in a else "shape"
    output = call.outputs[0]
    return Lowered("reshape", [a["self"]], {}, lambda new: {name: new_sizes(new, output, a[name])})


@moves
@entry("flatten")
def flatten(call: Call, a: Bound) -> Lowered:
    return Lowered("reshape", [a["self"]])


@moves
@entry("view_as", "reshape_as")
def view_as(call: Call, a: Bound) -> Lowered:
    return Lowered("reshape", [a["self"], a["other"]])


@moves
@entry("unflatten")
def unflatten(call: Call, a: Bound) -> Lowered:
    output, sizes = call.outputs[0], a["sizes"]
    dim = a["dim"] % len(a["self"].shape)

    def literals(new: Resized) -> dict[str, Any]:
        new_shape = new.shape(output)[dim : dim + len(sizes)]
        return {"sizes": [old if old == -1 else size for old, size in zip(sizes, new_shape, strict=True)]}

    return Lowered("reshape", [a["self"]], {}, literals)


@entry("pixel_shuffle")
def pixel_shuffle(call: Call, a: Bound) -> Lowered:
    times = a["upscale_factor"]
    attributes = {"notation": "... (c r s) h w -> ... c (h r) (w s)", "sizes": {"r": times, "s": times}}
    return Lowered("rearrange", [a["self"]], attributes)


@entry("pixel_unshuffle")
def pixel_unshuffle(call: Call, a: Bound) -> Lowered:
    times = a["downscale_factor"]
    attributes = {"notation": "... c (h r) (w s) -> ... (c r s) h w", "sizes": {"r": times, "s": times}}
    return Lowered("rearrange", [a["self"]], attributes)


@entry("channel_shuffle")
def channel_shuffle(call: Call, a: Bound) -> Lowered:
    attributes = {"notation": "b (g c) [h w] -> b (c g) [h w]", "sizes": {"g": a["groups"]}}
    return Lowered("rearrange", [a["self"]], attributes)


@entry("im2col")
def im2col(call: Call, a: Bound) -> Lowered:
    return Lowered("windows", [a["self"]], {"kernel": a["kernel_size"][0] * a["kernel_size"][1]})


@entry("col2im")
def col2im(call: Call, a: Bound) -> Lowered:
    return Lowered("unwindows", [a["self"]], {"kernel": a["kernel_size"][0] * a["kernel_size"][1]})


def routed(call: Call, a: Bound, route: Route, **attributes: Any) -> Lowered:
    inputs = list(values_in(list(a.values())))
    return Lowered("route", inputs, {"routes": [route for _ in call.outputs], **attributes})


def straight(x: Value) -> Route:
    return [[(0, axis)] for axis in range(len(x.shape))]


@moves
@entry("permute", "transpose", "t", "numpy_T", "mT", "swapaxes", "swapdims", "movedim", "adjoint")
def permute(call: Call, a: Bound) -> Lowered:
    x = a["self"]
    rank = len(x.shape)
    order = list(range(rank))
    if "dims" in a:
        order = [dim % rank for dim in a["dims"]]
    elif "source" in a:
        source = a["source"] if isinstance(a["source"], list | tuple) else [a["source"]]
        target = a["destination"] if isinstance(a["destination"], list | tuple) else [a["destination"]]
        order = [axis for axis in order if axis not in {dim % rank for dim in source}]
        for to, start in sorted(zip((dim % rank for dim in target), (dim % rank for dim in source), strict=True)):
            order.insert(to, start)
    elif call.target._opname.startswith("numpy_T"):
        order.reverse()
    elif rank > 1:
        names = [name for name in ("dim0", "dim1", "axis0", "axis1") if name in a]
        first, second = (a[name] % rank for name in names) if names else (rank - 2, rank - 1)
        order[first], order[second] = order[second], order[first]
    return routed(call, {"self": x}, [[(0, axis)] for axis in order])


@moves
@entry("unsqueeze")
def unsqueeze(call: Call, a: Bound) -> Lowered:
    route = straight(a["self"])
    route.insert(a["dim"] % (len(route) + 1), [])
    return routed(call, a, route)


@moves
@entry("squeeze")
def squeeze(call: Call, a: Bound) -> Lowered:
    x = a["self"]
    dims = a.get("dim", range(len(x.shape)))
    dims = {dim % len(x.shape) for dim in ([dims] if isinstance(dims, int) else dims)} if x.shape else set()
    return routed(call, a, [[(0, k)] for k, size in enumerate(x.shape) if not (k in dims and size == 1)])


@moves
@entry("contiguous", "clone", "detach", "alias", "dropout", "feature_dropout", "alpha_dropout", "_to_copy", "to",
       "type_as", "lift_fresh", "lift_fresh_copy", "lift", "requires_grad", "detach_copy", "resolve_conj",
       "resolve_neg", "positive", "native_dropout", "fake_quantize_per_tensor_affine", "data")  # fmt: skip
def same(call: Call, a: Bound) -> Lowered:
    """The mask of a dropout is not zero."""
    x = a["input"] if isinstance(a.get("input"), Value) else a["self"]
    attributes = {"routes": [straight(x) for _ in call.outputs], "keeps_zero": keeps_zero(call, a), "positions": (1,)}
    return Lowered("route", [x], attributes)


def keeps_zero(call: Call, a: Bound) -> bool:
    """Alpha dropout sets what it drops, and shifts the rest; a quantization may give any zero point."""
    if call.target._opname == "alpha_dropout":
        return not a["train"]
    if "zero_point" in a:
        point = a["zero_point"]
        return isinstance(point, int) and a["quant_min"] <= point <= a["quant_max"]
    return True


@entry("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "bernoulli", "uniform_",
       "normal_", "exponential_")  # fmt: skip
def like(call: Call, a: Bound) -> Lowered:
    x = a["self"]
    return Lowered("route", [x], {"routes": [straight(x)], "keeps_zero": call.target._opname == "zeros_like"})


@entry("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty", "zero_", "fill_",
       "rand", "randn")  # fmt: skip
def constant(call: Call, a: Bound) -> Lowered:
    output = call.outputs[0]
    name = call.target._opname
    if name in ("zero_", "fill_"):
        x = a["self"]
        return Lowered("route", [x], {"routes": [straight(x)], "keeps_zero": name == "zero_"})
    fills_zero = name.endswith("zeros") or a.get("fill_value") == 0
    return Lowered("constant", [], {"fills_zero": fills_zero}, lambda new: {"size": new_sizes(new, output, a["size"])})


@entry("cat", "concat", "concatenate")
def cat(call: Call, a: Bound) -> Lowered:
    operands = [value for value in a["tensors"] if len(value.shape) != 1 or value.shape != (0,)]
    operands = operands or list(a["tensors"])
    return Lowered("concat", operands, {"dim": a["dim"] % len(operands[0].shape)})


@entry("stack")
def stack(call: Call, a: Bound) -> Lowered:
    operands = list(a["tensors"])
    return Lowered("stack", operands, {"dim": a["dim"] % (len(operands[0].shape) + 1)})


@entry("split", "chunk", "split_with_sizes", "tensor_split", "unsafe_split", "unsafe_chunk", "split_copy",
       "split_with_sizes_copy")  # fmt: skip
def split(call: Call, a: Bound) -> Lowered:
    x, outputs = a["self"], call.outputs
    dim = a["dim"] % len(x.shape)
    sizes = [value.shape[dim] for value in outputs]
    if sum(sizes) != x.shape[dim]:
        return opaque(call)

    def literals(new: Resized) -> dict[str, Any]:
        after = [new.shape(value)[dim] for value in outputs]
        if after == sizes:
            return {}
        if "split_sizes" in a:
            return {"split_sizes": after}
        if isinstance(a.get("split_size"), list | tuple):
            return {"split_size": after}
        if "split_size" in a:
            is_even = all(size == after[0] for size in after[:-1]) and after[-1] <= after[0]
            return {"split_size": after[0]} if is_even else {"*": after}
        if "chunks" in a:
            step = -(-sum(after) // a["chunks"])
            count = -(-sum(after) // step)
            given = [min(step, sum(after) - k * step) for k in range(count)]
            return {} if given == after else {"*": after}
        return {"*": after}

    return Lowered("split", [x], {"dim": dim, "sizes": sizes}, literals)


@entry("unbind")
def unbind(call: Call, a: Bound) -> Lowered:
    return Lowered("unbind", [a["self"]], {"dim": a["dim"] % len(a["self"].shape)})


@entry("slice", "narrow", "slice_copy")
def slice_(call: Call, a: Bound) -> Lowered:
    x = a["self"]
    if isinstance(a["start"], Value):
        return opaque(call, "its start is computed from data")
    dim = a["dim"] % len(x.shape)
    size = x.shape[dim]
    if "length" in a:
        start = a["start"] % size if size else 0
        end, step = start + a["length"], 1
    else:
        start, end, step = slice(a["start"], a["end"], a["step"]).indices(size)

    def literals(new: Resized) -> dict[str, Any]:
        # Blocks of `step` entries go or stay as a whole.
        first, last = new.before(x, dim, start // step * step) + start % step, new.before(x, dim, end)
        if "length" in a:
            return {"start": first, "length": last - first}
        if new.shape(x)[dim] == size or len(range(start, end, step)) == size:
            return {}
        result: dict[str, Any] = {}
        if a["start"] is not None:
            result["start"] = first if a["start"] >= 0 else first - new.shape(x)[dim]
        if a["end"] is not None and a["end"] < size:
            result["end"] = last if a["end"] >= 0 else last - new.shape(x)[dim]
        return result

    return Lowered("slice", [x], {"dim": dim, "start": start, "end": end, "step": step}, literals)


@entry("select", "select_copy")
def select(call: Call, a: Bound) -> Lowered:
    x = a["self"]
    dim = a["dim"] % len(x.shape)
    index = a["index"] % x.shape[dim]

    def literals(new: Resized) -> dict[str, Any]:
        place = new.before(x, dim, index)
        return {"index": place if a["index"] >= 0 else place - new.shape(x)[dim]}

    return Lowered("select", [x], {"dim": dim, "index": index}, literals)


@moves
@entry("expand", "broadcast_to", "expand_copy")
def expand(call: Call, a: Bound) -> Lowered:
    x, output = a["self"], call.outputs[0]
    lead = len(output.shape) - len(x.shape)
    route: Route = [
        [] if k < lead or x.shape[k - lead] != size else [(0, k - lead)] for k, size in enumerate(output.shape)
    ]
    copies = [k for k, sources in enumerate(route) if not sources]
    attributes = {"routes": [route], "copies": copies}
    return Lowered("route", [x], attributes, lambda new: {"size": new_sizes(new, output, a["size"])})


@moves
@entry("expand_as")
def expand_as(call: Call, a: Bound) -> Lowered:
    x, other = a["self"], a["other"]
    lead = len(other.shape) - len(x.shape)
    route: Route = [
        [(1, k)] if k < lead or x.shape[k - lead] != size else [(0, k - lead), (1, k)]
        for k, size in enumerate(other.shape)
    ]
    return Lowered("route", [x, other], {"routes": [route], "keeps_zero": False})


@entry("repeat", "tile")
def repeat(call: Call, a: Bound) -> Lowered:
    x, output = a["self"], call.outputs[0]
    name = "repeats" if "repeats" in a else "dims"
    given = list(a[name])
    if len(given) != len(x.shape):
        return repeat_with_lead(call, a, name)

    def literals(new: Resized) -> dict[str, Any]:
        pairs = zip(new.shape(output), new.shape(x), strict=True)
        return {name: [after // before for after, before in pairs]}

    return Lowered("repeat", [x], {"times": given, "is_tiled": True}, literals)


def repeat_with_lead(call: Call, a: Bound, name: str) -> Lowered:
    x, output, times = a["self"], call.outputs[0], list(a[name])
    lead = len(times) - len(x.shape)
    if lead < 0 or any(count != 1 and x.shape[k] != 1 for k, count in enumerate(times[lead:])):
        return opaque(call)
    route: Route = [[] if k < lead or times[k] != 1 else [(0, k - lead)] for k in range(len(times))]
    copies = [k for k, sources in enumerate(route) if not sources]

    def literals(new: Resized) -> dict[str, Any]:
        shape = new.shape(output)
        return {name: [shape[k] if k in copies else 1 for k in range(len(times))]}

    return Lowered("route", [x], {"routes": [route], "copies": copies}, literals)


@entry("repeat_interleave")
def repeat_interleave(call: Call, a: Bound) -> Lowered:
    x, times, output = a.get("self"), a["repeats"], call.outputs[0]
    if not isinstance(times, int) or x is None or a.get("dim") is None:
        return opaque(call)
    dim = a["dim"] % len(x.shape)
    counts = [times if k == dim else 1 for k in range(len(x.shape))]

    def literals(new: Resized) -> dict[str, Any]:
        return {"repeats": new.shape(output)[dim] // new.shape(x)[dim]}

    return Lowered("repeat", [x], {"times": counts, "is_tiled": False}, literals)


@entry("pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad2d", "replication_pad1d")
def pad(call: Call, a: Bound) -> Lowered:
    x, output = a["self"], call.outputs[0]
    name = "pad" if "pad" in a else "padding"
    given = list(a[name])
    rank = len(x.shape)
    widths = [(0, 0)] * rank
    for k in range(len(given) // 2):
        widths[rank - 1 - k] = (given[2 * k], given[2 * k + 1])
    is_constant = a.get("mode", "constant") == "constant" and "pad" in a
    attributes = {"widths": widths, "is_constant": is_constant, "fills_zero": not a.get("value")}

    def literals(new: Resized) -> dict[str, Any]:
        result = []
        for k in range(len(given) // 2):
            axis = rank - 1 - k
            before, after = widths[axis]
            if (before or after) and is_constant and min(before, after) >= 0:
                size = output.shape[axis]
                after_count = new.shape(output)[axis] - new.before(output, axis, size - after)
                before, after = new.before(output, axis, before), after_count
            result += [before, after]
        return {name: result}

    return Lowered("pad", [x], attributes, literals)


def along(why: str, keeps_zero: bool) -> Any:
    """Operators that treat some axes as a whole and pass the others through."""

    def lower(call: Call, a: Bound) -> Lowered:
        x = next(values_in(list(a.values())))
        dims = a.get("dim", a.get("dims"))
        dims = range(len(x.shape)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
        axes = {dim % len(x.shape) for dim in dims} if x.shape else set()
        route: Route = [
            [(0, k)] if k not in axes or size == value.shape[k] else []
            for value in call.outputs[:1]
            for k, size in enumerate(x.shape)
        ]
        whole = {(0, axis): why for axis in axes}
        return Lowered(
            "route",
            [x],
            {"routes": [route for _ in call.outputs], "whole": whole, "keeps_zero": keeps_zero, "positions": (1,)},
        )

    return lower


entry("_fft_r2c", "_fft_c2r", "_fft_c2c")(along("mixes its positions", True))
entry("softmax", "_softmax", "log_softmax", "_log_softmax", "_safe_softmax")(along("is taken over it", False))
entry("cumsum", "cumprod", "cummax", "rot90")(along("orders its positions", True))
entry("sort", "argsort", "topk", "logcumsumexp")(along("orders its positions", False))


@entry("view_as_real")
def view_as_real(call: Call, a: Bound) -> Lowered:
    return routed(call, a, [*straight(a["self"]), []])


@entry("view_as_complex")
def view_as_complex(call: Call, a: Bound) -> Lowered:
    *route, _ = straight(a["self"])
    return routed(call, a, route, whole={(0, len(route)): "takes it for real and imaginary parts"})


@entry("flip")
def flip(call: Call, a: Bound) -> Lowered:
    x = a["self"]
    axes = {dim % len(x.shape) for dim in a["dims"]}
    return Lowered("pick", [x], {"picks": {axis: np.arange(x.shape[axis])[::-1] for axis in axes}})


@entry("roll")
def roll(call: Call, a: Bound) -> Lowered:
    x, shifts = a["self"], list(a["shifts"])
    if not a["dims"] and len(x.shape) != 1:
        return opaque(call, "it rolls all axes as one")
    axes = [dim % len(x.shape) for dim in a["dims"] or [0]]
    if len(set(axes)) != len(axes):
        return opaque(call, "it rolls an axis twice")
    sizes = [x.shape[axis] for axis in axes]

    def literals(new: Resized) -> dict[str, Any]:
        after = list(shifts)
        for k, (axis, shift, size) in enumerate(zip(axes, shifts, sizes, strict=True)):
            if new.shape(x)[axis] != size:
                # A shift of -k brings the first k entries to the end, one of k the last k to the front.
                front = new.before(x, axis, -shift % size)
                after[k] = -front if shift < 0 else new.shape(x)[axis] - front
        return {"shifts": after}

    picks = {axis: (np.arange(size) - shift) % size for axis, shift, size in zip(axes, shifts, sizes, strict=True)}
    return Lowered("pick", [x], {"picks": picks}, literals)


@entry("tril", "triu")
def triangle(call: Call, a: Bound) -> Lowered:
    """Half of a matrix: its two axes are positions against each other."""
    x = a["self"]
    whole = {(0, len(x.shape) - k): "orders its positions" for k in (1, 2)}
    return Lowered("route", [x], {"routes": [straight(x)], "whole": whole})


def positions(channel_axes: int) -> Any:
    """Pools and resizes: the leading axes pass, the trailing ones are positions."""

    def lower(call: Call, a: Bound) -> Lowered:
        x = next(values_in(list(a.values())))
        lead = len(x.shape) - channel_axes
        route: Route = [[(0, k)] if k < lead else [] for k in range(len(x.shape))]
        whole = {(0, k): "works on it as a whole" for k in range(lead, len(x.shape))}
        attributes = {"routes": [route for _ in call.outputs], "whole": whole, "positions": (1,)}
        return Lowered("route", [x], attributes)

    return lower


for _rank in (1, 2, 3):
    entry(*(f"{name}{_rank}d" for name in (
        "max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool")), f"max_pool{_rank}d_with_indices",
        f"upsample_nearest{_rank}d", f"_upsample_nearest_exact{_rank}d")(positions(_rank))  # fmt: skip
entry("_adaptive_avg_pool2d")(positions(2))
entry("_adaptive_avg_pool3d")(positions(3))
entry("upsample_linear1d")(positions(1))
entry("upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")(positions(2))
entry("upsample_trilinear3d")(positions(3))
