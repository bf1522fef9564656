"""Operators that take the channels as a whole: which of them are exact when one is removed?"""

import torch
import torch.nn.functional as F
from torch import nn

from .parts import Image, Tokens, conv, head, image, stem, tokens, vector
from .registry import structure


@structure(image)
class SumChannels(Image):
    """A sum is exact."""

    def middle(self, x):
        return x * x.sum(1, keepdim=True)


@structure(image)
class SumOfSigmoid(Image):
    """A sum of sigmoids is not: a zeroed channel still adds a half."""

    def middle(self, x):
        return x * torch.sigmoid(x).sum(1, keepdim=True)


@structure(image)
class ProductOverChannels(Image):
    """A product over the channels becomes zero with one of them."""

    def middle(self, x):
        return x + (1 + 0.1 * x).prod(1, keepdim=True)


@structure(image)
class MeanChannels(Image):
    """A mean changes its divisor; with the maximum, the spatial gate of CBAM."""

    def __init__(self):
        super().__init__()
        self.gate = conv(2, 1, 7)

    def middle(self, x):
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * self.gate(pooled).sigmoid()


@structure(image)
class VarianceChannels(Image):
    """Variance and deviation over channels."""

    def middle(self, x):
        return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True) + x.var(1, keepdim=True)


@structure(image)
class MaxChannels(Image):
    """A zeroed channel may still be the largest."""

    def middle(self, x):
        return x - x.max(1, keepdim=True).values


@structure(image)
class LengthChannels(Image):
    """L2 and L1 norms are exact."""

    def middle(self, x):
        return x / (x.norm(dim=1, keepdim=True) + torch.linalg.vector_norm(x, 1, 1, keepdim=True))


@structure(image)
class LogSumExpChannels(Image):
    """A zeroed channel adds exp(0)."""

    def middle(self, x):
        return x - torch.logsumexp(x, 1, keepdim=True)


@structure(image)
class SoftmaxChannels(Image):
    """Softmax over the channels as a gate."""

    def middle(self, x):
        return x * x.softmax(1)


@structure(image)
class CumsumChannels(Image):
    """A running sum over the channels: zeroing passes the sum on."""

    def middle(self, x):
        return x.cumsum(1)


@structure(tokens)
class CumsumPlaces(Tokens):
    """A running sum over the places leaves the features alone."""

    def middle(self, x):
        return x.cumsum(1)


@structure(image)
class SortChannels(Image):
    """Sorted values have no channel any more."""

    def middle(self, x):
        return x.sort(dim=1).values


@structure(image)
class TopkChannels(Image):
    """The eight largest values, from whichever channels."""

    out = 8

    def middle(self, x):
        return x.topk(8, dim=1).values


@structure(image)
class ArgmaxGating(Image):
    """One-hot of the largest channel, as a mask."""

    def middle(self, x):
        return x * F.one_hot(x.mean((2, 3)).argmax(1), 16).to(x.dtype)[:, :, None, None]


@structure(tokens)
class Maxout(Tokens):
    """The largest of each four neighbours: the factor is fixed, the outer index is free."""

    width, out = 64, 16

    def middle(self, x):
        return x.view(*x.shape[:2], 16, 4).max(-1).values


@structure(image)
class MaxFeatureMap(Image):
    """The larger of two halves (LightCNN)."""

    out = 8

    def middle(self, x):
        return torch.maximum(*x.chunk(2, 1))


@structure(tokens)
class SumFactor(Tokens):
    """A sum over the outer factor of the width."""

    out = 8

    def middle(self, x):
        return x.view(*x.shape[:2], 4, 8).sum(2)


@structure(tokens)
class PoolFeatures(Tokens):
    """Average pooling along the features joins neighbours."""

    out = 16

    def middle(self, x):
        return F.avg_pool1d(x, 2)


@structure(tokens)
class CosineClassifier(Tokens):
    """Features and weight both of unit length, meeting on the pruned axis."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(32, 32))
        self.scale = nn.Parameter(torch.ones(()))

    def middle(self, x):
        return self.scale * F.linear(F.normalize(x, dim=-1), F.normalize(self.weight, dim=1))


@structure(lambda: (vector(), vector(8)))
class Bilinear(nn.Module):
    """A weight of three axes."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(12, 16), nn.Linear(8, 24)
        self.meet, self.tail = nn.Bilinear(16, 24, 20), head(20)

    def forward(self, x, y):
        return self.tail(self.meet(self.left(x).relu(), self.right(y).relu()))


@structure(lambda: vector())
class OuterProduct(Tokens):
    """One width twice in one product: `(d d)`."""

    width, out = 8, 64

    def middle(self, x):
        return torch.einsum("b i, b j -> b i j", x, x).flatten(1)


@structure(lambda: (vector(), vector(8)))
class OuterProductOfTwo(nn.Module):
    """Two widths in one product: `(p q)`."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.tail = nn.Linear(12, 16), nn.Linear(8, 12), head(16 * 12)

    def forward(self, x, y):
        return self.tail((self.left(x)[:, :, None] * self.right(y)[:, None]).flatten(1))


@structure(image)
class GramMatrix(nn.Module):
    """Channels against channels, flattened: both axes are the same width."""

    def __init__(self):
        super().__init__()
        self.stem, self.tail = stem(8), head(64)

    def forward(self, x):
        x = self.stem(x).flatten(2)
        return self.tail((x @ x.transpose(1, 2) / x.shape[2]).flatten(1))


@structure(image)
class GramUpper(nn.Module):
    """The upper triangle of the Gram matrix, by constant indices (factorisation machines, DLRM)."""

    def __init__(self):
        super().__init__()
        self.stem, self.tail = stem(8), head(28)
        self.register_buffer("pairs", torch.triu_indices(8, 8, 1))

    def forward(self, x):
        x = self.stem(x).flatten(2)
        return self.tail((x @ x.transpose(1, 2))[:, self.pairs[0], self.pairs[1]])


@structure(tokens)
class Distances(nn.Module):
    """cdist to learned prototypes: exact, as long as both lose the same features."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 32))
        self.prototypes, self.tail = nn.Parameter(torch.randn(10, 32)), head(10)

    def forward(self, x):
        return self.tail(torch.cdist(self.stem(x), self.prototypes))


@structure(tokens)
class CosineSimilarity(Tokens):
    """Two projections meet in a cosine, which weighs a third."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(32, 24), nn.Linear(32, 24)

    def middle(self, x):
        return x * F.cosine_similarity(self.one(x), self.two(x), dim=-1)[..., None]
