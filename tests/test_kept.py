"""What a result keeps of its original: names, modes, types, flags, hooks, ties, buffers."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import models_zoo
import structprune
from structprune.errors import UnsupportedModel
from structprune.frontends.torch.write.module import small_copy
from structprune.graph.edit import Slice
from tests.small_models import EXACT, SAMPLE, Block, Buffers, Tied, both, call, count, images, seeded

# The one-line warning about a GraphModule has its own test.
pytestmark = pytest.mark.filterwarnings("ignore:the result is a torch.fx.GraphModule")


@pytest.mark.parametrize("output", ["module", "graph"])
@pytest.mark.parametrize("name", SAMPLE)
def test_names_and_the_ratio(name: str, output: str) -> None:
    model, inputs = models_zoo.build(name)
    result = structprune.shrink(model, 0.5, inputs, output=output)
    assert list(result.state_dict()) == list(model.state_dict())
    assert [n for n, _ in result.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert abs(1 - count(result) / count(model) - 0.5) <= 0.01
    assert call(result, inputs).shape == call(model, inputs).shape


@pytest.mark.parametrize("output", ["module", "graph"])
def test_the_mode_of_each_module(output: str) -> None:
    model = seeded(Block)
    for mode in (True, False):
        model.train(mode)
        model.norm.train(not mode)
        result = structprune.shrink(model, 0.5, images(2, 3, 8, 8), output=output)
        assert result.training is mode
        for name in ("first", "norm", "dropout", "second", "head"):
            assert result.get_submodule(name).training is model.get_submodule(name).training, name


@pytest.mark.parametrize("output", ["module", "graph"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype, output: str) -> None:
    model = seeded(Block).to(dtype).eval()
    x = images(2, 3, 8, 8, dtype=dtype)
    result = structprune.shrink(model, 0.5, x, output=output)
    after = {name: tensor.dtype for name, tensor in result.state_dict().items()}
    assert after == {name: tensor.dtype for name, tensor in model.state_dict().items()}
    assert result(x).dtype is dtype and bool(result(x).isfinite().all())


@pytest.mark.parametrize("output", ["module", "graph"])
def test_mixed_dtypes(output: str) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(6, 16).to(torch.bfloat16)
            self.norm = nn.LayerNorm(16)
            self.second = nn.Linear(16, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.first(x.to(torch.bfloat16)).float()).relu()
            return self.second(x.double())

    model = seeded(Mixed).eval()
    result = structprune.shrink(model, 0.5, images(2, 6), output=output)
    for name, tensor in result.state_dict().items():
        assert tensor.dtype is model.state_dict()[name].dtype, name
    assert result(images(3, 6)).dtype is torch.float64


@pytest.mark.parametrize("output", ["module", "graph"])
def test_requires_grad_of_each_parameter(output: str) -> None:
    model = seeded(Block)
    model.first.requires_grad_(False)
    model.norm.weight.requires_grad_(False)
    result = structprune.shrink(model, 0.5, images(2, 3, 8, 8), output=output)
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert {name: parameter.requires_grad for name, parameter in result.named_parameters()} == flags
    # Layers that do not train are pruned all the same.
    assert result.get_parameter("first.weight").shape[0] < 16


@pytest.mark.parametrize("output", ["module", "graph"])
def test_a_model_that_is_wholly_frozen_shrinks(output: str) -> None:
    model = seeded(Block).requires_grad_(False)
    result = structprune.shrink(model, 0.5, images(2, 3, 8, 8), output=output)
    assert abs(1 - count(result) / count(model) - 0.5) <= 0.01
    assert not any(parameter.requires_grad for parameter in result.parameters())


@pytest.mark.parametrize("output", ["module", "graph"])
def test_memory_format(output: str) -> None:
    model = seeded(Block).to(memory_format=torch.channels_last)
    result = structprune.shrink(model, 0.5, images(2, 3, 8, 8), output=output)
    for name in ("first.weight", "second.weight"):
        weight = result.get_parameter(name)
        assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous(), name
    plain = structprune.shrink(seeded(Block), 0.5, images(2, 3, 8, 8), output=output)
    assert all(parameter.is_contiguous() for parameter in plain.parameters())


def test_forward_hooks() -> None:
    seen: list[torch.Size] = []
    model = seeded(Block).eval()
    model.norm.register_forward_hook(lambda module, args, result: seen.append(result.shape))
    model.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    result = structprune.shrink(model, 0.5, images(2, 3, 8, 8))
    assert len(result.norm._forward_hooks) == 1 and len(result._forward_pre_hooks) == 1
    seen.clear()
    x = images(2, 3, 8, 8)
    first = result(x)
    assert seen == [torch.Size((2, result.norm.num_features, 8, 8))]
    result._forward_pre_hooks.clear()
    assert torch.equal(result(2 * x), first)


def test_hooks_that_change_the_output_are_part_of_the_graph() -> None:
    model = seeded(Block).eval().double()
    model.norm.register_forward_hook(lambda module, args, result: result * 3)
    model.register_forward_hook(lambda module, args, result: result + 1)
    x = images(2, 3, 8, 8, dtype=torch.float64)
    own, graph = both(model, x)
    torch.testing.assert_close(own(x), graph(x), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("output", ["module", "graph"])
def test_tied_parameters_stay_tied(output: str) -> None:
    model = seeded(Tied)
    result = structprune.shrink(model, 0.5, torch.arange(10).reshape(2, 5), output=output)
    assert result.get_parameter("head.weight") is result.get_parameter("embedding.weight")
    assert len(list(result.parameters())) == len(list(model.parameters()))
    assert abs(1 - count(result) / count(model) - 0.5) <= 0.01
    moved = pickle.loads(pickle.dumps(result)) if output == "module" else copy.deepcopy(result)
    assert moved.get_parameter("head.weight") is moved.get_parameter("embedding.weight")


def test_a_copy_keeps_tied_parameters_tied() -> None:
    """Edits know a tied parameter by its first name alone; its second must not undo them."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Embedding(9, 8), nn.Linear(8, 9, bias=False)
            self.last.weight = self.first.weight

    model = Tied()
    small = small_copy(model, {"first.weight": [Slice("first.weight", {1: np.arange(3)})]}, is_filled=False)
    assert small.first.weight is small.last.weight and small.first.weight.shape == (9, 3)


@pytest.mark.parametrize("output", ["module", "graph"])
def test_a_module_called_twice_stays_one_module(output: str) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter = nn.Linear(6, 64)
            self.shared = nn.Linear(64, 64)
            self.again = self.shared
            self.head = nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.again(self.shared(self.enter(x)).relu()).relu())

    model = seeded(Twice).double()
    x = images(2, 6, dtype=torch.float64)
    result = structprune.shrink(model, 0.5, x, output=output, verify="numeric")
    assert result.get_parameter("shared.weight") is result.get_parameter("again.weight")
    assert list(result.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("output", ["module", "graph"])
def test_buffers(output: str) -> None:
    model = seeded(Buffers)
    result = structprune.shrink(model, 0.5, images(2, 6), output=output)
    width = result.get_parameter("first.weight").shape[0]
    assert width < 64
    assert result.get_buffer("scale").shape == (width,)
    assert result.get_buffer("steps").item() == 7
    # Nothing reads the offset: it cannot be known to go with the channels.
    assert torch.equal(result.get_buffer("offset"), model.get_buffer("offset"))
    assert list(result.state_dict()) == list(model.state_dict())


def test_attributes_of_torchs_modules_are_true() -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 16, 3, padding=1)
            self.norm = nn.BatchNorm2d(16)
            self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=16)
            self.act = nn.PReLU(16)
            self.group = nn.GroupNorm(4, 16)
            self.up = nn.ConvTranspose2d(16, 12, 2, stride=2)
            self.hidden = nn.Linear(12, 16)
            self.layer = nn.LayerNorm(16)
            self.rnn = nn.LSTM(16, 8, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.group(self.act(self.deep(self.norm(self.conv(x)))))
            x = self.up(x).flatten(2).transpose(1, 2)
            return self.head(self.rnn(self.layer(self.hidden(x)))[0][:, -1])

    small = structprune.shrink(seeded(Many).eval(), 0.5, images(2, 3, 4, 4), output="module", scope="uniform")
    assert small.conv.weight.shape[:2] == (small.conv.out_channels, small.conv.in_channels)
    assert small.conv.out_channels == small.norm.num_features == small.deep.groups == small.act.num_parameters < 16
    assert small.deep.in_channels == small.deep.out_channels == small.deep.groups == small.group.num_channels
    assert small.group.num_channels % small.group.num_groups == 0
    assert small.up.weight.shape[:2] == (small.up.in_channels, small.up.out_channels)
    assert small.hidden.weight.shape == (small.hidden.out_features, small.hidden.in_features)
    assert small.layer.normalized_shape == (small.layer.weight.shape[0],)
    assert small.rnn.input_size == small.hidden.out_features
    assert small.rnn.weight_hh_l0.shape == (4 * small.rnn.hidden_size, small.rnn.hidden_size)
    assert small.head.in_features == small.rnn.hidden_size
    # The text of a module tells the truth too.
    assert f"Conv2d(3, {small.conv.out_channels}," in repr(small)


def test_chunks_that_cannot_stay_equal_make_a_graph() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both = nn.Linear(8, 48)
            self.held, self.free = nn.Linear(24, 4), nn.Linear(24, 4)

        def forward(self, x: Tensor) -> Tensor:
            held, free = self.both(x).chunk(2, -1)
            return self.held(held.softmax(-1)) + self.free(free)

    model, x = seeded(Halves).eval(), torch.randn(2, 8)
    small = structprune.shrink(model, 0.3, x, verify="numeric")
    assert isinstance(small, torch.fx.GraphModule)
    assert small.held.weight.shape[1] == 24 > small.free.weight.shape[1]
    with pytest.raises(UnsupportedModel, match="asks for equal parts"):
        structprune.shrink(model, 0.3, x, output="module")
