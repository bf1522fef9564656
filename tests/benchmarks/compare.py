"""Side by side with Torch-Pruning: `python -m tests.benchmarks.compare [pattern] [--repeats N] [--out FILE]`.

Every measurement runs in a process of its own, one thread, the two tools in turns, and is given up after a limit
("did not return"). What is measured:

- CPU s: process time from the model to the pruned model, the least of the repeats. Before, the library has pruned
  one tiny model, so that its imports are not counted.
- peak: memory above that of the process with the model, in units of the result's own size (VmHWM, set back before).
  About 20 MB of it is what torch loads when an operator first runs: a lot, in units of a small result.
  structprune leaves the original whole; Torch-Pruning cuts the model that it is given.
- ratio: parameters asked for (0.5) and reached. Torch-Pruning takes a share of the channels: 1 - sqrt(0.5).
- error: tests/benchmarks/oracle.py, the same for both, on the float64 model with random parameters and statistics.
- latency: of one forward pass at batch size one, the median of interleaved runs of the original and both results.

Torch-Pruning is called as its README says, the classifier ignored; where a row says "heads told" it is also given the
head counts, and attributes are mended afterwards, as in its own examples. structprune gets the model and the inputs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.subjects import TOOLS, Subject, build, call, subjects, warm_up

RATIO = 0.5
RIGHT = 1e-9
# Where the model itself computes in float32, whatever it is given: the rotary tables and norms of Llama.
RIGHT_IN_FLOAT32 = 1e-5
LOADED_ONCE = 20e6
# Ours as it is by default, with its proof in numbers; and with verify="shapes", whose time alone is looked at.
OURS, SHAPES, THEIRS = "structprune", "structprune, shapes", "torch-pruning"
Record = dict[str, Any]

# -- inside a process of its own -------------------------------------------------------------------------


def status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{field}:"))) * 1024


def forget_peak() -> int:
    """Start the high-water mark anew; what is in use now. Zero where the system does not allow it."""
    import ctypes
    import gc

    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return 0
    return status("VmRSS")


def size(model: Any) -> int:
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def measure(subject: Subject, tool: str, folder: Path) -> Record:
    """Time and memory; the result is left in the folder."""
    import torch

    warm_up(tool)
    model, inputs = build(subject)
    whole = count(model)
    before = forget_peak()
    start = time.process_time()
    small = TOOLS[tool](subject, model, inputs, RATIO)
    seconds = time.process_time() - start
    peak = status("VmHWM") - before
    if tool != SHAPES:
        torch.save(small, folder / f"{tool}.pt")
    return {
        "seconds": seconds,
        "peak": peak / size(small) if before else None,
        "size": size(small),
        "ratio": 1 - count(small) / whole,
    }


def exactness(subject: Subject, tool: str, folder: Path) -> Record:
    """The error of a float64 result, or what stops it from running."""
    import copy

    import torch

    from tests.benchmarks import oracle
    from tests.conformance.catalog import calibrate, randomize

    model, inputs = build(subject)
    model = randomize(model).double()
    with torch.no_grad():  # float32 numbers repeat; the oracle wants each only once
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.mul_(1 + 1e-6 * torch.randn_like(tensor))
    if isinstance(inputs, torch.Tensor):
        inputs = inputs.double()
        model, _ = calibrate(model, inputs)
    small = TOOLS[tool](subject, copy.deepcopy(model), inputs, RATIO)
    try:
        with torch.no_grad():
            call(small, inputs)
    except Exception as error:
        return {"problem": f"its result crashes ({type(error).__name__})"}
    try:
        return {"error": oracle.error(model, small, inputs)}
    except oracle.NotAPart as error:
        return {"problem": f"its result runs; {error}"}


def latency(subject: Subject, tool: str, folder: Path) -> Record:
    """Milliseconds of the original and of each result, in turns."""
    import torch

    model, inputs = build(subject)
    models = {"original": model}
    for path in sorted(folder.glob("*.pt")):
        models[path.stem] = torch.load(path, weights_only=False).eval()
    times: dict[str, list[float]] = {name: [] for name in models}
    start = time.perf_counter()
    with torch.no_grad():
        for name, each in list(models.items()):
            try:
                call(each, inputs)
            except Exception:  # a result that crashes has no latency; `exactness` says how it crashed
                del models[name]
        while time.perf_counter() - start < 6 or len(times["original"]) < 5:
            for name, each in models.items():
                at = time.perf_counter()
                call(each, inputs)
                times[name].append((time.perf_counter() - at) * 1000)
            if len(times["original"]) == 40:
                break
    return {name: statistics.median(each) for name, each in times.items() if each}


JOBS = {"measure": measure, "exactness": exactness, "latency": latency}


def work(job: str, name: str, tool: str, folder: Path) -> None:
    """Run one measurement and print it as the last line."""
    import warnings

    import torch

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    subject = next(each for each in subjects() if each.name == name)
    try:
        found = JOBS[job](subject, tool, folder)
    except Exception as error:
        found = {"problem": f"crashes: {type(error).__name__}: {' '.join(str(error).split())[:120]}"}
    print(json.dumps(found), flush=True)


# -- outside ---------------------------------------------------------------------------------------------


def run(job: str, subject: Subject, tool: str, folder: Path, limit: int) -> Record:
    command = [sys.executable, "-m", "tests.benchmarks.compare", "--work", job, subject.name, tool, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"problem": f"did not return within {limit} s"}
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return {"problem": f"ended with {done.returncode}: {done.stderr[-120:]}"}
    record: Record = json.loads(lines[-1])
    return record


def compare(subject: Subject, repeats: int, limit: int) -> dict[str, Record]:
    """All measurements of one model, the tools in turns."""
    found: dict[str, Record] = {tool: {} for tool in TOOLS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for repeat in range(repeats):
            for tool in list(TOOLS)[:: 1 if repeat % 2 == 0 else -1]:
                if "problem" in found[tool]:
                    continue
                record = run("measure", subject, tool, folder, limit)
                if "seconds" in found[tool] and "seconds" in record:
                    record["seconds"] = min(record["seconds"], found[tool]["seconds"])
                found[tool].update(record)
        for tool, record in found.items():
            if "problem" not in record and tool != SHAPES:
                record.update(run("exactness", subject, tool, folder, 3 * limit))
        times = run("latency", subject, "", folder, 3 * limit)
    for tool, record in found.items():
        record["latency"] = times.get(tool)
        record["original"] = times.get("original")
    return found


HEADER = (
    "| model | CPU s: structprune | verify='shapes' | Torch-Pruning | times faster | verify='shapes' "
    "| removed: structprune | Torch-Pruning "
    "| error: structprune | Torch-Pruning | peak: structprune | verify='shapes' | Torch-Pruning "
    "| latency ms: original | structprune | Torch-Pruning |\n" + "|---" * 16 + "|"
)


def number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def verdict(record: Record) -> str:
    if "problem" in record:
        return str(record["problem"])
    return "shape of output changed" if record["error"] == float("inf") else f"{record['error']:.0e}"


def times_faster(record: Record, other: Record) -> float | None:
    return other["seconds"] / record["seconds"] if "seconds" in record and "seconds" in other else None


def row(name: str, found: dict[str, Record]) -> str:
    ours, shapes, theirs = (found[tool] for tool in (OURS, SHAPES, THEIRS))
    cells = [
        name,
        *(number(each.get("seconds"), ".2f") or each["problem"].partition(":")[0] for each in (ours, shapes, theirs)),
        *(number(times_faster(each, theirs), ".1f") for each in (ours, shapes)),
        *(number(each.get("ratio"), ".3f") for each in (ours, theirs)),
        *(verdict(each) for each in (ours, theirs)),
        *(number(each.get("peak"), ".2f") for each in (ours, shapes, theirs)),
        *(number(each, ".1f") for each in (ours["original"], ours["latency"], theirs["latency"])),
    ]
    return f"| {' | '.join(cells)} |"


def is_exact(name: str, record: Record) -> bool:
    return bool(record.get("error", float("inf")) <= (RIGHT_IN_FLOAT32 if "llama" in name else RIGHT))


def allowed(record: Record) -> float:
    """The result, 10 % of it and of the original, and what torch loads once, in units of the result."""
    return float(1 + 0.1 * (1 + 1 / (1 - record["ratio"])) + LOADED_ONCE / record["size"])


def summary(table: dict[str, dict[str, Record]]) -> str:
    lines = [f"{len(table)} models."]
    for tool in (SHAPES, OURS):
        found = {name: times_faster(each[tool], each[THEIRS]) for name, each in table.items()}
        speed = {name: value for name, value in found.items() if value is not None}
        if speed:
            median = statistics.median(speed.values())
            lines.append(f"{tool} is {median:.1f} times as fast on the median model where both return.")
    slower = [f"{name} ({value:.2f})" for name, value in speed.items() if value < 1]
    lines.append(f"Slower on: {', '.join(slower) or 'none'}.")
    second = [name for name, found in table.items() if found[OURS].get("seconds", 0) >= 1]
    lines.append(f"Above one CPU second: {', '.join(second) or 'none'}.")
    for tool in (OURS, THEIRS):
        exact = sum(is_exact(name, found[tool]) for name, found in table.items())
        hits = sum(abs(found[tool].get("ratio", -1) - RATIO) <= 0.01 for found in table.values())
        stopped = {name: found[tool]["problem"] for name, found in table.items() if "problem" in found[tool]}
        problems = [f"{name} ({problem.partition(':')[0]})" for name, problem in stopped.items()]
        lines.append(
            f"{tool}: equals the zeroed original on {exact}, within 0.01 of the ratio on {hits}, "
            f"no working result on {len(problems)}{': ' if problems else ''}{', '.join(problems)}."
        )
    peaks = {name: found[SHAPES] for name, found in table.items() if found[SHAPES].get("peak")}
    fat = [name for name, record in peaks.items() if record["peak"] > allowed(record)]
    lines.append(f"Peak above original + result + 10 % with verify='shapes': {', '.join(fat) or 'none'}.")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern", nargs="?", default=None, help="a regular expression that the names must hold")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=120, help="give a tool up on a model after this long")
    parser.add_argument("--out", type=Path, default=None, help="also write the table to this file")
    parser.add_argument("--work", nargs=4, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.work:
        job, name, tool, folder = options.work
        work(job, name, tool, Path(folder))
        return 0
    print(HEADER, flush=True)
    table: dict[str, dict[str, Record]] = {}
    lines = [HEADER]
    for subject in subjects(options.pattern):
        table[subject.name] = compare(subject, options.repeats, options.seconds)
        lines.append(row(subject.name, table[subject.name]))
        print(lines[-1], flush=True)
    lines += ["", summary(table)]
    print(f"\n{lines[-1]}", flush=True)
    if options.out is not None:
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
