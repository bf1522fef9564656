"""Score the indices of each group: the higher, the longer it stays.

A criterion sees one array for each member of the group, whose first axis runs along the group's
indices; torch tensors and numpy arrays alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

from structprune.algebra.axis import Axis, Dim, Product, Reordered, Sum
from structprune.algebra.order import inverse
from structprune.errors import InvalidArgument, short
from structprune.graph.progress import walk
from structprune.passes.group import Group, Member

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
    called = repr(how) if isinstance(how, str) else getattr(how, "__name__", type(how).__name__)
    function = CRITERIA[how] if isinstance(how, str) else how
    is_own = getattr(function, "__module__", None) == __name__
    found = norms(groups, arrays, function) if isinstance(function, Norm) else judged(groups, arrays, function, is_own)
    result: dict[Dim, Scores] = {}
    for group, given in found:
        scores = checked(given, group, called)
        is_broken = ~np.isfinite(scores)
        if is_broken.all() or (is_broken.any() and not is_own):
            index = int(np.argmax(is_broken))
            raise InvalidArgument(
                f"the score of {group.name} by {called} is {scores[index]:g} at index {index}"
                + (" and at all others" if is_broken.all() and group.size > 1 else "")
                + ": give finite numbers; the model's weights may not be finite"
            )
        # A filter with broken weights is the first to go.
        result[group.dim] = np.where(is_broken, 0.0, scores)
    return result


def judged(
    groups: Sequence[Group], arrays: Mapping[str, Array], how: Criterion, is_own: bool
) -> Iterator[tuple[Group, Any]]:
    """What a criterion says of each group."""
    for group in walk(groups, "scoring group"):
        parts = slices_of(group, {(m.parameter, m.axis): in_front(arrays, m) for m in group.members if m.is_trained})
        # What others write may write into what it is given: the model's own weights are not for them.
        yield group, how(group, [part if is_own else copied(part) for part in parts])


def in_front(arrays: Mapping[str, Array], member: Member) -> Array:
    """The member's array, its axis moved to the front."""
    array = arrays[member.parameter]
    return array_namespace(array).moveaxis(array, member.axis, 0)


def copied(array: Array) -> Array:
    return array_namespace(array).asarray(array, copy=True)


def checked(given: Any, group: Group, called: str) -> Scores:
    """What a criterion gave, as one number per index."""
    try:
        plain = given.detach().cpu() if hasattr(given, "detach") else given
        if getattr(getattr(plain, "dtype", None), "itemsize", 8) < 4:
            plain = plain.astype(np.float64) if isinstance(plain, np.ndarray) else plain.double()
        array = np.asarray(plain)
        scores = array.astype(np.float64) if array.dtype.kind in "biufO" else None
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidArgument(f"the score of {group.name} by {called} is {short(given)}: no numbers") from error
    if scores is None:
        raise InvalidArgument(f"the score of {group.name} by {called} is {short(given)}: no real numbers")
    if scores.shape != (group.size,):
        raise InvalidArgument(
            f"the score of {group.name} by {called} has shape {scores.shape}, but the group has {group.size} indices"
        )
    return scores


def to_numpy(scores: Any) -> Scores:
    if hasattr(scores, "detach"):
        scores = scores.detach().cpu().double()
    return np.asarray(scores, dtype=np.float64)


def slices_of(group: Group, fronts: Mapping[tuple[str, int], Array]) -> Iterator[Array]:
    """The parts along the group of each trained member's array, whose first axis is the member's."""
    for member in group.members:
        if member.is_trained:
            front = fronts[member.parameter, member.axis]
            for start, part in member.places:
                yield from slices(part, group.dim, front[start : start + part.size, ...])


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


@dataclass(frozen=True, slots=True)
class Norm:
    """The norm of everything that would be removed with an index."""

    order: float

    def __call__(self, group: Group, weights: Sequence[Array]) -> Scores:
        return self.together(group.size, map(self.shares, weights))

    def shares(self, array: Array) -> Scores:
        """What each index along the first axis adds to the norm (to the power of the order)."""
        return norms_by_row(array, self.order) if is_row_major(array) else norms_by_block(array, self.order)

    def together(self, size: int, shares: Iterable[Scores]) -> Scores:
        total: Scores = np.zeros(size)
        for each in shares:
            if each.ndim > 1:
                each = each.max(axis=others(each)) if self.order == float("inf") else each.sum(axis=others(each))
            total = np.maximum(total, each) if self.order == float("inf") else total + each
        return total ** (1 / self.order) if self.order and self.order != float("inf") else total


def norms(groups: Sequence[Group], arrays: Mapping[str, Array], norm: Norm) -> Iterator[tuple[Group, Scores]]:
    """The norms of all groups: each axis of each weight is read once, however many groups share it."""
    shares: dict[tuple[str, int], Scores] = {}
    for group in walk(groups, "scoring group"):
        for member in group.members:
            place = member.parameter, member.axis
            if member.is_trained and place not in shares:
                shares[place] = norm.shares(in_front(arrays, member))
        yield group, norm.together(group.size, slices_of(group, shares))


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


criterion("l0")(Norm(0))
criterion("l1")(Norm(1))
criterion("l2")(Norm(2))
criterion("linf")(Norm(float("inf")))


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
    gammas = [each for member, each in zip(trained, weights, strict=True) if member.is_batch_scale]
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
