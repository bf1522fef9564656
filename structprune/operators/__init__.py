"""One small file per operator family; importing this package registers every rule."""

from structprune.operators import (
    attention,
    elementwise,
    joining,
    linear,
    normalisation,
    recurrent,
    reduction,
    reshaping,
    routing,
    slicing,
)

__all__ = [
    "attention",
    "elementwise",
    "joining",
    "linear",
    "normalisation",
    "recurrent",
    "reduction",
    "reshaping",
    "routing",
    "slicing",
]
