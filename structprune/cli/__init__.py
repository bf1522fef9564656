"""The command line. What is printed goes to standard output, everything else to standard error."""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from math import isfinite
from typing import Any

from structprune.cli.arguments import WrongUsage, read_arguments
from structprune.cli.outcome import Exit, Outcome, exit_for
from structprune.cli.streams import Patient, Stopping, complain, give_up_on, open_streams
from structprune.views.progress import shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the result is the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    open_streams()
    with redirect_stderr(Patient(sys.stderr)), Stopping() as stopping:
        try:
            options = read_arguments(arguments)
        except WrongUsage as error:
            return refused(str(error), "InvalidArgument", Exit.USAGE, "--json" in arguments)
        except SystemExit as end:  # --help and --version have printed their text
            return flushed(int(end.code or 0))
        except OSError as error:
            return unwritten(error)
        try:
            # Whatever models and libraries print, standard output holds the answer alone.
            with redirect_stdout(sys.stderr), short_warnings(), shown(None):
                outcome = command(options.command)(options)
        except KeyboardInterrupt:
            return interrupted()
        except BaseException as error:
            # An import that is interrupted can end in any error.
            return interrupted() if stopping.has_come else refuse(error, options)
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
        print(text if data is None else json.dumps(finite(data), indent=1, allow_nan=False))
    except OSError as error:
        return unwritten(error)
    return flushed(Exit.DONE)


def flushed(code: int) -> int:
    try:
        sys.stdout.flush()
    except OSError as error:
        return unwritten(error)
    return code


def unwritten(error: OSError) -> int:
    give_up_on(sys.stdout)
    if isinstance(error, BrokenPipeError):  # whoever reads has had enough
        return Exit.DONE
    is_closed = error.errno == errno.EBADF
    complain(f"the answer cannot be written: {'standard output is closed' if is_closed else error.strerror}")
    return Exit.OUTPUT


def finite(data: Any) -> Any:
    """The data as JSON has it, where no number is infinite."""
    if isinstance(data, dict):
        return {name: finite(each) for name, each in data.items()}
    if isinstance(data, list | tuple):
        return [finite(each) for each in data]
    return None if isinstance(data, float) and not isfinite(data) else data


def interrupted() -> int:
    complain("interrupted")
    return Exit.INTERRUPTED


def refuse(error: BaseException, options: Namespace) -> int:
    """One line for people, the same as data for machines, and the code."""
    code, message = exit_for(error, options)
    if options.traceback or os.environ.get("STRUCTPRUNE_DEBUG"):
        traceback.print_exception(error)
    return refused(f"{options.command}: {message}", type(error).__name__, code, options.json, message)


def refused(line: str, kind: str, code: Exit, is_json: bool, message: str | None = None) -> int:
    complain(line)
    if is_json:
        answer({"error": {"kind": kind, "code": int(code), "message": line if message is None else message}}, "")
    return code


@contextmanager
def short_warnings() -> Iterator[None]:
    """Warnings in one line each, without the source line that gave them."""

    def show(message: Warning | str, *details: Any, **more: Any) -> None:
        complain(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
