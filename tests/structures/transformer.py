"""The attention modules of torch.nn, and what surrounds attention: patches, class tokens, windows."""

import torch
from torch import nn

from .attention import attend
from .parts import Image, Tokens, conv, embed, head, ids, image, stem, tokens
from .registry import structure


@structure(tokens)
class MultiheadSelf(Tokens):
    """One `in_proj_weight` of `(3 h d)`."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

    def middle(self, x):
        return x + self.attention(x, x, x, need_weights=False)[0]


@structure(tokens)
class MultiheadWeights(Tokens):
    """Places first, and the weights averaged over heads are used: a mean over a prunable axis."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4)

    def middle(self, x):
        y, weights = self.attention(x.transpose(0, 1), x.transpose(0, 1), x.transpose(0, 1))
        return y.transpose(0, 1) + weights @ x


@structure(lambda: (tokens(), tokens(4, 8)))
class MultiheadCross(nn.Module):
    """Keys and values of widths of their own: three projection weights and one bias."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.tail = embed(32), embed(20, 8), head(32)
        self.value = nn.Linear(20, 28)
        self.attention = nn.MultiheadAttention(32, 4, kdim=20, vdim=28, batch_first=True)

    def forward(self, x, y):
        x, y = self.left(x), self.right(y)
        return self.tail(x + self.attention(x, y, self.value(y), need_weights=False)[0])


@structure(tokens)
class MultiheadMasked(Tokens):
    """A key padding mask, and biases appended to keys and values."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True, add_bias_kv=True)

    def middle(self, x):
        mask = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1) >= 4
        return x + self.attention(x, x, x, key_padding_mask=mask, need_weights=False)[0]


@structure(tokens)
class MultiheadSeparate(Tokens):
    """Three tensors meet one packed weight, which is cut in three: the values have a head width of their own."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, add_zero_attn=True, batch_first=True)

    def middle(self, x):
        return x + self.attention(x, x.flip(1), x.roll(1, 1), need_weights=False)[0]


@structure(tokens)
class MultiheadMemory(Tokens):
    """Keys and values from one tensor and queries from another, places first, no biases."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, bias=False)

    def middle(self, x):
        y = x.transpose(0, 1)
        memory = y.flip(0)
        return x + self.attention(y, memory, memory, need_weights=False)[0].transpose(0, 1)


@structure(lambda: tokens()[0])
class MultiheadUnbatched(Tokens):
    """A sequence without a batch; the weights are not used."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4)

    def middle(self, x):
        return x + self.attention(x, x, x)[0]


@structure(tokens)
class MultiheadPerHead(Tokens):
    """The weights of each head, mixed by a learned number of each: heads reach a parameter of theirs."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.trust = nn.Parameter(torch.rand(4, 1, 1))

    def middle(self, x):
        y, weights = self.attention(x, x, x, average_attn_weights=False)
        return y + (self.trust * weights).sum(1) @ x


@structure(tokens)
class MultiheadBiased(Tokens):
    """A learned slope of each head makes a mask with an entry for each batch and head (ALiBi)."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.slope = nn.Parameter(torch.rand(4, 1, 1))

    def middle(self, x):
        place = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
        bias = self.slope * (place[None, :] - place[:, None])
        mask = bias.expand(x.shape[0], -1, -1, -1).flatten(0, 1)
        return x + self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]


class Own(nn.MultiheadAttention):
    """A subclass whose forward takes one tensor."""

    def forward(self, x):
        return super().forward(x, x, x, need_weights=False)[0]


@structure(tokens)
class MultiheadSubclass(Tokens):
    """The user's own subclass stays one."""

    def __init__(self):
        super().__init__()
        self.attention = Own(32, 4, batch_first=True)

    def middle(self, x):
        return x + self.attention(x)


@structure(tokens)
class MultiheadShared(Tokens):
    """One attention module, called twice."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

    def middle(self, x):
        for _ in range(2):
            x = x + self.attention(x, x, x, need_weights=False)[0]
        return x


@structure(tokens)
class MultiheadFunctional(Tokens):
    """Torch's function on raw weights: its sizes are tied by the function's own code."""

    def __init__(self):
        super().__init__()
        self.into, self.bias = nn.Parameter(torch.randn(96, 32) / 6), nn.Parameter(torch.randn(96))
        self.project = nn.Linear(32, 32)
        self.width, self.heads = 32, 4

    def middle(self, x):
        x = x.transpose(0, 1)
        y, _ = nn.functional.multi_head_attention_forward(
            *(x, x, x, self.width, self.heads, self.into, self.bias, None, None, False, 0.0),
            *(self.project.weight, self.project.bias, False, None, False),
        )
        return (x + y).transpose(0, 1)


@structure(tokens)
def encoder_layer_post():
    """Norm after each addition."""
    return nn.Sequential(embed(32), nn.TransformerEncoderLayer(32, 4, 48, batch_first=True), head(32))


@structure(tokens)
def encoder_layer_pre():
    """Norm before each branch, GELU, places first."""
    return nn.Sequential(embed(32), nn.TransformerEncoderLayer(32, 4, 48, norm_first=True, activation="gelu"), head(32))


@structure(tokens)
def encoder_stack():
    """Copies of one layer and a last norm, sharing the residual width."""
    layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True, norm_first=True)
    return nn.Sequential(
        embed(32), nn.TransformerEncoder(layer, 2, nn.LayerNorm(32), enable_nested_tensor=False), head(32)
    )


@structure(tokens)
class EncoderPadded(Tokens):
    """A stack that packs padded places away where its layers can take that."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2)

    def middle(self, x):
        padding = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1) >= 4
        return self.layers(x, src_key_padding_mask=padding)[:, :4]


@structure(lambda: (tokens(), tokens(4, 8)))
class WholeTransformer(nn.Module):
    """nn.Transformer, which compares its inputs' width with a number of its own."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.tail = embed(32), embed(32, 8), head(32)
        self.transformer = nn.Transformer(32, 4, 1, 1, 48, batch_first=True)

    def forward(self, x, y):
        return self.tail(self.transformer(self.left(x), self.right(y)))


@structure(lambda: (tokens(), tokens(4, 8)))
class DecoderLayer(nn.Module):
    """Self attention under a mask, and attention to a memory of the same width."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.tail = embed(32), embed(32, 8), head(32)
        self.layer = nn.TransformerDecoderLayer(32, 4, 48, batch_first=True)

    def forward(self, x, memory):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device, dtype=x.dtype)
        return self.tail(self.layer(self.left(x), self.right(memory), tgt_mask=mask))


@structure(image)
class ClassToken(nn.Module):
    """Patches, a class token put before them, a position embedding, and the token's row as the result."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 2, stride=2)
        self.token = nn.Parameter(torch.zeros(1, 1, 32))
        self.place = nn.Parameter(torch.randn(1, 17, 32))
        self.norm, self.qkv, self.tail = nn.LayerNorm(32), nn.Linear(32, 96), head(32)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        return self.tail((x + attend(q, k, v))[:, 0])


@structure(ids)
class PositionEmbedding(nn.Module):
    """Words plus positions looked up by arange, and a slice of a longer table."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(20, 32, padding_idx=0), nn.Embedding(10, 32)
        self.table = nn.Parameter(torch.randn(1, 10, 32))
        self.tail = head(32)

    def forward(self, x):
        n = x.shape[1]
        return self.tail(self.words(x) + self.places(torch.arange(n, device=x.device)) + self.table[:, :n])


@structure(image)
class PositionResized(Image):
    """A position embedding of (1, C, 4, 4) is resized to the image and added."""

    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.randn(1, 16, 4, 4))

    def middle(self, x):
        return x + nn.functional.interpolate(self.place, x.shape[2:], mode="bilinear")


def partition(x, size):
    """`b (y s) (x t) c -> (b y x) (s t) c`"""
    b, h, w, c = x.shape
    x = x.view(b, h // size, size, w // size, size, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, size * size, c)


def gather(x, size, height, width):
    """The inverse of partition, the batch derived by division."""
    b = x.shape[0] // (height * width // size // size)
    x = x.view(b, height // size, width // size, size, size, -1)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(b, height, width, -1)


class Windowed(nn.Module):
    """Attention within windows of 4 x 4, heads by hand."""

    def __init__(self, width=16, heads=2):
        super().__init__()
        self.stem, self.tail, self.heads = stem(width), head(width), heads
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def attention(self, x, mask=0.0):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        return self.project(((q @ k.transpose(-2, -1) + mask).softmax(-1) @ v).transpose(1, 2).reshape(b, n, c))


@structure(image)
class WindowPartition(Windowed):
    """Windows are folded into the batch and back."""

    def forward(self, x):
        x = self.stem(x).permute(0, 2, 3, 1)
        x = x + gather(self.attention(partition(x, 4)), 4, 8, 8)
        return self.tail(x.mean((1, 2)))


@structure(image)
class WindowShifted(Windowed):
    """Rolled over space, with a mask per window that is a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.zeros(8, 1, 16, 16).index_fill(0, torch.tensor([3, 7]), -1.0))

    def forward(self, x):
        x = self.stem(x).permute(0, 2, 3, 1)
        y = self.attention(partition(torch.roll(x, (-2, -2), (1, 2)), 4), self.mask)
        return self.tail((x + torch.roll(gather(y, 4, 8, 8), (2, 2), (1, 2))).mean((1, 2)))


@structure(image)
class GridAttention(Windowed):
    """Strided windows: the same reshape with the axes taken the other way round (MaxViT)."""

    def forward(self, x):
        x = self.stem(x).permute(0, 2, 3, 1)
        b, _, _, c = x.shape
        y = x.view(b, 4, 2, 4, 2, c).permute(0, 2, 4, 1, 3, 5).reshape(-1, 16, c)
        y = self.attention(y).view(b, 2, 2, 4, 4, c).permute(0, 3, 1, 4, 2, 5).reshape(b, 8, 8, c)
        return self.tail((x + y).mean((1, 2)))


@structure(image)
class PatchMerging(nn.Module):
    """Four strided slices of space side by side: `(4 c)` into a norm and a linear layer."""

    def __init__(self):
        super().__init__()
        self.stem, self.tail = stem(16), head(32)
        self.norm, self.reduce = nn.LayerNorm(64), nn.Linear(64, 32, bias=False)

    def forward(self, x):
        x = self.stem(x).permute(0, 2, 3, 1)
        x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
        return self.tail(self.reduce(self.norm(x)).mean((1, 2)))


@structure(image)
class SpatialReduction(nn.Module):
    """Keys and values come from a strided convolution of the tokens laid out as an image (PVT)."""

    def __init__(self):
        super().__init__()
        self.stem, self.tail = stem(16), head(16)
        self.shrink, self.norm = conv(16, 16, 2, stride=2), nn.LayerNorm(16)
        self.q, self.kv = nn.Linear(16, 16), nn.Linear(16, 32)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        b, n, c = x.shape
        y = self.norm(self.shrink(x.transpose(1, 2).reshape(b, c, 8, 8)).flatten(2).transpose(1, 2))
        k, v = self.kv(y).reshape(b, -1, 2, 2, c // 2).permute(2, 0, 3, 1, 4)
        q = self.q(x).reshape(b, n, 2, c // 2).transpose(1, 2)
        return self.tail((x + attend(q, k, v).transpose(1, 2).reshape(b, n, c)).mean(1))


@structure(tokens)
class TokenMixer(Tokens):
    """Linear layers along the places: the places are fixed, the hidden width of the mixer is not (MLP-Mixer)."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.mixer = nn.Sequential(nn.Linear(6, 40), nn.GELU(), nn.Linear(40, 6))

    def middle(self, x):
        return x + self.mixer(self.norm(x).transpose(1, 2)).transpose(1, 2)
