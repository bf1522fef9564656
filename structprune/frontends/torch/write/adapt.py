"""Keep the user's own class: mend what its code holds of old sizes, and learn which widths it ties.

A copy of the model with smaller parameters is recorded again and compared with the rewritten graph,
call by call. Where they part, one of three things helps, tried in this order for all modules of the
class at fault: attributes further out hold the old size; one number stands for two widths, which
are then tied; the width cannot change in this class, and is frozen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

from torch import nn

from structprune.algebra.axis import Axis, Dim, Product, Sum, unordered
from structprune.errors import UnsupportedRatio
from structprune.frontends.protocol import Choose, Constraints
from structprune.frontends.torch.read.lower import bind
from structprune.frontends.torch.record.record import Arguments, Capture, Stopped
from structprune.frontends.torch.record.training import record_like
from structprune.frontends.torch.write.attention import fit_attention
from structprune.frontends.torch.write.compare import Comparison, Difference
from structprune.frontends.torch.write.literal import (
    changes_of,
    explains,
    fixed_numbers,
    literal_axes,
    literal_sizes,
    number_ratio,
    numbers_in,
    runs_around,
    source,
)
from structprune.frontends.torch.write.module import (
    Edits,
    Unmended,
    by_module,
    fill,
    mend,
    replaced,
    resize,
    restore,
    small_copy,
    unmended,
)
from structprune.graph.graph import Op, Value
from structprune.graph.progress import within
from structprune.operators.reshaping import Split
from structprune.passes.propagate import Solution
from structprune.passes.rewrite import Rewrite
from structprune.passes.select import Tie

ATTEMPTS = 40


@dataclass(slots=True)
class Adapted:
    """The model in its own class, or the reason why it cannot be."""

    rewrite: Rewrite | None
    finish: Callable[[bool], nn.Module] = lambda at_once: nn.Module()
    reason: str = ""


Sized = dict[tuple[str, int], set[int]]


class Adapter:
    """Searches for a choice and for mended attributes with which the model keeps its class."""

    def __init__(self, model: nn.Module, inputs: Arguments, captures: Sequence[Capture], solution: Solution) -> None:
        self.model = model
        self.inputs = inputs
        self.captures = captures
        self.capture = captures[0]
        self.solution = solution
        self.ops = solution.graph.ops
        self.modules = dict(model.named_modules())
        self.types = {name: type(module) for name, module in self.modules.items()}
        self.constraints = Constraints()
        self.widened: set[type] = set()
        self.spared: set[tuple[type, str]] = set()
        self.mends: dict[tuple[str, int], int] = {}
        self.small: nn.Module | None = None
        self.unmended: Unmended = []
        self._moving: dict[Op, tuple[Axis, ...]] = {}
        self._given: tuple[Rewrite | None, dict[Op, list[tuple[int, int]]]] = (None, {})
        self.tried = 0

    def adapt(self, choose: Choose) -> Adapted:
        """Try, learn from the first difference, and try again."""
        self.tie_chunks()
        try:
            first = Rewrite(self.solution, choose(self.constraints))
        except UnsupportedRatio as error:
            if not self.constraints.count:
                raise
            return Adapted(None, reason=f"with its chunks of equal sizes, {error}")
        # Code that is given sizes which change most often holds them in attributes: mend those at once.
        # Where that replaces a number which only looked like a size, begin again and mend one by one.
        eager = self.attempts(choose, first, self.types_given_sizes(first))
        if eager.rewrite is not None or not self.types_given_sizes(first):
            return eager
        self.constraints = Constraints()
        self.tie_chunks()
        return self.attempts(choose, first, set())

    def attempts(self, choose: Choose, rewrite: Rewrite, widened: set[type]) -> Adapted:
        reason, known = "", self.constraints.count
        self.widened, self.spared = widened, set(self.attributes_of_fixed_sizes(rewrite) if widened else ())
        for _ in range(ATTEMPTS):
            if known != self.constraints.count:
                try:
                    rewrite, known = Rewrite(self.solution, choose(self.constraints)), self.constraints.count
                except UnsupportedRatio as error:
                    return Adapted(None, reason=f"{reason}; without the widths it holds, {error}")
            sizes = self.sizes(rewrite)
            self.mends = {key: next(iter(news)) for key, news in sizes.items() if len(news) == 1}
            self.tried += 1
            with within(f"attempt {self.tried}"):
                small = self.copy(rewrite)
                mend(small, self.mends, self.spared)
                fit_attention(small, self.model, rewrite, self.capture.aliases)
                difference, cause = self.check(small, rewrite)
            if difference is None:
                return Adapted(rewrite, partial(self.finish, small, rewrite, self.mends, self.spared))
            op = self.ops[min(difference.index, len(self.ops) - 1)]
            reason = f"{op}: {cause or difference.problem}"
            if not self.learn(difference, op, rewrite):
                break
        return Adapted(None, reason=reason)

    def copy(self, rewrite: Rewrite) -> nn.Module:
        """A small copy: the one of the last attempt in new sizes, unless it has been filled."""
        if self.small is None or self.capture.is_real:
            self.small = small_copy(self.model, Edits.of(rewrite), is_filled=self.capture.is_real)
            self.unmended = unmended(self.small)
            return self.small
        restore(self.unmended)
        resize(self.small, self.model, Edits.of(rewrite))
        return self.small

    def finish(
        self,
        tried: nn.Module,
        rewrite: Rewrite,
        mends: Mapping[tuple[str, int], int],
        spared: set[tuple[type, str]],
        at_once: bool,
    ) -> nn.Module:
        """The copy that was tried, if no time has passed; else a new one: the model may have been trained since."""
        if at_once:
            if not self.capture.is_real:
                fill(tried, self.model, Edits.of(rewrite))
            return tried
        small = small_copy(self.model, Edits.of(rewrite))
        mend(small, mends, spared)
        fit_attention(small, self.model, rewrite, self.capture.aliases)
        return small

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
            after = record_like(comparison.before, small, self.inputs)
        except Stopped as stopped:
            found = comparison.first_difference(stopped.calls, stopped.inputs, stopped.constants)
            cause = f"{type(stopped.cause).__name__}: {stopped.cause}{stopped.place}"
            return found or Difference(comparison.next_index, cause, {}, {}), cause
        found = comparison.first_difference(after.calls, after.inputs, after.constants, after.outputs)
        if found is None and not comparison.same_outputs(after):
            found = Difference(len(comparison.ops), "other outputs", {}, {})
        return found, ""

    # -- sizes in the code ---------------------------------------------------------------------

    def sizes(self, rewrite: Rewrite) -> Sized:
        """For each module and each number that its operators were given as a size: what it becomes."""
        found: Sized = {}
        for op in self.ops:
            for old, new in self.given_sizes(op, rewrite):
                found.setdefault((op.where.module, old), set()).add(new)
            if op.kind in ("batch_norm", "instance_norm") and op.inputs[0] is not None:
                # A norm without parameters keeps its width in nothing but an attribute.
                old, new = (shape[1] for shape in (op.inputs[0].shape, rewrite.shape(op.inputs[0])))
                found.setdefault((op.where.module, old), set()).add(new)
        if self.widened:
            self.widen(found, rewrite)
        return found

    def given_sizes(self, op: Op, rewrite: Rewrite) -> list[tuple[int, int]]:
        """Old and new of each number that an operator was given as a size which can change."""
        if self._given[0] is not rewrite:
            self._given = (rewrite, {})
        found = self._given[1].get(op)
        if found is None:
            found = self._given[1][op] = list(literal_sizes(op, rewrite)) if self.moving(op) else []
        return found

    def types_given_sizes(self, rewrite: Rewrite) -> set[type]:
        """The modules, and the two around each, whose code reshapes to sizes that change."""
        names = {
            op.where.module
            for op in self.ops
            if op.kind in ("reshape", "route", "repeat", "split")
            and any(old != new for old, new in self.given_sizes(op, rewrite))
        }
        return {self.types[name] for inner in names for name in self.around(inner)}

    def around(self, name: str) -> Iterator[str]:
        """A module and the two that hold it."""
        for _ in range(3):
            yield name
            if not name:
                return
            name = name.rpartition(".")[0]

    def attributes_of_fixed_sizes(self, rewrite: Rewrite) -> Iterator[tuple[type, str]]:
        """Sequences (a window, its shift) all of whose numbers the code gives as something that does not change."""
        fixed: dict[str, set[int]] = {}
        for op in self.ops:
            fixed.setdefault(op.where.module, set()).update(fixed_numbers(op, rewrite))
        for inner, numbers in fixed.items():
            for name in self.around(inner) if numbers else ():
                for attribute, value in vars(self.modules[name]).items():
                    held = numbers_in(value)
                    if len(held) > 1 and numbers.issuperset(held):
                        yield self.types[name], attribute

    def widen(self, found: Sized, rewrite: Rewrite) -> None:
        """For modules that literals alone did not mend: the widths of what their operators meet."""
        wider: Sized = {}
        for op in self.ops:
            owners = list(self.owners(op))
            if not owners:
                continue
            # A width that could change and did not speaks against replacing its number.
            pairs = {(axis.size, rewrite.size(axis)) for axis in self.moving(op)} | set(self.given_sizes(op, rewrite))
            for owner in owners:
                for old, new in pairs:
                    wider.setdefault((owner, old), set()).add(new)
        for key, news in wider.items():
            # What a literal says is stronger than what a shape suggests.
            found.setdefault(key, news)

    def moving(self, op: Op) -> tuple[Axis, ...]:
        """The widths that can change among those that an operator meets."""
        found = self._moving.get(op)
        if found is None:
            axes = (axis for value in values_of(op) if value is not None for axis in self.solution.expanded(value))
            found = self._moving[op] = tuple(dict.fromkeys(axis for axis in axes if not self.solution.is_held(axis)))
        return found

    def owners(self, op: Op) -> Iterator[str]:
        """The widened modules around an operator."""
        name = op.where.module
        while True:
            if self.types.get(name) in self.widened:
                yield name
            if not name:
                return
            name = name.rpartition(".")[0]

    # -- learning ------------------------------------------------------------------------------

    def learn(self, difference: Difference, op: Op, rewrite: Rewrite) -> bool:
        """Take the first measure against a difference that is news; False when there is none left."""
        measures = (
            self.spare_attributes,
            self.widen_around,
            self.tie_parts,
            self.tie_literals,
            self.tie_numbers,
            self.freeze,
        )
        return any(measure(difference, op, rewrite) for measure in measures)

    def alike(self, op: Op) -> list[Op]:
        """The operators that the same line of code made, in modules of the same class."""
        return [each for each in self.ops if self.likeness(each) == self.likeness(op)]

    def likeness(self, op: Op) -> tuple[str, str, object]:
        kind = self.types.get(op.where.module, type(self.model))
        # Torch's own modules have no line of the user's code to themselves: their place in the model stands for it.
        is_torchs = kind.__module__.startswith("torch.nn")
        return op.where.line, op.name, re.sub(r"\d+", "", op.where.module) if is_torchs else kind

    def spare_attributes(self, difference: Difference, op: Op, rewrite: Rewrite) -> bool:
        """An attribute that held an old size by chance (a shift, a count of layers) was replaced: leave it alone."""
        call, _ = source(op)
        original = bind(call.target, call.args, call.kwargs)
        for name, given in difference.found.items():
            before, after = numbers_in(original.get(name)), numbers_in(given)
            if before == after or numbers_in(difference.expected.get(name)) != before:
                continue
            wrong = {(b, a) for b, a in zip(before, after, strict=False) if b != a}
            chance = {
                (self.types[owner], attribute): numbers_in(value) == before
                for owner in self.around(op.where.module)
                for attribute, value in vars(self.modules[owner]).items()
                if wrong <= changes_of(numbers_in(value), numbers_in(self.replaced(owner, value)))
                and (self.types[owner], attribute) not in self.spared
            }
            # Where several hold the number, the one that is like the argument is meant.
            meant = [key for key, is_alike in chance.items() if is_alike] or list(chance)
            if len(meant) == 1:
                self.spared.update(meant)
                return True
        return False

    def replaced(self, owner: str, value: Any) -> Any:
        return replaced(value, by_module(self.mends).get(owner, {}))

    def widen_around(self, difference: Difference, op: Op, rewrite: Rewrite) -> bool:
        """Look for attributes on the module at fault and on the two around it."""
        new = {self.types[name] for name in self.around(op.where.module)} - self.widened
        self.widened |= new
        return bool(new)

    def tie_chunks(self) -> None:
        """Code that asks for a number of parts can have no unequal ones: no need to try."""
        for op in self.ops:
            if op.name == "chunk":
                self.tie_equal_parts(op)

    def tie_parts(self, difference: Difference, op: Op, rewrite: Rewrite) -> bool:
        """Parts that the code cuts to equal sizes keep equal counts."""
        return op.kind == "split" and any([self.tie_equal_parts(each) for each in self.alike(op)])

    def tie_equal_parts(self, op: Op) -> bool:
        assert isinstance(op.operator, Split)
        dim = op.operator.dim
        first, *others = (self.solution.expanded(value)[dim] for value in op.outputs)
        return any([self.tie(first, other) for other in others if other.size == first.size])

    def tie_literals(self, difference: Difference, op: Op, rewrite: Rewrite) -> bool:
        """The code derived a size from another width: both keep equal counts."""
        for name, given in difference.found.items():
            axes = literal_axes(op, name, self.solution)
            if axes is None or len(given) != len(axes) or list(given) == list(difference.expected[name]):
                continue
            wrong = next(k for k, (a, b) in enumerate(zip(given, difference.expected[name], strict=True)) if a != b)
            for first, last in runs_around(wrong, len(axes)):
                run = axes[first:last]
                place = self.partner(op, run, given[first:last], rewrite)
                if place is not None and self.tie_alike(op, name, (first, last), place):
                    return True
        return False

    def partner(
        self, op: Op, run: Sequence[Axis], numbers: Sequence[int], rewrite: Rewrite
    ) -> tuple[int, int, int] | None:
        """Where near the operator a width was as large as the run, and now is as large as the code says.

        The place is (distance in operators, which of its values, which axis).
        """
        size, given = prod(axis.size for axis in run), prod(numbers)
        remainder = max(numbers) if len(numbers) > 1 else 1
        if given < 1 or given == prod(rewrite.size(axis) for axis in run):
            return None
        if given == size and any(map(self.solution.is_held, run)):
            return None  # the code's own number; with the batch, say, it is like some other width by chance
        module, here = op.where.module, self.ops.index(op)
        nearest = sorted(range(len(self.ops)), key=lambda index: abs(index - here))
        for index in nearest:
            if not (self.ops[index].where.module + ".").startswith(module + "." if module else ""):
                continue
            for slot, value in enumerate(values_of(self.ops[index])):
                if value is None or size not in value.shape:
                    continue
                for axis, (old, new) in enumerate(zip(value.shape, rewrite.shape(value), strict=True)):
                    # The code may have divided with a remainder.
                    if old == size and 0 <= new - given < remainder:
                        return index - here, slot, axis
        return None

    def tie_alike(self, op: Op, name: str, span: tuple[int, int], place: tuple[int, int, int]) -> bool:
        """Tie the same two widths wherever the same line of code ran."""
        distance, slot, position = place
        learnt = False
        for each in self.alike(op):
            axes, index = literal_axes(each, name, self.solution), self.ops.index(each) + distance
            if axes is None or not 0 <= index < len(self.ops) or len(values_of(self.ops[index])) <= slot:
                continue
            value = values_of(self.ops[index])[slot]
            run = axes[span[0] : span[1]]
            if value is None or len(value.shape) <= position:
                continue
            if value.shape[position] == prod(axis.size for axis in run):
                learnt |= self.tie(Product(tuple(run)), self.solution.expanded(value)[position])
        return learnt

    def tie_numbers(self, difference: Difference, op: Op, rewrite: Rewrite) -> bool:
        """One attribute stands for several widths: they keep equal counts."""
        kinds = {self.types[each.where.module] for each in self.alike(op)}
        widths = self.widths_by_module(kinds)
        learnt = False
        for owner, by_size in widths.items():
            for name, value in vars(self.modules[owner]).items():
                if name.startswith("_") or type(value) is not int or value not in by_size:
                    continue
                first, *others = by_size[value]
                if len({rewrite.size(axis) for axis in by_size[value]}) > 1:
                    learnt |= any([self.tie(first, other) for other in others])
        return learnt

    def widths_by_module(self, kinds: set[type]) -> dict[str, dict[int, list[Axis]]]:
        """The different widths that can change, by size, that the operators of some modules meet."""
        found: dict[str, dict[int, list[Axis]]] = {}
        for op in self.ops:
            owner = op.where.module
            if self.types.get(owner) not in kinds:
                continue
            for axis in self.moving(op):
                known = found.setdefault(owner, {}).setdefault(axis.size, [])
                if axis not in known:
                    known.append(axis)
        return found

    def tie(self, a: Axis, b: Axis) -> bool:
        """Equal counts for two axes; True if that is news."""
        a, b = (unordered(self.solution.expand(axis)) for axis in (a, b))
        if a is b:
            return False
        match a, b:
            case (Product(left), Product(right)) | (Sum(left), Sum(right)) if sizes_of(left) == sizes_of(right):
                return any([self.tie(x, y) for x, y in zip(left, right, strict=True)])
            case (Dim(), Dim() | Product()):
                return self.tie_dim(a, b)
            case (Product(), Dim()):
                return self.tie_dim(b, a)
        return self.hold([a, b], "one number in the code stands for it and for another width")

    def tie_dim(self, dim: Dim, axis: Axis) -> bool:
        free = [leaf for leaf in self.solution.system.leaves(axis) if self.is_free(leaf)]
        factors = axis.factors if isinstance(axis, Product) else (axis,)
        moves = next(
            (factor for factor in factors if any(map(self.is_free, self.solution.system.leaves(factor)))), None
        )
        if not self.is_free(dim) or not isinstance(moves, Dim):
            return self.hold([dim, *free], "one number in the code stands for it and for a width that is held")
        # Of a product only the outermost free factor moves: whole heads, at their full width.
        together = Tie(tuple(dict.fromkeys((dim, moves))))
        is_news = len(together.dims) > 1 and together not in self.constraints.ties
        if is_news:
            self.constraints.ties.append(together)
        held = [leaf for leaf in free if leaf is not moves]
        return self.hold(held, "one number in the code stands for its product with another width") or is_news

    def is_free(self, dim: Dim) -> bool:
        return dim not in self.solution.system.frozen and dim not in self.constraints.frozen

    def freeze(self, difference: Difference, op: Op, rewrite: Rewrite) -> bool:
        """What the operators of this line got from changed widths, they cannot get: keep those whole."""
        reason = f"the code at {op.where} holds its size ({difference.problem})"
        ratio = number_ratio(difference)
        learnt = False
        for each in self.alike(op):
            learnt |= self.hold(self.blamed(each, difference, ratio, rewrite), reason)
        return learnt

    def blamed(self, op: Op, difference: Difference, ratio: float | None, rewrite: Rewrite) -> list[Dim]:
        """The variables that made an operator's literals or shapes change."""
        if op.kind == "attention" and difference.problem.startswith("scale="):
            query = op.inputs[0]
            return self.changed_leaves([query], rewrite, last_axis=True)
        leaves = self.changed_leaves(values_of(op), rewrite)
        if ratio is None:
            return leaves
        # A number derived from one width (a scale of 1/sqrt(width)) gives that width away.
        around = [value for each in self.ops if each.where.module == op.where.module for value in values_of(each)]
        for candidates in (leaves, self.changed_leaves(around, rewrite)):
            exact = [leaf for leaf in candidates if explains(ratio, leaf.size / len(rewrite.kept[leaf]))]
            if exact:
                return exact
        return leaves

    def changed_leaves(self, values: Sequence[Value | None], rewrite: Rewrite, last_axis: bool = False) -> list[Dim]:
        axes = [
            axis
            for value in values
            if value is not None and value.parameter is None
            for axis in self.solution.expanded(value)[-1 if last_axis else 0 :]
        ]
        found = (leaf for axis in axes for leaf in self.solution.system.leaves(axis))
        return list(dict.fromkeys(leaf for leaf in found if leaf in rewrite.kept))

    def hold(self, axes: Sequence[Axis], reason: str) -> bool:
        learnt = False
        for axis in axes:
            for leaf in self.solution.system.leaves(axis):
                if self.is_free(leaf):
                    self.constraints.frozen[leaf] = reason
                    learnt = True
        return learnt


def values_of(op: Op) -> tuple[Value | None, ...]:
    return (*op.inputs, *op.outputs)


def sizes_of(axes: Sequence[Axis]) -> list[int]:
    return [axis.size for axis in axes]
