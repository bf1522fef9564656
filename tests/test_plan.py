"""A plan: printed, saved, loaded, edited, applied, refused."""

from __future__ import annotations

import copy
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import models_zoo
import structprune
from structprune import Plan
from structprune.errors import OutputError, PlanMismatch, StructpruneError

SOME = ("resnet20", "vit", "decoder", "recurrent")


class Net(nn.Module):
    def __init__(self, width: int = 24, classes: int = 5) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, 32, 3, padding=1)
        self.head = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        return self.head(self.second(x).relu().mean((2, 3)))


def net(seed: int = 0, **sizes: int) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net(**sizes).eval()


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def same_state(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return list(left) == list(right) and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    structprune.plan(net(), 0.5, X).save(tmp_path / "plan.json")
    return tmp_path / "plan.json"


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return path


class Shuffled(Net):
    """Reads the channels by an index that is drawn anew in each instance: some never, some twice."""

    def __init__(self) -> None:
        super().__init__(24)
        self.second = nn.Conv2d(20, 32, 3, padding=1)
        self.register_buffer("index", torch.randint(0, 24, (20,)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()[:, self.index]
        return self.head(self.second(x).relu().mean((2, 3)))


def shuffled(seed: int = 0) -> Shuffled:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Shuffled().eval()


def refused(path: Path, model: nn.Module | None = None) -> str:
    """The one message with which a plan file is refused, at loading or at applying."""
    with pytest.raises(PlanMismatch) as caught:
        Plan.load(path).apply(model or net())
    message = str(caught.value)
    assert len(message) > 20 and "Traceback" not in message
    return message


# -- stored indices -----------------------------------------------------------------------------------


def test_an_index_is_renumbered_saved_and_loaded(tmp_path: Path) -> None:
    """Another instance has another index: the plan knows the one it was made for, the state dict the new one."""
    model, other = shuffled(0), shuffled(1)
    plan = structprune.plan(model, 0.5, X, scope="uniform", verify="numeric")
    assert plan.report is not None and plan.report.error is None
    small = plan.apply(model)
    assert plan.report.error <= 1e-4 and "of the largest output away from the zeroed original" in str(plan)
    assert len(small.index) < len(model.index) and small.second.weight.shape[1] == len(small.index)
    assert int(small.index.max()) < small.first.weight.shape[0] < 24
    kept = [name for name in plan.keep if name.startswith("first.weight")]
    assert len(kept) > 1
    plan.save(tmp_path / "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text())["indices"] == {"index": model.index.tolist()}
    assert same_state(Plan.load(tmp_path / "plan.json").apply(model), small)
    before = copy.deepcopy(other.state_dict())
    loaded = structprune.load(other, tmp_path / "plan.json", small.state_dict())
    assert same_state(loaded, small) and torch.equal(loaded(X), small(X))
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_an_index_of_other_numbers_is_refused(tmp_path: Path) -> None:
    model = shuffled(0)
    plan = structprune.plan(model, 0.5, X)
    plan.save(tmp_path / "plan.json")
    assert "the index 'index' of this Shuffled has other numbers" in refused(tmp_path / "plan.json", shuffled(1))
    model.index.add_(1).remainder_(24)
    with pytest.raises(PlanMismatch, match="other numbers than the plan was made for"):
        plan.apply(model)


@pytest.mark.parametrize(
    "indices",
    [
        [],
        {"index": 3},
        {"index": [1, 2]},
        {"index": [0.5] * 20},
        {"index": [True] * 20},
        {"index": [1 << 31] * 20},
        {"index": [24] * 20},
        {"nothing": []},
        {"first.norm": [1]},
        {"norm.weight": [2] * 24},
    ],
    ids=lambda value: str(value)[:30],
)
def test_indices_in_a_file_that_cannot_be(tmp_path: Path, indices: Any) -> None:
    model = shuffled(0)
    structprune.plan(model, 0.5, X).save(tmp_path / "plan.json")
    path = edit(tmp_path / "plan.json", lambda data: data.update(indices=indices))
    state = copy.deepcopy(model.state_dict())
    if indices:
        refused(path, model)
    with pytest.raises(PlanMismatch):
        structprune.load(model, path, {})
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


# -- equal results ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOME)
def test_apply_gives_what_shrink_gives(name: str, tmp_path: Path) -> None:
    model, inputs = models_zoo.build(name)
    expected = structprune.shrink(model, 0.5, inputs)
    plan = structprune.plan(model, 0.5, inputs)
    assert same_state(plan.apply(model), expected)
    assert same_state(plan.apply(model), expected)
    plan.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded.keep == plan.keep and loaded.shapes == plan.shapes and loaded.options == plan.options
    small = loaded.apply(model)
    assert same_state(small, expected) and type(small) is type(expected)
    assert torch.equal(small(inputs), expected(inputs))


def test_the_two_results_of_one_plan_are_apart() -> None:
    model = net()
    plan = structprune.plan(model, 0.5, X)
    one, two = plan.apply(model), plan.apply(model)
    assert one is not two
    with torch.no_grad():
        one.head.weight.zero_()
    assert bool(two.head.weight.any()) and bool(model.head.weight.any())


def test_new_weights_of_the_same_model() -> None:
    plan = structprune.plan(net(0), 0.5, X)
    other = net(1)
    small = plan.apply(other)
    kept = plan.keep[next(name for name in plan.keep if name.startswith("first.weight"))]
    assert torch.equal(small.first.weight, other.first.weight[kept])
    assert torch.equal(small.norm.weight, other.norm.weight[kept])


def test_the_model_may_train_between_plan_and_apply() -> None:
    model = net()
    plan = structprune.plan(model, 0.5, X)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
        model.norm.running_mean.normal_()
        model.norm.running_var.uniform_(1, 2)
        model.norm.num_batches_tracked.add_(5)
    assert same_state(plan.apply(model), copy.deepcopy(plan).apply(copy.deepcopy(model)))
    model = net()
    plan = structprune.plan(model, 0.5, X)
    model.train()
    model.head.requires_grad_(False)
    small = plan.apply(model)
    assert small.training and small.norm.training
    assert not small.head.weight.requires_grad


def test_a_changed_buffer_that_is_not_cut_is_seen_too() -> None:
    model = net()
    plan = structprune.plan(model, 0.5, X)
    model.norm.num_batches_tracked.fill_(9)
    assert plan.apply(model).norm.num_batches_tracked.item() == 9


def test_planning_changes_nothing() -> None:
    model = net().train()
    before = copy.deepcopy(model.state_dict())
    plan = structprune.plan(model, 0.5, X)
    plan.apply(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training


def test_another_batch_size_and_device_free_inputs(tmp_path: Path) -> None:
    """What is saved of the inputs is their form, not their values."""
    plan = structprune.plan(net(), 0.5, X)
    plan.save(tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text()
    assert f"{X.flatten()[0].item():.4f}" not in text
    assert json.loads(text)["inputs"]


# -- text ---------------------------------------------------------------------------------------------


def test_printing(saved: Path) -> None:
    plan = structprune.plan(net(), 0.5, X)
    small = plan.apply(net())
    text = str(plan)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (net(), small))
    words = ("Net", "0.5", "first.weight", "parameters", "multiply-accumulates", "bytes")
    for part in (*words, f"{before:,}", f"{after:,}"):
        assert part in text, part
    assert f"24 x 3 x 3 x 3 -> {small.first.weight.shape[0]} x 3 x 3 x 3" in text
    assert plan.report is not None
    assert plan.report.parameters == (before, after)
    assert plan.report.reached == pytest.approx(1 - after / before, abs=1e-12)
    stored = [sum(t.numel() * t.element_size() for t in m.state_dict().values()) for m in (net(), small)]
    assert list(plan.report.size) == stored
    loaded = str(Plan.load(saved))
    assert "Net" in loaded and "first.weight" in loaded


def test_the_report_is_data() -> None:
    report = structprune.plan(net(), 0.5, X).report
    assert report is not None
    data = report.as_dict()
    assert json.loads(json.dumps(data))["model"] == "Net"
    for layer in report.layers:
        assert len(layer.before) == len(layer.after)
        assert all(0 < after <= before for before, after in zip(layer.before, layer.after, strict=True))
    for cut in report.cuts:
        assert 0 < cut.after < cut.before


def test_the_file_is_plain_json(saved: Path) -> None:
    data = json.loads(saved.read_text())
    assert data["structprune_plan"] == 1
    assert data["model"] == "Net"
    assert data["options"]["ratio"] == 0.5
    assert data["shapes"]["first.weight"] == [24, 3, 3, 3]
    for group in data["groups"].values():
        assert group["keep"] == sorted(set(group["keep"])) and group["keep"][-1] < group["size"]


def test_options_are_written_as_given(tmp_path: Path) -> None:
    plan = structprune.plan(net(), 0.16, X, exclude="head", only=["first", "norm"], align=2, score="random", seed=3)
    plan.save(tmp_path / "plan.json")
    options = Plan.load(tmp_path / "plan.json").options
    assert options["exclude"] == ["head"] and options["only"] == ["first", "norm"]
    assert (options["align"], options["score"], options["seed"], options["scope"]) == (2, "random", 3, "global")


def test_a_score_of_ones_own_can_be_saved(tmp_path: Path) -> None:
    def mine(group: Any, weights: Any) -> Tensor:
        return torch.arange(group.size)

    plan = structprune.plan(net(), 0.5, X, score=mine)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json").options["score"] == "mine"


def test_a_plan_can_be_copied_and_pickled() -> None:
    plan = structprune.plan(net(), 0.5, X)
    expected = plan.apply(net())
    assert same_state(copy.deepcopy(plan).apply(net()), expected)
    assert same_state(pickle.loads(pickle.dumps(plan)).apply(net()), expected)


# -- editing ------------------------------------------------------------------------------------------


def test_an_edited_plan() -> None:
    model = net()
    plan = structprune.plan(model, 0.5, X)
    name = next(name for name in plan.keep if name.startswith("first.weight"))
    plan.keep[name] = [1, 5, 23]
    small = plan.apply(model)
    assert torch.equal(small.first.weight, model.first.weight[[1, 5, 23]])
    assert torch.equal(small.norm.running_var, model.norm.running_var[[1, 5, 23]])
    assert small.first.out_channels == small.norm.num_features == small.second.in_channels == 3
    assert small(X).shape == (2, 5)
    del plan.keep[name]
    assert plan.apply(model).first.out_channels == 24
    plan.keep[name] = list(range(24))
    assert plan.apply(model).first.out_channels == 24
    plan.keep.clear()
    assert same_state(plan.apply(model), model)


def test_an_edited_file(saved: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        for name, group in data["groups"].items():
            if name.startswith("first.weight"):
                group["keep"] = [0, 2]

    small = Plan.load(edit(saved, change)).apply(net())
    assert torch.equal(small.first.weight, net().first.weight[[0, 2]])


@pytest.mark.parametrize(
    "indices",
    [
        *([], [24], [0, 24], [-1, 3], [3, 3], [0.5, 1.5]),
        *([True, 2], ["0", "1"], [0, None], "012", {"0": 1}, None, 3),
    ],
    ids=str,
)
def test_edited_indices_that_cannot_be(saved: Path, indices: Any) -> None:
    def change(data: dict[str, Any]) -> None:
        next(group for name, group in data["groups"].items() if name.startswith("first.weight"))["keep"] = indices

    assert "first.weight" in refused(edit(saved, change))


@pytest.mark.parametrize("indices", [[], [24], [-1], [3, 3], [0.5, 1.5]], ids=str)
def test_indices_edited_in_memory_that_cannot_be(indices: list[Any]) -> None:
    plan = structprune.plan(net(), 0.5, X)
    name = next(name for name in plan.keep if name.startswith("first.weight"))
    plan.keep[name] = indices
    with pytest.raises(PlanMismatch, match=r"first\.weight"):
        plan.apply(net())


def test_a_group_that_the_model_does_not_have(saved: Path) -> None:
    message = refused(edit(saved, lambda data: data["groups"].update({"nobody:0": {"size": 8, "keep": [1]}})))
    assert "nobody:0" in message


def test_a_group_of_another_size(saved: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        next(group for name, group in data["groups"].items() if name.startswith("first.weight"))["size"] = 12

    assert "first.weight" in refused(edit(saved, change))


# -- refusals -----------------------------------------------------------------------------------------


def test_a_plan_for_another_model(saved: Path) -> None:
    message = refused(saved, net(width=16))
    assert "'first.weight'" in message and "[16, 3, 3, 3]" in message and "[24, 3, 3, 3]" in message
    assert "head" not in message


def test_a_plan_for_a_model_with_other_classes(saved: Path) -> None:
    message = refused(saved, net(classes=7))
    assert "'head.weight'" in message and "[7, 32]" in message and "[5, 32]" in message


def test_a_plan_for_a_model_with_more_and_with_fewer_parts(saved: Path) -> None:
    more = net()
    more.extra = nn.Linear(2, 2)
    assert "extra.weight" in refused(saved, more)
    fewer = net()
    fewer.second.register_parameter("bias", None)
    assert "second.bias" in refused(saved, fewer)


def test_the_same_parameters_with_another_forward(saved: Path) -> None:
    class Frozen(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.first(x))

    # This one gives out what the first convolution makes: its channels are held.
    assert "first.weight" in refused(saved, Frozen().eval())


def test_not_a_model(saved: Path) -> None:
    for model in ("model", None, torch.zeros(2), Net):
        with pytest.raises(StructpruneError):
            Plan.load(saved).apply(model)


@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.9, 0.999])
def test_a_truncated_file(saved: Path, keep: float) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data[: int(keep * len(data))])
    assert str(saved) in refused(saved)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"not json", b"[]", b"3", b"null", b"{}", b'"text"'),
        *(b"\x80\x02}q\x00.", b"\xff\xfe\x00", b"[" * 100_000, b"NaN"),
    ],
    ids=lambda content: repr(content[:10]),
)
def test_not_a_plan(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    assert str(path) in refused(path)


@pytest.mark.parametrize("version", [0, 2, "1", None, 1.5, True, [1]], ids=str)
def test_a_wrong_version(saved: Path, version: Any) -> None:
    message = refused(edit(saved, lambda data: data.update(structprune_plan=version)))
    assert "version" in message and str(version) in message


@pytest.mark.parametrize("key", ["model", "options", "output", "verify", "inputs", "shapes", "groups"])
def test_a_missing_entry(saved: Path, key: str) -> None:
    assert key in refused(edit(saved, lambda data: data.pop(key)))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shapes", []),
        ("shapes", {"first.weight": "no"}),
        ("shapes", {"first.weight": [24, 3, 3, -3]}),
        ("groups", []),
        ("groups", {"first.weight:0": []}),
        ("groups", {"first.weight:0": {"size": 24}}),
        ("options", 3),
        ("output", "banana"),
        ("verify", "banana"),
        ("inputs", None),
        ("inputs", {}),
        ("inputs", {"tuple": [{"tuple": [{"tensor": [2, 3, 8, 8], "dtype": "load"}]}, {"dict": {}}]}),
        ("inputs", {"tuple": [{"tuple": [{"tensor": [2, 3, 8, 8], "dtype": "nothing"}]}, {"dict": {}}]}),
        ("inputs", {"tuple": [{"tuple": [{"tensor": [2, 3, -8, 8], "dtype": "float32"}]}, {"dict": {}}]}),
        ("inputs", {"tuple": [{"tuple": [{"tensor": "2", "dtype": "float32"}]}, {"dict": {}}]}),
        ("inputs", {"tuple": [{"tuple": []}]}),
    ],
    ids=lambda value: str(value)[:60],
)
def test_entries_that_are_not_what_they_should_be(saved: Path, key: str, value: Any) -> None:
    refused(edit(saved, lambda data: data.update({key: value})))


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    assert "nowhere.json" in refused(tmp_path / "nowhere.json")
    assert str(tmp_path) in refused(tmp_path)


def test_paths_as_text(tmp_path: Path) -> None:
    plan = structprune.plan(net(), 0.5, X)
    plan.save(str(tmp_path / "plan.json"))
    assert Plan.load(str(tmp_path / "plan.json")).keep == plan.keep


# -- nothing half-written -----------------------------------------------------------------------------


def test_a_failed_save_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()
    plan = structprune.plan(net(), 0.3, X)
    plan.options["score"] = object()
    with pytest.raises(PlanMismatch, match="score=<object object"):
        plan.save(saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["plan.json"]
    plan.options["score"] = "l2"

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        plan.save(saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["plan.json"]


def test_saving_to_where_nothing_can_be_written(tmp_path: Path) -> None:
    plan = structprune.plan(net(), 0.5, X)
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "plan.json", tmp_path / "nowhere" / "plan.json", tmp_path / "folder"):
        with pytest.raises(OutputError, match="cannot be written"):
            plan.save(path)
    assert (tmp_path / "file").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert not list((tmp_path / "folder").iterdir())


def test_a_saved_plan_can_be_read_by_others(tmp_path: Path) -> None:
    """The rights are those of any new file, not those of a temporary one."""
    structprune.plan(net(), 0.5, X).save(tmp_path / "plan.json")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "plan.json").stat().st_mode == (tmp_path / "plain").stat().st_mode
