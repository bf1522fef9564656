"""Compare the rewritten graph with what a mended model computes, call by call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from structprune.errors import short
from structprune.frontends.torch.read.index import makers, reading_of
from structprune.frontends.torch.read.lower import bind, find_entry
from structprune.frontends.torch.record.record import Call, Capture
from structprune.frontends.torch.write.module import new_arguments
from structprune.graph.graph import Op, Value
from structprune.graph.progress import walk
from structprune.operators.routing import Pick
from structprune.passes.rewrite import Rewrite

# `view` or `reshape`, `chunk` or `split`: operand and results say what these do, however it is written.
TOLD_BY_SHAPES = ("reshape", "split")


# Objects among arguments of which nothing more can be said than what they are.
NAMELESS = (torch.Generator, torch.UntypedStorage, torch.TypedStorage)
PASSED = (torch.ops.aten.contiguous.default, torch.ops.aten.alias.default)


@dataclass(frozen=True, slots=True)
class Difference:
    """Where two graphs part: the operator's place, what differs, and the arguments that the model gave.

    is_said: their results say something else beside their tensors.
    """

    index: int
    problem: str
    expected: Mapping[str, Any]
    found: Mapping[str, Any]
    is_said: bool = False


class Comparison:
    """Walks the operators of the rewritten graph and the calls of the mended model side by side."""

    def __init__(self, rewrite: Rewrite, ops: Sequence[Op], before: Capture) -> None:
        self.rewrite = rewrite
        self.ops = ops
        self.before = before

    def first_difference(
        self,
        calls: Sequence[Call],
        inputs: Sequence[Value],
        constants: Mapping[Value, torch.Tensor],
        outputs: Sequence[Value] | None = None,
    ) -> Difference | None:
        """None where every call is the same, with the literals and shapes of the rewritten graph.

        Without outputs, the model stopped: what it did until then is compared.
        """
        self.names: dict[Value, Value] = dict(zip(self.before.inputs, inputs, strict=False))
        self.constants = constants
        self.old_same: dict[Value, Value] = {}
        self.new_same: dict[Value, Value] = {}
        # How a constant index is made does not count, only its numbers do.
        skipped = makers([op.source for op in self.ops], self.before.outputs) | makers(calls, outputs or ())
        olds = [
            (index, op)
            for index, op in enumerate(self.ops)
            if op.source not in skipped and not self.passes(op.source, self.old_same)
        ]
        news = [call for call in calls if call not in skipped and not self.passes(call, self.new_same)]
        # Where the model stopped without an operator of its own to blame, the next one never came.
        self.next_index = olds[min(len(news), len(olds) - 1)][0] if olds else 0
        for (index, op), new in zip(walk(olds, "comparing operator"), news, strict=False):
            call: Call = op.source
            changes = new_arguments(call, self.rewrite.literals(op))
            problem = self.difference(op, new, changes)
            if problem is not None:
                found = bind(new.target, new.args, new.kwargs) if new.target is call.target else {}
                expected = {**bind(call.target, call.args, call.kwargs), **changes}
                return Difference(
                    index, problem, as_numbers(expected, self.before.constants), as_numbers(found, constants)
                )
            self.names.update(zip(call.outputs, new.outputs, strict=False))
        if outputs is not None and len(olds) != len(news):
            return Difference(olds[min(len(olds), len(news)) - 1][0], "another number of operators", {}, {})
        return None

    def passes(self, call: Call, same: dict[Value, Value]) -> bool:
        """What may be recorded or not, and does nothing: `contiguous`, a slice that takes all of an axis."""
        is_slice = call.target is torch.ops.aten.slice.Tensor and call.outputs[0].shape == call.args[0].shape
        is_whole = is_slice and bind(call.target, call.args, call.kwargs)["step"] == 1
        if not (is_whole or call.target in PASSED) or not call.outputs:
            return False
        origin = call.args[0]
        same[call.outputs[0]] = same.get(origin, origin)
        return True

    def same_outputs(self, after: Capture) -> bool:
        def name(value: Value) -> Any:
            origin = self.old_same.get(value, value)
            return origin.parameter or self.names.get(origin, origin)

        found = (self.new_same.get(value, value) for value in after.outputs)
        return [name(value) for value in self.before.outputs] == [value.parameter or value for value in found]

    def difference(self, op: Op, new: Call, changes: Mapping[str, Any]) -> str | None:
        old: Call = op.source
        if old.target is not new.target:
            if op.kind not in TOLD_BY_SHAPES or find_entry(new.target) is not find_entry(old.target):
                return f"{new.target} in place of {old.target}"
            if not self.same(list(old.tensors()), list(new.tensors())):
                return f"{new.target} of another tensor"
        elif "*" in changes:
            return "its parts have unequal sizes"
        else:
            found = bind(new.target, new.args, new.kwargs)
            for name, value in {**bind(old.target, old.args, old.kwargs), **changes}.items():
                if old.known and name in ("index", "indices"):
                    if not self.same_index(value, found.get(name), op, new):
                        return "an index of other numbers"
                elif not self.same(value, found.get(name)):
                    is_told, given = plain(value), plain(found.get(name))
                    return f"{name} is another {given}" if given == is_told else f"{name}={given} in place of {is_told}"
        if len(old.outputs) != len(new.outputs):
            return "another number of results"
        for before, after in zip(old.outputs, new.outputs, strict=True):
            if self.rewrite.shape(before) != after.shape:
                return f"a result of shape {after.shape} in place of {self.rewrite.shape(before)}"
        return None

    def same_index(self, value: Any, found: Any, op: Op, new: Call) -> bool:
        """Constant indices have the same numbers, where they read what becomes smaller those of the smaller model."""
        old: Call = op.source
        after = op.operator.resized(op, self.rewrite)
        if isinstance(after, Pick):
            reading = reading_of(new) if new.known else None
            return reading is not None and np.array_equal(reading.index, after.index)
        if isinstance(value, list | tuple) and isinstance(found, list | tuple):
            pairs = zip(value, found, strict=False)
            return len(value) == len(found) and all(self.same_index(a, b, op, new) for a, b in pairs)
        if value in old.known and found in new.known:
            return torch.equal(old.known[value], new.known[found])
        return self.same(value, found)

    def number(self, given: Any, constants: Mapping[Value, torch.Tensor]) -> Any:
        constant = constants.get(given) if isinstance(given, Value) else None
        return constant.item() if constant is not None and constant.dim() == 0 else given

    def same(self, old: Any, new: Any) -> bool:
        if isinstance(old, list | tuple):
            return isinstance(new, list | tuple) and len(old) == len(new) and all(map(self.same, old, new))
        if isinstance(old, int | float) or isinstance(new, int | float):
            # A number in the place of a tensor is one with a single entry.
            return bool(self.number(old, self.before.constants) == self.number(new, self.constants))
        if isinstance(old, NAMELESS):
            return isinstance(new, type(old))
        if not isinstance(old, Value):
            return bool(old == new)
        if not isinstance(new, Value):
            return False
        old, new = self.old_same.get(old, old), self.new_same.get(new, new)
        if old.parameter is not None:
            return bool(old.parameter == new.parameter)
        if old in self.before.constants:
            before, after = self.before.constants[old], self.constants.get(new)
            return after is not None and before.shape == after.shape and bool(torch.equal(before, after))
        return self.names.get(old) is new


def as_numbers(arguments: Mapping[str, Any], constants: Mapping[Value, torch.Tensor]) -> dict[str, Any]:
    """The arguments, with constants of one entry as the numbers that they are."""
    return {
        name: constants[value].item() if isinstance(value, Value) and is_number(constants.get(value)) else value
        for name, value in arguments.items()
    }


def is_number(constant: torch.Tensor | None) -> bool:
    return constant is not None and constant.numel() == 1


def plain(argument: Any) -> str:
    return argument.name if isinstance(argument, Value) else short(argument)
