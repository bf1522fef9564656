"""Files as they come: shared and tied tensors, sizes that are computed, control flow, functions, half precision."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import structprune
from structprune.testing import check
from tests.onnx.build import build, constant, weights

TOLERANCE = 1e-5  # a share of the largest output
TOKENS = "(float[N, L, 6] x) => (float[N, L, 5] y)"
IMAGE = "(float[N, 3, H, W] x) => (float[N, 5] y)"


def ints(*numbers: int) -> Any:
    return np.array(numbers, dtype=np.int64)


def half(model: onnx.ModelProto, **options: Any) -> onnx.ModelProto:
    """Without half of its parameters: valid, accepted by onnxruntime, and equal to zeroing."""
    small = structprune.shrink(model, 0.5, verify="numeric", align=1, **options)
    onnx.checker.check_model(small, full_check=True)
    onnxruntime.InferenceSession(small.SerializeToString())
    return small


def tensors(model: onnx.ModelProto) -> dict[str, Any]:
    return {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}


def reasons(model: onnx.ModelProto) -> str:
    analysis = structprune.analyze(model)
    return "; ".join(cause.reason for cause in analysis.solution.system.frozen.values())


# -- shared tensors --------------------------------------------------------------------------------


def shared_bias() -> onnx.ModelProto:
    """Two layers that share a vector because the exporter found it twice."""
    body = "h = Gemm (x, w0, b)\nr = Relu (h)\nk = Gemm (r, w1, b)\ng = Relu (k)\ny = Gemm (g, w2, c)"
    shapes = {"w0": (6, 32), "b": (32,), "w1": (32, 32), "w2": (32, 5), "c": (5,)}
    return build("(float[N, 6] x) => (float[N, 5] y)", body, weights(shapes))


def test_a_vector_shared_by_accident_is_taken_apart() -> None:
    model = shared_bias()
    check(model, tolerance=TOLERANCE)
    assert [group.size for group in structprune.analyze(model).groups] == [32, 32]
    after = tensors(half(model))
    biases = [name for name in after if name.startswith("b")]
    assert "b" in biases and len(biases) == 2


def test_a_vector_that_loses_the_same_stays_shared() -> None:
    body = "h = Gemm (x, w0, b)\nk = Gemm (x, w1, b)\ng = Add (h, k)\ny = Gemm (g, w2)"
    shapes = {"w0": (6, 32), "b": (32,), "w1": (6, 32), "w2": (32, 5)}
    after = tensors(half(build("(float[N, 6] x) => (float[N, 5] y)", body, weights(shapes))))
    assert set(after) == set(shapes)


def test_tied_weights_stay_tied() -> None:
    body = "h = Gather (table, x)\nm = MatMul (h, w1)\nr = Relu (m)\nt = Transpose (table)\ny = MatMul (r, t)"
    model = build(
        "(int64[N, L] x) => (float[N, L, 40] y)", body, weights({"table": (40, 32), "w1": (32, 32)})
    )
    check(model, tolerance=TOLERANCE)
    after = tensors(structprune.shrink(model, 0.4, verify="numeric"))
    assert set(after) == {"table", "w1"} and after["table"].shape[0] == 40 and after["table"].shape[1] < 32


def test_a_weight_that_is_an_output_stays_whole() -> None:
    body = "h = MatMul (x, w0)\ng = Relu (h)\nk = MatMul (g, w1)\nr = Relu (k)\ny = MatMul (r, w2)"
    shapes = {"w0": (6, 32), "w1": (32, 32), "w2": (32, 5)}
    model = build(TOKENS, body, weights(shapes))
    model.graph.output.append(helper.make_tensor_value_info("w0", TensorProto.FLOAT, (6, 32)))
    check(model, tolerance=TOLERANCE)
    after = tensors(structprune.shrink(model, 0.3, verify="numeric"))
    assert after["w0"].shape == (6, 32) and after["w1"].shape[1] < 32


def test_constant_nodes_hold_weights_too() -> None:
    arrays = weights({"w0": (6, 32), "w1": (5, 32)})
    model = build(TOKENS, "h = MatMul (x, w0)\ng = Relu (h)\nt = Transpose (w1)\ny = MatMul (g, t)", {})
    for name, array in arrays.items():
        model.graph.node.insert(0, constant(array, name))
    check(model, tolerance=TOLERANCE)
    small = half(model)
    assert [node.op_type for node in small.graph.node] == [node.op_type for node in model.graph.node]


def test_initializers_that_are_inputs() -> None:
    """Before version 4 of the format, every initializer was an input too."""
    model = shared_bias()
    model.ir_version = 3
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", 8))
    for each in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(each.name, each.data_type, each.dims))
    small = half(model)
    sizes = {each.name: [dim.dim_value for dim in each.type.tensor_type.shape.dim] for each in small.graph.input}
    assert all(sizes[name] == list(array.shape) for name, array in tensors(small).items())
    assert small.graph.input[0].name == "x"


# -- computed sizes --------------------------------------------------------------------------------

HEADS = (
    "s = Shape (h)\nn = Gather (s, zero)\nl = Gather (s, one)\nc = Gather (s, two)\nd = Div (c, heads)\n"
    "n1 = Unsqueeze (n, at)\nl1 = Unsqueeze (l, at)\nd1 = Unsqueeze (d, at)\nc1 = Unsqueeze (c, at)\n"
    "apart = Concat <axis = 0> (n1, l1, heads1, d1)\ntogether = Concat <axis = 0> (n1, l1, c1)\n"
)
NUMBERS = {"zero": np.int64(0), "one": np.int64(1), "two": np.int64(2), "heads": np.int64(4), "heads1": ints(4),
           "at": ints(0)}  # fmt: skip


def test_the_scale_of_attention_stays_what_it_was() -> None:
    """The older exporter computes 1 / sqrt(width) from a shape that changes."""
    body = (
        "h = MatMul (x, wq)\nk = MatMul (x, wk)\nv = MatMul (x, wv)\n" + HEADS
        + "q1 = Reshape (h, apart)\nq2 = Transpose <perm = [0, 2, 1, 3]> (q1)\n"
        "k1 = Reshape (k, apart)\nk2 = Transpose <perm = [0, 2, 3, 1]> (k1)\n"
        "v1 = Reshape (v, apart)\nv2 = Transpose <perm = [0, 2, 1, 3]> (v1)\n"
        "qs = Shape (q2)\nw = Slice (qs, last, end)\nf = Cast <to = 1> (w)\nroot = Sqrt (f)\n"
        "a = MatMul (q2, k2)\nb = Div (a, root)\np = Softmax (b)\no = MatMul (p, v2)\n"
        "o1 = Transpose <perm = [0, 2, 1, 3]> (o)\no2 = Reshape (o1, together)\ny = MatMul (o2, wo)"
    )  # fmt: skip
    shapes = {"wq": (6, 32), "wk": (6, 32), "wv": (6, 32), "wo": (32, 5)}
    arrays = {**weights(shapes), **NUMBERS, "last": ints(-1), "end": ints(2**63 - 1)}
    model = build(TOKENS, body, arrays)
    assert sorted(group.size for group in structprune.analyze(model).groups) == [4, 8, 8]
    check(model, tolerance=TOLERANCE)


def test_numbers_made_of_one_another_stay_what_they_were() -> None:
    """A variance by n / (n - 1), n being a width: both numbers come from one shape."""
    body = (
        "h = MatMul (x, w0)\nm = ReduceMean (h, last)\nd = Sub (h, m)\nq = Mul (d, d)\nv = ReduceMean (q, last)\n"
        "s = Shape (h)\nw = Gather (s, last)\nn = ReduceProd <keepdims = 0> (w, first)\nf = Cast <to = 1> (n)\n"
        "t = Mul (v, f)\nl = Sub (f, one)\nu = Div (t, l)\nr = Sqrt (u)\no = Div (h, r)\ng = Mul (o, gain)\n"
        "y = MatMul (g, w1)"
    )
    arrays = {**weights({"w0": (6, 32), "gain": (32,), "w1": (32, 5)}), "last": ints(-1), "first": ints(0), "one": np.float32(1)}
    model = build(TOKENS, body, arrays)
    assert [group.size for group in structprune.analyze(model).groups] == [32]
    check(model, tolerance=TOLERANCE)
    assert structprune.shrink(model, 0.5).graph.node[0].op_type == "MatMul"


def test_a_number_is_mended_for_one_reader_alone() -> None:
    """Positions times channels over head width: not the same for every length, so its divisor has to change."""
    body = (
        "h = MatMul (x, w0)\n" + HEADS
        + "m = Mul (l, c)\nrows = Div (m, eight)\nrows1 = Unsqueeze (rows, at)\n"
        "flat = Concat <axis = 0> (n1, rows1, eight1)\nr = Reshape (h, flat)\ng = Mul (r, s0)\n"
        "b = Reshape (g, together)\nz = Mul (b, b)\ny = MatMul (z, wh)"
    )  # fmt: skip
    arrays = {**weights({"w0": (6, 32), "s0": (8,), "wh": (32, 5)}), **NUMBERS, "eight": np.int64(8), "eight1": ints(8)}
    model = build(TOKENS, body, arrays)
    check(model, tolerance=TOLERANCE)
    small = half(model)
    sessions = [onnxruntime.InferenceSession(each.SerializeToString()) for each in (model, small)]
    for length in (1, 5, 21):
        x = np.ones((3, length, 6), dtype=np.float32)
        first, second = (session.run(None, {"x": x})[0] for session in sessions)
        assert first.shape == second.shape


def test_a_size_that_cannot_be_mended_stays() -> None:
    """A maximum of two sizes cannot be made another number by changing one of them: the width behind it is held."""
    body = (
        "h = MatMul (x, w0)\n" + HEADS
        + "m = Mul (l, c)\nrows = Div (m, eight)\nmost = Max (rows, one)\nrows1 = Unsqueeze (most, at)\n"
        "flat = Concat <axis = 0> (n1, rows1, minus1)\nr = Reshape (h, flat)\ng = Mul (r, s0)\n"
        "b = Reshape (g, together)\ny = MatMul (b, wh)"
    )  # fmt: skip
    arrays = {**weights({"w0": (6, 32), "s0": (8,), "wh": (32, 5)}), **NUMBERS, "eight": np.int64(8), "minus1": ints(-1)}
    model = build(TOKENS, body, arrays)
    assert sorted(group.size for group in structprune.analyze(model).groups) == [4, 8]
    after = tensors(structprune.shrink(model, 0.49, verify="numeric"))
    assert after["s0"].shape == (8,) and after["w0"].shape == (6, 16)
    with pytest.raises(structprune.errors.StructpruneError, match="reachable"):
        structprune.shrink(model, 0.9)


def test_two_readers_of_one_shape_come_to_need_different_ones() -> None:
    body = (
        "h = MatMul (x, w0)\nk = MatMul (x, w1)\nr = Reshape (h, shape)\ng = Mul (r, s0)\n"
        "q = Reshape (k, shape)\nj = Mul (q, s1)\na = ReduceSum <keepdims = 0> (g, last)\n"
        "b = ReduceSum <keepdims = 0> (j, last)\nc = MatMul (a, v0)\nd = MatMul (b, v1)\ny = Add (c, d)"
    )
    shapes = {"w0": (6, 32), "w1": (6, 32), "s0": (4, 8), "s1": (4, 8), "v0": (4, 5), "v1": (4, 5)}
    model = build(TOKENS, body, {**weights(shapes), "shape": ints(0, 0, 4, 8), "last": ints(3)})
    check(model, tolerance=TOLERANCE)


@pytest.mark.parametrize("is_negative", [False, True])
def test_sizes_left_open_stay_open(is_negative: bool) -> None:
    body = (
        "h = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w0, b0)\nr = Relu (h)\n"
        'u = Resize <mode = "nearest"> (r, , scales)\nk = Conv <kernel_shape = [1, 1]> (u, w1)\n'
        "p = GlobalAveragePool (k)\nf = Flatten (p)\ny = Gemm <transB = 1> (f, wh)"
    )
    shapes = {"w0": (32, 3, 3, 3), "b0": (32,), "w1": (32, 32, 1, 1), "wh": (5, 32)}
    model = build(IMAGE, body, {**weights(shapes), "scales": np.array([1, 1, 2, 2], dtype=np.float32)})
    if is_negative:  # as some exporters write it
        for axis in (0, 2, 3):
            model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = -1
    small = half(model, example_inputs={"x": (1, 3, 6, 8)})
    assert list(small.graph.input) == list(model.graph.input)
    session = onnxruntime.InferenceSession(small.SerializeToString())
    for size in ((1, 3, 5, 9), (4, 3, 32, 16)):
        assert session.run(None, {"x": np.ones(size, dtype=np.float32)})[0].shape == (size[0], 5)


def test_tables_that_indices_are_made_of_are_no_weights() -> None:
    """Relative positions, computed in floating numbers and cast: what is gathered by them stays in its order."""
    body = (
        "d = Sub (down, across)\na = Add (d, three)\ni = Cast <to = 7> (a)\nb = Gather (table, i)\n"
        "c = ReduceSum <keepdims = 0> (b, first)\nh = MatMul (x, w0)\ng = Mul (h, c)\ny = MatMul (g, w1)"
    )
    arrays = {
        **weights({"table": (7, 32), "w0": (6, 32), "w1": (32, 5)}), "first": ints(0, 1), "three": np.float32(3),
        "down": np.arange(4, dtype=np.float32)[:, None], "across": np.arange(4, dtype=np.float32)[None, :],
    }  # fmt: skip
    model = build(TOKENS, body, arrays)
    assert [group.size for group in structprune.analyze(model).groups] == [32]
    check(model, tolerance=TOLERANCE)


def test_a_table_that_divides_is_no_weight() -> None:
    """Frequencies of positions: what is zeroed is what reads them."""
    body = "s = Slice (x, zero, one, last)\nd = Div (s, table)\nh = Sin (d)\nk = MatMul (h, w0)\nr = Relu (k)\ny = MatMul (r, w1)"
    arrays = {**weights({"table": (32,), "w0": (32, 32), "w1": (32, 5)}), "zero": ints(0), "one": ints(1), "last": ints(-1)}
    model = build(TOKENS, body, arrays)
    groups = [{member.parameter for member in group.members} for group in structprune.analyze(model).groups]
    assert {"table", "w0"} in groups
    check(model, tolerance=TOLERANCE)


def test_scales_that_are_put_together_are_no_weights() -> None:
    body = (
        "h = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w0)\ns = Concat <axis = 0> (ones, twos)\n"
        'u = Resize <mode = "nearest"> (h, , s)\np = GlobalAveragePool (u)\nf = Flatten (p)\n'
        "y = Gemm <transB = 1> (f, wh)"
    )
    arrays = {**weights({"w0": (32, 3, 3, 3), "wh": (5, 32)}), "ones": np.ones(2, np.float32), "twos": np.full(2, 2, np.float32)}
    model = build(IMAGE, body, arrays)
    assert [group.size for group in structprune.analyze(model).groups] == [32]
    check(model, tolerance=TOLERANCE)


def blocks(norm: str = "LayerNormalization") -> str:
    """Attention whose result is given the shape of the residual stream: `o.reshape(x.shape)`."""
    return (
        f"h = MatMul (x, w0)\nn = {norm} (h, g0, c0)\nq = MatMul (n, wq)\nk = MatMul (n, wk)\nv = MatMul (n, wv)\n"
        "q1 = Reshape (q, apart)\nq2 = Transpose <perm = [0, 2, 1, 3]> (q1)\n"
        "k1 = Reshape (k, apart)\nk2 = Transpose <perm = [0, 2, 3, 1]> (k1)\n"
        "v1 = Reshape (v, apart)\nv2 = Transpose <perm = [0, 2, 1, 3]> (v1)\n"
        "a = MatMul (q2, k2)\np = Softmax (a)\no = MatMul (p, v2)\no1 = Transpose <perm = [0, 2, 1, 3]> (o)\n"
        "s = Shape (n)\no2 = Reshape (o1, s)\no3 = MatMul (o2, wo)\nr = Add (h, o3)\ny = MatMul (r, wh)"
    )


SHAPES_OF_BLOCKS = {f"w{letter}": (32, 32) for letter in "qkvo"} | {"w0": (6, 32), "wh": (32, 5), "g0": (32,), "c0": (32,)}


@pytest.mark.parametrize("opset", [20, 14])
def test_the_shape_of_another_width_is_no_longer_copied(opset: int) -> None:
    """onnxruntime's optimizers write such files; also with a LayerNormalization before there was one."""
    model = build(TOKENS, blocks(), {**weights(SHAPES_OF_BLOCKS), "apart": ints(0, 0, 4, 8)}, opset)
    assert sorted(group.size for group in structprune.analyze(model).groups) == [4, 8, 8, 32]
    check(model, tolerance=TOLERANCE)
    small = structprune.shrink(model, 0.5, verify="numeric")
    assert "Shape" not in {node.op_type for node in small.graph.node}, "a constant with zeros took its place"
    session = onnxruntime.InferenceSession(small.SerializeToString())
    for size in ((1, 3, 6), (4, 9, 6)):
        assert session.run(None, {"x": np.ones(size, dtype=np.float32)})[0].shape == (*size[:2], 5)


def test_a_shape_that_cannot_be_copied_holds_what_it_is_measured_on() -> None:
    """Batch and positions change places: no constant stands for them, so the measured width has to stay."""
    body = (
        "h = MatMul (x, w0)\nt = Transpose <perm = [1, 0, 2]> (h)\nk = MatMul (x, w1)\ns = Shape (t)\n"
        "r = Reshape (k, s)\ng = MatMul (r, w2)\nu = Transpose <perm = [1, 0, 2]> (g)\nj = MatMul (h, w2)\n"
        "f = Reshape (u, whole)\nm = Reshape (j, whole)\na = Add (f, m)\ny = MatMul (a, wh)"
    )
    shapes = {"w0": (6, 32), "w1": (6, 32), "w2": (32, 32), "wh": (32, 5)}
    model = build(TOKENS, body, {**weights(shapes), "whole": ints(-1, 1, 32)})
    after = tensors(structprune.shrink(model, 0.4, verify="numeric"))
    assert after["w0"].shape[1] == after["w1"].shape[1]


# -- control flow ----------------------------------------------------------------------------------


def branch(name: str, nodes: list[onnx.NodeProto], output: str) -> onnx.GraphProto:
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)])


def test_both_branches_of_an_if_hold_what_they_read() -> None:
    model = build(TOKENS, "h = MatMul (x, w0)\ng = MatMul (h, w1)\ny = MatMul (k, w2)",
                  weights({"w0": (6, 32), "w1": (32, 32), "w2": (32, 5)}))  # fmt: skip
    model.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, ()))
    then = branch("then", [helper.make_node("Relu", ["g"], ["t"])], "t")
    other = branch("other", [helper.make_node("Neg", ["g"], ["e"])], "e")
    model.graph.node.insert(2, helper.make_node("If", ["flag"], ["k"], then_branch=then, else_branch=other))
    assert "If runs a graph of its own" in reasons(model)
    after = tensors(structprune.shrink(model, 0.3, verify="numeric"))
    assert after["w1"].shape == (after["w0"].shape[1], 32) and after["w0"].shape[1] < 32 and after["w2"].shape[0] == 32


def test_an_if_that_follows_from_shapes_is_seen_through() -> None:
    model = build(TOKENS, "h = MatMul (x, w0)\nq = Unsqueeze (h, one)\ns = Shape (q)\nd = Gather (s, one0)\n"
                  "c = Equal (d, one0)\ny = MatMul (k, w2)",
                  {**weights({"w0": (6, 32), "w2": (32, 5)}), "one": ints(1), "one0": np.int64(1)})  # fmt: skip
    then = branch("then", [helper.make_node("Squeeze", ["q", "one"], ["t"])], "t")
    other = branch("other", [helper.make_node("Identity", ["q"], ["e"])], "e")
    model.graph.node.insert(5, helper.make_node("If", ["c"], ["k"], then_branch=then, else_branch=other))
    assert [group.size for group in structprune.analyze(model).groups] == [32]
    check(model, tolerance=TOLERANCE)


def test_a_loop_holds_what_it_reads() -> None:
    model = build(TOKENS, "h = MatMul (x, w0)\ng = MatMul (h, w1)\ny = MatMul (k, w2)",
                  {**weights({"w0": (6, 32), "w1": (32, 32), "w2": (32, 5)}), "times": np.int64(3)})  # fmt: skip
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["state", "g"], ["next"])],
        "body",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in (
            ("i", TensorProto.INT64, ()), ("go", TensorProto.BOOL, ()), ("state", TensorProto.FLOAT, None))],
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in (
            ("on", TensorProto.BOOL, ()), ("next", TensorProto.FLOAT, None))],
    )  # fmt: skip
    model.graph.node.insert(2, helper.make_node("Loop", ["times", "", "g"], ["k"], body=body))
    assert "Loop runs a graph of its own" in reasons(model)
    after = tensors(structprune.shrink(model, 0.3, verify="numeric"))
    assert after["w0"].shape[1] < 32 and after["w1"].shape[1] == 32 and after["w2"].shape == (32, 5)


def test_a_scan_holds_what_it_reads() -> None:
    model = build(TOKENS, "h = MatMul (x, w0)\nr = Relu (h)\ng = MatMul (r, w1)\ny = MatMul (k, w2)",
                  {**weights({"w0": (6, 32), "w1": (32, 32), "w2": (32, 5)}), "start": np.zeros((2, 32), np.float32)})  # fmt: skip
    names = {"state": None, "row": None, "next": None, "out": None}
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names}
    nodes = [helper.make_node("Add", ["state", "row"], ["next"]), helper.make_node("Identity", ["next"], ["out"])]
    body = helper.make_graph(nodes, "body", [values["state"], values["row"]], [values["next"], values["out"]])
    scan = helper.make_node("Scan", ["start", "g"], ["last", "k"], body=body, num_scan_inputs=1,
                            scan_input_axes=[1], scan_output_axes=[1])  # fmt: skip
    model.graph.node.insert(3, scan)
    assert "Scan runs a graph of its own" in reasons(model)
    after = tensors(structprune.shrink(model, 0.3, verify="numeric"))
    assert after["w0"].shape[1] < 32 and after["w1"].shape[1] == 32 and after["w2"].shape == (32, 5)


def test_sequences_hold_what_they_are_made_of() -> None:
    body = (
        "h = MatMul (x, w0)\nr = Relu (h)\ng = MatMul (r, w1)\ns = SequenceConstruct (g, g)\n"
        "k = ConcatFromSequence <axis = 2> (s)\ny = MatMul (k, w2)"
    )
    model = build(TOKENS, body, weights({"w0": (6, 32), "w1": (32, 32), "w2": (64, 5)}))
    assert "the shapes around SequenceConstruct are not known" in reasons(model)
    after = tensors(structprune.shrink(model, 0.3, verify="numeric"))
    assert after["w0"].shape[1] < 32 and after["w1"].shape[1] == 32 and after["w2"].shape == (64, 5)


# -- operators that nobody knows -------------------------------------------------------------------


def test_an_unknown_operator_freezes_what_it_touches_and_the_rest_shrinks() -> None:
    model = build(TOKENS, "h = MatMul (x, w0)\nr = Relu (h)\ng = MatMul (r, w1)\nk = other.Strange (g)\ny = MatMul (k, w2)",
                  weights({"w0": (6, 32), "w1": (32, 32), "w2": (32, 5)}))  # fmt: skip
    model.opset_import.append(helper.make_opsetid("other", 1))
    model.graph.value_info.append(helper.make_tensor_value_info("k", TensorProto.FLOAT, ("N", "L", 32)))
    assert "no rule for 'Strange'" in reasons(model)
    after = tensors(structprune.shrink(model, 0.3))
    assert after["w0"].shape[1] < 32 and after["w1"].shape[1] == 32


def test_where_no_shape_is_known_everything_after_stays() -> None:
    model = build(TOKENS, "h = MatMul (x, w0)\nr = Relu (h)\ng = MatMul (r, w1)\nk = other.Strange (g)\ny = MatMul (k, w2)",
                  weights({"w0": (6, 32), "w1": (32, 32), "w2": (32, 5)}))  # fmt: skip
    model.opset_import.append(helper.make_opsetid("other", 1))
    assert "the shapes around MatMul are not known" in reasons(model)
    after = tensors(structprune.shrink(model, 0.3))
    assert after["w0"].shape[1] < 32 and after["w2"].shape == (32, 5)


def test_shapes_read_off_a_run_hold_for_its_sizes_alone() -> None:
    """What only a run tells is not known for other sizes of the inputs: that is no difference between two models."""
    body = (
        "h = MatMul (x, w0)\nq = com.microsoft.BiasSplitGelu (h, b)\nk = MatMul (q, w1)\nr = Reshape (k, shape)\n"
        "t = Relu (r)\nj = Reshape (t, back)\ny = MatMul (j, w2)"
    )
    arrays = {"shape": ints(0, 0, 4, 8), "back": ints(0, 0, 32)}
    model = build("(float[N, 8, 6] x) => (float[N, 8, 5] y)", body, {
        **weights({"w0": (6, 2560), "b": (2560,), "w1": (1280, 32), "w2": (32, 5)}), **arrays})  # fmt: skip
    check(model, tolerance=TOLERANCE)


def test_shapes_that_depend_on_data_are_read_off_a_run() -> None:
    body = (
        "h = MatMul (x, w0)\nr = Relu (h)\ng = MatMul (r, w1)\nz = NonZero (x)\nt = Transpose (z)\n"
        "c = Cast <to = 1> (t)\na = ReduceSum <keepdims = 0> (c)\nk = Mul (g, a)\ny = MatMul (k, w2)"
    )
    model = build(TOKENS, body, weights({"w0": (6, 32), "w1": (32, 32), "w2": (32, 5)}))
    assert sorted(group.size for group in structprune.analyze(model).groups) == [32, 32]
    half(model)


def test_what_a_run_tells_is_not_asked_of_other_sizes() -> None:
    """The rows that a mask chooses, put back into batches."""
    body = (
        "h = MatMul (x, w0)\n" + HEADS + "z = NonZero (mask)\nt = Transpose (z)\np = GatherND (h, t)\n"
        "w = Concat <axis = 0> (n1, minus1, c1)\nb = Reshape (p, w)\nr = Relu (b)\n"
        "together0 = Reshape (h, parts)\ng = Relu (together0)\nk = Reshape (g, together)\n"
        "q = Add (k, r)\ny = MatMul (q, w1)"
    )  # fmt: skip
    arrays = {**weights({"w0": (6, 32), "w1": (32, 5)}), **NUMBERS, "minus1": ints(-1), "parts": ints(0, 0, 4, 8)}
    model = build(TOKENS.replace("x)", "x, bool[N, L] mask)"), body, arrays)
    feeds = {"x": np.ones((2, 3, 6), dtype=np.float32), "mask": np.ones((2, 3), dtype=bool)}
    small = half(model, example_inputs=feeds)
    session = onnxruntime.InferenceSession(small.SerializeToString())
    feeds = {"x": np.ones((4, 5, 6), dtype=np.float32), "mask": np.ones((4, 5), dtype=bool)}
    assert session.run(None, feeds)[0].shape == (4, 5, 5)


def test_a_width_that_a_size_follows_from_is_held_where_that_size_cannot_be_mended() -> None:
    body = (
        "z = NonZero (mask)\nt = Transpose (z)\np = GatherND (x, t)\nh = MatMul (p, w0)\nr = Relu (h)\n"
        "s = Shape <start = 1> (r)\nto = Concat <axis = 0> (minus1, s)\nv = Reshape (u, to)\n"
        "g = MatMul (r, w1)\nq = Relu (g)\ny = MatMul (q, w2)"
    )
    arrays = {**weights({"w0": (6, 32), "w1": (32, 32), "w2": (32, 5)}), "minus1": ints(-1)}
    signature = "(float[N, L, 6] x, bool[N, L] mask, float[N, 32] u) => (float[M, 5] y, float[K, 32] v)"
    model = build(signature, body, arrays)
    after = tensors(structprune.shrink(model, 0.4, verify="numeric"))
    assert after["w0"].shape == (6, 32) and after["w1"].shape[1] < 32


def test_the_shape_of_numbers_that_are_known_needs_no_run() -> None:
    body = (
        "ones = ConstantOfShape <value = int64[1] {1}> (six)\nz = NonZero (ones)\ni = Squeeze (z, zero1)\n"
        "w = Gather (w0, i)\nh = MatMul (x, w)\nr = Relu (h)\ny = MatMul (r, w1)\nk = other.Strange (x)"
    )
    model = build(TOKENS, body, {**weights({"w0": (6, 32), "w1": (32, 5)}), "six": ints(6), "zero1": ints(0)})
    model.opset_import.append(helper.make_opsetid("other", 1))  # nothing runs
    assert "not known" not in reasons(model)
    assert tensors(structprune.shrink(model, 0.5))["w0"].shape == (6, 16)


def test_a_reshape_to_a_size_that_is_data_stays_whole() -> None:
    body = (
        "h = MatMul (x, w0)\nr = Relu (h)\nk = MatMul (r, w1)\nm = ReduceMax <keepdims = 0> (x)\nz = Mul (m, zero)\n"
        "i = Cast <to = 7> (z)\none1 = Unsqueeze (i, at)\nrows = Add (one1, one)\n"
        "to = Concat <axis = 0> (rows, minus1, width)\ng = Reshape (k, to)\n"
        "f = ReduceSum <keepdims = 0> (g, axes)\ny = MatMul (f, w2)"
    )
    arrays = {**weights({"w0": (6, 32), "w1": (32, 32), "w2": (8, 5)}), "zero": np.float32(0), "one": ints(1),
              "at": ints(0), "minus1": ints(-1), "width": ints(8), "axes": ints(0)}  # fmt: skip
    model = build("(float[N, L, 6] x) => (float[M, 5] y)", body, arrays)
    assert "its sizes are computed from data" in reasons(model)
    after = tensors(structprune.shrink(model, 0.4, verify="numeric"))
    assert after["w0"].shape[1] < 32 and after["w1"].shape[1] == 32


def test_what_onnxruntime_fuses_is_no_difference() -> None:
    """It fuses a padding with zeros into a maximum, whose own padding is the least of all numbers."""
    body = (
        "h = Conv <kernel_shape = [1, 1]> (x, w0, b0)\np = Pad (h, widths)\n"
        "m = MaxPool <kernel_shape = [3, 3], strides = [2, 2]> (p)\ny = Conv <kernel_shape = [1, 1]> (m, w1)"
    )
    arrays = {**weights({"w0": (32, 3, 1, 1), "w1": (5, 32, 1, 1)}), "b0": np.full(32, -9, dtype=np.float32),
              "widths": ints(0, 0, 1, 1, 0, 0, 1, 1)}  # fmt: skip
    half(build("(float[N, 3, 8, 8] x) => (float[N, 5, 4, 4] y)", body, arrays))


# -- functions -------------------------------------------------------------------------------------


def with_function(body: str, more: dict[str, Any]) -> onnx.ModelProto:
    model = build(TOKENS, "h = MatMul (x, w0)\ng = mine.Act (h)\ny = MatMul (g, w1)",
                  {**weights({"w0": (6, 32), "w1": (32, 5)}), **more})  # fmt: skip
    model.opset_import.append(helper.make_opsetid("mine", 1))
    parsed = onnx.parser.parse_function(f'<opset_import: ["" : 20], domain: "mine"> Act (a) => (b) {{\n{body}\n}}')
    model.functions.append(parsed)
    return model


def test_functions_are_kept() -> None:
    model = with_function("s = Sigmoid (a)\nb = Mul (a, s)", {})
    check(model, tolerance=TOLERANCE)
    small = half(model)
    assert [function.name for function in small.functions] == ["Act"]
    assert [node.op_type for node in small.graph.node] == ["MatMul", "Act", "MatMul"]


def test_a_function_that_holds_a_size_is_inlined() -> None:
    body = (
        "k = Constant <value = int64[4] {0, 0, 4, 8}> ()\nr = Reshape (a, k)\n"
        "t = Relu (r)\nj = Constant <value = int64[3] {0, 0, 32}> ()\nb = Reshape (t, j)"
    )
    model = with_function(body, {})
    check(model, tolerance=TOLERANCE)
    small = half(model)
    assert "Act" not in [node.op_type for node in small.graph.node]
    plan = structprune.plan(model, 0.5)
    assert "the file's functions (Act) stand written out where they were called" in str(plan)
    assert "written out" not in str(structprune.plan(with_function("b = Relu (a)", {}), 0.5))


# -- number types ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64], ids=str)
def test_other_precisions(dtype: Any) -> None:
    name = {np.float16: "float16", np.float64: "double"}.get(dtype, "bfloat16")
    body = "h = MatMul (x, w0)\nr = Relu (h)\nk = MatMul (r, w1)\ng = Tanh (k)\ny = MatMul (g, w2)"
    arrays = weights({"w0": (6, 32), "w1": (32, 32), "w2": (32, 5)}, dtype)
    model = build(TOKENS.replace("float", name), body, {})
    for each, array in arrays.items():
        model.graph.initializer.append(ir.to_proto(ir.tensor(array, name=each)))
    for score in ("l2", "fpgm", "l1"):
        small = structprune.shrink(model, 0.5, verify="numeric", score=score)
        assert {each.data_type for each in small.graph.initializer} == {model.graph.initializer[0].data_type}
    check(model, tolerance=TOLERANCE)


def test_a_type_that_an_operator_does_not_know() -> None:
    """torch exports convolutions in bfloat16 to versions that have none."""
    body = "h = Conv <kernel_shape = [1, 1]> (x, w0)\np = GlobalAveragePool (h)\nf = Flatten (p)\ny = Gemm <transB = 1> (f, wh)"
    model = build(IMAGE.replace("float", "bfloat16"), body, {})
    for name, array in weights({"w0": (32, 3, 1, 1), "wh": (5, 32)}, ml_dtypes.bfloat16).items():
        model.graph.initializer.append(ir.to_proto(ir.tensor(array, name=name)))
    assert "unsupported type: tensor(bfloat16)" in reasons(model)


def test_denormal_weights_are_flushed() -> None:
    model = shared_bias()
    arrays = {each.name: each for each in model.graph.initializer}
    array = numpy_helper.to_array(arrays["w1"]).copy()
    array[:, :] *= np.where(np.arange(32) % 2, 1, 1e-39).astype(np.float32)
    arrays["w1"].CopyFrom(numpy_helper.from_array(array, "w1"))
    small = tensors(structprune.shrink(model, 0.4, score="random"))
    tiny = np.finfo(np.float32).tiny
    assert ((np.abs(array) < tiny) & (array != 0)).any()
    assert not any(((np.abs(each) < tiny) & (each != 0)).any() for each in small.values())


def quantized(zero_point: int) -> onnx.ModelProto:
    """Convolutions whose weights and activations pass through QuantizeLinear and DequantizeLinear."""
    body = (
        "xq = QuantizeLinear (x, sx, zx)\nxd = DequantizeLinear (xq, sx, zx)\n"
        "wd0 = DequantizeLinear <axis = 0> (w0, s0, z0)\n"
        "h = Conv <kernel_shape = [3, 3]> (xd, wd0, b0)\nr = Relu (h)\n"
        "rq = QuantizeLinear (r, sx, zx)\nrd = DequantizeLinear (rq, sx, zx)\n"
        "wd1 = DequantizeLinear <axis = 0> (w1, s1, z1)\nk = Conv <kernel_shape = [1, 1]> (rd, wd1)\n"
        "p = GlobalAveragePool (k)\nf = Flatten (p)\ny = Gemm <transB = 1> (f, wh)"
    )
    generator = np.random.default_rng(0)
    arrays = weights({"b0": (32,), "wh": (5, 32)}) | {
        "w0": generator.integers(-127, 127, (32, 3, 3, 3)).astype(np.int8),
        "w1": generator.integers(-127, 127, (32, 32, 1, 1)).astype(np.int8),
        "s0": generator.uniform(0.01, 0.02, 32).astype(np.float32),
        "s1": generator.uniform(0.01, 0.02, 32).astype(np.float32),
        "z0": np.full(32, zero_point, dtype=np.int8),
        "z1": np.full(32, zero_point, dtype=np.int8),
        "sx": np.float32(0.05),
        "zx": np.int8(3),
    }
    return build(IMAGE, body, arrays)


@pytest.mark.parametrize("zero_point", [0, 5])
def test_a_quantized_model_shrinks_with_its_scales(zero_point: int) -> None:
    model = quantized(zero_point)
    # An activation in the middle of two steps of its quantization may be rounded to either.
    check(model, {"x": (2, 3, 12, 12)}, tolerance=1e-3)
    after = tensors(half(model, example_inputs={"x": (2, 3, 12, 12)}))
    assert after["w0"].dtype == np.int8 and after["w0"].shape[0] == after["s0"].shape[0] == after["z0"].shape[0] < 32


def test_biases_and_tables_that_the_graph_quantizes_are_weights() -> None:
    """onnxruntime's quantizer leaves them in the graph as numbers that a node makes integers of."""
    body = (
        "wd = DequantizeLinear <axis = 1> (w0, s0)\nh = MatMul (x, wd)\nb1 = Identity (b0)\n"
        "bq = QuantizeLinear (b1, sb, zb)\nbd = DequantizeLinear (bq, sb, zb)\nm = Add (h, bd)\nr = Relu (m)\n"
        "i = Identity (w1)\nwe = DequantizeLinear (i, sb, zb)\ny = MatMul (r, we)"
    )
    generator = np.random.default_rng(0)
    arrays = weights({"b0": (32,)}) | {
        "w0": generator.integers(-127, 127, (6, 32)).astype(np.int8),
        "w1": generator.integers(-127, 127, (32, 5)).astype(np.int8),
        "s0": generator.uniform(0.01, 0.02, 32).astype(np.float32),
        "sb": np.float32(0.02), "zb": np.int8(7),
    }  # fmt: skip
    model = build(TOKENS, body, arrays)
    assert [group.size for group in structprune.analyze(model).groups] == [32]
    check(model, tolerance=1e-3)
    half(model)


def test_operators_with_quantized_results_hold_their_weights() -> None:
    body = (
        "h = MatMul (x, w0)\nr = Relu (h)\nk = MatMul (r, w1)\nq = QuantizeLinear (k, s, z)\n"
        "m = QLinearMatMul (q, s, z, w2, s, z, s, z)\ny = DequantizeLinear (m, s, z)"
    )
    arrays = weights({"w0": (6, 32), "w1": (32, 32)}) | {
        "w2": np.random.default_rng(0).integers(-127, 127, (32, 5)).astype(np.int8), "s": np.float32(0.05), "z": np.int8(3),
    }  # fmt: skip
    model = build(TOKENS, body, arrays)
    assert "no rule for 'QLinearMatMul'" in reasons(model)
    assert structprune.analyze(model).frontend.total == 6 * 32 + 32 * 32 + 32 * 5
    after = tensors(structprune.shrink(model, 0.3, verify="numeric"))
    assert after["w0"].shape[1] < 32 and after["w1"].shape[1] == 32 and after["w2"].shape == (32, 5)


def test_scores_see_what_integers_stand_for() -> None:
    """Each channel fills the range of its integers: only the scales tell which are small."""
    body = "wd = DequantizeLinear <axis = 1> (w0, s0, z0)\nh = MatMul (x, wd)\nr = Relu (h)\ny = MatMul (r, w1)"
    scales = np.where(np.arange(32) % 2, 1.0, 0.001).astype(np.float32)
    arrays = {
        "w0": np.random.default_rng(0).integers(-127, 127, (6, 32)).astype(np.int8), "s0": scales,
        "z0": np.full(32, 5, dtype=np.int8), "w1": np.ones((32, 5), np.float32),
    }  # fmt: skip
    plan = structprune.plan(build(TOKENS, body, arrays), 0.5)
    assert list(plan.keep.values()) == [list(range(1, 32, 2))]


# -- names ------------------------------------------------------------------------------------------


def test_duplicated_and_missing_names_and_unused_outputs() -> None:
    body = "h = MatMul (x, w0)\nd, m = Dropout (h)\nn, mean = LayerNormalization (d, s)\nr = Relu (n)\ny = MatMul (r, w1)"
    model = build(TOKENS, body, weights({"w0": (6, 32), "s": (32,), "w1": (32, 5)}))
    check(model, tolerance=TOLERANCE)
    half(model)
    for node in model.graph.node[:3]:
        # onnxruntime refuses such a file, others do not.
        node.name = "same"
    onnx.checker.check_model(structprune.shrink(model, 0.5), full_check=True)


def test_metadata_and_symbols_are_kept() -> None:
    model = shared_bias()
    helper.set_model_props(model, {"author": "someone"})
    model.doc_string, model.producer_name, model.model_version = "what it is for", "a maker", 7
    model.graph.node[0].doc_string = "the first"
    model.graph.value_info.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, ("N", 32)))
    small = half(model)
    assert (small.doc_string, small.producer_name, small.model_version) == ("what it is for", "a maker", 7)
    assert {each.key: each.value for each in small.metadata_props}["author"] == "someone"
    assert small.graph.node[0].doc_string == "the first"
    (info,) = (each for each in small.graph.value_info if each.name == "r")
    symbol, width = info.type.tensor_type.shape.dim
    assert symbol.dim_param == "N" and width.dim_value == tensors(small)["w0"].shape[1]


def test_a_size_with_a_name_gets_no_number() -> None:
    """onnxruntime believes what a file states: a number there would hold for one batch size alone."""
    body = "h = MatMul (x, w0)\nf = Reshape (h, line)\ng = Reshape (f, rows)\ny = MatMul (g, w1)"
    arrays = {**weights({"w0": (6, 32), "w1": (32, 5)}), "line": ints(-1), "rows": ints(-1, 4, 32)}
    model = build("(float[N, 4, 6] x) => (float[N, 4, 5] y)", body, arrays)
    model.graph.value_info.append(helper.make_tensor_value_info("f", TensorProto.FLOAT, ["128*N"]))
    small = half(model)
    (stated,) = (each for each in small.graph.value_info if each.name == "f")
    assert tensors(small)["w0"].shape[1] < 32
    assert not stated.type.tensor_type.shape.dim[0].HasField("dim_value")
