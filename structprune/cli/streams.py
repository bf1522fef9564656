"""The streams and the signals of a process: closed, full or without the letters, and a stop in the middle."""

from __future__ import annotations

import io
import os
import signal
import sys
from contextlib import suppress
from threading import Timer
from types import FrameType, TracebackType
from typing import Any, TextIO

from structprune.cli.outcome import one_line

STREAMS = ("stdin", "stdout", "stderr")


def open_streams() -> None:
    """Give a closed stream a place, so that no file of ours is opened there; letters that one lacks become codes."""
    for number, name in enumerate(STREAMS):
        if getattr(sys, name) is not None:
            continue
        with suppress(OSError):
            os.fstat(number)
            continue
        # The lowest free number is this one. What is written to a closed standard output fails, and is said.
        handle = os.open(os.devnull, os.O_RDONLY if number < 2 else os.O_WRONLY)
        setattr(sys, name, os.fdopen(handle, "r" if number == 0 else "w", encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def complain(message: str) -> None:
    print(f"structprune: {one_line(message)}", file=sys.stderr)


def give_up_on(stream: TextIO) -> None:
    """What is left in a stream that takes nothing more: Python would complain of it once more at exit."""
    with suppress(OSError, ValueError, AttributeError):
        handle = os.open(os.devnull, os.O_WRONLY)
        os.dup2(handle, stream.fileno())
        os.close(handle)


class Patient(io.TextIOBase):
    """Standard error, which may be full or gone: the work goes on, and so do other people's prints."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            self.stream.write(text)
        except (OSError, ValueError, AttributeError):
            self.give_up()
        return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except (OSError, ValueError, AttributeError):
            self.give_up()

    def give_up(self) -> None:
        if self.stream is not None:
            give_up_on(self.stream)

    def fileno(self) -> int:
        if self.stream is None:
            raise io.UnsupportedOperation("fileno")
        return int(self.stream.fileno())

    def isatty(self) -> bool:
        with suppress(OSError, ValueError, AttributeError):
            return bool(self.stream.isatty())
        return False

    def writable(self) -> bool:
        return True

    @property
    def buffer(self) -> Any:
        return self.stream.buffer

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self.stream, "encoding", None) or "utf-8"


class Stopping:
    """Inside, an interrupt and the termination by `timeout` or a build system clean up alike."""

    def __init__(self) -> None:
        self.has_come = False
        self.before: dict[int, Any] = {}
        self.hook = sys.unraisablehook

    def __enter__(self) -> Stopping:
        for number in (signal.SIGINT, signal.SIGTERM):
            # A shell starts what runs in the background with interrupts ignored.
            if signal.getsignal(number) is signal.SIG_IGN:
                continue
            with suppress(ValueError):  # not the main thread: the caller's program handles its own signals
                self.before[number] = signal.signal(number, self.stop)
        sys.unraisablehook = self.unraisable
        return self

    def unraisable(self, lost: Any) -> None:
        """An interrupt in the middle of a callback of Python's own is lost there: it comes once more."""
        if isinstance(lost.exc_value, KeyboardInterrupt) and self.before:
            Timer(0.02, os.kill, (os.getpid(), next(iter(self.before)))).start()
        else:
            self.hook(lost)

    def stop(self, number: int, frame: FrameType | None) -> None:
        self.has_come = True
        raise KeyboardInterrupt

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.unraisablehook = self.hook
        for number, handler in self.before.items():
            signal.signal(number, handler)
