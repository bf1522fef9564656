"""A ShuffleNet: split units with grouped convolutions, mixed by a channel shuffle."""

import torch
from torch import Tensor, nn


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Channel g * n + i moves to i * groups + g."""
    batch, channels, height, width = x.shape
    x = x.view(batch, groups, channels // groups, height, width)
    x = torch.transpose(x, 1, 2)
    return x.reshape(batch, channels, height, width)


def branch(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A grouped, a depthwise and a dense convolution."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, groups=4, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, stride, padding=1, groups=outputs, bias=False),
        nn.BatchNorm2d(outputs),
        nn.Conv2d(outputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class SplitUnit(nn.Module):
    """Half of the channels pass by, half are transformed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = branch(channels // 2, channels // 2, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x.chunk(2, 1)
        return shuffle(torch.cat((kept, self.branch(changed)), 1), 2)


class DownUnit(nn.Module):
    """Two strided branches over the whole input, which double the channels or keep them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.shortcut = nn.Sequential(
            nn.Conv2d(inputs, inputs, 3, 2, padding=1, groups=inputs, bias=False),
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs // 2, 1, bias=False),
            nn.BatchNorm2d(outputs // 2),
            nn.ReLU(),
        )
        self.branch = branch(inputs, outputs // 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return shuffle(torch.cat((self.shortcut(x), self.branch(x)), 1), 2)


class ShuffleNet(nn.Module):
    """Two stages of one strided unit and three split units, and a wide last convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.stage1 = nn.Sequential(DownUnit(32, 96), SplitUnit(96), SplitUnit(96), SplitUnit(96))
        self.stage2 = nn.Sequential(DownUnit(96, 192), SplitUnit(192), SplitUnit(192), SplitUnit(192))
        self.last = nn.Sequential(nn.Conv2d(192, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU())
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.stage2(self.stage1(self.stem(x))))
        logits: Tensor = self.head(x.mean([2, 3]))
        return logits


def build() -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ShuffleNet().eval(), torch.randn(2, 1, 16, 16)
