"""How queries, keys, values and gates lie in one projection; grouped queries; rotary embeddings."""

import torch
import torch.nn.functional as F
from torch import nn

from .attention import Attention, attend
from .parts import Image, Tokens, conv, image, tokens
from .registry import structure


class FusedProjection(Tokens):
    """One projection to 96 for four heads of eight; subclasses say how it is laid out."""

    def __init__(self):
        super().__init__()
        self.heads = 4
        self.qkv, self.project = nn.Linear(32, 96), nn.Linear(32, 32)

    def middle(self, x):
        b, n, c = x.shape
        q, k, v = self.lay_out(self.qkv(x))
        return x + self.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


@structure(tokens)
class FusedThreeHeadsWidth(FusedProjection):
    """Laid out as `(3 h d)`."""

    def lay_out(self, x):
        b, n, c = x.shape
        return x.reshape(b, n, 3, self.heads, c // 3 // self.heads).permute(2, 0, 3, 1, 4)


@structure(tokens)
class FusedHeadsThreeWidth(FusedProjection):
    """Laid out as `(h 3 d)` (GPT-NeoX)."""

    def lay_out(self, x):
        x = x.view(*x.shape[:2], self.heads, 3, 8).transpose(1, 2)
        return x[..., 0, :], x[..., 1, :], x[..., 2, :]


@structure(tokens)
class FusedHeadsWidthThree(FusedProjection):
    """Laid out as `(h d 3)`, taken apart by unbind."""

    def lay_out(self, x):
        return x.view(*x.shape[:2], self.heads, 8, 3).transpose(1, 2).unbind(-1)


@structure(tokens)
class FusedHeadsChunk(FusedProjection):
    """Laid out as `(h (3 d))`, chunked inside each head."""

    def lay_out(self, x):
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2).chunk(3, dim=-1)


@structure(tokens)
class FusedChunk(FusedProjection):
    """Chunked in three, then taken to heads."""

    def lay_out(self, x):
        return [y.view(y.shape[0], y.shape[1], self.heads, -1).transpose(1, 2) for y in x.chunk(3, dim=-1)]


@structure(tokens)
class FusedNoBiasForKeys(Tokens):
    """A bias made of parameters and a buffer of zeros, given to F.linear (BEiT, Swin V2)."""

    def __init__(self):
        super().__init__()
        self.qkv, self.project = nn.Linear(32, 96, bias=False), nn.Linear(32, 32)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(32)), nn.Parameter(torch.zeros(32))
        self.register_buffer("k_bias", torch.zeros(32), persistent=False)

    def middle(self, x):
        b, n, _ = x.shape
        qkv = F.linear(x, self.qkv.weight, torch.cat((self.q_bias, self.k_bias, self.v_bias)))
        q, k, v = qkv.reshape(b, n, 3, 4, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return self.project(attend(q, k, v).transpose(1, 2).reshape(b, n, -1))


@structure(tokens)
class GroupedQueriesSplit(Tokens):
    """Split by the sizes of q, k and v: four query heads, two of keys and values."""

    def __init__(self):
        super().__init__()
        self.sizes = (32, 16, 16)
        self.qkv, self.project = nn.Linear(32, sum(self.sizes)), nn.Linear(32, 32)

    def middle(self, x):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).split(self.sizes, dim=-1)
        q, k, v = q.view(b, n, 4, 8), k.view(b, n, 2, 8), v.view(b, n, 2, 8)
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        return x + self.project(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2))


class GroupedQueries(Tokens):
    """Four query heads and two of keys and values; subclasses repeat the latter."""

    kv_heads = 2

    def __init__(self):
        super().__init__()
        self.head_dim = 8
        self.q, self.project = nn.Linear(32, 32), nn.Linear(32, 32)
        self.k, self.v = nn.Linear(32, self.kv_heads * 8), nn.Linear(32, self.kv_heads * 8)

    def middle(self, x):
        b, n, _ = x.shape
        q, k, v = (f(x).view(b, n, -1, self.head_dim).transpose(1, 2) for f in (self.q, self.k, self.v))
        return x + self.project(attend(q, self.repeat(k), self.repeat(v)).transpose(1, 2).reshape(b, n, -1))


@structure(tokens)
class GroupedQueriesInterleaved(GroupedQueries):
    """repeat_interleave over heads: query heads are `(kv r)`."""

    def repeat(self, x):
        return x.repeat_interleave(2, dim=1)


@structure(tokens)
class GroupedQueriesExpanded(GroupedQueries):
    """A new axis, expand, reshape: the same repeat without the operator (Llama)."""

    def repeat(self, x):
        b, h, n, d = x.shape
        return x[:, :, None].expand(b, h, 2, n, d).reshape(b, h * 2, n, d)


@structure(tokens)
class GroupedQueriesTiled(GroupedQueries):
    """repeat over heads: query heads are `(r kv)`, another order."""

    def repeat(self, x):
        return x.repeat(1, 2, 1, 1)


@structure(tokens)
class MultiQuery(GroupedQueries):
    """One head of keys and values, broadcast against all queries."""

    kv_heads = 1

    def repeat(self, x):
        return x


@structure(tokens)
class FusedGroupedLayout(Tokens):
    """Per group two query heads, a key and a value side by side: `(kv (r + 1 + 1) d)` (Falcon)."""

    def __init__(self):
        super().__init__()
        self.qkv, self.project = nn.Linear(32, 64), nn.Linear(32, 32)

    def middle(self, x):
        b, n, _ = x.shape
        qkv = self.qkv(x).view(b, n, 2, 4, 8)
        q, k, v = qkv[..., :-2, :], qkv[..., [-2], :], qkv[..., [-1], :]
        q, k, v = (torch.broadcast_to(y, q.shape).flatten(2, 3).transpose(1, 2) for y in (q, k, v))
        return x + self.project(attend(q, k, v).transpose(1, 2).reshape(b, n, -1))


@structure(tokens)
class RotaryCached(Attention):
    """Half rotation by cached buffers: index i is tied to index i + d / 2, and the tables to both."""

    def __init__(self):
        super().__init__()
        angle = torch.outer(torch.arange(16.0), 100 ** (-torch.arange(4.0) / 4)).repeat(1, 2)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def turn(self, x):
        cos, sin = self.cos[: x.shape[2]], self.sin[: x.shape[2]]
        left, right = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
        return x * cos + torch.cat((-right, left), -1) * sin

    def mix(self, q, k, v):
        return attend(self.turn(q), self.turn(k), v)


@structure(tokens)
class RotaryComputed(Attention):
    """Half rotation by tables made in forward from a buffer of frequencies."""

    def __init__(self):
        super().__init__()
        self.register_buffer("frequency", 100 ** (-torch.arange(0, 8, 2) / 8))

    def turn(self, x):
        place = torch.arange(x.shape[2], device=x.device, dtype=x.dtype)
        angle = torch.cat([place[:, None] * self.frequency] * 2, -1)
        left, right = x.chunk(2, -1)
        return x * angle.cos() + torch.cat((-right, left), -1) * angle.sin()

    def mix(self, q, k, v):
        return attend(self.turn(q), self.turn(k), v)


@structure(tokens)
class RotaryInterleaved(Attention):
    """Neighbouring pairs turn: strided slices and a stack."""

    def __init__(self):
        super().__init__()
        self.register_buffer("angle", torch.outer(torch.arange(16.0), 100 ** (-torch.arange(4.0) / 4)))

    def turn(self, x):
        cos, sin = self.angle[: x.shape[2]].cos(), self.angle[: x.shape[2]].sin()
        even, odd = x[..., ::2], x[..., 1::2]
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)

    def mix(self, q, k, v):
        return attend(self.turn(q), self.turn(k), v)


@structure(tokens)
class RotaryComplex(RotaryInterleaved):
    """Neighbouring pairs as complex numbers."""

    def turn(self, x):
        phase = torch.polar(torch.ones_like(self.angle), self.angle)[: x.shape[2]]
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * phase).flatten(-2)


@structure(tokens)
class RotaryPartial(RotaryInterleaved):
    """Only the first half of the head turns, the rest passes."""

    def __init__(self):
        super().__init__()
        self.angle = self.angle[:, :2].clone()

    def turn(self, x):
        return torch.cat((super().turn(x[..., :4]), x[..., 4:]), -1)


@structure(tokens)
class GateSeparate(Tokens):
    """SwiGLU with two projections."""

    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(32, 64), nn.Linear(32, 64), nn.Linear(64, 32)

    def middle(self, x):
        return x + self.down(F.silu(self.gate(x)) * self.up(x))


@structure(tokens)
class GateFused(Tokens):
    """GeGLU in one projection, chunked: output i is tied to output i + 64."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(32, 128), nn.Linear(64, 32)

    def middle(self, x):
        gate, up = self.up(x).chunk(2, dim=-1)
        return x + self.down(F.gelu(gate) * up)


@structure(image)
class GateGlu(Image):
    """F.glu halves the channels of an image."""

    def __init__(self):
        super().__init__()
        self.up = conv(16, 32)

    def middle(self, x):
        return F.glu(self.up(x), dim=1)
