"""What a model can do in training that it does not in eval mode: whether its code may ask, and what it then does."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from structprune.frontends.torch.record.capture import record
from structprune.frontends.torch.record.kept import is_foreign
from structprune.frontends.torch.record.mode import adds_noise_alone, can_ask
from structprune.frontends.torch.record.record import Run
from structprune.frontends.torch.record.training import record_in_training

Forward = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(6, 8)
        self.norm, self.drop = nn.BatchNorm1d(8), nn.Dropout(0.3)
        self.heads, self.groups = 4, 2
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def depth(m: Net, h: Tensor) -> Tensor:
    """Stochastic depth as libraries write it: memory, filled by chance, scaled, multiplied."""
    if not m.training:
        return h
    kept = h.new_empty((h.shape[0], 1)).bernoulli_(0.5).div_(0.5)
    return h * kept


def noisy(m: Net, h: Tensor) -> Tensor:
    return h + torch.randn_like(h) if m.training else h


def in_heads(m: Net, h: Tensor) -> Tensor:
    return h.view(len(h), m.heads, -1).sum(1)


NOISE: dict[str, Forward] = {
    "the_same": lambda m, x: m.a(x) + m.b(x),
    "batch_norm": lambda m, x: m.norm(m.a(x)),
    "dropout": lambda m, x: m.drop(m.a(x)) + m.b(x),
    "functional": lambda m, x: F.dropout(m.a(x), 0.5, m.training),
    "only_then": lambda m, x: F.dropout(m.a(x), 0.5) if m.training else m.a(x),
    "depth": lambda m, x: in_heads(m, depth(m, m.a(x)) + m.b(x)),
    "drawn": lambda m, x: in_heads(m, noisy(m, m.a(x))),
    "scaled": lambda m, x: m.a(x) * torch.rand(x.shape[0], 1) / 0.5 if m.training else m.a(x),
    "attention": lambda m, x: F.scaled_dot_product_attention(m.a(x), m.b(x), m.a(x), dropout_p=0.2 * m.training),
}
MORE: dict[str, Forward] = {
    "another_tie": lambda m, x: in_heads(m, m.a(x)) + (m.a(x) - m.b(x) if m.training else 0 * m.b(x)).sum(),
    "another_number": lambda m, x: m.a(x).view(len(x), m.groups if m.training else m.heads, -1).sum(1).sum(-1),
    "another_tensor": lambda m, x: in_heads(m, m.b(x) if m.training else m.a(x)) + 0 * m.a(x).sum() * m.b(x).sum(),
    "another_order": lambda m, x: in_heads(m, m.a(x).relu() if m.training else m.a(x).tanh()),
    "compared": lambda m, x: m.a(x) * (2 if not m.training or m.heads > 3 else 3),
    "counted": lambda m, x: m.a(x) * (2 if not m.training or float(m.heads) > 3 else 3),
    "noise_of_a_width": lambda m, x: m.a(x) * torch.rand(8) if m.training else m.a(x),
    "memory_of_a_width": lambda m, x: m.a(x) * x.new_empty(1, 8).bernoulli_(0.5) if m.training else m.a(x),
    "noise_of_a_number": lambda m, x: m.a(x) * torch.rand(m.heads * 2) if m.training else m.a(x) * 1,
    "scaled_in_one": lambda m, x: m.a(x) / 0.5 if m.training else m.a(x) * 1,
    "other_output": lambda m, x: m.a(x) + 0 * m.b(x) if m.training else 0 * m.b(x),
    "another_axis": lambda m, x: (m.a(x) @ m.b(x).T if m.training else m.a(x) @ m.b(x).T.clone()).sum(),
}


def in_both(forward: Forward) -> bool:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, inputs = Net(forward), ((torch.randn(3, 6),), {})
    before = record(model, Run(inputs))
    return adds_noise_alone(before, record_in_training(model, inputs, before))


@pytest.mark.parametrize("name", NOISE)
def test_noise_changes_no_size(name: str) -> None:
    assert in_both(NOISE[name])


@pytest.mark.parametrize("name", MORE)
def test_anything_else_is_more_than_noise(name: str) -> None:
    assert not in_both(MORE[name])


# -- whether the code can ask ------------------------------------------------------------------------


def plain(m: Net, x: Tensor) -> Tensor:
    return m.norm(m.a(x)) + m.b(x)


def by_name(m: Net, x: Tensor) -> Tensor:
    return m.a(x) if getattr(m, "training") else m.b(x)  # noqa: B009  the word stands in a text alone


def through_another(m: Net, x: Tensor) -> Tensor:
    return depth(m, m.a(x))


def hooked(model: nn.Module) -> nn.Module:
    model.a.register_forward_hook(lambda m, args, result: result * 2 if m.training else result)
    return model


def with_helper(model: nn.Module) -> nn.Module:
    class Helper:
        def __call__(self, m: nn.Module) -> bool:
            return m.training

    model.helper = [Helper()]
    return model


def with_(**modules: nn.Module) -> nn.Module:
    model = Net(plain)
    for name, module in modules.items():
        model.add_module(name, module)
    return model


class Norm(nn.BatchNorm1d):
    """Torch's own, with more."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if self.training else 1)


def test_code_of_a_file_with_a_name_of_the_standard_library_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's `profile.py`: found first, where the standard library's is not imported."""
    forward = "    def forward(self, x):\n        return x if self.training else -x\n"
    source = f"from torch import nn\nclass Asks(nn.Module):\n{forward}"
    module = types.ModuleType("profile")
    module.__file__ = "/home/someone/profile.py"
    exec(compile(source, module.__file__, "exec"), vars(module))
    monkeypatch.setitem(sys.modules, "profile", module)
    is_foreign.cache_clear()
    try:
        assert can_ask(module.Asks())
    finally:
        is_foreign.cache_clear()


@pytest.mark.parametrize(
    ("build", "may"),
    [
        (lambda: Net(plain), False),
        (lambda: with_(c=nn.LSTM(8, 8), d=nn.Dropout2d(), e=nn.ModuleList([nn.GELU()])), False),
        (lambda: Net(by_name), True),
        (lambda: Net(through_another), True),
        (lambda: hooked(Net(plain)), True),
        (lambda: with_helper(Net(plain)), True),
        (lambda: with_(c=Norm(8)), True),
        (lambda: with_(c=nn.MultiheadAttention(8, 2)), True),
        (lambda: with_(c=nn.TransformerEncoderLayer(8, 2)), True),
        (lambda: with_(c=nn.utils.spectral_norm(nn.Linear(8, 8))), True),
        (lambda: with_(c=nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))), True),
    ],
    ids=["plain", "torchs", "by_name", "called", "hook", "helper", "subclass", "attention", "encoder", "old", "new"],
)
def test_code_that_never_says_the_word_cannot_ask(build: Callable[[], nn.Module], may: bool) -> None:
    assert can_ask(build()) == may
