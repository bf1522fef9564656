"""A result trains, copies, pickles, exports, compiles and loads."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import models_zoo
import structprune
from structprune.errors import StructpruneError
from tests.small_models import SAMPLE, Block, Literal, call, images, seeded

# The one-line warning about a GraphModule has its own test.
pytestmark = pytest.mark.filterwarnings("ignore:the result is a torch.fx.GraphModule")


@pytest.mark.parametrize("output", ["module", "graph"])
@pytest.mark.parametrize("name", SAMPLE)
def test_it_trains(name: str, output: str) -> None:
    model, inputs = models_zoo.build(name)
    # In float64 the smallest gradient moves a weight.
    model.double().train()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    result = structprune.shrink(model, 0.5, inputs, output=output)
    assert result.training
    before = {key: value.clone() for key, value in result.named_parameters()}
    unused = no_gradient(model, inputs)
    F.cross_entropy(call(result, inputs), torch.zeros(inputs.shape[0], dtype=torch.long)).backward()
    for key, parameter in result.named_parameters():
        assert (parameter.grad is None) == (key in unused), key
        assert parameter.grad is None or bool(parameter.grad.isfinite().all()), key
    torch.optim.SGD(result.parameters(), lr=0.5).step()
    unchanged = {key for key, value in result.named_parameters() if torch.equal(value, before[key])} - unused
    # Where the whole gradient is zero in the original too (a dead relu), nothing can move.
    assert all(not bool(result.get_parameter(key).grad.any()) for key in unchanged)  # type: ignore[union-attr]
    assert len(unchanged) < 0.1 * len(before)


def no_gradient(model: nn.Module, inputs: Tensor) -> set[str]:
    twin = copy.deepcopy(model)
    call(twin, inputs).sum().backward()
    return {key for key, parameter in twin.named_parameters() if parameter.grad is None}


@pytest.mark.parametrize(("build", "output"), [(Block, "module"), (Block, "graph"), (Literal, "graph")])
def test_train_and_eval_toggle_dropout_and_batch_norm(build: Callable[[], nn.Module], output: str) -> None:
    model = seeded(build).eval()
    x = images(4, 3, 8, 8)
    result = structprune.shrink(model, 0.3, x, output=output)
    assert torch.equal(result(x), result(x))
    statistics = result.get_buffer("norm.running_mean").clone()
    result.train()
    assert not torch.equal(result(x), result(x)), "dropout is off in training"
    assert not torch.equal(result.get_buffer("norm.running_mean"), statistics), "batch norm does not train"
    assert result.get_buffer("norm.num_batches_tracked").item() == 2
    result.eval()
    assert torch.equal(result(x), result(x))
    result.get_submodule("dropout").train()
    assert not torch.equal(result(x), result(x)), "a module's own mode does not count"


@pytest.mark.parametrize("output", ["module", "graph"])
@pytest.mark.parametrize("name", SAMPLE)
def test_deepcopy_and_pickle(name: str, output: str) -> None:
    model, inputs = models_zoo.build(name)
    result = structprune.shrink(model, 0.5, inputs, output=output)
    expected = call(result, inputs)
    assert torch.equal(call(copy.deepcopy(result), inputs), expected)
    assert torch.equal(call(pickle.loads(pickle.dumps(result)), inputs), expected)
    buffer = io.BytesIO()
    torch.save(result, buffer)
    buffer.seek(0)
    assert torch.equal(call(torch.load(buffer, weights_only=False), inputs), expected)
    # The file is smaller too: no slice drags the whole weight along.
    whole = io.BytesIO()
    torch.save(model.state_dict(), whole)
    small = io.BytesIO()
    torch.save(result.state_dict(), small)
    assert small.getbuffer().nbytes < 0.65 * whole.getbuffer().nbytes


@pytest.mark.parametrize("output", ["module", "graph"])
@pytest.mark.parametrize("name", ["resnet20", "vit", "moe"])
def test_export(name: str, output: str) -> None:
    model, inputs = models_zoo.build(name)
    result = structprune.shrink(model, 0.5, inputs, output=output)
    program = torch.export.export(result, (inputs,), strict=False)
    torch.testing.assert_close(program.module()(inputs), result(inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("output", ["module", "graph"])
def test_export_with_a_dynamic_batch(output: str) -> None:
    model = seeded(Block).eval()
    result = structprune.shrink(model, 0.5, images(2, 3, 8, 8), output=output)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(result, (images(2, 3, 8, 8),), dynamic_shapes=({0: batch},), strict=False)
    x = images(5, 3, 8, 8)
    torch.testing.assert_close(program.module()(x), result(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("output", ["module", "graph"])
@pytest.mark.parametrize("name", ["resnet20", "vit"])
def test_compile(name: str, output: str) -> None:
    model, inputs = models_zoo.build(name)
    result = structprune.shrink(model, 0.5, inputs, output=output)
    torch._dynamo.reset()
    compiled = torch.compile(result, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(inputs), result(inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SAMPLE)
def test_load_from_a_plan_and_a_state_dict(name: str, tmp_path: Any) -> None:
    model, inputs = models_zoo.build(name)
    plan = structprune.plan(model, 0.5, inputs)
    result = plan.apply(model)
    with torch.no_grad():
        for parameter in result.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    plan.save(tmp_path / "plan.json")
    save_file({key: value.contiguous() for key, value in result.state_dict().items()}, tmp_path / "small.safetensors")
    fresh, _ = models_zoo.build(name)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.normal_()
    loaded = structprune.load(fresh, tmp_path / "plan.json", load_file(tmp_path / "small.safetensors"))
    assert type(loaded) is type(model)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in result.state_dict().items())
    assert torch.equal(call(loaded.eval(), inputs), call(result, inputs))


def test_load_of_a_graph(tmp_path: Any) -> None:
    model, x = seeded(Literal).eval(), images(2, 3, 8, 8)
    plan = structprune.plan(model, 0.5, x, output="graph")
    result = plan.apply(model)
    plan.save(tmp_path / "plan.json")
    loaded = structprune.load(seeded(Literal).eval(), tmp_path / "plan.json", result.state_dict())
    assert isinstance(loaded, torch.fx.GraphModule)
    assert torch.equal(loaded(x), result(x))


def test_load_with_a_state_dict_of_other_shapes_is_an_error_of_ours(tmp_path: Any) -> None:
    model, x = seeded(Block).eval(), images(2, 3, 8, 8)
    structprune.plan(model, 0.5, x).save(tmp_path / "plan.json")
    with pytest.raises(StructpruneError):
        structprune.load(model, tmp_path / "plan.json", model.state_dict())
    with pytest.raises(StructpruneError):
        structprune.load(model, tmp_path / "plan.json", {})
