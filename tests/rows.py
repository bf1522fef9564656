"""The rows of the rule table: every operator that has an entry, between layers that can be pruned.

A row's `axes` is what the analysis must find around the operator, in the notation of the rules: a
letter is a width that can be pruned, a number is a size that must stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from structprune.analysis import Analysis
from structprune.axis import Axis, Dim, Product, Sum
from structprune.graph import Op, Value

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
    """One operator, or several that are called alike. `run` gets the operator, its input, and its weights."""

    names: str
    run: Callable[..., Tensor]
    axes: str
    form: str = "image"
    weights: tuple[tuple[int, ...], ...] = ()
    over: str = ""  # what the layer behind sums over: "channel" or "last"
    zero: bool = True  # what was removed is zero behind the operator: a bare sum over it changes nothing
    exact: bool = True  # False: statistics are taken over a prunable axis

    def each(self) -> Iterator[tuple[str, Row]]:
        for name in self.names.split():
            yield name, self


class Sandwich(nn.Module):
    """A layer, the operator, and a layer, or a bare sum, over what it gives."""

    def __init__(self, name: str, row: Row, is_summed: bool) -> None:
        super().__init__()
        packet = torch.ops.aten
        self.operator = getattr(packet, name if hasattr(packet, name) else f"{name}_")
        self.run = row.run
        shape, first = FORMS[row.form]
        self.first = first()
        self.weights = nn.ParameterList(torch.randn(each) for each in row.weights)
        self.double()
        with torch.no_grad():
            given = self.middle(self.first(example(row)))
        over = row.over or ("last" if row.form in ("vector", "tokens", "ids") or given.dim() < 3 else "channel")
        axis = 1 if over == "channel" else given.dim() - 1
        if is_summed:
            self.last = partial(torch.sum, dim=axis)
        elif over == "channel":
            self.last = CONVOLUTIONS[given.dim()](given.shape[1], 5, 1)
        else:
            self.last = nn.Linear(given.shape[-1], 5)
        self.double().eval()

    def middle(self, x: Tensor) -> Tensor:
        return self.run(self.operator, x, *self.weights)

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
    """The last operator of that name, in place or not."""
    found = [op for op in analysis.solution.graph.ops if op.name in (name, f"{name}_")]
    assert found, f"{name} is not in the graph: {[op.name for op in analysis.solution.graph.ops]}"
    return found[-1]


def axes_of(analysis: Analysis, op: Op) -> str:
    """The axes around an operator: a letter for a width that can go, a number for what must stay."""
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
GRID = torch.rand(2, 3, 3, 2, dtype=F64, generator=torch.Generator().manual_seed(2)) * 2 - 1
GRID3 = torch.rand(2, 3, 3, 3, 3, dtype=F64, generator=torch.Generator().manual_seed(2)) * 2 - 1
