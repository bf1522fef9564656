"""The entries of ATen operators that read and write by index: embeddings, gathers, scatters, sampling."""

from __future__ import annotations

from typing import Any

from structprune.frontends.torch.read.lower import Bound, Lowered, entry, opaque
from structprune.frontends.torch.read.movement import Route, straight
from structprune.frontends.torch.record.record import Call, Reading
from structprune.graph.graph import Value


@entry("embedding")
def embedding(call: Call, a: Bound) -> Lowered:
    weight, indices = a["weight"], a["indices"]
    route: Route = [[(1, k)] for k in range(len(indices.shape))] + [[(0, 1)]]
    return Lowered("route", [weight, indices], {"routes": [route], "whole": {(0, 0): "reads it by index"}})


def read(reading: Reading) -> Lowered:
    """One axis read by an index whose numbers are known."""
    rank = len(reading.base.shape) if len(reading.value.shape) > reading.index.ndim else reading.index.ndim
    first = 0 if rank > reading.index.ndim else reading.dim
    attributes: dict[str, Any] = {"picks": {reading.dim: reading.index}, "is_steady": reading.is_steady}
    attributes["is_gather"] = len(reading.value.shape) > reading.index.ndim
    inputs = [reading.base, reading.value]
    if reading.stored is not None:
        attributes.update(stored=reading.stored, covers=range(first, first + rank))
    if reading.other is not None:
        inputs.append(reading.other[0])
        attributes["shared"] = reading.other[1]
    return Lowered("pick", inputs, attributes)


@entry("index_select")
def index_select(call: Call, a: Bound) -> Lowered:
    if call.reading is not None:
        return read(call.reading)
    x, dim = a["self"], a["dim"] % len(a["self"].shape)
    route: Route = [[] if k == dim else [(0, k)] for k in range(len(x.shape))]
    whole = {(0, dim): "reads it by index", (1, 0): "reads it by index"}
    return Lowered("route", [x, a["index"]], {"routes": [route], "whole": whole})


@entry("index")
def index(call: Call, a: Bound) -> Lowered:
    """x[i, :, j]: the indexed axes give way to those of the indices, broadcast."""
    if call.reading is not None:
        return read(call.reading)
    x, tensors, route, whole = indexed(a)
    if len(route) != len(call.outputs[0].shape):
        return opaque(call)
    return Lowered("route", [x, *tensors], {"routes": [route], "whole": whole, "keeps_zero": True})


@entry("index_put", "_index_put_impl")
def index_put(call: Call, a: Bound) -> Lowered:
    """x[i, :, j] = values: the axes that are not indexed are those of the values, aligned at the last."""
    x, tensors, route, whole = indexed(a)
    values = a["values"]
    place = len(tensors) + 1
    output = straight(x)
    met: set[int] = set()
    for position, axis in zip(reversed(route), range(len(values.shape) - 1, -1, -1), strict=False):
        passing = [k for operand, k in position if operand == 0]
        if passing and values.shape[axis] == x.shape[passing[0]]:
            output[passing[0]].append((place, axis))
            met.add(passing[0])
        else:
            whole[(place, axis)] = "writes it by index"
    # Where the values are spread over an axis, they are not zero where x is.
    nonzero = set(range(len(x.shape))) - met
    attributes = {"routes": [output], "whole": whole, "writes": call.target._schema.is_mutable, "nonzero": nonzero}
    return Lowered("route", [x, *tensors, values], attributes)


def indexed(a: Bound) -> tuple[Value, list[Value], Route, dict[tuple[int, int], str]]:
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
    broadcast: Route = []
    for position in range(rank):
        sources = []
        for operand, each in enumerate(tensors, start=1):
            k = position - (rank - len(each.shape))
            if not each.is_mask and k >= 0 and each.shape[k] != 1:
                sources.append((operand, k))
        broadcast.append(sources)
    passing: Route = [[(0, k)] for k in range(len(x.shape)) if k not in covered]
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
    route: Route = [[(0, k)] if k == dim else [(0, k), (2, k)] for k in range(len(x.shape))]
    whole = {(0, dim): "writes it by index", (2, dim): "writes it by index", (1, 0): "writes by it"}
    writes = call.target._schema.is_mutable
    return Lowered("route", [x, a["index"], source], {"routes": [route], "whole": whole, "writes": writes})


@entry("scatter", "scatter_add", "scatter_reduce")
def scatter(call: Call, a: Bound) -> Lowered:
    """Entries of x written at indices along one axis; the other axes are the same where all are written."""
    x, chosen, source = a["self"], a["index"], a.get("src")
    if not isinstance(source, Value):
        source = chosen
    dim = a["dim"] % len(x.shape)
    route: Route = []
    whole: dict[tuple[int, int], str] = {}
    for k in range(len(x.shape)):
        is_whole = k == dim or not x.shape[k] == chosen.shape[k] == source.shape[k]
        route.append([(0, k)] if is_whole else [(0, k), (1, k), (2, k)])
        whole.update({(operand, k): "writes it by index" for operand in range(3) if is_whole})
    writes = call.target._schema.is_mutable
    return Lowered(
        "route", [x, chosen, source], {"routes": [route], "whole": whole, "keeps_zero": False, "writes": writes}
    )


@entry("gather", "take_along_dim")
def gather(call: Call, a: Bound) -> Lowered:
    if call.reading is not None:
        return read(call.reading)
    x, chosen = a["self"], a.get("index", a.get("indices"))
    dim = a["dim"] % len(x.shape)
    route: Route = [
        [(1, k)] if k == dim or x.shape[k] != chosen.shape[k] else [(0, k), (1, k)] for k in range(len(x.shape))
    ]
    whole = {(0, k): "reads it by index" for k in range(len(x.shape)) if k == dim or x.shape[k] != chosen.shape[k]}
    return Lowered("route", [x, chosen], {"routes": [route], "whole": whole, "keeps_zero": False})


@entry("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def grid_sampler(call: Call, a: Bound) -> Lowered:
    x, grid = a["input"], a["grid"]
    spatial = range(2, len(x.shape))
    route: Route = [[(0, 0), (1, 0)], [(0, 1)], *[[(1, k - 1)] for k in spatial]]
    whole = {(0, k): "samples it" for k in spatial} | {(1, k): "samples at it" for k in range(1, len(grid.shape))}
    return Lowered("route", [x, grid], {"routes": [route], "whole": whole})
