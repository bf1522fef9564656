"""A mixture of experts: every token is served by its two best experts and by a shared one."""

import torch
from torch import Tensor, nn


class Expert(nn.Sequential):
    """A perceptron with one hidden layer."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class MixtureOfExperts(nn.Module):
    """Experts are computed densely; all but the two best have weight zero, so no control flow depends on data."""

    def __init__(self, width: int, hidden: int, experts: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(Expert(width, hidden) for _ in range(experts))
        self.shared = Expert(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.router(x)
        best, chosen = scores.topk(2, dim=-1)
        weights = torch.zeros_like(scores).scatter(-1, chosen, best.softmax(-1))
        outputs = torch.stack([expert(x) for expert in self.experts], dim=-2)
        mixed: Tensor = self.shared(x) + (weights.unsqueeze(-1) * outputs).sum(dim=-2)
        return mixed


class Block(nn.Module):
    """Tokens are mixed by a linear layer over positions, channels by the experts."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.across = nn.Linear(tokens, tokens)
        self.norm2 = nn.LayerNorm(width)
        self.experts = MixtureOfExperts(width, hidden=128, experts=4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        out: Tensor = x + self.experts(self.norm2(x))
        return out


class MoE(nn.Module):
    """Sixteen patches, 64 wide, through two blocks of four experts each."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 64, 4, stride=4)
        self.blocks = nn.Sequential(Block(64, tokens=16), Block(64, tokens=16))
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = self.norm(self.blocks(x))
        logits: Tensor = self.head(x.mean(1))
        return logits


def build() -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MoE().eval(), torch.randn(2, 1, 16, 16)
