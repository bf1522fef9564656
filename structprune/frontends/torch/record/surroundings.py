"""What is arranged around a recorded run, and put back after it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from operator import is_
from threading import get_ident
from typing import Any

from torch import Tensor, nn

from structprune.frontends.torch.record.record import PLAIN

# Attributes that hold nothing in which other objects are kept. Most of a model's are.
NO_CONTAINERS = PLAIN | {Tensor, nn.Parameter}
CONTAINERS = (dict, list, set, tuple)


@contextmanager
def left_as_found(model: nn.Module, is_real: bool, training: bool = False) -> Iterator[None]:
    """Undo what a forward pass leaves on the modules: caches, counters, training flags."""
    modules = list(model.modules())
    modes = [module.training for module in modules]
    found = list(contents(vars(module) for module in modules))
    # Without data nothing is written; a real run writes into buffers.
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()] if is_real else []
    for module in modules:
        vars(module)["training"] = training
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            vars(module)["training"] = mode
        for container, content in found:
            if (container or content) and not holds(container, content):
                refill(container, content)
        for buffer, value in buffers:
            buffer.detach().copy_(value)


def contents(values: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """The containers among some values and inside them, each once, with a copy of what it holds."""
    seen: set[int] = set()
    unread: list[Iterable[Any]] = [values]
    for each in unread:
        for value in each:
            # Not isinstance: it asks for `__class__`, which configuration objects compute slowly.
            kind = type(value)
            if kind in NO_CONTAINERS or not issubclass(kind, CONTAINERS):
                continue
            if not value:
                yield value, ()
            elif id(value) not in seen:
                seen.add(id(value))
                if not issubclass(kind, tuple):
                    yield value, value.copy()
                unread.append(list(value.values()) if issubclass(kind, dict) else value)


def holds(container: Any, content: Any) -> bool:
    """Whether a container still holds the very same objects as it did."""
    if issubclass(type(container), set) or len(container) != len(content):
        return False
    is_dict = issubclass(type(container), dict)
    return all(map(is_, container, content)) and (not is_dict or all(map(is_, container.values(), content.values())))


def refill(container: Any, content: Any) -> None:
    if issubclass(type(container), list):
        container[:] = content
    else:
        container.clear()
        container.update(content)


@contextmanager
def module_names(model: nn.Module, stack: list[str]) -> Iterator[None]:
    """Keep the name of the module that is running in this thread at the end of a list."""
    thread, hooks = get_ident(), []

    def entering(name: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: Any) -> None:
            if get_ident() == thread:
                stack.append(name)

        return enter

    def leave(module: nn.Module, args: Any, result: Any) -> None:
        if get_ident() == thread:
            stack.pop()

    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(entering(name), prepend=True))
        hooks.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
