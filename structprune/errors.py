"""Everything that structprune raises. Each message says what, where, why, and what to do."""

from __future__ import annotations


class StructpruneError(Exception):
    """The root of all errors of this package."""


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
