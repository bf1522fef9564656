"""Reshapes, shuffles, splits, concats, stacks, expands and repeats of the channels."""

import torch
from torch import nn

from .parts import Image, Tokens, conv, head, image, stem, tail, tokens
from .registry import structure


@structure(image)
def flatten_into_linear():
    """Each channel owns sixteen neighbouring inputs of the classifier."""
    return nn.Sequential(
        conv(3, 16, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 16, 24), nn.ReLU(), nn.Linear(24, 5)
    )


@structure(image)
class FlattenChannelsLast(nn.Module):
    """Flattened after a permute: each channel owns every sixteenth input."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = stem(16), head(16 * 64)

    def forward(self, x):
        return self.head(self.stem(x).permute(0, 2, 3, 1).flatten(1))


@structure(image)
class LiteralView(nn.Module):
    """`view(-1, 24 * 4 * 4)` as it is written in forward: no attribute can mend it."""

    def __init__(self):
        super().__init__()
        self.one, self.two = conv(3, 16, stride=2), conv(16, 24)
        self.fc1, self.fc2 = nn.Linear(24 * 4 * 4, 32), nn.Linear(32, 5)

    def forward(self, x):
        x = self.two(self.one(x).relu()).relu()
        return self.fc2(self.fc1(x.view(-1, 24 * 4 * 4)).relu())


@structure(image)
class ViewAttribute(nn.Module):
    """The same view by attributes that hold the old sizes."""

    def __init__(self):
        super().__init__()
        self.features, self.side = 16, 4
        self.stem, self.head = conv(3, 16, stride=2), head(16 * 16)

    def forward(self, x):
        return self.head(self.stem(x).view(x.shape[0], self.features * self.side * self.side))


@structure(tokens)
class LinearIntoImage(nn.Module):
    """A linear layer makes a volume, convolutions follow (generators)."""

    def __init__(self):
        super().__init__()
        self.stem, self.tail = nn.Linear(12, 16 * 4 * 4), tail(16)

    def forward(self, x):
        return self.tail(self.stem(x[:, 0]).view(-1, 16, 4, 4))


@structure(image)
class ChannelShuffle(Image):
    """Between grouped convolutions: `(g c) -> (c g)` by view and transpose."""

    width = 24

    def __init__(self):
        super().__init__()
        self.one, self.two = conv(24, 24, 1, groups=3), conv(24, 24, groups=4)

    def middle(self, x):
        x = self.one(x)
        b, c, h, w = x.shape
        return self.two(x.view(b, 3, c // 3, h, w).transpose(1, 2).reshape(b, c, h, w))


@structure(image)
def channel_shuffle_module():
    """The module of torch.nn."""
    return nn.Sequential(
        stem(16), conv(16, 32, groups=2), nn.ChannelShuffle(2), conv(32, 16, groups=4), nn.ReLU(), tail(16)
    )


@structure(image)
class ShuffleUnit(Image):
    """Half of the channels pass, the other half is transformed, and both are shuffled (ShuffleNet V2)."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(conv(8, 8, 1), nn.ReLU(), conv(8, 8, groups=8), conv(8, 8, 1))

    def middle(self, x):
        left, right = x.chunk(2, dim=1)
        x = torch.cat((left, self.branch(right)), 1)
        return x.reshape(x.shape[0], 2, -1, *x.shape[2:]).transpose(1, 2).flatten(1, 2)


@structure(image)
def pixel_shuffle():
    """Four channels become one channel of four pixels: they go together."""
    return nn.Sequential(stem(16), conv(16, 32), nn.PixelShuffle(2), nn.ReLU(), tail(8))


@structure(image)
def pixel_unshuffle():
    """One channel becomes four, side by side."""
    return nn.Sequential(stem(16), nn.PixelUnshuffle(2), conv(64, 16), nn.ReLU(), tail(16))


@structure(image)
class ConcatOfConcat(Image):
    """Each layer reads all before it (DenseNet), with a norm over the concat."""

    out = 40

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(), conv(c, 12)) for c in (16, 28))

    def middle(self, x):
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


@structure(image)
class ConcatWithItself(Image):
    """One width twice in one concat: the consumer is cut in two places."""

    out = 32

    def middle(self, x):
        return torch.cat([x, x], 1)


@structure(image)
class ConcatMismatched(Image):
    """Concats with different boundaries, added: 8 + 24 and 20 + 12."""

    out = 32

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList(conv(16, c) for c in (8, 24, 20, 12))

    def middle(self, x):
        a, b, c, d = (part(x) for part in self.parts)
        return torch.cat([a, b], 1) + torch.cat([c, d], 1)


@structure(image)
class SplitUneven(Image):
    """Split into 4, 8 and 4, each used differently."""

    out = 12

    def __init__(self):
        super().__init__()
        self.small, self.large = conv(4, 12), conv(8, 12)

    def middle(self, x):
        a, b, c = torch.split(x, [4, 8, 4], dim=1)
        return self.small(a) + self.large(b) * c.mean(1, keepdim=True)


@structure(image)
class ChunkUneven(Image):
    """Three chunks of 16 are 6, 6 and 4."""

    out = 6

    def __init__(self):
        super().__init__()
        self.last = conv(4, 6)

    def middle(self, x):
        a, b, c = x.chunk(3, 1)
        return a * b + self.last(c)


@structure(image)
class SplitHierarchy(Image):
    """Quarters in a chain: each adds the one before it (Res2Net)."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(conv(4, 4) for _ in range(3))

    def middle(self, x):
        first, *rest = x.split(4, dim=1)
        parts, last = [first], 0
        for layer, part in zip(self.convs, rest, strict=True):
            parts.append(last := layer(part + last).relu())
        return torch.cat(parts, 1)


@structure(tokens)
class UnbindFactor(Tokens):
    """A factor of the width is unbound, and its parts are weighed by hand."""

    out = 8

    def middle(self, x):
        a, b, c, d = x.view(*x.shape[:2], 4, 8).unbind(2)
        return a * b + torch.tanh(c) * d


@structure(tokens)
class SelectFactor(Tokens):
    """Two of the four parts are selected: nothing reads the others."""

    out = 8

    def middle(self, x):
        x = x.view(*x.shape[:2], 4, 8)
        return x.select(2, 1) + x[:, :, 3]


@structure(image)
class SelectChannel(Image):
    """One channel by its number gates the rest."""

    def middle(self, x):
        return x * x[:, 3].sigmoid()[:, None]


@structure(image)
class StackBranches(Image):
    """Branches on a new axis, weighed by softmax and summed (selective kernels)."""

    out = 24

    def __init__(self):
        super().__init__()
        self.one, self.two = conv(16, 24), conv(16, 24, 5)
        self.choose = nn.Linear(24, 48)

    def middle(self, x):
        stack = torch.stack([self.one(x), self.two(x)], 1)
        weight = self.choose(stack.sum(1).mean((2, 3))).view(-1, 2, 24).softmax(1)
        return (stack * weight[..., None, None]).sum(1)


@structure(image)
class StackInterleaved(Image):
    """Stacked behind the channels and flattened: two widths interleaved."""

    out = 32

    def __init__(self):
        super().__init__()
        self.other = conv(16, 16)

    def middle(self, x):
        return torch.stack([x, self.other(x)], 2).flatten(1, 2)


@structure(image)
class ExpandChannel(Image):
    """A map of one channel is expanded to all."""

    def __init__(self):
        super().__init__()
        self.map = conv(16, 1)

    def middle(self, x):
        return x + self.map(x).expand(-1, 16, -1, -1)


@structure(image)
class RepeatChannels(Image):
    """`repeat`: channel i is read at i and at 16 + i."""

    out = 32

    def middle(self, x):
        return x.repeat(1, 2, 1, 1)


@structure(image)
class RepeatInterleave(Image):
    """`repeat_interleave`: channel i is read at 2 i and 2 i + 1."""

    out = 32

    def middle(self, x):
        return x.repeat_interleave(2, dim=1)
