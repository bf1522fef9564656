"""What the code of a model asks of the choice of widths, learnt before any is chosen.

Each variable is tried alone: the arguments that change tell which widths an operator was given as sizes. Together with
the expressions that the code gave, these are the equations of `proportions`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn

from structprune.algebra.axis import Axis, Dim, Kept
from structprune.algebra.order import Indices
from structprune.frontends.torch.read.index import makers as makers_in
from structprune.frontends.torch.record.expression import Attribute, Expression, Leaf, Size, leaves
from structprune.frontends.torch.record.record import Capture
from structprune.frontends.torch.record.symbols import number_at
from structprune.frontends.torch.record.torchs import is_torchs
from structprune.frontends.torch.record.tree import modules_of
from structprune.frontends.torch.write.decided import is_decision
from structprune.frontends.torch.write.equations import Equation, changes_of, equations_of, literals_of, solve
from structprune.frontends.torch.write.proportions import (
    Proportions,
    Shares,
    combined,
    eliminated,
    shares_of,
    shares_of_axis,
)
from structprune.graph.graph import Op, Value
from structprune.operators.joining import Split
from structprune.passes.bundle import Tie
from structprune.passes.propagate import Solution
from structprune.passes.rewrite import Rewrite

Probes = dict[Dim, Rewrite]
MOST_TRIES = 12


class Code:
    """The numbers in a model's code, as its recordings show them."""

    def __init__(self, model: nn.Module, captures: Sequence[Capture], solution: Solution) -> None:
        self.model = model
        self.solution = solution
        self.modules = {name: module for module, name in modules_of(model).items()}
        self.captures = captures
        self.ops = solution.graph.ops
        self.converted = {value for capture in captures for _, value in capture.integers}
        self._probes: Probes = {}
        self.equations: dict[Op, list[Equation]] = {}
        # How a constant index is made does not count, only its numbers do.
        makers = {call for capture in captures for call in makers_in(capture.calls, capture.outputs)}
        for op in self.ops:
            is_made = op.source in makers or self.has_own_way(op)
            found = [] if is_made else list(equations_of(op))
            if found:
                self.equations[op] = found

    def has_own_way(self, op: Op) -> bool:
        """Attention modules of torch are fitted as a whole."""
        return isinstance(self.modules.get(op.where.module), nn.MultiheadAttention)

    def is_soft(self, equation: Equation) -> bool:
        """The number may follow from others in a way that was not seen: the recording of the result will tell."""
        module = self.modules.get(equation.op.where.module)
        is_unseen = any(capture.is_real or capture.plain.everything for capture in self.captures)
        is_plain = any(type(module) in capture.plain.modules for capture in self.captures)
        is_torch = module is not None and is_torchs(module)
        return is_unseen or is_plain or is_torch or equation.given in self.converted

    def old(self, leaf: Leaf) -> int:
        if isinstance(leaf, Size):
            return leaf.value.shape[leaf.axis]
        return number_at(self.model, leaf)

    # -- one variable at a time ----------------------------------------------------------------

    def probe(self, dim: Dim) -> Rewrite:
        found = self._probes.get(dim)
        if found is None:
            found = self._probes[dim] = Rewrite(self.solution, {dim: np.arange(dim.size // 2 or 1)})
        return found

    def dims_of(self, op: Op) -> list[Dim]:
        """The variables that can lose indices among those that an operator meets."""
        axes = dict.fromkeys(axis for value in values_of(op) for axis in self.solution.expanded(value))
        found = (leaf for axis in axes if not self.solution.is_held(axis) for leaf in self.solution.system.leaves(axis))
        return [dim for dim in dict.fromkeys(found) if dim.size > 1 and dim not in self.solution.system.frozen]

    def axis_of(self, leaf: Size) -> Axis | None:
        if leaf.value not in self.solution.axes:
            return None
        return self.solution.expanded(leaf.value)[leaf.axis]

    def wanted_shares(self, equation: Equation, changes: dict[Dim, dict[str, Any]]) -> Shares | None:
        """The share that an argument must keep, as exponents of those of widths; None where it is no product."""
        after = {dim: equation.wanted(each) for dim, each in changes.items()}
        moved = {dim: value for dim, value in after.items() if value != equation.given}
        shares: Shares = {}
        for dim, value in moved.items():
            kept = Fraction(self.probe(dim).counts[dim], dim.size)
            is_number = type(value) is int and type(equation.given) is int and equation.given
            ratio = Fraction(value, equation.given) if is_number else None
            if ratio not in (kept, 1 / kept):
                return self.shares_by_axis(equation, after)
            shares[dim] = Fraction(1 if ratio == kept else -1)
        return shares

    def equal_parts(self, op: Op) -> list[Shares]:
        """The shares of the parts that an operator gives, where it is told how many there are or how large each is."""
        if not isinstance(op.operator, Split):
            return []
        axes = [self.solution.expanded(value)[op.operator.dim] for value in op.outputs]
        return [shares_of_axis(axis) for axis in axes if axis.size == axes[0].size]

    def shares_by_axis(self, equation: Equation, after: dict[Dim, Any]) -> Shares | None:
        """An axis of the operator whose size is what the argument must be, whichever variable loses indices."""
        for value in values_of(equation.op):
            for axis in self.solution.expanded(value):
                if axis.size == equation.given and all(
                    self.probe(dim).size(axis) == wanted for dim, wanted in after.items()
                ):
                    return shares_of_axis(axis)
        return None

    # -- all together --------------------------------------------------------------------------

    @cached_property
    def proportions(self) -> Proportions:
        """What is known before anything is chosen."""
        result = Proportions(self.solution.system.frozen)
        system: list[tuple[Shares, str]] = []
        for op in self.ops:
            if not self.has_own_way(op):
                self.read(op, system, result)
        for side, why in (*self.decided(), *self.told()):
            shares = shares_of(side, self.axis_of)
            system.extend([(shares, why)] if shares else [])
            if shares is None:
                axes = (self.axis_of(leaf) for leaf in leaves(side) if isinstance(leaf, Size))
                result.freeze((dim for axis in axes if axis for dim in self.solution.system.leaves(axis)), why)
        for equation, why in sorted(eliminated(system), key=lambda each: is_balanced(each[0])):
            result.require(equation, why)
        self.try_out(result)
        return result

    def decided(self) -> Iterator[tuple[Expression, str]]:
        """What sizes of inputs are compared with: another number would decide in another way."""
        for capture in self.captures:
            for each in capture.compared.values():
                if not is_decision(each, capture):
                    continue
                for side in (each.left, each.right):
                    found = set(leaves(side))
                    if found and all(isinstance(leaf, Attribute) for leaf in found):
                        yield side, f"the code compares sizes of inputs with it at {each.file}:{each.line}"

    def told(self) -> Iterator[tuple[Expression, str]]:
        """The numbers in the model's result."""
        for capture in self.captures:
            for each in capture.told:
                yield each, "the model gives back its size"

    def read(self, op: Op, system: list[tuple[Shares, str]], result: Proportions) -> None:
        known = self.equations.get(op, [])
        dims = self.dims_of(op)
        changes = {dim: changes_of(op, self.probe(dim)) for dim in dims} if op.places is not None else {}
        parts = self.equal_parts(op) if any("*" in each for each in changes.values()) else []
        for part in parts[1:]:
            system.append((combined(parts[0], part, -1) or {}, held_at(op, "asks for equal parts")))
        for dim, each in changes.items():
            for literal in literals_of(op, each, known):
                if not self.is_soft(literal) and not parts:
                    result.freeze([dim], held_at(op, f"{literal.argument}={literal.given}"))
        for equation in known:
            left = shares_of(equation.expression, self.axis_of)
            is_part = bool(parts) and equation.argument == "split_size"
            right = parts[0] if is_part else self.wanted_shares(equation, changes)
            if left is not None and right is not None and (shares := combined(left, right, -1)):
                system.append((shares, held_at(op, f"{equation.argument} is {equation.expression}")))

    def try_out(self, result: Proportions) -> None:
        """Equations that are no products are tried on numbers: where they do not hold, their widths stay whole."""
        generator = np.random.default_rng(0)
        every = [equation for equations in self.equations.values() for equation in equations]
        for _ in range(MOST_TRIES if every else 0):
            kept = self.some_choice(result, generator)
            _, broken = solve(every, Rewrite(self.solution, kept), self.old)
            news = [result.freeze(self.blamed(each, kept), held_at(each.op, str(each.expression))) for each in broken]
            if not any(news):
                return

    def some_choice(self, result: Proportions, generator: np.random.Generator) -> Kept:
        """Every width that may lose indices loses some."""
        dims = {leaf for value in self.solution.graph.parameters.values() for axis in self.solution.expanded(value)
                for leaf in self.solution.system.leaves(axis)}  # fmt: skip
        ties = {dim: tie for tie in result.ties() for dim in tie}
        kept: dict[Dim, Indices] = {}
        for dim in sorted(dims, key=lambda each: each.size):
            if dim.size < 2 or result.is_frozen(dim) or dim in kept:
                continue
            tied = ties.get(dim, (dim,))
            steps = int(np.gcd.reduce([each.size for each in tied]))
            step = int(generator.integers(1, max(steps, 2)))
            kept.update({each: np.arange(each.size * step // steps) for each in tied})
        return kept

    def blamed(self, equation: Equation, kept: Kept) -> Iterator[Dim]:
        """The variables behind an equation that does not hold."""
        yield from (dim for dim in self.dims_of(equation.op) if dim in kept)
        for leaf in leaves(equation.expression):
            axis = self.axis_of(leaf) if isinstance(leaf, Size) else None
            if axis is not None:
                yield from (dim for dim in self.solution.system.leaves(axis) if dim in kept)

    def asked(self) -> tuple[tuple[Tie, ...], dict[Dim, str]]:
        """The widths that keep equal shares, and those that stay whole, each with the reason."""
        found = self.proportions
        ties = tuple(Tie(tie) for tie in found.ties() if not any(map(found.is_frozen, tie)))
        held = [dim for tie in found.ties() for dim in tie if found.is_frozen(dim)]
        frozen = {dim: "tied to a width that stays whole" for dim in held if dim not in self.solution.system.frozen}
        return ties, {**frozen, **found.frozen}


def is_balanced(shares: Shares) -> bool:
    return any(share > 0 for share in shares.values()) and any(share < 0 for share in shares.values())


def held_at(op: Op, what: str) -> str:
    return f"the code at {op.where} holds its size ({what})"


def values_of(op: Op) -> Iterator[Value]:
    return (value for value in (*op.inputs, *op.outputs) if value is not None)
