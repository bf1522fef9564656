"""Channels that hold one value whatever the input, and the biases behind them that can take it over.

A batch norm with a scale of zero and a filter of zeros with a bias give constants. Where every reader of
such a channel passes the constant on or sums over it, removing the channel and adding its share to the
bias that follows changes nothing: it is free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from structprune.algebra.axis import Axis, Dim, Kept, Mask, Product, Reordered, Sum, variables
from structprune.algebra.order import Indices
from structprune.passes.rewrite import Rewrite


@dataclass(slots=True, repr=False)
class Constants:
    """Which indices of each dimension are constants that can be folded, and where to."""

    free: dict[Dim, Mask] = field(default_factory=dict)
    sums: list[Summed] = field(default_factory=list)

    def folded(self, rewrite: Rewrite) -> dict[Dim, Mask]:
        """The removed indices that are constants."""
        return {
            dim: mask & ~np.isin(np.arange(dim.size), rewrite.kept[dim])
            for dim, mask in self.free.items()
            if dim in rewrite.kept
        }

    def kept(self, rewrite: Rewrite) -> Kept:
        """What stays or lives on in a bias: zeroing the rest of the original gives the small model."""
        folded = self.folded(rewrite)
        return {
            dim: np.union1d(kept, np.flatnonzero(folded[dim])) if dim in folded else kept
            for dim, kept in rewrite.kept.items()
        }

    def additions(self, rewrite: Rewrite, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is added to each bias, at its whole size."""
        folded = self.folded(rewrite)
        found: dict[str, Tensor] = {}
        for each in self.sums if any(mask.any() for mask in folded.values()) else ():
            added = each.share(folded, rewrite.kept, parameters[each.weight])
            if added is not None:
                found[each.target] = found.get(each.target, 0) + each.sign * added
        return found


@dataclass(frozen=True, slots=True)
class Summed:
    """A layer that sums over constants: its weight, and the bias or running mean that takes its share of them."""

    values: Tensor
    axis: Axis
    weight: str
    target: str
    sign: int
    groups: int

    def share(self, folded: Mapping[Dim, Mask], kept: Kept, weight: Tensor) -> Tensor | None:
        is_folded = np.zeros(self.axis.size, dtype=bool)
        is_gone = np.zeros(self.axis.size, dtype=bool)
        for dim in set(variables(self.axis)):
            index = positions(self.axis, dim)
            is_folded |= (index >= 0) & folded.get(dim, np.zeros(dim.size, dtype=bool))[index]
            if dim in kept:
                still = np.isin(np.arange(dim.size), kept[dim]) | folded.get(dim, False)
                is_gone |= (index >= 0) & ~still[index]
        is_folded &= ~is_gone
        if not is_folded.any():
            return None
        places = torch.from_numpy(is_folded).to(self.values.device)
        values = torch.where(places, self.values, 0.0).double()
        kernel = weight.detach().double()
        kernel = kernel.flatten(2).sum(2) if kernel.dim() > 2 else kernel
        by_group = kernel.view(self.groups, -1, kernel.shape[1])
        return torch.einsum("goi,gi->go", by_group, values.view(self.groups, -1)).flatten()


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
