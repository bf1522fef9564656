"""Without the private names of torch, models are recorded by torch.export: the same operators, the same groups."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import models_zoo
import structprune
from structprune.errors import UnsupportedModel
from structprune.frontends.torch.record import private
from structprune.frontends.torch.record.capture import record
from structprune.frontends.torch.record.exported import record_by_export
from structprune.frontends.torch.record.record import Capture, Run

# What one of the two ways sees and the other does not.
SEEN_BY_ONE = frozenset(("aten.detach.default", "aten.alias.default", "aten.contiguous.default"))


@pytest.fixture
def without_private_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def never(*args: Any) -> Any:
        raise AssertionError("a private name was used")

    monkeypatch.setattr(private, "is_available", False)
    monkeypatch.setattr(private, "missing", ("_C.DispatchKey.PreDispatch",))
    monkeypatch.setattr(private, "operators_to", never)
    monkeypatch.setattr(private, "wrapper", never)
    yield


def operators(capture: Capture) -> list[tuple[str, list[tuple[int, ...]]]]:
    return [
        (str(call.target), [value.shape for value in call.outputs])
        for call in capture.calls
        if str(call.target) not in SEEN_BY_ONE
    ]


@pytest.mark.parametrize("name", models_zoo.names())
def test_both_ways_record_the_same_operators(name: str) -> None:
    model, inputs = models_zoo.build(name)
    quick, slow = record(model, Run(((inputs,), {}))), record_by_export(model, Run(((inputs,), {})))
    assert operators(quick) == operators(slow)
    assert quick.parameters.keys() == slow.parameters.keys()
    assert quick.aliases == slow.aliases
    assert [value.shape for value in quick.outputs] == [value.shape for value in slow.outputs]
    assert [value.is_trained for value in quick.parameters.values()] == [
        slow.parameters[name].is_trained for name in quick.parameters
    ]
    modules = {call.where.module for call in quick.calls}
    assert modules == {call.where.module for call in slow.calls}


def groups(model: nn.Module, inputs: Tensor) -> list[Any]:
    return sorted(
        (group.size, sorted((member.parameter, member.axis) for member in group.members))
        for group in structprune.analyze(model, inputs).groups
    )


@pytest.mark.parametrize("name", ["resnet20", "shufflenet", "swin", "decoder", "recurrent"])
def test_both_ways_find_the_same_groups(name: str, request: pytest.FixtureRequest) -> None:
    model, inputs = models_zoo.build(name)
    expected = groups(model, inputs)
    request.getfixturevalue("without_private_names")
    assert groups(model, inputs) == expected


@pytest.mark.usefixtures("without_private_names")
@pytest.mark.parametrize("output", ["module", "graph"])
@pytest.mark.parametrize("name", ["plain_cnn", "encoder", "recurrent"])
def test_models_are_shrunk_the_slow_way(name: str, output: str) -> None:
    model, inputs = models_zoo.build(name)
    model.double()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    small = structprune.shrink(model, 0.4, inputs, output=output, verify="numeric")
    assert sum(p.numel() for p in small.parameters()) < 0.65 * sum(p.numel() for p in model.parameters())


class Forms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)
        self.register_buffer("scale", torch.rand(16))

    def forward(self, x: list[Tensor], *, mask: dict[str, Tensor]) -> dict[str, Any]:
        h = torch.einsum("bi,oi->bo", x[0] + x[1], self.first.weight) * torch.tensor([2.0]) * self.scale
        first, second = (h * mask["m"]).chunk(2, dim=-1)
        return {"y": (self.second(torch.cat([second, first], -1)), None), "n": 3}


@pytest.mark.usefixtures("without_private_names")
def test_forms_of_inputs_and_results() -> None:
    model = Forms().eval()
    inputs = {"x": [torch.randn(2, 6), torch.randn(2, 6)], "mask": {"m": torch.rand(2, 1)}}
    traced = structprune.trace(model, inputs)
    expected, found = model(**inputs), traced(**inputs)
    torch.testing.assert_close(found["y"][0], expected["y"][0])
    assert found["n"] == 3 and found["y"][1] is None


@pytest.mark.usefixtures("without_private_names")
def test_what_the_slow_way_does_not_take_is_said() -> None:
    class Reads(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (2 if x.sum().item() > 0 else 1)  # type: ignore[no-any-return]

    with pytest.raises(UnsupportedModel, match=r"lacks _C\.DispatchKey\.PreDispatch: models are recorded by torch\."):
        structprune.shrink(Reads(nn.Linear(6, 16), nn.Linear(16, 3)), 0.3, torch.randn(2, 6))


def test_every_private_name_is_there() -> None:
    assert private.is_available and not private.missing
    assert all(private.found(path) is not None for path in private.NAMES)
    assert private.found("_C.no_such_name.at_all") is None
