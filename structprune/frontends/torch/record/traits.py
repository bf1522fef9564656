"""What the recorder asks of an operator, looked up once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from structprune.frontends.torch.read import operators  # noqa: F401  registers the entries
from structprune.frontends.torch.read.lower import has_rule
from structprune.frontends.torch.record import private
from structprune.frontends.torch.record.record import depends_on_data
from structprune.graph.operator import RULES

# Operators that read by index.
READERS = frozenset(("index", "index_select", "gather", "take_along_dim"))
# Operators whose second tensor lends its shape and nothing else.
SHAPED_LIKE = frozenset(("expand_as", "view_as", "reshape_as"))


@dataclass(frozen=True, slots=True)
class Traits:
    """Facts of an operator that hold for every call of it."""

    name: str
    is_primitive: bool
    writes: bool
    depends_on_data: bool
    is_random: bool
    # It gives its own argument another form.
    is_view_in_place: bool
    is_in_place: bool
    is_reader: bool
    is_shaped_like: bool


@lru_cache(maxsize=4096)
def traits(function: Any) -> Traits:
    name = str(function._opname)
    return Traits(
        name=name,
        is_primitive=function.namespace == "prim",
        writes=bool(function._schema.is_mutable),
        depends_on_data=depends_on_data(function),
        is_random=torch.Tag.nondeterministic_seeded in function.tags,
        is_view_in_place=torch.Tag.inplace_view in function.tags,
        is_in_place=name.endswith("_"),
        is_reader=name in READERS,
        is_shaped_like=name in SHAPED_LIKE,
    )


def decomposes(function: Any) -> bool:
    """Composite operators without a rule of their own are recorded as what they consist of."""
    return is_taken_apart(function, len(RULES))


@lru_cache(maxsize=4096)
def is_taken_apart(function: Any, known_rules: int) -> bool:
    """What is remembered holds for as long as no rule is added."""
    return not has_rule(function) and private.is_composite(function)
