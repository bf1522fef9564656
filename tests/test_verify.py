"""Proof by default: the original's own code on zeroed weights against the result, at another size if there is one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import structprune
from structprune.errors import VerificationError
from structprune.frontends.protocol import Realized
from structprune.frontends.torch.front import TorchFrontend
from structprune.frontends.torch.write import trial
from structprune.frontends.torch.write.trial import other_sizes, with_noise
from structprune.graph.edit import Edit
from structprune.passes.verify import CannotRun, Trial, Verification, largest_difference, verify

X = torch.randn(4, 6)


class Net(nn.Module):
    """Two layers, and whatever is made of their result."""

    def __init__(self, make: Callable[[Tensor], Any] = lambda y: y) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 64), nn.Linear(64, 5)
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(self.last(self.first(x).relu()))


def planned(model: nn.Module, x: Any = X, **options: Any) -> structprune.Plan:
    plan = structprune.plan(model.eval(), 0.4, x, progress=False, **options)
    plan.apply(model, progress=False)
    return plan


def broken(monkeypatch: pytest.MonkeyPatch, change: Callable[[nn.Module], None]) -> None:
    """Results that are not what they should be."""
    make = TorchFrontend.make

    def make_wrongly(self: TorchFrontend, realized: Realized, edits: Sequence[Edit]) -> nn.Module:
        small = make(self, realized, edits)
        with torch.no_grad():
            change(small)
        return small

    monkeypatch.setattr(TorchFrontend, "make", make_wrongly)


def shift_bias(model: nn.Module) -> None:
    model.get_parameter("last.bias").add_(1e-6)


# -- the comparison ----------------------------------------------------------------------------------


def outputs(*arrays: Any) -> dict[str, Any]:
    return {f"output {k}": np.asarray(array) for k, array in enumerate(arrays)}


def both(expected: dict[str, Any], found: dict[str, Any], **options: Any) -> Trial:
    given = {"tolerance": 1e-9, "original": lambda seed: expected, "small": lambda: found, **options}
    return Trial("inputs of 2", "float64", **given)


def test_the_largest_difference_in_units_of_its_own_output() -> None:
    found = largest_difference(outputs([1.0, 2.0], [100.0]), outputs([1.0, 2.5], [101.0]))
    assert found.error == 0.25
    assert "output 0" in found.what


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([1, 2], [1, 3]),
        ([True, False], [True, True]),
        ([1.0, np.nan], [1.0, 2.0]),
        ([1.0, np.inf], [1.0, -np.inf]),
        ([1.0, np.inf], [1.0, np.nan]),
        ([1.0, 2.0], [[1.0, 2.0]]),
    ],
    ids=["integers", "booleans", "nan", "sign of infinity", "infinity", "shape"],
)
def test_what_is_never_nearly_right(a: list[Any], b: list[Any]) -> None:
    assert largest_difference(outputs(a), outputs(b)).error == float("inf")
    assert largest_difference(outputs(a), outputs(a)).error == 0
    with pytest.raises(VerificationError, match="output 0"):
        verify([both(outputs(a), outputs(b))], "model")


def test_another_number_of_outputs() -> None:
    with pytest.raises(VerificationError, match=r"it gives output 0 in place of output 0, output 1"):
        verify([both(outputs(1.0, 2.0), outputs(1.0))], "model")


def test_what_rounding_does_is_no_bug() -> None:
    """A difference of large numbers: tiny, and all of it rounding. The same difference without that is a bug."""
    generator = np.random.default_rng(0)

    def cancelling(seed: int) -> dict[str, Any]:
        return outputs(np.array([1e-9]) + (generator.uniform(-1, 1, 1) * 1e-12 if seed else 0))

    found = outputs(np.array([1e-9 + 1e-13]))
    assert verify([both(cancelling(0), found, original=cancelling)], "model").error == 1e-9
    with pytest.raises(VerificationError, match="tolerance 1e-09"):
        verify([both(cancelling(0), found)], "model")


def test_a_choice_between_equals_is_no_bug() -> None:
    """An argmax over two entries that rounding puts in either order; the third is no tie."""

    def original(seed: int) -> dict[str, Any]:
        return outputs(np.array([seed % 2, 1, 2]))

    assert verify([both({}, outputs(np.array([1, 1, 2])), original=original)], "model").error == 0
    with pytest.raises(VerificationError, match="1 of 3 entries"):
        verify([both({}, outputs(np.array([1, 1, 0])), original=original)], "model")


def stop(*_: Any) -> Any:
    raise CannotRun("no kernel")


def test_the_first_trial_that_runs_decides() -> None:
    right, wrong = outputs(1.0), outputs(2.0)
    found = verify([both(right, right, original=stop), both(right, right)], "model")
    assert found.error == 0
    assert "does not run on inputs of 2 in float64: no kernel" in found.note
    found = verify([both(right, right, small=stop, must_run=False), both(right, right)], "model")
    assert found.error == 0
    assert "the result does not run: no kernel" in found.note
    with pytest.raises(VerificationError, match="does not run on inputs of 2, where the original does"):
        verify([both(right, right, small=stop), both(right, right)], "model")
    # A graph may hold for the sizes alone that it was recorded on: that is said.
    found = verify([both(right, wrong, elsewhere=True, binds=False), both(right, right)], "model")
    assert "holds for inputs of the recorded sizes alone" in str(found)
    assert str(verify([both(right, right, original=stop)], "model")).startswith("not verified with numbers: the orig")
    assert verify([], "model") == Verification(None)


# -- torch -------------------------------------------------------------------------------------------


def test_it_is_the_default_and_finds_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, shift_bias)
    for call in (structprune.shrink, lambda *a, **k: structprune.plan(*a, **k).apply(a[0])):
        with pytest.raises(VerificationError, match=r"output 0 \(2, 5\) by .* in float64.*report it.*verify='shapes'"):
            call(Net().eval(), 0.4, X)
    assert structprune.shrink(Net().eval(), 0.4, X, verify="shapes")(X).shape == (4, 5)
    assert structprune.shrink(Net().eval(), 0.4, X, verify=None)(X).shape == (4, 5)


def test_the_report_says_what_was_compared() -> None:
    plan = planned(Net())
    assert plan.report is not None
    assert plan.report.error is not None and plan.report.error <= 1e-9
    assert "(float64, inputs of 2x6, other sizes than recorded)" in str(plan)
    assert "recorded on inputs of 4x6" in str(plan)
    assert plan.report.as_dict()["verification"] in str(plan)


def test_it_says_where_guessed_inputs_came_from() -> None:
    plan = planned(Net(), None)
    assert "recorded on inputs of 1x6 (guessed: features of shape (1, 6) for first)" in str(plan)
    with_inputs = structprune.plan(Net().eval(), 0.4, X, progress=False)
    assert "recorded on inputs of 4x6 (given)" in str(with_inputs)


def test_parameters_that_nothing_reads_are_named() -> None:
    class Unread(Net):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Linear(4, 4)

    assert "not read on these inputs, and left as they are: spare.weight, spare.bias" in str(planned(Unread()))


def test_zeros_that_were_guessed_become_noise() -> None:
    """On zeros every bug in a first layer would be invisible. Numbers that were given stay, and so do integers."""
    ids = torch.zeros(1, 3, dtype=torch.long)
    (noise, given, same), _ = with_noise(((torch.zeros(2, 6), X, ids), {}))
    assert noise.shape == (2, 6) and noise.any(1).all()
    assert given is X
    assert same is ids


def test_the_models_own_code_runs_and_not_its_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording that left out an operator would otherwise agree with the graph made from it."""
    model = Net().eval()
    plan = structprune.plan(model, 0.4, X, output="graph", progress=False)

    def forgets(small: nn.Module) -> None:
        graph = small.graph  # type: ignore[union-attr]
        (relu,) = (node for node in graph.nodes if "relu" in str(node.target))  # type: ignore[union-attr]
        relu.replace_all_uses_with(relu.args[0])
        graph.erase_node(relu)  # type: ignore[operator,union-attr]
        small.recompile()  # type: ignore[operator]

    broken(monkeypatch, forgets)
    with pytest.raises(VerificationError, match="differs from the original"):
        plan.apply(model, progress=False)


@pytest.mark.parametrize(
    "make",
    [
        lambda y: {"logits": y, "best": y.argmax(1)},
        lambda y: (y, [y.sum(1), y > 0]),
        lambda y: y.sigmoid() * 0 + 1,
        lambda y: (y * 1e4).sigmoid(),
        lambda y: y * 1e-30,
        lambda y: y / y.clamp(min=0) * 0 + y.clamp(min=0).log(),
        lambda y: (y - y.detach()) + 1e-12 * y,
        lambda y: y.softmax(1).half(),
        lambda y: torch.complex(y, y),
    ],
    ids=["dict", "nested", "constant", "saturated", "tiny", "not finite", "cancelled", "half", "complex"],
)
def test_results_of_every_kind(make: Callable[[Tensor], Any]) -> None:
    torch.manual_seed(0)
    plan = planned(Net(make))
    assert plan.report is not None
    assert plan.report.error is not None, str(plan)


def test_inputs_that_the_model_writes_into() -> None:
    class Writes(Net):
        def forward(self, x: Tensor) -> Any:
            x.mul_(2)
            return super().forward(x)

    given = X.clone()
    plan = planned(Writes(), given)
    assert torch.equal(given, X)
    assert plan.report is not None and plan.report.error is not None


def test_code_that_casts_is_compared_in_its_own_precision() -> None:
    class Casts(Net):
        def forward(self, x: Tensor) -> Any:
            h = self.first(x).to(torch.float32).relu()
            return self.last(h.to(self.last.weight.dtype))

    plan = planned(Casts())
    assert plan.report is not None and plan.report.error is not None
    assert plan.report.error <= 1e-4


def test_code_that_refuses_float64_runs_in_its_own_types() -> None:
    class Refuses(Net):
        def forward(self, x: Tensor) -> Any:
            if x.dtype == torch.float64:
                raise TypeError("float32, please")
            return super().forward(x)

    plan = planned(Refuses())
    assert "(float32, inputs of 2x6, other sizes than recorded)" in str(plan)


def test_no_copy_in_float64_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "free_memory", lambda: 10_000.0)
    assert "(float32, inputs of 2x6" in str(planned(Net()))
    monkeypatch.setattr(trial, "free_memory", lambda: 1000.0)
    assert "not verified with numbers: the original does not run" in str(plan := planned(Net()))
    assert "a copy takes 0.0 GB, and 0.0 GB of memory are free" in str(plan)


def test_an_original_that_does_not_run_here_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing kernel, memory that ends, an error on these numbers: the report says so, and the result stays."""

    class Fails(Net):
        def forward(self, x: Tensor) -> Any:
            if type(x) is Tensor and x.device.type == "cpu":
                raise RuntimeError("no kernel for this device")
            return super().forward(x)

    # Nor does what was recorded of it.
    monkeypatch.setattr(trial, "expected_outputs", stop)
    plan = planned(Fails())
    assert plan.report is not None and plan.report.error is None
    assert "not verified with numbers: the original does not run on inputs of 2x6 in float64: " in str(plan)
    assert "RuntimeError: no kernel for this device" in str(plan)


def test_an_original_that_gives_something_else_each_time_proves_nothing() -> None:
    given = itertools.count()
    results = {"output 0": np.ones(3)}

    def original(seed: int) -> Any:
        return {"output 0": np.ones(3) * next(given)}

    chance = Trial("inputs of 2x6", "float64", 1e-9, original, lambda: results)
    steady = Trial("inputs of 4x6", "float32", 1e-9, lambda seed: results, lambda: results)
    found = verify([chance, steady], "Net")
    assert (found.error, found.dtype) == (0.0, "float32")
    assert found.note == "the original gives other results each time on inputs of 2x6 in float64"
    assert verify([chance], "Net").error is None


def test_another_size_only_where_the_model_takes_it() -> None:
    class Bound(Net):
        def forward(self, x: Tensor) -> Any:
            if x.shape[0] != 4:
                raise ValueError("four samples")
            return super().forward(x)

    assert "(float64, inputs of 4x6)" in str(planned(Bound()))


def test_other_sizes_are_made_of_what_is_there() -> None:
    ids = torch.tensor([[7, 8, 9, 10]])
    (bold, careful) = other_sizes(((ids,), {"mask": torch.ones(1, 1, 4, 4, dtype=torch.bool)}))
    assert bold[0][0].tolist() == [[7, 8, 9]] * 2
    assert bold[1]["mask"].shape == (2, 1, 3, 3)
    assert careful[0][0].tolist() == [[7, 8, 9, 10]] * 2
    assert [tuple(each[0][0].shape) for each in other_sizes(((torch.ones(2, 3, 224, 224),), {}))] == [
        (3, 3, 64, 64),
        (3, 3, 96, 96),
        (3, 3, 224, 224),
    ]
    assert list(other_sizes(((torch.tensor(3.0),), {}))) == []


def test_a_result_that_holds_for_its_own_sizes_alone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's class, with a number in it that only fits the recorded batch."""

    class Limited(Net):
        def __init__(self) -> None:
            super().__init__()
            self.most = 100

        def forward(self, x: Tensor) -> Any:
            return super().forward(x)[: self.most]

    def limit(model: nn.Module) -> None:
        model.most = 2

    broken(monkeypatch, limit)
    with pytest.raises(VerificationError, match=r"output 0 has shape \(2, 5\) in place of \(3, 5\)"):
        structprune.shrink(Limited().eval(), 0.4, torch.randn(2, 6))


def test_weights_and_generators_are_left_alone() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 64), nn.BatchNorm1d(64), nn.Linear(64, 3)).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    planned(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32, torch.int64}
    assert torch.equal(torch.get_rng_state(), state)


def test_statistics_are_taken_over_what_is_kept_by_the_models_own_code() -> None:
    model = nn.Sequential(nn.Linear(6, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 5))
    plan = planned(model)
    assert "change the statistics of a normalisation (layer_norm)" in str(plan)
    assert plan.report is not None and plan.report.error is not None and plan.report.error <= 1e-9


def test_what_takes_long_is_compared_where_it_was_given_and_its_shapes_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trial, "CHEAP", 0.0)
    monkeypatch.setattr(trial, "CHEAP_FOR_TORCH", 0.0)
    one = X[:1]
    plan = planned(Net(), one)
    assert "(float32, inputs of 1x6); on inputs of 2x6 the shapes are right" in str(plan)
    assert "(float32, inputs of 2x6, other sizes than recorded)" in str(planned(Net()))


def test_shapes_at_another_size_that_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    class Limited(Net):
        def __init__(self) -> None:
            super().__init__()
            self.most = 100

        def forward(self, x: Tensor) -> Any:
            return super().forward(x)[: self.most]

    def limit(model: nn.Module) -> None:
        model.most = 1

    monkeypatch.setattr(trial, "CHEAP", 0.0)
    monkeypatch.setattr(trial, "CHEAP_FOR_TORCH", 0.0)
    broken(monkeypatch, limit)
    with pytest.raises(VerificationError, match=r"output 0 has shape \(1, 5\) in place of \(2, 5\)"):
        structprune.shrink(Limited().eval(), 0.4, X[:1])


def test_a_comparison_of_zeros_says_how_little_it_proves() -> None:
    model = Net()
    nn.init.zeros_(model.last.weight)
    nn.init.zeros_(model.last.bias)
    assert "all outputs are zero on these inputs: little is proved" in str(planned(model))
