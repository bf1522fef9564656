"""What every value of a graph is for inputs of given shapes: its shape, its type, and its numbers where they are small.

Nothing runs. Each node is asked through ONNX's own inference for the shapes of its outputs; the small integer
sub-graphs that compute shapes (Shape, Gather, Concat, ...) are evaluated on the way, because inference needs
their numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.checker import ValidationError
from onnx.reference.ops import load_op
from onnx.shape_inference import InferenceError, infer_node_outputs

from structprune.graph.graph import Shape

Numbers = NDArray[Any]
# Larger tensors are data: no shape is computed from them.
MOST_NUMBERS = 4096
# What sizes, indices and tables are computed with. No other operator is run: what it takes is not bounded by what it is
# given (a convolution of few numbers can pad them to billions), or its answer differs from run to run.
EVALUATED = frozenset((
    "Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh", "BitShift",
    "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Cast", "CastLike", "Ceil", "Clip", "Compress",
    "Concat", "ConstantOfShape", "Cos", "Cosh", "CumSum", "DequantizeLinear", "Div", "Equal", "Erf", "Exp",
    "Expand", "EyeLike", "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Gemm", "Greater",
    "GreaterOrEqual", "Identity", "IsInf", "IsNaN", "Less", "LessOrEqual", "Log", "MatMul", "Max", "Mean",
    "Min", "Mod", "Mul", "Neg", "NonZero", "Not", "OneHot", "Or", "Pad", "Pow", "QuantizeLinear", "Range",
    "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "ReverseSequence", "Round",
    "ScatterElements", "ScatterND", "Sigmoid", "Sign", "Sin", "Sinh", "Slice", "Softmax", "Split", "Sqrt",
    "Squeeze", "Sub", "Sum", "Tan", "Tanh", "Tile", "TopK", "Transpose", "Trilu", "Unique", "Unsqueeze",
    "Where", "Xor",
))  # fmt: skip
# Their results have shapes that only a computation tells, and never more entries than their operands.
NO_LARGER = frozenset(("NonZero", "Compress", "Unique"))


@dataclass(frozen=True, slots=True)
class Type:
    """Shape and element type of one value."""

    shape: Shape
    dtype: ir.DataType

    def proto(self) -> onnx.TypeProto:
        return onnx.helper.make_tensor_type_proto(int(self.dtype), self.shape)


@dataclass(slots=True, repr=False)
class Trace:
    """What is known of each value; `observed` are shapes that only a run could tell."""

    types: dict[ir.Value, Type] = field(default_factory=dict)
    numbers: dict[ir.Value, Numbers] = field(default_factory=dict)
    problems: dict[ir.Node, str] = field(default_factory=dict)
    # What the names of open sizes stand for.
    sizes: dict[str, int] = field(default_factory=dict)

    def shape(self, value: ir.Value) -> Shape | None:
        found = self.types.get(value)
        return None if found is None else found.shape


ShapeRule = Callable[[ir.Node, Sequence[Type | None]], Sequence[Type]]
SHAPES: dict[tuple[str, str], ShapeRule] = {}


def shape_of(domain: str, *names: str) -> Callable[[ShapeRule], ShapeRule]:
    """Register the shapes of operators that ONNX itself does not know."""

    def register(function: ShapeRule) -> ShapeRule:
        for name in names:
            assert (domain, name) not in SHAPES, f"{name} has two shape rules"
            SHAPES[domain, name] = function
        return function

    return register


def constant(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor of an initializer or of a Constant node; None for anything that is computed or fed."""
    node = value.producer()
    if node is None:
        return value.const_value if value.is_initializer() else None
    if node.op_type != "Constant" or node.domain:
        return None
    # onnx_ir's own reader of constants gives the tensor a name, and thereby changes the user's model.
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            return None
        if name == "value":
            # Not `as_tensor`, which takes ten times as long to make sure that it is one.
            tensor: ir.TensorProtocol = attribute.value
            return tensor
        if name in ("value_int", "value_ints", "value_float", "value_floats"):
            kind = ir.DataType.INT64 if "int" in name else ir.DataType.FLOAT
            return ir.tensor(attribute.value, dtype=kind)
    return None


def sizes(tensor: ir.TensorProtocol) -> Shape:
    """The shape of a tensor that exists."""
    return tuple(tensor.shape.numpy())


def is_small(shape: Iterable[int]) -> bool:
    return prod(shape) <= MOST_NUMBERS


def trace(model: ir.Model, inputs: Mapping[ir.Value, Type], observed: Mapping[ir.Value, Type] | None = None) -> Trace:
    """Walk the nodes in order."""
    result = Trace(types=dict(inputs), sizes=named_sizes(inputs))
    walk(model, model.graph, result, observed or {})
    return result


def named_sizes(inputs: Mapping[ir.Value, Type]) -> dict[str, int]:
    found: dict[str, int] = {}
    for value, known in inputs.items():
        for size, number in zip(value.shape or (), known.shape, strict=False):
            if isinstance(size, ir.SymbolicDim) and size.value is not None:
                found[size.value] = number
    return found


def declared(value: ir.Value, known: Mapping[str, int]) -> Type | None:
    """The type that the file states of a value, with what its names of sizes stand for."""
    if value.shape is None or value.dtype is None:
        return None
    found = [size if isinstance(size, int) else known.get(size.value or "", -1) for size in value.shape]
    return None if any(size < 0 for size in found) else Type(tuple(found), value.dtype)


def walk(model: ir.Model, graph: ir.Graph, result: Trace, observed: Mapping[ir.Value, Type]) -> None:
    for value in graph.initializers.values():
        note_constant(result, value)
    for node in graph:
        branch = taken_branch(node, result)
        if branch is not None:
            walk(model, branch, result, observed)
        advance(model, node, result, observed)


def advance(model: ir.Model, node: ir.Node, result: Trace, observed: Mapping[ir.Value, Type]) -> None:
    """Note what one node gives; everything before it is known."""
    if node.op_type == "Constant" and node.domain == "":
        note_constant(result, node.outputs[0])
        return
    branch = taken_branch(node, result)
    try:
        found = infer(node, version_of(model, node), result) if branch is None else {}
    except (InferenceError, ValidationError, onnx.defs.SchemaError, ValueError, IndexError, TypeError) as error:
        result.problems[node] = first_line(str(error))
        found = {}
    if branch is not None:
        pairs = zip(node.outputs, branch.outputs, strict=True)
        found = {made: result.types[value] for made, value in pairs if value in result.types}
    for value in node.outputs:
        known = found.get(value) or observed.get(value) or declared(value, result.sizes)
        if known is not None:
            result.types[value] = known
    evaluate(node, version_of(model, node), result)


def first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "no reason given"


def version_of(model: ir.Model, node: ir.Node) -> int:
    return node.version or model.graph.opset_imports.get(node.domain, 1)


def note_constant(result: Trace, value: ir.Value) -> None:
    tensor = constant(value)
    if tensor is None:
        return
    shape = sizes(tensor)
    result.types[value] = Type(shape, tensor.dtype)
    if tensor.dtype != ir.DataType.STRING and is_small(shape):
        result.numbers[value] = tensor.numpy()


def infer(node: ir.Node, version: int, known: Trace) -> dict[ir.Value, Type]:
    """The types of a node's outputs, as far as they can be told."""
    types = [None if value is None else known.types.get(value) for value in node.inputs]
    if any(value is not None and found is None for value, found in zip(node.inputs, types, strict=True)):
        return {}
    rule = SHAPES.get((node.domain, node.op_type))
    if rule is not None:
        return dict(zip(node.outputs, rule(node, types), strict=False))
    schema = schema_of(node.op_type, node.domain, version)
    if schema is None:
        return {}
    given = [value for value in node.inputs if value is not None]
    captured = {value for graph in subgraphs(node) for value in outer_values(graph)}
    found = infer_node_outputs(
        schema,
        node_proto(node),
        {str(value.name): known.types[value].proto() for value in (*given, *captured) if value in known.types},
        {str(value.name): onnx.numpy_helper.from_array(known.numbers[value], value.name)
         for value in given if value in known.numbers},
        {},
        opset_imports=[onnx.helper.make_opsetid(node.domain, version)],
    )  # fmt: skip
    result: dict[ir.Value, Type] = {}
    for value in node.outputs:
        proto = found.get(str(value.name))
        if proto is not None and (known_type := read_type(proto)) is not None:
            result[value] = known_type
    return result


def node_proto(node: ir.Node) -> onnx.NodeProto:
    return ir.serde.serialize_node(node)


@lru_cache(maxsize=1024)
def schema_of(op_type: str, domain: str, version: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, max_inclusive_version=version, domain=domain)
    except onnx.defs.SchemaError:
        return None


def read_type(proto: onnx.TypeProto) -> Type | None:
    """A type all of whose sizes are numbers."""
    if not proto.HasField("tensor_type") or not proto.tensor_type.HasField("shape"):
        return None
    sizes = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in proto.tensor_type.shape.dim]
    if any(size < 0 for size in sizes):
        return None
    return Type(tuple(sizes), ir.DataType(proto.tensor_type.elem_type))


def subgraphs(node: ir.Node) -> list[ir.Graph]:
    """The bodies of a control-flow node."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            found.extend(attribute.as_graphs())
    return found


def outer_values(graph: ir.Graph) -> list[ir.Value]:
    """What a body reads from the graph around it."""
    own: set[ir.Value] = {*graph.inputs, *graph.initializers.values()}
    found: dict[ir.Value, None] = {}
    for node in graph:
        inner = [value for each in subgraphs(node) for value in outer_values(each)]
        found.update((value, None) for value in (*node.inputs, *inner) if value is not None and value not in own)
        own.update(node.outputs)
    found.update((value, None) for value in graph.outputs if value not in own)
    return list(found)


def run_order(graph: ir.Graph, known: Trace) -> Iterator[ir.Node]:
    """The nodes that run, with those of a branch that is known to be taken before its If."""
    for node in graph:
        branch = taken_branch(node, known)
        if branch is not None:
            yield from run_order(branch, known)
        yield node


def taken_branch(node: ir.Node, known: Trace) -> ir.Graph | None:
    """The branch of an If whose condition follows from shapes; None where both may run."""
    if node.op_type != "If" or node.domain or node.inputs[0] is None:
        return None
    condition = known.numbers.get(node.inputs[0])
    if condition is None:
        return None
    names = ("then_branch", "else_branch") if bool(np.all(condition)) else ("else_branch", "then_branch")
    taken, other = (node.attributes[name].as_graph() for name in names)
    # The other branch runs for other sizes: it must not hold anything that removing would break.
    return taken if all(each.op_type in SIZELESS and not each.domain for each in other) else None


# They do the same whatever the sizes of their operands are.
SIZELESS = frozenset(("Identity", "Squeeze", "Unsqueeze", "Cast", "Constant"))


# -- evaluation ------------------------------------------------------------------------------------


def evaluate(node: ir.Node, version: int, known: Trace) -> None:
    """Note the numbers of a node's outputs where those of its inputs are known and they are few."""
    if node.domain != "" or subgraphs(node):
        return
    if node.op_type in ("Shape", "Size") and node.inputs[0] is not None:
        shape = known.shape(node.inputs[0])
        if shape is not None:
            known.numbers[node.outputs[0]] = shape_numbers(node, shape)
        return
    if not node.inputs or any(value is not None and value not in known.numbers for value in node.inputs):
        return
    types = [known.types.get(value) for value in node.outputs]
    if any(each is not None and not is_small(each.shape) for each in types) or node in known.problems:
        return
    if node.op_type not in EVALUATED or (None in types and node.op_type not in NO_LARGER):
        return
    operands = [None if value is None else known.numbers[value] for value in node.inputs]
    results = compute(node, version, operands)
    if results is not None:
        for value, numbers, known_type in zip(node.outputs, results, types, strict=True):
            if known_type is None:
                # A shape that follows from numbers, as that of NonZero does.
                known.types[value] = known_type = Type(numbers.shape, ir.DataType.from_numpy(numbers.dtype))
            if numbers.shape == known_type.shape and is_small(numbers.shape):
                known.numbers[value] = numbers


def shape_numbers(node: ir.Node, shape: Shape) -> Numbers:
    if node.op_type == "Size":
        return np.asarray(prod(shape), dtype=np.int64)
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", None)
    return np.asarray(shape[start:end], dtype=np.int64)


def compute(node: ir.Node, version: int, operands: Sequence[Numbers | None]) -> list[Numbers] | None:
    """Run ONNX's reference implementation of one node."""
    try:
        implementation = load_op(node.domain, node.op_type, version)
        attributes = {name: plain(attribute) for name, attribute in node.attributes.items()}
        found = implementation.eval(*operands, n_outputs=len(node.outputs), **attributes)
    except Exception:
        # The reference raises what it likes at operators or operands that it does not know: the numbers stay unknown,
        # and what is not known is not relied on.
        return None
    results = list(found) if isinstance(found, tuple) else [found]
    return [np.asarray(each) for each in results] if len(results) == len(node.outputs) else None


def plain(attribute: ir.Attr) -> Any:
    if attribute.type == ir.AttributeType.TENSOR:
        return ir.serde.serialize_tensor(attribute.as_tensor())
    return list(attribute.value) if isinstance(attribute.value, tuple) else attribute.value
