"""Keep the user's own class: its parameters smaller, the numbers that its code passes on as sizes solved for.

What the code asks of the choice is known beforehand (`constraints`). A copy of the model with smaller parameters and
new numbers is recorded again and compared with the rewritten graph, call by call. Where they part all the same, the
widths at fault are named.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from torch import nn

from structprune.algebra.axis import Dim
from structprune.errors import CaptureError
from structprune.frontends.torch.read.lower import lower
from structprune.frontends.torch.record.expression import Attribute, Size, leaves
from structprune.frontends.torch.record.record import Arguments, Capture, Stopped
from structprune.frontends.torch.record.result import first_said_otherwise
from structprune.frontends.torch.record.symbols import ALL_PLAIN, set_numbers
from structprune.frontends.torch.record.torchs import is_torchs, passed_on, true_sizes
from structprune.frontends.torch.record.training import record_like, touched
from structprune.frontends.torch.record.tree import modules_of, paths_of
from structprune.frontends.torch.write.attention import fit_attention
from structprune.frontends.torch.write.compare import Comparison, Difference
from structprune.frontends.torch.write.constraints import Code, held_at, values_of
from structprune.frontends.torch.write.equations import changes_of, solve
from structprune.frontends.torch.write.module import small_copy
from structprune.graph.edit import Changes, by_name
from structprune.graph.graph import Op
from structprune.passes.propagate import Solution, extended
from structprune.passes.rewrite import Rewrite

Numbers = Mapping[Attribute, int]


@dataclass(frozen=True, slots=True)
class Misfit:
    """Why a class cannot take a choice, and the widths at fault."""

    reason: str
    dims: Mapping[Dim, str]


class Adapter:
    """A model's class, and what it can take."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Arguments,
        captures: Sequence[Capture],
        solution: Solution,
        training: Callable[[], Capture | None],
    ) -> None:
        self.model = model
        self.training = training
        self.inputs = inputs
        self.captures = captures
        self.solution = solution
        self.ops = solution.graph.ops
        self.code = Code(model, captures, solution)
        self.types = {name: type(module) for module, name in modules_of(model).items()}

    def fit(self, rewrite: Rewrite) -> Numbers | Misfit:
        """The numbers with which the model keeps its class: solve, build, record again, compare."""
        equations = list(chain.from_iterable(self.code.equations.values()))
        numbers, broken = solve(equations, rewrite, self.code.old)
        if broken:
            blamed = ((each, dim) for each in broken for dim in self.code.blamed(each, rewrite.kept))
            return Misfit(str(broken[0]), {dim: held_at(each.op, str(each)) for each, dim in blamed})
        trial = self.mended(rewrite, by_name(rewrite.edits()), numbers, is_filled=self.captures[0].is_real)
        difference, cause = self.check(trial, rewrite)
        if difference is not None:
            if difference.is_said:
                return Misfit(difference.problem, self.converted(rewrite))
            op = self.ops[min(difference.index, len(self.ops) - 1)]
            return Misfit(f"{op}: {cause or difference.problem}", self.blamed(op, difference, rewrite))
        wrong = self.wrong_in_training(trial, rewrite)
        return Misfit(next(iter(wrong.values())), wrong) if wrong else numbers

    def mended(self, rewrite: Rewrite, edits: Changes, numbers: Numbers, is_filled: bool = True) -> nn.Module:
        """A copy of the model as the rewrite wants it."""
        small = small_copy(self.model, edits, is_filled)
        set_numbers(small, numbers)
        for module in modules_of(small):
            true_sizes(module)
        self.tell_norms(small, rewrite)
        self.tell_torchs(small, rewrite)
        fit_attention(small, self.model, rewrite, self.captures[0].aliases)
        return small

    def tell_norms(self, small: nn.Module, rewrite: Rewrite) -> None:
        """A norm without parameters keeps its width in nothing but an attribute."""
        for op in self.ops:
            x = op.inputs[0] if op.kind in ("batch_norm", "instance_norm") else None
            module = None if x is None else small.get_submodule(op.where.module)
            if x is not None and len(x.shape) > 1 and isinstance(module, nn.modules.batchnorm._NormBase):
                module.num_features = rewrite.shape(x)[1]

    def tell_torchs(self, small: nn.Module, rewrite: Rewrite) -> None:
        """Modules of torch itself hand these on as they are, however they were recorded."""
        modules = dict(paths_of(small))
        for op in self.ops:
            module = modules[op.where.module]
            names = passed_on(module) if op.places is not None and is_torchs(module) else ()
            for name, value in changes_of(op, rewrite).items() if names else ():
                if name in names and value != getattr(module, name):
                    setattr(module, name, tuple(value) if isinstance(value, list) else value)

    def check(self, small: nn.Module, rewrite: Rewrite) -> tuple[Difference | None, str]:
        """The first difference in any mode that was recorded."""
        start = 0
        for capture in self.captures:
            ops = self.ops[start : start + len(capture.calls)]
            difference, cause = self.check_mode(small, Comparison(rewrite, ops, capture))
            if difference is not None:
                return replace(difference, index=start + difference.index), cause
            start += len(ops)
        return None, ""

    def check_mode(self, small: nn.Module, comparison: Comparison) -> tuple[Difference | None, str]:
        try:
            # On plain numbers, as the code will run.
            after = record_like(comparison.before, small, self.inputs, ALL_PLAIN)
        except Stopped as stopped:
            found = comparison.first_difference(stopped.calls, stopped.inputs, stopped.constants)
            cause = f"{type(stopped.cause).__name__}: {stopped.cause}{stopped.place}"
            return found or Difference(comparison.next_index, cause, {}, {}), cause
        found = comparison.first_difference(after.calls, after.inputs, after.constants, after.outputs)
        if found is None and not comparison.same_outputs(after):
            found = Difference(len(comparison.ops), "other outputs", {}, {})
        said = self.said_otherwise(comparison.before, after) if found is None else ""
        return (Difference(len(comparison.ops), said, {}, {}, is_said=True) if said else found), said

    def said_otherwise(self, before: Capture, after: Capture) -> str:
        """What the result says beside its tensors that is not the same; times and the like never are."""
        found = first_said_otherwise(before.said, after.said, before.reads_data)
        if not found:
            return ""
        again = record_like(before, self.model, self.inputs, ALL_PLAIN)
        return "" if first_said_otherwise(before.said, again.said, before.reads_data) else found

    def wrong_in_training(self, small: nn.Module, rewrite: Rewrite) -> dict[Dim, str]:
        """What is cut may mean something else in training: the widths at fault."""
        training = self.training()
        if training is None:
            return {}
        wider = extended(self.solution, lower(training))
        cut = {dim: f"in training, {why}" for dim, why in touched(self.solution, wider).items() if dim in rewrite.kept}
        if cut:  # it is held or divided further there: the two cannot be compared
            return {} if self.runs_in_training(small, training) else cut
        ops = wider.graph.ops[-len(training.calls) :]
        comparison = Comparison(Rewrite(wider, rewrite.kept), ops, training)
        difference, cause = self.check_mode(small, comparison)
        if difference is None:
            return {}
        op = ops[min(difference.index, len(ops) - 1)]
        axes = (axis for value in values_of(op) for axis in wider.expanded(value))
        dims = [leaf for axis in axes for leaf in wider.system.leaves(axis) if leaf in rewrite.kept]
        return dict.fromkeys(dims or rewrite.kept, f"in training, {held_at(op, cause or difference.problem)}")

    def runs_in_training(self, small: nn.Module, training: Capture) -> bool:
        try:
            after = record_like(training, small, self.inputs, ALL_PLAIN)
        except (Stopped, CaptureError):
            return False
        return [value.shape for value in after.outputs] == [value.shape for value in training.outputs]

    # -- what stays whole ----------------------------------------------------------------------

    def blamed(self, op: Op, difference: Difference, rewrite: Rewrite) -> dict[Dim, str]:
        """What the operators of this line got from changed widths, in all modules of the class."""
        reason = held_at(op, difference.problem)
        alike = [each for each in self.ops if self.likeness(each) == self.likeness(op)]
        near = [each for each in self.ops if each.where.module == op.where.module]
        found = [dim for each in alike for dim in self.changed(each, rewrite)]
        found = found or [dim for each in near for dim in self.changed(each, rewrite)]
        return dict.fromkeys(found, reason)

    def converted(self, rewrite: Rewrite) -> dict[Dim, str]:
        """The widths that the code turned into numbers of which nothing says where they come from."""
        given = (each for capture in self.captures for each, _ in (*capture.integers, *capture.floats))
        axes = (self.code.axis_of(leaf) for each in given for leaf in leaves(each) if isinstance(leaf, Size))
        dims = (dim for axis in axes if axis for dim in self.solution.system.leaves(axis))
        return dict.fromkeys((dim for dim in dims if dim in rewrite.kept), "the model's result follows from its size")

    def changed(self, op: Op, rewrite: Rewrite) -> list[Dim]:
        values = [value for value in values_of(op) if value.parameter is None]
        axes = (axis for value in values for axis in self.solution.expanded(value))
        return [leaf for axis in axes for leaf in self.solution.system.leaves(axis) if leaf in rewrite.kept]

    def likeness(self, op: Op) -> tuple[str, str, object]:
        kind = self.types.get(op.where.module, type(self.model))
        # Torch's own modules have no line of the user's code to themselves: their place in the model stands for it.
        is_torchs = kind.__module__.startswith("torch.nn")
        return op.where.line, op.name, re.sub(r"\d+", "", op.where.module) if is_torchs else kind
