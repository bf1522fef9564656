"""The entries of ATen operators that move axes: views, slices, concatenations, pools."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from structprune.frontends.lowering import Lowered
from structprune.frontends.torch.read.lower import Bound, entry, moves, opaque
from structprune.frontends.torch.record.record import Call, values_in
from structprune.operators.joining import Concat, Repeat, Split, Stack, Unbind, even_parts
from structprune.operators.reshaping import Rearrange, Reshape, Windows
from structprune.operators.routing import Constant, Expand, Path, Pick, Roll, Route, straight
from structprune.operators.slicing import Pad, Select, Slice


@moves
@entry("view", "reshape", "_unsafe_view", "_reshape_copy", "view_copy")
def view(call: Call, a: Bound) -> Lowered:
    name = next((each for each in ("size", "shape") if each in a), None)
    if name is None:
        return opaque(call, "a view as another type")
    return Lowered(Reshape(tuple(a[name])), [a["self"]], {"sizes": name})


@moves
@entry("flatten")
def flatten(call: Call, a: Bound) -> Lowered:
    return Lowered(Reshape(), [a["self"]])


@moves
@entry("view_as", "reshape_as")
def view_as(call: Call, a: Bound) -> Lowered:
    return Lowered(Reshape(), [a["self"], a["other"]])


@moves
@entry("unflatten")
def unflatten(call: Call, a: Bound) -> Lowered:
    return Lowered(Reshape(tuple(a["sizes"]), a["dim"] % len(a["self"].shape)), [a["self"]], {"sizes": "sizes"})


@entry("pixel_shuffle")
def pixel_shuffle(call: Call, a: Bound) -> Lowered:
    times = a["upscale_factor"]
    return Lowered(Rearrange("... (c r s) h w -> ... c (h r) (w s)", {"r": times, "s": times}), [a["self"]])


@entry("pixel_unshuffle")
def pixel_unshuffle(call: Call, a: Bound) -> Lowered:
    times = a["downscale_factor"]
    return Lowered(Rearrange("... c (h r) (w s) -> ... (c r s) h w", {"r": times, "s": times}), [a["self"]])


@entry("channel_shuffle")
def channel_shuffle(call: Call, a: Bound) -> Lowered:
    return Lowered(Rearrange("b (g c) [h w] -> b (c g) [h w]", {"g": a["groups"]}), [a["self"]])


@entry("im2col", "col2im")
def windows(call: Call, a: Bound) -> Lowered:
    height, width = a["kernel_size"]
    return Lowered(Windows(height * width, is_back=call.target._opname == "col2im"), [a["self"]])


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
    return Lowered(Route([[(0, axis)] for axis in order], keeps_constant=True), [x])


@moves
@entry("unsqueeze")
def unsqueeze(call: Call, a: Bound) -> Lowered:
    path = straight(a["self"])
    path.insert(a["dim"] % (len(path) + 1), [])
    return Lowered(Route(path, keeps_constant=True), [a["self"]])


@moves
@entry("squeeze")
def squeeze(call: Call, a: Bound) -> Lowered:
    x = a["self"]
    dims = axes_of(a.get("dim"), len(x.shape), has_all=True)
    path: Path = [[(0, k)] for k, size in enumerate(x.shape) if not (k in dims and size == 1)]
    return Lowered(Route(path, keeps_constant=True), [x])


def axes_of(dims: Any, rank: int, has_all: bool = False) -> set[int]:
    """The axes that an argument names; all where it names none."""
    given: Iterable[int] = range(rank) if dims is None or (dims == [] and not has_all) else dims
    return {dim % rank for dim in ([given] if isinstance(given, int) else given)} if rank else set()


@moves
@entry("contiguous", "clone", "detach", "alias", "dropout", "feature_dropout", "alpha_dropout", "_to_copy", "to",
       "type_as", "lift_fresh", "lift_fresh_copy", "lift", "requires_grad", "detach_copy", "resolve_conj",
       "resolve_neg", "positive", "native_dropout", "fake_quantize_per_tensor_affine", "data")  # fmt: skip
def same(call: Call, a: Bound) -> Lowered:
    """The mask of a dropout, the second result, is not zero."""
    x = next(values_in([a.get("input"), a.get("self")]))
    # In another type a number may be another one; what is dropped is drawn.
    is_other = call.target._opname in ("_to_copy", "to", "type_as", "fake_quantize_per_tensor_affine")
    passes = not is_other and a.get("train", False) is False
    return Lowered(Route(straight(x), keeps_zero=keeps_zero(call, a), positions=(1,), keeps_constant=passes), [x])


def keeps_zero(call: Call, a: Bound) -> bool:
    """Alpha dropout sets what it drops, and shifts the rest; a quantization may give any zero point."""
    if call.target._opname == "alpha_dropout":
        return not a["train"]
    if "zero_point" in a:
        point = a["zero_point"]
        return isinstance(point, int) and a["quant_min"] <= point <= a["quant_max"]
    return True


@entry("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "bernoulli", "uniform_",
       "normal_", "exponential_", "zero_", "fill_")  # fmt: skip
def like(call: Call, a: Bound) -> Lowered:
    x = a["self"]
    return Lowered(Route(straight(x), keeps_zero=call.target._opname in ("zeros_like", "zero_")), [x])


@entry("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty", "rand", "randn")
def constant(call: Call, a: Bound) -> Lowered:
    fills_zero = call.target._opname.endswith("zeros") or a.get("fill_value") == 0
    return Lowered(Constant(tuple(a["size"]), fills_zero), [], {"sizes": "size"})


@entry("cat", "concat", "concatenate")
def cat(call: Call, a: Bound) -> Lowered:
    operands = [value for value in a["tensors"] if len(value.shape) != 1 or value.shape != (0,)]
    operands = operands or list(a["tensors"])
    return Lowered(Concat(a["dim"] % len(operands[0].shape)), operands)


@entry("stack")
def stack(call: Call, a: Bound) -> Lowered:
    operands = list(a["tensors"])
    return Lowered(Stack(a["dim"] % (len(operands[0].shape) + 1)), operands)


@entry("split", "chunk", "split_with_sizes", "tensor_split", "unsafe_split", "unsafe_chunk", "split_copy",
       "split_with_sizes_copy")  # fmt: skip
def split(call: Call, a: Bound) -> Lowered:
    x = a["self"]
    dim = a["dim"] % len(x.shape)
    sizes = tuple(value.shape[dim] for value in call.outputs)
    if sum(sizes) != x.shape[dim]:
        return opaque(call)

    def arguments(parts: Split) -> dict[str, Any]:
        """In the form that was called, if that can say it; `*` stands for another operator."""
        after = list(parts.sizes)
        name = next((each for each in ("split_sizes", "split_size") if isinstance(a.get(each), list | tuple)), None)
        if name is not None:
            return {name: after}
        if "split_size" in a and all(size == after[0] for size in after[:-1]) and after[-1] <= after[0]:
            return {"split_size": after[0]}
        return {} if "chunks" in a and even_parts(sum(after), a["chunks"]) == after else {"*": after}

    return Lowered(Split(dim, sizes), [x], arguments)


@entry("unbind")
def unbind(call: Call, a: Bound) -> Lowered:
    return Lowered(Unbind(a["dim"] % len(a["self"].shape)), [a["self"]])


@entry("slice", "slice_copy")
def slice_(call: Call, a: Bound) -> Lowered:
    x = a["self"]
    cut = Slice((a["dim"] % len(x.shape),), (a["start"],), (a["end"],), (a["step"],))
    return Lowered(cut, [x], lambda new: {"start": new.starts[0], "end": new.ends[0]})


@entry("narrow")
def narrow(call: Call, a: Bound) -> Lowered:
    x = a["self"]
    if not isinstance(a["start"], int):
        return opaque(call, "its start is computed from data")
    dim = a["dim"] % len(x.shape)
    start = a["start"] % x.shape[dim] if x.shape[dim] else 0
    cut = Slice((dim,), (start,), (start + a["length"],), (1,), is_exact=True)
    return Lowered(cut, [x], lambda new: {"start": new.starts[0], "length": new.ends[0] - new.starts[0]})


@entry("select", "select_copy")
def select(call: Call, a: Bound) -> Lowered:
    return Lowered(Select(a["dim"] % len(a["self"].shape), a["index"]), [a["self"]], {"index": "index"})


@moves
@entry("expand", "broadcast_to", "expand_copy")
def expand(call: Call, a: Bound) -> Lowered:
    return Lowered(Expand(tuple(a["size"])), [a["self"]], {"sizes": "size"})


@moves
@entry("expand_as")
def expand_as(call: Call, a: Bound) -> Lowered:
    x, other = a["self"], a["other"]
    lead = len(other.shape) - len(x.shape)
    path: Path = [
        [(1, k)] if k < lead or x.shape[k - lead] != size else [(0, k - lead), (1, k)]
        for k, size in enumerate(other.shape)
    ]
    return Lowered(Route(path, keeps_zero=False), [x, other])


@entry("repeat", "tile")
def repeat(call: Call, a: Bound) -> Lowered:
    name = "repeats" if "repeats" in a else "dims"
    if len(a[name]) < len(a["self"].shape):
        return opaque(call)
    return Lowered(Repeat(tuple(a[name])), [a["self"]], {"times": name})


@entry("repeat_interleave")
def repeat_interleave(call: Call, a: Bound) -> Lowered:
    times, x = a["repeats"], a.get("self")
    if not isinstance(times, int) or x is None or a.get("dim") is None:
        return opaque(call)
    dim = a["dim"] % len(x.shape)
    counts = tuple(times if k == dim else 1 for k in range(len(x.shape)))
    return Lowered(Repeat(counts, is_tiled=False), [x], lambda new: {"repeats": new.times[dim]})


@entry("pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad2d", "replication_pad1d")
def pad(call: Call, a: Bound) -> Lowered:
    """The pairs of widths begin with that of the last axis."""
    x, name = a["self"], "pad" if "pad" in a else "padding"
    given, rank = list(a[name]), len(a["self"].shape)
    pairs = list(zip(given[::2], given[1::2], strict=True))
    widths = tuple((*[(0, 0)] * (rank - len(pairs)), *pairs[::-1]))
    is_constant = a.get("mode", "constant") == "constant" and "pad" in a

    def arguments(new: Pad) -> dict[str, Any]:
        return {name: [width for pair in new.widths[::-1][: len(pairs)] for width in pair]}

    return Lowered(Pad(widths, is_constant, not a.get("value")), [x], arguments)


def along(why: str, keeps_zero: bool) -> Callable[[Call, Bound], Lowered]:
    """Operators that treat some axes as a whole and pass the others through; a second result holds positions."""

    def lower(call: Call, a: Bound) -> Lowered:
        x = next(values_in(list(a.values())))
        axes = axes_of(a.get("dim", a.get("dims")), len(x.shape))
        after = call.outputs[0].shape
        path: Path = [[(0, k)] if k not in axes or size == after[k] else [] for k, size in enumerate(x.shape)]
        whole = {(0, axis): why for axis in axes}
        return Lowered(Route(path, whole, keeps_zero, positions=(1,)), [x])

    return lower


entry("_fft_r2c", "_fft_c2r", "_fft_c2c")(along("mixes its positions", True))
entry("softmax", "_softmax", "log_softmax", "_log_softmax", "_safe_softmax")(along("is taken over it", False))
entry("cumsum", "cumprod", "cummax", "rot90")(along("orders its positions", True))
entry("sort", "argsort", "topk", "logcumsumexp")(along("orders its positions", False))


@entry("structprune::handed_out")
def handed_out(call: Call, a: Bound) -> Lowered:
    return opaque(call, "its numbers are taken past all operators")


@entry("view_as_real")
def view_as_real(call: Call, a: Bound) -> Lowered:
    return Lowered(Route([*straight(a["self"]), []]), [a["self"]])


@entry("view_as_complex")
def view_as_complex(call: Call, a: Bound) -> Lowered:
    *path, _ = straight(a["self"])
    whole = {(0, len(path)): "takes it for real and imaginary parts"}
    return Lowered(Route(path, whole), [a["self"]])


@entry("flip")
def flip(call: Call, a: Bound) -> Lowered:
    x = a["self"]
    axes = {dim % len(x.shape) for dim in a["dims"]}
    return Lowered(Pick({axis: np.arange(x.shape[axis])[::-1] for axis in axes}), [x])


@entry("roll")
def roll(call: Call, a: Bound) -> Lowered:
    x = a["self"]
    if not a["dims"] and len(x.shape) != 1:
        return opaque(call, "it rolls all axes as one")
    axes = tuple(dim % len(x.shape) for dim in a["dims"] or [0])
    if len(set(axes)) != len(axes):
        return opaque(call, "it rolls an axis twice")
    return Lowered(Roll(axes, tuple(a["shifts"])), [x], {"shifts": "shifts"})


@entry("tril", "triu")
def triangle(call: Call, a: Bound) -> Lowered:
    """Half of a matrix: its two axes are positions against each other."""
    x = a["self"]
    return Lowered(Route(straight(x), {(0, len(x.shape) - k): "orders its positions" for k in (1, 2)}), [x])


def positions(count: int) -> Callable[[Call, Bound], Lowered]:
    """Pools and resizes: the leading axes pass, so many trailing ones are positions."""

    def lower(call: Call, a: Bound) -> Lowered:
        x = next(values_in(list(a.values())))
        axes = range(len(x.shape) - count, len(x.shape))
        path: Path = [[] if k in axes else [(0, k)] for k in range(len(x.shape))]
        whole = {(0, k): "works on it as a whole" for k in axes}
        return Lowered(Route(path, whole, positions=(1,), keeps_constant=is_average(call, a)), [x])

    return lower


def is_average(call: Call, a: Bound) -> bool:
    """Of numbers that are all the same, the result is that number: no zeros around are counted in."""
    if not call.target._opname.startswith("avg_pool"):
        return True
    counts = a["count_include_pad"] and (any(a["padding"]) or a["ceil_mode"])
    return not counts and not a.get("divisor_override")


for _rank in (1, 2, 3):
    entry(*(f"{name}{_rank}d" for name in (
        "max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool")), f"max_pool{_rank}d_with_indices",
        f"upsample_nearest{_rank}d", f"_upsample_nearest_exact{_rank}d")(positions(_rank))  # fmt: skip
entry("_adaptive_avg_pool2d")(positions(2))
entry("_adaptive_avg_pool3d")(positions(3))
entry("upsample_linear1d")(positions(1))
entry("upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")(positions(2))
entry("upsample_trilinear3d")(positions(3))
