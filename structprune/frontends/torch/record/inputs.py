"""Example inputs: what the user gave, or what the model itself gives away."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from structprune.errors import CaptureError, InvalidArgument
from structprune.frontends.torch.record.capture import capture, record
from structprune.frontends.torch.record.record import Arguments, Capture, Run, Stopped, map_tensors
from structprune.graph.progress import within

IMAGE_SIZES = (224, 64, 32, 28, 256, 299)
LENGTHS = (16, 128, 1024, 16000)


def read(model: nn.Module, example_inputs: Any) -> tuple[Arguments, Capture, str]:
    """The inputs as (arguments, keywords), the model recorded on them, and where they came from."""
    if example_inputs is not None:
        arguments = as_arguments(example_inputs)
        return arguments, capture(model, arguments), "given"
    tried: list[str] = []
    for name, guess in guesses(model):
        try:
            arguments = guess()
            with within(f"trying {name}"):
                found = record(model, Run(arguments))
        except (Stopped, RuntimeError, TypeError, ValueError, AttributeError, KeyError) as error:
            tried.append(f"{name} ({first_line(error)})")
            continue
        if found.calls and any(call.tensors() for call in found.calls):
            return arguments, found, f"guessed: {name}"
    attempts = "; ".join(tried) or "nothing in the model says what it takes"
    raise CaptureError(f"No inputs were given, and none that were tried ran: {attempts}. Pass example_inputs=...")


def first_line(error: Exception) -> str:
    text = str(error.cause if isinstance(error, Stopped) else error).strip().splitlines()
    return text[0][:80] if text else type(error).__name__


def as_arguments(example_inputs: Any) -> Arguments:
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), {str(name): value for name, value in example_inputs.items()}
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs), {}
    raise InvalidArgument(
        f"example_inputs is a {type(example_inputs).__name__}; "
        "give a tensor, a tuple of arguments, or a dict of keyword arguments"
    )


Guess = tuple[str, Callable[[], Arguments]]


def guesses(model: nn.Module) -> Iterator[Guess]:
    """Inputs worth trying, the likeliest first."""
    parameter = next(model.parameters(), None)
    if parameter is None:
        return
    device = parameter.device
    dtype = parameter.dtype if parameter.is_floating_point() else torch.float32

    def image(*shape: int) -> Callable[[], Arguments]:
        return lambda: ((torch.zeros(shape, dtype=dtype, device=device),), {})

    def tokens(count: int, length: int) -> Callable[[], Arguments]:
        return lambda: ((torch.zeros((1, length), dtype=torch.long, device=device) + min(count - 1, 1),), {})

    settings = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if isinstance(settings, Mapping) and settings.get("input_size"):
        yield f"default_cfg's input_size {settings['input_size']}", image(1, *settings["input_size"])
    if hasattr(model, "config") and hasattr(model, "main_input_name"):
        yield from configured(model, device, dtype)
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            for length in (16, 64):
                yield f"token ids for {name}", tokens(module.num_embeddings, length)
            break
        if isinstance(module, nn.modules.conv._ConvNd):
            rank = module.weight.dim() - 2
            for size in LENGTHS if rank == 1 else IMAGE_SIZES if rank == 2 else (32, 112):
                shape = (1, module.in_channels, *([16] if rank == 3 else []), *([size] * min(rank, 2)))
                yield f"an input of shape {shape} for {name}", image(*shape)
            break
        if isinstance(module, nn.Linear):
            yield f"features of shape (1, {module.in_features}) for {name}", image(1, module.in_features)
            yield f"a sequence of shape (1, 16, {module.in_features}) for {name}", image(1, 16, module.in_features)
            for size in (28, 32, 224):
                for channels in (1, 3):
                    yield f"an image of shape (1, {channels}, {size}, {size})", image(1, channels, size, size)
            break
        if isinstance(module, nn.RNNBase):
            yield f"a sequence of shape (1, 16, {module.input_size}) for {name}", image(1, 16, module.input_size)
            break


def configured(model: Any, device: torch.device, dtype: torch.dtype) -> Iterator[Guess]:
    """What a transformers model says of its inputs."""

    def dummy() -> Arguments:
        return (), map_tensors(
            dict(model.dummy_inputs), lambda t: t.to(device, dtype if t.is_floating_point() else t.dtype)
        )

    config = model.config
    if model.main_input_name == "pixel_values":
        vision = getattr(config, "vision_config", config)
        size = getattr(vision, "image_size", 224)
        height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
        shape = (1, getattr(vision, "num_channels", 3), height, width)
        yield (
            f"pixel_values of shape {shape}",
            lambda: ((), {"pixel_values": torch.zeros(shape, dtype=dtype, device=device)}),
        )
    yield "the model's dummy_inputs", dummy
    ids = torch.zeros((1, 16), dtype=torch.long, device=device)
    yield "input_ids of shape (1, 16)", lambda: ((), {"input_ids": ids + 1})
    if getattr(config, "is_encoder_decoder", False):
        yield "input_ids and decoder_input_ids", lambda: ((), {"input_ids": ids + 1, "decoder_input_ids": ids + 1})
    yield (
        "input_values of shape (1, 16000)",
        lambda: ((), {"input_values": torch.zeros((1, 16000), dtype=dtype, device=device)}),
    )


# -- as data ---------------------------------------------------------------------------------------


# Larger inputs are described by their shapes alone, whatever the model does with them.
MOST_VALUES = 1 << 16


def describe(arguments: Any, with_values: bool = False) -> Any:
    """The inputs as JSON: shapes and types of tensors, everything else as it is.

    Whole numbers and masks are written too, as code looks at them; others `with_values`, where the model's path
    follows them.
    """
    if isinstance(arguments, Tensor):
        described = {"tensor": list(arguments.shape), "dtype": str(arguments.dtype).removeprefix("torch.")}
        is_looked_at = with_values or not arguments.is_floating_point()
        if is_looked_at and arguments.numel() <= MOST_VALUES and not arguments.is_complex():
            numbers = arguments.detach().flatten()
            as_python = torch.float64 if numbers.is_floating_point() else torch.int64
            described["values"] = numbers.to(as_python).tolist()
        return described
    if isinstance(arguments, tuple):
        return {"tuple": [describe(item, with_values) for item in arguments]}
    if isinstance(arguments, list):
        return {"list": [describe(item, with_values) for item in arguments]}
    if isinstance(arguments, Mapping):
        return {"dict": {str(key): describe(item, with_values) for key, item in arguments.items()}}
    if arguments is None or isinstance(arguments, bool | int | float | str):
        return {"value": arguments}
    raise InvalidArgument(f"an input of type {type(arguments).__name__} cannot be written into a plan")


def restore(described: Any, device: torch.device) -> Any:
    """Inputs of the described form; where it holds no numbers, between 0 and 1, the same each time."""
    match described:
        case {"tensor": shape, "dtype": dtype, "values": values}:
            return torch.tensor(values, dtype=torch.float64 if "float" in dtype else torch.int64).to(
                device, getattr(torch, dtype)
            ).reshape(shape)
        case {"tensor": shape, "dtype": dtype}:
            generator = torch.Generator("cpu").manual_seed(0)
            numbers = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")
            return numbers.to(device, getattr(torch, dtype))
        case {"tuple": items}:
            return tuple(restore(item, device) for item in items)
        case {"list": items}:
            return [restore(item, device) for item in items]
        case {"dict": items}:
            return {key: restore(item, device) for key, item in items.items()}
        case {"value": value}:
            return value
    raise InvalidArgument(f"not a description of inputs: {described!r}")
