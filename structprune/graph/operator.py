"""What an operator is: typed attributes, the equations between the axes of its tensors, and what follows for sizes.

A rule reads operands and answers with a `Meeting`. It decides nothing and changes nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar

from structprune.algebra.axis import ONE, Axes, Axis, Dim, Product, Sum, fresh
from structprune.algebra.notation import Group, Name, Notation, Rest, Term, Terms, Unit, Whole, parse
from structprune.algebra.order import Indices
from structprune.errors import DuplicateRule
from structprune.graph.constant import Known, Numbers, Summed
from structprune.graph.graph import Op, Shape, Value

Zeros = tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor as a rule sees it.

    `zero[k]` says: where an index of axis k has been zeroed in the parameters, this tensor is zero;
    `poles[k]`, if there are any: there it is infinite, or no number.
    """

    axes: Axes
    zero: Zeros
    shape: Shape
    is_parameter: bool = False
    poles: Zeros = ()


@dataclass(slots=True)
class Meeting:
    """What a rule says is true.

    statistics: axes over which a mean or a variance is taken; removing there is not zeroing.
    singular: axes where zeroing gives 0 / 0; removing is what zeroing would be in the limit.
    multiplied: the axes whose sizes, multiplied, give the multiply-accumulate operations.
    picked: (y, x, index) where entry i of axis y is entry index[i] of axis x.
    poles: of each output, the axes where zeroing an index makes it infinite.
    """

    outputs: list[Axes]
    zero: list[Zeros]
    equal: list[tuple[Axis, Axis]] = field(default_factory=list)
    frozen: list[tuple[Axis, str]] = field(default_factory=list)
    statistics: list[Axis] = field(default_factory=list)
    singular: list[Axis] = field(default_factory=list)
    multiplied: list[tuple[Axis, ...]] = field(default_factory=list)
    picked: list[tuple[Axis, Axis, Indices]] = field(default_factory=list)
    poles: list[Zeros] = field(default_factory=list)


Rule = Callable[..., Meeting]
RULES: dict[str, Rule] = {}


class Resized(Protocol):
    """What new attributes are computed from: the shapes of the smaller model."""

    def shape(self, value: Value) -> Shape:
        """The new shape of a value."""

    def before(self, value: Value, axis: int, at: int) -> int:
        """How many of the indices before `at` stay."""

    def indices(self, value: Value, axis: int) -> Indices | None:
        """The indices that stay along an axis; None for all."""

    def places(self, value: Value, axis: int) -> Indices:
        """Where each index is in the smaller axis."""


@dataclass(frozen=True, slots=True)
class Contraction:
    """Axes that a product sums over: that of its first operand, and that of a weight among its operands."""

    axis: int
    weight: int
    weight_axis: int


class Operator:
    """One operator as data. Each kind is a frozen dataclass; a front end fills in its fields.

    What a user wrote stays as it is where that matters: a -1 among sizes, a bound that counts from the end.
    """

    __slots__ = ()
    kinds: ClassVar[tuple[str, ...]] = ()
    # Its results hold entries of its first operand, and nothing of those that they leave out.
    takes_parts: ClassVar[bool] = False

    @property
    def kind(self) -> str:
        return self.kinds[0]

    @property
    def contracted(self) -> tuple[Contraction, ...]:
        """The axes that a product sums over, where they are those of a weight."""
        return ()

    @property
    def arguments(self) -> Mapping[str, Any]:
        return {}

    def meet(self, op: Op, *operands: Any) -> Meeting:
        """The equation."""
        raise NotImplementedError  # abstract: each kind has its own

    def resized(self, op: Op, new: Resized) -> Operator:
        """The same operator in the smaller model."""
        return self

    def constants(self, op: Op, given: Sequence[Known | None], numbers: Numbers) -> Sequence[Known | None]:
        """What is known of each result where constants come in; by default nothing."""
        return ()

    def summed(self, op: Op) -> Summed | None:
        """The axis of its first operand over which it sums: a constant may move into the bias behind."""
        return None


@dataclass(frozen=True, slots=True, eq=False)
class Custom(Operator):
    """An operator whose rule was registered under a name of its own."""

    name: str
    given: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return self.name

    @property
    def arguments(self) -> Mapping[str, Any]:
        return self.given


Class = TypeVar("Class", bound=type[Operator])


def operator(made: Class) -> Class:
    """Register a class of operators under its kinds."""

    def apply(op: Op, *operands: Any) -> Meeting:
        met: Meeting = op.operator.meet(op, *operands)
        return met

    apply.__module__ = made.__module__
    for kind in made.kinds:
        rule(kind)(apply)
    return made


def rule(kind: str) -> Callable[[Rule], Rule]:
    """Register the rule of a kind: `rule(op, *operands) -> Meeting`."""

    def register(function: Rule) -> Rule:
        if kind in RULES:
            raise DuplicateRule(f"two rules for {kind!r}: {RULES[kind].__module__}, {function.__module__}")
        RULES[kind] = function
        return function

    return register


def multilinear(kind: str, text: str, factors: int = 2) -> None:
    """Register a rule in one line: the first `factors` inputs are multiplied, the others added."""
    notation = parse(text)

    def apply(op: Op, *operands: Operand | None) -> Meeting:
        return contract(notation, factors, op, operands)

    apply.__module__ = sys._getframe(1).f_globals["__name__"]
    rule(kind)(apply)


def contract(
    notation: Notation,
    factors: int,
    op: Op,
    operands: Sequence[Operand | None],
    size_of: dict[str, int] | None = None,
    frozen: Iterable[str] = (),
) -> Meeting:
    """The meeting of an operator that multiplies its first operands and adds the others."""
    reader = _Reader(op, size_of or {})
    present: list[tuple[Terms, Operand]] = []
    for index, (terms, operand) in enumerate(zip(notation.inputs, operands, strict=False)):
        if operand is None:
            continue
        reader.read(terms, operand, is_factor=index < factors)
        present.append((terms, operand))
    outputs = [reader.write(terms, value.shape) for terms, value in zip(notation.outputs, op.outputs, strict=True)]
    written = set(reader.written)
    for name, zeros in reader.zero.items():
        if name not in written and not any(zeros):
            reader.meeting.frozen.append((reader.axis[name], f"{op.name} sums over it, and it is not zero there"))
    meeting = reader.meeting
    meeting.frozen.extend((reader.axis[name], f"its size is fixed by {op.name}") for name in frozen)
    meeting.outputs = [axes for axes, _ in outputs]
    meeting.zero = [zero for _, zero in outputs]
    contracted = [axis for name, axis in reader.axis.items() if name not in written]
    meeting.multiplied.append((*(axis for axes in meeting.outputs for axis in axes), *contracted, *reader.windows))
    return meeting


class _Reader:
    """The names of one notation, bound to the axes of one operator."""

    def __init__(self, op: Op, size_of: dict[str, int]) -> None:
        self.op = op
        self.meeting = Meeting([], [])
        self.axis: dict[str, Axis] = {}
        self.size_of = size_of
        self.zero: dict[str, list[bool]] = {}
        self.added: list[set[str]] = []
        self.added_zero: list[dict[str, bool]] = []
        self.rest: list[tuple[Axis, list[bool], list[bool]]] = []
        self.rest_of_added = 0
        self.windows: list[Axis] = []
        self.written: list[str] = []
        self.wholes: dict[str, list[Axis]] = {}

    def read(self, terms: Terms, operand: Operand, is_factor: bool) -> None:
        spans = spread(terms, len(operand.axes))
        seen: dict[str, bool] = {}
        for term, span in spans:
            axes = operand.axes[span]
            zeros = operand.zero[span]
            match term:
                case Name(name):
                    self.meet(name, axes[0])
                    if axes[0].size != 1:
                        seen[name] = zeros[0]
                case Group(names, is_sum):
                    self.meet_group(names, is_sum, axes[0])
                    seen.update(dict.fromkeys(names, zeros[0]))
                case Whole(name):
                    for axis in axes:
                        self.meeting.frozen.append((axis, f"{self.op.name} works on it as a whole"))
                    if name not in self.wholes and self.wholes:
                        self.windows.extend(axes)
                    self.wholes.setdefault(name, list(axes))
                case Rest():
                    self.meet_rest(axes, zeros, is_factor)
                case Unit():
                    continue
        if is_factor:
            for name, zero in seen.items():
                self.zero.setdefault(name, []).append(zero)
        else:
            self.added_zero.append(seen)

    def meet(self, name: str, axis: Axis) -> None:
        known = self.axis.get(name)
        if known is None or known.size == 1:
            self.axis[name] = axis
        elif axis.size != 1:
            self.meeting.equal.append((known, axis))

    def meet_group(self, names: tuple[str, ...], is_sum: bool, axis: Axis) -> None:
        unknown = [name for name in names if name not in self.axis]
        for name in unknown:
            if name in self.size_of:
                self.axis[name] = fresh(self.size_of[name])
        left = [name for name in names if name not in self.axis]
        if len(left) > 1:
            raise ValueError(f"{self.op.name}: the sizes of {left} are not given")
        sizes = [self.axis[name].size for name in names if name in self.axis]
        if left:
            known = Product(()).size
            for size in sizes:
                known *= size
            self.axis[left[0]] = fresh(axis.size - sum(sizes) if is_sum else axis.size // known)
        parts = tuple(self.axis[name] for name in names)
        self.meeting.equal.append((axis, Sum(parts) if is_sum else Product(parts)))

    def meet_rest(self, axes: Axes, zeros: Zeros, is_factor: bool) -> None:
        """Leading axes broadcast against each other, aligned at the last of them."""
        while len(self.rest) < len(axes):
            self.rest.insert(0, (ONE, [], []))
        offset = len(self.rest) - len(axes)
        for index, (axis, zero) in enumerate(zip(axes, zeros, strict=True)):
            known, factor_zeros, added_zeros = self.rest[offset + index]
            if axis.size == 1:
                continue
            if known.size == 1:
                known = axis
            else:
                self.meeting.equal.append((known, axis))
            (factor_zeros if is_factor else added_zeros).append(zero)
            self.rest[offset + index] = (known, factor_zeros, added_zeros)
        if not is_factor:
            self.rest_of_added += 1

    def is_zero(self, names: Sequence[str]) -> bool:
        """Zero where one of the factors is, and every added input is too."""
        return all(
            any(self.zero.get(name, [])) and all(added.get(name, False) for added in self.added_zero) for name in names
        )

    def write(self, terms: Terms, shape: Shape) -> tuple[Axes, Zeros]:
        axes: list[Axis] = []
        zeros: list[bool] = []
        for term, span in spread(terms, len(shape)):
            match term:
                case Name(name):
                    axes.append(self.axis[name])
                    zeros.append(self.is_zero([name]))
                    self.written.append(name)
                case Group(names, is_sum):
                    parts = tuple(self.axis[name] for name in names)
                    axes.append(Sum(parts) if is_sum else Product(parts))
                    zeros.append(self.is_zero(names))
                    self.written.extend(names)
                case Whole():
                    for size in shape[span]:
                        axis = fresh(size)
                        self.meeting.frozen.append((axis, f"position in the output of {self.op.name}"))
                        axes.append(axis)
                        zeros.append(False)
                case Rest():
                    added = len(self.added_zero)
                    for axis, factor_zeros, added_zeros in self.rest:
                        axes.append(axis)
                        zeros.append(any(factor_zeros) and len(added_zeros) == added and all(added_zeros))
                case Unit():
                    axes.append(ONE)
                    zeros.append(True)
        return tuple(axes), tuple(zeros)


def spread(terms: Terms, rank: int) -> list[tuple[Term, slice]]:
    """Give each term its axes: one each, and what is left to `...` or `[ ]`."""
    single = sum(not isinstance(term, Rest | Whole) for term in terms)
    spans: list[tuple[Term, slice]] = []
    at = 0
    for term in terms:
        width = rank - single if isinstance(term, Rest | Whole) else 1
        if width < 0 or at + width > rank:
            raise ValueError(f"{terms} does not fit a tensor of rank {rank}")
        spans.append((term, slice(at, at + width)))
        at += width
    if at != rank:
        raise ValueError(f"{terms} does not fit a tensor of rank {rank}")
    return spans


__all__ = [
    "RULES",
    "Contraction",
    "Custom",
    "Dim",
    "Meeting",
    "Operand",
    "Operator",
    "Resized",
    "Rule",
    "contract",
    "multilinear",
    "operator",
    "rule",
]
