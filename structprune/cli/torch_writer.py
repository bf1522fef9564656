"""A shrunk torch model as a file: ONNX, an exported program, or weights and plan."""

from __future__ import annotations

import inspect
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from structprune.cli.outputs import write
from structprune.cli.source import Source
from structprune.cli.torch_source import quiet
from structprune.errors import UnsupportedModel
from structprune.graph.progress import doing
from structprune.plan import Plan


def write_torch(small: Any, source: Source, plan: Plan, target: str, path: Path) -> str:
    """Write the result in the form that the target's ending asks for; give back what there is to say of it."""
    match path.suffix:
        case ".safetensors":
            from safetensors.torch import save_file

            write(target, path, lambda path: save_file(separate(small.state_dict()), path, {"format": "pt"}))
            write(target, path.with_suffix(".plan.json"), plan.save)
            return ""
        case ".pt2":
            exported = export(small, source, plan)
            write(target, path, lambda path: save_program(exported.program, path))
            return exported.note
        case ".onnx":
            exported = export(small, source, plan)
            write(target, path, as_onnx(exported).save)
            return exported.note
    raise AssertionError(path.suffix)


def save_program(program: Any, path: Path) -> None:
    """torch's own writer aborts the whole process when a file cannot grow, so it must not notice."""
    import torch

    with HoldingBack(path, "wb") as file:
        torch.export.save(program, file)
        if file.error is not None:
            raise file.error


class HoldingBack(io.FileIO):
    """A file that seems to take everything, and keeps its first error for later."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        size = left.nbytes
        try:
            while left and self.error is None:
                left = left[super().write(left) :]
        except OSError as error:
            self.error = error
        return size


def separate(state: dict[str, Any]) -> dict[str, Any]:
    """Tied tensors are written under each of their names: the format has no ties."""
    seen: set[int] = set()
    result: dict[str, Any] = {}
    for name, tensor in state.items():
        memory = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if memory in seen else tensor.contiguous()
        seen.add(memory)
    return result


@dataclass(frozen=True, slots=True)
class Exported:
    """An exported program, its open axes, and what there is to say of them."""

    program: Any
    shapes: Any
    note: str


def export(small: Any, source: Source, plan: Plan) -> Exported:
    """The result as torch.export sees it, for any batch size where its code allows."""
    import torch

    from structprune.frontends.torch.record.inputs import as_arguments, restore

    doing("exporting")
    device = next(small.parameters()).device
    arguments, keywords = restore(plan.inputs, device) if source.inputs is None else as_arguments(source.inputs)
    with quiet():
        try:
            several, named, shapes = open_batch(small, arguments, keywords)
            program = torch.export.export(small, several, named, dynamic_shapes=shapes)
            return Exported(program, shapes, "the batch size is open")
        except Exception as refusal:
            why = first_line(refusal)
        try:
            program = torch.export.export(small, arguments, keywords)
            return Exported(program, None, f"the batch size is that of the example inputs: {why}")
        except Exception as error:
            raise UnsupportedModel(
                f"torch.export cannot export the smaller {plan.model}: {type(error).__name__}: {error}. "
                "OUT.safetensors needs no export."
            ) from error


def open_batch(small: Any, arguments: Any, keywords: Any) -> tuple[Any, Any, Any]:
    """The inputs, at least two samples of each (a size of one is taken for a constant), and their open axes."""
    from torch import Tensor
    from torch.export import Dim
    from torch.utils._pytree import tree_map

    from structprune.frontends.torch.record.record import map_tensors, tensors_in

    sizes = {tensor.shape[0] if tensor.dim() else None for tensor in tensors_in((arguments, keywords))}
    if len(sizes) != 1 or None in sizes:
        raise ValueError("the inputs do not share their first axis")
    if sizes == {1}:
        arguments, keywords = (
            map_tensors(each, lambda tensor: tensor.repeat(2, *[1] * (tensor.dim() - 1)))
            for each in (arguments, keywords)
        )
    batch = Dim("batch")
    named = inspect.signature(small.forward).bind(*arguments, **keywords).arguments
    return arguments, keywords, tree_map(lambda value: {0: batch} if isinstance(value, Tensor) else None, dict(named))


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def as_onnx(exported: Exported) -> Any:
    import torch

    doing("converting to ONNX")
    with quiet():
        try:
            return torch.onnx.export(exported.program, dynamo=True, verbose=False, dynamic_shapes=exported.shapes)
        except Exception as error:
            raise UnsupportedModel(
                f"torch.onnx cannot convert the smaller model: {type(error).__name__}: {error}. "
                "OUT.pt2 and OUT.safetensors need no conversion."
            ) from error
