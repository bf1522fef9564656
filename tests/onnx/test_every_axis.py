"""Each node of the table of ONNX operators with a free width on every axis of every operand.

As tests/test_every_axis.py, run by onnxruntime: floating operands are stored tensors, all of whose axes could lose
indices; numbers that say how (sizes, axes, indices) stay. The results are summed, with weights and bare.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from structprune.frontends import read
from structprune.frontends.onnx.front import OnnxFrontend
from structprune.frontends.onnx.record.trace import Numbers
from structprune.testing import check
from tests.onnx.build import build, weights
from tests.onnx.test_operators import ROWS, Row

TOLERANCE = 2e-5  # float32, of the largest of two sums
FLOATS = (ir.DataType.FLOAT,)


def front_of(row: Row) -> OnnxFrontend:
    model = build(row.signature, row.body, {**weights(row.shapes), **row.arrays}, row.opset)
    found = read(model, row.inputs)
    assert isinstance(found, OnnxFrontend)
    return found


def single(row: Row, front: OnnxFrontend, node: ir.Node, is_bare: bool, seed: int = 0) -> onnx.ModelProto | None:
    """A model of this one node; None where its operands are not all known, or none of them is learned."""
    generator = np.random.default_rng(seed)
    graph = helper.make_graph([], "single", [helper.make_tensor_value_info("t", 1, [1])], [])
    graph.output.append(helper.make_tensor_value_info("y", 1, []))
    names: list[str] = []

    def store(name: str, numbers: Numbers) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(numbers), name))
        return name

    def emit(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        graph.node.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    is_learned = False
    for place, value in enumerate(node.inputs):
        if value is None:
            names.append("")
            continue
        type_, numbers = front.trace.types.get(value), front.trace.numbers.get(value)
        if type_ is None:
            return None
        if numbers is not None and (numbers.size == 1 or not type_.dtype.is_floating_point()):
            names.append(store(f"number{place}", numbers))
        elif type_.dtype in FLOATS or type_.dtype == ir.DataType.BOOL:
            drawn = generator.uniform(0.2, 1.0, type_.shape) * generator.choice([-1, 1], type_.shape)
            if node.op_type == "BatchNormalization" and place == 4:
                drawn = np.abs(drawn)  # a variance
            learned = emit("Neg", [store(f"learned{place}", -drawn.astype(np.float32))], f"negative{place}")
            # What is multiplied alone is taken for a mask, not for a weight.
            given = emit("Mul", [learned, "t"], f"operand{place}")
            if type_.dtype == ir.DataType.BOOL:
                given = emit("Greater", [given, store(f"limit{place}", np.float32(0.0))], f"mask{place}")
            names.append(given)
            is_learned = is_learned or int(np.prod(type_.shape)) > 1
        else:
            names.append(store(f"index{place}", np.zeros(type_.shape, dtype=type_.dtype.numpy())))
    if not is_learned:
        return None
    outputs = [value.name and f"result{place}" for place, value in enumerate(node.outputs)]
    made = ir.to_proto(node)
    del made.input[:], made.output[:]
    made.input.extend(names)
    made.output.extend(each or "" for each in outputs)
    graph.node.append(made)
    sums = []
    for place, value in enumerate(node.outputs):
        if not value.name:
            continue
        type_ = front.trace.types.get(value)
        if type_ is None:
            return None
        result = emit("Cast", [f"result{place}"], f"float{place}", to=1)
        if not is_bare:
            scales = generator.uniform(0.2, 1.0, type_.shape).astype(np.float32)
            factor = emit("Neg", [store(f"scales{place}", scales)], f"factor{place}")
            result = emit("Mul", [result, factor], f"scaled{place}")
        square = emit("Mul", [result, result], f"square{place}")
        both = emit("Add", [result, square], f"both{place}")
        sums.append(emit("ReduceSum", [both], f"sum{place}", keepdims=0))
    emit("Sum", sums, "y")
    opsets = [helper.make_opsetid("", row.opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def single_of(row: Row, kind: str, is_bare: bool) -> tuple[onnx.ModelProto, Any]:
    """The model of the first node of a kind in a row, and its input."""
    front = front_of(row)
    node = next(each for each in front.model.graph if each.op_type == kind)
    model = single(row, front, node, is_bare)
    assert model is not None
    return model, {"t": np.array([0.7], dtype=np.float32)}


# Their results are choices between numbers, which rounding decides.
ROUNDED = {"QuantizeLinear", "DynamicQuantizeLinear", "DequantizeLinear", "MatMulInteger", "ConvInteger"}


def cases() -> Iterator[Any]:
    met: set[str] = set()
    for row in ROWS:
        front = front_of(row)
        for node in front.model.graph:
            shapes = [None if v is None else front.trace.types.get(v) for v in node.inputs]
            attributes = sorted(str(each) for each in node.attributes.values())
            numbers = [v is not None and v in front.trace.numbers for v in node.inputs]
            key = f"{row.opset} {node.domain} {node.op_type} {shapes} {attributes} {numbers}"
            if key in met or node.op_type in ROUNDED:
                continue
            met.add(key)
            for is_bare in (False, True):
                model = single(row, front, node, is_bare)
                if model is not None:
                    kind = "bare" if is_bare else "weighted"
                    yield pytest.param(model, id=f"{row.name}-{node.op_type}-{len(met)}-{kind}")


@pytest.mark.parametrize("model", list(cases()))
def test_a_width_on_every_axis(model: onnx.ModelProto) -> None:
    check(model, {"t": np.array([0.7], dtype=np.float32)}, tolerance=TOLERANCE)
