"""The entries of ONNX operators that move axes: reshapes, slices, concatenations, pools, gathers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from structprune.frontends.onnx.read.lower import Call, Entry, Lowered, Place, Resized, entry, opaque
from structprune.frontends.onnx.record.trace import Numbers, constant
from structprune.graph.graph import Value

Route = list[list[tuple[int, int]]]


def straight(x: Value) -> Route:
    return [[(0, axis)] for axis in range(len(x.shape))]


def routed(x: Value, route: Route, **attributes: Any) -> Lowered:
    return Lowered("route", [x], {"routes": [route], **attributes})


@entry("Reshape")
def reshape(call: Call) -> Lowered:
    x, output, given = call.x(), call.outputs[0], call.integers(1, "shape")
    copies_zero = not call.get("allowzero", 0)
    if given is None:
        return opaque(call, "its sizes are computed from data")

    def literals(new: Resized) -> dict[Place, Any]:
        after, before = new.shape(output), new.shape(x)
        sizes = []
        for place, (old, size) in enumerate(zip(given, after, strict=True)):
            is_copy = old == 0 and copies_zero and place < len(before) and before[place] == size
            sizes.append(old if old == -1 or is_copy else size)
        return {1 if call.has(1) else "shape": sizes}

    return Lowered("reshape", [x], {}, literals)


@entry("Flatten")
def flatten(call: Call) -> Lowered:
    return Lowered("reshape", [call.x()])


@entry("Transpose")
def transpose(call: Call) -> Lowered:
    x = call.x()
    order = call.get("perm", None) or list(range(len(x.shape)))[::-1]
    return routed(x, [[(0, axis % len(x.shape))] for axis in order])


@entry("Squeeze")
def squeeze(call: Call) -> Lowered:
    x = call.x()
    given = call.integers(1, "axes")
    axes = {k for k, size in enumerate(x.shape) if size == 1} if given is None else {k % len(x.shape) for k in given}
    return routed(x, [[(0, k)] for k in range(len(x.shape)) if k not in axes])


@entry("Unsqueeze")
def unsqueeze(call: Call) -> Lowered:
    x, rank = call.x(), len(call.outputs[0].shape)
    axes = {k % rank for k in call.integers(1, "axes") or ()}
    old = iter(range(len(x.shape)))
    return routed(x, [[] if k in axes else [(0, next(old))] for k in range(rank)])


@entry("Identity", "Cast", "CastLike", "Dropout")
def same(call: Call) -> Lowered:
    """The second output, the mask of a dropout, is not zero."""
    x = call.x()
    return Lowered("route", [x], {"routes": [straight(x) for _ in call.outputs], "positions": positions_of(call)})


def positions_of(call: Call) -> list[int]:
    """The outputs after the first, which say where or what was chosen."""
    return [k for k, place in enumerate(call.outputs_at) if place]


@entry("DepthToSpace")
def depth_to_space(call: Call) -> Lowered:
    times = call.get("blocksize", 1)
    order = "(r s c)" if call.get("mode", "DCR") == "DCR" else "(c r s)"
    attributes = {"notation": f"b {order} h w -> b c (h r) (w s)", "sizes": {"r": times, "s": times}}
    return Lowered("rearrange", [call.x()], attributes)


@entry("SpaceToDepth")
def space_to_depth(call: Call) -> Lowered:
    times = call.get("blocksize", 1)
    attributes = {"notation": "b c (h r) (w s) -> b (r s c) h w", "sizes": {"r": times, "s": times}}
    return Lowered("rearrange", [call.x()], attributes)


@entry("ConstantOfShape")
def constant_of_shape(call: Call) -> Lowered:
    output, given = call.outputs[0], call.integers(0)
    if given is None:
        return opaque(call, "its sizes are computed from data")
    fill = call.get("value", None)
    fills_zero = fill is None or not np.any(fill.numpy())
    return Lowered("constant", [], {"fills_zero": fills_zero}, lambda new: {0: list(new.shape(output))})


@entry("Concat")
def concat(call: Call) -> Lowered:
    given = [value for value in call.inputs if value is not None]
    return Lowered("concat", given, {"dim": call.get("axis", 1) % len(given[0].shape)})


@entry("Split")
def split(call: Call) -> Lowered:
    x, outputs = call.x(), call.outputs
    dim = call.get("axis", 0) % len(x.shape)
    sizes = [value.shape[dim] for value in outputs]
    if sum(sizes) != x.shape[dim]:
        return opaque(call, "a Split some of whose parts nobody reads")

    def literals(new: Resized) -> dict[Place, Any]:
        after = [new.shape(value)[dim] for value in outputs]
        if after == sizes or (not call.has(1) and "split" not in call.node.attributes and after == even(after)):
            return {}
        if call.version < 13:
            return {"split": after}
        return {1: after, "num_outputs": None}

    return Lowered("split", [x], {"dim": dim, "sizes": sizes}, literals)


def even(sizes: Sequence[int]) -> list[int]:
    """The parts that a Split makes when it is not told their sizes."""
    step = -(-sum(sizes) // len(sizes))
    return [min(step, sum(sizes) - k * step) for k in range(len(sizes))]


@entry("Slice")
def slice_(call: Call) -> Lowered | list[Lowered]:
    """One step for each axis that is cut."""
    x, output = call.x(), call.outputs[0]
    starts, ends = call.integers(1, "starts"), call.integers(2, "ends")
    if starts is None or ends is None or (call.has(3) and call.number(3) is None):
        return opaque(call, "its bounds are computed from data")
    axes = [axis % len(x.shape) for axis in call.integers(3, "axes") or range(len(starts))]
    steps = call.integers(4) or [1] * len(starts)

    def literals(new: Resized) -> dict[Place, Any]:
        first, last = list(starts), list(ends)
        for k, (axis, step) in enumerate(zip(axes, steps, strict=True)):
            size, after = x.shape[axis], new.shape(x)[axis]
            if size == after or step < 0:
                continue
            start, end, _ = slice(starts[k], ends[k], step).indices(size)
            # Blocks of `step` entries go or stay as a whole.
            place = new.before(x, axis, start // step * step) + start % step
            first[k] = place - (after if starts[k] < 0 else 0)
            if -size <= ends[k] < size:
                last[k] = new.before(x, axis, end) - (after if ends[k] < 0 else 0)
        by_input = call.has(1)
        return {1 if by_input else "starts": first, 2 if by_input else "ends": last}

    found: list[Lowered] = []
    here = x
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        bounds = range(here.shape[axis])[start:end:step]
        if len(bounds) == x.shape[axis] and step > 0:
            continue
        shape = (*here.shape[:axis], len(bounds), *here.shape[axis + 1 :])
        made = Value(f"{output.name} cut along {axis}", shape, is_mask=x.is_mask)
        if step > 0:
            attributes: dict[str, Any] = {"dim": axis, "start": bounds.start, "end": bounds.stop, "step": step}
            attributes["is_partition"] = is_partition(call, axis)
            found.append(Lowered("slice", [here], attributes, outputs=[made]))
        elif step == -1 and len(bounds) == here.shape[axis]:
            found.append(Lowered("pick", [here], {"picks": {axis: np.array(bounds)}}, outputs=[made]))
        else:
            route: Route = [[] if k == axis and shape[k] != here.shape[k] else [(0, k)] for k in range(len(shape))]
            attributes = {"routes": [route], "whole": {(0, axis): "takes some of it backwards"}}
            found.append(Lowered("route", [here], attributes, outputs=[made]))
        here = made
    if not found:
        return routed(x, straight(x))
    found[-1].outputs = [output]
    found[-1].literals = literals
    return found


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
    x, output, given = call.x(), call.outputs[0], call.integers(1, "pads")
    if given is None or (call.has(3) and call.number(3) is None):
        return opaque(call, "its widths are computed from data")
    axes = [axis % len(x.shape) for axis in call.integers(3) or range(len(x.shape))]
    widths = [(0, 0)] * len(x.shape)
    for place, axis in enumerate(axes):
        widths[axis] = (given[place], given[len(axes) + place])
    is_constant = call.get("mode", "constant") == "constant"
    fill = call.number(2) if call.version >= 11 else np.asarray(call.get("value", 0.0))
    fills_zero = not np.any(fill) if fill is not None else not call.has(2)

    def literals(new: Resized) -> dict[Place, Any]:
        result = list(given)
        for place, axis in enumerate(axes):
            before, after = widths[axis]
            if (before or after) and is_constant and min(before, after) >= 0:
                size = output.shape[axis]
                result[place] = new.before(output, axis, before)
                result[len(axes) + place] = new.shape(output)[axis] - new.before(output, axis, size - after)
        return {1 if call.has(1) else "pads": result}

    attributes = {"widths": widths, "is_constant": is_constant, "fills_zero": fills_zero}
    return Lowered("pad", [x], attributes, literals)


@entry("Expand")
def expand(call: Call) -> Lowered:
    x, output, given = call.x(), call.outputs[0], call.integers(1)
    fill = call.number(0)
    if given is None:
        return opaque(call, "its sizes are computed from data")

    def sizes(new: Resized) -> dict[Place, Any]:
        after = new.shape(output)[len(output.shape) - len(given) :]
        return {1: [old if old == 1 else size for old, size in zip(given, after, strict=True)]}

    if fill is not None and fill.size == 1:
        return Lowered("constant", [], {"fills_zero": not fill.any()}, sizes)
    lead = len(output.shape) - len(x.shape)
    route: Route = [
        [] if k < lead or x.shape[k - lead] != size else [(0, k - lead)] for k, size in enumerate(output.shape)
    ]
    copies = [k for k, sources in enumerate(route) if not sources]
    return Lowered("route", [x], {"routes": [route], "copies": copies}, sizes)


@entry("Tile")
def tile(call: Call) -> Lowered:
    x, output, times = call.x(), call.outputs[0], call.integers(1)
    if times is None:
        return opaque(call, "its counts are computed from data")

    def literals(new: Resized) -> dict[Place, Any]:
        pairs = zip(new.shape(output), new.shape(x), strict=True)
        return {1: [after // before for after, before in pairs]}

    return Lowered("repeat", [x], {"times": times, "is_tiled": True}, literals)


@entry("Resize", "Upsample")
def resize(call: Call) -> Lowered:
    x, output = call.x(), call.outputs[0]
    route: Route = [[(0, k)] if size == output.shape[k] else [] for k, size in enumerate(x.shape)]
    whole = {(0, k): "works on it as a whole" for k, sources in enumerate(route) if not sources}
    # Positions are resized even where their count happens to stay.
    whole.update({(0, k): "works on it as a whole" for k in range(2, len(x.shape))})
    given = call.integers(3) if call.version >= 11 else None
    if given is None and call.version >= 11 and call.has(3):
        return opaque(call, "its sizes are computed from data")
    axes = [axis % len(x.shape) for axis in call.get("axes", None) or range(len(x.shape))]

    def literals(new: Resized) -> dict[Place, Any]:
        return {3: [new.shape(output)[axis] for axis in axes]} if given else {}

    is_filled = call.get("coordinate_transformation_mode", "") == "tf_crop_and_resize"
    keeps_zero = not (is_filled and call.get("extrapolation_value", 0.0))
    return Lowered("route", [x], {"routes": [route], "whole": whole, "keeps_zero": keeps_zero}, literals)


def positions(lead: int = 2) -> Entry:
    """Pools: the leading axes pass, the trailing ones are positions."""

    def lower(call: Call) -> Lowered:
        x = call.x()
        route: Route = [[(0, k)] if k < lead else [] for k in range(len(x.shape))]
        whole = {(0, k): "works on it as a whole" for k in range(lead, len(x.shape))}
        if 1 in call.outputs_at:
            whole.update({(0, k): "counts its positions through it" for k in range(lead)})
        attributes = {"routes": [route for _ in call.outputs], "whole": whole, "positions": positions_of(call)}
        return Lowered("route", [x], attributes)

    return lower


entry("MaxPool", "AveragePool", "LpPool", "GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool")(positions())


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
        route: Route = [
            [(0, k)] if size == call.outputs[0].shape[k] else [] for k, size in enumerate(x.shape)
        ]
        attributes = {"routes": [route for _ in call.outputs], "whole": whole, "keeps_zero": keeps_zero}
        return Lowered("route", [x], attributes)

    return lower


entry("Softmax", "LogSoftmax", "Hardmax")(along("axis", -1, "is taken over it", False))
entry("TopK")(along("axis", -1, "orders its positions", False))
entry("CumSum")(along("input", 0, "orders its positions", True))


@entry("Trilu")
def triangle(call: Call) -> Lowered:
    """Half of a matrix: its two axes are positions against each other."""
    x = call.x()
    return routed(x, straight(x), whole={(0, len(x.shape) - k): "orders its positions" for k in (1, 2)})


@entry("Gather")
def gather(call: Call) -> Lowered:
    x, chosen, numbers = call.x(), call.inputs[1], call.number(1)
    assert chosen is not None
    axis = call.get("axis", 0) % len(x.shape)
    if numbers is not None and numbers.ndim == 0:
        return select(call, x, axis, int(numbers))
    if numbers is not None:
        return pick(call, x, axis, numbers)
    route: Route = [
        *([(0, k)] for k in range(axis)),
        *([(1, k)] for k in range(len(chosen.shape))),
        *([(0, k)] for k in range(axis + 1, len(x.shape))),
    ]
    whole = {(0, axis): "reads it by index"}
    return Lowered("route", [x, chosen], {"routes": [route], "whole": whole})


def pick(call: Call, x: Value, axis: int, numbers: Numbers) -> Lowered:
    """Entries of one axis by numbers that are known: they are numbered anew when some before them go."""
    output = call.outputs[0]
    old = numbers % x.shape[axis]

    def literals(new: Resized) -> dict[Place, Any]:
        left = old
        for k in range(old.ndim):
            kept = new.indices(output, axis + k)
            left = left if kept is None else np.take(left, kept, axis=k)
        return {1: new.places(x, axis)[left]}

    return Lowered("pick", [x], {"picks": {axis: old}}, literals)


def select(call: Call, x: Value, axis: int, given: int) -> Lowered:
    index = given % x.shape[axis]

    def literals(new: Resized) -> dict[Place, Any]:
        place = new.before(x, axis, index)
        return {1: place if given >= 0 else place - new.shape(x)[axis]}

    return Lowered("select", [x], {"dim": axis, "index": index}, literals)


@entry("GatherND")
def gather_nd(call: Call) -> Lowered:
    """x[..., i, j, ...]: the axes after the indexed ones pass."""
    x, chosen, lead = call.x(), call.inputs[1], call.get("batch_dims", 0)
    assert chosen is not None
    depth, rank = chosen.shape[-1], len(chosen.shape)
    route: Route = [
        *([(0, k), (1, k)] for k in range(lead)),
        *([(1, k)] for k in range(lead, rank - 1)),
        *([(0, k)] for k in range(lead + depth, len(x.shape))),
    ]
    whole = {(0, k): "reads it by index" for k in range(lead, lead + depth)} | {(1, rank - 1): "reads by it"}
    return Lowered("route", [x, chosen], {"routes": [route], "whole": whole})


@entry("GatherElements")
def gather_elements(call: Call) -> Lowered:
    x, chosen = call.x(), call.inputs[1]
    assert chosen is not None
    axis = call.get("axis", 0) % len(x.shape)
    is_read = [k == axis or x.shape[k] != chosen.shape[k] for k in range(len(x.shape))]
    route: Route = [[(1, k)] if is_read[k] else [(0, k), (1, k)] for k in range(len(x.shape))]
    whole = {(0, k): "reads it by index" for k in range(len(x.shape)) if is_read[k]}
    return Lowered("route", [x, chosen], {"routes": [route], "whole": whole, "keeps_zero": False})


@entry("ScatterElements")
def scatter_elements(call: Call) -> Lowered:
    """Entries of x written at indices along one axis; the other axes are the same where all are written."""
    x, chosen, source = call.x(), call.inputs[1], call.inputs[2]
    assert chosen is not None and source is not None
    axis = call.get("axis", 0) % len(x.shape)
    route: Route = []
    whole: dict[tuple[int, int], str] = {}
    for k in range(len(x.shape)):
        is_whole = k == axis or not x.shape[k] == chosen.shape[k] == source.shape[k]
        route.append([(0, k)] if is_whole else [(0, k), (1, k), (2, k)])
        whole.update({(operand, k): "writes it by index" for operand in range(3) if is_whole})
    return Lowered("route", [x, chosen, source], {"routes": [route], "whole": whole, "keeps_zero": False})


@entry("ScatterND")
def scatter_nd(call: Call) -> Lowered:
    """x[indices] = updates: the axes after the indexed ones are those of the updates."""
    x, chosen, source = call.x(), call.inputs[1], call.inputs[2]
    assert chosen is not None and source is not None
    depth, shift = chosen.shape[-1], len(source.shape) - len(x.shape)
    route: Route = [[(0, k)] if k < depth else [(0, k), (2, k + shift)] for k in range(len(x.shape))]
    whole = {(0, k): "writes it by index" for k in range(depth)}
    whole.update({(2, k): "writes it by index" for k in range(depth + shift)})
    whole.update({(1, k): "writes by it" for k in range(len(chosen.shape))})
    return Lowered("route", [x, chosen, source], {"routes": [route], "whole": whole})


@entry("GridSample")
def grid_sample(call: Call) -> Lowered:
    x, grid = call.x(), call.inputs[1]
    assert grid is not None
    spatial = range(2, len(x.shape))
    route: Route = [[(0, 0), (1, 0)], [(0, 1)], *[[(1, k - 1)] for k in spatial]]
    whole = {(0, k): "samples it" for k in spatial} | {(1, k): "samples at it" for k in range(1, len(grid.shape))}
    return Lowered("route", [x, grid], {"routes": [route], "whole": whole})
