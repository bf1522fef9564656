"""structprune: give it a trained network, get a physically smaller one back."""

from structprune import errors
from structprune.api import analyze, load, plan, shrink
from structprune.errors import StructpruneError
from structprune.graph.operator import multilinear, rule
from structprune.passes.score import criterion
from structprune.plan import Plan
from structprune.views.analysis import Analysis
from structprune.views.report import Report

__version__ = "0.1.0"
__all__ = [
    "Analysis",
    "Plan",
    "Report",
    "StructpruneError",
    "analyze",
    "criterion",
    "errors",
    "load",
    "multilinear",
    "plan",
    "rule",
    "shrink",
]
