"""The recorded program as a `torch.fx.Graph` of ATen operators.

Each node knows where it came from: `node.meta` holds the recorded call, its values, the form of the result ("val"),
the path of the module and the line of the user's code.
"""

from __future__ import annotations

import linecache
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from structprune.errors import UnsupportedModel
from structprune.frontends.torch.record.autocast import under_autocast
from structprune.frontends.torch.record.expression import Expression
from structprune.frontends.torch.record.record import Call, Capture, rebuilt_like, values_in
from structprune.frontends.torch.record.result import Made, Opaque, Told
from structprune.graph.graph import Value


class Program:
    """A recording, written as a graph.

    `flat`: tensors go in and out one by one, whatever the form of the model's arguments and of its result.
    """

    def __init__(self, capture: Capture, flat: bool = False) -> None:
        self.capture = capture
        self.graph = fx.Graph()
        self.nodes: dict[Value, fx.Node] = {}
        # The nodes of the recorded calls, in order.
        self.calls: list[fx.Node] = []
        self._stacks: dict[str, dict[str, Any]] = {}
        if flat:
            for value in capture.inputs:
                self.known(value, self.graph.placeholder(value.name))
        else:
            self.enter()
        for call in capture.calls:
            self.call(call)
        self.graph.output(tuple(map(self.node, capture.outputs)) if flat else self.output())

    # -- arguments ---------------------------------------------------------------------------------

    def enter(self) -> None:
        """Placeholders named as in the model's own forward; nested inputs are opened inside."""
        args, kwargs = self.capture.arguments
        names = self.capture.argument_names
        for index, argument in enumerate(args):
            name = names[index] if index < len(names) else f"argument_{index}"
            self.open(argument, self.graph.placeholder(name))
        for name, argument in kwargs.items():
            self.open(argument, self.graph.placeholder(name, default_value=None))

    def open(self, argument: Any, node: fx.Node) -> None:
        if isinstance(argument, Made):
            argument = argument.items
        if isinstance(argument, Value):
            self.known(argument, node)
        elif not isinstance(argument, Mapping | list | tuple) or next(values_in(argument), None) is None:
            return
        elif isinstance(argument, Mapping):
            for key, item in argument.items():
                self.open(item, self.graph.call_function(operator.getitem, (node, key)))
        else:
            for key, item in enumerate(argument):
                self.open(item, self.graph.call_function(operator.getitem, (node, key)))

    # -- operators ---------------------------------------------------------------------------------

    def known(self, value: Value, node: fx.Node) -> fx.Node:
        """From here on, the node stands for the value."""
        node.meta["values"] = (value,)
        node.meta["val"] = form_of(self.capture, value)
        self.nodes[value] = node
        return node

    def node(self, value: Value) -> fx.Node:
        found = self.nodes.get(value)
        if found is None:
            found = self.known(value, self.graph.create_node("get_attr", stored_name(self.capture, value)))
        return found

    def mapped(self, structure: Any) -> Any:
        if isinstance(structure, Value):
            return self.node(structure)
        if isinstance(structure, list | tuple):
            return rebuilt_like(structure, map(self.mapped, structure))
        return structure

    def call(self, call: Call) -> None:
        target, args = call.target, tuple(map(self.mapped, call.args))
        kwargs = {name: self.mapped(each) for name, each in call.kwargs.items()}
        if call.region is not None:
            target, args = under_autocast, (call.region, target, *args)
        node = self.graph.create_node("call_function", target, args, kwargs, name=name_of(call))
        where = call.where
        node.meta.update(call=call, values=tuple(call.outputs), module=where.module, line=where.line)
        node.meta["stack_trace"] = stack_trace(where.line)
        node.meta["nn_module_stack"] = self.stack(where.module)
        self.calls.append(node)
        is_detached = not call.with_grad and not writes(call.target)
        if len(call.outputs) != 1 or not returns_one(call):
            node.meta["val"] = tuple(form_of(self.capture, value) for value in call.outputs)
        for place, value in enumerate(call.outputs):
            is_whole = "val" not in node.meta
            part = node if is_whole else self.graph.call_function(operator.getitem, (node, place))
            self.known(value, part)
            if is_detached:
                self.known(value, self.graph.call_function(torch.ops.aten.detach.default, (part,)))

    def stack(self, module: str) -> dict[str, Any]:
        """The path of a module as other passes of fx read it: each module around it, the outermost first."""
        found = self._stacks.get(module)
        if found is None:
            paths = ["", *(module[:at] for at, sign in enumerate(module) if sign == "."), *([module] if module else [])]
            found = {path: (path, self.capture.module_types.get(path, object)) for path in paths}
            self._stacks[module] = found
        return found

    # -- results -----------------------------------------------------------------------------------

    def tell(self, following: Callable[[int | float, Expression], Any]) -> None:
        """Put into the result the numbers that follow the sizes of the inputs."""
        last = next(iter(reversed(self.graph.nodes)))
        with self.graph.inserting_before(last):
            last.args = (self.output(following),)

    def output(self, following: Callable[[int | float, Expression], Any] = lambda given, expression: given) -> Any:
        self.following = following
        mapped: Any = self.result(self.capture.result)
        kind = self.capture.result_type
        if kind is None:
            return mapped
        held = (fx.Node, tuple, list)
        return self.graph.call_function(kind, (), {key: each for key, each in mapped.items() if isinstance(each, held)})

    def result(self, structure: Any) -> Any:
        if isinstance(structure, Value):
            return self.node(structure)
        if isinstance(structure, Told):
            return self.following(structure.value, structure.expression)
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


def inner(node: fx.Node) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """The arguments of an operator, in a region of autocast or not."""
    return (node.args[2:] if node.target is under_autocast else node.args), node.kwargs


def stored_name(capture: Capture, value: Value) -> str:
    """Under which name the module of a graph holds a parameter or a constant."""
    return value.parameter or f"_{value.name}{'_in_training' * capture.training}"


def form_of(capture: Capture, value: Value) -> Tensor:
    """A tensor without data that has the shape, the strides and the type of a value."""
    strides, dtype = capture.strides.get(value), capture.dtypes[value]
    if strides is None:
        return torch.empty(value.shape, dtype=dtype, device="meta")
    return torch.empty_strided(value.shape, strides, dtype=dtype, device="meta")


def stack_trace(line: str) -> str:
    """A line of the user's code in the words of a traceback."""
    file, _, number = line.rpartition(":")
    if not number.isdecimal():
        return ""
    return f'File "{file}", line {number}, in forward\n    {linecache.getline(file, int(number)).strip()}\n'


def name_of(call: Call) -> str:
    return str(getattr(call.target, "_opname", "call"))


def returns_one(call: Call) -> bool:
    returns = call.target._schema.returns if hasattr(call.target, "_schema") else [None]
    return len(returns) == 1 and (returns[0] is None or not isinstance(returns[0].type, torch.ListType))


def writes(target: Any) -> bool:
    """The operator writes into an argument."""
    schema = getattr(target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)
