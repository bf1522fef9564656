"""Record what a torch model computes, one call for each ATen operator.

The model itself runs, on ghosts: tensors that have a shape, a type and a device but no data. A
dispatch mode sees every operator before composite ones are taken apart (`linear` and
`scaled_dot_product_attention` arrive whole). Where a model reads data (`.item()`, `nonzero`), ghosts
cannot go on, and one real run is recorded in their place.
"""

from __future__ import annotations

import pickle
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import copy_context
from dataclasses import replace
from functools import lru_cache
from typing import Any
from weakref import ref

import numpy as np
import torch
from torch import Tensor, UntypedStorage, nn

from structprune.errors import CaptureError, UnsupportedModel
from structprune.frontends.torch.read import operators  # noqa: F401  registers the entries
from structprune.frontends.torch.read.lower import has_rule
from structprune.frontends.torch.record import private
from structprune.frontends.torch.record.arguments import Arguments as Arguments_
from structprune.frontends.torch.record.autocast import imagined, nesting, on_meta, region
from structprune.frontends.torch.record.exported import record_by_export
from structprune.frontends.torch.record.expression import Attribute, Size, leaves
from structprune.frontends.torch.record.memory import overlap, storage_of
from structprune.frontends.torch.record.number import Ledger, Node, Number, Numeric
from structprune.frontends.torch.record.number import plain as plain_number
from structprune.frontends.torch.record.record import (
    Arguments,
    Call,
    Capture,
    Refusal,
    Stopped,
    depends_on_data,
    map_tensors,
    tensors_in,
)
from structprune.frontends.torch.record.result import form, results_in
from structprune.frontends.torch.record.shape import quick_shape
from structprune.frontends.torch.record.sized import Sized, SizedParameter, SizedTensor
from structprune.frontends.torch.record.surroundings import NOT_THE_USERS, module_names, positional_names, untouched
from structprune.frontends.torch.record.survivor import check_survivors, forget_frames
from structprune.frontends.torch.record.symbols import ALL_PLAIN, NONE_PLAIN, Plain, holder_of, symbolic
from structprune.graph.graph import Shape, Value, Where
from structprune.graph.operator import RULES
from structprune.graph.progress import doing

# Operators that read by index.
READERS = frozenset(("index", "index_select", "gather", "take_along_dim"))
# Operators whose second tensor lends its shape and nothing else.
SHAPED_LIKE = frozenset(("expand_as", "view_as", "reshape_as"))
# Constants larger than this are not computed while recording: only their shape is kept.
LARGEST_CONSTANT = 1 << 22


# Every tensor without data of the recordings that go on.
BORN: list[ref[Tensor]] = []


class Ghost(Sized, Tensor):  # type: ignore[override, misc]
    """A tensor without data. Operators on it are seen by the recorder alone."""

    __torch_function__ = private.no_torch_function

    @staticmethod
    def __new__(cls, like: Tensor, device: torch.device, recorder: Recorder | None = None) -> Ghost:
        made: Ghost = private.wrapper(cls, like, device)
        return made

    def __init__(self, like: Tensor, device: torch.device, recorder: Recorder | None = None) -> None:
        self._origin_of_ghost: Tensor | None = None
        self._recorder_of_sizes = recorder
        BORN.append(ref(self))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is torch.ops.aten.detach.default:
            # Neither `x.data` nor what `zeros_like` does at its end passes the recorder.
            twin = Ghost(args[0], args[0].device, args[0]._recorder_of_sizes)
            twin._origin_of_ghost = args[0]
            return twin
        raise GhostEscaped(f"{function} read data")


# What tensors of a copy become while it is recorded.
SIZED: dict[type, type] = {Tensor: SizedTensor, nn.Parameter: SizedParameter}


class GhostEscaped(Exception):
    """The model wants the values of a tensor that has none."""


class Recorder:
    """Sees the operators of a running model, and records them."""

    def __init__(
        self,
        model: nn.Module,
        is_real: bool,
        answers: Sequence[tuple[Any, Any]] = (),
        known: Capture | None = None,
        plain: Plain = ALL_PLAIN,
    ) -> None:
        self.is_real = is_real
        self.answers: list[tuple[Any, Any]] = []
        self._given_answers = iter(answers)
        self.calls: list[Call] = []
        self.parameters: dict[str, Value] = dict(known.parameters) if known else {}
        self.aliases: dict[str, str] = {}
        self.constants: dict[Value, Tensor] = {}
        self.dtypes: dict[Value, torch.dtype] = dict(known.dtypes) if known else {}
        self.strides: dict[Value, tuple[int, ...]] = {}
        # Where the code's numbers come from.
        self.ledger = Ledger()
        self.plain = plain
        self.plain_modules = {name for name, module in model.named_modules() if type(module) in plain.modules}
        self.arguments = Arguments_(self.ledger)
        self.expressions: Mapping[str, Any] = {}
        self._sizes: dict[Value, torch.Size] = {}
        self._unread: dict[str, Value] = {}
        self.modules: list[str] = []
        self.grad_modes: list[bool] = []
        self.nesting = nesting()
        self._stored: dict[int, tuple[Tensor, str]] = {}
        # The stored tensors in each piece of memory.
        self._storages: dict[int, list[Tensor]] = {}
        # Stored tensors that lie in the memory of another one.
        self._within: dict[int, Tensor] = {}
        self._made: dict[tuple[int, Shape, tuple[int, ...]], Value] = {}
        self._values: dict[int, tuple[Tensor, Value]] = {}
        self._metas: dict[int, Tensor] = {}
        self._made_sized: list[Tensor] = []
        self.is_busy = False
        self._trained: set[str] = set()
        # Memory that was there before, with what it held before it was written; memory that was made since.
        self._saved: dict[int, tuple[UntypedStorage, UntypedStorage]] = {}
        self._fresh: set[int] = set()
        self.reads = private.Reads()
        # What the numbers of the inputs, or chance, had a part in; and whether it was written where others may read it.
        self.varying: set[Value] = set()
        self.is_spread = False
        modules = list(model.named_modules(remove_duplicate=False))
        # Each module under the first of its names.
        self.named = {module: path for path, module in reversed(modules)}
        for store, is_trained in (("_parameters", True), ("_buffers", False)):
            for path, module in modules:
                for name, tensor in vars(module)[store].items():
                    if tensor is not None:
                        self._register(f"{path}.{name}" if path else name, tensor, is_trained)

    def _register(self, name: str, tensor: Tensor, is_trained: bool) -> None:
        known = self._stored.get(id(tensor))
        self.aliases[name] = known[1] if known else name
        if known is None:
            self._stored[id(tensor)] = (tensor, name)
            if is_trained:
                self._trained.add(name)
            if tensor.numel() and tensor.device.type != "meta":
                others = self._storages.setdefault(tensor.untyped_storage().data_ptr(), [])
                base = self._base(tensor) if others else None
                if base is not None:
                    self._within[id(tensor)] = base
                else:
                    others.append(tensor)

    def _base(self, tensor: Tensor) -> Tensor | None:
        """The stored tensor in whose memory another one lies, if there is one."""
        storage = storage_of(tensor)
        others = self._storages.get(storage.data_ptr()) if storage is not None and tensor.numel() else None
        return next((base for base in others or () if base is not tensor and overlap(base, tensor)), None)

    @contextmanager
    def recording(self, model: nn.Module) -> Iterator[None]:
        """Inside, what this thread computes is recorded."""
        with (
            private.LOCK,
            private.unfused_attention(),
            module_names(self.named, self.modules),
            private.function_calls(self.grad_modes),
            torch.no_grad() if self.is_real else torch.enable_grad(),
            self.reads if self.is_real else nullcontext(),
            private.uncompiled(),
            private.operators_to(self.handle),
        ):
            try:
                yield
            finally:
                with private.no_python_dispatcher():
                    for storage, before in self._saved.values():
                        storage.copy_(before)

    # -- values --------------------------------------------------------------------------------

    def ghost(self, tensor: Tensor) -> Tensor:
        """What stands for an input while recording. Whole numbers and masks keep their values: models look at them."""
        if tensor.is_nested or tensor.layout is not torch.strided:
            form = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
            raise UnsupportedModel(f"an input is a {form} tensor, which is not supported: give padded, dense tensors")
        is_plain = not tensor.is_floating_point() and not tensor.is_complex() and tensor.numel() <= LARGEST_CONSTANT
        if self.is_real:
            return tensor
        return self.sized(tensor.clone()) if is_plain else Ghost(tensor, tensor.device, self)

    def sized(self, tensor: Tensor) -> Tensor:
        """A tensor with data whose sizes the code is given as numbers with expressions."""
        if type(tensor) is Tensor and not self.plain.everything:
            tensor.__class__ = SizedTensor
            tensor._recorder_of_sizes = self  # type: ignore[attr-defined]
            self._made_sized.append(tensor)
        return tensor

    def sizes_of(self, tensor: Tensor, sizes: torch.Size) -> torch.Size:
        """The sizes of a tensor as the code is given them."""
        if self.is_busy or self.plain.everything or (self.modules and self.modules[-1] in self.plain_modules):
            return sizes
        with self.busy():
            value = self.value_for_size(tensor)
        found = self._sizes.get(value)
        if found is None:
            numbers: Any = (Number(Node(Size(value, axis), size, self.ledger)) for axis, size in enumerate(sizes))
            found = self._sizes[value] = torch.Size(tuple(numbers))
        return found

    def size_of(self, tensor: Tensor, axis: int) -> Number:
        """The size of a parameter, as a number."""
        return Number(Node(Size(self.value_for_size(tensor), axis), Tensor.size(tensor)[axis], self.ledger))

    def open_bounds(self, index: Any) -> Any:
        """Torch leaves out slices that take all of an axis: ends become numbers that it cannot know to be enough."""
        if self.is_busy or self.plain.everything:
            return index
        if type(index) is tuple:
            return tuple(map(self.open_bounds, index))
        if type(index) is slice and isinstance(index.stop, int | np.integer) and plain_number(index.stop) > 0:
            end = plain_number(index.stop)
            is_number = issubclass(type(index.stop), Numeric)
            stop = index.stop if is_number else Number(Node(end, end, self.ledger))
            return slice(index.start, stop, index.step)
        return index

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Sizes that are asked for inside are asked for by the recorder itself."""
        before, self.is_busy = self.is_busy, True
        try:
            yield
        finally:
            self.is_busy = before

    def value_for_size(self, tensor: Tensor) -> Value:
        """The value of a tensor; a parameter of which only the sizes are asked for is not read by that."""
        stored = self._stored.get(id(tensor))
        if stored is None or stored[1] in self.parameters:
            return self.value(tensor)
        name = stored[1]
        if name not in self._unread:
            self._unread[name] = Value(name, tuple(Tensor.size(tensor)), is_mask=tensor.dtype == torch.bool)
        return self._unread[name]

    def size_parameters(self, model: nn.Module) -> None:
        """The parameters of a copy answer with symbolic sizes, too."""
        for tensor in (*model.parameters(), *model.buffers()):
            if type(tensor) in SIZED:
                tensor.__class__ = SIZED[type(tensor)]
                tensor._recorder_of_sizes = self  # type: ignore[attr-defined]
                self._made_sized.append(tensor)

    def refusal(self, model: nn.Module, error: BaseException) -> Refusal | None:
        """The module whose code raised, where that may be because of its numbers."""
        if self.plain.everything or not refuses_numbers(error):
            return None
        names = {id(module): name for name, module in model.named_modules()}
        traceback, found = error.__traceback__, ""
        while traceback is not None:
            found = names.get(id(traceback.tb_frame.f_locals.get("self")), found)
            traceback = traceback.tb_next
        return Refusal(found, self.ledger.unhashed)

    def release(self) -> None:
        """The recording is over: what is left of it answers with plain numbers, and holds nothing of it."""
        for tensor in self._made_sized:
            if type(tensor) is SizedTensor:
                tensor.__class__ = Tensor  # type: ignore[assignment]
        for each in (*self._made_sized, *(tensor for tensor, _ in self._values.values())):
            vars(each).pop("_recorder_of_sizes", None)
        self._made_sized.clear()

    def new_value(self, tensor: Tensor, name: str) -> Value:
        value = Value(name, tuple(Tensor.size(tensor)), is_mask=tensor.dtype == torch.bool)
        self._values[id(tensor)] = (tensor, value)
        self.dtypes[value] = tensor.dtype
        if type(tensor) is Ghost or tensor.layout is torch.strided:
            self.strides[value] = tensor.stride()
        return value

    def value(self, tensor: Tensor) -> Value:
        known = self._values.get(id(tensor))
        if known is not None:
            return known[1]
        if isinstance(tensor, Ghost) and tensor._origin_of_ghost is not None:
            return self._detached(tensor, tensor._origin_of_ghost)
        stored = self._stored.get(id(tensor))
        if id(tensor) in self._within:
            return self._view(tensor, self._within[id(tensor)])
        base = None if stored else self._base(tensor)
        if base is not None and place(base) == place(tensor):
            stored, base = self._stored[id(base)], None
        name = stored[1] if stored else None
        # Factory functions hand the caller another tensor over the memory that was recorded.
        made = self._made.get(place(tensor)) if name is None else None
        if made is not None:
            self._values[id(tensor)] = (tensor, made)
            return made
        if base is not None:
            return self._view(tensor, base)
        if name is None:
            value = self.new_value(tensor, f"constant_{len(self.constants)}")
            self.constants[value] = tensor
            return value
        parameter = self.parameters.get(name)
        if parameter is None:
            parameter = self._unread.get(name) or self.new_value(tensor, name)
            self.parameters[name] = parameter
            self.dtypes[parameter] = tensor.dtype
            parameter.parameter = name
            parameter.is_trained = name in self._trained
        self._values[id(tensor)] = (tensor, parameter)
        return parameter

    def _detached(self, tensor: Tensor, origin: Tensor) -> Value:
        """Record the detaching that happened out of sight."""
        call = Call(torch.ops.aten.detach.default, (self.value(origin),), {}, [], self._where())
        call.outputs.append(self.new_value(tensor, f"detach_{len(self.calls)}"))
        self.calls.append(call)
        return call.outputs[0]

    def _view(self, tensor: Tensor, base: Tensor) -> Value:
        """Record how a tensor lies in the memory of a stored one: both change at once."""
        form = tuple(tensor.shape), tensor.stride(), tensor.storage_offset()
        if base.storage_offset():
            raise UnsupportedModel(
                f"{self._stored[id(base)][1]} lies in one piece of memory with other tensors, and is read there as "
                f"another tensor of shape {list(tensor.shape)}: give it memory of its own"
            )
        call = Call(torch.ops.aten.as_strided.default, (self.value(base), *form), {}, [], self._where())
        call.outputs.append(self.new_value(tensor, f"as_strided_{len(self.calls)}"))
        self.calls.append(call)
        return call.outputs[0]

    def _is_known(self, tensor: Tensor) -> bool:
        """A real tensor that no input and no trained parameter had a part in."""
        if isinstance(tensor, Ghost) or tensor.numel() > LARGEST_CONSTANT:
            return False
        return not tensor.is_floating_point() or (id(tensor) not in self._stored and self._base(tensor) is None)

    def _writes_stored(self, function: Any, tensors: Sequence[Tensor]) -> bool:
        """The operator would write into the model's own memory."""
        return function_writes(function) and any(
            not isinstance(tensor, Ghost) and tensor.untyped_storage().data_ptr() in self._storages
            for tensor in tensors
        )

    def _meta(self, tensor: Tensor) -> Tensor:
        found = self._metas.get(id(tensor))
        if found is None:
            found = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")
            self._metas[id(tensor)] = found
        return found

    # -- recording -----------------------------------------------------------------------------

    def handle(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One operator: recorded whole, or as what it consists of."""
        if function.namespace == "prim":
            with self.busy():
                args, kwargs, _ = self.arguments.plain(function, args, kwargs)
                return function(*args, **kwargs)
        if decomposes(function) and not self._is_cast(function, args, kwargs):
            with private.seen_again():
                result = function.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        with private.no_python_dispatcher(), self.busy():
            args, kwargs, self.expressions = self.arguments.plain(function, args, kwargs)
            return self._record(function, args, kwargs)

    def _is_cast(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Autocast has a rule for it here: it stays whole, since its parts would run in other types."""
        found = region(function, list(tensors_in((args, kwargs))), self.nesting)
        return found is not None and private.has_autocast_rule(function, found[0])

    def _record(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors = list(tensors_in((args, kwargs)))
        read = tensors[:1] if function._opname in SHAPED_LIKE else tensors
        is_constant = all(map(self._is_known, read)) and not self._writes_stored(function, tensors)
        call = Call(
            function,
            map_tensors(args, self.value),
            map_tensors(kwargs, self.value),
            [],
            self._where(),
            # A real run is made without gradients altogether, whatever the model asks for.
            self.is_real or (self.grad_modes[-1] if self.grad_modes else torch.is_grad_enabled()),
            region(function, tensors, self.nesting),
            expressions=self.expressions,
        )
        if function._opname in READERS and not self.is_real:
            call.known = self._indices(call, tensors[1:])
        # Before it runs: if it raises, the last call tells which sizes the model asked for.
        self.calls.append(call)
        doing("recording operator", len(self.calls))
        if self.is_real and depends_on_data(function):
            result = self._answer(function, args, kwargs)
        elif self.is_real or is_constant:
            result = self._run(function, args, kwargs, tensors)
            if not self.is_real and any(t.device.type == "meta" for t in tensors_in(result)):
                raise GhostEscaped("a tensor was made on the meta device")
        else:
            if function is torch.ops.aten._local_scalar_dense.default:
                raise GhostEscaped("the model reads a number from a tensor")
            asked = next((each for each in (*args, *kwargs.values()) if isinstance(each, torch.device)), None)
            device = asked or next((t.device for t in tensors if isinstance(t, Ghost)), tensors[0].device)
            if call.region is not None:
                result = imagined(function, args, kwargs, self._meta)
            elif (result := quick_shape(function, args, kwargs)) is None:
                result = function(*on_meta(args, self._meta), **on_meta(kwargs, self._meta))
            if torch.Tag.inplace_view in function.tags and isinstance(tensors[0], Ghost):
                with private.no_torch_dispatch():
                    function(*args, **kwargs)  # it changes the form of the ghost itself and reads no data
            result = self._wrap(result, device, tensors, function._opname.endswith("_"))
        for index, tensor in enumerate(tensors_in(result)):
            # An operator in place gives back its own argument: a new value for the same tensor.
            value = self.new_value(tensor, f"{name_of(function)}_{len(self.calls)}_{index}")
            call.outputs.append(value)
            if pointer(tensor):
                self._made[place(tensor)] = value
            if is_constant and not self.is_real:
                self.sized(tensor)
        if not self.is_real:
            self._follow(call, tensors, is_constant)
        return result

    def _run(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: Sequence[Tensor]) -> Any:
        """Run an operator on real tensors. What was there before is kept, so that it can be put back."""
        known = {storage.data_ptr() for each in tensors if (storage := storage_of(each)) is not None}
        if function_writes(function):
            for tensor in tensors:
                storage = storage_of(tensor)
                if storage is not None and storage.data_ptr() not in self._fresh | self._saved.keys():
                    self._saved[storage.data_ptr()] = storage, storage.clone()  # type: ignore[no-untyped-call]
        result = function(*args, **kwargs)
        made = {storage.data_ptr() for each in tensors_in(result) if (storage := storage_of(each)) is not None}
        self._fresh |= made - known
        return result

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

    def _follow(self, call: Call, tensors: Sequence[Tensor], is_constant: bool) -> None:
        """Keep apart what is the same in every run from what the numbers of the inputs, or chance, had a part in."""
        is_written = function_writes(call.target) and bool(tensors) and is_index(tensors[0])
        if not is_constant:
            self.is_spread |= is_written
        elif torch.Tag.nondeterministic_seeded in call.target.tags or any(v in self.varying for v in call.tensors()):
            self.varying.update(call.outputs)
            self.is_spread |= is_written

    def _indices(self, call: Call, tensors: Sequence[Tensor]) -> dict[Value, Tensor]:
        """The numbers of whole-number tensors that are the same in every run."""
        found = {self.value(tensor): tensor for tensor in tensors if self._is_known(tensor) and is_index(tensor)}
        return {value: tensor.detach().cpu().clone() for value, tensor in found.items() if value not in self.varying}

    def _wrap(self, result: Any, device: torch.device, arguments: Sequence[Tensor], is_in_place: bool) -> Any:
        """Ghosts for the meta tensors of a result; an argument given back stays itself."""
        originals = {id(self._metas[id(each)]): each for each in arguments if id(each) in self._metas}
        if any(result is each for each in arguments):
            # The quick way to a shape names an argument that looks like the result.
            return result if is_in_place else Ghost(result, device, self)

        def wrap(meta: Tensor) -> Tensor:
            original = originals.get(id(meta))
            if original is not None:
                return original
            ghost = Ghost(meta, device, self)
            self._metas[id(ghost)] = meta
            return ghost

        return map_tensors(result, wrap)

    def _where(self) -> Where:
        frame = sys._getframe(2)
        while frame is not None:
            file = frame.f_code.co_filename
            if not file.startswith(NOT_THE_USERS):
                return Where(f"{file}:{frame.f_lineno}", self.modules[-1] if self.modules else "")
            if frame.f_back is None:
                break
            frame = frame.f_back
        return Where("", self.modules[-1] if self.modules else "")


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


def function_writes(function: Any) -> bool:
    return bool(function._schema.is_mutable)


def is_index(tensor: Tensor) -> bool:
    """Whole numbers, more than one: a counter is no index."""
    return tensor.dtype in (torch.int32, torch.int64) and tensor.dim() > 0 and tensor.device.type != "meta"


def pointer(tensor: Tensor) -> int:
    return 0 if isinstance(tensor, Ghost) or tensor.device.type == "meta" else tensor.data_ptr()


def place(tensor: Tensor) -> tuple[int, Shape, tuple[int, ...]]:
    return pointer(tensor), tuple(Tensor.size(tensor)), tensor.stride()


def name_of(function: Any) -> str:
    return str(function._opname) if hasattr(function, "_opname") else str(function)


def decomposes(function: Any) -> bool:
    """Composite operators without a rule of their own are recorded as what they consist of."""
    return is_taken_apart(function, len(RULES))


@lru_cache(maxsize=4096)
def is_taken_apart(function: Any, known_rules: int) -> bool:
    """What is remembered holds for as long as no rule is added."""
    return not has_rule(function) and private.is_composite(function)


def capture(model: nn.Module, inputs: Arguments) -> Capture:
    """Record the model on these inputs, on ghosts if possible and by one real run if not."""
    try:
        return record(model, inputs, is_real=False)
    except Stopped:
        try:
            return record(model, inputs, is_real=True)
        except Stopped as stopped:
            error = stopped.cause
            kind = type(error).__name__
            raised = f"{kind}: {error}{stopped.place}"
            if runs(model, inputs):
                raise UnsupportedModel(
                    "the model runs, but not while its operators are recorded, where it raises "
                    f"{kind}: {first_line(error)}{stopped.place}. What compiles or captures "
                    "code while it runs (torch.cond, flex_attention, torch.compile inside forward) is not supported; "
                    "call what it stands for."
                ) from error
            raise CaptureError(
                f"the model's forward raised {raised}. Give example_inputs on which the model runs."
            ) from error


def first_line(error: BaseException) -> str:
    """What an error says, in short."""
    return next(iter(str(error).strip().splitlines()), "")


def runs(model: nn.Module, inputs: Arguments) -> bool:
    """Whether the model by itself runs on these inputs."""
    try:
        with torch.no_grad(), untouched(model, with_buffers=True) as copied:
            for module in copied.modules():
                vars(module)["training"] = False
            copied(*inputs[0], **inputs[1])
    except Exception:  # it is the model's own, and it was raised while recording too
        return False
    return True


def raised_at(error: BaseException) -> str:
    """The innermost line of the user's code in a traceback."""
    traceback, found = error.__traceback__, ""
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        if not file.startswith(NOT_THE_USERS):
            found = f" at {file}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return found


MOST_REFUSALS = 8


def record(
    model: nn.Module,
    inputs: Arguments,
    is_real: bool,
    answers: Sequence[tuple[Any, Any]] = (),
    known: Capture | None = None,
    training: bool = False,
    plain: Plain = NONE_PLAIN,
) -> Capture:
    """One run of the model.

    `answers` are those of another real run: where data decide, this one follows it. `known` is a recording
    of the same model: parameters are the values that it has for them. A module whose code does not take numbers that
    carry expressions gets plain ones.
    """
    if not private.is_available:
        return record_slowly(model, inputs, is_real, known, training)
    with private.LOCK:
        while True:
            try:
                return record_on_copy(model, inputs, is_real, answers, known, training, plain)
            except Stopped as stopped:
                if plain.everything or stopped.refusal is None:
                    raise
                plain = plainer(plain, stopped.refusal, model)


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


def record_on_copy(
    model: nn.Module,
    inputs: Arguments,
    is_real: bool,
    answers: Sequence[tuple[Any, Any]],
    known: Capture | None,
    training: bool,
    plain: Plain,
) -> Capture:
    """One run of a copy of the model; nothing of it is left behind."""
    copied: nn.Module | None = None
    start = len(BORN)
    failed: Exception | None = None
    try:
        with untouched(model) as copied:
            # The numbers of the original itself stay what they are.
            numbers = ALL_PLAIN if copied is model else plain
            found = recorded(copied, inputs, is_real, answers, known, training, numbers)
    except (Stopped, CaptureError) as error:
        failed = error
        if not is_real:
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


def record_slowly(
    model: nn.Module, inputs: Arguments, is_real: bool, known: Capture | None, training: bool
) -> Capture:
    """The way for a torch without the private names of the quick one."""
    if is_real:
        raise UnsupportedModel(
            f"torch {torch.__version__} lacks {', '.join(private.missing)}: models are recorded by torch.export there, "
            f"which does not take this {type(model).__name__}. Use a torch that this structprune knows."
        )
    return record_by_export(model, inputs, known, training)


def recorded(
    model: nn.Module,
    inputs: Arguments,
    is_real: bool,
    answers: Sequence[tuple[Any, Any]],
    known: Capture | None,
    training: bool,
    plain: Plain,
) -> Capture:
    """The run itself, of a model that may be changed by it."""
    recorder = Recorder(model, is_real, answers, known, plain)
    if not plain.everything and not is_real:
        recorder.size_parameters(model)
    entering: list[Value] = []

    def enter(tensor: Tensor) -> Tensor:
        ghost = recorder.ghost(tensor)
        entering.append(recorder.new_value(ghost, f"input_{len(entering)}"))
        return ghost

    args, kwargs = map_tensors(inputs[0], enter), map_tensors(inputs[1], enter)
    arguments = form(args, recorder.value), form(kwargs, recorder.value)
    chance = elsewhere_drawn() if training else b""
    recorder.varying.update(entering)
    for module in model.modules():
        vars(module)["training"] = training
    with symbolic(model, recorder.ledger, recorder.size_of, plain), recorder.recording(model):
        try:
            # In a context of its own: what the code sets in context variables is forgotten.
            result = copy_context().run(model, *args, **kwargs)
        except Exception as error:
            recorder.release()
            place, refusal = raised_at(error), recorder.refusal(model, error)
            raise Stopped(recorder.calls, entering, recorder.constants, error, place, refusal) from error
    given = list(results_in(result))
    if not given:
        raise CaptureError(
            f"{type(model).__name__}'s forward gives back no tensor, but a {type(result).__name__}: "
            "nothing says what the smaller model must compute"
        )
    recorder.is_busy = True
    outputs = list(map(recorder.value, given))
    if recorder.is_spread:
        for call in recorder.calls:
            call.known = {}
    mapped = form(result, recorder.value)
    recorder.release()
    return Capture(
        calls=recorder.calls,
        inputs=entering,
        outputs=outputs,
        parameters=recorder.parameters,
        aliases=recorder.aliases,
        constants=recorder.constants,
        dtypes=recorder.dtypes,
        result=mapped,
        is_real=is_real,
        result_type=type(result) if isinstance(result, dict) and type(result) is not dict else None,
        answers=recorder.answers,
        reads_data=bool(recorder.answers) or recorder.reads.any,
        training=training,
        draws_elsewhere=training and elsewhere_drawn() != chance,
        arguments=arguments,
        argument_names=positional_names(model),
        strides=recorder.strides,
        module_types={path: type(module) for module, path in recorder.named.items()},
        compared=recorder.ledger.compared,
        integers=recorder.ledger.integers,
        floats=recorder.ledger.floats,
        plain=plain,
    )


def elsewhere_drawn() -> bytes:
    """The states of the generators that are not torch's."""
    return pickle.dumps((random.getstate(), np.random.get_state()))
