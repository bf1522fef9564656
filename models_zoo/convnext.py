"""A ConvNeXt: depthwise 7x7 convolutions, channels-last normalization and perceptrons, layer scale."""

import torch
from torch import Tensor, nn


class ChannelNorm(nn.LayerNorm):
    """Layer normalization over the channels of a channels-first map."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """A depthwise convolution, then a scaled perceptron over the channels, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.expand = nn.Linear(channels, 4 * channels)
        self.gelu = nn.GELU()
        self.project = nn.Linear(4 * channels, channels)
        self.layer_scale = nn.Parameter(0.1 * torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.depthwise(x).permute(0, 2, 3, 1)
        out = self.project(self.gelu(self.expand(self.norm(out))))
        out = (self.layer_scale * out).permute(0, 3, 1, 2)
        return x + out


class ConvNeXt(nn.Module):
    """Three stages of two blocks: 32, 64 and 96 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 4, stride=4), ChannelNorm(32, eps=1e-6))
        self.stage1 = nn.Sequential(Block(32), Block(32))
        self.down1 = nn.Sequential(ChannelNorm(32, eps=1e-6), nn.Conv2d(32, 64, 2, stride=2))
        self.stage2 = nn.Sequential(Block(64), Block(64))
        self.down2 = nn.Sequential(ChannelNorm(64, eps=1e-6), nn.Conv2d(64, 96, 2, stride=2))
        self.stage3 = nn.Sequential(Block(96), Block(96))
        self.norm = nn.LayerNorm(96, eps=1e-6)
        self.head = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage1(self.stem(x))
        x = self.stage2(self.down1(x))
        x = self.stage3(self.down2(x))
        logits: Tensor = self.head(self.norm(x.mean([-2, -1])))
        return logits


def build() -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ConvNeXt().eval(), torch.randn(2, 1, 32, 32)
