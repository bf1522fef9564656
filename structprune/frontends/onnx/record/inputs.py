"""Example inputs: their shapes, guessed where a model leaves sizes open, and data for runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from structprune.errors import CaptureError, InvalidArgument, PlanMismatch
from structprune.frontends.onnx.record.trace import Numbers, Trace, Type, trace

Examples = dict[str, "Type | Numbers"]
IMAGE_SIZES = (224, 64, 32, 256, 28, 299, 384, 512)
# Few widths are multiples of a prime: an axis of positions is then not mistaken for one of channels.
LENGTHS = (13, 16, 128, 1, 64)


def fed(model: ir.Model) -> list[ir.Value]:
    """The inputs that a caller gives."""
    return [value for value in model.graph.inputs if not value.is_initializer()]


def examples(model: ir.Model, given: Any) -> Examples:
    """The user's examples by name, checked against the model."""
    inputs = {str(value.name): value for value in fed(model)}
    if isinstance(given, Mapping):
        named = dict(given)
    elif isinstance(given, tuple | list):
        named = dict(zip(inputs, given, strict=False))
        if len(given) > len(inputs):
            raise InvalidArgument(f"{len(given)} example inputs for a model with {len(inputs)}: {', '.join(inputs)}")
    else:
        named = {next(iter(inputs), "the input"): given}
    found: Examples = {}
    for name, example in named.items():
        if name not in inputs:
            raise InvalidArgument(f"the model has no input {name!r}; it has {', '.join(inputs)}")
        found[name] = checked(inputs[name], example)
    return found


def checked(value: ir.Value, example: Any) -> Type | Numbers:
    """An array, or a shape, that fits what the model says of an input."""
    dtype = value.dtype or ir.DataType.FLOAT
    if isinstance(example, tuple | list) and all(isinstance(size, int) for size in example):
        found: Type | Numbers = Type(tuple(example), dtype)
    else:
        found = np.asarray(example.detach().cpu() if hasattr(example, "detach") else example)
    declared = value.shape
    fits = declared is None or (
        len(declared) == len(found.shape)
        and all(is_open(size) or size == given for size, given in zip(declared, found.shape, strict=True))
    )
    if not fits:
        raise InvalidArgument(
            f"the example for {value.name!r} has shape {list(found.shape)}; the model takes {declared}"
        )
    return found


def shapes_to_try(model: ir.Model, given: Examples) -> Iterator[dict[ir.Value, Type]]:
    """Shapes of all inputs, the likeliest first."""
    open_images = any(is_image(value) and has_open(value) for value in fed(model))
    for image in IMAGE_SIZES if open_images else IMAGE_SIZES[:1]:
        for length in LENGTHS:
            yield {value: shape_of_input(value, given, image, length) for value in fed(model)}


def is_image(value: ir.Value) -> bool:
    return value.shape is not None and len(value.shape) >= 4


def has_open(value: ir.Value) -> bool:
    return value.shape is not None and any(map(is_open, value.shape[2:]))


def is_open(size: int | ir.SymbolicDim) -> bool:
    """Some exporters write -1 where others write a name, or nothing."""
    return not isinstance(size, int) or size < 1


def shape_of_input(value: ir.Value, given: Examples, image: int, length: int) -> Type:
    example = given.get(str(value.name))
    dtype = value.dtype or ir.DataType.FLOAT
    if example is not None:
        return Type(tuple(example.shape), dtype)
    if value.shape is None:
        raise CaptureError(
            f"the model does not say how many axes its input {value.name!r} has: "
            f"give example_inputs={{{value.name!r}: an array or a shape}}"
        )
    sizes = []
    for axis, size in enumerate(value.shape):
        if isinstance(size, int) and not is_open(size):
            sizes.append(size)
        elif axis == 0:
            # With a batch of one, reshapes that mix the batch with a width would look as if they did not.
            sizes.append(2)
        elif is_image(value):
            sizes.append(3 if axis == 1 else image)
        else:
            sizes.append(length)
    return Type(tuple(sizes), dtype)


def traced(model: ir.Model, given: Examples) -> tuple[dict[ir.Value, Type], Trace]:
    """The first shapes that every node accepts, and what follows from them."""
    best: tuple[int, dict[ir.Value, Type], Trace] | None = None
    tried: list[dict[ir.Value, Type]] = []
    for shapes in shapes_to_try(model, given):
        if shapes in tried:
            continue
        tried.append(shapes)
        found = trace(model, shapes)
        if not found.problems:
            return shapes, found
        if best is None or len(found.problems) < best[0]:
            best = (len(found.problems), shapes, found)
    assert best is not None
    return best[1], best[2]


def data(model: ir.Model, shapes: Mapping[ir.Value, Type], given: Examples) -> dict[str, Numbers]:
    """Arrays to run a model with: the user's where there are any, else noise."""
    generator = np.random.default_rng(0)
    found: dict[str, Numbers] = {}
    for value in fed(model):
        name, known = str(value.name), shapes[value]
        example = given.get(name)
        if isinstance(example, np.ndarray):
            found[name] = resized(example, known.shape).astype(known.dtype.numpy(), copy=False)
        else:
            found[name] = made_up(value, known, generator)
    return found


def resized(example: Numbers, shape: Sequence[int]) -> Numbers:
    """Entries that are there already, repeated or left out along each axis."""
    for axis, (size, new) in enumerate(zip(example.shape, shape, strict=True)):
        if new != size:
            example = np.take(example, np.arange(new) % size, axis=axis)
    return example


def made_up(value: ir.Value, known: Type, generator: np.random.Generator) -> Numbers:
    dtype = known.dtype.numpy()
    if known.dtype == ir.DataType.BOOL or "mask" in str(value.name):
        return np.ones(known.shape, dtype=dtype)
    if known.dtype.is_floating_point():
        return generator.standard_normal(known.shape).astype(dtype)
    return generator.integers(0, rows_read(value), known.shape).astype(dtype)


def rows_read(value: ir.Value) -> int:
    """How many rows the smallest table has that is read by this input."""
    rows = [
        int(table.shape[0])
        for node, place in value.uses()
        if node.op_type == "Gather" and place == 1
        and (table := node.inputs[0]) is not None and table.shape is not None and isinstance(table.shape[0], int)
    ]  # fmt: skip
    return max(1, min([64, *rows])) if rows else 2


def describe(shapes: Mapping[ir.Value, Type]) -> Any:
    """The inputs as JSON: shapes and types."""
    tensors = {
        str(value.name): {"tensor": list(known.shape), "dtype": known.dtype.numpy().name}
        for value, known in shapes.items()
    }
    return {"tuple": [{"tuple": []}, {"dict": tensors}]}


def restore(described: Any) -> Mapping[str, Sequence[int]]:
    """The shapes of a description."""
    positional, named = described["tuple"][0]["tuple"], described["tuple"][1]["dict"]
    if positional or not all("tensor" in each for each in named.values()):
        raise PlanMismatch("the plan describes inputs of a torch model, and this is an ONNX model")
    return {name: tuple(each["tensor"]) for name, each in named.items()}
