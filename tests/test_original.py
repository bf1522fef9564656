"""The model given to `shrink` is left untouched, and so is the state of torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import models_zoo
import structprune
from structprune.errors import StructpruneError
from tests.small_models import Block, both, call, images, seeded

# The one-line warning about a GraphModule has its own test.
pytestmark = pytest.mark.filterwarnings("ignore:the result is a torch.fx.GraphModule")


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """All that can be seen of a model: bits, places in memory, flags, attributes, hooks."""
    found: dict[str, Any] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        bits = tensor.detach().contiguous().view(-1).view(torch.uint8).clone() if tensor.numel() else torch.empty(0)
        found[f"tensor {name}"] = (id(tensor), tensor.data_ptr(), tensor._version, tensor.stride())
        found[f"trains {name}"] = tensor.requires_grad
        found[f"bits {name}"] = bits.tolist()
        found[f"grad {name}"] = None if tensor.grad is None else (id(tensor.grad), tensor.grad.tolist())
    for name, module in model.named_modules():
        found[f"module {name}"] = (id(module), type(module), module.training)
        found[f"attributes {name}"] = {key: (id(value), repr(value)) for key, value in vars(module).items()}
        for key, value in vars(module).items():
            if isinstance(value, dict | list | set):
                found[f"inside {name}.{key}"] = (id(value), [id(item) for item in value], repr(value))
    return found


def a_hook(module: nn.Module, args: Any, result: Any) -> None:
    return None


@pytest.mark.parametrize("output", ["module", "graph"])
@pytest.mark.parametrize("name", ["resnet20", "encoder", "recurrent"])
def test_the_original_is_untouched(name: str, output: str) -> None:
    model, inputs = models_zoo.build(name)
    model.train()
    next(model.children()).eval()
    model.register_forward_hook(a_hook)
    call(model, inputs).sum().backward()
    inputs_before = inputs.clone()
    before = fingerprint(model)
    structprune.shrink(model, 0.5, inputs, output=output)
    assert fingerprint(model) == before
    assert torch.equal(inputs, inputs_before) and inputs.grad is None


def test_caches_that_forward_writes_are_as_they_were() -> None:
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)
            self.calls = 0
            self.seen: list[Tensor] = []
            self.cache: dict[str, Tensor] = {}
            self.last: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            x = self.first(x).relu()
            self.seen.append(x)
            self.cache["x"] = x
            self.last = x
            return self.second(x)

    model = seeded(Caching)
    for result in both(model, images(2, 6)):
        assert (model.calls, model.seen, model.cache, model.last) == (0, [], {}, None)
        if not isinstance(result, torch.fx.GraphModule):
            assert (result.calls, result.seen, result.cache, result.last) == (0, [], {}, None)


def test_a_nested_container_that_forward_writes_is_as_it_was() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)
            self.state: dict[str, list[Tensor]] = {"seen": []}

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x).relu()
            self.state["seen"].append(x)
            return self.second(x)

    model = seeded(Nested)
    result = structprune.shrink(model, 0.5, images(2, 6))
    assert model.state == {"seen": []}
    assert result.state == {"seen": []}


def test_buffers_that_forward_writes_are_as_they_were() -> None:
    class Counting(nn.Module):
        steps: Tensor
        average: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)
            self.register_buffer("steps", torch.tensor(0))
            self.register_buffer("average", torch.zeros(16))

        def forward(self, x: Tensor) -> Tensor:
            self.steps += 1
            x = self.first(x).relu()
            self.average.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
            return self.second(x)

    model = seeded(Counting)
    before = fingerprint(model)
    result = structprune.shrink(model, 0.3, images(2, 6))
    assert fingerprint(model) == before
    assert result.steps.item() == 0


def test_global_state_is_untouched() -> None:
    model = seeded(Block)
    state, fast = torch.get_rng_state(), torch.backends.mha.get_fastpath_enabled()
    hooks = len(nn.modules.module._global_forward_hooks), len(nn.modules.module._global_forward_pre_hooks)
    structprune.shrink(model, 0.5, images(2, 3, 8, 8), score="random")
    with pytest.raises(StructpruneError):
        structprune.shrink(model, 0.5, images(2, 4, 8, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled() and torch.backends.mha.get_fastpath_enabled() == fast
    assert hooks == (len(nn.modules.module._global_forward_hooks), len(nn.modules.module._global_forward_pre_hooks))


def test_shrinking_without_grad_gives_a_result_that_trains() -> None:
    model = seeded(Block)
    with torch.no_grad():
        result = structprune.shrink(model, 0.5, images(2, 3, 8, 8))
    assert all(parameter.requires_grad for parameter in result.parameters())
    result(images(2, 3, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in result.parameters())


def test_the_result_shares_no_memory_with_the_original() -> None:
    model = seeded(Block)
    places = {tensor.data_ptr() for tensor in model.state_dict().values()}
    for result in both(model, images(2, 3, 8, 8)):
        assert places.isdisjoint(tensor.data_ptr() for tensor in result.state_dict().values())
