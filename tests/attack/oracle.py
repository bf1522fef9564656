"""Removing equals zeroing, checked from outside: public calls, the model's own code, and the numbers of the weights.

Which slices stayed is read off the values of the smaller weights, so nothing that the package says of itself is
trusted. The original is zeroed in place (whatever shares its memory goes with it), and put back afterwards.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import structprune
from structprune.errors import StructpruneError, UnsupportedModel, UnsupportedRatio, VerificationError

TOLERANCE = 1e-9  # a share of the largest output, in float64
TINY = 1e-120  # where zeros give 0 / 0, the limit is meant
Inputs = tuple[Any, ...]
Kept = dict[str, dict[int, Tensor]]
Method = Callable[[nn.Module, Inputs], Any]


@dataclass(frozen=True)
class Case:
    """A model, inputs, and what else holds of it.

    others: inputs of other sizes that the model takes. methods: other ways to call an instance of the class.
    attributes: (path, value) that must come back in the own class. shrinks: something can plainly be removed.
    drawn: it draws numbers, of which there are fewer in a smaller model; means and deviations are compared.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]
    others: tuple[Callable[[], Inputs], ...] = ()
    methods: tuple[Method, ...] = ()
    attributes: tuple[tuple[str, Any], ...] = ()
    shrinks: bool = True
    in_training: bool = False
    drawn: bool = False
    area: str = "operators"
    forms: tuple[str, ...] = ("auto", "graph")
    note: str = ""


@dataclass
class Outcome:
    """What was seen: how many groups there are, and the kinds of result."""

    groups: int = 0
    kinds: set[str] = field(default_factory=set)
    refusals: list[str] = field(default_factory=list)


def made(case: Case) -> tuple[nn.Module, Inputs]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = case.build().double().eval()
        disturb(model)
        return model, case.inputs()


@torch.no_grad()
def disturb(model: nn.Module) -> None:
    """No parameter stays at a constant, no two entries are equal."""
    for parameter in model.parameters():
        values = parameter.detach().flatten()
        if parameter.is_floating_point() and len(values.unique()) < len(values):
            parameter.add_(0.3 * torch.randn(parameter.shape, dtype=parameter.dtype))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.3)
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)


# -- the original ------------------------------------------------------------------------------------


def weights(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters(remove_duplicate=False))


def kept_slices(model: nn.Module, small: nn.Module) -> Kept:
    """For each parameter that changed, the indices along each axis, found by value."""
    found: Kept = {}
    after = weights(small)
    for name, whole in weights(model).items():
        assert name in after, f"the parameter {name!r} is missing in the result"
        part = after[name]
        if whole.shape == part.shape:
            assert torch.equal(whole, part), f"{name!r} has its old shape and other values"
            continue
        found[name] = located(name, whole.detach(), part.detach())
    return found


def located(name: str, whole: Tensor, part: Tensor) -> dict[int, Tensor]:
    assert whole.dim() == part.dim(), f"{name!r} went from {tuple(whole.shape)} to {tuple(part.shape)}"
    flat, order = whole.flatten().sort()
    places = torch.searchsorted(flat, part.flatten()).clamp(max=len(flat) - 1)
    assert torch.equal(flat[places], part.flatten()), f"{name!r} holds numbers that the original does not have"
    index = order[places].reshape(part.shape)
    found = {}
    for axis in range(whole.dim()):
        stride = int(np.prod(whole.shape[axis + 1 :], dtype=int))
        along = index.div(stride, rounding_mode="floor") % whole.shape[axis]
        line = along.movedim(axis, 0).reshape(part.shape[axis], -1)
        assert (line == line[:, :1]).all(), f"{name!r} is no selection of slices of the original"
        if whole.shape[axis] != part.shape[axis]:
            found[axis] = line[:, 0]
    return found


@contextmanager
def zeroed(model: nn.Module, kept: Kept, factor: float = 0.0) -> Iterator[None]:
    """The original with its removed slices zeroed, in its own memory."""
    own = weights(model)
    before = {name: own[name].detach().clone() for name in kept}
    try:
        with torch.no_grad():
            for name, axes in kept.items():
                for axis, stay in axes.items():
                    is_removed = torch.ones(own[name].shape[axis], dtype=torch.bool)
                    is_removed[stay] = False
                    places = is_removed.nonzero().flatten()
                    slices = own[name].data.index_select(axis, places)
                    slices = slices * factor if factor else torch.zeros_like(slices)  # and no zeros below zero
                    own[name].data.index_copy_(axis, places, slices)
        yield
    finally:
        with torch.no_grad():
            for name, tensor in before.items():
                own[name].data.copy_(tensor)


def tensors_of(result: Any) -> list[Tensor]:
    """All tensors of a result, whatever holds them."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, np.ndarray):
        return [torch.from_numpy(result)]
    if isinstance(result, Mapping):
        return [tensor for each in result.values() for tensor in tensors_of(each)]
    if isinstance(result, list | tuple):
        return [tensor for each in result for tensor in tensors_of(each)]
    if isinstance(result, bool | int | float):
        return [torch.tensor(result)]
    if hasattr(result, "__dict__"):
        return tensors_of(vars(result))
    return []


def run(model: nn.Module, inputs: Inputs, method: Method | None = None) -> list[Tensor]:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        given = copy.deepcopy(inputs)
        result = model(*given) if method is None else method(model, given)
        return [tensor.detach().clone() for tensor in tensors_of(result)]


def fresh(inputs: Any, seed: int) -> Any:
    """The same shapes with other numbers of both signs; whole numbers and masks stay."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(inputs, Tensor) and (inputs.is_floating_point() or inputs.is_complex()):
        return torch.randn(inputs.shape, generator=generator, dtype=inputs.dtype)
    if isinstance(inputs, tuple | list):
        return type(inputs)(fresh(each, seed + 1 + place) for place, each in enumerate(inputs))
    return inputs


# -- the comparison ----------------------------------------------------------------------------------


def differences(expected: Sequence[Tensor], found: Sequence[Tensor]) -> str:
    """What is different, or nothing."""
    if len(expected) != len(found):
        return f"{len(found)} results where the original has {len(expected)}"
    for a, b in zip(expected, found, strict=True):
        if a.shape != b.shape:
            return f"a result of shape {tuple(b.shape)} where the original has {tuple(a.shape)}"
        if not a.numel():
            continue
        if not (a.is_floating_point() or a.is_complex()):
            if not torch.equal(a, b):
                return "other whole numbers"
            continue
        if not torch.equal(torch.isfinite(a), torch.isfinite(b)):
            return "numbers that are not finite in one of the two"
        both = torch.isfinite(a)
        scale = a[both].abs().max().item() if both.any() else 1.0
        error = (a - b)[both].abs().max().item() if both.any() else 0.0
        if not error <= TOLERANCE * max(scale, 1e-3):
            return f"{error:.2e} away where the largest is {scale:.2e}"
    return ""


def compare(
    model: nn.Module, small: nn.Module, kept: Kept, inputs: Inputs, what: str, method: Method | None = None
) -> None:
    """One run of each."""
    with zeroed(model, kept):
        expected = run(model, inputs, method)
    try:
        found = run(small, inputs, method)
    except Exception as error:
        raise AssertionError(f"{what}: the result raises {type(error).__name__}: {error}") from error
    said = differences(expected, found)
    if said and any(not torch.isfinite(each).all() for each in expected):
        # 0 / 0 has a limit; or the one slice that annihilates is enough (of h / t, that of h).
        with zeroed(model, kept, TINY):
            ways = [run(model, inputs, method)]
        for name in kept:
            with zeroed(model, {name: kept[name]}):
                ways.append(run(model, inputs, method))
        said = said if all(differences(way, found) for way in ways) else ""
    assert not said, f"{what}: {said}"


def compare_draws(model: nn.Module, small: nn.Module, kept: Kept, inputs: Inputs, what: str, count: int = 3000) -> None:
    """Many runs of each: the same mean and deviation, as far as so many runs can tell."""

    def drawn(each: nn.Module) -> Tensor:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            return torch.stack([tensors_of(each(*inputs))[0] for _ in range(count)])

    with zeroed(model, kept):
        a = drawn(model)
    b = drawn(small)
    wide = torch.maximum(a.std(0), b.std(0))
    assert ((a.mean(0) - b.mean(0)).abs() <= 7 * wide / count**0.5 + 1e-9).all(), f"{what}: another mean"
    assert ((a.std(0) - b.std(0)).abs() <= 0.15 * wide + 1e-9).all(), f"{what}: another deviation"


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """All that hangs on a model, tensors by their bytes."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key not in ("_modules",):
                found[f"{name}.{key}"] = described(value, 0)
        found[f"{name}.children"] = [id(child) for child in module.children()]
    return found


def described(value: Any, depth: int) -> Any:
    if isinstance(value, Tensor):
        data = value.detach()
        is_plain = data.layout is torch.strided and data.device.type == "cpu"
        return (id(value), tuple(value.shape), value.requires_grad, data.tolist() if is_plain else None)
    if depth > 4:
        return type(value).__name__
    if isinstance(value, Mapping):
        return {str(key): described(each, depth + 1) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return (type(value).__name__, [described(each, depth + 1) for each in value])
    if isinstance(value, bool | int | float | str | type(None)):
        return (type(value).__name__, repr(value))
    if hasattr(value, "__dict__") and not callable(value):
        return (id(value), described(vars(value), depth + 1))
    return id(value)


@contextmanager
def untouched(model: nn.Module, inputs: Inputs) -> Iterator[None]:
    """What stands inside leaves the model bit for bit what it was, and what it computes too."""
    before, results = fingerprint(model), run(model, inputs)
    before = fingerprint(model)  # a first run may fill a cache of the model's own
    yield
    after = fingerprint(model)
    changed = [key for key in before if before[key] != after.get(key)] + [key for key in after if key not in before]
    assert not changed, f"the original changed: {', '.join(changed)}"
    now = run(model, inputs)
    assert len(now) == len(results) and all(
        torch.equal(a, b) or (a != a).equal(b != b) for a, b in zip(results, now, strict=True)
    ), "the original computes something else afterwards"


def at(model: Any, path: str) -> Any:
    """`a.b[0]` of a model."""
    return eval(f"model.{path}", {}, {"model": model})


# -- the attack --------------------------------------------------------------------------------------


def cuts(groups: Sequence[Any]) -> Iterator[tuple[str, dict[str, list[int]]]]:
    """Each half of each group alone; both halves of all together."""
    generator = np.random.default_rng(1)
    halves = {}
    for group in groups:
        order = generator.permutation(group.size)
        count = max(1, group.size // 2)
        halves[group.name] = (sorted(order[:count].tolist()), sorted(order[count:].tolist()))
    for name, (first, second) in list(halves.items())[:5]:
        yield name, {name: first}
        yield name, {name: second}
    if len(halves) > 1:
        yield "all groups", {name: first for name, (first, _) in halves.items()}
        yield "all groups", {name: second for name, (_, second) in halves.items()}


def attack(case: Case) -> Outcome:
    """Cut every group in every form, and compare with the zeroed original; then shrink as a user does."""
    model, inputs = made(case)
    outcome = Outcome()
    with warnings.catch_warnings(), untouched(model, inputs):
        warnings.simplefilter("ignore")
        analysis = structprune.analyze(model, inputs)
        outcome.groups = len(analysis.groups)
        assert analysis.groups or not case.shrinks, f"nothing can be removed: {analysis}"
        sizes = {group.name: group.size for group in analysis.groups}
        inexact = {group.name for group in analysis.groups if not group.exact}
        named = {each["name"] for each in analysis.as_dict()["groups"] if each["statistics"]}
        assert inexact == named, "a group is inexact and no operator is named"
        try:
            whole = structprune.plan(model, 0.0, inputs, verify=None)
        except UnsupportedModel as error:
            assert not case.shrinks, str(error)
            outcome.refusals.append(str(error))
            return outcome
        for what, keep in cuts(analysis.groups):
            for form in case.forms if what == "all groups" else case.forms[:1]:
                plan = replace(
                    whole, keep=dict(keep), sizes={name: sizes[name] for name in keep}, output=form
                )
                try:
                    small = plan.apply(model)
                except VerificationError:
                    raise
                except StructpruneError as error:
                    outcome.refusals.append(f"{type(error).__name__}: {error}")
                    continue
                outcome.kinds.add(kind_of(model, small))
                check(case, model, small, plan, inputs, not inexact & set(keep), f"{what} cut, {kind_of(model, small)}")
        for form in case.forms:
            shrunk(case, model, inputs, outcome, form)
    return outcome


def kind_of(model: nn.Module, small: nn.Module) -> str:
    return "own class" if type(small) is type(model) else "graph"


def shrunk(case: Case, model: nn.Module, inputs: Inputs, outcome: Outcome, form: str) -> None:
    """As a user does it: a ratio; saved, loaded, trained."""
    plan = None
    for ratio in (0.5, 0.25, 0.1):
        try:
            plan = structprune.plan(model, ratio, inputs, verify="numeric", output=form)
            break
        except UnsupportedRatio as error:
            outcome.refusals.append(str(error))
        except UnsupportedModel as error:
            outcome.refusals.append(str(error))
            return
    if plan is None:
        return
    small = plan.apply(model)
    outcome.kinds.add(kind_of(model, small))
    is_exact = plan.report is not None and all(cut.exact for cut in plan.report.cuts)
    what = f"{plan.options['ratio']} of it, output={form}, {kind_of(model, small)}"
    check(case, model, small, plan, inputs, is_exact, what)
    if form == "auto" and not case.drawn:
        reloaded(model, small, plan, inputs, what)
    trained(model, small, inputs, what)


def says_where_it_holds(plan: structprune.Plan) -> bool:
    """A graph takes the path of the example; where sizes decided it, the report says so."""
    return any(word in str(plan.report) for word in ("branch", "decided by", "bound to"))


def check(
    case: Case, model: nn.Module, small: nn.Module, plan: structprune.Plan, inputs: Inputs, is_exact: bool, what: str
) -> None:
    kept = kept_slices(model, small)
    assert kept, f"{what}: no parameter is smaller"
    is_own = type(small) is type(model)
    sets = [(inputs, "example"), (fresh(inputs, 11), "fresh inputs")]
    if is_own or not says_where_it_holds(plan):
        sets += [(fresh(other(), 21 + place), f"other inputs {place}") for place, other in enumerate(case.others)]
    for given, which in sets:
        if is_exact and case.drawn:
            compare_draws(model, small, kept, given, f"{what}, {which}")
        elif is_exact:
            compare(model, small, kept, given, f"{what}, {which}")
        else:
            expected, found = run(model, given), run(small, given)
            shapes = [tuple(each.shape) for each in expected], [tuple(each.shape) for each in found]
            assert shapes[0] == shapes[1], f"{what}, {which}: shapes {shapes[1]}, not {shapes[0]}"
        for number, method in enumerate(case.methods if is_own and is_exact else ()):
            compare(model, small, kept, given, f"{what}, {which}, method {number}", method)
    if case.in_training and is_exact:
        with training(model), training(small):
            for given, which in sets:
                compare(model, small, kept, given, f"{what}, {which}, in training")
    if is_own:
        for path, value in case.attributes:
            found = at(small, path)
            assert found == value, f"{what}: the attribute {path} is {found!r}, it was {value!r}"


@contextmanager
def training(model: nn.Module) -> Iterator[None]:
    before = {module: module.training for module in model.modules()}
    model.train()
    try:
        yield
    finally:
        for module, was in before.items():
            module.training = was


def reloaded(model: nn.Module, small: nn.Module, plan: structprune.Plan, inputs: Inputs, what: str) -> None:
    """From the class, the plan and the weights: the same model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        plan.save(path)
        again = structprune.load(copy.deepcopy(model), path, small.state_dict())
    assert type(again).__name__ == type(small).__name__, f"{what}: loaded as a {type(again).__name__}"
    said = differences(run(small, inputs), run(again, inputs))
    assert not said, f"{what}, loaded again: {said}"


def trained(model: nn.Module, small: nn.Module, inputs: Inputs, what: str) -> None:
    """Where the original trains, the result does, with gradients in the same places."""

    def reached(each: nn.Module) -> set[str] | None:
        each = copy.deepcopy(each).train()
        try:
            results = [t for t in tensors_of(each(*copy.deepcopy(inputs))) if t.requires_grad]
            total = sum((t.abs() if t.is_complex() else t).sum() for t in results)
            if not isinstance(total, Tensor):
                return set()
            total.backward()
        except (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError):  # it does not train: asserted below of the result
            return None
        return {name for name, parameter in each.named_parameters() if parameter.grad is not None}

    expected = reached(model)
    if expected is not None:
        found = reached(small)
        assert found is not None, f"{what}: the original trains, the result does not"
        assert found == expected, f"{what}: gradients reach {sorted(found ^ expected)} in one of the two only"
