"""The public calls: what they take, what they give, and that they agree with one another."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import networkx
import pytest
import torch
from torch import Tensor, nn

import models_zoo
import structprune
from structprune import Analysis, Plan, Report


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.left, self.right = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 48, 3, padding=1), nn.Conv2d(48, 32, 1)
        self.norm = nn.GroupNorm(1, 48)
        self.head = nn.Conv2d(32, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return self.head(x + self.right(self.norm(self.left(x)).relu()))


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def residual() -> Residual:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Residual()


OPTIONS = {
    "of": "params",
    "score": "l2",
    "exclude": (),
    "only": (),
    "align": None,
    "output": "auto",
    "verify": "numeric",
}


def test_the_signature() -> None:
    for call in (structprune.shrink, structprune.plan):
        parameters = inspect.signature(call).parameters
        assert list(parameters)[:3] == ["model", "ratio", "example_inputs"]
        assert parameters["example_inputs"].default is None
        assert all(each.kind is inspect.Parameter.KEYWORD_ONLY for each in list(parameters.values())[3:])
        assert {name: parameters[name].default for name in OPTIONS} == OPTIONS
        assert parameters["scope"].default in ("global", "uniform")
        assert call.__doc__
    names = [list(inspect.signature(call).parameters) for call in (structprune.shrink, structprune.plan)]
    assert names[0] == [*names[1], "output_path", "force"]


def test_what_the_calls_give() -> None:
    model = residual()
    assert type(structprune.shrink(model, 0.5, X)) is Residual
    plan = structprune.plan(model, 0.5, X)
    assert type(plan) is Plan and type(plan.report) is Report and type(structprune.analyze(model, X)) is Analysis


def test_importing_the_package_imports_no_framework() -> None:
    code = "import sys, structprune; assert 'torch' not in sys.modules and 'onnx' not in sys.modules"
    root = Path(__file__).resolve().parent.parent
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, env={"PYTHONPATH": str(root)})


@pytest.mark.parametrize(
    "options",
    [
        {"score": "fpgm", "of": "macs"},
        {"score": "random", "seed": 4},
        {"scope": "uniform", "align": 2},
        {"only": ["left"], "ratio": 0.3},
        {"output": "graph"},
        {"verify": None},
        {"verify": "numeric"},
    ],
    ids=str,
)
def test_plan_and_shrink_agree(options: dict[str, object]) -> None:
    options = dict(options)
    ratio = options.pop("ratio", 0.5)
    model = residual().eval()
    one = structprune.shrink(model, ratio, X, **options)  # type: ignore[arg-type]
    two = structprune.plan(model, ratio, X, **options).apply(model)  # type: ignore[arg-type]
    assert type(one).__name__ == type(two).__name__
    left, right = one.state_dict(), two.state_dict()
    assert list(left) == list(right) and all(torch.equal(left[name], right[name]) for name in left)
    assert torch.equal(one(X), two(X))


def test_shrink_and_verify_none_give_the_same() -> None:
    model = residual()
    kept = [structprune.plan(model, 0.5, X, verify=verify).keep for verify in ("shapes", "numeric", None)]
    assert kept[0] == kept[1] == kept[2]


def test_one_pattern_may_be_a_text() -> None:
    model = residual()
    one, two = (structprune.plan(model, 0.3, X, exclude=each).keep for each in ("enter", ["enter"]))
    assert one == two and not any(name.startswith("enter") for name in one)


def test_the_groups() -> None:
    analysis = structprune.analyze(residual(), X)
    found = {group.name: {(m.parameter, m.axis) for m in group.members if m.is_trained} for group in analysis.groups}
    assert found == {
        "enter.weight:0": {
            *(("enter.weight", 0), ("enter.bias", 0), ("left.weight", 1)),
            *(("right.weight", 0), ("right.bias", 0), ("head.weight", 1)),
        },
        "left.weight:0": {
            *(("left.weight", 0), ("left.bias", 0), ("norm.weight", 0), ("norm.bias", 0)),
            ("right.weight", 1),
        },
    }
    exact = {group.name: group.exact for group in analysis.groups}
    # A group norm takes its statistics over the channels.
    assert exact == {"enter.weight:0": True, "left.weight:0": False}


def test_explain() -> None:
    analysis = structprune.analyze(residual(), X)
    text = analysis.explain("left.weight")
    assert "left.weight [48, 32, 3, 3]" in text
    for line in text.splitlines():
        if "right.weight through" in line:
            assert "group_norm" in line and "conv2d" in line
            break
    else:
        pytest.fail(text)
    assert re.search(r"enter\.weight.* through .*conv2d", text)
    assert "statistics of group_norm" in text
    head = analysis.explain("head.weight")
    assert "is frozen: reaches the model's output" in head and re.search(r"test_api\.py:\d+", head)
    assert "is frozen: an input of the model" in analysis.explain("enter.weight")


def test_explain_every_parameter_of_the_zoo() -> None:
    for name in ("shufflenet", "decoder", "encoder", "recurrent"):
        model, inputs = models_zoo.build(name)
        analysis = structprune.analyze(model, inputs)
        for parameter, tensor in model.named_parameters():
            text = analysis.explain(parameter)
            assert text.startswith(f"{parameter} {list(tensor.shape)}") and text.count("  axis ") == tensor.dim()


def test_the_analysis_as_text_and_graph_and_picture(tmp_path: Path) -> None:
    analysis = structprune.analyze(residual(), X)
    text = str(analysis)
    count = sum(parameter.numel() for parameter in residual().parameters())
    assert f"Residual: {count:,} parameters" in text and "2 groups" in text
    assert "left.weight:0" in text and "changes the statistics of group_norm" in text
    graph = analysis.to_networkx()
    assert isinstance(graph, networkx.Graph)
    assert any("left.weight" in str(node) for node in graph.nodes)
    analysis.draw(tmp_path / "groups.dot")
    drawn = (tmp_path / "groups.dot").read_text()
    assert drawn.startswith("graph groups {") and drawn.rstrip().endswith("}")
    assert '"right.weight"' in drawn


def test_frozen_shares_name_an_operator_without_a_rule() -> None:
    class Mystery(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 32), nn.Linear(32, 32)
            self.third, self.head = nn.Linear(32, 64), nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.second(torch.linalg.matrix_exp(self.first(x).unsqueeze(-1).expand(-1, -1, 32))[..., 0])
            return self.head(self.third(x).relu())

    model, x = Mystery(), torch.randn(2, 8)
    report = structprune.plan(model, 0.3, x).report
    assert report is not None
    assert any("matrix_exp" in reason and "test_api.py" in reason for reason, _ in report.frozen), report.frozen
    assert "frozen" in str(report) and "matrix_exp" in str(report)
    small = structprune.shrink(model, 0.3, x)
    assert small.first.out_features == 32 and small.third.out_features < 64


def test_a_device_and_gradients_of_inputs() -> None:
    x = X.clone().requires_grad_()
    small = structprune.shrink(residual(), 0.5, x)
    assert x.grad is None
    small(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("product", ["matmul", "einsum"])
def test_only_takes_the_width_that_the_named_weight_makes(product: str) -> None:
    """`x @ w1 @ w2`: what w2 makes is its second axis; the first is what w1 makes."""

    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = ((6, 32), (32, 40), (40, 4))
            self.w1, self.w2, self.w3 = (nn.Parameter(torch.randn(each, dtype=torch.float64)) for each in sizes)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if product == "matmul":
                return (x @ self.w1).relu() @ self.w2 @ self.w3
            h = torch.einsum("bi,ij->bj", x, self.w1).relu()
            return torch.einsum("jk,bj->bk", self.w2, h) @ self.w3

    x = torch.randn(5, 6, dtype=torch.float64)
    small = structprune.shrink(Products(), 0.3, x, only=["w2"])
    assert small.w1.shape == (6, 32) and small.w2.shape[0] == 32
    assert small.w2.shape[1] == small.w3.shape[0] < 40
