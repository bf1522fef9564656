"""What runs only in training is part of the model: stochastic depth, attention dropout, further heads."""

from __future__ import annotations

import copy
import pickle
import random
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm.layers
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import structprune
from structprune.api import decide
from structprune.frontends.torch.write.module import edited
from structprune.options import Options
from structprune.passes.rewrite import Rewrite

EXACT = 1e-11


@pytest.fixture(autouse=True)
def same_numbers() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        yield


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.dropout = heads, 0.3
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.project(x.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, depth: nn.Module) -> None:
        super().__init__()
        self.attention, self.depth = Attention(32, 4), depth
        self.norm = nn.LayerNorm(32)
        self.grow, self.back = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.depth(self.attention(x))
        x = x + self.depth(self.back(self.grow(F.dropout(self.norm(x), 0.2, self.training)).relu()))
        return x


class Transformer(nn.Module):
    """Every regularisation of a transformer, by the depth that a library has."""

    def __init__(self, depth: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.enter = nn.Linear(6, 32)
        self.blocks = nn.Sequential(Block(depth()), Block(depth()))
        self.norm, self.head = nn.BatchNorm1d(32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.enter(x)).mean(1)))


class Convolutional(nn.Module):
    """Depth and attention dropout whose masks have no channels: zeroing and removing draw the same numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm = nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.first, self.second = nn.Conv2d(32, 48, 1), nn.Conv2d(48, 32, 1, bias=False)
        self.last = nn.BatchNorm2d(32)
        self.depth = torchvision.ops.StochasticDepth(0.5, "row")
        self.head = nn.Linear(32, 5)
        for norm in (self.norm, self.last):
            nn.init.normal_(norm.weight, 1, 0.2)
            nn.init.normal_(norm.bias, 0, 0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.enter(x)).relu()
        x = x + self.depth(self.last(self.second(self.first(x).relu())))
        x = x.flatten(2).transpose(1, 2)
        x = F.scaled_dot_product_attention(x, x, x, scale=0.1, dropout_p=0.4 * self.training)
        return self.head(x.sum(1))


class Heads(NamedTuple):
    main: Tensor
    further: Tensor | None


class Inception(nn.Module):
    """A further head that is there in training alone, with a width in its code."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.further, self.width = nn.Linear(32 * 4, 5), 32
        self.middle, self.head = nn.Conv2d(32, 48, 3, padding=1), nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Heads:
        x = self.norm(self.enter(x)).relu()
        further = None
        if self.training:
            further = self.further(F.adaptive_avg_pool2d(x, 2).view(-1, self.width * 4))
        return Heads(self.head(self.middle(x).relu().mean((2, 3))), further)


DEPTHS = {
    "timm": lambda: timm.layers.DropPath(0.3),
    "torchvision, a sample each": lambda: torchvision.ops.StochasticDepth(0.3, "row"),
    "torchvision, all or none": lambda: torchvision.ops.StochasticDepth(0.3, "batch"),
}


def both(model: nn.Module, inputs: Any, ratio: float = 0.4) -> tuple[nn.Module, torch.fx.GraphModule]:
    """The result in its own class, and as a graph, by one choice."""
    plan = structprune.plan(model, ratio, inputs, output="module")
    own = plan.apply(model)
    plan.output = "graph"
    graph = plan.apply(model)
    assert type(own) is type(model) and isinstance(graph, torch.fx.GraphModule)
    return own, graph


def run(model: nn.Module, inputs: Tensor, seed: int = 1) -> Any:
    torch.manual_seed(seed)
    return model(inputs)


def differs(model: nn.Module, inputs: Tensor) -> bool:
    """Two runs draw different numbers."""
    return not torch.equal(run(model, inputs, 1), run(model, inputs, 2))


# -- the graph and the class ---------------------------------------------------------------------------


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_graph_trains_as_the_class_does(depth: str) -> None:
    model, x = Transformer(DEPTHS[depth]).double(), torch.randn(4, 7, 6).double()
    own, graph = both(model.train(), x)
    assert graph.training and differs(copy.deepcopy(graph), x)
    for inputs in (x, torch.cat([x, x])[:7], x[:, :5]):
        for mode in (True, False, True):
            own.train(mode)
            graph.train(mode)
            torch.testing.assert_close(run(graph, inputs), run(own, inputs), rtol=EXACT, atol=EXACT)
    before, after = own.state_dict(), graph.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before), "running statistics"
    for each in (own, graph):
        run(each, x).square().sum().backward()
    for name, parameter in own.named_parameters():
        torch.testing.assert_close(graph.get_parameter(name).grad, parameter.grad, rtol=1e-9, atol=EXACT)


def zeroed(model: nn.Module, rewrite: Rewrite) -> dict[str, Tensor]:
    """The parameters of which something is removed, with zeros in its place."""
    return {edit.name: edited(model.get_parameter(edit.name), [edit]) for edit in rewrite.zeroing()}


def test_removing_equals_zeroing_in_training() -> None:
    model, x = Convolutional().double(), torch.randn(4, 3, 6, 6).double()
    decision = decide(model, x, Options(0.4, output="graph"))
    rewrite, graph = decision.realized.rewrite, decision.carried_out()
    whole = copy.deepcopy(model)
    with torch.no_grad():
        for name, value in zeroed(model, rewrite).items():
            whole.get_parameter(name).copy_(value)
    for mode in (True, False):
        whole.train(mode)
        graph.train(mode)
        torch.testing.assert_close(run(graph, x), run(whole, x), rtol=1e-9, atol=1e-9)
        assert differs(copy.deepcopy(graph), x) is mode
    kept = rewrite.indices(rewrite.solution.graph.parameters["norm.running_mean"], 0)
    assert kept is not None and len(kept) < 32
    for name in ("norm.running_mean", "norm.running_var"):
        torch.testing.assert_close(graph.get_buffer(name), whole.get_buffer(name)[torch.from_numpy(kept)])


def test_dropout_of_a_width_that_was_cut_keeps_the_mean() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 64), nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x).relu()
            if self.training:
                x = x * torch.empty_like(x).bernoulli_(0.8) / 0.8
            return self.second(x)

    graph = structprune.shrink(Dropping().double(), 0.4, torch.randn(2, 6).double(), output="graph").eval()
    x = torch.randn(1, 6).double()
    expected = graph(x)
    graph.train()
    draws = torch.stack([graph(x) for _ in range(4000)])
    error = (draws.mean(0) - expected).abs() / (draws.std(0) / 4000**0.5)
    assert bool((draws.std(0) > 0.01).all()) and bool((error < 5).all())


def test_sizes_of_what_is_drawn_follow_the_widths() -> None:
    class Channels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x).relu()
            if self.training:
                x = x * torch.empty(x.shape[0], x.shape[1], 1, 1, dtype=x.dtype).bernoulli_(0.5)
            return self.second(x)

    own, graph = both(Channels().double().train(), torch.randn(2, 3, 4, 4).double())
    assert graph.get_parameter("first.weight").shape[0] < 32
    for batch in (2, 5):
        x = torch.randn(batch, 3, 4, 4).double()
        torch.testing.assert_close(run(graph, x), run(own, x), rtol=EXACT, atol=EXACT)
    assert differs(graph, x)


class Sorted(nn.Module):
    """Sorts a width in training, which can be cut in eval mode alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 32), nn.Linear(32, 64), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.second(x.sort(-1).values if self.training else x)
        return self.head(x.relu())


def test_what_only_training_does_to_a_width_holds_it() -> None:
    plan = structprune.plan(Sorted(), 0.4, torch.randn(2, 6), output="graph")
    graph = plan.apply(Sorted()).train()
    assert graph.get_parameter("first.weight").shape == (32, 6)
    assert graph.get_parameter("second.weight").shape[0] < 64
    assert plan.report is not None and plan.report.note == ""
    assert "sort" in graph.code and "sort" not in graph.eval().code


def test_a_plan_that_cuts_what_training_holds_gives_the_graph_of_eval_mode() -> None:
    model, x = Sorted(), torch.randn(2, 6)
    plan = structprune.plan(model, 0.6, x, output="module")
    own = plan.apply(model)
    plan.output = "graph"
    graph = plan.apply(model)
    assert own.get_parameter("first.weight").shape[0] < 32
    assert graph.in_training is None and torch.equal(graph.train()(x), graph.eval()(x))
    torch.testing.assert_close(graph(x), own.eval()(x))


class Tied(nn.Module):
    """Two widths that meet in training alone, one of them by a number of the code."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(6, 16)
        self.c, self.d = nn.Linear(16, 3), nn.Linear(16, 3)
        self.heads = 4

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        y = self.c(a.view(len(x), self.heads, -1).flatten(1)) + self.d(b)
        return y + (a - b).square().mean() if self.training else y


class Held(nn.Module):
    """A width that an operator without a rule meets, with a tensor that is never cut, in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 16), nn.Linear(16, 64), nn.Linear(64, 3)
        self.register_buffer("centers", torch.randn(5, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.head(self.second(x).relu())
        return y + torch.cdist(x, self.centers).mean() if self.training else y


class Averaging(nn.Module):
    """A running average of a width, written in training alone: in place, or as another tensor."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.a, self.c = nn.Linear(6, 16), nn.Linear(16, 3)
        self.register_buffer("average", torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.training and self.in_place:
            self.average.mul_(0.9).add_(h.detach().mean(0), alpha=0.1)
        elif self.training:
            self.average = 0.9 * self.average + 0.1 * h.detach().mean(0)
        return self.c(h.relu())


class Mixed(Averaging):
    """Samples are mixed with others, by chance."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.training:
            h = 0.3 * h + 0.7 * h[torch.randperm(len(x))]
        return self.c(h.relu())


@pytest.mark.parametrize("output", ["module", "graph"])
@pytest.mark.parametrize(
    "build", [lambda: Averaging(True), lambda: Averaging(False), lambda: Mixed(True)], ids=["write", "set", "mixed"]
)
def test_what_only_training_keeps_is_cut_with_its_width(build: Callable[[], nn.Module], output: str) -> None:
    model, x = build().double(), torch.randn(4, 6).double()
    plan = structprune.plan(model, 0.43, x, output=output)
    small = plan.apply(model)
    assert plan.report is not None and plan.report.note == ""
    expected = run(small.eval(), x)
    run(small.train(), x).sum().backward()
    assert small.get_buffer("average").shape == (16 if isinstance(model, Mixed) else 9,)
    assert torch.equal(run(small.eval(), x), expected)


@pytest.mark.parametrize("output", ["module", "graph"])
@pytest.mark.parametrize("build", [Tied, Held])
def test_the_result_trains_where_widths_meet_in_training_alone(build: Callable[[], nn.Module], output: str) -> None:
    model, x = build().double(), torch.randn(4, 6).double()
    plan = structprune.plan(model, 0.43, x, output=output)
    small = plan.apply(model)
    run(small.train(), x).sum().backward()
    for name, parameter in small.named_parameters():
        assert parameter.grad is not None and parameter.shape == parameter.grad.shape, name
    sizes = {name: len(parameter) for name, parameter in small.named_parameters()}
    assert sizes["a.weight"] == sizes["b.weight"] < 16 if build is Tied else sizes["first.weight"] == 16


def test_the_report_says_that_training_was_not_seen() -> None:
    class Detector(Tied):
        def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
            if self.training and targets is None:
                raise ValueError("targets are needed in training")
            return super().forward(x)

    plan = structprune.plan(Detector(), 0.4, torch.randn(4, 6))
    assert plan.report is not None and plan.report.kind == "module"
    assert "what it does in training is not known: there it raises ValueError: targets are needed" in plan.report.note
    silent = structprune.plan(nn.Sequential(nn.Linear(6, 32), nn.Dropout(), nn.Linear(32, 3)), 0.4, torch.randn(4, 6))
    assert silent.report is not None and silent.report.note == ""


# -- modes --------------------------------------------------------------------------------------------


def test_modules_keep_their_own_mode() -> None:
    own, graph = both(Transformer(DEPTHS["timm"]).double(), torch.randn(4, 7, 6).double())
    x = torch.randn(4, 7, 6).double()
    for each in (own, graph):
        each.train()
        each.get_submodule("norm").eval()
        run(each, x)
    assert graph.get_buffer("norm.num_batches_tracked").item() == 0
    assert torch.equal(graph.get_buffer("norm.running_mean"), own.get_buffer("norm.running_mean"))
    torch.testing.assert_close(run(graph, x), run(own, x), rtol=EXACT, atol=EXACT)


def test_what_is_always_off_stays_off() -> None:
    """A batch norm with frozen statistics, dropout that the code switches off."""

    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.second = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            norm = self.norm
            x = F.batch_norm(self.first(x), norm.running_mean, norm.running_var, norm.weight, norm.bias, training=False)
            return self.second(F.dropout(x, 0.5, training=False))

    model, x = Frozen().double().train(), torch.randn(8, 6, dtype=torch.float64)
    nn.init.uniform_(model.norm.running_mean)
    traced, graph = structprune.trace(model, x), structprune.shrink(model, 0, x, output="graph")
    assert traced.training and graph.training
    assert torch.equal(traced(x), model(x)) and torch.equal(graph(x), model(x))


def test_dropout_that_is_always_on_stays_on() -> None:
    class MonteCarlo(Transformer):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(super().forward(x), 0.5, True)

    graph = structprune.shrink(MonteCarlo(DEPTHS["timm"]), 0.4, torch.randn(4, 7, 6), output="graph")
    x = torch.randn(4, 7, 6)
    for mode in (True, False):
        graph.train(mode)
        assert bool((run(graph, x) == 0).any())


def test_one_graph_where_operators_know_the_mode_themselves() -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(32, 5, 1))
    graph = structprune.shrink(model, 0.4, torch.randn(2, 3, 4, 4), output="graph")
    assert graph.in_training is None


# -- a full citizen -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [True, False])
def test_two_graphs_in_one_module(mode: bool) -> None:
    x = torch.randn(4, 7, 6)
    graph = structprune.shrink(Transformer(DEPTHS["timm"]), 0.4, x, output="graph").train(mode)
    assert ("bernoulli" in graph.code) is mode and ("bernoulli" in str(graph.graph)) is mode
    assert "def forward(self, x)" in graph.code
    twin, moved = copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))
    again = structprune.shrink(graph, 0, x, output="graph")
    expected = run(graph, x)
    for each in (twin, moved, again):
        assert each.training is mode
        assert torch.equal(run(each, x), expected)
        each.train(not mode)
        graph.train(not mode)
        assert torch.equal(run(each, x), run(graph, x))
        graph.train(mode)
    exported = torch.export.export(graph, (x,), strict=False).module()
    assert torch.equal(run(exported, x), run(graph, x))
    torch._dynamo.reset()
    compiled = torch.compile(graph, backend="eager", fullgraph=True)
    assert torch.equal(run(compiled, x), run(graph, x))
    graph.train(not mode)
    assert torch.equal(run(compiled, x), run(graph, x)), "the mode is compiled in"


# -- what cannot be said once and for all -------------------------------------------------------------


class Layerdrop(nn.Module):
    """Whole layers are left out by chance: which, nobody can record."""

    def __init__(self, draw: Callable[[], Any]) -> None:
        super().__init__()
        self.draw = draw
        self.enter, self.first, self.back = nn.Linear(6, 32), nn.Linear(32, 64), nn.Linear(64, 32)
        self.second = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x).relu()
        if not self.training or self.draw() > 0.5:
            x = x + self.back(self.first(x).relu())
        return self.second(x)


class Loss(nn.Module):
    """Wants labels in training."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        x = self.second(self.first(x).relu())
        if not self.training:
            return x
        if labels is None:
            raise ValueError("give labels")
        return F.cross_entropy(x, labels)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: Layerdrop(lambda: torch.rand(())), "random numbers"),
        (lambda: Layerdrop(random.random), "random numbers"),
        (lambda: Layerdrop(np.random.rand), "random numbers"),
        (Loss, r"raises ValueError: give labels at .*test_training\.py:\d+"),
    ],
)
def test_the_report_says_where_training_is_that_of_eval_mode(build: Callable[[], nn.Module], reason: str) -> None:
    x = torch.randn(2, 6)
    plan = structprune.plan(build(), 0.4, x, output="graph")
    graph = plan.apply(build())
    assert plan.report is not None
    assert re.search(f"In training it computes what it does in eval mode: .*{reason}", plan.report.note)
    assert "In training" in str(plan)
    assert torch.equal(graph.eval()(x), graph.train()(x))


@pytest.mark.parametrize("build", [lambda: Layerdrop(random.random), lambda: Layerdrop(np.random.rand), Convolutional])
def test_generators_are_left_as_they_were(build: Callable[[], nn.Module]) -> None:
    model = build()
    before = random.getstate(), pickle.dumps(np.random.get_state())
    x = torch.randn(2, 3, 6, 6) if isinstance(model, Convolutional) else torch.randn(2, 6)
    state = torch.get_rng_state()
    structprune.shrink(model, 0.4, x, output="graph")
    assert (random.getstate(), pickle.dumps(np.random.get_state())) == before
    assert torch.equal(torch.get_rng_state(), state)


# -- heads of training --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("output", ["module", "graph"])
def test_a_further_head_is_cut_with_what_it_reads(output: str, mode: bool) -> None:
    model, x = Inception().double().train(mode), torch.randn(2, 3, 4, 4).double()
    plan = structprune.plan(model, 0.4, x, output=output, verify="numeric")
    small = plan.apply(model)
    counts = [sum(parameter.numel() for parameter in each.parameters()) for each in (model, small)]
    assert abs(1 - counts[1] / counts[0] - 0.4) <= 0.01
    assert plan.report is not None and plan.report.parameters == tuple(counts)
    width = small.get_parameter("enter.weight").shape[0]
    assert width < 32 and small.get_parameter("further.weight").shape == (5, 4 * width)
    more = torch.randn(5, 3, 4, 4).double()
    result = small.train()(more)
    assert type(result) is Heads and [each.shape for each in result] == [(5, 5), (5, 5)]
    sum(each.square().sum() for each in result).backward()
    assert all(parameter.grad is not None for parameter in small.parameters())
    assert small.eval()(more).further is None


def test_a_further_head_equals_that_of_the_zeroed_model() -> None:
    model, x = Inception().double(), torch.randn(2, 3, 4, 4).double()
    decision = decide(model, x, Options(0.4))
    rewrite, small = decision.realized.rewrite, decision.carried_out().train()
    assert type(small) is Inception
    parameters = zeroed(model, rewrite)
    with torch.no_grad():
        for name, value in parameters.items():
            model.get_parameter(name).copy_(value)
    for found, expected in zip(small(x), model.train()(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=EXACT, atol=EXACT)


def test_multiply_accumulates_are_those_of_eval_mode() -> None:
    class Plain(Inception):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.middle(self.norm(self.enter(x)).relu()).relu().mean((2, 3)))

    x = torch.randn(2, 3, 4, 4)
    whole, plain = (structprune.analyze(build(), x).measure("macs").whole for build in (Inception, Plain))
    assert whole == plain


class Swish(torch.autograd.Function):
    """Written to save memory, as in many model files."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * x.sigmoid() * (1 + x * (1 - x.sigmoid()))


class CallsFunctions(nn.Module):
    def __init__(self, is_frozen: bool) -> None:
        super().__init__()
        self.is_frozen = is_frozen
        self.first, self.last = nn.Linear(6, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(not self.is_frozen):
            x = Swish.apply(self.first(x))
        return self.last(x)


@pytest.mark.parametrize("is_frozen", [False, True])
def test_graphs_have_gradients_through_functions(is_frozen: bool) -> None:
    x, apply = torch.randn(4, 6), torch.autograd.Function.__dict__["apply"]
    own, graph = (structprune.shrink(CallsFunctions(is_frozen), 0, x, output=output) for output in ("module", "graph"))
    assert torch.autograd.Function.__dict__["apply"] is apply
    graph.load_state_dict(own.state_dict())
    for model in (own, graph):
        model(x).square().sum().backward()
    assert (own.first.weight.grad is None) == (graph.first.weight.grad is None) == is_frozen
    for name, parameter in own.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(graph.get_parameter(name).grad, parameter.grad)
