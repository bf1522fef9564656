"""Data that a model keeps in other files: only regular files inside the model's folder are ever opened."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from structprune.errors import UnsupportedModel, printable

Tensor = ir.TensorProtocol


@dataclass(frozen=True, slots=True)
class Data:
    """Where a tensor says that its data lie; a length of None is as long as the tensor needs."""

    location: str
    offset: int
    length: int | None

    @classmethod
    def read(cls, tensor: onnx.TensorProto, name: str) -> Data:
        found = {entry.key: entry.value for entry in tensor.external_data}
        if len(found) < len(tensor.external_data):
            raise UnsupportedModel(f"{name} says twice where its data lie")
        numbers: list[int | None] = []
        for key in ("offset", "length"):
            text = found.get(key)
            if text is not None and not (text.isascii() and text.isdigit() and len(text) < 20):
                raise UnsupportedModel(f"{name} has data at the impossible {key} '{printable(text)}'")
            numbers.append(None if text is None else int(text))
        return cls(found.get("location", ""), numbers[0] or 0, numbers[1])


def check_data(name: str, data: Data, needed: int, folder: Path) -> None:
    """Refuse data outside of the model's folder, in anything but a file of its own, missing, or too short."""
    shown = f"'{printable(data.location)}'"
    if not data.location or "\0" in data.location:
        raise UnsupportedModel(f"the data of {name} are said to lie in {shown}, which is no name of a file")
    folder, location = folder.resolve(), Path(data.location)
    try:
        where = (folder / location).resolve()
        found = where.stat() if not location.is_absolute() and where.is_relative_to(folder) else None
    except (OSError, RuntimeError) as error:
        missing = isinstance(error, FileNotFoundError)
        why = "is missing" if missing else f"cannot be read: {getattr(error, 'strerror', None) or error}"
        raise UnsupportedModel(f"the file {shown} with the data of {name} {why}") from error
    if found is None:
        raise UnsupportedModel(
            f"the data of {name} are said to lie in {shown}, outside of the model's folder. "
            "That is refused: a model file must not read other files"
        )
    if not stat.S_ISREG(found.st_mode):
        raise UnsupportedModel(f"{shown} with the data of {name} is {kind_of(found.st_mode)}, not a file")
    if found.st_nlink > 1:
        raise UnsupportedModel(
            f"the file {shown} with the data of {name} is a hard link: it can be a file from outside of the model's "
            "folder. That is refused; copy it"
        )
    length = needed if data.length is None else data.length
    if length < needed:
        raise UnsupportedModel(f"{name} needs {needed:,} bytes of {shown}, but is given {length:,}")
    if found.st_size < data.offset + length:
        raise UnsupportedModel(f"{shown} ends before the data of {name} does")


def kind_of(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")


# -- tensors of a model that is read ---------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """A place of a model that holds a tensor."""

    tensor: Tensor
    put: Callable[[Tensor], None]
    # An initializer, or what a Constant gives: onnxruntime reads these from other files.
    is_constant: bool


def slots(model: ir.Model) -> Iterator[Slot]:
    """Every tensor of a model: initializers and attributes, in the graph, its subgraphs and its functions."""
    functions = list(model.functions.values())
    inner = [graph for function in functions for graph in (function.graph, *function.subgraphs())]
    for graph in (*model.graphs(), *inner):
        yield from initializers(graph)
    for node in (*model.graph.all_nodes(), *(node for function in functions for node in function.all_nodes())):
        yield from attributes(node.attributes, node.op_type == "Constant" and not node.domain)
    for function in functions:
        yield from attributes(function.attributes, False)


def initializers(graph: ir.Graph) -> Iterator[Slot]:
    for value in graph.initializers.values():
        if value.const_value is not None:

            def put(tensor: Tensor, value: ir.Value = value) -> None:
                value.const_value = tensor

            yield Slot(value.const_value, put, True)


def attributes(found: MutableMapping[str, ir.Attr], is_constant: bool) -> Iterator[Slot]:
    for name, attribute in list(found.items()):
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.TENSOR and attribute.value is not None:

            def put(tensor: Tensor, name: str = name) -> None:
                found[name] = ir.AttrTensor(name, tensor)

            yield Slot(attribute.value, put, is_constant)
        if attribute.type == ir.AttributeType.TENSORS and attribute.value is not None:
            for place, tensor in enumerate(attribute.value):

                def put_at(tensor: Tensor, name: str = name, place: int = place) -> None:
                    tensors = list(found[name].value)
                    tensors[place] = tensor
                    found[name] = ir.AttrTensors(name, tensors)

                yield Slot(tensor, put_at, False)


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    return (slot.tensor for slot in slots(model) if isinstance(slot.tensor, ir.ExternalTensor))


def check_external(tensor: ir.ExternalTensor) -> None:
    """The rule for a model that was read by others."""
    name = f"'{printable(tensor.name)}'"
    data = Data(os.fspath(tensor.location), tensor.offset or 0, tensor.length)
    if data.offset < 0 or (data.length or 0) < 0:
        raise UnsupportedModel(f"the data of {name} have an impossible offset or length")
    check_data(name, data, tensor.nbytes, Path(tensor.base_dir))


def hold_external(model: ir.Model) -> None:
    """Weights that lie in another file are written with the model, wherever it goes."""
    for slot in slots(model):
        if isinstance(slot.tensor, ir.ExternalTensor):
            slot.put(read_when_written(slot.tensor))


def read_when_written(tensor: ir.ExternalTensor) -> ir.LazyTensor:
    """The same tensor, said to lie nowhere else: it is written like any other."""

    def read() -> Tensor:
        return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, shape=tensor.shape, name=tensor.name)

    return ir.LazyTensor(read, tensor.dtype, tensor.shape, name=tensor.name)
