"""What folding calls free is free: without it, the untouched original's function is the same, in torch and in ONNX."""

from __future__ import annotations

import io
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn
from torch.nn import functional as F

import structprune
from structprune.frontends import read
from structprune.passes.verify import largest_difference
from structprune.views.analysis import Analysis

EXACT = {"rtol": 1e-9, "atol": 1e-9}
Step = Callable[["Drawn", Tensor], Tensor]
Make = Callable[["Drawn", int], Step]


def without_constants(model: Any, example: Any = None) -> tuple[structprune.Plan, int]:
    """A plan that removes all that is called free, and how much that is."""
    analysis = Analysis(read(model, example))
    free = analysis.folding(analysis.solution).free
    plan = structprune.plan(model, 0.0, example, verify=None)
    plan.keep = {group.name: np.flatnonzero(~free[group.dim]) for group in analysis.groups if group.dim in free}
    return plan, sum(int(free[group.dim].sum()) for group in analysis.groups if group.dim in free)


def check_torch(model: nn.Module, x: Tensor, **options: Any) -> int:
    plan, count = without_constants(model, x)
    plan.verify, plan.output = "numeric", options.get("output", "auto")
    small, others = plan.apply(model), torch.randn(2, *x.shape[1:], dtype=x.dtype)
    with torch.no_grad():
        for each in (x, others):
            torch.testing.assert_close(small(each.clone()), model(each.clone()), **EXACT)
    return count


def check_with_others(model: nn.Module, x: Tensor) -> None:
    """Other channels go as well: what is removed and no constant is zeroed in the original, whose constants live on."""
    plan, _ = without_constants(model, x)
    chance = np.random.default_rng(0)
    for group in structprune.analyze(model, x).groups:
        kept = plan.keep.get(group.name, np.arange(group.size))
        plan.keep[group.name] = chance.permutation(kept)[: max(1, len(kept) * 2 // 3)]
    plan.verify = "numeric"
    plan.apply(model)
    assert plan.report is not None and plan.report.error is not None and plan.report.error < 1e-9


def exported(model: nn.Module, x: Tensor, exporter: str = "older") -> onnx.ModelProto:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"dynamic_axes": {"x": {0: "batch"}}, "input_names": ["x"]} if exporter == "older" else {}
        torch.onnx.export(model, (x,), buffer, dynamo=exporter == "dynamo", verbose=False, **options)
    return onnx.load_from_string(buffer.getvalue())


def check_onnx(model: onnx.ModelProto, x: Tensor, verify: str | None = None) -> int:
    plan, count = without_constants(model)
    plan.verify = verify
    small = plan.apply(model)
    onnx.checker.check_model(small)
    (name,) = (each.name for each in model.graph.input)
    before, after = (ReferenceEvaluator(each).run(None, {name: x.numpy()}) for each in (model, small))
    assert largest_difference(dict(enumerate(before)), dict(enumerate(after))).error <= 1e-9
    return count


# -- nets drawn by chance -----------------------------------------------------------------------------


def kill(layer: Any, chance: random.Random, share: float = 0.4) -> Any:
    """Some filters, or scales, become zeros."""
    dead = [k for k in range(len(layer.weight)) if chance.random() < share][1:]
    with torch.no_grad():
        layer.weight[dead] = 0
    return layer


class Drawn(nn.Module):
    """A net of steps over images, drawn by chance. A step is given the net: a copy has layers of its own."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.chance = random.Random(seed)
        self.layers = nn.ModuleList()
        self.scales = nn.ParameterList()
        self.steps: list[Step] = []
        width = self.widen(3, 8)
        for _ in range(self.chance.randint(1, 4)):
            self.steps.append(self.drawn(width))
        width = self.widen(width, 6)
        self.steps.append(self.drawn(width))
        self.finish(width)

    def layer(self, module: nn.Module) -> Step:
        self.layers.append(module)
        place = len(self.layers) - 1
        return lambda net, x: net.layers[place](x)

    def scale(self, *shape: int) -> Callable[[Drawn], Tensor]:
        self.scales.append(nn.Parameter(torch.randn(shape)))
        place = len(self.scales) - 1
        return lambda net: net.scales[place]

    def coin(self) -> bool:
        return self.chance.random() < 0.5

    def norm(self, width: int) -> Step:
        norm = nn.BatchNorm2d(width)
        for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            tensor.uniform_(0.5, 1.5)
        return self.layer(kill(norm, self.chance) if self.coin() else norm)

    def widen(self, inputs: int, outputs: int) -> int:
        conv = nn.Conv2d(inputs, outputs, 3, padding=self.chance.randint(0, 1), bias=self.coin())
        self.steps.append(self.layer(kill(conv, self.chance)))
        if self.coin():
            self.steps.append(self.norm(outputs))
        return outputs

    def drawn(self, width: int) -> Step:
        return STEPS[self.chance.choice(sorted(STEPS))](self, width)

    def finish(self, width: int) -> None:
        if self.coin():
            self.steps.append(lambda net, x: x.mean((2, 3)))
        else:
            self.steps.append(lambda net, x: x[:, :, :2, :2].flatten(1))
            width *= 4
        self.steps.append(self.layer(nn.Linear(width, 4)))

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(self, x)
        return x


def depthwise(net: Drawn, width: int) -> Step:
    options = {"padding": net.chance.randint(0, 1), "bias": net.coin()}
    return net.layer(kill(nn.Conv2d(width, width, 3, groups=width, **options), net.chance, 0.2))


def gate(net: Drawn, width: int) -> Step:
    linear = net.layer(nn.Linear(width, width))
    return lambda net, x: x * linear(net, x.mean((2, 3))).sigmoid()[:, :, None, None]


def shared(net: Drawn, width: int) -> Step:
    conv = net.layer(nn.Conv2d(width, width, 1))
    return lambda net, x: conv(net, x) + conv(net, x.relu())


def written_through_a_view(x: Tensor) -> Tensor:
    y = x * 2
    y[:, :].add_(1)
    return y


def seen_through_a_view(x: Tensor) -> Tensor:
    y = x + 0.5
    view = y.view(y.shape[0], -1)
    y.mul_(x.mean())
    return y + view.sum()


def written_in_part(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :, 0] = x[:, :, 0].mean()
    return y


def learned(function: Callable[[Tensor, Tensor], Tensor]) -> Make:
    def make(net: Drawn, width: int) -> Step:
        scale = net.scale(*((width, 1, 1) if net.coin() else (1, width, 1, 1) if net.coin() else (1,)))
        return lambda net, x: function(x, scale(net))

    return make


def plain(*functions: Callable[[Tensor], Tensor]) -> Make:
    def make(net: Drawn, width: int) -> Step:
        function = net.chance.choice(functions)
        return lambda net, x: function(x)

    return make


# What ONNX has as well.
STEPS: dict[str, Make] = {
    "flat": plain(torch.relu, F.leaky_relu, F.gelu, torch.tanh, torch.abs),
    "shifting": plain(torch.sigmoid, torch.exp, torch.cos, lambda x: x + 1, lambda x: 2 - x, lambda x: x * 3),
    "norm": lambda net, width: net.norm(width),
    "depthwise": depthwise,
    "pool": plain(
        *(nn.MaxPool2d(2, 1, padding) for padding in (0, 1)),
        *(nn.AvgPool2d(2, 1, padding, count_include_pad=counted) for padding in (0, 1) for counted in (False, True)),
    ),
    "concat": plain(
        lambda x: torch.cat([x, x.sigmoid()], 1)[:, : x.shape[1]], lambda x: torch.cat([*x.chunk(2, 1)[::-1]], 1)
    ),
    "residual": plain(lambda x: x + x.sigmoid(), lambda x: x + x.mean((2, 3), keepdim=True)),
    "product": plain(lambda x: x * x.relu(), lambda x: x * x.mean((2, 3), keepdim=True), lambda x: x * x.sum()),
    "gate": gate,
    "scaled": learned(lambda x, scale: x * scale),
    "shifted": learned(lambda x, scale: x + scale),
    "capped": learned(torch.minimum),
    "raised": learned(torch.maximum),
    "chosen": learned(lambda x, scale: torch.where(x > scale, x, scale)),
    "chosen by it": learned(lambda x, scale: torch.where(scale > 0, x, x + 1)),
    "power": plain(lambda x: x**2, lambda x: x.abs() ** 0, lambda x: (x * x + 1) ** 0.5),
    "clamp": plain(lambda x: x.clamp(-0.5, 0.5), lambda x: x.clamp(min=0.25), lambda x: x.clamp(max=-0.25)),
    "prelu": lambda net, width: net.layer(nn.PReLU(width if net.coin() else 1)),
    "turned": plain(lambda x: x.permute(0, 2, 3, 1).relu().permute(0, 3, 1, 2), lambda x: x.transpose(2, 3).sigmoid()),
    "shared": shared,
    "shuffled": plain(lambda x: x.view(x.shape[0], 2, -1, *x.shape[2:]).transpose(1, 2).reshape(x.shape)),
}
IN_TORCH_ALONE: dict[str, Make] = {
    "fmax": learned(torch.fmax),
    "fmin": learned(torch.fmin),
    "no numbers": plain(torch.nan_to_num, lambda x: x + torch.isnan(x), lambda x: torch.where(x.isnan(), 1.0, x)),
    "in place": plain(lambda x: (x + 1).relu_(), lambda x: x.mul(2).sigmoid_(), lambda x: (x * 1).add_(x)),
    "views": plain(written_through_a_view, seen_through_a_view, written_in_part),
    "hypot": learned(torch.hypot),
    "copysign": learned(torch.copysign),
    "comparison": learned(lambda x, scale: (x > scale) * 1.0 + x),
}


@pytest.mark.parametrize("seed", range(60))
def test_in_torch_what_is_free_changes_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, make in IN_TORCH_ALONE.items():
        monkeypatch.setitem(STEPS, name, make)
    model, x = Drawn(seed).double().eval(), torch.randn(3, 3, 9, 9, dtype=torch.float64)
    check_torch(model, x)
    check_with_others(model, x)


@pytest.mark.parametrize("seed", range(30))
def test_in_onnx_what_is_free_changes_nothing(seed: int) -> None:
    x = torch.randn(3, 3, 9, 9, dtype=torch.float64)
    check_onnx(exported(Drawn(seed).double().eval(), x), x)


def test_both_front_ends_find_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exporters compute masks beforehand, and make one norm of two, which shows more."""
    x = torch.randn(3, 3, 9, 9, dtype=torch.float64)
    monkeypatch.delitem(STEPS, "chosen by it")
    found = []
    for seed in range(100, 124):
        model = Drawn(seed).double().eval()
        found.append((without_constants(model, x)[1], without_constants(exported(model, x))[1]))
    assert sum(count for count, _ in found) > 30
    assert all(count <= in_onnx for count, in_onnx in found)
