"""The model recorded in training: what runs only then (stochastic depth, further heads) is part of it too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from structprune.algebra.axis import Dim, variables
from structprune.errors import CaptureError
from structprune.frontends.torch.read.lower import bind, lower
from structprune.frontends.torch.record import private
from structprune.frontends.torch.record.capture import record
from structprune.frontends.torch.record.mode import FLAGS
from structprune.frontends.torch.record.record import Arguments, Call, Capture, Run, Stopped, depends_on_data
from structprune.frontends.torch.record.symbols import NONE_PLAIN, Plain
from structprune.graph.graph import Value, Where
from structprune.passes.propagate import Solution, extended, propagate, variables_of

EVAL_MODE = "In training it computes what it does in eval mode"


def record_like(capture: Capture, model: nn.Module, inputs: Arguments, plain: Plain = NONE_PLAIN) -> Capture:
    """A model recorded in the way and in the mode in which another was."""
    if capture.training:
        return record_in_training(model, inputs, plain=plain)
    return record(model, Run(inputs, capture.is_real, capture.answers, plain=plain))


def record_in_training(
    model: nn.Module, inputs: Arguments, known: Capture | None = None, plain: Plain = NONE_PLAIN
) -> Capture:
    """The model on ghosts with every module in training; parameters are the values that `known` has for them."""
    with seeded(model):
        capture = record(model, Run(inputs, known=known, training=True, plain=plain))
    if capture.draws_elsewhere or depends_on_random_numbers(capture):
        raise CaptureError("which path the model takes in training depends on random numbers")
    leave_out_counters(capture)
    if known is not None:
        capture.steady.update(flagged(known, True))
        known.steady.update(flagged(capture, False))
    return capture


def flagged(capture: Capture, flag: bool) -> Iterator[tuple[Where, Any]]:
    """The operators that were told that they train, or that they do not."""
    for call in capture.calls:
        given = bound(call)
        if any(given.get(name) is flag for name in FLAGS):
            yield call.where, call.target


def unites(capture: Capture, training: Capture) -> bool:
    """Whether training is to be looked at with eval mode from the start.

    It reads trained parameters that nothing else reads, or widths meet there that do not elsewhere.
    """
    further = [value for name, value in training.parameters.items() if name not in capture.parameters]
    if any(value.is_trained for value in further):
        return True
    solution = propagate(lower(capture))
    wider = extended(solution, lower(training))
    known = set(variables_of(solution))
    if wider.system.frozen.keys() & known - solution.system.frozen.keys():
        return False  # it would hold what can be cut where the model does not train
    # A buffer that only training reads has the width of what is written into it.
    shared = (leaf in known for value in further for axis in wider.expanded(value) for leaf in variables(axis))
    return any(wider.system.resolve(leaf) is not leaf for leaf in known) or any(shared)


def difference_in_training(model: nn.Module, inputs: Arguments, capture: Capture) -> tuple[Capture | None, str]:
    """The model in training, where it computes something else there; or why that cannot be said."""
    if capture.is_real:
        return None, "it reads data, and one real run was recorded"
    try:
        training = record_in_training(model, inputs, capture)
    except CaptureError as error:
        return None, str(error)
    except Stopped as stopped:
        cause = stopped.cause
        return None, f"there it raises {type(cause).__name__}: {cause}{stopped.place}"
    return None if same_but_for_flags(capture, training) else training, ""


def touched(before: Solution, after: Solution) -> dict[Dim, str]:
    """The variables that a wider system froze or refined: what was solved for them before no longer says it all."""
    found: dict[Dim, str] = {}
    for leaf in set(variables_of(before)):
        if after.system.resolve(leaf) is not leaf:
            found[leaf] = "training divides it further, or ties it to another"
        elif leaf in after.system.frozen and leaf not in before.system.frozen:
            found[leaf] = after.system.frozen[leaf].reason
    return found


@contextmanager
def seeded(model: nn.Module) -> Iterator[None]:
    """What the model draws is the same each time."""
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with private.LOCK, torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(0)
        yield


def depends_on_random_numbers(capture: Capture) -> bool:
    """A number that Python was given, or the shape of a tensor, comes from a generator."""
    drawn: set[Value] = set()
    for call in capture.calls:
        is_drawn = any(value in drawn for value in call.tensors())
        if is_drawn and depends_on_data(call.target) and not picks_by_numbers(call):
            return True
        if is_drawn or torch.Tag.nondeterministic_seeded in getattr(call.target, "tags", ()):
            drawn.update(call.outputs)
    return False


def picks_by_numbers(call: Call) -> bool:
    """An index of whole numbers: how many it takes does not depend on them."""
    return str(getattr(call.target, "_opname", "")) == "index" and not any(value.is_mask for value in call.tensors())


def leave_out_counters(capture: Capture) -> None:
    """Batch norms count batches beside their operator; a graph does so with it."""
    names = [name for name in capture.parameters if name.endswith("num_batches_tracked")]
    counters = {capture.parameters.pop(name) for name in names}
    kept: list[Call] = []
    for call in capture.calls:
        if call.target is torch.ops.aten.add_.Tensor and call.args[0] in counters:
            counters.update(call.outputs)
        else:
            kept.append(call)
    capture.calls = kept


def same_but_for_flags(a: Capture, b: Capture) -> bool:
    """The two compute the same, except that operators which know a mode are in different ones."""
    names: dict[Value, Value] = dict(zip(a.inputs, b.inputs, strict=True))

    def same(x: Any, y: Any) -> bool:
        if isinstance(x, list | tuple):
            return isinstance(y, list | tuple) and len(x) == len(y) and all(map(same, x, y))
        if isinstance(x, Value) and isinstance(y, Value) and x in a.constants and y in b.constants:
            return torch.equal(a.constants[x], b.constants[y])
        return names.get(x) is y or x is y if isinstance(x, Value) else bool(x == y)

    if len(a.calls) != len(b.calls):
        return False
    for x, y in zip(a.calls, b.calls, strict=True):
        left, right = ([value for name, value in bound(call).items() if name not in FLAGS] for call in (x, y))
        if x.target is not y.target or not same(left, right):
            return False
        names.update(zip(x.outputs, y.outputs, strict=True))
    return same(a.outputs, b.outputs)


def bound(call: Call) -> dict[str, Any]:
    return bind(call.target, call.args, call.kwargs) if hasattr(call.target, "_schema") else dict(call.kwargs)
