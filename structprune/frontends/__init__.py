"""Front ends: each reads a framework's model into the neutral graph and realises a choice in it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from structprune.errors import InvalidArgument
from structprune.frontends.names import stored
from structprune.frontends.protocol import Frontend


def neutral(model: Any) -> AbstractContextManager[None]:
    """Inside, the caller's modes of the framework (inference mode, autocast) change nothing of a result."""
    if not is_torch(model):
        return nullcontext()
    from structprune.frontends.torch.autocast import neutral

    return neutral(model)


def is_torch(model: Any) -> bool:
    return any(base.__module__.startswith("torch.nn") for base in type(model).__mro__)


def read(model: Any, example_inputs: Any) -> Frontend:
    """The front end for a model; its framework is imported only now."""
    if is_torch(model):
        from structprune.frontends.torch.front import TorchFrontend

        return TorchFrontend.read(model, example_inputs)
    stored(model)
    raise InvalidArgument(f"cannot shrink a {type(model).__name__}: give a torch.nn.Module")


__all__ = ["Frontend", "neutral", "read"]
