"""What is arranged around a recorded run, and put back after it."""

from __future__ import annotations

import functools
import inspect
import os
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import get_ident
from typing import Any

import numpy as np
import torch
from torch import nn

from structprune.frontends.torch.record import private
from structprune.frontends.torch.record.kept import contents_kept
from structprune.frontends.torch.record.outside import outside_as_found
from structprune.frontends.torch.record.twin import twin

# Frames of torch and of this package say nothing about the user's code.
NOT_THE_USERS = (f"{Path(torch.__file__).parent}{os.sep}", f"{Path(__file__).parents[3]}{os.sep}")

# Torch numbers its hooks from zero.
HOOK = -1


@contextmanager
def left_as_found(model: nn.Module, with_buffers: bool) -> Iterator[None]:
    """Undo what a forward pass leaves on modules that could not be copied: caches, counters, training flags."""
    modules = list(model.modules())
    modes = [module.training for module in modules]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()] if with_buffers else []
    on_tensors = [tensor.__dict__ for tensor in (*model.parameters(), *model.buffers())]
    with contents_kept([*map(vars, modules), *on_tensors]):
        try:
            yield
        finally:
            for module, mode in zip(modules, modes, strict=True):
                vars(module)["training"] = mode
            for buffer, value in buffers:
                buffer.detach().copy_(value)


@contextmanager
def untouched(model: nn.Module, with_buffers: bool = False) -> Iterator[nn.Module]:
    """A model to run in place of another: what the run leaves on it and outside of it is forgotten."""
    copied = twin(model, with_buffers)
    with private.LOCK, chance_kept(model), outside_as_found(model):
        if copied is not None:
            yield copied
            return
        with left_as_found(model, with_buffers):
            yield model


@contextmanager
def chance_kept(model: nn.Module) -> Iterator[None]:
    """Every generator goes on afterwards as if nothing had been drawn."""
    python, numpy = random.getstate(), np.random.get_state()
    generators = [torch.default_generator]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
        generators += (torch.cuda.default_generators[each.index or 0] for each in devices)
    states = [each.get_state() for each in generators]
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


@contextmanager
def module_names(names: Mapping[nn.Module, str], stack: list[str]) -> Iterator[None]:
    """Keep the name of the module that is running in this thread at the end of a list."""
    thread = get_ident()

    def entering(name: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: Any) -> None:
            if get_ident() == thread:
                stack.append(name)

        return enter

    def leave(module: nn.Module, args: Any, result: Any) -> None:
        if get_ident() == thread:
            stack.pop()

    # As torch registers them, the first before and the last after a forward, without a handle for each.
    for module, name in names.items():
        module._forward_pre_hooks[HOOK] = entering(name)
        module._forward_pre_hooks.move_to_end(HOOK, last=False)  # type: ignore[attr-defined]
        module._forward_hooks[HOOK] = leave
        module._forward_hooks_always_called[HOOK] = True
    try:
        yield
    finally:
        for module in names:
            for hooks in (module._forward_pre_hooks, module._forward_hooks, module._forward_hooks_always_called):
                hooks.pop(HOOK, None)


@contextmanager
def threads_noted(note: Callable[[], None]) -> Iterator[None]:
    """Tell when the code that runs in this thread gives work to another one. Only inside the lock."""
    thread = get_ident()

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def start(*args: Any, **kwargs: Any) -> Any:
            if get_ident() == thread:
                note()
            return function(*args, **kwargs)

        return start

    with ExitStack() as stack:
        for owner, name in ((threading.Thread, "start"), (ThreadPoolExecutor, "submit")):
            stack.enter_context(private.patched(owner, name, noting(vars(owner)[name])))
        yield


def positional_names(model: nn.Module) -> list[str]:
    """How the model's forward calls its positional arguments."""
    parameters = inspect.signature(model.forward).parameters.values()
    return [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
