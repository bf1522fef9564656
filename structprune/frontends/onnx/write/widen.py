"""A model in a wider type, so that what is compared is the computation and not its rounding."""

from __future__ import annotations

import onnx_ir as ir

from structprune.frontends.onnx.read.lower import QUANTIZED
from structprune.frontends.onnx.record.trace import constant, sizes, subgraphs

NARROW = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
# onnxruntime computes these in single precision only, or their integers belong to one type.
NEVER_DOUBLE = QUANTIZED | {"Conv", "ConvTranspose", "DynamicQuantizeLinear", "Erf", "Gelu", "If", "Loop"}


def can_be_double(model: ir.Model) -> bool:
    return not any(node.op_type in NEVER_DOUBLE or node.domain or subgraphs(node) for node in model.graph)


def widened(model: ir.Model, to: ir.DataType) -> ir.Model:
    """A copy of a model whose floating tensors are all of one type."""
    result = model.clone()
    for value in result.graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype in NARROW:
            value.const_value = converted(value.const_value, to)
            value.type = ir.TensorType(to)
    for value in (*result.graph.inputs, *result.graph.outputs):
        if value.dtype in NARROW:
            value.type = ir.TensorType(to)
    for node in result.graph:
        tensor = constant(node.outputs[0]) if node.outputs else None
        if tensor is not None and tensor.dtype in NARROW:
            node.attributes.clear()
            node.attributes["value"] = ir.AttrTensor("value", converted(tensor, to))
        for name, attribute in list(node.attributes.items()):
            if name in ("to", "dtype") and attribute.as_int() in NARROW:
                node.attributes[name] = ir.AttrInt64(name, int(to))
            elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in NARROW:
                node.attributes[name] = ir.AttrTensor(name, converted(attribute.as_tensor(), to))
        for value in node.outputs:
            if value.dtype in NARROW:
                value.type = ir.TensorType(to)
    return result


def converted(tensor: ir.TensorProtocol, to: ir.DataType) -> ir.TensorProtocol:
    """The tensor in another type, computed when it is read."""
    shape = ir.Shape(sizes(tensor))

    def evaluate() -> ir.TensorProtocol:
        return ir.Tensor(tensor.numpy().astype(to.numpy()), dtype=to, shape=shape, name=tensor.name)

    return ir.LazyTensor(evaluate, to, shape, name=tensor.name)
