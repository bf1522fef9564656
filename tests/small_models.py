"""Small models, one for each thing that results must keep, and what tests of them share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import structprune

# Float64 rounding of a handful of small layers.
EXACT = 1e-11
CONVOLUTIONAL = ("resnet20", "bottleneck", "mobilenet", "densenet", "shufflenet", "unet", "convnext")
# One of every kind, cheap enough to shrink often.
SAMPLE = ("resnet20", "shufflenet", "vit", "swin", "encoder", "decoder", "recurrent", "moe")


class Block(nn.Module):
    """conv - bn - relu - dropout - conv - pool - linear; `forward` holds no size."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(0.5)
        self.second = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.head = nn.Linear(2 * width, 5)
        nn.init.normal_(self.norm.weight, 1, 0.2)
        nn.init.normal_(self.norm.bias, 0, 0.2)
        self.norm.running_mean.normal_(0, 0.1)
        self.norm.running_var.uniform_(0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.norm(self.first(x)).relu())
        return self.head(self.second(x).relu().mean((2, 3)))


class Literal(nn.Module):
    """A width in the code on both sides of a view: no class can be mended without freezing it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 64, 3, padding=1)
        self.norm = nn.BatchNorm2d(64)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(64 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.norm(self.conv(x)).relu(), 2)
        return self.head(self.dropout(x.view(-1, 64 * 4 * 4)))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 16)
        self.hidden = nn.Linear(16, 32)
        self.back = nn.Linear(32, 16)
        self.head = nn.Linear(16, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        return self.head(x + self.back(self.hidden(x).relu()))


class KeywordsOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 24), nn.Linear(4, 24)
        self.head = nn.Linear(24, 3)

    def forward(self, *, a: Tensor, b: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        hidden = (self.left(a) + self.right(b)).relu() * scale
        return {"logits": self.head(hidden), "mean": hidden.sum(-1, keepdim=True)}


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 24), nn.Linear(4, 24)
        self.one, self.two = nn.Linear(24, 3), nn.Linear(24, 2)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, list[Tensor]]:
        hidden = (self.left(a) + self.right(b)).relu()
        return self.one(hidden), [self.two(hidden), a]


class Buffers(nn.Module):
    """Buffers of channel size, one of them not saved, and a whole number."""

    offset: Tensor
    scale: Tensor
    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 64, bias=False)
        self.register_buffer("offset", torch.randn(64))
        self.register_buffer("scale", torch.rand(64) + 0.5, persistent=False)
        self.register_buffer("steps", torch.tensor(7))
        self.second = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) * self.scale)


class Vector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 64), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return build()


def images(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def graph_of(model: nn.Module, inputs: Any, ratio: float = 0.5) -> nn.Module:
    result: nn.Module = structprune.shrink(model, ratio, inputs, output="graph")
    assert isinstance(result, torch.fx.GraphModule)
    return result


def both(model: nn.Module, inputs: Any, ratio: float = 0.5) -> list[nn.Module]:
    """The result in its own class, and as a graph."""
    own = structprune.shrink(model, ratio, inputs, output="module")
    assert type(own) is type(model)
    return [own, graph_of(model, inputs, ratio)]


def tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [tensor for item in (result.values() if isinstance(result, dict) else result) for tensor in tensors(item)]
