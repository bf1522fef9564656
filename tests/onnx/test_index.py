"""Indices that a file stores and that read a width: they are numbered anew by what the torch front end uses too."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

import structprune
from tests.onnx.build import build, weights

SIGNATURE = "(double[N, 6] x) => (double[N, 4] y)"
BODY = "h = MatMul (x, w0)\ng = Gather <axis = 1> (h, order)\ny = MatMul (g, w1)"
ORDERS = {
    "turned": (7, 6, 5, 4, 3, 2, 1, 0),
    "some": (3, 0, 5),
    "again and again": (3, 3, 0, 5, 0),
    "from the end": (-1, 2, -8, 4),
    "in a grid": ((1, 2), (5, 6)),
}


def model_of(order: Any, as_node: bool = False) -> onnx.ModelProto:
    order = np.asarray(order, dtype=np.int64)
    body = BODY if order.ndim == 1 else BODY.replace("y = MatMul (g, w1)", "f = Flatten (g)\ny = MatMul (f, w1)")
    arrays: dict[str, Any] = weights({"w0": (6, 8), "w1": (order.size, 4)}, np.float64)
    model = build(SIGNATURE, body, arrays if as_node else arrays | {"order": order})
    if as_node:
        node = onnx.helper.make_node("Constant", [], ["order"], value=numpy_helper.from_array(order))
        model.graph.node.insert(0, node)
    return model


def result(model: onnx.ModelProto, x: Any) -> Any:
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]


def without_one(model: onnx.ModelProto) -> structprune.Plan:
    """A plan that removes one index of each group."""
    plan = structprune.plan(model, 0.0)
    for group in structprune.analyze(model).groups:
        plan.keep[group.name] = [k for k in range(group.size) if k != 1]
    return plan


@pytest.mark.parametrize("as_node", [False, True])
@pytest.mark.parametrize("name", ORDERS)
def test_what_stays_is_read_by_its_new_number(name: str, as_node: bool) -> None:
    model = model_of(ORDERS[name], as_node)
    plan = without_one(model)
    small = plan.apply(model)
    assert plan.report is not None and plan.report.error is not None and plan.report.error < 1e-9
    # The same by hand: what was removed is zero.
    before, after = ({each.name: numpy_helper.to_array(each) for each in m.graph.initializer} for m in (model, small))
    stays = [np.flatnonzero((before["w0"] == column[:, None]).all(0)).item() for column in after["w0"].T]
    assert 0 < len(stays) < 8
    zeroed = np.where(np.isin(np.arange(8), stays), before["w0"], 0.0)
    x = np.random.default_rng(0).normal(size=(5, 6))
    read = (x @ zeroed)[:, np.asarray(ORDERS[name])].reshape(5, -1)
    np.testing.assert_allclose(result(small, x), read @ before["w1"], rtol=1e-12, atol=1e-12)
