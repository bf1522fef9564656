"""What MODEL names: an ONNX file, or torch code and files. torch is imported for the latter alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from structprune.cli.arguments import InputShape
from structprune.errors import InvalidArgument, MissingPackage, UnsupportedModel
from structprune.frontends.beside import unreadable

# What to install for a package that an extra of ours stands for.
EXTRAS = {"torch": "'structprune[torch]'", "onnxruntime": "'structprune[onnx]'"}


@dataclass(frozen=True, slots=True)
class Source:
    """A model as the pipeline takes it (ONNX: its path) and its example inputs (ONNX: their shapes)."""

    name: str
    model: Any
    inputs: Any
    is_onnx: bool


def read_source(name: str, weights: str | None, inputs: Sequence[InputShape]) -> Source:
    if not name.endswith(".onnx"):
        from structprune.cli.torch_source import read_torch_source

        return read_torch_source(name, weights, inputs)
    if weights is not None:
        raise InvalidArgument(f"--weights is for torch models; {name} holds its own")
    if any(each.dtype is not None for each in inputs):
        raise InvalidArgument(f"--input: {name} says of which types its inputs are; give shapes alone")
    return Source(name, Path(name), as_example(inputs, [each.shape for each in inputs]) or None, True)


def as_example(shapes: Sequence[InputShape], made: Sequence[Any]) -> Any:
    """What was made for each --input as the pipeline takes it: by place, or all by name."""
    names = [shape.name for shape in shapes if shape.name is not None]
    if len(set(names)) < len(names):
        raise InvalidArgument("--input: a name is given twice")
    if names and len(names) < len(shapes):
        raise InvalidArgument("--input: name all inputs or none")
    return dict(zip(names, made, strict=True)) if names else tuple(made)


def files_of(name: str) -> list[Path]:
    """The files that a name stands for: its own, if there is one, and those of an ONNX model's larger tensors."""
    if not name.endswith(".onnx"):
        return [Path(name)] if Path(name).is_file() else []
    from structprune.frontends.onnx.record.external import external_tensors
    from structprune.frontends.onnx.record.file import load

    return [Path(name), *sorted({Path(tensor.path) for tensor in external_tensors(load(Path(name)))})]


def existing(name: str) -> Path:
    """The path of a file that can be read."""
    path = Path(name)
    if (problem := unreadable(path)) is not None:
        raise UnsupportedModel(f"{name} cannot be read: {problem}")
    return path


def need(package: str, purpose: str) -> Any:
    """A package that this one does not always bring."""
    try:
        return import_module(package)
    except ImportError as error:
        install = EXTRAS.get(package, package)
        raise MissingPackage(f"{purpose} needs {package} ({error}): pip install {install}") from error
