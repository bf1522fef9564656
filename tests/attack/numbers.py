"""Small models in which some number is equal to a width: held in every way, read in every way.

The width is sixteen everywhere. What is read as that width may change with it; no other number may.
"""

from __future__ import annotations

import enum
import functools
import math
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.attack.oracle import Case, Inputs

CASES: dict[str, Case] = {}
WIDTH = 16


def add(name: str, build: Callable[[], nn.Module], inputs: Callable[[], Inputs], **options: Any) -> None:
    if name in CASES:
        raise ValueError(f"{name!r} stands here twice")
    CASES[name] = Case(name, build, inputs, area="numbers", **options)


def tokens(length: int = 5, batch: int = 2) -> Callable[[], Inputs]:
    return lambda: (torch.randn(batch, length, 6, dtype=torch.float64),)


def images(size: int = 8, batch: int = 2, channels: int = 3) -> Callable[[], Inputs]:
    return lambda: (torch.randn(batch, channels, size, size, dtype=torch.float64),)


LENGTHS = (tokens(20), tokens(3, 3))


# -- every way to hold a number, every way to read it ---------------------------------------------------------------------


@dataclass
class Settings:
    n: int = WIDTH
    dim: int = WIDTH
    heads: int = 4


@dataclass(frozen=True)
class Frozen:
    n: int = WIDTH


@dataclass
class Outer:
    inner: Settings = field(default_factory=Settings)
    layers: tuple[int, ...] = (WIDTH, 2)


class Plain:
    def __init__(self) -> None:
        self.n = WIDTH


class Size(enum.IntEnum):
    N = WIDTH


class Slotted:
    __slots__ = ("n",)

    def __init__(self) -> None:
        self.n = WIDTH


Pair = namedtuple("Pair", "n other")
CONSTANT = WIDTH
Setup, Get = Callable[[nn.Module], None], Callable[[nn.Module], Any]


def stored(**values: Any) -> Setup:
    def setup(model: nn.Module) -> None:
        for name, value in values.items():
            setattr(model, name, value() if isinstance(value, type) or callable(value) else value)

    return setup


# name: what __init__ does, how the number is reached, where it can be looked up afterwards
HOLDERS: dict[str, tuple[Setup, Get, str]] = {
    "attribute": (stored(n=16), lambda m: m.n, "n"),
    "tuple": (stored(window=(16, 3)), lambda m: m.window[0], "window[0]"),
    "list": (stored(sizes=[3, 16]), lambda m: m.sizes[1], "sizes[1]"),
    "dict": (stored(config={"n": 16}), lambda m: m.config["n"], "config['n']"),
    "nested_dict": (stored(config={"a": {"n": 16}}), lambda m: m.config["a"]["n"], "config['a']['n']"),
    "dict_by_number": (stored(config={16: "wide", 8: "narrow"}), lambda m: max(m.config), "config[16] and 16"),
    "dataclass": (stored(config=Settings), lambda m: m.config.n, "config.n"),
    "frozen_dataclass": (stored(config=Frozen), lambda m: m.config.n, "config.n"),
    "nested_dataclass": (stored(config=Outer), lambda m: m.config.inner.n, "config.inner.n"),
    "tuple_in_dataclass": (stored(config=Outer), lambda m: m.config.layers[0], "config.layers[0]"),
    "namespace": (stored(config=lambda: SimpleNamespace(n=16)), lambda m: m.config.n, "config.n"),
    "object": (stored(config=Plain), lambda m: m.config.n, "config.n"),
    "slots": (stored(config=Slotted), lambda m: m.config.n, "config.n"),
    "named_tuple": (stored(config=Pair(16, 3)), lambda m: m.config.n, "config.n"),
    "numpy": (stored(n=np.int64(16)), lambda m: int(m.n), "n"),
    "numpy_array": (stored(sizes=np.array([16, 3])), lambda m: int(m.sizes[0]), "sizes[0]"),
    "enum": (stored(n=Size.N), lambda m: m.n.value, "n.value"),
    "size": (stored(sizes=torch.Size([16, 3])), lambda m: m.sizes[0], "sizes[0]"),
    "range": (stored(sizes=range(16)), lambda m: len(m.sizes), "sizes.stop"),
    "buffer": (lambda m: m.register_buffer("n", torch.tensor(16)), lambda m: int(m.n), "n.item()"),
    "table": (lambda m: m.register_buffer("t", torch.arange(16), persistent=False), lambda m: len(m.t), "t.shape[0]"),
    "child": (lambda m: setattr(m, "child", Child()), lambda m: m.child.n, "child.n"),
    "text": (stored(spec="n=16"), lambda m: int(m.spec[2:]), "spec.__len__() + 12"),
    "constant": (lambda m: None, lambda m: CONSTANT, "__class__.__module__.__len__() * 0 + 16"),
    "class_attribute": (lambda m: None, lambda m: type(m).n_of_class, "n_of_class"),
    "through_instance": (lambda m: None, lambda m: m.n_of_class, "n_of_class"),
    "property": (stored(_n=15), lambda m: m.n_by_property, "_n + 1"),
    "method": (stored(_n=4), lambda m: m.n_by_method(), "_n * 4"),
    "partial": (stored(f=lambda: functools.partial(lambda n: n, 16)), lambda m: m.f(), "f.args[0]"),
    "shared": (lambda m: (setattr(m, "config", Settings()), setattr(m, "again", m.config))[0],
               lambda m: m.again.n, "config.n"),
    "boolean_list": (stored(flags=[True] * 16), lambda m: sum(m.flags), "flags.__len__()"),
    "module_list": (lambda m: setattr(m, "steps", nn.ModuleList(nn.Identity() for _ in range(16))),
                    lambda m: len(m.steps), "steps.__len__()"),
}  # fmt: skip


class Child(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n = WIDTH


# What is done with the number: none of these is the width.
Read = Callable[[nn.Module, Tensor, Tensor, int], Tensor]
READS: dict[str, Read] = {
    "cut_of_length": lambda m, x, h, n: h[:, :n],
    "scale": lambda m, x, h, n: h / n,
    "root": lambda m, x, h, n: h * n**-0.5,
    "logarithm": lambda m, x, h, n: h * math.log(n),
    "branch": lambda m, x, h, n: h if x.shape[1] <= n else -h,
    "maximum": lambda m, x, h, n: h * max(n, x.shape[1]),
    "minimum": lambda m, x, h, n: h * min(n, x.shape[1]),
    "remainder": lambda m, x, h, n: h * (x.shape[1] % n + 1),
    "positions": lambda m, x, h, n: h * torch.arange(n, dtype=h.dtype).repeat(2)[: h.shape[1]][:, None],
    "window": lambda m, x, h, n: torch.ones(h.shape[1], h.shape[1], dtype=h.dtype).tril(n - 14) @ h,
    "loop": lambda m, x, h, n: functools.reduce(lambda a, _: a * 1.1, range(n), h),
    "pad_of_length": lambda m, x, h, n: F.pad(h, (0, 0, 0, n)),
    "resize_of_length": lambda m, x, h, n: F.interpolate(h.mT, size=n).mT,
    "pool_of_length": lambda m, x, h, n: F.adaptive_avg_pool1d(h.mT, n).mT,
    "roll_of_length": lambda m, x, h, n: h.roll(n, 1),
    "chunks_of_length": lambda m, x, h, n: h.split(n, 1)[0],
    "expanded": lambda m, x, h, n: h[:, :, None].expand(-1, -1, n, -1).sum(2),
    "clamped": lambda m, x, h, n: h.clamp(max=n / 16 - 0.5),
    "one_hot": lambda m, x, h, n: h * F.one_hot(torch.arange(h.shape[1]) % n, n).sum(-1, keepdim=True).argmax(-1)[:, None] + h,
    "filled": lambda m, x, h, n: h * torch.full((1,), n, dtype=h.dtype),
    "in_training": lambda m, x, h, n: h * n if m.training else h,
    "outside_training": lambda m, x, h, n: h if m.training else h * n,
    "never": lambda m, x, h, n: h,
    "repeated": lambda m, x, h, n: h.repeat(1, n // 8, 1),
    "range_of_steps": lambda m, x, h, n: sum(h * step for step in range(1, n, 5)),
    "as_text": lambda m, x, h, n: h * len(f"{n:>4}") * float(str(n)),
    "bits": lambda m, x, h, n: h * n.bit_length() if isinstance(n, int) else h,
    "is_whole": lambda m, x, h, n: h * 2 if isinstance(n, int) and n > 10 else h,
    "numpy": lambda m, x, h, n: h * float(np.sqrt(n)) + h * int(np.prod([n, 2])),
    "key": lambda m, x, h, n: h * {16: 3.0, 8: 5.0}.get(n, 7.0),
    "hash": lambda m, x, h, n: h * (hash(n) + 1),
    "set": lambda m, x, h, n: h * (2 if n in {4, 16} else 1),
    "list_of_ranges": lambda m, x, h, n: h * [*range(0, n, 4)][-1],
    "comparison": lambda m, x, h, n: h * 2 if n == m.dim else h * 3,
    "divmod": lambda m, x, h, n: h * divmod(n, 5)[1],
    "shift": lambda m, x, h, n: h * (1 << (n - 10)) + h * (n >> 2),
    "float": lambda m, x, h, n: h * float(n) + round(n / 3),
    "arange_values": lambda m, x, h, n: h * torch.linspace(0, 1, n, dtype=h.dtype).mean(),
    "index_of_batch": lambda m, x, h, n: h + x.sum(-1, keepdim=True) * (n - 15),
    "tensor": lambda m, x, h, n: h * torch.tensor([n, n + 1], dtype=h.dtype)[1],
    "size_of_input": lambda m, x, h, n: h * (x.shape[-1] * 2 + n),
}  # fmt: skip


class Reader(nn.Module):
    """Heads of a width that `dim` holds; the other number is held and read in some way."""

    n_of_class = WIDTH

    def __init__(self, setup: Setup, get: Get, read: Read) -> None:
        super().__init__()
        self.dim = WIDTH
        setup(self)
        self.get, self.read = get, read
        self.up = nn.Linear(6, WIDTH)
        self.middle = nn.Linear(WIDTH, WIDTH)
        self.down = nn.Linear(WIDTH, 3)

    @property
    def n_by_property(self) -> int:
        return self._n + 1

    def n_by_method(self) -> int:
        return self._n * 4

    def forward(self, x: Tensor) -> Tensor:
        h = self.middle(self.up(x).relu()).relu()
        h = h.view(x.shape[0], x.shape[1], 4, self.dim // 4).transpose(2, 3).reshape(x.shape[0], x.shape[1], self.dim)
        return self.down(self.read(self, x, h, self.get(self)))

    def generate(self, x: Tensor) -> Tensor:
        """Reads the number as a count of tokens, whatever forward does."""
        return self(x).flatten(1).sort(-1).values[:, : self.get(self)]


def generated(model: nn.Module, inputs: Inputs) -> Tensor:
    return model.generate(*inputs)


def reader(name: str, holder: str, read: str) -> None:
    setup, get, path = HOLDERS[holder]
    add(
        name,
        lambda: Reader(setup, get, READS[read]),
        tokens(),
        others=LENGTHS,
        methods=(generated,),
        attributes=((path, 16),),
        in_training=True,
        forms=("auto", "graph") if holder == "attribute" else ("auto",),
    )


for _read in READS:
    reader(f"attribute_as_{_read}", "attribute", _read)
    reader(f"dataclass_as_{_read}", "dataclass", _read)
for _holder in HOLDERS:
    for _read in ("cut_of_length", "scale", "in_training", "branch"):
        if _holder not in ("attribute", "dataclass"):
            reader(f"{_holder}_as_{_read}", _holder, _read)


# -- one number, read as the width and as something else ----------------------------------------------------------------------


class Both(nn.Module):
    """`dim` is a size and something else as well."""

    def __init__(self, read: Read) -> None:
        super().__init__()
        self.dim = WIDTH
        self.read = read
        self.up = nn.Linear(6, WIDTH)
        self.middle = nn.Linear(WIDTH, WIDTH)
        self.down = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.middle(self.up(x).relu()).relu()
        h = h.view(x.shape[0], x.shape[1], 4, self.dim // 4).transpose(2, 3).reshape(x.shape[0], x.shape[1], self.dim)
        return self.down(self.read(self, x, h, self.dim))

    def generate(self, x: Tensor) -> Tensor:
        return self(x).flatten(1).sort(-1).values[:, : self.dim]


for _read in READS:
    if _read not in ("comparison",):
        add(f"both_{_read}", lambda read=READS[_read]: Both(read), tokens(), others=LENGTHS, in_training=True)


# -- sizes in the code, in every spelling ---------------------------------------------------------------------------------------


class Spelled(nn.Module):
    """h [b, n, 16] through some reshaping, with sizes spelled in one of many ways."""

    def __init__(self, reshape: Callable[[nn.Module, Tensor], Tensor], **numbers: Any) -> None:
        super().__init__()
        for name, value in numbers.items():
            setattr(self, name, value)
        self.reshape = reshape
        self.up = nn.Linear(6, WIDTH)
        self.middle = nn.Linear(WIDTH, WIDTH)
        self.down = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.middle(self.up(x).relu()).tanh()
        return self.down(self.reshape(self, h))


def swap(h: Tensor, *sizes: int) -> Tensor:
    """Heads and their widths change places: not what it was, so sizes matter."""
    return h.view(*h.shape[:2], *sizes).transpose(2, 3).reshape(h.shape)


SPELLINGS: dict[str, tuple[Callable[[nn.Module, Tensor], Tensor], dict[str, Any]]] = {
    "half": (lambda m, h: swap(h, 2, h.shape[-1] // 2), {}),
    "heads_by_shape": (lambda m, h: swap(h, m.heads, h.shape[-1] // m.heads), {"heads": 4}),
    "width_by_shape": (lambda m, h: swap(h, h.shape[-1] // m.width, m.width), {"width": 4}),
    "minus_one": (lambda m, h: swap(h, 4, -1), {}),
    "minus_one_before": (lambda m, h: swap(h, -1, 4), {}),
    "literals": (lambda m, h: swap(h, 4, 4), {}),
    "heads_and_width": (lambda m, h: swap(h, m.heads, m.width), {"heads": 4, "width": 4}),
    "two_and_eight": (lambda m, h: swap(h, m.heads, m.width), {"heads": 2, "width": 8}),
    "product": (lambda m, h: swap(h, m.heads, m.width).view(*h.shape[:2], m.heads * m.width), {"heads": 2, "width": 8}),
    "half_by_float": (lambda m, h: swap(h, 2, int(h.shape[-1] * 0.5)), {}),
    "half_by_division": (lambda m, h: swap(h, 2, int(h.shape[-1] / 2)), {}),
    "dim_by_float": (lambda m, h: swap(h, 2, int(m.dim * 0.5)), {"dim": 16}),
    "dim_rounded": (lambda m, h: swap(h, 2, round(m.dim / 2)), {"dim": 16}),
    "dim_shifted": (lambda m, h: swap(h, 2, m.dim >> 1), {"dim": 16}),
    "dim_ceiled": (lambda m, h: swap(h, 2, math.ceil(m.dim / 2)), {"dim": 16}),
    "dim_by_numpy": (lambda m, h: swap(h, 2, int(np.prod([m.dim]) // 2)), {"dim": 16}),
    "dim_by_prod": (lambda m, h: swap(h, 2, math.prod([m.half])), {"half": 8}),
    "dim_by_divmod": (lambda m, h: swap(h, 2, divmod(m.dim, 2)[0]), {"dim": 16}),
    "dim_by_minus": (lambda m, h: swap(h, 2, -(-m.dim // 2)), {"dim": 16}),
    "dim_minus_eight": (lambda m, h: swap(h, 2, m.dim - 8), {"dim": 16}),
    "square_root": (lambda m, h: swap(h, math.isqrt(m.dim), -1), {"dim": 16}),
    "as_tuple": (lambda m, h: swap(h, *m.shape), {"shape": (2, 8)}),
    "as_list": (lambda m, h: swap(h, *m.shape), {"shape": [2, 8]}),
    "as_size": (lambda m, h: swap(h, *m.shape), {"shape": torch.Size((2, 8))}),
    "as_dict": (lambda m, h: swap(h, m.c["heads"], m.c["dim"]), {"c": {"heads": 2, "dim": 8}}),
    "as_dataclass": (lambda m, h: swap(h, m.c.heads, m.c.dim // m.c.heads), {"c": Settings()}),
    "as_namespace": (lambda m, h: swap(h, 4, m.c.dim // 4), {"c": SimpleNamespace(dim=16)}),
    "as_numpy": (lambda m, h: swap(h, 2, int(m.n) // 2), {"n": np.int64(16)}),
    "by_text": (lambda m, h: swap(h, *map(int, m.spec.split("x"))), {"spec": "2x8"}),
    "split_size": (lambda m, h: torch.cat(h.split(m.half, -1)[::-1], -1), {"half": 8}),
    "split_sizes": (lambda m, h: torch.cat(h.split([m.a, m.b], -1)[::-1], -1), {"a": 4, "b": 12}),
    "split_list": (lambda m, h: torch.cat(h.split(m.sizes, -1)[::-1], -1), {"sizes": [4, 12]}),
    "split_literal": (lambda m, h: torch.cat(h.split([4, 12], -1)[::-1], -1), {}),
    "chunk": (lambda m, h: torch.cat(h.chunk(2, -1)[::-1], -1), {}),
    "chunk_four": (lambda m, h: torch.cat(h.chunk(m.heads, -1)[::-1], -1), {"heads": 4}),
    "slice_halves": (lambda m, h: torch.cat([h[..., h.shape[-1] // 2 :], h[..., : h.shape[-1] // 2]], -1), {}),
    "slice_by_dim": (lambda m, h: torch.cat([h[..., m.dim // 2 :], h[..., : m.dim // 2]], -1), {"dim": 16}),
    "slice_literal": (lambda m, h: torch.cat([h[..., 8:], h[..., :8]], -1), {}),
    "slice_negative": (lambda m, h: torch.cat([h[..., -8:], h[..., :-8]], -1), {}),
    "narrow": (lambda m, h: torch.cat([h.narrow(-1, m.half, m.half), h.narrow(-1, 0, m.half)], -1), {"half": 8}),
    "rotate_half": (lambda m, h: torch.cat([-h.chunk(2, -1)[1], h.chunk(2, -1)[0]], -1), {}),
    "even_odd": (lambda m, h: torch.stack([-h[..., 1::2], h[..., ::2]], -1).flatten(-2), {}),
    "loop_over_heads": (lambda m, h: torch.cat([h[..., i * m.w : (i + 1) * m.w] * (i + 1) for i in range(m.heads)], -1),
                        {"heads": 4, "w": 4}),
    "loop_by_shape": (lambda m, h: torch.cat([p * (i + 1) for i, p in enumerate(h.split(4, -1))], -1), {}),
    "dictionary": (lambda m, h: swap(h, {16: 2, 8: 2}.get(h.shape[-1], 2), h.shape[-1] // 2), {}),
    "scale_by_dim": (lambda m, h: h * m.dim**-0.5, {"dim": 16}),
    "scale_by_shape": (lambda m, h: h * h.shape[-1] ** -0.5, {}),
    "scale_by_root": (lambda m, h: h / math.sqrt(h.size(-1)), {}),
    "scale_precomputed": (lambda m, h: swap(h, 4, -1) * m.scale, {"scale": 16**-0.5, "dim": 16}),
    "scale_whole": (lambda m, h: h * m.scale, {"scale": 16}),
    "norm_by_shape": (lambda m, h: F.layer_norm(h, h.shape[-1:]), {}),
    "norm_by_dim": (lambda m, h: F.layer_norm(h, (m.dim,)), {"dim": 16}),
    "norm_by_tuple": (lambda m, h: F.layer_norm(h, m.shape), {"shape": (16,)}),
    "group_norm": (lambda m, h: F.group_norm(h.flatten(0, 1), m.groups).view(h.shape), {"groups": 4}),
    "checked": (lambda m, h: h if h.shape[-1] == m.dim else h[0, 0, 0] / 0, {"dim": 16}),
    "asserted": (lambda m, h: _asserted(m, h), {"dim": 16}),
    "unpacked": (lambda m, h: _unpacked(h), {}),
    "zeros_of_dim": (lambda m, h: h + torch.zeros(m.dim, dtype=h.dtype), {"dim": 16}),
    "zeros_of_shape": (lambda m, h: h + torch.zeros(*h.shape[:-1], h.shape[-1], dtype=h.dtype), {}),
    "cat_zeros": (lambda m, h: torch.cat([h[..., :8], torch.zeros(*h.shape[:2], 8, dtype=h.dtype)], -1), {}),
    "reshape_batch": (lambda m, h: h.reshape(-1, m.dim).view(*h.shape), {"dim": 16}),
    "reshape_batch_by_shape": (lambda m, h: h.view(h.shape[0] * h.shape[1], h.shape[2]).view(h.shape), {}),
    "unflatten": (lambda m, h: h.unflatten(-1, (m.heads, -1)).transpose(2, 3).flatten(2), {"heads": 4}),
    "unflatten_both": (lambda m, h: h.unflatten(-1, (m.heads, m.w)).transpose(2, 3).flatten(2), {"heads": 2, "w": 8}),
    "einops_like": (lambda m, h: h.reshape(h.shape[0], h.shape[1], m.h, -1).permute(0, 2, 1, 3).flatten(2).view(h.shape[0], m.h, h.shape[1], -1).permute(0, 2, 1, 3).flatten(2), {"h": 2}),
    "repeat": (lambda m, h: h.mean(-1, keepdim=True).repeat(1, 1, m.dim) + h, {"dim": 16}),
    "expand": (lambda m, h: h.mean(-1, keepdim=True).expand(-1, -1, m.dim) + h, {"dim": 16}),
    "expand_by_shape": (lambda m, h: h.sum(-1, keepdim=True).expand(-1, -1, h.shape[-1]) + h, {}),
    "interleaved": (lambda m, h: h.view(*h.shape[:2], 4, -1).mean(2).repeat_interleave(4, -1), {}),
    "by_length_of_weight": (lambda m, h: swap(h, 2, len(m.middle.weight) // 2), {}),
    "by_out_features": (lambda m, h: swap(h, 2, m.middle.out_features // 2), {}),
    "by_in_features": (lambda m, h: swap(h, 2, m.down.in_features // 2), {}),
    "by_numel": (lambda m, h: swap(h, 2, m.middle.bias.numel() // 2), {}),
    "max_of_sizes": (lambda m, h: swap(h, 2, max(m.half, 4)), {"half": 8}),
    "min_of_sizes": (lambda m, h: swap(h, 2, min(m.half, 64)), {"half": 8}),
    "conditional": (lambda m, h: swap(h, 2, m.half if m.half > 4 else 4), {"half": 8}),
    "two_attributes_alike": (lambda m, h: swap(swap(h, 2, m.a), 2, m.b), {"a": 8, "b": 8}),
    "even_check": (lambda m, h: swap(h, 2, m.half) if m.half % 2 == 0 else h, {"half": 8}),
    "ones_mask": (lambda m, h: h * (torch.arange(m.dim) < m.dim // 2), {"dim": 16}),
    "buffer_free_positions": (lambda m, h: h + torch.arange(h.shape[-1], dtype=h.dtype), {}),
    "frequencies": (lambda m, h: h * torch.exp(-torch.arange(m.dim, dtype=h.dtype) / m.dim), {"dim": 16}),
    "onehot_of_dim": (lambda m, h: h * F.one_hot(torch.tensor(3), m.dim), {"dim": 16}),
    "roll_by_half": (lambda m, h: h.roll(m.half, -1), {"half": 8}),
    "flip": (lambda m, h: h.flip(-1), {}),
    "topk_of_width": (lambda m, h: h + h.topk(m.k, -1).values.sum(-1, keepdim=True), {"k": 16}),
    "gather_first": (lambda m, h: h + h[..., :1] + h[..., m.dim - 1 :], {"dim": 16}),
}  # fmt: skip


def _asserted(m: nn.Module, h: Tensor) -> Tensor:
    assert h.shape[-1] == m.dim, f"{h.shape[-1]} channels where {m.dim} are due"
    return h * 2


def _unpacked(h: Tensor) -> Tensor:
    b, n, c = h.shape
    return h.reshape(b, n, 2, c // 2).transpose(2, 3).reshape(b, n, c)


for _name, (_reshape, _numbers) in SPELLINGS.items():
    add(
        f"spelled_{_name}",
        lambda reshape=_reshape, numbers=_numbers: Spelled(reshape, **numbers),
        tokens(),
        others=(tokens(16), tokens(8, 3)),
        in_training=True,
    )
