"""Sees the operators of a running model, and records them: one call for each ATen operator.

Operators are seen before composite ones are taken apart (`linear` and `scaled_dot_product_attention` arrive whole).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn

from structprune.errors import UnsupportedModel
from structprune.frontends.torch.record import private
from structprune.frontends.torch.record.arguments import plain_arguments
from structprune.frontends.torch.record.autocast import imagined, nesting, on_meta, region
from structprune.frontends.torch.record.ghost import Ghost, GhostEscaped
from structprune.frontends.torch.record.memory import storage_of
from structprune.frontends.torch.record.number import Ledger
from structprune.frontends.torch.record.record import Call, Run, map_tensors, tensors_in
from structprune.frontends.torch.record.shape import quick_shape
from structprune.frontends.torch.record.sizes import Sizes
from structprune.frontends.torch.record.surroundings import NOT_THE_USERS, module_names
from structprune.frontends.torch.record.traits import Traits, decomposes, traits
from structprune.frontends.torch.record.tree import paths_of
from structprune.frontends.torch.record.unseen import Unseen
from structprune.frontends.torch.record.values import Values
from structprune.graph.graph import Value, Where
from structprune.graph.progress import doing

# Constants larger than this are not computed while recording: only their shape is kept.
LARGEST_CONSTANT = 1 << 22


class Recorder:
    """Records one run of a model."""

    def __init__(self, model: nn.Module, run: Run) -> None:
        self.is_real = run.is_real
        self.answers: list[tuple[Any, Any]] = []
        self._given_answers = iter(run.answers)
        self.calls: list[Call] = []
        # Where the code's numbers come from.
        self.ledger = Ledger()
        # The names of the modules that run, the innermost last.
        self.running: list[str] = []
        self.grad_modes: list[bool] = []
        self.nesting = nesting()
        modules = list(paths_of(model))
        # Each module under the first of its names.
        self.named = {module: path for path, module in reversed(modules)}
        self.where = partial(place_in_code, self.running)
        self.values = Values(modules, self.calls, self.where, run.known)
        plain_modules = frozenset(path for module, path in self.named.items() if type(module) in run.plain.modules)
        self.sizes = Sizes(self.values, self.ledger, run.plain, self.running, plain_modules)
        self._metas: dict[int, Tensor] = {}
        # Memory that was there before, with what it held before it was written; memory that was made since.
        self._saved: dict[int, tuple[UntypedStorage, UntypedStorage]] = {}
        self._fresh: set[int] = set()
        # Whether code took the numbers of tensors past all operators, or gave work to other threads.
        self.reads_past = False
        self.is_threaded = False
        # What the numbers of the inputs, or chance, had a part in; and whether it was written where others may read it.
        self.varying: set[Value] = set()
        self.is_spread = False

    @contextmanager
    def recording(self) -> Iterator[Callable[[], None]]:
        """Inside, what this thread computes is recorded; gives what raises at its end if not all of it was seen."""
        unseen = Unseen(self)
        with (
            private.LOCK,
            private.unfused_attention(),
            module_names(self.named, self.running),
            private.function_calls(self.grad_modes),
            torch.no_grad() if self.is_real else torch.enable_grad(),
            private.uncompiled(),
            unseen.watched(),
            private.operators_to(self.handle),
        ):
            try:
                yield unseen.check
            finally:
                with private.no_python_dispatcher():
                    for storage, before in self._saved.values():
                        storage.copy_(before)

    def ghost(self, tensor: Tensor) -> Tensor:
        """What stands for an input while recording. Whole numbers and masks keep their values: models look at them."""
        if tensor.is_nested or tensor.layout is not torch.strided:
            form = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
            raise UnsupportedModel(f"an input is a {form} tensor, which is not supported: give padded, dense tensors")
        if private.is_fake(tensor):
            raise UnsupportedModel("an input is a fake tensor, which goes with no others: give one that has values")
        is_plain = not tensor.is_floating_point() and not tensor.is_complex() and tensor.numel() <= LARGEST_CONSTANT
        if self.is_real:
            return tensor
        return self.sizes.sized(tensor.clone()) if is_plain else Ghost(tensor, tensor.device, self.sizes)

    # -- operators -----------------------------------------------------------------------------

    def handle(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One operator: recorded whole, or as what it consists of."""
        known = traits(function)
        if known.is_primitive:
            with self.sizes.busy():
                args, kwargs, _ = plain_arguments(self.ledger, function, args, kwargs)
                return function(*args, **kwargs)
        if decomposes(function) and not self._is_cast(function, args, kwargs):
            with private.seen_again():
                result = function.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        with private.no_python_dispatcher(), self.sizes.busy():
            return self.record(function, known, args, kwargs)

    def _is_cast(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Autocast has a rule for it here: it stays whole, since its parts would run in other types."""
        found = region(function, list(tensors_in((args, kwargs))), self.nesting)
        return found is not None and private.has_autocast_rule(function, found[0])

    def record(self, function: Any, known: Traits, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        args, kwargs, expressions = plain_arguments(self.ledger, function, args, kwargs)
        tensors = list(tensors_in((args, kwargs)))
        read = tensors[:1] if known.is_shaped_like else tensors
        is_constant = all(map(self._is_known, read)) and not (
            known.writes and any(map(self.values.is_in_storage, tensors))
        )
        call = Call(
            function,
            map_tensors(args, self.values.of),
            map_tensors(kwargs, self.values.of),
            [],
            self.where(),
            # A real run is made without gradients altogether, whatever the model asks for.
            self.is_real or (self.grad_modes[-1] if self.grad_modes else torch.is_grad_enabled()),
            region(function, tensors, self.nesting),
            expressions=expressions,
        )
        if known.is_reader and not self.is_real:
            call.known = self._indices(tensors[1:])
        # Before it runs: if it raises, the last call tells which sizes the model asked for.
        self.calls.append(call)
        doing("recording operator", len(self.calls))
        if self.is_real and known.depends_on_data:
            result = self._answer(function, args, kwargs)
        elif self.is_real or is_constant:
            result = self._run(function, args, kwargs, tensors)
            if not self.is_real and any(t.device.type == "meta" for t in tensors_in(result)):
                raise GhostEscaped("a tensor was made on the meta device")
        else:
            result = self._imagined(call, known, args, kwargs, tensors)
        for index, tensor in enumerate(tensors_in(result)):
            # An operator in place gives back its own argument: a new value for the same tensor.
            call.outputs.append(self.values.result(tensor, f"{known.name}_{len(self.calls)}_{index}"))
            if is_constant and not self.is_real and type(tensor) is Tensor:
                self.sizes.sized(tensor)
        if not self.is_real:
            self._follow(call, known, tensors, is_constant)
        return result

    def _imagined(
        self, call: Call, known: Traits, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: Sequence[Tensor]
    ) -> Any:
        """Run an operator on tensors without data."""
        function = call.target
        if function is torch.ops.aten._local_scalar_dense.default:
            raise GhostEscaped("the model reads a number from a tensor")
        asked = next((each for each in (*args, *kwargs.values()) if isinstance(each, torch.device)), None)
        device = asked or next((each.device for each in tensors if isinstance(each, Ghost)), tensors[0].device)
        if call.region is not None:
            result = imagined(function, args, kwargs, self._meta)
        elif (result := quick_shape(function, args, kwargs)) is None:
            result = function(*on_meta(args, self._meta), **on_meta(kwargs, self._meta))
        if known.is_view_in_place and isinstance(tensors[0], Ghost):
            with private.no_torch_dispatch():
                function(*args, **kwargs)  # it changes the form of the ghost itself and reads no data
        return self._wrap(result, device, tensors, known.is_in_place)

    def _wrap(self, result: Any, device: torch.device, arguments: Sequence[Tensor], is_in_place: bool) -> Any:
        """Ghosts for the meta tensors of a result; an argument given back stays itself."""
        if any(result is each for each in arguments):
            # The quick way to a shape names an argument that looks like the result.
            return result if is_in_place else Ghost(result, device, self.sizes)
        originals = {id(self._metas[id(each)]): each for each in arguments if id(each) in self._metas}

        def wrap(meta: Tensor) -> Tensor:
            original = originals.get(id(meta))
            if original is not None:
                return original
            ghost = Ghost(meta, device, self.sizes)
            self._metas[id(ghost)] = meta
            return ghost

        return map_tensors(result, wrap)

    def _meta(self, tensor: Tensor) -> Tensor:
        found = self._metas.get(id(tensor))
        if found is None:
            found = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")
            self._metas[id(tensor)] = found
        return found

    def _run(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: Sequence[Tensor]) -> Any:
        """Run an operator on real tensors. What was there before is kept, so that it can be put back."""
        known = {storage.data_ptr() for each in tensors if (storage := storage_of(each)) is not None}
        if traits(function).writes:
            for tensor in tensors:
                if (storage := storage_of(tensor)) is not None:
                    self.save(storage)
        result = function(*args, **kwargs)
        made = {storage.data_ptr() for each in tensors_in(result) if (storage := storage_of(each)) is not None}
        self._fresh |= made - known
        return result

    def save(self, storage: UntypedStorage) -> None:
        """Keep what memory holds that was there before the recording."""
        if storage.data_ptr() not in self._fresh | self._saved.keys():
            self._saved[storage.data_ptr()] = storage, storage.clone()  # type: ignore[no-untyped-call]

    def _answer(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What data decide is decided as in the run that this one is compared with: both take the same path."""
        target, given = next(self._given_answers, (None, None))
        if target is not function:
            self._given_answers, given = iter(()), None
        if isinstance(given, Masks):
            args, kwargs = with_masks(args, kwargs, given)
        if given is None or isinstance(given, Masks):
            result = self._run(function, args, kwargs, list(tensors_in((args, kwargs))))
        else:
            result = given
        # What is chosen by a mask has channels, which may be fewer in the other run: there the mask is the answer.
        has_channels = any(tensor.is_floating_point() for tensor in tensors_in(result))
        self.answers.append((function, masks_in((args, kwargs)) if has_channels else result))
        # The model may write into what it is given.
        return result if has_channels else map_tensors(result, Tensor.clone)

    # -- what is the same in every run ---------------------------------------------------------

    def _is_known(self, tensor: Tensor) -> bool:
        """A real tensor that no input and no trained parameter had a part in."""
        if isinstance(tensor, Ghost) or tensor.numel() > LARGEST_CONSTANT:
            return False
        return not tensor.is_floating_point() or not self.values.is_stored(tensor)

    def _follow(self, call: Call, known: Traits, tensors: Sequence[Tensor], is_constant: bool) -> None:
        """Keep apart what is the same in every run from what the numbers of the inputs, or chance, had a part in."""
        is_written = known.writes and bool(tensors) and is_index(tensors[0])
        if not is_constant:
            self.is_spread |= is_written
        elif known.is_random or any(value in self.varying for value in call.tensors()):
            self.varying.update(call.outputs)
            self.is_spread |= is_written

    def _indices(self, tensors: Sequence[Tensor]) -> dict[Value, Tensor]:
        """The numbers of whole-number tensors that are the same in every run."""
        found = {self.values.of(each): each for each in tensors if self._is_known(each) and is_index(each)}
        return {value: tensor.detach().cpu().clone() for value, tensor in found.items() if value not in self.varying}


def place_in_code(running: Sequence[str]) -> Where:
    """The line of the user's code that is running."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(NOT_THE_USERS):
            return Where(f"{file}:{frame.f_lineno}", running[-1] if running else "")
        if frame.f_back is None:
            break
        frame = frame.f_back
    return Where("", running[-1] if running else "")


class Masks(list[Tensor]):
    """The masks among an operator's arguments."""


def masks_in(arguments: Any) -> Masks:
    return Masks(tensor.clone() for tensor in tensors_in(arguments) if tensor.dtype == torch.bool)


def with_masks(args: Any, kwargs: Any, masks: Masks) -> tuple[Any, Any]:
    """The arguments with other masks."""
    others = iter(masks)

    def replaced(tensor: Tensor) -> Tensor:
        return next(others, tensor) if tensor.dtype == torch.bool else tensor

    return map_tensors(args, replaced), map_tensors(kwargs, replaced)


def is_index(tensor: Tensor) -> bool:
    """Whole numbers, more than one: a counter is no index."""
    return tensor.dtype in (torch.int32, torch.int64) and tensor.dim() > 0 and tensor.device.type != "meta"
