"""The names and shapes of what a model stores, whatever its framework."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

from structprune.errors import InvalidArgument, PlanMismatch
from structprune.graph.graph import Shape

GIVE = "a torch.nn.Module, the path of an ONNX file, an onnx.ModelProto or an onnx_ir.Model"


def called(model: Any) -> str:
    """A model in a message: "this Net", or the name of its file."""
    if isinstance(model, str | os.PathLike):
        return os.path.basename(os.fspath(model)) or "this model"
    return f"this {type(model).__name__}"


def stored(model: Any) -> list[tuple[str, Any]]:
    """Every parameter and buffer under every name it has."""
    if isinstance(model, type):
        name = model.__name__
        raise InvalidArgument(f"{name} is a class: give a torch.nn.Module, an instance of it, {name}(...)")
    if not hasattr(model, "named_parameters"):
        raise InvalidArgument(f"cannot shrink a {type(model).__name__}: give {GIVE}")
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


def stored_shapes(model: Any) -> dict[str, Shape]:
    """The shapes of what a model stores."""
    return {name: tuple(tensor.shape) for name, tensor in stored(model)}


def stored_numbers(model: Any, names: Iterable[str]) -> dict[str, list[int]]:
    """The numbers in the named indices, row by row."""
    names = list(names)
    tensors = dict(stored(model)) if names else {}
    return {name: tensors[name].flatten().tolist() for name in names if name in tensors}


@contextmanager
def numbered(model: Any, numbers: Mapping[str, Sequence[int]]) -> Iterator[None]:
    """A model whose indices have these numbers for a while."""
    tensors = [(tensor, numbers[name]) for name, tensor in stored(model) if name in numbers]
    if any(tensor.is_floating_point() for tensor, _ in tensors):
        raise PlanMismatch(f"one of {', '.join(numbers)} holds no whole numbers: it cannot be an index")
    before = [tensor.clone() for tensor, _ in tensors]
    try:
        for tensor, new in tensors:
            tensor.copy_(tensor.new_tensor(new).reshape(tensor.shape))
        yield
    finally:
        for (tensor, _), old in zip(tensors, before, strict=True):
            tensor.copy_(old)


def matching(names: Iterable[str], patterns: Sequence[str]) -> set[str]:
    """The names that a pattern matches, themselves or by a module that holds them."""
    names = list(names)
    found: set[str] = set()
    if patterns and not names:
        raise InvalidArgument(f"the pattern {patterns[0]!r} matches no parameter and no module: there are none")
    for pattern in patterns:
        hits = {name for name in names if any(fnmatchcase(each, pattern) for each in with_modules(name))}
        if not hits:
            raise InvalidArgument(
                f"the pattern {pattern!r} matches no parameter and no module; names look like {names[0]!r}"
            )
        found |= hits
    return found


def with_modules(name: str) -> list[str]:
    return [name, *(name[: sign.start()] for sign in re.finditer(r"(?<=.)[.@/]", name))]
