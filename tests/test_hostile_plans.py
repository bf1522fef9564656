"""Plans from strangers and plans edited by hand: used, or refused by one error, in little time and memory."""

from __future__ import annotations

import copy
import json
import math
import os
import random
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import structprune
from structprune import Plan
from structprune.errors import CaptureError, InvalidArgument, OutputError, PlanMismatch, UnsupportedModel
from structprune.graph import plan_file


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().eval()


X = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
GROUP = "first.weight:0"


@pytest.fixture
def data() -> dict[str, Any]:
    """A plan as its file holds it."""
    found: dict[str, Any] = json.loads(json.dumps(structprune.plan(net(), 0.5, X).as_dict()))
    return found


def refused(path: Any, content: Any = None) -> str:
    """The message with which a file is refused when it is loaded, soon."""
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    start = time.process_time()
    with pytest.raises(PlanMismatch) as caught:
        Plan.load(path)
    assert time.process_time() - start < 5
    message = str(caught.value)
    assert 20 < len(message) < 1000, message
    return message


# -- size and time ------------------------------------------------------------------------------------


def test_inputs_too_large_to_be_made(data: dict[str, Any], tmp_path: Path) -> None:
    """A few bytes must not cost gigabytes."""
    for shape in ([9000, 9000], [40000, 40000], [1 << 40], [3, 1 << 20, 1 << 20], [1 << 47] * 60):
        data["inputs"]["tuple"][0]["tuple"] = [{"tensor": shape, "dtype": "float32"}]
        (tmp_path / "plan.json").write_text(json.dumps(data))
        plan = Plan.load(tmp_path / "plan.json")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(PlanMismatch, match=r"describes inputs of .* numbers, and at most 67,108,864 are made"):
            plan.apply(net())
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
        # Inputs of one's own are another matter.
        assert plan.apply(net(), X).first.out_features == 8


def test_many_inputs_together(data: dict[str, Any]) -> None:
    plan = structprune.plan(net(), 0.5, X)
    plan.inputs["tuple"][0]["tuple"] = [{"tensor": [1 << 20], "dtype": "int64"}] * 1000
    with pytest.raises(PlanMismatch, match=f"inputs of {1000 << 20} numbers"):
        plan.apply(net())
    plan.inputs["tuple"][0]["tuple"] = [{"value": 1}] * 100_000
    with pytest.raises(PlanMismatch, match="more than 65,536 inputs"):
        plan.apply(net())


def test_millions_of_lists(tmp_path: Path) -> None:
    for lists in ("[],", "{},"):
        assert "lists" in refused(tmp_path / "plan.json", '{"structprune_plan": 1, "x": [' + lists * 5_000_000 + "0]}")


def test_lists_within_lists(data: dict[str, Any], tmp_path: Path) -> None:
    nested: Any = {"value": 0}
    for _ in range(80):
        nested = {"list": [nested]}
    data["inputs"]["tuple"][0]["tuple"] = [nested]
    assert "inputs" in refused(tmp_path / "plan.json", data)
    for text in ("[" * 100_000, '{"a":' * 100_000, '{"structprune_plan":' * 900):
        refused(tmp_path / "plan.json", text)


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    with (tmp_path / "plan.json").open("wb") as file:
        file.truncate(plan_file.MOST_BYTES + 1)
    assert "more than 134,217,728 bytes" in refused(tmp_path / "plan.json")


@pytest.mark.skipif(os.name != "posix", reason="needs devices")
def test_devices_and_pipes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", "/dev/null", "/dev/tty"):
        if Path(path).exists():
            assert "not a file" in (message := refused(path)) or "No such device" in message
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(UnsupportedModel, match="it is not a file"):
            structprune.load(net(), structprune.plan(net(), 0.5, X), path)


def test_names_of_files_that_cannot_be(tmp_path: Path) -> None:
    plan = structprune.plan(net(), 0.5, X)
    for name in ("a\0b", "", str(tmp_path / ("x" * 300)), "nowhere/plan.json", tmp_path):
        refused(name)
        with pytest.raises(OutputError):
            plan.save(name)
    for nothing in (None, 3.5, [1], {"a": 1}, object()):
        assert "path" in refused(nothing)
        with pytest.raises(OutputError, match="give a path"):
            plan.save(nothing)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_long_name_is_fine(tmp_path: Path) -> None:
    plan = structprune.plan(net(), 0.5, X)
    plan.save(tmp_path / ("x" * 250))
    assert Plan.load(tmp_path / ("x" * 250)) == plan


@pytest.mark.skipif(os.name != "posix", reason="needs rights")
def test_the_rights_of_a_file_that_is_replaced(tmp_path: Path) -> None:
    plan = structprune.plan(net(), 0.5, X)
    (tmp_path / "plan.json").touch()
    for mode in (0o600, 0o640, 0o664):
        (tmp_path / "plan.json").chmod(mode)
        plan.save(tmp_path / "plan.json")
        assert (tmp_path / "plan.json").stat().st_mode & 0o777 == mode


# -- what a file says ---------------------------------------------------------------------------------

ODD: list[Any] = [
    *(None, True, False, 0, -1, 3, 1 << 70, 0.5, -0.0, math.nan, math.inf, "", "x", "\x1b[31m", "\ud800"),
    *([], [[]], [0, 0], [math.inf], [None], [1 << 80], ["0"], {}, {"a": {}}, {"size": 1}, {"tuple": []}),
]


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where each entry of nested data stands."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path, *(place for key, each in inner for place in places(each, (*path, key)))]


def changed(data: Any, draw: random.Random) -> Any:
    """The data with one entry replaced, taken away, doubled, or renamed."""
    result = copy.deepcopy(data)
    place = draw.choice(places(result)[1:])
    holder = result
    for key in place[:-1]:
        holder = holder[key]
    key, kind = place[-1], draw.randrange(4)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        holder.append(holder[key])
    elif kind == 1:
        holder[f"{key}x"] = holder[key]
    elif kind == 2 and isinstance(holder[key], list):
        draw.shuffle(holder[key])
    else:
        holder[key] = draw.choice(ODD)
    return result


def test_changed_files_are_refused_or_used(data: dict[str, Any], tmp_path: Path) -> None:
    """Each has one thing changed at random: nothing but our errors, and what is used is a plan."""
    draw, path, model = random.Random(8), tmp_path / "plan.json", net()
    used = refusals = 0
    for _ in range(400):
        path.write_text(json.dumps(changed(data, draw)), encoding="utf-8")
        try:
            plan = Plan.load(path)
        except PlanMismatch as error:
            assert len(str(error)) < 1000 and str(error).isprintable()
            refusals += 1
            continue
        assert isinstance(str(plan), str) and plan == copy.deepcopy(plan)
        try:
            small = plan.apply(model)
        except (PlanMismatch, CaptureError):
            refusals += 1
            continue
        assert small(X).shape == (2, 3)
        used += 1
    assert used > 20 and refusals > 200


def test_broken_bytes(data: dict[str, Any], tmp_path: Path) -> None:
    draw, path = random.Random(9), tmp_path / "plan.json"
    content = json.dumps(data).encode()
    for _ in range(300):
        broken = bytearray(content)
        for _ in range(draw.randrange(1, 4)):
            broken[draw.randrange(len(broken))] = draw.randrange(256)
        path.write_bytes(bytes(broken[: draw.choice((len(broken), draw.randrange(len(broken))))]))
        with suppress(PlanMismatch, CaptureError):
            Plan.load(path).apply(net())


def test_what_stands_twice(data: dict[str, Any], tmp_path: Path) -> None:
    text = json.dumps(data)
    assert "'model' twice" in refused(tmp_path / "plan.json", text.replace("{", '{"model": "Other", ', 1))
    assert "'size' twice" in refused(tmp_path / "plan.json", text.replace('"size": ', '"size": 16, "size": '))


def test_unknown_entries(data: dict[str, Any], tmp_path: Path) -> None:
    assert "does not know the entry 'later'" in refused(tmp_path / "plan.json", {**data, "later": 1})
    data["groups"][GROUP]["later"] = 1
    assert "'first.weight:0'" in refused(tmp_path / "plan.json", data)


@pytest.mark.parametrize("size", [math.inf, math.nan, 1e300, 1 << 90, 0, -4, True, "16", None], ids=str)
def test_sizes_that_cannot_be(size: Any, data: dict[str, Any], tmp_path: Path) -> None:
    whole = copy.deepcopy(data)
    data["groups"][GROUP]["size"] = size
    if size is not None:
        assert GROUP in refused(tmp_path / "plan.json", data)
    for is_input in (True, False):
        made = copy.deepcopy(whole)
        shape = made["inputs"]["tuple"][0]["tuple"][0]["tensor"] if is_input else made["shapes"]["first.weight"]
        shape[0] = size
        if size != 0:
            refused(tmp_path / "plan.json", made)


RATIOS = [math.nan, math.inf, 1, -0.1, "0.5", True, None, [0.5], 1 << 2000]


@pytest.mark.parametrize("ratio", RATIOS, ids=lambda ratio: str(ratio)[:9])
def test_ratios_that_cannot_be(ratio: Any, data: dict[str, Any], tmp_path: Path) -> None:
    data["options"]["ratio"] = ratio
    assert "ratio=" in refused(tmp_path / "plan.json", data)


# -- what stays, edited in Python ---------------------------------------------------------------------

USABLE: dict[str, Any] = {
    "list": [1, 5, 11],
    "tuple": (1, 5, 11),
    "set": {11, 1, 5},
    "frozenset": frozenset({11, 5, 1}),
    "range": range(1, 12, 5),
    "array": np.array([1, 5, 11]),
    "array of bytes": np.array([1, 5, 11], dtype=np.uint8),
    "tensor": torch.tensor([1, 5, 11]),
    "numbers of numpy": [np.int64(1), np.uint8(5), np.int16(11)],
}


@pytest.mark.parametrize("keep", USABLE.values(), ids=USABLE)
def test_kinds_of_numbers(keep: Any, tmp_path: Path) -> None:
    model, plan = net(), structprune.plan(net(), 0.5, X)
    plan.keep[GROUP] = keep
    small = plan.apply(model)
    kept = [1, 6, 11] if isinstance(keep, range) else [1, 5, 11]
    assert torch.equal(small.first.weight, model.first.weight[kept])
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan and Plan.load(tmp_path / "plan.json").keep[GROUP] == kept
    assert len(str(plan)) > 20


UNUSABLE: dict[str, Any] = {
    "none": [], "empty array": np.zeros(0), "too large": [16], "negative": [-1, 3], "twice": [3, 3], "a half": [0.5],
    "float array": np.array([1.0, 2.0]), "truth values": [True, False], "mask": np.ones(16, dtype=bool),
    "two axes": np.array([[1, 2]]), "no axis": np.array(3), "number": 3, "nothing": None, "text": "0123",
    "bytes": b"\1\2", "texts": ["1"], "mapping": {1: 2}, "NaN": [math.nan], "infinite": [math.inf],
    "huge": [1 << 80], "long": range(1 << 60), "fraction": [Fraction(1, 2)], "object": object(),
    "generator": (k for k in range(3)), "nested": [[1]],
    "float tensor": torch.ones(3), "mask as a tensor": torch.ones(16, dtype=torch.bool), "complex": np.array([1j]),
}  # fmt: skip


@pytest.mark.parametrize("keep", UNUSABLE.values(), ids=UNUSABLE)
def test_what_is_no_list_of_indices(keep: Any, tmp_path: Path) -> None:
    plan = structprune.plan(net(), 0.5, X)
    plan.keep[GROUP] = keep
    for call in (lambda: plan.apply(net()), lambda: plan.save(tmp_path / "plan.json")):
        with pytest.raises(PlanMismatch, match=r"first\.weight:0") as caught:
            call()
        assert len(str(caught.value)) < 400
    assert not list(tmp_path.iterdir())


def test_other_entries_edited_in_python() -> None:
    changes: list[Callable[[Plan], None]] = [
        lambda plan: setattr(plan, "output", "banana"),
        lambda plan: setattr(plan, "verify", 3),
        lambda plan: setattr(plan, "inputs", None),
        lambda plan: setattr(plan, "model", 7),
        lambda plan: setattr(plan, "shapes", {"first.weight": (math.nan,)}),
        lambda plan: setattr(plan, "indices", {"nothing": [1]}),
        lambda plan: plan.options.pop("ratio"),
        lambda plan: plan.options.update(of=np.ones(3)),
        lambda plan: plan.sizes.update({GROUP: -1}),
        lambda plan: plan.sizes.update({GROUP: 10**5000}),
        lambda plan: plan.keep.update({"nobody": [1]}),
        lambda plan: plan.keep.update({3: [1]}),
    ]
    for change in changes:
        plan = structprune.plan(net(), 0.5, X)
        change(plan)
        with pytest.raises(PlanMismatch):
            plan.apply(net())


# -- plans and weights by path and as objects ---------------------------------------------------------


def test_a_plan_where_a_path_is_expected(tmp_path: Path) -> None:
    model, plan = net(), structprune.plan(net(), 0.5, X)
    small = plan.apply(model)
    loaded = structprune.load(net(), plan, small.state_dict())
    assert torch.equal(loaded(X), small(X)) and Plan.load(plan) == plan


@pytest.mark.parametrize("ending", ["safetensors", "pt", "pth"])
def test_weights_by_path(ending: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    plan = structprune.plan(net(), 0.5, X)
    small, path = plan.apply(net()), tmp_path / f"small.{ending}"
    save_file(small.state_dict(), path) if ending == "safetensors" else torch.save(small.state_dict(), path)
    for given in (path, str(path)):
        assert torch.equal(structprune.load(net(), plan, given)(X), small(X))


class Opened:
    """What no weights may do."""

    def __reduce__(self) -> Any:
        return open, ("pickle_ran", "w")


def test_weights_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = structprune.plan(net(), 0.5, X)
    torch.save({"w": Opened()}, "pickled.pt")
    torch.save([1, 2], "list.pt")
    torch.save({"first.weight": 3}, "numbers.pt")
    Path("text.safetensors").write_text("text")
    Path("text.pt").write_text("text")
    os.mkdir("folder.pt")
    broken = ("pickled.pt", "list.pt", "numbers.pt", "text.safetensors", "text.pt", "folder.pt")
    for name in (*broken, "none.pt", "", "a\0b"):
        with pytest.raises(UnsupportedModel):
            structprune.load(net(), plan, name)
    assert not Path("pickle_ran").exists()
    for weights in (None, 3, [1], torch.ones(3)):
        with pytest.raises(InvalidArgument, match=r"the weights are a .*: give a state dict, or the path"):
            structprune.load(net(), plan, weights)  # type: ignore[arg-type]
    for state in ({}, {"first.weight": 3}, {"first.weight": torch.ones(2)}, {3: torch.ones(2)}):
        with pytest.raises(PlanMismatch):
            structprune.load(net(), plan, state)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="load is for torch models"):
        structprune.load("net.onnx", plan, {})


def test_what_a_plan_is_applied_to_has_a_name() -> None:
    plan = structprune.plan(net(), 0.5, X)
    plan.shapes["third.weight"] = (2, 2)
    with pytest.raises(PlanMismatch, match=r"a Net with 'third\.weight'; this Net has none"):
        plan.apply(net())


# -- inputs that decide -------------------------------------------------------------------------------


class Deciding(Net):
    """Its path follows the numbers in its inputs."""

    def forward(self, x: Tensor, times: Tensor | None = None) -> Tensor:
        h = self.first(x).relu()
        if x.min() > 0.5:
            h = h * 2
            for _ in range(int(times.max()) if times is not None else 0):
                h = h + 1
            return self.second(h)
        raise ValueError("nothing to do")


def test_inputs_by_which_a_model_decides_are_written(tmp_path: Path) -> None:
    """Zeros would take another path."""
    model, inputs = Deciding().eval(), (torch.full((2, 6), 0.7), torch.tensor([2, 1]))
    plan = structprune.plan(model, 0.5, inputs)
    plan.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded == plan and loaded.inputs["tuple"][0]["tuple"][1]["values"] == [2, 1]
    small = loaded.apply(model)
    assert torch.equal(small(*inputs), plan.apply(model)(*inputs)) and small.first.out_features < 16
    assert "values" not in json.dumps(structprune.plan(net(), 0.5, X).as_dict())
    # Too many to be written: then the caller gives them again.
    large = torch.full((20_000, 6), 0.7)
    plan = structprune.plan(model, 0.5, large)
    with pytest.raises(CaptureError, match="nothing to do"):
        plan.apply(model)
    assert plan.apply(model, large).first.out_features < 16


@pytest.mark.parametrize("values", [[1, 2, 3], [0.5, 1], "12", [True, False], [1 << 70, 0], None, [[1], [2]]], ids=str)
def test_numbers_of_inputs_that_cannot_be(values: Any, tmp_path: Path) -> None:
    plan = structprune.plan(Deciding().eval(), 0.5, (torch.ones(2, 6), torch.tensor([2, 1])))
    data = plan.as_dict()
    data["inputs"]["tuple"][0]["tuple"][1]["values"] = values
    assert "inputs" in refused(tmp_path / "plan.json", data)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    before = len(os.listdir("/proc/self/fd"))
    for path in (tmp_path, tmp_path / "plan.json", "/dev/zero"):
        refused(path)
    with pytest.raises(OutputError):
        structprune.plan(net(), 0.5, X).save(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before
