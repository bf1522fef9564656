"""A copy of a model to record on: new modules and helpers over the same numbers."""

from __future__ import annotations

import copy
import functools
import random
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from structprune.frontends.torch.record.memory import storage_of
from structprune.frontends.torch.record.record import PLAIN
from structprune.frontends.torch.record.tree import modules_of, paths_of, stored

# What is never copied: nothing that a model computes is kept in it.
ATOMIC = PLAIN | {
    *(bytes, complex, range, slice, type, object, type(Ellipsis), type(NotImplemented)),
    *(types.FunctionType, types.BuiltinFunctionType, types.ModuleType),
    *(torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format, torch.Generator, fx.Graph),
}
# What a class may bring along that says how its instances are copied.
SAYS_HOW = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__new__", "__slots__")
# A module has a dozen containers, for its hooks, most of them empty: most of the time would go into them.
STORES = frozenset((dict, OrderedDict, set))
OF_EVERY_MODULE = frozenset(vars(nn.Module()))
GENERATORS = (np.random.mtrand._rand, random._inst, torch.default_generator)
IS_OF_PYTHON = 1 << 9  # the flag of classes that a `class` statement made


def twin(model: nn.Module, with_buffers: bool = False) -> nn.Module | None:
    """The copy; None where the model cannot be copied, or says of a part that its copy is it itself.

    Numbers are not copied, but, if asked for, those of buffers, and of tensors in memory that is no parameter's:
    parameters are new ones over the same memory.
    """
    copier = Copier()
    if with_buffers:
        for buffer in model.buffers():
            copier.keep(buffer, buffer.detach().clone())
        for tensor in beside_stored(model):
            copier.keep(tensor, tensor.detach().clone())
    try:
        made: nn.Module = copier.model(model)
    except Exception:  # what a class does when it is copied may raise anything
        return None
    is_shared = copier.is_asked and next(shared(model, made), None) is not None
    return None if is_shared or has_closures_over(model) else made


def beside_stored(model: nn.Module) -> Iterator[Tensor]:
    """Tensors that hang on modules as plain attributes, in memory of their own."""
    memory = {id(each): storage_of(each) for _, each in stored(model)}
    taken = {storage.data_ptr() for storage in memory.values() if storage is not None}
    for module in modules_of(model):
        for value in vars(module).values():
            storage = storage_of(value) if type(value) is Tensor and id(value) not in memory else None
            if storage is not None and storage.data_ptr() not in taken:
                yield value


def has_closures_over(model: nn.Module) -> bool:
    """Whether a function that hangs on the model (a patched forward, a hook) knows modules by itself: so do copies."""
    return any(
        isinstance(cell.cell_contents, nn.Module)
        for module in modules_of(model)
        for value in (*vars(module).values(), *module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if type(value) is types.FunctionType
        for cell in value.__closure__ or ()
        if cell != types.CellType()
    )


def shared(model: nn.Module, made: nn.Module) -> Iterator[str]:
    """The names of modules and stored tensors that a copy has in common with its original."""
    known = {id(each) for each in (*modules_of(model), *(tensor for _, tensor in stored(model)))}
    for found in (paths_of(made), stored(made)):
        yield from (name for name, each in found if id(each) in known)


class Copier:
    """Copies what hangs on modules as `copy.deepcopy` does, several times as fast, and shares memory of tensors."""

    atomic = ATOMIC

    def __init__(self) -> None:
        # Generators that everybody draws from stay what they are.
        self.memo: dict[int, Any] = {id(each): each for each in GENERATORS}
        # What has been copied stays alive: the memo knows it by its place in memory.
        self.alive: list[Any] = []
        # Whether some class had a say in how it is copied.
        self.is_asked = False

    def model(self, model: nn.Module) -> Any:
        plain = []
        for module in modules_of(model):
            kind: Any = type(module)
            if self.is_plain(kind):
                plain.append(module)
                self.memo[id(module)] = object.__new__(kind)
            for store in (module._parameters, module._buffers):
                for tensor in store.values():
                    if tensor is not None and id(tensor) not in self.memo:
                        self.tensor(tensor)
        # What is inside first: a module that says itself how it is copied may look at it.
        for module in reversed(plain):
            attributes = vars(self.memo[id(module)])
            attributes.update(vars(module))
            for name, value in vars(module).items():
                kind = type(value)
                if name == "_compiled_call_impl":
                    attributes[name] = None  # the copy runs as it was written
                elif kind in self.atomic:
                    continue
                elif kind in STORES and not value and name in OF_EVERY_MODULE:
                    attributes[name] = kind()
                else:
                    attributes[name] = self.copied(value)
        return self.copied(model)

    def copied(self, value: Any) -> Any:
        kind: Any = type(value)
        if kind in self.atomic:
            return value
        if kind is tuple and all(type(each) in self.atomic for each in value):
            return value
        made = self.memo.get(id(value))
        if made is not None:
            return made
        copy_it = COPIES.get(kind)
        if copy_it is not None:
            return copy_it(self, value)
        if isinstance(value, type):
            return value
        if isinstance(value, Tensor):
            return self.tensor(value)
        if self.is_plain(kind):
            return self.instance(value)
        self.is_asked = True
        return copy.deepcopy(value, self.memo)

    def is_plain(self, kind: Any) -> bool:
        return is_plain(kind)

    def keep(self, value: Any, made: Any) -> Any:
        self.memo[id(value)] = made
        self.alive.append(value)
        return made

    def tensor(self, value: Tensor) -> Tensor:
        """The same memory, with a count of writes of its own."""
        made: Tensor
        if type(value) is nn.Parameter:
            made = nn.Parameter(value.data, requires_grad=value.requires_grad)
        elif type(value) is Tensor:
            made = value.data
            if value.is_leaf and value.requires_grad:
                made.requires_grad_()
        else:
            made = copy.deepcopy(value, self.memo)
        if value.__dict__:
            made.__dict__.update({name: self.copied(each) for name, each in value.__dict__.items()})
        self.keep(value, made)
        return made

    def list(self, value: list[Any]) -> Any:
        made = self.keep(value, [])
        made.extend(map(self.copied, value))
        return made

    def tuple(self, value: tuple[Any, ...]) -> Any:
        return self.keep(value, tuple(map(self.copied, value)))

    def dict(self, value: dict[Any, Any]) -> Any:
        made = self.keep(value, type(value)())
        for key, each in value.items():
            made[self.copied(key)] = self.copied(each)
        return made

    def set(self, value: set[Any]) -> Any:
        return self.keep(value, set(map(self.copied, value)))

    def method(self, value: types.MethodType) -> Any:
        return self.keep(value, types.MethodType(value.__func__, self.copied(value.__self__)))

    def reference(self, value: weakref.ref[Any]) -> Any:
        """Recurrent layers refer to their own weights."""
        target = value()
        made = self.memo.get(id(target))
        return self.keep(value, value if target is None or made is None else weakref.ref(made))

    def instance(self, value: Any) -> Any:
        made = self.keep(value, object.__new__(type(value)))
        for name, each in vars(value).items():
            made.__dict__[name] = self.copied(each)
        return made


class WholeCopier(Copier):
    """Copies tensors, generators and graphs too. `memo`: copies that are there already, by the originals' ids."""

    atomic = ATOMIC - {torch.Generator, fx.Graph}

    def __init__(self, memo: dict[int, Any]) -> None:
        super().__init__()
        self.memo = memo

    def is_plain(self, kind: Any) -> bool:
        return is_plain(kind) and not issubclass(kind, fx.GraphModule)

    def tensor(self, value: Tensor) -> Tensor:
        is_simple = type(value) is Tensor and not value.requires_grad and value.is_contiguous() and not value.__dict__
        # Or one with a history: the old weight norm leaves such a tensor.
        is_cloned = is_simple or not value.is_leaf
        made: Tensor = value.detach().clone() if is_cloned else copy.deepcopy(value, self.memo)
        self.keep(value, made)
        return made


COPIES: dict[type, Callable[[Copier, Any], Any]] = {
    list: Copier.list,
    tuple: Copier.tuple,
    dict: Copier.dict,
    OrderedDict: Copier.dict,
    set: Copier.set,
    types.MethodType: Copier.method,
    weakref.ref: Copier.reference,
}


@functools.lru_cache(maxsize=4096)
def is_plain(kind: Any) -> bool:
    """Whether instances of a class are their `__dict__` and nothing else, and copied as such."""
    if not kind.__dictoffset__:
        return False
    for base in kind.__mro__:
        # Torch's own modules say how to read files of older versions of theirs.
        if base is object or base.__module__.startswith("torch.nn.") or issubclass(base, fx.GraphModule):
            continue
        if not base.__flags__ & IS_OF_PYTHON or any(vars(base).get(name, ()) not in ((), []) for name in SAYS_HOW):
            return False
    return True
