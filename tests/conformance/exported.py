"""Law 2 on ONNX files of models nobody here wrote: `python -m tests.conformance.exported [pattern] [--fast] [--rival]`.

One model of every other family; a pattern (`.` for all) chooses among all models. `--rival` needs onnxsim, which
needs Python 3.11.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from structprune.api import decide
from structprune.frontends.onnx.write.oracle import ONLY_FATAL
from structprune.frontends.torch.record.record import tensors_in
from structprune.options import Options
from structprune.plan import make, prove
from tests.conformance.catalog import Case, cases, one_of_each_family
from tests.conformance.rival import LIMIT, Outcome, outcome
from tests.conformance.run import HEADER, RATIO, Row, TookTooLong, conclude, table_parser, time_limit

EXPORTERS = ("dynamo", "older")


class NotExported(Exception):
    """torch's exporter refuses the model, or onnxruntime refuses its file: there is nothing to shrink."""


class Flat(nn.Module):
    """Tensors in, tensors out, whatever the model takes and gives."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__()
        self.model = model
        self.keys = list(inputs) if isinstance(inputs, dict) else None

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        if self.keys is None:
            return tuple(tensors_in(self.model(*tensors)))
        return tuple(tensors_in(self.model(**dict(zip(self.keys, tensors, strict=True)))))


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """The exporters print whole graphs, from C++ too."""
    sys.stdout.flush()
    kept = [os.dup(1), os.dup(2)]
    with open(os.devnull, "wb") as nowhere:
        try:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            sys.stdout.flush()
            for number, copy in enumerate(kept, start=1):
                os.dup2(copy, number)
                os.close(copy)


def export(model: nn.Module, inputs: Any, exporter: str, path: Path) -> list[Tensor]:
    """The file, with its batch size open where the exporter can; the tensors that it takes."""
    if isinstance(inputs, dict) and "attention_mask" in signature(model.forward).parameters and "input_ids" in inputs:
        # Without one, decoders look for packed sequences by an operator that the older exporter lacks.
        inputs = {"attention_mask": torch.ones_like(inputs["input_ids"]), **inputs}
    given = [inputs] if isinstance(inputs, Tensor) else list(inputs.values() if isinstance(inputs, dict) else inputs)
    flat = Flat(model, inputs).eval()
    names = [f"x{place}" for place in range(len(given))]
    if exporter == "dynamo":
        options: dict[str, Any] = {"dynamic_shapes": {"tensors": tuple({0: torch.export.Dim.AUTO} for _ in given)}}
    else:
        options = {"dynamic_axes": {name: {0: "batch"} for name in names}}
    try:
        with silence():
            torch.onnx.export(
                flat, tuple(given), path, dynamo=exporter == "dynamo", input_names=names, verbose=False, **options
            )
    except TookTooLong:
        raise
    except Exception as error:
        raise NotExported(one_line(error)) from error
    return given


def run(path: Path, arrays: Sequence[Any]) -> list[tuple[int, ...]]:
    """As users run it; the shapes that it gives."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ONLY_FATAL
    session = onnxruntime.InferenceSession(str(path), options)
    feeds = {each.name: array for each, array in zip(session.get_inputs(), arrays, strict=True)}
    return [np.shape(each) for each in session.run(None, feeds)]


def with_one_more(arrays: Sequence[Any]) -> list[Any]:
    """The same inputs, with one sample more."""
    return [np.concatenate([each, each[:1]]) if each.ndim else each for each in arrays]


def check(name: str, path: Path, arrays: Sequence[Any]) -> Row:
    """Shrink a file to half of its parameters and measure how far it is from the zeroed original."""
    start = time.process_time()
    decision = decide(path, arrays, Options(RATIO))
    plan, analysis, realized = decision.plan, decision.analysis, decision.realized
    small = make(analysis, realized)
    written = analysis.frontend.deliver(small, path.with_name("small.onnx"), False)
    seconds = time.process_time() - start
    run(written, arrays)
    note = ""
    try:
        expected = run(path, with_one_more(arrays))
    except TookTooLong:
        raise
    except Exception:  # onnxruntime raises many kinds; the table says where this was so
        note = "the exported file itself takes this number of samples alone"
    else:
        if (found := run(written, with_one_more(arrays))) != expected:
            raise AssertionError(f"with one sample more it gives {found}, not {expected}")
    error = prove(analysis, realized, small).error
    assert plan.report is not None
    before, after = plan.report.parameters
    shares = sum(share for _, share in plan.report.frozen[:1])
    ratio, groups = 1 - after / before, len(analysis.groups)
    return Row(name, "ONNX", ratio, error, groups, shares, seconds, LIMIT, note)


@dataclass(frozen=True, slots=True)
class Tried:
    case: Case
    row: Row
    rival: Outcome | None = None

    def __str__(self) -> str:
        return str(self.row) if self.rival is None else f"{self.row} {self.rival} |"


def attempt(case: Case, exporter: str, seconds: int, has_rival: bool) -> Tried:
    name = f"{case.name} ({exporter})"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            with time_limit(seconds):
                model, inputs = case.build()
                given = export(model.float().eval(), inputs, exporter, path)
                arrays = [(t.float() if t.is_floating_point() else t).numpy() for t in given]
                try:
                    run(path, arrays)
                except Exception as error:
                    raise NotExported(f"onnxruntime refuses the file: {one_line(error)}") from error
        except (NotExported, TookTooLong) as error:
            row = Row(name, "no file", 0.0, 0.0, 0, 0.0, 0.0, LIMIT, str(error)[:160] or "took too long")
            return Tried(case, row, Outcome(0.0, "no file") if has_rival else None)
        del model
        try:
            with time_limit(seconds):
                row = check(name, path, arrays)
        except Exception as error:
            row = Row(name, "error", 0.0, float("inf"), 0, 0.0, 0.0, LIMIT, one_line(error)[:240])
        return Tried(case, row, outcome(path, arrays) if has_rival else None)


def one_line(error: Exception) -> str:
    without_colours = re.sub(r"\x1b\[\d+m", "", f"{type(error).__name__}: {error}")
    return " ".join(without_colours.split())


def summary(tried: Sequence[Tried], has_rival: bool) -> str:
    """One line for each library."""
    lines = ["| library | architectures | files | right | largest error | median CPU s | torch could not export |"]
    lines[0] += " onnxsim: right | runs | gives nothing | median removed |" if has_rival else ""
    lines.append("|---" * (lines[0].count("|") - 1) + "|")
    for library in dict.fromkeys(each.case.library for each in tried):
        here = [each for each in tried if each.case.library == library]
        files = [each for each in here if each.row.result != "no file"]
        right = [each.row for each in files if each.row.is_right]
        error, seconds = max((row.error for row in right), default=0.0), median([row.seconds for row in right] or [0.0])
        architectures = len({each.case.name for each in files})
        line = f"| {library} | {architectures} | {len(files)} | {len(right)} | {error:.1e} | {seconds:.2f} |"
        line += f" {len(here) - len(files)} |"
        others = [each.rival for each in files if each.rival is not None]
        if has_rival:
            words = Counter(each.word for each in others)
            removed = median([each.removed if each.is_usable else 0.0 for each in others] or [0.0])
            nothing = sum(not each.is_usable for each in others)
            line += f" {words['right']} | {words['runs']} | {nothing} | {removed:.2f} |"
        lines.append(line)
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = table_parser(__doc__, seconds=300)
    parser.add_argument("--exporter", choices=EXPORTERS, default=None)
    parser.add_argument("--rival", action="store_true", help="what onnxsim's pruning makes of each file, too")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    chosen = cases(options.library, options.fast, options.pattern)
    if options.pattern is None and not options.fast:
        # All families take two hours.
        chosen = one_of_each_family(chosen)[::2]
    header = HEADER.replace(" note |", " note | onnxsim |") + "---|" if options.rival else HEADER
    print(header, flush=True)
    tried = []
    for case in chosen:
        for exporter in (options.exporter,) if options.exporter else EXPORTERS:
            tried.append(attempt(case, exporter, options.seconds, options.rival))
            print(tried[-1], flush=True)
    conclude(header, tried, summary(tried, options.rival), options.out)
    return 0 if all(each.row.is_right or each.row.result == "no file" for each in tried) else 1


if __name__ == "__main__":
    sys.exit(main())
