"""Model files and models in memory: read with errors that say what is wrong, so that the rest can rely on them."""

from __future__ import annotations

import mmap
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from structprune.errors import InvalidArgument, OutputError, UnsupportedModel, printable
from structprune.frontends.onnx.record.check import check, check_calls
from structprune.frontends.onnx.record.external import check_external, external_tensors, kind_of
from structprune.frontends.onnx.record.trace import subgraphs

# Protobuf cannot hold more in one message.
LARGEST_FILE = 2**31 - 1


def open_model(model: Any) -> ir.Model:
    """A path, a ModelProto or an onnx_ir.Model, read. Weights stay where they are until they are asked for."""
    if isinstance(model, ir.Model):
        return checked(model)
    if isinstance(model, onnx.ModelProto):
        # Where such a proto came from is not known: onnx and onnx_ir look for its data here.
        return from_proto(model, "the ModelProto", Path())
    return load(Path(model))


def load(path: Path) -> ir.Model:
    """A file, which nothing is believed of before it was looked at."""
    name = printable(path)
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise UnsupportedModel(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if stat.S_ISDIR(found.st_mode):
        raise UnsupportedModel(f"{name} is a folder; give the .onnx file in it")
    if not stat.S_ISREG(found.st_mode):
        raise UnsupportedModel(f"{name} is {kind_of(found.st_mode)}, not a file")
    if found.st_size > LARGEST_FILE:
        raise UnsupportedModel(f"{name} is larger than 2 GiB, which no ONNX file can be: weights go into other files")
    try:
        proto = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise UnsupportedModel(f"{name} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        # Each of the formats that onnx reads has errors of its own.
        raise UnsupportedModel(
            f"{name} is not an ONNX file, or only a part of one: {printable(error, 300)}"
        ) from error
    return from_proto(proto, name, path.parent)


def from_proto(proto: onnx.ModelProto, name: str, folder: Path) -> ir.Model:
    check(proto, name, folder)
    try:
        model = ir.from_proto(proto)
    except Exception as error:
        # What only onnx_ir finds: it raises what it likes, around the error that says what is wrong.
        raise UnsupportedModel(f"{name} is not a valid ONNX model: {printable(innermost(error), 300)}") from error
    for tensor in external_tensors(model):
        tensor.base_dir = folder
    sort(model, name)
    return model


def innermost(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def checked(model: ir.Model) -> ir.Model:
    """A model that somebody else read: its nodes in order, its data where they may be."""
    name = "the model"
    for tensor in external_tensors(model):
        check_external(tensor)
    called = {each: [node.op_identifier() for node in function.all_nodes()]
              for each, function in model.functions.items()}  # fmt: skip
    check_calls([node.op_identifier() for node in model.graph.all_nodes()] if called else [], called)
    if is_sorted(model):
        return model
    model = model.clone()
    sort(model, name)
    return model


def sort(model: ir.Model, name: str) -> None:
    """Nodes come after those whose results they read: onnxruntime takes them in any order, the passes do not."""
    if is_sorted(model):
        return
    try:
        for graph in (model.graph, *(function.graph for function in model.functions.values())):
            graph.sort()
    except ValueError as error:
        raise UnsupportedModel(f"{name} is not valid: there are nodes that need their own results (a cycle)") from error


def is_sorted(model: ir.Model) -> bool:
    done: set[ir.Node] = set()
    return all(
        is_in_order(graph, done) for graph in (model.graph, *(each.graph for each in model.functions.values()))
    )


def is_in_order(graph: ir.Graph, done: set[ir.Node]) -> bool:
    for node in graph:
        if not all(is_in_order(inner, done) for inner in subgraphs(node)):
            return False
        makers = (value.producer() for value in node.inputs if value is not None)
        if any(maker is not None and maker not in done for maker in makers):
            return False
        done.add(node)
    return True


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
            raise InvalidArgument(f"{printable(source)} is a file: say with output_path= where the smaller one goes")
        return
    path, name = Path(output_path), printable(output_path)
    try:
        check_target(path, name)
        is_input = source is not None and is_same(source, path)
    except (OSError, ValueError) as error:
        raise OutputError(f"{name} cannot be written: {getattr(error, 'strerror', None) or error}") from error
    if is_input and not force:
        raise OutputError(f"{name} is the model itself: name another file, or say force=True to replace it")


def is_same(source: Path, path: Path) -> bool:
    try:
        return path.exists() and path.samefile(source)
    except (OSError, ValueError):
        return False  # reading it will say what is wrong with the source


def check_target(path: Path, name: str) -> None:
    with suppress(FileNotFoundError, NotADirectoryError):
        path.lstat()  # what the system takes for no name at all is refused by it
    if path.is_dir():
        raise OutputError(f"{name} is a folder; name the file to write")
    if path.exists() and not path.is_file():
        raise OutputError(f"{name} is {kind_of(path.stat().st_mode)}; name a file to write")
    if not path.parent.is_dir():
        raise OutputError(f"{name} cannot be written: there is no folder {printable(path.parent)}")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{name} cannot be written: no permission to write in {printable(path.parent)}")
