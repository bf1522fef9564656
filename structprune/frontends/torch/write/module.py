"""The user's own model, made smaller: sliced parameters under the same names, sizes kept true."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from structprune.algebra.order import Indices
from structprune.errors import UnsupportedModel
from structprune.frontends.torch.read.lower import bind
from structprune.frontends.torch.record.memory import copies_of, tied
from structprune.frontends.torch.record.record import Call
from structprune.frontends.torch.record.tree import stored
from structprune.frontends.torch.record.twin import WholeCopier, shared
from structprune.graph.edit import Add, Change, Changes, Renumber, Slice, Zero
from structprune.graph.graph import Place


def edited(tensor: Tensor, edits: Sequence[Change]) -> Tensor:
    """What becomes of a stored tensor: always another one."""
    result = tensor.detach()
    for edit in edits:
        match edit:
            case Slice(kept=kept):
                result = sliced(result, kept)
            case Zero(kept=kept):
                result = zeroed(result, kept)
            case Renumber(numbers=numbers):
                # Negative numbers count from the end.
                result = torch.from_numpy(numbers).to(result)[result % len(numbers)]
            case Add(values=values):
                result = result + torch.as_tensor(values).to(result)
    return result if edits else result.clone()


def zeroed(tensor: Tensor, axes: Mapping[int, Indices]) -> Tensor:
    """All but the kept part of a parameter is zero."""
    result = tensor.clone()
    for axis, kept in axes.items():
        is_removed = torch.ones(result.shape[axis], dtype=torch.bool, device=result.device)
        is_removed[torch.from_numpy(kept)] = False
        result.index_fill_(axis, is_removed.nonzero().flatten(), 0)
    return result


# Entries that are copied in one go where two axes are cut: what lies between them stays in the cache.
BLOCK = 1 << 18


def sliced(tensor: Tensor, axes: Mapping[int, Indices]) -> Tensor:
    """The kept part of a parameter, in the memory format of the whole."""
    whole = tensor.detach()
    kept = {axis: torch.from_numpy(axes[axis]).to(tensor.device) for axis in sorted(axes)}
    in_parts = len(kept) > 1 and 0 in kept
    result = in_blocks(whole, kept.pop(0), kept) if in_parts else selected(whole, kept)
    for layout in (torch.channels_last, torch.channels_last_3d):
        rank = 4 if layout is torch.channels_last else 5
        if tensor.dim() == rank and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=layout):
            return result.contiguous(memory_format=layout)
    return result


def selected(tensor: Tensor, kept: Mapping[int, Tensor]) -> Tensor:
    for axis, indices in kept.items():
        tensor = tensor.index_select(axis, indices)
    return tensor


def in_blocks(tensor: Tensor, rows: Tensor, kept: Mapping[int, Tensor]) -> Tensor:
    """Some rows at a time: no copy of the whole width is made on the way."""
    shape = [len(kept[axis]) if axis in kept else size for axis, size in enumerate(tensor.shape)]
    result = tensor.new_empty((len(rows), *shape[1:]))
    height = max(1, BLOCK // max(tensor[0].numel(), 1))
    for start in range(0, len(rows), height):
        result[start : start + height] = selected(tensor.index_select(0, rows[start : start + height]), kept)
    return result


def small_copy(model: nn.Module, edits: Changes, is_filled: bool = True) -> nn.Module:
    """A deep copy in which every parameter is already the small one: never a second whole model.

    Without `is_filled`, trained parameters have their new shapes but no values yet.
    """
    memo: dict[int, Any] = {}
    trained = {id(parameter) for parameter in model.parameters()}
    touched = {id(tensor) for name, tensor in stored(model) if name in edits}
    for tensor, made in copies_of(each for key, each in tied(model).items() if key not in touched):
        made.__dict__.update(tensor.__dict__)
        memo[id(tensor)] = made
    for name, tensor in stored(model):
        if id(tensor) in memo or (name not in edits and (is_filled or id(tensor) not in trained)):
            continue
        is_empty = not is_filled and id(tensor) in trained
        data = empty(tensor, edits.get(name, ())) if is_empty else edited(tensor, edits.get(name, ()))
        if isinstance(tensor, nn.Parameter):
            replacement: Tensor = nn.Parameter(data, requires_grad=tensor.requires_grad)
        else:
            replacement = data.requires_grad_(tensor.requires_grad)
        replacement.__dict__.update(tensor.__dict__)
        memo[id(tensor)] = replacement
    try:
        small: nn.Module = WholeCopier(memo).model(model)
    except Exception as error:
        raise UnsupportedModel(
            f"{type(model).__name__} cannot be deep-copied ({type(error).__name__}: {error}). "
            "Take out of it what cannot be copied (open files, tensors computed with gradients) before shrinking."
        ) from error
    same = next(shared(model, small), None)
    if same is not None:
        raise UnsupportedModel(
            f"{same or 'the model'} is its own copy: its class has a __deepcopy__ that gives back the original, which "
            "would be cut. Let it make a copy."
        )
    return small


def empty(tensor: Tensor, edits: Sequence[Change]) -> Tensor:
    axes = {axis: kept for edit in edits if isinstance(edit, Slice) for axis, kept in edit.kept.items()}
    shape = [len(axes[axis]) if axis in axes else size for axis, size in enumerate(tensor.shape)]
    return torch.empty(shape, dtype=tensor.dtype, device=tensor.device)


def arrays(model: nn.Module, names: Container[str]) -> dict[str, Tensor]:
    """The named tensors, without gradients."""
    return {name: tensor.detach() for name, tensor in stored(model) if name in names}


# -- literal arguments -----------------------------------------------------------------------------


def new_arguments(call: Call, literals: Mapping[Place, Any]) -> dict[str, Any]:
    """Of the arguments of a call, by name, those that change."""
    bound = bind(call.target, call.args, call.kwargs) if literals else {}
    named = {str(name): value for name, value in literals.items()}
    return {name: value for name, value in named.items() if differs(bound.get(name), value)}


def differs(old: Any, new: Any) -> bool:
    if isinstance(old, list | tuple) and isinstance(new, list | tuple):
        return list(old) != list(new)
    return bool(old != new)
