"""Small models, each with one thing in the middle that a structural pruner can get wrong.

Every structure builds in float64 and eval mode, from a fixed seed, with no parameter or running
statistic left at a constant, so that comparing numbers means something.
"""

from . import (  # noqa: F401 (each registers its structures)
    attention,
    branching,
    convolution,
    functional,
    indexing,
    normalisation,
    odd,
    projection,
    recurrent,
    reduction,
    reshaping,
    routing,
    sharing,
    spatial,
    transformer,
)
from .registry import STRUCTURES, Structure

__all__ = ["STRUCTURES", "Structure"]
