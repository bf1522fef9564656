"""The zeroed original against the smaller model in onnxruntime: what is run for a verification."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from structprune.errors import CaptureError
from structprune.frontends.onnx.record.trace import Numbers
from structprune.frontends.onnx.write.oracle import Feeds, run
from structprune.frontends.onnx.write.widen import widened
from structprune.passes.verify import CannotRun, Outputs, Trial

TOLERANCE = 1e-9
# Above this, values in the middle of two steps of a quantized model may be rounded to either: whole numbers as well.
COARSE = 2e-2
# Units of the last place by which numbers are moved to see what rounding does.
UNITS = 16.0


def trial(
    whole: ir.Model, small: ir.Model, feeds: Feeds, to: ir.DataType | None, tolerance: float, elsewhere: bool
) -> Trial:
    """Both models with these inputs, everything that is a fraction in another type where one is given."""
    is_double = to is ir.DataType.DOUBLE

    def cast(array: Numbers) -> Numbers:
        is_fraction = (to is not None and array.dtype.kind == "f") or array.dtype.name == "bfloat16"
        return array.astype(to.numpy()) if to is not None and is_fraction else array

    given = {name: cast(array) for name, array in feeds.items()}

    def results(model: ir.Model, inputs: Feeds) -> Outputs:
        names = [str(value.name) for value in model.graph.outputs]
        try:
            # Plain: what onnxruntime fuses, it computes in other ways or in fewer bits.
            found = run(widened(model, to) if to is not None else model, inputs, is_plain=True)
        except CaptureError as error:
            raise CannotRun(str(error)) from error
        is_coarse = tolerance >= COARSE and not is_double
        return {name: as_array(each, is_coarse) for name, each in zip(names, found, strict=True) if is_array(each)}

    def original(seed: int) -> Outputs:
        return results(whole, moved(given, seed) if seed else given)

    shapes = ", ".join("x".join(map(str, array.shape)) or "a number" for array in given.values())
    return Trial(
        inputs=f"inputs of {shapes}",
        dtype="float64" if is_double else "its own types",
        tolerance=TOLERANCE if is_double else tolerance,
        original=original,
        small=lambda: results(small, given),
        elsewhere=elsewhere,
        must_run=not is_double,
    )


def impossible(inputs: str, why: str) -> Trial:
    """Nothing is run, and that is said."""

    def refuse(seed: int = 0) -> Outputs:
        raise CannotRun(why)

    return Trial(inputs, "its own types", 0.0, refuse, refuse)


def is_array(output: Any) -> bool:
    return isinstance(output, np.ndarray) and output.dtype.kind in "fciub"


def as_array(output: Any, is_coarse: bool) -> Numbers:
    return np.asarray(output, dtype=np.float64) if is_coarse and output.dtype.kind in "iu" else np.asarray(output)


def moved(feeds: Feeds, seed: int) -> Feeds:
    """Every fraction moved by a few units of its last place."""
    generator = np.random.default_rng(seed)

    def move(array: Numbers) -> Numbers:
        if array.dtype.kind != "f":
            return array
        signs = generator.uniform(-1, 1, array.shape)
        return np.asarray(array * (1 + UNITS * np.finfo(array.dtype).eps * signs)).astype(array.dtype)

    return {name: move(array) for name, array in feeds.items()}
