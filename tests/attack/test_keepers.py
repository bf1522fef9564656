"""What the code of a model keeps outside of it is the very same after a recording, whether it ends or raises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import structprune
from structprune.errors import StructpruneError
from tests.attack import keepers
from tests.attack.keepers import KEEPERS, Keeps


@pytest.fixture(autouse=True)
def as_in_a_new_process() -> Iterator[None]:
    def empty() -> None:
        for each in (keepers.OWNER, keepers.Colour.RED):
            vars(each).pop("latest", None)
        keepers.WithDescriptor.slot.given.clear()
        keepers.Cached.made.cache_clear()
        keepers.Single.instance = None

    empty()
    yield
    empty()
    keepers.KEPT = None


CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "analyze": structprune.analyze,
    "shrink": lambda model, x: structprune.shrink(model, 0.5, x),
    "graph": lambda model, x: structprune.shrink(model, 0.5, x, output="graph", verify=None),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize("name", KEEPERS)
def test_what_is_kept_is_as_it_was(name: str, stops: bool, call: str) -> None:
    make, use, held = KEEPERS[name]
    kept = keepers.KEPT = make()
    model, x = Keeps(use, stops).double().eval(), torch.randn(4, 6, dtype=torch.float64)
    before = held(kept)
    try:
        CALLS[call](model, x)
    except StructpruneError:
        assert stops
    assert keepers.KEPT is kept
    assert held(kept) == before
    with torch.no_grad():
        use(kept, torch.ones(4, 16))  # it works as before
