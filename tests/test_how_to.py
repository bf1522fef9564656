"""README's "How to add an operator", followed word for word: one new operator, in torch and in ONNX."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import structprune
from structprune.frontends.onnx.read.lower import ENTRIES as IN_ONNX
from structprune.frontends.torch.read.lower import ENTRIES as IN_TORCH
from structprune.graph.operator import RULES
from structprune.testing import check
from tests.onnx.build import build, weights
from tests.onnx.test_every_axis import single_of
from tests.onnx.test_operators import Row as OnnxRow
from tests.rows import Row, axes_of, find_op
from tests.rows import build as build_row
from tests.test_every_axis import Everywhere

README = Path(__file__).parents[1] / "README.md"


def blocks() -> list[str]:
    section = README.read_text().partition("## How to add an operator")[2].partition("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


@pytest.fixture
def followed() -> Iterator[dict[str, Any]]:
    """The blocks that add the operator, run one after another."""
    before = dict(RULES), dict(IN_TORCH), dict(IN_ONNX)
    names: dict[str, Any] = {"__name__": "how_to"}
    try:
        for block in blocks()[1:]:
            exec(compile(block, str(README), "exec", dont_inherit=True), names)
        yield names
    finally:
        for now, old in zip((RULES, IN_TORCH, IN_ONNX), before, strict=True):
            now.clear()
            now.update(old)


ROW = Row("unfold", lambda o, x: o(x, 2, 2, 1).flatten(3), "2 a 4 4 -> 2 a 3 4 2")
ONNX_ROW = OnnxRow(
    "unfold",
    "(float[2, 6, 3] x) => (float[2, 5, 2, 2] y)",
    "h = Conv <kernel_shape = [1]> (x, w0)\n"
    "u = com.microsoft.UnfoldTensor <dim = 2, size = 2, step = 1> (h)\n"
    "y = Conv <kernel_shape = [1, 1]> (u, w1)",
    {"w0": (8, 6, 1), "w1": (5, 8, 1, 1)},
    (8,),
)


def onnx_model() -> Any:
    return build(ONNX_ROW.signature, ONNX_ROW.body, weights(ONNX_ROW.shapes), ONNX_ROW.opset)


def test_without_it_nothing_is_known() -> None:
    """Else the how-to would show nothing."""
    assert "unfold" not in RULES
    assert "no rule for 'unfold'" in structprune.analyze(*build_row("unfold", ROW)).explain("first.weight")
    assert structprune.analyze(onnx_model()).groups == []


def test_the_new_operator_in_torch(followed: dict[str, Any]) -> None:
    model, inputs = build_row("unfold", ROW)
    analysis = check(model, inputs)
    assert axes_of(analysis, find_op(analysis, "unfold")) == ROW.axes
    for is_bare in (False, True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            everywhere = Everywhere("unfold", ROW, is_bare).double().eval()
        check(everywhere, torch.tensor([0.7], dtype=torch.float64))


def test_the_new_operator_in_onnx(followed: dict[str, Any]) -> None:
    analysis = check(onnx_model(), tolerance=1e-5)
    assert [group.size for group in analysis.groups] == list(ONNX_ROW.groups)
    for is_bare in (False, True):
        check(*single_of(ONNX_ROW, "UnfoldTensor", is_bare), tolerance=2e-5)


def test_one_line() -> None:
    """The first block: a product under a name of its own."""

    @torch.library.custom_op("mylib::mix", mutates_args=())
    def mix(x: Tensor, weight: Tensor) -> Tensor:
        return x @ weight.t()

    @mix.register_fake
    def _(x: Tensor, weight: Tensor) -> Tensor:
        return x.new_empty(*x.shape[:-1], weight.shape[0])

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(10, 5)
            self.weight = nn.Parameter(torch.randn(10, 8))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(mix(self.first(x), self.weight))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        names = {"__name__": "how_to", "model_with_mix": Mixed().double(), "example_inputs": torch.randn(3, 6).double()}
    try:
        exec(compile(blocks()[0], str(README), "exec", dont_inherit=True), names)
        assert len(structprune.analyze(names["model_with_mix"], names["example_inputs"]).groups) == 2
    finally:
        RULES.pop("mylib::mix", None)
