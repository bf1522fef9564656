"""What is arranged around a recorded run, and put back after it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def left_as_found(model: nn.Module, is_real: bool, training: bool = False) -> Iterator[None]:
    """Undo what a forward pass leaves on the modules: caches, counters, training flags."""
    saved = [(module, dict(module.__dict__)) for module in model.modules()]
    containers = list(contents(attributes for _, attributes in saved))
    # Without data nothing is written; a real run writes into buffers.
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()] if is_real else []
    for module, _ in saved:
        module.__dict__["training"] = training
    try:
        yield
    finally:
        for module, attributes in saved:
            module.__dict__.clear()
            module.__dict__.update(attributes)
        for container, content in containers:
            if isinstance(container, list):
                container[:] = content
            else:
                container.clear()
                container.update(content)
        for buffer, content in buffers:
            buffer.detach().copy_(content)


def contents(values: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """The containers among some values and inside them, each with a copy of what it holds."""
    for value in values:
        # Not isinstance: it asks for `__class__`, which configuration objects compute slowly.
        if issubclass(type(value), dict):
            yield value, value.copy()
            yield from contents(value.values())
        elif issubclass(type(value), (list, set)):
            yield value, value.copy()
            yield from contents(value)
        elif type(value) is tuple:
            yield from contents(value)


@contextmanager
def module_names(model: nn.Module, stack: list[str]) -> Iterator[None]:
    """Keep the name of the module that is running at the end of a list."""
    names = {id(module): name for name, module in model.named_modules()}

    def enter(module: nn.Module, args: Any) -> None:
        stack.append(names.get(id(module), stack[-1] if stack else ""))

    def leave(module: nn.Module, args: Any, result: Any) -> None:
        stack.pop()

    hooks = [
        nn.modules.module.register_module_forward_pre_hook(enter),
        nn.modules.module.register_module_forward_hook(leave, always_call=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def unfused_attention() -> Iterator[None]:
    """Encoder layers take a fused shortcut in eval mode; record what they mean in its place."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
