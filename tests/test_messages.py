"""Every error on its text: what, where, why, what to do. One error of our own, never a stranger's."""

from __future__ import annotations

import inspect
import math
import re
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import structprune
import structprune.testing
from structprune import errors
from structprune.algebra import notation
from structprune.errors import (
    CaptureError,
    DuplicateRule,
    InvalidArgument,
    MissingPackage,
    NotationError,
    OutputError,
    PlanMismatch,
    StructpruneError,
    UnsupportedModel,
    UnsupportedRatio,
    VerificationError,
)
from structprune.graph.operator import RULES, Meeting, rule
from structprune.passes.score import CRITERIA, criterion


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 64)
        self.second = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


X = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
HERE = r"test_messages\.py:\d+"


def raised(kind: type[StructpruneError], call: Callable[[], Any], *parts: str) -> str:
    """The text of the one error that a call gives; each part must stand in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(StructpruneError) as caught:
            call()
    assert type(caught.value) is kind, repr(caught.value)
    text = str(caught.value)
    for part in parts:
        assert part in text, text
    assert ".." not in text.replace("...", ""), text
    assert "  " not in text.replace("\n    ", "") or kind is NotationError, text
    assert len(text) < 1500
    return text


def shrink(model: Any = None, ratio: Any = 0.5, inputs: Any = X, **options: Any) -> Callable[[], Any]:
    return lambda: structprune.shrink(Net() if model is None else model, ratio, inputs, **options)


def test_every_class_is_ours_and_says_what_it_is() -> None:
    classes = [each for _, each in inspect.getmembers(errors, inspect.isclass) if each.__module__ == errors.__name__]
    tested = {
        StructpruneError, InvalidArgument, NotationError, DuplicateRule, CaptureError, UnsupportedRatio,
        UnsupportedModel, PlanMismatch, VerificationError, OutputError, MissingPackage,
    }  # fmt: skip
    assert set(classes) == tested, "a new class of error needs a test of its text here"
    assert all(issubclass(each, StructpruneError) and each.__doc__ for each in classes)


# -- arguments ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ratio",
    [1, -1, 1.5, -0.01, "half", "0.5", True, False, math.nan, math.inf, None, [0.5], 0.5j, torch.tensor([0.5, 0.5])],
    ids=str,
)
def test_ratio(ratio: Any) -> None:
    text = raised(InvalidArgument, shrink(ratio=ratio), "ratio=", "from 0 to below 1")
    assert repr(ratio) in text


def test_a_ratio_that_is_a_number_of_another_kind_is_fine() -> None:
    for ratio in (0.5, np.float64(0.5), np.float32(0.5)):
        small = structprune.shrink(Net(), ratio, X)
        assert small.first.out_features == 32


def test_a_wrong_ratio_is_a_value_error_too() -> None:
    with pytest.raises(ValueError, match="ratio="):
        structprune.shrink(Net(), 2, X)


@pytest.mark.parametrize("name", ["scope", "output", "verify"])
@pytest.mark.parametrize("value", ["banana", 3, ["global"], ""], ids=str)
def test_unknown_choices(name: str, value: Any) -> None:
    known = {"scope": "'uniform'", "output": "'graph'", "verify": "'numeric'"}[name]
    raised(InvalidArgument, shrink(**{name: value}), f"{name}={value!r}", known)


@pytest.mark.parametrize("name", ["scope", "output"])
def test_none_is_no_choice(name: str) -> None:
    raised(InvalidArgument, shrink(**{name: None}), f"{name}=None")


@pytest.mark.parametrize("value", ["flops", "", None, 3, ["params"]], ids=str)
def test_unknown_of(value: Any) -> None:
    raised(InvalidArgument, shrink(of=value), f"of={value!r}", "'params'", "'macs'", "'channels'")


@pytest.mark.parametrize("value", ["l7", "", None, 3, ["l2"]], ids=str)
def test_unknown_score(value: Any) -> None:
    raised(InvalidArgument, shrink(score=value), f"score={value!r}", "fpgm", "bn_scale", "random", "function")


@pytest.mark.parametrize("value", [0, -4, 1.5, "8", True, 2.0], ids=str)
def test_align(value: Any) -> None:
    raised(InvalidArgument, shrink(align=value), f"align={value!r}", "whole number")


@pytest.mark.parametrize("value", ["one", None, 1.5], ids=str)
def test_seed(value: Any) -> None:
    raised(InvalidArgument, shrink(seed=value, score="random"), f"seed={value!r}")


def test_options_are_checked_at_ratio_zero_too() -> None:
    raised(InvalidArgument, shrink(ratio=0, score="l7"), "score='l7'")
    raised(InvalidArgument, shrink(ratio=0, of="flops"), "of='flops'")
    raised(InvalidArgument, shrink(ratio=0, exclude=["nothing"]), "'nothing'")


def test_options_are_checked_before_the_model_runs() -> None:
    class Slow(Net):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("the model ran")

    for options in ({"of": "flops"}, {"score": "l7"}, {"exclude": ["nothing"]}, {"align": 0}):
        raised(InvalidArgument, shrink(Slow(), **options))


@pytest.mark.parametrize("option", ["exclude", "only"])
def test_patterns_that_match_nothing(option: str) -> None:
    raised(InvalidArgument, shrink(**{option: ["firsst"]}), "'firsst'", "matches no", "first.weight")
    raised(InvalidArgument, shrink(**{option: ["first", "third.*"]}), "'third.*'")
    raised(InvalidArgument, shrink(**{option: [3]}), "3")
    raised(InvalidArgument, shrink(**{option: 3}), "3")


@pytest.mark.parametrize("model", [None, 3, X, Net, lambda x: x, {"a": 1}], ids=lambda m: type(m).__name__)
def test_not_a_module(model: Any) -> None:
    text = raised(InvalidArgument, lambda: structprune.shrink(model, 0.5, X), "torch.nn.Module")
    if model is Net:
        assert "instance" in text or "Net" in text


def test_a_name_is_a_path() -> None:
    raised(InvalidArgument, lambda: structprune.shrink("resnet18", 0.5, X), "resnet18", "output_path=")
    raised(UnsupportedModel, lambda: structprune.plan("resnet18", 0.5), "resnet18 cannot be read", "No such file")


# -- models -------------------------------------------------------------------------------------------


def test_a_model_with_no_parameters() -> None:
    raised(UnsupportedModel, shrink(nn.ReLU()), "ReLU", "no parameters")
    raised(UnsupportedModel, shrink(nn.Sequential()), "no parameters")
    raised(UnsupportedModel, shrink(nn.ReLU(), inputs=None), "no parameters")


UNFIT = {
    "another width": torch.randn(2, 7),
    "one argument more": (X, X),
    "another name": {"y": X},
    "float64": X.double(),
    "whole numbers": torch.ones(2, 6, dtype=torch.long),
    "nothing": (),
}


@pytest.mark.parametrize("inputs", UNFIT.values(), ids=UNFIT.keys())
def test_inputs_that_do_not_fit(inputs: Any) -> None:
    with pytest.raises((RuntimeError, TypeError)):
        Net()(**inputs) if isinstance(inputs, dict) else Net()(*inputs) if inputs == () else Net()(inputs)
    raised(CaptureError, shrink(inputs=inputs), "forward raised", "example_inputs")


@pytest.mark.parametrize("inputs", [3, "image", np.zeros((2, 6)), {1, 2}, Net()], ids=lambda i: type(i).__name__)
def test_inputs_of_a_kind_that_nothing_takes(inputs: Any) -> None:
    raised(InvalidArgument, shrink(inputs=inputs), "example_inputs", type(inputs).__name__, "tensor", "tuple", "dict")


def test_inputs_that_no_plan_can_hold() -> None:
    class Odd(Net):
        def forward(self, x: Tensor, extra: Any) -> Tensor:
            return super().forward(x)

    raised(InvalidArgument, shrink(Odd(), inputs=(X, object())), "object", "plan")


def test_where_the_forward_raises() -> None:
    class Broken(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            raise KeyError("no such thing")

    text = raised(CaptureError, shrink(Broken()), "KeyError", "no such thing", "example_inputs")
    assert re.search(HERE, text), text


def test_a_forward_that_is_not_there() -> None:
    class Hollow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(6, 6)

    raised(CaptureError, shrink(Hollow()), "Hollow", "forward")


def test_a_forward_that_gives_no_tensor() -> None:
    class Mute(Net):
        def forward(self, x: Tensor) -> Any:
            super().forward(x)
            return 3

    raised(CaptureError, shrink(Mute()), "Mute", "tensor")


def test_a_model_that_cannot_be_copied() -> None:
    class Locked(Net):
        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()

    raised(UnsupportedModel, shrink(Locked()), "Locked", "deep-copied", "lock")


def test_quantized_models() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(Net(), {nn.Linear}, dtype=torch.qint8)
    raised(UnsupportedModel, shrink(model), "first is quantized", "floating-point", "then quantize")


def test_models_in_a_wrapper() -> None:
    raised(UnsupportedModel, shrink(nn.DataParallel(Net())), "wrapped in DataParallel", "give its .module")


def test_lazy_models() -> None:
    model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(3))
    raised(UnsupportedModel, shrink(model), "0.weight", "no shape yet", "run the model once")
    raised(UnsupportedModel, shrink(nn.Sequential(nn.Linear(6, 8), nn.LazyBatchNorm1d())), "1.weight", "no shape yet")


def test_torchscript_models() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(Net())
        traced = torch.jit.trace(Net(), X)
    for model in (scripted, traced, nn.Sequential(scripted)):
        raised(UnsupportedModel, shrink(model), "TorchScript", "give the module it was made from")


def test_models_without_data() -> None:
    with torch.device("meta"):
        model = Net()
    raised(UnsupportedModel, shrink(model), "meta")


def test_no_inputs_found() -> None:
    class Odd(Net):
        def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
            return super().forward(x + y + z)

    text = raised(CaptureError, shrink(Odd(), inputs=None), "No inputs were given", "example_inputs")
    assert "features of shape (1, 6)" in text


def test_no_inputs_and_nothing_to_go_by() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    raised(CaptureError, shrink(Bare(), inputs=None), "No inputs were given", "example_inputs")


def test_a_class_that_cannot_be_kept() -> None:
    class Literal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 64), nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).relu().view(-1, 64))

    text = raised(UnsupportedModel, shrink(Literal(), output="module"), "Literal", "output='graph'")
    assert re.search(HERE, text), text


# -- ratios -------------------------------------------------------------------------------------------


class HalfFrozen(nn.Module):
    """Most of the parameters reach the output."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(10, 10, bias=False)
        self.head = nn.Linear(10, 90, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x))


def largest(text: str) -> float:
    return float(text.split("Largest reachable ratio: ")[1].split()[0].rstrip("."))


def test_a_ratio_out_of_reach() -> None:
    x = torch.randn(2, 10)
    text = raised(UnsupportedRatio, shrink(HalfFrozen(), 0.95, x), "0.95 of the params", "Largest reachable ratio")
    limit = largest(text)
    # One of the ten hidden units must stay: 100 of 1000 entries.
    assert limit == pytest.approx(0.9, abs=0.001)
    small = structprune.shrink(HalfFrozen(), limit - 0.005, x)
    assert small.first.out_features == 1
    # What holds the rest, by name and place.
    assert "reaches the model's output" in text and "head" in text


def test_a_ratio_out_of_reach_by_layers_that_nothing_reads() -> None:
    class Idle(Net):
        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.Linear(64, 64)

    raised(UnsupportedRatio, shrink(Idle()), "0.87 of the parameters are read by no operator on these inputs")
    assert "unread: 86.6% of the parameters" in str(structprune.analyze(Idle(), X))


def test_a_ratio_out_of_reach_by_exclusion() -> None:
    text = raised(UnsupportedRatio, shrink(ratio=0.5, exclude=["first"]), "Largest reachable ratio: 0", "exclude")
    assert "0.5 of the params" in text


def test_a_ratio_out_of_reach_by_an_operator_without_a_rule() -> None:
    class Mystery(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 64), nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.linalg.qr(self.first(x).unsqueeze(-1).expand(-1, -1, 64)).Q[..., 0])

    text = raised(UnsupportedRatio, shrink(Mystery()), "Largest reachable ratio: 0", "qr")
    assert re.search(HERE, text), text


def test_a_ratio_between_two_steps() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
    text = raised(UnsupportedRatio, shrink(model, 0.4, torch.randn(2, 4)), "0.4 of the params", "0.5000")
    assert "nearest" in text


# -- scores, notation, rules, verification ------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        lambda group, weights: torch.zeros(group.size + 1),
        lambda group, weights: torch.zeros(group.size, 2),
        lambda group, weights: torch.tensor(1.0),
        lambda group, weights: 1.0,
        lambda group, weights: [],
    ],
)
def test_scores_of_a_wrong_shape(wrong: Any) -> None:
    raised(InvalidArgument, shrink(score=wrong), "score", "first.weight:0", "shape", "64")


@pytest.mark.parametrize("wrong", [lambda group, weights: None, lambda group, weights: "high"])
def test_scores_that_are_no_numbers(wrong: Any) -> None:
    raised(InvalidArgument, shrink(score=wrong), "score", "first.weight:0")


def test_a_score_that_raises_is_not_hidden() -> None:
    def broken(group: Any, weights: Any) -> Tensor:
        raise ZeroDivisionError("mine")

    with pytest.raises((ZeroDivisionError, StructpruneError), match="mine"):
        structprune.shrink(Net(), 0.5, X, score=broken)


def test_two_criteria_of_one_name() -> None:
    before = dict(CRITERIA)
    raised(InvalidArgument, lambda: criterion("l2")(lambda group, weights: weights[0]), "'l2'", "exists")
    assert before == CRITERIA


def test_two_rules_for_one_kind() -> None:
    before = dict(RULES)
    where = "structprune.operators.linear"
    raised(DuplicateRule, lambda: rule("linear")(lambda op: Meeting([], [])), "'linear'", where)
    assert before == RULES


def test_notation() -> None:
    text = raised(NotationError, lambda: notation.parse("... i, o i -> (o q -> r"))
    lines = text.splitlines()
    assert "... i, o i -> (o q -> r" in lines[1]
    assert lines[2].strip() == "^"


def test_verification() -> None:
    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 64), nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).sigmoid().cumsum(-1))

    model, x = Summed().double(), X.double()
    kind = next(op.kind for op in structprune.analyze(model, x).solution.graph.ops if op.name == "cumsum")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RULES, kind, lambda op, a, *rest: Meeting([a.axes], [tuple(True for _ in a.axes)]))
        raised(VerificationError, shrink(model, inputs=x, verify="numeric"), "Summed", "tolerance 1e-09", "report it")
        text = raised(VerificationError, lambda: structprune.testing.check(model, x), "first.weight", "zeroing")
        assert "rule" in text
    structprune.testing.check(model, x)


def test_a_plan_mismatch(tmp_path: Path) -> None:
    """More of them in test_plan.py."""
    plan = structprune.plan(Net(), 0.5, X)
    raised(PlanMismatch, lambda: plan.apply(HalfFrozen()), "'first.weight'", "[10, 10]", "[64, 6]")
    raised(PlanMismatch, lambda: structprune.load(Net(), tmp_path / "none.json", {}), "none.json")


def test_explaining_what_is_not_there() -> None:
    analysis = structprune.analyze(Net(), X)
    raised(InvalidArgument, lambda: analysis.explain("firs"), "'firs'", "first.weight")
    raised(InvalidArgument, lambda: analysis.explain("third.weight"), "'third.weight'")


def test_no_message_reaches_the_terminal_as_anything_but_text() -> None:
    hostile = "\x1b[31mred\x07\r\x9b2J\u202eback\ud800 \u2028 \t tail"
    shown = errors.printable(hostile)
    assert shown.isprintable() and "\\x1b[31mred\\x07\\r\\x9b2J\\u202eback\\ud800" in shown and shown.endswith("tail")
    assert errors.printable("plain, ä, 漢") == "plain, ä, 漢"
    assert len(errors.printable("a" * 10**6)) < 250 and errors.printable("a" * 10**6 + "\x1b").endswith("\\x1b")
    for kind in (UnsupportedModel, InvalidArgument, MissingPackage):
        assert str(kind(f"the name {hostile}\nsecond line")).splitlines() == [f"the name {shown}", "second line"]
