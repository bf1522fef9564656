"""What stands around `shrink` and inside the model: autocast, inference mode, default types and devices."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import structprune

LOW = torch.bfloat16


class Vector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 32), nn.Linear(32, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu())


class Region(nn.Module):
    """Half precision inside, the head outside; what is handed on is of the type that autocast made."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(6, 32), nn.LayerNorm(32), nn.Linear(32, 32)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=LOW):
            x = self.second(self.norm(self.first(x)).relu())
        assert x.dtype is LOW
        return self.head(x.float())


class Spared(nn.Module):
    """A region that autocast leaves alone, whatever stands around the model."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 32), nn.Linear(32, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        with torch.autocast("cpu", enabled=False):
            x = self.second(x.float()).relu()
        return self.head(x)


class Composite(nn.Module):
    """Operators that consist of others, which autocast sees: a recurrent layer, einsum, attention, in place too."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, 64, batch_first=True)
        self.mix = nn.Parameter(torch.randn(64, 8) / 8)
        self.last, self.head = nn.Linear(8, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=LOW):
            x = torch.einsum("blc,co->blo", self.rnn(x)[0], self.mix)
            x = (x + F.scaled_dot_product_attention(x, x, x)).relu_()
            distance = F.mse_loss(x, torch.zeros_like(x))
            assert distance.dtype is torch.float32
        return self.head(self.last(x.float()).relu()) + distance


REGIONS = (Region, Spared, Composite)


def example(build: Callable[[], nn.Module]) -> Tensor:
    shape = (2, 5, 6) if build is Composite else (4, 6)
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return build()


# -- autocast -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", REGIONS)
@pytest.mark.parametrize("around", [False, True])
def test_a_graph_computes_what_the_class_computes(build: Callable[[], nn.Module], around: bool) -> None:
    model, x = seeded(build).eval(), example(build)
    plan = structprune.plan(model, 0.4, x, output="module", verify="numeric")
    own = plan.apply(model)
    plan.output = "graph"
    graph = plan.apply(model)
    assert type(own) is build and isinstance(graph, torch.fx.GraphModule)
    for each in (x, torch.cat([x, x])):
        with torch.autocast("cpu", dtype=LOW, enabled=around):
            expected, found = own(each), graph(each)
        assert found.dtype is expected.dtype
        assert torch.equal(found, expected)


def test_half_precision_is_not_lost() -> None:
    """Against the same model without its region."""

    class Plain(Region):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.second(self.norm(self.first(x)).relu()))

    model, x = seeded(Region), example(Region)
    graph = structprune.shrink(model, 0, x, output="graph")
    plain = seeded(Plain)
    assert torch.equal(graph(x), model(x))
    assert 1e-5 < (graph(x) - plain(x)).abs().max() < 1e-1


@pytest.mark.parametrize("build", REGIONS)
def test_a_graph_with_regions_is_a_full_citizen(build: Callable[[], nn.Module]) -> None:
    model, x = seeded(build).eval(), example(build)
    graph = structprune.shrink(model, 0.4, x, output="graph")
    expected = graph(x)
    assert torch.equal(copy.deepcopy(graph)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(graph))(x), expected)
    assert "under_autocast" in graph.code
    program = torch.export.export(graph, (x,), strict=False)
    torch.testing.assert_close(program.module()(x), expected, rtol=1e-5, atol=1e-5)
    graph.train()
    graph(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in graph.parameters())
    assert not torch.is_autocast_enabled("cpu")
    again = structprune.shrink(graph.eval(), 0, x, output="graph")
    assert torch.equal(again(x), expected)


def test_an_error_inside_leaves_autocast_as_it_was() -> None:
    graph = structprune.shrink(seeded(Region), 0.4, example(Region), output="graph")
    with pytest.raises(RuntimeError):
        graph(torch.randn(4, 7))
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("output", ["module", "graph"])
def test_verification_knows_the_types_that_a_model_computes_in(output: str) -> None:
    wide = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 8))

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = wide

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=LOW):
                return self.layers(x).float()

    structprune.shrink(Wide(), 0.5, torch.randn(16, 256), output=output, verify="numeric")


def test_regions_in_a_model_whose_path_depends_on_data() -> None:
    class Reading(Region):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=LOW):
                x = self.second(self.norm(self.first(x)).relu())
            return self.head(x.to(self.head.weight)) * (2 if x.abs().sum() > 1e9 else 1)

    model, x = seeded(Reading).eval(), example(Region)
    small = structprune.shrink(model, 0.4, x, verify="numeric")
    assert type(small) is Reading and small.second.out_features < 32


# -- what stands around shrink ------------------------------------------------------------------------


@contextlib.contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def default_device() -> Iterator[None]:
    before = torch.get_default_device()
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None if before == torch.device("cpu") else before)


SURROUNDINGS: dict[str, Callable[[], Any]] = {
    "autocast": lambda: torch.autocast("cpu", dtype=LOW),
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "default dtype": default_dtype,
    "default device": default_device,
}


@pytest.mark.parametrize("output", ["module", "graph"])
@pytest.mark.parametrize("around", SURROUNDINGS)
@pytest.mark.parametrize("build", [Vector, Region])
def test_the_result_is_the_same(build: Callable[[], nn.Module], around: str, output: str) -> None:
    model, x = seeded(build), example(build)
    model.get_parameter("second.weight").requires_grad_(False)
    expected = structprune.shrink(model, 0.5, x, output=output, score="fpgm")
    with SURROUNDINGS[around]():
        found = structprune.shrink(model, 0.5, x, output=output, score="fpgm", verify="numeric")
        plan = structprune.plan(model, 0.5, x, output=output, score="fpgm")
    for result in (found, plan.apply(model)):
        for name, parameter in expected.named_parameters():
            twin = result.get_parameter(name)
            assert torch.equal(twin, parameter) and twin.dtype is parameter.dtype and twin.device == parameter.device
            assert twin.requires_grad == parameter.requires_grad and not twin.is_inference()
        assert torch.equal(result(x), expected(x))
        result(x).square().sum().backward()
        torch.optim.SGD(result.parameters(), lr=0.1).step()


@pytest.mark.parametrize("output", ["module", "graph"])
def test_applying_a_plan_in_inference_mode(output: str) -> None:
    model, x = seeded(Vector), example(Vector)
    plan = structprune.plan(model, 0.5, x, output=output)
    with torch.inference_mode():
        result = plan.apply(model)
        structprune.analyze(model, x)
    assert not any(parameter.is_inference() for parameter in result.parameters())
    result(x).sum().backward()


@pytest.mark.parametrize("output", ["module", "graph"])
def test_a_model_made_in_inference_mode_gives_a_result_that_trains(output: str) -> None:
    with torch.inference_mode():
        model = seeded(lambda: nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3)))
        x = torch.randn(4, 6)
    result = structprune.shrink(model, 0.5, x, output=output).train()
    assert not any(tensor.is_inference() for tensor in result.state_dict().values())
    result(torch.randn(4, 6)).sum().backward()


@pytest.mark.parametrize("output", ["module", "graph"])
def test_inference_mode_inside_a_model(output: str) -> None:
    class Inside(Vector):
        def forward(self, x: Tensor) -> Tensor:
            with torch.inference_mode():
                scale = self.first(x).relu().sum(-1, keepdim=True)
            return self.head(self.second(self.first(x).relu()).relu()) * scale.clone()

    model, x = seeded(Inside), example(Vector)
    result = structprune.shrink(model, 0.5, x, output=output, verify="numeric")
    result(x).sum().backward()
    assert all(parameter.grad is not None for parameter in result.parameters())


# -- what forward makes out of sight ------------------------------------------------------------------


@pytest.mark.parametrize("output", ["module", "graph"])
def test_tensors_like_others_and_data_are_recorded_without_a_real_run(output: str) -> None:
    """Torch detaches both below the recorder; the gradient must not flow through `.data`."""

    class Like(Vector):
        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            written = torch.zeros_like(x)
            written[:, :] = x
            scale = x.data.abs().sum(-1, keepdim=True)
            return self.head(self.second((written + torch.ones_like(x) * x) / scale).relu())

    model, x = seeded(Like).double(), example(Vector).double()
    assert not structprune.analyze(model, x).frontend.capture.is_real  # type: ignore[attr-defined]
    result = structprune.shrink(model, 0, x, output=output, verify="numeric")
    small = structprune.shrink(model, 0.4, x, output=output, verify="numeric")
    assert small.get_parameter("first.weight").shape[0] < 32
    for each in (model, result):
        each(x).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(result.get_parameter(name).grad, parameter.grad, rtol=1e-9, atol=1e-12)
