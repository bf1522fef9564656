"""Numbers that a tensor holds whatever the inputs of the model are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from structprune.algebra.axis import Mask

if TYPE_CHECKING:
    from structprune.graph.graph import Op, Value

Array = NDArray[Any]


class NotFinite(ArithmeticError):
    """A constant is infinite or no number: zero times that is not zero, so nothing is said of constants at all."""


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """The numbers that are known of a tensor: `values` where `mask` is true, 0 elsewhere.

    An axis of size one stands for a longer one along which nothing changes:
    of a tensor (batch, 3, height, width) can be known [[[[0]], [[0.5]], [[0]]]] where [[[[True]], [[True]], [[False]]]]
    """

    values: Array
    mask: Mask

    @property
    def is_zero(self) -> Mask:
        return np.asarray(self.mask & (self.values == 0))

    def fits(self, shape: Sequence[int]) -> bool:
        """Each axis is that of a tensor of this shape, or stands for it."""
        own = self.mask.shape
        return len(own) == len(shape) and all(size in (1, whole) for size, whole in zip(own, shape, strict=True))

    def where(self, mask: Mask) -> Known:
        """What is known in fewer places."""
        return known(self.values, self.mask & mask)

    def reshaped(self, shape: Sequence[int]) -> Known:
        return Known(self.values.reshape(shape), self.mask.reshape(shape))

    def taken(self, axis: int, entries: Any) -> Known:
        """Some entries along an axis, of which there is one where nothing changes."""
        if self.mask.shape[axis] == 1:
            return self
        return Known(self.values.take(entries, axis), self.mask.take(entries, axis))

    def spread(self, shape: Sequence[int]) -> Known:
        return Known(np.broadcast_to(self.values, shape), np.broadcast_to(self.mask, shape))

    def compact(self) -> Known:
        """With axes of size one wherever nothing changes."""
        values, mask = self.values, self.mask
        for axis in range(mask.ndim):
            first = np.s_[(*[slice(None)] * axis, slice(0, 1))]
            if (mask == mask[first]).all() and (values == values[first]).all():
                values, mask = values[first], mask[first]
        return Known(values, mask)


def known(values: Any, mask: Any = True) -> Known:
    """Numbers with their mask, broadcast against each other."""
    whole, where = np.broadcast_arrays(np.asarray(values, dtype=np.float64), np.asarray(mask, dtype=bool))
    if not np.isfinite(whole[where]).all():
        raise NotFinite
    return Known(np.where(where, whole, 0.0), where)


UNKNOWN = known(0.0, False)
# Numbers that are followed of one tensor, at most: small vectors can be spread over more than any machine holds.
MOST_NUMBERS = 1 << 22


def is_small(*shapes: Sequence[int]) -> bool:
    """What has these shapes, broadcast against each other, has few numbers."""
    return prod(np.broadcast_shapes(*map(tuple, shapes))) <= MOST_NUMBERS


def along(axis: int, rank: int, values: Array, mask: Any = True) -> Known:
    """A vector along one axis of a tensor of that rank."""
    return known(values, mask).reshaped([-1 if k == axis % rank else 1 for k in range(rank)])


class Numbers(Protocol):
    """What an operator may ask for."""

    def zero_slices(self, weight: Value | None, axis: int) -> Mask | None:
        """The indices along an axis at which a stored tensor holds nothing but zeros; None where nothing is stored."""

    def filter_sums(self, weight: Value) -> Array:
        """The sum of each filter of a weight that is stored."""

    def run(self, op: Op, operands: Sequence[Array]) -> Array | None:
        """The operator itself on these numbers; None where inputs of other sizes would change what it does."""


@dataclass(frozen=True, slots=True)
class Summed:
    """How an operator sums over an axis of its first operand: with the axis `weight_axis` of a weight, its second.

    is_even: a constant there adds one number to each result. Where zeros stand around the operand, 0 alone does.
    """

    axis: int
    weight_axis: int
    groups: int = 1
    is_even: bool = True
