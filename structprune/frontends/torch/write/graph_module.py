"""The result as a `torch.fx.GraphModule`, for models whose code holds sizes that cannot be mended."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from structprune.algebra.order import Indices
from structprune.errors import CaptureError, UnsupportedModel
from structprune.frontends.torch.read.lower import bind
from structprune.frontends.torch.record.autocast import under_autocast
from structprune.frontends.torch.record.expression import Attribute, Leaf
from structprune.frontends.torch.record.mode import FLAGS
from structprune.frontends.torch.record.program import Program, inner, stored_name, writes
from structprune.frontends.torch.record.record import (
    Arguments,
    Call,
    Capture,
    Reading,
    Stopped,
    map_tensors,
    tensors_in,
)
from structprune.frontends.torch.record.symbols import number_at
from structprune.frontends.torch.record.training import record_like
from structprune.frontends.torch.record.tree import stored
from structprune.frontends.torch.write.equations import equations_of, solve
from structprune.frontends.torch.write.following import Following, written_in
from structprune.frontends.torch.write.module import edited, new_arguments
from structprune.frontends.torch.write.shrunk_graph import ShrunkGraph
from structprune.graph.edit import Changes, Edit, Literals, by_name, literals_in
from structprune.graph.graph import Op, Shape, Value
from structprune.graph.progress import within
from structprune.operators.routing import Pick
from structprune.passes.rewrite import Rewrite


def build_graph_module(
    model: nn.Module, inputs: Arguments, captures: Sequence[Capture], rewrite: Rewrite, edits: Sequence[Edit]
) -> fx.GraphModule:
    """The rewritten graph over a tree of modules that hold the smaller parameters under their old names.

    A second capture is the model in training.
    """
    root, literals = tree(model, by_name(edits)), literals_in(edits)
    left = iter(rewrite.solution.graph.ops)
    graphs = [
        Editor(model, inputs, capture, root, list(islice(left, len(capture.calls))), rewrite, literals).edit()
        for capture in captures
    ]
    return ShrunkGraph(root, type(model).__name__, *graphs)


def as_graph_module(model: nn.Module, inputs: Arguments, captures: Sequence[Capture]) -> fx.GraphModule:
    """The recorded program over the model's own parameters."""
    root = tree(model)
    graphs = [Editor(model, inputs, capture, root).edit() for capture in captures]
    return ShrunkGraph(root, type(model).__name__, *graphs)


class Editor:
    """The recorded program, made to run over a tree of parameters; smaller where there is a rewrite."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Arguments,
        capture: Capture,
        root: nn.Module,
        ops: Sequence[Op] = (),
        rewrite: Rewrite | None = None,
        literals: Literals | None = None,
    ) -> None:
        self.capture = capture
        self.ops = ops
        self.rewrite = rewrite
        self.literals = literals or {}
        self.program = Program(capture)
        self.graph = self.program.graph
        self.root = root
        self.device = next(model.parameters()).device
        self.names = {name for name, _ in model.named_modules()}
        self.counters = {name for name, _ in model.named_buffers() if name.endswith("num_batches_tracked")}
        self.others, _ = runs_elsewhere(model, inputs, capture)
        old = partial(number_of, model)
        equations = [each for op in ops for each in equations_of(op)]
        new, _ = solve(equations, rewrite, old) if rewrite is not None else ({}, [])
        self.following = Following(self.program, rewrite, old, new)

    def edit(self) -> fx.Graph:
        for index, node in enumerate(self.program.calls):
            with self.graph.inserting_before(node):
                self.call(index, node)
        for value in self.program.nodes:
            if value in self.capture.constants:
                constant = self.capture.constants[value].detach().clone()
                self.root.register_buffer(stored_name(self.capture, value), constant, persistent=False)
        if self.capture.told:
            self.program.tell(self.following.written)
        self.graph.eliminate_dead_code(is_impure_node=is_impure)
        return self.graph

    def call(self, index: int, node: fx.Node) -> None:
        call: Call = node.meta["call"]
        if not hasattr(call.target, "_schema"):
            return
        target, arguments = call.target, bind(call.target, *inner(node))
        for each in arguments.values():
            if isinstance(each, torch.Generator | torch.UntypedStorage | torch.TypedStorage):
                kind = type(each).__name__
                raise UnsupportedModel(f"{call.target} at {call.where} has a {kind}, which no graph can hold")
        before = dict(arguments)
        if self.rewrite is not None:
            target = self.resize(call, self.ops[index], arguments)
        written_in(self.following, arguments, call.expressions)
        self.make_dynamic(index, call, arguments)
        self.follow_training(call, arguments)
        if target is call.target and all(arguments[name] is each for name, each in before.items()):
            return
        schema = target._schema.arguments
        node.args = tuple(arguments[a.name] for a in schema if not a.kwarg_only and a.name in arguments)
        node.kwargs = {a.name: arguments[a.name] for a in schema if a.kwarg_only and a.name in arguments}
        node.target = target
        if call.region is not None:
            node.target, node.args = under_autocast, (call.region, target, *node.args)

    def resize(self, call: Call, op: Op, arguments: dict[str, Any]) -> Any:
        """Set the literal arguments of a smaller operator; which operator it is now."""
        assert self.rewrite is not None
        changes = new_arguments(call, self.literals.get(op, {}))
        if "*" in changes:
            sizes = changes["*"]
            for name in set(arguments) - {"self", "dim"}:
                del arguments[name]
            arguments["split_sizes"] = sizes
            return torch.ops.aten.split_with_sizes.default
        arguments.update(changes)
        if call.reading is None or call.reading.stored is not None:
            return call.target
        after = op.operator.resized(op, self.rewrite)
        assert isinstance(after, Pick)
        return self.read(call, call.reading, after.index, arguments)

    def read(self, call: Call, reading: Reading, index: Indices, arguments: dict[str, Any]) -> Any:
        """Where an index is made in forward and the axis loses entries, another constant takes its place."""
        if np.array_equal(index, reading.index):
            return call.target
        name = f"_index_of_{call.outputs[0].name}{'_in_training' * self.capture.training}"
        self.root.register_buffer(name, torch.from_numpy(index).to(self.device), persistent=False)
        base = self.program.node(reading.base)
        arguments.clear()
        arguments.update(self=base, indices=[None] * reading.dim + [self.graph.create_node("get_attr", name)])
        return torch.ops.aten.index.Tensor

    def follow_training(self, call: Call, arguments: dict[str, Any]) -> None:
        """Dropout and batch norm ask the module that they came from whether it trains."""
        module = call.where.module
        for flag in FLAGS:
            # What is told the same in either mode does not follow it.
            follows = arguments.get(flag) is self.capture.training
            if follows and (call.where, call.target) not in self.capture.steady and module in self.names:
                prefix = f"{module}." if module else ""
                arguments[flag] = self.graph.create_node("get_attr", f"{prefix}training")
                counter = f"{prefix}num_batches_tracked"
                if call.target is torch.ops.aten.batch_norm.default and counter in self.counters:
                    counted = self.graph.create_node("get_attr", counter)
                    self.graph.call_function(count_batch, (counted, arguments[flag]))

    # -- sizes that depend on the inputs -------------------------------------------------------

    def make_dynamic(self, index: int, call: Call, arguments: dict[str, Any]) -> None:
        """A number of unknown origin that changes with the inputs' sizes is read from the tensors."""
        if not self.others:
            return
        twins = [other.calls[index] for other in self.others]
        bounds = [bind(each.target, each.args, each.kwargs) for each in (call, *twins)]
        tensors = [
            [*each.tensors(), *capture.inputs]
            for each, capture in zip((call, *twins), (self.capture, *self.others), strict=True)
        ]
        for name, value in arguments.items():
            if name not in call.expressions and not isinstance(value, fx.Node):
                arguments[name] = self.dynamic(value, [bound.get(name) for bound in bounds], tensors)

    def dynamic(self, value: Any, runs: list[Any], tensors: list[list[Value]]) -> Any:
        """`runs` is what the argument was in each run, the first of them the one that is rewritten."""
        if isinstance(value, list | tuple) and all(isinstance(r, list | tuple) and len(r) == len(value) for r in runs):
            items = [self.dynamic(v, list(r), tensors) for v, r in zip(value, zip(*runs, strict=True), strict=True)]
            return value if all(a is b for a, b in zip(items, value, strict=True)) else items
        if not is_open(value, runs):
            return value
        sizes = open_sizes(tensors)
        for (whole, axis), numbers in sizes.items():
            if list(numbers) == runs and self.shape(whole)[axis] == value:
                return self.size(whole, axis)
        kept = {(whole, axis): each for (whole, axis), each in sizes.items() if self.shape(whole)[axis] == each[0]}
        result: Any = value
        for whole, axis in factors_of(runs, kept) or ():
            product = self.graph.call_function(operator.mul, (result, self.size(whole, axis)))
            result = self.graph.call_function(operator.floordiv, (product, whole.shape[axis]))
        return result

    def size(self, value: Value, axis: int) -> fx.Node:
        return self.graph.call_function(torch.ops.aten.sym_size.int, (self.program.node(value), axis))

    def shape(self, value: Value) -> Shape:
        return value.shape if self.rewrite is None else self.rewrite.shape(value)


# -- numbers of unknown origin -----------------------------------------------------------------------

OpenSizes = Mapping[tuple[Value, int], tuple[int, ...]]


def is_open(value: Any, runs: Sequence[Any]) -> bool:
    """A whole number that was not the same in all runs."""
    return type(value) is int and all(type(run) is int for run in runs) and len(set(runs)) > 1


def open_sizes(tensors: Sequence[Sequence[Value]]) -> OpenSizes:
    """Every size at hand that was not the same in all runs, with what it was in each."""
    found: dict[tuple[Value, int], tuple[int, ...]] = {}
    for values in zip(*tensors, strict=True):
        for axis, numbers in enumerate(zip(*(value.shape for value in values), strict=True)):
            if len(set(numbers)) > 1:
                found[values[0], axis] = numbers
    return found


def factors_of(runs: Sequence[int], sizes: OpenSizes) -> list[tuple[Value, int]] | None:
    """The sizes that a number is a product with: for each run in which it differs, one that differs there alone."""
    found: list[tuple[Value, int]] = []
    for which, run in enumerate(runs):
        if run == runs[0]:
            continue
        for place, numbers in sizes.items():
            varies = [k for k, number in enumerate(numbers) if number != numbers[0]]
            if varies == [which] and run * numbers[0] == runs[0] * numbers[which]:
                found.append(place)
                break
        else:
            return None
    return found


def unfollowed(capture: Capture, others: Sequence[Capture]) -> Iterator[str]:
    """The operators with numbers that change with the inputs' sizes in a way that a graph does not know."""
    for index, call in enumerate(capture.calls) if others else ():
        twins = [other.calls[index] for other in others]
        if not hasattr(call.target, "_schema"):
            continue
        bounds = [bind(each.target, each.args, each.kwargs) for each in (call, *twins)]
        names = [name for name in bounds[0] if name not in call.expressions]
        opened = [runs for name in names for runs in numbers_of([bound.get(name) for bound in bounds])]
        if not opened:
            continue
        records = zip((call, *twins), (capture, *others), strict=True)
        sizes = open_sizes([[*each.tensors(), *recorded.inputs] for each, recorded in records])
        if any(tuple(runs) not in sizes.values() and factors_of(runs, sizes) is None for runs in opened):
            yield f"{call.target} at {call.where}"


def numbers_of(runs: Sequence[Any]) -> Iterator[Sequence[int]]:
    """The open numbers in an argument, each as it was in all runs."""
    if all(isinstance(run, list | tuple) and len(run) == len(runs[0]) for run in runs):
        for items in zip(*runs, strict=True):
            yield from numbers_of(items)
    elif is_open(runs[0], runs):
        yield runs


def number_of(model: nn.Module, leaf: Leaf) -> int:
    """A number as the original has it."""
    return number_at(model, leaf) if isinstance(leaf, Attribute) else leaf.value.shape[leaf.axis]


@fx.has_side_effect
def count_batch(counter: Tensor, is_training: bool) -> None:
    """What a batch norm does beside the operator."""
    if is_training:
        counter.add_(1)


def is_impure(node: fx.Node) -> bool:
    target = node.args[1] if node.target is under_autocast else node.target
    return node.op in ("placeholder", "output") or node.target is count_batch or writes(target)


def tree(model: nn.Module, edits: Changes | None = None) -> nn.Module:
    """Bare modules under the names of the model's own, with its parameters, or smaller ones; tied ones stay tied."""
    for name in ("graph", "code", "in_training"):
        if any(name in vars(model)[store] for store in ("_modules", "_parameters", "_buffers")):
            raise UnsupportedModel(
                f"the model calls something {name!r}, a name that the module of a graph takes for itself"
            )
    root = nn.Module()
    root.training = model.training
    for name, module in model.named_modules(remove_duplicate=False):
        if name:
            place = root
            *outer, last = name.split(".")
            for part in outer:
                place = getattr(place, part)
            bare = nn.Module()
            bare.training = module.training
            place.add_module(last, bare)
    made: dict[int, Tensor] = {}
    parameters = {id(parameter) for parameter in model.parameters()}
    state = model.state_dict(keep_vars=True)
    for name, tensor in stored(model):
        small = made.get(id(tensor)) if edits is not None else tensor
        if small is None and edits is not None:
            data = edited(tensor, edits.get(name, ()))
            small = nn.Parameter(data, requires_grad=tensor.requires_grad) if id(tensor) in parameters else data
            made[id(tensor)] = small
        owner_name, _, last = name.rpartition(".")
        owner = root.get_submodule(owner_name) if owner_name else root
        if isinstance(small, nn.Parameter):
            owner.register_parameter(last, small)
        else:
            owner.register_buffer(last, small, persistent=name in state)
    return root


def other_runs(model: nn.Module, inputs: Arguments, capture: Capture) -> list[Capture]:
    """The same model on other batch and image sizes, where it does the same there."""
    return runs_elsewhere(model, inputs, capture)[0]


def runs_elsewhere(model: nn.Module, inputs: Arguments, capture: Capture) -> tuple[list[Capture], list[str]]:
    """The model on other batch and image sizes: recordings of the same operators, and the sizes that give others."""

    def resized(axes: Sequence[int], factor: float) -> Arguments:
        def resize(tensor: Tensor) -> Tensor:
            shape = [int(size * factor) if axis in axes else size for axis, size in enumerate(tensor.shape)]
            return torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)

        return map_tensors(inputs[0], resize), map_tensors(inputs[1], resize)

    found: list[Capture] = []
    elsewhere: list[str] = []
    tried: list[Sequence[int]] = []
    rank = max((tensor.dim() for tensor in tensors_in(inputs)), default=0)
    for axes, factor in (((0,), 3), ((1,), 2), ((2,), 1.5), ((3,), 1.5), ((4,), 1.5), ((2, 3), 2)):
        if axes[0] >= rank:
            continue
        try:
            with within("other sizes"):
                other = record_like(capture, model, resized(axes, factor))
        except (Stopped, CaptureError):
            continue
        if len(axes) > 1 and all((axis,) in tried for axis in axes):
            continue  # one axis at a time says more
        if [call.target for call in other.calls] == [call.target for call in capture.calls]:
            found.append(other)
            tried.append(axes)
        else:
            elsewhere.append(" and ".join(f"axis {axis}" for axis in axes))
    return found, elsewhere
