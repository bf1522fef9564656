"""What the constants of a recorded model are, and what its pointwise operators make of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from structprune.frontends.torch.record.autocast import perform
from structprune.frontends.torch.record.expression import Size, leaves
from structprune.frontends.torch.record.record import Call, Capture, substitute
from structprune.graph.constant import Array
from structprune.graph.graph import Op, Value


class Constants:
    """Answers for one recorded run; `others` are runs on inputs of other sizes."""

    def __init__(
        self,
        capture: Capture,
        arrays: Callable[[Iterable[str]], Mapping[str, Tensor]],
        others: Callable[[], Sequence[Capture]],
    ) -> None:
        self.capture = capture
        self.arrays = arrays
        self.others = others

    @cached_property
    def elsewhere(self) -> Sequence[Capture]:
        return self.others()

    @cached_property
    def places(self) -> dict[Call, int]:
        return {call: place for place, call in enumerate(self.capture.calls)}

    def numbers(self, value: Value) -> Array | None:
        tensor = self.capture.constants.get(value)
        if tensor is None:
            return None
        place = list(self.capture.constants).index(value)
        twins = [list(other.constants.values())[place : place + 1] for other in self.elsewhere]
        is_steady = all(twin and torch.equal(twin[0], tensor) for twin in twins)
        return as_array(tensor) if is_steady else None

    def computed(self, op: Op, operands: Sequence[Array]) -> Array | None:
        call: Call = op.source
        made = {
            value: torch.tensor(array).to(self.capture.dtypes[value])
            for value, array in zip(op.inputs, operands, strict=True)
            if value is not None
        }
        if not self.is_steady(call) or any(value not in made for value in call.tensors()):
            return None
        if call.target._schema.is_mutable:
            # What is written into is as large as what is written.
            shape = np.broadcast_shapes(*(each.shape for each in made.values()))
            made = {value: each.expand(shape).clone() for value, each in made.items()}
        try:
            with torch.no_grad():
                result = perform(call, substitute(call.args, made), substitute(call.kwargs, made))
        except RuntimeError:
            return None  # not every operator takes half precision on a processor
        return as_array(result) if isinstance(result, Tensor) else None

    def is_steady(self, call: Call) -> bool:
        """Its numbers do not follow from the sizes of the inputs."""
        sizes = (each for each in parts(tuple(call.expressions.values())) for each in leaves(each))
        if any(isinstance(each, Size) and each.value.parameter is None for each in sizes):
            return False
        own = numbers_of(call)
        return not own or all(numbers_of(other.calls[self.places[call]]) == own for other in self.elsewhere)


def numbers_of(call: Call) -> list[int | float]:
    found = parts((call.args, tuple(call.kwargs.values())))
    return [each for each in found if isinstance(each, int | float) and not isinstance(each, bool)]


def parts(structure: Any) -> Iterator[Any]:
    """What nested lists hold."""
    for each in structure:
        if isinstance(each, list | tuple):
            yield from parts(each)
        else:
            yield each


def as_array(tensor: Tensor) -> Array | None:
    """In double precision; None where that cannot hold the numbers."""
    if tensor.is_complex():
        return None
    double = tensor.detach().double()
    if not tensor.is_floating_point() and bool((double.to(tensor.dtype) != tensor).any()):
        return None
    found: Array = double.cpu().numpy()
    return found
