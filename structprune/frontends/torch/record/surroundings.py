"""What is arranged around a recorded run, and put back after it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import DispatchKey
from torch._ops import OpOverload

from structprune.frontends.torch.record.record import PLAIN

PRE_DISPATCH = DispatchKey.PreDispatch

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


@contextmanager
def straight_to(mode: Any) -> Iterator[None]:
    """Operators go straight to a mode that sees them before dispatch.

    Torch's own way there takes all arguments apart, and the mode off a stack and on again, for each of them: a
    third of the time that recording takes.
    """
    stack = torch._ops.mode_stack_state_for_pre_dispatch()  # type: ignore[no-untyped-call]
    torchs = OpOverload._get_dispatch

    def get_dispatch(operator: OpOverload[..., Any], key: DispatchKey) -> Any:
        is_for_mode = key == PRE_DISPATCH and stack._schema_check_mode is mode
        if not is_for_mode or torch._C._dispatch_tls_is_dispatch_key_excluded(DispatchKey.Python):
            return torchs(operator, key)

        def handler(*args: Any, **kwargs: Any) -> Any:
            stack._schema_check_mode = None
            torch._C._dispatch_tls_set_dispatch_key_included(PRE_DISPATCH, False)
            try:
                return mode.__torch_dispatch__(operator, (), args, kwargs)
            finally:
                stack._schema_check_mode = mode
                torch._C._dispatch_tls_set_dispatch_key_included(PRE_DISPATCH, True)

        return handler

    OpOverload._get_dispatch = get_dispatch  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        OpOverload._get_dispatch = torchs  # type: ignore[method-assign]


@contextmanager
def function_calls(modes: list[bool]) -> Iterator[None]:
    """Keep whether an autograd.Function that is running was called with gradients: its forward runs without them."""
    plain = torch.autograd.Function.__dict__["apply"]

    def apply(cls: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        modes.append(modes[-1] if modes else torch.is_grad_enabled())
        try:
            return plain.__get__(None, cls)(*args, **kwargs)
        finally:
            modes.pop()

    torch.autograd.Function.apply = classmethod(apply)
    try:
        yield
    finally:
        torch.autograd.Function.apply = plain
