"""ONNX models from text: the nodes are written out, the weights are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper, parser

TYPES = {"float": np.float32, "double": np.float64, "float16": np.float16, "int64": np.int64, "int8": np.int8}


def weights(shapes: Mapping[str, Sequence[int]], dtype: Any = np.float32, seed: int = 0) -> dict[str, Any]:
    """Arrays of these shapes, none of whose entries is near zero."""
    generator = np.random.default_rng(seed)
    found = {}
    for name, shape in shapes.items():
        found[name] = (generator.uniform(0.2, 1.0, shape) * generator.choice([-1, 1], shape)).astype(dtype)
    return found


def build(
    signature: str, body: str, arrays: Mapping[str, Any], opset: int = 20, ir_version: int = 10
) -> onnx.ModelProto:
    """`signature` is "(float[2, 8] x) => (float[2, 4] y)"; `body` the nodes, one on each line."""
    text = (
        f'<ir_version: {ir_version}, opset_import: ["" : {opset}, "com.microsoft" : 1]>\n'
        f"made {signature} {{\n{body}\n}}"
    )
    model = parser.parse_model(text)
    for name, array in arrays.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return model


def constant(array: Any, name: str) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(array), name))
