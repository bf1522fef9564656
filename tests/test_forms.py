"""Models in other forms, calls in odd surroundings, results that hold tensors where nobody would look."""

from __future__ import annotations

import functools
import types
from collections import UserDict, deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

import structprune
from structprune.errors import InvalidArgument, UnsupportedModel
from structprune.frontends.torch.record.result import results_in

pytestmark = pytest.mark.filterwarnings("ignore:the result is a torch.fx.GraphModule")


class Base(nn.Module):
    """What is between two layers is `h`; a further layer is free."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.first, self.second = nn.Linear(6, 40), nn.Linear(40, 16), nn.Linear(16, 3)

    def hidden(self, x: Tensor) -> Tensor:
        return self.first(self.enter(x).relu()).relu()

    def forward(self, x: Tensor) -> Any:
        h = self.hidden(x)
        return self.given(h, self.second(h))

    def given(self, h: Tensor, y: Tensor) -> Any:
        return y


def built(kind: Callable[[], nn.Module] = Base) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return kind().double().eval()


def example() -> Tensor:
    return torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


# -- results ------------------------------------------------------------------------------------------


class Plain:
    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


class Slotted:
    __slots__ = ("h", "y")

    def __init__(self, h: Tensor, y: Tensor) -> None:
        self.h, self.y = h, y


@dataclass
class Data:
    h: Tensor
    y: Tensor


class Named(NamedTuple):
    h: Tensor
    y: Tensor


def with_attribute(h: Tensor, y: Tensor) -> Tensor:
    y.hidden = h  # type: ignore[attr-defined]
    return y


def in_a_ring(h: Tensor, y: Tensor) -> Plain:
    made = Plain(h=h, y=y)
    made.own = made  # type: ignore[attr-defined]
    return made


class Sized:
    """A collection of its own kind."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Any:
        return iter(self.items)

    def __contains__(self, item: object) -> bool:
        return any(item is each for each in self.items)


HOLDING: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "namespace": lambda h, y: types.SimpleNamespace(h=h, y=y),
    "object": lambda h, y: Plain(h=h, y=y),
    "object in a tuple": lambda h, y: (y, [Plain(h={"x": h})]),
    "slots": Slotted,
    "ring": in_a_ring,
    "user dict": lambda h, y: UserDict(h=h, y=y),
    "mapping": lambda h, y: types.MappingProxyType({"h": h, "y": y}),
    "values": lambda h, y: {"h": h, "y": y}.values(),
    "deque": lambda h, y: deque([h, y]),
    "collection": Sized,
    "dataclass": Data,
    "named tuple": Named,
    "set in a list": lambda h, y: [{h}, y],
    "attribute": with_attribute,
    "attribute of a part": lambda h, y: (with_attribute(h, y), 1),
    "closure": lambda h, y: (y, lambda: h),
    "default": lambda h, y: (y, functools.partial(print, h)),
    "method": lambda h, y: (y, Slotted(h, y).__init__),
    "distribution": lambda h, y: (y, torch.distributions.Normal(h, torch.ones_like(h), validate_args=False)),
}


@pytest.mark.parametrize("name", HOLDING)
def test_tensors_are_found_wherever_a_result_holds_them(name: str) -> None:
    class Holding(Base):
        def given(self, h: Tensor, y: Tensor) -> Any:
            return HOLDING[name](h, y)

    model, x = built(Holding), example()
    small = structprune.shrink(model, 0.3, x, verify="numeric")
    expected, found = list(results_in(model(x))), list(results_in(small(x)))
    assert len(expected) >= 2
    assert [each.shape for each in found] == [each.shape for each in expected]
    assert small.first.out_features == 16 and small.enter.out_features < 40
    assert any(each.shape == (4, 16) for each in found)
    frozen = structprune.analyze(model, x).frozen
    assert any("reaches the model's output" in cause.reason for cause, _ in frozen)


MADE_BY_GRAPHS = ("named tuple",)


@pytest.mark.parametrize("name", ["object", "namespace", "attribute", "deque", "closure", *MADE_BY_GRAPHS])
def test_graphs_make_what_they_can_and_refuse_the_rest(name: str) -> None:
    class Holding(Base):
        def given(self, h: Tensor, y: Tensor) -> Any:
            return HOLDING[name](h, y)

    model, x = built(Holding), example()
    if name in MADE_BY_GRAPHS:
        assert type(structprune.shrink(model, 0.3, x, output="graph")(x)) is type(model(x))
    else:
        with pytest.raises(UnsupportedModel, match="which a graph cannot make"):
            structprune.shrink(model, 0.3, x, output="graph")


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda h, y: (y, h.detach().numpy()), "numpy array"),
        (lambda h, y: Plain(y=y, h=[np.asarray(h.tolist())]), "numpy array"),
        (lambda h, y: (each for each in (h, y)), "generator, which can be read only once"),
        (lambda h, y: {"y": y, "rest": iter([h])}, "list_iterator, which can be read only once"),
    ],
)
def test_results_of_which_nothing_can_be_said_are_refused(make: Callable[..., Any], problem: str) -> None:
    class Holding(Base):
        def given(self, h: Tensor, y: Tensor) -> Any:
            return make(h, y)

    with pytest.raises(UnsupportedModel, match=problem):
        structprune.shrink(built(Holding), 0.3, example())


def test_packed_sequences_come_and_go() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.mix, self.leave = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)

        def forward(self, x: PackedSequence) -> PackedSequence:
            return x._replace(data=self.leave(self.mix(self.enter(x.data).relu()).relu()))

    x = pack_padded_sequence(torch.randn(2, 5, 6).double(), torch.tensor([5, 3]), batch_first=True)
    model = built(Packed)
    analysis = structprune.analyze(model, (x,))
    assert len(analysis.groups) == 2


# -- data decide --------------------------------------------------------------------------------------


class Decides(Base):
    def __init__(self, decide: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.decide = decide

    def given(self, h: Tensor, y: Tensor) -> Tensor:
        return y * 2 if self.decide(h) else y


DECIDING: tuple[Callable[[Tensor], Any], ...] = (
    lambda h: h.sum().item() > 1e9,
    lambda h: bool(h.sum() > 0),
    lambda h: len(h.tolist()) > 9,
    lambda h: h.detach().numpy().max() > 1,
    lambda h: np.asarray(h.detach()).max() > 1,
    lambda h: float(h[0, 0]) > 1,
    lambda h: h[0, 0] > 1,
)


@pytest.mark.parametrize("decide", DECIDING)
def test_no_graph_stands_for_a_path_that_follows_data(decide: Callable[[Tensor], Any]) -> None:
    model, x = built(lambda: Decides(decide)), example()
    with pytest.raises(UnsupportedModel, match="no graph can stand for Decides: which path its code takes depends"):
        structprune.shrink(model, 0.3, x, output="graph")
    small = structprune.shrink(model, 0.3, x, output="auto", verify="numeric")
    assert type(small) is Decides


# -- surroundings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "around",
    [
        lambda: torch.device("meta"),
        torch.inference_mode,
        torch.no_grad,
        lambda: FlopCounterMode(display=False),
        nullcontext,
    ],
)
@pytest.mark.parametrize("output", ["module", "graph"])
def test_surroundings_change_nothing(around: Callable[[], AbstractContextManager[Any]], output: str) -> None:
    model, x = built(), example()
    expected = structprune.shrink(model, 0.3, x, output=output, verify="numeric")
    with around():
        small = structprune.shrink(model, 0.3, x, output=output, verify="numeric")
    assert torch.equal(small(x), expected(x))
    assert all(map(torch.equal, small.parameters(), expected.parameters()))


def test_tracers_around_are_named() -> None:
    model, x = built(), example()

    def shrunk(x: Tensor) -> Tensor:
        return structprune.shrink(model, 0.3, x)(x)  # type: ignore[no-any-return]

    with FakeTensorMode(), pytest.raises(UnsupportedModel, match="inside FakeTensorMode, where models cannot"):
        shrunk(x)
    for trace in (make_fx(shrunk), make_fx(shrunk, pre_dispatch=True)):
        with pytest.raises(UnsupportedModel, match=r"inside (ProxyTorchDispatchMode|a tracer)"):
            trace(x)
    for transform in (torch.vmap(shrunk), torch.func.grad(lambda x: shrunk(x).sum())):
        with pytest.raises(UnsupportedModel, match=r"inside a transform of torch.func"):
            transform(x)


# -- inside forward -----------------------------------------------------------------------------------


class Mapped(Base):
    def hidden(self, x: Tensor) -> Tensor:
        return torch.vmap(super().hidden)(x)


class MappedWeights(Base):
    """The weights are transformed too: none becomes a constant."""

    def hidden(self, x: Tensor) -> Tensor:
        h = self.enter(x).relu()
        return torch.vmap(lambda row, bias: h @ (row * 2) + bias)(self.first.weight, self.first.bias).mT.relu()


class Gradient(Base):
    """The gradient of a scalar, by torch.func, is a part of what is computed."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.grad(lambda z: super(Gradient, self).forward(z).square().sum())(x)


class Rewriting(Base):
    """Operators that write the form of a tensor in place."""

    def hidden(self, x: Tensor) -> Tensor:
        h = self.enter(x).unsqueeze(1)
        h.transpose_(1, 2).squeeze_(2)
        return self.first(h.relu()).t_().t_().relu()


@pytest.mark.parametrize("kind", [Mapped, MappedWeights, Rewriting])
@pytest.mark.parametrize("output", ["module", "graph"])
def test_transforms_inside_forward_are_recorded(kind: type[nn.Module], output: str) -> None:
    model, x = built(kind), example()
    small = structprune.shrink(model, 0.3, x, output=output, verify="numeric")
    assert small(x).shape == (4, 3)
    whole = structprune.shrink(model, 0, x, output=output)
    assert torch.allclose(whole(x), model(x), rtol=0, atol=1e-12)


def test_gradients_inside_forward_are_computed() -> None:
    model, x = built(Gradient), example()
    whole = structprune.shrink(model, 0, x, output="graph")
    assert torch.allclose(whole(x), model(x), rtol=0, atol=1e-12)


class Branching(Base):
    def given(self, h: Tensor, y: Tensor) -> Any:
        return torch.cond(h.sum() > 0, lambda y: y * 2, lambda y: y * 3, (y,))


@pytest.mark.slow
def test_captured_code_inside_forward_is_named() -> None:
    problem = r"the model runs, but not while its operators are recorded.*torch\.cond"
    with pytest.raises(UnsupportedModel, match=problem):
        structprune.shrink(built(Branching), 0.3, example())


def test_inputs_on_which_the_model_does_not_run_are_said_to_be_so() -> None:
    with pytest.raises(structprune.errors.CaptureError, match="Give example_inputs on which the model runs"):
        structprune.shrink(built(), 0.3, torch.randn(2, 7, dtype=torch.float64))


@pytest.mark.parametrize("layout", ["nested", "sparse_coo"])
def test_inputs_that_are_not_dense_are_refused(layout: str) -> None:
    x = example()
    x = torch.nested.nested_tensor(list(x), layout=torch.jagged) if layout == "nested" else x.to_sparse()
    with pytest.raises(UnsupportedModel, match=f"an input is a {layout} tensor, which is not supported"):
        structprune.shrink(built(), 0.3, x)


# -- models -------------------------------------------------------------------------------------------


def test_graph_modules_and_exported_programs_are_models() -> None:
    model, x = built(), example()
    expected = structprune.shrink(model, 0.3, x)(x)
    for given in (torch.fx.symbolic_trace(model), torch.export.export(model, (x,))):
        for output in ("auto", "graph"):
            small = structprune.shrink(given, 0.3, x, output=output, verify="numeric")
            assert isinstance(small, torch.fx.GraphModule)
            assert torch.allclose(small(x), expected, rtol=0, atol=1e-12)
            assert small.first.weight.shape[0] < 16 or small.enter.weight.shape[0] < 40
    assert structprune.analyze(torch.export.export(model, (x,)), x).groups


@pytest.mark.slow
def test_compiled_models_are_unwrapped(tmp_path: Any) -> None:
    model, x = built(), example()
    expected = structprune.shrink(model, 0.3, x)(x)
    plan = structprune.plan(torch.compile(model, backend="eager"), 0.3, x)
    assert plan.report is not None
    assert plan.report.note == "a OptimizedModule was given: the result is a Base"
    small = plan.apply(torch.compile(model, backend="eager"))
    assert type(small) is Base and torch.equal(small(x), expected)
    plan.save(tmp_path / "plan.json")
    again = structprune.load(torch.compile(built(), backend="eager"), tmp_path / "plan.json", small.state_dict())
    assert torch.equal(again(x), expected)


@pytest.mark.slow
def test_compiled_parts_run_as_they_were_written() -> None:
    doubled = torch.compile(lambda x: x * 2, backend="eager")

    class Parts(Base):
        def __init__(self) -> None:
            super().__init__()
            self.part = torch.compile(nn.Linear(16, 16), backend="eager")

        def hidden(self, x: Tensor) -> Tensor:
            return doubled(self.part(super().hidden(x)))  # type: ignore[no-any-return]

    model, x = built(Parts), example()
    model.enter.compile(backend="eager")
    for output in ("module", "graph"):
        small = structprune.shrink(model, 0.3, x, output=output, verify="numeric")
        assert small(x).shape == (4, 3)


@pytest.mark.parametrize("given", [nn.Parameter(torch.ones(3)), torch.ones(3), Base, 3, None])
def test_what_is_no_model_is_refused(given: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"torch\.nn\.Module"):
        structprune.shrink(given, 0.3, example())
