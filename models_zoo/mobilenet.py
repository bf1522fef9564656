"""A small MobileNet v3: inverted residuals, depthwise convolutions, squeeze-and-excite, hardswish."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SqueezeExcite(nn.Module):
    """Scales every channel by a gate computed from the pooled map."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.adaptive_avg_pool2d(x, 1)
        gate = F.relu(self.reduce(gate))
        return x * F.hardsigmoid(self.expand(gate))


class InvertedResidual(nn.Module):
    """Expand, filter depthwise, excite, project; added to the input where the shapes agree."""

    def __init__(self, inputs: int, expanded: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.is_residual = stride == 1 and inputs == outputs
        self.body = nn.Sequential(
            nn.Conv2d(inputs, expanded, 1, bias=False),
            nn.BatchNorm2d(expanded),
            nn.Hardswish(),
            nn.Conv2d(expanded, expanded, kernel, stride, padding=kernel // 2, groups=expanded, bias=False),
            nn.BatchNorm2d(expanded),
            nn.Hardswish(),
            SqueezeExcite(expanded, expanded // 4),
            nn.Conv2d(expanded, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return x + out if self.is_residual else out


class MobileNet(nn.Module):
    """Six inverted residuals between a strided stem and a wide head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 2, padding=1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
        self.blocks = nn.Sequential(
            InvertedResidual(16, 64, 16, kernel=3, stride=1),
            InvertedResidual(16, 64, 32, kernel=3, stride=2),
            InvertedResidual(32, 128, 32, kernel=5, stride=1),
            InvertedResidual(32, 128, 32, kernel=3, stride=1),
            InvertedResidual(32, 128, 64, kernel=3, stride=2),
            InvertedResidual(64, 256, 64, kernel=5, stride=1),
        )
        self.last = nn.Sequential(nn.Conv2d(64, 128, 1, bias=False), nn.BatchNorm2d(128), nn.Hardswish())
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.blocks(self.stem(x)))
        logits: Tensor = self.head(x.mean([2, 3]))
        return logits


def build() -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MobileNet().eval(), torch.randn(2, 1, 32, 32)
