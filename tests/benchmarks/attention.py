"""Latency of `nn.TransformerEncoderLayer`: `python -m tests.benchmarks.attention [--places 128] [--batches 1 8]`.

In eval mode torch computes its own layer by one fused operator. That knows no layer whose heads do not make up the
model's width: a shrunk one runs plain operators. What does it cost? Milliseconds in torch, measured as
`structprune compare` does, of the original, of the original without the fused operator, and of what is left with
half of the heads, half of each head's width, or both, beside the share of the multiply-accumulates that is left.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import structprune
from structprune.cli.measure.compare import timed
from structprune.cli.measure.runner import TorchRunner, random_arrays

WIDTH, HEADS = 512, 8
HEAD_WIDTH = WIDTH // HEADS
KEPT = {
    "half the heads": (HEADS // 2, HEAD_WIDTH),
    "half the head width": (HEADS, HEAD_WIDTH // 2),
    "both": (HEADS // 2, HEAD_WIDTH // 2),
}


class Plain(nn.Module):
    """A layer without torch's fused operator."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            result: Tensor = self.layer(x)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
        return result


def shrunk(layer: nn.Module, x: Tensor, heads: int, width: int) -> tuple[nn.Module, float]:
    """The layer with so many heads of such a width, and the share of the multiply-accumulates that is left."""
    plan = structprune.plan(layer, 0, x, output="module")
    for group in structprune.analyze(layer, x).groups:
        if group.size in (HEADS, HEAD_WIDTH):
            plan.keep[group.name] = list(range(heads if group.size == HEADS else width))
    small: nn.Module = plan.apply(layer)
    assert plan.report is not None
    before, after = plan.report.macs
    return small, after / before


def measure(batch: int, places: int, runs: int, threads: int) -> list[str]:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, batch_first=True).eval()
    x = torch.randn(batch, places, WIDTH)
    models: dict[str, tuple[nn.Module, float]] = {
        "original, fused": (layer, 1.0),
        "original, plain": (Plain(layer), 1.0),
        **{name: shrunk(layer, x, *kept) for name, kept in KEPT.items()},
    }
    described = structprune.analyze(layer, x).frontend.inputs()
    runners = [TorchRunner(model, described, threads) for model, _ in models.values()]
    arrays = random_arrays(runners[0].takes, 0)
    times, _ = timed(runners, [runner.prepare(arrays) for runner in runners], runs)
    medians = [1000 * statistics.median(each) for each in times]
    return [
        f"| {batch} | {name} | {share:.0%} | {median:.2f} | {median / medians[0]:.0%} |"
        for (name, (_, share)), median in zip(models.items(), medians, strict=True)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--places", type=int, default=128)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print("| batch | layer | MACs left | ms | time left |\n|---|---|---|---|---|")
    for batch in options.batches:
        print("\n".join(measure(batch, options.places, options.runs, options.threads)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
