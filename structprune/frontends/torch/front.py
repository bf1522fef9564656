"""The torch front end as the pipeline sees it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, partial
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from structprune.algebra.axis import Dim, Mask
from structprune.errors import CaptureError, UnsupportedModel, VerificationError
from structprune.frontends.protocol import Choose, Described, Realized
from structprune.frontends.torch.read.index import settle, settles_with
from structprune.frontends.torch.read.lower import lower
from structprune.frontends.torch.record import private
from structprune.frontends.torch.record.capture import capture
from structprune.frontends.torch.record.inputs import describe, read, restore
from structprune.frontends.torch.record.record import Arguments, Capture, Stopped, map_tensors, tensors_in
from structprune.frontends.torch.record.result import results_in
from structprune.frontends.torch.record.surroundings import untouched
from structprune.frontends.torch.record.training import (
    EVAL_MODE,
    choice_for_graph,
    difference_in_training,
    further_heads,
    record_like,
)
from structprune.frontends.torch.write.adapt import Adapter
from structprune.frontends.torch.write.constant import Constants
from structprune.frontends.torch.write.follow import constants
from structprune.frontends.torch.write.graph_module import as_graph_module, build_graph_module, other_runs
from structprune.frontends.torch.write.module import arrays, sliced, stored
from structprune.frontends.torch.write.oracle import (
    expected_outputs,
    largest_error,
    outputs_of_own_code,
    same_chance,
    zeroed,
)
from structprune.graph.graph import Graph, Shape
from structprune.passes.propagate import Solution
from structprune.passes.rewrite import Rewrite

# How far the result may be from the zeroed original, in units of its largest output.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class TorchFrontend:
    """A torch model, recorded."""

    block_of_convolutions = 1
    follows_the_model = True

    def __init__(self, model: nn.Module, arguments: Arguments, capture: Capture) -> None:
        self.model = model
        self.arguments = arguments
        self.capture = capture
        self.captures = [capture, *further_heads(model, arguments, capture)]
        settle(self.captures, partial(other_runs, model, arguments))
        self.graph: Graph = lower(capture)
        for other in self.captures[1:]:
            self.graph = self.graph.joined(lower(other))
        self.model_name = type(model).__name__
        self.total = sum(parameter.numel() for parameter in model.parameters())
        # A model may compute in other types than it stores, in regions of autocast for one.
        computed = {capture.dtypes[value] for call in capture.calls for value in call.outputs if prod(value.shape) > 1}
        types = computed.union(parameter.dtype for parameter in model.parameters())
        self.tolerance = max(TOLERANCES.get(dtype, 0.0) for dtype in types)
        self._constants: Constants | None = None
        self.itemsizes: Mapping[str, float] = {name: tensor.element_size() for name, tensor in stored(model)}

    @classmethod
    def read(cls, model: nn.Module, example_inputs: Any) -> TorchFrontend:
        refuse(model)
        if isinstance(example_inputs, Described):
            device = next(model.parameters()).device
            arguments = restore(example_inputs.data, device)
            return cls(model, arguments, capture(model, arguments))
        return cls(model, *read(model, example_inputs))

    def arrays(self, names: Iterable[str]) -> Mapping[str, Tensor]:
        # What is complex is judged as two real numbers.
        found = arrays(self.model, set(names)).items()
        return {name: torch.view_as_real(tensor) if tensor.is_complex() else tensor for name, tensor in found}

    def shapes(self) -> Mapping[str, Shape]:
        return {name: tuple(tensor.shape) for name, tensor in stored(self.model)}

    def inputs(self) -> Any:
        return describe(self.arguments, with_values=self.capture.is_real)

    def realize(self, solution: Solution, choose: Choose, output: str) -> Realized:
        note = ""
        if output != "graph":
            adapter = Adapter(self.model, self.arguments, self.captures, solution)
            adapted = adapter.adapt(choose)
            if adapted.rewrite is not None:
                chosen, make = adapted.rewrite, adapted.finish

                def made(at_once: bool) -> nn.Module:
                    return self.fold(make(at_once), chosen, at_once)

                return Realized(chosen, "module", made, adapter.constraints)
            note = adapted.reason
            if output == "module" or self.capture.is_real:
                raise UnsupportedModel(
                    f"the result cannot be a {self.model_name}: {note.rstrip('.')}. "
                    + ("Its control flow depends on data, so no graph can stand for it either."
                       if self.is_bound_to_data() or output == "auto"
                       else "output='graph' or 'auto' gives a torch.fx.GraphModule.")
                )  # fmt: skip
        if output == "graph":
            self.refuse_data()
        training, unrecorded = self.difference_in_training
        choice = choice_for_graph(self.captures, training, solution, choose)
        rewrite = choice.rewrite

        def finish(at_once: bool) -> nn.Module:
            ops = rewrite.solution.graph.ops
            small = build_graph_module(self.model, self.arguments, choice.captures, ops, rewrite)
            for before in choice.captures:
                self.check_shapes(small, rewrite, before)
            return self.fold(small, rewrite, at_once)

        notes = [each.rstrip(".") for each in (note, unrecorded, choice.note) if each]
        return Realized(rewrite, "graph", finish, choice.constraints, ". ".join(notes))

    def graph_module(self) -> fx.GraphModule:
        """The recorded program, over the model's own parameters."""
        self.refuse_data()
        training, _ = self.difference_in_training
        # Further heads in training are a recording too.
        captures = [*self.captures, *([training] if training is not None else [])]
        return as_graph_module(self.model, self.arguments, captures)

    def refuse_data(self) -> None:
        if self.is_bound_to_data():
            raise UnsupportedModel(
                f"no graph can stand for {self.model_name}: which path its code takes depends on data. "
                "output='module' or 'auto' keeps the class."
            )

    @cached_property
    def difference_in_training(self) -> tuple[Capture | None, str]:
        """The model in training, where that is another computation; or why nobody can say."""
        if len(self.captures) > 1:
            return None, ""
        training, note = difference_in_training(self.model, self.arguments, self.capture)
        other_sizes = partial(other_runs, self.model, self.arguments)
        if training is not None and not settles_with(self.captures, training, other_sizes):
            return None, f"{EVAL_MODE}: there it does more with an index than to read by it"
        return training, note

    def free(self, solution: Solution) -> Mapping[Dim, Mask]:
        return self.constants(solution).free

    def constants(self, solution: Solution) -> Constants:
        if len(self.captures) > 1:
            # Further heads in training read them too, and their biases are not followed.
            return Constants()
        if self._constants is None:
            self._constants = constants(self.capture, solution, arrays(self.model, self.capture.parameters))
        return self._constants

    def fold(self, small: nn.Module, rewrite: Rewrite, at_once: bool) -> nn.Module:
        """Add what removed constants contributed to the biases behind them."""
        if not at_once:  # the weights may be others by now
            self._constants = None
        parameters, edits = arrays(self.model, self.capture.parameters), rewrite.edits()
        additions = self.constants(rewrite.solution).additions(rewrite, parameters)
        for name, tensor in stored(small) if additions else ():
            if name in additions:
                tensor.data += sliced(additions[name], edits.get(name, {})).to(tensor)
        return small

    def check_shapes(self, small: nn.Module, rewrite: Rewrite, before: Capture) -> None:
        """The graph runs, and its outputs have the shapes that the original's have."""
        try:
            after = record_like(before, small, self.arguments)
        except (Stopped, CaptureError) as error:
            raise VerificationError(
                f"the rewritten graph of {self.model_name} does not run: {error}. "
                "This is a bug in structprune; please report it."
            ) from error
        expected = [rewrite.shape(value) for value in before.outputs]
        if [value.shape for value in after.outputs] != expected:
            raise VerificationError(f"the rewritten graph of {self.model_name} gives outputs of other shapes")

    def is_bound_to_data(self) -> bool:
        """Another input may take another path through the model's code."""
        return self.capture.reads_data

    def deliver(self, small: nn.Module, output_path: Any, force: bool) -> nn.Module:
        return small

    def error(self, rewrite: Rewrite, small: nn.Module) -> float:
        arguments = map_tensors(self.arguments[0], noise), map_tensors(self.arguments[1], noise)
        # Constants that were folded into biases live on: in the original they are not zeroed.
        kept = Rewrite(rewrite.solution, self.constants(rewrite.solution).kept(rewrite))
        values = zeroed(arrays(self.model, rewrite.solution.graph.parameters), kept)
        if self.is_bound_to_data():
            return self.error_of_own_code(rewrite, values, small, arguments)
        with same_chance(self.model):
            expected = expected_outputs(self.capture, rewrite, values, list(tensors_in(arguments)))
        return largest_error(expected, outputs_in_eval_mode(small, arguments))

    def error_of_own_code(
        self, rewrite: Rewrite, values: Mapping[str, Tensor], small: nn.Module, arguments: Arguments
    ) -> float:
        """No recorded graph stands for a model bound to data: its own code runs on zeroed parameters.

        Both run in float64 where the code allows: rounding would choose between scores that are nearly equal, and
        so another path.
        """
        whole = copy.deepcopy(self.model).eval()
        for name, tensor in stored(whole):
            if name in values:
                tensor.data = values[name]
        try:
            return error_between(whole, small, rewrite, arguments, as_double)
        except RuntimeError:  # the code casts to a type of its own
            return error_between(whole, small, rewrite, arguments, lambda tensor: tensor)


def error_between(
    whole: nn.Module, small: nn.Module, rewrite: Rewrite, arguments: Arguments, cast: Callable[[Tensor], Tensor]
) -> float:
    """How far two models' own codes are apart, everything cast."""
    whole, small = copy.deepcopy(whole), copy.deepcopy(small)
    for model in (whole, small):
        model._apply(cast)  # type: ignore[no-untyped-call]
    given = map_tensors(arguments[0], cast), map_tensors(arguments[1], cast)
    with same_chance(whole):
        expected = outputs_of_own_code(whole, rewrite, given)
    return largest_error(expected, outputs_in_eval_mode(small, given))


def outputs_in_eval_mode(model: nn.Module, arguments: Arguments) -> list[Tensor]:
    with torch.no_grad(), same_chance(model), untouched(model, with_buffers=True) as copied:
        for module in copied.modules():
            vars(module)["training"] = False
        return list(results_in(copied(*arguments[0], **arguments[1])))


def as_double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def noise(tensor: Tensor) -> Tensor:
    """The example itself, or noise where a guess left nothing but zeros."""
    if not tensor.is_floating_point() or tensor.any():
        return tensor
    generator = torch.Generator("cpu").manual_seed(0)
    return torch.randn(tensor.shape, generator=generator, dtype=torch.float64, device="cpu").to(tensor)


def refuse(model: nn.Module) -> None:
    """What cannot be shrunk at all."""
    tracer = private.surrounding_tracer()
    if tracer is not None:
        raise UnsupportedModel(
            f"structprune was called inside {tracer}, where models cannot be recorded: call it outside"
        )
    for name, module in model.named_modules():
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            raise UnsupportedModel(
                f"{name or 'the model'} is wrapped in {type(module).__name__}; give its .module, and wrap the result"
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedModel(f"{name or 'the model'} is a TorchScript module; give the module it was made from")
        if type(module).__module__.startswith(("torch.ao.nn.quantized", "torch.nn.quantized")):
            raise UnsupportedModel(
                f"{name or 'the model'} is quantized ({type(module).__name__}); "
                "shrink the floating-point model, then quantize"
            )
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise UnsupportedModel(f"{name} is on the meta device and has no values: load the weights, then shrink")
        if is_lazy(parameter):
            raise UnsupportedModel(f"{name} has no shape yet: run the model once, then shrink it")
    if not any(parameter.numel() for parameter in model.parameters()):
        raise UnsupportedModel(f"{type(model).__name__} has no parameters: there is nothing to remove")
