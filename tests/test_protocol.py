"""Decisions and edits are data: who chooses, how a conflict comes back, what the edits do in both front ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

import structprune
from structprune.algebra.axis import Dim, Kept
from structprune.api import aim, decide, settle
from structprune.errors import UnsupportedModel, UnsupportedRatio
from structprune.frontends import protocol
from structprune.frontends.onnx.front import OnnxFrontend
from structprune.frontends.onnx.write import small as of_onnx
from structprune.frontends.onnx.write.oracle import run
from structprune.frontends.onnx.write.small import Shrinker
from structprune.frontends.protocol import Constraints, Realized
from structprune.frontends.torch.front import TorchFrontend
from structprune.frontends.torch.write import module as of_torch
from structprune.graph.edit import Add, Edit, Renumber, Slice, Zero, are_same, by_name
from structprune.options import Options
from structprune.passes.propagate import propagate
from structprune.passes.rewrite import Rewrite
from structprune.plan import make, prove, realize
from structprune.views.analysis import Analysis
from tests.onnx.build import build, weights

# -- constraints -------------------------------------------------------------------------------------


def test_what_is_held_is_added_and_never_taken_away() -> None:
    a, b = Dim(4), Dim(6)
    first = Constraints("module", "auto", frozen={a: "read by a loop"})
    second = first.holding({a: "something else", b: "a literal"}, "the last choice did not fit")
    assert second is not None and dict(first.frozen) == {a: "read by a loop"}
    assert dict(second.frozen) == {a: "read by a loop", b: "a literal"}
    assert (second.why, second.turn) == ("the last choice did not fit", 2)
    assert second.holding({a: "again", b: "again"}, "again") is None
    with pytest.raises(FrozenInstanceError):
        first.turn = 3  # type: ignore[misc]


def test_a_model_cannot_ask_for_ever() -> None:
    asked: Constraints | None = Constraints("onnx", "auto")
    turns = 0
    while asked is not None:
        asked, turns = asked.holding({Dim(2): "one more"}, "one more"), turns + 1
    assert turns == protocol.MOST_TURNS


# -- who chooses -------------------------------------------------------------------------------------

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def as_lists(kept: Kept) -> dict[Dim, list[int]]:
    return {dim: indices.tolist() for dim, indices in kept.items()}


def three_widths() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 20), nn.ReLU(), nn.Linear(20, 3)]
    return nn.Sequential(*layers).double().eval()


class Picky(TorchFrontend):
    """Finds fault with one more width in each of the first turns."""

    faults = 2
    blamed: list[Dim]

    def realize(self, rewrite: Rewrite, asked: Constraints) -> Realized | Constraints:
        if asked.kind == "module" and asked.turn <= self.faults:
            worst = max(rewrite.kept, key=lambda dim: dim.size)
            again = asked.holding({worst: "the code does not like it"}, "does not fit")
            assert again is not None
            self.blamed.append(worst)
            return again
        return super().realize(rewrite, asked)


def picky(faults: int) -> Analysis:
    front = Picky.read(three_widths(), X)
    front.faults, front.blamed = faults, []
    return Analysis(front)


@pytest.mark.parametrize("faults", [0, 1, 2])
def test_a_conflict_is_data_and_the_next_choice_obeys_it(faults: int) -> None:
    analysis, options = picky(faults), Options(0.29)
    choice, realized = settle(analysis, aim(analysis, options), options)
    front = analysis.frontend
    assert isinstance(front, Picky) and len(front.blamed) == faults
    assert choice.kept and not set(choice.kept) & set(front.blamed)
    assert as_lists(choice.kept) == as_lists(realized.rewrite.kept) and realized.kind == "module"
    small = make(analysis, realized)
    left, whole = (sum(p.numel() for p in model.parameters()) for model in (small, analysis.frontend.model))
    assert abs(1 - left / whole - 0.29) <= 0.01
    found = prove(analysis, realized, small)
    assert found.error is not None and found.error <= 1e-12


def test_what_cannot_be_reached_without_the_widths_at_fault_is_a_graph_or_refused() -> None:
    analysis = picky(2)
    options = Options(0.8)
    choice, realized = settle(analysis, aim(analysis, options), options)
    assert realized.kind == "graph" and {dim.size for dim in choice.kept} == {24, 32, 20}
    assert "does not fit; without the widths it holds, 0.8 of the params cannot be removed" in realized.note
    options = Options(0.8, output="module")
    with pytest.raises(UnsupportedModel, match=r"does not fit; without the widths it holds, 0\.8 of the params"):
        settle(analysis, aim(analysis, options), options)


def test_a_choice_made_elsewhere_never_comes_back_changed() -> None:
    analysis = picky(1)
    kept = {group.dim: np.arange(group.size // 2) for group in analysis.groups}
    realized = realize(analysis, kept, analysis.frontend.constraints(analysis.solution, "auto"))
    assert realized.kind == "graph" and realized.note.startswith("does not fit")
    assert as_lists(realized.rewrite.kept) == as_lists(kept)
    with pytest.raises(UnsupportedModel, match="cannot be a Sequential: does not fit"):
        realize(analysis, kept, analysis.frontend.constraints(analysis.solution, "module"))


def test_nothing_can_be_given_up_where_nothing_was_asked() -> None:
    analysis = Analysis(TorchFrontend.read(three_widths(), X))
    asked = analysis.frontend.constraints(analysis.solution, "auto")
    assert not asked.ties and not asked.frozen
    missed = UnsupportedRatio("too much")
    with pytest.raises(UnsupportedRatio, match="too much") as caught:
        analysis.frontend.instead(asked, missed)
    assert caught.value is missed


def test_a_note_belongs_to_the_choice_that_was_taken() -> None:
    """Blocks that were too coarse for the ratio are not said to have been kept."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4)]
    model = nn.Sequential(*layers)
    x = torch.randn(1, 3, 6, 6)
    notes = {}
    for ratio in (0.1, 0.2, 0.3):
        decision = decide(model.eval(), x, Options(ratio, align="onnxruntime"))
        widths = [len(kept) for kept in decision.plan.keep.values()]
        report = decision.plan.report
        assert report is not None and abs(report.reached - ratio) <= 0.01
        found = [block for block in (16, 8, 4, 2) if f"multiples of {block} " in report.note]
        notes[ratio] = found
        assert all(width % block == 0 for block in found for width in widths)
    assert any(notes.values())


def test_realizing_twice_gives_results_that_are_apart() -> None:
    analysis = Analysis(TorchFrontend.read(three_widths(), X))
    options = Options(0.4)
    _, realized = settle(analysis, aim(analysis, options), options)
    first, second = make(analysis, realized), make(analysis, realized)
    with torch.no_grad():
        next(first.parameters()).zero_()
    assert next(second.parameters()).any() and next(analysis.frontend.model.parameters()).any()


# -- edits -------------------------------------------------------------------------------------------


def reference(array: Any, edits: Sequence[Edit]) -> Any:
    """What the edits say, entry by entry."""
    for edit in edits:
        match edit:
            case Slice(kept=kept):
                for axis, indices in kept.items():
                    array = np.stack([array.take(index, axis) for index in indices], axis)
            case Zero(kept=kept):
                array = array.copy()
                for place in np.ndindex(array.shape):
                    if any(place[axis] not in indices for axis, indices in kept.items()):
                        array[place] = 0
            case Renumber(numbers=numbers):
                array = np.vectorize(lambda number, numbers=numbers: numbers[int(number)])(array).astype(array.dtype)
            case Add(values=values):
                array = array + values
    return array


def kept(size: int, count: int, seed: int) -> Any:
    return np.random.default_rng(seed).permutation(size)[:count]


SLICED = Slice("w", {0: kept(6, 4, 1), 2: kept(5, 3, 2)})
EDITS: dict[str, list[Edit]] = {
    "nothing": [],
    "one axis": [Slice("w", {1: kept(4, 2, 0)})],
    "two axes in another order": [SLICED],
    "an order alone": [Slice("w", {0: kept(6, 6, 3)})],
    "zeros": [Zero("w", {0: kept(6, 4, 1), 2: kept(5, 3, 2)})],
    "a sum": [Add("w", np.arange(120.0).reshape(6, 4, 5))],
    "a sum after a cut": [SLICED, Add("w", np.arange(48.0).reshape(4, 4, 3))],
    "a cut after a sum": [Add("w", np.arange(120.0).reshape(6, 4, 5)), SLICED],
    "two cuts": [SLICED, Slice("w", {0: np.array([2, 0]), 1: np.array([3])})],
    "a cut, then zeros": [SLICED, Zero("w", {0: np.array([1, 3])})],
}


@pytest.mark.parametrize("name", EDITS)
def test_both_front_ends_do_what_an_edit_says(name: str) -> None:
    array = np.random.default_rng(0).normal(size=(6, 4, 5))
    expected = reference(array, EDITS[name])
    given = torch.from_numpy(array.copy())
    found = of_torch.edited(given, EDITS[name])
    np.testing.assert_array_equal(found.numpy(), expected)
    lazy = of_onnx.edited(ir.tensor(array), EDITS[name])
    assert list(lazy.shape) == list(expected.shape)
    np.testing.assert_array_equal(lazy.numpy(), expected)
    # The result is another one: what is done to it is not done to the original.
    found.fill_(7.0)
    np.testing.assert_array_equal(given.numpy(), array)


def test_an_index_gets_new_numbers_and_may_count_from_the_end() -> None:
    index = np.array([[0, 3, -1], [2, -4, 1]])
    edits: list[Edit] = [Renumber("index", np.array([2, 0, 3, 1]))]
    expected = reference(index, edits)
    np.testing.assert_array_equal(of_torch.edited(torch.from_numpy(index), edits).numpy(), expected)
    np.testing.assert_array_equal(of_onnx.edited(ir.tensor(index), edits).numpy(), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_an_edit_keeps_the_type_and_the_layout(dtype: torch.dtype) -> None:
    weight = torch.randn(8, 4, 3, 3).to(dtype).contiguous(memory_format=torch.channels_last)
    edits: list[Edit] = [Slice("w", {0: kept(8, 5, 0), 1: kept(4, 2, 1)}), Add("w", np.ones((5, 2, 3, 3)))]
    found = of_torch.edited(weight, edits)
    assert found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, weight[torch.from_numpy(kept(8, 5, 0))][:, torch.from_numpy(kept(4, 2, 1))] + 1)


def test_edits_are_compared_by_what_they_do() -> None:
    one, other = Slice("a", {0: np.array([0, 2])}), Slice("b", {0: np.array([0, 2])})
    assert are_same([one], [other]) and are_same([], [])
    different: list[Edit] = [
        Slice("a", {0: np.array([2, 0])}),
        Slice("a", {1: np.array([0, 2])}),
        Slice("a", {0: np.array([0, 2]), 1: np.array([0])}),
        Zero("a", {0: np.array([0, 2])}),
        Renumber("a", np.array([0, 2])),
        Add("a", np.array([0, 2])),
    ]
    assert not any(are_same([one], [each]) for each in different)
    assert not are_same([one], [one, one]) and not are_same([], [one])
    assert not are_same([Renumber("a", np.array([0, 2]))], [Add("a", np.array([0, 2]))])


def test_the_edits_of_one_tensor_keep_their_order() -> None:
    edits: list[Edit] = [Add("a", 1), Slice("b", {}), Slice("a", {}), Add("a", 2)]
    assert {name: list(each) for name, each in by_name(edits).items()} == {
        "a": [edits[0], edits[2], edits[3]],
        "b": [edits[1]],
    }


def test_zeroing_says_what_the_cut_says() -> None:
    """Of what is trained: running statistics stay as they are."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)).double()
    analysis = structprune.analyze(model.eval(), torch.randn(1, 3, 6, 6).double())
    rewrite = Rewrite(analysis.solution, {group.dim: np.arange(group.size // 2) for group in analysis.groups})
    cut = {edit.name: edit.kept for edit in rewrite.edits() if isinstance(edit, Slice)}
    zeros = {edit.name: edit.kept for edit in rewrite.zeroing() if isinstance(edit, Zero)}
    assert set(zeros) == set(dict(model.named_parameters())) - {"4.bias"}
    assert set(cut) == set(zeros) | {"1.running_mean", "1.running_var"}
    assert all(cut[name] == kept for name, kept in zeros.items())


# -- uses of one tensor that become different ones ------------------------------------------------------


@pytest.mark.parametrize("first", [False, True])
def test_one_use_of_a_shared_vector_gets_a_sum_of_its_own(first: bool) -> None:
    arrays = weights({"w": (8, 6), "v": (8, 6), "b": (6,)})
    text = "h = Gemm (x, w, b)\nr = Relu (h)\ng = Gemm (x, v, b)\ny = Sub (r, g)"
    model = build("(float[2, 8] x) => (float[2, 6] y, float[2, 6] r, float[2, 6] g)", text, arrays)
    front = OnnxFrontend.read(model, None)
    names = [name for name in front.lowering.stored if name.startswith("b")]
    assert len(names) == 2
    small = Shrinker(front.lowering, Rewrite(propagate(front.graph), {}), front.fixed)
    small.shrink(front.shapes_of_inputs, {})
    name = names[0 if first else 1]
    for times in (1.0, 2.0):  # a second list takes the place of the first
        small.put({name: [Add(name, np.full(6, times))]})
        x = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
        before, after = (run(each, {"x": x}) for each in (front.model, small.model))
        changed = [float(np.abs(b - a).max()) for a, b in zip(before[1:], after[1:], strict=True)]
        whole = [x @ arrays["w"] + arrays["b"], x @ arrays["v"] + arrays["b"]]
        assert changed[0 if first else 1] > 0
        if first:
            np.testing.assert_allclose(after[1], np.maximum(whole[0] + times, 0), rtol=1e-5, atol=1e-5)
        else:
            np.testing.assert_allclose(after[2], whole[1] + times, rtol=1e-5, atol=1e-5)
        assert changed[1 if first else 0] == 0


def test_weights_are_read_when_they_are_asked_for() -> None:
    """What a pass is given may be lazy: no array is made before."""
    model = build("(float[2, 8] x) => (float[2, 6] y)", "y = MatMul (x, w)", weights({"w": (8, 6)}))
    front = OnnxFrontend.read(model, None)
    read: list[str] = []
    tensor = front.lowering.stored["w"].tensor

    def evaluate() -> ir.TensorProtocol:
        read.append("w")
        return tensor

    lazy = ir.LazyTensor(evaluate, tensor.dtype, tensor.shape, name="w")
    front.lowering.stored["w"] = replace(front.lowering.stored["w"], tensor=lazy)
    found = front.arrays(["w"])
    assert list(found) == ["w"] and not read
    assert found["w"].shape == (8, 6) and read


def test_a_tensor_of_a_subclass_stays_what_it_was() -> None:
    class Own(nn.Parameter):
        pass

    model = three_widths()
    model[0].weight = Own(model[0].weight.detach())
    small = structprune.shrink(model, 0.3, X)
    assert isinstance(small[0].weight, nn.Parameter) and type(model[0].weight) is Own
    assert isinstance(small(X), Tensor)


# -- passes to come -------------------------------------------------------------------------------------


def compensated(rewrite: Rewrite, parameter: str, array: Any) -> list[Edit]:
    """What a pass that moves weights would do: add to one of them at its new shape."""
    shape = rewrite.shape(rewrite.solution.graph.parameters[parameter])
    values = np.random.default_rng(0).normal(size=shape) * float(np.abs(array).mean())
    return [Add(parameter, values)]


@pytest.mark.parametrize("output", ["module", "graph"])
@pytest.mark.parametrize("name", ["2.weight", "2.bias", "6.bias"])
def test_a_pass_that_changes_weights_adds_edits(output: str, name: str) -> None:
    """Of a parameter that is cut on both axes, on one, and on none."""
    analysis, options = Analysis(TorchFrontend.read(three_widths(), X)), Options(0.4, output=output)
    _, realized = settle(analysis, aim(analysis, options), options)
    more = compensated(realized.rewrite, name, analysis.frontend.arrays([name])[name].numpy())
    plain = make(analysis, realized)
    moved = analysis.frontend.make(realized, [*realized.rewrite.edits(), *more])
    for other, tensor in plain.state_dict().items():
        found = moved.state_dict()[other]
        assert torch.equal(found, tensor + torch.from_numpy(more[0].values) if other == name else tensor), other
    assert moved(X).shape == plain(X).shape and not torch.equal(moved(X), plain(X))


@pytest.mark.parametrize("name", ["w1", "b0", "b2"])
def test_a_pass_that_changes_weights_adds_edits_to_files_too(name: str) -> None:
    text = "h = Gemm (x, w0, b0)\nr = Relu (h)\ng = Gemm (r, w1, b1)\ns = Relu (g)\ny = Gemm (s, w2, b2)"
    shapes = {"w0": (8, 24), "b0": (24,), "w1": (24, 32), "b1": (32,), "w2": (32, 3), "b2": (3,)}
    analysis = Analysis(OnnxFrontend.read(build("(float[2, 8] x) => (float[2, 3] y)", text, weights(shapes)), None))
    options = Options(0.4)
    _, realized = settle(analysis, aim(analysis, options), options)
    stored = {each: tensor.const_value for each, tensor in make(analysis, realized).graph.initializers.items()}
    plain = {each: tensor.numpy() for each, tensor in stored.items() if tensor is not None}
    more = compensated(realized.rewrite, name, analysis.frontend.arrays([name])[name])
    moved = analysis.frontend.make(realized, [*realized.rewrite.edits(), *more])
    assert set(moved.graph.initializers) == set(shapes)
    for other, value in moved.graph.initializers.items():
        assert value.const_value is not None
        expected = plain[other] + more[0].values if other == name else plain[other]
        np.testing.assert_allclose(value.const_value.numpy(), expected, rtol=1e-6, atol=1e-6)
        assert tuple(value.shape) == expected.shape == tuple(value.const_value.shape)
