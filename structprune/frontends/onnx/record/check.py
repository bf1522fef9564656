"""What a model file must be before anything relies on it. Strangers' files lie; each lie gets one clear sentence.

The file's own structure is walked with a stack, never by recursion: names that are given once and read where they
are known, tensors whose data are all there, functions that end. onnx_ir, which reads the file afterwards, takes much
of this for granted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from structprune.errors import UnsupportedModel, printable
from structprune.frontends.onnx.record.external import Data, check_data

# Protobuf itself reads no file that is nested deeper; models made in memory can be.
DEEPEST = 32
# Nodes once all functions stand written out where they are called.
MOST_NODES = 50_000
# Calls of one function, squared, times its nodes: a new name is looked for among all that were made before.
MOST_NAMES = 1 << 24
# The largest number of entries that an array can have.
MOST_ENTRIES = 2**62

# Where the data of a type lie when they are no raw bytes; those of all other types lie in int32_data.
FIELDS = {
    "FLOAT": "float_data",
    "COMPLEX64": "float_data",
    "DOUBLE": "double_data",
    "COMPLEX128": "double_data",
    "INT64": "int64_data",
    "UINT64": "uint64_data",
    "UINT32": "uint64_data",
    "STRING": "string_data",
}
# Two numbers stand for one entry.
PAIRS = frozenset(("COMPLEX64", "COMPLEX128"))
Name = tuple[str, str, str]
MAIN: Name = ("", "", "")


@dataclass(frozen=True, slots=True)
class Body:
    """The nodes of a graph or a function, and the names that it can read from the graphs around it."""

    where: str
    nodes: Sequence[onnx.NodeProto]
    graph: onnx.GraphProto | None
    function: onnx.FunctionProto | None
    around: tuple[frozenset[str], ...] = ()


def check(proto: onnx.ModelProto, name: str, folder: Path) -> None:
    """Refuse a model that is not what it must be; `name` is how the user knows it, `folder` where its data lie."""
    try:
        check_texts(proto)
        check_header(proto)
        check_functions(proto)
        for body in bodies(proto):
            check_body(body, folder)
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{name}: {error}") from None


def check_texts(proto: onnx.ModelProto) -> None:
    """All names and texts are texts: protobuf hands out those that are not as bytes, which nothing else expects."""
    stack: list[Message] = [proto]
    while stack:
        message = stack.pop()
        if isinstance(message, onnx.TensorProto):
            # Not all of its fields: the data would be copied.
            check_text("name", message.name)
            check_text("doc_string", message.doc_string)
            stack.extend((*message.external_data, *message.metadata_props))
            continue
        for field, value in message.ListFields():
            many = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
            if field.type == FieldDescriptor.TYPE_STRING:
                for each in many:
                    check_text(field.name, each)
            elif field.type == FieldDescriptor.TYPE_MESSAGE:
                stack.extend(many)


def check_text(field: str, text: str | bytes) -> None:
    if isinstance(text, bytes):
        raise UnsupportedModel(f"a field {field} holds '{printable(text.decode(errors='backslashreplace'))}', no UTF-8")


def check_header(proto: onnx.ModelProto) -> None:
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        raise UnsupportedModel("it holds no graph: it is not an ONNX model, or only a part of one")
    if not 1 <= proto.ir_version <= onnx.IR_VERSION:
        raise UnsupportedModel(
            f"it is written in version {proto.ir_version} of the format; "
            f"the installed onnx reads 1 to {onnx.IR_VERSION}"
        )
    if not proto.opset_import:
        raise UnsupportedModel("it does not say which operator set it uses")
    if proto.training_info:
        raise UnsupportedModel("it holds graphs for training, which are not supported: del model.training_info[:]")
    for imports in (proto.opset_import, *(function.opset_import for function in proto.functions)):
        versions: dict[str, int] = {}
        for each in imports:
            domain = "" if each.domain == "ai.onnx" else each.domain
            if each.version < 1 or versions.setdefault(domain, each.version) != each.version:
                raise UnsupportedModel(f"version {each.version} of the operator set '{printable(domain)}' cannot be")


def bodies(proto: onnx.ModelProto) -> Iterator[Body]:
    """The main graph, the functions, and every graph inside them, each after what it stands in."""
    stack = [Body("the graph", proto.graph.node, proto.graph, None)]
    for function in proto.functions:
        stack.append(Body(f"the function '{printable(function.name)}'", function.node, None, function))
    while stack:
        body = stack.pop()
        yield body
        inner: list[tuple[str, onnx.GraphProto]] = []
        for node in body.nodes:
            inner += ((label(node), graph) for attribute in node.attribute for graph in graphs_of(attribute))
        if inner and len(body.around) >= DEEPEST:
            raise UnsupportedModel(f"its graphs are nested more than {DEEPEST} deep")
        around = (*body.around, frozenset(given(body))) if inner else ()
        stack += (Body(f"a graph inside {where}", graph.node, graph, None, around) for where, graph in inner)


def graphs_of(attribute: onnx.AttributeProto) -> list[onnx.GraphProto]:
    return [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def label(node: onnx.NodeProto) -> str:
    return f"{printable(node.op_type)} '{printable(node.name)}'" if node.name else printable(node.op_type)


# -- names -----------------------------------------------------------------------------------------


def given(body: Body) -> Iterator[str]:
    """Every name that a body gives, as often as it gives it; an initializer may give its input a default."""
    if body.graph is not None:
        inputs = [value.name for value in body.graph.input]
        yield from inputs
        known = set(inputs)
        yield from (tensor.name for tensor in body.graph.initializer if tensor.name not in known)
    if body.function is not None:
        yield from body.function.input
    for node in body.nodes:
        yield from (name for name in node.output if name)


def repeated(names: Iterable[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)


def check_body(body: Body, folder: Path) -> None:
    check_names(body)
    for tensor in body.graph.initializer if body.graph is not None else ():
        if not tensor.name:
            raise UnsupportedModel(f"{body.where} holds an initializer without a name")
        check_tensor(tensor, f"the initializer '{printable(tensor.name)}'", folder)
    if body.function is not None:
        check_attributes(body.function.attribute_proto, body.where, folder)
    for node in body.nodes:
        if not node.op_type:
            raise UnsupportedModel(f"{body.where} holds a node that does not say which operator it is")
        check_attributes(node.attribute, label(node), folder)


def check_names(body: Body) -> None:
    """Each name is given once; what is read is known."""
    graph = body.graph
    if graph is not None:
        if graph.sparse_initializer:
            raise UnsupportedModel("sparse initializers are not supported: store them as ordinary ones")
        if (twice := repeated(tensor.name for tensor in graph.initializer)) is not None:
            raise UnsupportedModel(f"two initializers are called '{printable(twice)}'")
    names = list(given(body))
    if (twice := repeated(names)) is not None:
        raise UnsupportedModel(f"'{printable(twice)}' is given twice in {body.where}")
    own = set(names)
    for node in body.nodes:
        for name in node.input:
            if name and name not in own and not any(name in outer for outer in body.around):
                raise UnsupportedModel(f"{label(node)} reads '{printable(name)}', which nothing gives")
    outputs = [value.name for value in graph.output] if graph is not None else []
    for name in outputs if body.function is None else body.function.output:
        if name not in own:
            raise UnsupportedModel(f"the output '{printable(name)}' of {body.where} is given by nothing in it")


# -- functions -------------------------------------------------------------------------------------


def check_functions(proto: onnx.ModelProto) -> None:
    names = [called(function) for function in proto.functions]
    if len(set(names)) < len(names):
        raise UnsupportedModel("two of its functions have the same name")
    inside = {name: [called(node) for node in nodes_inside(function.node)]
              for name, function in zip(names, proto.functions, strict=True)}  # fmt: skip
    check_calls([called(node) for node in nodes_inside(proto.graph.node)] if inside else [], inside)


def check_calls(main: Sequence[Name], functions: Mapping[Name, Sequence[Name]]) -> None:
    """Functions end, and do not multiply: written out, the model has a number of nodes that can be handled.

    Given are the operators of the main graph and those of each function, which may be functions again.
    """
    inside = {MAIN: main, **functions}
    sizes = {name: len(operators) for name, operators in inside.items()}
    calls = {name: Counter(each for each in operators if each in functions) for name, operators in inside.items()}
    readers: dict[Name, list[Name]] = {}
    for name, inner in calls.items():
        for each in inner:
            readers.setdefault(each, []).append(name)
    waits = {name: len(inner) for name, inner in calls.items()}
    ready = [name for name, count in waits.items() if not count]
    for name in ready:
        sizes[name] += sum(sizes[each] * count for each, count in calls[name].items())
        for reader in readers.get(name, ()):
            waits[reader] -= 1
            if not waits[reader]:
                ready.append(reader)
    if len(ready) < len(waits):
        endless = next(name for name, count in waits.items() if count and name != MAIN)
        raise UnsupportedModel(f"its function '{printable(endless[1])}' calls itself, or one that does")
    if functions and sizes[MAIN] > MOST_NODES:
        raise UnsupportedModel(
            f"its functions, written out where they are called, come to {count_of(sizes[MAIN])} nodes; "
            f"more than {MOST_NODES:,} are not supported"
        )
    times = Counter((MAIN,))
    for name in reversed(ready):
        for each, count in calls[name].items():
            times[each] += times[name] * count
    for name, count in times.items():
        if name != MAIN and count * count * len(inside[name]) > MOST_NAMES:
            raise UnsupportedModel(
                f"its function '{printable(name[1])}' is called {count_of(count)} times, which takes too long to write "
                "out: write the functions out beforehand (onnx.inliner)"
            )


def count_of(number: int) -> str:
    return f"{number:,}" if number < 10**15 else f"about 2^{number.bit_length() - 1}"


def called(each: onnx.NodeProto | onnx.FunctionProto) -> Name:
    name = each.op_type if isinstance(each, onnx.NodeProto) else each.name
    return ("" if each.domain == "ai.onnx" else each.domain, name, each.overload)


def nodes_inside(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes, and those of all graphs inside them."""
    stack = [nodes]
    while stack:
        for node in stack.pop():
            yield node
            stack.extend(graph.node for attribute in node.attribute for graph in graphs_of(attribute))


# -- tensors ---------------------------------------------------------------------------------------


def check_attributes(attributes: Sequence[onnx.AttributeProto], where: str, folder: Path) -> None:
    if (twice := repeated(attribute.name for attribute in attributes)) is not None:
        raise UnsupportedModel(f"{where} has two attributes '{printable(twice)}'")
    for attribute in attributes:
        name = f"the attribute '{printable(attribute.name)}' of {where}"
        if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
            raise UnsupportedModel(f"{name}: sparse tensors are not supported")
        for tensor in [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]:
            check_tensor(tensor, name, folder)


def check_tensor(tensor: onnx.TensorProto, name: str, folder: Path) -> None:
    """Its type is one, its sizes can be, and its data are all there and no more."""
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError:
        dtype = ir.DataType.UNDEFINED
    if dtype == ir.DataType.UNDEFINED:
        raise UnsupportedModel(f"{name} has data of the unknown type {tensor.data_type}")
    if any(size < 0 for size in tensor.dims) or prod(size or 1 for size in tensor.dims) > MOST_ENTRIES:
        raise UnsupportedModel(f"{name} has the impossible shape {printable(list(tensor.dims))}")
    if tensor.HasField("segment"):
        raise UnsupportedModel(f"{name} is stored in segments, which are not supported")
    count = prod(tensor.dims)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        if dtype == ir.DataType.STRING:
            raise UnsupportedModel(f"{name} has texts in another file, which the format does not allow")
        check_data(name, Data.read(tensor, name), -(-count * dtype.bitwidth // 8), folder)
        return
    wanted, found, unit = stored(tensor, dtype, count)
    if wanted != found:
        raise UnsupportedModel(f"{name} of shape {list(tensor.dims)} needs {wanted:,} {unit}, but {found:,} are stored")


def stored(tensor: onnx.TensorProto, dtype: ir.DataType, count: int) -> tuple[int, int, str]:
    """How many numbers or bytes a tensor needs, and how many it has."""
    if tensor.HasField("raw_data") and dtype != ir.DataType.STRING:
        return -(-count * dtype.bitwidth // 8), len(tensor.raw_data), "bytes"
    if dtype.name in FIELDS:
        return count * (2 if dtype.name in PAIRS else 1), len(getattr(tensor, FIELDS[dtype.name])), "numbers"
    # Numbers of four bits and of two are stored packed into bytes.
    is_packed = dtype.bitwidth in (2, 4)
    return -(-count * dtype.bitwidth // 8) if is_packed else count, len(tensor.int32_data), "numbers"
