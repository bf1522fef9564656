"""A U-Net whose per-pixel class map is averaged into one prediction."""

import torch
from torch import Tensor, nn


def double_conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """Two levels down by pooling, two up by transposed convolution, joined by concatenated skips."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = double_conv(1, 16)
        self.down2 = double_conv(16, 32)
        self.bottom = double_conv(32, 64)
        self.pool = nn.MaxPool2d(2)
        self.up2 = nn.ConvTranspose2d(64, 32, 2, stride=2)
        self.merge2 = double_conv(64, 32)
        self.up1 = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.merge1 = double_conv(32, 16)
        self.classes = nn.Conv2d(16, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip1 = self.down1(x)
        skip2 = self.down2(self.pool(skip1))
        x = self.bottom(self.pool(skip2))
        x = self.merge2(torch.cat([skip2, self.up2(x)], dim=1))
        x = self.merge1(torch.cat([skip1, self.up1(x)], dim=1))
        per_pixel: Tensor = self.classes(x)
        return per_pixel.mean(dim=(2, 3))


def build() -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet().eval(), torch.randn(2, 1, 16, 16)
