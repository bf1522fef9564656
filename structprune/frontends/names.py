"""The names and shapes of what a model stores, whatever its framework."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from structprune.errors import InvalidArgument
from structprune.graph import Shape

GIVE = "a torch.nn.Module, the path of an ONNX file, an onnx.ModelProto or an onnx_ir.Model"


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


def matching(names: Iterable[str], patterns: Sequence[str]) -> set[str]:
    """The names that a pattern matches, themselves or by a module that holds them."""
    names = list(names)
    found: set[str] = set()
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
