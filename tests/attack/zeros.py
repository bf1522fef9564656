"""Small models whose removed entries are easily taken for zeros, or for nothing at all.

Each one makes a free width of eight (`h = x @ inner`, or a convolution, or learned tokens), and does one thing with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.attack.oracle import Case, Inputs

CASES: dict[str, Case] = {}
Body = Callable[..., Tensor]


class Net(nn.Module):
    """Parameters and buffers by name, and a function that uses them."""

    def __init__(self, body: Body, parameters: dict[str, tuple[int, ...]], buffers: dict[str, Tensor]) -> None:
        super().__init__()
        self.body = body
        for name, shape in parameters.items():
            values = torch.rand(shape) * 0.8 + 0.2
            setattr(self, name, nn.Parameter(values * torch.where(torch.rand(shape) > 0.5, 1.0, -1.0)))
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.body(self, *inputs)


def add(name: str, build: Callable[[], nn.Module], inputs: Callable[[], Inputs], **options) -> None:
    if name in CASES:
        raise ValueError(f"{name!r} stands here twice")
    CASES[name] = Case(name, build, inputs, **options)


def double(*shape: int) -> Callable[[], Inputs]:
    return lambda: (torch.randn(*shape, dtype=torch.float64),)


DRAWS = ("dropout", "rand", "bernoulli", "normal_", "uniform_")


def flat(name: str, body: Body, buffers: dict[str, Tensor] | None = None, shrinks: bool = True, **shapes) -> None:
    """h is [2, 8]."""
    add(
        name,
        lambda: Net(lambda m, x: body(m, x @ m.inner), {"inner": (6, 8), **shapes}, buffers or {}),
        double(2, 6),
        others=(double(5, 6),),
        shrinks=shrinks,
        drawn=any(word in name for word in DRAWS),
    )


def steps(name: str, body: Body, buffers: dict[str, Tensor] | None = None, shrinks: bool = False, **shapes) -> None:
    """h is [2, 8, 5]: channels of a convolution, which what follows takes for steps, rows or positions."""
    add(
        name,
        lambda: Net(lambda m, x: body(m, F.conv1d(x, m.inner)), {"inner": (8, 3, 1), **shapes}, buffers or {}),
        double(2, 3, 5),
        others=(double(3, 3, 5),),
        shrinks=shrinks,
    )


def learned(name: str, body: Body, buffers: dict[str, Tensor] | None = None, shrinks: bool = False, **shapes) -> None:
    """h is [8, 6], learned: its rows are free, and so are its features where nothing else holds them."""
    add(
        name,
        lambda: Net(lambda m, x: body(m, m.tokens, x), {"tokens": (8, 6), **shapes}, buffers or {}),
        double(2, 6),
        others=(double(4, 6),),
        shrinks=shrinks,
    )


def image(name: str, body: Body, buffers: dict[str, Tensor] | None = None, shrinks: bool = True, **shapes) -> None:
    """h is [2, 8, 4, 4]."""
    add(
        name,
        lambda: Net(
            lambda m, x: body(m, F.conv2d(x, m.inner, padding=1)), {"inner": (8, 3, 3, 3), **shapes}, buffers or {}
        ),
        double(2, 3, 4, 4),
        others=(double(3, 3, 4, 4),),
        shrinks=shrinks,
    )


# -- pointwise, with a learned operand of both signs; the bare sum sees what is not zero --------------------------------

SIGNED = torch.tensor([0.7, -0.4, 1.3, -2.0, 0.3, -0.9, 0.5, -0.1]).double()
PAIRS: dict[str, Body] = {
    "add": torch.add,
    "sub": torch.sub,
    "rsub": torch.rsub,
    "mul": torch.mul,
    "div": torch.div,
    "floor_divide": torch.floor_divide,
    "remainder": torch.remainder,
    "fmod": torch.fmod,
    "minimum": torch.minimum,
    "maximum": torch.maximum,
    "fmin": torch.fmin,
    "fmax": torch.fmax,
    "atan2": torch.atan2,
    "hypot": torch.hypot,
    "pow": lambda a, b: torch.pow(a.abs() + 0.0, b),
    "power_of": lambda a, b: torch.pow(b.abs(), a),
    "float_power": lambda a, b: torch.float_power(a.abs(), b),
    "copysign": torch.copysign,
    "nextafter": torch.nextafter,
    "heaviside": torch.heaviside,
    "xlogy": lambda a, b: torch.xlogy(a, b.abs()),
    "xlog1py": lambda a, b: torch.special.xlog1py(a, b.abs()),
    "logaddexp": torch.logaddexp,
    "logaddexp2": torch.logaddexp2,
    "ldexp": torch.ldexp,
    "gt": lambda a, b: (a > b).double(),
    "ge": lambda a, b: (a >= b).double(),
    "lt": lambda a, b: (a < b).double(),
    "le": lambda a, b: torch.le(a, b).double(),
    "eq": lambda a, b: (a == b).double(),
    "ne": lambda a, b: (a != b).double(),
    "isclose": lambda a, b: torch.isclose(a, b, atol=0.5).double(),
    "clamp_max": lambda a, b: torch.clamp(a, max=b),
    "clamp_min": lambda a, b: torch.clamp(a, min=b),
    "clamp_both": lambda a, b: torch.clamp(a, b - 0.1, b + 0.3),
    "lerp_weight": lambda a, b: torch.lerp(a, a.detach() * 0 + 1.5, b),
    "lerp_end": lambda a, b: torch.lerp(a, b.expand_as(a), 0.25),
    "lerp_start": lambda a, b: torch.lerp(b.expand_as(a), a, 0.25),
    "where_above": lambda a, b: torch.where(a > b, a, 0.5 * b),
    "where_flag": lambda a, b: torch.where(b > 0, a, torch.ones_like(a)),
    "where_self": lambda a, b: torch.where(a >= 0, b, a),
    "masked_fill": lambda a, b: a.masked_fill(b > 0, -1.0),
    "addcmul": lambda a, b: torch.addcmul(b.expand_as(a), a, b),
    "addcdiv": lambda a, b: torch.addcdiv(a, a, b.abs() + 1),
    "dist": lambda a, b: (a - b).abs(),
    "logical_or": lambda a, b: torch.logical_or(a > 0, b > 0).double(),
    "logical_xor": lambda a, b: torch.logical_xor(a > 0, b > 0).double(),
    "logical_and": lambda a, b: torch.logical_and(a > 0, b > 0).double(),
    "huber": lambda a, b: F.huber_loss(a, b.expand_as(a), reduction="none"),
    "smooth_l1": lambda a, b: F.smooth_l1_loss(a, b.expand_as(a), reduction="none"),
    "bce_logits": lambda a, b: F.binary_cross_entropy_with_logits(a, b.sigmoid().expand_as(a), reduction="none"),
    "soft_margin": lambda a, b: F.soft_margin_loss(a, b.sign().expand_as(a), reduction="none"),
    "kl_div": lambda a, b: F.kl_div(a, b.abs().expand_as(a), reduction="none"),
    "poisson_nll": lambda a, b: F.poisson_nll_loss(a, b.expand_as(a), reduction="none"),
    "gaussian_nll": lambda a, b: F.gaussian_nll_loss(a, b.expand_as(a), b.abs().expand_as(a), reduction="none"),
    "prelu": lambda a, b: torch.where(a > 0, a, a * b),
    "zeta": lambda a, b: torch.special.zeta(b.abs() + 1.5, a.abs() + 1),
    "gcd": lambda a, b: torch.gcd((a * 10).long(), (b * 10).long()).double(),
    "bit_and": lambda a, b: ((a * 10).long() & (b * 10).long()).double(),
    "bit_or": lambda a, b: ((a * 10).long() | (b * 10).long()).double(),
    "shift": lambda a, b: ((b.abs() * 10).long() << (a.abs() * 2).long().clamp(max=4)).double(),
    "threshold": lambda a, b: F.threshold(a - b, 0.3, 7.0),
    "complex_angle": lambda a, b: torch.angle(torch.complex(a, b.expand_as(a))),
    "polar": lambda a, b: torch.polar(b.abs().expand_as(a), a).real,
    "signbit": lambda a, b: torch.signbit(a - b).double(),
    "cumulated_gate": lambda a, b: a * torch.sigmoid(b),
    "bool_index_write": lambda a, b: a.clone().masked_scatter(b.expand_as(a) > 0, torch.full_like(a, 2.0)),
    "nan_to_num": lambda a, b: torch.nan_to_num(a * b, nan=3.0, posinf=1.0, neginf=-1.0),
}
for _name, _pair in PAIRS.items():
    flat(f"{_name}_sum", lambda m, h, f=_pair: f(h, m.t).sum(-1, keepdim=True), t=(8,), shrinks=False)
    flat(f"{_name}_swapped", lambda m, h, f=_pair: f(m.t.expand_as(h), h).sum(-1), t=(8,), shrinks=False)
    flat(f"{_name}_number", lambda m, h, f=_pair: f(h, m.t.expand(8)[: h.shape[1]]).sum(-1), t=(1,), shrinks=False)
    flat(f"{_name}_plain", lambda m, h, f=_pair: f(h, m.t).sum(-1), t=(1,), shrinks=False)
    flat(f"{_name}_below", lambda m, h, f=_pair: f(h, -m.t.abs()).sum(-1), t=(1,), shrinks=False)
    flat(f"{_name}_above", lambda m, h, f=_pair: f(h, m.t.abs()).sum(-1), t=(1,), shrinks=False)
    flat(f"{_name}_buffer", lambda m, h, f=_pair: f(h, m.t).sum(-1), {"t": SIGNED}, shrinks=False)
    flat(f"{_name}_rows", lambda m, h, f=_pair: f(h[:2], m.t).sum(-1), t=(2, 1), shrinks=False)
    flat(f"{_name}_of_two", lambda m, h, f=_pair: f(h, (h * 2).sin()).sum(-1), shrinks=False)
    flat(f"{_name}_with_first", lambda m, h, f=_pair: f(m.t, h[0]).sum().expand(len(h)), t=(8,), shrinks=False)
    flat(f"{_name}_linear", lambda m, h, f=_pair: f(h, m.t) @ m.out, t=(8,), out=(8, 3), shrinks=False)

# -- pointwise, with one operand ------------------------------------------------------------------------------------

SINGLES: dict[str, Body] = {
    "sigmoid": torch.sigmoid,
    "cos": torch.cos,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "softplus": F.softplus,
    "hardsigmoid": F.hardsigmoid,
    "hardtanh_above": lambda h: F.hardtanh(h, 0.2, 1.0),
    "clamp_above": lambda h: h.clamp(min=0.3),
    "clamp_around": lambda h: h.clamp(-0.2, 0.4),
    "log1p": lambda h: torch.log1p(h.abs()),
    "rsqrt": lambda h: torch.rsqrt(h * h + 1),
    "logit": lambda h: torch.logit(h.sigmoid()),
    "celu": F.celu,
    "gelu_plus": lambda h: F.gelu(h) + 1,
    "round_up": lambda h: torch.ceil(h + 0.5),
    "sign_plus": lambda h: torch.sign(h - 0.1),
    "logical_not": lambda h: torch.logical_not(h > 0).double(),
    "eq_zero": lambda h: (h == 0).double(),
    "isfinite": lambda h: torch.isfinite(h).double(),
    "zero_to_power": lambda h: h**0,
    "reciprocal": lambda h: 1 / (h + 3),
    "erfc": torch.erfc,
    "i0": torch.special.i0,
    "acos": lambda h: torch.acos(torch.tanh(h)),
    "threshold_at_zero": lambda h: F.threshold(h, 0.1, 2.0),
    "hardswish": F.hardswish,
    "fake_quantize": lambda h: torch.fake_quantize_per_tensor_affine(h, 0.1, 3, -20, 20),
    "dropout_always": lambda h: F.dropout(h + 1, 0.5, True),
    "dropout_kept": lambda h: F.dropout(h, 0.5, True),
    "alpha_dropout": lambda h: F.alpha_dropout(h, 0.5, True),
    "ones_like": lambda h: torch.ones_like(h),
    "new_full": lambda h: h.new_full(h.shape, 2.0),
    "rand_like": lambda h: torch.rand_like(h) + h,
    "bernoulli": lambda h: torch.bernoulli(h.sigmoid()),
}
for _name, _single in SINGLES.items():
    flat(f"{_name}_alone", lambda m, h, f=_single: f(h).sum(-1, keepdim=True), shrinks=False)
    flat(f"{_name}_then_linear", lambda m, h, f=_single: f(h) @ m.out, out=(8, 3), shrinks=False)

# -- reductions over the width ------------------------------------------------------------------------------------------

REDUCTIONS: dict[str, Body] = {
    "mean": lambda h: h.mean(-1),
    "var": lambda h: h.var(-1),
    "std_population": lambda h: h.std(-1, correction=0),
    "amax": lambda h: h.amax(-1),
    "amin": lambda h: h.amin(-1),
    "aminmax": lambda h: h.aminmax(dim=-1).max,
    "max_values": lambda h: h.max(-1).values,
    "argmax": lambda h: h.argmax(-1).double(),
    "argmin": lambda h: h.argmin(-1).double(),
    "median": lambda h: h.median(-1).values,
    "mode": lambda h: (h * 2).round().mode(-1).values,
    "kthvalue": lambda h: h.kthvalue(2, -1).values,
    "quantile": lambda h: h.quantile(0.3, -1),
    "prod": lambda h: h.prod(-1),
    "any": lambda h: (h > 0).any(-1).double(),
    "all": lambda h: (h > -9).all(-1).double(),
    "all_nonzero": lambda h: h.all(-1).double(),
    "logsumexp": lambda h: h.logsumexp(-1),
    "softmax": lambda h: (h.softmax(-1) ** 2).sum(-1),
    "log_softmax": lambda h: h.log_softmax(-1).amax(-1),
    "softmin": lambda h: (F.softmin(h, -1) ** 2).sum(-1),
    "norm_0": lambda h: (h + 1).norm(0, -1),
    "norm_minus_1": lambda h: h.norm(-1, -1),
    "norm_minus_inf": lambda h: h.norm(-math.inf, -1),
    "norm_inf": lambda h: h.norm(math.inf, -1),
    "norm_2": lambda h: h.norm(2, -1),
    "norm_3": lambda h: torch.linalg.vector_norm(h, 3, -1),
    "count_nonzero": lambda h: torch.count_nonzero(h + 1, -1).double(),
    "nanmean": lambda h: h.nanmean(-1),
    "nansum": lambda h: (h + 1).nansum(-1),
    "sort": lambda h: h.sort(-1).values[:, :2].sum(-1),
    "topk": lambda h: h.topk(2, -1).values.sum(-1),
    "topk_smallest": lambda h: h.topk(2, -1, largest=False).values.sum(-1),
    "cumsum": lambda h: h.cumsum(-1).sum(-1),
    "cumprod": lambda h: h.cumprod(-1).sum(-1),
    "cummax": lambda h: h.cummax(-1).values.sum(-1),
    "logcumsumexp": lambda h: h.logcumsumexp(-1).sum(-1),
    "diff": lambda h: h.diff(dim=-1).abs().sum(-1),
    "trapezoid": lambda h: torch.trapezoid(h, dim=-1),
    "unfold": lambda h: (h.unfold(-1, 3, 1) ** 2).sum((-1, -2)),
    "roll": lambda h: (h.roll(1, -1) * h).sum(-1),
    "flip": lambda h: (h.flip(-1) * h).sum(-1),
    "conv_over_width": lambda h: F.conv1d(h[:, None], h.new_ones(1, 1, 3)).abs().sum((1, 2)),
    "avg_pool_over_width": lambda h: F.avg_pool1d(h[:, None], 2).abs().sum((1, 2)),
    "max_pool_over_width": lambda h: F.max_pool1d(h[:, None], 2).sum((1, 2)),
    "adaptive_pool_over_width": lambda h: F.adaptive_avg_pool1d(h[:, None], 3).abs().sum((1, 2)),
    "interpolate_width": lambda h: F.interpolate(h[:, None], scale_factor=2, mode="linear").abs().sum((1, 2)),
    "upsample_width": lambda h: F.interpolate(h[:, None], size=12, mode="nearest").sum((1, 2)),
    "pad_width": lambda h: F.pad(h, (1, 1), value=1.0).abs().sum(-1),
    "pad_width_circular": lambda h: F.pad(h[:, None], (1, 1), mode="circular").sum((1, 2)),
    "fft": lambda h: torch.fft.fft(h, dim=-1).abs().sum(-1),
    "rfft": lambda h: torch.fft.rfft(h, dim=-1).abs().sum(-1),
    "layer_norm": lambda h: F.layer_norm(h, (h.shape[-1],)).abs().sum(-1),
    "rms_norm": lambda h: F.rms_norm(h, (h.shape[-1],)).abs().sum(-1),
    "normalize": lambda h: F.normalize(h, dim=-1).abs().sum(-1),
    "cosine_similarity": lambda h: F.cosine_similarity(h, h.flip(0), dim=-1),
    "pairwise_distance": lambda h: F.pairwise_distance(h, h.flip(0)),
    "cdist": lambda h: torch.cdist(h, h.flip(0) * 2),
    "cdist_inf": lambda h: torch.cdist(h, h.flip(0) * 2, p=math.inf),
    "outer": lambda h: torch.outer(h[0], h[1]).sum().expand(h.shape[0]),
    "kron": lambda h: torch.kron(h[:1], h[1:2]).sum().expand(h.shape[0]),
    "dot": lambda h: torch.dot(h[0], h[1]).expand(h.shape[0]),
    "tensordot": lambda h: torch.tensordot(h, h, dims=([1], [1])).sum(1),
    "corrcoef": lambda h: torch.corrcoef(h).sum(1),
    "histogram": lambda h: torch.histc(h, 4, -3, 3)[:1].expand(h.shape[0]),
    "bucketize": lambda h: torch.bucketize(h, torch.tensor([-0.5, 0.5], dtype=h.dtype)).sum(-1).double(),
    "unique_rank": lambda h: h.argsort(-1)[:, 0].double(),
    "one_hot": lambda h: F.one_hot((h > 0).long(), 2).double().sum((1, 2)),
    "gather_max": lambda h: h.gather(1, h.argmax(1, keepdim=True))[:, 0],
    "diag_embed": lambda h: torch.linalg.matrix_norm(torch.diag_embed(h) + 1, "fro"),
    "triu": lambda h: (h[:, :, None] * h[:, None]).triu().sum((1, 2)),
    "cross_entropy": lambda h: F.cross_entropy(h, h.new_zeros(h.shape[0], dtype=torch.long), reduction="none"),
    "nll_of_mean": lambda h: F.mse_loss(h, torch.ones_like(h), reduction="none").mean(-1),
    "mse_mean": lambda h: F.mse_loss(h, torch.zeros_like(h)).expand(h.shape[0]),
    "glu": lambda h: F.glu(h, -1).sum(-1),
    "chunk_max": lambda h: torch.maximum(*h.chunk(2, -1)).sum(-1),
    "numel": lambda h: h.sum(-1) / h.shape[-1],
    "numel_of_tensor": lambda h: h.sum(-1) / h[0].numel(),
    "sum_times_count": lambda h: h.sum(-1) * h.size(1),
    "len": lambda h: h.sum(-1) * len(h[0]),
    "arange": lambda h: (h * torch.arange(h.shape[-1])).sum(-1),
    "linspace": lambda h: (h * torch.linspace(0, 1, h.shape[-1], dtype=h.dtype)).sum(-1),
    "eye": lambda h: (h @ torch.eye(h.shape[-1], dtype=h.dtype)).sum(-1),
    "tril_ones": lambda h: (h @ torch.ones(h.shape[-1], h.shape[-1], dtype=h.dtype).tril()).sum(-1),
    "first_and_last": lambda h: h[:, 0] * 2 + h[:, -1],
    "every_other": lambda h: h[:, ::2].sum(-1) - h[:, 1::2].sum(-1),
    "rot90": lambda h: h.rot90(1, (0, 1)).cumsum(0)[0, 0].expand(h.shape[0]),
    "searchsorted": lambda h: torch.searchsorted(h.sort(-1).values, torch.zeros_like(h[:, :1])).double()[:, 0],
    "renorm": lambda h: torch.renorm(h, 2, 0, 0.5).sum(-1),
    "lp_pool": lambda h: F.lp_pool1d(h[:, None], 2.0, 2).sum((1, 2)),
    "local_response": lambda h: F.local_response_norm(h[:, :, None], 3).sum((1, 2)),
    "pixel_unshuffle": lambda h: (h.view(h.shape[0], 1, 2, -1).mean(2) ** 2).sum((1, 2)),
}
for _name, _reduction in REDUCTIONS.items():
    flat(f"{_name}_over_width", lambda m, h, f=_reduction: f(h * m.t), t=(8,), shrinks=False)

# -- channels as steps, rows, positions -----------------------------------------------------------------------------------


def recurrent(kind: str, steps_first: bool = False, **options) -> Callable[[], nn.Module]:
    class Channels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(3, 8, 1)
            self.cell = getattr(nn, kind)(5, 4, batch_first=not steps_first, **options)
            self.out = nn.Linear(4 * 8 * (2 if options.get("bidirectional") else 1), 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.conv(x)
            if steps_first:
                h = h.transpose(0, 1)
            y = self.cell(h)[0]
            return self.out((y.transpose(0, 1) if steps_first else y).flatten(1))

    return Channels


for _kind in ("LSTM", "GRU", "RNN"):
    add(f"{_kind.lower()}_steps", recurrent(_kind), double(2, 3, 5))
    add(f"{_kind.lower()}_steps_first", recurrent(_kind, True), double(2, 3, 5))
    add(f"{_kind.lower()}_both_ways", recurrent(_kind, bidirectional=True), double(2, 3, 5))


class LastStep(nn.Module):
    """Only the last state is used: the steps are channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 8, 1)
        self.cell = nn.GRU(5, 4, batch_first=True)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cell(self.conv(x))[1][-1])


add("gru_last_state_over_channels", LastStep, double(2, 3, 5))


class TokensThroughCell(nn.Module):
    """Learned tokens are the steps of a recurrent layer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(8, 6))
        self.cell = getattr(nn, kind)(6, 4, batch_first=True)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens * x[:, None]
        return self.out(self.cell(h)[0].mean(1))


for _kind in ("LSTM", "GRU", "RNN"):
    add(f"{_kind.lower()}_over_learned_tokens", lambda kind=_kind: TokensThroughCell(kind), double(2, 6))


class CellLoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 8, 1)
        self.cell = nn.GRUCell(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        state = x.new_zeros(x.shape[0], 4)
        for step in h.unbind(1):
            state = self.cell(step, state)
        return state


add("gru_cell_over_unbound_channels", CellLoop, double(2, 3, 5), shrinks=False)

sdpa = F.scaled_dot_product_attention
learned("causal_learned_queries", lambda m, t, x: sdpa(t[None], x[None], x[None], is_causal=True).sum((0, 1)))
learned("causal_learned_keys", lambda m, t, x: sdpa(x[None], t[None], t[None], is_causal=True))
learned("learned_keys", lambda m, t, x: sdpa(x[None], t[None], t[None]))
learned("learned_queries", lambda m, t, x: sdpa(t[None], x[None], x[None]).sum((0, 1)))
learned("learned_queries_mixed", lambda m, t, x: m.out @ sdpa(t[None], x[None], x[None])[0], out=(3, 8), shrinks=True)
learned(
    "causal_learned_queries_mixed", lambda m, t, x: m.out @ sdpa(t[None], x[None], x[None], is_causal=True)[0],
    out=(3, 8),
)
learned(
    "masked_learned_keys", lambda m, t, x: sdpa(x[None], t[None], t[None], attn_mask=m.mask),
    buffers={"mask": torch.randn(1, 8).double()},
)
learned(
    "learned_mask_and_keys", lambda m, t, x: sdpa(x[None], t[None], t[None], attn_mask=m.mask), mask=(1, 8),
)
learned(
    "bool_mask_rows", lambda m, t, x: sdpa(t[None], x[None], x[None], attn_mask=m.mask).sum((0, 1)),
    buffers={"mask": torch.tensor([[True], [True], [True], [False], [True], [True], [True], [True]])},
)
steps("causal_self_attention_over_channels", lambda m, h: sdpa(h, h, h, is_causal=True).sum(1))
steps("self_attention_over_channels", lambda m, h: sdpa(h, h, h).sum(1))
steps("attention_values_over_channels", lambda m, h: sdpa(h.mT, h.mT, h.mT, is_causal=True) @ m.out, out=(8, 3), shrinks=True)
steps("softmax_by_hand", lambda m, h: (h @ h.mT).softmax(-1) @ h)
steps("softmax_over_other_axis", lambda m, h: h.softmax(-1).sum(1))
steps("softmax_over_other_axis_mixed", lambda m, h: m.out @ h.softmax(-1), out=(3, 8), shrinks=True)
steps("log_softmax_over_other_axis", lambda m, h: h.log_softmax(-1).sum(1))
steps("logsumexp_over_other_axis", lambda m, h: h.logsumexp(-1).sum(1))
steps("mean_over_other_then_sum", lambda m, h: h.mean(-1).sum(1), shrinks=True)
steps("norm_over_other_axis", lambda m, h: h.norm(-1.0, -1).sum(1))
steps("prod_over_other_axis", lambda m, h: (h + 1).prod(-1).sum(1))
steps("all_over_other_axis", lambda m, h: (h >= 0).all(-1).double().sum(1))
steps("argmax_over_other_axis", lambda m, h: h.argmax(-1).double().sum(1))
steps("argmin_last_over_other_axis", lambda m, h: (h.flip(-1).argmin(-1)).double().sum(1))
steps("quantile_over_other_axis", lambda m, h: (h + 0.5).quantile(0.7, -1).sum(1))
steps("layer_norm_over_other_axis", lambda m, h: F.layer_norm(h, (5,), m.g, m.b).sum(1), g=(5,), b=(5,))
steps("rms_norm_over_other_axis", lambda m, h: F.rms_norm(h, (5,), m.g).sum(1), g=(5,))
steps("pad_other_axis", lambda m, h: F.pad(h, (1, 2), value=1.5).sum((1, 2)))
steps("pad_other_axis_zero", lambda m, h: F.pad(h, (1, 2)).sum((1, 2)), shrinks=True)
steps("pad_other_axis_mixed", lambda m, h: m.out @ F.pad(h, (1, 2), value=-2.0), out=(3, 8), shrinks=True)
steps("constant_pad_module", lambda m, h: nn.ConstantPad1d(2, 0.7)(h).amax(-1).sum(1))
steps("replicate_pad_other_axis", lambda m, h: F.pad(h, (2, 2), mode="replicate").sum((1, 2)), shrinks=True)
steps("embedding_of_argmax", lambda m, h: F.embedding(h.argmax(1), m.table).sum(1), table=(8, 4))
steps("stack_with_ones", lambda m, h: torch.stack([h, torch.ones_like(h)], -1).amax(-1).sum(1))
steps("cat_ones_along_other_axis", lambda m, h: torch.cat([h, torch.ones_like(h)], -1).sum((1, 2)))
steps("cat_parameter_along_other_axis", lambda m, h: torch.cat([h, m.t.expand(len(h), -1, -1)], -1).sum((1, 2)), t=(8, 2), shrinks=True)
steps("conv_over_transposed", lambda m, h: F.conv1d(h.mT, m.k, padding=1).sum(-1), k=(4, 5, 3))
steps("pooling_over_transposed", lambda m, h: F.avg_pool1d(h.mT, 2).flatten(1))
steps("group_norm_over_channels", lambda m, h: F.group_norm(h, 2, m.g, m.b).sum((1, 2)), g=(8,), b=(8,))
steps("group_norm_no_affine", lambda m, h: m.out @ F.group_norm(h, 4), out=(3, 8))
steps("instance_norm_no_affine", lambda m, h: F.instance_norm(h).abs().sum((1, 2)))
steps("instance_norm_then_conv", lambda m, h: F.conv1d(F.instance_norm(h), m.k), k=(4, 8, 1), shrinks=True)
steps("instance_norm_bias_buffer", lambda m, h: F.instance_norm(h, weight=m.g, bias=m.b).sum((1, 2)), buffers={"b": torch.randn(8).double()}, g=(8,))
steps("batch_norm_bias_buffer", lambda m, h: F.batch_norm(h, m.mean, m.var, m.g, m.b).sum((1, 2)), buffers={"mean": torch.randn(8).double(), "var": torch.rand(8).double() + 0.5, "b": torch.randn(8).double()}, g=(8,))
steps("batch_norm_weight_buffer", lambda m, h: F.batch_norm(h, m.mean, m.var, m.g, m.b).sum((1, 2)), buffers={"mean": torch.randn(8).double(), "var": torch.rand(8).double() + 0.5, "g": torch.randn(8).double()}, b=(8,))
steps("batch_norm_no_affine", lambda m, h: F.batch_norm(h, m.mean, m.var).sum((1, 2)), buffers={"mean": torch.randn(8).double(), "var": torch.rand(8).double() + 0.5})
steps("batch_norm_weight_alone", lambda m, h: F.batch_norm(h, m.mean, m.var, m.g).sum((1, 2)), buffers={"mean": torch.randn(8).double(), "var": torch.rand(8).double() + 0.5}, g=(8,))
steps("batch_norm_bias_alone", lambda m, h: F.batch_norm(h, m.mean, m.var, None, m.b).sum((1, 2)), buffers={"mean": torch.randn(8).double(), "var": torch.rand(8).double() + 0.5}, b=(8,))
steps("batch_norm_learned_mean", lambda m, h: F.batch_norm(h, m.mean, m.v.abs() + 0.5).sum((1, 2)), mean=(8,), v=(8,))
steps("batch_norm_of_batch", lambda m, h: F.batch_norm(h, None, None, training=True).abs().sum((1, 2)))
steps("batch_norm_scaled_bias", lambda m, h: F.batch_norm(h, m.mean, m.var, m.g * 1, m.b + 1).sum((1, 2)), buffers={"mean": torch.randn(8).double(), "var": torch.rand(8).double() + 0.5}, g=(8,), b=(8,))
flat("layer_norm_bias_buffer", lambda m, h: F.layer_norm(h, (8,), m.g, m.b).sum(-1), buffers={"b": torch.randn(8).double()}, g=(8,), shrinks=False)
flat("layer_norm_weight_buffer", lambda m, h: F.layer_norm(h, (8,), m.g, m.b).sum(-1), buffers={"g": torch.randn(8).double()}, b=(8,), shrinks=False)
flat("weight_norm_function", lambda m, h: torch._weight_norm(m.v, m.g, 0) @ h.mT, v=(4, 8), g=(4, 1), shrinks=False)
flat("weight_norm_of_rows", lambda m, h: (h @ torch._weight_norm(m.v, m.g, 0)).sum(-1), v=(8, 4), g=(8, 1), shrinks=False)


def normed(wrap: Callable[[nn.Module], nn.Module], last: bool = False) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        first, second = nn.Linear(6, 8), nn.Linear(8, 3)
        return nn.Sequential(first if last else wrap(first), nn.ReLU(), wrap(second) if last else second)

    return build


for _name, _wrap in {
    "weight_norm": torch.nn.utils.parametrizations.weight_norm,
    "spectral_norm": torch.nn.utils.parametrizations.spectral_norm,
    "orthogonal": torch.nn.utils.parametrizations.orthogonal,
}.items():
    add(f"{_name}_first", normed(_wrap), double(2, 6), others=(double(3, 6),), shrinks=False)
    add(f"{_name}_last", normed(_wrap, True), double(2, 6), others=(double(3, 6),), shrinks=False)

# -- written in place through another name -----------------------------------------------------------------------------------


def written(write: Callable[[Tensor, nn.Module], object]) -> Body:
    """A copy of h is written through some view of it; then h itself is summed."""

    def body(m: nn.Module, h: Tensor) -> Tensor:
        h = h * 1
        write(h, m)
        return h.sum(-1)

    return body


def seen(view: Callable[[Tensor], Tensor]) -> Body:
    """h is written; a view made before is summed."""

    def body(m: nn.Module, h: Tensor) -> Tensor:
        h = h * 1
        v = view(h)
        h += 1
        return v.reshape(len(h), -1).sum(-1) if v.shape[0] == h.shape[0] else v.sum().expand(len(h))

    return body


WRITES: dict[str, Callable[[Tensor, nn.Module], object]] = {
    "slice_add": lambda h, m: h[:, :].add_(1),
    "slice_of_rows": lambda h, m: h[0:1].add_(1),
    "select_fill": lambda h, m: h[0].fill_(1),
    "select_setitem": lambda h, m: h.__setitem__(0, 2.0),
    "chunk_sigmoid": lambda h, m: h.chunk(2)[0].sigmoid_(),
    "chunk_of_width": lambda h, m: h.chunk(2, 1)[0].sigmoid_(),
    "split_exp": lambda h, m: h.split(1)[0].exp_(),
    "split_of_width": lambda h, m: h.split([3, 5], 1)[1].exp_(),
    "narrow_zero": lambda h, m: h.narrow(0, 0, 1).cos_(),
    "narrow_of_width": lambda h, m: h.narrow(1, 2, 3).add_(1),
    "detach_add": lambda h, m: h.detach().add_(1),
    "data_add": lambda h, m: h.data.add_(1),
    "transpose_add": lambda h, m: h.t().add_(1),
    "transpose_select": lambda h, m: h.t()[2].fill_(1),
    "unbind_add": lambda h, m: h.unbind(0)[0].add_(1),
    "unbind_of_width": lambda h, m: h.unbind(1)[3].add_(1),
    "diagonal_fill": lambda h, m: h.diagonal().fill_(1),
    "as_strided_fill": lambda h, m: h.as_strided((2, 2), (8, 1)).fill_(1),
    "as_strided_steps": lambda h, m: h.as_strided((2, 4), (8, 2)).add_(1),
    "view_add": lambda h, m: h.view(-1).add_(1),
    "view_split_heads": lambda h, m: h.view(len(h), 2, -1)[:, 0].add_(1),
    "unflatten_add": lambda h, m: h.unflatten(1, (2, 4))[:, :, 0].add_(1),
    "unsqueeze_add": lambda h, m: h.unsqueeze(1).add_(1),
    "reshape_add": lambda h, m: h.reshape(-1).add_(1),
    "permute_add": lambda h, m: h.permute(1, 0).add_(1),
    "out_argument": lambda h, m: torch.cos(h.detach(), out=h.detach()),
    "out_of_slice": lambda h, m: torch.add(h[0].detach(), 1, out=h.detach()[0]),
    "copy_ones": lambda h, m: h.detach().copy_(torch.ones_like(h)),
    "copy_parameter": lambda h, m: h[0].copy_(m.t),
    "copy_of_scalar": lambda h, m: h.copy_(torch.tensor(1.5)),
    "channel_strides": lambda h, m: h[:, ::2].add_(1),
    "stepped_rows": lambda h, m: h[::2].add_(1),
    "ellipsis_write": lambda h, m: h.__setitem__(..., 1.0),
    "none_write": lambda h, m: h[None].add_(1),
    "mask_write": lambda h, m: h.__setitem__(h > 0, 2.0),
    "masked_fill_equal": lambda h, m: h.masked_fill_(h == 0, 3.0),
    "index_fill": lambda h, m: h.index_fill_(0, torch.tensor([0]), 1.0),
    "index_add": lambda h, m: h.index_add_(0, torch.tensor([0]), torch.ones_like(h[:1])),
    "index_put": lambda h, m: h.index_put_((torch.tensor([0]),), torch.tensor(1.0, dtype=h.dtype)),
    "index_copy": lambda h, m: h.index_copy_(0, torch.tensor([0]), torch.ones_like(h[:1])),
    "scatter_value": lambda h, m: h.scatter_(0, torch.zeros(1, h.shape[1], dtype=torch.long), 1.0),
    "fill_diagonal": lambda h, m: h.fill_diagonal_(1.0),
    "zero_then_add": lambda h, m: h.zero_().add_(1),
    "clamp_min": lambda h, m: h[0].clamp_(min=0.5),
    "add_parameter": lambda h, m: h[0].add_(m.t),
    "mul_then_add": lambda h, m: h.mul_(m.t).add_(0.5),
    "normal": lambda h, m: h[0].normal_(),
    "uniform": lambda h, m: h.uniform_(),
    "expand_write": lambda h, m: h[:1].squeeze(0).add_(1),
    "swap_rows": lambda h, m: h.swapaxes(0, 1).add_(1),
    "squeeze_write": lambda h, m: h[:, None].squeeze(1).add_(1),
    "real_part": lambda h, m: torch.view_as_complex(h.view(len(h), -1, 2)).add_(1 + 2j),
    "dtype_view": lambda h, m: h.view(torch.int64).fill_(0) if False else h.view_as(h).add_(1),
    "lerp": lambda h, m: h.lerp_(torch.ones_like(h), 0.5),
    "addcmul": lambda h, m: h.addcmul_(torch.ones_like(h), torch.ones_like(h)),
    "threshold": lambda h, m: F.threshold_(h, 0.1, 1.0),
    "relu_then_plus": lambda h, m: F.relu_(h).add_(1),
    "foreach": lambda h, m: torch._foreach_add_([h], 1.0),
    "hsplit": lambda h, m: h.hsplit(2)[0].add_(1),
    "tensor_split": lambda h, m: h.tensor_split(2)[0].add_(1),
    "vsplit": lambda h, m: h.vsplit([1])[0].add_(1),
    "movedim": lambda h, m: h.movedim(0, 1).add_(1),
    "alias_of_alias": lambda h, m: h[:].view(-1)[:8].view(2, 4).t().add_(1),
    "resize_like": lambda h, m: h.set_(torch.ones_like(h)),
    "swap_in_loop": lambda h, m: [row.add_(1) for row in h],
    "inplace_operator": lambda h, m: h.__iadd__(1),
}
for _name, _write in WRITES.items():
    flat(f"{_name}_written", written(_write), t=(8,), shrinks=False)

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "view": lambda h: h.view(len(h), 2, -1),
    "transpose": lambda h: h.t(),
    "slice": lambda h: h[:, 1:],
    "select": lambda h: h[0],
    "detach": lambda h: h.detach(),
    "data": lambda h: h.data,
    "expand": lambda h: h.unsqueeze(1).expand(-1, 3, -1),
    "chunk": lambda h: h.chunk(2, 1)[0],
    "unbind": lambda h: h.unbind(0)[0],
    "flatten": lambda h: h.flatten(),
    "squeeze": lambda h: h[:, None].squeeze(1),
    "diagonal": lambda h: h.diagonal(),
    "as_strided": lambda h: h.as_strided((2, 8), (8, 1)),
    "contiguous": lambda h: h.contiguous(),
    "to_same": lambda h: h.to(torch.float64),
    "broadcast_to": lambda h: h[:1].broadcast_to(h.shape),
    "identity_dropout": lambda h: F.dropout(h, 0.5, False),
    "view_as_complex": lambda h: torch.view_as_real(torch.view_as_complex(h.view(len(h), -1, 2))),
    "unfold": lambda h: h.unfold(1, 2, 2),
    "split": lambda h: h.split(4, 1)[1],
    "real": lambda h: h.real,
    "mT": lambda h: h.mT,
}
for _name, _view in VIEWS.items():
    flat(f"{_name}_seen", seen(_view), shrinks=False)

# -- memory of parameters, buffers and constants -------------------------------------------------------------------------

flat("write_into_ones", lambda m, h: (b := torch.ones_like(h)).copy_(h) * 1 + b.zero_(), shrinks=False)
flat("empty_then_half", lambda m, h: _half_written(h).sum(-1), shrinks=False)
flat("ones_then_rows", lambda m, h: _rows_written(h).sum(-1), shrinks=False)
flat("zeros_then_columns", lambda m, h: _columns_written(h) @ m.out, out=(8, 3), shrinks=False)
flat("accumulate", lambda m, h: _accumulated(h).sum(-1), shrinks=False)
flat("cat_then_write", lambda m, h: _after_cat(h).sum(-1), shrinks=False)
flat("where_written", lambda m, h: _where_written(h).sum(-1), shrinks=False)


def _half_written(h: Tensor) -> Tensor:
    out = torch.ones_like(h)
    out[:, :4] = h[:, :4]
    return out


def _rows_written(h: Tensor) -> Tensor:
    out = torch.ones(h.shape, dtype=h.dtype)
    out[1:] = h[1:]
    return out


def _columns_written(h: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    for column in range(h.shape[1]):
        out[:, column] = h[:, column] + column
    return out


def _accumulated(h: Tensor) -> Tensor:
    out = torch.full_like(h, 0.5)
    out += h
    return out


def _after_cat(h: Tensor) -> Tensor:
    both = torch.cat([h, h], 0)
    both[0] = 1.0
    return both[: len(h)]


def _where_written(h: Tensor) -> Tensor:
    h = h.clone()
    torch.where(h > 0, h, torch.ones_like(h), out=h.data)
    return h


# -- embeddings, products in odd orders, complex numbers -----------------------------------------------------------------


def ids() -> Inputs:
    return (torch.tensor([[0, 1, 2, 3], [4, 5, 6, 0]]),)


def more_ids() -> Inputs:
    return (torch.tensor([[6, 5], [0, 3], [1, 1]]),)


class Table(nn.Module):
    def __init__(self, embedding: nn.Module, body: Body, **shapes) -> None:
        super().__init__()
        self.table = embedding
        self.body = body
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(shape)))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, self.table(x))


def table(name: str, embedding: Callable[[], nn.Module], body: Body, shrinks: bool = False, **shapes) -> None:
    add(name, lambda: Table(embedding(), body, **shapes), ids, others=(more_ids,), shrinks=shrinks)


table("embedding_padding", lambda: nn.Embedding(7, 8, padding_idx=0), lambda m, h: h @ m.out, out=(8, 3), shrinks=True)
table("embedding_sum", lambda: nn.Embedding(7, 8), lambda m, h: h.sum(-1), shrinks=True)
table("embedding_max_norm", lambda: nn.Embedding(7, 8, max_norm=0.5), lambda m, h: h @ m.out, out=(8, 3))
table("bag_sum", lambda: nn.EmbeddingBag(7, 8, mode="sum"), lambda m, h: h @ m.out, out=(8, 3))
table("bag_mean", lambda: nn.EmbeddingBag(7, 8, mode="mean", padding_idx=0), lambda m, h: h.sum(-1))
table("bag_max", lambda: nn.EmbeddingBag(7, 8, mode="max"), lambda m, h: h.sum(-1))
table("embedding_scaled", lambda: nn.Embedding(7, 8), lambda m, h: (h * 8**0.5 + 1).sum(-1))
table("embedding_tied", lambda: nn.Embedding(7, 8), lambda m, h: F.linear(h, m.table.weight), shrinks=True)
table("embedding_compared", lambda: nn.Embedding(7, 8), lambda m, h: (h > 0).all(-1).double())

flat("einsum_transposed", lambda m, h: torch.einsum("oi,bi->ob", m.w, h).t(), w=(3, 8))
flat("einsum_three", lambda m, h: torch.einsum("bi,io,i->bo", h, m.w, m.t), w=(8, 3), t=(8,))
flat("einsum_diagonal", lambda m, h: torch.einsum("bi,ii->b", h, m.w), w=(8, 8), shrinks=False)
flat("einsum_trace", lambda m, h: torch.einsum("ii->", m.w) + h.sum(-1), w=(8, 8), shrinks=False)
flat("einsum_outer", lambda m, h: torch.einsum("bi,bj->bij", h, h).amax((1, 2)), shrinks=False)
flat("einsum_sum_alone", lambda m, h: torch.einsum("bi->b", h + 1), shrinks=False)
flat("einsum_ellipsis", lambda m, h: torch.einsum("...i,ij->...j", h, m.w).cos(), w=(8, 3))
flat("einsum_repeated_operand", lambda m, h: torch.einsum("bi,ij,bj->b", h, m.w, h), w=(8, 8))
flat("matmul_self", lambda m, h: h @ (m.w @ m.w) @ m.out, w=(8, 8), out=(8, 3))
flat("matrix_power", lambda m, h: h @ torch.matrix_power(m.w, 3) @ m.out, w=(8, 8), out=(8, 3), shrinks=False)
flat("matrix_exp", lambda m, h: h @ torch.matrix_exp(m.w * 0.1) @ m.out, w=(8, 8), out=(8, 3), shrinks=False)
flat("inverse", lambda m, h: h @ torch.linalg.inv(m.w + 3 * torch.eye(8).double()) @ m.out, w=(8, 8), out=(8, 3), shrinks=False)
flat("solve", lambda m, h: torch.linalg.solve(m.w @ m.w.mT + torch.eye(8).double(), h.mT).mT @ m.out, w=(8, 8), out=(8, 3), shrinks=False)
flat("determinant", lambda m, h: torch.linalg.det(m.w) * h.sum(-1), w=(8, 8), shrinks=False)
flat("trace", lambda m, h: torch.trace(m.w) * h.sum(-1), w=(8, 8), shrinks=False)
flat("svd_values", lambda m, h: torch.linalg.svdvals(m.w).sum() * h.sum(-1), w=(8, 8), shrinks=False)
flat("cholesky", lambda m, h: h @ torch.linalg.cholesky(m.w @ m.w.mT + torch.eye(8).double()) @ m.out, w=(8, 8), out=(8, 3), shrinks=False)
flat("bilinear", lambda m, h: F.bilinear(h, h.cos(), m.w), w=(3, 8, 8))
flat("cross_product", lambda m, h: torch.linalg.cross((h @ m.a), (h @ m.b)), a=(8, 3), b=(8, 3))
flat("cross_over_width", lambda m, h: torch.cross(h.view(len(h), 8, 1).expand(-1, -1, 3), m.t.expand(len(h), 8, 3), -1).sum((1, 2)), t=(8, 3), shrinks=False)
flat("complex_pair", lambda m, h: torch.view_as_real(torch.complex(h, h.cos()) @ torch.complex(m.a, m.b)).sum(-1), a=(8, 3), b=(8, 3))
flat("complex_abs", lambda m, h: torch.complex(h, m.t.expand_as(h)).abs().sum(-1), t=(8,), shrinks=False)
flat("complex_halves", lambda m, h: torch.view_as_complex(h.view(len(h), -1, 2)).abs().sum(-1), shrinks=False)
flat("complex_conj", lambda m, h: (torch.complex(h, h * 2).conj() * (1 + 1j)).imag.sum(-1), shrinks=False)
flat("tensor_repeat", lambda m, h: (h.repeat(1, 2) * m.t).sum(-1), t=(16,))
flat("repeat_interleave", lambda m, h: (h.repeat_interleave(2, 1) * m.t).sum(-1), t=(16,))
flat("outer_sum", lambda m, h: (h[:, :, None] + m.t).sum((1, 2)), t=(4,), shrinks=False)
flat("gate_of_other", lambda m, h: (h * (1 - torch.sigmoid(h))).sum(-1))
flat("softplus_gate", lambda m, h: (F.softplus(h) * m.t).sum(-1), t=(8,))
flat("residual_one", lambda m, h: (1 + h).prod(-1) + (h * m.t).sum(-1), t=(8,), shrinks=False)
flat("mean_of_product", lambda m, h: (h * m.t).mean(-1), t=(8,), shrinks=False)
flat("sum_squared_of_shifted", lambda m, h: ((h - 1) ** 2 * m.t.abs()).sum(-1), t=(8,))
flat("variance_by_hand", lambda m, h: ((h - h.sum(-1, keepdim=True) / 8) ** 2).sum(-1), shrinks=False)
flat("linear_without_bias", lambda m, h: F.linear(h.relu(), m.out, None), out=(3, 8))
flat("bias_relu_sum", lambda m, h: (h + m.t).relu().sum(-1), t=(8,))
flat("scale_shift_sum", lambda m, h: (h * m.g + m.t).tanh().sum(-1), g=(8,), t=(8,))
flat("reciprocal_scale", lambda m, h: (h / m.g).sum(-1), g=(8,), shrinks=False)
flat("inverse_root_scale", lambda m, h: (h * torch.rsqrt(m.g**2 + 1)).sum(-1), g=(8,))
flat("log_scale", lambda m, h: (h * m.g.exp()).sum(-1), g=(8,))
flat("log_of_gate", lambda m, h: (m.g.abs().log() * h).sum(-1), g=(8,), shrinks=False)
flat("buffer_plus", lambda m, h: (h + m.shift).sum(-1), {"shift": torch.randn(8).double()}, shrinks=False)
flat("buffer_times", lambda m, h: (h * m.scale).sum(-1), {"scale": torch.randn(8).double()})
flat("buffer_mask", lambda m, h: h.masked_fill(m.mask, 1.0).sum(-1), {"mask": torch.arange(8) % 3 == 0}, shrinks=False)

flat("prelu_function", lambda m, h: F.prelu(h, m.t).sum(-1), t=(8,))

# -- images -----------------------------------------------------------------------------------------------------------------

image("conv_bias", lambda m, h: (h + m.b[:, None, None]).relu().sum((1, 2, 3)), b=(8,))
image("adaptive_max", lambda m, h: F.adaptive_max_pool2d(h, 1).sum((1, 2, 3)))
image("max_pool_padded", lambda m, h: F.max_pool2d(h, 2, padding=1).sum((1, 2, 3)))
image("avg_pool_padded", lambda m, h: F.avg_pool2d(h, 2, padding=1).sum((1, 2, 3)))
image("interpolate", lambda m, h: F.interpolate(h, scale_factor=2, mode="bilinear").sum((1, 2, 3)))
image("grid_sample", lambda m, h: F.grid_sample(h, F.affine_grid(torch.eye(2, 3).double().expand(len(h), 2, 3), (len(h), 3, 4, 4), align_corners=False), align_corners=False).sum((1, 2, 3)), shrinks=False)
image("pixel_shuffle", lambda m, h: F.pixel_shuffle(h, 2).amax((1, 2, 3)), shrinks=False)
image("channel_shuffle", lambda m, h: F.conv2d(F.channel_shuffle(h, 2), m.k), k=(3, 8, 1, 1))
image("depthwise", lambda m, h: F.conv2d(h, m.k, m.b, groups=8).sum((1, 2, 3)), k=(8, 1, 3, 3), b=(8,))
image("depthwise_no_bias", lambda m, h: F.conv2d(h, m.k, groups=8).cos().mean((2, 3)) @ m.out, k=(8, 1, 3, 3), out=(8, 3))
image("grouped", lambda m, h: F.conv2d(h, m.k, groups=2).sum((1, 2, 3)), k=(6, 4, 1, 1))
image("kernel_from_input", lambda m, h: F.conv2d(h, m.k * h.mean()).flatten(1), k=(3, 8, 1, 1))
image("width_as_height", lambda m, h: F.conv2d(h.transpose(1, 2), m.k, padding=1).sum((1, 2, 3)), shrinks=False, k=(3, 4, 3, 3))
image("global_norm", lambda m, h: (h / h.norm()).abs().sum((1, 2, 3)), shrinks=False)
image("spatial_softmax", lambda m, h: (h.flatten(2).softmax(-1) * torch.arange(16)).sum((1, 2)), shrinks=False)
image("fold", lambda m, h: F.fold(F.unfold(h, 3, padding=1), (4, 4), 3, padding=1).sum((1, 2, 3)), shrinks=False)
image("squeeze_excite_hard", lambda m, h: (h * F.hardsigmoid(h.mean((2, 3)) @ m.a @ m.b)[:, :, None, None]).sum((1, 2, 3)), a=(8, 4), b=(4, 8))
image("fft_over_space", lambda m, h: torch.fft.rfft2(h).abs().sum((1, 2, 3)), shrinks=False)
image("fft_over_channels", lambda m, h: torch.fft.fft(h, dim=1).abs().sum((1, 2, 3)), shrinks=False)
image("one_minus_mask", lambda m, h: (1 - (h > 0).double()).sum((1, 2, 3)), shrinks=False)
image("pad_value_then_conv", lambda m, h: F.conv2d(F.pad(h, (1, 1, 1, 1), value=1.0), m.k).flatten(1), k=(3, 8, 3, 3))
image("pad_channels", lambda m, h: F.pad(h, (0, 0, 0, 0, 1, 2), value=1.0).sum((1, 2, 3)), shrinks=False)
image("transposed_conv_bias", lambda m, h: F.conv_transpose2d(h, m.k, m.b).flatten(1), k=(8, 3, 2, 2), b=(3,))
