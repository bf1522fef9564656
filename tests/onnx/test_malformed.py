"""Malformed models: each ends as a right result or as one of our errors, in bounded time; what is right is taken."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import structprune
from structprune.errors import CaptureError, InvalidArgument, StructpruneError, UnsupportedModel, UnsupportedRatio
from tests.onnx.build import build, weights
from tests.onnx.test_files import SIGNATURE, net, raised
from tests.onnx.test_hostile import within

WEIGHTS = {"w0": (6, 64), "b0": (64,), "w1": (64, 5), "b1": (5,)}


def value(name: str, shape: Any, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def shrunk(model: onnx.ModelProto, ratio: float = 0.2) -> onnx.ModelProto:
    with within(60):
        small: onnx.ModelProto = structprune.shrink(model, ratio, verify="numeric", align=1)
    onnxruntime.InferenceSession(small.SerializeToString(), providers=["CPUExecutionProvider"])
    return small


def edited(edit: Callable[[onnx.ModelProto], Any]) -> onnx.ModelProto:
    model = net()
    edit(model)
    return model


# -- names and order -------------------------------------------------------------------------------


def again(model: onnx.ModelProto, field: str, place: int = 0) -> None:
    getattr(model.graph, field).append(getattr(model.graph, field)[place])


WRONG: dict[str, tuple[Callable[[onnx.ModelProto], Any], str]] = {
    "a cycle": (lambda m: m.graph.node[0].input.__setitem__(0, "r"), "a cycle"),
    "a loop": (lambda m: m.graph.node[1].input.__setitem__(0, "r"), "a cycle"),
    "a name given twice": (lambda m: again(m, "node", 1), "'r' is given twice"),
    "an input given twice": (lambda m: again(m, "input"), "'x' is given twice"),
    "an input that a node gives": (lambda m: m.graph.node[1].output.__setitem__(0, "x"), "'x' is given twice"),
    "a weight that a node gives": (lambda m: m.graph.node[1].output.__setitem__(0, "w1"), "'w1' is given twice"),
    "duplicate initializers": (lambda m: again(m, "initializer"), "two initializers are called 'w0'"),
    "a sparse initializer": (lambda m: m.graph.sparse_initializer.add(), "sparse initializers are not supported"),
    "no name": (lambda m: m.graph.initializer.add(data_type=1), "without a name"),
    "no operator": (lambda m: setattr(m.graph.node[1], "op_type", ""), "does not say which operator"),
    "an output of nothing": (lambda m: setattr(m.graph.output[0], "name", "z"), "the output 'z' of the graph"),
    "no operator set": (lambda m: m.ClearField("opset_import"), "does not say which operator set"),
    "operator set 0": (lambda m: setattr(m.opset_import[0], "version", 0), "version 0"),
    "two operator sets": (lambda m: m.opset_import.add(domain="", version=11), "version 11"),
    "no version": (lambda m: m.ClearField("ir_version"), "version 0 of the format"),
    "a version to come": (lambda m: setattr(m, "ir_version", 99), "version 99 of the format"),
    "graphs for training": (lambda m: m.training_info.add(), "training"),
    "no graph": (lambda m: m.ClearField("graph"), "no graph"),
    "an unknown type": (lambda m: setattr(m.graph.initializer[0], "data_type", 99), "the unknown type 99"),
    "no type": (lambda m: setattr(m.graph.initializer[0], "data_type", 0), "the unknown type 0"),
    "another type": (lambda m: setattr(m.graph.initializer[0], "data_type", 11), "needs 3,072 bytes, but 1,536"),
    "a text": (lambda m: setattr(m.graph.initializer[0], "data_type", 8), "needs 384 numbers, but 0"),
    "more than there is": (lambda m: m.graph.initializer[0].dims.append(2), "needs 3,072 bytes, but 1,536"),
    "less than there is": (lambda m: m.graph.initializer[0].dims.pop(), "needs 24 bytes, but 1,536"),
    "a negative size": (lambda m: m.graph.initializer[0].dims.__setitem__(0, -6), "impossible shape [-6, 64]"),
    "a size beyond all": (lambda m: m.graph.initializer[0].dims.__setitem__(0, 2**62), "impossible shape"),
    "sizes beyond all": (lambda m: m.graph.initializer[0].dims.extend([0, 2**62, 2**62]), "impossible shape"),
    "no data": (lambda m: m.graph.initializer[0].ClearField("raw_data"), "needs 384 numbers, but 0"),
    "a segment": (lambda m: m.graph.initializer[0].segment.SetInParent(), "segments"),
    "an attribute twice": (lambda m: [m.graph.node[1].attribute.add(name="a", type=2) for _ in "12"], "attributes 'a'"),
    "a sparse attribute": (
        lambda m: m.graph.node[1].attribute.add(name="a", type=11).sparse_tensor.SetInParent(), "sparse tensors"
    ),
    "an unknown type of value": (lambda m: m.graph.value_info.append(value("h", [1], 99)), "99"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(name: str) -> None:
    edit, why = WRONG[name]
    raised(UnsupportedModel, lambda: structprune.shrink(edited(edit), 0.2), "the ModelProto", why)


def test_nodes_in_any_order_are_put_in_order() -> None:
    model = net()
    nodes = [*model.graph.node]
    feeds = {"x": np.ones((2, 6), dtype=np.float32)}
    expected = onnxruntime.InferenceSession(shrunk(model).SerializeToString()).run(None, feeds)[0]
    for seed in range(4):
        random.Random(seed).shuffle(nodes)
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        before = model.SerializeToString()
        found = onnxruntime.InferenceSession(shrunk(model).SerializeToString()).run(None, feeds)[0]
        assert np.array_equal(found, expected) and model.SerializeToString() == before


RIGHT: dict[str, Callable[[onnx.ModelProto], Any]] = {
    "a stated size that lies": lambda m: m.graph.value_info.append(value("h", [3, 17])),
    "a negative stated size": lambda m: m.graph.value_info.append(value("h", [-5, -7])),
    "texts": lambda m: m.graph.initializer.append(numpy_helper.from_array(np.array(["a"], dtype=object), "t")),
    "no entries": lambda m: m.graph.initializer.append(numpy_helper.from_array(np.zeros((0, 5), np.float32), "e")),
    "a scalar": lambda m: m.graph.initializer.append(numpy_helper.from_array(np.float32(3), "s")),
    "an output twice": lambda m: again(m, "output"),
    "a sequence": lambda m: m.graph.input.append(helper.make_tensor_sequence_value_info("s", 1, [2])),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_odd_but_right_is_taken(name: str) -> None:
    small = shrunk(edited(RIGHT[name]))
    assert small.ByteSize() < net().ByteSize()


@pytest.mark.parametrize("kind", [16, 17, 18, 19, 20, 21, 22, 23, 10, 11, 6, 2, 3, 4, 5, 7, 9, 12, 13, 14, 15])
@pytest.mark.parametrize("is_raw", [True, False])
def test_types_that_stand_beside_the_computation(kind: int, is_raw: bool) -> None:
    """bfloat16, the eight-bit floats, four-bit integers, complex numbers: kept bit by bit, packed or not."""
    numbers = np.array([0, 1, 1, 0, 1])
    data = numbers.astype(helper.tensor_dtype_to_np_dtype(kind))
    tensor = numpy_helper.from_array(data, "extra") if is_raw else helper.make_tensor("extra", kind, [5], data.tolist())
    model = edited(lambda m: m.graph.initializer.append(tensor))
    small = structprune.shrink(model, 0.2, verify=None, align=1)
    found = next(each for each in small.graph.initializer if each.name == "extra")
    assert np.array_equal(numpy_helper.to_array(found).astype(complex), data.astype(complex))
    assert found.data_type == kind


# -- functions and graphs inside graphs --------------------------------------------------------------


def function(name: str, nodes: list[onnx.NodeProto], opset: int = 20) -> onnx.FunctionProto:
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("l", 1)]
    return helper.make_function("l", name, ["a"], ["b"], nodes, imports)


def with_functions(*functions: onnx.FunctionProto) -> onnx.ModelProto:
    model = net()
    model.functions.extend(functions)
    model.opset_import.append(helper.make_opsetid("l", 1))
    model.graph.node[1].op_type, model.graph.node[1].domain = "f0", "l"
    return model


def call(name: str, given: str = "a", made: str = "b") -> onnx.NodeProto:
    return helper.make_node(name, [given], [made], domain="" if name == "Relu" else "l")


def twice(depth: int) -> list[onnx.FunctionProto]:
    doubled = [function(f"f{k}", [call(f"f{k + 1}", "a", "c"), call(f"f{k + 1}", "c")]) for k in range(depth)]
    return [*doubled, function(f"f{depth}", [call("Relu")])]


def test_functions_end() -> None:
    for functions in ([function("f0", [call("f0")])], [function("f0", [call("f1")]), function("f1", [call("f0")])]):
        raised(UnsupportedModel, lambda functions=functions: shrunk(with_functions(*functions)), "calls itself")
    with within(20):
        raised(UnsupportedModel, lambda: shrunk(with_functions(*twice(40))), "nodes; more than 50,000")
        raised(UnsupportedModel, lambda: shrunk(with_functions(*twice(300))), "about 2^301 nodes")
    assert shrunk(with_functions(*twice(6))).ByteSize() < net().ByteSize()
    deep = [function(f"f{k}", [call(f"f{k + 1}")]) for k in range(300)]
    assert structprune.shrink(with_functions(*deep, function("f300", [call("Relu")])), 0.2, verify=None, align=1)


def test_functions_that_do_not_fit_their_calls() -> None:
    relu = function("f0", [call("Relu")])
    raised(UnsupportedModel, lambda: shrunk(with_functions(relu, relu)), "the same name")
    raised(UnsupportedModel, lambda: shrunk(with_functions(function("f0", [call("Relu")], 11))), "version 11")
    raised(UnsupportedModel, lambda: shrunk(with_functions(function("f0", [call("Relu", "z")]))), "reads 'z'")
    for edit in (lambda node: node.input.append("x"), lambda node: node.output.append("more")):
        model = with_functions(relu)
        edit(model.graph.node[1])
        raised(UnsupportedModel, lambda model=model: shrunk(model), "functions cannot be written out")
    model = with_functions(relu)
    model.functions[0].output[0] = "z"
    raised(UnsupportedModel, lambda: shrunk(model), "the output 'z' of the function 'f0'")


def nested(depth: int) -> onnx.ModelProto:
    model = net()
    model.graph.input.append(value("c", [], TensorProto.BOOL))
    graph = helper.make_graph([helper.make_node("Relu", ["h"], ["o"])], "g", [], [value("o", ["N", 64])])
    for k in range(depth):
        name = "r" if k == depth - 1 else f"o{k}"
        outer = helper.make_node("If", ["c"], [name], then_branch=graph, else_branch=graph)
        if k < depth - 1:
            graph = helper.make_graph([outer], "g", [], [value(name, ["N", 64])])
    model.graph.node[1].CopyFrom(outer)
    return model


def test_graphs_inside_graphs() -> None:
    raised(UnsupportedRatio, lambda: shrunk(nested(5)), "If runs a graph of its own")
    model = nested(2)
    model.graph.node[1].attribute[0].g.node[0].input[0] = "z"
    raised(UnsupportedModel, lambda: shrunk(model), "reads 'z', which nothing gives")
    model = nested(1)
    model.graph.node[1].attribute[0].g.output[0].name = "h"
    raised(UnsupportedModel, lambda: shrunk(model), "the output 'h' of a graph inside If")


# -- time and memory -------------------------------------------------------------------------------

HUGE = {
    "Concat": "".join(f"c{k} = Concat <axis = 0> ({v}, {v})\n" for k in range(40) for v in [f"c{k - 1}" if k else "o"])
    + "big = Identity (c39)",
    "ConstantOfShape": "big = ConstantOfShape (n)",
    "Expand": "big = Expand (o, n)",
    "Tile": "big = Tile (o, n)",
    "Range": "big = Range (z, s, i)",
    "OneHot": "big = OneHot (n, s, v)",
    "Pad": "big = Pad (o, p)",
    "HannWindow": "big = HannWindow (s)",
}


@pytest.mark.parametrize("name", HUGE)
def test_what_no_machine_holds(name: str) -> None:
    body = f"h = Gemm (x, w0, b0)\n{HUGE[name]}\ns0 = ReduceSum <keepdims = 0> (big)\nf = Cast <to = 1> (s0)\n"
    numbers = {"n": np.array([2**40]), "s": np.array(2**40), "z": np.array(0), "i": np.array(1),
               "o": np.ones(1, np.float32), "v": np.array([0, 1], np.float32), "p": np.array([2**40, 0])}  # fmt: skip
    model = build(SIGNATURE, body + "g = Add (h, f)\ny = Gemm (g, w1, b1)", {**weights(WEIGHTS), **numbers})
    with within(20):
        raised(CaptureError, lambda: structprune.shrink(model, 0.2), "entries of shape", "more than")


def test_parts_without_number_are_held() -> None:
    body = "h = Gemm (x, w0, b0)\n" + "".join(
        f"c{k} = Concat <axis = 0> ({f'c{k - 1}' if k else 't'}, {f'c{k - 1}' if k else 't'})\n" for k in range(24)
    )
    body += "s = ReduceSum <keepdims = 0> (c23)\ng = Add (h, s)\ny = Gemm (g, w1, b1)"
    model = build(SIGNATURE, body, {**weights(WEIGHTS), "t": np.ones(2, np.float32)})
    with within(30):
        assert shrunk(model).ByteSize() < model.ByteSize()


def test_inputs_that_no_machine_holds() -> None:
    model = edited(lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 2**62))
    raised(CaptureError, lambda: shrunk(model), "'x' would have about 2^64 entries")


CHAINS = {
    "nodes": ("h0 = Gemm (x, w0, b0)\n", "h{next} = Relu (h{k})\n", "y = Gemm (h{n}, w1, b1)"),
    "a weight": ("h0 = Identity (w0)\n", "h{next} = Identity (h{k})\n", "g = Gemm (x, h{n}, b0)\ny = Gemm (g, w1, b1)"),
    "sizes": ("g = Gemm (x, w0, b0)\nh0 = Shape (g)\n", "h{next} = Add (h{k}, z)\n",
              "q = Reshape (g, h{n})\ny = Gemm (q, w1, b1)"),
    "a table": ("h0 = Add (t, t)\n", "h{next} = Add (h{k}, t)\n",
                "g = Gemm (x, w0, b0)\nq = Mul (g, h{n})\ny = Gemm (q, w1, b1)"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_models_deeper_than_any_stack(name: str) -> None:
    first, step, last = CHAINS[name]
    n = 1500
    body = first + "".join(step.format(k=k, next=k + 1) for k in range(n)) + last.format(n=n)
    arrays = {**weights(WEIGHTS), "z": np.array([0]), "t": np.ones(64, np.float32)}
    model = build(SIGNATURE, body, arrays)
    with within(60):
        small = structprune.shrink(model, 0.2, align=1, verify=None)
    assert small.ByteSize() < model.ByteSize()


# -- drawn at random -------------------------------------------------------------------------------


def image_net() -> onnx.ModelProto:
    body = (
        "h = Conv <group = 2, kernel_shape = [3, 3], strides = [2, 2]> (x, w0, b0)\n"
        "n = BatchNormalization <epsilon = 0.001> (h, s, t, m, v)\nr = Relu (n)\n"
        "p = MaxPool <kernel_shape = [2, 2]> (r)\n"
        "g = GlobalAveragePool (p)\nf = Flatten <axis = 1> (g)\ny = Gemm <transB = 1> (f, w1)"
    )
    arrays = weights({"w0": (16, 2, 3, 3), "b0": (16,), "s": (16,), "t": (16,), "m": (16,), "w1": (5, 16)})
    return build("(float[N, 4, 9, 9] x) => (float[N, 5] y)", body, {**arrays, "v": np.ones(16, np.float32)})


def attention_net() -> onnx.ModelProto:
    body = (
        "e = Gather <axis = 0> (table, x)\nq = MatMul (e, wq)\nk = MatMul (e, wk)\n"
        "k2 = Transpose <perm = [0, 2, 1]> (k)\n"
        "a = MatMul (q, k2)\ns = Softmax <axis = -1> (a)\nv = MatMul (e, wv)\no = MatMul (s, v)\ny = MatMul (o, wo)"
    )
    shapes = {"table": (20, 12), "wq": (12, 8), "wk": (12, 8), "wv": (12, 10), "wo": (10, 3)}
    return build("(int64[N, 7] x) => (float[N, 7, 3] y)", body, weights(shapes))


def shape_net() -> onnx.ModelProto:
    body = (
        "h = Gemm (x, w0, b0)\nc = Shape (h)\nn = Gather (c, i0)\nu = Unsqueeze (n, a0)\n"
        "q = Concat <axis = 0> (u, m1, f4)\n"
        "r = Reshape (h, q)\nt = Transpose <perm = [0, 2, 1]> (r)\nl = Reshape (t, flat)\ny = Gemm (l, w1, b1)"
    )
    numbers = {name: np.array(each) for name, each in
               {"i0": 0, "a0": [0], "m1": [-1], "f4": [4], "flat": [0, -1]}.items()}  # fmt: skip
    return build(SIGNATURE, body, {**weights(WEIGHTS), **numbers})


def function_net() -> onnx.ModelProto:
    return with_functions(*twice(2))


SEEDS = (net, image_net, attention_net, shape_net, function_net, lambda: nested(2))
FIELDS = ("op_type", "domain", "name", "elem_type", "dim_value", "data_type", "i", "f", "type", "version", "ir_version")


def flipped(content: bytes, draw: random.Random) -> bytes:
    """Bits or bytes changed, left out, or copied."""
    found = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(found))
        match draw.randrange(5):
            case 0:
                found[at] ^= 1 << draw.randrange(8)
            case 1:
                found[at] = draw.choice((0, 1, 127, 128, 255))
            case 2:
                del found[at : at + draw.randint(1, 9)]
            case 3:
                found[at:at] = found[at : at + draw.randint(1, 9)]
            case _:
                del found[at:]
                found = found or bytearray(b"\0")
    return bytes(found)


def parts_of(message: Any) -> list[Any]:
    """All messages inside a message."""
    found = [message]
    for each in found:
        for field, held in each.ListFields():
            if field.type == field.TYPE_MESSAGE:
                found.extend(held if hasattr(held, "append") else [held])
    return found


def twisted(model: onnx.ModelProto, draw: random.Random) -> None:
    """One field of the structure left out, repeated, exchanged, or given another number."""
    parts = [part for part in parts_of(model) if part.ListFields()]
    part = draw.choice(parts)
    field, held = draw.choice(part.ListFields())
    if hasattr(held, "append"):
        order = [*held]
        kind = draw.randrange(4)
        changed = {
            0: order[1:], 1: [*order, order[0]], 2: order[::-1],
            3: [draw.choice((0, -1, 1, 2, 3, 2**31, 2**62)) if type(each) is int else each for each in order],
        }[kind]  # fmt: skip
        copies = [type(each).FromString(each.SerializeToString()) if hasattr(each, "ListFields") else each
                  for each in changed]  # fmt: skip
        part.ClearField(field.name)
        getattr(part, field.name).extend(copies)
    elif type(held) is int:
        most = 2**31 if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_ENUM) else 2**63
        number = draw.choice((0, 1, 2, 7, -1, held + 1, -most, most - 1))
        if field.cpp_type == field.CPPTYPE_ENUM:
            number = draw.choice([each.number for each in field.enum_type.values])
        setattr(part, field.name, number)
    elif type(held) is str:
        others = [each.op_type for each in model.graph.node] + ["", "x", "y", "h", "Concat", "Reshape", "\x1b[2J"]
        setattr(part, field.name, draw.choice(others))
    else:
        part.ClearField(field.name)


def mutation(seed: int) -> onnx.ModelProto | bytes:
    draw = random.Random(seed)
    model = SEEDS[seed % len(SEEDS)]()
    if draw.random() < 0.4:
        return flipped(model.SerializeToString(), draw)
    for _ in range(draw.randint(1, 2)):
        twisted(model, draw)
    return model


def outcome(made: onnx.ModelProto | bytes, path: Any) -> str:
    """A right result, or an error of ours of the right kind."""
    path.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    allowed = (UnsupportedModel, CaptureError, UnsupportedRatio, InvalidArgument)
    try:
        with within(60):
            small = structprune.shrink(path, 0.2, verify="numeric", align=1, output_path=path.with_name("small.onnx"))
    except StructpruneError as error:
        assert type(error) in allowed, repr(error)
        assert len(str(error)) < 3000 and all(line.isprintable() for line in str(error).split("\n"))
        return type(error).__name__
    try:
        onnxruntime.InferenceSession(str(small), providers=["CPUExecutionProvider"])
    except Exception:
        # What onnxruntime's own optimizations make of the original does not load either.
        with pytest.raises(Exception):  # noqa: B017
            onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return "not optimized"
    return "shrunk"


@pytest.mark.parametrize("start", range(0, 150, 30))
def test_mutations_end_well(start: int, tmp_path: Any) -> None:
    found = {outcome(mutation(seed), tmp_path / "net.onnx") for seed in range(start, start + 30)}
    assert {"shrunk", "UnsupportedModel"} <= found


def test_an_unforeseen_failure_is_the_models_where_others_refuse_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from structprune.frontends.onnx import front

    def broken(*given: Any) -> None:
        raise ZeroDivisionError("unforeseen")

    monkeypatch.setattr(front, "Lowering", broken)
    with pytest.raises(ZeroDivisionError):
        structprune.analyze(net())
    wrong = net()
    wrong.graph.node[1].attribute.add(name="alpha", type=onnx.AttributeProto.FLOAT, f=1.0)
    raised(UnsupportedModel, lambda: structprune.analyze(wrong), "not a valid ONNX model", "alpha")
