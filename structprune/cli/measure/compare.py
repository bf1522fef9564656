"""`structprune compare`: two models side by side."""

from __future__ import annotations

import gc
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np

import structprune
from structprune.cli.measure.memory import peak_memory
from structprune.cli.measure.runner import (
    Array,
    OnnxRunner,
    Runner,
    Taken,
    TorchRunner,
    described_tensors,
    in_order,
    ran,
    random_arrays,
    settled,
)
from structprune.cli.outcome import Outcome
from structprune.cli.source import Source, existing, files_of, read_source
from structprune.errors import CaptureError, UnsupportedModel, printed
from structprune.frontends import stored_shapes
from structprune.graph.progress import doing
from structprune.views.analysis import Analysis

WARM_UP = 5
# Of an idle machine the system itself takes less.
MOST_INTERRUPTED = 0.05


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two models, loaded; without an analysis where only onnxruntime understands the file."""

    source: Source
    analysis: Analysis | None
    runner: Runner

    @classmethod
    def load(cls, name: str, options: Namespace) -> Side:
        source = read_source(name, None, options.input)
        if not source.is_onnx:
            analysis = structprune.analyze(source.model, source.inputs)
            return cls(source, analysis, TorchRunner(source.model, analysis.frontend.inputs(), options.threads))
        existing(name)
        try:
            analysis = structprune.analyze(source.model, source.inputs)
        except (CaptureError, UnsupportedModel) as refusal:
            try:
                return cls(source, None, OnnxRunner(name, source.inputs or {}, options.threads))
            except UnsupportedModel:
                raise refusal from None
        shapes = {each.name: each.shape for each in described_tensors(analysis.frontend.inputs(), "")}
        return cls(source, analysis, OnnxRunner(name, shapes, options.threads))

    def at(self, taken: Sequence[Taken], prepared: Any) -> Side:
        """The same, counted at these sizes of the inputs: a batch may be open."""
        if self.analysis is None or all(a.shape == b.shape for a, b in zip(self.runner.takes, taken, strict=True)):
            return self
        inputs = prepared if self.source.is_onnx else prepared[0] or prepared[1]
        return replace(self, analysis=structprune.analyze(self.source.model, inputs))

    def peak(self, taken: list[Taken], threads: int) -> int | None:
        structure = None if self.analysis is None else self.analysis.frontend.inputs()
        return peak_memory(self.source.name, structure, taken, threads)

    def counted(self) -> dict[str, Any]:
        size = sum(path.stat().st_size for path in files_of(self.source.name))
        return {
            "model": self.source.name,
            "runtime": self.runner.runtime,
            "parameters": stored(self.source.model) if self.analysis is None else self.analysis.frontend.total,
            "macs": None if self.analysis is None else self.analysis.measure("macs").whole,
            "file_bytes": size or None,
        }


def stored(path: Path) -> int | None:
    """The weights that lie in an ONNX file, whatever is computed with them."""
    try:
        return sum(map(prod, stored_shapes(path).values()))
    except UnsupportedModel:
        return None


def compare(options: Namespace) -> Outcome:
    """Count, measure memory in processes of their own, then time both in turns."""
    sides = [Side.load(name, options) for name in (options.first, options.second)]
    first, second = (side.runner.takes for side in sides)
    orders = [list(range(len(first))), in_order(first, second)]
    taken = settled(first, second, orders[1], bool(options.input))
    arrays = random_arrays(taken, options.seed)
    found: list[dict[str, Any]] = []
    prepared: list[Any] = []
    outputs: list[list[Array]] = []
    for side, order in zip(sides, orders, strict=True):
        prepared.append(side.runner.prepare([arrays[place] for place in order]))
        outputs.append(side.runner.arrays(ran(side.runner, prepared[-1], side.source.name)))
        own = [taken[place] for place in order]
        doing(f"measuring the memory of {side.source.name}")
        peak = side.peak(own, options.threads)
        found.append({**side.at(own, prepared[-1]).counted(), "outputs": len(outputs[-1]), "peak_memory_bytes": peak})
    times, computing = timed([side.runner for side in sides], prepared, options.runs)
    for each, seconds in zip(found, times, strict=True):
        p10, median, p90 = (float(number) * 1e3 for number in np.quantile(seconds, (0.1, 0.5, 0.9)))
        each["latency_ms"] = {"p10": p10, "median": median, "p90": p90}
    data = {
        "command": "compare",
        "a": found[0],
        "b": found[1],
        "inputs": [{"name": each.name, "shape": each.shape, "dtype": each.dtype} for each in taken],
        "runs": options.runs,
        "threads": options.threads,
        # Only of a single thread it is known that it never waits by itself.
        "interrupted": max(0.0, 1 - computing) if options.threads == 1 else None,
        "speed_up": found[0]["latency_ms"]["median"] / found[1]["latency_ms"]["median"],
        # Models of different kinds may give more or fewer; the first ones are what they share.
        "differences": [difference(a, b) for a, b in zip(*outputs, strict=False)],
    }
    return Outcome(table(data), data)


def timed(runners: Sequence[Runner], prepared: Sequence[Any], runs: int) -> tuple[list[list[float]], float]:
    """Seconds of each run, and the share of that time in which the process did compute, on however many threads.

    The models take turns, so that a slow spell of the machine hits all. Another model's turn leaves its own weights
    in the caches: a run that is not timed brings back those of the next, as if it ran alone.
    """
    for runner, each in zip(runners, prepared, strict=True):
        for _ in range(WARM_UP):
            runner.run(each)
    times: list[list[float]] = [[] for _ in runners]
    computed = 0.0
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for turn in range(runs):
            doing("timing run", turn + 1, runs)
            for k in range(len(runners)):
                place = (turn + k) % len(runners)
                runners[place].run(prepared[place])
                used, start = process_time(), perf_counter()
                runners[place].run(prepared[place])
                times[place].append(perf_counter() - start)
                computed += process_time() - used
    finally:
        if was_enabled:
            gc.enable()
    return times, computed / sum(map(sum, times))


def difference(a: Array, b: Array) -> dict[str, Any]:
    """The largest difference between two outputs, and the largest entry of the first."""
    if a.shape != b.shape:
        return {"shapes": [list(a.shape), list(b.shape)], "largest_difference": None, "largest_entry": None}
    wide = np.complex128 if a.dtype.kind == "c" else np.float64
    gap, entry = np.abs(a.astype(wide) - b.astype(wide)), np.abs(a.astype(wide))
    return {
        "shapes": [list(a.shape), list(b.shape)],
        "largest_difference": finite(gap.max(initial=0.0)),
        "largest_entry": finite(entry.max(initial=0.0)),
    }


def finite(number: float) -> float | None:
    return float(number) if np.isfinite(number) else None


# -- as text ---------------------------------------------------------------------------------------


def table(data: dict[str, Any]) -> str:
    a, b = data["a"], data["b"]
    rows: list[tuple[str, ...]] = [("", a["model"], b["model"], "B / A")]
    for title, key, scale, pattern in (
        ("parameters", "parameters", 1, ",d"),
        ("multiply-accumulates", "macs", 1, ",d"),
        ("file size, bytes", "file_bytes", 1, ",d"),
        ("peak memory, MiB", "peak_memory_bytes", 2**20, ",.1f"),
    ):
        rows.append((title, *(shown(each[key], scale, pattern) for each in (a, b)), quotient(a[key], b[key])))
    medians = [each["latency_ms"]["median"] for each in (a, b)]
    rows.append(("latency, ms", *(f"{each:,.3f}" for each in medians), quotient(*medians)))
    spread = [f"{each['latency_ms']['p10']:,.3f} to {each['latency_ms']['p90']:,.3f}" for each in (a, b)]
    rows.append(("  10 % to 90 %", *spread, ""))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}".rstrip()
        for row in rows
    ]
    runtimes = " and ".join(dict.fromkeys((a["runtime"], b["runtime"])))
    inputs = ", ".join(f"{each['name']} {list(each['shape'])}".strip() for each in data["inputs"])
    lines.append(
        f"B is {data['speed_up']:.2f} times as fast as A: medians of {data['runs']} runs each, in turns, "
        f"{data['threads']} thread{'s' * (data['threads'] > 1)}, {runtimes}, inputs {inputs}"
    )
    if (data["interrupted"] or 0.0) > MOST_INTERRUPTED:
        lines.append(
            f"the machine was busy: other programs held the processor for {data['interrupted']:.0%} of the runs' time, "
            "more often in the longer runs; measure again when it is idle"
        )
    lines.extend(outputs_apart(data["differences"]))
    if a["outputs"] != b["outputs"]:
        lines.append(f"A gives {a['outputs']} outputs and B {b['outputs']}")
    return printed(lines)


def shown(number: float | None, scale: int, pattern: str) -> str:
    return "n/a" if number is None else format(number if scale == 1 else number / scale, pattern)


def quotient(a: float | None, b: float | None) -> str:
    return f"{b / a:.3f}" if a and b is not None else ""


def outputs_apart(outputs: Sequence[dict[str, Any]]) -> list[str]:
    lines: list[str] = []
    for place, each in enumerate(outputs):
        name = f"output {place}" if len(outputs) > 1 else "the output"
        (a, b), gap, entry = each["shapes"], each["largest_difference"], each["largest_entry"]
        if a != b:
            lines.append(f"{name} has other shapes: {a} and {b}")
        elif gap is None or entry is None:
            lines.append(f"{name} has entries that are not finite")
        else:
            lines.append(f"{name} differs by at most {gap:.3g}; its largest entry is {entry:.3g}")
    return lines
