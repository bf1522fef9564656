"""The original's own code on zeroed weights against the smaller model: what is run for a verification.

The model's code runs, not what was recorded of it: a wrong recording is found as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from structprune.errors import CaptureError
from structprune.frontends.torch.record.inputs import first_line
from structprune.frontends.torch.record.private import unfused_attention as unfused
from structprune.frontends.torch.record.record import Arguments, Capture, Stopped, map_tensors, tensors_in
from structprune.frontends.torch.record.result import look_into
from structprune.frontends.torch.record.surroundings import untouched
from structprune.frontends.torch.record.training import record_like
from structprune.frontends.torch.record.tree import stored
from structprune.frontends.torch.write.module import arrays, edited
from structprune.frontends.torch.write.oracle import Interceptor, changed_ops, expected_outputs, same_chance
from structprune.graph.edit import Changes
from structprune.passes.rewrite import Rewrite
from structprune.passes.verify import (
    CHEAP,
    CHEAP_FOR_TORCH,
    NO_LARGER,
    SHARE_DOUBLE,
    CannotRun,
    Outputs,
    Trial,
    free_memory,
    too_large,
)

DOUBLE = {torch.float32: torch.float64, torch.float16: torch.float64, torch.bfloat16: torch.float64}
TOLERANCE = 1e-9
# Units of the last place by which numbers are moved to see what rounding does.
UNITS = 16.0


class Trials:
    """The ways to compare a result with its original, the best first: another size in float64 before all else."""

    def __init__(
        self,
        model: nn.Module,
        arguments: Arguments,
        capture: Capture,
        rewrite: Rewrite,
        zeros: Changes,
        tolerance: float,
        macs: int,
    ) -> None:
        self.model = model
        self.arguments = with_noise(arguments)
        self.capture = capture
        self.rewrite = rewrite
        self.zeros = zeros
        self.tolerance = tolerance
        self.macs = macs
        self.is_exact = not changed_ops(rewrite)

    def of(self, small: nn.Module, is_own_class: bool) -> Iterator[Trial]:
        sizes: list[tuple[Arguments, bool]] = []
        if (other := self.elsewhere()) is not None:
            arguments, recorded = other
            if self.work(arguments) <= max(CHEAP, NO_LARGER * self.work(self.arguments)):
                sizes.append((arguments, True))
            else:
                yield self.of_shapes(small, arguments, recorded, is_own_class)
        sizes.append((self.arguments, False))
        for arguments, elsewhere in sizes:
            for to in (DOUBLE, {}) if self.can_be_double(small, arguments) else ({},):
                yield self.trial(small, arguments, to, elsewhere, is_own_class or not elsewhere)
        if not self.is_bound_to_data:
            yield self.of_recording(small)

    def work(self, arguments: Arguments) -> float:
        """About how many multiply-accumulates a forward pass takes; a graphics card has time for any number."""
        if any(tensor.device.type != "cpu" for _, tensor in stored(self.model)):
            return 0.0
        given, here = (sum(tensor.numel() for tensor in tensors_in(each)) for each in (self.arguments, arguments))
        return self.macs * here / max(given, 1)

    def trial(
        self, small: nn.Module, arguments: Arguments, to: Mapping[Any, Any], elsewhere: bool, binds: bool
    ) -> Trial:
        dtype = "float64" if to else self.own_dtype
        return Trial(
            inputs=shown(arguments),
            dtype=dtype,
            tolerance=TOLERANCE if to and not self.casts else self.tolerance,
            original=partial(self.original, arguments, to),
            small=partial(run, small, arguments, to),
            elsewhere=elsewhere,
            binds=binds,
            # Code may name a type of its own that does not go with float64.
            must_run=binds and not to,
        )

    def original(self, arguments: Arguments, to: Mapping[Any, Any], seed: int) -> Outputs:
        """The zeroed original, or with a seed one that is moved by a few units of the last place."""
        self.check_memory()

        def prepare(model: nn.Module) -> None:
            for name, tensor in stored(model):
                if name in self.zeros:
                    tensor.data = edited(tensor, self.zeros[name])

        move = nudged(seed, max(EPS[to.get(dtype, dtype)] for dtype in self.floats)) if seed else None
        intercept = None if self.is_exact else self.rewrite
        return run(self.model, arguments, to, prepare, move, intercept)

    def of_shapes(self, small: nn.Module, arguments: Arguments, recorded: Capture, binds: bool) -> Trial:
        """Both without data."""

        def original(seed: int) -> Outputs:
            return shapes_of(recorded)

        def run_small() -> Outputs:
            try:
                with same_chance(self.model):
                    return shapes_of(record_like(self.capture, small, arguments))
            except (Stopped, CaptureError) as error:
                raise CannotRun(first_line(error)) from error

        return Trial(shown(arguments), "shapes", 0.0, original, run_small, True, binds, binds, of_shapes=True)

    def of_recording(self, small: nn.Module) -> Trial:
        """What was recorded, on zeroed weights: for models whose code cannot be run on others than its own."""

        def original(seed: int) -> Outputs:
            self.check_memory()
            with guarded(), same_chance(self.model):
                given = [tensor.clone() for tensor in tensors_in(self.arguments)]
                values = arrays(self.model, self.capture.parameters)
                values.update({name: edited(values[name], zeros) for name, zeros in self.zeros.items()})
                found = expected_outputs(self.capture, self.rewrite, values, given)
                return {f"output {k}": as_array(tensor) for k, tensor in enumerate(found)}

        def run_small() -> Outputs:
            return dict(zip(original_names, run(small, self.arguments, {}).values(), strict=False))

        original_names = [f"output {k}" for k in range(len(self.capture.outputs))]
        inputs = f"{shown(self.arguments)}, from its recording"
        return Trial(inputs, self.own_dtype, self.tolerance, original, run_small)

    # -- what may be run ------------------------------------------------------------------------

    @property
    def is_bound_to_data(self) -> bool:
        return self.capture.is_real and bool(self.capture.answers)

    @property
    def floats(self) -> set[torch.dtype]:
        found = {tensor.dtype for _, tensor in stored(self.model) if tensor.dtype in EPS}
        return found or {torch.float32}

    @property
    def own_dtype(self) -> str:
        return " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in self.floats))

    @property
    def casts(self) -> bool:
        """Whether the code names narrow types itself: then float64 is not computed throughout."""
        given = (each for call in self.capture.calls for each in (*call.args, *call.kwargs.values()))
        return any(isinstance(each, torch.dtype) and each in DOUBLE for each in given)

    def can_be_double(self, small: nn.Module, arguments: Arguments) -> bool:
        """Whether a copy in float64 fits into a part of the memory that is free, and takes no long time."""
        devices = {tensor.device for _, tensor in stored(self.model)}
        if self.floats == {torch.float64} or any(device.type not in ("cpu", "cuda") for device in devices):
            return False
        if self.work(arguments) > CHEAP_FOR_TORCH or any(call.region is not None for call in self.capture.calls):
            return False  # autocast leaves float64 as it is
        needed = 8 * sum(tensor.numel() for _, tensor in stored(self.model) if tensor.dtype in DOUBLE)
        return all(needed <= SHARE_DOUBLE * free_on(device) for device in devices)

    def check_memory(self) -> None:
        tensors = dict(stored(self.model))
        changed = [tensors[name] for name in self.rewrite.slices() if name in tensors]
        needed = sum(tensor.numel() * tensor.element_size() for tensor in changed)
        for device in {tensor.device for tensor in changed}:
            if why := too_large(needed, free_on(device)):
                raise CannotRun(why)

    def elsewhere(self) -> tuple[Arguments, Capture] | None:
        """Inputs of other sizes on which the model takes the same path: a recording without data tells."""
        if self.capture.is_real:
            return None
        targets = [call.target for call in self.capture.calls]
        for other in other_sizes(self.arguments):
            try:
                with same_chance(self.model):
                    found = record_like(self.capture, self.model, other)
            except (Stopped, CaptureError):
                continue
            if [call.target for call in found.calls] == targets:
                return other, found
        return None


EPS = {dtype: torch.finfo(dtype).eps for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}


class guarded:
    """Whatever a model raises while it runs, it cannot run."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, CannotRun):
            raise CannotRun(f"{type(error).__name__}: {first_line(error)}") from error


def run(
    model: nn.Module,
    arguments: Arguments,
    to: Mapping[Any, Any],
    prepare: Callable[[nn.Module], None] | None = None,
    move: Callable[[Tensor], Tensor] | None = None,
    intercept: Rewrite | None = None,
) -> Outputs:
    """What a copy of a model gives, its numbers and its inputs in other types."""

    def cast(tensor: Tensor) -> Tensor:
        made = tensor.to(to[tensor.dtype]) if tensor.dtype in to else tensor
        return move(made) if move is not None and made.is_floating_point() else made

    with guarded(), torch.no_grad(), same_chance(model), unfused(), untouched(model, with_buffers=True) as copied:
        if copied is model and (to or prepare):
            raise CannotRun("it cannot be copied")
        for module in copied.modules():
            vars(module)["training"] = False
        if prepare is not None:
            prepare(copied)
        if to or move is not None:
            copied._apply(cast)  # type: ignore[no-untyped-call]
        # Some models write into their inputs.
        args, kwargs = (map_tensors(each, lambda tensor: cast(tensor).clone()) for each in arguments)
        if intercept is None:
            result = copied(*args, **kwargs)
        else:
            interceptor = Interceptor(copied, intercept)
            with interceptor.recording():
                result = copied(*args, **kwargs)
        found = look_into(result, copied)
        outputs = {f"output {k}": as_array(tensor) for k, tensor in enumerate(found.tensors)}
        floats = (value for kind, value in found.said if kind == "float")
        return {**outputs, **{f"number {k} of the result": np.asarray(value) for k, value in enumerate(floats)}}


def shapes_of(recorded: Capture) -> Outputs:
    """Arrays of the right shapes that take no memory."""
    return {f"output {k}": np.broadcast_to(np.zeros(()), value.shape) for k, value in enumerate(recorded.outputs)}


def as_array(tensor: Tensor) -> NDArray[Any]:
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    return np.asarray(tensor.detach().resolve_conj().resolve_neg().cpu().numpy())


def nudged(seed: int, eps: float) -> Callable[[Tensor], Tensor]:
    """Every number moved by a few units of its last place."""
    generator = torch.Generator().manual_seed(seed)

    def move(tensor: Tensor) -> Tensor:
        signs = torch.rand(tensor.shape, generator=generator, dtype=torch.float32) * 2 - 1
        return tensor * (1 + UNITS * eps * signs.to(tensor))

    return move


def free_on(device: torch.device) -> float:
    return float(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else free_memory()


# -- inputs ----------------------------------------------------------------------------------------


def with_noise(arguments: Arguments) -> Arguments:
    """Noise where a guess left nothing but zeros."""
    generator = torch.Generator("cpu").manual_seed(0)

    def noise(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or tensor.any():
            return tensor
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64, device="cpu").to(tensor)

    return map_tensors(arguments[0], noise), map_tensors(arguments[1], noise)


def other_sizes(arguments: Arguments) -> Iterator[Arguments]:
    """The same numbers in other sizes, the boldest first: batch and positions, then the batch alone."""
    first = next((tensor for tensor in tensors_in(arguments) if tensor.dim()), None)
    if first is None or not all(tensor.numel() for tensor in tensors_in(arguments)):
        return  # nothing in them is there to be repeated
    batch = first.shape[0]
    other_batch = 2 if batch != 2 else 3
    tensors = list(tensors_in(arguments))
    quarters, halves = (
        {size: smaller(size, tensor, parts) for tensor in tensors for size in open_sizes(tensor)} for parts in (4, 2)
    )
    tried: list[list[tuple[int, ...]]] = []
    for changes in (quarters, halves, {}):

        def resized(tensor: Tensor, changes: Mapping[int, int] = changes) -> Tensor:
            for axis, size in enumerate(tensor.shape):
                is_batch = axis == 0 and size == batch
                new = other_batch if is_batch else changes.get(size, size) if axis in open_axes(tensor) else size
                if new != size:
                    # Entries that are there already: of the same range, whatever they mean.
                    tensor = tensor.index_select(axis, torch.arange(new, device=tensor.device) % size)
            return tensor

        made = map_tensors(arguments[0], resized), map_tensors(arguments[1], resized)
        shapes = [tuple(tensor.shape) for tensor in tensors_in(made)]
        if shapes not in tried and all(prod(shape) for shape in shapes):
            tried.append(shapes)
            yield made


def open_axes(tensor: Tensor) -> range:
    """Where positions may lie: those of images, of token ids and of masks. The model says whether it takes others."""
    if tensor.is_floating_point():
        return range(2, tensor.dim()) if tensor.dim() >= 4 else range(0)
    return range(1, tensor.dim())


def open_sizes(tensor: Tensor) -> list[int]:
    return [tensor.shape[axis] for axis in open_axes(tensor)]


def smaller(size: int, tensor: Tensor, parts: int) -> int:
    """About three quarters; of images one of so many parts, in multiples of 32, in which most models go down."""
    if not tensor.is_floating_point():
        return max(1, size * 3 // 4)
    return max(size // parts // 32, 2 if size > 64 else 1) * 32 if size >= 64 else size


def shown(arguments: Arguments) -> str:
    """The shapes of the inputs, in one line."""
    shapes = ["x".join(map(str, tensor.shape)) or "a number" for tensor in tensors_in(arguments)]
    more = f" and {len(shapes) - 4} more" if len(shapes) > 4 else ""
    return "inputs of " + (", ".join(shapes[:4]) + more if shapes else "no tensors")
