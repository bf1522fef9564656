"""Recording leaves no trace: what forward keeps anywhere is as it was, and results know nothing of the original."""

from __future__ import annotations

import collections
import copy
import functools
import threading
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import structprune
from structprune.errors import CaptureError, UnsupportedModel, UnsupportedRatio
from structprune.frontends.torch.record.ghost import BORN, Ghost
from tests import traces_elsewhere

pytestmark = pytest.mark.filterwarnings("ignore:the result is a torch.fx.GraphModule")

CACHE: dict[Any, Any] = {}
NESTED: dict[str, Any] = {"of": [{}]}
TABLE: Tensor | None = None
STEPS = 0
SEEN: collections.deque[Any] = collections.deque(maxlen=8)
PLACE = threading.local()
SPACE = types.SimpleNamespace(table=None)
SUMS = torch.zeros(3, dtype=torch.float64)


class Base(nn.Module):
    """Two layers; what is between them is kept somewhere, and read again from there."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.kept(self.first(x).relu()))

    def kept(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class InGlobal(Base):
    def kept(self, x: Tensor) -> Tensor:
        if x.shape not in CACHE:
            CACHE[x.shape] = x * 2
        return CACHE[x.shape]


class InNestedGlobal(Base):
    def kept(self, x: Tensor) -> Tensor:
        return NESTED["of"][0].setdefault("x", x * 2)


class SetsGlobal(Base):
    def kept(self, x: Tensor) -> Tensor:
        global TABLE, STEPS
        STEPS += 1
        if TABLE is None:
            TABLE = x * 2
        return TABLE


class OnesInGlobal(Base):
    """A real tensor as wide as the original: the smaller model makes its own."""

    def kept(self, x: Tensor) -> Tensor:
        if "ones" not in CACHE:
            CACHE["ones"] = torch.ones(self.first.out_features, dtype=x.dtype)
        return x * CACHE["ones"]


class InDeque(Base):
    def kept(self, x: Tensor) -> Tensor:
        SEEN.append(x)
        return SEEN[0]


class InThread(Base):
    def kept(self, x: Tensor) -> Tensor:
        PLACE.table = getattr(PLACE, "table", x)
        return PLACE.table


class InNamespace(Base):
    def kept(self, x: Tensor) -> Tensor:
        if SPACE.table is None:
            SPACE.table = x
        return SPACE.table


class InHelper(Base):
    def __init__(self) -> None:
        super().__init__()
        self.helper = traces_elsewhere.Keeper()

    def kept(self, x: Tensor) -> Tensor:
        if self.helper.table is None:
            self.helper.table = x
        self.helper.seen.append(x)
        return self.helper.table


class InGlobalHelper(Base):
    def kept(self, x: Tensor) -> Tensor:
        if traces_elsewhere.KEEPER.table is None:
            traces_elsewhere.KEEPER.table = x
        return traces_elsewhere.KEEPER.table


class InClass(Base):
    table: Any = None
    tables: dict[str, Tensor] = {}  # noqa: RUF012  such code is what is tested

    def kept(self, x: Tensor) -> Tensor:
        if type(self).table is None:
            type(self).table = x
        return self.tables.setdefault("x", type(self).table)


class InDefault(Base):
    def kept(self, x: Tensor, cache: dict[str, Tensor] = {}) -> Tensor:  # noqa: B006  such code is what is tested
        return cache.setdefault("x", x)


class InFunction(Base):
    def kept(self, x: Tensor) -> Tensor:
        if not hasattr(doubled, "last"):
            doubled.last = doubled(x)  # type: ignore[attr-defined]
        return doubled.last  # type: ignore[attr-defined,no-any-return]


def doubled(x: Tensor) -> Tensor:
    return x * 2


class InCell(Base):
    """A closure's cell."""

    def __init__(self) -> None:
        super().__init__()
        last: Tensor | None = None

        def keep(x: Tensor) -> Tensor:
            nonlocal last
            if last is None:
                last = x
            return last

        self.keep = keep

    def kept(self, x: Tensor) -> Tensor:
        return self.keep(x)


@functools.cache
def remembered(key: int, holder: Any) -> Tensor:
    return holder[0] * 2


class InLruCache(Base):
    def kept(self, x: Tensor) -> Tensor:
        return remembered(1, Always(x))


class Always(tuple):  # type: ignore[type-arg]
    """Equal to every other: the cache gives what it gave first."""

    def __new__(cls, x: Tensor) -> Always:
        return super().__new__(cls, (x,))

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        return True


class ElsewhereRamp(Base):
    def kept(self, x: Tensor) -> Tensor:
        return x * traces_elsewhere.ramp(x.shape[-2], x.dtype)[:, None]


class OutOfSight(Base):
    """No name in the code says where."""

    def kept(self, x: Tensor) -> Tensor:
        traces_elsewhere.keep_out_of_sight("x", (x, x))
        return x


class InAttributes(Base):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.config = types.SimpleNamespace(last=None, sizes=[])

    def kept(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.config.last = self.config.last if self.config.last is not None else x
        self.config.sizes.append(x.shape)
        self.first.weight.note = x  # type: ignore[attr-defined]
        return self.config.last


class InBuffer(Base):
    """Written in place, outside and inside of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(3, dtype=torch.float64))

    def kept(self, x: Tensor) -> Tensor:
        SUMS.add_(1)
        SUMS[1:].mul_(2)
        self.count += 1
        return x + SUMS.sum() * 0


KEEPING = (
    *(InGlobal, InNestedGlobal, SetsGlobal, OnesInGlobal, InDeque, InThread, InNamespace, InHelper),
    *(InGlobalHelper, InClass, InDefault, InFunction, InCell, InLruCache, ElsewhereRamp, OutOfSight, InAttributes),
    InBuffer,
)


def emptied() -> None:
    global TABLE, STEPS
    TABLE, STEPS = None, 0
    for each in (CACHE, NESTED["of"][0], SEEN, traces_elsewhere.TABLES, InClass.tables, PLACE.__dict__):
        each.clear()
    InDefault.kept.__defaults__[0].clear()  # type: ignore[index]
    InClass.table = SPACE.table = traces_elsewhere.KEEPER.table = None
    traces_elsewhere.LAST = None
    vars(doubled).pop("last", None)
    remembered.cache_clear()
    traces_elsewhere.ramp.cache_clear()
    SUMS.zero_()


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    emptied()
    yield
    assert not BORN
    emptied()


def built(kind: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return kind().double().eval()


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def fresh(model: nn.Module, x: Tensor) -> Tensor:
    """What it gives where nothing has been kept yet: tensors kept by another run are not its own."""
    emptied()
    return copy.deepcopy(model)(x).detach()


@pytest.mark.parametrize("kind", KEEPING)
def test_the_original_gives_what_it_gave(kind: type[nn.Module]) -> None:
    """Not what a fresh process would give: the caches are left as the recording left them."""
    model, x, other = built(kind), images(2, 6), images(5, 6)
    if kind is InCell:  # its copies share the cell with it
        expected, model = [model(x).detach()], built(kind)
        structprune.shrink(model, 0.3, x)
        assert torch.equal(model(x), expected[0])
        return
    expected = [fresh(model, x), fresh(model, other)]
    for each, right in zip((x, other), expected, strict=True):
        emptied()
        structprune.shrink(model, 0.3, x)
        assert torch.equal(copy.deepcopy(model)(each), right)


@pytest.mark.parametrize("output", ["module", "graph"])
@pytest.mark.parametrize("kind", KEEPING)
def test_results_work_at_once_and_on_other_sizes(kind: type[nn.Module], output: str) -> None:
    model, x, other = built(kind), images(2, 6), images(5, 6)
    small = structprune.plan(model, 0.3, x, output=output, verify="numeric").apply(model)
    if kind is InCell:  # its copies share the cell
        assert small(x).shape == (2, 3)
        return
    for each in (x, other):
        found = copy.deepcopy(small)(each)
        assert found.shape == (len(each), 3)
        emptied()
        assert torch.equal(copy.deepcopy(small)(each), found)
        emptied()


# What is written at a place that no code names is overwritten unseen.
@pytest.mark.parametrize("kind", [kind for kind in KEEPING if kind is not OutOfSight])
def test_what_was_kept_before_is_kept(kind: type[nn.Module]) -> None:
    """The caches are full of the user's own tensors."""
    model, x = built(kind), images(2, 6)
    with torch.no_grad():
        model(x)
        expected = model(x)
        before = snapshot()
        structprune.analyze(model, x)
        assert snapshot() == before
        assert kind is InLruCache or torch.equal(model(x), expected)


def snapshot() -> list[Any]:
    places = [CACHE, NESTED["of"][0], InClass.tables, InDefault.kept.__defaults__[0], traces_elsewhere.TABLES]  # type: ignore[index]
    kept = [*(value for place in places for value in place.values()), *SEEN, TABLE, SPACE.table, InClass.table]
    return [STEPS, SUMS.tolist(), *map(id, (*kept, traces_elsewhere.KEEPER.table, getattr(doubled, "last", None)))]


class SetOutOfSight(Base):
    def kept(self, x: Tensor) -> Tensor:
        traces_elsewhere.set_out_of_sight(x)
        return x


def test_what_cannot_be_removed_is_named() -> None:
    with pytest.raises(CaptureError, match=r"outside of itself, in the module tests.traces_elsewhere \(LAST\)"):
        structprune.shrink(built(SetOutOfSight), 0.3, images(2, 6))
    assert isinstance(traces_elsewhere.LAST, Ghost)


def test_a_failed_recording_leaves_no_trace_either() -> None:
    class Fails(InGlobal):
        def kept(self, x: Tensor) -> Tensor:
            super().kept(x)
            traces_elsewhere.keep_out_of_sight("x", [x])
            raise ValueError("no")

    with pytest.raises(CaptureError, match=r"ValueError: no at .*test_traces.py"):
        structprune.shrink(built(Fails), 0.3, images(2, 6))
    assert not CACHE
    assert not any(isinstance(each, Ghost) for kept in traces_elsewhere.registered() for each in kept)


# -- copies -------------------------------------------------------------------------------------------


class Stays(nn.Linear):
    """Its copy is it itself."""

    def __deepcopy__(self, memo: Any) -> Stays:
        return self


class WithStays(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Stays(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


def test_parts_whose_copy_is_the_original_are_refused() -> None:
    model, x = built(WithStays), images(2, 6)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UnsupportedModel, match=r"first.*copy"):
        structprune.shrink(model, 0.3, x, output="module")
    assert all(map(torch.equal, before.values(), model.state_dict().values()))
    assert model.first.out_features == 16
    graph = structprune.shrink(model, 0.3, x, output="graph")
    assert torch.equal(structprune.shrink(model, 0, x, output="graph")(x), model(x))
    assert graph(x).shape == (2, 3)


class Uncopyable(InGlobal):
    """Holds what cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.calls = 0
        self.last: Any = None
        self.tables: dict[str, list[Any]] = {"x": []}

    def kept(self, x: Tensor) -> Tensor:
        with self.lock:
            self.calls += 1
            self.tables["x"].append(x)
            self.last = x
            return super().kept(x)


def test_models_that_cannot_be_copied_are_put_back() -> None:
    model, x = built(Uncopyable).train(), images(2, 6)
    model.second.eval()
    expected = model(x).detach()
    emptied()
    model.calls, model.last, model.tables = 0, None, {"x": []}
    analysis = structprune.analyze(model, x)
    assert len(analysis.groups) == 1
    assert (model.calls, model.last, model.tables) == (0, None, {"x": []})
    assert [module.training for module in model.modules()] == [True, True, False]
    assert torch.equal(model(x), expected)


def test_a_forward_that_knows_the_model_by_itself() -> None:
    """A closure over the original's modules runs these, whatever copy it hangs on: they are put back."""
    model, x = built(InAttributes).train(), images(2, 6)

    def forward(x: Tensor) -> Tensor:
        model.calls += 1
        model.config.last = model.first(x)
        return InAttributes.forward(model, x)

    model.forward = forward  # type: ignore[method-assign]
    assert len(structprune.analyze(model, x).groups) == 1
    assert model.calls == 0 and model.config.last is None and not model.config.sizes
    assert all(module.training for module in model.modules())
    small = structprune.shrink(model, 0.3, x, output="graph")
    assert small(x).shape == (2, 3) and model.config.last is None


def test_a_rule_that_is_registered_later_is_seen() -> None:
    """For a composite custom operator, which was taken apart until then."""
    torch.library.define("traces::mix", "(Tensor x, Tensor weight) -> Tensor")
    torch.library.impl("traces::mix", "CompositeImplicitAutograd", lambda x, weight: (x @ weight.mT) * 1.0)

    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.weight = nn.Linear(6, 16), nn.Parameter(torch.randn(4, 16))

        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.traces.mix(self.first(x), self.weight)

    model, x = built(Mixing), images(2, 6)
    before = [op.name for op in structprune.analyze(model, x).solution.graph.ops]
    structprune.multilinear("traces::mix", "... i, o i -> ... o")
    after = [op.name for op in structprune.analyze(model, x).solution.graph.ops]
    assert "matmul" in before and "traces::mix" not in before
    assert after == ["linear", "traces::mix"]


# -- memory that has two names ------------------------------------------------------------------------


class Transposed(nn.Module):
    """A square weight and its transpose in the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.w, self.last = nn.Linear(6, 16), nn.Parameter(torch.randn(16, 16) / 4), nn.Linear(16, 3)
        self.wt = self.w.detach().t()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(((self.first(x) @ self.w).relu() @ self.wt).relu())


class TiedByMemory(nn.Module):
    """Two parameters, one memory."""

    def __init__(self) -> None:
        super().__init__()
        self.enc, self.free, self.dec = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 6)
        self.dec.weight = nn.Parameter(self.enc.weight.t())

    def forward(self, x: Tensor) -> Tensor:
        return self.dec(self.free(self.enc(x).relu()).relu())


class InOneFlat(nn.Module):
    """Parameters side by side in one piece of memory are not tied."""

    def __init__(self) -> None:
        super().__init__()
        flat = torch.randn(16 * 6 + 3 * 16, dtype=torch.float64)
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)
        self.first.weight = nn.Parameter(flat[:96].view(16, 6))
        self.second.weight = nn.Parameter(flat[96:].view(3, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


@pytest.mark.parametrize("output", ["module", "graph"])
@pytest.mark.parametrize("kind", [Transposed, TiedByMemory])
def test_memory_with_two_names_stays_whole(kind: type[nn.Module], output: str) -> None:
    model, x = kind().double().eval(), images(4, 6)
    if kind is Transposed:
        model.wt = model.w.detach().t()
    else:
        model.dec.weight.data = model.enc.weight.data.t()
    frozen = [cause.reason for cause, _ in structprune.analyze(model, x).frozen]
    assert any("as_strided" in reason for reason in frozen)
    with pytest.raises(UnsupportedRatio):
        structprune.shrink(model, 0.9, x, output=output)
    whole = structprune.shrink(model, 0, x, output=output, verify="numeric")
    assert torch.equal(whole(x), model(x))
    with torch.no_grad():
        for each in (model, whole):
            (each.w if kind is Transposed else each.enc.weight).mul_(2)
    assert torch.equal(whole(x), model(x))


def test_neighbours_in_memory_are_not_tied() -> None:
    model, x = InOneFlat().double().eval(), images(4, 6)
    small = structprune.shrink(model, 0.3, x, verify="numeric")
    assert small.first.out_features < 16


class Builds(OrderedDict[str, Any]):
    """A mapping that builds what it is asked for, as some libraries' tables of classes do."""

    def __getitem__(self, key: str) -> Any:
        return super().__getitem__(key)()

    def copy(self) -> Any:
        raise TypeError("it cannot be copied")


TABLE_OF_CLASSES = Builds({"relu": nn.ReLU, "needs": nn.Linear})


def test_a_global_mapping_that_builds_what_it_is_asked_for_stays_what_it_is() -> None:
    class Looks(Base):
        def kept(self, x: Tensor) -> Tensor:
            TABLE_OF_CLASSES["new"] = nn.Tanh  # type: ignore[assignment]
            return TABLE_OF_CLASSES["relu"](x)

    before = list(OrderedDict.items(TABLE_OF_CLASSES))
    structprune.shrink(Looks().eval(), 0.3, torch.randn(2, 5, 6))
    assert list(OrderedDict.items(TABLE_OF_CLASSES)) == before
