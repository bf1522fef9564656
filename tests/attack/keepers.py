"""Objects outside of a model in which its code keeps things: each is changed by forward, in its own way.

What each holds is looked at past its own methods (`held`), identities included.
"""

from __future__ import annotations

import collections
import enum
import functools
import queue
import threading
import types
import weakref
from array import array
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

KEEPERS: dict[str, tuple[Callable[[], Any], Callable[[Any, Tensor], Any], Callable[[Any], Any]]] = {}
# What forward finds under the name that its code says.
KEPT: Any = None


def keeper(name: str, make: Callable[[], Any], use: Callable[[Any, Tensor], Any], held: Callable[[Any], Any]) -> None:
    KEEPERS[name] = make, use, held


def pairs(mapping: Any) -> list[Any]:
    base = collections.OrderedDict if isinstance(mapping, collections.OrderedDict) else dict
    return [(id(key), id(value)) for key, value in base.items(mapping)]


def items(sequence: Any) -> list[int]:
    return list(map(id, sequence))


# -- mappings with ways of their own --------------------------------------------------------------------------------------------


class Builds(collections.OrderedDict[Any, Any]):
    """Makes what it is asked for (transformers' table of activations)."""

    def __getitem__(self, key: Any) -> Any:
        content = super().__getitem__(key)
        return content() if isinstance(content, type) else content


class Locked(dict[Any, Any]):
    """Nothing is overwritten, nothing deleted, nothing listed."""

    def __setitem__(self, key: Any, value: Any) -> None:
        if dict.__contains__(self, key):
            raise KeyError(key)
        dict.__setitem__(self, key, value)

    def _refused(self, *args: Any) -> Any:
        raise TypeError("locked")

    clear = update = pop = __delitem__ = __iter__ = items = keys = values = _refused  # type: ignore[assignment]


class Bounded(dict[Any, Any]):
    """Drops the oldest when it is full."""

    def __setitem__(self, key: Any, value: Any) -> None:
        if len(self) >= 2:
            dict.pop(self, next(dict.__iter__(self)))
        dict.__setitem__(self, key, value)


class ByMissing(dict[Any, Any]):
    def __missing__(self, key: Any) -> Any:
        self[key] = made = object()
        return made


class Counts(dict[Any, Any]):
    """Reading it changes it."""

    reads = 0

    def __getitem__(self, key: Any) -> Any:
        self.reads += 1
        return dict.__getitem__(self, key)


class Transformed(collections.UserDict[Any, Any]):
    def __setitem__(self, key: Any, value: Any) -> None:
        self.data[str(key)] = (value,)

    def __getitem__(self, key: Any) -> Any:
        return self.data[str(key)][0]


class OwnMapping(MutableMapping[Any, Any]):
    """Slots, and no base that holds anything."""

    __slots__ = ("__weakref__", "store")

    def __init__(self) -> None:
        self.store: dict[Any, Any] = {"a": object()}

    def __getitem__(self, key: Any) -> Any:
        return self.store[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self.store[key] = value

    def __delitem__(self, key: Any) -> None:
        del self.store[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.store)

    def __len__(self) -> int:
        return len(self.store)


def put(kept: Any, h: Tensor) -> None:
    kept[h.shape[0]] = h
    kept["a"] = h * 2


def add(kept: Any, h: Tensor) -> None:
    kept.setdefault("new", []).append(h)


def two(kind: Any) -> Callable[[], Any]:
    return lambda: kind([("a", object()), ("b", object())])


keeper("dict", two(dict), put, pairs)
keeper("ordered", two(collections.OrderedDict), lambda k, h: (put(k, h), k.move_to_end("a")), pairs)
keeper("ordered_turned", two(collections.OrderedDict), lambda k, h: k.move_to_end("a"), pairs)
keeper("builds", lambda: Builds([("a", object), ("b", list)]), put, pairs)
keeper("locked", lambda: Locked(a=object()), lambda k, h: k.__setitem__("x", h), lambda k: pairs(dict(dict.items(k))))
keeper("bounded", lambda: Bounded(a=object(), b=object()), put, pairs)
keeper("by_missing", lambda: ByMissing(a=object()), lambda k, h: k["new"], pairs)
keeper("counts", lambda: Counts(a=object()), lambda k, h: (k["a"], put(k, h)), lambda k: (pairs(k), vars(k)))
keeper("default", lambda: collections.defaultdict(list, a=[1]), lambda k, h: (k["a"].append(h), k["z"].append(h)), lambda k: (pairs(k), k["a"][:] if "a" in k else None, k.default_factory))
keeper("counter", lambda: collections.Counter("aab"), lambda k, h: k.update({"a": 1, "z": 3}), lambda k: dict(k))
keeper("chain", lambda: collections.ChainMap({}, {"a": object()}), lambda k, h: (put(k, h), k.maps[1].update(z=h)), lambda k: (items(k.maps), [pairs(m) for m in k.maps]))
keeper("chain_grown", lambda: collections.ChainMap({"a": object()}), lambda k, h: k.maps.insert(0, {"x": h}), lambda k: (items(k.maps), [pairs(m) for m in k.maps]))
keeper("user_dict", lambda: collections.UserDict(a=object()), put, lambda k: (id(k.data), pairs(k.data)))
keeper("transformed", lambda: Transformed(a=object()), put, lambda k: (id(k.data), pairs(k.data)))
keeper("user_list", lambda: collections.UserList([object()]), lambda k, h: k.append(h), lambda k: (id(k.data), items(k.data)))
keeper("own_mapping", OwnMapping, put, lambda k: (id(k.store), pairs(k.store)))
keeper("proxy", lambda: types.MappingProxyType({"a": [object()]}), lambda k, h: k["a"].append(h), lambda k: [items(each) for each in k.values()])
keeper("class_registry", lambda: type("Registry", (), {"known": {"a": object()}}), lambda k, h: k.known.update(z=h), lambda k: pairs(k.known))
keeper("subclass_registry", lambda: type("Registry", (), {"latest": None, "subclasses": []}), lambda k, h: (setattr(k, "latest", h), k.subclasses.append(h)), lambda k: (k.latest, items(k.subclasses)))

# -- sequences and sets -----------------------------------------------------------------------------------------------------------


class Logs(list[Any]):
    """Notes each change of itself."""

    def __init__(self, values: Any) -> None:
        super().__init__(values)
        self.log: list[str] = []

    def append(self, value: Any) -> None:
        self.log.append("append")
        super().append(value)

    def clear(self) -> None:
        raise TypeError("never")

    extend = clear  # type: ignore[assignment]


class OwnSet(set[Any]):
    def add(self, value: Any) -> None:
        super().add((value,))

    def update(self, *others: Any) -> None:
        raise TypeError("never")

    clear = update  # type: ignore[assignment]


keeper("list", lambda: [object(), [1]], lambda k, h: (k.append(h), k[1].append(h), k.reverse()), lambda k: (items(k), [each[:] for each in k if isinstance(each, list)]))
keeper("logs", lambda: Logs([object()]), lambda k, h: k.append(h), lambda k: (items(k), list(k.log)))
keeper("deque", lambda: collections.deque([1, 2, 3], maxlen=3), lambda k, h: (k.append(h), k.rotate(1)), lambda k: (items(k), k.maxlen))
keeper("set", lambda: {1, 2}, lambda k, h: (k.add(h), k.discard(1)), lambda k: sorted(map(id, k)))
keeper("own_set", lambda: OwnSet([1]), lambda k, h: k.add(3), lambda k: sorted(map(id, k)))
keeper("tuple_of_lists", lambda: ([1], [2]), lambda k, h: k[0].append(h), lambda k: [items(each) for each in k])
keeper("frozen_set_of_objects", lambda: frozenset([Plain()]), lambda k, h: setattr(next(iter(k)), "x", h), lambda k: [vars(each) for each in k])
keeper("array", lambda: array("d", [1.0, 2.0]), lambda k, h: (k.append(3.0), k.__setitem__(0, 7.0)), list)
keeper("byte_array", lambda: bytearray(b"ab"), lambda k, h: k.extend(b"cd"), bytes)
keeper("numpy", lambda: np.zeros(3), lambda k, h: k.__iadd__(1), lambda k: k.tolist())
keeper("numpy_of_objects", lambda: np.array([None, [1]], dtype=object), lambda k, h: (k[1].append(h), k.__setitem__(0, h)), lambda k: [k[0], list(k[1])])
keeper("numpy_in_dict", lambda: {"a": np.zeros(3)}, lambda k, h: k["a"].__iadd__(1), lambda k: (pairs(k), k["a"].tolist()))
keeper("tensor", lambda: torch.zeros(3), lambda k, h: k.add_(1), lambda k: (id(k), k.tolist()))
keeper("tensor_in_list", lambda: [torch.zeros(3)], lambda k, h: k[0].add_(1), lambda k: (items(k), k[0].tolist()))
keeper("attribute_of_tensor", lambda: torch.zeros(3), lambda k, h: setattr(k, "latest", h), lambda k: sorted(vars(k)))

# -- objects -------------------------------------------------------------------------------------------------------------------------


class Plain:
    pass


class Slotted:
    __slots__ = ("latest", "more")

    def __init__(self) -> None:
        self.more = [object()]


class SlottedChild(Slotted):
    __slots__ = ("own",)


class Private:
    __slots__ = ("__hidden",)

    def keep(self, h: Any) -> None:
        self.__hidden = h


class Guarded:
    """Setting an attribute in the ordinary way is refused, getting one too."""

    def __init__(self) -> None:
        object.__setattr__(self, "store", {"a": object()})

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(name)

    def __getattr__(self, name: str) -> Any:
        return self.store[name]


class Described:
    """A descriptor that keeps what it is given."""

    def __init__(self) -> None:
        self.given: dict[int, Any] = {}

    def __get__(self, owner: Any, kind: Any = None) -> Any:
        return self if owner is None else self.given.get(id(owner))

    def __set__(self, owner: Any, value: Any) -> None:
        self.given[id(owner)] = value


class WithDescriptor:
    slot = Described()


@dataclass
class Record:
    latest: Any = None
    many: list[Any] = field(default_factory=list)


@dataclass(slots=True)
class SlotRecord:
    latest: Any = None
    many: list[Any] = field(default_factory=list)


class Colour(enum.Enum):
    RED = 1

    def keep(self, h: Any) -> None:
        self.latest = h


class Cached:
    @functools.cached_property
    def table(self) -> Any:
        return [object()]

    @functools.lru_cache  # noqa: B019  this is what is tried
    def made(self, n: int) -> Any:
        return [n]


class Single:
    instance: Any = None

    def __new__(cls) -> Any:
        if cls.instance is None:
            cls.instance = super().__new__(cls)
        return cls.instance


class Called:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, h: Tensor) -> None:
        self.calls += 1


def attributes(kept: Any) -> Any:
    return pairs(vars(kept))


def slots(*names: str) -> Callable[[Any], Any]:
    return lambda kept: [id(getattr(kept, name, None)) for name in names]


keeper("namespace", lambda: types.SimpleNamespace(a=object()), lambda k, h: setattr(k, "a", h), attributes)
keeper("object", Plain, lambda k, h: setattr(k, "latest", h), attributes)
keeper("slotted", Slotted, lambda k, h: (setattr(k, "latest", h), k.more.append(h)), lambda k: (slots("latest", "more")(k), len(k.more)))
keeper("slotted_child", SlottedChild, lambda k, h: (setattr(k, "own", h), setattr(k, "latest", h)), slots("latest", "own"))
keeper("private_slot", Private, lambda k, h: k.keep(h), slots("_Private__hidden"))
keeper("guarded", Guarded, lambda k, h: k.store.update(z=h), lambda k: pairs(object.__getattribute__(k, "store")))
keeper("described", WithDescriptor, lambda k, h: setattr(k, "slot", h), lambda k: dict(WithDescriptor.slot.given))
keeper("record", Record, lambda k, h: (setattr(k, "latest", h), k.many.append(h)), lambda k: (attributes(k), len(k.many)))
keeper("slot_record", SlotRecord, lambda k, h: (setattr(k, "latest", h), k.many.append(h)), lambda k: (slots("latest", "many")(k), len(k.many)))
keeper("enum", lambda: Colour, lambda k, h: k.RED.keep(h), lambda k: pairs(vars(k.RED)))
keeper("enum_member", lambda: Colour.RED, lambda k, h: k.keep(h), attributes)
keeper("cached_property", Cached, lambda k, h: k.table.append(h), attributes)
keeper("cached_method", Cached, lambda k, h: k.made(int(h.shape[0])), lambda k: Cached.made.cache_info().currsize)
keeper("single", lambda: Single, lambda k, h: setattr(k(), "latest", h), lambda k: id(k.__dict__["instance"]))
keeper("called", Called, lambda k, h: k(h), attributes)
keeper("bound_method", lambda: Called().__call__, lambda k, h: k(h), lambda k: attributes(k.__self__))
keeper("partial", lambda: functools.partial(list.append, []), lambda k, h: k(h), lambda k: items(k.args[0]))
keeper("nested_objects", lambda: types.SimpleNamespace(a=Record(many=[Plain()])), lambda k, h: setattr(k.a.many[0], "x", h), lambda k: attributes(k.a.many[0]))
keeper("local", threading.local, lambda k, h: setattr(k, "latest", h), attributes)
keeper("queue", queue.Queue, lambda k, h: k.put(h), lambda k: items(k.queue))
keeper("module", lambda: nn.Linear(3, 3), lambda k, h: (setattr(k, "latest", h), k.register_buffer("x", h)), lambda k: (attributes(k), pairs(k._buffers)))
keeper("function", lambda: lambda: None, lambda k, h: setattr(k, "latest", h), attributes)

# -- weak ones ---------------------------------------------------------------------------------------------------------------------------

OWNER = Plain()
keeper("weak_keys", lambda: weakref.WeakKeyDictionary({OWNER: [1]}), lambda k, h: k[OWNER].append(h), lambda k: [list(each) for each in k.values()])
keeper("weak_keys_new", lambda: weakref.WeakKeyDictionary({OWNER: [1]}), lambda k, h: k.__setitem__(Colour.RED, h), lambda k: [id(each) for each in k.values()])
keeper("weak_values", lambda: weakref.WeakValueDictionary({"a": OWNER}), lambda k, h: (k.pop("a"), k.__setitem__("b", OWNER)), lambda k: sorted(k))
keeper("weak_set", lambda: weakref.WeakSet([OWNER]), lambda k, h: (k.discard(OWNER), k.add(Colour.RED)), lambda k: items(k))
keeper("weak_reference", lambda: weakref.ref(OWNER), lambda k, h: setattr(k(), "latest", h), lambda k: attributes(OWNER))


class Keeps(nn.Module):
    """Two layers; forward changes what is kept, and may stop after that."""

    def __init__(self, use: Callable[[Any, Tensor], Any], stops: bool) -> None:
        super().__init__()
        self.use, self.stops = use, stops
        self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x).relu()
        self.use(KEPT, h)
        if self.stops:
            raise ValueError("stops")
        return self.down(h)
