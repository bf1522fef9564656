"""The rows of the rule table: every operator that has an entry, between layers that can be pruned.

A row's `axes` is what the analysis must find around the operator, in the notation of the rules: a
letter is a width that can be pruned, a number is a size that must stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from structprune.algebra.axis import Axis, Dim, Product, Reordered, Sum
from structprune.graph.graph import Op, Value
from structprune.views.analysis import Analysis

# What enters: the shape of the input, and the layer that gives it twelve prunable channels or features.
FORMS: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module]]] = {
    "line": ((2, 3, 4), lambda: nn.Conv1d(3, 12, 1)),
    "image": ((2, 3, 4, 4), lambda: nn.Conv2d(3, 12, 1)),
    "volume": ((2, 3, 4, 4, 4), lambda: nn.Conv3d(3, 12, 1)),
    "vector": ((2, 6), lambda: nn.Linear(6, 12)),
    "tokens": ((2, 5, 6), lambda: nn.Linear(6, 12)),
    "ids": ((2, 5), nn.Identity),
}
CONVOLUTIONS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


@dataclass(frozen=True)
class Row:
    """One operator, or several that are called alike. `run` gets the operator, its input, its weights, its indices."""

    names: str
    run: Callable[..., Tensor]
    axes: str
    form: str = "image"
    weights: tuple[tuple[int, ...], ...] = ()
    over: str = ""  # what the layer behind sums over: "channel" or "last"
    zero: bool = True  # what was removed is zero behind the operator: a bare sum over it changes nothing
    indices: tuple[tuple[int, ...], ...] = ()  # buffers of whole numbers
    why: str = ""  # part of the reason for which the width is frozen
    exact: bool = True  # False: statistics are taken over a prunable axis

    def each(self) -> Iterator[tuple[str, Row]]:
        for name in self.names.split():
            yield name, self


class Total(nn.Module):
    """The bare sum over an axis."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(self.axis)


class Sandwich(nn.Module):
    """A layer, the operator, and a layer, or a bare sum, over what it gives."""

    def __init__(self, name: str, row: Row, is_summed: bool) -> None:
        super().__init__()
        packet = torch.ops.aten
        self.operator = getattr(packet, name if hasattr(packet, name) else f"{name}_")
        self.run = row.run
        self.first = FORMS[row.form][1]()
        self.weights = nn.ParameterList(torch.randn(each) for each in row.weights)
        self.indices = nn.Module()
        for number, index in enumerate(row.indices):
            self.indices.register_buffer(str(number), torch.tensor(index))
        self.double()
        with torch.no_grad():
            given = self.middle(self.first(example(row)))
        over = row.over or ("last" if row.form in ("vector", "tokens", "ids") or given.dim() < 3 else "channel")
        axis = 1 if over == "channel" else given.dim() - 1
        if is_summed:
            self.last = Total(axis)
        elif over == "channel":
            self.last = CONVOLUTIONS[given.dim()](given.shape[1], 5, 1)
        else:
            self.last = nn.Linear(given.shape[-1], 5)
        self.double().eval()

    def middle(self, x: Tensor) -> Tensor:
        return self.run(self.operator, x, *self.weights, *self.indices.buffers())

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)))


def example(row: Row) -> Tensor:
    shape = FORMS[row.form][0]
    generator = torch.Generator().manual_seed(1)
    if row.form == "ids":
        return torch.randint(0, 10, shape, generator=generator)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def build(name: str, row: Row, is_summed: bool = False) -> tuple[Sandwich, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Sandwich(name, row, is_summed), example(row)


def find_op(analysis: Analysis, name: str) -> Op:
    """The last operator of that name, in place or not, between the layers."""
    ops = analysis.solution.graph.ops
    found = [op for op in ops if op.name in (name, f"{name}_") and op.where.module not in ("first", "last")]
    assert found, f"{name} is not in the graph: {[op.name for op in analysis.solution.graph.ops]}"
    return found[-1]


def axes_of(analysis: Analysis, op: Op) -> str:
    """The axes around an operator: a letter for a width that can go, a number for what must stay.

    `~` stands before an axis in another order.
    """
    letters: dict[Dim, str] = {}
    solution = analysis.solution

    def show(axis: Axis) -> str:
        match axis:
            case Dim():
                if axis in solution.system.frozen:
                    return str(axis.size)
                return letters.setdefault(axis, "abcdefghijklmnopqrstuvwxyz"[len(letters)])
            case Product(factors):
                return f"({' '.join(map(show, factors))})" if factors else "1"
            case Sum(parts):
                return f"({' + '.join(map(show, parts))})"
            case Reordered(inner):
                return f"~{show(inner)}"

    def value(each: Value | None) -> str:
        return "-" if each is None else " ".join(map(show, solution.expanded(each)))

    return f"{', '.join(map(value, op.inputs))} -> {', '.join(map(value, op.outputs))}"


def heads(x: Tensor, count: int = 3) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def attended(op: Any, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return op(heads(x @ q), heads(x @ k), heads(x @ v)).transpose(1, 2).flatten(2)


def states(x: Tensor, width: int, count: int = 1) -> list[Tensor]:
    return [x.new_zeros(1, 2, width) for _ in range(count)]


S = slice(None)
F64 = torch.float64
INDEX = torch.tensor([2, 0, 3])
SHUFFLED = (5, 0, 11, 2, 7, 1, 10, 3, 8, 4, 9, 6)
GRID = torch.rand(2, 3, 3, 2, dtype=F64, generator=torch.Generator().manual_seed(2)) * 2 - 1
GRID3 = torch.rand(2, 3, 3, 3, 3, dtype=F64, generator=torch.Generator().manual_seed(2)) * 2 - 1


# fmt: off
ROWS = (
    Row("view reshape _unsafe_view _reshape_copy view_copy", lambda o, x: o(x, [2, 12, 16]), "2 a 4 4 -> 2 a (4 4)"),
    Row("view reshape", lambda o, x: o(x, [2, -1]), "2 a 4 4 -> 2 (a 4 4)", zero=False),
    Row("view reshape", lambda o, x: o(x, [2, 5, 3, 4]).sum(3), "2 5 (a b) -> 2 5 a b", "tokens"),
    # Each axis by what it is made of: the inner factor is zero, the outer one is mixed with places that are not.
    Row("view reshape", lambda o, x: o(x, [2, 15, 4]).sum(2), "2 5 (a b) -> 2 (5 a) b", "tokens", zero=False),
    Row("flatten", lambda o, x: o(x, 1), "2 a 4 4 -> 2 (a 4 4)", zero=False),
    Row("view_as reshape_as", lambda o, x: o(x, x.flatten(2)), "2 a 4 4, 2 a (4 4) -> 2 a (4 4)"),
    Row("view_as reshape_as", lambda o, x, w: o(x, w) * w, "2 (3 a), 2 3 a -> 2 3 a", "vector", ((2, 3, 4),)),
    Row("unflatten", lambda o, x: o(x, 1, [3, 4]).sum(2), "2 (a b) 4 4 -> 2 a b 4 4"),
    Row("pixel_shuffle", lambda o, x: o(x, 2), "2 (a 2 2) 4 4 -> 2 a (4 2) (4 2)"),
    Row("pixel_unshuffle", lambda o, x: o(x, 2), "2 a (2 2) (2 2) -> 2 (a 2 2) 2 2", zero=False),
    Row("channel_shuffle", lambda o, x: o(x, 3), "2 (3 a) 4 4 -> 2 (a 3) 4 4"),
    Row("im2col", lambda o, x: o(x, [3, 3], [1, 1], [1, 1], [1, 1]), "2 a 4 4 -> 2 (a 9) 16"),
    Row("col2im", lambda o, x: o(x, [3, 3], [2, 2], [1, 1], [0, 0], [1, 1]), "2 (a 4) 4 -> 2 a 3 3", "line"),
    Row("permute", lambda o, x: o(x, [0, 2, 3, 1]), "2 a 4 4 -> 2 4 4 a", over="last"),
    Row("transpose swapaxes swapdims movedim", lambda o, x: o(x, 1, 3), "2 a 4 4 -> 2 4 4 a", over="last"),
    Row("t numpy_T mT adjoint", lambda o, x, w: x @ o(w), "a b -> b a", "vector", ((7, 12),)),
    Row("unsqueeze", lambda o, x: o(x, 1).flatten(1, 2), "2 a 4 4 -> 2 1 a 4 4"),
    Row("squeeze", lambda o, x: o(x[:, None], 1), "2 1 a 4 4 -> 2 a 4 4"),
    # -- the same again
    Row("contiguous clone detach detach_copy alias lift lift_fresh lift_fresh_copy resolve_conj resolve_neg positive "
        "data",
        lambda o, x: o(x), "2 a 4 4 -> 2 a 4 4"),
    Row("dropout feature_dropout alpha_dropout", lambda o, x: o(x, 0.5, False), "2 a 4 4 -> 2 a 4 4"),
    Row("native_dropout", lambda o, x: o(x, 0.5, False)[0], "2 a 4 4 -> 2 a 4 4, 2 a 4 4"),
    Row("_to_copy", lambda o, x: o(x, dtype=F64), "2 a 4 4 -> 2 a 4 4"),
    Row("to", lambda o, x: o(x, torch.float32).double(), "2 a 4 4 -> 2 a 4 4"),
    Row("type_as", lambda o, x: o(x.float(), x), "2 a 4 4 -> 2 a 4 4"),
    Row("fake_quantize_per_tensor_affine", lambda o, x: o(x.float(), 0.5, 0, -8, 7).double(), "2 a 4 4 -> 2 a 4 4"),
    Row("requires_grad", lambda o, x: o(x.detach(), True), "2 a 4 4 -> 2 a 4 4"),
    Row("bernoulli", lambda o, x: o((x > 0).double()), "2 a 4 4 -> 2 a 4 4", zero=False),
    Row("empty_like", lambda o, x: o(x).copy_(x), "2 a 4 4 -> 2 a 4 4"),
    Row("rand_like randn_like", lambda o, x: o(x) * 0 + x, "2 a 4 4 -> 2 a 4 4", zero=False),
    Row("rand_like", lambda o, x: o(x).ceil() + x, "2 a 4 4 -> 2 a 4 4", zero=False),
    Row("randn_like", lambda o, x: o(x).square().sign() + x, "2 a 4 4 -> 2 a 4 4", zero=False),
    Row("uniform_ normal_ exponential_", lambda o, x: o(x.clone()) + x, "2 a 4 4 -> 2 a 4 4", zero=False),
    Row("rand randn", lambda o, x: o([2, 12, 4, 4], dtype=F64) + x, " -> 2 a 4 4", zero=False),
    Row("zeros_like", lambda o, x: o(x) + x, "2 a 4 4 -> 2 a 4 4"),
    Row("ones_like", lambda o, x: o(x) + x, "2 a 4 4 -> 2 a 4 4", zero=False),
    Row("ones_like", lambda o, x: o(x) * x, "2 a 4 4 -> 2 a 4 4"),
    Row("full_like", lambda o, x: o(x, 2.0) * x, "2 a 4 4 -> 2 a 4 4"),
    Row("zeros ones", lambda o, x: o([2, 12, 4, 4], dtype=F64) * x, " -> 2 a 4 4"),
    Row("zeros", lambda o, x: o([2, 12, 4, 4], dtype=F64) + x, " -> 2 a 4 4"),
    Row("ones", lambda o, x: o([2, 12, 4, 4], dtype=F64) + x, " -> 2 a 4 4", zero=False),
    Row("full", lambda o, x: o([2, 12, 4, 4], 2.0, dtype=F64) * x, " -> 2 a 4 4"),
    Row("empty", lambda o, x: o([2, 12, 4, 4], dtype=F64).fill_(2.0) * x, " -> 2 a 4 4"),
    Row("new_zeros new_ones", lambda o, x: o(x, [2, 12, 4, 4]) * x, " -> 2 a 4 4"),
    Row("new_full", lambda o, x: o(x, [2, 12, 4, 4], 2.0) * x, " -> 2 a 4 4"),
    Row("new_empty", lambda o, x: o(x, [2, 12, 4, 4]).fill_(2.0) * x, " -> 2 a 4 4"),
    Row("zero_", lambda o, x: o(x.clone()) + x, "2 a 4 4 -> 2 a 4 4"),
    Row("fill_", lambda o, x: o(x.clone(), 2.0) + x, "2 a 4 4 -> 2 a 4 4", zero=False),
    Row("fill_", lambda o, x: o(x.clone(), 2.0) * x, "2 a 4 4 -> 2 a 4 4"),
    # -- parts
    Row("cat concat concatenate", lambda o, x: o([x, x.relu()], 1), "2 a 4 4, 2 a 4 4 -> 2 (a + a) 4 4"),
    Row("cat", lambda o, x: o([x[:, :, :2], x], 2), "2 a 2 4, 2 a (2 + 2) 4 -> 2 a (2 + 2 + 2) 4"),
    Row("stack", lambda o, x: o([x, x.relu()], 1).flatten(1, 2), "2 a 4 4, 2 a 4 4 -> 2 2 a 4 4", zero=False),
    Row("split unsafe_split split_copy", lambda o, x: torch.cat(o(x, 5, 1)[::-1], 1),
        "2 (a + b + c) 4 4 -> 2 a 4 4, 2 b 4 4, 2 c 4 4"),
    Row("chunk unsafe_chunk tensor_split", lambda o, x: sum(o(x, 3, 1)),
        "2 (a + a + a) 4 4 -> 2 a 4 4, 2 a 4 4, 2 a 4 4"),
    Row("tensor_split", lambda o, x: torch.cat(o(x, 5, 1)[1:], 1),
        "2 (a + b + c + d + e) 4 4 -> 2 a 4 4, 2 b 4 4, 2 c 4 4, 2 d 4 4, 2 e 4 4"),
    Row("split_with_sizes split_with_sizes_copy", lambda o, x: torch.cat(o(x, [4, 8], 1)[::-1], 1),
        "2 (a + b) 4 4 -> 2 a 4 4, 2 b 4 4"),
    Row("unbind", lambda o, x: torch.mul(*o(x, 3)[:2]), "2 a 4 4 -> 2 a 4, 2 a 4, 2 a 4, 2 a 4"),
    Row("unbind", lambda o, x: o(x.unflatten(1, (2, 6)), 1)[1], "2 2 a 4 4 -> 2 a 4 4, 2 a 4 4"),
    Row("slice slice_copy", lambda o, x: o(x, 1, 2, 9), "2 (a + b + c) 4 4 -> 2 b 4 4"),
    Row("slice", lambda o, x: o(x, 1, -9, -2), "2 (a + b + c) 4 4 -> 2 b 4 4"),
    Row("slice", lambda o, x: o(x, 1, 0, 12, 3), "2 (a 3) 4 4 -> 2 a 4 4"),
    Row("slice", lambda o, x: o(x, 1, 1, 12, 3), "2 (a 3) 4 4 -> 2 a 4 4"),
    Row("slice", lambda o, x: o(x, 1, 4, 11, 3), "2 (a + (b 3)) 4 4 -> 2 b 4 4"),
    Row("slice", lambda o, x: o(x, 1, 2, 9, 5), "2 ((a 5) + b) 4 4 -> 2 a 4 4"),
    Row("slice", lambda o, x: o(x, 1, 0, 12, 5), "2 ((a 5) + 2) 4 4 -> 2 (a + 1) 4 4"),
    Row("slice", lambda o, x: o(x, 3, 1, 9), "2 a 4 (1 + 3) -> 2 a 4 3"),
    Row("narrow", lambda o, x: o(x, 1, 2, 7), "2 (a + b + c) 4 4 -> 2 b 4 4"),
    Row("narrow", lambda o, x: o(x, 1, 0, 12), "2 a 4 4 -> 2 a 4 4"),
    Row("slice", lambda o, x: o(x, 1, 0, 12), "2 a 4 4 -> 2 a 4 4"),
    Row("select select_copy", lambda o, x: o(x, 3, 1), "2 a 4 (1 + 1 + 2) -> 2 a 4"),
    Row("select", lambda o, x: o(x, 1, 3)[:, None], "2 (a + 1 + b) 4 4 -> 2 4 4"),
    Row("expand broadcast_to expand_copy", lambda o, x: o(x[:, :, None, None], [2, 12, 3, 3]),
        "2 a 1 1 -> 2 a 3 3", "vector", over="channel"),
    Row("expand", lambda o, x: o(x.sum(1, True), [2, 6, 4, 4]), "2 1 4 4 -> 2 a 4 4", zero=False),
    Row("expand_as", lambda o, x: o(x.mean((2, 3), True), x), "2 a 1 1, 2 a 4 4 -> 2 a 4 4", zero=False),
    Row("expand_as", lambda o, x: o(x.mean(1, True), x) * x, "2 1 4 4, 2 a 4 4 -> 2 a 4 4", exact=False),
    Row("repeat tile", lambda o, x: o(x, [1, 2, 1, 1]), "2 a 4 4 -> 2 (b a) 4 4", zero=False),
    Row("repeat tile", lambda o, x: o(x, [3, 1, 1, 1]), "2 a 4 4 -> (3 2) a 4 4"),
    Row("repeat tile", lambda o, x: o(x[:, None], [1, 4, 1])[:, 1:], "2 1 a -> 2 (1 + 3) a", "vector"),
    Row("repeat", lambda o, x, w: o(w, [2, 1]) * x, "a -> 2 a", "vector", ((12,),)),
    Row("repeat_interleave", lambda o, x: o(x, 2, 1), "2 a 4 4 -> 2 (a b) 4 4", zero=False),
    Row("pad", lambda o, x: o(x, [1, 1, 1, 1]), "2 a 4 4 -> 2 a (1 + 4 + 1) (1 + 4 + 1)"),
    Row("pad", lambda o, x: o(x, [1, 1, 1, 1], "reflect"), "2 a 4 4 -> 2 a 6 6"),
    Row("pad constant_pad_nd", lambda o, x: o(x, [0, 0, 0, 0, 2, 3]), "2 a 4 4 -> 2 (b + a + c) 4 4"),
    Row("constant_pad_nd", lambda o, x: o(x, [0, 0, 0, 0, 2, 3], 1.5), "2 a 4 4 -> 2 (b + a + c) 4 4", zero=False),
    Row("constant_pad_nd", lambda o, x: o(x, [0, 0, 0, 0, -2, 3]),
        "2 12 4 4 -> 2 13 4 4", why="constant_pad_nd mixes its positions"),
    Row("reflection_pad1d replication_pad1d", lambda o, x: o(x, [1, 1]), "2 a 4 -> 2 a 6", "line"),
    Row("reflection_pad2d replication_pad2d", lambda o, x: o(x, [1, 1, 1, 1]), "2 a 4 4 -> 2 a 6 6"),
    # -- taken over an axis
    Row("_fft_r2c", lambda o, x: o(x, [2], 0, True).abs(), "2 a 4 4 -> 2 a 3 4"),
    Row("_fft_c2c", lambda o, x: o(torch.complex(x, x), [2, 3], 0, True).abs(), "2 a 4 4 -> 2 a 4 4"),
    Row("_fft_c2c", lambda o, x: o(torch.complex(x, x), [1, 2], 0, True).abs(),
        "2 12 4 4 -> 2 12 4 4", why="mixes its positions"),
    Row("_fft_c2r", lambda o, x: o(torch.complex(x, x), [2], 0, 6), "2 a 4 4 -> 2 a 6 4"),
    Row("view_as_complex", lambda o, x: o(x.unflatten(3, (2, 2))).abs(), "2 a 4 2 2 -> 2 a 4 2"),
    Row("view_as_real", lambda o, x: o(torch.complex(x, x.relu())).sum(4), "2 a 4 4 -> 2 a 4 4 2"),
    Row("softmax log_softmax _safe_softmax", lambda o, x: o(x, 2), "2 a 4 4 -> 2 a 4 4", zero=False),
    Row("softmax log_softmax _safe_softmax", lambda o, x: o(x, 1), "2 12 4 4 -> 2 12 4 4", why="is taken over it"),
    Row("_softmax _log_softmax", lambda o, x: o(x, 2, False), "2 a 4 4 -> 2 a 4 4", zero=False),
    Row("_softmax _log_softmax", lambda o, x: o(x, 1, False), "2 12 4 4 -> 2 12 4 4", why="is taken over it"),
    Row("cumsum cumprod", lambda o, x: o(x, 2), "2 a 4 4 -> 2 a 4 4"),
    Row("logcumsumexp", lambda o, x: o(x, 2), "2 a 4 4 -> 2 a 4 4", zero=False),
    Row("cumsum cumprod logcumsumexp", lambda o, x: o(x, 1), "2 12 4 4 -> 2 12 4 4", why="orders its positions"),
    Row("cummax", lambda o, x: o(x, 2)[0], "2 a 4 4 -> 2 a 4 4, 2 a 4 4"),
    Row("roll", lambda o, x: o(x, [1], [2]), "2 a 4 4 -> 2 a 4 4"),
    Row("roll", lambda o, x: o(x, [5], [1]), "2 (a + b) 4 4 -> 2 (b + a) 4 4"),
    Row("roll", lambda o, x: o(x, [-17, 1], [1, 3]), "2 (a + b) 4 4 -> 2 (b + a) 4 4"),
    Row("roll", lambda o, x: o(x, [24], [1]), "2 a 4 4 -> 2 a 4 4"),
    Row("roll", lambda o, x: o(x, [4], [1]) + x, "2 (a + a + a) 4 4 -> 2 (a + a + a) 4 4"),
    Row("roll", lambda o, x: o(x, [5], [1]) + x, "2 (7 + 5) 4 4 -> 2 (5 + 7) 4 4", why="around a cycle"),
    Row("roll", lambda o, x: o(x, [5]), "2 12 4 4 -> 2 12 4 4", why="it rolls all axes as one"),
    Row("roll", lambda o, x: o(x, [1, 1], [1, 1]), "2 12 4 4 -> 2 12 4 4", why="it rolls an axis twice"),
    Row("flip", lambda o, x: o(x, [2]), "2 a 4 4 -> 2 a 4 4"),
    Row("flip", lambda o, x: o(x, [-3, 2]), "2 a 4 4 -> 2 ~a 4 4"),
    Row("flip", lambda o, x: o(x, [1]) + x, "2 (a + ~a) 4 4 -> 2 (a + ~a) 4 4"),
    Row("flip", lambda o, x: o(x.unflatten(1, (3, 4)), [2]).flatten(1, 2), "2 a b 4 4 -> 2 a ~b 4 4"),
    Row("flip", lambda o, x: o(torch.cat([x, x.relu()], 1), [1]), "2 (a + a) 4 4 -> 2 (~a + ~a) 4 4"),
    Row("tril triu", lambda o, x: o(x), "2 a 4 4 -> 2 a 4 4"),
    Row("rot90", lambda o, x: o(x, 1, [2, 3]), "2 a 4 4 -> 2 a 4 4"),
    Row("sort", lambda o, x: o(x, 2)[0], "2 a 4 4 -> 2 a 4 4, 2 a 4 4", zero=False),
    Row("argsort", lambda o, x: o(x, 2).double() * x, "2 a 4 4 -> 2 a 4 4"),
    Row("topk", lambda o, x: o(x, 2, 2)[0], "2 a 4 4 -> 2 a 2 4, 2 a 2 4", zero=False),
    # -- positions
    Row("max_pool1d avg_pool1d", lambda o, x: o(x, [2]), "2 a 4 -> 2 a 2", "line"),
    Row("max_pool2d avg_pool2d", lambda o, x: o(x, [2, 2]), "2 a 4 4 -> 2 a 2 2"),
    Row("max_pool3d avg_pool3d", lambda o, x: o(x, [2, 2, 2]), "2 a 4 4 4 -> 2 a 2 2 2", "volume"),
    Row("max_pool1d_with_indices", lambda o, x: o(x, [2])[0], "2 a 4 -> 2 a 2, 2 a 2", "line"),
    Row("max_pool2d_with_indices", lambda o, x: o(x, [2, 2])[0], "2 a 4 4 -> 2 a 2 2, 2 a 2 2"),
    Row("max_pool3d_with_indices", lambda o, x: o(x, [2, 2, 2])[0], "2 a 4 4 4 -> 2 a 2 2 2, 2 a 2 2 2", "volume"),
    Row("adaptive_avg_pool1d", lambda o, x: o(x, [2]), "2 a 4 -> 2 a 2", "line"),
    Row("adaptive_avg_pool2d _adaptive_avg_pool2d", lambda o, x: o(x, [2, 2]), "2 a 4 4 -> 2 a 2 2"),
    Row("adaptive_avg_pool3d _adaptive_avg_pool3d", lambda o, x: o(x, [2, 2, 2]), "2 a 4 4 4 -> 2 a 2 2 2", "volume"),
    Row("adaptive_max_pool1d", lambda o, x: o(x, [2])[0], "2 a 4 -> 2 a 2, 2 a 2", "line"),
    Row("adaptive_max_pool2d", lambda o, x: o(x, [2, 2])[0], "2 a 4 4 -> 2 a 2 2, 2 a 2 2"),
    Row("adaptive_max_pool3d", lambda o, x: o(x, [2, 2, 2])[0], "2 a 4 4 4 -> 2 a 2 2 2, 2 a 2 2 2", "volume"),
    Row("upsample_nearest1d _upsample_nearest_exact1d", lambda o, x: o(x, [8]), "2 a 4 -> 2 a 8", "line"),
    Row("upsample_nearest2d _upsample_nearest_exact2d", lambda o, x: o(x, [8, 8]), "2 a 4 4 -> 2 a 8 8"),
    Row("upsample_nearest3d _upsample_nearest_exact3d", lambda o, x: o(x, [8, 8, 8]),
        "2 a 4 4 4 -> 2 a 8 8 8", "volume"),
    Row("upsample_linear1d", lambda o, x: o(x, [8], False), "2 a 4 -> 2 a 8", "line"),
    Row("upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa",
        lambda o, x: o(x, [8, 8], False), "2 a 4 4 -> 2 a 8 8"),
    Row("upsample_trilinear3d", lambda o, x: o(x, [8, 8, 8], False), "2 a 4 4 4 -> 2 a 8 8 8", "volume"),
    Row("grid_sampler grid_sampler_2d", lambda o, x: o(x, GRID, 0, 0, False), "2 a 4 4, 2 3 3 2 -> 2 a 3 3"),
    Row("grid_sampler_3d", lambda o, x: o(x, GRID3, 0, 0, False), "2 a 4 4 4, 2 3 3 3 3 -> 2 a 3 3 3", "volume"),
    # -- by index
    Row("embedding", lambda o, x, w: o(w, x), "10 a, 2 5 -> 2 5 a", "ids", ((10, 12),)),
    Row("index_select", lambda o, x: o(x, 2, INDEX), "2 a 4 4, 3 -> 2 a 3 4"),
    Row("index_select", lambda o, x: o(x, 1, INDEX), "2 ~(a + b) 4 4, 3 -> 2 ~b 4 4"),
    Row("index_select", lambda o, x, i: o(x, 1, i), "2 ~(a + b + c) 4 4, ~(b + c + c) -> 2 ~(b + c + c) 4 4",
        indices=((7, 1, 7, 4, 9, 2, 2, 11),)),
    Row("index_select", lambda o, x: o(x, 1, (x.mean((0, 2, 3)) > 0).long()),
        "2 12 4 4, 12 -> 2 12 4 4", why="index_select reads it by index"),
    Row("index", lambda o, x: o(x, [None, None, INDEX]), "2 a 4 4, 3 -> 2 a 3 4"),
    Row("index", lambda o, x: o(x, [None, INDEX]), "2 ~(a + b) 4 4, 3 -> 2 ~b 4 4"),
    Row("index", lambda o, x, i: o(x, [None, i]), "2 a 4 4, ~a -> 2 ~a 4 4", indices=(SHUFFLED,)),
    Row("index", lambda o, x, i: o(x, [None, i]).sum(2), "2 ~(a b) 4 4, a b -> 2 a b 4 4",
        indices=tuple(torch.tensor([SHUFFLED]).view(1, 4, 3).tolist())),
    Row("index", lambda o, x, i: o(x, [None, i - 12]) + o(x, [None, i]), "2 a 4 4, b -> 2 ~a 4 4", indices=(SHUFFLED,)),
    Row("index", lambda o, x, i: o(x, [None, i]) + o(x, [None, i]).relu(), "2 a 4 4, ~a, 2 a 4 4 -> 2 ~a 4 4",
        indices=(SHUFFLED,)),
    Row("index", lambda o, x, i: o(x.unflatten(1, (3, 4)), [None, None, i]).flatten(1, 2),
        "2 a ~(b + c) 4 4, (~c + ~b + ~c) -> 2 a (~c + ~b + ~c) 4 4", indices=((3, 0, 2, 1, -1, 0),)),
    Row("index", lambda o, x, i: o(x.unflatten(1, (6, 2)).flatten(1, 2), [None, i]),
        "2 (~(a + b + c) d) 4 4, ((c + b + c) d) -> 2 ((c + b + c) d) 4 4",
        indices=((6, 7, 10, 11, 0, 1, 2, 3, 6, 7, 10, 11),)),
    Row("index", lambda o, x, i: o(x.unflatten(1, (6, 2)).flatten(1, 2), [None, i]),
        "2 (6 2) 4 4, 12 -> 2 12 4 4", indices=((6, 7, 0, 1, 9, 10, 0, 1, 2, 3, 4, 5),), why="across its factors"),
    Row("index", lambda o, x: o(x, [None, (torch.arange(12) + len(x)) % 12]),
        "2 (2 + 10) 4 4, 12 -> 2 (10 + 2) 4 4", why="follows from the sizes of the inputs"),
    Row("index", lambda o, x: o(x, [None, (x.mean((0, 2, 3)) > 0).long()]),
        "2 12 4 4, 12 -> 2 12 4 4", why="index reads it by index"),
    Row("index", lambda o, x: o(x, [None, None, INDEX, INDEX]), "2 a 4 4, 3, 3 -> 2 a 3"),
    Row("index", lambda o, x: o(x.permute(0, 2, 1, 3), [INDEX[1:2] * 0, None, None, INDEX]),
        "2 4 a 4, 1, (1 + 1 + 1) -> (1 + 1 + 1) 4 a", over="last"),
    Row("index_put _index_put_impl", lambda o, x: o(x.clone(), [None, None, INDEX], x[:, :, :3].relu()),
        "2 a (3 + 1) 4, 3, 2 a 3 4 -> 2 a (3 + 1) 4"),
    Row("index_put _index_put_impl", lambda o, x: o(x.clone(), [None, None, INDEX], torch.full((), 5.0, dtype=F64)),
        "2 a 4 4, 3,  -> 2 a 4 4", zero=False),
    Row("index_put", lambda o, x: o(x.clone(), [None, INDEX], x[:, :3].relu()),
        "2 (3 + 9) 4 4, 3, 2 3 4 4 -> 2 (3 + 9) 4 4", why="index_put reads it by index"),
    Row("index_put", lambda o, x: o(x.clone(), [x > 0], torch.zeros((), dtype=F64)),
        "2 12 4 4, 2 12 4 4,  -> 2 12 4 4", why="index_put reads it by index"),
    Row("index_add index_copy", lambda o, x: o(x, 2, INDEX, x[:, :, :3].relu()),
        "2 a (3 + 1) 4, 3, 2 a 3 4 -> 2 a (3 + 1) 4"),
    Row("index_add index_copy", lambda o, x: o(x, 1, INDEX, x[:, :3].relu()),
        "2 (3 + 9) 4 4, 3, 2 3 4 4 -> 2 (3 + 9) 4 4", why="writes it by index"),
    Row("scatter scatter_add", lambda o, x: o(x, 2, x.argsort(2), x.relu()),
        "2 a 4 4, 2 a 4 4, 2 a 4 4 -> 2 a 4 4", zero=False),
    Row("scatter", lambda o, x: o(x, 2, x.argsort(2)[:, :, :2], 5.0),
        "2 a (2 + 2) 4, 2 a 2 4, 2 a 2 4 -> 2 a (2 + 2) 4", zero=False),
    Row("scatter_reduce", lambda o, x: o(x, 2, x.argsort(2), x.relu(), "amax"),
        "2 a 4 4, 2 a 4 4, 2 a 4 4 -> 2 a 4 4", zero=False),
    Row("gather", lambda o, x: o(x, 2, x.argsort(2)), "2 a 4 4, 2 a 4 4 -> 2 a 4 4", zero=False),
    Row("take_along_dim", lambda o, x: o(x, x.argsort(2), 2), "2 a 4 4, 2 a 4 4 -> 2 a 4 4", zero=False),
    Row("gather", lambda o, x, i: o(x, 1, i.view(1, -1, 1, 1).expand(2, 12, 4, 4)),
        "2 a 4 4, 2 ~a 4 4 -> 2 ~a 4 4", indices=(SHUFFLED,)),
    Row("gather", lambda o, x, i: o(x, 1, i.view(1, -1, 1, 1).expand_as(x)), "2 12 4 4, 2 12 4 4 -> 2 12 4 4",
        indices=(SHUFFLED,), why="around a cycle"),
    Row("gather", lambda o, x: o(x, 1, torch.tensor(SHUFFLED).view(-1, 1, 1).expand(len(x), -1, *x.shape[2:])),
        "2 a 4 4, 2 12 4 4 -> 2 ~a 4 4"),
    Row("gather", lambda o, x: o(x, 1, torch.tensor([range(12), SHUFFLED])[..., None, None].expand_as(x)),
        "2 12 4 4, 2 12 4 4 -> 2 12 4 4", why="a constant made in forward"),
    Row("take_along_dim", lambda o, x, i: o(x, i.view(-1, 1, 1)[None], 1), "2 a 4 4, 1 ~a 1 1 -> 2 ~a 4 4",
        indices=(SHUFFLED,)),
    # -- products
    Row("linear", lambda o, x, w, b: o(x, w, b), "2 5 a, b a, b -> 2 5 b", "tokens", ((7, 12), (7,))),
    Row("bilinear", lambda o, x, w, b: o(x, x[:, :5], w, b),
        "2 (a + b), 2 a, c (a + b) a, c -> 2 c", "vector", ((7, 12, 5), (7,))),
    Row("conv1d", lambda o, x, w, b: o(x, w, b, [1], [1]), "2 a 4, b a 3, b -> 2 b 4", "line", ((7, 12, 3), (7,))),
    Row("conv2d", lambda o, x, w, b: o(x, w, b, [1], [1]),
        "2 a 4 4, b a 3 3, b -> 2 b 4 4", "image", ((7, 12, 3, 3), (7,))),
    Row("conv2d", lambda o, x, w, b: o(x, w, b, [1], [1], [1], 3),
        "2 (a b) 4 4, (a c) b 3 3, (a c) -> 2 (a c) 4 4", "image", ((6, 4, 3, 3), (6,))),
    Row("conv2d", lambda o, x, w, b: o(x, w, b, [1], [1], [1], 12),
        "2 a 4 4, (a b) 1 3 3, (a b) -> 2 (a b) 4 4", "image", ((24, 1, 3, 3), (24,))),
    Row("conv3d", lambda o, x, w, b: o(x, w, b, [1], [1]),
        "2 a 4 4 4, b a 3 3 3, b -> 2 b 4 4 4", "volume", ((7, 12, 3, 3, 3), (7,))),
    Row("convolution", lambda o, x, w, b: o(x, w, b, [1, 1], [1, 1], [1, 1], False, [0, 0], 3),
        "2 (a b) 4 4, (a c) b 3 3, (a c) -> 2 (a c) 4 4", "image", ((6, 4, 3, 3), (6,))),
    Row("convolution", lambda o, x, w, b: o(x, w, b, [2, 2], [1, 1], [1, 1], True, [0, 0], 3),
        "2 (a b) 4 4, (a b) c 3 3, (a c) -> 2 (a c) 7 7", "image", ((12, 2, 3, 3), (6,))),
    Row("conv_transpose1d", lambda o, x, w, b: o(x, w, b, [2]), "2 a 4, a b 2, b -> 2 b 8", "line", ((12, 7, 2), (7,))),
    Row("conv_transpose2d", lambda o, x, w, b: o(x, w, b, [2]),
        "2 a 4 4, a b 2 2, b -> 2 b 8 8", "image", ((12, 7, 2, 2), (7,))),
    Row("conv_transpose2d", lambda o, x, w, b: o(x, w, b, [2], [0], [0], 3),
        "2 (a b) 4 4, (a b) c 2 2, (a c) -> 2 (a c) 8 8", "image", ((12, 2, 2, 2), (6,))),
    Row("conv_transpose3d", lambda o, x, w, b: o(x, w, b, [2]),
        "2 a 4 4 4, a b 2 2 2, b -> 2 b 8 8 8", "volume", ((12, 7, 2, 2, 2), (7,))),
    Row("matmul", lambda o, x, w: o(x, w), "2 5 a, a b -> 2 5 b", "tokens", ((12, 7),)),
    Row("matmul", lambda o, x, w: o(x, w)[..., None], "2 5 a, a -> 2 5", "tokens", ((12,),)),
    Row("matmul", lambda o, x, w: o(w, x.sum(0).flatten()), "a b, b -> a", "vector", ((7, 12),)),
    Row("mm", lambda o, x, w: o(x, w), "2 a, a b -> 2 b", "vector", ((12, 7),)),
    Row("bmm", lambda o, x: o(x, x.relu().transpose(1, 2)), "2 5 a, 2 a 5 -> 2 5 5", "tokens"),
    Row("mv", lambda o, x, w: o(w, x.sum(0)), "a b, b -> a", "vector", ((7, 12),)),
    Row("conv1d", lambda o, x, w, b: o(x, w, b), "2 5 a, 7 5 1, 7 -> 2 7 a", "tokens", ((7, 5, 1), (7,)), zero=False),
    Row("conv1d", lambda o, x, w: o(x, w), "2 5 a, 7 5 1, - -> 2 7 a", "tokens", ((7, 5, 1),)),
    Row("conv1d", lambda o, x, w: o(x, w, None, [2]), "2 5 12, 7 5 1, - -> 2 7 6", "tokens", ((7, 5, 1),),
        why="works on it as a whole"),
    Row("dot vdot", lambda o, x, w: o(x.sum(0), w).reshape(1), "a, a -> ", "vector", ((12,),)),
    Row("addmm", lambda o, x, w, b: o(b, x, w), "2 a, a b, b -> 2 b", "vector", ((12, 7), (7,))),
    Row("addmm", lambda o, x, w, b: o(b, x, w), "2 a, a b, 2 1 -> 2 b", "vector", ((12, 7), (2, 1)), zero=False),
    Row("baddbmm", lambda o, x, w, b: o(b, x, w), "2 5 a, 2 a b, 2 5 b -> 2 5 b", "tokens", ((2, 12, 7), (2, 5, 7))),
    Row("addbmm", lambda o, x, w, b: o(b, x, w),
        "5 7, 2 5 12, 2 12 7 -> 5 7", "tokens", ((2, 12, 7), (5, 7)), why="no rule for 'addbmm'"),
    Row("addmv", lambda o, x, w, b: o(b, w, x.sum(0)),
        "7, 7 12, 12 -> 7", "vector", ((7, 12), (7,)), why="no rule for 'addmv'"),
    Row("einsum", lambda o, x, w: o("bchw,dc->bdhw", [x, w]), "2 a 4 4, b a -> 2 b 4 4", "image", ((7, 12),)),
    Row("einsum", lambda o, x, w: o("...c,dc", [x, w]), "2 a, b a -> 2 b", "vector", ((7, 12),)),
    Row("einsum", lambda o, x, w: o("bc,cc->bc", [x, w]),
        "2 12, 12 12 -> 2 12", "vector", ((12, 12),), why="einsum with a repeated index (a diagonal)"),
    Row("scaled_dot_product_attention", attended, "2 a 5 b, 2 a 5 b, 2 a 5 c, - -> 2 a 5 c", "tokens", ((12, 12),) * 3),
    Row("glu", lambda o, x: o(x, 1), "2 (a + a) 4 4 -> 2 a 4 4"),
    # -- normalisations
    Row("batch_norm", lambda o, x, w, b, m, v: o(x, w, b, m, v.exp(), False, 0.1, 1e-5, False),
        "2 a 4 4, a, a, a, a -> 2 a 4 4", "image", ((12,),) * 4),
    Row("batch_norm", lambda o, x, m, v: o(x, None, None, m, v.exp(), False, 0.1, 1e-5, False),
        "2 a 4 4, -, -, a, a -> 2 a 4 4", "image", ((12,),) * 2, zero=False),
    Row("batch_norm", lambda o, x, m, v: o(x.abs() + 1, None, None, m, v.exp(), False, 0.1, 1e-5, False),
        "2 a 4 4, -, -, a, a -> 2 a 4 4", "image", ((12,),) * 2, zero=False),
    Row("instance_norm", lambda o, x, w, b: o(x, w, b, None, None, True, 0.1, 1e-5, False),
        "2 a 4 4, a, a, -, - -> 2 a 4 4", "image", ((12,),) * 2),
    Row("instance_norm", lambda o, x, w, b, m, v: o(x, w, b, m, v.exp(), False, 0.1, 1e-5, False),
        "2 a 4 4, a, a, a, a -> 2 a 4 4", "image", ((12,),) * 4),
    Row("layer_norm", lambda o, x, w, b: o(x, [12], w, b), "2 5 a, a, a -> 2 5 a", "tokens", ((12,),) * 2, exact=False),
    Row("layer_norm", lambda o, x: o(x, [12]), "2 5 a, -, - -> 2 5 a", "tokens", exact=False, zero=False),
    Row("layer_norm", lambda o, x, w, b: o(x, [12, 4, 4], w, b),
        "2 a 4 4, a 4 4, a 4 4 -> 2 a 4 4", "image", ((12, 4, 4),) * 2, exact=False),
    Row("rms_norm", lambda o, x, w: o(x, [12], w, 1e-6), "2 5 a, a -> 2 5 a", "tokens", ((12,),), exact=False),
    Row("group_norm", lambda o, x, w, b: o(x, 3, w, b),
        "2 (a b) 4 4, (a b), (a b) -> 2 (a b) 4 4", "image", ((12,),) * 2, exact=False),
    Row("group_norm", lambda o, x: o(x, 3), "2 (a b) 4 4, -, - -> 2 (a b) 4 4", "image", exact=False, zero=False),
    Row("_weight_norm_interface", lambda o, x, v, g: x @ o(v, g, 0)[0].t(),
        "a b, a 1 -> a b, a 1", "vector", ((7, 12), (7, 1))),
    # -- reductions
    Row("sum nansum", lambda o, x: o(x, [2]), "2 a 4 4 -> 2 a 4"),
    Row("sum nansum count_nonzero", lambda o, x: o(x, [1])[:, None].double(), "2 a 4 4 -> 2 4 4"),
    Row("sum nansum", lambda o, x: o(x + 1.0, [1])[:, None].double(), "2 12 4 4 -> 2 4 4", why="is taken over it"),
    Row("count_nonzero", lambda o, x: o(x, [2]).double() * x[:, :, 0], "2 a (1 + 3) 4 -> 2 a 4"),
    Row("linalg_vector_norm norm", lambda o, x: o(x, 2, [2]), "2 a 4 4 -> 2 a 4"),
    Row("linalg_vector_norm norm", lambda o, x: o(x, 2, [1], True), "2 a 4 4 -> 2 1 4 4"),
    Row("linalg_vector_norm norm", lambda o, x: o(x, -float("inf"), [1], True), "2 12 4 4 -> 2 1 4 4"),
    Row("mean var std", lambda o, x: o(x, [2]), "2 a 4 4 -> 2 a 4"),
    Row("mean", lambda o, x: o(x, [1], True), "2 a 4 4 -> 2 1 4 4", exact=False),
    Row("var std", lambda o, x: o(x, [1], True, True), "2 a 4 4 -> 2 1 4 4", exact=False),
    Row("var_mean std_mean", lambda o, x: torch.add(*o(x, [2])), "2 a 4 4 -> 2 a 4, 2 a 4"),
    Row("var_mean std_mean", lambda o, x: torch.add(*o(x, [1], True, True)),
        "2 a 4 4 -> 2 1 4 4, 2 1 4 4", exact=False),
    Row("amax amin", lambda o, x: o(x, [2]), "2 a 4 4 -> 2 a 4"),
    Row("logsumexp", lambda o, x: o(x, [2]), "2 a 4 4 -> 2 a 4", zero=False),
    Row("amax amin logsumexp", lambda o, x: o(x, [1], True), "2 12 4 4 -> 2 1 4 4", why="is taken over it"),
    Row("max min median", lambda o, x: o(x, 2)[0], "2 a 4 4 -> 2 a 4, 2 a 4"),
    Row("max min median", lambda o, x: o(x, 1, True)[0], "2 12 4 4 -> 2 1 4 4, 2 1 4 4", why="is taken over it"),
    Row("max min", lambda o, x: o(x, x.flip(3)), "2 a 4 4, 2 a 4 4 -> 2 a 4 4"),
    Row("prod", lambda o, x: o(x, 2), "2 a 4 4 -> 2 a 4"),
    Row("prod", lambda o, x: o(x, 1, True), "2 12 4 4 -> 2 1 4 4", why="prod is taken over it"),
    Row("all any", lambda o, x: o(x > 0, 2).double(), "2 a 4 4 -> 2 a 4"),
    Row("all any", lambda o, x: o(x < 1, 2).double(), "2 a 4 4 -> 2 a 4", zero=False),
    Row("argmax argmin", lambda o, x: o(x, 2).double(), "2 a 4 4 -> 2 a 4", zero=False),
    Row("argmax argmin", lambda o, x: o(x, 1, True).double(), "2 12 4 4 -> 2 1 4 4", why="is taken over it"),
    Row("aminmax", lambda o, x: torch.add(*o(x, dim=2)), "2 a 4 4 -> 2 a 4, 2 a 4"),
    Row("aminmax", lambda o, x: torch.add(*o(x, dim=1, keepdim=True)),
        "2 12 4 4 -> 2 1 4 4, 2 1 4 4", why="aminmax is taken over it"),
    # -- recurrent
    Row("lstm", lambda o, x, *w: o(x, states(x, 8, 2), list(w), True, 1, 0.0, False, False, True)[0],
        "2 5 a, 1 2 b, 1 2 b, (4 b) a, (4 b) b, (4 b), (4 b) -> 2 5 b, 1 2 b, 1 2 b", "tokens", ((32, 12), (32, 8),
        (32,), (32,))),
    Row("lstm",
        lambda o, x, *w: o(x, [x.new_zeros(1, 2, 4), x.new_zeros(1, 2, 8)], list(w), True, 1, 0.0, False, False,
        True)[0],
        "2 5 a, 1 2 b, 1 2 8, (4 8) a, (4 8) b, (4 8), (4 8), b 8 -> 2 5 b, 1 2 b, 1 2 8", "tokens", ((32, 12), (32,
        4), (32,), (32,), (4, 8))),
    Row("gru", lambda o, x, *w: o(x, *states(x, 8), list(w), True, 1, 0.0, False, False, True)[0],
        "2 5 a, 1 2 b, (3 b) a, (3 b) b, (3 b), (3 b) -> 2 5 b, 1 2 b", "tokens", ((24, 12), (24, 8), (24,), (24,))),
    Row("gru", lambda o, x, *w: o(x, x.new_zeros(4, 2, 8), list(w), False, 2, 0.0, False, True, True)[0],
 
              "2 5 a, 4 2 b, (3 b) a, (3 b) b, (3 b) a, (3 b) b, (3 b) (b + b), (3 b) b, (3 b) (b + b), (3 b) b "
        "-> 2 5 (b + b), 4 2 b", "tokens", ((24, 12), (24, 8)) * 2 + ((24, 16), (24, 8)) * 2),
    Row("rnn_tanh rnn_relu", lambda o, x, *w: o(x, *states(x, 8), list(w), True, 1, 0.0, False, False, True)[0],
        "2 5 a, 1 2 b, b a, b b, b, b -> 2 5 b, 1 2 b", "tokens", ((8, 12), (8, 8), (8,), (8,))),
    Row("lstm_cell", lambda o, x, *w: o(x, [x.new_zeros(2, 8), x.new_zeros(2, 8)], *w)[0],
        "2 a, 2 b, 2 b, (4 b) a, (4 b) b, (4 b), (4 b) -> 2 b, 2 b", "vector", ((32, 12), (32, 8), (32,), (32,))),
    Row("gru_cell", lambda o, x, *w: o(x, x.new_zeros(2, 8), *w),
        "2 a, 2 b, (3 b) a, (3 b) b, (3 b), (3 b) -> 2 b", "vector", ((24, 12), (24, 8), (24,), (24,))),
    Row("rnn_tanh_cell rnn_relu_cell", lambda o, x, *w: o(x, x.new_zeros(2, 8), *w),
        "2 a, 2 b, b a, b b, b, b -> 2 b", "vector", ((8, 12), (8, 8), (8,), (8,))),
    # -- position by position
    Row("prelu", lambda o, x, w: o(x, w), "2 a 4 4, a -> 2 a 4 4", "image", ((12,),)),
    Row("copy_", lambda o, x: o(torch.empty_like(x), x), "2 a 4 4, 2 a 4 4 -> 2 a 4 4"),
    Row("copy_", lambda o, x: o(x.clone(), x + 1.0), "2 a 4 4, 2 a 4 4 -> 2 a 4 4", zero=False),
    Row("lerp", lambda o, x: o(x, x * 2, 0.3), "2 a 4 4, 2 a 4 4 -> 2 a 4 4"),
    Row("where", lambda o, x: o(x > 0, x, x * 2), "2 a 4 4, 2 a 4 4, 2 a 4 4 -> 2 a 4 4"),
    Row("where", lambda o, x: o(x > 0, x, torch.ones((), dtype=F64)), "2 a 4 4, 2 a 4 4,  -> 2 a 4 4", zero=False),
    Row("masked_fill", lambda o, x: o(x, x > 0, 0.5), "2 a 4 4, 2 a 4 4 -> 2 a 4 4"),
    Row("masked_fill", lambda o, x: o(x, x < 0.5, 0.5), "2 a 4 4, 2 a 4 4 -> 2 a 4 4", zero=False),
    Row("clamp hardtanh", lambda o, x: o(x, -0.5, 0.5), "2 a 4 4 -> 2 a 4 4"),
    Row("clamp hardtanh", lambda o, x: o(x, 0.25, 0.5), "2 a 4 4 -> 2 a 4 4", zero=False),
    Row("threshold", lambda o, x: o(x, 0.1, 0.0), "2 a 4 4 -> 2 a 4 4"),
    Row("threshold", lambda o, x: o(x, 0.1, 2.0), "2 a 4 4 -> 2 a 4 4", zero=False),
    Row("addcmul", lambda o, x: o(x, x, x), "2 a 4 4, 2 a 4 4, 2 a 4 4 -> 2 a 4 4"),
    Row("addcdiv", lambda o, x: o(x, x, x.exp()), "2 a 4 4, 2 a 4 4, 2 a 4 4 -> 2 a 4 4"),
    Row("nan_to_num relu6 hardswish", lambda o, x: o(x), "2 a 4 4 -> 2 a 4 4"),
    Row("hardsigmoid", lambda o, x: o(x), "2 a 4 4 -> 2 a 4 4", zero=False),
    Row("heaviside", lambda o, x: o(x, x), "2 a 4 4, 2 a 4 4 -> 2 a 4 4"),
    Row("complex polar", lambda o, x: o(x, x.relu()).abs(), "2 a 4 4, 2 a 4 4 -> 2 a 4 4"),
    Row("logical_not", lambda o, x: o(x).double(), "2 a 4 4 -> 2 a 4 4", zero=False),
    Row("bitwise_not", lambda o, x: o(x > 0).double(), "2 a 4 4 -> 2 a 4 4", zero=False),
    Row("bitwise_not", lambda o, x: o(x > 0).double() * x, "2 a 4 4 -> 2 a 4 4"),
    # -- pointwise by torch's own tag
    Row("relu_ sin tanh expm1", lambda o, x: o(x), "2 a 4 4 -> 2 a 4 4"),
    Row("exp cos", lambda o, x: o(x), "2 a 4 4 -> 2 a 4 4", zero=False),
    Row("add_ sub", lambda o, x: o(x, x.relu()), "2 a 4 4, 2 a 4 4 -> 2 a 4 4"),
    Row("add", lambda o, x: o(x, 1.0), "2 a 4 4 -> 2 a 4 4", zero=False),
    Row("mul", lambda o, x: o(x, x.exp()), "2 a 4 4, 2 a 4 4 -> 2 a 4 4"),
    Row("mul", lambda o, x: o(x, x.sum(1, True)), "2 a 4 4, 2 1 4 4 -> 2 a 4 4"),
    Row("mul", lambda o, x: o(x, x.sigmoid().mean((2, 3), True)), "2 a 4 4, 2 a 1 1 -> 2 a 4 4"),
    Row("div", lambda o, x: o(x, x.exp()), "2 a 4 4, 2 a 4 4 -> 2 a 4 4"),
    Row("pow", lambda o, x: o(x, 2), "2 a 4 4 -> 2 a 4 4"),
    Row("pow", lambda o, x: o(x, 0), "2 a 4 4 -> 2 a 4 4", zero=False),
    Row("gelu silu", lambda o, x: o(x), "2 a 4 4 -> 2 a 4 4"),
    Row("softplus", lambda o, x: o(x), "2 a 4 4 -> 2 a 4 4", zero=False),
)
