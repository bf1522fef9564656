"""The module class of results that are graphs."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.fx.graph import PythonCode

from structprune.frontends.torch.record import private
from structprune.frontends.torch.record.record import rebuilt_like


@dataclass(frozen=True, slots=True)
class Reference:
    """A node by its name, where nodes themselves cannot go."""

    name: str


class ShrunkGraph(fx.GraphModule):
    """A graph module that keeps the whole tree of modules it was given, used by the graph or not.

    fx itself keeps what the graph reads: counters, tied names and each module's mode would be lost.
    Where the model computes something else in training, a second graph over the same tree takes over in
    that mode: `graph` and `code` are those of the mode.
    """

    in_training: fx.Graph | None = None

    def __init__(self, root: nn.Module, class_name: str, graph: fx.Graph, in_training: fx.Graph | None = None) -> None:
        super().__init__(root, graph, class_name)
        for store in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            self.__dict__[store] = root.__dict__[store]
        self.training = root.training
        if in_training is not None:
            self.in_training = in_training
            self.recompile()

    @property
    def graph(self) -> fx.Graph:
        return self._graph if self.in_training is None or not self.training else self.in_training

    @graph.setter
    def graph(self, graph: fx.Graph) -> None:
        if self.in_training is not None and self.training:
            self.in_training = graph
            self.recompile()
        else:
            fx.GraphModule.graph.fset(self, graph)  # type: ignore[attr-defined]

    @property
    def code(self) -> str:
        return self._code if self.in_training is None or not self.training else self._code_in_training

    def bare(self) -> nn.Module:
        """The tree of modules without the graph."""
        root = nn.Module()
        for store in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training"):
            root.__dict__[store] = self.__dict__[store]
        return root

    def recompile(self) -> PythonCode:
        """Make the code anew; where there are two graphs, the mode chooses between their codes."""
        code = super().recompile()
        if self.in_training is None:
            return code
        # The code of a graph is a function of the tree: it serves here as well as in a module of its own.
        other = fx.GraphModule(self.bare(), self.in_training)
        evaluates, trains = type(self).forward, type(other).forward

        @functools.wraps(evaluates)
        def forward(self: ShrunkGraph, *args: Any, **kwargs: Any) -> Any:
            return (trains if self.training else evaluates)(self, *args, **kwargs)

        type(self).forward = forward
        self._code_in_training = other.code
        return code

    def __deepcopy__(self, memo: dict[int, Any]) -> ShrunkGraph:
        graphs = [copied(graph) for graph in self.graphs()]
        return ShrunkGraph(copy.deepcopy(self.bare(), memo), type(self).__name__, *graphs)

    def __reduce__(self) -> Any:
        return rebuilt, (self.bare(), type(self).__name__, *map(written, self.graphs()))

    def graphs(self) -> list[fx.Graph]:
        return [self._graph] if self.in_training is None else [self._graph, self.in_training]


@dataclass(frozen=True, slots=True)
class OperatorName:
    """An operator by its name: it itself cannot be pickled."""

    name: str

    def operator(self) -> Any:
        namespace, packet, overload = self.name.split(".")
        return getattr(getattr(getattr(torch.ops, namespace), packet), overload)


def operator_name(target: Any) -> Any:
    return OperatorName(str(target)) if isinstance(target, private.OpOverload) else target


def copied(graph: fx.Graph) -> fx.Graph:
    result = fx.Graph()
    result.output(result.graph_copy(graph, {}))
    return result


def written(graph: fx.Graph) -> list[Any]:
    """A graph as data that can be pickled."""

    def plain(argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return Reference(argument.name)
        if isinstance(argument, list | tuple):
            return rebuilt_like(argument, map(plain, argument))
        if isinstance(argument, dict):
            return {key: plain(item) for key, item in argument.items()}
        return operator_name(argument)

    return [(n.op, n.name, operator_name(n.target), plain(n.args), plain(n.kwargs)) for n in graph.nodes]


def rebuilt(root: nn.Module, class_name: str, *graphs: list[Any]) -> ShrunkGraph:
    """The graph module that was taken apart for pickle."""
    return ShrunkGraph(root, class_name, *map(read, graphs))


def read(nodes: list[Any]) -> fx.Graph:
    graph = fx.Graph()
    known: dict[str, fx.Node] = {}

    def restored(argument: Any) -> Any:
        if isinstance(argument, Reference):
            return known[argument.name]
        if isinstance(argument, OperatorName):
            return argument.operator()
        if isinstance(argument, list | tuple):
            return rebuilt_like(argument, map(restored, argument))
        if isinstance(argument, dict):
            return {key: restored(item) for key, item in argument.items()}
        return argument

    for op, name, target, args, kwargs in nodes:
        known[name] = graph.create_node(op, restored(target), restored(args), restored(kwargs), name)
    return graph
