"""Law 2 on models nobody here wrote, as one table: `python -m tests.conformance.run [pattern] [--fast]`."""

from __future__ import annotations

import argparse
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from structprune.api import decide
from structprune.frontends.torch.record.record import map_tensors
from structprune.options import Options
from structprune.plan import make, prove
from tests.conformance.catalog import Case, cases

RATIO = 0.5
LIMIT = 1e-9
# Where the model itself computes in float32, whatever it is given.
FLOAT32_LIMIT = 1e-5


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    name: str
    result: str
    ratio: float
    error: float
    groups: int
    frozen: float
    seconds: float
    limit: float
    note: str = ""

    @property
    def is_right(self) -> bool:
        return self.error <= self.limit and abs(self.ratio - RATIO) <= 0.01

    def __str__(self) -> str:
        return (
            f"| {self.name} | {self.result} | {self.ratio:.3f} | {self.error:.1e} | {self.groups} "
            f"| {self.frozen:.0%} | {self.seconds:.2f} | {self.note} |"
        )


HEADER = "| model | result | ratio | error | groups | frozen | CPU s | note |\n|---|---|---|---|---|---|---|---|"


def double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def check(case: Case) -> Row:
    """Shrink one model to half of its parameters and measure how far it is from the zeroed original."""
    model, inputs = case.build()
    model = model.double().eval()
    inputs = map_tensors(inputs, double)
    start = time.process_time()
    decision = decide(model, inputs, Options(RATIO))
    plan, analysis, realized = decision.plan, decision.analysis, decision.realized
    small = make(analysis, realized)
    seconds = time.process_time() - start
    error = prove(analysis, realized, small).error
    assert plan.report is not None
    left = sum(parameter.numel() for parameter in small.parameters())
    whole = sum(parameter.numel() for parameter in model.parameters())
    return Row(
        case.name,
        "own class" if type(small) is type(model) else "graph",
        1 - left / whole,
        error,
        len(analysis.groups),
        sum(share for _, share in plan.report.frozen[:1]),
        seconds,
        FLOAT32_LIMIT,
        plan.report.note.splitlines()[0][:160] if plan.report.note else "",
    )


class TookTooLong(Exception):
    """A model was given up on."""


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TookTooLong

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def attempt(case: Case, seconds: int) -> Row:
    try:
        with time_limit(seconds):
            return check(case)
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return Row(case.name, "error", 0.0, float("inf"), 0, 0.0, 0.0, FLOAT32_LIMIT, text[:240])


def table_parser(about: str | None, seconds: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("pattern", nargs="?", default=None, help="a regular expression that the names must hold")
    parser.add_argument("--library", default=None)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--seconds", type=int, default=seconds, help="give a model up after this long")
    parser.add_argument("--out", type=Path, default=None, help="also write the table to this file")
    return parser


def conclude(header: str, rows: Sequence[object], summary: str, out: Path | None) -> None:
    print(f"\n{summary}")
    if out:
        out.write_text("\n".join([header, *map(str, rows), "", summary, ""]), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    options = table_parser(__doc__, seconds=180).parse_args(arguments)
    warnings.filterwarnings("ignore")
    print(HEADER, flush=True)
    rows = []
    for case in cases(options.library, options.fast, options.pattern):
        rows.append(attempt(case, options.seconds))
        print(rows[-1], flush=True)
    right = [row for row in rows if row.is_right]
    own = [row for row in right if row.result == "own class"]
    summary = (
        f"{len(right)} of {len(rows)} right ({len(own)} in their own class); "
        f"{sum(row.error <= LIMIT for row in right)} to {LIMIT:g}"
    )
    conclude(HEADER, rows, summary, options.out)
    return 0 if len(right) == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
