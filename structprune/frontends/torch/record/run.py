"""Run a recorded graph, whole or shrunk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from structprune.frontends.torch.record.autocast import perform
from structprune.frontends.torch.record.record import Call, Capture, tensors_in
from structprune.graph.graph import Value

Environment = dict[Value, Tensor]
Step = Callable[[int, Call, tuple[Any, ...], dict[str, Any]], Any]


def plain_step(index: int, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return perform(call, args, kwargs)


def substitute(structure: Any, environment: Mapping[Value, Any]) -> Any:
    """Nested arguments with every value replaced by its tensor."""
    if isinstance(structure, Value):
        return environment[structure]
    if isinstance(structure, dict):
        return {key: substitute(item, environment) for key, item in structure.items()}
    if isinstance(structure, list | tuple):
        return type(structure)(substitute(item, environment) for item in structure)
    return structure


def run(
    capture: Capture, parameters: Mapping[str, Tensor], inputs: list[Tensor], step: Step = plain_step
) -> list[Tensor]:
    """The outputs of a recorded graph with these parameters."""
    environment: Environment = dict(capture.constants)
    environment.update(zip(capture.inputs, inputs, strict=True))
    environment.update({value: parameters[name] for name, value in capture.parameters.items()})
    with torch.no_grad():
        for index, call in enumerate(capture.calls):
            result = step(index, call, substitute(call.args, environment), substitute(call.kwargs, environment))
            environment.update(zip(call.outputs, tensors_in(result), strict=True))
    return [environment[value] for value in capture.outputs]
