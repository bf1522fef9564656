"""The arguments of every command. Nothing heavy is imported to read them or to print their help."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass
from math import nan, prod
from typing import Any, NoReturn

from structprune import __version__
from structprune.graph.plan_file import MEASURES, MOST_ENTRIES, OUTPUTS
from structprune.options import BLOCKS, SCOPES
from structprune.passes.score import CRITERIA

EXIT_CODES = """exit codes:
    0  done                                          5  the plan is broken or for another model
    1  an unexpected failure (please report it)      6  the result failed its verification
    2  wrong usage, an unknown name                  7  an output could not be written
    3  the model cannot be read or is not supported  8  a package that is needed is missing
    4  the ratio cannot be reached                 130  interrupted; nothing was written"""

MODEL = """MODEL is one of
  model.onnx        an ONNX file
  module:factory    importable torch code, from the current folder too: a module, or a callable without
                    arguments that returns a module or (module, example inputs)
  model.pt2         what torch.export.save wrote (loading it can run code: only from people you trust)
  zoo:resnet20      a model of models_zoo, in a checkout of structprune"""

OUT = """OUT's ending says what is written, whole or not at all
  small.onnx         an ONNX file; with small.onnx.data beside it where the weights need a file of their own
  small.pt2          for torch.export.load
  small.safetensors  the weights, with small.plan.json beside them, for structprune.load(model, plan, weights)"""


@dataclass(frozen=True, slots=True)
class InputShape:
    """An example input, as given on the command line."""

    name: str | None
    shape: tuple[int, ...]
    dtype: str | None


class WrongUsage(Exception):
    """The arguments make no command."""


class Parser(ArgumentParser):
    """argparse, with one line for an error."""

    def __init__(self, **options: Any) -> None:
        options.update(formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        _, _, command = self.prog.partition(" ")
        raise WrongUsage(f"{command}: " * bool(command) + f"{message} ({self.prog} --help says more)")

    def _print_message(self, message: str, file: Any = None) -> None:
        if message and file is not None:  # errors of the stream are the caller's: the help is an answer
            file.write(message)


def read_arguments(arguments: Sequence[str]) -> Namespace:
    """The options of one command; WrongUsage where they are wrong, SystemExit where they ask for help."""
    return parser().parse_args(arguments)


def parser() -> ArgumentParser:
    whole = Parser(
        prog="structprune",
        description="Give it a trained network, get a physically smaller, dense one back.",
        epilog=f"{MODEL}\n\n{EXIT_CODES}\n\n`structprune COMMAND --help` shows options and examples.",
    )
    whole.add_argument("--version", action="version", version=f"structprune {__version__}")
    commands = whole.add_subparsers(dest="command", metavar="COMMAND", required=True)
    add_shrink(commands)
    add_apply(commands)
    add_analyze(commands)
    add_explain(commands)
    add_compare(commands)
    return whole


def add_command(commands: Any, name: str, summary: str, examples: str, notes: str = "") -> ArgumentParser:
    examples = "\n".join(f"  structprune {line}" for line in examples.splitlines())
    epilog = "\n\n".join(part for part in (f"examples:\n{examples}", notes, EXIT_CODES) if part)
    made: ArgumentParser = commands.add_parser(name, help=summary, description=summary, epilog=epilog)
    made.add_argument("--json", action="store_true", help="print the answer as JSON, and nothing else, on stdout")
    made.add_argument("--traceback", action="store_true", help="show where an error comes from (STRUCTPRUNE_DEBUG=1)")
    return made


def add_model(command: ArgumentParser) -> None:
    command.add_argument("model", metavar="MODEL", help="an ONNX file or importable torch code, see below")
    command.add_argument(
        "--weights", metavar="FILE", help="a state dict (.safetensors, or .pt read without pickle) to load first"
    )
    add_input(command)


def add_input(command: ArgumentParser) -> None:
    command.add_argument(
        "--input",
        action="append",
        default=[],
        type=input_shape,
        metavar="[NAME=]SHAPE[:DTYPE]",
        help="an example input, such as 1,3,224,224 or input_ids=1,16:int64; once for each input of the model",
    )


def add_output(command: ArgumentParser) -> None:
    command.add_argument("--verify", choices=("shapes", "numeric", "none"), help=(
        "numeric: run the result and compare it with the original whose removed slices are zeroed"
    ))  # fmt: skip
    command.add_argument("--force", action="store_true", help="allow OUT to be a file that is read, and replace it")


def add_shrink(commands: Any) -> None:
    made = add_command(
        commands,
        "shrink",
        "Write a smaller model that does the same task.",
        "shrink model.onnx small.onnx --ratio 0.5\n"
        "shrink model.onnx small.onnx --ratio 0.5 --of macs --score fpgm --align 16 --verify numeric\n"
        "shrink torchvision.models:resnet18 small.onnx --ratio 0.5 --weights resnet18.safetensors\n"
        "shrink mycode:build small.safetensors --ratio 0.3 --exclude 'head.*'\n"
        "shrink model.onnx --ratio 0.5 --dry-run --plan plan.json",
        f"{MODEL}\n\n{OUT}",
    )
    add_model(made)
    made.add_argument("out", metavar="OUT", nargs="?", help="the file to write (not needed with --dry-run)")
    made.add_argument("--ratio", type=share, required=True, help="the share to remove, 0 <= RATIO < 1")
    made.add_argument("--of", choices=MEASURES, help="what the ratio counts (default: params)")
    made.add_argument("--score", metavar="HOW", help=(
        f"how indices are ranked: {', '.join(CRITERIA)}, or a criterion that MODEL's module registers (default: l2)"
    ))  # fmt: skip
    made.add_argument("--scope", choices=SCOPES, help=(
        "global (default): all layers ranked together; uniform: each the same share"
    ))  # fmt: skip
    made.add_argument("--align", type=alignment, metavar="N", help=(
        "kept widths are multiples of N; onnxruntime (the default where an ONNX file is written): "
        "those of convolutions of 16, or of the largest part of 16 that reaches the ratio"
    ))  # fmt: skip
    made.add_argument("--exclude", action="append", metavar="PATTERN", help=(
        "leave parameters or modules of such names whole (repeatable)"
    ))  # fmt: skip
    made.add_argument("--only", action="append", metavar="PATTERN", help="shrink nothing else (repeatable)")
    made.add_argument("--output", choices=OUTPUTS, help="of torch models: insist on the class or on a graph")
    made.add_argument("--seed", type=int, metavar="N", help="for --score random")
    add_output(made)
    made.add_argument("--plan", metavar="FILE", help="write the decision there too, for structprune apply")
    made.add_argument("--report", metavar="FILE", help="write the report there too; as JSON if FILE ends in .json")
    made.add_argument("--dry-run", action="store_true", help="decide and report, but write no model")


def add_apply(commands: Any) -> None:
    made = add_command(
        commands,
        "apply",
        "Carry out a saved plan, on new weights of the same model too.",
        "apply plan.json model.onnx small.onnx\n"
        "apply plan.json mycode:build small.pt2 --weights finetuned.safetensors --verify numeric",
        f"{MODEL}\n\n{OUT}",
    )
    made.add_argument("plan", metavar="PLAN", help="what structprune shrink --plan wrote")
    add_model(made)
    made.add_argument("out", metavar="OUT", help="the file to write")
    add_output(made)


def add_analyze(commands: Any) -> None:
    made = add_command(
        commands,
        "analyze",
        "Show the groups of a model, what is frozen and why, and what could be removed.",
        "analyze model.onnx\nanalyze mycode:build --input 1,3,224,224 --json",
        MODEL,
    )
    add_model(made)


def add_explain(commands: Any) -> None:
    made = add_command(
        commands,
        "explain",
        "Say what is tied to a weight and through which operators, or why widths are frozen.",
        "explain model.onnx layer3.0.conv2.weight\nexplain model.onnx --frozen",
        MODEL,
    )
    add_model(made)
    made.add_argument("weight", metavar="WEIGHT", nargs="?", help="the name of a parameter")
    made.add_argument("--frozen", action="store_true", help="list every reason for which something is frozen")


def add_compare(commands: Any) -> None:
    made = add_command(
        commands,
        "compare",
        "Measure two models side by side: size, memory, latency, difference of outputs.",
        "compare model.onnx small.onnx\n"
        "compare model.onnx small.onnx --input 8,3,224,224 --runs 200 --threads 4 --json",
        MODEL + "\n\nONNX files run in onnxruntime, torch models in torch, on the CPU. Latencies are measured after a\n"
        "warm-up, in turns. Peak memory is that of a fresh process, without what the runtime takes by itself.",
    )
    made.add_argument("first", metavar="A", help="a MODEL, such as the original")
    made.add_argument("second", metavar="B", help="a MODEL, such as the smaller one")
    add_input(made)
    made.add_argument("--runs", type=count, default=50, metavar="N", help="timed runs of each (default: 50)")
    made.add_argument("--threads", type=count, default=1, metavar="N", help="threads of the runtime (default: 1)")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="of the random inputs")


# -- values ----------------------------------------------------------------------------------------


def share(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = nan
    if not 0 <= found < 1:
        raise ArgumentTypeError(f"{text!r} is not usable: give the share to remove, a number from 0 to below 1")
    return found


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not usable: give a whole number, 1 or more")
    return int(text)


def alignment(text: str) -> int | str:
    return text if text in BLOCKS else count(text)


def input_shape(text: str) -> InputShape:
    before, _, after = text.rpartition("=")
    sizes, _, dtype = after.partition(":")
    parts = sizes.replace("x", ",").split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise ArgumentTypeError(f"{text!r} is no shape: write 1,3,224,224 or name=1,16:int64")
    shape = tuple(int(part) for part in parts)
    if prod(shape) > MOST_ENTRIES:
        raise ArgumentTypeError(f"{text!r} has {prod(shape)} numbers: at most {MOST_ENTRIES:,} are made")
    return InputShape(before or None, shape, dtype or None)
