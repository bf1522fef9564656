"""Channels that hold one value whatever the input, and the biases behind them that can take it over.

A batch norm with a scale of zero and a filter of zeros with a bias give constants. Where every reader of such a channel
passes the constant on or sums over it, removing the channel and adding its share to the bias that follows changes
nothing: it is free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from math import prod
from typing import Any, Protocol

import numpy as np
from array_api_compat import array_namespace, device

from structprune.algebra.axis import Axis, Dim, Kept, Mask, Product, Reordered, Sum, variables
from structprune.algebra.order import Indices
from structprune.graph.constant import Array, Known, NotFinite, Summed, known
from structprune.graph.edit import Add, Weights
from structprune.graph.graph import Op, Value
from structprune.operators.elementwise import Pointwise
from structprune.operators.normalisation import BatchNorm
from structprune.passes.propagate import Names, Solution
from structprune.passes.rewrite import Rewrite
from structprune.passes.score import to_numpy


class Source(Protocol):
    """What a front end tells of numbers."""

    def arrays(self, names: Iterable[str]) -> Weights:
        """Parameters as arrays."""

    def numbers(self, value: Value) -> Array | None:
        """The numbers of a constant that is no parameter, where inputs of other sizes do not change them."""

    def computed(self, op: Op, operands: Sequence[Array]) -> Array | None:
        """A pointwise operator run on such numbers, in the types of the model; None where that cannot be done, or where
        inputs of other sizes change what the operator does."""


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
        return Tracker(solution, source).track()
    except NotFinite:
        return Folding()


# An operator, and what is known of its operands and its results.
Step = tuple[Op, list[Known | None], Sequence[Known | None]]


class Tracker:
    """Walks the operators once to see what is constant, and once more for what reads it."""

    def __init__(self, solution: Solution, source: Source) -> None:
        self.solution = solution
        self.source = source
        graph = solution.graph
        self.ops = [op for op in graph.ops if op not in graph.only_in_training]
        # What the model itself writes is another number in each run.
        written = {target.base or target for op in self.ops for target in op.overwrites}
        self.stored = {value for value in graph.parameters.values() if value not in written}
        self.arrays = source.arrays([str(value.parameter) for value in self.stored])
        self.known: dict[Value, Known | None] = {}
        self.readers: dict[Value, list[tuple[Op, int]]] = {}
        for op in self.ops:
            for place, value in enumerate(op.inputs):
                if value is not None:
                    self.readers.setdefault(value, []).append((op, place))
        self.may_run = False
        self.free: dict[Dim, Mask] = {}
        self.shares: list[Share] = []

    def track(self) -> Folding:
        # Nearly all models have no constants: that is seen without running anything.
        for self.may_run in (False, True):
            steps = self.walked()
            self.forget_idle()
            if not self.free:
                return Folding()
        self.refuse_broken()
        for op, given, results in steps:
            self.read(op, given, results)
        return Folding(self.free, self.shares)

    # -- what is constant ----------------------------------------------------------------------

    def walked(self) -> list[Step]:
        """Every operator with what is known before and after it."""
        self.known.clear()
        names = Names()
        steps = [self.step(op, names) for op in self.ops]
        for op, _, results in steps:
            for value, found in zip(op.outputs, results, strict=False):
                # What is known as a whole is made of parameters alone.
                if found is not None and found.mask.any() and not found.mask.all():
                    self.note(value, found)
        return steps

    def step(self, op: Op, names: Names) -> Step:
        given = [None if value is None else self.of(value) for value in op.inputs]
        results = op.operator.constants(op, given, self)
        # Whatever other names this memory has, nothing is known of it any more.
        for target in op.overwrites:
            self.known.update(dict.fromkeys(names.of(target)))
        for value, found in zip(op.outputs, results, strict=False):
            if found is not None and found.mask.any():
                assert found.mask.ndim == len(value.shape), f"{op.name} gives constants of another rank"
                self.known[value] = found
        for value in op.outputs:
            names.note(value)
        return op, given, results

    def of(self, value: Value) -> Known | None:
        """What is known of an operand. Stored tensors larger than vectors are no scales or shifts."""
        if value not in self.known and value.producer is None:
            is_vector = prod(value.shape) <= max(value.shape, default=1)
            self.known[value] = self.constant(value) if is_vector else None
        return self.known.get(value)

    def constant(self, value: Value) -> Known | None:
        if value.parameter is None:
            found = self.source.numbers(value) if self.may_run else None
            return None if found is None or found.shape != value.shape else known(found)
        return None if (array := self.array(value)) is None else known(to_numpy(array))

    def array(self, value: Value | None) -> Any:
        """A stored tensor; None for any other."""
        if value not in self.stored:
            return None
        array = self.arrays[str(value.parameter)]
        # Complex numbers come as pairs.
        return array if tuple(array.shape) == value.shape else None

    def zero_slices(self, weight: Value | None, axis: int) -> Mask | None:
        """Few slices begin with a zero: only those are read to the end."""
        if (array := self.array(weight)) is None:
            return None
        space = array_namespace(array)
        front = space.moveaxis(array, axis, 0)
        is_zero = np.asarray(to_numpy(front[(slice(None), *[0] * (front.ndim - 1))]) == 0)
        begun = np.flatnonzero(is_zero)
        if len(begun):
            taken = space.take(front, space.asarray(begun, device=device(array)), axis=0)
            is_zero[begun] = to_numpy(space.all(space.reshape(taken, (len(begun), -1)) == 0, axis=1)) != 0
        return is_zero

    def filter_sums(self, weight: Value | None) -> Array | None:
        array = self.array(weight)
        return None if array is None else to_numpy(array).reshape(len(array), -1).sum(1)

    def run(self, op: Op, operands: Sequence[Array]) -> Array | None:
        return self.source.computed(op, operands) if self.may_run else None

    def note(self, value: Value, found: Known) -> None:
        """Indices at which a result is constant may be free."""
        for axis, size in zip(self.solution.expanded(value), found.mask.shape, strict=True):
            for dim in self.solution.variables(axis) if size > 1 else ():
                if dim not in self.solution.system.frozen:
                    self.free[dim] = self.free.get(dim, False) | self.is_known(value, found, dim)

    def refuse_broken(self) -> None:
        """Zero times what is infinite, or no number, is not zero."""
        for value in self.stored:
            if (array := self.array(value)) is not None:
                space = array_namespace(array)
                if space.isdtype(array.dtype, "real floating") and not space.all(space.isfinite(array)):
                    raise NotFinite

    # -- what reads it -------------------------------------------------------------------------

    def read(self, op: Op, given: Sequence[Known | None], results: Sequence[Known | None]) -> None:
        summed = op.operator.summed(op)
        for place, value in enumerate(op.inputs):
            if value is None or (summed is not None and place and value.parameter is not None):
                continue
            if summed is not None and place == 0:
                self.block(value, self.foldable(op, summed, given[0], results))
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
        target = self.target(op) if summed.is_even and weight in self.stored else None
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
        return is_read_once and self.array(parameter) is not None


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
