"""Follow the constants of a recorded model to where they are summed.

A constant is carried as a tensor whose axes have size one wherever the value does not change along them;
NaN stands for what depends on the input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import nan, prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from structprune.algebra.axis import Dim, Mask, variables
from structprune.frontends.torch.read.lower import bind
from structprune.frontends.torch.record.record import Capture, substitute
from structprune.frontends.torch.write.constant import Constants, Summed, everywhere, positions
from structprune.graph.graph import Op, Value
from structprune.operators.linear import Convolution
from structprune.operators.normalisation import BatchNorm
from structprune.operators.reshaping import Concat
from structprune.passes.propagate import Solution

# Operators that leave a constant as it is, along every axis that they do not work on.
PASSING = frozenset(
    (
        *("alias", "clone", "contiguous", "detach", "dropout", "upsample_nearest2d", "upsample_bilinear2d"),
        *("max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool2d"),
        *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
    )
)
# Operators that can be run on the constants themselves.
MOVING = frozenset(("cat", "permute", "transpose", "unsqueeze", "mean"))
RESHAPING = frozenset(("view", "reshape", "flatten", "squeeze"))


def constants(capture: Capture, solution: Solution, parameters: Mapping[str, Tensor]) -> Constants:
    """Follow the constants of a recorded model to where they are summed."""
    return Tracker(capture, solution, parameters).track()


class Tracker:
    """Walks the operators once."""

    def __init__(self, capture: Capture, solution: Solution, parameters: Mapping[str, Tensor]) -> None:
        self.capture = capture
        self.solution = solution
        self.parameters = parameters
        self.ops = [op for op in solution.graph.ops if op not in solution.graph.only_in_training]
        # Parameters are constants; larger ones than vectors are no scales or shifts, and not followed.
        self.known: dict[Value, Tensor] = {
            value: parameters[name].detach() for name, value in capture.parameters.items() if is_vector(value)
        }
        self.found = Constants()
        self.readers: dict[Value, list[Op]] = {}
        for op in self.ops:
            for value in dict.fromkeys(op.inputs):
                if value is not None:
                    self.readers.setdefault(value, []).append(op)

    def track(self) -> Constants:
        sources = {op: zeros for op in self.ops if (zeros := self.zeros(op)) is not None}
        for op, zeros in sources.items():
            axis = self.solution.expanded(op.outputs[0])[channel_axis(op)]
            for dim in set(variables(axis)) - set(self.solution.system.frozen):
                self.found.free[dim] = self.found.free.get(dim, False) | everywhere(zeros, positions(axis, dim))
        self.forget_idle()
        if not self.found.free or self.writes_into_views():
            return Constants()
        for op in self.ops:
            self.step(op, sources.get(op))
            if not self.found.free:
                return self.found
        for value in self.capture.outputs:
            self.block(value, lambda dim, index: np.zeros(dim.size, dtype=bool))
        return self.found

    def zeros(self, op: Op) -> Mask | None:
        """The channels of a layer's result that its weights make constant, if there are any."""
        weight = op.inputs[1] if len(op.inputs) > 1 else None
        if weight is None or weight.parameter is None or not weight.is_trained:
            return None
        if op.kind not in ("linear", "conv", "batch_norm") or takes_statistics(op):
            return None
        is_zero = zero_rows(self.parameters[weight.parameter])
        return is_zero if is_zero.any() else None

    def writes_into_views(self) -> bool:
        """Something is written in place into memory that another value shows: too entangled to follow."""
        viewed: set[Value] = set()
        for op in self.ops:
            is_write = op.source[0].target._schema.is_mutable if hasattr(op.source[0].target, "_schema") else True
            for value in op.outputs:
                root = value.base
                if root is not None and is_write and (root in viewed):
                    return True
                if root is not None and not is_write:
                    viewed.add(root)
        return False

    # -- one operator --------------------------------------------------------------------------

    def step(self, op: Op, zeros: Mask | None) -> None:
        result = self.result(op, zeros)
        if result is not None and not bool(result.isnan().all()):
            self.known[op.outputs[0]] = result
        summed = self.summed(op)
        has_weights = op.kind in ("linear", "conv", "batch_norm")
        for place, value in enumerate(op.inputs):
            if value is None or (has_weights and place and value.parameter is not None):
                continue
            if summed is not None and place == 0:
                self.block(value, self.foldable(op, value, summed))
            else:
                self.block(value, self.passed_on(op))

    def block(self, value: Value, stays: Callable[[Dim, Value], Mask]) -> None:
        """Keep as free only what stays so behind a reader of this value."""
        met = {leaf for axis in self.solution.expanded(value) for leaf in variables(axis)}
        for dim in met & set(self.found.free):
            self.found.free[dim] = self.found.free[dim] & stays(dim, value)
        self.forget_idle()

    def forget_idle(self) -> None:
        self.found.free = {dim: mask for dim, mask in self.found.free.items() if mask.any() and not mask.all()}

    def passed_on(self, op: Op) -> Callable[[Dim, Value], Mask]:
        """What every result of the operator shows as a constant again."""

        def stays(dim: Dim, value: Value) -> Mask:
            result = np.ones(dim.size, dtype=bool)
            for output in op.outputs:
                result &= self.is_known(output, dim)
            return result

        return stays

    def is_known(self, value: Value, dim: Dim) -> Mask:
        """The indices of a dimension at which a value is constant everywhere."""
        known = self.known.get(value)
        axes = self.solution.expanded(value)
        along = [k for k, axis in enumerate(axes) if dim in set(variables(axis))]
        if known is None or len(along) != 1:
            return np.zeros(dim.size, dtype=bool)
        is_number = ~known.isnan().movedim(along[0], 0).flatten(1).any(1).cpu().numpy()
        index = positions(axes[along[0]], dim)
        return everywhere(np.broadcast_to(is_number, index.shape), index)

    def summed(self, op: Op) -> tuple[Tensor, int] | None:
        """The constants that a linear layer or a convolution sums over, and along which axis."""
        x = op.inputs[0]
        if op.kind not in ("linear", "conv") or x is None:
            return None
        axis, known = channel_axis(op), self.known.get(x)
        values = torch.full((1,), nan) if known is None else known
        is_row = known is not None and prod(values.shape) == values.shape[axis]
        return (values.flatten() if is_row else torch.full((1,), nan)).expand(x.shape[axis]), axis

    def foldable(self, op: Op, x: Value, summed: tuple[Tensor, int]) -> Callable[[Dim, Value], Mask]:
        values, axis = summed
        is_free = ~values.isnan()
        target = self.target(op)
        if target is None or has_borders(op):
            is_free &= values == 0
        elif bool((is_free & (values != 0)).any()):
            weight = op.inputs[1]
            assert weight is not None and weight.parameter is not None
            expression = self.solution.expanded(x)[axis]
            groups = op.operator.groups if isinstance(op.operator, Convolution) else 1
            self.found.sums.append(Summed(values, expression, weight.parameter, *target, groups))

        def stays(dim: Dim, value: Value) -> Mask:
            axes = self.solution.expanded(value)
            if [k for k, each in enumerate(axes) if dim in set(variables(each))] != [axis]:
                return np.zeros(dim.size, dtype=bool)
            return everywhere(is_free.cpu().numpy(), positions(axes[axis], dim))

        return stays

    def target(self, op: Op) -> tuple[str, int] | None:
        """The bias that can take a constant over, or the running mean of the batch norm behind."""
        weight, bias = (*op.inputs, None)[1:3]
        if weight is None or weight.parameter is None or len(self.readers[weight]) > 1:
            return None
        if bias is not None:
            is_own = bias.parameter is not None and bias.is_trained and len(self.readers[bias]) == 1
            return (bias.parameter, 1) if is_own and bias.parameter is not None else None
        readers = self.readers.get(op.outputs[0], [])
        if len(readers) != 1 or readers[0].kind != "batch_norm" or op.outputs[0] in self.capture.outputs:
            return None
        mean = (*readers[0].inputs, None, None)[3]
        if mean is None or mean.parameter is None or len(self.readers[mean]) > 1:
            return None
        return None if takes_statistics(readers[0]) else (mean.parameter, -1)

    # -- results -------------------------------------------------------------------------------

    def result(self, op: Op, zeros: Mask | None) -> Tensor | None:
        """What is known of an operator's result."""
        if op.kind == "batch_norm":
            return self.normalised(op, zeros)
        if op.kind in ("linear", "conv"):
            return self.weighted(op, zeros)
        if len(op.outputs) != 1 or not any(value in self.known for value in op.inputs if value is not None):
            return None
        is_whole = op.kind == "slice" and op.inputs[0] is not None and op.inputs[0].shape == op.outputs[0].shape
        if op.name in PASSING or is_whole or (op.name.startswith("avg_pool") and not has_borders(op)):
            return self.passed(op)
        if op.name in RESHAPING:
            return self.reshaped(op)
        if op.kind in ("pointwise", "write") or op.name in MOVING:
            return self.ran(op)
        return None

    def parameter(self, value: Value | None, default: float) -> Tensor:
        if value is None or value.parameter is None:
            return torch.tensor(default)
        return self.parameters[value.parameter].detach()

    def normalised(self, op: Op, zeros: Mask | None) -> Tensor | None:
        x, weight, bias, mean, variance = (*op.inputs, None, None, None, None)[:5]
        if x is None or mean is None or variance is None or takes_statistics(op):
            return None
        scale = torch.rsqrt(self.parameter(variance, 1) + float(str(argument(op, "eps")))) * self.parameter(weight, 1)
        shift = self.parameter(bias, 0)
        known = self.known.get(x, torch.full((1,) * len(x.shape), nan, dtype=scale.dtype, device=scale.device))
        shape = (1, -1, *[1] * (len(x.shape) - 2))
        result = (known - self.parameter(mean, 0).view(shape)) * scale.view(shape) + shift.view(shape)
        return result if zeros is None else torch.where((scale == 0).view(shape), shift.view(shape), result)

    def weighted(self, op: Op, zeros: Mask | None) -> Tensor | None:
        """Filters of zeros give their bias; a depthwise filter without borders gives a constant for a constant."""
        x, weight, bias = (*op.inputs, None)[:3]
        if x is None or weight is None or weight.parameter is None:
            return None
        tensor = self.parameter(weight, 0)
        result = torch.full((tensor.shape[0],), nan, dtype=tensor.dtype, device=tensor.device)
        axis = channel_axis(op)
        known = self.known.get(x)
        groups = op.operator.groups if isinstance(op.operator, Convolution) else 0
        is_depthwise = groups == x.shape[axis] == tensor.shape[0]
        if is_depthwise and known is not None and prod(known.shape) == known.shape[axis]:
            values = known.flatten().expand(x.shape[axis])
            sums = values * tensor.flatten(1).sum(1)
            result = torch.where(values == 0, 0.0, nan if has_borders(op) else sums)
        if zeros is not None:
            result = torch.where(torch.from_numpy(zeros).to(result.device), 0.0, result)
        result = result + self.parameter(bias, 0)
        return result.view([-1 if k == axis else 1 for k in range(len(op.outputs[0].shape))])

    def passed(self, op: Op) -> Tensor | None:
        x = op.inputs[0]
        known = self.known.get(x) if x is not None else None
        if x is None or known is None:
            return None
        # Only along axes that the operator leaves alone.
        whole = [axis for axis, size in enumerate(known.shape) if size != 1]
        return known if all(x.shape[axis] == op.outputs[0].shape[axis] for axis in whole) else None

    def reshaped(self, op: Op) -> Tensor | None:
        x, output = op.inputs[0], op.outputs[0]
        known = self.known.get(x) if x is not None else None
        if x is None or known is None or prod(x.shape) != prod(output.shape):
            return None
        whole = known.expand(x.shape).reshape(output.shape)
        for axis in range(whole.dim()):
            first = whole.narrow(axis, 0, 1)
            if bool(((whole == first) | (whole.isnan() & first.isnan())).all()):
                whole = first
        return whole

    def ran(self, op: Op) -> Tensor | None:
        """The operator itself, on the constants."""
        call = op.source[0]
        if (op.name == "mean" and not self.keeps_axes(op)) or torch.Tag.nondeterministic_seeded in call.target.tags:
            return None
        known: dict[Value, Tensor] = {}
        for value in call.tensors():
            found = self.constant(value)
            if found is None:
                return None
            known[value] = found
        if op.name == "cat" or call.target._schema.is_mutable:
            # Parts stand beside each other at their whole width; what is written into is as large as what is written.
            dim = op.operator.dim if isinstance(op.operator, Concat) else None
            for value in known:
                others = [max(sizes) for sizes in zip(*(each.shape for each in known.values()), strict=True)]
                shape = [value.shape[k] if k == dim else size for k, size in enumerate(others)]
                known[value] = known[value].expand(shape).clone()
        result = call.target(*substitute(call.args, known), **substitute(call.kwargs, known))
        if not isinstance(result, Tensor) or not result.is_floating_point():
            return None
        if op.name.rstrip("_") == "mul":
            # Zero times what is not known is zero.
            for each in known.values():
                result = torch.where(each == 0, 0.0, result)
        return result

    def constant(self, value: Value) -> Tensor | None:
        """What is known of an operand, NaN where nothing is; None where its type has no NaN."""
        if value in self.known:
            return self.known[value]
        if value in self.capture.constants and is_vector(value):
            return self.capture.constants[value]
        if not self.capture.dtypes[value].is_floating_point:
            return None
        like: Tensor = next(iter(self.known.values()))
        return like.new_full((1,) * len(value.shape), nan)

    def keeps_axes(self, op: Op) -> bool:
        """A mean over axes along which nothing changes."""
        x = op.inputs[0]
        known = self.known.get(x) if x is not None else None
        dims = argument(op, "dim")
        return known is not None and bool(dims) and all(known.shape[dim] == 1 for dim in dims)


def takes_statistics(op: Op) -> bool:
    return isinstance(op.operator, BatchNorm) and op.operator.by_batch


def is_vector(value: Value) -> bool:
    return prod(value.shape) <= max(value.shape, default=1)


def argument(op: Op, name: str) -> Any:
    call = op.source[0]
    return bind(call.target, call.args, call.kwargs).get(name)


def channel_axis(op: Op) -> int:
    output = op.outputs[0]
    if op.kind == "linear":
        return len(output.shape) - 1
    weight = op.inputs[1]
    # A convolution may come without a batch axis.
    return 1 if op.kind == "batch_norm" or weight is None or len(output.shape) == len(weight.shape) else 0


def has_borders(op: Op) -> bool:
    """Zeros stand around the input: a constant is none there."""
    padding = argument(op, "padding")
    given = padding if isinstance(padding, list | tuple) else [padding]
    is_padded = any(each not in (0, None, "valid") for each in given) or bool(argument(op, "ceil_mode"))
    return is_padded or bool(argument(op, "transposed"))


def zero_rows(weight: Tensor) -> Mask:
    """Which filters consist of zeros. Few begin with one: only those are read to the end."""
    rows = weight.detach().flatten(1) if weight.dim() > 1 else weight.detach()[:, None]
    is_zero = rows[:, 0] == 0
    begun = is_zero.nonzero().flatten()
    is_zero[begun] = (rows[begun] == 0).all(1)
    result: Mask = is_zero.cpu().numpy()
    return result
