"""Is a pruned model the original with slices zeroed? Asked in the same way of any tool's result.

Nothing is asked of the tool: in a float64 model with random parameters every entry is unique, so what is
left of each parameter says which entries were kept. The original runs with all others set to zero
(running statistics too), and the outputs are compared in units of the largest entry.

Layer norms and RMS norms take their statistics over what is kept, as the smaller model does: a tool is not
blamed for that. It is blamed for another scale of attention (1/sqrt(head width) of the smaller heads).
Norms without a weight of their own are run as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from structprune.frontends.torch.record.record import tensors_in
from tests.benchmarks.subjects import call


class NotAPart(Exception):
    """A parameter of the result is not made of entries of the original's."""


def error(original: nn.Module, small: nn.Module, inputs: Any) -> float:
    """How far the result is from the zeroed original; infinite where the shapes of the outputs differ."""
    zeroed, kept = with_removed_zeroed(original, small)
    with torch.no_grad():
        found = list(tensors_in(plain(call(small, inputs))))
        with norms_over_kept(zeroed, kept):
            expected = list(tensors_in(plain(call(zeroed, inputs))))
    worst = 0.0
    for a, b in zip(expected, found, strict=True):
        if a.shape != b.shape:
            return float("inf")
        worst = max(worst, ((a - b).abs().max() / a.abs().max().clamp_min(1e-300)).item())
    return worst if worst == worst else float("inf")


def plain(result: Any) -> Any:
    return dict(result) if hasattr(result, "items") else result


def with_removed_zeroed(original: nn.Module, small: nn.Module) -> tuple[nn.Module, dict[int, Tensor]]:
    """The original with what the result lacks set to zero, and what norms keep of their weights."""
    zeroed = copy.deepcopy(original)
    left = {**dict(small.named_parameters(remove_duplicate=False)), **dict(small.named_buffers(remove_duplicate=False))}
    kept: dict[int, Tensor] = {}
    both = (*zeroed.named_parameters(remove_duplicate=False), *zeroed.named_buffers(remove_duplicate=False))
    for name, tensor in both:
        if not tensor.is_floating_point() or name not in left or tensor.shape == left[name].shape:
            continue
        mask = is_kept(name, tensor.detach(), left[name].detach())
        kept[id(tensor)] = mask
        tensor.data = torch.where(mask, tensor.detach(), 0.0)
    return zeroed, kept


def is_kept(name: str, whole: Tensor, part: Tensor) -> Tensor:
    """Which entries of a parameter are left."""
    mask = by_lines(whole, part)
    if mask is None:
        mask = torch.isin(whole, part)
    if int(mask.sum()) < part.numel():
        raise NotAPart(f"{name} holds numbers that the original does not")
    return mask


def by_lines(whole: Tensor, part: Tensor) -> Tensor | None:
    """The usual case, quickly: whole slices along each axis are left."""
    if whole.dim() != part.dim() or not part.numel():
        return None
    origin = (whole == part[(0,) * part.dim()]).nonzero()
    if len(origin) != 1:
        return None
    mask = torch.ones_like(whole, dtype=torch.bool)
    indices = []
    for axis in range(whole.dim()):
        place = [slice(None) if k == axis else int(origin[0][k]) for k in range(whole.dim())]
        line = whole[tuple(place)]
        wanted = part[tuple(slice(None) if k == axis else 0 for k in range(part.dim()))]
        found = (line[:, None] == wanted[None, :]).nonzero()
        if len(found) != len(wanted):
            return None
        index = found[found[:, 1].argsort(), 0]
        indices.append(index)
        is_left = torch.zeros(whole.shape[axis], dtype=torch.bool).index_fill_(0, index, True)
        mask &= is_left.reshape([-1 if k == axis else 1 for k in range(whole.dim())])
    rebuilt = whole
    for axis, index in enumerate(indices):
        rebuilt = rebuilt.index_select(axis, index)
    return mask if torch.equal(rebuilt, part) else None


@contextmanager
def norms_over_kept(model: nn.Module, kept: Mapping[int, Tensor]) -> Iterator[None]:
    """Layer norms and RMS norms see the kept channels alone."""
    whole = functional.layer_norm

    def layer_norm(x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
        mask = kept.get(id(weight))
        if mask is None or mask.dim() != 1:
            return whole(x, shape, weight, bias, eps)
        small = whole(x[..., mask], (int(mask.sum()),), weight[mask], None if bias is None else bias[mask], eps)
        return torch.zeros_like(x).masked_scatter_(mask.expand_as(x), small)

    def over_kept(forward: Callable[[Tensor], Tensor], mask: Tensor) -> Callable[[Tensor], Tensor]:
        # Where the others are zero, the mean of squares over the kept channels is that over all, times this squared.
        factor = (mask.numel() / mask.sum()).sqrt()

        def run(x: Tensor) -> Tensor:
            return forward(x * mask * factor) / factor

        return run

    for module in model.modules():
        weight = getattr(module, "weight", None)
        if type(module).__name__.endswith("RMSNorm") and id(weight) in kept:
            module.forward = over_kept(module.forward, kept[id(weight)])
    functional.layer_norm = layer_norm  # type: ignore[assignment]
    try:
        yield
    finally:
        functional.layer_norm = whole
