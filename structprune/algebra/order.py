"""Index vectors: which entries of one axis another axis takes, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def is_identity(order: Indices) -> bool:
    return bool((order == np.arange(len(order))).all())


def takes_each_once(index: Indices, size: int) -> bool:
    return len(index) == size and bool((np.bincount(index, minlength=size) == 1).all())


def inverse(order: Indices) -> Indices:
    """Where each entry went."""
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return places


def rotation(index: Indices, size: int) -> int:
    """How many entries went from the front to the back; 0 where the index does anything else."""
    is_rotated = len(index) == size and bool((index == (index[:1] + np.arange(size)) % size).all())
    return int(index[0]) if is_rotated else 0


def whole_blocks(index: Indices, size: int) -> Indices | None:
    """The blocks of that size that an index takes one after another, each whole and in order."""
    if len(index) % size:
        return None
    rows = index.reshape(-1, size)
    is_whole = rows[:, 0] % size == 0
    return rows[:, 0] // size if is_whole.all() and (rows == rows[:, :1] + np.arange(size)).all() else None


def over_factors(order: Indices, sizes: Sequence[int]) -> list[tuple[int, Indices]] | None:
    """The order of a product as an order of each factor, the factors themselves perhaps in another one."""
    digits = np.unravel_index(order, sizes)
    # More factors than that only keep their places.
    arrangements = permutations(range(len(sizes))) if len(sizes) <= 4 else [tuple(range(len(sizes)))]
    for places in arrangements:
        shape = [sizes[place] for place in places]
        found = np.zeros(shape, dtype=np.int64)
        orders = []
        for axis, place in enumerate(places):
            line = np.moveaxis(digits[place].reshape(shape), axis, 0).reshape(sizes[place], -1)[:, 0]
            orders.append((place, line))
            step = int(np.prod(sizes[place + 1 :], dtype=np.int64))
            found += step * line.reshape([-1 if k == axis else 1 for k in range(len(shape))])
        if (found.reshape(-1) == order).all():
            return orders
    return None


def over_parts(order: Indices, sizes: Sequence[int]) -> list[tuple[int, Indices]] | None:
    """The order of a sum as an order of each part, where every part stays in one piece."""
    starts = np.cumsum([0, *sizes[:-1]])
    part = np.searchsorted(starts, order, side="right") - 1
    ends = np.flatnonzero(np.diff(part)) + 1
    if len(ends) + 1 != len(sizes):
        return None
    pieces = zip(np.split(part, ends), np.split(order, ends), strict=True)
    return [(int(numbers[0]), entries - starts[numbers[0]]) for numbers, entries in pieces]


def occurrence(labels: Indices) -> Indices:
    """How often the label of each entry came before it."""
    by_label = np.argsort(labels, kind="stable")
    ordered = labels[by_label]
    is_first = np.append(True, ordered[1:] != ordered[:-1])[: len(labels)]
    counts = np.empty_like(labels)
    counts[by_label] = np.arange(len(labels)) - np.flatnonzero(is_first)[np.cumsum(is_first) - 1]
    return counts


def classes(columns: Sequence[Indices]) -> Indices:
    """A number for each entry, the same for entries that agree in every one of these lists."""
    return np.unique(np.stack(columns), axis=1, return_inverse=True)[1].reshape(-1).astype(np.int64)


def components(size: int, left: Indices, right: Indices) -> Indices:
    """The component of each of `size` entries when left[k] and right[k] are one, numbered by their first entries."""
    label = np.arange(size)
    while True:
        lowest = label.copy()
        np.minimum.at(lowest, left, label[right])
        np.minimum.at(lowest, right, label[left])
        lowest = lowest[lowest]
        if (lowest == label).all():
            return np.unique(label, return_inverse=True)[1].astype(np.int64)
        label = lowest
