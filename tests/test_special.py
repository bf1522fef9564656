"""Modules of torch that need care: fused attention, parametrizations, sizes in the code."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import structprune
from structprune.errors import UnsupportedModel
from tests.small_models import EXACT, Block, Literal, count, images, seeded

# The one-line warning about a GraphModule has its own test.
pytestmark = pytest.mark.filterwarnings("ignore:the result is a torch.fx.GraphModule")


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
    with pytest.raises(UnsupportedModel, match=r"small_models\.py:\d+"):
        structprune.shrink(model, 0.5, x, output="module")
    with pytest.warns(UserWarning, match=r"torch\.fx\.GraphModule.*small_models\.py:\d+"):
        result = structprune.shrink(model, 0.5, x)
    assert isinstance(result, torch.fx.GraphModule)
    assert "def forward(self, x)" in result.code
    assert result(images(5, 3, 8, 8)).shape == (5, 5)


def test_no_warning_where_the_class_is_kept() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        structprune.shrink(seeded(Block), 0.5, images(2, 3, 8, 8))


class ChosenRows(nn.Module):
    """The rows that the data choose go through a layer, in float32 whatever comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.chosen, self.leave = nn.Linear(6, 32), nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(x.float()).relu()
        for row in (x[:, 0] > 0).nonzero().flatten().tolist():
            y = y.index_add(0, torch.tensor([row]), self.chosen(y[row : row + 1]))
        return self.leave(y)


def test_numeric_verification_of_a_model_bound_to_data_that_casts_by_itself() -> None:
    torch.manual_seed(0)
    model = ChosenRows()
    small = structprune.shrink(model, 0.5, torch.randn(5, 6), verify="numeric")
    assert type(small) is ChosenRows and small.chosen.weight.shape[0] < 32


class Draws(nn.Module):
    """Noise of a width, drawn like a tensor, in a shape, and in place; what data choose follows from it, too."""

    def __init__(self, is_bound_to_data: bool) -> None:
        super().__init__()
        self.is_bound_to_data = is_bound_to_data
        self.enter, self.mean, self.spread, self.leave = (
            nn.Linear(*sizes) for sizes in ((6, 32), (32, 32), (32, 32), (32, 4))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x).relu()
        mean, spread = self.mean(x), self.spread(x).exp()
        for layer in (self.mean, self.spread):  # two widths on one line
            mean = mean + F.dropout(layer(x), 0.5, True).sum(1, keepdim=True)
        y = mean + spread * (torch.randn_like(spread) + torch.randn(mean.shape) + torch.empty_like(mean).uniform_())
        return self.leave(y if not self.is_bound_to_data or torch.rand(()).item() < 2 else x)


@pytest.mark.parametrize("output", ["module", "graph"])
def test_numeric_verification_of_a_model_that_draws(output: str) -> None:
    torch.manual_seed(0)
    model, x = Draws(False), torch.randn(5, 6)
    plan = structprune.plan(model, 0.5, x, verify="numeric", output=output)
    small = plan.apply(model)
    assert small.mean.weight.shape[0] < 32
    # The same is drawn for what stays, whatever is drawn for what goes; at another batch size, too.
    assert plan.report is not None and plan.report.error is not None and plan.report.error < 1e-12
    assert "inputs of 2x6, other sizes than recorded" in str(plan)


def test_numeric_verification_of_a_model_that_draws_and_reads_data() -> None:
    torch.manual_seed(0)
    small = structprune.shrink(Draws(True), 0.5, torch.randn(5, 6), verify="numeric")
    assert type(small) is Draws and small.mean.weight.shape[0] < 32


def test_verification_draws_nothing_from_the_user() -> None:
    torch.manual_seed(0)
    model, x = Draws(False), torch.randn(5, 6)
    plan = structprune.plan(model, 0.5, x, verify="numeric")
    before = torch.get_rng_state()
    plan.apply(model)
    assert torch.equal(torch.get_rng_state(), before)
