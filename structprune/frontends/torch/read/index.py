"""Constant indices: which axis they read, and whether the buffer that holds them can be given new numbers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial

import numpy as np
import torch

from structprune.algebra.order import takes_each_once
from structprune.frontends.torch.read.lower import MOVES, aliased, bind, find_entry
from structprune.frontends.torch.record.record import Call, Capture, Reading
from structprune.graph.graph import Value

Users = Mapping[Value, Sequence[Call]]


OtherRuns = Callable[[Capture], Sequence[Capture]]


def settle(captures: Sequence[Capture], other_runs: OtherRuns) -> None:
    """Note at each operator that reads one axis by a constant index what it reads, and how.

    The captures are modes of one model, over the same parameters; other_runs: one of them on inputs of other sizes.
    """
    calls = [call for capture in captures for call in capture.calls]
    found = {call: reading for call in calls if call.known and (reading := reading_of(call)) is not None}
    made = {value: call for call in calls for value in call.outputs} if found else {}
    by_root: dict[Value, list[Call]] = {}
    for call, reading in found.items():
        if may_shrink(reading, made):
            by_root.setdefault(root_of(reading.value, made), []).append(call)
            call.reading = reading

    @cache
    def steady() -> set[Call]:
        return {call for capture in captures for call in read_alike(capture, other_runs(capture))}

    def is_steady(call: Call) -> bool:
        return call in steady()

    users = users_of(calls) if by_root else {}
    outputs = {value for capture in captures for value in capture.outputs}
    for root, readers in by_root.items():
        first = found[readers[0]]
        widths = {found[call].base.shape[found[call].dim] for call in readers}
        is_stored = root.parameter is not None and len(widths) == 1 and serves_reading(root, users, outputs)
        for call in readers:
            if root.parameter is None:
                call.reading = replace(found[call], is_steady=partial(is_steady, call))
            elif is_stored:
                other = None if call is readers[0] else (first.base, first.dim)
                call.reading = replace(found[call], stored=root.parameter, other=other)


def settles_with(captures: Sequence[Capture], training: Capture, other_runs: OtherRuns) -> bool:
    """Settle a further mode; False where that does more with an index than the modes before said."""
    before = {call: call.reading for capture in captures for call in capture.calls if call.reading is not None}
    settle([*captures, training], other_runs)
    agrees = all(call.reading is not None and call.reading.stored == was.stored for call, was in before.items())
    for call, was in before.items():
        call.reading = was
    return agrees


def read_alike(capture: Capture, others: Sequence[Capture]) -> set[Call]:
    """The calls whose index is the same for inputs of other sizes: made in forward, it may be computed from those."""
    alike: set[Call] = set()
    for place, call in enumerate(capture.calls):
        if call.reading is not None:
            twins = [reading_of(other.calls[place]) for other in others]
            if all(twin is not None and np.array_equal(twin.index, call.reading.index) for twin in twins):
                alike.add(call)
    return alike


def reading_of(call: Call) -> Reading | None:
    """The axis and the index, where one axis is read by one constant index, the same all over the other axes."""
    bound = bind(call.target, call.args, call.kwargs)
    base: Value = bound["self"]
    if "indices" in bound and isinstance(bound["indices"], list | tuple):
        given = [(dim, each) for dim, each in enumerate(bound["indices"]) if each is not None]
        if len(given) != 1:
            return None
        dim, value = given[0]
    else:
        dim, value = bound["dim"], bound.get("index", bound.get("indices"))
    if value not in call.known or dim is None or not base.shape:
        return None
    dim %= len(base.shape)
    index = call.known[value].numpy().astype(np.int64)
    if call.target._opname in ("gather", "take_along_dim"):
        others = [size for k, size in enumerate(call.outputs[0].shape) if k != dim]
        rows = np.moveaxis(index, dim, 0).reshape(index.shape[dim], -1)
        if others != [size for k, size in enumerate(base.shape) if k != dim] or (rows != rows[:, :1]).any():
            return None
        index = rows[:, 0]
    size = base.shape[dim]
    index = np.where(index < 0, index + size, index)
    if not index.ndim or not index.size or index.min() < 0 or index.max() >= size:
        return None
    return Reading(base, dim, value, index)


def makers(calls: Sequence[Call], outputs: Collection[Value]) -> set[Call]:
    """The calls that do nothing but make constant indices."""
    if not any(call.known for call in calls):
        return set()
    users = users_of(calls)
    found: set[Call] = set()
    for call in reversed(calls):
        uses = [(value, user) for value in call.outputs for user in users.get(value, ())]
        is_inside = all(user in found or value in user.known for value, user in uses)
        if uses and is_inside and not is_mutable(call) and not any(value in outputs for value in call.outputs):
            found.add(call)
    return found


def may_shrink(reading: Reading, made: Mapping[Value, Call]) -> bool:
    """Something trained is read, and not a table in part: what this index leaves out, another one may read."""
    value, call = reading.base, made.get(reading.base)
    while call is not None and (is_move(call) or aliased(call) is not None):
        value = next(call.tensors())
        call = made.get(value)
    if value.parameter is not None:
        return takes_each_once(reading.index.reshape(-1), reading.base.shape[reading.dim])
    return any(each.is_trained for each in ancestors(value, made))


def ancestors(value: Value, made: Mapping[Value, Call]) -> Iterator[Value]:
    """The value, and all that it is computed from."""
    seen, waiting = {value}, [value]
    for each in waiting:
        yield each
        call = made.get(each)
        new = [] if call is None else [other for other in call.tensors() if other not in seen]
        seen.update(new)
        waiting.extend(new)


def is_mutable(call: Call) -> bool:
    return bool(getattr(call.target, "_schema", None) and call.target._schema.is_mutable)


def is_move(call: Call) -> bool:
    """Its result holds the numbers of its first tensor, and no others."""
    return find_entry(call.target) in MOVES and call.target is not torch.ops.aten.view.dtype


def root_of(value: Value, made: Mapping[Value, Call]) -> Value:
    """The tensor whose numbers these are, moved about."""
    while (call := made.get(value)) is not None and is_move(call):
        value = next(call.tensors())
    return value


def users_of(calls: Sequence[Call]) -> dict[Value, list[Call]]:
    users: dict[Value, list[Call]] = {}
    for call in calls:
        for value in call.tensors():
            users.setdefault(value, []).append(call)
    return users


def serves_reading(root: Value, users: Users, outputs: Collection[Value]) -> bool:
    """Nothing but readings depends on the numbers of a tensor."""
    return all(
        value not in outputs and all(is_move(user) or is_read_by(user, value) for user in users.get(value, ()))
        for value in moved(root, users)
    )


def is_read_by(call: Call, value: Value) -> bool:
    return call.reading is not None and call.reading.value is value and call.reading.base is not value


def moved(root: Value, users: Users) -> Iterator[Value]:
    """The tensor, and whatever holds its numbers moved about."""
    waiting = [root]
    for value in waiting:
        yield value
        waiting.extend(output for call in users.get(value, ()) if is_move(call) for output in call.outputs)
