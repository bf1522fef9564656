"""Numbers of a graph that follow the sizes of its inputs: expressions, computed when the graph runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from structprune.algebra.axis import Dim, variables
from structprune.frontends.torch.record.expression import (
    OPERATIONS,
    Attribute,
    Expression,
    Leaf,
    Size,
    Term,
    evaluate,
    leaves,
)
from structprune.frontends.torch.record.program import Program
from structprune.frontends.torch.write.proportions import shares_of
from structprune.graph.graph import Value
from structprune.passes.rewrite import Rewrite


class Following:
    """Writes expressions into a program.

    `old` are the numbers of the model's objects; `new` those that the smaller graph needs, where they can be told.
    """

    def __init__(
        self, program: Program, rewrite: Rewrite | None, old: Callable[[Attribute], int], new: Mapping[Attribute, int]
    ) -> None:
        self.program = program
        self.rewrite = rewrite
        self.old = old
        self.new = new
        self.held: Callable[[Attribute], int] = old
        self.widths: set[Dim] = set()
        if rewrite is not None:
            solution = rewrite.solution
            values = solution.graph.parameters.values()
            self.widths = {dim for value in values for axis in solution.expanded(value) for dim in variables(axis)}
        self._sizes: dict[Size, fx.Node] = {}

    def written(self, given: Any, expression: Expression) -> Any:
        """What stands for a number that is `given` on the example: itself, where it follows no size of an input."""
        open_sizes = [leaf for leaf in leaves(expression) if isinstance(leaf, Size) and self.is_open(leaf)]
        if not open_sizes or isinstance(given, bool) or not isinstance(given, int | float):
            return given
        # What stays the same has the numbers it had; what changes, those that make it change.
        self.held = self.old
        if self.value(expression) == given:
            return self.node(expression)
        self.held = lambda at: self.new[at] if at in self.new else self.old(at)
        here = self.value(expression)
        if here == given:
            return self.node(expression)
        # The expression holds an old width. As a product it is right up to a factor.
        is_product = shares_of(expression, lambda leaf: None) is not None
        if not is_product or not isinstance(here, int) or not isinstance(given, int) or here == 0:
            return given
        call = self.program.graph.call_function
        whole = call(OPERATIONS["mul"], (self.node(expression), given))
        return call(OPERATIONS["floordiv"], (whole, here))

    def value(self, expression: Expression) -> int | float | None:
        try:
            return evaluate(expression, self.number)
        except (ArithmeticError, ValueError):
            return None

    def number(self, leaf: Leaf) -> int:
        return self.held(leaf) if isinstance(leaf, Attribute) else self.shape(leaf.value)[leaf.axis]

    def shape(self, value: Value) -> tuple[int, ...]:
        is_solved = self.rewrite is not None and value in self.rewrite.solution.axes
        return self.rewrite.shape(value) if is_solved and self.rewrite is not None else value.shape

    def is_open(self, leaf: Size) -> bool:
        """A size that is not that of a parameter."""
        value = leaf.value
        if value.parameter is not None or value not in self.program.nodes:
            return False
        if self.rewrite is None or value not in self.rewrite.solution.axes:
            return True
        # An axis that is held has no variable left to tell whether it comes from an input: it may.
        dims = list(variables(self.rewrite.solution.expanded(value)[leaf.axis]))
        return not dims or any(dim not in self.widths for dim in dims)

    def node(self, expression: Expression) -> Any:
        match expression:
            case Attribute():
                return self.held(expression)
            case Size():
                return self.size(expression) if self.is_open(expression) else self.number(expression)
            case Term(how, operands):
                made = tuple(map(self.node, operands))
                if any(isinstance(each, fx.Node) for each in made):
                    return self.program.graph.call_function(OPERATIONS[how], made)
                return OPERATIONS[how](*made)
        return expression

    def size(self, leaf: Size) -> fx.Node:
        if leaf not in self._sizes:
            arguments = (self.program.node(leaf.value), leaf.axis)
            self._sizes[leaf] = self.program.graph.call_function(torch.ops.aten.sym_size.int, arguments)
        return self._sizes[leaf]


def written_in(following: Following, arguments: dict[str, Any], expressions: Mapping[str, Any]) -> None:
    """Put expressions in the places of the numbers that they make."""
    for name, expression in expressions.items():
        given = arguments.get(name)
        if not isinstance(expression, tuple):
            arguments[name] = following.written(given, expression) if expression is not None else given
        elif isinstance(given, list | tuple) and len(given) == len(expression):
            entries = zip(given, expression, strict=True)
            arguments[name] = [each if made is None else following.written(each, made) for each, made in entries]
