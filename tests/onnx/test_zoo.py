"""The zoo through ONNX: the same groups as in torch, law 2 in onnxruntime, and a file that is still the user's."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import structprune
from models_zoo import names
from structprune.plan import make, prove, realize
from structprune.views.analysis import Analysis
from tests.onnx.exported import EXPORTERS, filled, model_of

RATIO, NEAR = 0.5, 0.01
TOLERANCE = 1e-5  # float32, a share of the largest output

CASES = [pytest.param(name, exporter, id=f"{name}-{exporter}") for name in names() for exporter in EXPORTERS]


def print_of(array: object) -> tuple[int, bytes]:
    """The entries of a tensor, in whatever order they lie."""
    return np.asarray(array).size, np.sort(np.asarray(array, dtype=np.float32).reshape(-1)).tobytes()


def groups_of(analysis: Analysis, names_of: dict[str, str]) -> Counter[tuple[int, bool, frozenset[str]]]:
    """Each group as its size, whether it is exact, and the trained weights that it runs through."""
    return Counter(
        (
            group.size,
            group.exact,
            frozenset(names_of[m.parameter] for m in group.members if m.parameter in names_of and m.is_trained),
        )
        for group in analysis.groups
    )


@pytest.mark.parametrize(("name", "exporter"), CASES)
def test_the_groups_are_those_of_torch(name: str, exporter: str) -> None:
    model, inputs = filled(name)
    ours = structprune.analyze(model_of(name, exporter))
    theirs = structprune.analyze(model, inputs)
    by_print = {print_of(tensor.detach()): each for each, tensor in model.named_parameters()}
    tensors = {name: stored.tensor.numpy() for name, stored in ours.frontend.lowering.stored.items()}
    names_of = {each: by_print[print_of(array)] for each, array in tensors.items() if print_of(array) in by_print}
    # A convolution that swallowed its norm has other numbers: then the counts and sizes are compared alone.
    both = {each: each for each in names_of.values()}
    assert groups_of(ours, names_of) == groups_of(theirs, both)
    assert both or name in ("plain_cnn", "resnet20")


@pytest.mark.parametrize(("name", "exporter"), CASES)
def test_half_goes_exactly(name: str, exporter: str) -> None:
    model = model_of(name, exporter)
    before = model.SerializeToString()
    plan = structprune.plan(model, RATIO)
    assert plan.report is not None and abs(plan.report.reached - RATIO) <= NEAR
    small = structprune.shrink(model, RATIO)
    assert model.SerializeToString() == before
    analysis = structprune.analyze(model)
    realized = realize(analysis, plan.kept(analysis), analysis.frontend.constraints(analysis.solution, "auto"))
    found = prove(analysis, realized, make(analysis, realized))
    assert found.error is not None and found.error <= TOLERANCE
    keeps_the_file(model, small)
    runs_at_every_batch_size(model, small)


def keeps_the_file(model: onnx.ModelProto, small: onnx.ModelProto) -> None:
    onnx.checker.check_model(small, full_check=True)
    kinds, after = (Counter(node.op_type for node in each.graph.node) for each in (model, small))
    for kind in ("Gather", "Slice"):
        assert after[kind] <= kinds[kind]
    assert [each.name for each in small.graph.input] == [each.name for each in model.graph.input]
    assert list(small.graph.output) == list(model.graph.output)
    assert [each.version for each in small.opset_import] == [each.version for each in model.opset_import]
    assert small.producer_name == model.producer_name
    known = {node.name for node in model.graph.node}
    # A computation of sizes that two nodes shared is copied where they come to need different ones.
    copies = [node for node in small.graph.node if node.name not in known]
    assert all(any(node.name.startswith(name) for name in known) for node in copies) and len(copies) < 5
    weights = {each.name for each in model.graph.initializer if len(each.dims) > 1}
    assert {each.name for each in small.graph.initializer if len(each.dims) > 1} == weights
    size = sum(tensor.ByteSize() for tensor in model.graph.initializer)
    assert sum(tensor.ByteSize() for tensor in small.graph.initializer) < 0.56 * size


def runs_at_every_batch_size(model: onnx.ModelProto, small: onnx.ModelProto) -> None:
    sessions = [onnxruntime.InferenceSession(each.SerializeToString()) for each in (model, small)]
    (given,) = model.graph.input
    sizes = [dim.dim_value for dim in given.type.tensor_type.shape.dim]
    for batch in (1, 3):
        if given.type.tensor_type.elem_type == onnx.TensorProto.INT64:
            x = np.arange(batch * sizes[1], dtype=np.int64).reshape(batch, sizes[1]) % 8
        else:
            x = torch.randn(batch, *sizes[1:]).numpy()
        first, second = (session.run(None, {given.name: x}) for session in sessions)
        assert [each.shape for each in first] == [each.shape for each in second]
        assert all(np.isfinite(each).all() for each in second)


@pytest.mark.parametrize("opset", [11, 13, 17])
@pytest.mark.parametrize("name", ["resnet20", "vit", "shufflenet"])
def test_older_operator_sets(name: str, opset: int) -> None:
    if name == "vit" and opset < 14:
        opset = 14  # the exporter has no attention before
    small = structprune.shrink(model_of(name, "older", opset=opset), RATIO, verify="numeric")
    onnx.checker.check_model(small, full_check=True)
    assert small.opset_import[0].version == opset


@pytest.mark.parametrize(("name", "exporter"), CASES)
@pytest.mark.slow
def test_files_of_one_batch_size(name: str, exporter: str) -> None:
    """Where every size is written out, more is folded."""
    model = model_of(name, exporter, is_open=False)
    small = structprune.shrink(model, RATIO, verify="numeric")
    onnx.checker.check_model(small, full_check=True)
