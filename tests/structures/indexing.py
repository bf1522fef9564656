"""Slices, gathers, pads, rolls, flips and in-place writes on the channel axis."""

import torch
import torch.nn.functional as F
from torch import nn

from .parts import Image, Tokens, conv, image, tokens
from .registry import structure


@structure(image)
class SlicesAligned(Image):
    """Two halves by slicing, met elementwise."""

    out = 8

    def middle(self, x):
        return x[:, :8] * x[:, 8:].sigmoid()


@structure(image)
class SlicesUnaligned(Image):
    """The same width cut at 8 here, at 5 and 11 there."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = conv(8, 16), conv(5, 16)

    def middle(self, x):
        return self.inner(x[:, :8]) + self.inner(x[:, 8:]) + self.outer(x[:, :5]) + self.outer(x[:, 11:])


@structure(image)
class SlicesOverlapping(Image):
    """Channels 0 to 10 meet channels 6 to 16: index i is tied to i + 6."""

    out = 10

    def middle(self, x):
        return x[:, :10] + x[:, 6:]


@structure(image)
class SlicePartlyRead(Image):
    """Only the first twelve channels are ever read."""

    out = 12

    def middle(self, x):
        return x[:, :12]


@structure(image)
class SliceStrided(Image):
    """Every second channel."""

    out = 8

    def middle(self, x):
        return x[:, ::2]


@structure(image)
class SliceStridedPairs(Image):
    """Even channels meet odd ones."""

    out = 8

    def middle(self, x):
        return x[:, ::2] * torch.tanh(x[:, 1::2])


@structure(image)
class SliceNarrow(Image):
    """`narrow` with bounds derived from the shape: an identity on the first quarter (partial convolution)."""

    def __init__(self):
        super().__init__()
        self.conv = conv(4, 4)

    def middle(self, x):
        quarter = x.shape[1] // 4
        left, right = x.narrow(1, 0, quarter), x.narrow(1, quarter, x.shape[1] - quarter)
        return torch.cat((self.conv(left), right), 1)


@structure(image)
class GatherPermutation(Image):
    """A constant permutation of the channels, held as a list."""

    def __init__(self):
        super().__init__()
        self.order = torch.randperm(16).tolist()

    def middle(self, x):
        return x[:, self.order]


@structure(image)
class GatherBuffer(Image):
    """index_select by a buffer that repeats some channels and leaves out others."""

    out = 12

    def __init__(self):
        super().__init__()
        self.register_buffer("index", torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 8, 15]))

    def middle(self, x):
        return x.index_select(1, self.index)


@structure(image)
class GatherResidual(Image):
    """A permuted width is added to itself: its cycles go together."""

    def __init__(self):
        super().__init__()
        self.register_buffer("index", torch.arange(16).roll(4))

    def middle(self, x):
        return x + x[:, self.index]


@structure(image)
class GatherByData(Image):
    """The order of the channels depends on the image."""

    def middle(self, x):
        order = x.mean((2, 3)).argsort(1)[:, :, None, None].expand_as(x)
        return torch.gather(x, 1, order)


@structure(image)
class FlipChannels(Image):
    """Added to its mirror: index i is tied to 15 - i."""

    def middle(self, x):
        return x + x.flip(1)


@structure(image)
class FlipSpace(Image):
    """Mirrored in space: nothing happens to the channels."""

    def middle(self, x):
        return x + x.flip(2, 3)


@structure(image)
class RollChannels(Image):
    """Rolled by five: neighbours meet around the end."""

    def __init__(self):
        super().__init__()
        self.mix = conv(16, 16)

    def middle(self, x):
        return self.mix(x) + x.roll(5, 1)


@structure(image)
class TemporalShift(Image):
    """An eighth of the channels moves back along an axis folded into the batch, an eighth forward (TSM)."""

    def middle(self, x):
        b, c, h, w = x.shape
        x = x.view(1, b, c, h, w)
        back, forth = F.pad(x[:, 1:, :2], (0, 0, 0, 0, 0, 0, 0, 1)), F.pad(x[:, :-1, 2:4], (0, 0, 0, 0, 0, 0, 1, 0))
        return torch.cat((back, forth, x[:, :, 4:]), 2).view(b, c, h, w)


@structure(image)
class PadShortcut(Image):
    """Option A: the shortcut is strided and its channels are padded with zeros on both sides."""

    out = 32

    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(conv(16, 32, stride=2), nn.BatchNorm2d(32), nn.ReLU(), conv(32, 32))

    def middle(self, x):
        return self.branch(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8))


@structure(image)
class PadShortcutConcat(Image):
    """Option A by a concat with zeros."""

    out = 24

    def __init__(self):
        super().__init__()
        self.branch = conv(16, 24)

    def middle(self, x):
        return self.branch(x) + torch.cat([x, x.new_zeros(x.shape[0], 8, *x.shape[2:])], 1)


@structure(image)
class PadConstant(Image):
    """Padded with ones: the added channels are not zero, and space is padded too."""

    out = 20

    def middle(self, x):
        return F.pad(x, (1, 1, 1, 1, 0, 4), value=1.0)


@structure(image)
class CropShortcut(Image):
    """The wider tensor gives its first channels to the narrower one."""

    out = 12

    def __init__(self):
        super().__init__()
        self.branch = conv(16, 12)

    def middle(self, x):
        y = self.branch(x)
        return y + x[:, : y.shape[1]]


@structure(image)
class WriteSlice(Image):
    """In place: the first four channels are written from the next four."""

    def middle(self, x):
        x = x.clone()
        x[:, :4] = 0.5 * x[:, 4:8]
        return x


@structure(image)
class WriteStrided(Image):
    """In place: every second channel grows by its neighbour."""

    def middle(self, x):
        x = x.clone()
        x[:, ::2] += x[:, 1::2]
        return x


@structure(image)
class WriteBranch(Image):
    """In place: branches fill an empty tensor."""

    out = 24

    def __init__(self):
        super().__init__()
        self.left, self.right = conv(16, 8), conv(16, 16)

    def middle(self, x):
        y = x.new_empty(x.shape[0], 24, *x.shape[2:])
        y[:, :8], y[:, 8:] = self.left(x), self.right(x).relu()
        return y


@structure(tokens)
class WritePlaces(Tokens):
    """In place on the places, not on the features: index_copy, and a learned mask token."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(32))

    def middle(self, x):
        x = x.index_copy(1, torch.tensor([1, 4], device=x.device), self.token.expand(x.shape[0], 2, -1))
        x[:, 0] = self.token
        return x
