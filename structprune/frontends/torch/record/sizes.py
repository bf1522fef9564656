"""Sizes of tensors as the code of a model is given them: numbers that know what they are sizes of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from structprune.frontends.torch.record.expression import Size
from structprune.frontends.torch.record.number import Ledger, Node, Number, Numeric
from structprune.frontends.torch.record.number import plain as plain_number
from structprune.frontends.torch.record.sized import SizedParameter, SizedTensor
from structprune.frontends.torch.record.symbols import Plain
from structprune.frontends.torch.record.values import Values
from structprune.graph.graph import Value

# What tensors of a copy become while it is recorded.
SIZED: dict[type, type] = {Tensor: SizedTensor, nn.Parameter: SizedParameter}


class Sizes:
    """Answers for the tensors of one recording.

    running: the names of the modules that run, the innermost last; plain_modules: those whose code gets plain numbers.
    """

    def __init__(
        self, values: Values, ledger: Ledger, plain: Plain, running: Sequence[str], plain_modules: frozenset[str]
    ) -> None:
        self.values = values
        self.ledger = ledger
        self.plain = plain
        self.running = running
        self.plain_modules = plain_modules
        # Sizes that are asked for meanwhile are asked for by the recorder itself.
        self.is_busy = False
        self._known: dict[Value, torch.Size] = {}
        self._sized: list[Tensor] = []

    @contextmanager
    def busy(self) -> Iterator[None]:
        before, self.is_busy = self.is_busy, True
        try:
            yield
        finally:
            self.is_busy = before

    def sizes_of(self, tensor: Tensor, sizes: torch.Size) -> torch.Size:
        """The sizes of a tensor as the code is given them."""
        if self.is_busy or self.plain.everything or (self.running and self.running[-1] in self.plain_modules):
            return sizes
        with self.busy():
            value = self.values.for_size(tensor)
        found = self._known.get(value)
        if found is None:
            numbers: Any = (Number(Node(Size(value, axis), size, self.ledger)) for axis, size in enumerate(sizes))
            found = self._known[value] = torch.Size(tuple(numbers))
        return found

    def size_of(self, tensor: Tensor, axis: int) -> Number:
        """The size of a parameter, as a number."""
        return Number(Node(Size(self.values.for_size(tensor), axis), Tensor.size(tensor)[axis], self.ledger))

    def open_bounds(self, index: Any) -> Any:
        """Torch leaves out slices that take all of an axis: ends become numbers that it cannot know to be enough."""
        if self.is_busy or self.plain.everything:
            return index
        if type(index) is tuple:
            return tuple(map(self.open_bounds, index))
        if type(index) is slice and isinstance(index.stop, int | np.integer) and plain_number(index.stop) > 0:
            end = plain_number(index.stop)
            is_number = issubclass(type(index.stop), Numeric)
            stop = index.stop if is_number else Number(Node(end, end, self.ledger))
            return slice(index.start, stop, index.step)
        return index

    def sized(self, tensor: Tensor) -> Tensor:
        """A tensor with data, from now on with such sizes."""
        kind = SIZED.get(type(tensor))
        if kind is not None and not self.plain.everything:
            tensor.__class__ = kind
            tensor._recorder_of_sizes = self  # type: ignore[attr-defined]
            self._sized.append(tensor)
        return tensor

    def release(self) -> None:
        """The recording is over: what is left of it answers with plain numbers, and holds nothing of it."""
        for tensor in self._sized:
            if type(tensor) is SizedTensor:
                tensor.__class__ = Tensor  # type: ignore[assignment]
        for each in (*self._sized, *self.values.tensors()):
            vars(each).pop("_recorder_of_sizes", None)
        self._sized.clear()
