"""Progress as a person sees it: one line of a terminal, or a line of a log for each new thing that is done."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import TextIO

from structprune.errors import printable
from structprune.graph.progress import is_heard, listening

# Seconds before a line appears unasked, and between two states of it.
PATIENCE = 2.0
PAUSE = 0.1


@contextmanager
def shown(progress: bool | None) -> Iterator[None]:
    """Show long work on standard error: None where that is a terminal, True in any case, False never.

    Inside another that shows or listens already, that one goes on.
    """
    if progress is False:
        with listening(nobody):
            yield
        return
    if is_heard() or sys.stderr is None or not (progress or is_terminal(sys.stderr)):
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
        what, now = printable(what), monotonic()
        if not self.is_rewritten:
            if what != self.last:
                self.last = what
                self.send(f"structprune: {what}, {now - self.start:.0f} s\n")
        elif now >= self.next:
            self.next = now + PAUSE
            count = f" {number:,}" * (number > 0) + f" of {total:,}" * (total > 0)
            self.write(f"structprune: {what}{count}, {now - self.start:.0f} s")

    def write(self, text: str) -> None:
        """Spaces cover what is left of a longer text; a text that wrapped could not be rewritten."""
        text = text[: columns(self.stream) - 1]
        self.send(f"\r{text.ljust(self.width)}")
        self.width = len(text)

    def erase(self) -> None:
        if self.width:
            self.send(f"\r{' ' * self.width}\r")

    def send(self, text: str) -> None:
        """A full disk, a closed stream, or a terminal without the letters: the work itself goes on."""
        with suppress(OSError, ValueError):
            self.stream.write(text)
            self.stream.flush()


def columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except OSError:  # a terminal that does not know its size, or a stream without a file
        return 80
