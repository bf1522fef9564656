"""A Swin transformer: attention within shifted windows, biased by relative position; patch merging."""

import torch
from torch import Tensor, nn


def partition(x: Tensor, window: int) -> Tensor:
    """(batch, height, width, channels) to (batch * windows, window * window, channels)."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, window * window, channels)


def unpartition(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of `partition`."""
    channels = windows.shape[-1]
    x = windows.view(-1, height // window, width // window, window, window, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, channels)


def relative_index(window: int) -> Tensor:
    """For each pair of tokens of a window, the row of the bias table for their offset."""
    axis = torch.arange(window)
    position = torch.stack(torch.meshgrid(axis, axis, indexing="ij")).flatten(1)
    offset = position[:, :, None] - position[:, None, :] + window - 1
    return offset[0] * (2 * window - 1) + offset[1]


def shift_mask(size: int, window: int, shift: int) -> Tensor:
    """-100 between tokens of one window that the roll brought together from opposite edges."""
    edge = torch.zeros(size, dtype=torch.long)
    edge[size - window : size - shift] = 1
    edge[size - shift :] = 2
    region = partition((3 * edge[:, None] + edge[None, :])[None, :, :, None], window).squeeze(-1)
    return -100.0 * (region[:, :, None] != region[:, None, :]).float()


class WindowAttention(nn.Module):
    """Self-attention within each window, with a learned bias per head and offset."""

    index: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = float(width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.bias_table = nn.Parameter(0.02 * torch.randn((2 * window - 1) ** 2, heads))
        self.register_buffer("index", relative_index(window))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        windows, tokens, width = x.shape
        qkv = self.qkv(x).reshape(windows, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        scores = (q * self.scale) @ k.transpose(-2, -1)
        bias = self.bias_table[self.index.view(-1)].view(tokens, tokens, -1).permute(2, 0, 1)
        scores = scores + bias.unsqueeze(0)
        if mask is not None:
            scores = scores.view(-1, mask.shape[0], self.heads, tokens, tokens) + mask.unsqueeze(1).unsqueeze(0)
            scores = scores.view(-1, self.heads, tokens, tokens)
        x = (scores.softmax(-1) @ v).transpose(1, 2).reshape(windows, tokens, width)
        out: Tensor = self.project(x)
        return out


class Block(nn.Module):
    """Window attention over the map, rolled by `shift`, then a perceptron."""

    mask: Tensor | None

    def __init__(self, width: int, heads: int, size: int, window: int, shift: int) -> None:
        super().__init__()
        self.window = window
        self.shift = shift
        self.norm1 = nn.LayerNorm(width)
        self.attention = WindowAttention(width, heads, window)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.register_buffer("mask", shift_mask(size, window, shift) if shift else None)

    def forward(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        out = self.norm1(x)
        if self.shift:
            out = torch.roll(out, shifts=(-self.shift, -self.shift), dims=(1, 2))
        out = self.attention(partition(out, self.window), self.mask)
        out = unpartition(out, self.window, height, width)
        if self.shift:
            out = torch.roll(out, shifts=(self.shift, self.shift), dims=(1, 2))
        x = x + out
        total: Tensor = x + self.mlp(self.norm2(x))
        return total


class PatchMerging(nn.Module):
    """Joins each square of four tokens and projects it to twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduce = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
        merged: Tensor = self.reduce(self.norm(torch.cat(corners, -1)))
        return merged


class Swin(nn.Module):
    """Two stages of a plain and a shifted block: 8x8 tokens 32 wide, then 4x4 tokens 64 wide."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 32, 2, stride=2)
        self.norm0 = nn.LayerNorm(32)
        self.stage1 = nn.Sequential(*(Block(32, heads=2, size=8, window=4, shift=shift) for shift in (0, 2)))
        self.merging = PatchMerging(32)
        self.stage2 = nn.Sequential(*(Block(64, heads=4, size=4, window=2, shift=shift) for shift in (0, 1)))
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm0(self.patches(x).permute(0, 2, 3, 1))
        x = self.stage2(self.merging(self.stage1(x)))
        logits: Tensor = self.head(self.norm(x).mean(dim=(1, 2)))
        return logits


def build() -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Swin().eval(), torch.randn(2, 1, 16, 16)
