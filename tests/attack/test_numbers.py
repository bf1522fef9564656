"""Numbers that are equal to a width by chance stay as they are; results are right at other sizes, in training, elsewhere."""

from __future__ import annotations

import pytest

from tests.attack.numbers import CASES
from tests.attack.oracle import Case, attack


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])
def test_only_widths_change(case: Case) -> None:
    attack(case)
