"""Convolutions of every kind, and weights that a function of parameters computes."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from .parts import Image, conv, image, stem, tail
from .registry import structure


@structure(lambda: torch.randn(2, 3, 16))
def conv_1d():
    """One spatial axis."""
    return nn.Sequential(
        nn.Conv1d(3, 16, 3), nn.ReLU(), nn.Conv1d(16, 24, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(24, 5),
    )


@structure(image)
def conv_2d():
    """Stride, dilation, asymmetric kernels, no bias, and a convolution as the last layer."""
    return nn.Sequential(
        nn.Conv2d(3, 16, (3, 1), padding=(1, 0), bias=False), nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2, padding=2, dilation=2), nn.SiLU(), nn.Conv2d(24, 5, 1),
    )


@structure(lambda: torch.randn(2, 3, 4, 6, 6))
def conv_3d():
    """Three spatial axes."""
    return nn.Sequential(
        nn.Conv3d(3, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 16, 3), nn.ReLU(),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(16, 5),
    )


@structure(lambda: torch.randn(3, 8, 8))
def conv_unbatched():
    """No batch axis: the first axis of a lone image is its channels."""
    return nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 24), nn.ReLU(), conv(24, 5))


@structure(image)
def conv_padding_modes():
    """Padding by reflection and around the edge becomes an operator of its own."""
    return nn.Sequential(
        conv(3, 16, padding_mode="reflect"), nn.ReLU(), conv(16, 24, padding_mode="circular"), nn.ReLU(),
        conv(24, 16, padding_mode="replicate"), nn.ReLU(), tail(16),
    )


@structure(image)
def conv_transposed():
    """The weight of a transposed convolution holds its inputs first."""
    return nn.Sequential(
        stem(16), nn.ReLU(), nn.ConvTranspose2d(16, 24, 3, stride=2, padding=1, output_padding=1), nn.ReLU(), tail(24)
    )


@structure(image)
def conv_transposed_grouped():
    """Inputs are `(g i)` and the second axis holds the outputs of one group."""
    return nn.Sequential(stem(16), nn.ConvTranspose2d(16, 24, 2, stride=2, groups=4), nn.ReLU(), tail(24))


@structure(image)
def conv_transposed_depthwise():
    """As many groups as channels, as learned upsampling does."""
    return nn.Sequential(stem(16), nn.ConvTranspose2d(16, 16, 4, stride=2, padding=1, groups=16, bias=False), tail(16))


@structure(lambda: torch.randn(2, 3, 16))
def conv_transposed_1d():
    """Down and up along one axis, with a classifier per position."""
    return nn.Sequential(
        nn.Conv1d(3, 24, 4, stride=2), nn.ReLU(),
        nn.ConvTranspose1d(24, 16, 4, stride=2), nn.ReLU(), nn.Conv1d(16, 5, 1),
    )


@structure(image)
def conv_grouped():
    """Each group must keep as many inputs and as many outputs as the others."""
    return nn.Sequential(stem(16), nn.ReLU(), conv(16, 32, groups=4), nn.ReLU(), tail(32))


@structure(image)
def conv_grouped_several():
    """Two, four and three groups in a row constrain the same widths together."""
    return nn.Sequential(
        stem(24), nn.ReLU(), conv(24, 24, groups=2), nn.ReLU(), conv(24, 48, groups=4), nn.ReLU(),
        conv(48, 24, groups=3), nn.ReLU(), tail(24),
    )


@structure(image)
def conv_depthwise():
    """A group of one channel: removing it changes `groups`."""
    return nn.Sequential(stem(16), conv(16, 16, groups=16), nn.BatchNorm2d(16), nn.ReLU6(), conv(16, 24, 1), tail(24))


@structure(image)
def conv_depthwise_multiplier():
    """Each input channel makes three output channels, which go together."""
    return nn.Sequential(stem(16), conv(16, 48, groups=16), nn.ReLU(), tail(48))


@structure(image)
class MixedKernels(Image):
    """Depthwise kernels of several sizes over a split of the channels."""

    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList(conv(8, 8, k, groups=8) for k in (3, 5))

    def middle(self, x):
        return torch.cat([branch(part) for branch, part in zip(self.branches, x.split(8, 1), strict=True)], 1)


@structure(image)
class ConvStandardised(Image):
    """The weight minus its mean over inputs and window, over its deviation: a mean over a pruned axis."""

    out = 24

    def __init__(self):
        super().__init__()
        self.conv = conv(16, 24)

    def middle(self, x):
        weight = self.conv.weight
        centred = weight - weight.mean((1, 2, 3), keepdim=True)
        scaled = centred / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, scaled, self.conv.bias, padding=1)


@structure(image)
def weight_norm_conv():
    """A parametrization: the weight is direction over its norm across inputs, times a length per output."""
    return nn.Sequential(stem(16), nn.ReLU(), weight_norm(conv(16, 24)), nn.ReLU(), tail(24))


@structure(image)
def spectral_norm_conv():
    """A parametrization whose buffers have the sizes of the flattened weight."""
    return nn.Sequential(stem(16), nn.ReLU(), spectral_norm(conv(16, 24)), nn.ReLU(), tail(24))


@structure(image)
class WeightMasked(Image):
    """A buffer of the weight's own shape multiplies it (PixelCNN)."""

    def __init__(self):
        super().__init__()
        self.conv = conv(16, 16)
        mask = torch.ones(16, 16, 3, 3)
        mask[:, :, 2] = mask[:, :, 1, 1:] = 0
        self.register_buffer("mask", mask)

    def middle(self, x):
        return F.conv2d(x, self.conv.weight * self.mask, self.conv.bias, padding=1)


@structure(image, prunable=False)
class DynamicConv(Image):
    """Attention over four kernels, mixed per image and applied with the batch folded into the groups."""

    def __init__(self):
        super().__init__()
        self.attend = nn.Linear(16, 4)
        self.kernels = nn.Parameter(0.1 * torch.randn(4, 16, 16, 3, 3))

    def middle(self, x):
        b, c, h, w = x.shape
        mix = self.attend(x.mean((2, 3))).softmax(1)
        weight = (mix @ self.kernels.view(4, -1)).view(b * 16, c, 3, 3)
        return F.conv2d(x.reshape(1, b * c, h, w), weight, padding=1, groups=b).view(b, 16, h, w)


@structure(image)
class KernelMixture(Image):
    """Kernels mixed by learned weights that don't depend on the image."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Parameter(torch.ones(4))
        self.kernels = nn.Parameter(0.1 * torch.randn(4, 16, 16, 3, 3))

    def middle(self, x):
        return F.conv2d(x, torch.einsum("k, k o i h w -> o i h w", self.mix.softmax(0), self.kernels), padding=1)


@structure(image)
class Reparametrised(Image):
    """Two kernels of different sizes, padded to one and added before use (RepVGG)."""

    def __init__(self):
        super().__init__()
        self.large, self.small = conv(16, 16), conv(16, 16, 1)

    def middle(self, x):
        weight = self.large.weight + F.pad(self.small.weight, (1, 1, 1, 1))
        return F.conv2d(x, weight, self.large.bias + self.small.bias, padding=1)


@structure(image)
def locally_linear():
    """Channels last: permute, linear layers with a scale, permute back (ConvNeXt)."""
    return nn.Sequential(stem(16), ChannelsLast(), tail(16))


class ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.depthwise = conv(16, 16, 7, groups=16)
        self.norm = nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)
        self.scale = nn.Parameter(torch.ones(16))

    def forward(self, x):
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)
