"""Operators over space: pooling, resizing, sampling, patches, Fourier."""

import torch
import torch.nn.functional as F
from torch import nn

from .parts import Image, conv, head, image, stem, tail
from .registry import structure


@structure(image)
class Pooling(Image):
    """Maximum, average, adaptive and power pooling, added."""

    def middle(self, x):
        return F.max_pool2d(x, 2) + F.avg_pool2d(x, 2) + F.adaptive_max_pool2d(x, 4) + F.lp_pool2d(x.relu(), 2, 2)


@structure(image)
class PoolingUnpooled(Image):
    """Indices of a maximum pool are used to unpool another tensor (SegNet)."""

    def __init__(self):
        super().__init__()
        self.conv = conv(16, 16)

    def middle(self, x):
        x, places = F.max_pool2d(x, 2, return_indices=True)
        return F.max_unpool2d(self.conv(x), places, 2)


@structure(image)
class PoolingPyramid(Image):
    """Pools of several sizes, resized and put side by side (PSP)."""

    out = 32

    def __init__(self):
        super().__init__()
        self.reduce = nn.ModuleList(nn.Conv2d(16, 8, 1) for _ in range(2))

    def middle(self, x):
        pools = (reduce(F.adaptive_avg_pool2d(x, size)) for reduce, size in zip(self.reduce, (1, 2), strict=True))
        return torch.cat([x, *(F.interpolate(p, x.shape[2:], mode="bilinear") for p in pools)], 1)


@structure(image)
def pooling_flattened():
    """Pyramid pooling into a vector: features of several window counts side by side (SPP)."""
    return nn.Sequential(stem(16), PoolToVector(), head(16 * 5))


class PoolToVector(nn.Module):
    def forward(self, x):
        return torch.cat([F.adaptive_max_pool2d(x, size).flatten(1) for size in (1, 2)], 1)


@structure(image)
class PoolingLearned(Image):
    """Generalised mean with a learned power for each channel."""

    def __init__(self):
        super().__init__()
        self.power = nn.Parameter(torch.full((1, 16, 1, 1), 3.0))

    def middle(self, x):
        return F.avg_pool2d(x.clamp(min=1e-3).pow(self.power), 2).pow(1 / self.power)


@structure(image)
class Resize(Image):
    """Nearest up, bilinear and bicubic back."""

    def middle(self, x):
        up = F.interpolate(x, scale_factor=2, mode="nearest")
        back = F.interpolate(up, scale_factor=0.5, mode="bicubic")
        return back + F.interpolate(up, size=x.shape[2:], mode="bilinear")


@structure(image)
class GridSample(Image):
    """A spatial transformer: the grid comes from the features, the features are sampled."""

    def __init__(self):
        super().__init__()
        self.locate = nn.Linear(16, 6)

    def middle(self, x):
        theta = 0.1 * self.locate(x.mean((2, 3))).view(-1, 2, 3)
        return F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=False), align_corners=False)


@structure(image)
class Deformable(Image):
    """Offsets per group of channels move a grid: groups are folded into the batch."""

    def __init__(self):
        super().__init__()
        self.offsets, self.mix = conv(16, 8), conv(16, 16, 1)

    def middle(self, x):
        b, c, h, w = x.shape
        lines = (torch.linspace(-1, 1, n, device=x.device, dtype=x.dtype) for n in (h, w))
        y, z = torch.meshgrid(*lines, indexing="ij")
        moved = torch.stack((z, y), -1) + 0.1 * self.offsets(x).view(b * 4, 2, h, w).permute(0, 2, 3, 1).tanh()
        return self.mix(F.grid_sample(x.reshape(b * 4, c // 4, h, w), moved, align_corners=True).view(b, c, h, w))


@structure(image)
class PatchesMatmul(Image):
    """im2col and a matrix product: columns are `(c kh kw)`."""

    out = 24

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(24, 16 * 9))

    def middle(self, x):
        return (self.weight @ F.unfold(x, 3, padding=1)).view(-1, 24, 8, 8)


@structure(image)
class PatchesFold(Image):
    """Unfold, a linear layer on the columns, and fold that adds overlaps."""

    out = 12

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(16 * 4, 12 * 4)

    def middle(self, x):
        columns = self.mix(F.unfold(x, 2).transpose(1, 2)).transpose(1, 2)
        return F.fold(columns, (8, 8), 2)


@structure(image)
class PatchesLocalAttention(Image):
    """Each place attends to its nine neighbours, which unfold puts on an axis of its own."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Conv2d(16, 16, 1) for _ in range(3))

    def middle(self, x):
        b, c, h, w = x.shape
        q = self.q(x).view(b, 2, c // 2, 1, h * w)
        k, v = (F.unfold(f(x), 3, padding=1).view(b, 2, c // 2, 9, h * w) for f in (self.k, self.v))
        return (v * (q * k).sum(2, keepdim=True).softmax(3)).sum(3).view(b, c, h, w)


@structure(image)
class Involution(Image):
    """Kernels made from the image, one for each group of channels at each place."""

    def __init__(self):
        super().__init__()
        self.make = nn.Sequential(nn.Conv2d(16, 8, 1), nn.ReLU(), nn.Conv2d(8, 2 * 9, 1))

    def middle(self, x):
        b, c, h, w = x.shape
        patches = F.unfold(x, 3, padding=1).view(b, 2, c // 2, 9, h, w)
        return (self.make(x).view(b, 2, 1, 9, h, w) * patches).sum(3).view(b, c, h, w)


@structure(image)
class TensorUnfold(Image):
    """Tensor.unfold: windows on a new last axis, flattened with the channels outside."""

    out = 64

    def middle(self, x):
        return x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 1, 4, 5, 2, 3).flatten(1, 3)


@structure(image)
class BlurPool(Image):
    """A fixed kernel expanded to the channels, with `groups` read from the shape."""

    def __init__(self):
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("kernel", (row[:, None] * row / 16)[None, None])

    def middle(self, x):
        return F.conv2d(x, self.kernel.expand(x.shape[1], -1, -1, -1), stride=2, padding=1, groups=x.shape[1])


@structure(image)
class BlurBuffer(Image):
    """The same with a buffer of (C, 1, 3, 3)."""

    def __init__(self):
        super().__init__()
        self.register_buffer("kernel", torch.rand(16, 1, 3, 3), persistent=False)

    def middle(self, x):
        return F.conv2d(x, self.kernel, padding=1, groups=16)


@structure(image)
class FourierSpace(Image):
    """A filter in the frequency domain: complex weights as (C, H, W, 2)."""

    def __init__(self):
        super().__init__()
        self.filter = nn.Parameter(torch.randn(16, 8, 5, 2))

    def middle(self, x):
        spectrum = torch.fft.rfft2(x, norm="ortho") * torch.view_as_complex(self.filter)
        return torch.fft.irfft2(spectrum, s=x.shape[-2:], norm="ortho")


@structure(image)
class FourierModes(Image):
    """Complex weights mix the channels of a few frequencies (a neural operator)."""

    def __init__(self):
        super().__init__()
        self.filter = nn.Parameter(torch.randn(16, 16, 3, 3, dtype=torch.cdouble) / 16)

    def middle(self, x):
        spectrum = torch.fft.rfft2(x)
        mixed = torch.zeros_like(spectrum)
        mixed[:, :, :3, :3] = torch.einsum("bihw,iohw->bohw", spectrum[:, :, :3, :3], self.filter)
        return torch.fft.irfft2(mixed, s=x.shape[-2:])


@structure(image)
class FourierChannels(Image):
    """A Fourier transform that also runs over the channels (FNet)."""

    def middle(self, x):
        return x + torch.fft.fft(torch.fft.fft(x, dim=1), dim=3).real


@structure(image)
class SoftArgmax(nn.Module):
    """Softmax over space gives each channel a place: channels become `(c 2)`."""

    def __init__(self):
        super().__init__()
        self.stem, self.tail = stem(16), head(32)

    def forward(self, x):
        weight = self.stem(x).flatten(2).softmax(2)
        line = torch.linspace(-1, 1, 8, device=x.device, dtype=x.dtype)
        grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).view(64, 2)
        return self.tail((weight @ grid).flatten(1))


@structure(image)
class CoordinateGrid(Image):
    """Two maps of coordinates, made in forward, are put before a convolution (CoordConv)."""

    def __init__(self):
        super().__init__()
        self.conv = conv(18, 16)

    def middle(self, x):
        b, _, h, w = x.shape
        y = torch.linspace(-1, 1, h, device=x.device, dtype=x.dtype).view(1, 1, h, 1).expand(b, 1, h, w)
        z = (torch.arange(w, device=x.device) / w).to(x.dtype).expand(b, 1, h, w)
        return self.conv(torch.cat([x, y, z], 1))


@structure(image)
class CoordinateAttention(Image):
    """Rows and columns are pooled, put along one spatial axis, and split again."""

    def __init__(self):
        super().__init__()
        self.squeeze, self.rows, self.columns = conv(16, 8, 1), conv(8, 16, 1), conv(8, 16, 1)

    def middle(self, x):
        h, w = x.shape[2:]
        y = self.squeeze(torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(2, 3)], 2)).relu()
        rows, columns = y.split([h, w], 2)
        return x * self.rows(rows).sigmoid() * self.columns(columns.transpose(2, 3)).sigmoid()


@structure(lambda: torch.randn(2, 3, 4, 6, 6))
class VideoFactorised(nn.Module):
    """Frames are folded into the batch for images, and places for time."""

    def __init__(self):
        super().__init__()
        self.image, self.time, self.tail = conv(3, 24), nn.Conv1d(24, 16, 3, padding=1), tail(16)

    def forward(self, x):
        b, c, t, h, w = x.shape
        x = self.image(x.transpose(1, 2).reshape(b * t, c, h, w)).relu()
        x = x.view(b, t, 24, h * w).permute(0, 3, 2, 1).reshape(b * h * w, 24, t)
        return self.tail(self.time(x).view(b, h, w, -1, t).mean(4).permute(0, 3, 1, 2))
