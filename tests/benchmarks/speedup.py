"""Measured against theoretical speed-up: `python -m tests.benchmarks.speedup [model ...] [--aligns 1 16 onnxruntime]`.

Each model is exported to ONNX once, and shrunk from that file to half of its multiply-accumulates at each alignment;
"onnxruntime" is what an ONNX file gets by itself. Then the original and all results run in onnxruntime, at batch size
one, as `structprune compare` runs them: after a warm-up, in turns. A cell says how many times as fast the median
run of the result is, and which share that is of the theoretical speed-up, MACs before / MACs after; "-" where no
choice of such widths comes to the ratio.

Weights are random, with batch norm statistics of what flows through: with those of an untrained model activations
shrink layer by layer, in deep nets to denormal numbers, which take the processor ten times as long as others.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import structprune
from structprune.cli.arguments import alignment
from structprune.cli.measure.compare import timed
from structprune.cli.measure.runner import OnnxRunner, described_tensors, random_arrays
from structprune.errors import UnsupportedRatio
from tests.benchmarks.subjects import build, subjects
from tests.conformance.catalog import calibrate, randomize
from tests.conformance.exported import EXPORTERS, export

CONVOLUTIONAL = (
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "densenet121",
    "regnet_y_400mf",
    "shufflenet_v2_x1_0",
    "googlenet",
    "vgg16_bn",
)
GOAL = 0.9
# The pointwise convolutions of a ConvNeXt are linear layers.
OTHERS = ("convnext_tiny", "vit_b_16", "bert_4_layers")
ALIGNS: tuple[int | str, ...] = (1, 8, 16, 32, "onnxruntime")


@dataclass(frozen=True, slots=True)
class Gain:
    """How many times as fast one result is, and the share of the multiply-accumulates that is left to it."""

    measured: float
    kept: float

    @property
    def share(self) -> float:
        """Of the theoretical speed-up."""
        return self.measured * self.kept


Row = dict[int | str, Gain]


def prepared(name: str, exporter: str, path: Path) -> list[torch.Tensor]:
    """Write the model to the path; the inputs that it takes."""
    (subject,) = (each for each in subjects() if each.name == name)
    model, inputs = build(subject)
    calibrate(randomize(model), inputs)
    return export(model, inputs, exporter, path)


def measure(name: str, options: argparse.Namespace, folder: Path) -> tuple[float, Row]:
    """Milliseconds of the original, and the gain at each alignment that can be had."""
    path = folder / "model.onnx"
    inputs = [tensor.numpy() for tensor in prepared(name, options.exporter, path)]
    described = described_tensors(structprune.analyze(path, inputs).frontend.inputs(), "")
    shapes = {each.name: each.shape for each in described}
    runners = [OnnxRunner(str(path), shapes, options.threads)]
    kept: dict[int | str, float] = {}
    for align in options.aligns:
        try:
            plan = structprune.plan(path, options.ratio, inputs, of="macs", align=align)
        except UnsupportedRatio:
            continue
        assert plan.report is not None
        before, after = plan.report.macs
        kept[align] = after / before
        small = plan.apply(path, output_path=folder / f"{align}.onnx")
        runners.append(OnnxRunner(str(small), shapes, options.threads))
    arrays = random_arrays(runners[0].takes, 0)
    times, _ = timed(runners, [runner.prepare(arrays) for runner in runners], options.runs)
    whole, *medians = map(statistics.median, times)
    gains = {align: Gain(whole / each, share) for (align, share), each in zip(kept.items(), medians, strict=True)}
    return 1000 * whole, gains


def header(aligns: Sequence[int | str]) -> str:
    columns = " | ".join(f"align={align}" for align in aligns)
    return f"| model | ms | MACs kept | {columns} |\n{'|---' * (3 + len(aligns))}|"


def row(name: str, milliseconds: float, found: Row, aligns: Sequence[int | str]) -> str:
    kept = ", ".join(sorted({f"{gain.kept:.2f}" for gain in found.values()}))
    cells = [f"{found[align].measured:.2f}, {found[align].share:.0%}" if align in found else "-" for align in aligns]
    return f"| {name} | {milliseconds:.1f} | {kept} | {' | '.join(cells)} |"


def summary(table: dict[str, Row], aligns: Sequence[int | str]) -> str:
    lines = []
    for align in aligns:
        shares = [found[align].share for name, found in table.items() if name in CONVOLUTIONAL and align in found]
        if shares:
            lines.append(
                f"align={align}: {statistics.median(shares):.0%} of the theoretical speed-up "
                f"on the median of {len(shares)} convolutional models, at least {GOAL:.0%} on "
                f"{sum(share >= GOAL for share in shares)}"
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    everything = [*CONVOLUTIONAL, *OTHERS]
    parser.add_argument("models", nargs="*", default=everything, metavar="model", help=f"of {', '.join(everything)}")
    parser.add_argument("--aligns", type=alignment, nargs="+", default=list(ALIGNS))
    parser.add_argument("--ratio", type=float, default=0.5, help="of the multiply-accumulates")
    parser.add_argument("--exporter", choices=EXPORTERS, default=EXPORTERS[0])
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None, help="also write the table to this file")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    lines = [header(options.aligns)]
    print(lines[0], flush=True)
    table: dict[str, Row] = {}
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            milliseconds, table[name] = measure(name, options, Path(folder))
        lines.append(row(name, milliseconds, table[name], options.aligns))
        print(lines[-1], flush=True)
    lines += ["", summary(table, options.aligns)]
    print(f"\n{lines[-1]}", flush=True)
    if options.out is not None:
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
