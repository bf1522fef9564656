"""The table of structures and the decorator that fills it."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

Inputs = torch.Tensor | tuple | dict


@dataclass(frozen=True, slots=True)
class Structure:
    name: str
    build: Callable[[], tuple[nn.Module, Inputs]]
    prunable: bool  # about half of the parameters can go; False where most is rightly frozen
    note: str


STRUCTURES: dict[str, Structure] = {}


def structure(inputs: Callable[[], Inputs], *, prunable: bool = True):
    """Register a module class, or a function that returns a module, under its name in snake case."""

    def register(make: Callable[[], nn.Module]):
        name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", make.__name__).lower()
        if name in STRUCTURES:
            raise ValueError(f"structure {name!r} is registered twice")

        def build() -> tuple[nn.Module, Inputs]:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                module = make().double().eval()
                _randomise(module)
                return module, _double(inputs())

        STRUCTURES[name] = Structure(name, build, prunable, make.__doc__ or "")
        return make

    return register


@torch.no_grad()
def _randomise(module: nn.Module) -> None:
    """Disturb every parameter that starts as a constant, and give running statistics values."""
    for parameter in module.parameters():
        if parameter.numel() and (parameter == parameter.flatten()[0]).all():
            parameter += 0.3 * torch.randn_like(parameter)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.3)
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)


def _double(inputs: Inputs) -> Inputs:
    if isinstance(inputs, dict):
        return {key: _double(value) for key, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return type(inputs)(_double(value) for value in inputs)
    return inputs.double() if torch.is_floating_point(inputs) else inputs
