"""Each criterion by brute force, on torch tensors and on numpy arrays, and over all coupled slices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import models_zoo
import structprune
from structprune.errors import InvalidArgument
from structprune.passes.group import Group
from structprune.passes.score import CRITERIA, random_scores, score

NORMS = {"l0": 0, "l1": 1, "l2": 2, "linf": np.inf}
NAMES = ("l0", "l1", "l2", "linf", "fpgm", "bn_scale")
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.second = nn.Conv2d(12, 20, 3, padding=1)
        self.head = nn.Linear(20 * 4, 5)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        return self.head(nn.functional.adaptive_avg_pool2d(self.second(x).relu(), 2).flatten(1))


def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().double().eval()


def arrays(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in model.named_parameters(remove_duplicate=False)}


def scores(model: nn.Module, how: Any, inputs: Tensor = X) -> dict[str, np.ndarray]:
    groups = structprune.analyze(model, inputs).groups
    found = score(groups, arrays(model), how)
    assert set(found) == {group.dim for group in groups}
    return {group.name: found[group.dim] for group in groups}


def slices_of_first(model: Net) -> list[np.ndarray]:
    """All that goes with a channel of the first convolution, found by hand: one row each."""
    parts = [
        model.first.weight.flatten(1),
        model.first.bias[:, None],
        model.norm.weight[:, None],
        model.norm.bias[:, None],
        model.second.weight.transpose(0, 1).flatten(1),
    ]
    return [part.detach().numpy() for part in parts]


def slices_of_second(model: Net) -> list[np.ndarray]:
    """The flattened map: four columns of the head for each channel."""
    columns = model.head.weight.reshape(5, 20, 4).transpose(0, 1).flatten(1)
    return [part.detach().numpy() for part in (model.second.weight.flatten(1), model.second.bias[:, None], columns)]


@pytest.fixture
def criteria() -> Iterator[None]:
    before = dict(CRITERIA)
    yield
    CRITERIA.clear()
    CRITERIA.update(before)


# -- by brute force -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NORMS)
def test_norms_over_all_coupled_slices(name: str) -> None:
    model = net()
    with torch.no_grad():
        model.first.weight[0] = 0
        model.second.weight[:, 3:5] = 0
    found = scores(model, name)
    for group, parts in (("first.weight:0", slices_of_first(model)), ("second.weight:0", slices_of_second(model))):
        expected = np.linalg.norm(np.concatenate(parts, axis=1), ord=NORMS[name], axis=1)
        np.testing.assert_allclose(found[group], expected, rtol=1e-12)


def distances_to_median(rows: np.ndarray) -> np.ndarray:
    """Descend on the sum of distances until nothing moves: the definition, by another way than Weiszfeld's."""
    x = torch.from_numpy(rows)
    median = x.mean(0).clone().requires_grad_()
    optimizer = torch.optim.LBFGS([median], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = (x - median).norm(dim=1).sum()
        total.backward()
        return total

    optimizer.step(closure)
    return (x - median.detach()).norm(dim=1).numpy()


def test_fpgm_is_the_distance_to_the_geometric_median() -> None:
    model = net()
    found = scores(model, "fpgm")
    for group, parts in (("first.weight:0", slices_of_first(model)), ("second.weight:0", slices_of_second(model))):
        rows = np.concatenate(parts, axis=1)
        expected = distances_to_median(rows)
        np.testing.assert_allclose(found[group], expected, rtol=1e-3)
        # The order is what selection uses.
        assert np.argsort(found[group]).tolist() == np.argsort(expected).tolist()


def test_fpgm_looks_at_signs() -> None:
    """A peer took the median over absolute values: w and -w were alike."""
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight[:] = torch.tensor([1.0, 2, 3, 4])
        model[0].weight[5] *= -1
        model[2].weight.fill_(0.1)
    found = scores(model, "fpgm", X[0, 0, :, :4])["0.weight:0"]
    # Five of six are the same: they are the median, and the sixth is far away.
    assert found[5] == pytest.approx(2 * np.sqrt(30), rel=1e-3)
    assert found[:5] == pytest.approx(np.zeros(5), abs=1e-2)


def test_fpgm_of_filters_that_are_all_the_same() -> None:
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.fill_(0.5)
        model[2].weight.fill_(0.1)
    found = scores(model, "fpgm", X[0, 0, :, :4])["0.weight:0"]
    assert np.isfinite(found).all() and found == pytest.approx(np.zeros(6), abs=1e-12)
    assert structprune.shrink(model, 0.5, X[0, 0, :, :4], score="fpgm")[0].out_features == 3


def test_bn_scale_is_gamma_and_falls_back() -> None:
    model = net()
    found = scores(model, "bn_scale")
    np.testing.assert_allclose(found["first.weight:0"], model.norm.weight.detach().abs().numpy(), rtol=1e-12)
    np.testing.assert_allclose(found["second.weight:0"], scores(model, "l2")["second.weight:0"], rtol=1e-12)
    plain = nn.BatchNorm2d(12, affine=False).double().eval()
    model.norm = plain
    np.testing.assert_allclose(scores(model, "bn_scale")["first.weight:0"], scores(model, "l2")["first.weight:0"])


def test_bn_scale_of_a_group_with_two_batch_norms() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)
            self.one, self.two = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
            self.head = nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((self.one(self.left(x)) + self.two(self.right(x))).relu())

    model = Two().double().eval()
    nn.init.normal_(model.one.weight)
    nn.init.normal_(model.two.weight)
    found = scores(model, "bn_scale")["left.weight:0"]
    one, two = model.one.weight.detach().numpy(), model.two.weight.detach().numpy()
    np.testing.assert_allclose(found, np.sqrt(one**2 + two**2), rtol=1e-12)


def test_channels_concatenated_and_flattened_keep_their_own_slices() -> None:
    class Concat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(4, 6), nn.Linear(4, 10)
            self.head = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.cat([self.left(x), self.right(x)], -1).relu())

    model = Concat().double()
    found = scores(model, "l1", X[0, 0, :, :4])
    for name, columns in (("left", slice(0, 6)), ("right", slice(6, 16))):
        layer = getattr(model, name)
        expected = layer.weight.abs().sum(1) + layer.bias.abs() + model.head.weight[:, columns].abs().sum(0)
        np.testing.assert_allclose(found[f"{name}.weight:0"], expected.detach().numpy(), rtol=1e-12)


# -- torch and numpy ----------------------------------------------------------------------------------


@pytest.mark.parametrize("model_name", ["resnet20", "vit", "recurrent", "decoder", "shufflenet"])
@pytest.mark.parametrize("name", NAMES)
def test_torch_and_numpy_agree(name: str, model_name: str) -> None:
    model, inputs = models_zoo.build(model_name)
    model = model.double()
    groups = structprune.analyze(model, inputs.double() if inputs.is_floating_point() else inputs).groups
    tensors = arrays(model)
    by_torch = score(groups, tensors, name)
    by_numpy = score(groups, {key: value.numpy() for key, value in tensors.items()}, name)
    for group in groups:
        assert by_torch[group.dim].dtype == np.float64
        # Sums in another order differ in the last digits.
        np.testing.assert_allclose(by_torch[group.dim], by_numpy[group.dim], rtol=1e-9, atol=1e-12, err_msg=group.name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes(name: str, dtype: torch.dtype) -> None:
    exact = scores(net().to(dtype).double(), name)
    found = scores(net().to(dtype), name, X.to(dtype))
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}[dtype]
    for group, expected in exact.items():
        np.testing.assert_allclose(found[group], expected, rtol=tolerance, atol=tolerance * expected.max())


def test_half_precision_does_not_overflow() -> None:
    """The squares of 300 do not fit float16."""
    model = net().half()
    with torch.no_grad():
        model.first.weight.fill_(300)
        model.first.weight[4] = 400
    found = scores(model, "l2", X.half())["first.weight:0"]
    assert np.isfinite(found).all() and found.min() > 1000
    assert int(found.argmax()) == 4


@pytest.mark.parametrize("name", NAMES)
def test_scoring_changes_no_weight(name: str) -> None:
    model = net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    scores(model, name)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


# -- random and functions -----------------------------------------------------------------------------


def kept(model: nn.Module, **options: Any) -> dict[str, list[int]]:
    return structprune.plan(model, 0.5, X, **options).keep


def test_random_is_seeded() -> None:
    one = kept(net(), score="random", seed=1)
    np.random.seed(5)
    torch.manual_seed(5)
    assert kept(net(), score="random", seed=1) == one
    assert kept(net(), score="random", seed=2) != one
    assert kept(net(), score="random") == kept(net(), score="random", seed=0)


def test_random_leaves_the_global_generators_alone() -> None:
    numpy_before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()
    kept(net(), score="random", seed=3)
    assert np.array_equal(np.random.get_state()[1], numpy_before)
    assert torch.equal(torch.get_rng_state(), torch_before)


def test_random_is_random_over_all_indices() -> None:
    group = next(group for group in structprune.analyze(net(), X).groups if group.size == 20)
    drawn = np.stack([random_scores(seed)(group, []) for seed in range(400)])
    counts = np.bincount(drawn.argmin(1), minlength=20)
    # Binomial with 400 trials of 1/20: five standard deviations.
    assert np.abs(counts - 20).max() < 5 * np.sqrt(400 * 0.05 * 0.95)


def by_index(group: Group, weights: Any) -> Tensor:
    return torch.arange(group.size)


@pytest.mark.parametrize(
    "function",
    [by_index, lambda group, weights: np.arange(group.size), lambda group, weights: list(range(group.size))],
)
def test_a_function(function: Callable[..., Any]) -> None:
    model = net()
    small = structprune.shrink(model, 0.5, X, score=function, scope="uniform")
    width = small.first.out_channels
    assert width < 12
    # The lowest scores go: the last filters stay, in their old order.
    assert torch.equal(small.first.weight, model.first.weight[12 - width :])
    assert torch.equal(small.norm.running_mean, model.norm.running_mean[12 - width :])


def test_what_a_function_is_given() -> None:
    seen: dict[str, list[tuple[int, ...]]] = {}

    def look(group: Group, weights: Any) -> Tensor:
        seen[group.name] = [tuple(each.shape) for each in weights]
        return weights[0].flatten(1).norm(dim=1)

    scores(net(), look)
    assert all(shape[0] == 12 for shape in seen["first.weight:0"])
    # Running statistics are no weights.
    assert sorted(np.prod(shape) // 12 for shape in seen["first.weight:0"]) == [1, 1, 1, 27, 180]


def test_a_function_sees_no_graph_of_gradients() -> None:
    def look(group: Group, weights: Any) -> Tensor:
        assert not any(each.requires_grad for each in weights)
        return by_index(group, weights)

    structprune.shrink(net(), 0.3, X, score=look)


@pytest.mark.usefixtures("criteria")
def test_a_new_criterion() -> None:
    @structprune.criterion("last_first")
    def last_first(group: Group, weights: Any) -> Tensor:
        return -torch.arange(group.size)

    model = net()
    small = structprune.shrink(model, 0.5, X, score="last_first", scope="uniform")
    assert torch.equal(small.first.weight, model.first.weight[: small.first.out_channels])
    assert last_first.__name__ == "last_first"
    with pytest.raises(InvalidArgument, match="last_first"):
        structprune.criterion("last_first")(last_first)
    with pytest.raises(InvalidArgument, match="random"):
        structprune.criterion("random")(last_first)
    with pytest.raises(InvalidArgument, match="last_first"):
        structprune.shrink(model, 0.5, X, score="no such")


# -- odd weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", NAMES)
def test_weights_that_are_no_numbers(name: str, value: float) -> None:
    """A broken filter must not spread to the scores of others, and it goes first."""
    model, whole = net(), net()
    with torch.no_grad():
        model.first.weight[2] = value
        model.norm.weight[2] = value
    found = scores(model, name)["first.weight:0"]
    assert np.isfinite(found).all()
    healthy = np.delete(found, 2)
    assert healthy.min() > 0
    if name != "fpgm":
        np.testing.assert_allclose(healthy, np.delete(scores(whole, name)["first.weight:0"], 2), rtol=1e-12)
    small = structprune.shrink(model, 0.3, X, score=name)
    assert small(X).shape == (2, 5)
    if name != "l0":
        assert bool(small.first.weight.isfinite().all()), "the broken filter stayed"


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_are_all_zero(name: str) -> None:
    model = net()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(np.isfinite(each).all() for each in scores(model, name).values())
    small = structprune.shrink(model, 0.5, X, score=name)
    before, after = (sum(p.numel() for p in each.parameters()) for each in (model, small))
    assert abs(1 - after / before - 0.5) <= 0.01
    # No layer collapses for want of a score.
    assert min(small.first.out_channels, small.second.out_channels) >= 2


@pytest.mark.parametrize("name", ["l1", "l2", "linf", "bn_scale"])
def test_the_weakest_go(name: str) -> None:
    model = net()
    weak = [1, 4, 7]
    with torch.no_grad():
        for part in (model.first.weight, model.first.bias, model.norm.weight, model.norm.bias):
            part[weak] *= 1e-3
        model.second.weight[:, weak] *= 1e-3
    assert set(np.argsort(scores(model, name)["first.weight:0"])[:3]) == set(weak)


def test_frozen_layers_count_in_the_scores() -> None:
    model = net()
    expected = scores(model, "l2")["first.weight:0"]
    model.first.requires_grad_(False)
    np.testing.assert_allclose(scores(model, "l2")["first.weight:0"], expected, rtol=1e-12)
