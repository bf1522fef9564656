"""The torch front end as the pipeline sees it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from structprune.errors import CaptureError, UnsupportedModel, UnsupportedRatio, VerificationError
from structprune.frontends.protocol import Constraints, Described, Realized
from structprune.frontends.torch.read.index import settle, settles_with
from structprune.frontends.torch.read.lower import lower
from structprune.frontends.torch.record import private
from structprune.frontends.torch.record.capture import capture
from structprune.frontends.torch.record.inputs import describe, read, restore
from structprune.frontends.torch.record.mode import adds_noise_alone, can_ask
from structprune.frontends.torch.record.record import Arguments, Capture, Stopped
from structprune.frontends.torch.record.symbols import ALL_PLAIN
from structprune.frontends.torch.record.training import (
    EVAL_MODE,
    difference_in_training,
    record_like,
    touched,
    unites,
)
from structprune.frontends.torch.record.tree import modules_of, stored
from structprune.frontends.torch.write.adapt import Adapter, Misfit
from structprune.frontends.torch.write.compare import Comparison
from structprune.frontends.torch.write.constant import Constants
from structprune.frontends.torch.write.decided import bound_to, decisions
from structprune.frontends.torch.write.graph_module import (
    as_graph_module,
    build_graph_module,
    other_runs,
    runs_elsewhere,
    unfollowed,
)
from structprune.frontends.torch.write.module import arrays
from structprune.frontends.torch.write.trial import Trials, shown
from structprune.graph.edit import Edit, by_name
from structprune.graph.graph import Graph, Shape
from structprune.graph.progress import within
from structprune.passes.measure import macs
from structprune.passes.propagate import Solution, extended, propagate
from structprune.passes.rewrite import Rewrite
from structprune.passes.verify import Trial

# How far the result may be from the zeroed original, in units of its largest output.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class TorchFrontend:
    """A torch model, recorded."""

    block_of_convolutions = 1

    def __init__(self, model: nn.Module, arguments: Arguments, capture: Capture, origin: str = "given") -> None:
        self.model = model
        self.origin = origin
        self.arguments = arguments
        self.capture = capture
        self.captures = [capture]
        if self.more_in_training is not None and unites(capture, self.more_in_training):
            self.captures.append(self.more_in_training)
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
        self.itemsizes: Mapping[str, float] = {name: tensor.element_size() for name, tensor in stored(model)}

    @classmethod
    def read(cls, model: nn.Module, example_inputs: Any) -> TorchFrontend:
        refuse(model)
        if isinstance(example_inputs, Described):
            device = next(model.parameters()).device
            arguments = restore(example_inputs.data, device)
            return cls(model, arguments, capture(model, arguments), "as the plan describes them")
        return cls(model, *read(model, example_inputs))

    def arrays(self, names: Iterable[str]) -> Mapping[str, Tensor]:
        # What is complex is judged as two real numbers.
        found = arrays(self.model, set(names)).items()
        return {name: torch.view_as_real(tensor) if tensor.is_complex() else tensor for name, tensor in found}

    def shapes(self) -> Mapping[str, Shape]:
        return {name: tuple(tensor.shape) for name, tensor in stored(self.model)}

    @property
    def recorded_on(self) -> str:
        return f"{shown(self.arguments)} ({self.origin})"

    def branches(self) -> Sequence[str]:
        return decisions(self.captures)

    def trained(self) -> Iterable[str]:
        first = self.capture.aliases
        return [name for name, _ in self.model.named_parameters() if first.get(name, name) == name]

    def inputs(self) -> Any:
        return describe(self.arguments, with_values=self.capture.is_real)

    def constraints(self, solution: Solution, output: str) -> Constraints:
        if output == "graph":
            self.refuse_data()
            return self.for_graph(solution, output)
        adapter = Adapter(self.model, self.arguments, self.captures, solution, self.training_beside)
        ties, frozen = adapter.code.asked()
        return Constraints("module", output, ties, frozen, source=adapter)

    def for_graph(self, solution: Solution, output: str, note: str = "") -> Constraints:
        """What a graph asks that computes in training what the model does there."""
        self.refuse_threads(note)
        self.check_numbers()
        asked = self.recorded(solution)
        return replace(asked, output=output, note=joined(note, asked.note))

    def recorded(self, solution: Solution) -> Constraints:
        training, note = self.difference_in_training
        wider = None if training is None else extended(solution, lower(training))
        frozen = {} if wider is None else touched(solution, wider)
        return Constraints("graph", "graph", frozen=frozen, note=note, source=Recorded(solution, training, wider))

    def realize(self, rewrite: Rewrite, asked: Constraints) -> Realized | Constraints:
        # A choice that was made elsewhere knows nothing of what is asked.
        held = next((why for dim, why in asked.frozen.items() if dim in rewrite.kept), "")
        if asked.kind == "graph":
            if held:
                return without_training(asked, "the plan cuts widths that stay whole there")
            return self.in_graph(rewrite, asked)
        adapter: Adapter = asked.source
        if held:
            return self.other_than_class(adapter, asked, asked.why or held)
        with within(f"attempt {asked.turn}"):
            found = adapter.fit(rewrite)
        if isinstance(found, Misfit):
            return asked.holding(found.dims, found.reason) or self.other_than_class(adapter, asked, found.reason)
        return Realized(rewrite, "module", self.note_of_training, source=(adapter, found))

    def instead(self, asked: Constraints, missed: UnsupportedRatio) -> Constraints:
        if not asked.ties and not asked.frozen:
            raise missed
        if asked.kind == "graph":
            return without_training(asked, str(missed))
        whys = [asked.why or next(iter(asked.frozen.values()), ""), f"without the widths it holds, {missed}"]
        return self.other_than_class(asked.source, asked, "; ".join(filter(None, whys)))

    def other_than_class(self, adapter: Adapter, asked: Constraints, why: str) -> Constraints:
        """What a graph asks, where the model's class cannot be kept."""
        if asked.output == "module" or self.capture.is_real:
            raise UnsupportedModel(
                f"the result cannot be a {self.model_name}: {why.rstrip('.')}. "
                + ("Its control flow depends on data, so no graph can stand for it either."
                   if self.is_bound_to_data() or asked.output == "auto"
                   else "output='graph' or 'auto' gives a torch.fx.GraphModule.")
            )  # fmt: skip
        return self.for_graph(adapter.solution, asked.output, why)

    def in_graph(self, rewrite: Rewrite, asked: Constraints) -> Realized:
        recorded: Recorded = asked.source
        captures = [*self.captures, *([] if recorded.training is None else [recorded.training])]
        if recorded.wider is not None:
            rewrite = Rewrite(recorded.wider, rewrite.kept)
        others, elsewhere = runs_elsewhere(self.model, self.arguments, self.capture)
        bound = bound_to(captures, elsewhere, list(unfollowed(self.capture, others)))
        return Realized(rewrite, "graph", joined(asked.note, *bound), captures)

    def make(self, realized: Realized, edits: Sequence[Edit]) -> nn.Module:
        rewrite = realized.rewrite
        if realized.kind == "module":
            # A copy that was never run: recording leaves nothing in it.
            adapter, numbers = realized.source
            own: nn.Module = adapter.mended(rewrite, by_name(edits), numbers)
            return own
        captures: Sequence[Capture] = realized.source
        small = build_graph_module(self.model, self.arguments, captures, rewrite, edits)
        for before in captures:
            self.check_shapes(small, rewrite, before)
        return small

    def check_numbers(self) -> None:
        """The code does with plain numbers what it did with those that know where they come from."""
        if self.capture.is_real or self.capture.plain.everything:
            return
        ops = self.graph.ops[: len(self.capture.calls)]
        comparison = Comparison(Rewrite(propagate(self.graph), {}), ops, self.capture)
        after = record_like(self.capture, self.model, self.arguments, ALL_PLAIN)
        found = comparison.first_difference(after.calls, after.inputs, after.constants, after.outputs)
        if found is not None:
            raise UnsupportedModel(
                f"no graph can stand for {self.model_name}: its code looks at the types of its numbers, and does other "
                f"things with those by which sizes are followed ({found.problem} at {ops[found.index].where})"
            )

    def graph_module(self) -> fx.GraphModule:
        """The recorded program, over the model's own parameters."""
        self.refuse_data()
        self.refuse_threads()
        self.check_numbers()
        training, _ = self.difference_in_training
        # Further heads in training are a recording too.
        captures = [*self.captures, *([training] if training is not None else [])]
        return as_graph_module(self.model, self.arguments, captures)

    def refuse_threads(self, note: str = "") -> None:
        if any(capture.is_threaded for capture in self.captures):
            why = f"the result cannot be a {self.model_name}: {note.rstrip('.')}. And " if note else ""
            raise UnsupportedModel(
                f"{why}no graph can stand for {self.model_name}: its code gives work to other threads, where operators "
                "are not recorded"
            )

    def refuse_data(self) -> None:
        if self.is_bound_to_data():
            raise UnsupportedModel(
                f"no graph can stand for {self.model_name}: which path its code takes depends on data. "
                "output='module' or 'auto' keeps the class."
            )

    @cached_property
    def recorded_in_training(self) -> tuple[Capture | None, str]:
        return difference_in_training(self.model, self.arguments, self.capture)

    @cached_property
    def more_in_training(self) -> Capture | None:
        """The model in training, where it does more there than to add noise."""
        training = self.recorded_in_training[0] if can_ask(self.model) else None
        return None if training is None or adds_noise_alone(self.capture, training) else training

    @property
    def note_of_training(self) -> str:
        why = self.recorded_in_training[1] if can_ask(self.model) else ""
        return f"what it does in training is not known: {why}" if why else ""

    def training_beside(self) -> Capture | None:
        """The same, where it is not looked at with eval mode from the start."""
        return None if len(self.captures) > 1 else self.more_in_training

    @cached_property
    def difference_in_training(self) -> tuple[Capture | None, str]:
        """The model in training, where that is another computation; or why nobody can say."""
        if len(self.captures) > 1:
            return None, ""
        training, note = self.recorded_in_training
        other_sizes = partial(other_runs, self.model, self.arguments)
        if training is not None and not settles_with(self.captures, training, other_sizes):
            note = "there it does more with an index than to read by it"
            training = None
        return training, f"{EVAL_MODE}: {note}" if note else ""

    @property
    def constants(self) -> Constants | None:
        if len(self.captures) > 1:
            # Further heads in training read them too, and their biases are not followed.
            return None
        return Constants(self.capture, self.arrays, partial(other_runs, self.model, self.arguments, self.capture))

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

    def trials(self, realized: Realized, small: nn.Module, zeros: Sequence[Edit]) -> Iterator[Trial]:
        """The zeroed original's own code against the result."""
        rewrite = realized.rewrite
        work = macs(rewrite.solution).whole
        found = Trials(self.model, self.arguments, self.capture, rewrite, by_name(zeros), self.tolerance, work)
        yield from found.of(small, realized.kind == "module")


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a graph is made from; a second recording, and the solution with it, where training computes other things."""

    solution: Solution
    training: Capture | None = None
    wider: Solution | None = None


def without_training(asked: Constraints, why: str) -> Constraints:
    """A graph that computes in training what it does in eval mode asks nothing of the choice."""
    recorded = Recorded(asked.source.solution)
    return Constraints(asked.kind, asked.output, note=joined(asked.note, f"{EVAL_MODE}: {why}"), source=recorded)


def joined(*notes: str) -> str:
    return ". ".join(note.rstrip(".") for note in notes if note)


def refuse(model: nn.Module) -> None:
    """What cannot be shrunk at all."""
    tracer = private.surrounding_tracer()
    if tracer is not None:
        raise UnsupportedModel(
            f"structprune was called inside {tracer}, where models cannot be recorded: call it outside"
        )
    for module, name in modules_of(model).items():
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
        if private.is_fake(parameter):
            raise UnsupportedModel(f"{name} is a fake tensor and has no values: load the weights, then shrink")
        if is_lazy(parameter):
            raise UnsupportedModel(f"{name} has no shape yet: run the model once, then shrink it")
    if not any(parameter.numel() for parameter in model.parameters()):
        raise UnsupportedModel(f"{type(model).__name__} has no parameters: there is nothing to remove")
