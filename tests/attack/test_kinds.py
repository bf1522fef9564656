"""Removing equals zeroing for models of further kinds."""

from __future__ import annotations

import pytest

from tests.attack.kinds import CASES
from tests.attack.oracle import Case, attack


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])
def test_removing_is_zeroing(case: Case) -> None:
    attack(case)
