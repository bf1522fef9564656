"""Time against the number of operators: `python -m tests.benchmarks.scaling [--layers 2 4 8 16 32 64]`.

Decoders of growing depth (grouped queries, rotary embeddings, SwiGLU, RMS norm) are shrunk to half; CPU
milliseconds per operator of each stage show whether the time is linear. The least of the repeats, one thread.

- capture: the run that records the operators, and lowering
- solve: propagate and group
- choose: score, and every selection
- adapt: all the rest of keeping the class: copies, repeated captures, comparisons, and the final weights

With `--chains`, long models instead: CPU seconds of recording and of solving for each length.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import nn

import structprune
from structprune.api import aim
from structprune.frontends import read
from structprune.options import Options
from structprune.passes.select import select
from structprune.plan import make, realize
from tests.benchmarks.subjects import decoder
from tests.test_chains import Chain, Dense, Scales, passed_on, reshaped

STAGES = ("capture", "solve", "choose", "adapt")


def stages(layers: int) -> tuple[int, dict[str, float]]:
    """The number of operators, and the CPU seconds of each stage of one shrink."""
    torch.manual_seed(0)
    model, inputs = decoder(layers)
    model.eval()
    clock = [time.process_time()]
    frontend = read(model, inputs)
    clock.append(time.process_time())
    analysis = structprune.views.analysis.Analysis(frontend)
    clock.append(time.process_time())
    target = aim(analysis, Options(0.5, align=1))
    clock.append(time.process_time())
    asked = frontend.constraints(analysis.solution, "module")
    clock.append(time.process_time())
    choice = select(target, asked.ties, asked.frozen)
    clock.append(time.process_time())
    make(analysis, realize(analysis, choice.kept, asked))
    clock.append(time.process_time())
    capture, solve, score, read_code, choose, adapt = (after - before for before, after in pairwise(clock))
    seconds = {"capture": capture, "solve": solve, "choose": score + choose, "adapt": read_code + adapt}
    return len(frontend.graph.ops), seconds


CHAINS: dict[str, Callable[[int], nn.Module]] = {
    "norms of growing concatenations": Dense,
    "parameters in one group": Scales,
    "pointwise operators": lambda n: Chain(partial(passed_on, times=n)),
    "reshapes": lambda n: Chain(partial(reshaped, times=n // 2)),
}


def chains(lengths: Sequence[int]) -> None:
    print("| chain | length | record, s | solve, s |\n|---|---|---|---|")
    for name, build in CHAINS.items():
        for length in lengths:
            model = build(length).eval()
            start = time.process_time()
            frontend = read(model, torch.randn(2, 3))
            recorded = time.process_time()
            structprune.views.analysis.Analysis(frontend)
            solved = time.process_time()
            print(f"| {name} | {length} | {recorded - start:.2f} | {solved - recorded:.2f} |", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4, 8, 16, 32, 64])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--chains", type=int, nargs="+", metavar="LENGTH")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    if options.chains:
        chains(options.chains)
        return 0
    stages(1)
    columns = ["layers", "operators", "CPU s", "ms per operator", *STAGES]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    each: list[float] = []
    for layers in options.layers:
        count, seconds = min((stages(layers) for _ in range(options.repeats)), key=lambda run: sum(run[1].values()))
        whole = sum(seconds.values())
        each.append(1000 * whole / count)
        parts = " | ".join(f"{1000 * seconds[stage] / count:.2f}" for stage in STAGES)
        print(f"| {layers} | {count} | {whole:.2f} | {each[-1]:.2f} | {parts} |", flush=True)
    print(f"\nAn operator of the deepest decoder takes {each[-1] / each[0]:.2f} times as long as of the shallowest.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
