"""Front ends: each reads a framework's model into the neutral graph and realises a choice in it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from structprune.errors import InvalidArgument, MissingPackage
from structprune.frontends import names
from structprune.frontends.protocol import Frontend
from structprune.graph.graph import Shape


def neutral(model: Any) -> AbstractContextManager[None]:
    """Inside, the caller's modes of the framework (inference mode, autocast) change nothing of a result.

    What goes wrong unforeseen in a model file that is not valid is the file's fault.
    """
    if is_onnx(model):
        with_packages()
        from structprune.frontends.onnx.record.blame import blamed

        return blamed(model)
    if not is_torch(model):
        return nullcontext()
    from structprune.frontends.torch.record.autocast import neutral

    return neutral(model)


def is_torch(model: Any) -> bool:
    return any(base.__module__ == "torch.nn.modules.module" for base in type(model).__mro__)


def plain(model: Any) -> tuple[Any, str]:
    """The module that a compiled one was made from, or that an exported program holds, and what to say of it."""
    if not type(model).__module__.startswith(("torch._dynamo", "torch.export")):
        return model, ""
    from structprune.frontends.torch.record import private

    module = private.plain(model)
    name = type(model).__name__
    return module, "" if module is model else f"a {name} was given: the result is a {type(module).__name__}"


def read(model: Any, example_inputs: Any) -> Frontend:
    """The front end for a model; its framework is imported only now."""
    if is_onnx(model):
        with_packages()
        from structprune.frontends.onnx.front import OnnxFrontend

        return OnnxFrontend.read(model, example_inputs)
    if is_torch(model):
        from structprune.frontends.torch.front import TorchFrontend

        return TorchFrontend.read(model, example_inputs)
    names.stored(model)
    raise InvalidArgument(f"cannot shrink a {type(model).__name__}: give {names.GIVE}")


def stored_shapes(model: Any) -> dict[str, Shape]:
    """The shapes of what a model stores, by name."""
    if is_onnx(model):
        with_packages()
        from structprune.frontends.onnx.front import stored_shapes as shapes_in_file

        return shapes_in_file(model)
    return names.stored_shapes(model)


def read_state(model: Any, weights: Any) -> Mapping[str, Any]:
    """The state dict of a small torch model: as it is given, or from a file."""
    if is_onnx(model):
        raise InvalidArgument("load is for torch models: an ONNX file holds its weights; give it to plan.apply")
    if isinstance(weights, str | os.PathLike):
        names.stored(model)
        from structprune.frontends.torch.read.weights import read_weights

        return read_weights(weights)
    if not isinstance(weights, Mapping):
        kind = type(weights).__name__
        raise InvalidArgument(f"the weights are a {kind}: give a state dict, or the path of a .safetensors or .pt file")
    return weights


def check_output(model: Any, output_path: Any, force: bool) -> None:
    """Refuse an output that could not be written, before any work is done."""
    if is_onnx(model):
        with_packages()
        from structprune.frontends.onnx.record.file import check_output as check_file

        check_file(model, output_path, force)
    elif output_path is not None:
        raise InvalidArgument("output_path is for ONNX models: save a torch model's state_dict, and its plan")


def is_onnx(model: Any) -> bool:
    """A path, a ModelProto, an onnx_ir.Model."""
    if isinstance(model, str | os.PathLike):
        return True
    return type(model).__module__.partition(".")[0] in ("onnx", "onnx_ir")


def with_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnx_ir  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise MissingPackage(f"ONNX models need {error.name}: pip install 'structprune[onnx]'") from error


__all__ = ["Frontend", "check_output", "is_torch", "neutral", "plain", "read", "read_state", "stored_shapes"]
