"""The command line. What is printed goes to standard output, everything else to standard error."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from structprune.cli.arguments import read_arguments
from structprune.cli.outcome import Exit, Outcome, exit_for, one_line
from structprune.views.progress import shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the result is the exit code."""
    options = read_arguments(sys.argv[1:] if arguments is None else arguments)
    try:
        # Whatever models and libraries print, standard output holds the answer alone.
        with redirect_stdout(sys.stderr), short_warnings(), stopped_by_termination(), shown(None):
            outcome = command(options.command)(options)
    except KeyboardInterrupt:
        complain("interrupted")
        return Exit.INTERRUPTED
    except Exception as error:
        return refuse(error, options)
    return answer(outcome.data if options.json else None, outcome.text)


def command(name: str) -> Callable[[Namespace], Outcome]:
    """Only the command that is asked for is imported."""
    match name:
        case "shrink":
            from structprune.cli.shrink import shrink

            return shrink
        case "apply":
            from structprune.cli.shrink import apply

            return apply
        case "analyze":
            from structprune.cli.analyze import analyze

            return analyze
        case "explain":
            from structprune.cli.analyze import explain

            return explain
        case "compare":
            from structprune.cli.measure.compare import compare

            return compare
    raise AssertionError(f"no command {name!r}")


def answer(data: dict[str, Any] | None, text: str) -> int:
    try:
        print(text if data is None else json.dumps(data, indent=1, allow_nan=False), flush=True)
    except OSError as error:
        # Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # there, whoever reads has had enough
            complain(f"the answer cannot be written: {error.strerror}")
            return Exit.OUTPUT
    return Exit.DONE


def refuse(error: Exception, options: Namespace) -> int:
    """One line for people, the same as data for machines, and the code."""
    code, message = exit_for(error, options)
    if options.traceback or os.environ.get("STRUCTPRUNE_DEBUG"):
        traceback.print_exception(error)
    complain(f"{options.command}: {message}")
    if options.json:
        answer({"error": {"kind": type(error).__name__, "code": int(code), "message": message}}, "")
    return code


def complain(message: str) -> None:
    print(f"structprune: {one_line(message)}", file=sys.stderr)


@contextmanager
def short_warnings() -> Iterator[None]:
    """Warnings in one line each, without the source line that gave them."""

    def show(message: Warning | str, *details: Any, **more: Any) -> None:
        complain(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


@contextmanager
def stopped_by_termination() -> Iterator[None]:
    """`timeout` and build systems end a command by SIGTERM: it must clean up as it does when interrupted."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: the caller's program handles its own signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
