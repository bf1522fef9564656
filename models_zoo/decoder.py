"""A causal decoder of the Llama kind that reads an image as 64 tokens of intensity 0 to 16."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LENGTH = 64
VOCABULARY = 17


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turns the pair (i, i + half) of each head by its position's angle."""
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-second, first), dim=-1) * sine


def repeat_heads(x: Tensor, times: int) -> Tensor:
    """Each key or value head serves `times` query heads."""
    batch, heads, tokens, width = x.shape
    x = x[:, :, None, :, :].expand(batch, heads, times, tokens, width)
    return x.reshape(batch, heads * times, tokens, width)


class Attention(nn.Module):
    """Causal grouped-query attention with rotary positions."""

    cosine: Tensor
    sine: Tensor

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.head_width = width // heads
        self.sharing = heads // kv_heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, kv_heads * self.head_width, bias=False)
        self.value = nn.Linear(width, kv_heads * self.head_width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        frequency = 10000.0 ** (-torch.arange(0, self.head_width, 2) / self.head_width)
        angle = torch.outer(torch.arange(LENGTH), frequency).repeat(1, 2)
        self.register_buffer("cosine", angle.cos(), persistent=False)
        self.register_buffer("sine", angle.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q = self.query(x).view(batch, tokens, -1, self.head_width).transpose(1, 2)
        k = self.key(x).view(batch, tokens, -1, self.head_width).transpose(1, 2)
        v = self.value(x).view(batch, tokens, -1, self.head_width).transpose(1, 2)
        q, k = rotate(q, self.cosine, self.sine), rotate(k, self.cosine, self.sine)
        k, v = repeat_heads(k, self.sharing), repeat_heads(v, self.sharing)
        x = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.output(x.transpose(1, 2).reshape(batch, tokens, -1))
        return out


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


class Block(nn.Module):
    """Pre-normalized attention and gated perceptron, each added to its input."""

    def __init__(self, width: int, heads: int, kv_heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width)
        self.attention = Attention(width, heads, kv_heads)
        self.norm2 = RMSNorm(width)
        self.mlp = SwiGLU(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Decoder(nn.Module):
    """Three blocks, 64 wide, four query heads on two key heads; the last token predicts the class."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 64)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(64, heads=4, kv_heads=2, hidden=160) for _ in range(3))
        self.norm = RMSNorm(64)
        self.head = nn.Linear(64, 10, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x[:, -1]))
        return logits


def build() -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Decoder().eval(), torch.randint(VOCABULARY, (2, LENGTH))
