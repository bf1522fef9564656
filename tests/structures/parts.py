"""What the structures share: inputs, and prunable layers before and after the middle."""

import torch
from torch import Tensor, nn


def image(channels: int = 3, size: int = 8) -> Tensor:
    return torch.randn(2, channels, size, size)


def tokens(length: int = 6, width: int = 12) -> Tensor:
    return torch.randn(2, length, width)


def vector(width: int = 12) -> Tensor:
    return torch.randn(2, width)


def ids(length: int = 6) -> Tensor:
    return torch.randint(0, 20, (2, length))


def conv(inner: int, outer: int, kernel: int = 3, **options) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, kernel, padding=kernel // 2, **options)


def stem(width: int, channels: int = 3) -> nn.Sequential:
    return nn.Sequential(conv(channels, 24), nn.ReLU(), conv(24, width))


def tail(width: int) -> nn.Sequential:
    return nn.Sequential(conv(width, 24), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5))


def embed(width: int, features: int = 12) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, 24), nn.GELU(), nn.Linear(24, width))


def head(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 24), nn.GELU(), nn.Linear(24, 5))


class Image(nn.Module):
    """Convolutions, the subclass's `middle` from `width` to `out` channels, convolution and classifier."""

    width = 16
    out: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.stem = stem(self.width)
        self.tail = tail(self.out or self.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.middle(self.stem(x)))

    def middle(self, x: Tensor) -> Tensor:
        raise NotImplementedError  # each structure gives its own


class Tokens(nn.Module):
    """Linear layers, the subclass's `middle` from `width` to `out` features, and a classifier (vectors too)."""

    width = 32
    out: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.stem = embed(self.width)
        self.tail = head(self.out or self.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.middle(self.stem(x)))

    def middle(self, x: Tensor) -> Tensor:
        raise NotImplementedError  # each structure gives its own
