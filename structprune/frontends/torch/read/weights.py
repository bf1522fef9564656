"""A state dict from a file, without pickle."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from structprune.errors import MissingPackage, UnsupportedModel
from structprune.frontends.beside import unreadable


def read_weights(name: str | os.PathLike[str]) -> Mapping[str, torch.Tensor]:
    """What model.state_dict() gave: .safetensors, or a file of torch.save."""
    path = Path(name)
    if (problem := unreadable(path)) is not None:
        raise UnsupportedModel(f"{name} cannot be read: {problem}")
    try:
        state = safetensors(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except MissingPackage:
        raise
    except Exception as error:  # whatever the readers of broken files raise
        raise UnsupportedModel(f"{name} cannot be read as weights: {type(error).__name__}: {error}") from error
    if not isinstance(state, Mapping) or not all(isinstance(each, torch.Tensor) for each in state.values()):
        keys = f" with the keys {', '.join(map(str, list(state)[:5]))}" if isinstance(state, Mapping) else ""
        raise UnsupportedModel(
            f"{name} holds a {type(state).__name__}{keys}, not a state dict: save model.state_dict() alone"
        )
    return state


def safetensors(path: Path) -> Mapping[str, torch.Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise MissingPackage(f"reading {path} needs safetensors: pip install safetensors") from error
    return load_file(path)
