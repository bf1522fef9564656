"""What onnxsim's pruning module makes of an ONNX file at half of the channels, in a process of its own.

Its result is right where it gives what the original gives with the removed channels zeroed; which ones they are is
read off the weights, since it does not say.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, numpy_helper

from structprune.passes.verify import largest_difference

# Single precision, in units of the largest output.
LIMIT = 1e-4
# Given up on after this long.
SECONDS = 120


@dataclass(frozen=True, slots=True)
class Outcome:
    """`word`: right, runs (but was not seen to be right), refused (by onnxruntime), raises, crashes or hangs."""

    removed: float
    word: str

    @property
    def is_usable(self) -> bool:
        return self.word in ("right", "runs")

    def __str__(self) -> str:
        return f"{self.removed:.3f} {self.word}" if self.is_usable else self.word


def outcome(path: Path, arrays: Sequence[Any]) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.npz"
        np.savez(inputs, *arrays)
        command = [sys.executable, "-m", "tests.conformance.rival", str(path), str(inputs)]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return Outcome(0.0, "hangs")
    if ended.returncode:
        return Outcome(0.0, "raises" if "Traceback" in ended.stderr else "crashes")
    return Outcome(**json.loads(ended.stdout.splitlines()[-1]))


def main(path: str, inputs: str) -> None:
    import onnxsim

    whole = onnx.load(path)
    # As it comes and simplified: some patterns are found in the one, some in the other.
    candidates = [whole, onnxsim.simplify(onnx.load(path))[0]]
    found = [judged(each, onnxsim.apply_structured_pruning(each, sparsity=0.5), inputs) for each in candidates]
    best = max(found, key=lambda each: (each.is_usable, each.removed))
    print(json.dumps({"removed": best.removed, "word": best.word}))


def judged(whole: ModelProto, small: ModelProto, inputs: str) -> Outcome:
    removed = 1 - weight_count(small) / weight_count(whole)
    with np.load(inputs) as arrays:
        given = list(arrays.values())
    try:
        found = run(small, given)
    except Exception:  # onnxruntime raises many kinds; whichever it is, that is the table's entry
        return Outcome(removed, "refused")
    both = run(zeroed(whole, small), given), found
    expected, results = (dict(zip("abcdefgh", each, strict=False)) for each in both)
    is_right = largest_difference(expected, results).error <= LIMIT
    return Outcome(removed, "right" if is_right else "runs")


def run(model: ModelProto, arrays: Sequence[Any]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return list(session.run(None, {each.name: array for each, array in zip(session.get_inputs(), arrays, strict=True)}))


def weight_count(model: ModelProto) -> int:
    return sum(math.prod(each.dims) for each in model.graph.initializer if each.data_type == onnx.TensorProto.FLOAT)


def zeroed(whole: ModelProto, small: ModelProto) -> ModelProto:
    """`whole` with zeros wherever `small` has lost an index of a weight."""
    result = ModelProto()
    result.CopyFrom(whole)
    cut = {each.name: numpy_helper.to_array(each) for each in small.graph.initializer}
    for each in result.graph.initializer:
        part = cut.get(each.name)
        if each.data_type == onnx.TensorProto.FLOAT and part is not None and list(part.shape) != list(each.dims):
            array = numpy_helper.to_array(each)
            kept = np.ix_(*(places(array, part, axis) for axis in range(array.ndim)))
            held = np.zeros_like(array)
            held[kept] = array[kept]
            each.CopyFrom(numpy_helper.from_array(held, each.name))
    return result


def places(array: Any, part: Any, axis: int) -> Any:
    """Where each slice of `part` stands in `array`: where most of its first entries are found."""
    if array.shape[axis] == part.shape[axis]:
        return np.arange(array.shape[axis])
    order = np.argsort(array, axis=None)
    some = np.moveaxis(part, axis, 0).reshape(part.shape[axis], -1)[:, :32]
    found = order[np.searchsorted(array.reshape(-1)[order], some).clip(max=array.size - 1)]
    rows = found // math.prod(array.shape[axis + 1 :]) % array.shape[axis]
    return np.array([np.bincount(row).argmax() for row in rows], dtype=np.int64)


if __name__ == "__main__":
    main(*sys.argv[1:])
