"""What a model gives back: the tensors in it, wherever they are, and its form."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from structprune.errors import UnsupportedModel
from structprune.frontends.torch.record.outside import value_of
from structprune.frontends.torch.record.record import PLAIN

# Objects that hold no tensors that a caller would read.
LEAVES = (str, bytes, type, types.ModuleType, nn.Module, torch.dtype, torch.device, torch.Generator)
# What a model hands to its own next call: a smaller model makes smaller ones, and nobody else reads them.
STATES = frozenset(("transformers.cache_utils.Cache",))


@dataclass(frozen=True, slots=True)
class Made:
    """A named tuple, or a list or tuple of a class of its own."""

    kind: type
    items: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Opaque:
    """Something that only the model's own code can make."""

    kind: str


def results_in(structure: Any) -> Iterator[Tensor]:
    """The tensors that a caller finds in a result: in containers, objects, attributes, closures."""
    return found_in(structure, set())


def found_in(structure: Any, around: set[int]) -> Iterator[Tensor]:
    if isinstance(structure, Tensor):
        yield structure
    if type(structure) in PLAIN or isinstance(structure, LEAVES) or id(structure) in around or is_state(structure):
        return
    if isinstance(structure, np.ndarray) and structure.ndim:
        raise UnsupportedModel(
            "the model gives back a numpy array, and nothing says which tensors it follows from: give back tensors"
        )
    if isinstance(structure, Iterator):
        raise UnsupportedModel(
            f"the model gives back a {type(structure).__name__}, which can be read only once: give back a list"
        )
    inside = around | {id(structure)}
    for part in parts_of(structure):
        yield from found_in(part, inside)


def parts_of(structure: Any) -> list[Any]:
    """What is in a container, and the attributes of an object that are not the same once more."""
    if isinstance(structure, types.FunctionType):
        cells = [value_of(cell) for cell in structure.__closure__ or ()]
        return [*cells, structure.__defaults__, structure.__kwdefaults__]
    if isinstance(structure, types.MethodType):
        return [structure.__self__]
    if isinstance(structure, functools.partial):
        return [structure.func, structure.args, structure.keywords]
    parts: list[Any] = []
    if isinstance(structure, Mapping):
        parts = list(structure.values())
    elif isinstance(structure, Collection) and not isinstance(structure, Tensor):
        parts = list(structure)
    attributes = [getattr(structure, name, None) for base in type(structure).__mro__ for name in slots_of(base)]
    attributes += [value for name, value in getattr(structure, "__dict__", {}).items() if name not in OURS]
    return parts + [each for each in attributes if not any(each is part for part in parts)]


# What tensors without data know of themselves.
# What recording keeps on tensors.
OURS = frozenset(("_origin_of_ghost", "_recorder_of_sizes"))


def slots_of(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return () if kind.__module__.startswith("torch") else (slots,) if isinstance(slots, str) else tuple(slots)


def is_state(structure: Any) -> bool:
    return any(f"{base.__module__}.{base.__qualname__}" in STATES for base in type(structure).__mro__)


def form(structure: Any, value: Callable[[Tensor], Any]) -> Any:
    """The structure of a result, with something in place of each tensor."""
    if isinstance(structure, Tensor):
        is_bare = len(list(results_in(structure))) == 1
        return value(structure) if is_bare else Opaque("tensor with tensors among its attributes")
    kind = type(structure)
    if kind in PLAIN:
        return structure
    if isinstance(structure, dict):
        return {key: form(item, value) for key, item in structure.items()}
    if isinstance(structure, list | tuple):
        items = tuple(form(item, value) for item in structure)
        return kind(items) if kind in (list, tuple) else Made(kind, items)
    return Opaque(kind.__name__)
