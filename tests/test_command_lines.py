"""Hundreds of command lines: a documented exit code, one line of message, nothing half-written, nothing left behind."""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import structprune
from structprune import cli
from structprune.cli.outcome import Exit
from structprune.cli.streams import Patient
from tests.test_cli import call, clutter, environment, here, names, save_onnx

__all__ = ["call", "clutter", "here"]

MODELS = (
    *(
        "nets:build",
        "nets:fails",
        "nets:nothing",
        "nets:raises",
        "nets:",
        ":",
        ":build",
        "nets",
        "net.onnx",
        "text.onnx",
    ),
    *("folder.onnx", "/dev/null", "/dev/zero", "pipe.onnx", "pipe.pt2", "zoo:nothing", "zoo:", "", "\x1b[31m.onnx"),
    *("x" * 300 + ".onnx", "../..", "unreadable.onnx", "nets:build:more", "nets.build", "1:2", "nets:Net.forward"),
)
OUTS = (
    "o.onnx",
    "o.pt2",
    "o.safetensors",
    "o",
    ".onnx",
    "",
    "folder.onnx",
    "none/o.onnx",
    "/dev/full",
    "text.txt/o.pt2",
    "net.onnx",
)
OPTIONS = (
    *(("--weights", each) for each in ("weights.pt", "text.safetensors", "pickled.pt", "folder.pt", "/dev/zero", "")),
    *(("--input", each) for each in ("2,6", "x=2,6", "2,7", "", "=", ":", "2,6:", "y=2,6", "0,6", "2,6:bfloat16")),
    *(("--input", each) for each in ("99999999999,6", "9" * 5000)), ("--weights", "pipe.pt2"),
    *(("--verify", each) for each in ("none", "numeric", "maybe")),
    *(("--exclude", each) for each in ("first", "[", "*", "", "\x1b]0;x\x07")),
    *(("--only", each) for each in ("second", "***", "\ud800")),
    *(("--score", each) for each in ("l1", "l7", "\x1b[31m", "", "nan")),
    *(("--align", each) for each in ("3", "0", "-1", "1" * 5000, "onnxruntime", "tensorrt", "\uff11\uff16")),
    *(("--seed", each) for each in ("1", "-1", "x", "9" * 30, "9" * 5000)),
    *(("--of", each) for each in ("macs", "x")),
    *(("--output", each) for each in ("graph", "module", "")),
    *(("--scope", each) for each in ("uniform", "")),
    *(("--plan", each) for each in ("p.json", "none/p.json", "folder.pt2", "/dev/full", "o.pt2", "")),
    *(("--report", each) for each in ("r.json", "r.txt", "none/r", "net.onnx", "/dev/full")),
    *(("--runs", each) for each in ("1", "0", "-1", "x")), *(("--threads", each) for each in ("1", "0", "x")),
    ("--dry-run",), ("--force",), ("--frozen",), ("--nothing",), ("--json",), ("--",), ("-x",),
    ("--dry-run", "--dry-run"),
)  # fmt: skip


def lines() -> list[list[str]]:
    """Each model, each output and each option once, and a thousand combinations to draw from."""
    draw = random.Random(20)
    found: list[list[str]] = [
        [],
        ["--json"],
        ["--help", "--json"],
        ["shrink", "--help"],
        ["\x1b[31m"],
        [""],
        ["--version"],
    ]
    found += [["analyze", model] for model in MODELS]
    found += [["shrink", model, "o.pt2", "--ratio", "0.5"] for model in MODELS]
    found += [["shrink", model, out, "--ratio", "0.4"] for model in ("nets:build", "net.onnx") for out in OUTS]
    found += [["shrink", "nets:build", "o.safetensors", "--ratio", "0.5", *option] for option in OPTIONS]
    found += [
        ["shrink", "net.onnx", "o.onnx", "--ratio", ratio]
        for ratio in ("0", "1e-9", "0.999", "1", "inf", "-0", "1_0", "")
    ]
    plans = (
        "plan.json",
        "cut.json",
        "edited.json",
        "text.txt",
        "folder.pt2",
        "pipe.onnx",
        "/dev/zero",
        "",
        "none.json",
    )
    found += [["apply", plan, "nets:build", "o.safetensors"] for plan in plans]
    found += [
        ["explain", "nets:build", weight]
        for weight in ("first.weight", "", "\x1b[31m", "--frozen", "x" * 5000, "\ud800")
    ]
    found += [
        ["compare", "net.onnx", other] for other in ("none.onnx", "text.onnx", "pipe.onnx", "folder.onnx", "nets:fails")
    ]
    for _ in range(60):
        command = draw.choice(("shrink", "apply", "analyze", "explain", "compare"))
        words = [draw.choice((*MODELS, *OUTS)) for _ in range(draw.randrange(4))]
        options = itertools.chain.from_iterable(draw.sample(OPTIONS, draw.randrange(3)))
        found.append([command, *words, *options, *(["--json"] if draw.random() < 0.3 else [])])
    return found


LINES = lines()


@pytest.fixture
def crowded(clutter: Path) -> Path:
    """Every kind of wrong file, pipes among them."""
    (clutter / "nets.py").open("a", encoding="utf-8").write(
        "\n\nclass Odd(BaseException):\n    pass\n\n\ndef raises():\n    raise Odd('\\x1b[31mred\\n')\n"
    )
    for name in ("pipe.onnx", "pipe.pt2"):
        os.mkfifo(clutter / name)
    (clutter / "unreadable.onnx").write_bytes(b"")
    (clutter / "unreadable.onnx").chmod(0)
    return clutter


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    return {name: ((folder / name).lstat().st_mtime_ns, (folder / name).lstat().st_size) for name in names(folder)}


@pytest.mark.skipif(os.name != "posix", reason="needs pipes and devices")
@pytest.mark.parametrize("part", range(10))
def test_many_command_lines(part: int, call: Any, crowded: Path) -> None:
    assert len(LINES) > 200
    for line in LINES[part::10]:
        before = listing(crowded)
        code, out, error = call(*line)
        shown = f"{line}: {code}\n{out[:300]}\n{error[:600]}"
        assert code in set(Exit) - {Exit.BUG}, shown
        assert "Traceback" not in error and "\x1b" not in error and "\x07" not in error, shown
        if "--json" in line and not {"--help", "--version"} & set(line):
            assert ("error" in json.loads(out)) == (code != 0), shown
        elif code:
            assert out == "", shown
        ours = [text for text in error.splitlines() if text.startswith("structprune: ")]
        if code:
            assert len([text for text in ours if "warning: " not in text]) == 1, shown
            assert listing(crowded) == before, shown
        assert not [name for name in names(crowded) if name.startswith(".")], shown
        for name in names(crowded) - set(before):
            (crowded / name).unlink()
        save_onnx(crowded / "net.onnx")


# -- streams ------------------------------------------------------------------------------------------


def run(*arguments: str, cwd: Path, env: Any = None, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "structprune", *arguments]
    return subprocess.run(command, cwd=cwd, env={**environment(), **(env or {})}, check=False, timeout=300, **options)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_standard_error(here: Path) -> None:
    """The work goes on, and so do the prints of a factory."""
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = run("analyze", "nets:build", "--json", cwd=here, stdout=subprocess.PIPE, stderr=full)
        assert done.returncode == 0 and json.loads(done.stdout)["parameters"] == 643
        assert run("analyze", "nets:fails", cwd=here, stderr=full).returncode == Exit.MODEL
        assert run("analyze", cwd=here, stderr=full).returncode == Exit.USAGE


@pytest.mark.skipif(os.name != "posix", reason="needs descriptors")
def test_closed_streams(here: Path) -> None:
    for closed in ((2,), (0, 2), (0,)):
        done = run("analyze", "nets:build", "--json", cwd=here, stdout=subprocess.PIPE, close_fds=False,
                   preexec_fn=lambda closed=closed: [os.close(each) for each in closed])  # fmt: skip
        assert done.returncode == 0 and json.loads(done.stdout)["parameters"] == 643
    done = run("shrink", "nets:build", "o.safetensors", "--ratio", "0.5", cwd=here, stderr=subprocess.PIPE,
               preexec_fn=lambda: os.close(1))  # fmt: skip
    assert done.returncode == Exit.OUTPUT and b"standard output is closed" in done.stderr
    assert names(here) == {"o.safetensors", "o.plan.json"} and b"Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_help_that_cannot_be_written(here: Path) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = run("--help", cwd=here, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == Exit.OUTPUT
    assert done.stderr == b"structprune: the answer cannot be written: No space left on device\n"


def test_names_that_the_terminal_cannot_show(here: Path) -> None:
    (here / "letters.py").write_text(
        "import torch\n\n\ndef build():\n    torch.manual_seed(0)\n    model = torch.nn.Sequential()\n"
        "    model.add_module('h\\u00e9\\u4e16\\x1b[31m\\n', torch.nn.Linear(6, 32))\n"
        "    model.add_module('\\ud800last', torch.nn.Linear(32, 3))\n    return model\n",
        encoding="utf-8",
    )
    ascii_only = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for arguments in (("analyze", "letters:build"), ("explain", "letters:build", "--frozen"),
                      ("shrink", "letters:build", "o.safetensors", "--ratio", "0.5", "--input", "2,6"),
                      ("explain", "letters:build", "nö\x1b[31m"), ("analyze", "nö\x1b:x")):  # fmt: skip
        done = run(*arguments, cwd=here, env=ascii_only, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert done.returncode in (0, Exit.USAGE, Exit.MODEL, Exit.OUTPUT), done
        for text in (done.stdout, done.stderr):
            assert text.isascii() and b"\x1b" not in text and b"Traceback" not in text
        again = run(*arguments, "--json", cwd=here, env=ascii_only, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        json.loads(again.stdout)
        assert again.returncode == done.returncode


def test_errors_of_usage_as_json(call: Any) -> None:
    for line in (
        ["shrink", "--json"],
        ["--json"],
        ["analyze", "--nothing", "--json"],
        ["shrink", "a", "b", "--ratio", "2", "--json"],
    ):
        code, out, error = call(*line)
        found = json.loads(out)["error"]
        assert code == found["code"] == Exit.USAGE and found["kind"] == "InvalidArgument"
        assert error == f"structprune: {found['message']}\n"


def test_a_stream_that_is_none() -> None:
    for stream in (None, io.StringIO()):
        patient = Patient(stream)
        assert patient.write("text") == 4 and not patient.isatty()
        patient.flush()


# -- stops --------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_a_stop_at_any_time(here: Path) -> None:
    """While Python starts nothing of ours runs yet; from the first import on, the answer is 130."""
    for number, wait in itertools.product((signal.SIGINT, signal.SIGTERM), (0.15, 0.4, 0.8, 1.5)):
        running = subprocess.Popen(
            [sys.executable, "-m", "structprune", "shrink", "zoo:resnet20", "o.safetensors", "--ratio", "0.5"],
            cwd=here, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        time.sleep(wait)
        running.send_signal(number)
        _, error = running.communicate(timeout=120)
        if number == signal.SIGTERM and running.returncode == -signal.SIGTERM:
            continue  # before the package could say what to do with it
        assert running.returncode == Exit.INTERRUPTED, (number, wait, error)
        assert "Traceback" not in error and error in ("", "structprune: interrupted\n")
        assert not names(here)


def test_an_import_of_ones_own_is_not_a_command(here: Path) -> None:
    """Elsewhere an interrupt stays one."""
    code = "import signal\nsignal.signal(signal.SIGALRM, signal.default_int_handler)\n"
    code += "signal.setitimer(signal.ITIMER_REAL, 0.05)\ntry:\n    import structprune, torch\n    while True: pass\n"
    code += "except KeyboardInterrupt:\n    print('mine')\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=here, env=environment(), capture_output=True, text=True)
    assert done.stdout == "mine\n" and done.returncode == 0


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_what_killed_runs_left_is_removed(here: Path, call: Any) -> None:
    (here / "slow.py").write_text(
        "import pathlib, time\n\n\ndef build():\n    pathlib.Path('started').touch()\n    time.sleep(60)\n"
    )
    running = subprocess.Popen(
        [sys.executable, "-m", "structprune", "shrink", "slow:build", "o.safetensors", "--ratio", "0.5"],
        cwd=here, env=environment(), stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for _ in range(600):
        if (here / "started").exists():
            break
        time.sleep(0.1)
    left = {name for name in names(here) if name.startswith(".o.safetensors.")}
    assert len(left) == 1
    # A run that goes on is left alone.
    assert call("shrink", "nets:build", "o.safetensors", "--ratio", 0.5)[0] == 0
    assert left < names(here)
    running.kill()
    running.wait()
    assert left < names(here)
    assert call("shrink", "nets:build", "other.safetensors", "--ratio", 0.5)[0] == 0
    assert left < names(here), "only those of the same target"
    assert call("shrink", "nets:build", "o.safetensors", "--ratio", 0.5)[0] == 0
    assert not [name for name in names(here) if name.startswith(".")]


@pytest.mark.skipif(os.name != "posix", reason="needs rights")
def test_the_rights_of_what_is_replaced(here: Path, call: Any) -> None:
    for name in ("o.safetensors", "o.plan.json"):
        (here / name).touch()
        (here / name).chmod(0o600)
    assert call("shrink", "nets:build", "o.safetensors", "--ratio", 0.5)[0] == 0
    for name in ("o.safetensors", "o.plan.json"):
        assert (here / name).stat().st_mode & 0o777 == 0o600


def test_a_model_that_ends_the_program(call: Any, here: Path) -> None:
    (here / "ends.py").write_text(
        "import torch\n\n\nclass Ends(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.first, self.second = torch.nn.Linear(6, 32), torch.nn.Linear(32, 3)\n\n"
        "    def forward(self, x):\n        raise SystemExit(0)\n"
    )
    code, out, error = call("analyze", "ends:Ends", "--input", "2,6")
    assert (code, out) == (Exit.MODEL, "") and "SystemExit" in error


def test_answers_with_numbers_that_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.answer({"a": float("nan"), "b": [float("inf"), 1.5], "c": ({"d": -float("inf")},)}, "") == 0
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": [{"d": None}]}


def test_a_plan_by_hand_on_the_command_line(call: Any, here: Path) -> None:
    """Inputs of one's own stand in for those that a plan describes."""
    plan = structprune.plan(torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Linear(8, 3)), 0.25, torch.ones(1, 6))
    (here / "two.py").write_text(
        "import torch\n\n\ndef build():\n    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Linear(8, 3))\n"
    )
    plan.inputs["tuple"][0]["tuple"][0]["tensor"] = [1 << 30, 6]
    plan.save(here / "p.json")
    code, _, error = call("apply", "p.json", "two:build", "o.safetensors")
    assert code == Exit.PLAN and "inputs of 6442450944 numbers" in error
    assert call("apply", "p.json", "two:build", "o.safetensors", "--input", "2,6")[0] == 0
