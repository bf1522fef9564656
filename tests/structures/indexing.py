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
class SliceStridedFour(Image):
    """Four interleaved quarters, each with a convolution of its own, side by side."""

    def __init__(self):
        super().__init__()
        self.quarters = nn.ModuleList(conv(4, 4) for _ in range(4))

    def middle(self, x):
        return torch.cat([quarter(x[:, k::4]) for k, quarter in enumerate(self.quarters)], 1)


@structure(image)
class SliceStridedRagged(Image):
    """Every third of sixteen, from the second on: the last one begins a block that ends early."""

    out = 5

    def middle(self, x):
        return x[:, 1::3]


@structure(image)
class SliceStridedWithin(Image):
    """Every second channel between two bounds, one counted from the end."""

    out = 5

    def middle(self, x):
        return x[:, 3:-3:2]


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
class GatherFraction(Image):
    """A list in forward that picks some channels, once each."""

    out = 6

    def middle(self, x):
        return x[:, [3, 14, 15, 9, 2, 6]]


@structure(image)
class GatherAttribute(Image):
    """The order is a plain tensor that hangs on the module: no buffer."""

    def __init__(self):
        super().__init__()
        self.order = torch.randperm(16)

    def middle(self, x):
        return x[:, self.order]


@structure(image)
class GatherReversed(Image):
    """An order computed from the width, wherever the width comes from."""

    def middle(self, x):
        return x[:, torch.arange(x.shape[1] - 1, -1, -1, device=x.device)]


@structure(image)
class GatherHalves(Image):
    """The halves change places by index, and gate the others."""

    def __init__(self):
        super().__init__()
        self.register_buffer("index", torch.cat((torch.arange(8, 16), torch.arange(8))))

    def middle(self, x):
        return x * x[:, self.index].sigmoid()


@structure(image)
class GatherShuffle(Image):
    """A channel shuffle by index between two grouped convolutions."""

    def __init__(self):
        super().__init__()
        self.before, self.after = conv(16, 16, groups=4), conv(16, 16, groups=4)
        self.register_buffer("index", torch.arange(16).view(4, 4).t().flatten())

    def middle(self, x):
        return self.after(self.before(x)[:, self.index])


@structure(image)
class GatherShuffleBehind(Image):
    """A random order between a convolution and a grouped one, whose groups it spreads over the first."""

    def __init__(self):
        super().__init__()
        self.after = conv(16, 16, groups=4)
        self.register_buffer("index", torch.randperm(16))

    def middle(self, x):
        return self.after(x.index_select(1, self.index))


@structure(image)
class GatherRepeat(Image):
    """Each channel twice, by index: neighbours, then the whole width again."""

    out = 64

    def __init__(self):
        super().__init__()
        self.register_buffer("neighbours", torch.arange(32) // 2)
        self.register_buffer("again", torch.arange(32) % 16)

    def middle(self, x):
        return torch.cat((x[:, self.neighbours], x[:, self.again]), 1)


@structure(image)
class GatherTwice(Image):
    """One index reads two tensors."""

    def __init__(self):
        super().__init__()
        self.branch = conv(16, 16)
        self.register_buffer("index", torch.randperm(16))

    def middle(self, x):
        return x[:, self.index] * self.branch(x)[:, self.index].sigmoid()


@structure(image)
class GatherUneven(Image):
    """One index reads two tensors of different widths, and is counted too: it cannot be given new numbers."""

    out = 12

    def __init__(self):
        super().__init__()
        self.branch = conv(16, 20)
        self.register_buffer("index", torch.randperm(16)[:12])

    def middle(self, x):
        return x[:, self.index] * self.branch(x)[:, self.index].sigmoid() + self.index.sum()


@structure(image)
class GatherInverse(Image):
    """There and back again: the residual meets its own order."""

    def __init__(self):
        super().__init__()
        self.mix = conv(16, 16)
        order = torch.randperm(16)
        self.register_buffer("order", order)
        self.register_buffer("back", order.argsort())

    def middle(self, x):
        return x + self.mix(x[:, self.order])[:, self.back]


@structure(image)
class GatherAlong(Image):
    """`gather` and `take_along_dim` by a buffer spread over the image."""

    def __init__(self):
        super().__init__()
        self.register_buffer("one", torch.randperm(16))
        self.register_buffer("two", torch.randperm(16))

    def middle(self, x):
        b, _, h, w = x.shape
        x = torch.gather(x, 1, self.one[None, :, None, None].expand(b, -1, h, w))
        return torch.take_along_dim(x, self.two.view(1, -1, 1, 1), 1)


@structure(image)
class GatherMatrix(Image):
    """A table of indices: groups of four channels that are summed."""

    out = 6

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.randperm(24).view(6, 4) % 16)

    def middle(self, x):
        return x[:, self.table].sum(2)


@structure(tokens)
class GatherHeads(Tokens):
    """Three key heads for six queries, repeated by index (grouped queries)."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(32, 48), nn.Linear(32, 24), nn.Linear(32, 24)
        self.o = nn.Linear(48, 32)
        self.register_buffer("index", torch.arange(6) // 2)

    def middle(self, x):
        q, k, v = (each(x).unflatten(-1, (-1, 8)).transpose(1, 2) for each in (self.q, self.k, self.v))
        k, v = k[:, self.index], v[:, self.index]
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@structure(tokens)
class GatherRotary(Tokens):
    """Rotary halves change places by index."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(32, 32) for _ in range(3))
        self.register_buffer("index", torch.arange(8).roll(4))
        self.register_buffer("sign", torch.tensor([-1.0] * 4 + [1.0] * 4))
        self.register_buffer("angle", torch.outer(torch.arange(6.0), 100 ** (-torch.arange(4.0) / 4)).repeat(1, 2))

    def turn(self, x):
        return x * self.angle.cos() + x[..., self.index] * self.sign * self.angle.sin()

    def middle(self, x):
        q, k, v = (each(x).unflatten(-1, (4, -1)).transpose(1, 2) for each in (self.q, self.k, self.v))
        return F.scaled_dot_product_attention(self.turn(q), self.turn(k), v).transpose(1, 2).flatten(2)


@structure(image)
class GatherWeight(Image):
    """The filters of a functional convolution are put in order by index."""

    def __init__(self):
        super().__init__()
        self.mix = conv(16, 16)
        self.register_buffer("index", torch.randperm(16))

    def middle(self, x):
        return F.conv2d(x, self.mix.weight[self.index], self.mix.bias[self.index], padding=1)


@structure(image)
class GatherConcat(Image):
    """Two branches side by side, mixed by index, and cut again."""

    def __init__(self):
        super().__init__()
        self.left, self.right = conv(16, 10), conv(16, 14)
        self.register_buffer("index", torch.randperm(24))

    def middle(self, x):
        first, second, third = torch.cat((self.left(x), self.right(x)), 1)[:, self.index].split([8, 8, 8], 1)
        return torch.cat((first * second.sigmoid(), third), 1)


@structure(image)
class GatherBySize(Image):
    """The index depends on the size of the batch: other runs read other channels."""

    def middle(self, x):
        return x[:, (torch.arange(16) + x.shape[0]) % 16]


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
class FlipConcat(Image):
    """Side by side with its mirror: the same channels twice, in two orders."""

    out = 32

    def middle(self, x):
        return torch.cat((x.flip(1), x), 1)


@structure(image)
class FlipOdd(Image):
    """Of seventeen the middle one meets itself."""

    width = 17

    def middle(self, x):
        return torch.tanh(x) * x.flip(1)


@structure(image)
class FlipGrouped(Image):
    """Mirrored between grouped convolutions: groups and their members change places."""

    def __init__(self):
        super().__init__()
        self.before, self.after = conv(16, 24, groups=4), conv(24, 16, groups=4)

    def middle(self, x):
        return self.after(self.before(x).flip(1))


@structure(tokens)
class FlipHeads(Tokens):
    """Heads in reverse, and the features of each head in reverse."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(32, 32), nn.Linear(32, 32)

    def middle(self, x):
        y = self.one(x).unflatten(-1, (4, 8))
        return self.two((y.flip(-2) * y.flip(-1).sigmoid().mean(2, keepdim=True)).flatten(2))


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
class RollResidual(Image):
    """Added to itself, rolled by a quarter: four channels go together."""

    def middle(self, x):
        return x + x.roll(-4, 1)


@structure(image)
class RollCycle(Image):
    """Added to itself, rolled by one: all channels are one cycle, which stays."""

    def middle(self, x):
        return x + x.roll(1, 1)


@structure(image)
class RollAxes(Image):
    """Rolled along the channels and along the rows at once, by more than the width."""

    def middle(self, x):
        return x.roll((-22, 3), (1, 2))


@structure(image)
class RollHalf(Image):
    """By half of the width, computed from the shape."""

    def __init__(self):
        super().__init__()
        self.mix = conv(16, 16)

    def middle(self, x):
        return self.mix(x) * x.roll(x.shape[1] // 2, 1).sigmoid()


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
