"""Removing equals zeroing, in ONNX files that make it hard."""

from __future__ import annotations

import pytest

from tests.attack.onnx_oracle import attack
from tests.attack.onnx_structures import CASES, Structure


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])
def test_removing_is_zeroing(case: Structure) -> None:
    attack(case)
