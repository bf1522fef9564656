"""Weights and paths that depend on the data: experts, conditioning, hypernetworks."""

import torch
import torch.nn.functional as F
from torch import nn

from .parts import Image, Tokens, embed, head, image, stem, tail, tokens, vector
from .registry import structure


def expert() -> nn.Sequential:
    return nn.Sequential(nn.Linear(32, 24), nn.GELU(), nn.Linear(24, 32))


@structure(tokens)
class ExpertsDense(Tokens):
    """All experts run, a softmax weighs them: the number of experts is fixed, their widths are not."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(32, 4, bias=False), nn.ModuleList(expert() for _ in range(4))

    def middle(self, x):
        outputs = torch.stack([run(x) for run in self.experts], -2)
        return (self.gate(x).softmax(-1)[..., None] * outputs).sum(-2)


@structure(tokens)
class ExpertsTopkDense(Tokens):
    """The two best of four by topk and scatter, all of them computed."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(32, 4, bias=False), nn.ModuleList(expert() for _ in range(4))

    def middle(self, x):
        best, which = self.gate(x).topk(2, -1)
        weight = torch.zeros_like(self.gate(x)).scatter(-1, which, best.softmax(-1))
        return sum(weight[..., i, None] * run(x) for i, run in enumerate(self.experts))


@structure(tokens)
class ExpertsIndexAdd(Tokens):
    """Each expert runs on the places that chose it, found by torch.where: sizes depend on the data (Mixtral)."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(32, 4, bias=False), nn.ModuleList(expert() for _ in range(4))

    def middle(self, x):
        flat = x.reshape(-1, x.shape[-1])
        best, which = self.gate(flat).softmax(-1).topk(2, -1)
        result = torch.zeros_like(flat)
        for i, run in enumerate(self.experts):
            place, rank = torch.where(which == i)
            result.index_add_(0, place, run(flat[place]) * best[place, rank, None])
        return result.view_as(x)


@structure(tokens)
class ExpertsStacked(Tokens):
    """Expert weights are stacked in parameters of three axes, with a fused gate (Llama 4)."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(32, 4, bias=False)
        self.up, self.down = nn.Parameter(0.2 * torch.randn(4, 32, 48)), nn.Parameter(0.2 * torch.randn(4, 24, 32))

    def middle(self, x):
        flat = x.reshape(-1, 32)
        weight = self.gate(flat).sigmoid().t()
        gate, up = torch.bmm(flat.expand(4, -1, -1), self.up).chunk(2, dim=-1)
        return x + (torch.bmm(F.silu(gate) * up, self.down) * weight[..., None]).sum(0).view_as(x)


@structure(tokens)
class ExpertsGathered(Tokens):
    """The weights of the best expert are gathered for each place."""

    def __init__(self):
        super().__init__()
        self.gate, self.weight = nn.Linear(32, 4), nn.Parameter(0.2 * torch.randn(4, 32, 32))

    def middle(self, x):
        return torch.einsum("bni,bnio->bno", x, self.weight[self.gate(x).argmax(-1)])


@structure(lambda: (image(), vector(8)))
class FeatureModulation(nn.Module):
    """A vector gives each channel a scale and a shift (FiLM): `(2 c)`."""

    def __init__(self):
        super().__init__()
        self.stem, self.tail, self.modulate = stem(16), tail(16), nn.Linear(8, 32)

    def forward(self, x, y):
        scale, shift = self.modulate(y)[:, :, None, None].chunk(2, 1)
        return self.tail(self.stem(x) * (1 + scale) + shift)


@structure(lambda: (tokens(), vector(8)))
class AdaptiveNorm(nn.Module):
    """A norm without affine, six modulations from one layer (DiT)."""

    def __init__(self):
        super().__init__()
        self.stem, self.tail, self.norm = embed(32), head(32), nn.LayerNorm(32, elementwise_affine=False)
        self.modulate = nn.Sequential(nn.SiLU(), nn.Linear(8, 6 * 32))
        self.one, self.two = nn.Linear(32, 32), nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 32))

    def forward(self, x, y):
        x = self.stem(x)
        a, b, c, d, e, f = self.modulate(y).unsqueeze(1).chunk(6, dim=-1)
        x = x + c * self.one(self.norm(x) * (1 + a) + b)
        return self.tail(x + f * self.two(self.norm(x) * (1 + d) + e))


@structure(lambda: (image(), vector(8)))
class AdaptiveInstanceNorm(nn.Module):
    """Instance statistics of the image, replaced by those of a style."""

    def __init__(self):
        super().__init__()
        self.stem, self.tail, self.style = stem(16), tail(16), nn.Linear(8, 32)

    def forward(self, x, y):
        mean, deviation = self.style(y).view(-1, 2, 16, 1, 1).unbind(1)
        return self.tail(F.instance_norm(self.stem(x)) * deviation + mean)


@structure(lambda: (image(), vector(8)))
class ModulatedConv(nn.Module):
    """The weight is scaled per image and input, and normalised per output (StyleGAN 2), one image at a time."""

    def __init__(self):
        super().__init__()
        self.stem, self.tail, self.style = stem(16), tail(24), nn.Linear(8, 16)
        self.weight = nn.Parameter(0.1 * torch.randn(24, 16, 3, 3))

    def forward(self, x, y):
        style = self.style(y)
        length = torch.einsum("bi,oihw->bo", style.square(), self.weight.square()).add(1e-6).rsqrt()
        x = F.conv2d(self.stem(x) * style[:, :, None, None], self.weight, padding=1)
        return self.tail(x * length[:, :, None, None])


@structure(lambda: (tokens(), vector(8)), prunable=False)
class Hypernetwork(nn.Module):
    """A layer's output is viewed as the weight of another: `(o i)`."""

    def __init__(self):
        super().__init__()
        self.stem, self.tail = embed(16), head(20)
        self.make, self.bias = nn.Linear(8, 20 * 16), nn.Linear(8, 20)

    def forward(self, x, y):
        weight = self.make(y).view(-1, 20, 16)
        return self.tail(torch.baddbmm(self.bias(y)[:, None], self.stem(x), weight.transpose(1, 2)).relu())


@structure(lambda: (tokens(), torch.tensor([2, 0])))
class LabelConcat(nn.Module):
    """A one-hot label is put beside the features, and one of its embedding."""

    def __init__(self):
        super().__init__()
        self.stem, self.tail, self.label = embed(32), head(32 + 4 + 8), nn.Embedding(4, 8)

    def forward(self, x, label):
        x = self.stem(x).mean(1)
        return self.tail(torch.cat([x, F.one_hot(label, 4).to(x.dtype), self.label(label)], 1))


@structure(tokens)
class VectorQuantised(Tokens):
    """Each place takes the nearest row of a codebook, straight through."""

    def __init__(self):
        super().__init__()
        self.code = nn.Embedding(10, 32)

    def middle(self, x):
        nearest = self.code(torch.cdist(x, self.code.weight[None]).argmin(-1))
        return x + (nearest - x).detach()


@structure(image)
class PathByValue(Image):
    """Python decides between two branches by a value."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 3, padding=1)

    def middle(self, x):
        return self.one(x) if float(x.mean()) > 1e3 else self.two(x)


@structure(tokens)
class GraphConvolution(Tokens):
    """Messages along constant edges: gathered by the source, added at the target."""

    def __init__(self):
        super().__init__()
        self.message, self.own = nn.Linear(64, 32), nn.Linear(32, 32)
        self.register_buffer("edges", torch.tensor([[0, 1, 2, 3, 4, 5, 0], [1, 2, 3, 4, 5, 0, 3]]))

    def middle(self, x):
        source, target = self.edges
        message = self.message(torch.cat([x[:, source], x[:, target]], -1)).relu()
        return self.own(x) + torch.zeros_like(x).index_add(1, target, message)
