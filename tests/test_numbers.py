"""Numbers with provenance: what a model holds is changed where it is a size that changes, and nowhere else."""

from __future__ import annotations

import math
import operator
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import structprune
from structprune.errors import UnsupportedModel
from structprune.frontends.torch.record.capture import capture
from structprune.frontends.torch.record.expression import Attribute, Term, evaluate, leaves, solved
from structprune.frontends.torch.record.number import Ledger, Node, Number, Real

TOLERANCE = 1e-9


def number(value: int, name: str = "n", ledger: Ledger | None = None) -> Any:
    return Number(Node(Attribute((), name), value, ledger or Ledger()))


ARITHMETIC = [operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, operator.truediv]


@pytest.mark.parametrize("how", ARITHMETIC)
@given(a=st.integers(1, 300), b=st.integers(1, 300))
def test_numbers_compute_as_ints(how: Callable[[Any, Any], Any], a: int, b: int) -> None:
    for left, right in ((number(a), b), (a, number(b)), (number(a), number(b, "m"))):
        assert how(left, right) == how(a, b)


@given(a=st.integers(-50, 50), b=st.integers(-50, 50))
def test_numbers_compare_as_ints(a: int, b: int) -> None:
    for how in (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge):
        assert how(number(a), b) is how(a, b)


def test_numbers_pass_for_ints() -> None:
    n = number(12)
    assert isinstance(n, int) and isinstance(n / 2, float)
    assert list(range(n)) == list(range(12)) and [*"abcdefghijklm"][n] == "m" and f"{n:03d}" == "012"
    assert math.floor(n / 5) == 2 and divmod(n, 5) == (2, 2) and max(n, 3) == 12 and -n == -12
    assert type(pickle.loads(pickle.dumps(n))) is int
    assert isinstance(n**-0.5, Real) and float(n**-0.5) == 12**-0.5
    with pytest.raises(TypeError, match="unhashable"):
        hash(n)


def test_expressions_say_where_numbers_come_from() -> None:
    term = (number(64, "dim") // number(4, "heads")).node.expression
    assert str(term) == "(model.dim // model.heads)"
    assert {leaf.name for leaf in leaves(term)} == {"dim", "heads"}  # type: ignore[union-attr]


@given(inner=st.integers(1, 60), by=st.integers(1, 9), wanted=st.integers(1, 60))
def test_solving_inverts(inner: int, by: int, wanted: int) -> None:
    leaf = Attribute((), "n")
    for how in ("add", "sub", "mul", "floordiv"):
        expression = Term(how, (leaf, by))
        found = solved(expression, leaf, wanted, lambda each: 0, lambda each: inner)
        if found is not None:
            assert evaluate(expression, lambda each, found=found: found) == wanted  # type: ignore[misc]


class Encoder(nn.Module):
    """Every one of these numbers is 64; two are widths."""

    def __init__(self) -> None:
        super().__init__()
        self.dim, self.max_len, self.top_k, self.warmup = 64, 64, 64, 64
        self.settings = SimpleNamespace(dim=64, window=64)
        self.up, self.inner, self.down = nn.Linear(8, 64), nn.Linear(64, 64), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, : self.max_len]
        h = self.up(x).relu().view(x.shape[0], -1, self.dim)
        h = self.inner(h).view(x.shape[0], -1, self.settings.dim)
        return self.down(h * self.warmup if self.training else h)

    def generate(self, x: Tensor) -> Tensor:
        return self(x).flatten(1)[:, : self.top_k]


def test_only_sizes_change() -> None:
    model, x = Encoder().double().eval(), torch.randn(2, 10, 8, dtype=torch.float64)
    small = structprune.shrink(model, 0.5, x, output="module")
    assert small.dim == small.up.out_features < 64 and small.settings.dim == small.inner.out_features < 64
    assert small.max_len == small.top_k == small.warmup == small.settings.window == 64
    long = torch.randn(1, 100, 8, dtype=torch.float64)
    assert small(long).shape == model(long).shape == (1, 64, 3)
    assert small.generate(long).shape == model.generate(long).shape
    assert model.dim == model.settings.dim == 64


def test_one_number_for_two_widths_is_known_before_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dim = 32
            self.up, self.inner, self.out = nn.Linear(6, 32), nn.Linear(32, 32), nn.Linear(32, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.up(x).view(-1, self.dim).relu()
            return self.out(self.inner(h).view(-1, self.dim).relu())

    tried: list[int] = []
    from structprune.frontends.torch.write import adapt

    check = adapt.Adapter.check
    monkeypatch.setattr(adapt.Adapter, "check", lambda *args: (tried.append(1), check(*args))[1])
    model, x = Residual().double().eval(), torch.randn(4, 6, dtype=torch.float64)
    small = structprune.shrink(model, 0.39, x, output="module")
    assert small.up.out_features == small.inner.out_features == small.dim < 32
    assert len(tried) == 1


def test_an_attribute_of_a_depthwise_convolution_stays() -> None:
    class Depthwise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Conv1d(3, 16, 1), nn.Conv1d(16, 2, 1)
            self.mix = nn.Conv1d(16, 16, 16, groups=16, padding=8)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.mix(self.up(x)))

    model, x = Depthwise().double().eval(), torch.randn(2, 3, 20, dtype=torch.float64)
    small = structprune.shrink(model, 0.5, x, output="module")
    assert small.mix.kernel_size == (16,) and small.mix.padding == (8,)
    assert small.mix.groups == small.mix.weight.shape[0] < 16


def test_a_graph_follows_expressions_of_its_inputs_sizes() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down, self.most = nn.Linear(4, 16), nn.Linear(16, 3), 9

        def forward(self, x: Tensor) -> Tensor:
            h = self.up(x).view(x.shape[0], x.shape[1], 16)
            h = h[:, : x.shape[1] // 2 + 1][:, : self.most]
            return self.down(F.pad(h, (0, 0, 0, x.shape[1] % 3))) / x.shape[1]

    model, x = Half().double().eval(), torch.randn(2, 7, 4, dtype=torch.float64)
    plan = structprune.plan(model, 0.3, x, output="graph")
    small = plan.apply(model)
    with torch.no_grad():
        model.up.weight[:], model.up.bias[:] = 0.0, 1.0
        model.down.bias.zero_()
    for length in (1, 2, 8, 20, 31):
        given = torch.randn(3, length, 4, dtype=torch.float64)
        assert small(given).shape == model(given).shape


def test_a_branch_is_reported() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.long, self.down = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.up(x)
            if x.shape[1] > 100:
                h = self.long(h)
            return self.down(h)

    model, x = Branch().double().eval(), torch.randn(2, 5, 4, dtype=torch.float64)
    report = structprune.plan(model, 0.3, x).report
    assert report is not None and "input_0.shape[1] > 100 was False" in str(report) and "long.weight" in str(report)
    note = structprune.plan(model, 0.3, x, output="graph").report
    assert note is not None and "bound to what the code decided" in note.note


def test_a_key_of_a_dict_takes_that_number_alone_out() -> None:
    class Layered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.index, self.dim, self.scales = 3, 64, {3: 2.0}
            self.up, self.down = nn.Linear(4, 64), nn.Linear(64, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.up(x).view(-1, self.dim) * self.scales[self.index])

    model, x = Layered().double().eval(), torch.randn(3, 4, dtype=torch.float64)
    assert capture(model, ((x,), {})).plain.attributes == {(Layered, "index")}
    small = structprune.shrink(model, 0.4, x, output="module")
    assert small.dim == small.up.out_features < 64 and small.index == 3


def test_code_that_asks_for_the_type_of_a_number_gets_no_wrong_graph() -> None:
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n = 2
            self.up, self.down = nn.Linear(4, 16), nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.up(x)
            return self.down(h * self.n if type(self.n) is int else h)

    with pytest.raises(UnsupportedModel, match="types of its numbers"):
        structprune.shrink(Asks().double().eval(), 0.3, torch.randn(3, 4, dtype=torch.float64), output="graph")


def test_a_generator_of_its_own_is_no_part_of_a_graph() -> None:
    class Draws(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down, self.seed = nn.Linear(4, 64), nn.Linear(64, 2), 64

        def forward(self, x: Tensor) -> Tensor:
            drawn = torch.rand(1, generator=torch.Generator().manual_seed(self.seed), dtype=x.dtype)
            return self.down(self.up(x) * drawn)

    model, x = Draws().double().eval(), torch.randn(3, 4, dtype=torch.float64)
    assert type(structprune.shrink(model, 0.3, x)) is Draws
    with pytest.raises(UnsupportedModel, match="Generator"):
        structprune.shrink(model, 0.3, x, output="graph")
