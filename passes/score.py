"""Score the indices of each group: the higher, the longer it stays.

A criterion sees one array for each member of the group, whose first axis runs along the group's
indices; torch tensors and numpy arrays alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

from structprune.algebra.axis import Axis, Dim, Product, Reordered, Sum
from structprune.algebra.order import inverse
from structprune.errors import InvalidArgument
from structprune.graph.progress import walk
from structprune.passes.group import Group

Array = Any
Scores = NDArray[np.float64]
Criterion = Callable[[Group, Sequence[Array]], Any]

CRITERIA: dict[str, Criterion] = {}


def criterion(name: str) -> Callable[[Criterion], Criterion]:
    """Register a criterion: `(group, weights) -> one number per index`."""

    def register(function: Criterion) -> Criterion:
        if name in CRITERIA:
            raise InvalidArgument(f"a criterion called {name!r} exists already")
        CRITERIA[name] = function
        return function

    return register


def score(groups: Sequence[Group], arrays: Mapping[str, Array], how: str | Criterion) -> dict[Dim, Scores]:
    """The scores of all groups by one criterion."""
    if isinstance(how, str):
        how = CRITERIA[how]
    result: dict[Dim, Scores] = {}
    for group in walk(groups, "scoring group"):
        given = how(group, slices_of(group, arrays))
        try:
            scores = to_numpy(given)
        except (TypeError, ValueError) as error:
            raise InvalidArgument(f"the score of {group.name} is {given!r}: not one number per index") from error
        if scores.shape != (group.size,):
            raise InvalidArgument(
                f"the score of {group.name} has shape {scores.shape}, but the group has {group.size} indices"
            )
        # A filter with broken weights is the first to go.
        result[group.dim] = np.nan_to_num(scores, nan=0.0, posinf=0.0, neginf=0.0)
    return result


def to_numpy(scores: Any) -> Scores:
    if hasattr(scores, "detach"):
        scores = scores.detach().cpu().double()
    return np.asarray(scores, dtype=np.float64)


def slices_of(group: Group, arrays: Mapping[str, Array]) -> list[Array]:
    """One array for each trained member; its first axis runs along the group."""
    found: list[Array] = []
    for member in group.members:
        if not member.is_trained:
            continue
        array = arrays[member.parameter]
        front = array_namespace(array).moveaxis(array, member.axis, 0)
        for start, part in member.places:
            found.extend(slices(part, group.dim, front[start : start + part.size, ...]))
    return found


def slices(axis: Axis, dim: Dim, array: Array) -> Iterator[Array]:
    """The parts of an array along one variable of the expression of its first axis."""
    match axis:
        case Dim():
            if axis is dim:
                yield array
        case Sum(parts):
            start = 0
            for part in parts:
                yield from slices(part, dim, array[start : start + part.size, ...])
                start += part.size
        case Product(factors):
            xp = array_namespace(array)
            opened = xp.reshape(array, (*(factor.size for factor in factors), *array.shape[1:]))
            for position, factor in enumerate(factors):
                yield from slices(factor, dim, xp.moveaxis(opened, position, 0))
        case Reordered(inner, entries):
            xp = array_namespace(array)
            places = xp.asarray(inverse(entries), device=device(array))
            yield from slices(inner, dim, xp.take(array, places, axis=0))


def others(array: Array) -> tuple[int, ...]:
    return tuple(range(1, array.ndim))


def by_norm(order: float) -> Criterion:
    def norm(group: Group, weights: Sequence[Array]) -> Array:
        """The norm of everything that would be removed with an index."""
        total: Scores = np.zeros(group.size)
        for each in weights:
            norms = norms_by_row(each, order) if is_row_major(each) else norms_by_block(each, order)
            total = np.maximum(total, norms) if order == float("inf") else total + norms
        return total ** (1 / order) if order and order != float("inf") else total

    return norm


# Entries of a weight that are looked at in one go: no copy of a whole weight is made.
BLOCK = 1 << 18


def strides_of(array: Array) -> tuple[int, ...]:
    return tuple(array.stride() if callable(getattr(array, "stride", None)) else array.strides)


def is_row_major(array: Array) -> bool:
    """The entries of an index along the first axis lie together in memory."""
    strides = strides_of(array)
    return strides[0] == max(strides)


def norms_by_row(array: Array, order: float) -> Scores:
    """What each index adds to the norm (to the power of the order), row by row."""
    if array.ndim == 1:
        sizes = np.abs(to_numpy(array))
        return sizes if order == float("inf") else powers(sizes, order).astype(np.float64)
    xp = array_namespace(array)
    height = max(1, BLOCK * array.shape[0] // max(prod(array.shape), 1))
    found = []
    for start in range(0, array.shape[0], height):
        rows = precise(array[start : start + height, ...])
        found.append(to_numpy(xp.linalg.vector_norm(rows, axis=others(rows), ord=order)))
    norms = np.concatenate(found)
    return norms if order in (0, float("inf")) else norms**order


def norms_by_block(array: Array, order: float) -> Scores:
    """The same where an index's entries are strewn over memory: it is read in its own order, a part at a time."""
    xp = array_namespace(array)
    strides = strides_of(array)
    array = xp.moveaxis(array, strides.index(max(strides)), 1)
    total: Scores = np.zeros(array.shape[0])
    width = max(1, BLOCK * array.shape[1] // max(prod(array.shape), 1))
    for start in range(0, array.shape[1], width):
        block = precise(array[:, start : start + width, ...])
        # First over the outermost axis in memory: whole rows are added, or compared.
        if order == float("inf"):
            part = xp.max(xp.abs(block), axis=1)
            part = xp.max(part, axis=others(part)) if part.ndim > 1 else part
            total = np.maximum(total, to_numpy(part))
        else:
            part = xp.sum(powers(block, order), axis=1)
            part = xp.sum(part, axis=others(part)) if part.ndim > 1 else part
            total = total + to_numpy(part)
    return total


def powers(array: Array, order: float) -> Array:
    if order == 2:
        return array * array
    size = array_namespace(array).abs(array)
    return size if order == 1 else size != 0 if order == 0 else size**order


def precise(array: Array) -> Array:
    """In half precision the squares of large weights are infinite."""
    return array if array.itemsize >= 4 else array_namespace(array).astype(array, array_namespace(array).float32)


criterion("l0")(by_norm(0))
criterion("l1")(by_norm(1))
criterion("l2")(by_norm(2))
criterion("linf")(by_norm(float("inf")))


@criterion("fpgm")
def geometric_median(group: Group, weights: Sequence[Array]) -> Array:
    """The distance to the geometric median of the group's filters: those near it are replaceable."""
    is_broken = np.zeros(group.size, dtype=bool)
    for each in weights:
        xp = array_namespace(each)
        is_broken |= (
            to_numpy(xp.any(~xp.isfinite(each), axis=others(each)) if each.ndim > 1 else ~xp.isfinite(each)) > 0
        )
    # One broken weight must not spread to all filters through the median.
    weights = [finite(each) for each in weights] if is_broken.any() else weights
    share: Scores = np.full(group.size, 1 / group.size)
    distances: Scores = np.zeros(group.size)
    # Weiszfeld's iteration; the weights say how much each filter counts for the median.
    for _ in range(12):
        squares: Scores = np.zeros(group.size)
        for each in weights:
            xp = array_namespace(each)
            spread = xp.asarray(share, dtype=each.dtype, device=device(each))
            spread = xp.reshape(spread, (group.size,) + (1,) * (each.ndim - 1))
            median = xp.sum(each * spread, axis=0, keepdims=True)
            size = each - median
            squares += to_numpy(xp.linalg.vector_norm(size, axis=others(each)) if each.ndim > 1 else xp.abs(size)) ** 2
        distances = np.sqrt(squares)
        inverse = 1 / np.maximum(distances, 1e-12 * distances.max() + 1e-300)
        share = inverse / inverse.sum()
    return np.where(is_broken, 0.0, distances)


@criterion("bn_scale")
def batch_norm_scale(group: Group, weights: Sequence[Array]) -> Array:
    """|gamma| of the batch norms along the group; the l2 norm where there is none."""
    trained = [member for member in group.members if member.is_trained]
    if len(trained) != len(weights):
        return CRITERIA["l2"](group, weights)
    gammas = [each for member, each in zip(trained, weights, strict=True) if ("batch_norm", 1) in member.roles]
    return CRITERIA["l2"](group, gammas or weights)


def finite(array: Array) -> Array:
    xp = array_namespace(array)
    return xp.where(xp.isfinite(array), array, xp.zeros_like(array))


def random_scores(seed: int) -> Criterion:
    generator = np.random.default_rng(seed)

    def draw(group: Group, weights: Sequence[Array]) -> Array:
        """A number from a seeded generator."""
        return generator.random(group.size)

    return draw


criterion("random")(random_scores(0))

__all__ = ["CRITERIA", "Criterion", "criterion", "random_scores", "score"]
