"""Files that would take very long: what is done for them is bounded, or takes a time that grows with them."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import structprune
from structprune.errors import UnsupportedModel
from structprune.frontends.onnx.write import oracle
from tests.onnx.build import build, weights


def chain(nodes: list[onnx.NodeProto], arrays: dict[str, Any], functions: list[onnx.FunctionProto]) -> onnx.ModelProto:
    """x [2, 6] -> h0 [2, 8] -> ... -> `last` -> y [2, 3]"""
    last = nodes[-1].output[0]
    nodes = [helper.make_node("MatMul", ["x", "w0"], ["h0"]), *nodes, helper.make_node("MatMul", [last, "w1"], ["y"])]
    generator = np.random.default_rng(0)
    arrays = {
        "w0": generator.normal(size=(6, 8)).astype(np.float32),
        "w1": generator.normal(size=(8, 3)).astype(np.float32),
        **arrays,
    }
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, [2, 6])],
        [helper.make_tensor_value_info("y", 1, [2, 3])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=9)


def read_often(count: int) -> onnx.ModelProto:
    """One constant of ones that many nodes read."""
    nodes = [helper.make_node("Mul", [f"h{n}", "k"], [f"h{n + 1}"]) for n in range(count)]
    return chain(nodes, {"k": np.ones(8, np.float32)}, [])


def indexed_often(count: int) -> onnx.ModelProto:
    """One index that many nodes read."""
    nodes = [helper.make_node("Gather", [f"h{n}", "k"], [f"h{n + 1}"], axis=1) for n in range(count)]
    return chain(nodes, {"k": np.arange(8)[::-1].copy()}, [])


def called_often(count: int) -> onnx.ModelProto:
    inside = [helper.make_node("Mul", ["a", "b"], ["t"]), helper.make_node("Tanh", ["t"], ["c"])]
    function = helper.make_function("own", "F", ["a", "b"], ["c"], inside, [helper.make_opsetid("", 20)])
    nodes = [helper.make_node("F", [f"h{n}", "k"], [f"h{n + 1}"], domain="own") for n in range(count)]
    return chain(nodes, {"k": np.ones(8, np.float32)}, [function])


@pytest.mark.parametrize("make", [read_often, indexed_often])
def test_one_constant_with_many_readers(make: Any) -> None:
    """Four times the readers take no sixteen times the work: here, of looking at uses."""

    def taken(count: int) -> float:
        model = make(count)
        start = time.process_time()
        assert len(structprune.analyze(model).groups) == 1
        structprune.plan(model, 0.125, align=1, verify=None)
        return time.process_time() - start

    taken(50)
    assert taken(2000) < 10 * taken(500) + 1


def test_one_function_called_very_often_is_refused_in_time() -> None:
    assert structprune.analyze(called_often(200)).groups
    start = time.process_time()
    with pytest.raises(UnsupportedModel, match="'F' is called 10,000 times, which takes too long to write out"):
        structprune.analyze(called_often(10_000))
    assert time.process_time() - start < 10


LOOP = """h = MatMul (x, w0)
y = MatMul (h, w1)
g = Loop <body = step (int64 n, bool c, float[N, 3] a) => (bool d, float[N, 3] b) {
  d = Identity (c)
  k = Constant <value = float {0.5}> ()
  b = Mul (a, k)
}> (times, go, y)
z = Add (g, y)"""


def looping(times: int) -> onnx.ModelProto:
    arrays = {**weights({"w0": (6, 8), "w1": (8, 3)}), "times": np.array(times), "go": np.array(True)}
    return build("(float[N, 6] x) => (float[N, 3] z)", LOOP, arrays, opset=20)


def test_a_loop_that_ends_is_run() -> None:
    small = structprune.shrink(looping(3), 0.5, align=1)
    assert sum(np.prod(each.dims) for each in small.graph.initializer if len(each.dims) > 1) == 4 * 9


def test_a_loop_that_never_ends_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle, "LONGEST_OF_LOOPS", 0.5)
    start = time.monotonic()
    model = looping(2**62)
    plan = structprune.plan(model, 0.5, align=1)
    plan.apply(model)
    said = str(plan.report)
    assert "not verified with numbers" in said and "one of its loops goes on for more than 0.5 seconds" in said, said
    assert time.monotonic() - start < 30
