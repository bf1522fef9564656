"""What objects hold, kept past their own methods, so that it can be put back: the very same objects in the same order.

A mapping that builds what it is asked for, a list that notes its changes, a frozen dataclass, an enum: what their
classes make of reading and writing does not count.
"""

from __future__ import annotations

import functools
import os
import sys
import types
import weakref
from array import array
from collections import ChainMap, OrderedDict, UserDict, UserList, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from operator import is_
from pathlib import Path
from queue import Queue
from sys import stdlib_module_names
from threading import local
from typing import Any

import numpy as np
from torch import Tensor, nn

from structprune.frontends.torch.record.memory import storage_of
from structprune.frontends.torch.record.record import PLAIN

# Attributes that hold nothing in which other objects are kept. Most of a model's are.
NO_CONTAINERS = PLAIN | {nn.Parameter, types.FunctionType, types.ModuleType}
CONTAINERS = (dict, list, set, frozenset, tuple, deque)
# Classes of the standard library whose instances keep things for others.
KEEPERS = (types.SimpleNamespace, local, UserDict, UserList, ChainMap, Queue, nn.Module,
           weakref.WeakKeyDictionary, weakref.WeakValueDictionary, weakref.WeakSet)  # fmt: skip
# Their own methods are used, whatever a subclass makes of them.
BASES: tuple[Any, ...] = (OrderedDict, dict, list, deque, set)
# Nearer things first; then no further: nobody keeps a cache of so many things, or of so many bytes.
MOST_OBJECTS = 20_000
MOST_BYTES = 1 << 24
IS_OF_PYTHON = 1 << 9  # the flag of classes that a `class` statement made
ABSENT = object()
STANDARD_LIBRARY = f"{Path(os.__file__).parent}{os.sep}"
Restore = Callable[[], None]


@functools.lru_cache(maxsize=4096)
def is_foreign(module: str | None) -> bool:
    """The code of torch, numpy, the standard library and this package keeps nothing of a model."""
    root = (module or "builtins").partition(".")[0]
    if root not in stdlib_module_names or root == "__main__":
        return root in ("torch", "numpy", "structprune")
    # A file of the user's may have such a name, too.
    file = getattr(sys.modules.get(root), "__file__", None)
    return file is None or (file.startswith(STANDARD_LIBRARY) and "site-packages" not in file)


@contextmanager
def contents_kept(values: Iterable[Any]) -> Iterator[None]:
    """What the values hold, and all that is inside, is afterwards what it was before."""
    keeper = Keeper()
    keeper.keep(values)
    try:
        yield
    finally:
        for restore in keeper.restores:
            restore()


class Keeper:
    """Walks through objects, each once, and notes how to put back what they hold."""

    def __init__(self) -> None:
        self.restores: list[Restore] = []
        self.seen: set[int] = set()
        self.left = MOST_OBJECTS
        self.bytes_left = MOST_BYTES
        self.unread: list[Iterable[Any]] = []

    def keep(self, values: Iterable[Any]) -> None:
        self.unread.append(values)
        for each in self.unread:
            for value in each:
                # Not isinstance: it asks for `__class__`, which configuration objects compute slowly.
                kind: Any = type(value)
                if kind not in NO_CONTAINERS and id(value) not in self.seen:
                    self.seen.add(id(value))
                    self.left -= 1
                    self.look_into(value, kind)
            if self.left <= 0:
                return

    def look_into(self, value: Any, kind: Any) -> None:
        if issubclass(kind, CONTAINERS):
            self.container(value, kind)
        elif issubclass(kind, Tensor):
            self.tensor(value)
        elif issubclass(kind, np.ndarray | array | bytearray):
            self.array(value)
        elif issubclass(kind, type):
            if not is_foreign(value.__module__) and value.__flags__ & IS_OF_PYTHON:
                self.type(value)
        elif (find := PARTS.get(kind)) is not None:
            self.unread.append(find(value))
        elif is_keeper(kind):
            self.object(value, kind)

    def container(self, value: Any, kind: Any) -> None:
        if issubclass(kind, tuple | frozenset):
            base: Any = tuple if issubclass(kind, tuple) else frozenset
            self.unread.append(base.__iter__(value))
            return
        if kind.__dictoffset__ and not is_foreign(kind.__module__):
            self.keep_dict(value.__dict__)
        size = base_of(value).__len__(value)
        if size > self.left:
            return
        self.left -= size
        content = content_of(value)
        self.restores.append(lambda: put_back(value, content))
        self.unread.append([inner for _, inner in content] if isinstance(value, dict) else content)

    def keep_dict(self, found: dict[Any, Any]) -> None:
        if id(found) not in self.seen:
            self.seen.add(id(found))
            self.container(found, dict)

    def object(self, value: Any, kind: Any) -> None:
        """Attributes and slots, past what the class makes of setting them."""
        if hasattr(value, "__dict__"):
            self.keep_dict(value.__dict__)
        members = slots_of(kind)
        held = [(member, slot_in(value, member)) for member in members]
        if held:
            self.restores.append(lambda: put_slots_back(value, held))
            self.unread.append([each for _, each in held])

    def type(self, value: Any) -> None:
        content = dict(vars(value))
        self.left -= len(content)
        self.restores.append(lambda: put_names_back(value, content))
        self.unread.append(content.values())

    def tensor(self, value: Tensor) -> None:
        if value.__dict__:
            self.keep_dict(value.__dict__)
        else:
            self.restores.append(value.__dict__.clear)
        storage = storage_of(value)
        if storage is None or storage.nbytes() > self.bytes_left:
            return
        self.bytes_left -= storage.nbytes()
        before = storage.clone()  # type: ignore[no-untyped-call]
        self.restores.append(lambda: storage.copy_(before) and None)

    def array(self, value: Any) -> None:
        size = value.nbytes if isinstance(value, np.ndarray) else len(value)
        if size > self.bytes_left or (isinstance(value, np.ndarray) and not value.flags.writeable):
            return
        self.bytes_left -= size
        before = value.copy() if isinstance(value, np.ndarray) else value[:]
        if isinstance(value, np.ndarray):
            self.restores.append(lambda: np.copyto(value, before))
            self.unread.append(before.flat if value.dtype == object else ())
        else:
            self.restores.append(lambda: value.__setitem__(slice(None), before))


# What else refers to objects that may hold something.
PARTS: dict[Any, Callable[[Any], Iterable[Any]]] = {
    ContextVar: lambda value: (value.get(None),),
    types.MethodType: lambda value: (value.__self__,),
    types.BuiltinFunctionType: lambda value: (value.__self__,),
    functools.partial: lambda value: (value.func, value.args, value.keywords, vars(value)),
    types.MappingProxyType: lambda value: value.values(),
    weakref.ref: lambda value: (value(),),
    staticmethod: lambda value: (value.__func__,),
    classmethod: lambda value: (value.__func__,),
}


@functools.lru_cache(maxsize=4096)
def is_keeper(kind: Any) -> bool:
    """Whether an instance has attributes or slots of its own, and its class is not torch's."""
    has_own = bool(kind.__dictoffset__ or issubclass(kind, local) or slots_of(kind))
    return has_own and (issubclass(kind, KEEPERS) or not is_foreign(kind.__module__))


@functools.lru_cache(maxsize=4096)
def slots_of(kind: Any) -> tuple[Any, ...]:
    return tuple(
        member
        for base in kind.__mro__
        if "__slots__" in vars(base) and base.__flags__ & IS_OF_PYTHON
        for member in vars(base).values()
        if type(member) is types.MemberDescriptorType
    )


def slot_in(value: Any, member: Any) -> Any:
    try:
        return member.__get__(value)
    except AttributeError:  # it is empty
        return ABSENT


# -- putting back ----------------------------------------------------------------------------------


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


def put_back(container: Any, content: list[Any]) -> None:
    base = base_of(container)
    if (not content and not base.__len__(container)) or holds(container, content):
        return
    base.clear(container)
    if issubclass(base, dict):
        for key, value in content:
            base.__setitem__(container, key, value)
    elif base is set:
        base.update(container, content)
    else:
        base.extend(container, content)


def put_slots_back(value: Any, held: list[tuple[Any, Any]]) -> None:
    for member, before in held:
        now = slot_in(value, member)
        if now is before:
            continue
        if before is ABSENT:
            member.__delete__(value)
        else:
            member.__set__(value, before)


def put_names_back(kind: Any, content: dict[str, Any]) -> None:
    """The attributes of a class, past what its own class makes of setting them."""
    for name in vars(kind).keys() - content.keys():
        type.__delattr__(kind, name)
    for name, value in content.items():
        if vars(kind).get(name, ABSENT) is not value:
            type.__setattr__(kind, name, value)
