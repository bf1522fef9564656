"""The rule table with its oracle; and wrong rules, which must make the oracle fail."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import structprune
import torch
from structprune.axis import Dim, Sum
from structprune.errors import StructpruneError, VerificationError
from structprune.frontends import torch as _front  # noqa: F401
from structprune.frontends.torch.lower import ENTRIES
from structprune.rule import RULES, Meeting
from structprune.testing import check
from tests.rows import ROWS, Row, axes_of, build, example, find_op
from tests.structures import STRUCTURES
from torch import Tensor, nn

TOLERANCE = 1e-9  # a share of the largest output, in float64

# Entries that no call can reach: torch has no ATen operator of that name. `pointwise` stands for a tag.
UNREACHABLE = {"pointwise"}
# Rows whose rule is known to be wrong, with what is wrong; remove the line with the bug.
WRONG: dict[str, str] = {}

CASES = [
    pytest.param(name, row, id=f"{number}-{name}") for number, row in enumerate(ROWS) for name, row in row.each()
]


def known_wrong(name: str, row: Row, what: str) -> None:
    """A strict expected failure: it has to be taken out when the rule is mended."""


@pytest.mark.parametrize(("name", "row"), CASES)
def test_row(name: str, row: Row) -> None:
    """The axes are those of the table, and cutting any of them equals zeroing it."""
    model, inputs = build(name, row)
    analysis = check(model, inputs, tolerance=TOLERANCE)
    assert axes_of(analysis, find_op(analysis, name)) == row.axes
    assert all(group.exact for group in analysis.groups) == row.exact
    is_prunable = re.search("[a-z]", row.axes) is not None
    assert bool(analysis.groups) == is_prunable
    if row.why:
        assert row.why in analysis.explain("first.weight")


@pytest.mark.parametrize(("name", "row"), CASES)
def test_row_under_a_bare_sum(name: str, row: Row) -> None:
    """What a rule calls zero is zero: a sum behind the operator either freezes the width or loses nothing."""
    model, inputs = build(name, row, is_summed=True)
    analysis = check(model, inputs, tolerance=TOLERANCE)
    found = axes_of(analysis, find_op(analysis, name))
    assert (found == row.axes) == row.zero
