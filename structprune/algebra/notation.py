"""The notation of axis rules: text to terms.

    "b (g i) [h w], (g o) i [kh kw], (g o) -> b (g o) [y x]"

A name is an axis, the same name is the same axis. `(a b)` is a product, `(a + b)` a sum, `...` any
number of leading axes, `[a b]` as many axes as are left, which the operator works on as a whole,
and `1` an axis of size one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from structprune.errors import NotationError


@dataclass(frozen=True, slots=True)
class Name:
    """One axis."""

    name: str


@dataclass(frozen=True, slots=True)
class Group:
    """A product or a sum of named axes."""

    names: tuple[str, ...]
    is_sum: bool


@dataclass(frozen=True, slots=True)
class Whole:
    """As many axes as are left, each worked on as a whole."""

    name: str


@dataclass(frozen=True, slots=True)
class Rest:
    """Any number of leading axes."""


@dataclass(frozen=True, slots=True)
class Unit:
    """An axis of size one."""


Term = Name | Group | Whole | Rest | Unit
Terms = tuple[Term, ...]


@dataclass(frozen=True, slots=True)
class Notation:
    """A parsed rule: the terms of each input and of each output."""

    text: str
    inputs: tuple[Terms, ...]
    outputs: tuple[Terms, ...]


TOKEN = re.compile(r"\s*(\.\.\.|->|[A-Za-z_]\w*|1|[()\[\]+,])")


@lru_cache(maxsize=1024)
def parse(text: str) -> Notation:
    """Read a rule; a mistake raises with a caret under it."""
    return _Parser(text).notation()


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.tokens: list[tuple[str, int]] = []
        position = 0
        while text[position:].strip():
            match = TOKEN.match(text, position)
            if match is None:
                at = position + len(text[position:]) - len(text[position:].lstrip())
                raise NotationError(text, at, f"unexpected {text[at]!r}")
            self.tokens.append((match.group(1), match.start(1)))
            position = match.end()

    def peek(self) -> str:
        return self.tokens[self.at][0] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.at += 1
        return token

    def fail(self, problem: str) -> NotationError:
        at = self.tokens[self.at][1] if self.at < len(self.tokens) else len(self.text)
        return NotationError(self.text, at, problem)

    def notation(self) -> Notation:
        inputs = self.values()
        if self.take() != "->":
            self.at -= 1
            raise self.fail("expected '->'")
        outputs = self.values()
        if self.peek():
            raise self.fail(f"unexpected {self.peek()!r}")
        known = {name for terms in inputs for name in names(terms)}
        arrow = next(at for token, at in self.tokens if token == "->")
        for terms in outputs:
            for name in names(terms):
                if name not in known:
                    at = next(at for token, at in self.tokens if at > arrow and token == name)
                    raise NotationError(self.text, at, f"axis {name!r} appears in no input")
        return Notation(self.text, inputs, outputs)

    def values(self) -> tuple[Terms, ...]:
        values = [self.terms()]
        while self.peek() == ",":
            self.take()
            values.append(self.terms())
        return tuple(values)

    def terms(self) -> Terms:
        terms: list[Term] = []
        while self.peek() not in ("", ",", "->"):
            terms.append(self.term())
        return tuple(terms)

    def term(self) -> Term:
        token = self.take()
        if token == "...":
            return Rest()
        if token == "1":
            return Unit()
        if token == "[":
            return Whole(" ".join(self.inside("]")))
        if token == "(":
            return self.group()
        if is_name(token):
            return Name(token)
        self.at -= 1
        raise self.fail(f"unexpected {token!r}")

    def name(self) -> str:
        if not is_name(self.peek()):
            raise self.fail(f"unexpected {self.peek()!r}" if self.peek() else "expected a name")
        return self.take()

    def inside(self, closing: str) -> list[str]:
        found = [self.name()]
        while self.peek() != closing:
            if not self.peek():
                raise self.fail(f"expected {closing!r}")
            found.append(self.name())
        self.take()
        return found

    def group(self) -> Group:
        """`(a b)` or `(a + b)`, never a mixture."""
        found = [self.name()]
        is_sum = self.peek() == "+"
        while self.peek() != ")":
            if not self.peek():
                raise self.fail("expected ')'")
            if is_sum and self.take() != "+":
                self.at -= 1
                raise self.fail("expected '+'")
            found.append(self.name())
        self.take()
        return Group(tuple(found), is_sum)


def is_name(token: str) -> bool:
    return token[:1].isalpha() or token[:1] == "_"


def names(terms: Terms) -> list[str]:
    """The names of the axes in these terms; those worked on as a whole are left out."""
    found: list[str] = []
    for term in terms:
        match term:
            case Name(name):
                found.append(name)
            case Group(inner, _):
                found.extend(inner)
            case _:
                continue
    return found
