"""Models that keep tensors somewhere: in globals, helpers, classes, closures, caches of functions, attributes."""

from __future__ import annotations

import contextvars
import functools
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

GLOBAL: dict[Any, Tensor] = {}
GLOBAL_LIST: list[Tensor] = []
LOCAL = threading.local()
CONTEXT: contextvars.ContextVar[dict[int, Tensor]] = contextvars.ContextVar("cache")
GLOBAL_TENSOR: Tensor | None = None


def ramp(length: int) -> Tensor:
    return torch.linspace(0.5, 1.5, length, dtype=torch.float64)[:, None]


def from_global(model: nn.Module, length: int) -> Tensor:
    if length not in GLOBAL:
        GLOBAL[length] = ramp(length)
    return GLOBAL[length]


def from_global_variable(model: nn.Module, length: int) -> Tensor:
    global GLOBAL_TENSOR
    if GLOBAL_TENSOR is None or len(GLOBAL_TENSOR) < length:
        GLOBAL_TENSOR = ramp(length)
    return GLOBAL_TENSOR[:length] if len(GLOBAL_TENSOR) == length else ramp(length)


def from_global_list(model: nn.Module, length: int) -> Tensor:
    for each in GLOBAL_LIST:
        if len(each) == length:
            return each
    GLOBAL_LIST.append(ramp(length))
    return GLOBAL_LIST[-1]


@functools.lru_cache
def cached_ramp(length: int) -> Tensor:
    return ramp(length)


def from_lru_cache(model: nn.Module, length: int) -> Tensor:
    return cached_ramp(length)


class Helper:
    """No module: what it holds is in nobody's state."""

    def __init__(self) -> None:
        self.tables: dict[int, Tensor] = {}

    def __call__(self, length: int) -> Tensor:
        if length not in self.tables:
            self.tables[length] = ramp(length)
        return self.tables[length]

    @functools.cached_property
    def five(self) -> Tensor:
        return ramp(5)


class Slots:
    __slots__ = ("table",)

    def __init__(self) -> None:
        self.table: Tensor | None = None

    def __call__(self, length: int) -> Tensor:
        if self.table is None or len(self.table) != length:
            self.table = ramp(length)
        return self.table


SHARED_HELPER = Helper()


def from_shared_helper(model: nn.Module, length: int) -> Tensor:
    return SHARED_HELPER(length)


def from_own_helper(model: nn.Module, length: int) -> Tensor:
    return model.helper(length)


def from_slots(model: nn.Module, length: int) -> Tensor:
    return model.slots(length)


class OfClass:
    tables: dict[int, Tensor] = {}
    latest: Tensor | None = None

    @classmethod
    def get(cls, length: int) -> Tensor:
        if length not in cls.tables:
            cls.tables[length] = cls.latest = ramp(length)
        return cls.tables[length]


def from_class(model: nn.Module, length: int) -> Tensor:
    return OfClass.get(length)


def from_model_class(model: nn.Module, length: int) -> Tensor:
    tables = type(model).tables
    if length not in tables:
        tables[length] = ramp(length)
    return tables[length]


def closure() -> Callable[[nn.Module, int], Tensor]:
    tables: dict[int, Tensor] = {}

    def get(model: nn.Module, length: int) -> Tensor:
        if length not in tables:
            tables[length] = ramp(length)
        return tables[length]

    return get


def from_default(model: nn.Module, length: int, tables: dict[int, Tensor] = {}) -> Tensor:  # noqa: B006
    if length not in tables:
        tables[length] = ramp(length)
    return tables[length]


def from_function_attribute(model: nn.Module, length: int) -> Tensor:
    tables = from_function_attribute.__dict__.setdefault("tables", {})
    if length not in tables:
        tables[length] = ramp(length)
    return tables[length]


def from_thread(model: nn.Module, length: int) -> Tensor:
    tables = LOCAL.__dict__.setdefault("tables", {})
    if length not in tables:
        tables[length] = ramp(length)
    return tables[length]


def from_context(model: nn.Module, length: int) -> Tensor:
    tables = CONTEXT.get({})
    CONTEXT.set(tables)
    if length not in tables:
        tables[length] = ramp(length)
    return tables[length]


def from_attribute(model: nn.Module, length: int) -> Tensor:
    if model.cache is None or len(model.cache) != length:
        model.cache = ramp(length)
    return model.cache


def from_dictionary(model: nn.Module, length: int) -> Tensor:
    if length not in model.caches:
        model.caches[length] = ramp(length)
    return model.caches[length]


def from_buffer(model: nn.Module, length: int) -> Tensor:
    if len(model.table) != length:
        model.register_buffer("table", ramp(length), persistent=False)
    return model.table


WEAK: weakref.WeakKeyDictionary[Any, dict[int, Tensor]] = weakref.WeakKeyDictionary()
def from_weak(model: nn.Module, length: int) -> Tensor:
    tables = WEAK.setdefault(model.up, {})
    if length not in tables:
        tables[length] = ramp(length)
    return tables[length]


class Weak:
    """A helper that knows modules, and keeps none of them alive."""

    def __init__(self) -> None:
        self.tables: weakref.WeakKeyDictionary[Any, dict[int, Tensor]] = weakref.WeakKeyDictionary()

    def __call__(self, model: nn.Module, length: int) -> Tensor:
        return self.tables.setdefault(model.up, {}).setdefault(length, ramp(length))


BY_IDENTITY: dict[int, dict[int, Tensor]] = {}


def from_identity(model: nn.Module, length: int) -> Tensor:
    return BY_IDENTITY.setdefault(id(model.up.weight), {}).setdefault(length, ramp(length))


def from_tensor(model: nn.Module, length: int) -> Tensor:
    """The table hangs on a parameter."""
    tables = model.up.weight.__dict__.setdefault("tables", {})
    return tables.setdefault(length, ramp(length))


LOGGED: deque[Tensor] = deque(maxlen=4)


def logs_activations(model: nn.Module, length: int) -> Tensor:
    """What it logs is a tensor of the run itself."""
    LOGGED.append(model.latest)
    return ramp(length)


ORDERED: OrderedDict[int, list[Tensor]] = OrderedDict()


def from_ordered(model: nn.Module, length: int) -> Tensor:
    ORDERED.setdefault(length, [ramp(length)])
    return ORDERED[length][0]


CACHES: dict[str, Callable[[], Callable[[nn.Module, int], Tensor]]] = {
    "global": lambda: from_global,
    "global_variable": lambda: from_global_variable,
    "global_list": lambda: from_global_list,
    "lru_cache": lambda: from_lru_cache,
    "shared_helper": lambda: from_shared_helper,
    "own_helper": lambda: from_own_helper,
    "slots": lambda: from_slots,
    "class": lambda: from_class,
    "model_class": lambda: from_model_class,
    "closure": closure,
    "default": lambda: from_default,
    "function_attribute": lambda: from_function_attribute,
    "thread": lambda: from_thread,
    "context": lambda: from_context,
    "attribute": lambda: from_attribute,
    "dictionary": lambda: from_dictionary,
    "buffer": lambda: from_buffer,
    "logged": lambda: logs_activations,
    "ordered": lambda: from_ordered,
    "weak": lambda: from_weak,
    "weak_helper": Weak,
    "identity": lambda: from_identity,
    "on_parameter": lambda: from_tensor,
    "none": lambda: lambda model, length: ramp(length),
}


def empty_caches() -> None:
    """As in a new process."""
    global GLOBAL_TENSOR
    GLOBAL_TENSOR = None
    for each in (GLOBAL, GLOBAL_LIST, SHARED_HELPER.tables, OfClass.tables, Cached.tables, LOGGED, ORDERED, WEAK, BY_IDENTITY):
        each.clear()
    OfClass.latest = None
    cached_ramp.cache_clear()
    LOCAL.__dict__.clear()
    from_function_attribute.__dict__.clear()
    from_default.__defaults__[0].clear()
    CONTEXT.set({})


class Cached(nn.Module):
    """Two layers, scaled by a table of positions that is kept somewhere."""

    tables: dict[int, Tensor] = {}

    def __init__(self, get: Callable[[nn.Module, int], Tensor]) -> None:
        super().__init__()
        self.get = get
        self.cache = None
        self.caches: dict[int, Tensor] = {}
        self.helper = Helper()
        self.slots = Slots()
        self.latest: Tensor | None = None
        self.register_buffer("table", torch.zeros(0), persistent=False)
        self.up = nn.Linear(6, 16)
        self.down = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x).relu()
        self.latest = h
        return self.down(h * self.get(self, x.shape[1]))


class WidthCached(nn.Module):
    """The kept table is as wide as the layer: the smaller model must not take the old one."""

    def __init__(self, tables: dict[int, Tensor] | None = None) -> None:
        super().__init__()
        self.tables = {} if tables is None else tables
        self.up = nn.Linear(6, 16)
        self.down = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x).relu()
        if x.shape[1] not in self.tables:
            self.tables[x.shape[1]] = torch.ones(x.shape[1], h.shape[-1], dtype=x.dtype) * 0.5
        return self.down(h * self.tables[x.shape[1]])


class GlobalWidthCached(WidthCached):
    """The same in a global that both models read."""

    def __init__(self) -> None:
        super().__init__()
        del self.tables

    tables = GLOBAL
