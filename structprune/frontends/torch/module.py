"""The user's own model, made smaller: sliced parameters under the same names, sizes kept true."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from structprune.axis import Indices
from structprune.errors import UnsupportedModel
from structprune.frontends.torch.lower import bind
from structprune.frontends.torch.record import Call, Capture
from structprune.passes.rewrite import Rewrite

Edits = Mapping[str, Mapping[int, Indices]]


def sliced(tensor: Tensor, axes: Mapping[int, Indices]) -> Tensor:
    """The kept part of a parameter, in the memory format of the whole."""
    result = tensor.detach()
    # The axis that loses most goes first: the intermediate copies stay small.
    for axis, kept in sorted(axes.items(), key=lambda item: len(item[1]) / tensor.shape[item[0]]):
        result = result.index_select(axis, torch.from_numpy(kept).to(tensor.device))
    for layout in (torch.channels_last, torch.channels_last_3d):
        rank = 4 if layout is torch.channels_last else 5
        if tensor.dim() == rank and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=layout):
            return result.contiguous(memory_format=layout)
    return result


def small_copy(model: nn.Module, edits: Edits) -> nn.Module:
    """A deep copy in which the edited tensors are already the small ones: never a second whole model."""
    memo: dict[int, Any] = {}
    for name, tensor in stored(model):
        if name not in edits or id(tensor) in memo:
            continue
        small = sliced(tensor, edits[name])
        if isinstance(tensor, nn.Parameter):
            replacement: Tensor = nn.Parameter(small, requires_grad=tensor.requires_grad)
        else:
            replacement = small.requires_grad_(tensor.requires_grad)
        replacement.__dict__.update(tensor.__dict__)
        memo[id(tensor)] = replacement
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise UnsupportedModel(
            f"{type(model).__name__} cannot be deep-copied ({type(error).__name__}: {error}). "
            "Take out of it what cannot be copied (open files, tensors computed with gradients) before shrinking."
        ) from error


def stored(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer under every name it has."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def arrays(model: nn.Module, names: Mapping[str, Any]) -> dict[str, Tensor]:
    """The named tensors, without gradients."""
    return {name: tensor.detach() for name, tensor in stored(model) if name in names}


# -- literal arguments -----------------------------------------------------------------------------


def new_arguments(call: Call, literals: Any, rewrite: Rewrite) -> dict[str, Any]:
    """The literal arguments of a call that change, by name."""
    if literals is None:
        return {}
    bound = bind(call.target, call.args, call.kwargs)
    return {name: value for name, value in literals(rewrite).items() if differs(bound.get(name), value)}


def differs(old: Any, new: Any) -> bool:
    if isinstance(old, list | tuple) and isinstance(new, list | tuple):
        return list(old) != list(new)
    return bool(old != new)


# -- attributes ------------------------------------------------------------------------------------


def true_sizes(module: nn.Module) -> None:
    """Set the sizes that torch's own modules remember to those of their parameters."""
    match module:
        case nn.Linear():
            module.out_features, module.in_features = module.weight.shape
        case nn.Bilinear():
            module.out_features, module.in1_features, module.in2_features = module.weight.shape
        case nn.modules.conv._ConvTransposeNd():
            module.in_channels, module.out_channels = module.weight.shape[0], module.weight.shape[1] * module.groups
        case nn.modules.conv._ConvNd():
            module.out_channels, module.in_channels = module.weight.shape[0], module.weight.shape[1] * module.groups
        case nn.modules.batchnorm._NormBase():
            known = next((t for t in (module.weight, module.running_mean) if t is not None), None)
            module.num_features = module.num_features if known is None else known.shape[0]
        case nn.GroupNorm():
            module.num_channels = module.num_channels if module.weight is None else module.weight.shape[0]
        case nn.Embedding() | nn.EmbeddingBag():
            module.num_embeddings, module.embedding_dim = module.weight.shape
        case nn.PReLU():
            module.num_parameters = module.weight.shape[0]
        case nn.modules.rnn.RNNBase():
            module.hidden_size = module.weight_hh_l0.shape[1]
            module.input_size = module.weight_ih_l0.shape[1]
        case nn.RNNCellBase():
            module.hidden_size, module.input_size = module.weight_hh.shape[1], module.weight_ih.shape[1]
        case _:
            return


def changed_numbers(old: Any, new: Any) -> Iterator[tuple[int, int]]:
    """Pairs of whole numbers in which two arguments differ."""
    if isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new):
        for before, after in zip(old, new, strict=True):
            yield from changed_numbers(before, after)
    elif isinstance(old, int) and isinstance(new, int) and not isinstance(old, bool) and old != new:
        yield old, new


def replaced(value: Any, old: int, new: int) -> Any:
    """An attribute with the old number in it replaced; the very same object where there is none."""
    if type(value) is int and value == old:
        return new
    if isinstance(value, tuple | list | torch.Size) and any(type(item) is int and item == old for item in value):
        return type(value)([new if type(item) is int and item == old else item for item in value])
    return value


def mend_attributes(model: nn.Module, changes: Mapping[tuple[str, int], set[int]]) -> None:
    """Replace the numbers that the code of a module passes on as sizes."""
    modules = dict(model.named_modules())
    for (owner, old), news in changes.items():
        module = modules.get(owner)
        if module is None or len(news) != 1:
            continue
        for name, value in list(vars(module).items()):
            if name.startswith("_") or name in ("training", "dump_patches"):
                continue
            mended = replaced(value, old, next(iter(news)))
            if mended is not value:
                setattr(module, name, mended)


def same_call(old: Call, new: Call, changes: Mapping[str, Any], names: Mapping[Any, Any], captures: tuple[Capture, Capture]) -> str | None:
    """What differs between a call of the rewritten graph and one of the mended model."""
    if old.target is not new.target:
        return f"{new.target} in place of {old.target}"
    if "*" in changes:
        return "parts of unequal size"
    expected = {**bind(old.target, old.args, old.kwargs), **changes}
    found = bind(new.target, new.args, new.kwargs)
    for name, value in expected.items():
        if not same_argument(value, found.get(name), names, captures):
            return f"{name}={found.get(name)!r} in place of {value!r}"
    return None


def same_argument(old: Any, new: Any, names: Mapping[Any, Any], captures: tuple[Capture, Capture]) -> bool:
    if isinstance(old, list | tuple):
        return isinstance(new, list | tuple) and len(old) == len(new) and all(
            same_argument(a, b, names, captures) for a, b in zip(old, new, strict=True)
        )
    if old in captures[0].constants if hasattr(old, "producer") else False:
        before, after = captures[0].constants[old], captures[1].constants.get(new)
        return after is not None and before.shape == after.shape and bool(torch.equal(before, after))
    if hasattr(old, "producer"):
        if old.parameter is not None:
            return hasattr(new, "parameter") and old.parameter == new.parameter
        return names.get(old) is new
    return bool(old == new)


def first_difference(rewrite: Rewrite, ops: list[Any], before: Capture, after: Capture) -> tuple[int, str] | None:
    """Where the mended model and the rewritten graph part, call by call; None where they are the same."""
    names: dict[Any, Any] = dict(zip(before.inputs, after.inputs, strict=True))
    for index, (op, new) in enumerate(zip(ops, after.calls, strict=False)):
        call, literals = op.source
        problem = same_call(call, new, new_arguments(call, literals, rewrite), names, (before, after))
        if problem is None and len(call.outputs) != len(new.outputs):
            problem = "another number of results"
        if problem is not None:
            return index, problem
        for old_value, new_value in zip(call.outputs, new.outputs, strict=True):
            if rewrite.shape(old_value) != new_value.shape:
                return index, f"shape {new_value.shape} in place of {rewrite.shape(old_value)}"
            names[old_value] = new_value
    if len(ops) != len(after.calls):
        return min(len(ops), len(after.calls)), "another number of operators"
    if [names.get(value, value.parameter) for value in before.outputs] != [
        value.parameter if value.parameter else value for value in after.outputs
    ]:
        return len(ops), "other outputs"
    return None
