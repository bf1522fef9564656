"""Model files: read with errors that say what is wrong, written whole or not at all."""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from structprune.errors import InvalidArgument, OutputError, UnsupportedModel

# Protobuf cannot hold more in one message.
LARGEST_FILE = 2**31 - 1


def open_model(model: Any) -> ir.Model:
    """A path, a ModelProto or an onnx_ir.Model, read. Weights stay where they are until they are asked for."""
    if isinstance(model, ir.Model):
        return model
    if not isinstance(model, onnx.ModelProto):
        return load(Path(model))
    read = from_proto(model, "the ModelProto")
    for tensor in external_tensors(read):
        # Where such a proto came from is not known: onnx and onnx_ir look for its data here.
        check_external(tensor, Path("ModelProto"))
    return read


def load(path: Path) -> ir.Model:
    if path.is_dir():
        raise UnsupportedModel(f"{path} is a folder; give the .onnx file in it")
    try:
        proto = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise UnsupportedModel(f"{path} cannot be read: {error.strerror or error}") from error
    except (DecodeError, ValueError) as error:
        raise UnsupportedModel(f"{path} is not an ONNX file, or only a part of one: {error}") from error
    model = from_proto(proto, str(path))
    ir.external_data.set_base_dir(model.graph, path.parent)
    for tensor in external_tensors(model):
        check_external(tensor, path)
    return model


def from_proto(proto: onnx.ModelProto, name: str) -> ir.Model:
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        raise UnsupportedModel(f"{name} holds no graph: it is not an ONNX model, or only a part of one")
    if not proto.opset_import:
        raise UnsupportedModel(f"{name} does not say which operator set it uses")
    try:
        model = ir.from_proto(proto)
    except Exception as error:
        raise UnsupportedModel(f"{name} is not a valid ONNX model: {error}") from error
    for node in model.graph.all_nodes():
        for value in node.inputs:
            if value is not None and not (value.producer() or value.is_graph_input() or value.is_initializer()):
                reader = f"{node.op_type} {node.name or ''}".strip()
                raise UnsupportedModel(f"{name} is not valid: {reader} reads {value.name!r}, which nothing gives")
    return model


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                    yield attribute.value


def check_external(tensor: ir.ExternalTensor, path: Path) -> None:
    """Refuse data outside the model's folder, missing or too short."""
    folder, location = path.parent.resolve(), Path(tensor.location)
    where = (folder / location).resolve()
    if location.is_absolute() or not where.is_relative_to(folder):
        raise UnsupportedModel(
            f"{path}: the data of {tensor.name!r} is said to lie in {str(location)!r}, outside of the model's folder. "
            "That is refused: a model file must not read other files"
        )
    if not where.is_file():
        raise UnsupportedModel(f"{path}: the file {location} with the data of {tensor.name!r} is missing")
    end = (tensor.offset or 0) + (tensor.length or tensor.nbytes)
    if where.stat().st_size < end:
        raise UnsupportedModel(f"{path}: {location} ends before the data of {tensor.name!r} does")


def save(model: ir.Model, path: Path, is_external: bool) -> None:
    """Write a model beside its place, then move it there; its weights into a file of their own where they must be."""
    values = [value for graph in model.graphs() for value in graph.initializers.values()]
    size = sum(value.const_value.nbytes for value in values if value.const_value is not None)
    data = f"{path.name}.data" if is_external or size > LARGEST_FILE - (1 << 20) else None
    hold_external(model)
    try:
        beside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    try:
        ir.save(model, beside / path.name, external_data=data, size_threshold_bytes=1024)
        for name in (data, path.name):
            if name is not None and (beside / name).exists():
                os.replace(beside / name, path.parent / name)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def hold_external(model: ir.Model) -> None:
    """Weights that lie in another file are written with the model, wherever it goes."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = read_when_written(value.const_value)


def read_when_written(tensor: ir.ExternalTensor) -> ir.LazyTensor:
    """onnx_ir closes the files of external tensors that it copies, while others still look into them."""

    def read() -> ir.TensorProtocol:
        return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, shape=tensor.shape, name=tensor.name)

    return ir.LazyTensor(read, tensor.dtype, tensor.shape, name=tensor.name)


def give_back(tensor: ir.TensorProtocol) -> None:
    """Hand the pages of a mapped file that were read back to the system; they are read anew where they are needed."""
    mapped = getattr(tensor, "raw", None)
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def check_output(model: Any, output_path: Any, force: bool) -> None:
    """What can be told before any work is done."""
    source = Path(model) if isinstance(model, str | os.PathLike) else None
    if output_path is None:
        if source is not None:
            raise InvalidArgument(f"{source} is a file: say with output_path= where the smaller one goes")
        return
    path = Path(output_path)
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name the file to write")
    if not path.parent.is_dir():
        raise OutputError(f"{path} cannot be written: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path} cannot be written: no permission to write in {path.parent}")
    is_input = source is not None and source.exists() and path.exists() and path.samefile(source)
    if is_input and not force:
        raise OutputError(f"{path} is the model itself: name another file, or say force=True to replace it")
