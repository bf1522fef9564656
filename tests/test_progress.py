"""Long work shows on a terminal, as one line that is gone when the work is done."""

from __future__ import annotations

import io
import os
import sys

import pytest
import torch
from torch import Tensor, nn

import models_zoo
import structprune
from structprune.errors import CaptureError
from structprune.graph import progress as spoken
from structprune.views import progress


class Terminal(io.StringIO):
    """Standard error that can be rewritten, and what a person then sees on it."""

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        rows, column = [""], 0
        for letter in self.getvalue():
            if letter == "\r":
                column = 0
            elif letter == "\n":
                rows.append("")
                column = 0
            else:
                rows[-1] = rows[-1][:column] + letter + rows[-1][column + 1 :]
                column += 1
        assert column == 0, "the cursor is left inside the line"
        return [row.rstrip() for row in rows]


class Raising(nn.Module):
    """Fails in the middle of its work."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu() + x)


def terminal_of(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal on which nobody waits: every word is shown at once.

    Not a fixture: pytest sets standard error anew between those and the test.
    """
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    monkeypatch.setattr(progress, "PAUSE", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    return stream


def vector() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 3)), torch.randn(2, 6)


def test_a_line_names_the_passes_and_is_gone_when_done(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    model, inputs = models_zoo.build("encoder")
    structprune.shrink(model, 0.5, inputs, verify="numeric")
    written = terminal.getvalue()
    for word in ("recording operator 1,", "solving operator 2 of", "scoring group 1 of", "choosing widths", "slicing"):
        assert f"structprune: {word}" in written, word
    for word in ("attempt 1: recording operator", "attempt 1: comparing operator", "verifying"):
        assert f"structprune: {word}" in written, word
    assert "\n" not in written
    assert terminal.screen() == [""]


@pytest.mark.parametrize("call", ["analyze", "plan", "apply", "load"])
def test_every_long_call_shows(call: str, monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    terminal = terminal_of(monkeypatch)
    model, inputs = vector()
    made = structprune.plan(model, 0.5, inputs, progress=False)
    made.save(f"{tmp_path}/plan.json")
    state = made.apply(model, progress=False).state_dict()
    assert terminal.getvalue() == ""
    calls = {
        "analyze": lambda **keywords: structprune.analyze(model, inputs, **keywords),
        "plan": lambda **keywords: structprune.plan(model, 0.5, inputs, **keywords),
        "apply": made.apply,
        "load": lambda **keywords: structprune.load(model, f"{tmp_path}/plan.json", state, **keywords),
    }
    chosen = calls[call]
    if call == "apply":
        chosen = lambda **keywords: made.apply(model, **keywords)  # noqa: E731
    chosen(progress=False)
    assert terminal.getvalue() == ""
    chosen()
    assert "structprune: recording operator" in terminal.getvalue()
    assert terminal.screen() == [""]


def test_an_error_leaves_no_half_line(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    with pytest.raises(CaptureError):
        structprune.shrink(Raising(), 0.5, torch.randn(2, 6))
    assert "recording operator" in terminal.getvalue()
    assert terminal.screen() == [""]


def test_a_warning_does_not_stand_in_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    class Literal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 64, 3, padding=1), nn.Linear(64 * 16, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x).view(-1, 64 * 16))

    with pytest.warns(UserWarning) as caught:
        structprune.shrink(Literal(), 0.5, torch.randn(2, 3, 4, 4))
    assert len(caught) == 1 and caught[0].filename == __file__
    assert "other sizes: recording operator" in terminal.getvalue()


def test_short_work_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that moves a hundredth of a second with every look at it."""
    seconds = 0.0

    def clock() -> float:
        nonlocal seconds
        seconds += 0.01
        return seconds

    monkeypatch.setattr(progress, "monotonic", clock)
    monkeypatch.setenv("TERM", "xterm")
    for words, is_long in ((150, False), (400, True)):
        stream = Terminal()
        monkeypatch.setattr(sys, "stderr", stream)
        with progress.shown(None):
            for number in range(words):
                spoken.doing("solving operator", number)
        assert ("solving" in stream.getvalue()) is is_long
        assert stream.screen() == [""]
        # At most ten states a second.
        assert stream.getvalue().count("solving") <= 2 * words * 0.01 / progress.PAUSE


def test_nothing_where_nobody_looks(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    model, inputs = vector()
    structprune.shrink(model, 0.5, inputs)
    assert capfd.readouterr() == ("", "")
    items = [1, 2, 3]
    assert spoken.walk(items, "counting") is items


def test_asked_for_where_lines_cannot_be_rewritten(capsys: pytest.CaptureFixture[str]) -> None:
    """A log gets one line for each new thing that is done."""
    model, inputs = vector()
    structprune.shrink(model, 0.5, inputs, progress=True)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and "\r" not in err
    assert lines[0] == "structprune: recording operator, 0 s"
    assert len(lines) == len(set(lines)) < 20


@pytest.mark.parametrize("stream", [None, object(), "closed", "dumb"])
def test_odd_streams(stream: object, monkeypatch: pytest.MonkeyPatch) -> None:
    if stream == "closed":
        stream = Terminal()
        stream.close()
    if stream == "dumb":
        monkeypatch.setenv("TERM", "dumb")
        stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    model, inputs = vector()
    structprune.shrink(model, 0.5, inputs)
    if isinstance(stream, Terminal) and not stream.closed:
        assert stream.getvalue() == ""


def test_a_listener_hears_everything_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    model, inputs = models_zoo.build("resnet20")
    heard: list[tuple[str, int, int]] = []
    with spoken.listening(lambda *word: heard.append(word)):
        loud = structprune.shrink(model, 0.5, inputs)
        count = len(heard)
        silent = structprune.shrink(model, 0.5, inputs, progress=False)
    assert len(heard) == count, "progress=False was heard"
    assert terminal.getvalue() == "", "a listener and a line at once"
    solving = [(number, total) for what, number, total in heard if what == "solving operator"]
    assert solving == [(number, len(solving)) for number in range(1, len(solving) + 1)]
    assert all(torch.equal(a, b) for a, b in zip(loud.parameters(), silent.parameters(), strict=True))
    structprune.shrink(model, 0.5, inputs)
    assert len(heard) == count and "solving" in terminal.getvalue()


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals here")
def test_a_narrow_terminal_is_never_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl
    import struct
    import termios

    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 20, 0, 0))
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(theirs, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with progress.shown(True):
            spoken.doing("solving operator", 1234, 99999)
            line = os.read(ours, 1000).decode()
        assert line == "\rstructprune: solvin"
        assert os.read(ours, 1000).decode() == f"\r{' ' * 19}\r"
    os.close(ours)
