"""The recorded program as a torch.fx.GraphModule: it runs, prints, and takes other passes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

import models_zoo
import structprune
from structprune.errors import InvalidArgument, UnsupportedModel
from structprune.frontends.torch.record.capture import record
from structprune.frontends.torch.record.program import Program
from structprune.frontends.torch.record.record import Run
from tests.small_models import Block, call, images, seeded


def close(a: Tensor, b: Tensor) -> bool:
    return bool(torch.allclose(a, b, rtol=0, atol=1e-9 * float(b.abs().max())))


@pytest.mark.parametrize("name", models_zoo.names())
def test_it_gives_what_the_model_gives(name: str) -> None:
    model, inputs = models_zoo.build(name)
    model.double().eval()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    traced = structprune.trace(model, inputs)
    assert isinstance(traced, fx.GraphModule)
    with torch.no_grad():
        expected = call(model, inputs)
        assert close(call(traced, inputs), expected)
        assert close(call(traced, torch.cat([inputs, inputs])), torch.cat([expected, expected]))
    assert dict(traced.named_parameters()).keys() == dict(model.named_parameters()).keys()
    assert all(a is b for a, b in zip(traced.parameters(), model.parameters(), strict=True))
    traced.graph.lint()


@pytest.mark.parametrize("name", ["plain_cnn", "resnet20", "encoder", "vit"])
def test_it_trains_as_the_model_does(name: str) -> None:
    """The same noise, the same gradients, the same statistics."""
    model, inputs = models_zoo.build(name)
    twin = copy.deepcopy(model).train()
    traced = structprune.trace(model.train(), inputs)
    assert traced.training
    results = []
    for each in (twin, traced):
        torch.manual_seed(0)
        result = call(each, inputs)
        result.square().sum().backward()
        results.append(result)
    assert torch.allclose(*results, rtol=1e-5, atol=1e-5)
    for (key, a), b in zip(twin.named_parameters(), model.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), key
        assert a.grad is None or torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-4), key  # type: ignore[arg-type]
    for a, b in zip(twin.buffers(), model.buffers(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_nodes_say_where_they_came_from() -> None:
    model = seeded(Block).eval()
    traced = structprune.trace(model, images(2, 3, 8, 8))
    operators = [node for node in traced.graph.nodes if "line" in node.meta]
    assert {str(node.target).partition(".")[0] for node in operators} == {"aten"}
    convolution = next(node for node in operators if node.target is torch.ops.aten.conv2d.default)
    name = next(name for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    file, _, line = convolution.meta["line"].rpartition(":")
    assert file.endswith("small_models.py") and int(line) > 0
    assert convolution.meta["module"] == name
    assert convolution.meta["nn_module_stack"][name] == (name, nn.Conv2d)
    assert convolution.meta["nn_module_stack"][""] == ("", Block)
    assert f"line {line}" in convolution.meta["stack_trace"]
    seen: dict[str, torch.Size] = {}

    class Shapes(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if "val" in n.meta:
                assert n.meta["val"].shape == result.shape and n.meta["val"].dtype is result.dtype
                assert n.meta["val"].stride() == result.stride()
                seen[n.name] = result.shape
            return result

    Shapes(traced).run(images(2, 3, 8, 8))
    assert len(seen) > len(operators)
    assert "torch.ops.aten.conv2d.default" in traced.code
    assert "small_models.py" in traced.print_readable(print_output=False)


def test_it_takes_other_passes() -> None:
    model, x = seeded(Block).eval(), images(2, 3, 8, 8)
    traced, expected = structprune.trace(model, x), model(x)
    ShapeProp(traced).propagate(x)
    output = next(node for node in traced.graph.nodes if node.op == "output")
    assert output.args[0].meta["tensor_meta"].shape == expected.shape
    assert not traced.graph.eliminate_dead_code()

    def pattern(x: Tensor) -> Tensor:
        return torch.ops.aten.relu.default(x)  # type: ignore[no-any-return]

    def replacement(x: Tensor) -> Tensor:
        return torch.ops.aten.clamp.default(x, 0)  # type: ignore[no-any-return]

    count = traced.code.count("aten.relu.default")
    assert count and len(fx.subgraph_rewriter.replace_pattern(traced, pattern, replacement)) == count
    assert "aten.relu" not in traced.code
    assert torch.equal(traced(x), expected)
    assert torch.equal(fx.Transformer(traced).transform()(x), expected)


def test_it_copies_pickles_exports_and_shrinks() -> None:
    model, x = seeded(Block).eval(), images(2, 3, 8, 8)
    traced, expected = structprune.trace(model, x), model(x)
    copied = copy.deepcopy(traced)
    assert torch.equal(copied(x), expected)
    assert all(a is not b for a, b in zip(copied.parameters(), traced.parameters(), strict=True))
    assert torch.equal(pickle.loads(pickle.dumps(traced))(x), expected)
    assert torch.equal(torch.export.export(traced, (x,), strict=False).module()(x), expected)
    again = structprune.trace(traced, x)
    assert torch.equal(again(x), expected)
    for given in (traced, again):
        small = structprune.shrink(given, 0.3, x, output="graph", verify="numeric")
        assert small(x).shape == expected.shape


class Pair(NamedTuple):
    a: Tensor
    b: Tensor


class Forms(nn.Module):
    """Nested inputs and keywords; results in a dict, a named tuple, a list."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: list[Tensor], *, scale: dict[str, Tensor], shift: Tensor | None = None) -> dict[str, Any]:
        h = self.first(x[0] + x[1]) * scale["s"]
        parts = h.chunk(2, dim=-1)
        y = self.second(h if shift is None else h + shift)
        return {"pair": Pair(y, y * 2), "parts": [parts[0], (parts[1], None)], "count": 3}


def test_forms_of_inputs_and_results() -> None:
    model = seeded(Forms).eval()
    x = [torch.randn(2, 6), torch.randn(2, 6)]
    scale = {"s": torch.randn(2, 1)}
    traced = structprune.trace(model, {"x": x, "scale": scale})
    expected, found = model(x, scale=scale), traced(x=x, scale=scale)
    assert type(found["pair"]) is Pair and torch.equal(found["pair"].b, expected["pair"].b)
    assert torch.equal(found["parts"][1][0], expected["parts"][1][0]) and found["count"] == 3


class Changing(nn.Module):
    """Statistics, noise, a region of autocast, a part without gradients, another head in training."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)
        self.help = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = self.first(x).norm()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            h = self.norm(self.first(x))
        h = F.dropout(h.float(), 0.5, self.training) / (1 + scale)
        return self.second(h) + self.help(h) if self.training else self.second(h)


def test_both_modes() -> None:
    model, x = seeded(Changing), torch.randn(8, 6)
    traced = structprune.trace(model, x)
    for training in (True, False, True):
        model.train(training)
        twin = copy.deepcopy(model)
        traced.train(training)
        torch.manual_seed(1)
        expected = twin(x)
        torch.manual_seed(1)
        found = traced(x)
        assert torch.equal(found, expected)
        model.zero_grad()
        expected.sum().backward()
        found.sum().backward()
        for a, b in zip(twin.parameters(), model.parameters(), strict=True):
            assert (a.grad is None) == (b.grad is None)
            assert a.grad is None or torch.allclose(a.grad, b.grad, atol=1e-6)  # type: ignore[arg-type]
    assert ("help" in traced.code) is True
    assert "help" not in traced.eval().code


class Deep(nn.Module):
    """Five thousand operators, one after another."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)
        self.depth = depth

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for _ in range(self.depth // 2):
            x = (x * 1.0001).tanh()
        return self.second(x)


def test_thousands_of_operators_deep() -> None:
    model, x = seeded(lambda: Deep(5000)).eval(), torch.randn(2, 6)
    traced = structprune.trace(model, x)
    assert len(traced.graph.nodes) > 5000
    assert torch.equal(traced(x), model(x))
    assert torch.equal(copy.deepcopy(traced)(x), model(x))
    assert torch.equal(pickle.loads(pickle.dumps(traced))(x), model(x))
    assert len(Program(record(model, Run(((x,), {})))).calls) == 5002


@pytest.mark.parametrize("output", ["module", "graph"])
def test_thousands_of_operators_deep_are_shrunk(output: str) -> None:
    model, x = seeded(lambda: Deep(5000)).double().eval(), torch.randn(2, 6, dtype=torch.float64)
    assert structprune.shrink(model, 0.24, x, output=output, verify="numeric")(x).shape == (2, 3)


def test_what_cannot_be_traced() -> None:
    class Reads(Block):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (2 if x.sum().item() > 0 else 1)

    with pytest.raises(UnsupportedModel, match="no graph can stand for Reads"):
        structprune.trace(seeded(Reads), images(2, 3, 8, 8))
    for given in ("model.onnx", nn.Linear, torch.ones(3)):
        with pytest.raises(InvalidArgument, match=r"only a torch\.nn\.Module can be traced"):
            structprune.trace(given)


@pytest.mark.parametrize("wrap", [lambda m, x: torch.export.export(m, (x,)), lambda m, x: fx.symbolic_trace(m)])
def test_models_in_other_forms(wrap: Callable[[nn.Module, Tensor], Any]) -> None:
    model, x = seeded(Block).eval(), images(2, 3, 8, 8)
    assert close(structprune.trace(wrap(model, x), x)(x), model(x))
