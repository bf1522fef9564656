"""Word of long work: passes say what they are doing, and whoever listens shows it.

A pass prints nothing. It calls `doing` (or `walk`s its items), which costs next to nothing
where nobody listens. `shown` listens with a line on the terminal; `listening` with a function.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from time import monotonic
from typing import TextIO, TypeVar

Item = TypeVar("Item")
Listener = Callable[[str, int, int], None]
_listener: ContextVar[Listener | None] = ContextVar("structprune's listener", default=None)

# Seconds before a line appears unasked, and between two states of it.
PATIENCE = 2.0
PAUSE = 0.1


def doing(what: str, number: int = 0, total: int = 0) -> None:
    """Say what is being done: `doing("scoring group", 3, 40)`. Zero stands for a number that is not known."""
    listener = _listener.get()
    if listener is not None:
        listener(what, number, total)


def walk(items: Sequence[Item], what: str) -> Iterable[Item]:
    """The items, with word of each before it is handed out."""
    return items if _listener.get() is None else _walk(items, what)


def _walk(items: Sequence[Item], what: str) -> Iterator[Item]:
    for number, item in enumerate(items, start=1):
        doing(what, number, len(items))
        yield item


@contextmanager
def within(what: str) -> Iterator[None]:
    """All that is done inside is part of this: `attempt 3: recording operator 512`."""
    outer = _listener.get()
    if outer is None:
        yield
        return

    def listener(inner: str, number: int, total: int) -> None:
        outer(f"{what}: {inner}", number, total)

    with listening(listener):
        yield


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Every word of what is done inside goes to the listener."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def shown(progress: bool | None) -> Iterator[None]:
    """Show long work on standard error: None where that is a terminal, True in any case, False never.

    Inside another that shows or listens already, that one goes on.
    """
    if progress is False:
        with listening(nobody):
            yield
        return
    if _listener.get() is not None or sys.stderr is None or not (progress or is_terminal(sys.stderr)):
        yield
        return
    line = Line(sys.stderr, 0.0 if progress else PATIENCE)
    try:
        with listening(line):
            yield
    finally:
        line.erase()


def nobody(what: str, number: int, total: int) -> None:
    """Hears nothing, so that what is called inside does not begin to show by itself."""


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a line can be rewritten there."""
    try:
        return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):  # a logger in place of a stream; a closed stream
        return False


class Line:
    """One line of a terminal, rewritten as work goes on; elsewhere one line for each new thing that is done."""

    def __init__(self, stream: TextIO, patience: float) -> None:
        self.stream = stream
        self.is_rewritten = is_terminal(stream)
        self.start = monotonic()
        self.next = self.start + patience
        self.width = 0
        self.last = ""

    def __call__(self, what: str, number: int, total: int) -> None:
        now = monotonic()
        if not self.is_rewritten:
            if what != self.last:
                self.last = what
                self.stream.write(f"structprune: {what}, {now - self.start:.0f} s\n")
        elif now >= self.next:
            self.next = now + PAUSE
            count = f" {number:,}" * (number > 0) + f" of {total:,}" * (total > 0)
            self.write(f"structprune: {what}{count}, {now - self.start:.0f} s")

    def write(self, text: str) -> None:
        """Spaces cover what is left of a longer text; a text that wrapped could not be rewritten."""
        text = text[: columns(self.stream) - 1]
        self.stream.write(f"\r{text.ljust(self.width)}")
        self.stream.flush()
        self.width = len(text)

    def erase(self) -> None:
        if self.width:
            self.stream.write(f"\r{' ' * self.width}\r")
            self.stream.flush()


def columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except OSError:  # a terminal that does not know its size, or a stream without a file
        return 80
