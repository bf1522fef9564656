"""The table of zero facts against numbers, and the same for what is written in place."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import structprune
from structprune.frontends.torch.read.operators import zero_fact
from structprune.frontends.torch.record.record import Call
from structprune.graph.graph import Value, Where
from structprune.operators import zero
from structprune.testing import check

# Both signs, zero, and several magnitudes.
SAMPLES = (0.0, -0.0, 1e-3, -1e-3, 0.5, -0.5, 1.0, -1.0, 3.0, -3.0, 1e3, -1e3)
# Literal arguments that are tried where a schema wants a number.
NUMBERS = (-2, -1, 0, 1, 2)
# A factor is finite; these, given as the other operand, are not asked for.
FLOAT, WHOLE, TRUTH = torch.float64, torch.int64, torch.bool


def tagged() -> Iterator[Any]:
    """Every overload that torch tags as pointwise, or that an entry reads as such."""
    more = ("complex", "polar", "where", "masked_fill", "lerp", "threshold", "addcdiv", "heaviside", "copy")
    every = (name.partition("::") for name in torch._C._dispatch_get_all_op_names())
    names = {name.partition(".")[0] for library, _, name in every if library == "aten"}
    for name in sorted(names):
        packet = getattr(torch.ops.aten, name, None)
        for overload in packet.overloads() if packet is not None else ():
            found = getattr(packet, overload)
            if torch.Tag.pointwise in found.tags or name in more:
                yield found


FUNCTIONAL = [each for each in tagged() if not each._schema.is_mutable]


def bare(name: str) -> str:
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def test_what_torch_tags_and_the_table_leaves_out() -> None:
    """Everything else is not zero: a new torch that tags more shows here."""
    known = set(zero.TERMS) | set(zero.AT_ZERO)
    left = sorted({bare(each._opname) for each in tagged()} - known)
    assert left == NOT_IN_THE_TABLE


NOT_IN_THE_TABLE = [
    "acos", "acosh", "angle", "atan2", "bitwise_not", "clone", "cos", "cosh", "digamma", "equal", "erfc", "exp",
    "exp2", "frexp", "gelu_backward", "hardsigmoid", "i0", "igamma", "igammac", "isfinite", "lgamma", "log",
    "log10", "log2", "logaddexp", "logaddexp2", "logical_not", "logit", "logit_backward", "mvlgamma",
    "native_dropout_backward", "polygamma", "reciprocal", "rsqrt", "sigmoid", "sigmoid_backward", "signbit",
    "silu_backward", "sinc", "softplus", "special_airy_ai", "special_bessel_j0", "special_bessel_y0",
    "special_bessel_y1", "special_chebyshev_polynomial_t", "special_chebyshev_polynomial_u",
    "special_chebyshev_polynomial_v", "special_chebyshev_polynomial_w", "special_erfcx",
    "special_hermite_polynomial_h", "special_hermite_polynomial_he", "special_i0e", "special_laguerre_polynomial_l",
    "special_legendre_polynomial_p", "special_log_ndtr", "special_modified_bessel_i0", "special_modified_bessel_k0",
    "special_modified_bessel_k1", "special_ndtri", "special_scaled_modified_bessel_k0",
    "special_scaled_modified_bessel_k1", "special_shifted_chebyshev_polynomial_t",
    "special_shifted_chebyshev_polynomial_u", "special_shifted_chebyshev_polynomial_v",
    "special_shifted_chebyshev_polynomial_w", "special_spherical_bessel_j0", "special_zeta", "tanh_backward",
    "threshold_backward",
]  # fmt: skip


def numbers_for(target: Any) -> Iterator[dict[str, Any]]:
    """Choices of the arguments that are no tensors: several numbers for each that is one."""
    choices: dict[str, tuple[Any, ...]] = {}
    for argument in target._schema.arguments:
        kind = str(argument.type)
        if "Tensor" in kind:
            continue
        if kind in ("number", "float", "Optional[number]", "Optional[float]") and argument.name not in ("eps",):
            choices[argument.name] = (*NUMBERS, 0.25)
        elif kind == "int" and not argument.has_default_value():
            choices[argument.name] = NUMBERS
        elif argument.has_default_value():
            choices[argument.name] = (argument.default_value,)
        else:
            return
    for values in itertools.islice(itertools.product(*choices.values()), 200):
        yield dict(zip(choices, values, strict=True))


def operands_of(target: Any, marks: tuple[bool, ...], dtype: torch.dtype, is_bool: list[bool]) -> list[Tensor]:
    """Every combination of the samples in the operands that are not zero, one after another."""
    free = [k for k, mark in enumerate(marks) if not mark]
    rows = list(itertools.product(SAMPLES, repeat=len(free)))
    grid = torch.tensor(rows, dtype=FLOAT).reshape(len(rows), len(free))
    found = []
    for k, mark in enumerate(marks):
        column = torch.zeros(len(grid), dtype=FLOAT) if mark else grid[:, free.index(k)]
        found.append(column.bool() if is_bool[k] else column.to(dtype))
    return found


def shaped(name: str, operand: Tensor, target: Any) -> Tensor:
    """What fills in place of a mask has no axes."""
    return operand[0] if target._opname == "masked_fill" and name == "value" else operand


@pytest.mark.parametrize("target", [pytest.param(each, id=str(each)) for each in FUNCTIONAL])
def test_where_the_table_says_zero_the_numbers_are(target: Any) -> None:
    """Each set of operands that is zero, each choice of literals, over the samples for the others."""
    tensors = [each.name for each in target._schema.arguments if str(each.type) in ("Tensor", "Optional[Tensor]")]
    is_bool = [name in ("condition", "mask") for name in tensors]
    claims = tried = 0
    for literals in numbers_for(target):
        values = [Value(name, (4,)) for name in tensors]
        call = Call(target, (), {}, [], Where())
        fact = zero_fact(call, {**literals, **dict(zip(tensors, values, strict=True))})
        for marks in itertools.product((True, False), repeat=len(tensors)):
            if not fact.holds(marks):
                continue
            claims += 1
            for dtype in (FLOAT, WHOLE, TRUTH):
                operands = operands_of(target, marks, dtype, is_bool)
                pairs = zip(tensors, operands, strict=True)
                given = {**literals, **{name: shaped(name, operand, target) for name, operand in pairs}}
                schema = target._schema.arguments
                args = [given[each.name] for each in schema if not each.kwarg_only and each.name in given]
                kwargs = {each.name: given[each.name] for each in schema if each.kwarg_only and each.name in given}
                try:
                    result = target(*args, **kwargs)
                except (RuntimeError, TypeError, NotImplementedError, IndexError):
                    continue  # not for numbers of this type
                # What is divided by zero, or taken to a power without a number, is none without removing either.
                finite = result[result.isfinite()] if result.is_floating_point() else result
                tried += bool(finite.numel())
                assert not finite.any(), (literals, marks, dtype, finite)
    assert claims == 0 or tried, "no claim was tried"


@pytest.mark.parametrize("heads", [(4, 2), (4, 1), (2, 2)])
def test_query_heads_that_share_values_are_not_zero(heads: tuple[int, int]) -> None:
    """With fewer values than queries, a removed query head still takes the mean of the values."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q = nn.Parameter(torch.randn(2, heads[0], 5, 6))
            self.k, self.v = (nn.Parameter(torch.randn(2, heads[1], 5, 6)) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            y = nn.functional.scaled_dot_product_attention(self.q * x, self.k * x, self.v * x, enable_gqa=True)
            return (y + y * y).sum((1, 3))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        check(Shared().double(), torch.tensor([0.7], dtype=FLOAT))


def test_facts_depend_on_literals() -> None:
    def holds(name: str, *arguments: Any) -> bool:
        tensors = sum(each is zero.OPERAND for each in arguments)
        return zero.fact(name, arguments).holds((True,) * tensors)

    x = zero.OPERAND
    assert holds("pow", x, 2) and not holds("pow", x, 0) and not holds("pow", x, -1) and not holds("pow", x, x)
    assert holds("clamp", x, None, 1.0) and not holds("clamp", x, 0.1, None) and not holds("clamp", x, None, -0.1)
    assert holds("clamp", x, x, x) and not zero.fact("clamp", (x, x, x)).holds((True, False, True))
    assert holds("add", x, 0, 1) and not holds("add", x, 1, 1)
    assert holds("gt", x, 0.5) and not holds("gt", x, -0.5) and not holds("ge", x, x) and holds("gt", x, x)
    assert holds("div", x, 2) and not holds("div", x, x) and not holds("div", x, 0)
    assert zero.fact("div", (x, x)).holds((True, False)) and not zero.fact("div", (x, x)).holds((False, True))
    assert holds("threshold", x, 0.1, 0) and not holds("threshold", x, 0.1, 2) and holds("threshold", x, -1, 2)
    assert not holds("minimum", x, -1.0) and holds("minimum", x, 1.0)
    assert not zero.fact("minimum", (x, x)).holds((True, False))
    assert not holds("masked_fill", x, x, 1.0) or zero.fact("masked_fill", (x, x, 1.0)).holds((True, True))
    assert zero.fact("masked_fill", (x, x, 0)).holds((True, False))


# -- what the issue found, and more of the same class ------------------------------------------------


class Middle(nn.Module):
    """A layer, an operator, and a bare sum over its channels."""

    def __init__(self, middle: Callable[..., Tensor], width: int = 12) -> None:
        super().__init__()
        self.first = nn.Conv1d(3, width, 1)
        self.learned = nn.Parameter(torch.randn(width, 1))
        self.register_buffer("given", torch.linspace(-2, 2, width)[:, None] + 0.03)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        return self.middle(self.first(x), self).sum(1)


def built(middle: Callable[..., Tensor]) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Middle(middle).double(), torch.randn(2, 3, 8, dtype=FLOAT)


def in_place(h: Tensor, write: Callable[[Tensor], Any]) -> Tensor:
    write(h)
    return h


SIGNED: dict[str, Callable[..., Tensor]] = {
    "minimum of a buffer": lambda h, m: torch.minimum(h, m.given),
    "maximum of a weight": lambda h, m: torch.maximum(h, m.learned),
    "clamp from above by a tensor": lambda h, m: h.clamp(max=m.given),
    "clamp from below by a tensor": lambda h, m: h.clamp(min=m.given),
    "clamp by two": lambda h, m: h.clamp(m.given, m.given + 1),
    "comparison": lambda h, m: (h > m.given).double(),
    "comparison with a weight": lambda h, m: (h <= m.learned).double() * 2,
    "arc tangent": lambda h, m: torch.atan2(h, m.given),
    "power by a weight": lambda h, m: h.abs().add(0.1).pow(m.learned),
    "power of a removed base": lambda h, m: h.abs() ** m.given,
    "power by a removed exponent": lambda h, m: (m.given.abs() + 1) ** h,
    "remainder": lambda h, m: torch.remainder(h, m.given),
    "floor of a quotient": lambda h, m: torch.div(h, m.given, rounding_mode="floor"),
    "next number": lambda h, m: torch.nextafter(h, m.given) * 1e300 * 1e15,
    "hypotenuse": lambda h, m: torch.hypot(h, m.given),
    "step": lambda h, m: torch.heaviside(h, m.given),
    "sign of another": lambda h, m: torch.copysign(h, m.given),
    "sign taken": lambda h, m: torch.copysign(m.given, h),
    "x log y": lambda h, m: torch.xlogy(h, m.given.abs()),
    "entropy": lambda h, m: h.square() * h.square().log(),
    "inverse times itself": lambda h, m: h * (h + 0).reciprocal(),
    "divided by itself": lambda h, m: h / (h + h),
    "choice": lambda h, m: torch.where(h > m.given, h, m.given),
    "between": lambda h, m: torch.lerp(h, m.given, 0.3),
    "alpha dropout that is always on": lambda h, m: torch.alpha_dropout(h, 0.5, True),
    "padding with ones along another axis": lambda h, m: nn.functional.pad(h, (1, 1), value=1.0),
    "padding with zeros along another axis": lambda h, m: nn.functional.pad(h, (1, 1)),
    "positions of maxima": lambda h, m: h.argmax(2, True).double(),
    "positions in a pool": lambda h, m: nn.functional.max_pool1d(h, 2, return_indices=True)[1].double(),
    "positions of running maxima": lambda h, m: h.cummax(2)[1].double(),
    "batch norm of a weight and a buffer": lambda h, m: nn.functional.batch_norm(
        h, torch.zeros(12, dtype=FLOAT), torch.ones(12, dtype=FLOAT), m.learned[:, 0], m.given[:, 0]),
    "group norm of a weight and a buffer": lambda h, m: nn.functional.group_norm(h, 12, m.learned[:, 0], m.given[:, 0]),
    "layer norm of a weight and a buffer": lambda h, m: nn.functional.layer_norm(
        h.transpose(1, 2), (12,), m.learned[:, 0], m.given[:, 0]).transpose(1, 2),
    "instance norm of a weight and a buffer": lambda h, m: nn.functional.instance_norm(
        h, weight=m.learned[:, 0], bias=m.given[:, 0]),
    "quantization by a zero point": lambda h, m: torch.fake_quantize_per_tensor_affine(
        h.float(), 0.5, 11, 10, 20).double(),
    "cosine": lambda h, m: h.cos(),
    # -- written through another name of the memory
    "a whole slice": lambda h, m: in_place(h, lambda h: h[:, :].add_(1)),
    "a chunk": lambda h, m: in_place(h, lambda h: h.chunk(2)[0].sigmoid_()),
    "a chunk of the width": lambda h, m: in_place(h, lambda h: h.chunk(2, 1)[0].add_(1)),
    "the second part of a split": lambda h, m: in_place(h, lambda h: h.split([4, 8], 1)[1].exp_()),
    "a selected row": lambda h, m: in_place(h, lambda h: h[0].fill_(1)),
    "a selected column": lambda h, m: in_place(h, lambda h: h.select(2, 3).add_(2)),
    "a narrowed part": lambda h, m: in_place(h, lambda h: h.narrow(2, 1, 2).add_(1)),
    "every other channel": lambda h, m: in_place(h, lambda h: h[:, ::2].add_(1)),
    "a view": lambda h, m: in_place(h, lambda h: h.view(2, -1).cos_()),
    "a view of a view": lambda h, m: in_place(h, lambda h: h.view(2, 3, 4, 8)[:, 1].transpose(1, 2).add_(1)),
    "detached": lambda h, m: in_place(h, lambda h: h.detach().add_(1)),
    "its data": lambda h, m: in_place(h, lambda h: h.data.add_(1)),
    "a permutation": lambda h, m: in_place(h, lambda h: h.permute(2, 0, 1).add_(1)),
    "unbound": lambda h, m: in_place(h, lambda h: h.unbind(2)[1].add_(1)),
    "a dropout that does nothing": lambda h, m: in_place(h, lambda h: nn.functional.dropout(h, 0.5, False).add_(1)),
    "expanded from": lambda h, m: in_place(h, lambda h: h.unsqueeze(1).add_(1)),
    "copied into": lambda h, m: in_place(h, lambda h: h[:, :, 2:].copy_(m.given)),
    "assigned": lambda h, m: in_place(h, lambda h: h.__setitem__((slice(None), slice(None), 0), 1.0)),
    "written by index": lambda h, m: in_place(h, lambda h: h.index_fill_(2, torch.tensor([0, 3]), 1.0)),
    "masked": lambda h, m: in_place(h, lambda h: h.view(2, 96).masked_fill_(torch.ones(96, dtype=torch.bool), 2.0)),
    "a result given memory": lambda h, m: in_place(h, lambda h: torch.cos(h, out=h)),
    "a result given a part of memory": lambda h, m: in_place(h, lambda h: torch.exp(h[:, :, 1:], out=h[:, :, 1:])),
    "zeroed again": lambda h, m: in_place(h, lambda h: h[:, :].zero_()),
    "scaled": lambda h, m: in_place(h, lambda h: h[:, :, :4].mul_(3)),
    "rectified": lambda h, m: in_place(h, lambda h: h.view(2, 12, 4, 2)[..., 0].relu_()),
}  # fmt: skip

AFTERWARDS: dict[str, Callable[..., Tensor]] = {
    "a view, after its base": lambda h, m: (h.view(2, 12, 4, 2), h.add_(1))[0].sum(3),
    "a slice, after its base": lambda h, m: (h[:, :, 1:], h.add_(1))[0],
    "a part, after another view": lambda h, m: (h.transpose(1, 2), h[:, :, 1:].cos_())[0].transpose(1, 2),
    "a row, after a chunk": lambda h, m: (h[0], h.chunk(2)[0].add_(1))[0].t()[None].transpose(1, 2),
    "detached, after": lambda h, m: (h.detach(), h.mul_(2).add_(1))[0],
    "a clone, before": lambda h, m: (h.clone(), h.add_(1))[0],
    "increased": lambda h, m: h.__iadd__(1),
}


@pytest.mark.parametrize("what", SIGNED)
def test_second_operands_and_names(what: str) -> None:
    check(*built(SIGNED[what]))


@pytest.mark.parametrize("what", AFTERWARDS)
def test_what_other_names_show_after_a_write(what: str) -> None:
    check(*built(AFTERWARDS[what]))


KEPT = ("scaled", "rectified", "zeroed again", "padding with zeros along another axis", "sign of another", "x log y")


@pytest.mark.parametrize("what", KEPT)
def test_what_stays_zero_stays_free(what: str) -> None:
    """The table does not freeze what algebra proves."""
    analysis = structprune.analyze(*built(SIGNED[what]))
    assert any(group.size > 1 for group in analysis.groups), str(analysis)


def takes_floats(target: Any) -> bool:
    try:
        target(torch.rand(2, dtype=FLOAT), *others(target))
    except (RuntimeError, TypeError):
        return False
    return True


def others(target: Any) -> list[Any]:
    """Further operands: tensors of both signs that broadcast, masks, and numbers."""
    found: list[Any] = []
    for argument in target._schema.arguments[1:]:
        kind = str(argument.type)
        if argument.has_default_value():
            break
        if kind == "Tensor":
            found.append(torch.tensor(True) if argument.name == "mask" else torch.tensor(0.37, dtype=FLOAT))
        else:
            found.append(1)
    return found


IN_PLACE = [each for each in tagged() if each._schema.is_mutable and each._opname == f"{bare(each._opname)}_"]
WRITES = [each for each in IN_PLACE if takes_floats(each)]


@pytest.mark.parametrize("target", [pytest.param(each, id=str(each)) for each in WRITES])
def test_every_operator_in_place_through_another_view(target: Any) -> None:
    """Written through a view, read through the base; written through the base, read through a view."""

    def through_view(h: Tensor, m: Any) -> Tensor:
        target(h.view(2, 12, 4, 2)[:, :, 1:], *others(target))
        return h

    def through_base(h: Tensor, m: Any) -> Tensor:
        seen = h.view(2, 12, 4, 2)
        target(h, *others(target))
        return seen.sum(3)

    for middle in (through_view, through_base):
        check(*built(middle))


# -- positions ---------------------------------------------------------------------------------------


class Steps(nn.Module):
    """A recurrent layer whose steps are the channels of what comes before."""

    def __init__(self, kind: str, is_batch_first: bool) -> None:
        super().__init__()
        self.first = nn.Conv1d(3, 7, 1)
        self.recurrent = getattr(nn, kind)(8, 5, batch_first=is_batch_first)
        self.last = nn.Linear(35, 2)
        self.is_batch_first = is_batch_first

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.is_batch_first:
            return self.last(self.recurrent(h)[0].flatten(1))
        return self.last(self.recurrent(h.transpose(0, 1))[0].transpose(0, 1).flatten(1))


class LearnedTokens(nn.Module):
    """Tokens that are parameters: as steps, or as rows and keys under a causal mask."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.tokens = nn.Parameter(torch.randn(7, 8))
        self.gru = nn.GRU(8, 8)
        self.cell = nn.LSTMCell(8, 8)
        self.last = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens * x.sum()
        if self.kind == "steps":
            return self.last(self.gru(h)[0].sum(0))
        if self.kind == "batch":
            return self.last(self.gru(h[None])[0].sum((0, 1)))
        if self.kind == "states":
            return self.last(self.gru(h[None])[1].sum((0, 1)))
        if self.kind == "cell":
            return self.last(self.cell(h)[0].sum(0))
        heads = h.view(1, 1, 7, 8)
        y = nn.functional.scaled_dot_product_attention(heads, heads * 2, heads.cos(), is_causal=True)
        return self.last(y.sum((0, 1, 2)))


@pytest.mark.parametrize("is_batch_first", [True, False])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_steps_are_held(kind: str, is_batch_first: bool) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, inputs = Steps(kind, is_batch_first).double(), torch.randn(2, 3, 8, dtype=FLOAT)
    analysis = check(model, inputs)
    assert "goes through it step by step" in analysis.explain("first.weight")
    assert any(group.name.startswith("recurrent.weight_ih") for group in analysis.groups)


@pytest.mark.parametrize("kind", ["steps", "batch", "states", "cell", "causal"])
def test_learned_tokens(kind: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, inputs = LearnedTokens(kind).double(), torch.randn(2, 3, dtype=FLOAT)
    analysis = check(model, inputs)
    assert kind != "steps" or "step by step" in analysis.explain("tokens")


class Causal(nn.Module):
    """Queries, keys and values whose rows are widths: learned queries against channels."""

    def __init__(self, is_causal: bool) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, 1, 7, 8))
        self.keys, self.values = nn.Conv1d(3, 9, 1), nn.Conv1d(3, 9, 1)
        self.last = nn.Linear(7 * 8, 2)
        self.is_causal = is_causal

    def forward(self, x: Tensor) -> Tensor:
        k, v = self.keys(x)[:, None], self.values(x)[:, None]
        q = self.queries.expand(len(x), 1, 7, 8)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.is_causal)
        return self.last(y.flatten(1))


@pytest.mark.parametrize("is_causal", [True, False])
def test_rows_under_a_causal_mask_are_held(is_causal: bool) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, inputs = Causal(is_causal).double(), torch.randn(2, 3, 8, dtype=FLOAT)
    analysis = check(model, inputs)
    assert ("masks it by position" in analysis.explain("queries")) == is_causal
    assert is_causal or any(group.size == 7 for group in analysis.groups)
