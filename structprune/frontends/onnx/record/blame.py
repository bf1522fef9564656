"""Whose fault an unexpected failure is: that of a model that others refuse too, or ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime

from structprune.errors import StructpruneError, UnsupportedModel, printable
from structprune.frontends.onnx.record.external import hold_external
from structprune.frontends.onnx.record.file import open_model
from structprune.frontends.onnx.record.trace import first_line

ONLY_FATAL = 4


@contextmanager
def blamed(source: Any) -> Iterator[None]:
    """A failure that nobody foresaw is the model's own where onnx or onnxruntime refuses it; otherwise it is a bug."""
    try:
        yield
    except (StructpruneError, MemoryError):
        raise
    except Exception as error:
        why = refused(source)
        if why is None:
            raise
        name = printable(source) if isinstance(source, str | PathLike) else "the model"
        raise UnsupportedModel(f"{name} is not a valid ONNX model: {why}") from error


def refused(source: Any) -> str | None:
    """Why onnx or onnxruntime does not take a model; None where both do. It is loaded, never run."""
    try:
        model = open_model(source).clone()
        hold_external(model)
        proto = ir.to_proto(model)
        onnx.checker.check_model(proto, full_check=True)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = ONLY_FATAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # both raise what they like
        return printable(first_line(str(error)), 300)
    return None
