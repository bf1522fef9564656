"""Every form of inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import models_zoo
import structprune
from tests.small_models import (
    EXACT,
    Block,
    KeywordsOnly,
    Literal,
    Tied,
    TwoInputs,
    Vector,
    both,
    count,
    graph_of,
    images,
    seeded,
)

# The one-line warning about a GraphModule has its own test.
pytestmark = pytest.mark.filterwarnings("ignore:the result is a torch.fx.GraphModule")


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


class Conv1x1(nn.Conv2d):
    """A number in the name of a class is no number of axes."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__(inside, outside, 1)


def test_the_rank_of_a_convolution_is_that_of_its_weight() -> None:
    small = structprune.shrink(nn.Sequential(Conv1x1(3, 16), nn.ReLU(), Conv1x1(16, 4)), 0.3)
    assert small(torch.zeros(1, 3, 9, 9)).shape == (1, 4, 9, 9)


class Following(nn.Module):
    """Its path follows whole numbers, masks and, if it `reads` them, numbers with a fraction."""

    def __init__(self, reads: bool) -> None:
        super().__init__()
        self.first, self.second, self.long = nn.Linear(6, 16), nn.Linear(16, 3), nn.Linear(16, 16)
        self.reads = reads

    def forward(self, x: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
        h = self.first(x)
        if int(lengths.max()) < 3 or not bool(mask.any()) or (self.reads and float(x.max()) < 2.5):
            raise ValueError("nothing to do")
        return self.second(self.long(h) if int(lengths[0]) == 4 else h)


@pytest.mark.parametrize("reads", [False, True])
def test_a_saved_plan_keeps_the_inputs_that_a_path_follows(reads: bool, tmp_path: Path) -> None:
    model = Following(reads).double()
    x = torch.rand(2, 6, dtype=torch.float64) + 2
    inputs = (x, torch.tensor([4, 2]), torch.tensor([False, True]))
    plan = structprune.plan(model, 0.3, inputs)
    expected = plan.apply(model)(*inputs)
    plan.save(tmp_path / "plan.json")
    loaded = structprune.Plan.load(tmp_path / "plan.json")
    assert torch.equal(loaded.apply(model)(*inputs), expected)
    assert any("long" in name for name in loaded.keep)
