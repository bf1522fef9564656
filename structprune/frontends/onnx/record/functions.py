"""Files with functions of their own: they are read with each written out where it is called."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from structprune.errors import UnsupportedModel, printable
from structprune.frontends.onnx.record.file import innermost


def inlined(model: ir.Model) -> ir.Model:
    """The model without functions of its own; itself where it has none."""
    if not model.functions:
        return model
    result = model.clone()
    try:
        InlinePass()(result)
    except Exception as error:
        # onnx_ir raises what it likes at functions that do not fit their calls.
        why = printable(innermost(error), 300)
        raise UnsupportedModel(f"the model's functions cannot be written out where they are called: {why}") from error
    return result


def with_weights_of(original: ir.Model, small: ir.Model) -> ir.Model:
    """The original with another model's weights, under the same names."""
    result = original.clone()
    cut = {value.name: value for graph in small.graphs() for value in graph.initializers.values()}
    for graph in result.graphs():
        for value in graph.initializers.values():
            value.const_value, value.shape = cut[value.name].const_value, cut[value.name].shape
    shapes = {value.name: value.shape for node in small.graph for value in node.outputs}
    for node in result.graph:
        for value in node.outputs:
            if value.shape is not None and shapes.get(value.name) is not None:
                value.shape = shapes[value.name]
    return result
