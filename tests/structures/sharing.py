"""Modules and parameters used more than once, or never; embeddings; buffers."""

import torch
import torch.nn.functional as F
from torch import nn

from .parts import Image, Tokens, conv, embed, head, ids, image, stem, tail, tokens
from .registry import structure


@structure(tokens)
class SharedTwice(Tokens):
    """One layer called on its own result: its input and output widths are one."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(32, 32)

    def middle(self, x):
        return self.layer(self.layer(x).relu())


@structure(tokens)
class SharedResidual(Tokens):
    """One block of attention and layers, repeated (ALBERT): its hidden width is free."""

    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(32), nn.Linear(32, 48), nn.Linear(48, 32)

    def middle(self, x):
        for _ in range(3):
            x = x + self.down(F.gelu(self.up(self.norm(x))))
        return x


@structure(lambda: (image(), image(4)))
class SharedTwins(nn.Module):
    """Two stems of their own lead into one shared body: their widths are one."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.tail = stem(16), stem(16, 4), head(48)
        self.body = nn.Sequential(conv(16, 24), nn.BatchNorm2d(24), nn.ReLU())

    def forward(self, x, y):
        x, y = self.body(self.left(x)).mean((2, 3)), self.body(self.right(y)).mean((2, 3))
        return self.tail(torch.cat([x - y, x * y], 1))


@structure(image)
class SharedPyramid(Image):
    """One convolution over images of several sizes, with norms of their own."""

    def __init__(self):
        super().__init__()
        self.conv = conv(16, 16)
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(2))

    def middle(self, x):
        small = self.norms[1](self.conv(F.avg_pool2d(x, 2)))
        return self.norms[0](self.conv(x)) + F.interpolate(small, scale_factor=2)


@structure(image)
class SharedOverParts(Image):
    """One convolution on each half of a concat of unequal parts: halves and parts must agree."""

    out = 24

    def __init__(self):
        super().__init__()
        self.left, self.right, self.shared = conv(16, 12), conv(16, 20), conv(16, 12)

    def middle(self, x):
        x = torch.cat([self.left(x), self.right(x)], 1)
        return torch.cat([self.shared(half).relu() for half in x.chunk(2, 1)], 1)


@structure(tokens)
class SharedNorm(Tokens):
    """One norm and one activation with a slope, used for two widths that nothing else ties."""

    out = 24

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(32, 24), nn.Linear(24, 24)
        self.norm, self.slope = nn.LayerNorm(24), nn.PReLU()

    def middle(self, x):
        return self.slope(self.norm(self.two(self.slope(self.norm(self.one(x))))))


@structure(ids)
class TiedEmbedding(nn.Module):
    """The head's weight is the embedding: the words are outputs and stay, the width goes from both."""

    def __init__(self):
        super().__init__()
        self.words, self.layer = nn.Embedding(20, 32), nn.Linear(32, 32)
        self.head = nn.Linear(32, 20, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x):
        x = self.words(x)
        return self.head(x + self.layer(x).relu())


@structure(tokens)
class TiedLinears(Tokens):
    """Two layers hold one weight and biases of their own."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(32, 32), nn.Linear(32, 32)
        self.two.weight = self.one.weight

    def middle(self, x):
        return self.one(x).relu() + self.two(x.tanh())


@structure(tokens)
class TiedTransposed(Tokens):
    """An autoencoder whose decoder is the encoder's weight transposed."""

    def __init__(self):
        super().__init__()
        self.encoder, self.bias = nn.Linear(32, 20), nn.Parameter(torch.zeros(32))

    def middle(self, x):
        return F.linear(self.encoder(x).relu(), self.encoder.weight.t(), self.bias)


@structure(tokens)
class TiedSlices(Tokens):
    """Two layers read slices of one parameter."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(0.2 * torch.randn(56, 32))

    def middle(self, x):
        return F.linear(F.linear(x, self.weight[:24]).relu(), self.weight[:24].t()) + F.linear(x, self.weight[24:])


@structure(ids)
def embedding():
    """The width of a table of words."""
    return nn.Sequential(nn.Embedding(20, 24), nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 5))


@structure(lambda: (torch.randint(0, 20, (9,)), torch.tensor([0, 4])))
class EmbeddingBag(nn.Module):
    """Rows are summed, and averaged, between offsets."""

    def __init__(self):
        super().__init__()
        self.total, self.mean = nn.EmbeddingBag(20, 24, mode="sum"), nn.EmbeddingBag(20, 16, mode="mean")
        self.tail = head(40)

    def forward(self, words, offsets):
        return self.tail(torch.cat([self.total(words, offsets), self.mean(words, offsets)], 1))


@structure(lambda: torch.randint(0, 6, (2, 4)))
class EmbeddingFields(nn.Module):
    """A table for each field, stacked, interacting by sums of squares (factorisation machine)."""

    def __init__(self):
        super().__init__()
        self.fields = nn.ModuleList(nn.Embedding(6, 24) for _ in range(4))
        self.tail = head(24)

    def forward(self, x):
        x = torch.stack([field(x[:, i]) for i, field in enumerate(self.fields)], 1)
        return self.tail(x.sum(1).square() - x.square().sum(1))


@structure(ids)
class EmbeddingScaled(nn.Module):
    """Scaled by the root of a width held as an attribute: it must stay the old one."""

    def __init__(self):
        super().__init__()
        self.width, self.words, self.tail = 32, nn.Embedding(20, 32), head(32)

    def forward(self, x):
        return self.tail(self.words(x) * self.width**0.5)


@structure(tokens)
class BuffersOfWidth(Tokens):
    """Buffers of the width: a mask of ones and zeros, an average that is not saved, an order that is never read."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", (torch.arange(32) % 3 > 0).float())
        self.register_buffer("average", torch.randn(32), persistent=False)
        self.register_buffer("order", torch.arange(32))

    def middle(self, x):
        return (x - self.average) * self.mask


@structure(tokens)
class ConstantsOfWidth(Tokens):
    """Tables of the width made in forward: each index has its own value, read from the size."""

    def middle(self, x):
        n, c = x.shape[1:]
        rate = torch.exp(-torch.arange(0, c, 2, device=x.device, dtype=x.dtype) / c)
        angle = torch.arange(n, device=x.device, dtype=x.dtype)[:, None] * rate
        return x + torch.cat([angle.sin(), angle.cos()], -1) + torch.linspace(0, 1, c, device=x.device, dtype=x.dtype)


@structure(tokens)
class ScaleFromSize(Tokens):
    """A sum divided by the size, and a product with ones of the size: means in disguise."""

    def middle(self, x):
        mean = x.sum(-1, keepdim=True) / x.shape[-1]
        return x - mean * (x @ x.new_ones(x.shape[-1], 1)) / x.size(2) ** 0.5


@structure(tokens)
class UnusedParameters(Tokens):
    """A layer, a parameter and a norm that nothing calls."""

    def __init__(self):
        super().__init__()
        self.never, self.mask_token = nn.Linear(32, 8), nn.Parameter(torch.zeros(1, 1, 32))
        self.norm = nn.LayerNorm(32)

    def middle(self, x):
        return x.relu()


@structure(image)
class UnusedBranch(Image):
    """A branch that is computed and thrown away."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Conv2d(16, 12, 1)

    def middle(self, x):
        self.branch(x)
        return x


@structure(image)
class NestedContainers(nn.Module):
    """Sequentials in lists in dictionaries in Sequentials."""

    def __init__(self):
        super().__init__()
        self.levels = nn.ModuleDict({
            "first": nn.ModuleList([nn.Sequential(nn.Sequential(stem(16)), nn.ReLU())]),
            "second": nn.ModuleList([nn.ModuleDict({"a": conv(16, 24), "b": nn.Sequential(conv(16, 24), nn.ReLU())})]),
        })
        self.end = nn.Sequential(nn.Sequential(nn.Identity(), tail(24)))

    def forward(self, x):
        x = self.levels["first"][0](x)
        both = self.levels["second"][0]
        return self.end(both["a"](x) + both["b"](x))


@structure(tokens)
class AdaptersFrozen(nn.Module):
    """The whole body has `requires_grad=False`: only the adapters train, all of it may be cut."""

    def __init__(self):
        super().__init__()
        self.stem, self.body = embed(32), nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 32))
        self.stem.requires_grad_(False)
        self.body.requires_grad_(False)
        self.tail = head(32)

    def forward(self, x):
        x = self.stem(x)
        return self.tail(x + self.body(x))
