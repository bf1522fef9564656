"""A densely connected network: every layer reads the concatenation of all before it in its block."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DenseLayer(nn.Module):
    """Pre-activated bottleneck that produces `growth` new channels."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(F.relu(self.norm1(x)))
        new: Tensor = self.conv2(F.relu(self.norm2(x)))
        return new


class DenseBlock(nn.Module):
    """Layers over a growing list of maps, concatenated anew for each."""

    def __init__(self, inputs: int, growth: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DenseLayer(inputs + i * growth, growth) for i in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for layer in self.layers:
            maps.append(layer(torch.cat(maps, 1)))
        return torch.cat(maps, 1)


class Transition(nn.Sequential):
    """Changes the channels by a 1x1 convolution and halves the size."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, outputs, 1, bias=False), nn.AvgPool2d(2))


class DenseNet(nn.Module):
    """Three dense blocks of four layers that grow by 16 channels each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, padding=1, bias=False)
        self.block1 = DenseBlock(32, growth=16, depth=4)
        self.transition1 = Transition(96, 48)
        self.block2 = DenseBlock(48, growth=16, depth=4)
        self.transition2 = Transition(112, 64)
        self.block3 = DenseBlock(64, growth=16, depth=4)
        self.norm = nn.BatchNorm2d(128)
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.transition1(self.block1(self.stem(x)))
        x = self.transition2(self.block2(x))
        x = F.relu(self.norm(self.block3(x)))
        logits: Tensor = self.head(F.adaptive_avg_pool2d(x, (1, 1)).flatten(1))
        return logits


def build() -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DenseNet().eval(), torch.randn(2, 1, 16, 16)
