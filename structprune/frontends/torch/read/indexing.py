"""The entries of ATen operators that read and write by index: embeddings, gathers, scatters, sampling."""

from __future__ import annotations

from structprune.frontends.lowering import Lowered
from structprune.frontends.torch.read.lower import Bound, entry, opaque
from structprune.frontends.torch.record.record import Call, Reading
from structprune.graph.graph import Value
from structprune.operators.routing import Path, Pick, Route, Source, straight


@entry("embedding")
def embedding(call: Call, a: Bound) -> Lowered:
    weight, indices = a["weight"], a["indices"]
    path: Path = [[(1, k)] for k in range(len(indices.shape))] + [[(0, 1)]]
    return Lowered(Route(path, {(0, 0): "reads it by index"}), [weight, indices])


def read(reading: Reading) -> Lowered:
    """One axis read by an index whose numbers are known."""
    is_gather = len(reading.value.shape) > reading.index.ndim
    rank, first = (len(reading.base.shape), 0) if is_gather else (reading.index.ndim, reading.dim)
    inputs = [reading.base, reading.value]
    shared = None
    if reading.other is not None:
        inputs.append(reading.other[0])
        shared = reading.other[1]
    covers = range(first, first + rank) if reading.stored is not None else ()
    picked = {reading.dim: reading.index}
    return Lowered(Pick(picked, covers, reading.stored, is_gather, reading.is_steady, shared), inputs)


@entry("index_select")
def index_select(call: Call, a: Bound) -> Lowered:
    if call.reading is not None:
        return read(call.reading)
    x, dim = a["self"], a["dim"] % len(a["self"].shape)
    path: Path = [[] if k == dim else [(0, k)] for k in range(len(x.shape))]
    whole = {(0, dim): "reads it by index", (1, 0): "reads it by index"}
    return Lowered(Route(path, whole), [x, a["index"]])


@entry("index")
def index(call: Call, a: Bound) -> Lowered:
    """x[i, :, j]: the indexed axes give way to those of the indices, broadcast."""
    if call.reading is not None:
        return read(call.reading)
    x, tensors, path, whole = indexed(a)
    if len(path) != len(call.outputs[0].shape):
        return opaque(call)
    return Lowered(Route(path, whole), [x, *tensors])


@entry("index_put", "_index_put_impl")
def index_put(call: Call, a: Bound) -> Lowered:
    """x[i, :, j] = values: the axes that are not indexed are those of the values, aligned at the last."""
    x, tensors, path, whole = indexed(a)
    values = a["values"]
    place = len(tensors) + 1
    output = straight(x)
    met: set[int] = set()
    for position, axis in zip(reversed(path), range(len(values.shape) - 1, -1, -1), strict=False):
        passing = [k for operand, k in position if operand == 0]
        if passing and values.shape[axis] == x.shape[passing[0]]:
            output[passing[0]].append((place, axis))
            met.add(passing[0])
        else:
            whole[(place, axis)] = "writes it by index"
    # Where the values are spread over an axis, they are not zero where x is.
    nonzero = set(range(len(x.shape))) - met
    return Lowered(Route(output, whole, nonzero=nonzero), [x, *tensors, values])


def indexed(a: Bound) -> tuple[Value, list[Value], Path, dict[Source, str]]:
    """The tensor, its indices, where the axes of `x[indices]` come from, and what is read by index."""
    x = a["self"]
    covered: list[int] = []
    tensors: list[Value] = []
    axis = 0
    places: list[int] = []
    for each in a["indices"]:
        width = len(each.shape) if each is not None and each.is_mask else 1
        if each is not None:
            tensors.append(each)
            places.append(axis)
            covered.extend(range(axis, axis + width))
        axis += width
    # A mask stands for as many index vectors as it has axes: one axis comes out, of unknown size.
    rank = max((1 if each.is_mask else len(each.shape) for each in tensors), default=0)
    broadcast: list[list[Source]] = []
    for position in range(rank):
        sources = []
        for operand, each in enumerate(tensors, start=1):
            k = position - (rank - len(each.shape))
            if not each.is_mask and k >= 0 and each.shape[k] != 1:
                sources.append((operand, k))
        broadcast.append(sources)
    passing: Path = [[(0, k)] for k in range(len(x.shape)) if k not in covered]
    is_adjacent = bool(covered) and covered[-1] - covered[0] + 1 == len(covered)
    at = covered[0] if is_adjacent else 0
    whole = {(0, k): "reads it by index" for k in covered}
    for operand, each in enumerate(tensors, start=1):
        whole.update({(operand, k): "reads by it" for k in range(len(each.shape))})
    return x, tensors, [*passing[:at], *broadcast, *passing[at:]], whole


@entry("index_add", "index_copy")
def index_add(call: Call, a: Bound) -> Lowered:
    """x[index] += source along one axis; the other axes are the same."""
    x, source = a["self"], a["source"]
    dim = a["dim"] % len(x.shape)
    path: Path = [[(0, k)] if k == dim else [(0, k), (2, k)] for k in range(len(x.shape))]
    whole = {(0, dim): "writes it by index", (2, dim): "writes it by index", (1, 0): "writes by it"}
    return Lowered(Route(path, whole), [x, a["index"], source])


@entry("scatter", "scatter_add", "scatter_reduce")
def scatter(call: Call, a: Bound) -> Lowered:
    """Entries of x written at indices along one axis; the other axes are the same where all are written."""
    x, chosen, source = a["self"], a["index"], a.get("src")
    if not isinstance(source, Value):
        source = chosen
    dim = a["dim"] % len(x.shape)
    path: list[list[Source]] = []
    whole: dict[tuple[int, int], str] = {}
    for k in range(len(x.shape)):
        is_whole = k == dim or not x.shape[k] == chosen.shape[k] == source.shape[k]
        path.append([(0, k)] if is_whole else [(0, k), (1, k), (2, k)])
        whole.update({(operand, k): "writes it by index" for operand in range(3) if is_whole})
    return Lowered(Route(path, whole, keeps_zero=False), [x, chosen, source])


@entry("gather", "take_along_dim")
def gather(call: Call, a: Bound) -> Lowered:
    if call.reading is not None:
        return read(call.reading)
    x, chosen = a["self"], a.get("index", a.get("indices"))
    dim = a["dim"] % len(x.shape)
    path: Path = [
        [(1, k)] if k == dim or x.shape[k] != chosen.shape[k] else [(0, k), (1, k)] for k in range(len(x.shape))
    ]
    whole = {(0, k): "reads it by index" for k in range(len(x.shape)) if k == dim or x.shape[k] != chosen.shape[k]}
    return Lowered(Route(path, whole, keeps_zero=False), [x, chosen])


@entry("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def grid_sampler(call: Call, a: Bound) -> Lowered:
    x, grid = a["input"], a["grid"]
    spatial = range(2, len(x.shape))
    path: Path = [[(0, 0), (1, 0)], [(0, 1)], *[[(1, k - 1)] for k in spatial]]
    whole = {(0, k): "samples it" for k in spatial} | {(1, k): "samples at it" for k in range(1, len(grid.shape))}
    return Lowered(Route(path, whole), [x, grid])
