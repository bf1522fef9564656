"""Channels that are constant: removed first, and folded into the biases behind them without any change."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import structprune
from structprune.frontends import read
from structprune.views.analysis import Analysis


def conv_bn(inputs: int, outputs: int, kernel: int = 1, **options: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, bias=False, **options), nn.BatchNorm2d(outputs))


class Net(nn.Module):
    """Two batch norms' constants, a body, a classifier."""

    def __init__(self, body: nn.Module, forward: Callable[[Net, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.first = conv_bn(3, 8)
        self.body = body
        self.way = forward

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.first(x))
        return self.way(self, x) if self.way else self.body(x)


def head(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


def prepared(model: nn.Module) -> nn.Module:
    """In float64, with lively statistics, and with half of the first layer's channels constant."""
    torch.manual_seed(0)
    model = model.double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.uniform_(0.5, 1.5)
            module.running_var.uniform_(0.5, 1.5)
    model.first[1].weight.data[[0, 3, 5, 6]] = 0
    return model


FOLDABLE = {
    "linear": lambda: Net(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))),
    "flattened": lambda: Net(nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 16, 5))),
    "convolution without borders": lambda: Net(nn.Sequential(nn.Conv2d(8, 6, 3, stride=2, dilation=2), head(6))),
    "into the running mean": lambda: Net(nn.Sequential(conv_bn(8, 6, 3), nn.ReLU(), head(6))),
    "through a depthwise convolution": lambda: Net(
        nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 6, 1), head(6))
    ),
    "two readers": lambda: Net(
        nn.ModuleList([nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 1), head(6)]),
        lambda net, x: net.body[2](net.body[0](x) * net.body[1](x.relu())),
    ),
    "concatenated": lambda: Net(
        nn.ModuleList([nn.Conv2d(16, 6, 1), head(6)]),
        lambda net, x: net.body[1](net.body[0](torch.cat([x, x.neg()], 1))),
    ),
    "permuted": lambda: Net(nn.Linear(8, 5), lambda net, x: net.body(x.permute(0, 2, 3, 1).mean((1, 2)))),
    "scaled by a parameter": lambda: Net(
        nn.ModuleDict({"scale": nn.LayerNorm(8, bias=False), "head": head(8)}),
        lambda net, x: net.body["head"](x * net.body["scale"].weight[:, None, None]),
    ),
}


def images() -> Tensor:
    return torch.randn(3, 3, 8, 8, dtype=torch.float64)


def half(model: nn.Module, **options: str) -> structprune.Plan:
    """A plan that removes half of the first layer's channels."""
    return structprune.plan(model, 0.5, images(), of="channels", only=["first"], verify="numeric", **options)


def removed(plan: structprune.Plan) -> list[set[int]]:
    return [set(range(plan.sizes[name])) - set(kept) for name, kept in plan.keep.items()]


@pytest.mark.parametrize("output", ["auto", "graph"])
@pytest.mark.parametrize("name", FOLDABLE)
def test_constants_go_first_and_change_nothing(name: str, output: str) -> None:
    model, x = prepared(FOLDABLE[name]()), images()
    plan = half(model, output=output, score="random")
    assert removed(plan) == [{0, 3, 5, 6}]
    with torch.no_grad():
        torch.testing.assert_close(plan.apply(model)(x), model(x), rtol=1e-12, atol=1e-12)


UNFOLDABLE = {
    "borders of zeros": lambda: Net(nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), head(6))),
    "no bias behind": lambda: Net(nn.Sequential(nn.Conv2d(8, 6, 1, bias=False), nn.ReLU(), head(6))),
    "one reader of two": lambda: Net(
        nn.ModuleList([nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 3, padding=1), head(6)]),
        lambda net, x: net.body[2](net.body[0](x) + net.body[1](x)),
    ),
    "added to what is no constant": lambda: Net(
        nn.ModuleList([nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), head(6)]),
        lambda net, x: net.body[2](net.body[1](x + net.body[0](x[:, :3].detach()))),
    ),
    "a layer norm": lambda: Net(
        nn.ModuleList([nn.LayerNorm(8), nn.Linear(8, 5)]), lambda net, x: net.body[1](net.body[0](x.mean((2, 3))))
    ),
    "a layer used twice": lambda: Net(
        nn.ModuleList([nn.Conv2d(8, 6, 1), head(6)]),
        lambda net, x: net.body[1](net.body[0](x) + net.body[0](x.relu())),
    ),
}


@pytest.mark.parametrize("name", UNFOLDABLE)
def test_where_folding_is_not_exact_the_scores_decide(name: str) -> None:
    model = prepared(UNFOLDABLE[name]())
    analysis = Analysis(read(model, images()))
    assert not analysis.folding(analysis.solution).free
    half(model).apply(model)  # and law 2 holds as ever


def test_a_zero_needs_no_bias() -> None:
    """Filters of zeros without a bias: borders and missing biases do no harm."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1, bias=False), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1, bias=False), head(6)
    ).double()
    model[0].weight.data[[1, 2, 4, 7]] = 0
    plan = structprune.plan(model, 0.5, images(), of="channels", only=["0"], score="random", verify="numeric")
    x = images()
    assert removed(plan) == [{1, 2, 4, 7}]
    torch.testing.assert_close(plan.apply(model)(x), model(x), rtol=1e-12, atol=1e-12)


def test_zero_filters_with_a_bias() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Sigmoid(), nn.Linear(8, 4)).double()
    model[0].weight.data[[1, 2, 4, 7]] = 0
    x = torch.randn(5, 6, dtype=torch.float64)
    plan = structprune.plan(model, 0.5, x, of="channels", verify="numeric")
    assert removed(plan) == [{1, 2, 4, 7}]
    assert plan.report is not None and plan.report.folded == 4 and "4 removed channels were constant" in str(plan)
    torch.testing.assert_close(plan.apply(model)(x), model(x), rtol=1e-12, atol=1e-12)


def test_a_plan_folds_by_the_weights_that_it_meets() -> None:
    """The plan is made; then training moves the biases."""
    model, x = prepared(FOLDABLE["into the running mean"]()), images()
    plan = half(model)
    model.first[1].bias.data += 1
    with torch.no_grad():
        torch.testing.assert_close(plan.apply(model)(x), model(x), rtol=1e-12, atol=1e-12)
