"""What a model gives back: the tensors in it, wherever they are, what it says beside them, and its form."""

from __future__ import annotations

import functools
import sys
import types
import weakref
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from structprune.errors import UnsupportedModel
from structprune.frontends.torch.record.expression import Expression
from structprune.frontends.torch.record.number import Numeric, expression_of, plain
from structprune.frontends.torch.record.outside import value_of
from structprune.frontends.torch.record.record import PLAIN

# Objects that are what their text says.
TOLD_BY_TEXT = (torch.dtype, torch.device, torch.layout, torch.memory_format, Enum)
# Objects that hold nothing that a caller would read.
LEAVES = (types.ModuleType, torch.Generator, types.GetSetDescriptorType, types.MemberDescriptorType,
          types.WrapperDescriptorType, types.MethodDescriptorType, types.ClassMethodDescriptorType)  # fmt: skip
VALUES = (bool, int, float, complex, str, bytes)
BUILTIN_METHODS = (types.BuiltinFunctionType, types.MethodWrapperType)
STORAGES = (torch.UntypedStorage, torch.TypedStorage)
# What a model hands to its own next call: a smaller model makes smaller ones, and nobody else reads them.
STATES = frozenset(("transformers.cache_utils.Cache",))
# What recording keeps on tensors.
OURS = frozenset(("_origin_of_ghost", "_recorder_of_sizes"))
SAYS_HOW = ("__reduce__", "__reduce_ex__", "__getstate__")
# A result of more objects is looked at no further.
MOST_OBJECTS = 200_000


@dataclass(frozen=True, slots=True)
class Made:
    """A named tuple, or a list or tuple of a class of its own."""

    kind: type
    items: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Opaque:
    """Something that only the model's own code can make."""

    kind: str


@dataclass(frozen=True, slots=True)
class Told:
    """A number of the result that was made from sizes and from what the model's objects hold."""

    value: int | float
    expression: Expression


Saying = tuple[str, Any]


@dataclass(slots=True)
class Found:
    """What is in a result: its tensors, everything else as (type, value), and the numbers that know their origin."""

    tensors: list[Tensor] = field(default_factory=list)
    said: list[Saying] = field(default_factory=list)
    numbers: list[Numeric] = field(default_factory=list)


def results_in(structure: Any, model: nn.Module | None = None) -> list[Tensor]:
    """The tensors that a caller finds in a result: in containers, objects, attributes, closures."""
    return look_into(structure, model).tensors


def look_into(structure: Any, model: nn.Module | None = None) -> Found:
    """All that a caller finds in a result; modules of the model itself are no part of it."""
    looker = Looker(frozenset(map(id, model.modules())) if model is not None else frozenset())
    # The open containers, and what is left of each: no recursion, however deep they are.
    unread: list[tuple[int, Iterator[Any]]] = [(0, iter((structure,)))]
    while unread:
        place, parts = unread[-1]
        for each in parts:
            inner = looker.parts(each)
            if inner:
                looker.around.add(id(each))
                unread.append((id(each), iter(inner)))
                break
        else:
            unread.pop()
            looker.around.discard(place)
    return looker.found


class Looker:
    """Looks at one object after another: notes what it says, and answers with what it holds."""

    def __init__(self, own: frozenset[int]) -> None:
        self.found = Found()
        self.own = own
        self.around: set[int] = set()
        self.count = 0

    def say(self, each: Any, value: Any = None) -> None:
        self.found.said.append((type(each).__name__, value))

    def parts(self, each: Any) -> Collection[Any]:
        self.count += 1
        if self.count > MOST_OBJECTS:
            raise UnsupportedModel(
                f"the model's result holds more than {MOST_OBJECTS} objects: nobody looks for tensors in so many"
            )
        kind = type(each)
        if issubclass(kind, Tensor):
            self.found.tensors.append(each)
            self.found.said.append(("Tensor", None))
            return [value for name, value in vars(each).items() if name not in OURS]
        if issubclass(kind, Numeric):
            self.found.numbers.append(each)
            self.say(plain(each), plain(each))
            return ()
        if kind in PLAIN or issubclass(kind, VALUES):
            self.say(each, each)
        elif issubclass(kind, np.generic | bytearray | memoryview):
            self.say(each, each.item() if isinstance(each, np.generic) else bytes(each))
        elif issubclass(kind, TOLD_BY_TEXT):
            self.say(each, str(each))
        elif id(each) in self.around or id(each) in self.own or isinstance(each, LEAVES) or is_state(each):
            self.say(each)
        elif isinstance(each, type | types.FunctionType) and is_importable(each):
            self.say(each, each.__qualname__)
        else:
            refuse_unreadable(each)
            self.say(each)
            return parts_of(each)
        return ()


def refuse_unreadable(each: Any) -> None:
    if isinstance(each, STORAGES) or (isinstance(each, np.ndarray) and each.ndim):
        name = "numpy array" if isinstance(each, np.ndarray) else type(each).__name__
        raise UnsupportedModel(
            f"the model gives back a {name}, and nothing says which tensors it follows from: give back tensors"
        )
    if isinstance(each, Iterator):
        raise UnsupportedModel(
            f"the model gives back a {type(each).__name__}, which can be read only once: give back a list"
        )


def parts_of(structure: Any) -> list[Any]:
    """What is in a container, and the attributes of an object that are not the same once more."""
    match structure:
        case types.FunctionType():
            cells = [value_of(cell) for cell in structure.__closure__ or ()]
            return [*cells, structure.__defaults__, structure.__kwdefaults__, vars(structure)]
        case types.MethodType():
            return [structure.__self__, structure.__func__]
        case functools.partial():
            return [structure.func, structure.args, structure.keywords]
        case staticmethod() | classmethod():
            return [structure.__func__]
        case property():
            return [structure.fget, structure.fset]
        case slice() | range():
            return [structure.start, structure.stop, structure.step]
        case weakref.ref():
            return [structure()]
        case np.ndarray():
            return [structure.item()]
        case type():
            return [vars(structure)[name] for name in sorted(vars(structure))]
    if isinstance(structure, BUILTIN_METHODS):
        return [structure.__self__]
    if not isinstance(structure, Collection):
        return parts_of_object(structure)
    parts: list[Any] = []
    if isinstance(structure, Mapping):
        parts = [each for pair in structure.items() for each in pair]
        parts += [structure.default_factory] if isinstance(structure, defaultdict) else []
    else:
        parts = list(structure)
    return parts + [each for each in attributes_of(structure) if not any(each is part for part in parts)]


def attributes_of(structure: Any) -> list[Any]:
    slots = [getattr(structure, name, None) for base in type(structure).__mro__ for name in slots_of(base)]
    return [*slots, *getattr(structure, "__dict__", {}).values()]


def parts_of_object(structure: Any) -> list[Any]:
    """What an object would be rebuilt from; where its class has its own say in that, its attributes."""
    kind = type(structure)
    if any(isinstance(vars(base).get(name), types.FunctionType) for base in kind.__mro__ for name in SAYS_HOW):
        return [kind, *attributes_of(structure)]
    try:
        made = structure.__reduce_ex__(4)
    except Exception as error:  # whatever its class raises
        raise UnsupportedModel(
            f"the model gives back a {kind.__name__}, and nothing says what it holds: give back tensors, numbers, and "
            "containers of them"
        ) from error
    return [list(each) if isinstance(each, Iterator) else each for each in made] if isinstance(made, tuple) else [made]


def slots_of(kind: type) -> list[str]:
    slots = vars(kind).get("__slots__", ())
    names = () if kind.__module__.startswith("torch") else (slots,) if isinstance(slots, str) else tuple(slots)
    is_private = [name.startswith("__") and not name.endswith("__") for name in names]
    return [f"_{kind.__name__.lstrip('_')}{n}" if hidden else n for n, hidden in zip(names, is_private, strict=True)]


def is_importable(each: Any) -> bool:
    """A class or a function that its module has under its name: it is the same for every model."""
    found: Any = sys.modules.get(each.__module__ or "")
    for name in each.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is each


def is_state(structure: Any) -> bool:
    return any(f"{base.__module__}.{base.__qualname__}" in STATES for base in type(structure).__mro__)


def form(structure: Any, value: Callable[[Tensor], Any]) -> Any:
    """The structure of a result, with something in place of each tensor and of each number with an expression."""
    kind = type(structure)
    if isinstance(structure, Tensor):
        is_bare = len(results_in(structure)) == 1
        return value(structure) if is_bare else Opaque("tensor with tensors among its attributes")
    if issubclass(kind, Numeric):
        return Told(plain(structure), expression_of(structure))
    if kind in PLAIN:
        return structure
    if isinstance(structure, dict):
        is_plain = all(type(key) in PLAIN for key in structure)
        return {key: form(item, value) for key, item in structure.items()} if is_plain else Opaque(kind.__name__)
    if isinstance(structure, list | tuple):
        items = tuple(form(item, value) for item in structure)
        return kind(items) if kind in (list, tuple) else Made(kind, items)
    return Opaque(kind.__name__)


def first_said_otherwise(before: Sequence[Saying], after: Sequence[Saying], reads_data: bool) -> str:
    """The first thing that two results say in other words; floats may differ where they are read from data."""
    for old, new in zip(before, after, strict=False):
        is_read = reads_data and old[0] == new[0] == "float"
        if old != new and repr(old) != repr(new) and not is_read:
            return f"its result holds {in_short(new)} in place of {in_short(old)}"
    return "" if len(before) == len(after) else f"its result holds {len(after)} objects in place of {len(before)}"


def in_short(saying: Saying) -> str:
    text = repr(saying[1]) if saying[1] is not None else f"a {saying[0]}"
    return text if len(text) < 60 else f"{text[:57]}..."
