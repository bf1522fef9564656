"""Arguments of every kind, in every public call: used, or refused by one error of ours in one short line."""

from __future__ import annotations

import math
import random
import warnings
from collections import deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import structprune
from structprune.errors import InvalidArgument, OutputError, StructpruneError, UnsupportedModel, printable, short


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


X = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))


class Rude:
    """Refuses to be looked at."""

    def __repr__(self) -> str:
        raise RuntimeError("no")

    def __bool__(self) -> bool:
        raise RuntimeError("no")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no")

    __hash__ = None  # type: ignore[assignment]


ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 10**5000, 0.5, math.nan, math.inf, 1j, "", "x", "a\0b", "\x1b[31m\n", "\ud800"),
    *([], (), {}, set(), [None], {"x": 1}, {1: 2}, deque([1]), range(3), iter([1]), (k for k in "ab"), slice(2)),
    *(np.float32(0.5), np.ones(3), np.ones(()), np.array("x"), np.array([None]), np.datetime64("2020")),
    *(torch.ones(()), torch.ones(3), nn.Parameter(torch.ones(2)), torch.float32, torch.Generator(), torch.Size([2, 6])),
    *(Decimal("0.5"), Decimal("nan"), Fraction(1, 2), Fraction(10**400, 1), object(), Rude(), Net, Net(), nn.ReLU, nn),
    *(len, lambda: None, Path("none.onnx"), Path("/"), NotImplemented, ..., ValueError("x"), memoryview(b"x"), b"x"),
]  # fmt: skip
NAMES = ["ratio", "of", "score", "scope", "exclude", "only", "align", "output", "verify", "seed", "progress", "force"]


def settled(call: Callable[[], Any], what: str) -> str | None:
    """The message of our error, if there is one; any other error fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call()
        except StructpruneError as error:
            message = str(error)
            assert 10 < len(message) < 1500 and "\n" not in message and message.isprintable(), (what, message)
            return message
        except Exception as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    return None


@pytest.mark.parametrize("name", [*NAMES, "example_inputs", "output_path"])
def test_every_odd_value_of_an_argument(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, refused = Net(), 0
    before = {key: value.clone() for key, value in model.state_dict().items()}
    # What can be called is a criterion: its errors are the caller's own.
    for value in [each for each in ODD if name != "score" or not callable(each) or isinstance(each, type)]:
        given: dict[str, Any] = {"ratio": 0.5, "example_inputs": X, name: value}
        refused += settled(lambda given=given: structprune.shrink(model, **given), f"{name}={short(value)}") is not None
    assert refused > 20
    assert not list(tmp_path.iterdir())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_every_odd_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = structprune.plan(Net(), 0.5, X)
    for value in ODD:
        if isinstance(value, nn.Module):
            continue
        for call in (
            lambda value=value: structprune.plan(value, 0.5, X),
            lambda value=value: structprune.analyze(value),
            lambda value=value: plan.apply(value),
            lambda value=value: structprune.load(value, plan, {}),
            lambda value=value: structprune.shrink(value, 0.5, output_path="o.onnx"),
        ):
            assert settled(call, f"model={short(value)}") is not None
    assert not list(tmp_path.iterdir())


def test_odd_pairs_of_arguments() -> None:
    draw, model = random.Random(3), Net()
    for _ in range(300):
        given = {"ratio": 0.5, "example_inputs": X}
        given.update({name: draw.choice(ODD) for name in draw.sample(NAMES, 2) if name != "score"})
        settled(lambda given=given: structprune.shrink(model, **given), str({k: short(v) for k, v in given.items()}))


@pytest.mark.parametrize(
    "inputs", [(X, X), {"x": None}, {"y": X}, {3: X}, [[X]], ((X,),), [X.tolist()], {"x": {}}], ids=short
)
def test_example_inputs_of_odd_forms(inputs: Any) -> None:
    assert settled(lambda: structprune.shrink(Net(), 0.5, inputs), "inputs") is not None


def test_shares_of_many_kinds() -> None:
    for ratio in (
        Fraction(1, 2),
        Decimal("0.5"),
        np.float16(0.5),
        np.array(0.5),
        torch.tensor(0.5),
        torch.tensor(0.5).half(),
    ):
        plan = structprune.plan(Net(), ratio, X)
        assert plan.options["ratio"] == 0.5 and type(plan.options["ratio"]) is float
    for ratio in (Fraction(10**30 - 1, 10**30), np.array([0.5]), np.bool_(False), torch.tensor(True), Decimal("nan")):
        with pytest.raises(InvalidArgument, match="from 0 to below 1"):
            structprune.plan(Net(), ratio, X)


def test_counts_and_patterns_of_many_kinds() -> None:
    plan = structprune.plan(
        Net(), 0.5, X, score="random", seed=np.int64(3), align=np.uint8(4), only=(p for p in ("first", "second"))
    )
    assert plan.options["seed"] == 3 and plan.options["align"] == 4 and plan.options["only"] == ["first", "second"]
    assert structprune.plan(Net(), 0.5, X, exclude={"second.bias"}).options["exclude"] == ["second.bias"]


def test_explaining_and_drawing(tmp_path: Path) -> None:
    analysis = structprune.analyze(Net(), X)
    for value in ODD:
        assert settled(lambda value=value: analysis.explain(value), f"explain({short(value)})") is not None
        assert settled(lambda value=value: analysis.draw(value), f"draw({short(value)})") is not None
    with pytest.raises(OutputError, match="cannot be written"):
        analysis.draw(tmp_path / "none" / "picture.svg")


# -- what a criterion is given, and gives ---------------------------------------------------------------


def writes(group: Any, weights: Any) -> Any:
    scores = weights[0].reshape(group.size, -1).sum(1)
    for each in weights:
        each.zero_()
        each.data.fill_(7)
        each.numpy()[...] = 3
    return scores


def test_a_criterion_that_writes() -> None:
    model = Net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small = structprune.shrink(model, 0.5, X, score=writes)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    kept = structprune.plan(model, 0.5, X, score=lambda group, weights: weights[0].sum(1)).keep["first.weight:0"]
    assert torch.equal(small.first.weight, model.first.weight[kept])


def bad(**scores: Callable[[int], Any]) -> dict[str, Callable[[int], Any]]:
    return scores


BAD = bad(
    nan=lambda n: torch.full((n,), math.nan),
    one_nan=lambda n: [math.nan, *range(n - 1)],
    infinite=lambda n: np.full(n, math.inf),
    one_infinite=lambda n: np.append(np.zeros(n - 1), -math.inf),
    complex=lambda n: torch.ones(n, dtype=torch.complex64),
    complex_array=lambda n: np.ones(n) * 1j,
    texts=lambda n: ["1"] * n,
    dates=lambda n: np.full(n, np.datetime64("2020")),
    objects=lambda n: [object()] * n,
    nothing=lambda n: None,
    nested=lambda n: [[1], [2, 3]],
    short=lambda n: torch.ones(n - 1),
    column=lambda n: torch.ones(n, 1),
    number=lambda n: 3,
    sparse=lambda n: torch.ones(n).to_sparse(),
    without_data=lambda n: torch.ones(n, device="meta"),
    generator=lambda n: iter(range(n)),
    mapping=lambda n: dict.fromkeys(range(n), 1),
)


@pytest.mark.parametrize("given", BAD.values(), ids=BAD)
def test_scores_that_cannot_be(given: Callable[[int], Any]) -> None:
    def mine(group: Any, weights: Any) -> Any:
        return given(group.size)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InvalidArgument, match=r"the score of first\.weight:0 by mine ") as caught:
            structprune.shrink(Net(), 0.5, X, score=mine)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


GOOD = bad(
    negative=lambda n: -torch.arange(n),
    half=lambda n: torch.arange(n, 0, -1).half(),
    bfloat=lambda n: torch.arange(n, 0, -1).bfloat16(),
    bytes=lambda n: np.arange(n, 0, -1).astype(np.uint8),
    fractions=lambda n: [Fraction(n - k, 3) for k in range(n)],
    learned=lambda n: nn.Parameter(torch.arange(n, 0, -1).float()),
    countdown=lambda n: range(n, 0, -1),
)


@pytest.mark.parametrize("given", GOOD.values(), ids=GOOD)
def test_scores_of_many_kinds(given: Callable[[int], Any]) -> None:
    plan = structprune.plan(Net(), 0.5, X, score=lambda group, weights: given(group.size))
    assert plan.keep["first.weight:0"] == list(range(8))


def test_a_model_without_a_finite_weight() -> None:
    model = Net()
    with torch.no_grad():
        model.first.weight.fill_(math.nan)
    with pytest.raises(InvalidArgument, match=r"first\.weight:0 by 'l2' is nan at index 0 and at all others"):
        structprune.shrink(model, 0.5, X)


# -- messages -------------------------------------------------------------------------------------------


def test_shares_of_the_whole() -> None:
    """A parameter that two widths of one reason hold counts once."""

    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.ones(8, 8))

        def forward(self, x: Tensor) -> Any:
            return torch.linalg.matrix_exp(self.table) + x, self.table.t() * 2, self.table

    report = structprune.plan(Held(), 0, torch.ones(8, 8)).report
    assert report is not None and report.frozen and all(0 < share <= 1 for _, share in report.frozen)
    for model, x in ((Net(), X), (tied(), torch.zeros(2, 5, dtype=torch.long))):
        analysis = structprune.analyze(model, x)
        for _, entries in (*analysis.frozen, *analysis.partly_frozen):
            assert entries <= analysis.frontend.total
        assert 0 <= analysis.unread <= analysis.frontend.total


def tied() -> nn.Module:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(20, 32), nn.Linear(32, 20, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.table(ids))

    return Tied()


def test_a_class_that_cannot_be_kept_by_itself() -> None:
    """Who asked for 'auto' is not told to ask for 'auto'."""

    class Bound(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x).relu()
            return self.second(h.view(-1, 16) if float(h.sum()) > -1 else h)

    for output in ("auto", "module"):
        with pytest.raises(UnsupportedModel) as caught:
            structprune.shrink(Bound(), 0.5, X, output=output)
        assert "'auto'" not in str(caught.value) and "Bound" in str(caught.value)


def test_a_file_has_a_name_in_messages(tmp_path: Path) -> None:
    plan = structprune.plan(Net(), 0.5, X)
    onnx = pytest.importorskip("onnx")
    from tests.test_cli import save_onnx

    save_onnx(tmp_path / "net.onnx")
    for model in (tmp_path / "net.onnx", str(tmp_path / "net.onnx"), onnx.load(str(tmp_path / "net.onnx"))):
        with pytest.raises(StructpruneError) as caught:
            plan.apply(model, output_path=tmp_path / "o.onnx" if not isinstance(model, onnx.ModelProto) else None)
        assert "PosixPath" not in str(caught.value) and "this str" not in str(caught.value)


def test_names_that_would_reach_a_terminal() -> None:
    model = nn.Sequential()
    model.add_module("a\x1b]0;title\x07\nfrozen: 99%\u202e", nn.Linear(6, 16))
    model.add_module("last", nn.Linear(16, 3))
    analysis = structprune.analyze(model, X)
    plan = structprune.plan(model, 0.3, X)
    texts = [str(analysis), str(plan), str(plan.report), analysis.to_dot()]
    texts += [analysis.explain(name) for name, _ in model.named_parameters()]
    texts.append(
        str(structprune.Plan(**{**{key: getattr(plan, key) for key in plan.__dataclass_fields__}, "report": None}))
    )
    for text in texts:
        assert all(line.isprintable() for line in text.split("\n")), text
        assert not any(line.startswith("frozen: 99%") for line in text.split("\n"))
    assert printable("\x1b\n") == "\\x1b\\n"
