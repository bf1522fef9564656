"""structprune: give it a trained network, get a physically smaller one back."""

import os
import signal
import sys
from types import FrameType

__version__ = "0.1.0"


def _stop_at_once(number: int, frame: FrameType | None) -> None:
    """A command that is stopped while it is imported has nothing to clean up."""
    os._exit(130)


# `structprune ...` or `python -m structprune ...`: which of the two is said before this package is imported.
_called = "".join(sys.argv[:1]).replace("\\", "/").rpartition("/")[2]
if _called.partition(".")[0] == "structprune" or (_called == "-m" and "structprune" in sys.orig_argv):
    for _number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(_number) is not signal.SIG_IGN:
            signal.signal(_number, _stop_at_once)

from structprune import errors  # noqa: E402
from structprune.api import analyze, load, plan, shrink, trace  # noqa: E402
from structprune.errors import StructpruneError  # noqa: E402
from structprune.graph.operator import multilinear, rule  # noqa: E402
from structprune.passes.score import criterion  # noqa: E402
from structprune.plan import Plan  # noqa: E402
from structprune.views.analysis import Analysis  # noqa: E402
from structprune.views.report import Report  # noqa: E402

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
    "trace",
]
