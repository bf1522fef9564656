"""One small file per operator family; importing this package registers every rule."""

from structprune.operators import (
    attention,
    elementwise,
    linear,
    normalisation,
    recurrent,
    reduction,
    reshaping,
    routing,
)

__all__ = [
    "attention",
    "elementwise",
    "linear",
    "normalisation",
    "recurrent",
    "reduction",
    "reshaping",
    "routing",
]
