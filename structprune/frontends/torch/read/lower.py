"""Lower a recorded run to the neutral graph.

Each ATen operator has an entry: the neutral operator that it is, its operands, and which of its arguments hold
which fields.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from structprune.frontends.lowering import Lowered
from structprune.frontends.torch.record.record import Call, Capture, values_in
from structprune.graph.graph import Graph, Op, Value
from structprune.graph.operator import RULES, Custom
from structprune.operators.routing import Opaque

Bound = Mapping[str, Any]


Entry = Callable[[Call, Bound], Lowered]
ENTRIES: dict[str, Entry] = {}
# The entries of operators that hand on the numbers of their first tensor, in another shape at most.
MOVES: set[Entry] = set()


def entry(*names: str) -> Callable[[Entry], Entry]:
    """Register how operators are lowered, by their names in `torch.ops.aten` or in full."""

    def register(function: Entry) -> Entry:
        for name in names:
            qualified = name if "::" in name else f"aten::{name}"
            assert qualified not in ENTRIES, f"{qualified} has two entries"
            ENTRIES[qualified] = function
        return function

    return register


def moves(function: Entry) -> Entry:
    """Mark an entry: the result holds the numbers of the first tensor, and no others."""
    MOVES.add(function)
    return function


def qualified_name(target: Any) -> str:
    packet = getattr(target, "overloadpacket", None)
    return str(packet._qualified_op_name) if packet is not None else str(target)


def is_pointwise(target: Any) -> bool:
    return torch.Tag.pointwise in getattr(target, "tags", ())


def find_entry(target: Any) -> Entry | None:
    name = qualified_name(target)
    if str(target) in TAKEN_APART:
        return None
    found = ENTRIES.get(name)
    if found is None and name.endswith("_") and not name.endswith("__"):
        found = ENTRIES.get(name[:-1])
    if found is None and name in RULES:
        return custom
    if found is None and is_pointwise(target):
        return ENTRIES["aten::pointwise"]
    return found


def has_rule(target: Any) -> bool:
    return find_entry(target) is not None


# Overloads that share a name with operators of another kind.
TAKEN_APART = frozenset({"aten.where.default"})
_SCHEMAS: dict[Any, tuple[list[str], dict[str, Any]]] = {}


def bind(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by name, with the defaults of the operator's schema."""
    schema = _SCHEMAS.get(target)
    if schema is None:
        arguments = target._schema.arguments
        schema = _SCHEMAS[target] = (
            [argument.name for argument in arguments],
            {argument.name: argument.default_value for argument in arguments if argument.has_default_value()},
        )
    names, defaults = schema
    return {**defaults, **dict(zip(names, args, strict=False)), **kwargs}


def custom(call: Call, bound: Bound) -> Lowered:
    """An operator whose rule was registered under its own name."""
    inputs = [value for argument in bound.values() for value in values_in(argument)]
    plain = {name: argument for name, argument in bound.items() if not list(values_in(argument))}
    return Lowered(Custom(qualified_name(call.target), plain), inputs)


def opaque(call: Call, why: str | None = None) -> Lowered:
    return Lowered(Opaque(why), list(dict.fromkeys(call.tensors())))


def lower(capture: Capture) -> Graph:
    """The neutral graph of a recorded run."""
    ops = []
    for call in capture.calls:
        lowered = lower_call(call)
        op = Op(
            lowered.operator,
            qualified_name(call.target).removeprefix("aten::"),
            tuple(lowered.inputs),
            tuple(call.outputs),
            call.where,
            overwritten(call),
        )
        op.source, op.places = call, lowered.places
        for value, base in zip(call.outputs, bases(call), strict=True):
            value.producer = op
            if base is not None:
                value.base = base.base or base
        ops.append(op)
    return Graph(ops, capture.parameters, capture.inputs, capture.outputs)


def aliased(call: Call) -> Value | None:
    """The argument whose memory the result shares."""
    return next(iter(bases(call)), None)


def bases(call: Call) -> list[Value | None]:
    """For each result, the argument whose memory it shares."""
    schema = getattr(call.target, "_schema", None)
    none: list[Value | None] = [None for _ in call.outputs]
    if schema is None:
        return none
    if all(returned.alias_info is None for returned in schema.returns):
        is_silent = qualified_name(call.target) in SHARES_SILENTLY
        return [next(call.tensors(), None) for _ in none] if is_silent else none
    bound = bind(call.target, call.args, call.kwargs)
    marked = [bound.get(argument.name) for argument in schema.arguments if argument.alias_info is not None]
    shown = list(values_in(marked)) or list(call.tensors())
    if len(shown) == len(none):
        return [*shown]
    return [next(iter(shown), None) for _ in none]


def overwritten(call: Call) -> tuple[Value, ...]:
    """The values whose memory the call writes."""
    schema = getattr(call.target, "_schema", None)
    if schema is None:
        return tuple(dict.fromkeys(call.tensors()))
    if not schema.is_mutable or torch.Tag.inplace_view in call.target.tags:
        return ()
    bound = bind(call.target, call.args, call.kwargs)
    written = (each.name for each in schema.arguments if each.alias_info is not None and each.alias_info.is_write)
    return tuple(values_in([bound.get(name) for name in written]))


# They may give back the memory that they were given, and their schemas do not say so.
SHARES_SILENTLY = frozenset(
    f"aten::{name}"
    for name in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "data", "_unsafe_view",
                 "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk", "channel_shuffle", "pixel_shuffle",
                 "pixel_unshuffle", "type_as", "conj_physical")
)  # fmt: skip


def lower_call(call: Call) -> Lowered:
    found = find_entry(call.target)
    if found is None or not hasattr(call.target, "_schema"):
        return opaque(call)
    bound = bind(call.target, call.args, call.kwargs)
    for argument in call.target._schema.arguments:
        if isinstance(bound.get(argument.name), Value) and "Tensor" not in str(argument.type):
            return opaque(call, f"its {argument.name} is computed from data")
        if argument.is_out:
            # Memory for the result is no operand.
            del bound[argument.name]
    return found(call, bound)
