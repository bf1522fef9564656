"""Branches that part and meet: residuals, gates, pyramids."""

import torch
import torch.nn.functional as F
from torch import nn

from .parts import Image, Tokens, conv, head, image, stem, tail, tokens
from .registry import structure


def norm(inner: int, outer: int, kernel: int = 3, **options) -> nn.Sequential:
    return nn.Sequential(conv(inner, outer, kernel, bias=False, **options), nn.BatchNorm2d(outer))


@structure(image)
class ResidualBlocks(Image):
    """A basic block, and a bottleneck with a strided projection."""

    out = 32

    def __init__(self):
        super().__init__()
        self.basic = nn.Sequential(norm(16, 16), nn.ReLU(), norm(16, 16))
        self.deep = nn.Sequential(norm(16, 8, 1), nn.ReLU(), norm(8, 8, stride=2), nn.ReLU(), norm(8, 32, 1))
        self.project = norm(16, 32, 1, stride=2)

    def middle(self, x):
        x = (x + self.basic(x)).relu()
        return (self.project(x) + self.deep(x)).relu()


@structure(image)
class ResidualConstant(Image):
    """A constant is added: a zeroed channel is not zero behind it."""

    def __init__(self):
        super().__init__()
        self.branch = conv(16, 16)

    def middle(self, x):
        return torch.sigmoid(x + self.branch(x) + 1.0)


@structure(image)
class ResidualOutermost(nn.Module):
    """The image itself is added: its three channels freeze the width that meets them."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(conv(3, 24), nn.ReLU(), conv(24, 16), nn.ReLU(), conv(16, 3))
        self.tail = tail(3)

    def forward(self, x):
        return self.tail(x + self.body(x))


@structure(image)
class ResidualBroadcast(Image):
    """A width of one meets a width of sixteen: it is not the same axis."""

    def __init__(self):
        super().__init__()
        self.one, self.wide = conv(16, 1), conv(16, 16)

    def middle(self, x):
        return self.wide(x) + self.one(x)


@structure(image)
class SqueezeExcite(Image):
    """A gate computed from the pooled width multiplies that width."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 16), nn.Sigmoid())

    def middle(self, x):
        b, c, _, _ = x.shape
        return x * self.gate(F.adaptive_avg_pool2d(x, 1).view(b, c)).view(b, c, 1, 1)


@structure(image)
class ChannelConvGate(Image):
    """A gate by a convolution along the channels: neighbours matter (ECA)."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def middle(self, x):
        y = self.gate(x.mean((2, 3))[:, None])
        return x * y.sigmoid().transpose(1, 2)[..., None]


@structure(image)
class Inception(Image):
    """Four branches side by side."""

    out = 32

    def __init__(self):
        super().__init__()
        self.one, self.three = norm(16, 8, 1), nn.Sequential(norm(16, 6, 1), nn.ReLU(), norm(6, 12))
        self.five, self.pool = nn.Sequential(norm(16, 4, 1), nn.ReLU(), norm(4, 8, 5)), norm(16, 4, 1)

    def middle(self, x):
        pooled = self.pool(F.max_pool2d(x, 3, 1, 1))
        return torch.cat([self.one(x), self.three(x), self.five(x), pooled], 1).relu()


@structure(image)
class GhostModule(Image):
    """Half of the channels are depthwise ghosts of the other half, and then the concat is sliced."""

    out = 22

    def __init__(self):
        super().__init__()
        self.primary, self.cheap = conv(16, 12, 1), conv(12, 12, groups=12)

    def middle(self, x):
        x = self.primary(x)
        return torch.cat([x, self.cheap(x)], 1)[:, :22]


@structure(image)
class OctaveConv(Image):
    """Two resolutions exchange channels, and the input is split between them."""

    def __init__(self):
        super().__init__()
        self.hh, self.hl, self.lh, self.ll = conv(12, 12), conv(12, 4), conv(4, 12), conv(4, 4)

    def middle(self, x):
        high, low = x[:, :12], F.avg_pool2d(x[:, 12:], 2)
        high, low = (
            self.hh(high) + F.interpolate(self.lh(low), scale_factor=2),
            self.ll(low) + self.hl(F.avg_pool2d(high, 2)),
        )
        return torch.cat([high, F.interpolate(low, scale_factor=2)], 1).relu()


@structure(image)
class UNet(Image):
    """Skips are concatenated with what comes up through a transposed convolution."""

    def __init__(self):
        super().__init__()
        self.down, self.bottom = conv(16, 24, stride=2), conv(24, 32, stride=2)
        self.up1, self.up2 = nn.ConvTranspose2d(32, 24, 2, stride=2), nn.ConvTranspose2d(24, 16, 2, stride=2)
        self.join1, self.join2 = conv(48, 24), conv(32, 16)

    def middle(self, x):
        y = self.down(x).relu()
        z = self.up1(self.bottom(y).relu())
        z = self.join1(torch.cat([y, z], 1)).relu()
        return self.join2(torch.cat([x, self.up2(z)], 1)).relu()


@structure(image)
class FeaturePyramid(nn.Module):
    """Lateral sums of three resolutions, one shared head for all of them, three outputs."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList((conv(3, 16), conv(16, 24, stride=2), conv(24, 32, stride=2)))
        self.laterals = nn.ModuleList(nn.Conv2d(c, 16, 1) for c in (16, 24, 32))
        self.head = nn.Sequential(conv(16, 24), nn.ReLU(), conv(24, 5))

    def forward(self, x):
        levels = []
        for stage, lateral in zip(self.stages, self.laterals, strict=True):
            levels.append(lateral(x := stage(x).relu()))
        levels[1] = levels[1] + F.interpolate(levels[2], size=levels[1].shape[2:])
        levels[0] = levels[0] + F.interpolate(levels[1], size=levels[0].shape[2:])
        return [self.head(level) for level in levels]


@structure(image)
class FeatureFusion(Image):
    """Resolutions are fused by positive learned weights, normalised by their sum (BiFPN)."""

    def __init__(self):
        super().__init__()
        self.low, self.weight = conv(16, 16, stride=2), nn.Parameter(torch.ones(2))

    def middle(self, x):
        weight = self.weight.relu()
        weight = weight / (weight.sum() + 1e-4)
        return weight[0] * x + weight[1] * F.interpolate(self.low(x), scale_factor=2)


@structure(image)
class Hourglass(Image):
    """A recursion of down, inner and up, with additions at each size."""

    def __init__(self):
        super().__init__()
        self.sides = nn.ModuleList(nn.Sequential(norm(16, 8, 1), nn.ReLU(), norm(8, 16)) for _ in range(3))

    def middle(self, x, depth=2):
        if depth == 0:
            return self.sides[0](x)
        inner = self.middle(F.max_pool2d(x, 2), depth - 1)
        return self.sides[depth](x) + F.interpolate(inner, scale_factor=2)


@structure(image)
class WaveNetGate(Image):
    """tanh times sigmoid of the halves of one convolution, with a residual and a skip."""

    def __init__(self):
        super().__init__()
        self.gate, self.residual, self.skip = conv(16, 40), nn.Conv2d(20, 16, 1), nn.Conv2d(20, 16, 1)

    def middle(self, x):
        left, right = torch.split(self.gate(x), 20, dim=1)
        y = left.tanh() * right.sigmoid()
        return (x + self.residual(y)).relu() + self.skip(y)


@structure(tokens)
class Highway(Tokens):
    """A gate weighs a layer against its input."""

    def __init__(self):
        super().__init__()
        self.transform, self.gate = nn.Linear(32, 32), nn.Linear(32, 32)

    def middle(self, x):
        gate = self.gate(x).sigmoid()
        return gate * self.transform(x).relu() + (1 - gate) * x


@structure(image)
class MultiResolution(nn.Module):
    """Parallel resolutions that exchange by addition, joined at the end (HRNet)."""

    def __init__(self):
        super().__init__()
        self.stem, self.down, self.tail = stem(16), conv(16, 24, stride=2), tail(40)
        self.up, self.mix = nn.Conv2d(24, 16, 1), nn.ModuleList((conv(16, 16), conv(24, 24), conv(16, 24, stride=2)))

    def forward(self, x):
        high = self.stem(x)
        low = self.down(high)
        high, low = self.mix[0](high), self.mix[1](low)
        high, low = high + F.interpolate(self.up(low), scale_factor=2), low + self.mix[2](high)
        return self.tail(torch.cat([high, F.interpolate(low, scale_factor=2)], 1).relu())


@structure(image)
class InvertedResidual(Image):
    """Expand, depthwise with squeeze-and-excite by convolutions, project, add."""

    def __init__(self):
        super().__init__()
        self.expand, self.depthwise, self.project = norm(16, 48, 1), norm(48, 48, groups=48), norm(48, 16, 1)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(48, 8, 1), nn.SiLU(), nn.Conv2d(8, 48, 1))

    def middle(self, x):
        y = F.hardswish(self.depthwise(F.hardswish(self.expand(x))))
        return x + self.project(y * F.hardsigmoid(self.gate(y)))


@structure(tokens)
class TwoHeadsOnePooled(nn.Module):
    """One width feeds a classifier per place, and one of the pooled places: two outputs."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU())
        self.each, self.all = nn.Linear(32, 5), head(32)

    def forward(self, x):
        x = self.body(x)
        return self.each(x), self.all(x.mean(1))


@structure(image)
class ConcatReordered(Image):
    """Concats of the same parts in two orders, added: the parts must agree crosswise."""

    out = 32

    def __init__(self):
        super().__init__()
        self.other = conv(16, 16)

    def middle(self, x):
        y = self.other(x)
        return torch.cat([x, y], 1) + torch.cat([y, x], 1)
