"""Model files written: whole or not at all, with their weights in a file of their own where they must be."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

import onnx_ir as ir
from google.protobuf.message import EncodeError

from structprune.errors import OutputError, UnsupportedModel, printable
from structprune.frontends.beside import digest, folder_beside, is_data_of, move, note_moved_first, remove_leftovers
from structprune.frontends.onnx.record.external import Slot, external_tensors, hold_external, slots
from structprune.frontends.onnx.record.file import LARGEST_FILE, load

# Smaller tensors stay in the model itself.
SMALLEST_EXTERNAL = 1024
# Where a tensor starts in its file: what reads it can look into the file without a copy.
ALIGNMENT = 64
# A file system takes no longer names.
LONGEST_NAME = 255


def save(model: ir.Model, path: Path, is_external: bool, needed: Collection[Path] = ()) -> None:
    """Write a model. Its data get a name that no other data have, so the model takes its place in one step:
    whoever looks, at any time, finds the old model with its data or the new one with its own.

    `needed` are files that others still read; data of the model that stood there before are removed.
    """
    hold_external(model)
    is_external = is_external or sum(slot.tensor.nbytes for slot in slots(model)) > LARGEST_FILE - (1 << 20)
    try:
        before = data_of(path)
        remove_leftovers(path, before)
        with folder_beside(path) as folder:
            data = write(model, folder, path.name, is_external)
            if data is not None:
                note_moved_first(folder, [data])
                move(folder / data, path.parent / data, path)
            move(folder / path.name, path, path)
        for name in before - {data}:
            if (path.parent / name).resolve() not in needed:
                (path.parent / name).unlink(missing_ok=True)
    except (OSError, OutputError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise OutputError(f"{printable(path)} cannot be written: {reason}") from error


def write(model: ir.Model, folder: Path, name: str, is_external: bool) -> str | None:
    """Write a model into a folder; the result is the name of its data, if they are a file of their own."""
    chosen = [
        slot
        for slot in slots(model)
        if is_external and slot.is_constant and slot.tensor.nbytes > SMALLEST_EXTERNAL
        and slot.tensor.dtype != ir.DataType.STRING
    ]  # fmt: skip
    if not chosen:
        write_graph(model, folder / name)
        return None
    places, content = write_data(chosen, folder / "data")
    data = data_name(name, content)
    os.replace(folder / "data", folder / data)
    with moved_out(chosen, places, data):
        write_graph(model, folder / name)
    return data


def write_data(chosen: list[Slot], path: Path) -> tuple[list[int], str]:
    """Where each tensor starts in the file, and a digest of it all."""
    places: list[int] = []
    content = blake2b(digest_size=8)
    with path.open("wb") as file:
        for slot in chosen:
            gap = b"\0" * (-file.tell() % ALIGNMENT)
            places.append(file.tell() + len(gap))
            for each in (gap, slot.tensor.tobytes()):
                file.write(each)
                content.update(each)
    return places, content.hexdigest()


def data_name(name: str, content: str) -> str:
    """Named by what is in it: equal names hold equal data."""
    found = f"{name}.{content}.data"
    if len(os.fsencode(found)) <= LONGEST_NAME:
        return found
    return f"{digest(name)}.{content}.data"


@contextmanager
def moved_out(chosen: list[Slot], places: list[int], data: str) -> Iterator[None]:
    """While it is written, a model says that its tensors lie in another file."""
    try:
        for slot, place in zip(chosen, places, strict=True):
            tensor = slot.tensor
            shape = ir.Shape(tensor.shape.numpy())
            slot.put(ir.ExternalTensor(
                data, place, tensor.nbytes, tensor.dtype,
                shape=shape, name=tensor.name or "", doc_string=tensor.doc_string,
            ))  # fmt: skip
        yield
    finally:
        for slot in chosen:
            slot.put(slot.tensor)


def write_graph(model: ir.Model, path: Path) -> None:
    proto = ir.to_proto(model)
    try:
        content = proto.SerializeToString()
    except (EncodeError, ValueError) as error:
        raise OutputError("what stays in the model itself is larger than the 2 GiB that a file can hold") from error
    path.write_bytes(content)


def data_of(path: Path) -> set[str]:
    """The data beside a model that are its own by their name, and that it reads."""
    beside = {name for name in os.listdir(path.parent) if is_data_of(path, name)}
    if not beside or not path.is_file():
        return set()
    try:
        return beside & {os.fspath(tensor.location) for tensor in external_tensors(load(path))}
    except UnsupportedModel:
        return set()  # not a model that could be read: nothing of it is known, so nothing is removed
