"""Tensors whose sizes, as Python code asks for them, are symbolic."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from structprune.frontends.torch.record import private

# How the text of a tensor without its numbers begins.
NO_NUMBERS = "tensor(..."


class Sized:
    """Answers with the recorder's numbers while it records, and with plain ones before and after."""

    _recorder_of_sizes: Any = None

    @property
    def shape(self) -> Any:
        sizes = Tensor.shape.__get__(self)  # type: ignore[attr-defined]
        return sizes if self._recorder_of_sizes is None else self._recorder_of_sizes.sizes_of(self, sizes)

    def __getitem__(self, index: Any) -> Any:
        recorder = self._recorder_of_sizes
        get: Any = Tensor.__getitem__
        return get(self, index if recorder is None else recorder.open_bounds(index))

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        """Without its numbers: torch would compute with them to show them, and that would be recorded."""
        whole: Any = self
        show: Any = Tensor.__repr__
        if self._recorder_of_sizes is None:
            return str(show(whole, tensor_contents=tensor_contents))
        return f"{NO_NUMBERS}, size={tuple(Tensor.size(whole))})"

    def size(self, dim: Any = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> Any:
        total = Tensor.numel(self)  # type: ignore[arg-type]
        if self._recorder_of_sizes is None:
            return total
        whole: Any = 1
        for size in self.shape:
            whole = whole * size
        return whole

    nelement = numel


class SizedTensor(Sized, Tensor):  # type: ignore[override, misc]
    """A tensor with data: the class of constants while a model is recorded."""

    __torch_function__ = private.no_torch_function


class SizedParameter(Sized, nn.Parameter):  # type: ignore[override, misc]
    """A parameter of the recorded model."""

    __torch_function__ = private.no_torch_function

