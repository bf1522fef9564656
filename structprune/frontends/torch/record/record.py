"""What a recorded run is: calls of ATen operators whose tensors are `Value`s."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from structprune.algebra.order import Indices
from structprune.frontends.torch.record.expression import Expression
from structprune.frontends.torch.record.number import Comparison
from structprune.frontends.torch.record.symbols import ALL_PLAIN, NONE_PLAIN, Plain
from structprune.graph.graph import Value, Where

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
# An autocast region of the model: the device type, the type it casts to, and whether it is on.
Region = tuple[str, torch.dtype, bool]


@dataclass(frozen=True, slots=True)
class Reading:
    """One axis of a tensor, read by an index whose numbers are known.

    stored: the buffer that holds the index, where its numbers serve nothing but to read;
    other: another tensor and its axis that is read by the same buffer;
    is_steady: tells of an index made in forward whether inputs of other sizes give the same one.
    """

    base: Value
    dim: int
    value: Value
    index: Indices
    stored: str | None = None
    other: tuple[Value, int] | None = None
    is_steady: Callable[[], bool] | None = None


@dataclass(slots=True, eq=False)
class Call:
    """One recorded operator; tensors among its arguments are `Value`s.

    `known` are the numbers of constant indices, as they were when the operator ran.
    """

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Value]
    where: Where
    with_grad: bool = True
    region: Region | None = None
    known: Mapping[Value, Tensor] = field(default_factory=dict)
    reading: Reading | None = None
    # By argument: where its numbers come from, as far as that is known.
    expressions: Mapping[str, Any] = field(default_factory=dict)

    def tensors(self) -> Iterator[Value]:
        """The values among the arguments."""
        return values_in((self.args, self.kwargs))


@dataclass(frozen=True, slots=True)
class Run:
    """How a model is run to record it.

    is_real: on the numbers of the inputs, not on tensors without data. answers: those of another real run, which this
    one follows where data decide. known: a recording of the same model, whose values the parameters are. plain: what
    does not take numbers with expressions.
    """

    inputs: Arguments
    is_real: bool = False
    answers: Sequence[tuple[Any, Any]] = ()
    known: Capture | None = None
    training: bool = False
    plain: Plain = NONE_PLAIN


@dataclass(frozen=True, slots=True)
class Refusal:
    """Code that may not have taken numbers with expressions: whose it is, and what it wanted as a key of a dict."""

    module: str
    unhashed: Sequence[Expression]


class Stopped(Exception):
    """The model raised while it was recorded, at a place in its code.

    `calls` is what it had done, the last one included.
    """

    def __init__(
        self,
        calls: list[Call],
        inputs: list[Value],
        constants: dict[Value, Tensor],
        cause: Exception,
        place: str,
        refusal: Refusal | None = None,
    ) -> None:
        super().__init__(str(cause))
        self.calls = calls
        self.inputs = inputs
        self.constants = constants
        self.cause = cause
        self.place = place
        self.refusal = refusal
        self.is_threaded = False


@dataclass(slots=True, repr=False)
class Capture:
    """A recorded run."""

    calls: list[Call]
    inputs: list[Value]
    outputs: list[Value]
    parameters: dict[str, Value]
    aliases: dict[str, str]
    constants: dict[Value, Tensor]
    dtypes: dict[Value, torch.dtype]
    result: Any
    is_real: bool
    result_type: type | None = None
    # What the operators answered whose results depend on data, in order.
    answers: list[tuple[Any, Any]] = field(default_factory=list)
    # Whether the code was handed numbers of tensors, by an operator or past all operators (`tolist`, numpy).
    reads_data: bool = False
    # Whether the code drew from the generators of Python or numpy.
    draws_elsewhere: bool = False
    # The model's arguments with values in place of tensors, and how its forward calls the positional ones.
    arguments: Arguments = ((), {})
    argument_names: Sequence[str] = ()
    strides: Mapping[Value, tuple[int, ...]] = field(default_factory=dict)
    module_types: Mapping[str, type] = field(default_factory=dict)
    training: bool = False
    # Operators that act in one way whatever the mode: where they come from, and which.
    steady: set[tuple[Where, Any]] = field(default_factory=set)
    # What the code did with its numbers: comparisons, and conversions that lose where a number came from.
    compared: Mapping[Any, Comparison] = field(default_factory=dict)
    integers: Sequence[tuple[Expression, int]] = ()
    floats: Sequence[tuple[Expression, float]] = ()
    # What the result says beside its tensors, and the numbers in it that know where they come from.
    said: Sequence[tuple[str, Any]] = ()
    told: Sequence[Expression] = ()
    # Whether the code hands work to other threads, where nothing is recorded.
    is_threaded: bool = False
    plain: Plain = ALL_PLAIN


def depends_on_data(target: Any) -> bool:
    """Whether values decide the shape of the operator's result, or give Python a number."""
    tags = getattr(target, "tags", ())
    is_chosen = torch.Tag.dynamic_output_shape in tags or torch.Tag.data_dependent_output in tags
    # Other libraries do not tag theirs; this one has been told.
    return is_chosen or str(target) in CHOOSING


# Operators without tags that choose by data.
CHOOSING = {"torchvision.nms.default"}


# What most arguments are; that no tensor is in it need not be asked each time.
PLAIN = frozenset((int, float, bool, str, type(None)))


def values_in(structure: Any) -> Iterator[Value]:
    """The values inside nested arguments."""
    if isinstance(structure, Value):
        yield structure
        return
    for item in items_of(structure):
        if type(item) is Value:
            yield item
        elif type(item) not in PLAIN:
            yield from values_in(item)


def items_of(structure: Any) -> Iterable[Any]:
    if isinstance(structure, list | tuple):
        return structure
    return structure.values() if isinstance(structure, dict) else ()


def substitute(structure: Any, environment: Mapping[Value, Any]) -> Any:
    """Nested arguments with every value replaced by its tensor."""
    if isinstance(structure, Value):
        return environment[structure]
    if isinstance(structure, dict):
        return {key: substitute(item, environment) for key, item in structure.items()}
    if isinstance(structure, list | tuple):
        return type(structure)(substitute(item, environment) for item in structure)
    return structure


def tensors_in(structure: Any) -> Iterator[Tensor]:
    """The tensors among the arguments or the results of operators, or among the inputs of a model."""
    if isinstance(structure, Tensor):
        yield structure
        return
    for item in items_of(structure):
        if type(item) in PLAIN:
            continue
        if isinstance(item, Tensor):
            yield item
        else:
            yield from tensors_in(item)


def map_tensors(structure: Any, function: Callable[[Tensor], Any]) -> Any:
    """The structure with every tensor replaced."""
    if isinstance(structure, Tensor):
        return function(structure)
    if isinstance(structure, dict):
        # Subclasses such as tokenizers' encodings may not be rebuilt from pairs: a dict serves.
        return {key: map_tensors(item, function) for key, item in structure.items()}
    if isinstance(structure, list | tuple):
        items = [item if type(item) in PLAIN else map_tensors(item, function) for item in structure]
        return rebuilt_like(structure, items)
    return structure


def rebuilt_like(structure: list[Any] | tuple[Any, ...], items: Iterable[Any]) -> Any:
    """A list or a tuple, named or not, of the same type with other items."""
    kind = type(structure)
    if kind is list or kind is tuple:
        return kind(items)
    return kind(*items) if hasattr(kind, "_fields") else kind(items)
