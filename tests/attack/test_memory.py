"""Removing equals zeroing where widths are copied, and where memory is reached past all operators."""

from __future__ import annotations

import pytest

from tests.attack.memory import CASES
from tests.attack.oracle import Case, attack


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])
def test_removing_is_zeroing(case: Case) -> None:
    attack(case)
