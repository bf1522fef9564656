"""The peak memory of a model, measured in a fresh process: `python -m structprune.cli.memory` with a task on stdin."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import redirect_stdout, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from structprune.cli.measure.runner import OnnxRunner, Runner, Taken, TorchRunner, random_arrays
from structprune.cli.source import read_source
from structprune.errors import UnsupportedModel

STATUS = Path("/proc/self/status")


def peak_memory(model: str, structure: Any, taken: list[Taken], threads: int) -> int | None:
    """Bytes that loading and running a model takes beyond what its runtime takes; None where the system can't tell."""
    if not STATUS.exists():
        return None
    inputs = [[each.name, each.shape, each.dtype] for each in taken]
    task = {"model": model, "structure": structure, "inputs": inputs, "threads": threads, "path": sys.path}
    done = subprocess.run(
        [sys.executable, "-m", __name__], input=json.dumps(task), capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise UnsupportedModel(f"{model} does not run in a process of its own: {last[0]}")
    return int(done.stdout)


def measured(task: dict[str, Any]) -> int:
    """What the fresh process does.

    torch's loading is left out, for it imports a compiler: there the weights count, and what running adds.
    """
    sys.path[:] = task["path"]
    name = task["model"]
    arrays = random_arrays([Taken(each, tuple(shape), dtype) for each, shape, dtype in task["inputs"]], 0)
    runner: Runner
    if name.endswith(".onnx"):
        import_module("onnxruntime")
        before = reset_peak()
        runner = OnnxRunner(name, {}, task["threads"])
    else:
        source = read_source(name, None, ())
        runner = TorchRunner(source.model, task["structure"], task["threads"])
        tensors = [*source.model.parameters(), *source.model.buffers()]
        before = reset_peak() - sum(tensor.nbytes for tensor in tensors)
    prepared = runner.prepare(arrays)
    for _ in range(2):
        runner.run(prepared)
    return max(0, status("VmHWM") - before)


def reset_peak() -> int:
    """The memory of now, from which on the peak is counted."""
    with suppress(OSError):  # a system without it: a peak while importing may then count
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return status("VmRSS")


def status(field: str) -> int:
    """A number of bytes that Linux knows of this process; `ru_maxrss` would remember the parent's."""
    (line,) = (line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    with redirect_stdout(sys.stderr):
        found = measured(json.load(sys.stdin))
    print(found)
