"""Files with dead channels: those go first, at no loss, and onnxruntime gives what it gave."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

import structprune
from tests.test_fold import Drawn, check_onnx, exported, without_constants
from tests.test_fold_attacks import BODIES, DEAD, Images, Moved, images

NUMBERS = np.random.default_rng(0)


def weights(**shapes: tuple[int, ...]) -> dict[str, Any]:
    return {name: NUMBERS.normal(size=shape) for name, shape in shapes.items()}


def file_of(nodes: list[onnx.NodeProto], stored: dict[str, Any], shape: list[Any], opset: int = 18) -> onnx.ModelProto:
    """A model in double precision from x to y."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, shape)],
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, ["rows", 4])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def check(model: onnx.ModelProto, shape: tuple[int, ...], by_onnxruntime: bool = True) -> int:
    """How much was free; without it the result is the same, at another batch size too."""
    plan, count = without_constants(model)
    plan.verify = "numeric"
    small = plan.apply(model)
    for batch in (shape[0], shape[0] + 2):
        x = NUMBERS.normal(size=(batch, *shape[1:]))
        for run in (by_reference, by_runtime)[: 1 + by_onnxruntime]:
            np.testing.assert_allclose(run(small, x), run(model, x), rtol=1e-9, atol=1e-9)
    return count


def by_reference(model: onnx.ModelProto, x: Any) -> Any:
    return ReferenceEvaluator(model).run(None, {"x": x})[0]


def by_runtime(model: onnx.ModelProto, x: Any) -> Any:
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]


def linear(transposed: bool = False, **attributes: Any) -> tuple[list[onnx.NodeProto], dict[str, Any]]:
    """Dead columns in front, a Gemm behind."""
    stored = weights(w=(6, 8), b=(8,), v=(4, 8) if transposed else (8, 4), c=(4,))
    stored["w"][:, DEAD] = 0
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Add", ["b", "h"], ["h2"]),
        helper.make_node("Sigmoid", ["h2"], ["h3"]),
        helper.make_node("Gemm", ["h3", "v", "c"], ["y"], transB=int(transposed), **attributes),
    ]
    return nodes, stored


@pytest.mark.parametrize("transposed", [False, True])
def test_gemm(transposed: bool) -> None:
    assert check(file_of(*linear(transposed), ["batch", 6]), (3, 6)) == 3
    # Its sum or its bias is scaled: what to add to the bias is not asked.
    assert check(file_of(*linear(transposed, alpha=0.5), ["batch", 6]), (3, 6)) == 0
    assert check(file_of(*linear(transposed, beta=2.0), ["batch", 6]), (3, 6)) == 0


@pytest.mark.parametrize("bias", [(4,), (1, 4), (1,), (3, 4)])
def test_a_bias_that_is_added_behind(bias: tuple[int, ...]) -> None:
    nodes, stored = linear()
    nodes[3:] = [helper.make_node("MatMul", ["h3", "v"], ["h4"]), helper.make_node("Add", ["h4", "c"], ["y"])]
    stored |= weights(c=bias)
    is_vector = bias in ((4,), (1, 4))
    model = file_of(nodes, stored, ["batch" if bias[0] != 3 else 3, 6])
    plan, count = without_constants(model)
    assert count == 3 * is_vector
    x = NUMBERS.normal(size=(3, 6))
    np.testing.assert_allclose(by_runtime(plan.apply(model), x), by_runtime(model, x), rtol=1e-9, atol=1e-9)


def test_a_bias_that_something_else_reads() -> None:
    """Exporters store equal vectors once: each layer gets a bias of its own."""
    nodes, stored = linear()
    nodes[3:] = [
        helper.make_node("Gemm", ["h3", "v", "c"], ["h4"]),
        helper.make_node("Gemm", ["x", "u", "c"], ["h5"]),
        helper.make_node("Add", ["h4", "h5"], ["y"]),
    ]
    model = file_of(nodes, stored | weights(u=(6, 4)), ["batch", 6])
    assert check(model, (3, 6)) == 3
    assert len(without_constants(model)[0].apply(model).graph.initializer) == 6


def test_a_bias_that_comes_out_is_nobodys_own() -> None:
    nodes, stored = linear()
    model = file_of(nodes, stored, ["batch", 6])
    model.graph.output.append(helper.make_tensor_value_info("c", TensorProto.DOUBLE, [4]))
    assert check(model, (3, 6)) == 0


def test_a_bias_in_a_constant_node() -> None:
    nodes, stored = linear()
    nodes.insert(0, helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(stored.pop("c"))))
    assert check(file_of(nodes, stored, ["batch", 6]), (3, 6)) == 3


def test_a_number_that_follows_a_size() -> None:
    nodes, stored = linear()
    nodes[2:3] = [
        helper.make_node("Shape", ["x"], ["shape"], end=1),
        helper.make_node("Cast", ["shape"], ["size"], to=TensorProto.DOUBLE),
        helper.make_node("Div", ["h2", "size"], ["h3"]),
    ]
    assert check(file_of(nodes, stored, ["batch", 6]), (3, 6)) == 0
    # Where the file fixes the size, it is a number like any other.
    assert without_constants(file_of(nodes, stored, [3, 6]))[1] == 3


@pytest.mark.parametrize(("training", "count"), [(None, 3), (False, 3), (True, 0)])
def test_a_dropout_that_is_on_draws(training: bool | None, count: int) -> None:
    nodes, stored = linear()
    ratio = {"ratio": np.asarray(0.5)}
    extra = {} if training is None else ratio | {"mode": np.asarray(training)}
    nodes[3] = helper.make_node("Gemm", ["h4", "v", "c"], ["y"])
    nodes.insert(3, helper.make_node("Dropout", ["h3", *extra], ["h4"]))
    assert without_constants(file_of(nodes, stored | extra, ["batch", 6]))[1] == count


@pytest.mark.parametrize("kind", ["Gelu", "HardSwish", "Mish", "Softplus", "Elu", "Erf", "HardSigmoid", "Selu"])
def test_pointwise_operators_are_run_whatever_defines_them(kind: str) -> None:
    nodes, stored = linear()
    nodes[2] = helper.make_node(kind, ["h2"], ["h3"])
    model = file_of(nodes, stored, ["batch", 6], opset=20)
    plan, count = without_constants(model)
    assert count == 3
    x = NUMBERS.normal(size=(3, 6))
    np.testing.assert_allclose(by_reference(plan.apply(model), x), by_reference(model, x), rtol=1e-9, atol=1e-9)


def test_small_vectors_are_not_spread_over_more_than_a_machine_holds() -> None:
    nodes, stored = linear()
    nodes[3:] = [
        helper.make_node("Gemm", ["h3", "v", "c"], ["h4"]),
        helper.make_node("Mul", ["p", "q"], ["large"]),
        helper.make_node("Concat", ["large", "large"], ["larger"], axis=0),
        helper.make_node("PRelu", ["larger", "q"], ["larger2"]),
        helper.make_node("ReduceMean", ["larger2"], ["mean"], keepdims=0),
        helper.make_node("Add", ["h4", "mean"], ["y"]),
    ]
    stored |= {"p": np.zeros((60_000, 1)), "q": np.zeros((1, 60_000))}
    model = file_of(nodes, stored, ["batch", 6])
    with limited_memory(1 << 31):
        assert without_constants(model)[1] == 3


@contextmanager
def limited_memory(more: int) -> Iterator[None]:
    """So many bytes more than now can be asked for."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def image_file(model: nn.Module, exporter: str) -> onnx.ModelProto:
    return exported(model.float().eval(), torch.randn(3, 3, 6, 6), exporter)


@pytest.mark.parametrize("exporter", ["older", "dynamo"])
def test_a_file_with_dead_channels_shrinks_by_them_first(exporter: str, tmp_path: Path) -> None:
    """In single precision, checked by onnxruntime; the rest of the file is as it was."""
    body = [nn.Sigmoid(), nn.MaxPool2d(2), nn.Conv2d(8, 6, 3, bias=False), Moved(6)]
    onnx.save(image_file(Images(*body), exporter), tmp_path / "whole.onnx")
    path = tmp_path / "small.onnx"
    options = {"only": ["first.weight"], "of": "channels", "align": 1, "score": "random"}
    plan = structprune.plan(tmp_path / "whole.onnx", 3 / 8, **options)
    assert plan.report is not None and plan.report.folded == 3
    assert "folded into the biases behind them" in str(plan)
    structprune.shrink(tmp_path / "whole.onnx", 3 / 8, output_path=path, **options)
    x = np.random.default_rng(1).normal(size=(3, 3, 6, 6)).astype(np.float32)
    whole, small = (onnxruntime.InferenceSession(tmp_path / name) for name in ("whole.onnx", "small.onnx"))
    (name,) = (each.name for each in whole.get_inputs())
    expected, found = (session.run(None, {name: x})[0] for session in (whole, small))
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("seed", range(6))
def test_drawn_nets_in_onnxruntime(seed: int) -> None:
    torch.manual_seed(seed)
    model = exported(Drawn(seed).eval(), torch.randn(3, 3, 9, 9))
    plan, _ = without_constants(model)
    plan.verify = "numeric"
    plan.apply(model)
    assert plan.report is not None and plan.report.error is not None and plan.report.error < 1e-4


@pytest.mark.parametrize("sizes", [(4, 8, 8, 8), (8, 3, 8, 8), (1, 1, 1, 1), (8, 8, 16, 8)])
def test_a_norm_whose_vectors_do_not_fit_gives_no_raw_error(sizes: tuple[int, ...]) -> None:
    """onnxruntime refuses such a file; so may we, in our own words."""
    names = ("scale", "shift", "mean", "variance")
    nodes, stored = linear()
    nodes[2:3] = [helper.make_node("BatchNormalization", ["h2", *names], ["h3"])]
    stored |= {name: np.zeros(size) for name, size in zip(names, sizes, strict=True)}
    model = file_of(nodes, stored, ["batch", 6])
    with contextlib.suppress(structprune.errors.StructpruneError):
        plan = structprune.plan(model, 0.0)
        plan.keep = {group.name: [0] for group in structprune.analyze(model).groups}
        plan.apply(model)
    assert without_constants(model)[1] in (0, 3)


# The exporter leaves the divisor out, writes slices, or refuses; the reference does not cut by paddings.
EXPORTED_OTHERWISE = {
    "a pool with another divisor",
    "cut by a padding",
    "borders from the other side",
    "no bias, a norm of the batch",
}


@pytest.mark.parametrize("name", sorted(set(BODIES) - EXPORTED_OTHERWISE))
def test_behind_images_as_in_torch(name: str) -> None:
    body, *counts = BODIES[name]
    for bias, count in zip((True, False), counts, strict=True):
        model = exported(Images(*body(), bias=bias), images())
        assert check_onnx(model, images()) == count
