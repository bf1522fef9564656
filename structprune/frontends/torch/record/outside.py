"""What the code of a model reads and writes outside of the model: it is as it was after a recording.

The names in the code that `forward` reaches say where that is: globals, attributes of classes, cells of closures,
default arguments, caches of functions, and the containers inside.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from structprune.frontends.torch.record.kept import ABSENT, contents_kept, is_foreign
from structprune.frontends.torch.record.record import PLAIN

CACHE = type(functools.lru_cache(lambda: None))


@dataclass
class Places:
    """Where the code of some classes can keep things."""

    names: list[tuple[dict[str, Any], tuple[str, ...]]] = field(default_factory=list)
    classes: list[type] = field(default_factory=list)
    # The names that the code says, of attributes too.
    named: set[str] = field(default_factory=set)
    cells: list[types.CellType] = field(default_factory=list)
    functions: list[types.FunctionType] = field(default_factory=list)
    caches: list[Any] = field(default_factory=list)


def places_of(model: nn.Module) -> Places:
    # Functions that hang on instances are entries too: patched forwards, hooks.
    own = {
        value.__func__ if isinstance(value, types.MethodType) else value
        for module in model.modules()
        for value in (*vars(module).values(), *module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if type(value) in (types.FunctionType, types.MethodType)
    }
    # The original and its smaller copies are recorded in turn: the last search serves again.
    key = frozenset(map(type, model.modules())), frozenset(own)
    if LATEST and LATEST[0][0] == key:
        return LATEST[0][1]
    search = Search()
    for each in (*key[0], *key[1]):
        search.add(each)
    search.run()
    LATEST.clear()
    values = map(value_of, search.places.cells)
    if all(isinstance(each, type | types.FunctionType) or type(each) in PLAIN for each in values):
        # Otherwise what closures hold would be kept alive.
        LATEST.append((key, search.places))
    return search.places


LATEST: list[tuple[Any, Places]] = []


class Search:
    """All that the code of `forward` names, the code that this names, and so on."""

    def __init__(self) -> None:
        self.named: set[str] = {"forward", "__call__"}
        self.places = Places(named=self.named)
        self.seen: set[int] = set()
        self.unread: list[types.FunctionType] = []
        self.by_globals: dict[int, tuple[dict[str, Any], set[str]]] = {}

    def add(self, value: Any) -> None:
        """A value that the code can reach."""
        if isinstance(value, staticmethod | classmethod | types.MethodType):
            value = value.__func__
        if isinstance(value, property):
            for function in (value.fget, value.fset):
                self.add(function)
        elif isinstance(value, functools.cached_property | functools.partial):
            self.add(value.func)
        elif isinstance(value, CACHE):
            if id(value) not in self.seen:
                self.seen.add(id(value))
                self.places.caches.append(value)
                self.add(value.__wrapped__)
        elif isinstance(value, types.FunctionType):
            if id(value) not in self.seen and not is_foreign(value.__module__):
                self.seen.add(id(value))
                self.unread.append(value)
        elif isinstance(value, type):
            for base in value.__mro__:
                if id(base) not in self.seen and not is_foreign(base.__module__):
                    self.seen.add(id(base))
                    self.places.classes.append(base)
                    for name in self.named & vars(base).keys():
                        self.add(vars(base)[name])
        elif not is_foreign(type(value).__module__) and hasattr(type(value), "__mro__"):
            self.add(type(value))

    def name(self, name: str) -> None:
        if name not in self.named:
            self.named.add(name)
            for kind in self.places.classes:
                if name in vars(kind):
                    self.add(vars(kind)[name])

    def run(self) -> None:
        while self.unread:
            function = self.unread.pop()
            self.places.functions.append(function)
            for cell in function.__closure__ or ():
                self.places.cells.append(cell)
                self.add(value_of(cell))
            for value in vars(function).values():
                self.add(value)
            names = set(names_in(function.__code__))
            self.globals(function.__globals__, names)
            for name in names:
                self.name(name)
        self.places.names.extend((found, tuple(names)) for found, names in self.by_globals.values())

    def globals(self, found: dict[str, Any], names: set[str]) -> None:
        _, known = self.by_globals.setdefault(id(found), (found, set()))
        for name in names - known:
            known.add(name)
            value = found.get(name)
            if not isinstance(value, types.ModuleType):
                self.add(value)
            elif not is_foreign(value.__name__):
                self.globals(vars(value), names)


def names_in(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield from names_in(each)


def value_of(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return ABSENT


@contextmanager
def outside_as_found(model: nn.Module) -> Iterator[None]:
    """What a run of the model keeps outside of it is forgotten."""
    places = places_of(model)
    names = [(found, {name: found.get(name, ABSENT) for name in some}) for found, some in places.names]
    cells = [(cell, value_of(cell)) for cell in places.cells]
    misses = [(cache, cache.cache_info().misses) for cache in places.caches]
    # Of functions, those too that have been put under a name since the search.
    named = (value for _, some in names for value in some.values() if type(value) is types.FunctionType)
    functions = (*places.functions, *named)
    values = (
        *(value for _, some in names for value in some.values()),
        *places.classes,
        *(value for _, value in cells),
        *(each for function in functions for each in kept_by(function)),
    )
    with contents_kept(values):
        try:
            yield
        finally:
            for found, some in names:
                for name, value in some.items():
                    put_back(found, name, value)
            for cell, value in cells:
                if value_of(cell) is not value and value is not ABSENT:
                    cell.cell_contents = value
                elif value is ABSENT and value_of(cell) is not ABSENT:
                    del cell.cell_contents
            for cache, count in misses:
                if cache.cache_info().misses != count:
                    cache.cache_clear()


def kept_by(function: types.FunctionType) -> Iterator[Any]:
    """The containers of a function itself: default arguments, attributes."""
    yield from (function.__defaults__, function.__kwdefaults__, vars(function))


def put_back(found: dict[str, Any], name: str, value: Any) -> None:
    now = found.get(name, ABSENT)
    if now is value:
        return
    if value is ABSENT:
        del found[name]
    else:
        found[name] = value
