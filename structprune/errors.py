"""Everything that structprune raises. Each message says what, where, why, and what to do."""

from __future__ import annotations

from collections.abc import Iterable

LONGEST_NAME = 200


def printable(text: object, longest: int = LONGEST_NAME) -> str:
    """A name or text that a stranger's file holds, safe to print: "\\x1b[31m" instead of a terminal that turns red.

    Characters that are not printable (controls, escapes, line ends, marks that turn the direction of writing,
    bytes that are no text) are shown by their codes; what is longer than `longest` is cut in the middle.
    """
    shown = str(text)
    if len(shown) > longest:
        shown = f"{shown[: longest // 2]} ... {shown[len(shown) - longest // 2 :]}"
    if shown.isprintable():
        return shown
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in shown)


def short(value: object) -> str:
    """An argument in a message, in one line: its beginning, where it is long."""
    try:
        text = repr(value[:20] if isinstance(value, str | bytes | list | tuple) and len(value) > 100 else value)
    except Exception as error:  # an object of the caller's, or a number of more digits than Python prints
        text = f"a {type(value).__name__} ({type(error).__name__})"
    text = " ".join(text.split())
    return text if len(text) <= 100 else f"{text[:100]}..."


def printed(lines: Iterable[str]) -> str:
    """Lines as a text that can be printed, whatever the names in them hold."""
    return "\n".join(printable(line, len(line)) for line in lines)


class StructpruneError(Exception):
    """The root of all errors of this package."""

    def __str__(self) -> str:
        # Messages quote names and other libraries' errors: whatever those hold, a message can be printed.
        return printed(super().__str__().split("\n"))


class InvalidArgument(StructpruneError, ValueError):
    """An argument of the call is not usable."""


class NotationError(StructpruneError):
    """A rule's notation has a mistake; the message points at it."""

    def __init__(self, text: str, at: int, problem: str) -> None:
        super().__init__(f"{problem}\n    {text}\n    {' ' * at}^")


class DuplicateRule(StructpruneError):
    """Two rules claim the same kind of operator."""


class CaptureError(StructpruneError):
    """The model's computation could not be recorded."""


class UnsupportedRatio(StructpruneError):
    """The ratio asked for cannot be reached."""


class UnsupportedModel(StructpruneError):
    """The model holds something that cannot be pruned or copied."""


class PlanMismatch(StructpruneError):
    """A plan does not belong to this model, or is not a plan."""


class VerificationError(StructpruneError):
    """The smaller model does not compute what it should."""


class OutputError(StructpruneError):
    """A result could not be written."""


class MissingPackage(StructpruneError, ImportError):
    """A package that this kind of model needs is not installed."""
