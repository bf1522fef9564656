"""What the code of a model reads and writes outside of the model: it is as it was after a recording.

The names in the code that `forward` reaches say where that is: globals, attributes of classes, cells of closures,
default arguments, caches of functions, and the containers inside.
"""

from __future__ import annotations

import functools
import sys
import types
from collections import OrderedDict, UserDict, UserList, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from operator import is_
from threading import local
from typing import Any

from torch import Tensor, nn

from structprune.frontends.torch.record.record import PLAIN

# Attributes that hold nothing in which other objects are kept. Most of a model's are.
NO_CONTAINERS = PLAIN | {Tensor, nn.Parameter, types.FunctionType, types.ModuleType, type}
CONTAINERS = (dict, list, set, tuple, deque)
# Classes of the standard library whose instances keep things for others.
KEEPERS = (types.SimpleNamespace, local, UserDict, UserList)
# Not looked into any further: nobody keeps a cache of so many things.
LARGEST = 100_000
ABSENT = object()
CACHE = type(functools.lru_cache(lambda: None))


def is_foreign(module: str | None) -> bool:
    """The code of torch, numpy, the standard library and this package keeps nothing of a model."""
    root = (module or "builtins").partition(".")[0]
    return root in ("torch", "numpy", "structprune") or (root in sys.stdlib_module_names and root != "__main__")


# -- containers ------------------------------------------------------------------------------------


def contents(values: Iterable[Any]) -> Iterator[tuple[Any, list[Any]]]:
    """The containers among some values and inside them, each once, with a copy of what it holds."""
    seen: set[int] = set()
    left = LARGEST
    unread: list[Iterable[Any]] = [values]
    for each in unread:
        for value in each:
            # Not isinstance: it asks for `__class__`, which configuration objects compute slowly.
            kind: Any = type(value)
            if kind in NO_CONTAINERS:
                continue
            if kind is ContextVar:
                unread.append((value.get(None),))
                continue
            if not issubclass(kind, CONTAINERS):
                if id(value) not in seen and is_keeper(kind):
                    seen.add(id(value))
                    unread.append((value.__dict__,))
                continue
            if issubclass(kind, tuple):
                if id(value) not in seen:
                    seen.add(id(value))
                    unread.append(tuple.__iter__(value))
                continue
            base = base_of(value)
            size = base.__len__(value)
            if not size:
                yield value, []
            elif id(value) not in seen and size <= left:
                seen.add(id(value))
                left -= size
                content = content_of(value)
                yield value, content
                unread.append([inner for _, inner in content] if issubclass(base, dict) else content)


@functools.lru_cache(maxsize=4096)
def is_keeper(kind: Any) -> bool:
    """Whether an instance keeps what it has in a `__dict__`, and its class is not torch's."""
    return bool(kind.__dictoffset__ or issubclass(kind, local)) and (
        issubclass(kind, (*KEEPERS, nn.Module)) or not is_foreign(kind.__module__)
    )


# Their own methods are used, whatever a subclass makes of them: a mapping that builds what it is asked for must not.
BASES: tuple[Any, ...] = (OrderedDict, dict, list, deque, set)


def base_of(container: Any) -> Any:
    return next(base for base in BASES if issubclass(type(container), base))


def content_of(container: Any) -> list[Any]:
    """What a container holds: of a mapping, pairs."""
    base = base_of(container)
    return list(base.items(container)) if issubclass(base, dict) else list(base.__iter__(container))


def holds(container: Any, content: list[Any]) -> bool:
    """Whether a container still holds the very same objects as it did."""
    base = base_of(container)
    if base is set or base.__len__(container) != len(content):
        return False
    found = content_of(container)
    if issubclass(base, dict):
        return all(a is c and b is d for (a, b), (c, d) in zip(found, content, strict=True))
    return all(map(is_, found, content))


def refill(container: Any, content: list[Any]) -> None:
    base = base_of(container)
    base.clear(container)
    if issubclass(base, dict):
        for key, value in content:
            base.__setitem__(container, key, value)
    elif base is set:
        base.update(container, content)
    else:
        base.extend(container, content)


@contextmanager
def contents_kept(values: Iterable[Any]) -> Iterator[None]:
    """Containers hold afterwards what they held before."""
    found = list(contents(values))
    try:
        yield
    finally:
        for container, content in found:
            if (base_of(container).__len__(container) or content) and not holds(container, content):
                refill(container, content)


# -- places ----------------------------------------------------------------------------------------


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
    named = places.named
    classes = [
        (kind, len(vars(kind)), {name: value for name, value in vars(kind).items() if name in named})
        for kind in places.classes
    ]
    cells = [(cell, value_of(cell)) for cell in places.cells]
    misses = [(cache, cache.cache_info().misses) for cache in places.caches]
    values = (
        *(value for _, some in names for value in some.values()),
        *(value for _, _, some in classes for value in some.values()),
        *(value for _, value in cells),
        *(each for function in places.functions for each in kept_by(function)),
    )
    with contents_kept(values):
        try:
            yield
        finally:
            for found, some in names:
                for name, value in some.items():
                    put_back(found, name, value)
            for kind, count, some in classes:
                if len(vars(kind)) != count:
                    for name in (vars(kind).keys() & named) - some.keys():
                        delattr(kind, name)
                for name, value in some.items():
                    if vars(kind).get(name, ABSENT) is not value:
                        setattr(kind, name, value)
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
