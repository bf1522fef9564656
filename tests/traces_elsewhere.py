"""A module of helpers that keep tensors, for tests/test_traces.py: no class of a model is defined here."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

TABLES: dict[Any, Any] = {}
LAST: Any = None


class Keeper:
    """An object that keeps what it is given."""

    def __init__(self) -> None:
        self.table: Any = None
        self.seen: list[Any] = []


KEEPER = Keeper()


def registered() -> list[Any]:
    return list(TABLES.values())


def keep_out_of_sight(name: str, value: Any) -> None:
    """Under names that no code says."""
    globals()["".join(("TAB", "LES"))][name] = value


def set_out_of_sight(value: Any) -> None:
    globals()["".join(("LA", "ST"))] = value


@functools.lru_cache
def ramp(size: int, dtype: torch.dtype) -> Tensor:
    return torch.arange(size).to(dtype) / size
