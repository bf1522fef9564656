"""Small models of further kinds: settings objects, routes of numbers, parametrizations, hooks, odd strides and types."""

from __future__ import annotations

import functools
import json
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from enum import IntEnum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from tests.attack.oracle import Case

CASES: dict[str, Case] = {}
Forward = Callable[[Any, Tensor], Tensor]


def add(name: str, build: Callable[[], nn.Module], shrinks: bool = True, **options: Any) -> None:
    if name in CASES:
        raise ValueError(f"{name!r} stands here twice")

    def inputs(batch: int, length: int) -> Callable[[], tuple[Tensor]]:
        return lambda: (torch.randn(batch, length, 6, dtype=torch.float64),)

    # The branch that this takes is another one at another length, which the report says.
    others = (inputs(3, 5),) if name == "branch_on_length" else (inputs(3, 5), inputs(2, 9))
    CASES[name] = Case(name, build, inputs(2, 5), others, shrinks=shrinks, area="kinds", **options)


class Net(nn.Module):
    """x [batch, length, 6] -> 16 -> something -> 3"""

    def __init__(self, middle: Forward, setup: Callable[[Any], None] | None = None) -> None:
        super().__init__()
        self.middle = middle
        self.up, self.mix, self.down = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        if setup is not None:
            setup(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.middle(self, self.up(x).relu()))


def heads(h: Tensor, count: Any) -> Tensor:
    """Mixes the entries within each head: the sizes matter."""
    b, n, d = h.shape
    h = h.view(b, n, count, d // count)
    return (h * h.softmax(2)).transpose(2, 3).reshape(b, n, d)


# -- settings: how a number is held ----------------------------------------------------------------------------------------------


class Node(Mapping[str, Any]):
    """As omegaconf: attributes and items, nested, kept in one private place."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_content", {k: Node(v) if isinstance(v, Mapping) else v for k, v in values.items()})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._content[name]

    def __setattr__(self, name: str, value: Any) -> None:
        self._content[name] = value

    def __getitem__(self, key: str) -> Any:
        return self._content[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)


class ReadOnly:
    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{name} cannot be set")


class Computed:
    def __init__(self, width: int, count: int) -> None:
        self._width, self._count = width, count

    @property
    def per_head(self) -> int:
        return self._width // self._count

    @functools.cached_property
    def count(self) -> int:
        return self._count


class Sizes(IntEnum):
    HEADS = 4
    WIDTH = 16


Both = namedtuple("Both", "count width")
SETTINGS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "node": (lambda: Node({"model": {"heads": 4, "width": 16}}), lambda c: c.model.heads),
    "node_by_item": (lambda: Node({"model": {"heads": 4}}), lambda c: c["model"]["heads"]),
    "read_only": (lambda: ReadOnly(heads=4, width=16), lambda c: c.heads),
    "computed": (lambda: Computed(16, 4), lambda c: c._width // c.per_head),
    "cached": (lambda: Computed(16, 4), lambda c: c.count),
    "named_tuple": (lambda: Both(4, 16), lambda c: c.count),
    "enum": (lambda: Sizes, lambda c: int(c.HEADS)),
    "json": (lambda: '{"heads": 4}', lambda c: json.loads(c)["heads"]),
    "text": (lambda: "4x4", lambda c: int(c.split("x")[0])),
    "list_length": (lambda: ["a", "b", "c", "d"], len),
    "partial": (lambda: functools.partial(int, 4), lambda c: c()),
    "default": (lambda: lambda count=4: count, lambda c: c()),
    "closure": (lambda: (lambda n: lambda: n)(4), lambda c: c()),
    "module_list": (lambda: nn.ModuleList(nn.Identity() for _ in range(4)), len),
    "tensor": (lambda: torch.tensor([4, 16]), lambda c: int(c[0])),
    "nested_tuple": (lambda: ((1, 2), (4, 16)), lambda c: c[1][0]),
    "generator_of": (lambda: {"stages": [{"heads": 4}]}, lambda c: next(each["heads"] for each in c["stages"])),
    "width_of_node": (lambda: Node({"width": 16}), lambda c: c.width // 4),
    "width_of_tuple": (lambda: Both(4, 16), lambda c: c.width // 4),
    "width_read_only": (lambda: ReadOnly(width=16), lambda c: c.width // 4),
}
for _name, (_make, _get) in SETTINGS.items():
    add(f"heads_by_{_name}",
        lambda make=_make, get=_get: Net(lambda m, h: heads(h, get(m.cfg)), lambda m: setattr(m, "cfg", make())))  # fmt: skip

# -- parametrizations, hooks, ties --------------------------------------------------------------------------------------------------


class Symmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.triu() + w.triu(1).mT


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(16, 1))

    def forward(self, w: Tensor) -> Tensor:
        return w * self.scale


def tied_transposed(m: Any) -> None:
    m.back = nn.Linear(16, 16)
    m.back.weight = m.mix.weight


PREPARED: dict[str, tuple[Callable[[Any], Any], Forward]] = {
    "weight_norm": (lambda m: parametrizations.weight_norm(m.mix), lambda m, h: m.mix(h).tanh()),
    "weight_norm_other_axis": (lambda m: parametrizations.weight_norm(m.mix, dim=1), lambda m, h: m.mix(h).tanh()),
    "spectral_norm": (lambda m: parametrizations.spectral_norm(m.mix), lambda m, h: m.mix(h).tanh()),
    "orthogonal": (lambda m: parametrizations.orthogonal(m.mix), lambda m, h: m.mix(h).tanh()),
    "symmetric": (lambda m: parametrize.register_parametrization(m.mix, "weight", Symmetric()), lambda m, h: m.mix(h).tanh()),
    "scaled": (lambda m: parametrize.register_parametrization(m.mix, "weight", Scaled()), lambda m, h: m.mix(h).tanh()),
    "pre_hook": (lambda m: m.mix.register_forward_pre_hook(lambda mod, a: (a[0] * 2 - 1,)), lambda m, h: m.mix(h).tanh()),
    "hook": (lambda m: m.mix.register_forward_hook(lambda mod, a, y: y.tanh() + a[0]), lambda m, h: m.mix(h)),
    "hook_with_keywords": (lambda m: m.mix.register_forward_pre_hook(lambda mod, a, k: ((a[0].cos(),), k), with_kwargs=True), lambda m, h: m.mix(h)),
    "tied_transposed": (tied_transposed, lambda m, h: m.back(m.mix(h).tanh()) @ m.mix.weight.T),
    "tied_by_function": (lambda m: None, lambda m, h: F.linear(m.mix(h).tanh(), m.mix.weight.T)),
    "tied_ends": (lambda m: None, lambda m, h: h + F.linear(F.linear(h, m.up.weight.T), m.up.weight).tanh()),
    "own_buffer": (lambda m: m.register_buffer("seen", torch.zeros(16)), lambda m, h: h * (m.seen + 1).cos() + m.seen.sum()),
    "strided_weight": (lambda m: setattr(m.mix, "weight", nn.Parameter(torch.randn(16, 16).t())), lambda m, h: m.mix(h).tanh()),
    "sliced_weight": (lambda m: setattr(m, "wide", nn.Parameter(torch.randn(32, 16)[::2])), lambda m, h: (h @ m.wide.T).tanh()),
    "parameter_list": (lambda m: setattr(m, "ws", nn.ParameterList(torch.randn(16) for _ in range(3))), lambda m, h: sum(h * w for w in m.ws).tanh()),
    "parameter_dict": (lambda m: setattr(m, "ws", nn.ParameterDict({"a": torch.randn(16), "b": torch.randn(16)})), lambda m, h: (h * m.ws["a"] + m.ws["b"]).tanh()),
    "shared_module": (lambda m: setattr(m, "again", m.mix), lambda m, h: m.again(m.mix(h).tanh()).tanh()),
}
for _name, (_setup, _middle) in PREPARED.items():
    add(_name, lambda s=_setup, f=_middle: Net(f, s), shrinks=False)

# -- branches on sizes, types, strides -----------------------------------------------------------------------------------------------

MIDDLES: dict[str, Forward] = {
    "branch_on_length": lambda m, h: m.mix(h).tanh() if h.shape[1] > 6 else h * 2,
    "branch_on_width": lambda m, h: m.mix(h).tanh() if h.shape[-1] > 10 else h * 2,
    "branch_on_even": lambda m, h: heads(h, 2) if h.shape[-1] % 2 == 0 else h,
    "branch_on_batch": lambda m, h: h.cos() if len(h) == 2 else h.sin(),
    "assert_on_width": lambda m, h: m.mix(h).tanh() if h.shape[-1] == m.mix.in_features else h,
    "loop_over_width": lambda m, h: torch.stack([h[..., k] * (k + 1) for k in range(h.shape[-1])], -1),
    "loop_over_heads": lambda m, h: torch.cat([part.softmax(-1) for part in h.chunk(4, -1)], -1),
    "mean_by_size": lambda m, h: h - h.sum(-1, keepdim=True) / h.shape[-1],
    "scaled_by_size": lambda m, h: h * h.shape[-1] ** -0.5,
    "complex": lambda m, h: torch.view_as_real(torch.complex(h, m.mix(h)) * (1 + 2j)).sum(-1),
    "complex_pairs": lambda m, h: torch.view_as_real(torch.view_as_complex(h.unflatten(-1, (-1, 2)).contiguous()) * 1j).flatten(-2),
    "bfloat": lambda m, h: m.mix(h) * h.bfloat16().to(h.dtype).sign(),
    "fourier": lambda m, h: torch.fft.ifft(torch.fft.fft(h, dim=1), dim=1).real,
    "channels_last": lambda m, h: h[:, :, None].permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)[:, :, 0],
    "as_strided": lambda m, h: torch.as_strided(h.contiguous(), h.shape, h.contiguous().stride()).tanh(),
    "unfold": lambda m, h: h.unfold(1, 2, 1).sum(-1),
    "scatter": lambda m, h: torch.zeros_like(h).scatter(1, torch.zeros_like(h, dtype=torch.long), h),
    "index_put": lambda m, h: h.clone().index_put_((torch.tensor([0]),), h[1]),
    "masked_fill": lambda m, h: h.masked_fill(torch.ones(h.shape[1], h.shape[-1], dtype=torch.bool).triu(), -1.0),
    "cdist": lambda m, h: torch.cdist(h, m.mix(h)) @ h,
    "bilinear": lambda m, h: torch.einsum("bnd,de,bme->bnm", h, m.mix.weight, h) @ h,
    "tensordot": lambda m, h: torch.tensordot(h, m.mix.weight, dims=([2], [1])).tanh(),
    "addmm": lambda m, h: torch.addmm(m.mix.bias, h.flatten(0, 1), m.mix.weight.T, beta=0.5).view(h.shape).tanh(),
    "baddbmm": lambda m, h: torch.baddbmm(h, h @ h.mT, h, beta=2.0),
    "logsumexp": lambda m, h: h * h.logsumexp(1, keepdim=True),
    "renorm": lambda m, h: m.mix(h).renorm(2, 1, 0.5),
    "normalize": lambda m, h: F.normalize(m.mix(h), dim=-1),
    "cosine": lambda m, h: F.cosine_similarity(h, m.mix(h), dim=-1)[..., None] * h,
    "swapped": lambda m, h: h.swapaxes(1, 2).flip(1).swapaxes(1, 2).tanh(),
    "diff": lambda m, h: h.diff(dim=1, prepend=h[:, :1]),
    "diff_of_width": lambda m, h: h + F.pad(h.diff(dim=-1), (1, 0)),
    "vander": lambda m, h: h * torch.vander(torch.arange(h.shape[1], dtype=h.dtype), 2).sum(-1)[:, None],
    "bucketize": lambda m, h: h * torch.bucketize(h, torch.tensor([-0.5, 0.5], dtype=h.dtype)),
    "lerp": lambda m, h: torch.lerp(h, m.mix(h), m.mix.bias.sigmoid()),
    "addcmul": lambda m, h: torch.addcmul(m.mix.bias, h, m.mix(h), value=0.3),
    "glu": lambda m, h: F.glu(torch.cat([m.mix(h), h], -1)),
    "out_argument": lambda m, h: torch.mul(h.detach(), 2, out=torch.empty_like(h)) + m.mix(h),
    "inner_product": lambda m, h: torch.inner(h, m.mix.weight).tanh(),
    "quantile": lambda m, h: h * h.quantile(0.3, dim=1, keepdim=True),
    "quantiles": lambda m, h: h * h.quantile(torch.tensor([0.2, 0.7], dtype=h.dtype), dim=1).sum(0)[:, None],
    "trapezoid": lambda m, h: h * torch.trapezoid(h, dim=1)[:, None],
}
for _name, _middle in MIDDLES.items():
    add(_name, lambda f=_middle: Net(f), shrinks=False)
