"""Norms with and without statistics and affine, fused and by hand, over one axis and several."""

import torch
import torch.nn.functional as F
from torch import nn

from .parts import Image, Tokens, conv, embed, head, image, stem, tail, tokens, vector
from .registry import structure


@structure(image)
def batch_norm():
    """Four tensors of channel size follow the channels."""
    return nn.Sequential(
        conv(3, 16, bias=False), nn.BatchNorm2d(16), nn.ReLU(), conv(16, 24), nn.BatchNorm2d(24), tail(24)
    )


@structure(vector)
def batch_norm_vector():
    """Over `(batch, features)`."""
    return nn.Sequential(
        nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5)
    )


@structure(image)
def batch_norm_bare():
    """No affine, and no running statistics: the batch's own are used in eval too."""
    return nn.Sequential(
        stem(16), nn.BatchNorm2d(16, affine=False), nn.ReLU(), conv(16, 24),
        nn.BatchNorm2d(24, track_running_stats=False), nn.ReLU(), tail(24),
    )


@structure(image)
def batch_norm_after_flatten():
    """Each channel owns sixteen neighbouring features of the norm and of the classifier."""
    return nn.Sequential(
        conv(3, 16, stride=2), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(16 * 16),
        nn.Linear(16 * 16, 24), nn.ReLU(), nn.Linear(24, 5),
    )


@structure(image)
def batch_norm_dead():
    """Half of the norm's scales are zero: those channels are constants, which could be folded exactly."""
    model = nn.Sequential(conv(3, 16), nn.BatchNorm2d(16), nn.ReLU(), conv(16, 24, 1), nn.ReLU(), tail(24))
    nn.init.uniform_(model[1].weight, 0.5, 1.5)
    nn.init.zeros_(model[1].weight[:8].detach())
    return model


@structure(image)
class BatchNormFunctional(Image):
    """Frozen statistics as buffers with names of their own, and the scale as a buffer too."""

    def __init__(self):
        super().__init__()
        for name in ("mean", "scale", "shift"):
            self.register_buffer(name, torch.randn(16))
        self.register_buffer("variance", 0.5 + torch.rand(16))

    def middle(self, x):
        return F.batch_norm(x, self.mean, self.variance, self.scale, self.shift)


@structure(tokens)
def layer_norm():
    """The statistics are taken over the kept features: zeroing is not removing."""
    return nn.Sequential(embed(32), nn.LayerNorm(32), nn.Linear(32, 48), nn.LayerNorm(48, bias=False), head(48))


@structure(tokens)
def layer_norm_bare():
    """No affine: no parameter is on the axis, but `normalized_shape` is."""
    return nn.Sequential(embed(32), nn.LayerNorm(32, elementwise_affine=False), head(32))


@structure(tokens)
class LayerNormFunctional(Tokens):
    """The normalised shape is read from the tensor, the scale is a raw parameter."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(32))

    def middle(self, x):
        return F.layer_norm(x, x.shape[-1:], self.scale)


@structure(image)
def layer_norm_volume():
    """Over channels, height and width, with an affine of that shape."""
    return nn.Sequential(stem(16), nn.LayerNorm([16, 8, 8]), nn.ReLU(), tail(16))


@structure(image)
class LayerNormChannels(Image):
    """Over the channels of an image, by hand."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(16)), nn.Parameter(torch.zeros(16))

    def middle(self, x):
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        return self.weight[:, None, None] * (x - mean) / torch.sqrt(variance + 1e-6) + self.bias[:, None, None]


@structure(image)
def group_norm():
    """Every group must keep as many channels as the others."""
    return nn.Sequential(
        stem(16), nn.GroupNorm(4, 16), nn.ReLU(), conv(16, 32), nn.GroupNorm(8, 32, affine=False), tail(32)
    )


@structure(image)
def group_norm_extremes():
    """One group for all channels, and one for each: `num_groups` changes with the width."""
    return nn.Sequential(
        stem(16), nn.GroupNorm(1, 16), nn.ReLU(), conv(16, 24), nn.GroupNorm(24, 24), nn.ReLU(), tail(24)
    )


@structure(image)
class GroupNormConcat(Image):
    """Norm groups straddle the boundary of a concat: 12 + 20 in groups of 8."""

    out = 32

    def __init__(self):
        super().__init__()
        self.left, self.right = conv(16, 12), conv(16, 20)
        self.norm = nn.GroupNorm(4, 32)

    def middle(self, x):
        return self.norm(torch.cat([self.left(x), self.right(x)], 1))


@structure(image)
class GroupNormByHand(Image):
    """A view into groups, statistics over all but the first two axes, and back."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(1, 16, 1, 1)), nn.Parameter(torch.zeros(1, 16, 1, 1))

    def middle(self, x):
        b, c, h, w = x.shape
        x = x.view(b, 4, -1)
        x = (x - x.mean(2, keepdim=True)) / (x.var(2, keepdim=True, unbiased=False) + 1e-5).sqrt()
        return x.view(b, c, h, w) * self.weight + self.bias


@structure(image)
def norm_and_conv_groups():
    """Six norm groups and four convolution groups on one width of 24: multiples of twelve."""
    return nn.Sequential(stem(24), nn.GroupNorm(6, 24), nn.ReLU(), conv(24, 24, groups=4), nn.ReLU(), tail(24))


@structure(image)
class HeadsNormConvGroups(Image):
    """Heads, norm groups and convolution groups on one width."""

    width = 48

    def __init__(self):
        super().__init__()
        self.norm, self.mix = nn.GroupNorm(6, 48), conv(48, 48, groups=4)
        self.query, self.key = conv(48, 48, 1), conv(48, 48, 1)

    def middle(self, x):
        x = x + self.mix(self.norm(x))
        b, c, h, w = x.shape
        q, k, v = (y.reshape(b, 8, c // 8, h * w) for y in (self.query(x), self.key(x), x))
        return (v @ (q.transpose(2, 3) @ k).softmax(-1)).reshape(b, c, h, w)


@structure(image)
def instance_norm():
    """No affine, no statistics: nothing on the axis to cut."""
    return nn.Sequential(stem(16), nn.InstanceNorm2d(16), nn.ReLU(), tail(16))


@structure(image)
def instance_norm_full():
    """Affine and running statistics, all of channel size."""
    return nn.Sequential(stem(16), nn.InstanceNorm2d(16, affine=True, track_running_stats=True), nn.ReLU(), tail(16))


@structure(tokens)
def rms_norm():
    """The fused operator."""
    return nn.Sequential(embed(32), nn.RMSNorm(32), nn.Linear(32, 48), nn.GELU(), head(48))


@structure(tokens)
class RmsNormByHand(Tokens):
    """Mean of squares over the features, and a scale stored as its difference from one."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(32))

    def middle(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)


@structure(tokens)
class ScaleNorm(Tokens):
    """Unit length over the features times one number: exact, as zeros add nothing to a length."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def middle(self, x):
        return self.scale * F.normalize(x, dim=-1)


@structure(image)
class GlobalResponseNorm(Image):
    """Length over space, divided by its mean over channels (ConvNeXt V2)."""

    def __init__(self):
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.zeros(1, 16, 1, 1)), nn.Parameter(torch.zeros(1, 16, 1, 1))

    def middle(self, x):
        length = x.norm(p=2, dim=(2, 3), keepdim=True)
        return self.gamma * (x * length / (length.mean(1, keepdim=True) + 1e-6)) + self.beta + x


@structure(image)
def local_response_norm():
    """Each channel is divided by its neighbours' squares: the order and the distance of channels matter."""
    return nn.Sequential(stem(16), nn.LocalResponseNorm(5), nn.ReLU(), tail(16))
