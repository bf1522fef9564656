"""Channels that hold one value whatever the input, and the biases behind them that can take it over.

A batch norm with a scale of zero and a filter of zeros with a bias give constants. Where every reader of such a channel
passes the constant on or sums over it, removing the channel and adding its share to the bias that follows changes
nothing: it is free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from structprune.algebra.axis import Axis, Dim, Kept, Mask, Product, Reordered, Sum, variables
from structprune.algebra.order import Indices
from structprune.graph.constant import Array, Known, NotFinite, Summed, known
from structprune.graph.edit import Add, Weights
from structprune.graph.graph import Op, Value
from structprune.operators.elementwise import Pointwise
from structprune.operators.normalisation import BatchNorm
from structprune.passes.follow import Follower, Source
from structprune.passes.propagate import Solution
from structprune.passes.rewrite import Rewrite
from structprune.passes.score import to_numpy


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """A layer that sums over constants, and the bias or running mean that takes its share of them.

    `constants` lie along one axis, whose expression is `axis`.
    """

    constants: Known
    axis: Axis
    summed: Summed
    weight: str
    target: Value
    sign: int

    def added(self, kept: Kept, folded: Mapping[Dim, Mask], weight: Any) -> Array | None:
        """What is added to the target at its whole size."""
        is_folded = np.zeros(self.axis.size, dtype=bool)
        is_gone = np.zeros(self.axis.size, dtype=bool)
        for dim in set(variables(self.axis)) & set(kept):
            index = positions(self.axis, dim)
            is_own = folded.get(dim, np.zeros(dim.size, dtype=bool))
            is_folded |= (index >= 0) & is_own[index]
            is_gone |= (index >= 0) & ~(np.isin(np.arange(dim.size), kept[dim]) | is_own)[index]
        values = np.where(is_folded & ~is_gone, self.constants.values, 0.0).reshape(self.summed.groups, -1)
        places = np.flatnonzero(values.any(0))
        if not len(places):
            return None
        space, axis = array_namespace(weight), self.summed.weight_axis
        taken = space.take(weight, space.asarray(places, device=device(weight)), axis=axis)
        kernel = np.moveaxis(to_numpy(taken), axis, 1)
        kernel = kernel.reshape(*kernel.shape[:2], -1).sum(2).reshape(self.summed.groups, -1, len(places))
        return np.asarray(np.einsum("goi,gi->go", kernel, values[:, places]).reshape(self.target.shape) * self.sign)


@dataclass(frozen=True, slots=True, repr=False)
class Folding:
    """Which indices of each dimension are constants that can be folded, and where to."""

    free: Mapping[Dim, Mask] = field(default_factory=dict)
    shares: Sequence[Share] = ()

    def folded(self, kept: Kept) -> dict[Dim, Mask]:
        """The removed indices that are constants."""
        return {
            dim: mask & ~np.isin(np.arange(dim.size), kept[dim]) for dim, mask in self.free.items() if dim in kept
        }

    def alive(self, kept: Kept) -> Kept:
        """What stays or lives on in a bias: zeroing the rest of the original gives the small model."""
        folded = self.folded(kept)
        return {dim: np.union1d(at, np.flatnonzero(folded[dim])) if dim in folded else at for dim, at in kept.items()}

    def additions(self, rewrite: Rewrite, arrays: Callable[[Iterable[str]], Weights]) -> Iterator[Add]:
        """What removed constants contributed, added to the biases behind them."""
        kept, folded = rewrite.kept, self.folded(rewrite.kept)
        if not any(mask.any() for mask in folded.values()):
            return
        weights = arrays({each.weight for each in self.shares})
        found: dict[Value, Array] = {}
        for each in self.shares:
            added = each.added(kept, folded, weights[each.weight])
            if added is not None:
                found[each.target] = found.get(each.target, 0.0) + added
        for target, values in found.items():
            for axis in range(values.ndim):
                indices = rewrite.indices(target, axis)
                values = values if indices is None else values.take(indices, axis)
            yield Add(str(target.parameter), values)


def fold(solution: Solution, source: Source | None) -> Folding:
    """Follow the constants of a solved graph to where they are summed."""
    if source is None:
        return Folding()
    try:
        return Folder(solution, source).folding()
    except NotFinite:
        return Folding()


class Folder:
    """Looks at all that reads what is constant."""

    def __init__(self, solution: Solution, source: Source) -> None:
        self.solution = solution
        self.follower = Follower(solution.graph, source)
        self.readers: dict[Value, list[tuple[Op, int]]] = {}
        for op in self.follower.ops:
            for place, value in enumerate(op.inputs):
                if value is not None:
                    self.readers.setdefault(value, []).append((op, place))
        self.free: dict[Dim, Mask] = {}
        self.shares: list[Share] = []

    def folding(self) -> Folding:
        # Nearly all models have no constants: that is seen without running anything.
        for self.follower.may_run in (False, True):
            steps = self.follower.walk()
            for op, _, results in steps:
                for value, found in zip(op.outputs, results, strict=False):
                    self.note(value, found)
            self.forget_idle()
            if not self.free:
                return Folding()
        self.follower.check_finite()
        for op, first, results in steps:
            self.read(op, first, results)
        return Folding(self.free, self.shares)

    def note(self, value: Value, found: Known | None) -> None:
        """Indices at which a result is constant may be free. What is known as a whole is made of parameters alone."""
        if found is None or not found.mask.any() or found.mask.all():
            return
        for axis, size in zip(self.solution.expanded(value), found.mask.shape, strict=True):
            for dim in self.solution.variables(axis) if size > 1 else ():
                if dim not in self.solution.system.frozen:
                    self.free[dim] = self.free.get(dim, False) | self.is_known(value, found, dim)

    def read(self, op: Op, first: Known | None, results: Sequence[Known | None]) -> None:
        summed = op.operator.summed(op)
        for place, value in enumerate(op.inputs):
            if value is None or (summed is not None and place and value.parameter is not None):
                continue
            if summed is not None and place == 0:
                self.block(value, self.foldable(op, summed, first, results))
            else:
                self.block(value, lambda dim: self.is_passed_on(op, results, dim))

    def block(self, value: Value, stays: Callable[[Dim], Mask]) -> None:
        """Keep as free only what stays so behind a reader of this value."""
        met = {leaf for axis in self.solution.expanded(value) for leaf in self.solution.variables(axis)}
        for dim in met & set(self.free):
            self.free[dim] = self.free[dim] & stays(dim)
        self.forget_idle()

    def forget_idle(self) -> None:
        self.free = {dim: mask for dim, mask in self.free.items() if mask.any() and not mask.all()}

    def is_passed_on(self, op: Op, results: Sequence[Known | None], dim: Dim) -> Mask:
        """What every result of the operator shows as a constant again, if it shows it at all."""
        stays = np.full(dim.size, len(op.outputs) > 0)
        for value, found in zip_longest(op.outputs, results):
            is_left_out = op.operator.takes_parts and not self.axes_along(value, dim)
            stays &= is_left_out or self.is_known(value, found, dim)
        return stays

    def axes_along(self, value: Value, dim: Dim) -> list[int]:
        return [k for k, axis in enumerate(self.solution.expanded(value)) if dim in self.solution.variables(axis)]

    def is_known(self, value: Value, found: Known | None, dim: Dim) -> Mask:
        """The indices of a dimension at which a value is constant everywhere."""
        along = self.axes_along(value, dim)
        if found is None or len(along) != 1:
            return np.zeros(dim.size, dtype=bool)
        mask = np.moveaxis(found.mask, along[0], 0)
        index = positions(self.solution.expanded(value)[along[0]], dim)
        return everywhere(np.broadcast_to(mask.reshape(len(mask), -1).all(1), index.shape), index)

    def foldable(
        self, op: Op, summed: Summed, x: Known | None, results: Sequence[Known | None]
    ) -> Callable[[Dim], Mask]:
        """The constants along the axis that a layer sums over which it can give to a bias; zeros need none."""
        value, weight = op.inputs[:2]
        assert value is not None and weight is not None
        axis = summed.axis % len(value.shape)
        is_row = x is not None and x.mask.size == x.mask.shape[axis]
        whole = (value.shape[axis],)
        flat = x.reshaped((-1,)).spread(whole) if x is not None and is_row else known(np.zeros(whole), False)
        is_free, expression = flat.is_zero, self.solution.expanded(value)[axis]
        target = self.target(op) if summed.is_even and self.follower.has_array(weight) else None
        if target is not None and (flat.mask & ~flat.is_zero).any():
            is_free = flat.mask
            self.shares.append(Share(flat, expression, summed, str(weight.parameter), *target))

        def stays(dim: Dim) -> Mask:
            if self.axes_along(value, dim) != [axis]:
                return np.zeros(dim.size, dtype=bool)
            found = everywhere(is_free, positions(expression, dim))
            # A filter of its own for each channel sums over no other.
            return found | self.is_passed_on(op, results, dim) if summed.groups == whole[0] else found

        return stays

    def target(self, op: Op) -> tuple[Value, int] | None:
        """What takes a constant over: the layer's bias, one that is added behind, or the mean of a batch norm."""
        bias, output = (*op.inputs, None)[2], op.outputs[0]
        if bias is not None:
            return (bias, 1) if self.is_own(bias) else None
        readers = self.readers.get(output, [])
        if len(readers) != 1 or output in self.solution.graph.outputs:
            return None
        ((reader, place),) = readers
        match reader.operator:
            case BatchNorm(by_batch=False, by_sample=False) if place == 0:
                mean = (*reader.inputs, None, None)[3]
                return (mean, -1) if mean is not None and self.is_own(mean) else None
            case Pointwise(adds=True) if len(reader.inputs) == 2:
                other = reader.inputs[1 - place]
                return (other, 1) if other is not None and self.is_own(other) and lies_along(other, op) else None
        return None

    def is_own(self, parameter: Value) -> bool:
        """Nothing else reads it."""
        is_read_once = len(self.readers[parameter]) == 1 and parameter not in self.solution.graph.outputs
        return is_read_once and self.follower.has_array(parameter)


def lies_along(parameter: Value, op: Op) -> bool:
    """A vector along the axis of a layer's results."""
    summed, shape = op.operator.summed(op), op.outputs[0].shape
    assert summed is not None
    axis = summed.axis % len(shape)
    return (1,) * (len(shape) - len(parameter.shape)) + parameter.shape == tuple(
        size if k == axis else 1 for k, size in enumerate(shape)
    )


def positions(axis: Axis, dim: Dim) -> Indices:
    """For each place along an axis, which index of a dimension it holds; -1 where none."""
    match axis:
        case Dim():
            return np.arange(axis.size) if axis is dim else np.full(axis.size, -1)
        case Sum(parts):
            return np.concatenate([positions(part, dim) for part in parts])
        case Product(factors):
            result = np.full(1, -1)
            for factor in factors:
                inner = positions(factor, dim)
                result = np.maximum(result[:, None], inner[None, :]).reshape(-1)
            return result
        case Reordered(whole, entries):
            return positions(whole, dim)[entries]


def everywhere(mask: Mask, index: Indices) -> Mask:
    """For each index, whether all of its places are marked."""
    result = np.ones(int(index.max()) + 1, dtype=bool)
    np.logical_and.at(result, index[index >= 0], mask[index >= 0])
    return result
