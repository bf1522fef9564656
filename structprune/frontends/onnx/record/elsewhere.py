"""Inputs of other sizes, wherever a model leaves them open."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import prod

import onnx_ir as ir

from structprune.frontends.onnx.record.inputs import is_open
from structprune.frontends.onnx.record.trace import Type, trace

Shapes = Mapping[ir.Value, Type]


def resized(shapes: Shapes, size_of: Callable[[int, int], int]) -> dict[ir.Value, Type]:
    """The shapes with each open size replaced by what is made of it and of its axis."""

    def shape(value: ir.Value, known: Type) -> tuple[int, ...]:
        return tuple(
            size_of(size, axis) if value.shape is None or is_open(value.shape[axis]) else size
            for axis, size in enumerate(known.shape)
        )

    return {value: Type(shape(value, known), known.dtype) for value, known in shapes.items()}


def other_shapes(shapes: Shapes) -> dict[ir.Value, Type]:
    return resized(shapes, lambda size, axis: size + 1 if axis == 0 else 2 * size)


def shapes_nearby(model: ir.Model, shapes: Shapes) -> dict[ir.Value, Type] | None:
    """Other sizes that every node accepts, where the model leaves some open."""
    for all_axes in (True, False):
        found = resized(shapes, partial(nearby, all_axes))
        if found != shapes and not trace(model, found).problems:
            return found
    return None


def nearby(all_axes: bool, size: int, axis: int) -> int:
    """Another number of samples; about three quarters of other sizes, in multiples of 32 where those are large."""
    if axis == 0:
        return 2 if size != 2 else 3
    if not all_axes:
        return size
    return size * 3 // 4 // 32 * 32 if size >= 64 else max(1, size * 3 // 4)


def growth(before: Shapes, after: Shapes) -> float:
    """How many times as many numbers go in."""
    old, new = (sum(prod(each.shape) for each in shapes.values()) for shapes in (before, after))
    return new / max(old, 1)
