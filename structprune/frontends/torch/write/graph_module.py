"""The result as a `torch.fx.GraphModule`, for models whose code holds sizes that cannot be mended."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from structprune.errors import CaptureError, UnsupportedModel
from structprune.frontends.torch.read.index import renumbered
from structprune.frontends.torch.read.lower import bind
from structprune.frontends.torch.record.autocast import under_autocast
from structprune.frontends.torch.record.record import (
    Arguments,
    Call,
    Capture,
    Reading,
    Stopped,
    map_tensors,
    rebuilt_like,
    tensors_in,
)
from structprune.frontends.torch.record.result import Made, Opaque
from structprune.frontends.torch.record.training import FLAGS, record_like
from structprune.frontends.torch.write.module import Edits, new_arguments, stored
from structprune.frontends.torch.write.shrunk_graph import ShrunkGraph
from structprune.graph.graph import Op, Value
from structprune.graph.progress import within
from structprune.passes.rewrite import Rewrite


def build_graph_module(
    model: nn.Module, inputs: Arguments, captures: Sequence[Capture], ops: Sequence[Op], rewrite: Rewrite
) -> fx.GraphModule:
    """The rewritten graph over a tree of modules that hold the smaller parameters under their old names.

    A second capture is the model in training; `ops` are those of all captures, one after another.
    """
    root = tree(model, Edits.of(rewrite))
    left = iter(ops)
    graphs = [
        _Builder(model, inputs, capture, list(islice(left, len(capture.calls))), rewrite, root).build()
        for capture in captures
    ]
    return ShrunkGraph(root, type(model).__name__, *graphs)


class _Builder:
    def __init__(
        self,
        model: nn.Module,
        inputs: Arguments,
        capture: Capture,
        ops: Sequence[Op],
        rewrite: Rewrite,
        root: nn.Module,
    ) -> None:
        self.model = model
        self.inputs = inputs
        self.capture = capture
        self.ops = ops
        self.rewrite = rewrite
        self.graph = fx.Graph()
        self.nodes: dict[Value, fx.Node] = {}
        self.root = root
        self.names = {name for name, _ in model.named_modules()}
        self.suffix = "_in_training" * capture.training
        self.others = other_runs(model, inputs, capture)

    def build(self) -> fx.Graph:
        self.placeholders()
        for index, op in enumerate(self.ops):
            self.call(index, op)
        self.graph.output(self.output())
        self.graph.eliminate_dead_code(is_impure_node=is_impure)
        return self.graph

    def placeholders(self) -> None:
        """Placeholders named as in the model's own forward; nested inputs are opened inside."""
        args, kwargs = self.inputs
        parameters = list(inspect.signature(self.model.forward).parameters.values())
        positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        named = {
            **{(positional[k] if k < len(positional) else f"argument_{k}"): arg for k, arg in enumerate(args)},
            **kwargs,
        }
        values = iter(self.capture.inputs)
        for name, argument in named.items():
            default = () if name not in kwargs else (None,)
            node = self.graph.placeholder(name, default_value=default[0]) if default else self.graph.placeholder(name)
            self.open(argument, node, values)

    def open(self, argument: Any, node: fx.Node, values: Any) -> None:
        if isinstance(argument, Tensor):
            self.nodes[next(values)] = node
        elif isinstance(argument, Mapping):
            for key, item in argument.items():
                self.open(item, self.graph.call_function(operator.getitem, (node, key)), values)
        elif isinstance(argument, list | tuple):
            for key, item in enumerate(argument):
                self.open(item, self.graph.call_function(operator.getitem, (node, key)), values)

    def node(self, value: Value) -> fx.Node:
        found = self.nodes.get(value)
        if found is None:
            if value.parameter is not None:
                target = value.parameter
            else:
                target = f"_{value.name}{self.suffix}"
                self.root.register_buffer(target, self.capture.constants[value].detach().clone(), persistent=False)
            found = self.nodes[value] = self.graph.get_attr(target)
        return found

    def call(self, index: int, op: Op) -> None:
        call, literals = op.source
        arguments = bind(call.target, call.args, call.kwargs) if hasattr(call.target, "_schema") else None
        target, changes = call.target, new_arguments(call, literals, self.rewrite)
        if "*" in changes:
            target = torch.ops.aten.split_with_sizes.default
            arguments = {
                "self": arguments and arguments["self"],
                "split_sizes": changes["*"],
                "dim": (arguments or {})["dim"],
            }
        elif arguments is not None:
            arguments.update(changes)
            if call.reading is not None and call.reading.stored is None:
                target, arguments = self.read(call, call.reading, arguments)
        if arguments is None:
            args, kwargs = self.mapped(call.args), self.mapped(call.kwargs)
        else:
            self.make_dynamic(index, call, arguments)
            self.follow_training(call, arguments)
            schema = target._schema.arguments
            args = tuple(self.mapped(arguments[a.name]) for a in schema if not a.kwarg_only and a.name in arguments)
            kwargs = {a.name: self.mapped(arguments[a.name]) for a in schema if a.kwarg_only and a.name in arguments}
        if call.region is not None:
            target, args = under_autocast, (call.region, target, *args)
        node = self.graph.call_function(target, args, kwargs)
        is_single = len(call.outputs) == 1 and returns_one(call)
        is_detached = not call.with_grad and not is_impure(node)
        for place, value in enumerate(call.outputs):
            part = node if is_single else self.graph.call_function(operator.getitem, (node, place))
            if is_detached:
                part = self.graph.call_function(torch.ops.aten.detach.default, (part,))
            self.nodes[value] = part

    def read(self, call: Call, reading: Reading, arguments: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Where an index is made in forward and the axis loses entries, another constant takes its place."""
        index = renumbered(reading, call.outputs[0], self.rewrite)
        if np.array_equal(index, reading.index):
            return call.target, arguments
        value, name = Value("index", index.shape), f"_index_of_{call.outputs[0].name}{self.suffix}"
        device = next(self.model.parameters()).device
        self.root.register_buffer(name, torch.from_numpy(index).to(device), persistent=False)
        self.nodes[value] = self.graph.get_attr(name)
        return torch.ops.aten.index.Tensor, {"self": reading.base, "indices": [None] * reading.dim + [value]}

    def mapped(self, structure: Any) -> Any:
        if isinstance(structure, Value):
            return self.node(structure)
        if isinstance(structure, list | tuple):
            return rebuilt_like(structure, map(self.mapped, structure))
        return structure

    def follow_training(self, call: Call, arguments: dict[str, Any]) -> None:
        """Dropout and batch norm ask the module that they came from whether it trains."""
        for flag in FLAGS:
            # What is on in either mode does not follow it.
            follows = arguments.get(flag) is self.capture.training
            if follows and (call.where, call.target) not in self.capture.always_on and call.where.module in self.names:
                prefix = f"{call.where.module}." if call.where.module else ""
                arguments[flag] = self.graph.get_attr(f"{prefix}training")
                counter = f"{prefix}num_batches_tracked"
                if call.target is torch.ops.aten.batch_norm.default and counter in dict(self.model.named_buffers()):
                    self.graph.call_function(count_batch, (self.graph.get_attr(counter), arguments[flag]))

    # -- sizes that depend on the inputs -------------------------------------------------------

    def make_dynamic(self, index: int, call: Call, arguments: dict[str, Any]) -> None:
        """A literal that changes with the inputs' sizes is read from the tensors when the graph runs."""
        if not self.others:
            return
        twins = [other.calls[index] for other in self.others]
        bounds = [bind(each.target, each.args, each.kwargs) for each in (call, *twins)]
        tensors = [
            [*each.tensors(), *capture.inputs]
            for each, capture in zip((call, *twins), (self.capture, *self.others), strict=True)
        ]
        for name, value in arguments.items():
            arguments[name] = self.dynamic(value, [bound.get(name) for bound in bounds], tensors)

    def dynamic(self, value: Any, runs: list[Any], tensors: list[list[Value]]) -> Any:
        """`runs` is what the argument was in each run, the first of them the one that is rewritten."""
        if isinstance(value, list | tuple) and all(isinstance(r, list | tuple) and len(r) == len(value) for r in runs):
            items = [self.dynamic(v, list(r), tensors) for v, r in zip(value, zip(*runs, strict=True), strict=True)]
            return type(value)(items)
        if type(value) is not int or any(type(run) is not int for run in runs) or len(set(runs)) == 1:
            return value
        sizes = self.sizes(tensors)
        for node, new, numbers in sizes:
            if numbers == runs and new == value:
                return self.graph.call_function(torch.ops.aten.sym_size.int, node)
        # A product: for each run in which it differs, a size that differs in that run alone.
        result: Any = value
        for which, run in enumerate(runs):
            if run == runs[0]:
                continue
            for node, new, numbers in sizes:
                varies = [k for k, number in enumerate(numbers) if number != numbers[0]]
                if varies == [which] and run * numbers[0] == runs[0] * numbers[which] and new == numbers[0]:
                    size = self.graph.call_function(torch.ops.aten.sym_size.int, node)
                    whole = self.graph.call_function(operator.mul, (result, size))
                    result = self.graph.call_function(operator.floordiv, (whole, new))
                    break
        return result

    def sizes(self, tensors: list[list[Value]]) -> list[tuple[tuple[fx.Node, int], int, list[int]]]:
        """Every size at hand that is not the same in all runs: its node, its new value, its value in each run."""
        found = []
        for values in zip(*tensors, strict=True):
            for axis, numbers in enumerate(zip(*(value.shape for value in values), strict=True)):
                if len(set(numbers)) > 1:
                    found.append(((self.node(values[0]), axis), self.rewrite.shape(values[0])[axis], list(numbers)))
        return found

    def output(self) -> Any:
        result = self.capture.result
        mapped = self.result(result)
        if self.capture.result_type is not None:
            kind = self.capture.result_type
            return self.graph.call_function(
                kind, (), {k: v for k, v in mapped.items() if isinstance(v, fx.Node | tuple | list)}
            )
        return mapped

    def result(self, structure: Any) -> Any:
        if isinstance(structure, Value):
            return self.node(structure)
        if isinstance(structure, dict):
            return {key: self.result(item) for key, item in structure.items()}
        if isinstance(structure, Made):
            # By a call: not every torch writes a named tuple's class into the code of a graph.
            items = tuple(map(self.result, structure.items))
            return self.graph.call_function(structure.kind, items if hasattr(structure.kind, "_fields") else (items,))
        if isinstance(structure, list | tuple):
            return type(structure)(map(self.result, structure))
        if structure is None or isinstance(structure, bool | int | float | str):
            return structure
        kind = structure.kind if isinstance(structure, Opaque) else type(structure).__name__
        raise UnsupportedModel(f"the model's result holds a {kind}, which a graph cannot make")


def returns_one(call: Call) -> bool:
    returns = call.target._schema.returns if hasattr(call.target, "_schema") else [None]
    return len(returns) == 1 and (returns[0] is None or not isinstance(returns[0].type, torch.ListType))


def count_batch(counter: Tensor, is_training: bool) -> None:
    """What a batch norm does beside the operator."""
    if is_training:
        counter.add_(1)


def is_impure(node: fx.Node) -> bool:
    target = node.args[1] if node.target is under_autocast else node.target
    schema = getattr(target, "_schema", None)
    has_effect = node.op in ("placeholder", "output") or node.target is count_batch
    return has_effect or (schema is not None and bool(schema.is_mutable))


def tree(model: nn.Module, edits: Edits) -> nn.Module:
    """Bare modules under the names of the model's own, with the smaller parameters; tied ones stay tied."""
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
        small = made.get(id(tensor))
        if small is None:
            data = edits.smaller(name, tensor)
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
    """The same model on other batch and image sizes: what differs between the runs depends on sizes."""

    def resized(axes: Sequence[int], factor: float) -> Arguments:
        def resize(tensor: Tensor) -> Tensor:
            shape = [int(size * factor) if axis in axes else size for axis, size in enumerate(tensor.shape)]
            return torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)

        return map_tensors(inputs[0], resize), map_tensors(inputs[1], resize)

    found: list[Capture] = []
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
    return found
