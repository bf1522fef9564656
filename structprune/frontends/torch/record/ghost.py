"""Tensors without data, on which a model is recorded."""

from __future__ import annotations

from collections.abc import Sequence
from threading import get_ident
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from structprune.frontends.torch.record import private
from structprune.frontends.torch.record.sized import Sized

# Every tensor without data of the recordings that go on.
BORN: list[ref[Tensor]] = []
# In which threads code wanted what such tensors do not have.
ESCAPES: list[int] = []


class GhostEscaped(Exception):
    """The model wants the values of a tensor that has none."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        ESCAPES.append(get_ident())


class Ghost(Sized, Tensor):  # type: ignore[override, misc]
    """A tensor with a shape, a type and a device. Operators on it are seen by the recorder alone."""

    __torch_function__ = private.no_torch_function

    @staticmethod
    def __new__(cls, like: Tensor, device: torch.device, sizes: Any = None) -> Ghost:
        made: Ghost = private.wrapper(cls, like, device)
        return made

    def __init__(self, like: Tensor, device: torch.device, sizes: Any = None) -> None:
        self._origin_of_ghost: Tensor | None = None
        self._recorder_of_sizes = sizes
        BORN.append(ref(self))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is torch.ops.aten.detach.default:
            # Neither `x.data` nor what `zeros_like` does at its end passes the recorder.
            twin = Ghost(args[0], args[0].device, args[0]._recorder_of_sizes)
            twin._origin_of_ghost = args[0]
            return twin
        raise GhostEscaped(f"{function} read data")
