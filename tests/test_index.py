"""Axes read by constant indices: what becomes of the numbers, wherever they are kept."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import structprune
from structprune.errors import UnsupportedModel, UnsupportedRatio
from structprune.passes.score import score
from structprune.testing import check

TOLERANCE = 1e-9  # a share of the largest output, in float64
WIDTH = 16
ORDER = (5, 0, 11, 2, 7, 1, 10, 3, 8, 4, 9, 6, 15, 13, 14, 12)
SOME = (3, 1, -2, 1, 5, 9, 2, 6, 5, 3, 8, -1)


class Reads(nn.Module):
    """A convolution, whatever reads its channels, and another one."""

    def __init__(self, out: int = WIDTH) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, WIDTH, 1), nn.Conv2d(out, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.read(self.first(x).relu()))

    def read(self, x: Tensor) -> Tensor:
        raise NotImplementedError  # each class below gives its own


class Stored(Reads):
    def __init__(self, index: Any = SOME, dtype: torch.dtype = torch.int64, persistent: bool = True) -> None:
        super().__init__(len(index))
        self.register_buffer("index", torch.tensor(index, dtype=dtype), persistent=persistent)

    def read(self, x: Tensor) -> Tensor:
        return x[:, self.index]


class Listed(Reads):
    def read(self, x: Tensor) -> Tensor:
        return x[:, list(ORDER)]


def made(kind: type[Reads], *args: Any, **options: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(*args, **options).double().eval()


def image(batch: int = 2, size: int = 5) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(batch), dtype=torch.float64)


def halved(model: nn.Module, output: str = "auto") -> nn.Module:
    """Every second index of each group, by a plan, checked against zeroing."""
    found = structprune.analyze(model, image()).groups
    plan = structprune.plan(model, 0, image(), output=output, verify="numeric")
    plan.keep = {group.name: list(range(0, group.size, 2)) for group in found}
    plan.sizes = {group.name: group.size for group in found}
    small = plan.apply(model)
    assert small.first.weight.shape[0] < WIDTH
    return small


def groups(model: nn.Module) -> list[int]:
    return [group.size for group in check(model, image(), tolerance=TOLERANCE).groups]


# -- stored ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["module", "graph"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("persistent", [True, False])
def test_a_stored_index_gets_new_numbers(output: str, dtype: torch.dtype, persistent: bool) -> None:
    """Its type, its place and whether it is saved stay; negative numbers count from the end of what is left."""
    model = made(Stored, SOME, dtype, persistent)
    assert groups(model) == [7, 6, 3]
    small = halved(model, output)
    assert small.index.dtype == dtype and ("index" in small.state_dict()) == persistent
    assert model.index.tolist() == list(SOME)
    kept = [k for k in range(WIDTH) if any(torch.equal(row, model.first.weight[k]) for row in small.first.weight)]
    expected = [kept.index(number % WIDTH) for number in SOME if number % WIDTH in kept]
    assert small.index.tolist() == expected
    assert small(image(3, 4)).shape == model(image(3, 4)).shape
    assert small.last.weight.shape[1] == len(expected) < len(SOME)


def test_numbers_change_though_nothing_is_read_less() -> None:
    """Only channels that nothing reads go: the index keeps its length."""
    model = made(Stored)
    (unread,) = (group.name for group in structprune.analyze(model, image()).groups if group.size == 7)
    plan = structprune.plan(model, 0, image(), verify="numeric", output="module")
    plan.keep, plan.sizes = {unread: [3]}, {unread: 7}
    small = plan.apply(model)
    assert len(small.index) == len(SOME) and int(small.index.max()) == small.first.weight.shape[0] - 1 == 9
    assert torch.allclose(small(image()), model(image()), rtol=1e-12)


class Twins(Reads):
    """One buffer under two names, which reads two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Conv2d(3, WIDTH, 1)
        self.register_buffer("one", torch.tensor(ORDER))
        self.register_buffer("two", self.one)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu()[:, self.one] * self.branch(x)[:, self.two])


@pytest.mark.parametrize("output", ["module", "graph"])
def test_a_shared_index_stays_one(output: str) -> None:
    model = made(Twins)
    assert groups(model) == [WIDTH]
    small = halved(model, output)
    assert small.one is small.two and sorted(small.one.tolist()) == list(range(len(small.one)))


@pytest.mark.parametrize("output", ["module", "graph"])
def test_it_can_be_copied_pickled_trained_and_shrunk_again(output: str) -> None:
    small = halved(made(Stored, ORDER), output)
    buffer = io.BytesIO()
    torch.save(small, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(small), torch.load(buffer, weights_only=False)):
        assert torch.equal(twin(image()), small(image()))
    small.train()(image()).sum().backward()
    assert small.first.weight.grad is not None and bool(small.first.weight.grad.any())
    again = halved(small.eval())
    assert again.first.weight.shape[0] == len(again.index) < small.first.weight.shape[0]


def test_it_can_be_exported() -> None:
    small = halved(made(Stored))
    exported = torch.export.export(small, (image(),)).module()
    assert torch.allclose(exported(image()), small(image()), rtol=1e-12)


# -- where the numbers serve something else too ------------------------------------------------------


class Counted(Stored):
    """The numbers are added up, too."""

    def read(self, x: Tensor) -> Tensor:
        return x[:, self.index] + self.index.sum()


class Returned(Stored):
    """A caller sees the numbers."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x), self.index.view(-1, 1)


class Shifted(Stored):
    """The numbers are computed from the stored ones."""

    def read(self, x: Tensor) -> Tensor:
        return x[:, (self.index + 5) % WIDTH]


@pytest.mark.parametrize("kind", [Counted, Returned, Shifted, Listed])
def test_what_cannot_get_new_numbers_is_held_in_its_class_and_replaced_in_a_graph(kind: type[Reads]) -> None:
    model = made(kind) if kind is Listed else made(kind, ORDER)
    assert groups(model) == [WIDTH]
    with pytest.raises(UnsupportedModel, match=r"cannot be a .*: index at .*test_index\.py:"):
        halved(model, "module")
    small = halved(model, "graph")
    if kind is not Listed:
        assert torch.equal(small.index, model.index)
    for twin in (small, copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        results = twin(image(3, 4))
        assert (results[0] if kind is Returned else results).shape == (3, 4, 4, 4)


class Computed(Reads):
    """The order follows from the width, whatever it is."""

    def read(self, x: Tensor) -> Tensor:
        return x[:, torch.arange(x.shape[1]).flip(0)]


def test_an_index_that_follows_the_width_keeps_the_class() -> None:
    """What its code makes is compared, not how."""
    small = halved(made(Computed), "module")
    assert type(small) is Computed


# -- indices that are not constant -------------------------------------------------------------------


class ByInput(Reads):
    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        return self.last(self.first(x).relu()[:, index % WIDTH])


class ByChance(Reads):
    def read(self, x: Tensor) -> Tensor:
        return x[:, torch.randperm(WIDTH)]


class ByState(Stored):
    """Each run reads the next order."""

    def read(self, x: Tensor) -> Tensor:
        x = x[:, self.index]
        self.index.copy_(self.index.roll(1))
        return x


class ByFlag(Reads):
    """An index into which a number from the inputs is written."""

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        order = torch.arange(WIDTH)
        rows = order.view(4, 4)
        order[:1].copy_(index[:1])
        return self.last(self.first(x).relu()[:, rows.flatten()])


class BySize(Reads):
    def read(self, x: Tensor) -> Tensor:
        return x[:, [(k + x.shape[2]) % WIDTH for k in range(WIDTH)]]


@pytest.mark.parametrize("kind", [ByInput, ByChance, ByState, ByFlag, BySize])
def test_an_index_that_other_runs_change_freezes(kind: type[Reads]) -> None:
    model = made(kind, ORDER) if kind is ByState else made(kind)
    index = torch.arange(WIDTH).flip(0)
    inputs: Any = (image(), index) if kind in (ByInput, ByFlag) else image()
    analysis = structprune.analyze(model, inputs)
    assert analysis.groups == []
    assert "index" in analysis.explain("first.weight")


def test_an_index_out_of_range_freezes() -> None:
    """Nothing is read while recording, so torch does not complain."""
    assert structprune.analyze(made(Stored, (*SOME, WIDTH)), image()).groups == []


# -- in training -------------------------------------------------------------------------------------


class AlsoReads(Stored):
    """In training the index reads another tensor too."""

    def read(self, x: Tensor) -> Tensor:
        y = x[:, self.index]
        return y + torch.rand_like(y) * x.tanh()[:, self.index] if self.training else y


class AlsoCounts(Stored):
    """In training the numbers themselves are added."""

    def read(self, x: Tensor) -> Tensor:
        x = x[:, self.index]
        return x + self.index.sum() if self.training else x


def test_an_index_that_reads_in_training_too() -> None:
    small = halved(made(AlsoReads, ORDER), "graph")
    assert sorted(small.index.tolist()) == list(range(len(small.index)))
    assert small.train()(image()).shape == small.eval()(image()).shape
    assert not torch.equal(small.train()(image()), small.eval()(image()))


def test_an_index_that_does_more_in_training_says_so() -> None:
    model = made(AlsoCounts, ORDER)
    plan = structprune.plan(model, 0.25, image(), of="channels", output="graph")
    assert "In training it computes what it does in eval mode: there it does more with an index" in plan.report.note
    small = plan.apply(model)
    assert torch.equal(small.train()(image()), small.eval()(image()))


# -- tables ------------------------------------------------------------------------------------------


class Table(nn.Module):
    """Learned positions, read by a stored index or by the length: those that are left out, other inputs may read."""

    def __init__(self, by: str) -> None:
        super().__init__()
        self.by = by
        self.first, self.last = nn.Linear(6, 24), nn.Linear(24, 5)
        self.table = nn.Parameter(torch.randn(WIDTH, 24))
        self.register_buffer("places", torch.tensor([3, 9, 1, 12, 7]))

    def forward(self, x: Tensor) -> Tensor:
        places = self.places if self.by == "stored" else torch.arange(x.shape[1])
        table = self.table[None].detach()[0] if self.by == "view" else self.table
        return self.last(self.first(x) + table[places])


@pytest.mark.parametrize("by", ["stored", "length", "view"])
def test_the_rows_of_a_table_stay(by: str) -> None:
    torch.manual_seed(0)
    model = Table(by).double()
    analysis = check(model, torch.randn(2, 5, 6).double(), tolerance=TOLERANCE)
    assert [group.size for group in analysis.groups] == [24]
    assert "reads it by index" in analysis.explain("table")


# -- what looks at axes ------------------------------------------------------------------------------


def test_scores_follow_the_order() -> None:
    """Filter i goes with the column of the layer behind at which the index says i."""
    model = made(Stored, ORDER)
    (group,) = structprune.analyze(model, image()).groups
    found = score([group], {name: each.detach() for name, each in model.named_parameters()}, "l2")[group.dim]
    squares = model.first.weight.flatten(1).square().sum(1) + model.first.bias.square()
    squares[torch.tensor(ORDER)] += model.last.weight.flatten(2).square().sum((0, 2))
    np.testing.assert_allclose(found, squares.detach().sqrt().numpy(), rtol=1e-12)


def test_widths_in_another_order_are_aligned() -> None:
    small = structprune.shrink(made(Stored, ORDER), 0.5, image(), of="channels", align=4)
    assert len(small.index) == 8
    with pytest.raises(UnsupportedRatio):
        structprune.shrink(made(Stored, ORDER), 0.4, image(), of="channels", align=4)


def test_the_analysis_shows_the_order() -> None:
    explained = structprune.analyze(made(Stored, ORDER), image()).explain("last.weight")
    assert "axis 1: ~16" in explained and "first.weight through" in explained
    assert "index is tied" not in explained
