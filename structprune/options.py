"""The options of a decision, each checked before any work is done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

import numpy as np

from structprune.errors import InvalidArgument, short
from structprune.graph.plan_file import MEASURES, OUTPUTS, VERIFICATIONS
from structprune.passes.score import CRITERIA, Criterion

SCOPES = ("global", "uniform")
# Channels that a runtime's convolutions are computed in at a time.
BLOCKS = {"onnxruntime": 16}


@dataclass(frozen=True, slots=True)
class Options:
    """What a decision is made by; `structprune.shrink` says what each means."""

    ratio: float
    of: str = "params"
    score: str | Criterion = "l2"
    scope: str = "global"
    exclude: Sequence[str] = ()
    only: Sequence[str] = ()
    align: int | str | None = None
    output: str = "auto"
    verify: str | None = "numeric"
    seed: int = 0

    def __post_init__(self) -> None:
        check_choices(self.of, self.score, self.scope, self.output, self.verify)
        usable = {
            "ratio": as_share(self.ratio),
            "seed": as_count("seed", self.seed, 0),
            "align": as_alignment(self.align),
            "exclude": as_patterns("exclude", self.exclude),
            "only": as_patterns("only", self.only),
        }
        for name, value in usable.items():
            object.__setattr__(self, name, value)

    def as_dict(self) -> dict[str, Any]:
        """What a plan says of how it was made."""
        named = self.score if isinstance(self.score, str) else str(getattr(self.score, "__name__", "a function"))
        return {
            "ratio": self.ratio,
            "of": self.of,
            "score": named,
            "scope": self.scope,
            "exclude": list(self.exclude),
            "only": list(self.only),
            "align": self.align,
            "seed": self.seed,
        }


def as_share(ratio: Any) -> float:
    """A ratio as a number: of Python, of numpy, or in a tensor without axes."""
    problem = f"ratio={short(ratio)} is not usable: give the share to remove, a number from 0 to below 1"
    plain = ratio.item() if getattr(ratio, "shape", None) == () and hasattr(ratio, "item") else ratio
    if isinstance(plain, bool | np.bool_) or not isinstance(plain, Real | Decimal):
        raise InvalidArgument(problem)
    try:
        share = float(plain)
    except (ValueError, OverflowError) as error:
        raise InvalidArgument(problem) from error
    if not 0 <= share < 1:
        raise InvalidArgument(problem)
    return share


def as_count(name: str, value: Any, least: int, words: Sequence[str] = ()) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= int(value) < 1 << 64:
        others = "".join(f", or {word!r}" for word in words)
        raise InvalidArgument(f"{name}={short(value)} is not usable: give a whole number, {least} or more{others}")
    return int(value)


def as_alignment(align: Any) -> int | str | None:
    is_known = align is None or (isinstance(align, str) and align in BLOCKS)
    return align if is_known else as_count("align", align, 1, tuple(BLOCKS))


def check_switches(**switches: Any) -> None:
    for name, value in switches.items():
        if value is not None and not isinstance(value, bool):
            raise InvalidArgument(f"{name}={short(value)} is not usable: give True or False")


def check_choices(of: Any, score: Any, scope: Any, output: Any, verify: Any) -> None:
    for name, value, known in (
        ("of", of, MEASURES),
        ("scope", scope, SCOPES),
        ("output", output, OUTPUTS),
        ("verify", verify, VERIFICATIONS),
    ):
        if not (value is None or isinstance(value, str)) or value not in known:
            raise InvalidArgument(f"{name}={short(value)} is unknown; choose one of {', '.join(map(repr, known))}")
    is_function = callable(score) and not isinstance(score, type)
    if not is_function and (not isinstance(score, str) or score not in CRITERIA):
        raise InvalidArgument(
            f"score={short(score)} is unknown; there are {', '.join(sorted(CRITERIA))}, or give a function "
            "(group, weights) -> one number per index"
        )


def as_patterns(name: str, patterns: Any) -> tuple[str, ...]:
    if isinstance(patterns, str):
        return (patterns,)
    is_list = isinstance(patterns, Iterable) and not isinstance(patterns, bytes | Mapping)
    found = tuple(patterns) if is_list and getattr(patterns, "shape", None) != () else None
    if found is None or not all(isinstance(pattern, str) for pattern in found):
        raise InvalidArgument(f"{name}={short(patterns)} is not usable: give a name pattern or a list of them")
    return found
