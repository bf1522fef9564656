"""Models that are long rather than wide: thousands of operators, parts, parameters. Steps are counted, not seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import structprune
from structprune.algebra import entries
from structprune.algebra.axis import Axis, Dim, Product, Sum, kept_indices, kept_size
from structprune.algebra.system import System
from structprune.views.analysis import Analysis


class Dense(nn.Module):
    """h = cat([h, f(norm(h))]), as DenseNet has it."""

    def __init__(self, layers: int, growth: int = 2) -> None:
        super().__init__()
        widths = [4 + growth * k for k in range(layers)]
        self.start = nn.Linear(3, 4)
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width in widths)
        self.layers = nn.ModuleList(nn.Linear(width, growth) for width in widths)
        self.head = nn.Linear(4 + growth * layers, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.start(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            h = torch.cat([h, layer(norm(h).relu())], 1)
        out: Tensor = self.head(h)
        return out


class Chain(nn.Module):
    """One width from a first layer to a last one, through whatever happens to it in between."""

    def __init__(self, between: Callable[[Tensor], Tensor], width: int = 24, narrow: int | None = None) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, width), nn.Linear(narrow or width, 2)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.between(self.first(x)))
        return out


class Scales(nn.Module):
    """A residual width that thousands of parameters share."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(8) + 0.01 * k) for k in range(count))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for scale in self.scales:
            h = h + scale
        out: Tensor = self.last(h)
        return out


def analyzed(model: nn.Module) -> Analysis:
    return structprune.analyze(model.eval(), torch.randn(2, 3), progress=False)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How often an axis is resolved, which every step of the solver does."""
    count = [0]
    resolve = System.resolve

    def counting(system: System, axis: Axis) -> Axis:
        count[0] += 1
        return resolve(system, axis)

    with monkeypatch.context() as patched:
        patched.setattr(System, "resolve", counting)
        yield count


def steps(work: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> int:
    with counted(monkeypatch) as count:
        work()
    return count[0]


# -- sums of sums of sums ----------------------------------------------------------------------------


def of_two(outer: int, inner: int) -> Axis:
    return Product((Dim(outer), Dim(inner)))


def nested(count: int) -> tuple[Axis, list[Dim]]:
    dims = [Dim(2) for _ in range(count)]
    axis: Axis = dims[0]
    for dim in dims[1:]:
        axis = Sum((axis, dim))
    return axis, dims


def test_an_axis_of_thousands_of_parts() -> None:
    system = System()
    axis, dims = nested(5000)
    whole = system.expand(axis)
    assert isinstance(whole, Sum)
    assert whole.parts == tuple(dims) == tuple(system.leaves(axis))
    kept = {dims[k]: np.array([1]) for k in range(0, 5000, 2)}
    assert kept_size(whole, {dim: 1 for dim in kept}) == 7500
    indices = kept_indices(whole, kept)
    assert indices is not None
    assert indices.tolist() == [k for k in range(10000) if k % 4]


def test_two_chains_that_meet_at_every_link(monkeypatch: pytest.MonkeyPatch) -> None:
    def meet(count: int) -> None:
        system = System()
        a: Axis = Dim(2)
        b: Axis = Dim(2)
        for _ in range(count):
            system.unify(a, b)
            a, b = Sum((a, Dim(2))), Sum((b, Dim(2)))
        system.unify(a, b)
        assert list(system.leaves(a)) == list(system.leaves(b))
        assert len(set(system.leaves(a))) == count + 1
        assert not system.frozen

    short, long = steps(lambda: meet(500), monkeypatch), steps(lambda: meet(2000), monkeypatch)
    assert long < 4.5 * short


def test_many_cuts_of_one_variable() -> None:
    """Each slice leaves a `before` that is one variable until the parts before it are known."""
    system = System()
    whole = Dim(4000)
    for k in range(0, 4000, 4):
        before, taken, after = Dim(k), Dim(4), Dim(3996 - k)
        system.unify(whole, Sum(tuple(part for part in (before, taken, after) if part.size)))
    assert [leaf.size for leaf in system.leaves(whole)] == [4] * 1000
    assert not system.frozen


def test_what_fills_a_variable_may_be_that_variable_in_another_order() -> None:
    """`(1 + turned)` meets `(x + 1)`: bound to its own parts, x would contain itself."""
    system = System()
    one, x = Dim(1), Dim(3)
    turned = system.pick(Sum((x, one)), np.array([3, 2, 1, 0]))
    system.unify(turned, Sum((x, one)))
    assert kept_size(system.expand(x), {}) == 3
    assert all(leaf in system.frozen or leaf.size <= 2 for leaf in system.leaves(x))


def test_an_alias_lasts_only_where_all_was_made_one() -> None:
    """What did not nest is frozen, and the two axes are still two."""
    system = System()
    a, b = Sum((Dim(4), of_two(4, 3))), Sum((Dim(4), of_two(3, 4)))
    system.unify(a, b)
    assert system.resolve(a) is a
    assert system.resolve(b) is b
    assert {leaf.size for leaf in system.leaves(a) if leaf in system.frozen} == {3, 4}


def test_an_empty_part_meets_nothing() -> None:
    system = System()
    system.unify(Sum((Dim(0), Dim(3), Dim(2))), Sum((Dim(2), Dim(0), Dim(3))))
    assert not system.frozen


def test_orders_of_orders_end_in_a_freeze() -> None:
    """`h = cat([h[order], f(h)])` over products: deeper than anybody reads, the order is given up, not the process."""
    system = System()
    generator = np.random.default_rng(0)
    axis = of_two(2, 3)
    for _ in range(300):
        index = generator.permutation(axis.size).astype(np.int64)
        axis = Sum((system.pick(axis, index), Dim(2)))
    assert system.expand(axis).size == axis.size
    assert {cause.reason for cause in system.frozen.values()} == {"is read by index, across its factors"}
    assert entries.orders_inside(system, axis) <= entries.MOST_ORDERS
    assert not all(leaf in system.frozen for leaf in system.leaves(axis))


# -- models ------------------------------------------------------------------------------------------


def test_dense_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each width is read by every layer after it: steps grow with the entries of the axes, no faster."""
    short, long = Dense(100), Dense(400)
    few, many = steps(lambda: analyzed(short), monkeypatch), steps(lambda: analyzed(long), monkeypatch)
    assert many < 20 * few
    analysis = analyzed(long)
    assert len(analysis.groups) == 401
    assert {group.size for group in analysis.groups} == {2, 4}
    assert len(analysis.groups[0].members) == 2 + 5 * 400 + 1


def test_removing_is_zeroing_in_a_long_chain() -> None:
    model = Dense(60).double().eval()
    x = torch.randn(3, 3, dtype=torch.float64)
    small = structprune.shrink(model, 0.3, x, verify="numeric", progress=False)
    assert type(small) is Dense
    assert small(x).shape == (3, 2)


def test_a_chain_of_two_thousand_concatenations() -> None:
    class Long(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 2), nn.Linear(2 * 2001, 2)
            self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(2000))

        def forward(self, x: Tensor) -> Tensor:
            h = first = self.first(x)
            for layer in self.layers:
                h = torch.cat([h, layer(first).relu()], 1)
            out: Tensor = self.last(h)
            return out

    model = Long().eval()
    analysis = analyzed(model)
    assert len(analysis.groups) == 2001
    small = structprune.shrink(model, 0.3, torch.randn(2, 3), verify="shapes", output="graph", progress=False)
    assert small(torch.randn(2, 3)).shape == (2, 2)


def sliced(x: Tensor) -> Tensor:
    for _ in range(1000):
        x = x[:, 1:]
    return x


def reshaped(x: Tensor, times: int = 2500) -> Tensor:
    for _ in range(times):
        x = x.view(-1, 4, 6).view(-1, 24)
    return x


def added(x: Tensor) -> Tensor:
    for _ in range(5000):
        x = x + x
    return x


def passed_on(x: Tensor, times: int = 5000) -> Tensor:
    for _ in range(times):
        x = x.relu()
    return x


@pytest.mark.parametrize(
    ("between", "width", "narrow", "sizes"),
    [
        (passed_on, 24, 24, [24]),
        (added, 24, 24, [24]),
        (reshaped, 24, 24, [4, 6]),
        (sliced, 1008, 8, [8]),
    ],
    ids=["pointwise", "residual", "reshape", "slice"],
)
def test_thousands_of_operators(
    between: Callable[[Tensor], Tensor], width: int, narrow: int, sizes: list[int], tmp_path: Path
) -> None:
    analysis = analyzed(Chain(between, width, narrow))
    entering = [group.size for group in analysis.groups if "last.weight" in {m.parameter for m in group.members}]
    assert entering == sizes
    assert "last.weight" in analysis.explain("first.weight")
    assert len(str(analysis)) < 10_000
    analysis.draw(tmp_path / "chain.svg")
    assert (tmp_path / "chain.svg").stat().st_size > 0


def test_thousands_of_parameters_in_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    short, long = Scales(500), Scales(2000)
    assert steps(lambda: analyzed(long), monkeypatch) < 4.5 * steps(lambda: analyzed(short), monkeypatch)
    analysis = analyzed(Scales(5000))
    (group,) = analysis.groups
    assert len(group.members) == 2 + 5000 + 1
    assert "scales.4999 through linear -> add\n" in analysis.explain("first.bias")


def test_a_sum_of_two_thousand_parts() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(nn.Linear(3, 2) for _ in range(2000))
            self.last = nn.Linear(4000, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(torch.cat([part(x) for part in self.parts], 1))
            return out

    analysis = analyzed(Wide())
    assert [group.size for group in analysis.groups] == [2] * 2000
    starts = [member.places[0][0] for group in analysis.groups for member in group.members if member.axis == 1]
    assert starts == list(range(0, 4000, 2))


def test_many_splits_of_one_axis() -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 2000)
            self.parts = nn.ModuleList(nn.Linear(2, 2) for _ in range(1000))

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            y = x.new_zeros(x.shape[0], 2)
            for k, part in enumerate(self.parts):
                y = y + part(h[:, 2 * k : 2 * k + 2])
            return y

    analysis = analyzed(Split())
    assert [group.size for group in analysis.groups] == [2] * 1000


def test_a_chain_of_concat_nodes(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    nodes, weights = [], []

    def gemm(x: str, name: str, entering: int, leaving: int) -> str:
        weight = generator.standard_normal((leaving, entering)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"{name}.weight"))
        nodes.append(helper.make_node("Gemm", [x, f"{name}.weight"], [name], name=name, transB=1))
        return name

    h = gemm("x", "first", 3, 2)
    for k in range(600):
        part = gemm("first", f"part{k}", 2, 2)
        nodes.append(helper.make_node("Concat", [h, part], [f"h{k}"], name=f"concat{k}", axis=1))
        h = f"h{k}"
    gemm(h, "last", 2 * 601, 2)
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("last", TensorProto.FLOAT, [1, 2])],
        weights,
    )
    path = tmp_path / "chain.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    analysis = structprune.analyze(path, progress=False)
    assert [group.size for group in analysis.groups] == [2] * 601
    last = {m.places[0][0] for group in analysis.groups for m in group.members if m.parameter == "last.weight"}
    assert last == set(range(0, 2 * 601, 2))
    assert "last.weight through Gemm -> Concat\n" in analysis.explain("first.weight") + "\n"
