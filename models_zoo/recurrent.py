"""Recurrent layers that read an image as eight rows of eight pixels."""

import torch
from torch import Tensor, nn


class Recurrent(nn.Module):
    """A stacked bidirectional LSTM, then a GRU whose last state is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 64, num_layers=2, batch_first=True, bidirectional=True)
        self.norm = nn.LayerNorm(128)
        self.gru = nn.GRU(128, 64, batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, rows: Tensor) -> Tensor:
        states, _ = self.lstm(rows)
        _, last = self.gru(self.norm(states))
        logits: Tensor = self.head(last[-1])
        return logits


def build() -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Recurrent().eval(), torch.randn(2, 8, 8)
