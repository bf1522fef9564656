"""What a result computes: the zeroed original, at every size."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import models_zoo
import structprune
from structprune.errors import VerificationError
from structprune.graph.operator import RULES, Meeting
from tests.small_models import CONVOLUTIONAL, EXACT, Block, call, images, seeded

# The one-line warning about a GraphModule has its own test.
pytestmark = pytest.mark.filterwarnings("ignore:the result is a torch.fx.GraphModule")


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
    structprune.shrink(model, 0.5, x, output=output, verify="shapes")
    with pytest.raises(VerificationError, match="differs from the original"):
        structprune.shrink(model, 0.5, x, output=output)


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
