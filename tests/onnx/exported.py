"""The zoo's models as ONNX files, by both of torch's exporters, each exported once."""

from __future__ import annotations

import contextlib
import io
import warnings
from functools import cache

import onnx
import torch
from torch import Tensor, nn

from models_zoo import build

EXPORTERS = ("dynamo", "older")


def filled(name: str) -> tuple[nn.Module, Tensor]:
    """The model with no two equal tensors: exporters would store them once, and fold norms that do nothing."""
    model, inputs = build(name)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if (tensor.is_floating_point() and tensor.dim() < 2) or isinstance(tensor, nn.Parameter):
                tensor.add_(0.1 * torch.rand(tensor.shape, generator=generator))
    return model, inputs


@cache
def exported(name: str, exporter: str, is_open: bool = True, opset: int | None = None) -> bytes:
    """The file's bytes; `is_open` leaves the batch size open."""
    model, inputs = filled(name)
    options: dict[str, object] = {} if opset is None else {"opset_version": opset}
    if is_open and exporter == "dynamo":
        options["dynamic_shapes"] = ({0: torch.export.Dim.AUTO},)
    elif is_open:
        options |= {"input_names": ["x"], "dynamic_axes": {"x": {0: "batch"}}}
    buffer = io.BytesIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (inputs,), buffer, dynamo=exporter == "dynamo", verbose=False, **options)
    return buffer.getvalue()


def model_of(name: str, exporter: str, is_open: bool = True, opset: int | None = None) -> onnx.ModelProto:
    return onnx.load_from_string(exported(name, exporter, is_open, opset))
