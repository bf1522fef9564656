"""Several threads shrink at once, and others run models meanwhile: nobody notices anybody."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import structprune

THREADS = (2, 4)
TORCHS = (
    vars(torch._ops.OpOverload)["_get_dispatch"],
    vars(torch.autograd.Function)["apply"],
    torch.backends.mha.get_fastpath_enabled,
)


def what_is_torchs() -> tuple[Any, ...]:
    return (
        vars(torch._ops.OpOverload)["_get_dispatch"],
        vars(torch.autograd.Function)["apply"],
        torch.backends.mha.get_fastpath_enabled,
    )


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * 2


class Mixed(nn.Module):
    """Convolutions, an encoder layer with a fused shortcut, an autograd.Function."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, 32, 3, padding=1)
        self.encoder = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(F.relu(self.norm(self.first(x)))).flatten(2).transpose(1, 2)
        return self.head(Twice.apply(self.encoder(x)).mean(1))


def built(width: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(width)
        return Mixed(width).double().eval().requires_grad_(False)


def example() -> Tensor:
    return torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def often_switched() -> Iterator[None]:
    """Threads take turns a thousand times as often as they would, so that each meets the others inside."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)
    assert what_is_torchs() == TORCHS


def shrunk(model: nn.Module) -> list[Tensor]:
    x = example()
    own = structprune.shrink(model, 0.4, x, output="module", verify="numeric")
    graph = structprune.shrink(model, 0.4, x, output="graph")
    assert type(own) is Mixed and isinstance(graph, torch.fx.GraphModule)
    return [own(x), graph(x), *own.state_dict().values()]


@pytest.mark.parametrize("count", THREADS)
def test_threads_shrink_at_once_and_get_what_one_alone_gets(count: int) -> None:
    models = [built(16 + 4 * k) for k in range(count)]
    alone = [shrunk(model) for model in models]
    together = at_once([lambda model=model: shrunk(model) for model in models])
    for expected, found in zip(alone, together, strict=True):
        assert len(expected) == len(found)
        assert all(map(torch.equal, expected, found))


@pytest.mark.parametrize("count", THREADS)
def test_models_run_meanwhile_and_notice_nothing(count: int) -> None:
    """Inference on the very models that are shrunk, with its fused kernels, under its own modes."""
    models, x = [built(16 + 4 * k) for k in range(count)], example()
    with torch.inference_mode():
        expected = [model(x) for model in models]
    done = threading.Event()

    def infer() -> int:
        runs = 0
        while not done.is_set() or not runs:
            for model, right in zip(models, expected, strict=True):
                with torch.inference_mode():
                    assert torch.equal(model(x), right)
                leaf = x.clone().requires_grad_()
                (gradient,) = torch.autograd.grad(Twice.apply(leaf).sum(), leaf)
                assert torch.equal(gradient, torch.full_like(x, 2))
                runs += 1
        return runs

    def shrink(model: nn.Module) -> Tensor:
        return structprune.shrink(model, 0.4, x, output="module")(x)

    with ThreadPoolExecutor(count + 1) as pool:
        running = pool.submit(infer)
        try:
            results = list(pool.map(shrink, models))
        finally:
            done.set()
        assert running.result() > 0
    for model, result in zip(models, results, strict=True):
        assert torch.equal(structprune.shrink(model, 0.4, x, output="module")(x), result)


class Raises(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        Twice.apply(self.first(x))
        raise RuntimeError("never")


def test_models_that_raise_leave_nothing_behind_in_any_thread() -> None:
    def fail() -> str:
        with pytest.raises(structprune.errors.CaptureError) as caught:
            structprune.shrink(Raises(), 0.4, torch.randn(2, 3))
        return str(caught.value)

    assert all("never" in message for message in at_once([fail] * 4))
    assert not nn.modules.module._global_forward_hooks and not nn.modules.module._global_forward_pre_hooks


def at_once(tasks: list[Callable[[], Any]]) -> list[Any]:
    """What some functions give, each in a thread of its own, all let go at one moment."""
    barrier = threading.Barrier(len(tasks))

    def run(task: Callable[[], Any]) -> Any:
        barrier.wait()
        return task()

    with ThreadPoolExecutor(len(tasks)) as pool:
        return list(pool.map(run, tasks))
