"""Removing equals zeroing, on models that make it hard."""

from __future__ import annotations

import pytest

from tests.attack.oracle import Case, attack
from tests.attack.zeros import CASES


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])
def test_removing_is_zeroing(case: Case) -> None:
    attack(case)
