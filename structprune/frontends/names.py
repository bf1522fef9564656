"""The names and shapes of what a model stores, whatever its framework."""

from __future__ import annotations

from typing import Any

from structprune.graph import Shape


def stored_shapes(model: Any) -> dict[str, Shape]:
    """Every parameter and buffer under every name it has."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: tuple(tensor.shape) for name, tensor in tensors}
