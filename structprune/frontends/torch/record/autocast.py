"""Autocast: regions inside a model are part of what it computes; one around `shrink` is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, fx, nn

from structprune.frontends.torch.record import private
from structprune.frontends.torch.record.record import Call, Region, map_tensors, tensors_in
from structprune.frontends.torch.record.tree import stored

META = torch.device("meta")


@contextmanager
def neutral(model: nn.Module) -> Iterator[None]:
    """Nothing of the caller's inference mode, autocast and meta device reaches what is recorded and made inside."""
    devices = {tensor.device.type for _, tensor in stored(model)}
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if torch.get_default_device().type == "meta":
            # Models were made to run on a device with numbers.
            stack.enter_context(torch.device("cpu"))
        for device in devices:
            if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def nesting() -> int:
    """How many autocast contexts we are in."""
    depth: int = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    return depth


def region(function: Any, tensors: Sequence[Tensor], outer: int) -> Region | None:
    """The state of autocast that the operator runs in; None outside of the model's own regions."""
    if nesting() <= outer or not tensors:
        return None
    device = tensors[0].device.type
    if not torch.amp.is_autocast_available(device) or not is_affected(function, device):
        return None
    return device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)


@lru_cache(maxsize=4096)
def is_affected(function: Any, device: str) -> bool:
    """Autocast changes what this operator computes, or what an operator that it consists of does."""
    if not hasattr(function, "_schema") or function.namespace != "aten":
        return True
    return private.has_autocast_rule(function, device) or private.is_composite(function)


class StandIn(Tensor):
    """A tensor that has a device, for autocast to see, but computes on the meta device."""

    __torch_function__ = private.no_torch_function

    @staticmethod
    def __new__(cls, meta: Tensor, device: torch.device) -> StandIn:
        made: StandIn = private.wrapper(cls, meta, device)
        return made

    def __init__(self, meta: Tensor, device: torch.device) -> None:
        self.meta = meta

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        arguments = {id(each.meta): each for each in tensors_in((args, kwargs)) if isinstance(each, StandIn)}
        device = next(iter(arguments.values())).device
        result = function(*on_meta(args, meta_of), **on_meta(kwargs or {}, meta_of))
        # An operator in place gives back its own argument.
        return map_tensors(result, lambda each: arguments[id(each)] if id(each) in arguments else StandIn(each, device))


def meta_of(tensor: Tensor) -> Tensor:
    return tensor.meta if isinstance(tensor, StandIn) else tensor.to("meta")


def imagined(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], meta: Callable[[Tensor], Tensor]) -> Any:
    """The result on the meta device, as autocast makes it: it leaves meta tensors themselves alone."""
    stand_ins: dict[int, StandIn] = {}

    def stand_in(tensor: Tensor) -> Tensor:
        return stand_ins.setdefault(id(tensor), StandIn(meta(tensor), tensor.device))

    return map_tensors(function(*map_tensors(args, stand_in), **map_tensors(kwargs, stand_in)), meta_of)


def on_meta(arguments: Any, meta: Callable[[Tensor], Tensor]) -> Any:
    """The arguments with meta tensors, and the meta device wherever a device is named."""
    arguments = map_tensors(arguments, meta)
    if isinstance(arguments, dict):
        return {key: META if isinstance(each, torch.device) else each for key, each in arguments.items()}
    return tuple(META if isinstance(each, torch.device) else each for each in arguments)


@fx.has_side_effect  # the operator may write
def under_autocast(region: Region, function: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an operator in the region that it was recorded in."""
    device, dtype, is_enabled = region
    with torch.autocast(device, dtype=dtype, enabled=is_enabled):
        return function(*args, **kwargs)


def perform(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a recorded call on these arguments."""
    if call.region is None:
        return call.target(*args, **kwargs)
    return under_autocast(call.region, call.target, *args, **kwargs)
