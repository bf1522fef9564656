"""Law 2 as a computation: the original graph with the removed slices zeroed.

Normalisations over a removed axis take their statistics over what is kept: there the rule says that
removing is not zeroing, and the oracle runs the small operator on the kept entries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from structprune.frontends.torch.read.lower import bind, qualified_name
from structprune.frontends.torch.record import private
from structprune.frontends.torch.record.autocast import perform
from structprune.frontends.torch.record.program import Program, inner, stored_name
from structprune.frontends.torch.record.record import Call, Capture, Run, tensors_in
from structprune.frontends.torch.record.recorder import Recorder
from structprune.frontends.torch.record.traits import Traits
from structprune.frontends.torch.write.module import new_arguments
from structprune.graph.graph import Op, Value, Where
from structprune.passes.rewrite import Rewrite


def expected_outputs(
    capture: Capture, rewrite: Rewrite, values: Mapping[str, Tensor], inputs: Sequence[Tensor]
) -> list[Tensor]:
    """What the small model must give; `values` are the zeroed parameters."""
    return Zeroed(capture, rewrite, values).outputs(inputs)


class Zeroed(fx.Interpreter):
    """Runs the recorded program, with the changed operators taken over what is kept."""

    def __init__(self, capture: Capture, rewrite: Rewrite, values: Mapping[str, Tensor]) -> None:
        self.program = Program(capture, flat=True)
        super().__init__(nn.Module(), graph=self.program.graph)
        self.rewrite = rewrite
        self.changed = {op.source: op for op in changed_ops(rewrite)}
        self.stored = {stored_name(capture, value): tensor for value, tensor in capture.constants.items()}
        self.stored.update(values)

    def outputs(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return list(self.run(*inputs))

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Tensor:
        return self.stored[target]

    def run_node(self, n: fx.Node) -> Any:
        op = self.changed.get(n.meta.get("call"))
        if op is None:
            return super().run_node(n)
        given: Any = inner(n)
        args, kwargs = fx.map_arg(given, lambda each: self.env[each])
        return over_kept(op, tuple(args), dict(kwargs), self.rewrite)


def changed_ops(rewrite: Rewrite) -> list[Op]:
    """The operators for which removing is not zeroing; and those that draw, which draw fewer numbers."""
    solution = rewrite.solution
    drawing = [
        (op, axis)
        for op in solution.graph.ops
        # Attention and recurrent layers draw in training only.
        if op.kind in ("route", "constant")
        if torch.Tag.nondeterministic_seeded in getattr(op.source.target, "tags", ())
        for value in op.outputs
        for axis in solution.expanded(value)
    ]
    return [
        op
        for op, axis in (*solution.statistics, *solution.singular, *drawing)
        if any(leaf in rewrite.kept for leaf in solution.system.leaves(axis))
    ]


@contextmanager
def same_chance(model: nn.Module) -> Iterator[None]:
    """What two runs draw is the same; the caller's own numbers go on as if nothing had been drawn."""
    cards = {tensor.device for tensor in model.parameters() if tensor.device.type == "cuda"}
    # Generators are the whole process's: another thread that shrinks a model waits.
    with private.LOCK, torch.random.fork_rng(list(cards)):
        for generator in (torch.default_generator, *(torch.cuda.default_generators[card.index] for card in cards)):
            generator.manual_seed(0)
        yield


class Interceptor(Recorder):
    """Runs a model's own code, with the changed operators taken over what is kept.

    For models whose path depends on data: no recorded graph stands for them.
    """

    def __init__(self, model: nn.Module, rewrite: Rewrite) -> None:
        super().__init__(model, Run(((), {}), is_real=True))
        self.rewrite = rewrite
        self.changed = set(map(id, changed_ops(rewrite)))
        # What one line of a loop calls in turn, in the order of the recorded run.
        self.recorded: dict[tuple[Where, str], list[Op]] = {}
        for op in rewrite.solution.graph.ops if self.changed else ():
            self.recorded.setdefault((op.where, op.name), []).append(op)
        self.met: Counter[tuple[Where, str]] = Counter()

    def record(self, function: Any, known: Traits, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = qualified_name(function).removeprefix("aten::")
        place = (self.where(), name)
        if place not in self.recorded:
            return function(*args, **kwargs)
        ops = self.recorded[place]
        op = ops[min(self.met[place], len(ops) - 1)]
        self.met[place] += 1
        return over_kept(op, args, kwargs, self.rewrite) if id(op) in self.changed else function(*args, **kwargs)


def over_kept(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any], rewrite: Rewrite) -> Any:
    """Run the small operator on the kept entries, and spread its results over zeros."""
    call: Call = op.source
    recorded = bind(call.target, call.args, call.kwargs)
    whole = bind(call.target, args, kwargs)
    given = dict(whole)
    for name, value in recorded.items():
        if isinstance(value, Value):
            given[name] = gathered(whole[name], value, rewrite)
    for name, after in new_arguments(call, rewrite.literals(op)).items():
        given[name] = changed_entries(whole.get(name), recorded.get(name), after)
    result = invoke(call, given)
    spread = [scattered(small, value, rewrite) for small, value in zip(tensors_in(result), call.outputs, strict=True)]
    for argument in call.target._schema.arguments:
        name, is_written = argument.name, argument.alias_info is not None and argument.alias_info.is_write
        if is_written and isinstance(whole.get(name), Tensor) and given[name] is not whole[name]:
            # What was written is a copy of what the code holds.
            whole[name].copy_(scattered(given[name], recorded[name], rewrite))
    return spread[0] if isinstance(result, Tensor) else tuple(spread)


def changed_entries(here: Any, recorded: Any, after: Any) -> Any:
    """An argument in the smaller model; where its entries stay what they were, those of the inputs at hand."""
    if isinstance(here, list | tuple) and isinstance(after, list | tuple) and len(here) == len(recorded) == len(after):
        return [changed_entries(*each) for each in zip(here, recorded, after, strict=True)]
    return here if after == recorded else after


def invoke(call: Call, arguments: Mapping[str, Any]) -> Any:
    """Call an operator with arguments by name."""
    given = [each for each in call.target._schema.arguments if each.name in arguments]
    positional = tuple(arguments[each.name] for each in given if not each.kwarg_only)
    return perform(call, positional, {each.name: arguments[each.name] for each in given if each.kwarg_only})


def gathered(tensor: Tensor, value: Value, rewrite: Rewrite) -> Tensor:
    for axis in range(tensor.dim()):
        kept = rewrite.indices(value, axis)
        if kept is not None:
            tensor = tensor.index_select(axis, torch.from_numpy(kept).to(tensor.device))
    return tensor


def scattered(small: Tensor, value: Value, rewrite: Rewrite) -> Tensor:
    for axis, size in enumerate(value.shape):
        kept = rewrite.indices(value, axis)
        if kept is not None:
            shape = [*small.shape[:axis], size, *small.shape[axis + 1 :]]
            whole = small.new_zeros(shape)
            small = whole.index_copy_(axis, torch.from_numpy(kept).to(small.device), small)
    return small
