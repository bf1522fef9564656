"""The entries of ONNX operators that move axes: reshapes, slices, concatenations, pools, gathers."""

from __future__ import annotations

from typing import Any

import numpy as np

from structprune.frontends.lowering import Lowered
from structprune.frontends.onnx.read.lower import Call, Entry, entry, opaque
from structprune.frontends.onnx.record.trace import constant
from structprune.operators.joining import Concat, Repeat, Split, even_parts
from structprune.operators.reshaping import Rearrange, Reshape
from structprune.operators.routing import Constant, Expand, Path, Pick, Resize, Route, Source, straight
from structprune.operators.slicing import Pad, Select, Slice


@entry("Reshape")
def reshape(call: Call) -> Lowered:
    given = call.integers(1, "shape")
    if given is None:
        return opaque(call, "its sizes are computed from data")
    sized = Reshape(tuple(given), copies_zero=not call.get("allowzero", 0))
    return Lowered(sized, [call.x()], {"sizes": 1 if call.has(1) else "shape"})


@entry("Flatten")
def flatten(call: Call) -> Lowered:
    return Lowered(Reshape(), [call.x()])


@entry("Transpose")
def transpose(call: Call) -> Lowered:
    x = call.x()
    order = call.get("perm", None) or list(range(len(x.shape)))[::-1]
    return Lowered(Route([[(0, axis % len(x.shape))] for axis in order], keeps_constant=True), [x])


@entry("Squeeze")
def squeeze(call: Call) -> Lowered:
    x = call.x()
    given = call.integers(1, "axes")
    axes = {k for k, size in enumerate(x.shape) if size == 1} if given is None else {k % len(x.shape) for k in given}
    return Lowered(Route([[(0, k)] for k in range(len(x.shape)) if k not in axes], keeps_constant=True), [x])


@entry("Unsqueeze")
def unsqueeze(call: Call) -> Lowered:
    x, rank = call.x(), len(call.outputs[0].shape)
    axes = {k % rank for k in call.integers(1, "axes") or ()}
    old = iter(range(len(x.shape)))
    path: Path = [[] if k in axes else [(0, next(old))] for k in range(rank)]
    return Lowered(Route(path, keeps_constant=True), [x])


@entry("Identity", "Cast", "CastLike", "Dropout")
def same(call: Call) -> Lowered:
    """The second output, the mask of a dropout, is not zero. In another type a number may be another one."""
    kind, mode = call.node.op_type, call.number(2)
    is_off = call.version >= 7 and (not call.has(2) or (mode is not None and not mode.any()))
    passes = kind == "Identity" or (kind == "Dropout" and is_off)
    return Lowered(Route(straight(call.x()), positions=positions_of(call), keeps_constant=passes), [call.x()])


def positions_of(call: Call) -> tuple[int, ...]:
    """The outputs after the first, which say where or what was chosen."""
    return tuple(k for k, place in enumerate(call.outputs_at) if place)


@entry("DepthToSpace")
def depth_to_space(call: Call) -> Lowered:
    times = call.get("blocksize", 1)
    order = "(r s c)" if call.get("mode", "DCR") == "DCR" else "(c r s)"
    return Lowered(Rearrange(f"b {order} h w -> b c (h r) (w s)", {"r": times, "s": times}), [call.x()])


@entry("SpaceToDepth")
def space_to_depth(call: Call) -> Lowered:
    times = call.get("blocksize", 1)
    return Lowered(Rearrange("b c (h r) (w s) -> b (r s c) h w", {"r": times, "s": times}), [call.x()])


@entry("ConstantOfShape")
def constant_of_shape(call: Call) -> Lowered:
    given, fill = call.integers(0), call.get("value", None)
    if given is None:
        return opaque(call, "its sizes are computed from data")
    return Lowered(Constant(tuple(given), fill is None or not np.any(fill.numpy())), [], {"sizes": 0})


@entry("Concat")
def concat(call: Call) -> Lowered:
    given = [value for value in call.inputs if value is not None]
    return Lowered(Concat(call.get("axis", 1) % len(given[0].shape)), given)


@entry("Split")
def split(call: Call) -> Lowered:
    x = call.x()
    dim = call.get("axis", 0) % len(x.shape)
    sizes = tuple(value.shape[dim] for value in call.outputs)
    if sum(sizes) != x.shape[dim]:
        return opaque(call, "a Split some of whose parts nobody reads")

    def arguments(new: Split) -> dict[Any, Any]:
        after = list(new.sizes)
        is_told = call.has(1) or "split" in call.node.attributes
        if not is_told and after == even_parts(sum(after), len(after)):
            return {}
        return {"split": after} if call.version < 13 else {1: after, "num_outputs": None}

    return Lowered(Split(dim, sizes), [x], arguments)


@entry("Slice")
def slice_(call: Call) -> Lowered:
    x = call.x()
    starts, ends = call.integers(1, "starts"), call.integers(2, "ends")
    if starts is None or ends is None or (call.has(3) and call.number(3) is None):
        return opaque(call, "its bounds are computed from data")
    axes = tuple(axis % len(x.shape) for axis in call.integers(3, "axes") or range(len(starts)))
    steps = tuple(call.integers(4) or [1] * len(starts))
    partitioned = [axis for axis in axes if is_partition(call, axis)]
    by_input = call.has(1)
    places = {"starts": 1 if by_input else "starts", "ends": 2 if by_input else "ends"}
    return Lowered(Slice(axes, tuple(starts), tuple(ends), steps, partitioned), [x], places)


def is_partition(call: Call, axis: int) -> bool:
    """A stored tensor is cut into parts by slices, and each part is read by one of them."""
    stored = call.node.inputs[0]
    if stored is None or constant(stored) is None:
        return False
    spans: set[tuple[int, int]] = set()
    for node, place in stored.uses():
        bounds = [None if value is None else call.trace.numbers.get(value) for value in node.inputs[1:5]]
        if node.op_type != "Slice" or place != 0 or any(each is None or each.size != 1 for each in bounds):
            return False
        start, end, along, step = ([int(each.item()) for each in bounds if each is not None] + [1])[:4]
        if along % len(call.x().shape) != axis or step != 1:
            return False
        spans.add(slice(start, end).indices(call.x().shape[axis])[:2])
    ordered = sorted(spans)
    joints = [end for _, end in ordered[:-1]] == [start for start, _ in ordered[1:]]
    return joints and ordered[0][0] == 0 and ordered[-1][1] == call.x().shape[axis]


@entry("Pad")
def pad(call: Call) -> Lowered:
    """The widths before the axes stand before those after them."""
    x, given = call.x(), call.integers(1, "pads")
    if given is None or (call.has(3) and call.number(3) is None):
        return opaque(call, "its widths are computed from data")
    axes = [axis % len(x.shape) for axis in call.integers(3) or range(len(x.shape))]
    widths = [(0, 0)] * len(x.shape)
    for axis, before, after in zip(axes, given[: len(axes)], given[len(axes) :], strict=True):
        widths[axis] = before, after
    fill = call.number(2) if call.version >= 11 else np.asarray(call.get("value", 0.0))
    fills_zero = not np.any(fill) if fill is not None else not call.has(2)

    def arguments(new: Pad) -> dict[Any, Any]:
        return {1 if call.has(1) else "pads": [new.widths[axis][side] for side in (0, 1) for axis in axes]}

    return Lowered(Pad(tuple(widths), call.get("mode", "constant") == "constant", fills_zero), [x], arguments)


@entry("Expand")
def expand(call: Call) -> Lowered:
    given, fill = call.integers(1), call.number(0)
    if given is None:
        return opaque(call, "its sizes are computed from data")
    if fill is not None and fill.size == 1:
        return Lowered(Constant(tuple(given), not fill.any(), kept=(1,)), [], {"sizes": 1})
    return Lowered(Expand(tuple(given), kept=(1,)), [call.x()], {"sizes": 1})


@entry("Tile")
def tile(call: Call) -> Lowered:
    times = call.integers(1)
    if times is None:
        return opaque(call, "its counts are computed from data")
    return Lowered(Repeat(tuple(times)), [call.x()], {"times": 1})


@entry("Resize", "Upsample")
def resize(call: Call) -> Lowered:
    x, after = call.x(), call.outputs[0].shape
    # Positions are resized even where their count happens to stay.
    axes = [k for k, size in enumerate(x.shape) if k > 1 or size != after[k]]
    given = call.integers(3) if call.version >= 11 else None
    if given is None and call.version >= 11 and call.has(3):
        return opaque(call, "its sizes are computed from data")
    along = tuple(axis % len(x.shape) for axis in call.get("axes", None) or range(len(x.shape)))
    is_filled = call.get("coordinate_transformation_mode", "") == "tf_crop_and_resize"
    keeps_zero = not (is_filled and call.get("extrapolation_value", 0.0))
    passes = keeps_zero and not is_filled and call.get("mode", "nearest") in ("nearest", "linear")
    resized = Resize(axes, tuple(given or ()), along, keeps_zero, passes)
    return Lowered(resized, [x], {"sizes": 3} if given else None)


@entry("MaxPool", "AveragePool", "LpPool", "GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool")
def pool(call: Call) -> Lowered:
    """The leading axes pass, the trailing ones are positions."""
    x = call.x()
    path: Path = [[(0, k)] if k < 2 else [] for k in range(len(x.shape))]
    whole = {(0, k): "works on it as a whole" for k in range(2, len(x.shape))}
    if 1 in call.outputs_at:
        whole.update({(0, k): "counts its positions through it" for k in range(2)})
    # Of numbers that are all the same the mean is that number, but where zeros are counted in.
    kind, is_padded = call.node.op_type, any(call.get("pads", ())) or "auto_pad" in call.node.attributes
    counts = call.get("count_include_pad", 0) and (is_padded or call.get("ceil_mode", 0))
    passes = not kind.endswith("LpPool") and not counts
    return Lowered(Route(path, whole, positions=positions_of(call), keeps_constant=passes), [x])


def along(axis_of: str, default: int, why: str, keeps_zero: bool) -> Entry:
    """Operators that treat one axis as a whole and pass the others through."""

    def lower(call: Call) -> Lowered:
        x = call.x()
        rank = len(x.shape)
        given = call.integers(1) if axis_of == "input" else [call.get(axis_of, default)]
        if not given:
            return opaque(call, "its axis is computed from data")
        first = given[0] % max(rank, 1)
        # Before version 13 a softmax flattened what follows its axis into it.
        flattens = call.node.op_type in ("Softmax", "LogSoftmax", "Hardmax") and call.version < 13
        if flattens:
            first = call.get("axis", 1) % max(rank, 1)
        whole = {(0, k): why for k in range(first, rank if flattens else first + 1)} if rank else {}
        path: Path = [[(0, k)] if size == call.outputs[0].shape[k] else [] for k, size in enumerate(x.shape)]
        return Lowered(Route(path, whole, keeps_zero), [x])

    return lower


entry("Softmax", "LogSoftmax", "Hardmax")(along("axis", -1, "is taken over it", False))
entry("TopK")(along("axis", -1, "orders its positions", False))
entry("CumSum")(along("input", 0, "orders its positions", True))


@entry("Trilu")
def triangle(call: Call) -> Lowered:
    """Half of a matrix: its two axes are positions against each other."""
    x = call.x()
    return Lowered(Route(straight(x), {(0, len(x.shape) - k): "orders its positions" for k in (1, 2)}), [x])


@entry("Gather")
def gather(call: Call) -> Lowered:
    """Where the numbers of the index are known, they are numbered anew when some before them go."""
    x, chosen, numbers = call.x(), call.inputs[1], call.number(1)
    assert chosen is not None
    axis = call.get("axis", 0) % len(x.shape)
    if numbers is not None and numbers.ndim == 0:
        return Lowered(Select(axis, int(numbers)), [x], {"index": 1})
    if numbers is not None:
        return Lowered(Pick({axis: numbers % x.shape[axis]}), [x], lambda new: {1: new.index})
    path: Path = [
        *([(0, k)] for k in range(axis)),
        *([(1, k)] for k in range(len(chosen.shape))),
        *([(0, k)] for k in range(axis + 1, len(x.shape))),
    ]
    return Lowered(Route(path, {(0, axis): "reads it by index"}), [x, chosen])


@entry("GatherND")
def gather_nd(call: Call) -> Lowered:
    """x[..., i, j, ...]: the axes after the indexed ones pass."""
    x, chosen, lead = call.x(), call.inputs[1], call.get("batch_dims", 0)
    assert chosen is not None
    depth, rank = chosen.shape[-1], len(chosen.shape)
    path: Path = [
        *([(0, k), (1, k)] for k in range(lead)),
        *([(1, k)] for k in range(lead, rank - 1)),
        *([(0, k)] for k in range(lead + depth, len(x.shape))),
    ]
    whole = {(0, k): "reads it by index" for k in range(lead, lead + depth)} | {(1, rank - 1): "reads by it"}
    return Lowered(Route(path, whole), [x, chosen])


@entry("GatherElements")
def gather_elements(call: Call) -> Lowered:
    x, chosen = call.x(), call.inputs[1]
    assert chosen is not None
    axis = call.get("axis", 0) % len(x.shape)
    is_read = [k == axis or x.shape[k] != chosen.shape[k] for k in range(len(x.shape))]
    path: Path = [[(1, k)] if is_read[k] else [(0, k), (1, k)] for k in range(len(x.shape))]
    whole = {(0, k): "reads it by index" for k in range(len(x.shape)) if is_read[k]}
    return Lowered(Route(path, whole, keeps_zero=False), [x, chosen])


@entry("ScatterElements")
def scatter_elements(call: Call) -> Lowered:
    """Entries of x written at indices along one axis; the other axes are the same where all are written."""
    x, chosen, source = call.x(), call.inputs[1], call.inputs[2]
    assert chosen is not None and source is not None
    axis = call.get("axis", 0) % len(x.shape)
    path: list[list[Source]] = []
    whole: dict[Source, str] = {}
    for k in range(len(x.shape)):
        is_whole = k == axis or not x.shape[k] == chosen.shape[k] == source.shape[k]
        path.append([(0, k)] if is_whole else [(0, k), (1, k), (2, k)])
        whole.update({(operand, k): "writes it by index" for operand in range(3) if is_whole})
    return Lowered(Route(path, whole, keeps_zero=False), [x, chosen, source])


@entry("ScatterND")
def scatter_nd(call: Call) -> Lowered:
    """x[indices] = updates: the axes after the indexed ones are those of the updates."""
    x, chosen, source = call.x(), call.inputs[1], call.inputs[2]
    assert chosen is not None and source is not None
    depth, shift = chosen.shape[-1], len(source.shape) - len(x.shape)
    path: Path = [[(0, k)] if k < depth else [(0, k), (2, k + shift)] for k in range(len(x.shape))]
    whole = {(0, k): "writes it by index" for k in range(depth)}
    whole.update({(2, k): "writes it by index" for k in range(depth + shift)})
    whole.update({(1, k): "writes by it" for k in range(len(chosen.shape))})
    return Lowered(Route(path, whole), [x, chosen, source])


@entry("GridSample")
def grid_sample(call: Call) -> Lowered:
    x, grid = call.x(), call.inputs[1]
    assert grid is not None
    spatial = range(2, len(x.shape))
    path: Path = [[(0, 0), (1, 0)], [(0, 1)], *[[(1, k - 1)] for k in spatial]]
    whole = {(0, k): "samples it" for k in spatial} | {(1, k): "samples at it" for k in range(1, len(grid.shape))}
    return Lowered(Route(path, whole), [x, grid])
