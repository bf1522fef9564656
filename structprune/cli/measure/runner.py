"""Run a model of either kind on arrays: what `compare` measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from structprune.cli.source import need
from structprune.errors import InvalidArgument, UnsupportedModel
from structprune.graph.graph import Shape

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Taken:
    """An input of a model: a size that works for every axis, and which of them are open to others."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    open_axes: frozenset[int] = frozenset()


class Runner(Protocol):
    """A model, loaded and ready."""

    runtime: str
    takes: list[Taken]

    def prepare(self, arrays: Sequence[Array]) -> Any:
        """The arrays as the runtime wants them, in the order of `takes`."""

    def run(self, prepared: Any) -> Any:
        """One pass, the one thing that is timed."""

    def arrays(self, result: Any) -> list[Array]:
        """The outputs."""


class OnnxRunner:
    """An ONNX file in onnxruntime, on the CPU."""

    def __init__(self, path: str, shapes: Mapping[str, Shape] | Sequence[Shape], threads: int) -> None:
        onnxruntime = need("onnxruntime", "measuring an ONNX file")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what goes wrong is raised
        # Threads that wait for the next run in a loop would slow down the other model's turn.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise UnsupportedModel(f"onnxruntime does not load {path}: {error}") from error
        self.runtime = f"onnxruntime {onnxruntime.__version__}"
        inputs = self.session.get_inputs()
        names = [each.name for each in inputs]
        known = shapes if isinstance(shapes, Mapping) else dict(zip(names, shapes, strict=False))
        self.takes = [
            Taken(
                each.name,
                known.get(each.name) or likely(each.shape),
                numpy_name(each.name, each.type),
                frozenset(axis for axis, size in enumerate(each.shape) if not isinstance(size, int)),
            )
            for each in inputs
        ]

    def prepare(self, arrays: Sequence[Array]) -> dict[str, Array]:
        return {each.name: array.astype(each.dtype) for each, array in zip(self.takes, arrays, strict=True)}

    def run(self, prepared: Any) -> Any:
        return self.session.run(None, prepared)

    def arrays(self, result: Any) -> list[Array]:
        return [each for each in result if isinstance(each, np.ndarray)]


def likely(shape: Sequence[int | str | None]) -> Shape:
    """A shape that may work, with a few samples of what the file leaves open."""
    return tuple(size if isinstance(size, int) else 2 if axis == 0 else 16 for axis, size in enumerate(shape))


def numpy_name(name: str, kind: str) -> str:
    """onnxruntime's `tensor(float)` as numpy calls it."""
    inside = kind.removeprefix("tensor(").removesuffix(")")
    known = {"float": "float32", "double": "float64"}.get(inside, inside)
    if known not in np.sctypeDict:
        raise UnsupportedModel(f"the input {name} is a {kind}, which cannot be made at random")
    return known


class TorchRunner:
    """A torch model, on the CPU."""

    def __init__(self, model: Any, inputs: Any, threads: int) -> None:
        import torch

        self.model = model.cpu()
        self.runtime = f"torch {torch.__version__}"
        self.structure = inputs
        self.takes = described_tensors(inputs, "")
        torch.set_num_threads(threads)

    def prepare(self, arrays: Sequence[Array]) -> Any:
        import torch

        from structprune.frontends.torch.record.inputs import restore

        arguments, keywords = restore(self.structure, torch.device("cpu"))
        given = iter(arrays)

        def filled(tensor: Any) -> Any:
            return torch.from_numpy(next(given)).to(tensor.dtype)

        from structprune.frontends.torch.record.record import map_tensors

        return map_tensors(arguments, filled), map_tensors(keywords, filled)

    def run(self, prepared: Any) -> Any:
        import torch

        with torch.inference_mode():
            return self.model(*prepared[0], **prepared[1])

    def arrays(self, result: Any) -> list[Array]:
        import torch

        from structprune.frontends.torch.record.record import tensors_in

        def array(tensor: Any) -> Array:
            found: Array = (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
            return found

        return [array(each) for each in tensors_in(result)]


def described_tensors(described: Any, name: str) -> list[Taken]:
    """The tensors in inputs that are written as data, in their order."""
    match described:
        case {"tensor": shape, "dtype": dtype}:
            return [Taken(name, tuple(shape), "float32" if dtype == "bfloat16" else dtype)]
        case {"tuple": items} | {"list": items}:
            return [found for item in items for found in described_tensors(item, name)]
        case {"dict": items}:
            return [found for key, item in items.items() for found in described_tensors(item, key)]
    return []


# -- inputs for two models -------------------------------------------------------------------------


def in_order(first: Sequence[Taken], second: Sequence[Taken]) -> list[int]:
    """Where each input of the second stands in the first: by name if the names agree, else by place."""
    if len(first) != len(second):
        raise InvalidArgument(f"A takes {len(first)} inputs and B {len(second)}: they cannot be compared")
    names = [each.name for each in first]
    if set(names) == {each.name for each in second} and len(set(names)) == len(names):
        return [names.index(each.name) for each in second]
    return list(range(len(first)))


def settled(first: Sequence[Taken], second: Sequence[Taken], order: Sequence[int], is_given: bool) -> list[Taken]:
    """The first model's inputs. A size that it leaves open is the second's, unless the user gave it."""
    found = list(first)
    for place, other in zip(order, second, strict=True):
        each = first[place]
        if not is_given and len(each.shape) == len(other.shape):
            sizes = (other.shape[axis] if axis in each.open_axes else size for axis, size in enumerate(each.shape))
            found[place] = replace(each, shape=tuple(sizes))
    return found


def random_arrays(taken: Sequence[Taken], seed: int) -> list[Array]:
    """Noise; zeros and ones where whole numbers are wanted: they are valid ids, masks and lengths."""
    generator = np.random.default_rng(seed)
    arrays: list[Array] = []
    for each in taken:
        if np.dtype(each.dtype).kind in "fc":
            arrays.append(generator.standard_normal(each.shape).astype(each.dtype))
        else:
            arrays.append(generator.integers(2, size=each.shape).astype(each.dtype))
    return arrays


def ran(runner: Runner, prepared: Any, name: str) -> Any:
    """The first pass, in which a model may refuse its inputs."""
    try:
        return runner.run(prepared)
    except Exception as error:
        raise UnsupportedModel(
            f"{name} does not run: {type(error).__name__}: {error}. If its inputs have the wrong sizes, give --input."
        ) from error
