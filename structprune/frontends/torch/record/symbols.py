"""The whole numbers that a model's objects hold, made symbolic for a recording, and set to others in a copy.

They are those of modules, of plain objects that modules hold (configurations), and of the lists, tuples and dicts
in either. A number is known by its path from the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from structprune.frontends.torch.record.expression import Attribute
from structprune.frontends.torch.record.number import Ledger, Node, Number
from structprune.frontends.torch.record.torchs import FITTED, following, is_torchs, passed_on
from structprune.frontends.torch.record.tree import modules_of

# Objects further in are no settings of the model.
DEEPEST_OBJECT = 3
def numeric_attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The attributes of a module that may hold sizes its operators are given."""
    if is_torchs(module):
        yield from ((name, vars(module)[name]) for name in passed_on(module) if name in vars(module))
        return
    left_out = FITTED if isinstance(module, nn.MultiheadAttention) else following(module)
    for name, value in vars(module).items():
        if type(value) not in UNINTERESTING and name not in left_out and name not in MODULES_OWN:
            yield name, value


UNINTERESTING = frozenset((bool, float, str, type(None), Tensor, nn.Parameter, torch.dtype, torch.device))
MODULES_OWN = frozenset(vars(nn.Module()))

LIBRARIES = frozenset(("torch", "numpy", "threading", "_thread", "weakref", "collections"))

Maker = Callable[[Attribute, int], Any]
SizeOf = Callable[[Tensor, int], Any]


@dataclass(frozen=True, slots=True)
class Plain:
    """What takes plain numbers alone: modules by their classes, single attributes of a class, or everything."""

    modules: frozenset[type] = frozenset()
    attributes: frozenset[tuple[type, str]] = frozenset()
    everything: bool = False


NONE_PLAIN = Plain()
ALL_PLAIN = Plain(everything=True)


class Symbols:
    """Finds the numbers of a model and puts others in their places."""

    def __init__(self, make: Maker, size_of: SizeOf, plain: Plain) -> None:
        self.make = make
        self.size_of = size_of
        self.plain = plain
        self.seen: set[int] = set()
        self.undone: list[Callable[[], None]] = []

    def enter(self, model: nn.Module) -> None:
        for module, path in modules_of(model).items():
            if type(module) not in self.plain.modules:
                owner = tuple(path.split(".")) if path else ()
                self.replace_in(module, owner, numeric_attributes(module), 0)
                self.replace_sizes(module)

    def replace_sizes(self, module: nn.Module) -> None:
        held = vars(module)
        for name, (weight, axis) in following(module).items():
            parameter = module._parameters.get(weight)
            before = held.get(name)
            if parameter is None or type(before) is not int or Tensor.size(parameter)[axis] != before:
                continue
            held[name] = self.size_of(parameter, axis)
            self.undone.append(partial(held.__setitem__, name, before))

    def replace_in(self, holder: Any, owner: tuple[str, ...], items: Iterable[tuple[str, Any]], depth: int) -> None:
        for name, value in list(items):
            if (type(holder), name) not in self.plain.attributes:
                self.replace(holder, owner, name, value, depth)

    def replace(self, holder: Any, owner: tuple[str, ...], name: str, value: Any, depth: int) -> None:
        made = self.symbolic(value, Attribute(owner, name))
        if made is not value:
            held = vars(holder)
            held[name] = made
            self.undone.append(partial(held.__setitem__, name, value))
        elif is_settings(value) and id(value) not in self.seen and depth < DEEPEST_OBJECT:
            self.seen.add(id(value))
            inside = ((key, each) for key, each in vars(value).items() if type(each) not in UNINTERESTING)
            self.replace_in(value, (*owner, name), inside, depth + 1)

    def symbolic(self, value: Any, at: Attribute) -> Any:
        """The value with numbers for whole numbers; the very same object where there is none in it."""
        kind = type(value)
        if kind is int:
            return self.make(at, value)
        if kind in (list, tuple) and any(type(each) in (int, list, tuple) for each in value):
            items = [self.symbolic(each, inside(at, place)) for place, each in enumerate(value)]
            same = all(a is b for a, b in zip(items, value, strict=True))
            return value if same else kind(items)
        if kind is dict and any(type(each) in (int, list, tuple) for each in value.values()):
            pairs = {key: self.symbolic(each, inside(at, key)) if type(key) is str else each
                     for key, each in value.items()}  # fmt: skip
            return value if all(pairs[key] is each for key, each in value.items()) else pairs
        return value

    def leave(self) -> None:
        for undo in reversed(self.undone):
            undo()


def inside(at: Attribute, key: int | str) -> Attribute:
    return Attribute(at.owner, at.name, (*at.index, key))


def is_settings(value: Any) -> bool:
    """A plain object of the user's that holds settings: neither a module, a tensor, a function nor a container."""
    kind = type(value)
    if kind.__module__ == "builtins" or isinstance(value, nn.Module | Tensor | type) or callable(value):
        return False
    return kind.__module__.partition(".")[0] not in LIBRARIES and isinstance(getattr(value, "__dict__", None), dict)


@contextmanager
def symbolic(model: nn.Module, ledger: Ledger, size_of: SizeOf, plain: Plain) -> Iterator[None]:
    """The whole numbers of a model are symbolic inside, but for those that must be plain."""
    symbols = Symbols(lambda at, value: Number(Node(at, value, ledger)), size_of, plain)
    try:
        if not plain.everything:
            symbols.enter(model)
        yield
    finally:
        symbols.leave()


# -- other numbers in a copy -----------------------------------------------------------------------


def set_numbers(model: nn.Module, numbers: Mapping[Attribute, int]) -> None:
    """Give the numbers of a copy of the model other values."""
    by_holder: dict[tuple[tuple[str, ...], str], dict[tuple[int | str, ...], int]] = {}
    for at, number in numbers.items():
        by_holder.setdefault((at.owner, at.name), {})[at.index] = number
    for (owner, name), entries in by_holder.items():
        held = vars(holder_of(model, Attribute(owner, name)))
        held[name] = with_entries(held[name], entries)


def holder_of(model: nn.Module, at: Attribute) -> Any:
    """The object of a model that holds a number."""
    holder: Any = model
    for each in at.owner:
        holder = getattr(holder, each)
    return holder


def number_at(model: nn.Module, at: Attribute) -> int:
    """A number of a model by its path."""
    value = vars(holder_of(model, at))[at.name]
    for key in at.index:
        value = value[key]
    return int(value)


def with_entries(value: Any, entries: Mapping[tuple[int | str, ...], int]) -> Any:
    """A number, or a container of numbers, with other entries; containers are made anew."""
    if () in entries:
        return entries[()]
    by_key: dict[int | str, dict[tuple[int | str, ...], int]] = {}
    for (first, *rest), number in entries.items():
        by_key.setdefault(first, {})[tuple(rest)] = number
    if isinstance(value, dict):
        return {**value, **{key: with_entries(value[key], inner) for key, inner in by_key.items()}}
    items = list(value)
    for place, inner in by_key.items():
        items[int(place)] = with_entries(items[int(place)], inner)
    return type(value)(items)
