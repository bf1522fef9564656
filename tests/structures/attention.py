"""Attention: by hand, by the fused operator, and its many relatives."""

import torch
import torch.nn.functional as F
from torch import nn

from .parts import Image, Tokens, conv, embed, head, image, tokens
from .registry import structure


def attend(q, k, v):
    return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v


class Attention(Tokens):
    """Four heads of eight on a residual width of 32; subclasses say how heads meet in `mix`."""

    def __init__(self, heads=4, head_dim=8, width=32):
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.q, self.k, self.v = (nn.Linear(width, heads * head_dim) for _ in range(3))
        self.project = nn.Linear(heads * head_dim, width)

    def middle(self, x):
        b, n, _ = x.shape
        q, k, v = (f(x).view(b, n, self.heads, self.head_dim).transpose(1, 2) for f in (self.q, self.k, self.v))
        return x + self.project(self.mix(q, k, v).transpose(1, 2).reshape(b, n, self.heads * self.head_dim))


@structure(tokens)
class AttentionByHand(Attention):
    """Softmax of QK' times V, the scale derived from the shape that is cut."""

    def mix(self, q, k, v):
        return attend(q, k, v)


@structure(tokens)
class AttentionWideHeads(Attention):
    """Head width times heads is not the model's width: 4 * 12 and 32."""

    def __init__(self):
        super().__init__(head_dim=12)

    def mix(self, q, k, v):
        return attend(q, k, v)


@structure(tokens)
class AttentionMasked(Attention):
    """A boolean mask broadcast over heads."""

    def mix(self, q, k, v):
        mask = torch.ones(6, 6, dtype=torch.bool, device=q.device).tril()
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@structure(tokens)
class AttentionCausal(Attention):
    """The fused operator, causal, with a scale of its own."""

    def mix(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.5)


@structure(tokens)
class AttentionSoftMask(Attention):
    """A learned bias per head is added to the scores (ALiBi): heads reach a parameter of shape (h, 1, 1)."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.ones(4, 1, 1))

    def mix(self, q, k, v):
        place = torch.arange(q.shape[2], device=q.device, dtype=q.dtype)
        bias = self.slope * (place[None, :] - place[:, None])
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None].expand(q.shape[0], -1, -1, -1))


@structure(tokens)
class AttentionBaddbmm(Attention):
    """Batch and heads are folded, and baddbmm adds a bias to the scaled scores (Bloom)."""

    def mix(self, q, k, v):
        b, h, n, d = q.shape
        q, k, v = (y.reshape(b * h, n, d) for y in (q, k, v))
        bias = torch.linspace(0, 1, n, device=q.device, dtype=q.dtype).expand(b * h, n, n)
        scores = torch.baddbmm(bias, q, k.transpose(1, 2), beta=0.5, alpha=d**-0.5)
        return torch.bmm(scores.softmax(-1), v).view(b, h, n, d)


@structure(tokens)
class AttentionEinsum(Attention):
    """Scores and values by einsum."""

    def mix(self, q, k, v):
        scores = torch.einsum("b h n d, b h m d -> b h n m", q, k) / 8**0.5
        return torch.einsum("b h n m, b h m d -> b h n d", scores.softmax(-1), v)


@structure(tokens)
class TalkingHeads(Attention):
    """Linear layers across the heads, before and after softmax: heads are inputs and outputs of a weight."""

    def __init__(self):
        super().__init__()
        self.before, self.after = nn.Linear(4, 4), nn.Linear(4, 4)

    def mix(self, q, k, v):
        scores = self.before((q @ k.transpose(-2, -1)).permute(0, 2, 3, 1)).softmax(2)
        return self.after(scores).permute(0, 3, 1, 2) @ v


@structure(tokens)
class TemperaturePerHead(Attention):
    """Cosine scores times a learned, clamped temperature of each head (Swin V2)."""

    def __init__(self):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.ones(4, 1, 1))

    def mix(self, q, k, v):
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        return (scores * self.logit_scale.clamp(max=2.0).exp()).softmax(-1) @ v


@structure(tokens)
class QueryKeyNorm(Attention):
    """A layer norm over the head's width, its scale shared by all heads."""

    def __init__(self):
        super().__init__()
        self.q_norm, self.k_norm = nn.LayerNorm(8), nn.RMSNorm(8)

    def mix(self, q, k, v):
        return attend(self.q_norm(q), self.k_norm(k), v)


@structure(lambda: tokens(9))
class RelativePositionBias(Attention):
    """A table of (places, heads), gathered by a buffer of indices: the rows stay, the heads may go."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(25, 4))
        place = torch.stack(torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij")).flatten(1)
        distance = place[:, :, None] - place[:, None, :] + 2
        self.register_buffer("index", distance[0] * 5 + distance[1], persistent=False)

    def mix(self, q, k, v):
        bias = self.table[self.index.view(-1)].view(9, 9, -1).permute(2, 0, 1)
        return ((q @ k.transpose(-2, -1)) / 8**0.5 + bias).softmax(-1) @ v


@structure(tokens)
class LinearAttention(Attention):
    """No softmax over places: keys meet values first, over the features; sums of keys normalise."""

    def mix(self, q, k, v):
        q, k = F.elu(q) + 1, F.elu(k) + 1
        normaliser = q @ k.sum(2, keepdim=True).transpose(-2, -1)
        return q @ (k.transpose(-2, -1) @ v) / normaliser


@structure(tokens)
class LinearAttentionSoftmax(Attention):
    """Softmax over the features of the queries and over the places of the keys."""

    def mix(self, q, k, v):
        return q.softmax(-1) @ (k.softmax(-2).transpose(-2, -1) @ v)


@structure(image)
class ChannelAttention(Image):
    """Channels attend to channels within each head (XCA)."""

    width = 32

    def __init__(self):
        super().__init__()
        self.qkv, self.project = conv(32, 96, 1), conv(32, 32, 1)
        self.temperature = nn.Parameter(torch.ones(4, 1, 1))

    def middle(self, x):
        b, c, h, w = x.shape
        q, k, v = (y.reshape(b, 4, c // 4, h * w) for y in self.qkv(x).chunk(3, 1))
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature
        return self.project((scores.softmax(-1) @ v).reshape(b, c, h, w))


@structure(image)
class NonLocal(Image):
    """Places of an image attend to places, all channels in one head of half the width."""

    def __init__(self):
        super().__init__()
        self.theta, self.phi, self.g = (nn.Conv2d(16, 8, 1) for _ in range(3))
        self.back = nn.Conv2d(8, 16, 1)

    def middle(self, x):
        theta, phi, g = (f(x).flatten(2) for f in (self.theta, self.phi, self.g))
        y = torch.matmul(torch.matmul(theta.transpose(1, 2), phi).softmax(-1), g.transpose(1, 2))
        return x + self.back(y.transpose(1, 2).reshape(x.shape[0], 8, *x.shape[2:]))


class TwoSources(nn.Module):
    """Two inputs of different widths, each with a layer of its own."""

    def __init__(self, first=32, second=20):
        super().__init__()
        self.left, self.right = embed(first), embed(second, 8)
        self.q, self.k, self.v = nn.Linear(first, 32), nn.Linear(second, 32), nn.Linear(second, 32)
        self.project, self.tail = nn.Linear(32, first), head(first)


@structure(lambda: (tokens(), tokens(4, 8)))
class CrossAttention(TwoSources):
    """Queries from one width, keys and values from another."""

    def forward(self, x, y):
        x, y = self.left(x), self.right(y)
        q, k, v = (z.unflatten(-1, (4, 8)).transpose(1, 2) for z in (self.q(x), self.k(y), self.v(y)))
        return self.tail(x + self.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))


@structure(lambda: (tokens(), tokens(4, 8)))
class KeysFromTwoSources(TwoSources):
    """Keys and values from a concat of both inputs along the places."""

    def __init__(self):
        super().__init__(32, 32)

    def forward(self, x, y):
        x, y = self.left(x), self.right(y)
        both = torch.cat([x, y], 1)
        q, k, v = (z.unflatten(-1, (4, 8)).transpose(1, 2) for z in (self.q(x), self.k(both), self.v(both)))
        return self.tail(x + self.project(attend(q, k, v).transpose(1, 2).flatten(2)))


@structure(tokens)
class LatentQueries(Tokens):
    """Learned latents, expanded over the batch, ask all places (Perceiver, attention pooling)."""

    def __init__(self):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, 3, 32))
        self.k, self.v = nn.Linear(32, 32), nn.Linear(32, 32)

    def middle(self, x):
        latents = self.latents.expand(x.shape[0], -1, -1)
        return latents + attend(latents, self.k(x), self.v(x))


@structure(tokens)
class AttentionDifference(Attention):
    """The halves of each head make two maps; their difference, by a learned factor, weighs the values."""

    def __init__(self):
        super().__init__()
        self.balance = nn.Parameter(torch.ones(4, 1, 1))

    def mix(self, q, k, v):
        (q, r), (k, s) = q.chunk(2, -1), k.chunk(2, -1)
        one, two = (q @ k.transpose(-2, -1)).softmax(-1), (r @ s.transpose(-2, -1)).softmax(-1)
        return (one - self.balance * two) @ v
