"""Normalisations. Where statistics are taken over a removable axis, removing is not zeroing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from structprune.algebra.axis import Product, fresh
from structprune.graph.constant import UNKNOWN, Known, Numbers, along, is_small, known
from structprune.graph.graph import Op
from structprune.graph.operator import Meeting, Operand, Operator, Resized, operator


def are_zero(*parameters: Operand | None) -> bool:
    """Scale and shift, given or not, are zero where an index of their axis is removed."""
    return all(each is None or (bool(each.zero) and all(each.zero)) for each in parameters)


@operator
@dataclass(frozen=True, slots=True)
class BatchNorm(Operator):
    """y[b, c] = (x[b, c] - mean[c]) / deviation[c] * w[c] + bias[c]

    by_batch: the statistics are those of the batch; by_sample: of each sample, over the positions (instance norm).
    """

    kinds = ("batch_norm", "instance_norm")
    by_batch: bool = False
    by_sample: bool = False
    eps: float = 1e-5

    @property
    def kind(self) -> str:
        return self.kinds[self.by_sample]

    def meet(self, op: Op, x: Operand, *parameters: Operand | None) -> Meeting:
        weight, bias = (*parameters, None, None)[:2]
        meeting = Meeting([x.axes], [])
        meeting.equal = [(x.axes[1], each.axes[0]) for each in parameters if each is not None]
        if self.by_sample:
            meeting.statistics = list(x.axes[2:])
        elif self.by_batch:
            meeting.statistics = [x.axes[0], *x.axes[2:]]
        # Without a scale the channel is its own mean, shifted: not zero.
        is_zero = weight is not None and are_zero(weight, bias)
        meeting.zero = [tuple(axis == 1 and is_zero for axis in range(len(x.axes)))]
        return meeting

    def constants(self, op: Op, given: Sequence[Known | None], numbers: Numbers) -> Sequence[Known | None]:
        """A scale of zero gives the shift, whatever x is."""
        rank, values = len(op.outputs[0].shape), (*op.inputs, None, None, None, None)[1:5]
        is_dead = values[0] is not None and (given[1] or UNKNOWN).is_zero.any()
        if self.by_batch or self.by_sample or (given[0] is None and not is_dead):
            return ()
        defaults = (known(1), known(0), None, None)
        chosen = [defaults[k] if value is None else given[k + 1] for k, value in enumerate(values)]
        own = [along(1, rank, each.values, each.mask) for each in chosen if each is not None]
        if len(own) < 4:
            return ()
        scale, shift, mean, variance = own
        slope = known(scale.values / np.sqrt(variance.values + self.eps), scale.mask & variance.mask)
        x = given[0] or UNKNOWN.reshaped((1,) * rank)
        if not is_small(x.mask.shape, slope.mask.shape):
            return ()
        centred = np.where(slope.is_zero, 0.0, x.values - mean.values)
        is_told = (x.mask & mean.mask | slope.is_zero) & slope.mask & shift.mask
        return (known(centred * slope.values + shift.values, is_told),)


@operator
@dataclass(frozen=True, slots=True)
class LayerNorm(Operator):
    """y[..., c] = (x[..., c] - mean over c) / deviation over c * w[c] + bias[c]; not centred: without the mean"""

    kinds = ("layer_norm",)
    sizes: tuple[int, ...]
    is_centred: bool = True

    def meet(self, op: Op, x: Operand, weight: Operand | None = None, bias: Operand | None = None) -> Meeting:
        leading = len(x.axes) - len(self.sizes)
        meeting = Meeting([x.axes], [])
        for parameter in (weight, bias):
            if parameter is not None:
                meeting.equal.extend(zip(x.axes[leading:], parameter.axes, strict=True))
        meeting.statistics = list(x.axes[leading:])
        inner = weight is not None and are_zero(weight, bias)
        around = (zero and bias is None for zero in x.zero[:leading])
        within = (inner or (zero and not self.is_centred and bias is None) for zero in x.zero[leading:])
        meeting.zero = [(*around, *within)]
        return meeting

    def resized(self, op: Op, new: Resized) -> LayerNorm:
        (x, *_) = op.inputs
        assert x is not None
        return replace(self, sizes=new.shape(x)[len(x.shape) - len(self.sizes) :])


@operator
@dataclass(frozen=True, slots=True)
class GroupNorm(Operator):
    """y[b, g c] = (x[b, g c] - mean over c) / deviation over c * w[g c] + bias[g c]"""

    kinds = ("group_norm",)
    groups: int

    def meet(self, op: Op, x: Operand, weight: Operand | None = None, bias: Operand | None = None) -> Meeting:
        outer, inner = fresh(self.groups), fresh(x.axes[1].size // self.groups)
        meeting = Meeting([x.axes], [], [(x.axes[1], Product((outer, inner)))])
        for parameter in (weight, bias):
            if parameter is not None:
                # Some have one entry for each group.
                is_by_group = parameter.shape[0] == self.groups
                meeting.equal.append((outer if is_by_group else x.axes[1], parameter.axes[0]))
        meeting.statistics = [inner, *x.axes[2:]]
        is_zero = weight is not None and are_zero(weight, bias)
        meeting.zero = [tuple(axis == 1 and is_zero for axis in range(len(x.axes)))]
        return meeting

    def resized(self, op: Op, new: Resized) -> GroupNorm:
        (x, *_) = op.inputs
        assert x is not None
        width = x.shape[1] // self.groups
        starts = [new.before(x, 1, g * width) for g in range(self.groups + 1)]
        return replace(self, groups=len(set(starts)) - 1)


@operator
@dataclass(frozen=True, slots=True)
class WeightNorm(Operator):
    """w[o, ...] = g[o] v[o, ...] / norm of v[o], and the norm itself"""

    kinds = ("weight_norm",)
    dim: int

    def meet(self, op: Op, v: Operand, g: Operand) -> Meeting:
        dim = self.dim
        of_norm = tuple(axis == dim and v.zero[dim] for axis in range(len(g.axes)))
        meeting = Meeting([v.axes, g.axes], [v.zero, of_norm], [(v.axes[dim], g.axes[dim])])
        # A row of zeros has no direction: 0 / 0 stands where nothing is left.
        meeting.singular = [v.axes[dim]]
        return meeting
