"""The result as a `torch.fx.GraphModule`, for models whose code holds sizes that cannot be mended."""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from structprune.errors import UnsupportedModel
from structprune.frontends.torch.autocast import under_autocast
from structprune.frontends.torch.capture import record
from structprune.frontends.torch.lower import bind
from structprune.frontends.torch.module import new_arguments, sliced, stored
from structprune.frontends.torch.record import Arguments, Call, Capture, Stopped, map_tensors
from structprune.graph import Op, Value
from structprune.passes.rewrite import Rewrite
from structprune.progress import within

TRAINING_FLAGS = ("training", "train")


def build_graph_module(
    model: nn.Module, inputs: Arguments, capture: Capture, ops: Sequence[Op], rewrite: Rewrite
) -> fx.GraphModule:
    """The rewritten graph over a tree of modules that hold the smaller parameters under their old names."""
    return _Builder(model, inputs, capture, ops, rewrite).build()


class _Builder:
    def __init__(
        self, model: nn.Module, inputs: Arguments, capture: Capture, ops: Sequence[Op], rewrite: Rewrite
    ) -> None:
        self.model = model
        self.inputs = inputs
        self.capture = capture
        self.ops = ops
        self.rewrite = rewrite
        self.graph = fx.Graph()
        self.nodes: dict[Value, fx.Node] = {}
        self.root = tree(model, rewrite.edits())
        self.others = other_runs(model, inputs, capture)

    def build(self) -> fx.GraphModule:
        self.placeholders()
        for index, op in enumerate(self.ops):
            self.call(index, op)
        self.graph.output(self.output())
        self.graph.eliminate_dead_code(is_impure_node=is_impure)
        return ShrunkGraph(self.root, self.graph, type(self.model).__name__)

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
                target = f"_{value.name}"
                self.root.register_buffer(target, self.capture.constants[value], persistent=False)
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
        if not call.with_grad and len(call.outputs) == 1 and not is_impure(node):
            node = self.graph.call_function(torch.ops.aten.detach.default, (node,))
        is_single = len(call.outputs) == 1 and returns_one(call)
        for place, value in enumerate(call.outputs):
            self.nodes[value] = node if is_single else self.graph.call_function(operator.getitem, (node, place))

    def mapped(self, structure: Any) -> Any:
        if isinstance(structure, Value):
            return self.node(structure)
        if isinstance(structure, list | tuple):
            return type(structure)(map(self.mapped, structure))
        return structure

    def follow_training(self, call: Call, arguments: dict[str, Any]) -> None:
        """Dropout and batch norm ask the module that they came from whether it trains."""
        for flag in TRAINING_FLAGS:
            # Recorded in eval mode: a flag that was on all the same does not follow the mode.
            if arguments.get(flag) is False and call.where.module in dict(self.model.named_modules()):
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
        if isinstance(structure, list | tuple):
            return type(structure)(map(self.result, structure))
        if structure is None or isinstance(structure, bool | int | float | str):
            return structure
        raise UnsupportedModel(f"the model's result holds a {type(structure).__name__}, which a graph cannot make")


@dataclass(frozen=True, slots=True)
class Reference:
    """A node by its name, where nodes themselves cannot go."""

    name: str


class ShrunkGraph(fx.GraphModule):
    """A graph module that keeps the whole tree of modules it was given, used by the graph or not.

    fx itself keeps what the graph reads: counters, tied names and each module's mode would be lost.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, class_name: str) -> None:
        super().__init__(root, graph, class_name)
        for store in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            self.__dict__[store] = root.__dict__[store]
        self.training = root.training

    def bare(self) -> nn.Module:
        """The tree of modules without the graph."""
        root = nn.Module()
        for store in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training"):
            root.__dict__[store] = self.__dict__[store]
        return root

    def __deepcopy__(self, memo: dict[int, Any]) -> ShrunkGraph:
        graph = fx.Graph()
        graph.output(graph.graph_copy(self.graph, {}))
        return ShrunkGraph(copy.deepcopy(self.bare(), memo), graph, type(self).__name__)

    def __reduce__(self) -> Any:
        def written(argument: Any) -> Any:
            if isinstance(argument, fx.Node):
                return Reference(argument.name)
            if isinstance(argument, list | tuple):
                return type(argument)(map(written, argument))
            if isinstance(argument, dict):
                return {key: written(item) for key, item in argument.items()}
            return operator_name(argument)

        nodes = [
            (node.op, node.name, operator_name(node.target), written(node.args), written(node.kwargs))
            for node in self.graph.nodes
        ]
        return rebuilt, (self.bare(), nodes, type(self).__name__)


@dataclass(frozen=True, slots=True)
class OperatorName:
    """An operator by its name: it itself cannot be pickled."""

    name: str

    def operator(self) -> Any:
        namespace, packet, overload = self.name.split(".")
        return getattr(getattr(getattr(torch.ops, namespace), packet), overload)


def operator_name(target: Any) -> Any:
    return OperatorName(str(target)) if isinstance(target, torch._ops.OpOverload) else target


def rebuilt(root: nn.Module, nodes: list[Any], class_name: str) -> ShrunkGraph:
    """The graph module that was taken apart for pickle."""
    graph = fx.Graph()
    known: dict[str, fx.Node] = {}

    def read(argument: Any) -> Any:
        if isinstance(argument, Reference):
            return known[argument.name]
        if isinstance(argument, OperatorName):
            return argument.operator()
        if isinstance(argument, list | tuple):
            return type(argument)(map(read, argument))
        if isinstance(argument, dict):
            return {key: read(item) for key, item in argument.items()}
        return argument

    for op, name, target, args, kwargs in nodes:
        known[name] = graph.create_node(op, read(target), read(args), read(kwargs), name)
    return ShrunkGraph(root, graph, class_name)


def returns_one(call: Call) -> bool:
    returns = call.target._schema.returns if hasattr(call.target, "_schema") else [None]
    return len(returns) == 1 and (returns[0] is None or "[]" not in str(returns[0].type))


def count_batch(counter: Tensor, is_training: bool) -> None:
    """What a batch norm does beside the operator."""
    if is_training:
        counter.add_(1)


def is_impure(node: fx.Node) -> bool:
    target = node.args[1] if node.target is under_autocast else node.target
    schema = getattr(target, "_schema", None)
    has_effect = node.op in ("placeholder", "output") or node.target is count_batch
    return has_effect or (schema is not None and bool(schema.is_mutable))


def tree(model: nn.Module, edits: Mapping[str, Any]) -> nn.Module:
    """Bare modules under the names of the model's own, with the smaller parameters; tied ones stay tied."""
    for name in ("graph", "code"):
        if any(name in vars(model)[store] for store in ("_modules", "_parameters", "_buffers")):
            raise UnsupportedModel(
                f"the model calls something {name!r}, a name that torch.fx.GraphModule takes for itself"
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
            data = sliced(tensor, edits[name]) if name in edits else tensor.detach().clone()
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
    for axes, factor in (((0,), 3), ((1,), 2), ((2,), 1.5), ((3,), 1.5), ((4,), 1.5), ((2, 3), 2)):
        try:
            with within("other sizes"):
                other = record(model, resized(axes, factor), is_real=False)
        except Stopped:
            continue
        if len(axes) > 1 and all((axis,) in tried for axis in axes):
            continue  # one axis at a time says more
        if [call.target for call in other.calls] == [call.target for call in capture.calls]:
            found.append(other)
            tried.append(axes)
    return found
