"""Each operator of the rule table with a free width on every axis of every operand.

The operands are learned tensors, so that each of their axes could lose indices. What the operator gives is summed up,
once with learned weights and once bare: the first finds axes that are related wrongly, the second zeros that are none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from structprune.frontends.torch.record.record import map_tensors, tensors_in
from structprune.testing import check
from tests.rows import ROWS, Row, build

TOLERANCE = 1e-9


class Stop(Exception):
    """The operator was reached."""


def arguments_of(name: str, row: Row) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """What the row gives its operator."""
    model, inputs = build(name, row)
    found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def operator(*args: Any, **kwargs: Any) -> Any:
        found.append((args, kwargs))
        raise Stop

    given = model.operator
    model.operator = operator
    with torch.no_grad(), pytest.raises(Stop):
        model(inputs)
    return given, *found[0]


class Everywhere(nn.Module):
    """The operator over learned operands, and a sum over what it gives."""

    def __init__(self, name: str, row: Row, is_bare: bool) -> None:
        super().__init__()
        self.operator, self.args, self.kwargs = arguments_of(name, row)
        self.learned = nn.ParameterList()
        for tensor in tensors_in((self.args, self.kwargs)):
            if is_learned(tensor):
                self.learned.append(both_signs(tensor))
        self.scales: nn.ParameterList | None = None
        with torch.no_grad():
            results = list(tensors_in(self.run(torch.ones((), dtype=torch.float64))))
        if not is_bare:
            self.scales = nn.ParameterList(torch.randn(each.shape, dtype=torch.float64) for each in results)

    def run(self, x: Tensor) -> Any:
        learned = iter(self.learned)

        def operand(tensor: Tensor) -> Tensor:
            if not is_learned(tensor):
                return tensor
            numbers = next(learned) * x
            if tensor.dtype == torch.bool:
                return numbers > 0
            return torch.complex(numbers, 2 * numbers) if tensor.is_complex() else numbers.to(tensor.dtype)

        return self.operator(*map_tensors(self.args, operand), **map_tensors(self.kwargs, operand))

    def forward(self, x: Tensor) -> Tensor:
        total = x.new_zeros(1)
        for place, each in enumerate(tensors_in(self.run(x[0]))):
            result = torch.view_as_real(each).sum(-1) if each.is_complex() else each.double()
            result = result if self.scales is None else result * self.scales[place]
            # The bare sum of what has been normalised is zero whatever goes.
            total = total + (result + result * result).sum()
        return total


def is_learned(tensor: Tensor) -> bool:
    """Indices stay what they are; a mask is where learned numbers are above zero."""
    return tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool


def both_signs(tensor: Tensor) -> nn.Parameter:
    """Numbers without a zero; of both signs, unless the operand has none below zero for a reason (a variance)."""
    numbers = torch.randn(tensor.shape, dtype=torch.float64)
    numbers += 0.1 * numbers.sign()
    is_positive = tensor.is_floating_point() and tensor.numel() > 1 and bool((tensor > 0).all())
    return nn.Parameter(numbers.abs() if is_positive else numbers)


# Probabilities between 0 and 1 are wanted; memory that holds anything is given.
UNTRIED = {"bernoulli", "empty_like", "new_empty"}


def cases() -> Iterator[Any]:
    for number, row in enumerate(ROWS):
        name = row.names.split()[0]
        if name in UNTRIED or row.axes.startswith(" ->"):
            continue
        for is_bare in (False, True):
            yield pytest.param(name, row, is_bare, id=f"{number}-{name}-{'bare' if is_bare else 'weighted'}")


@pytest.mark.parametrize(("name", "row", "is_bare"), list(cases()))
def test_a_width_on_every_axis(name: str, row: Row, is_bare: bool) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Everywhere(name, row, is_bare).double().eval()
    check(model, torch.tensor([0.7], dtype=torch.float64), tolerance=TOLERANCE)
