"""The notation of axis rules: what is read, and how a mistake is shown."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from structprune.algebra.notation import Group, Name, Rest, Unit, Whole, names, parse
from structprune.errors import NotationError, StructpruneError

GOOD = [
    ("i -> i", ((Name("i"),),), ((Name("i"),),)),
    (
        "... i, o i, o -> ... o",
        ((Rest(), Name("i")), (Name("o"), Name("i")), (Name("o"),)),
        ((Rest(), Name("o")),),
    ),
    (
        "b (g i) [h w], (g o) i [kh kw], (g o) -> b (g o) [y x]",
        (
            (Name("b"), Group(("g", "i"), False), Whole("h w")),
            (Group(("g", "o"), False), Name("i"), Whole("kh kw")),
            (Group(("g", "o"), False),),
        ),
        ((Name("b"), Group(("g", "o"), False), Whole("y x")),),
    ),
    (
        "b p [h w], b q [h w] -> b (p + q) [h w]",
        ((Name("b"), Name("p"), Whole("h w")), (Name("b"), Name("q"), Whole("h w"))),
        ((Name("b"), Group(("p", "q"), True), Whole("h w")),),
    ),
    ("(a + b + c) -> a, b, c", ((Group(("a", "b", "c"), True),),), ((Name("a"),), (Name("b"),), (Name("c"),))),
    ("a 1 -> 1 a", ((Name("a"), Unit()),), ((Unit(), Name("a")),)),
    ("head_1 -> head_1", ((Name("head_1"),),), ((Name("head_1"),),)),
    ("a, -> a", ((Name("a"),), ()), ((Name("a"),),)),
    ("a ->", ((Name("a"),),), ((),)),
]


@pytest.mark.parametrize(("text", "inputs", "outputs"), GOOD, ids=[text for text, _, _ in GOOD])
def test_reads(text, inputs, outputs):
    notation = parse(text)
    assert notation.text == text
    assert notation.inputs == inputs
    assert notation.outputs == outputs


def test_spaces_mean_nothing_where_tokens_end():
    tight, loose = parse("b(p+q)[h w],b->b(p+q)[h w]"), parse("  b ( p  +  q ) [ h w ] , b  ->  b ( p + q ) [ h w ]  ")
    assert (tight.inputs, tight.outputs) == (loose.inputs, loose.outputs)


def test_names_leave_out_what_is_worked_on_as_a_whole():
    assert names(parse("... b (g i) [h w] 1 -> b").inputs[0]) == ["b", "g", "i"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(("a", "b", "(c d)", "(e + f)", "[h w]", "...", "1")), max_size=5, unique=True))
def test_what_goes_in_comes_out(terms):
    text = " ".join(terms)
    notation = parse(f"{text} -> {text}")
    assert notation.inputs == notation.outputs
    assert len(notation.inputs[0]) == len(terms)


# A mistake, what is said of it, and the text before the place at which the caret points.
BAD = [
    ("b i, o i", "expected '->'", "b i, o i"),
    ("", "expected '->'", ""),
    ("b i -> b o", "axis 'o' appears in no input", "b i -> b "),
    ("o i -> o (i j)", "axis 'j' appears in no input", "o i -> o (i "),
    ("[h w] -> h", "axis 'h' appears in no input", "[h w] -> "),
    ("b -> b -> b", "unexpected '->'", "b -> b "),
    ("b (g i -> b", "unexpected '->'", "b (g i "),
    ("b (g i", "expected ')'", "b (g i"),
    ("b [h w", "expected ']'", "b [h w"),
    ("b (g i] -> b", "unexpected ']'", "b (g i"),
    ("b g) -> b", "unexpected ')'", "b g"),
    ("b + c -> b", "unexpected '+'", "b "),
    ("b (g (i j)) -> b", "unexpected '('", "b (g "),
    ("b i -> b ?", "unexpected '?'", "b i -> b "),
    ("b * i -> b", "unexpected '*'", "b "),
    ("b (g 1) -> b", "unexpected '1'", "b (g "),
    ("b - i -> b", "unexpected '-'", "b "),
    ("b .. i -> b", "unexpected '.'", "b "),
    # An unknown axis whose name is a part of an earlier one.
    ("b to -> b to o", "axis 'o' appears in no input", "b to -> b to "),
    ("xa -> xa (xa a)", "axis 'a' appears in no input", "xa -> xa (xa "),
]

# Half-written groups: a typo must fail at import, not change what a rule means.
TYPOS = [
    ("a b c -> (a + b c)", "a b c -> (a + b "),
    ("a b c -> (a b + c)", "a b c -> (a b "),
    ("a b -> (a + )", "a b -> (a + "),
    ("a b -> ( + a)", "a b -> ( "),
    ("a b -> (a + + b)", "a b -> (a + "),
    ("a -> a ()", "a -> a ("),
    ("a [ ] -> a", "a [ "),
    ("a [h + w] -> a", "a [h "),
]


def shown(text: str) -> tuple[str, str, str]:
    """What the error says, the text that it shows, and what stands before the caret."""
    with pytest.raises(NotationError) as raised:
        parse(text)
    problem, line, caret = str(raised.value).split("\n")
    assert re.fullmatch(r" *\^", caret)
    return problem, line[4:], line[4 : len(caret) - 1]


@pytest.mark.parametrize(("text", "problem", "before"), BAD, ids=[text for text, _, _ in BAD])
def test_mistakes_are_pointed_at(text, problem, before):
    assert shown(text) == (problem, text, before)


@pytest.mark.parametrize(("text", "before"), TYPOS, ids=[text for text, _ in TYPOS])
def test_half_written_groups_are_mistakes(text, before):
    assert shown(text)[1:] == (text, before)


def test_a_whole_message():
    with pytest.raises(StructpruneError) as raised:
        parse("b (g i), (g o) i -> b (g x)")
    assert str(raised.value) == (
        "axis 'x' appears in no input\n"  #
        "    b (g i), (g o) i -> b (g x)\n"
        "                             ^"
    )


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab1 ()[]+,->.?", max_size=14))
def test_any_text_is_read_or_refused(text):
    """Nothing but a NotationError escapes, and its caret stays under the text."""
    try:
        parse(text)
    except NotationError as error:
        lines = str(error).split("\n")
        assert lines[-2] == f"    {text}"
        assert lines[-1].strip() == "^"
        assert len(lines[-1]) <= 4 + len(text) + 1
