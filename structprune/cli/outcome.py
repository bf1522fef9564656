"""What a command gives back, and the exit code of each kind of failure."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from structprune import errors
from structprune.errors import printable


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer, as text and as data."""

    text: str
    data: dict[str, Any]


class Exit(IntEnum):
    """Exit codes. They are part of the interface: build scripts tell failures apart by them."""

    DONE = 0
    BUG = 1
    USAGE = 2
    MODEL = 3
    RATIO = 4
    PLAN = 5
    VERIFICATION = 6
    OUTPUT = 7
    PACKAGE = 8
    INTERRUPTED = 130


CODES: dict[type[Exception], Exit] = {
    errors.InvalidArgument: Exit.USAGE,
    errors.CaptureError: Exit.MODEL,
    errors.UnsupportedModel: Exit.MODEL,
    errors.UnsupportedRatio: Exit.RATIO,
    errors.PlanMismatch: Exit.PLAN,
    errors.VerificationError: Exit.VERIFICATION,
    errors.OutputError: Exit.OUTPUT,
    errors.MissingPackage: Exit.PACKAGE,
}

# The messages speak of the Python interface; what to do here.
HINTS: dict[type[Exception], str] = {
    errors.UnsupportedRatio: "On the command line: structprune explain {model} --frozen",
    errors.CaptureError: "On the command line: --input 1,3,224,224",
}
LONGEST = 1500


def exit_for(error: BaseException, options: Namespace) -> tuple[Exit, str]:
    """The code of a failure and its message."""
    message = str(error).strip()
    for kind, code in CODES.items():
        if isinstance(error, kind):
            return code, f"{message} {HINTS[kind].format(**vars(options))}" if kind in HINTS else message
    if not isinstance(error, Exception):  # nothing of ours ends a program: the model's code does
        return Exit.MODEL, f"the model's code raises {type(error).__name__}: {message or 'no message'}"
    return Exit.BUG, (
        f"{type(error).__name__}: {message or 'no message'} (unexpected: please report it with what "
        "STRUCTPRUNE_DEBUG=1 prints)"
    )


def one_line(message: str) -> str:
    """Other libraries' messages have many lines; scripts and logs want one."""
    line = printable(" ".join(message.split()), len(message))
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."
