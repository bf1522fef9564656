"""`structprune shrink` and `structprune apply`."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from structprune.api import decide
from structprune.cli.outcome import Outcome
from structprune.cli.outputs import Outputs, write
from structprune.cli.source import Source, need, read_source
from structprune.errors import InvalidArgument, OutputError
from structprune.frontends import neutral
from structprune.options import Options
from structprune.plan import Plan

# Options of the call that are passed on where they are given; its own defaults hold otherwise.
PASSED_ON = ("of", "score", "scope", "align", "exclude", "only", "output", "seed")
# What torch models can be written as, each with the package that it takes.
WRITERS = {".onnx": "onnxscript", ".pt2": "torch", ".safetensors": "safetensors"}


def shrink(options: Namespace) -> Outcome:
    """Plan, and carry the plan out unless this is a dry run."""
    if options.out is None and not options.dry_run:
        raise InvalidArgument("OUT is missing: name the file to write, or say --dry-run")
    given = {name: getattr(options, name) for name in PASSED_ON if getattr(options, name) is not None}
    given.update(verification(options))
    if options.align is None and (options.out or "").endswith(".onnx"):
        given["align"] = "onnxruntime"
    with Outputs((options.model, options.weights), options.force) as outputs:
        model = None if options.dry_run else Target.place(options, outputs)
        saved, report = (None if name is None else outputs.place(name) for name in (options.plan, options.report))
        source = read_source(options.model, options.weights, options.input)
        with neutral(source.model):
            decision = decide(source.model, source.inputs, Options(options.ratio, **given))
            plan, note = decision.plan, ""
            if model is not None:
                with model.named():
                    small = decision.carried_out(model.path if source.is_onnx else None)
                note = model.write(small, plan, source)
        outcome = reported(plan, options, note, {"dry_run": options.dry_run})
        if saved:
            write(options.plan, saved, plan.save)
        if report:
            text = json.dumps(outcome.data["report"], indent=1) if options.report.endswith(".json") else str(plan)
            write(options.report, report, lambda path: path.write_text(f"{text}\n", encoding="utf-8"))
    return with_files(outcome, outputs)


def apply(options: Namespace) -> Outcome:
    """Carry out a plan that was saved."""
    plan = Plan.load(options.plan)
    plan.verify = verification(options).get("verify", plan.verify)
    with Outputs((options.model, options.weights, options.plan), options.force) as outputs:
        target = Target.place(options, outputs)
        source = read_source(options.model, options.weights, options.input)
        with target.named():
            given = source.inputs if options.input else None
            small = plan.apply(source.model, given, output_path=target.path if source.is_onnx else None)
        note = target.write(small, plan, source)
    return with_files(reported(plan, options, note, {"plan": options.plan}), outputs)


@dataclass(frozen=True, slots=True)
class Target:
    """The model to write: its name, and the path at which it is prepared."""

    name: str
    path: Path

    @classmethod
    def place(cls, options: Namespace, outputs: Outputs) -> Target:
        """All that can be known before the long work is checked: the ending, the packages, the folder."""
        name: str = options.out
        if options.model.endswith(".onnx") and not name.endswith(".onnx"):
            raise InvalidArgument(f"{name}: an ONNX model gives an ONNX model; let OUT end in .onnx")
        if Path(name).suffix not in WRITERS:
            raise InvalidArgument(f"{name}: OUT's ending says what to write: {', '.join(WRITERS)}")
        if not options.model.endswith(".onnx"):
            need(WRITERS[Path(name).suffix], f"writing {name}")
        return cls(name, outputs.place(name))

    @contextmanager
    def named(self) -> Iterator[None]:
        """Errors speak of the name that the user gave."""
        try:
            yield
        except OutputError as error:
            raise OutputError(str(error).replace(str(self.path), self.name)) from error

    def write(self, small: Any, plan: Plan, source: Source) -> str:
        """Write a torch result (ONNX ones are files already); give back what there is to say of the file."""
        if source.is_onnx:
            return ""
        from structprune.cli.torch_writer import write_torch

        return write_torch(small, source, plan, self.name, self.path)


def verification(options: Namespace) -> dict[str, Any]:
    return {} if options.verify is None else {"verify": None if options.verify == "none" else options.verify}


def reported(plan: Plan, options: Namespace, note: str, more: dict[str, Any]) -> Outcome:
    report = None if plan.report is None else plan.report.as_dict()
    data = {"command": options.command, "model": options.model, **more, "note": note, "report": report}
    return Outcome(f"{plan}\n  {note}" if note else str(plan), data)


def with_files(outcome: Outcome, outputs: Outputs) -> Outcome:
    """What was written, known once it is."""
    files = [{"path": str(path), "bytes": path.stat().st_size} for path in outputs.written]
    lines = [f"  wrote {file['path']} ({file['bytes']:,} bytes)" for file in files]
    return Outcome("\n".join([outcome.text, *lines]), {**outcome.data, "files": files})
