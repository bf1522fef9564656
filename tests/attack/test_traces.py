"""Recording leaves no trace: in caches, in torch, in the state of chance, in other threads."""

from __future__ import annotations

import gc
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import structprune
from structprune.errors import StructpruneError
from structprune.graph.operator import RULES
from tests.attack.oracle import compare, differences, fingerprint, kept_slices, run
from tests.attack.traces import CACHES, Cached, GlobalWidthCached, WidthCached, empty_caches


@pytest.fixture(autouse=True)
def empty() -> Iterator[None]:
    empty_caches()
    yield
    empty_caches()


def example(length: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(2, length, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return Cached(CACHES[name]()).double().eval()


def expected(model: nn.Module, x: Tensor) -> Tensor:
    """What the model gives in a new process."""
    h = (x @ model.up.weight.T + model.up.bias).relu()
    return (h * torch.linspace(0.5, 1.5, x.shape[1], dtype=x.dtype)[:, None]) @ model.down.weight.T + model.down.bias


@pytest.mark.parametrize("call", ["analyze", "plan", "shrink", "graph"])
@pytest.mark.parametrize("name", CACHES)
def test_the_original_runs_as_before(name: str, call: str) -> None:
    """Cold caches: nothing ran before the model was recorded."""
    model, x = made(name), example()
    calls: dict[str, Callable[[], object]] = {
        "analyze": lambda: structprune.analyze(model, x),
        "plan": lambda: structprune.plan(model, 0.5, x, verify="numeric"),
        "shrink": lambda: structprune.shrink(model, 0.5, x),
        "graph": lambda: structprune.shrink(model, 0.5, x, output="graph"),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        calls[call]()
    with torch.no_grad():
        for length in (5, 7, 5):
            torch.testing.assert_close(model(example(length)), expected(model, example(length)), rtol=0, atol=1e-12)
    model.train()
    model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("is_warm", [False, True])
@pytest.mark.parametrize("name", CACHES)
def test_the_result_is_right_beside_the_original(name: str, is_warm: bool) -> None:
    model, x = made(name), example()
    if is_warm:
        model(x)
    small = structprune.shrink(model, 0.5, x)
    kept = kept_slices(model, small)
    for length in (5, 9, 5, 3):
        compare(model, small, kept, (example(length, 1),), f"length {length}")
        compare(model, small, kept, (example(length, 2),), f"length {length} again")


@pytest.mark.parametrize("is_warm", [False, True])
@pytest.mark.parametrize("make", [WidthCached, GlobalWidthCached])
def test_a_table_as_wide_as_a_layer(make: Callable[[], nn.Module], is_warm: bool) -> None:
    """One that both models share cannot serve both: refused, a graph, or kept whole; never wrong."""
    torch.manual_seed(0)
    model, x = make().double().eval(), example()
    if is_warm:
        model(x)
    before = run(model, (x,))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            small = structprune.shrink(model, 0.5, x)
    except StructpruneError:
        small = None
    assert torch.equal(run(model, (x,))[0], before[0])
    if small is not None:
        kept = kept_slices(model, small)
        for length in (5, 4, 5):
            compare(model, small, kept, (example(length, 3),), f"length {length}")


@pytest.mark.parametrize("name", ["attribute", "dictionary", "own_helper", "slots", "buffer", "logged"])
def test_what_hangs_on_the_model_stays_as_it_was(name: str) -> None:
    model, x = made(name), example()
    with torch.no_grad():
        model(x)
    before = fingerprint(model)
    structprune.shrink(model, 0.5, example(7))
    after = fingerprint(model)
    assert [key for key in after if before.get(key) != after[key]] == []


# -- torch, and the process -------------------------------------------------------------------------------------------------


def patched() -> list[object]:
    """What a recorder may be tempted to replace."""
    names = [
        (torch._ops.OpOverload, ("_get_dispatch", "__call__", "decompose")),
        (torch._ops.OpOverloadPacket, ("__call__", "__getattr__")),
        (torch.autograd.Function, ("apply",)),
        (torch, ("zeros", "ones", "empty", "arange", "tensor", "full", "rand", "randn", "where", "compile")),
        (torch.Tensor, ("item", "__bool__", "__int__", "__index__", "__torch_dispatch__", "__torch_function__", "shape")),
        (torch.Tensor, ("numpy", "tolist", "data_ptr", "data", "__deepcopy__", "to", "view", "size", "__len__")),
        (nn.Module, ("__call__", "_call_impl", "__getattr__", "__setattr__", "forward", "__delattr__", "_apply")),
        (nn.functional, ("linear", "scaled_dot_product_attention", "multi_head_attention_forward", "dropout")),
        (nn.MultiheadAttention, ("forward", "__call__")),
        (torch.nn.parameter.Parameter, ("__new__", "__deepcopy__")),
        (np, ("asarray", "array", "sqrt", "prod")),
        (sys.modules["math"], ("sqrt", "prod", "ceil", "floor", "isqrt")),
        (sys.modules["builtins"], ("isinstance", "int", "range", "len", "float", "max", "min", "type")),
    ]
    return [(owner, name, getattr(owner, name, None)) for owner, each in names for name in each]


def surroundings() -> list[object]:
    return [
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch._C._len_torch_dispatch_stack(),
        torch._C._len_torch_function_stack(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.get_num_threads(),
        gc.isenabled(),
        sys.getrecursionlimit(),
        signal.getsignal(signal.SIGINT),
        tuple(map(str, warnings.filters)),
        sys.gettrace(),
        sys.getprofile(),
        sys.stdout,
        sys.stderr,
        random.getstate(),
        torch.get_rng_state().tolist(),
        [each.tolist() if isinstance(each, np.ndarray) else each for each in np.random.get_state()],
    ]


class Raises(nn.Module):
    def __init__(self, error: BaseException, after: int) -> None:
        super().__init__()
        self.error, self.after = error, after
        self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.after):
            x = self.up(torch.dropout(x, 0.5, False))
        raise self.error


def ordinary(call: Callable[..., object]) -> None:
    call(made("none"), 0.5, example())


def raising(error: BaseException, after: int) -> Callable[[Callable[..., object]], None]:
    def act(call: Callable[..., object]) -> None:
        with pytest.raises((StructpruneError, type(error))):
            call(Raises(error, after).double(), 0.5, example())

    return act


ACTS = {
    "shrink": ordinary,
    "error": raising(ValueError("no"), 0),
    "error_later": raising(ValueError("no"), 1),
    "interrupt": raising(KeyboardInterrupt(), 0),
    "interrupt_later": raising(KeyboardInterrupt(), 1),
    "exit": raising(SystemExit(3), 0),
    "exit_later": raising(SystemExit(3), 1),
    "generator_exit": raising(GeneratorExit(), 0),
    "recursion": raising(RecursionError("deep"), 0),
    "memory": raising(MemoryError(), 0),
    "stop": raising(StopIteration(), 0),
    "assertion": raising(AssertionError(), 1),
}


@pytest.mark.parametrize("act", ACTS)
def test_torch_and_the_process_are_as_before(act: str) -> None:
    taken: list[list[object]] = []

    def call(model: nn.Module, *rest: object) -> object:
        taken.append(patched())
        taken.append(surroundings())
        return structprune.shrink(model, *rest, verify="numeric")

    ACTS[act](call)
    names, state = taken
    assert [each[:2] for each, now in zip(names, patched(), strict=True) if each[2] is not now[2] and each[2] != now[2]] == []
    assert [a for a, b in zip(state, surroundings(), strict=True) if a != b] == []


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("call", ["analyze", "shrink"])
def test_threads_at_once(count: int, call: str) -> None:
    """Each thread has its own model; the results are those of one thread, and torch is whole afterwards."""
    names = patched()
    models = [made("global") for _ in range(count)]
    alone = [run(structprune.shrink(model, 0.5, example()), (example(),)) for model in models]
    results: list[object] = [None] * count
    start = threading.Barrier(count)

    def work(place: int) -> None:
        start.wait()
        try:
            for _ in range(3):
                if call == "analyze":
                    structprune.analyze(models[place], example())
                small = structprune.shrink(models[place], 0.5, example(), verify="numeric")
            results[place] = run(small, (example(),))
        except BaseException as error:  # it is looked at below
            results[place] = error

    threads = [threading.Thread(target=work, args=(place,)) for place in range(count)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert [each for each in results if isinstance(each, BaseException)] == []
    for found, wanted in zip(results, alone, strict=True):
        assert not differences(wanted, found)
    assert [each[:2] for each, now in zip(names, patched(), strict=True) if each[2] is not now[2] and each[2] != now[2]] == []


def test_one_model_in_two_threads() -> None:
    model = made("attribute")
    wanted = run(structprune.shrink(model, 0.5, example()), (example(),))
    found: list[object] = []

    def work() -> None:
        try:
            found.append(run(structprune.shrink(model, 0.5, example()), (example(),)))
        except BaseException as error:  # it is looked at below
            found.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert [each for each in found if isinstance(each, BaseException)] == []
    assert all(not differences(wanted, each) for each in found)


def test_another_thread_computes_meanwhile() -> None:
    """Tensors that another thread makes while a model is recorded are real, and right."""
    stop, wrong = threading.Event(), []
    model = made("none")
    wanted = model(example()).detach()

    def work() -> None:
        other = nn.Linear(6, 6).double()
        while not stop.is_set():
            x = torch.ones(3, 6, dtype=torch.float64)
            y = other(x) - x @ other.weight.T - other.bias
            if type(y) is not Tensor or y.is_meta or not torch.allclose(y, torch.zeros_like(y)):
                wrong.append(type(y))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(20):
            structprune.shrink(model, 0.5, example())
    except BaseException:
        stop.set()
        raise
    finally:
        stop.set()
        thread.join()
    assert not wrong
    assert torch.equal(model(example()), wanted)


def test_hooks_run_on_the_original_as_often_as_it_ran() -> None:
    """What hooks keep is real, or they did not run."""
    model, seen = made("none"), []
    model.up.register_forward_hook(lambda module, inputs, output: seen.append(output))
    structprune.shrink(model, 0.5, example())
    assert all(not each.is_meta and type(each) is Tensor for each in seen)
    with torch.no_grad():
        for each in seen:
            assert torch.isfinite(each + 1).all()


def test_no_tensor_without_data_survives() -> None:
    def ghosts() -> list[Tensor]:
        gc.collect()
        return [each for each in gc.get_objects() if isinstance(each, Tensor) and each.is_meta]

    model = made("none")
    before = ghosts()
    small = structprune.shrink(model, 0.5, example(), verify="numeric")
    assert len(ghosts()) == len(before)
    assert all(not each.is_meta for each in small.parameters())


@pytest.fixture
def rule_of_mix() -> Iterator[Callable[[], None]]:
    yield lambda: structprune.multilinear("attacked::mix", "... i, o i -> ... o")
    RULES.pop("attacked::mix", None)


def test_a_rule_registered_after_a_first_analysis_is_used(rule_of_mix: Callable[[], None]) -> None:
    """A composite operator was taken apart before; now it has a rule."""
    library = torch.library.Library("attacked", "DEF")
    library.define("mix(Tensor x, Tensor w) -> Tensor")
    library.impl("mix", lambda x, w: x @ w.T, "CompositeImplicitAutograd")

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(16, 6, dtype=torch.float64))
            self.v = nn.Parameter(torch.randn(3, 16, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.attacked.mix(torch.ops.attacked.mix(x, self.w), self.v)

    model = Mixed()
    structprune.analyze(model, example())
    rule_of_mix()
    ops = structprune.analyze(model, example()).solution.graph.ops
    assert "attacked::mix" in {op.name for op in ops} | {op.kind for op in ops}
    small = structprune.shrink(model, 0.5, example())
    compare(model, small, kept_slices(model, small), (example(seed=4),), "with a rule")
