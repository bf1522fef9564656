"""Which scope and score keep more accuracy: `python -m tests.benchmarks.scope [model ...] [--out FILE]`.

Models of the zoo, trained on digits, lose a share of their parameters or multiply-accumulates; then the accuracy
on held-out digits is measured, at once and after a short fine-tune of `--epochs` passes.

Trained weights are taken from DIR/NAME.safetensors where `python -m models_zoo.train --out DIR` left them;
what is missing is trained first.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import structprune
from models_zoo import build, digits, names
from models_zoo.train import EPOCHS
from structprune.errors import UnsupportedRatio

MODELS = ("resnet20", "unet", "convnext", "vit", "swin", "recurrent")  # the quicker half of the zoo
SCOPES = ("global", "uniform")
SCORES = ("l1", "l2", "fpgm", "bn_scale", "random")
RATE = 1e-3

Setting = tuple[str, str, str, float]
Pair = tuple[float, float]


def trained(name: str, folder: Path) -> tuple[nn.Module, Any]:
    model, inputs = build(name)
    path = folder / f"{name}.safetensors"
    if path.exists():
        model.load_state_dict(load_file(path))
    else:
        digits.fit(model, digits.load(inputs), EPOCHS[name])
        folder.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), path)
    return model.eval(), inputs


def accuracies(model: nn.Module, inputs: Any, data: digits.Data, setting: Setting, epochs: int) -> Pair | None:
    """Before and after the fine-tune; None where the ratio cannot be reached."""
    scope, score, of, ratio = setting
    try:
        small = structprune.shrink(model, ratio, inputs, of=of, scope=scope, score=score, verify=None)
    except UnsupportedRatio:
        return None
    before = digits.accuracy(small, data[2], data[3])
    tuned = copy.deepcopy(small)
    digits.fit(tuned, data, epochs, rate=RATE)
    return before, digits.accuracy(tuned, data[2], data[3])


def mean(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.1%}" if values else ""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="model", help=f"of {', '.join(names())}")
    parser.add_argument("--weights", type=Path, metavar="DIR", default=Path("/tmp/zoo_out"))
    parser.add_argument("--epochs", type=int, default=2, help="of the fine-tune")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.3, 0.5, 0.7])
    parser.add_argument("--of", nargs="+", default=["params", "macs"])
    parser.add_argument("--scores", nargs="+", default=list(SCORES))
    parser.add_argument("--out", type=Path, default=None, help="also write the tables to this file")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    settings: list[Setting] = list(itertools.product(SCOPES, options.scores, options.of, options.ratios))
    found: dict[tuple[str, Setting], Pair] = {}
    lines: list[str] = []

    def say(line: str = "") -> None:
        print(line, flush=True)
        lines.append(line)

    say("Held-out accuracy at once / after the fine-tune, mean over ratios and targets.\n")
    say(f"| model | whole | {' | '.join(f'{scope} {score}' for scope in SCOPES for score in options.scores)} | s |")
    say("|---" * (3 + len(SCOPES) * len(options.scores)) + "|")
    for name in options.models:
        start = time.perf_counter()
        model, inputs = trained(name, options.weights)
        data = digits.load(inputs)
        for setting in settings:
            pair = accuracies(model, inputs, data, setting, options.epochs)
            if pair is not None:
                found[name, setting] = pair
        cells = []
        for scope, score in itertools.product(SCOPES, options.scores):
            pairs = [found[name, s] for s in settings if s[:2] == (scope, score) and (name, s) in found]
            cells.append(f"{mean([a for a, _ in pairs])} / {mean([b for _, b in pairs])}")
        whole = digits.accuracy(model, data[2], data[3])
        say(f"| {name} | {whole:.1%} | {' | '.join(cells)} | {time.perf_counter() - start:.0f} |")
    both = list(itertools.product(SCOPES, options.scores))
    say("\nMean over the models, for each target and ratio.\n")
    say(f"| scope | score | {' | '.join(f'{of} {ratio:g}' for of in options.of for ratio in options.ratios)} | all |")
    say("|---" * (3 + len(options.of) * len(options.ratios)) + "|")
    for scope, score in both:
        row: list[list[Pair]] = []
        for of, ratio in itertools.product(options.of, options.ratios):
            # Only what every setting could do is compared.
            common = [n for n in options.models if all((n, (*each, of, ratio)) in found for each in both)]
            row.append([found[name, (scope, score, of, ratio)] for name in common])
        row.append([pair for cell in row for pair in cell])
        cells = [f"{mean([a for a, _ in cell])} / {mean([b for _, b in cell])}" for cell in row]
        say(f"| {scope} | {score} | {' | '.join(cells)} |")
    missing = [(name, s) for name in options.models for s in settings if (name, s) not in found]
    say(f"\nNot reached, and left out of the second table for every setting: {len(missing)} {missing[:6]}")
    if options.out is not None:
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
