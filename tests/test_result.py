"""What comes back from `shrink`: the original untouched, the result a full citizen of torch."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import models_zoo
import structprune
from structprune.errors import StructpruneError, UnsupportedModel, VerificationError
from structprune.rule import RULES, Meeting

# Float64 rounding of a handful of small layers.
EXACT = 1e-11
CONVOLUTIONAL = ("resnet20", "bottleneck", "mobilenet", "densenet", "shufflenet", "unet", "convnext")
# One of every kind, cheap enough to shrink often.
SAMPLE = ("resnet20", "shufflenet", "vit", "swin", "encoder", "decoder", "recurrent", "moe")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The one-line warning about a GraphModule has its own test."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the result is a torch.fx.GraphModule")
        yield


# -- small models -------------------------------------------------------------------------------------


class Block(nn.Module):
    """conv - bn - relu - dropout - conv - pool - linear; `forward` holds no size."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(0.5)
        self.second = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.head = nn.Linear(2 * width, 5)
        nn.init.normal_(self.norm.weight, 1, 0.2)
        nn.init.normal_(self.norm.bias, 0, 0.2)
        self.norm.running_mean.normal_(0, 0.1)
        self.norm.running_var.uniform_(0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.norm(self.first(x)).relu())
        return self.head(self.second(x).relu().mean((2, 3)))


class Literal(nn.Module):
    """A width in the code on both sides of a view: no class can be mended without freezing it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 64, 3, padding=1)
        self.norm = nn.BatchNorm2d(64)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(64 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.norm(self.conv(x)).relu(), 2)
        return self.head(self.dropout(x.view(-1, 64 * 4 * 4)))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 16)
        self.hidden = nn.Linear(16, 32)
        self.back = nn.Linear(32, 16)
        self.head = nn.Linear(16, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        return self.head(x + self.back(self.hidden(x).relu()))


class KeywordsOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 24), nn.Linear(4, 24)
        self.head = nn.Linear(24, 3)

    def forward(self, *, a: Tensor, b: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        hidden = (self.left(a) + self.right(b)).relu() * scale
        return {"logits": self.head(hidden), "mean": hidden.sum(-1, keepdim=True)}


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 24), nn.Linear(4, 24)
        self.one, self.two = nn.Linear(24, 3), nn.Linear(24, 2)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, list[Tensor]]:
        hidden = (self.left(a) + self.right(b)).relu()
        return self.one(hidden), [self.two(hidden), a]


class Buffers(nn.Module):
    """Buffers of channel size, one of them not saved, and a whole number."""

    offset: Tensor
    scale: Tensor
    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 64, bias=False)
        self.register_buffer("offset", torch.randn(64))
        self.register_buffer("scale", torch.rand(64) + 0.5, persistent=False)
        self.register_buffer("steps", torch.tensor(7))
        self.second = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) * self.scale)


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return build()


def images(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def graph_of(model: nn.Module, inputs: Any, ratio: float = 0.5) -> nn.Module:
    result: nn.Module = structprune.shrink(model, ratio, inputs, output="graph")
    assert isinstance(result, torch.fx.GraphModule)
    return result


def both(model: nn.Module, inputs: Any, ratio: float = 0.5) -> list[nn.Module]:
    """The result in its own class, and as a graph."""
    own = structprune.shrink(model, ratio, inputs, output="module")
    assert type(own) is type(model)
    return [own, graph_of(model, inputs, ratio)]


def tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [tensor for item in (result.values() if isinstance(result, dict) else result) for tensor in tensors(item)]


# -- the original -------------------------------------------------------------------------------------


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """All that can be seen of a model: bits, places in memory, flags, attributes, hooks."""
    found: dict[str, Any] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        bits = tensor.detach().contiguous().view(-1).view(torch.uint8).clone() if tensor.numel() else torch.empty(0)
        found[f"tensor {name}"] = (id(tensor), tensor.data_ptr(), tensor._version, tensor.stride())
        found[f"trains {name}"] = tensor.requires_grad
        found[f"bits {name}"] = bits.tolist()
        found[f"grad {name}"] = None if tensor.grad is None else (id(tensor.grad), tensor.grad.tolist())
    for name, module in model.named_modules():
        found[f"module {name}"] = (id(module), type(module), module.training)
        found[f"attributes {name}"] = {key: (id(value), repr(value)) for key, value in vars(module).items()}
        for key, value in vars(module).items():
            if isinstance(value, dict | list | set):
                found[f"inside {name}.{key}"] = (id(value), [id(item) for item in value], repr(value))
    return found


def a_hook(module: nn.Module, args: Any, result: Any) -> None:
    return None


@pytest.mark.parametrize("output", ["module", "graph"])
@pytest.mark.parametrize("name", ["resnet20", "encoder", "recurrent"])
def test_the_original_is_untouched(name: str, output: str) -> None:
    model, inputs = models_zoo.build(name)
    model.train()
    next(model.children()).eval()
    model.register_forward_hook(a_hook)
    call(model, inputs).sum().backward()
    inputs_before = inputs.clone()
    before = fingerprint(model)
    structprune.shrink(model, 0.5, inputs, output=output)
    assert fingerprint(model) == before
    assert torch.equal(inputs, inputs_before) and inputs.grad is None


def test_caches_that_forward_writes_are_as_they_were() -> None:
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)
            self.calls = 0
            self.seen: list[Tensor] = []
            self.cache: dict[str, Tensor] = {}
            self.last: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            x = self.first(x).relu()
            self.seen.append(x)
            self.cache["x"] = x
            self.last = x
            return self.second(x)

    model = seeded(Caching)
    for result in both(model, images(2, 6)):
        assert (model.calls, model.seen, model.cache, model.last) == (0, [], {}, None)
        if not isinstance(result, torch.fx.GraphModule):
            assert (result.calls, result.seen, result.cache, result.last) == (0, [], {}, None)


def test_a_nested_container_that_forward_writes_is_as_it_was() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)
            self.state: dict[str, list[Tensor]] = {"seen": []}

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x).relu()
            self.state["seen"].append(x)
            return self.second(x)

    model = seeded(Nested)
    result = structprune.shrink(model, 0.5, images(2, 6))
    assert model.state == {"seen": []}
    assert result.state == {"seen": []}


def test_buffers_that_forward_writes_are_as_they_were() -> None:
    class Counting(nn.Module):
        steps: Tensor
        average: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)
            self.register_buffer("steps", torch.tensor(0))
            self.register_buffer("average", torch.zeros(16))

        def forward(self, x: Tensor) -> Tensor:
            self.steps += 1
            x = self.first(x).relu()
            self.average.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
            return self.second(x)

    model = seeded(Counting)
    before = fingerprint(model)
    result = structprune.shrink(model, 0.3, images(2, 6))
    assert fingerprint(model) == before
    assert result.steps.item() == 0


def test_global_state_is_untouched() -> None:
    model = seeded(Block)
    state, fast = torch.get_rng_state(), torch.backends.mha.get_fastpath_enabled()
    hooks = len(nn.modules.module._global_forward_hooks), len(nn.modules.module._global_forward_pre_hooks)
    structprune.shrink(model, 0.5, images(2, 3, 8, 8), score="random")
    with pytest.raises(StructpruneError):
        structprune.shrink(model, 0.5, images(2, 4, 8, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled() and torch.backends.mha.get_fastpath_enabled() == fast
    assert hooks == (len(nn.modules.module._global_forward_hooks), len(nn.modules.module._global_forward_pre_hooks))


def test_shrinking_without_grad_gives_a_result_that_trains() -> None:
    model = seeded(Block)
    with torch.no_grad():
        result = structprune.shrink(model, 0.5, images(2, 3, 8, 8))
    assert all(parameter.requires_grad for parameter in result.parameters())
    result(images(2, 3, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in result.parameters())


def test_the_result_shares_no_memory_with_the_original() -> None:
    model = seeded(Block)
    places = {tensor.data_ptr() for tensor in model.state_dict().values()}
    for result in both(model, images(2, 3, 8, 8)):
        assert places.isdisjoint(tensor.data_ptr() for tensor in result.state_dict().values())


# -- kept properties ----------------------------------------------------------------------------------


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


# -- what it computes ---------------------------------------------------------------------------------


def kept_rows(old: Tensor, new: Tensor) -> list[int]:
    """Where the rows of the small weight stood: by their values, knowing nothing of the engine."""
    found = []
    for row in new.flatten(1):
        matches = (old.flatten(1)[:, : row.numel()] == row).all(1).nonzero().flatten().tolist()
        assert len(matches) == 1
        found.append(matches[0])
    return found


@pytest.mark.parametrize("score", ["l1", "l2", "fpgm", "bn_scale", "random"])
@pytest.mark.parametrize("output", ["module", "graph"])
def test_removing_equals_zeroing_by_hand(output: str, score: str) -> None:
    model = seeded(Block).double().eval()
    x = images(3, 3, 9, 9, dtype=torch.float64)
    small = structprune.shrink(model, 0.5, x, output=output, score=score)
    first = kept_rows(model.first.weight, small.get_parameter("first.weight"))
    assert first == sorted(first), "kept indices lost their order"
    second = [
        [i for i in range(32) if torch.equal(model.second.weight[i, first], row)]
        for row in small.get_parameter("second.weight")
    ]
    assert all(len(found) == 1 for found in second)
    zeroed = copy.deepcopy(model)
    gone = [i for i in range(16) if i not in first]
    gone_second = [i for i in range(32) if [i] not in second]
    with torch.no_grad():
        zeroed.norm.weight[gone] = 0
        zeroed.norm.bias[gone] = 0
        zeroed.second.weight[gone_second] = 0
        zeroed.second.bias[gone_second] = 0
    torch.testing.assert_close(small(x), zeroed(x), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("name", models_zoo.names())
def test_numeric_verification_passes(name: str) -> None:
    model, inputs = models_zoo.build(name)
    model = model.double()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    result = structprune.shrink(model, 0.4, inputs, verify="numeric")
    assert call(result, inputs).shape == call(model, inputs).shape


@pytest.mark.parametrize("output", ["module", "graph"])
def test_numeric_verification_detects_a_wrong_rule(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Squashed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).sigmoid().cumsum(-1))

    model = seeded(Squashed).double()
    x = images(2, 6, dtype=torch.float64)

    def every_index_for_itself(op: Any, *operands: Any) -> Any:
        present = [each for each in operands if each is not None]
        return Meeting([present[0].axes], [tuple(True for _ in present[0].axes)])

    kinds = {op.kind for op in structprune.analyze(model, x).solution.graph.ops if op.name == "cumsum"}
    assert len(kinds) == 1
    monkeypatch.setitem(RULES, kinds.pop(), every_index_for_itself)
    structprune.shrink(model, 0.5, x, output=output)
    with pytest.raises(VerificationError, match="differs from the original"):
        structprune.shrink(model, 0.5, x, output=output, verify="numeric")


@pytest.mark.parametrize("name", models_zoo.names())
def test_ratio_zero_gives_an_identical_model(name: str) -> None:
    model, inputs = models_zoo.build(name)
    expected = call(model, inputs)
    for output in ("module", "graph"):
        result = structprune.shrink(model, 0, inputs, output=output)
        assert result is not model
        before, after = model.state_dict(), result.state_dict()
        assert list(before) == list(after)
        assert all(torch.equal(before[key], after[key]) for key in before)
        torch.testing.assert_close(call(result, inputs), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", models_zoo.names())
def test_other_batch_sizes(name: str) -> None:
    model, inputs = models_zoo.build(name)
    plan = structprune.plan(model, 0.5, inputs, output="module")
    own = plan.apply(model)
    plan.output = "graph"
    graph = plan.apply(model)
    assert isinstance(graph, torch.fx.GraphModule)
    for batch in (1, 3, 7):
        more = torch.cat([inputs] * 4)[:batch]
        expected = own(more)
        assert expected.shape == model(more).shape
        torch.testing.assert_close(graph(more), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_other_image_sizes(name: str) -> None:
    model, inputs = models_zoo.build(name)
    plan = structprune.plan(model, 0.5, inputs, output="module")
    own = plan.apply(model)
    plan.output = "graph"
    graph = plan.apply(model)
    ran = 0
    for height, width in ((16, 16), (32, 32), (24, 24), (32, 48), (48, 32), (40, 40)):
        x = images(2, inputs.shape[1], height, width)
        try:
            shape = model(x).shape
        except RuntimeError:
            continue
        ran += 1
        expected = own(x)
        assert expected.shape == shape
        torch.testing.assert_close(graph(x), expected, rtol=1e-4, atol=1e-5)
    assert ran >= 3


@pytest.mark.parametrize("name", ["recurrent"])  # the decoder's positions are a table of one length
def test_other_lengths(name: str) -> None:
    model, inputs = models_zoo.build(name)
    plan = structprune.plan(model, 0.5, inputs, output="module")
    own = plan.apply(model)
    plan.output = "graph"
    graph = plan.apply(model)
    for length in (1, 5, 13):
        x = images(3, length, inputs.shape[-1])
        assert own(x).shape == model(x).shape
        torch.testing.assert_close(graph(x), own(x), rtol=1e-4, atol=1e-5)


# -- a full citizen -----------------------------------------------------------------------------------


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


# -- special modules ----------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("output", ["module", "graph"])
def test_encoder_layers_in_the_fast_path(output: str, norm_first: bool) -> None:
    layer = seeded(
        lambda: nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True, norm_first=norm_first)
    ).eval()
    x = images(2, 5, 32)
    result = structprune.shrink(layer, 0.3, x, output=output)
    with torch.no_grad():
        # Without gradients, in eval mode, torch takes its fused shortcut.
        fast = result(x)
    assert torch.backends.mha.get_fastpath_enabled()
    torch.testing.assert_close(fast, result(x).detach(), rtol=1e-4, atol=1e-5)
    result.train()
    assert not torch.equal(result(x), result(x))


@pytest.mark.parametrize("output", ["module", "graph"])
@pytest.mark.parametrize("need_weights", [False, True])
def test_multihead_attention(output: str, need_weights: bool) -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter = nn.Linear(6, 32)
            self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
            self.head = nn.Linear(32, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.enter(x)
            x, _ = self.attention(x, x, x, need_weights=need_weights)
            return self.head(x)

    model = seeded(Attending).double().eval()
    x = images(2, 5, 6, dtype=torch.float64)
    result = structprune.shrink(model, 0.5, x, output=output, verify="numeric")
    assert isinstance(result, Attending) == (output == "module")
    assert abs(1 - count(result) / count(model) - 0.5) <= 0.01
    with torch.no_grad():
        torch.testing.assert_close(result(x), result.train()(x), rtol=EXACT, atol=EXACT)


def weight_normed() -> nn.Module:
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(6, 24)),
        nn.ReLU(),
        parametrizations.weight_norm(nn.Linear(24, 16)),
        nn.ReLU(),
        nn.Linear(16, 3),
    )
    return model


def spectral_normed() -> nn.Module:
    return nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(6, 24)), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3)
    )


@pytest.mark.parametrize("build", [weight_normed, spectral_normed])
@pytest.mark.parametrize("output", ["module", "graph"])
def test_parametrized_weights_stay_parametrized_and_right(build: Callable[[], nn.Module], output: str) -> None:
    model = seeded(build).double().eval()
    x = images(2, 6, dtype=torch.float64)
    result = structprune.shrink(model, 0.3, x, output=output, verify="numeric")
    assert abs(1 - count(result) / count(model) - 0.3) <= 0.01
    assert list(result.state_dict()) == list(model.state_dict())
    if output == "module":
        assert nn.utils.parametrize.is_parametrized(result[0], "weight")
        assert result[0].weight.shape == (result[0].out_features, 6)
    result.train()
    result(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in result.parameters())


def test_old_style_weight_norm() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = seeded(lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 24)), nn.ReLU(), nn.Linear(24, 3)))
    model = model.double()
    x = images(2, 6, dtype=torch.float64)
    result = structprune.shrink(model, 0.5, x, verify="numeric")
    assert abs(1 - count(result) / count(model) - 0.5) <= 0.01
    assert result(x).shape == (2, 3)


def test_a_literal_width_stays_in_its_class_or_says_where() -> None:
    model, x = seeded(Literal).eval(), images(2, 3, 8, 8)
    with pytest.raises(UnsupportedModel, match=r"test_result\.py:\d+"):
        structprune.shrink(model, 0.5, x, output="module")
    with pytest.warns(UserWarning, match=r"torch\.fx\.GraphModule.*test_result\.py:\d+"):
        result = structprune.shrink(model, 0.5, x)
    assert isinstance(result, torch.fx.GraphModule)
    assert "def forward(self, x)" in result.code
    assert result(images(5, 3, 8, 8)).shape == (5, 5)


def test_no_warning_where_the_class_is_kept() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        structprune.shrink(seeded(Block), 0.5, images(2, 3, 8, 8))


# -- inputs and outputs -------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["module", "graph"])
def test_keyword_arguments_and_a_dict_of_outputs(output: str) -> None:
    model = seeded(KeywordsOnly).double()
    inputs = {"a": images(2, 6, dtype=torch.float64), "b": images(2, 4, dtype=torch.float64)}
    result = structprune.shrink(model, 0.5, inputs, output=output, verify="numeric")
    found = result(**{name: torch.cat([value] * 2) for name, value in inputs.items()})
    assert {key: value.shape for key, value in found.items()} == {"logits": (4, 3), "mean": (4, 1)}
    # Not given when it was recorded: its default stays.
    torch.testing.assert_close(result(**inputs)["logits"], found["logits"][:2], rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("output", ["module", "graph"])
def test_several_inputs_and_nested_outputs(output: str) -> None:
    model = seeded(TwoInputs).double()
    inputs = images(2, 6, dtype=torch.float64), images(2, 4, dtype=torch.float64)
    result = structprune.shrink(model, 0.5, inputs, output=output, verify="numeric")
    first, rest = result(*inputs)
    assert (first.shape, rest[0].shape) == ((2, 3), (2, 2))
    assert torch.equal(rest[1], inputs[0])
    assert type(rest) is list
    by_name = result(b=inputs[1], a=inputs[0])
    assert torch.equal(by_name[0], first)


def test_a_tuple_as_the_one_argument() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)

        def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
            return self.second(self.first(pair[0] + pair[1]).relu())

    model = seeded(Pair)
    inputs = ((images(2, 6), images(2, 6)),)
    for result in both(model, inputs):
        assert result((images(5, 6), images(5, 6))).shape == (5, 3)


@pytest.mark.parametrize("output", ["module", "graph"])
def test_a_flag_and_a_missing_argument(output: str) -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor, mask: Tensor | None = None, double: bool = False) -> Tensor:
            x = self.first(x)
            if mask is not None:
                x = x * mask
            return self.second(x.relu()) * (2 if double else 1)

    model = seeded(Optional).double()
    x = images(2, 6, dtype=torch.float64)
    inputs = {"x": x, "mask": None, "double": True}
    result = structprune.shrink(model, 0.5, inputs, output=output, verify="numeric")
    assert result(x=x, double=True).shape == (2, 3)
    if output == "module":
        torch.testing.assert_close(result(x, double=True), 2 * result(x), rtol=EXACT, atol=EXACT)


class Vector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 64), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


@pytest.mark.parametrize("build", [Block, Tied, Vector, lambda: models_zoo.build("recurrent")[0]])
def test_no_inputs(build: Callable[[], nn.Module]) -> None:
    model = seeded(build)
    result = structprune.shrink(model, 0.5)
    assert type(result) is type(model)
    assert abs(1 - count(result) / count(model) - 0.5) <= 0.01


def test_an_input_without_a_batch() -> None:
    """A lone tensor is one argument: its first axis is not unpacked."""
    model = seeded(Vector)
    result = structprune.shrink(model, 0.5, images(6))
    assert result(images(6)).shape == (3,)
    assert result(images(2, 6)).shape == (2, 3)


def test_a_batch_of_one_says_nothing_about_other_batches() -> None:
    model = seeded(Block).eval()
    for result in both(model, images(1, 3, 8, 8)):
        for batch in (1, 2, 5):
            assert result(images(batch, 3, 8, 8)).shape == (batch, 5)


@pytest.mark.parametrize("output", ["module", "graph"])
def test_parameters_that_nothing_uses_stay(output: str) -> None:
    class Idle(Vector):
        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.Linear(4, 4)

    model = seeded(Idle)
    result = structprune.shrink(model, 0.3, images(2, 6), output=output)
    assert torch.equal(result.get_parameter("idle.weight"), model.idle.weight)
    # Those count too: the ratio is of all that the model holds.
    assert abs(1 - count(result) / count(model) - 0.3) <= 0.01


def test_shrinking_twice() -> None:
    model, x = seeded(Block).eval(), images(2, 3, 8, 8)
    once = structprune.shrink(model, 0.5, x)
    twice = structprune.shrink(once, 0.5, x)
    assert type(twice) is Block
    assert abs(1 - count(twice) / count(once) - 0.5) <= 0.01
    assert twice(x).shape == (2, 5)


def test_a_graph_can_be_shrunk_again() -> None:
    model, x = seeded(Literal).eval(), images(2, 3, 8, 8)
    once = graph_of(model, x, 0.5)
    twice = structprune.shrink(once, 0.25, x)
    assert abs(1 - count(twice) / count(once) - 0.25) <= 0.01
    assert twice(x).shape == (2, 5)
