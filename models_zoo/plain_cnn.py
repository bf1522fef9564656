"""A plain convolutional network whose flattening is spelt as a literal view."""

import torch
from torch import Tensor, nn


def conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


class PlainCNN(nn.Module):
    """Four convolutions and two poolings, then two linear layers over the flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv(1, 32), conv(32, 64), nn.MaxPool2d(2), conv(64, 64), conv(64, 32), nn.MaxPool2d(2)
        )
        self.hidden = nn.Linear(32 * 4 * 4, 128)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = x.view(-1, 32 * 4 * 4)
        logits: Tensor = self.head(self.dropout(self.hidden(x).relu()))
        return logits


def build() -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PlainCNN().eval(), torch.randn(2, 1, 16, 16)
