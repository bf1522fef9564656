"""Every private name of torch that this package uses, each checked for at import.

What is patched is patched for one thread alone, by one recording at a time, and put back.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from threading import get_ident
from typing import Any

import torch
import torch.utils.dlpack
from torch import Tensor

# One recording at a time in this process; one inside another is allowed.
LOCK = threading.RLock()
# What stands in a recording where code takes the memory of a tensor past all operators.
LIBRARY: Any = torch.library.Library("structprune", "DEF")  # type: ignore[no-untyped-call]
LIBRARY.define("handed_out(Tensor(a!) self) -> ()")
LIBRARY.impl("handed_out", lambda tensor: None, "CompositeExplicitAutograd")

# A path from `torch` for each private name.
NAMES = (
    "_C.DispatchKey.PreDispatch",
    "_C.DispatchKey.Python",
    "_C.DispatchKey.CompositeImplicitAutograd",
    "_C._EnablePythonDispatcher",
    "_C._DisablePythonDispatcher",
    "_C._dispatch_tls_is_dispatch_key_excluded",
    "_C._dispatch_tls_is_dispatch_key_included",
    "_C._dispatch_tls_set_dispatch_key_included",
    "_C._disabled_torch_function_impl",
    "_C._DisableTorchDispatch",
    "_C._functorch.maybe_current_level",
    "_ops.OpOverload._get_dispatch",
    "_ops.OpOverload.decompose",
    "_ops.OpOverload.has_kernel_for_dispatch_key",
    "utils._python_dispatch._get_current_dispatch_mode",
    "utils._python_dispatch.TorchDispatchMode",
    "Tensor._make_wrapper_subclass",
    "autograd.Function.apply",
    "backends.mha.get_fastpath_enabled",
)


def found(path: str) -> Any:
    """What torch has under a path; None where it has nothing."""
    place: Any = torch
    for name in path.split("."):
        place = getattr(place, name, None)
    return place


missing = tuple(path for path in NAMES if found(path) is None)
# Whether models can be recorded on tensors without data; otherwise torch.export serves.
is_available = not missing

PRE_DISPATCH = found("_C.DispatchKey.PreDispatch")
PYTHON = found("_C.DispatchKey.Python")
COMPOSITE = found("_C.DispatchKey.CompositeImplicitAutograd")
python_dispatcher = found("_C._EnablePythonDispatcher")
no_python_dispatcher = found("_C._DisablePythonDispatcher")
no_torch_function = found("_C._disabled_torch_function_impl")
no_torch_dispatch = found("_C._DisableTorchDispatch")
OpOverload = found("_ops.OpOverload") or type(torch.ops.aten.add.Tensor)
_is_excluded = found("_C._dispatch_tls_is_dispatch_key_excluded")
_is_included = found("_C._dispatch_tls_is_dispatch_key_included")
_include = found("_C._dispatch_tls_set_dispatch_key_included")
_functorch_level = found("_C._functorch.maybe_current_level")
_Mode: Any = found("utils._python_dispatch.TorchDispatchMode") or object
_current_mode = found("utils._python_dispatch._get_current_dispatch_mode")


def wrapper(cls: type[Tensor], like: Tensor, device: torch.device) -> Any:
    """A tensor of a subclass, with the form of another and no data."""
    make: Any = Tensor._make_wrapper_subclass
    return make(cls, Tensor.size(like), strides=like.stride(), dtype=like.dtype, device=device)


def is_composite(function: Any) -> bool:
    """Whether torch itself takes the operator apart, into others that have gradients of their own."""
    has_kernel = getattr(function, "has_kernel_for_dispatch_key", None)
    return has_kernel is not None and bool(has_kernel(COMPOSITE))


def has_autocast_rule(function: Any, device: str) -> bool:
    """Whether autocast has a rule of its own for the operator."""
    key = found(f"_C.DispatchKey.Autocast{device.upper()}")
    return key is not None and hasattr(function, "_schema") and bool(function.has_kernel_for_dispatch_key(key))


def is_fake(tensor: Tensor) -> bool:
    """A tensor of torch's FakeTensorMode."""
    return getattr(tensor, "fake_mode", None) is not None


def surrounding_tracer() -> str | None:
    """What stands around this call and traces or transforms, if anything does: nothing can be recorded inside."""
    if _functorch_level is not None and _functorch_level() is not None:
        return "a transform of torch.func (vmap, grad)"
    if _is_included is not None and _is_included(PRE_DISPATCH):
        return "a tracer (make_fx, torch.export)"
    mode = _current_mode() if _current_mode is not None else None
    is_infrastructure = getattr(mode, "is_infra_mode", None)
    return type(mode).__name__ if is_infrastructure is not None and is_infrastructure() else None


@contextmanager
def seen_again() -> Iterator[None]:
    """While an operator is handled, those that it calls go to the handler as well."""
    _include(PRE_DISPATCH, True)
    try:
        yield
    finally:
        _include(PRE_DISPATCH, False)


Handler = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


class Below(_Mode):  # type: ignore[misc]
    """Sees operators after the transforms of torch.func (vmap, grad): what these make of a model's own operators."""

    def __init__(self, handle: Handler) -> None:
        super().__init__()
        self.handle = handle

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Otherwise every operator passes through dynamo's wrapper, and dynamo is imported for it."""
        return False

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.handle(function, args, kwargs or {})


@contextmanager
def operators_to(handle: Handler) -> Iterator[None]:
    """The operators of this thread go to a handler, before composite ones are taken apart.

    Torch has modes for this. They are kept in one stack for all threads, and the way through them takes a third of
    the time that recording takes.
    """
    thread, torchs = get_ident(), OpOverload._get_dispatch

    def get_dispatch(operator: Any, key: Any) -> Any:
        if key != PRE_DISPATCH or get_ident() != thread or _is_excluded(PYTHON):
            return torchs(operator, key)

        def handler(*args: Any, **kwargs: Any) -> Any:
            _include(PRE_DISPATCH, False)
            try:
                if _functorch_level() is None:
                    return handle(operator, args, kwargs)
                with no_python_dispatcher(), Below(handle):
                    return operator(*args, **kwargs)
            finally:
                _include(PRE_DISPATCH, True)

        return handler

    with LOCK, patched(OpOverload, "_get_dispatch", get_dispatch), python_dispatcher():
        was_included = _is_included(PRE_DISPATCH)
        _include(PRE_DISPATCH, True)
        try:
            yield
        finally:
            _include(PRE_DISPATCH, was_included)


# Methods that hand out the memory of a tensor past all operators, to read it or to write it.
HANDING_OUT = ("numpy", "tolist", "data_ptr", "untyped_storage", "storage", "__array__", "__dlpack__",
               "apply_", "map_", "map2_")  # fmt: skip


@contextmanager
def handing_out(tell: Callable[[Tensor], None], assign: Callable[[Tensor, Tensor], None]) -> Iterator[None]:
    """Tell of each tensor whose memory the code of this thread takes past all operators, or puts in another's place."""
    thread = get_ident()
    torchs_data: Any = Tensor.data

    def telling(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def method(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if get_ident() == thread:
                tell(tensor)
            return function(tensor, *args, **kwargs)

        return method

    def set_data(tensor: Tensor, other: Tensor) -> None:
        if get_ident() == thread:
            assign(tensor, other)
        torchs_data.__set__(tensor, other)

    with LOCK, ExitStack() as stack:
        for name in HANDING_OUT:
            stack.enter_context(patched(Tensor, name, telling(getattr(Tensor, name))))
        stack.enter_context(patched(Tensor, "data", property(torchs_data.__get__, set_data)))
        for module in (torch, torch.utils.dlpack):
            stack.enter_context(patched(module, "to_dlpack", telling(module.to_dlpack)))
        yield


@contextmanager
def unfused_attention() -> Iterator[None]:
    """Encoder layers take a fused shortcut in eval mode; in this thread they do what it means instead."""
    thread, torchs = get_ident(), torch.backends.mha.get_fastpath_enabled

    def get_fastpath_enabled() -> bool:
        return get_ident() != thread and torchs()

    with LOCK, patched(torch.backends.mha, "get_fastpath_enabled", get_fastpath_enabled):
        yield


@contextmanager
def function_calls(modes: list[bool]) -> Iterator[None]:
    """Keep whether an autograd.Function that is running was called with gradients: its forward runs without them."""
    thread, plain = get_ident(), torch.autograd.Function.__dict__["apply"]

    def apply(cls: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        if get_ident() != thread:
            return plain.__get__(None, cls)(*args, **kwargs)
        modes.append(modes[-1] if modes else torch.is_grad_enabled())
        try:
            return plain.__get__(None, cls)(*args, **kwargs)
        finally:
            modes.pop()

    with LOCK, patched(torch.autograd.Function, "apply", classmethod(apply)):
        yield


def uncompiled() -> AbstractContextManager[Any]:
    """Inside, what was compiled runs as it was written."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def plain(model: Any) -> Any:
    """The module that a compiled one was made from, or that an exported program holds."""
    eval_frame = sys.modules.get("torch._dynamo.eval_frame")
    while eval_frame is not None and isinstance(model, eval_frame.OptimizedModule):
        model = model._orig_mod
    exported = sys.modules.get("torch.export.exported_program")
    if exported is not None and isinstance(model, exported.ExportedProgram):
        return model.module()
    return model


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Another attribute for a while. Only inside the lock."""
    is_inherited = name not in vars(owner)
    before = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if is_inherited:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
