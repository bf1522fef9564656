"""Torch models as the command line names them: module:factory, zoo:name, model.pt2."""

from __future__ import annotations

import logging
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from structprune.cli.arguments import InputShape
from structprune.cli.source import Source, as_example, existing, need
from structprune.errors import InvalidArgument, StructpruneError, UnsupportedModel
from structprune.graph.plan_file import DTYPES
from structprune.graph.progress import doing

CHECKOUT = Path(__file__).resolve().parents[2]


def read_torch_source(name: str, weights: str | None, inputs: Sequence[InputShape]) -> Source:
    """The model in evaluation mode, as it will be deployed."""
    origin, colon, what = name.partition(":")
    if name.endswith(".pt2"):
        existing(name)
    elif not (origin and what) or Path(name).exists():
        if not colon:
            existing(name)
        hint = " A file of weights goes to --weights, with module:factory as MODEL." if is_weights(name) else ""
        raise UnsupportedModel(f"{name} is not .onnx, .pt2, module:factory or zoo:name.{hint}")
    doing(f"reading {name}")
    need("torch", f"reading {name}")
    if name.endswith(".pt2"):
        made = load_program(name)
    elif origin == "zoo":
        made = build_zoo(what)
    else:
        made = call_factory(name, find(origin, what))
    model, example = made if isinstance(made, tuple) and len(made) == 2 else (made, None)

    from torch import nn

    if not isinstance(model, nn.Module):
        raise UnsupportedModel(
            f"{name} gives a {type(model).__name__}: it must give a torch.nn.Module or (module, example inputs)"
        )
    if weights is not None:
        load_weights(model, weights)
    if not name.endswith(".pt2"):  # an exported program has its mode built in
        model.eval()
    return Source(name, model, tensors(inputs, model) if inputs else example, False)


def is_weights(name: str) -> bool:
    return Path(name).suffix in (".pt", ".pth", ".bin", ".ckpt", ".safetensors")


def load_program(path: str) -> Any:
    import torch

    try:
        with quiet():
            program = torch.export.load(path)
    except Exception as error:
        raise UnsupportedModel(f"{path} is not a whole exported program: {type(error).__name__}: {error}") from error
    example = program.example_inputs
    arguments, keywords = ((), {}) if example is None else example
    if arguments and keywords:
        raise UnsupportedModel(f"{path} was exported with positional and keyword inputs: export it with one kind")
    return program.module(), arguments or keywords or None


def build_zoo(name: str) -> Any:
    if not (CHECKOUT / "models_zoo").is_dir():
        raise UnsupportedModel(
            f"zoo:{name}: the zoo is in a checkout of structprune, not in the installed package; name your own code, "
            "module:factory"
        )
    if str(CHECKOUT) not in sys.path:
        sys.path.insert(0, str(CHECKOUT))
    return guarded(f"zoo:{name}", lambda: import_module("models_zoo").build(name))


# -- importable code -------------------------------------------------------------------------------


def find(module: str, path: str) -> Any:
    """The object that module:path names; the current folder is searched first, as Python itself does."""
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = guarded(module, lambda: import_module(module))
    except UnsupportedModel as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and cause.name and f"{module}.".startswith(f"{cause.name}."):
            raise UnsupportedModel(
                f"there is no module {cause.name!r}: install it, or run this where {cause.name}.py lies"
            ) from cause
        raise
    for part in path.split("."):
        if not hasattr(found, part):
            raise UnsupportedModel(f"{module}:{path}: {module} has no {part!r}{near(part, dir(found))}")
        found = getattr(found, part)
    return found


def near(name: str, known: Sequence[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, [each for each in known if not each.startswith("_")], 3)
    return f"; did you mean {', '.join(close)}?" if close else ""


def call_factory(name: str, found: Any) -> Any:
    from torch import nn

    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise UnsupportedModel(f"{name} is a {type(found).__name__}: name a torch.nn.Module or what makes one")
    return guarded(name, found)


def guarded(name: str, call: Any) -> Any:
    """Other people's code: whatever it raises becomes one error that says where."""
    try:
        return call()
    except (StructpruneError, KeyboardInterrupt):
        raise
    except BaseException as error:
        frames = [each for each in traceback.extract_tb(error.__traceback__)[1:] if each.filename[0] != "<"]
        inside = [each for each in frames if each.filename != __file__]
        where = f" at {inside[-1].filename}:{inside[-1].lineno}" if inside else ""
        raise UnsupportedModel(f"{name} raises {type(error).__name__}{where}: {error}") from error


# -- weights and inputs ----------------------------------------------------------------------------


def load_weights(model: Any, name: str) -> None:
    from structprune.frontends.torch.read.weights import read_weights

    try:
        model.load_state_dict(read_weights(name))
    except RuntimeError as error:
        raise UnsupportedModel(f"{name} does not fit the model: {error}") from error


def tensors(shapes: Sequence[InputShape], model: Any) -> Any:
    """Example inputs: noise, and zeros and ones where whole numbers are wanted (they are valid ids and masks)."""
    import torch

    generator = torch.Generator().manual_seed(0)
    first = next((each for each in model.parameters() if each.is_floating_point()), torch.zeros(()))

    def tensor(shape: InputShape) -> Any:
        if shape.dtype is not None and shape.dtype not in DTYPES:
            raise InvalidArgument(f"--input: {shape.dtype!r} is no type; choose one of {', '.join(DTYPES)}")
        dtype = first.dtype if shape.dtype is None else getattr(torch, shape.dtype)
        if dtype.is_floating_point or dtype.is_complex:
            drawn = torch.randn(shape.shape, generator=generator, dtype=torch.float32)
        else:
            drawn = torch.randint(2, shape.shape, generator=generator)
        return drawn.to(first.device, dtype)

    return as_example(shapes, [tensor(shape) for shape in shapes])


@contextmanager
def quiet() -> Iterator[None]:
    """torch.export warns of its own insides; what stops it it raises."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
