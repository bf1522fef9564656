"""The rule table with its oracle; and wrong rules, which must make the oracle fail."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import structprune
from structprune.algebra.axis import Product, Sum
from structprune.errors import VerificationError
from structprune.frontends.torch.read import operators  # noqa: F401  registers the entries
from structprune.frontends.torch.read.lower import ENTRIES
from structprune.graph.graph import Op
from structprune.graph.operator import RULES, Meeting, Operand
from structprune.operators.zero import Zero, all_of
from structprune.testing import check
from tests.rows import ROWS, SHUFFLED, Row, attended, axes_of, build, find_op

TOLERANCE = 1e-9  # a share of the largest output, in float64

# Entries that no call can reach: torch has no ATen operator of that name (`pointwise` stands for torch's tag).
# Reached by nothing that torch.ops.aten has: what stands for many operators, and what the recorder itself writes down.
UNREACHABLE = {"pointwise", "structprune::handed_out"}


def cases() -> Iterator[Any]:
    for number, row in enumerate(ROWS):
        for name, each in row.each():
            yield pytest.param(name, each, id=f"{number}-{name}")


@pytest.mark.parametrize(("name", "row"), list(cases()))
def test_row(name: str, row: Row) -> None:
    """The axes are those of the table, and cutting any of them equals zeroing it."""
    model, inputs = build(name, row)
    analysis = check(model, inputs, tolerance=TOLERANCE)
    assert axes_of(analysis, find_op(analysis, name)) == row.axes
    assert all(group.exact for group in analysis.groups) == row.exact
    is_prunable = re.search("[a-z]", row.axes) is not None
    assert bool(analysis.groups) == is_prunable
    if row.why:
        assert row.why in analysis.explain("first.weight")


@pytest.mark.parametrize(("name", "row"), list(cases()))
def test_row_under_a_bare_sum(name: str, row: Row) -> None:
    """What a rule calls zero is zero: a sum behind the operator either freezes the width or loses nothing."""
    model, inputs = build(name, row, is_summed=True)
    analysis = check(model, inputs, tolerance=TOLERANCE)
    found = axes_of(analysis, find_op(analysis, name))
    assert (found == row.axes) == row.zero


def test_every_entry_has_a_row() -> None:
    """A new operator needs a row."""
    entries = {name.removeprefix("aten::") for name in ENTRIES}
    rows = {name for row in ROWS for name, _ in row.each()}
    assert len(entries) > 200
    assert entries - rows - UNREACHABLE == set()
    assert UNREACHABLE & rows == set()


def test_unreachable_entries_are_unreachable() -> None:
    aten = torch.ops.aten
    assert {name for name in UNREACHABLE if hasattr(aten, name) or hasattr(aten, f"{name}_")} == set()


# tests/onnx/test_operators.py holds these.
ONLY_IN_ONNX = {"linear_transposed", "multihead_attention", "quantize", "recurrent_stacked", "resize", "rotary"}


def test_every_rule_is_met() -> None:
    """Each kind of operator that has a rule is in some row, here or in the table of ONNX operators."""
    kinds = set()
    for row in ROWS:
        name = row.names.split()[0]
        model, inputs = build(name, row)
        kinds |= {op.kind for op in structprune.analyze(model, inputs).solution.graph.ops}
    assert set(RULES) - kinds == ONLY_IN_ONNX


# -- wrong rules -----------------------------------------------------------------------------------

Wrong = Callable[[Callable[..., Meeting], Any, Any], Meeting]


@dataclass(frozen=True)
class Mutation:
    """A wrong rule for a kind, and a row that must find it out.

    `wrong` gets the right rule, the operator and its operands.
    """

    what: str
    kind: str
    name: str
    row: Row
    wrong: Callable[..., Meeting]
    is_summed: bool = False


def changed(**fields: Any) -> Callable[..., Meeting]:
    """The right meeting with some of its fields replaced."""

    def wrong(right: Callable[..., Meeting], op: Op, *operands: Any) -> Meeting:
        return replace(right(op, *operands), **fields)

    return wrong


def with_attributes(**attributes: Any) -> Callable[..., Meeting]:
    """The right rule, told other attributes."""

    def wrong(right: Callable[..., Meeting], op: Op, *operands: Any) -> Meeting:
        return right(replace(op, operator=replace(op.operator, **attributes)), *operands)

    return wrong


def keeps_order(right: Callable[..., Meeting], op: Op, x: Operand) -> Meeting:
    return Meeting([x.axes], [x.zero])


def same_part_twice(right: Callable[..., Meeting], op: Op, *operands: Operand) -> Meeting:
    meeting = right(op, *operands)
    first = operands[0].axes[1]
    meeting.outputs = [(operands[0].axes[0], Sum((first, first)), *operands[0].axes[2:])]
    return meeting


def reversed_product(right: Callable[..., Meeting], op: Op, *operands: Operand) -> Meeting:
    meeting = right(op, *operands)
    meeting.equal = [(a, Product(b.factors[::-1]) if isinstance(b, Product) else b) for a, b in meeting.equal]
    return meeting


def reversed_parts(right: Callable[..., Meeting], op: Op, *operands: Operand) -> Meeting:
    meeting = right(op, *operands)
    meeting.equal = [(a, Sum(b.parts[::-1]) if isinstance(b, Sum) else b) for a, b in meeting.equal]
    return meeting


def inverse_order(right: Callable[..., Meeting], op: Op, *operands: Operand) -> Meeting:
    meeting = right(op, *operands)
    meeting.picked = [(taken, axis, index.argsort()) for taken, axis, index in meeting.picked]
    return meeting


WEIGHTS = ((12,),) * 2
MUTATIONS = [
    Mutation("a transpose that keeps the order", "route", "t",
             Row("t", lambda o, x, w: x @ o(w), "", "vector", ((12, 12),)), keeps_order),
    Mutation("a concatenation of the first part twice", "concat", "cat",
             Row("cat", lambda o, x, w: o([x, x @ w], 1), "", "vector", ((12, 12),)), same_part_twice),
    Mutation("a layer norm whose weights are not tied", "layer_norm", "layer_norm",
             Row("layer_norm", lambda o, x, w, b: o(x, [12], w, b), "", "tokens", WEIGHTS), changed(equal=[])),
    Mutation("a layer norm that says it is exact", "layer_norm", "layer_norm",
             Row("layer_norm", lambda o, x, w, b: o(x, [12], w, b), "", "tokens", WEIGHTS), changed(statistics=[])),
    Mutation("a group norm that says it is exact", "group_norm", "group_norm",
             Row("group_norm", lambda o, x, w, b: o(x, 3, w, b), "", "image", WEIGHTS), changed(statistics=[])),
    Mutation("a group norm without groups", "group_norm", "group_norm",
             Row("group_norm", lambda o, x: o(x, 3), "", "image"), changed(equal=[])),
    Mutation("a batch norm whose statistics are not tied", "batch_norm", "batch_norm",
             Row("batch_norm", lambda o, x, m, v: o(x, None, None, m, v.exp(), False, 0.1, 1e-5, False), "", "image",
                 WEIGHTS), changed(equal=[])),
    Mutation("a softmax over a free axis", "route", "softmax",
             Row("softmax", lambda o, x: o(x, 1), ""), changed(frozen=[])),
    Mutation("a sum over entries that are not zero", "reduce", "sum",
             Row("sum", lambda o, x: o(x + 1.0, [1], True), ""), changed(frozen=[])),
    Mutation("a mean that says it is exact", "reduce", "mean",
             Row("mean", lambda o, x: o(x, [1], True), ""), changed(statistics=[])),
    Mutation("a minimum over a free axis", "reduce", "amin",
             Row("amin", lambda o, x: o(x.abs(), [1], True), ""), changed(frozen=[])),
    Mutation("copies in the wrong order", "repeat", "repeat_interleave",
             Row("repeat_interleave", lambda o, x: o(x, 2, 1), ""), with_attributes(is_tiled=True)),
    Mutation("a pixel shuffle with its factors in the wrong order", "rearrange", "pixel_shuffle",
             Row("pixel_shuffle", lambda o, x: o(x, 2), ""),
             with_attributes(notation="... (r s c) h w -> ... c (h r) (w s)")),
    Mutation("a reshape that takes the inner factor for the outer", "reshape", "view",
             Row("view", lambda o, x, w: o(x @ w, [2, 5, 4, 4]).sum(3), "", "tokens", ((12, 16),)), reversed_product),
    Mutation("gates inside of the hidden width", "recurrent", "lstm_cell",
             Row("lstm_cell", lambda o, x, *w: o(x, [x.new_zeros(2, 8), x.new_zeros(2, 8)], *w)[0], "", "vector",
                 ((32, 12), (32, 8), (32,), (32,))), reversed_product),
    Mutation("a pointwise operator that says exp(0) is 0", "pointwise", "exp",
             Row("exp", lambda o, x: o(x), ""), with_attributes(zero=all_of(1)), is_summed=True),
    Mutation("a cosine that is zero where its operand is", "pointwise", "cos",
             Row("cos", lambda o, x: o(x), ""), with_attributes(zero=all_of(1)), is_summed=True),
    Mutation("a minimum that is zero where one operand is", "pointwise", "minimum",
             Row("minimum", lambda o, x: o(x, x.exp() - 2), ""),
             with_attributes(zero=Zero((frozenset((0,)),))), is_summed=True),
    Mutation("a logarithm that has no pole", "pointwise", "log",
             Row("log", lambda o, x: o(x.square()) * x, ""), changed(poles=[], singular=[]), is_summed=True),
    Mutation("a split with its parts in the wrong order", "split", "split",
             Row("split", lambda o, x: torch.cat(o(x, [4, 8], 1)[::-1], 1), ""), reversed_parts),
    Mutation("a slice from the wrong end", "slice", "slice",
             Row("slice", lambda o, x: o(x, 1, 2, 9), ""), reversed_parts),
    Mutation("an attention with free positions and widths", "attention", "scaled_dot_product_attention",
             Row("scaled_dot_product_attention", attended, "", "tokens", ((12, 12),) * 3), changed(equal=[])),
    Mutation("a flip that keeps the order", "pick", "flip",
             Row("flip", lambda o, x: o(x, [1]), ""), keeps_order),
    Mutation("an index read the other way round", "pick", "index_select",
             Row("index_select", lambda o, x, i: o(x, 1, i), "", indices=(SHUFFLED,)), inverse_order),
    Mutation("a roll to the wrong side", "roll", "roll", Row("roll", lambda o, x: o(x, [5], [1]), ""), inverse_order),
    Mutation("a stored index that is not cut", "pick", "index",
             Row("index", lambda o, x, i: o(x, [None, i]), "", indices=(SHUFFLED,)), with_attributes(covers=())),
    Mutation("a stride from the wrong start", "slice", "slice",
             Row("slice", lambda o, x: o(x, 1, 4, 11, 3), ""), with_attributes(starts=(2,))),
    Mutation("a selection of the wrong index", "select", "select",
             Row("select", lambda o, x: o(x, 1, 11)[:, None], ""), reversed_parts),
    Mutation("a depthwise convolution whose weight is not tied", "conv", "conv2d",
             Row("conv2d", lambda o, x, w, b: o(x, w, b, [1], [1], [1], 12), "", "image", ((24, 1, 3, 3), (24,))),
             changed(equal=[])),
]  # fmt: skip


@pytest.mark.parametrize("mutation", [pytest.param(each, id=each.what.replace(" ", "-")) for each in MUTATIONS])
def test_a_wrong_rule_fails(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle accepts the right rule on this model, and refuses the wrong one."""
    model, inputs = build(mutation.name, mutation.row, mutation.is_summed)
    check(model, inputs, tolerance=TOLERANCE)
    right = RULES[mutation.kind]
    monkeypatch.setitem(RULES, mutation.kind, lambda op, *operands: mutation.wrong(right, op, *operands))
    # Torch itself refuses the sizes that some of them lead to.
    with pytest.raises((VerificationError, RuntimeError, IndexError)):
        check(model, inputs, tolerance=TOLERANCE)


def test_a_rule_that_does_not_fit_freezes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A convolution's rule that ignores the groups equates unequal sizes: nothing is learnt from it."""
    row = Row("conv2d", lambda o, x, w, b: o(x, w, b, [1], [1], [1], 3), "", "image", ((6, 4, 3, 3), (6,)))
    model, inputs = build("conv2d", row)
    right = RULES["conv"]
    one_group = with_attributes(groups=1)
    monkeypatch.setitem(RULES, "conv", lambda op, *operands: one_group(right, op, *operands))
    analysis = structprune.analyze(model, inputs)
    assert analysis.groups == []
    assert "the rule for 'conv' does not fit 'conv2d': it equates sizes 12 and 4" in analysis.explain("first.weight")
    with pytest.raises(VerificationError, match="does not fit 'conv2d'"):
        check(model, inputs, tolerance=TOLERANCE)


# -- rules from outside ----------------------------------------------------------------------------


@torch.library.custom_op("structprune_tests::gate", mutates_args=())
def gate(x: Tensor, weight: Tensor) -> Tensor:
    return x.tanh() @ weight


@gate.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[1])


class Gated(nn.Module):
    """An operator of the user's own between two layers, and a part of the model that has none."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 12), nn.Linear(10, 5)
        self.weight = nn.Parameter(torch.randn(12, 10))
        self.beside = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(gate(self.first(x), self.weight)) + self.beside(x)


@pytest.fixture
def gated() -> Iterator[tuple[nn.Module, Tensor]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield Gated().double(), torch.randn(3, 6).double()
    RULES.pop("structprune_tests::gate", None)


def test_an_unknown_operator_freezes_what_it_touches(gated: tuple[nn.Module, Tensor]) -> None:
    model, inputs = gated
    analysis = check(model, inputs, tolerance=TOLERANCE)
    assert [group.name for group in analysis.groups] == ["beside.0.weight:0"]
    for name in ("first.weight", "weight", "last.weight"):
        assert "no rule for 'structprune_tests::gate'" in analysis.explain(name)
    assert "test_rules.py:" in analysis.explain("weight")
    small = structprune.shrink(model, 0.2, inputs, verify="numeric")
    assert small.beside[0].weight.shape[0] < 64
    assert small.first.weight.shape == (12, 6) and small.weight.shape == (12, 10)


def test_a_rule_in_one_line_from_outside(gated: tuple[nn.Module, Tensor]) -> None:
    model, inputs = gated
    structprune.multilinear("structprune_tests::gate", "... i, i o -> ... o")
    analysis = check(model, inputs, tolerance=TOLERANCE)
    assert {group.size for group in analysis.groups} == {12, 10, 64}
    small = structprune.shrink(model, 0.1, inputs, only=["first", "weight"], verify="numeric")
    assert small.weight.numel() < 120 and small.beside[0].weight.shape == (64, 6)
    with pytest.raises(structprune.errors.DuplicateRule):
        structprune.multilinear("structprune_tests::gate", "... i, i o -> ... o")


def test_a_rule_in_plain_code_from_outside(gated: tuple[nn.Module, Tensor]) -> None:
    model, inputs = gated

    @structprune.rule("structprune_tests::gate")
    def gate_rule(op: Op, x: Operand, weight: Operand) -> Meeting:
        """Only the inner width may go."""
        meeting = Meeting([(*x.axes[:-1], weight.axes[1])], [(*x.zero[:-1], weight.zero[1])])
        meeting.equal.append((x.axes[-1], weight.axes[0]))
        meeting.frozen.append((weight.axes[1], "a kernel of a fixed width"))
        return meeting

    analysis = check(model, inputs, tolerance=TOLERANCE)
    assert {group.size for group in analysis.groups} == {12, 64}
    assert "a kernel of a fixed width" in analysis.explain("weight")


def test_a_wrong_rule_from_outside_fails(gated: tuple[nn.Module, Tensor]) -> None:
    """The gate's input is not zero where its weight's other axis is."""
    model, inputs = gated
    structprune.multilinear("structprune_tests::gate", "... i, j o -> ... o")
    with pytest.raises((VerificationError, RuntimeError)):
        check(model, inputs, tolerance=TOLERANCE)
