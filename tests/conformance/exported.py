"""Law 2 on ONNX files of models nobody here wrote: `python -m tests.conformance.exported [pattern] [--fast]`."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

import structprune
from structprune.frontends.torch.record import tensors_in
from tests.conformance.catalog import Case, cases
from tests.conformance.run import HEADER, RATIO, Row, TookTooLong, conclude, table_parser, time_limit

EXPORTERS = ("dynamo", "older")
# Single precision, in units of the largest output.
LIMIT = 1e-4


class NotExported(Exception):
    """torch's exporter refuses the model: there is no file."""


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
        raise NotExported(f"{type(error).__name__}: {error}") from error
    return given


def check(case: Case, exporter: str) -> Row:
    model, inputs = case.build()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        given = export(model.float().eval(), inputs, exporter, path)
        del model
        arrays = [(t.float() if t.is_floating_point() else t).numpy() for t in given]
        start = time.process_time()
        plan = structprune.plan(path, RATIO, arrays)
        analysis, realized = plan.realized(path)
        small = realized.finish(True)
        written = analysis.frontend.deliver(small, Path(folder) / "small.onnx", False)
        seconds = time.process_time() - start
        session = onnxruntime.InferenceSession(str(written))
        session.run(None, {each.name: array for each, array in zip(session.get_inputs(), arrays, strict=True)})
        error = analysis.frontend.error(realized.rewrite, small)
    assert plan.report is not None
    before, after = plan.report.parameters
    shares = sum(share for _, share in plan.report.frozen[:1])
    ratio, groups = 1 - after / before, len(analysis.groups)
    return Row(f"{case.name} ({exporter})", "ONNX", ratio, error, groups, shares, seconds, LIMIT, plan.report.note[:60])


def attempt(case: Case, exporter: str, seconds: int) -> Row:
    name = f"{case.name} ({exporter})"
    try:
        with time_limit(seconds):
            return check(case, exporter)
    except NotExported as error:
        return Row(name, "no file", 0.0, 0.0, 0, 0.0, 0.0, LIMIT, " ".join(str(error).split())[:160])
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return Row(name, "error", 0.0, float("inf"), 0, 0.0, 0.0, LIMIT, text[:240])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = table_parser(__doc__, seconds=300)
    parser.add_argument("--exporter", choices=EXPORTERS, default=None)
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    print(HEADER, flush=True)
    rows = []
    for case in cases(options.library, options.fast, options.pattern):
        for exporter in (options.exporter,) if options.exporter else EXPORTERS:
            rows.append(attempt(case, exporter, options.seconds))
            print(rows[-1], flush=True)
    files = [row for row in rows if row.result != "no file"]
    right = [row for row in files if row.is_right]
    worst = max((row.error for row in right), default=0.0)
    summary = (
        f"{len(right)} of {len(files)} files right, the largest error {worst:.1e}; "
        f"torch could not export {len(rows) - len(files)}"
    )
    conclude(HEADER, rows, summary, options.out)
    return 0 if len(right) == len(files) else 1


if __name__ == "__main__":
    sys.exit(main())
