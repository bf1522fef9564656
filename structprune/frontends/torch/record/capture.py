"""Record what a torch model computes.

The model itself runs, on ghosts: tensors that have a shape, a type and a device but no data. Where a model reads data
(`.item()`, `nonzero`), ghosts cannot go on, and one real run is recorded in their place.
"""

from __future__ import annotations

import pickle
import random
from contextvars import copy_context
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from structprune.errors import CaptureError, UnsupportedModel
from structprune.frontends.torch.record import private
from structprune.frontends.torch.record.exported import record_by_export
from structprune.frontends.torch.record.expression import Attribute, leaves
from structprune.frontends.torch.record.ghost import BORN, GhostEscaped
from structprune.frontends.torch.record.number import Ledger, Numeric, expression_of
from structprune.frontends.torch.record.record import Arguments, Capture, Refusal, Run, Stopped, map_tensors
from structprune.frontends.torch.record.recorder import Recorder
from structprune.frontends.torch.record.result import form, look_into
from structprune.frontends.torch.record.sized import NO_NUMBERS
from structprune.frontends.torch.record.surroundings import NOT_THE_USERS, positional_names, untouched
from structprune.frontends.torch.record.survivor import check_survivors, forget_frames
from structprune.frontends.torch.record.symbols import ALL_PLAIN, Plain, holder_of, symbolic
from structprune.frontends.torch.record.tree import modules_of, stored
from structprune.graph.graph import Value

MOST_REFUSALS = 8


def capture(model: nn.Module, inputs: Arguments) -> Capture:
    """Record the model on these inputs, on ghosts if possible and by one real run if not."""
    try:
        return record(model, Run(inputs))
    except Stopped as first:
        is_threaded = first.is_threaded
        try:
            found = record(model, Run(inputs, is_real=True))
            return replace(found, is_threaded=is_threaded or found.is_threaded)
        except Stopped as stopped:
            error = stopped.cause
            kind = type(error).__name__
            if runs(model, inputs):
                raise UnsupportedModel(
                    "the model runs, but not while its operators are recorded, where it raises "
                    f"{kind}: {first_line(error)}{stopped.place}. What compiles or captures "
                    "code while it runs (torch.cond, flex_attention, torch.compile inside forward) is not supported; "
                    "call what it stands for."
                ) from error
            raise CaptureError(
                f"the model's forward raised {kind}: {error}{stopped.place}. "
                "Give example_inputs on which the model runs."
            ) from error


def first_line(error: BaseException) -> str:
    """What an error says, in short."""
    return next(iter(str(error).strip().splitlines()), "")


def runs(model: nn.Module, inputs: Arguments) -> bool:
    """Whether the model by itself runs on these inputs."""
    try:
        with torch.no_grad(), untouched(model, with_buffers=True) as copied:
            set_mode(copied, training=False)
            copied(*inputs[0], **inputs[1])
    except Exception:  # it is the model's own, and it was raised while recording too
        return False
    return True


def set_mode(model: nn.Module, training: bool) -> None:
    """Past the model's own `train`, which may do more."""
    for module in modules_of(model):
        vars(module)["training"] = training


def record(model: nn.Module, run: Run) -> Capture:
    """One run. A module whose code does not take numbers that carry expressions gets plain ones, in another run."""
    if not private.is_available:
        return record_slowly(model, run)
    with private.LOCK:
        while True:
            try:
                return record_on_copy(model, run)
            except Stopped as stopped:
                if run.plain.everything or stopped.refusal is None:
                    raise
                run = replace(run, plain=plainer(run.plain, stopped.refusal, model))


def record_slowly(model: nn.Module, run: Run) -> Capture:
    """The way for a torch without the private names of the quick one."""
    if run.is_real:
        raise UnsupportedModel(
            f"torch {torch.__version__} lacks {', '.join(private.missing)}: models are recorded by torch.export there, "
            f"which does not take this {type(model).__name__}. Use a torch that this structprune knows."
        )
    return record_by_export(model, run)


def record_on_copy(model: nn.Module, run: Run) -> Capture:
    """One run of a copy of the model; nothing of it is left behind."""
    copied: nn.Module | None = None
    start = len(BORN)
    failed: Exception | None = None
    try:
        with untouched(model) as copied:
            # The numbers of the original itself stay what they are.
            found = recorded(copied, replace(run, plain=ALL_PLAIN) if copied is model else run)
    except (Stopped, CaptureError) as error:
        failed = error
        if not run.is_real:
            forget_frames(failed)
    finally:
        born = BORN[start:]
        del BORN[start:]
    check_survivors(born, copied if copied is not model else None, type(model).__name__)
    if failed is None:
        return found
    try:
        raise failed
    finally:
        del failed  # it holds this frame, and this frame it


def recorded(model: nn.Module, run: Run) -> Capture:
    """The run itself, of a model that may be changed by it."""
    recorder = Recorder(model, run)
    values, sizes, ledger = recorder.values, recorder.sizes, recorder.ledger
    if not run.is_real:
        for _, tensor in stored(model):
            sizes.sized(tensor)
    entering: list[Value] = []

    def enter(tensor: Tensor) -> Tensor:
        ghost = recorder.ghost(tensor)
        entering.append(values.new(ghost, f"input_{len(entering)}"))
        return ghost

    args, kwargs = map_tensors(run.inputs[0], enter), map_tensors(run.inputs[1], enter)
    arguments = form(args, values.of), form(kwargs, values.of)
    chance = elsewhere_drawn() if run.training else b""
    recorder.varying.update(entering)
    set_mode(model, run.training)
    with symbolic(model, ledger, sizes.size_of, run.plain), recorder.recording() as check:
        try:
            # In a context of its own: what the code sets in context variables is forgotten.
            result = copy_context().run(model, *args, **kwargs)
            check()
        except Exception as error:
            sizes.release()
            refused = refusal(model, run.plain, ledger, error)
            raise Stopped(recorder.calls, entering, values.constants, error, raised_at(error), refused) from error
    sizes.is_busy = True
    found = look_into(result, model)
    if any(isinstance(value, str) and NO_NUMBERS in value for _, value in found.said):
        sizes.release()
        as_text = ValueError("the model gives back numbers as text")
        raise Stopped(recorder.calls, entering, values.constants, as_text, "")
    if not found.tensors:
        raise CaptureError(
            f"{type(model).__name__}'s forward gives back no tensor, but a {type(result).__name__}: "
            "nothing says what the smaller model must compute"
        )
    outputs = list(map(values.of, found.tensors))
    if recorder.is_spread:
        for call in recorder.calls:
            call.known = {}
    mapped = form(result, values.of)
    sizes.release()
    return Capture(
        calls=recorder.calls,
        inputs=entering,
        outputs=outputs,
        parameters=values.parameters,
        aliases=values.aliases,
        constants=values.constants,
        dtypes=values.dtypes,
        result=mapped,
        is_real=run.is_real,
        result_type=type(result) if isinstance(result, dict) and type(result) is not dict else None,
        answers=recorder.answers,
        reads_data=bool(recorder.answers) or recorder.reads_past,
        training=run.training,
        draws_elsewhere=run.training and elsewhere_drawn() != chance,
        arguments=arguments,
        argument_names=positional_names(model),
        strides=values.strides,
        module_types={path: type(module) for module, path in recorder.named.items()},
        compared=ledger.compared,
        integers=ledger.integers,
        floats=ledger.floats,
        plain=run.plain,
        said=found.said,
        told=list(map(expression_of, found.numbers)),
        is_threaded=recorder.is_threaded,
    )


def elsewhere_drawn() -> bytes:
    """The states of the generators that are not torch's."""
    return pickle.dumps((random.getstate(), np.random.get_state()))


# -- where it raises -------------------------------------------------------------------------------


def raised_at(error: BaseException) -> str:
    """The innermost line of the user's code in a traceback."""
    traceback, found = error.__traceback__, ""
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        if not file.startswith(NOT_THE_USERS):
            found = f" at {file}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return found


def refusal(model: nn.Module, plain: Plain, ledger: Ledger, error: BaseException) -> Refusal | None:
    """The module whose code raised, where that may be because of its numbers."""
    if plain.everything or not refuses_numbers(error):
        return None
    names: dict[Any, str] = {id(module): path for module, path in modules_of(model).items()}
    traceback, found = error.__traceback__, ""
    while traceback is not None:
        found = names.get(id(traceback.tb_frame.f_locals.get("self")), found)
        traceback = traceback.tb_next
    return Refusal(found, ledger.unhashed)


def refuses_numbers(error: BaseException) -> bool:
    """The code was given numbers with expressions, and may have stopped because of that."""
    is_shape_error = isinstance(error, RuntimeError) and not any(name in str(error) for name in ("Sym", "Number"))
    if isinstance(error, GhostEscaped) or is_shape_error:
        return False
    traceback = error.__traceback__
    while traceback is not None:
        if any(issubclass(type(each), Numeric) for each in traceback.tb_frame.f_locals.values()):
            return True
        traceback = traceback.tb_next
    return "Number" in str(error) or "Sym" in str(error)


def plainer(plain: Plain, refusal: Refusal, model: nn.Module) -> Plain:
    """Plain numbers for what did not take those with expressions: a key of a dict alone, or all of a class."""
    keys = {leaf for each in refusal.unhashed for leaf in leaves(each) if isinstance(leaf, Attribute)}
    attributes = {(type(holder_of(model, key)), key.name) for key in keys} - plain.attributes
    kind = type(model.get_submodule(refusal.module))
    if attributes:
        return replace(plain, attributes=plain.attributes | attributes)
    if kind in plain.modules or len(plain.modules) >= MOST_REFUSALS:
        return ALL_PLAIN
    return replace(plain, modules=plain.modules | {kind})
