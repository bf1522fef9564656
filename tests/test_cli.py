"""The command line: what each command does, what it prints, its exit codes, and that nothing is half-written."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import models_zoo
import structprune
from structprune import cli
from structprune.cli import outputs as cli_outputs
from structprune.cli import shrink as cli_shrink
from structprune.cli.arguments import EXIT_CODES, parser
from structprune.cli.measure import compare as cli_compare
from structprune.cli.outcome import CODES, Exit
from structprune.cli.outputs import Outputs
from structprune.errors import InvalidArgument, OutputError
from structprune.views import progress

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ("shrink", "apply", "analyze", "explain", "compare")
CODE = '''
import torch
from torch import nn

import structprune

print("a module that talks")


class Net(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.first = nn.Linear(6, width)
        self.second = nn.Linear(width, 3)

    def forward(self, x):
        return self.second(self.first(x).relu())


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 32)
        self.inner = nn.Linear(32, 32)
        self.head = nn.Linear(32, 20, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids):
        return self.head(self.inner(self.table(ids)))


@structprune.criterion("first_come")
def first_come(group, weights):
    return range(group.size, 0, -1)


def seeded(kind):
    torch.manual_seed(0)
    return kind()


model = seeded(Net)
number = 3


def build():
    print("a factory that talks")
    return seeded(Net)


def with_inputs():
    return seeded(Net), torch.ones(4, 6)


def tied():
    return seeded(Tied)


def in_training():
    return nn.Sequential(nn.Linear(6, 64), nn.Dropout(0.5), nn.Linear(64, 3)).train()


def needs(width):
    return Net(width)


def fails():
    raise ValueError("no such width")


def leaves():
    raise SystemExit(3)


def gives_a_number():
    return number


def warns():
    import warnings

    warnings.warn("two\\nlines")
    return seeded(Net)
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with importable code, as a user has it."""
    (tmp_path / "nets.py").write_text(CODE, encoding="utf-8")
    (tmp_path / "broken.py").write_text("raise RuntimeError('no\\nway')\n", encoding="utf-8")
    (tmp_path / "lacking.py").write_text("import no_such_package\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    monkeypatch.delenv("STRUCTPRUNE_DEBUG", raising=False)
    yield tmp_path
    for name in ("nets", "broken", "lacking"):
        sys.modules.pop(name, None)
    structprune.passes.score.CRITERIA.pop("first_come", None)


@pytest.fixture
def call(here: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command in this process: (code, stdout, stderr)."""

    def run(*arguments: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = cli.main([str(each) for each in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        out, error = capsys.readouterr()
        return int(code), out, error

    return run


def answer(result: tuple[int, str, str]) -> dict[str, Any]:
    code, out, error = result
    assert code == 0, error
    found: dict[str, Any] = json.loads(out)
    return found


def process(*arguments: str, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "structprune", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment(), check=False, **options)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def names(folder: Path) -> set[str]:
    """What lies in a folder, aside from what Python itself leaves there."""
    return {path.name for path in folder.iterdir()} - {"__pycache__", "nets.py", "broken.py", "lacking.py"}


def net(kind: str = "Net") -> nn.Module:
    namespace: dict[str, Any] = {"__name__": "nets"}
    structprune.passes.score.CRITERIA.pop("first_come", None)
    exec(compile(CODE.replace("print(", "str("), "nets.py", "exec"), namespace)
    structprune.passes.score.CRITERIA.pop("first_come", None)
    made: nn.Module = namespace["seeded"](namespace[kind])
    return made.eval()


X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


def save_onnx(path: Path, seed: int = 0) -> None:
    """A small convolutional ONNX file."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(seed)

    def weight(name: str, *shape: int) -> Any:
        return numpy_helper.from_array(generator.standard_normal(shape).astype(np.float32), name)

    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "first.weight"], ["a"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Conv", ["b", "second.weight"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("GlobalAveragePool", ["c"], ["d"]),
            helper.make_node("Flatten", ["d"], ["e"]),
            helper.make_node("Gemm", ["e", "head.weight", "head.bias"], ["y"], transB=1),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5])],
        [
            weight("first.weight", 64, 3, 3, 3),
            weight("second.weight", 64, 64, 3, 3),
            weight("head.weight", 5, 64),
            weight("head.bias", 5),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))


def run_onnx(path: Path, *arrays: Any) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {each.name: array for each, array in zip(session.get_inputs(), arrays, strict=True)})[0]


# -- help ---------------------------------------------------------------------------------------------


def test_help_of_every_command(call: Any) -> None:
    code, out, _ = call("--help")
    assert code == 0 and all(f"    {command} " in out for command in COMMANDS)
    for command in COMMANDS:
        code, out, _ = call(command, "--help")
        assert code == 0
        assert f"\n  structprune {command} " in out, "an example"
        assert "exit codes:" in out and "MODEL is one of" in out


def test_version(call: Any) -> None:
    assert call("--version") == (0, f"structprune {structprune.__version__}\n", "")


def test_the_help_names_every_exit_code() -> None:
    for code in Exit:
        assert re.search(rf"(^| ) {int(code)}  ?\w", EXIT_CODES, re.MULTILINE), code
    assert set(CODES.values()) == set(Exit) - {Exit.DONE, Exit.BUG, Exit.INTERRUPTED}


def test_the_examples_in_the_help_are_read() -> None:
    commands = next(each for each in parser()._actions if each.dest == "command").choices
    for name, command in commands.items():
        examples = [line.split()[1:] for line in command.epilog.splitlines() if line.startswith("  structprune ")]
        assert examples
        for words in examples:
            assert parser().parse_args([word.strip("'") for word in words]).command == name


def test_the_commands_in_the_readme_are_read() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    commands = [line.split("#")[0].split()[2:] for line in lines if line.startswith("$ structprune ")]
    assert {words[0] for words in commands} == set(COMMANDS)
    for words in commands:
        assert parser().parse_args(words).command == words[0]


def test_the_readme_has_every_exit_code() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"| {int(code)} |" in text for code in Exit)


def loaded_by(code: str, cwd: Path) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules, file=sys.stderr)"],
        cwd=cwd, capture_output=True, text=True, env=environment(), check=True,
    )  # fmt: skip
    return set(done.stderr.split())


def quietly(*arguments: str) -> str:
    return f"""
from structprune.cli import main
try:
    code = main({list(arguments)!r})
except SystemExit as end:
    code = end.code
assert not code, code
"""


HEAVY = {"torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "networkx", "transformers"}


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("shrink", "--help"), ("compare", "--help")])
def test_help_loads_nothing_heavy(arguments: tuple[str, ...], here: Path) -> None:
    assert not loaded_by(quietly(*arguments), here) & HEAVY


def test_onnx_users_never_load_torch(here: Path) -> None:
    save_onnx(here / "net.onnx")
    code = "".join(
        quietly(*each)
        for each in (
            ("shrink", "net.onnx", "small.onnx", "--ratio", "0.5", "--verify", "numeric", "--plan", "plan.json"),
            ("apply", "plan.json", "net.onnx", "again.onnx"),
            ("analyze", "net.onnx"),
            ("explain", "net.onnx", "head.weight"),
            ("compare", "net.onnx", "small.onnx", "--runs", "2"),
        )
    )
    loaded = loaded_by(code, here)
    assert "onnxruntime" in loaded and "torch" not in loaded


def test_torch_users_never_load_onnx(here: Path) -> None:
    code = quietly("shrink", "nets:build", "small.safetensors", "--ratio", "0.5")
    code += quietly("apply", "small.plan.json", "nets:build", "again.pt2")
    code += quietly("explain", "nets:build", "--frozen")
    loaded = loaded_by(code, here)
    assert "torch" in loaded and not loaded & {"onnx", "onnx_ir", "onnxscript", "onnxruntime"}


# -- shrink and apply ---------------------------------------------------------------------------------


def test_safetensors_and_plan(call: Any, here: Path) -> None:
    from safetensors.torch import load_file

    code, out, _ = call("shrink", "nets:build", "small.safetensors", "--ratio", 0.5)
    assert code == 0 and names(here) == {"small.safetensors", "small.plan.json"}
    assert "wrote small.plan.json" in out and "wrote small.safetensors" in out
    small = structprune.load(net(), here / "small.plan.json", load_file(here / "small.safetensors"))
    assert torch.equal(small(X), structprune.shrink(net(), 0.5)(X))


def test_exported_program(call: Any, here: Path) -> None:
    found = answer(call("shrink", "nets:build", "small.pt2", "--ratio", 0.5, "--json"))
    assert found["files"] == [{"path": "small.pt2", "bytes": (here / "small.pt2").stat().st_size}]
    assert found["note"] == "the batch size is open"
    small = torch.export.load(here / "small.pt2").module()
    for count in (1, 2, 5):
        assert torch.allclose(small(X[:count]), structprune.shrink(net(), 0.5)(X[:count]), atol=1e-6)


def test_onnx_from_torch(call: Any, here: Path) -> None:
    found = answer(call("shrink", "zoo:resnet20", "small.onnx", "--ratio", 0.5, "--json"))
    model, inputs = models_zoo.build("resnet20")
    small = structprune.shrink(model, 0.5, inputs, align="onnxruntime")
    assert "multiples of 16" in found["report"]["note"]
    several = torch.cat([inputs, inputs[:1]])
    with torch.no_grad():
        assert np.allclose(run_onnx(here / "small.onnx", several.numpy()), small(several).numpy(), atol=1e-5)
    widths = {each["name"]: each["after"] for each in found["report"]["layers"]}
    assert all(widths[name][0] % 16 == 0 for name in widths if "conv" in name and name.endswith("weight"))
    linear = ("shrink", "nets:build", "--dry-run", "--ratio", 0.5, "--align", "onnxruntime", "--json")
    assert answer(call(*linear))["report"]["note"] == "", "a model without convolutions"
    free = answer(call("shrink", "zoo:resnet20", "--dry-run", "--ratio", 0.5, "--align", 1, "--json"))["report"]
    assert any(each["after"][0] % 16 for each in free["layers"] if "conv" in each["name"])


def test_onnx_to_onnx(call: Any, here: Path) -> None:
    save_onnx(here / "net.onnx")
    before = (here / "net.onnx").read_bytes()
    found = answer(call("shrink", "net.onnx", "small.onnx", "--ratio", 0.5, "--verify", "numeric", "--json"))
    assert found["report"]["reached"] == pytest.approx(0.5, abs=0.01)
    assert 0 <= found["report"]["error"] <= 1e-4
    assert (here / "net.onnx").read_bytes() == before and names(here) == {"net.onnx", "small.onnx"}
    structprune.shrink("net.onnx", 0.5, output_path="library.onnx")
    x = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)
    assert np.array_equal(run_onnx(here / "small.onnx", x), run_onnx(here / "library.onnx", x))
    assert run_onnx(here / "small.onnx", x).shape == (3, 5)


@pytest.mark.parametrize("model, ending", [("nets:build", "safetensors"), ("net.onnx", "onnx")])
def test_a_plan_is_carried_out_again(model: str, ending: str, call: Any, here: Path) -> None:
    save_onnx(here / "net.onnx")
    planned = answer(call("shrink", model, "--ratio", 0.5, "--dry-run", "--plan", "plan.json", "--json"))
    assert planned["dry_run"] and names(here) == {"net.onnx", "plan.json"}
    applied = answer(call("apply", "plan.json", model, f"a.{ending}", "--verify", "numeric", "--json"))
    answer(call("shrink", model, f"b.{ending}", "--ratio", 0.5, "--json"))
    assert applied["report"]["parameters"] == planned["report"]["parameters"]
    if ending == "onnx":
        x = np.ones((1, 3, 8, 8), dtype=np.float32)
        assert np.array_equal(run_onnx(here / "a.onnx", x), run_onnx(here / "b.onnx", x))
    else:
        assert (here / "a.safetensors").read_bytes() == (here / "b.safetensors").read_bytes()


def test_a_plan_on_new_weights(call: Any, here: Path) -> None:
    from safetensors.torch import load_file, save_file

    call("shrink", "nets:build", "--ratio", 0.5, "--dry-run", "--plan", "plan.json")
    tuned = {name: tensor + 1 for name, tensor in net().state_dict().items()}
    save_file(tuned, here / "tuned.safetensors")
    torch.save(tuned, here / "tuned.pt")
    kept = json.loads((here / "plan.json").read_text())["groups"]["first.weight:0"]["keep"]
    for weights in ("tuned.safetensors", "tuned.pt"):
        answer(call("apply", "plan.json", "nets:build", "new.safetensors", "--weights", weights, "--json"))
        assert torch.equal(load_file(here / "new.safetensors")["first.weight"], tuned["first.weight"][kept])


def test_tied_weights_are_written_and_read(call: Any, here: Path) -> None:
    from safetensors.torch import load_file

    answer(call("shrink", "nets:tied", "small.safetensors", "--ratio", 0.4, "--input", "2,7:int64", "--json"))
    small = structprune.load(net("Tied"), here / "small.plan.json", load_file(here / "small.safetensors"))
    assert small.head.weight is small.table.weight
    ids = torch.arange(10).reshape(2, 5)
    expected = structprune.shrink(net("Tied"), 0.4, torch.zeros((2, 7), dtype=torch.long))
    assert torch.equal(small(ids), expected(ids))


def test_all_options_arrive(call: Any, here: Path) -> None:
    plan = here / "plan.json"
    options = ("--of", "channels", "--score", "random", "--scope", "uniform", "--align", 2, "--seed", 7)
    patterns = ("--only", "first", "--only", "second", "--exclude", "nix.*")
    code, _, error = call("shrink", "nets:build", "--ratio", 0.25, "--dry-run", "--plan", plan, *options, *patterns)
    assert code == Exit.USAGE and "'nix.*'" in error
    options = (*options, "--output", "graph", "--verify", "none", "--only", "first", "--only", "second")
    answer(call("shrink", "nets:build", "--ratio", 0.25, "--dry-run", "--plan", plan, "--json", *options))
    saved = json.loads(plan.read_text())
    assert saved["options"] == {
        "ratio": 0.25, "of": "channels", "score": "random", "scope": "uniform", "exclude": [],
        "only": ["first", "second"], "align": 2, "seed": 7,
    }  # fmt: skip
    assert (saved["output"], saved["verify"]) == ("graph", None)
    call("shrink", "nets:build", "--ratio", 0.5, "--dry-run", "--plan", plan, "--score", "first_come")
    assert json.loads(plan.read_text())["groups"]["first.weight:0"]["keep"] == list(range(32))


def test_options_left_out_are_those_of_the_library(call: Any, here: Path) -> None:
    call("shrink", "nets:with_inputs", "--ratio", 0.5, "--dry-run", "--plan", "plan.json")
    structprune.plan(net(), 0.5, torch.ones(4, 6)).save("library.json")
    assert (here / "plan.json").read_text() == (here / "library.json").read_text()


@pytest.mark.parametrize(
    "model, text, expected",
    [
        ("nets:build", "3,6", [{"tuple": [{"tensor": [3, 6], "dtype": "float32"}]}, {"dict": {}}]),
        ("nets:build", "x=3x6", [{"tuple": []}, {"dict": {"x": {"tensor": [3, 6], "dtype": "float32"}}}]),
        ("nets:tied", "ids=2,7:int32", [{"tuple": []}, {"dict": {"ids": {"tensor": [2, 7], "dtype": "int32"}}}]),
        ("net.onnx", "7,3,8,8", [{"tuple": []}, {"dict": {"x": {"tensor": [7, 3, 8, 8], "dtype": "float32"}}}]),
        ("net.onnx", "x=7,3,8,8", [{"tuple": []}, {"dict": {"x": {"tensor": [7, 3, 8, 8], "dtype": "float32"}}}]),
    ],
)
def test_input_shapes(model: str, text: str, expected: Any, call: Any, here: Path) -> None:
    save_onnx(here / "net.onnx")
    answer(call("shrink", model, "--ratio", 0, "--dry-run", "--plan", "p.json", "--json", "--input", text))
    inputs = json.loads((here / "p.json").read_text())["inputs"]["tuple"]
    for each in inputs[1]["dict"].values():
        each.pop("values", None)  # whole numbers are kept: models look at them
    assert inputs == expected


def test_the_report(call: Any, here: Path) -> None:
    found = answer(call("shrink", "nets:build", "--ratio", 0.5, "--dry-run", "--json", "--report", "r.json"))
    assert json.loads((here / "r.json").read_text()) == found["report"]
    assert found["report"]["parameters"] == [643, 323]
    code, out, _ = call("shrink", "nets:build", "--ratio", 0.5, "--dry-run", "--report", "r.txt")
    assert code == 0 and (here / "r.txt").read_text().strip() in out
    assert out.startswith("Net: asked for 0.5 of the params")


def test_models_are_written_as_they_are_deployed(call: Any, here: Path) -> None:
    """In evaluation mode, whatever mode the factory left them in."""
    assert call("shrink", "nets:in_training", "small.pt2", "--ratio", 0.5)[0] == 0
    small = torch.export.load(here / "small.pt2").module()
    assert torch.equal(small(X), small(X))


def test_exported_programs_are_models_too(call: Any, here: Path) -> None:
    call("shrink", "nets:with_inputs", "small.pt2", "--ratio", 0)
    found = answer(call("shrink", "small.pt2", "smaller.pt2", "--ratio", 0.5, "--json"))
    assert found["report"]["parameters"] == [643, 323]
    assert torch.export.load(here / "smaller.pt2").module()(X).shape == (5, 3)


# -- analyze and explain ------------------------------------------------------------------------------


def test_analyze(call: Any) -> None:
    _, out, _ = call("analyze", "nets:build")
    analysis = structprune.analyze(net())
    assert out.startswith(str(analysis).splitlines()[0])
    assert "at most 98.0% of the parameters and 98.4% of the multiply-accumulates could be removed" in out
    found = answer(call("analyze", "nets:build", "--json"))
    assert found["parameters"] == 643 and found["macs"] == 6 * 64 + 64 * 3
    assert [group["name"] for group in found["groups"]] == ["first.weight:0"]
    assert found["groups"][0]["members"] == [
        {"parameter": "first.weight", "axis": 0}, {"parameter": "first.bias", "axis": 0},
        {"parameter": "second.weight", "axis": 1},
    ]  # fmt: skip
    assert [each["reason"] for each in found["frozen"]] == ["reaches the model's output"]
    assert found["removable"]["params"] == pytest.approx(1 - (6 + 1 + 3 + 3) / 643)


def test_what_is_said_to_be_removable_is_the_limit(call: Any) -> None:
    most = answer(call("analyze", "nets:build", "--json"))["removable"]["params"]
    assert call("shrink", "nets:build", "--dry-run", "--ratio", most)[0] == 0
    assert call("shrink", "nets:build", "--dry-run", "--ratio", most + 0.015)[0] == Exit.RATIO


def test_explain(call: Any) -> None:
    assert call("explain", "nets:build", "first.weight")[1] == structprune.analyze(net()).explain("first.weight") + "\n"
    found = answer(call("explain", "nets:build", "first.weight", "--json"))
    assert found["shape"] == [64, 6]
    out, in_ = (axis["widths"] for axis in found["axes"])
    assert {each["parameter"] for each in out[0]["tied"]} == {"first.bias", "second.weight"}
    assert next(e for e in out[0]["tied"] if e["parameter"] == "second.weight")["through"] == ["linear", "relu"]
    assert in_[0]["frozen"] == "an input of the model" and in_[0]["tied"] == []


def test_explain_what_is_frozen(call: Any) -> None:
    found = answer(call("explain", "nets:build", "--frozen", "--json"))
    reasons = {each["reason"]: each for each in found["frozen"]}
    assert set(reasons) == {"reaches the model's output", "an input of the model"}
    held = reasons["reaches the model's output"]
    assert held["entries"] == 3
    assert [(each["parameter"], each["axis"]) for each in held["axes"]] == [("second.weight", 0), ("second.bias", 0)]
    assert all("nets.py" in each["where"] for each in held["axes"])
    _, out, _ = call("explain", "nets:build", "--frozen")
    assert "reaches the model's output: 3 parameters (0.5%) as a whole" in out and "second.bias" in out


def test_an_onnx_file_is_explained(call: Any, here: Path) -> None:
    save_onnx(here / "net.onnx")
    assert "second.weight through" in call("explain", "net.onnx", "first.weight")[1]
    assert answer(call("analyze", "net.onnx", "--json"))["model"] == "net.onnx"


# -- compare ------------------------------------------------------------------------------------------


def test_compare_onnx_files(call: Any, here: Path) -> None:
    save_onnx(here / "net.onnx")
    call("shrink", "net.onnx", "small.onnx", "--ratio", 0.5)
    found = answer(call("compare", "net.onnx", "small.onnx", "--runs", 3, "--input", "2,3,8,8", "--json"))
    a, b = found["a"], found["b"]
    for each, name in ((a, "net.onnx"), (b, "small.onnx")):
        assert each["model"] == name and each["runtime"].startswith("onnxruntime ")
        assert each["file_bytes"] == (here / name).stat().st_size
        assert 0 < each["latency_ms"]["p10"] <= each["latency_ms"]["median"] <= each["latency_ms"]["p90"]
        assert each["peak_memory_bytes"] is None or 0 < each["peak_memory_bytes"] < 1 << 30
    assert (a["parameters"], a["macs"]) == (38917, 2 * (64 * (3 * 9 + 64 * 9) * 64 + 64 * 5))
    assert b["parameters"] == pytest.approx(0.5 * a["parameters"], rel=0.02)
    assert found["inputs"] == [{"name": "x", "shape": [2, 3, 8, 8], "dtype": "float32"}]
    assert found["speed_up"] == pytest.approx(a["latency_ms"]["median"] / b["latency_ms"]["median"])
    (apart,) = found["differences"]
    assert apart["shapes"] == [[2, 5], [2, 5]] and apart["largest_difference"] > 0
    (same,) = answer(call("compare", "net.onnx", "net.onnx", "--runs", 1, "--json"))["differences"]
    assert same["largest_difference"] == 0 and same["largest_entry"] > 0
    _, out, _ = call("compare", "net.onnx", "small.onnx", "--runs", 3)
    assert "times as fast as A: medians of 3 runs each, in turns, 1 thread" in out and "peak memory" in out


def test_compare_torch_with_its_export(call: Any, here: Path) -> None:
    call("shrink", "nets:build", "same.onnx", "--ratio", 0)
    call("shrink", "nets:build", "same.pt2", "--ratio", 0)
    for other in ("same.onnx", "same.pt2"):
        found = answer(call("compare", "nets:with_inputs", other, "--runs", 2, "--json"))
        assert found["inputs"][0]["shape"] == [4, 6]
        assert found["a"]["parameters"] == found["b"]["parameters"] == 643
        assert found["a"]["macs"] == found["b"]["macs"] == 4 * (6 * 64 + 64 * 3)
        (apart,) = found["differences"]
        assert apart["largest_difference"] <= 1e-6 * apart["largest_entry"]
    assert found["a"]["file_bytes"] is None and found["b"]["file_bytes"] == (here / "same.pt2").stat().st_size


def test_runs_take_turns_and_start_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run takes five seconds after another model's, and two after its own, in one of which it does not compute."""
    turns: list[Any] = []
    clock = {"wall": 0.0, "computing": 0.0}
    monkeypatch.setattr(cli_compare, "perf_counter", lambda: clock["wall"])
    monkeypatch.setattr(cli_compare, "process_time", lambda: clock["computing"])

    class Clocked:
        def run(self, prepared: Any) -> None:
            clock["wall"] += 2 if turns and turns[-1] is self else 5
            clock["computing"] += 1
            turns.append(self)

    runners: list[Any] = [Clocked() for _ in range(3)]
    times, computing = cli_compare.timed(runners, [None] * 3, 4)
    order = [runners.index(each) for each in turns[3 * cli_compare.WARM_UP :]]
    assert order[::2] == order[1::2] == [0, 1, 2, 1, 2, 0, 2, 0, 1, 0, 1, 2]
    assert times == [[2.0] * 4] * 3 and computing == 0.5


def test_a_busy_machine_is_named(call: Any, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_onnx(here / "net.onnx")
    for computing, is_named in ((0.7, True), (0.99, False)):
        monkeypatch.setattr(cli_compare, "timed", lambda *given, share=computing: ([[1.0], [1.0]], share))
        _, out, _ = call("compare", "net.onnx", "net.onnx", "--runs", 1)
        assert ("other programs held the processor for 30% of the runs' time" in out) == is_named
        _, out, _ = call("compare", "net.onnx", "net.onnx", "--runs", 1, "--threads", 2)
        assert "other programs" not in out


def test_files_that_only_onnxruntime_understands_are_compared(call: Any, here: Path) -> None:
    from onnx import TensorProto, helper, save

    value = helper.make_tensor_value_info
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "net",
        [value("x", TensorProto.FLOAT, ["batch", 3])], [value("y", TensorProto.FLOAT, ["batch", 3])])  # fmt: skip
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "bare.onnx")
    assert call("analyze", "bare.onnx")[0] == Exit.MODEL
    found = answer(call("compare", "bare.onnx", "bare.onnx", "--runs", 2, "--json"))
    assert found["a"]["parameters"] == 0 and found["a"]["macs"] is None and found["a"]["latency_ms"]["median"] > 0
    assert found["inputs"] == [{"name": "x", "shape": [2, 3], "dtype": "float32"}]
    assert found["differences"][0]["largest_difference"] == 0
    code, out, _ = call("compare", "bare.onnx", "bare.onnx", "--runs", 2, "--input", "5,3")
    assert code == 0 and "multiply-accumulates  " in out and "n/a" in out and "inputs x [5, 3]" in out
    # Without a rank in the file, the user has to give one.
    graph.input[0].type.tensor_type.ClearField("shape")
    graph.node[0].CopyFrom(helper.make_node("Concat", ["x", "x"], ["y"], axis=1))
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "ranks.onnx")
    code, out, error = call("compare", "ranks.onnx", "ranks.onnx", "--runs", 1)
    assert (code, out) == (Exit.MODEL, "") and "--input" in error
    assert call("compare", "ranks.onnx", "ranks.onnx", "--runs", 1, "--input", "x=5,3")[0] == 0


def test_what_cannot_be_compared(call: Any, here: Path) -> None:
    save_onnx(here / "net.onnx")
    code, _, error = call("compare", "net.onnx", "nets:build", "--runs", 1)
    assert code == Exit.MODEL and "nets:build does not run" in error and "--input" in error
    code, _, error = call("compare", "net.onnx", "net.onnx", "--input", "2,3,9,9")
    assert code == Exit.USAGE and "[2, 3, 9, 9]" in error
    code, _, error = call("compare", "net.onnx", "net.onnx", "--input", "nix=2,3,8,8")
    assert code == Exit.USAGE and "'nix'" in error and "it has x" in error


# -- exit codes and messages --------------------------------------------------------------------------

USAGE, MODEL = Exit.USAGE, Exit.MODEL
WRONG: list[tuple[str, Exit, str]] = [
    ("", USAGE, "COMMAND"),
    ("frobnicate", USAGE, "frobnicate"),
    ("shrink", USAGE, "MODEL"),
    ("shrink nets:build o.pt2", USAGE, "--ratio"),
    ("shrink nets:build o.pt2 --ratio half", USAGE, "'half'"),
    ("shrink nets:build o.pt2 --ratio 1", USAGE, "from 0 to below 1"),
    ("shrink nets:build o.pt2 --ratio -0.1", USAGE, "from 0 to below 1"),
    ("shrink nets:build o.pt2 --ratio nan", USAGE, "from 0 to below 1"),
    ("shrink nets:build o.pt2 --rat 0.5", USAGE, "--rat"),
    ("shrink nets:build --ratio 0.5", USAGE, "OUT is missing"),
    ("shrink nets:build small.bin --ratio 0.5", USAGE, ".safetensors"),
    ("shrink nets:build small --ratio 0.5", USAGE, ".safetensors"),
    ("shrink net.onnx small.pt2 --ratio 0.5", USAGE, "let OUT end in .onnx"),
    ("shrink nets:build o.pt2 --ratio 0.5 --of flops", USAGE, "'macs'"),
    ("shrink nets:build o.pt2 --ratio 0.5 --scope banana", USAGE, "'uniform'"),
    ("shrink nets:build o.pt2 --ratio 0.5 --score l7", USAGE, "bn_scale"),
    ("shrink nets:build o.pt2 --ratio 0.5 --align 0", USAGE, "whole number"),
    ("shrink nets:build o.pt2 --ratio 0.5 --align x", USAGE, "whole number"),
    ("shrink nets:build o.pt2 --ratio 0.5 --exclude nix", USAGE, "'nix'"),
    ("shrink nets:build o.pt2 --ratio 0.5 --input 3,a", USAGE, "'3,a'"),
    ("shrink nets:build o.pt2 --ratio 0.5 --input 3,6:float7", USAGE, "'float7'"),
    ("shrink nets:build o.pt2 --ratio 0.5 --input 3,6 --input x=3,6", USAGE, "all inputs or none"),
    ("shrink nets:build o.pt2 --ratio 0.5 --plan o.pt2", USAGE, "two outputs"),
    ("shrink net.onnx o.onnx --ratio 0.5 --weights nets.py", USAGE, "--weights"),
    ("shrink net.onnx o.onnx --ratio 0.5 --input 1,3,8,8:float16", USAGE, "shapes alone"),
    ("shrink net.onnx net.onnx --ratio 0.5", USAGE, "--force"),
    ("shrink net.onnx link.onnx --ratio 0.5", USAGE, "--force"),
    ("shrink net.onnx o.onnx --ratio 0.5 --plan net.onnx", USAGE, "--force"),
    ("explain nets:build", USAGE, "--frozen"),
    ("explain nets:build first.weight --frozen", USAGE, "--frozen"),
    ("explain nets:build first.wieght", USAGE, "did you mean first.weight"),
    ("explain net.onnx second.wight", USAGE, "did you mean second.weight"),
    ("compare net.onnx net.onnx --runs 0", USAGE, "'0'"),
    ("analyze nothing.onnx", MODEL, "No such file"),
    ("analyze nothing", MODEL, "No such file"),
    ("analyze folder.onnx", MODEL, "folder"),
    ("analyze folder.pt2", MODEL, "directory"),
    ("analyze text.onnx", MODEL, "not an ONNX file"),
    ("analyze cut.onnx", MODEL, "not an ONNX file"),
    ("analyze bare.onnx", MODEL, "no weights"),
    ("analyze ranks.onnx", MODEL, "how many axes its input 'x' has"),
    ("analyze lost.onnx", MODEL, "'lost.bin' with the data of the initializer 'first.weight' is missing"),
    ("analyze outside.onnx", MODEL, "outside of the model's folder"),
    ("shrink lost.onnx o.onnx --ratio 0.5", MODEL, "is missing"),
    ("shrink outside.onnx o.onnx --ratio 0.5", MODEL, "outside of the model's folder"),
    ("shrink future.onnx o.onnx --ratio 0.5", Exit.RATIO, "operators of version 999"),
    ("compare lost.onnx net.onnx", MODEL, "is missing"),
    ("compare text.onnx net.onnx", MODEL, "not an ONNX file"),
    ("shrink net.onnx none/o.onnx --ratio 0.5", Exit.OUTPUT, "there is no folder"),
    ("shrink net.onnx folder.onnx --ratio 0.5", Exit.OUTPUT, "is not a file"),
    ("analyze text.pt2", MODEL, "not a whole exported program"),
    ("analyze text.txt", MODEL, "module:factory"),
    ("analyze weights.pt", MODEL, "--weights"),
    ("analyze nets:", MODEL, "module:factory"),
    ("analyze zoo:resnet21", MODEL, "resnet20"),
    ("analyze nosuchmodule:build", MODEL, "no module 'nosuchmodule'"),
    ("analyze broken:build", MODEL, "RuntimeError"),
    ("analyze lacking:build", MODEL, "no_such_package"),
    ("analyze nets:buidl", MODEL, "did you mean build"),
    ("analyze nets:needs", MODEL, "'width'"),
    ("analyze nets:fails", MODEL, "no such width"),
    ("analyze nets:leaves", MODEL, "SystemExit"),
    ("analyze nets:number", MODEL, "is a int"),
    ("analyze nets:gives_a_number", MODEL, "gives a int"),
    ("analyze nets:build --input 3,7", MODEL, "--input"),
    ("analyze nets:build --weights nothing.pt", MODEL, "No such file"),
    ("analyze nets:build --weights text.txt", MODEL, "text.txt"),
    ("analyze nets:build --weights text.safetensors", MODEL, "text.safetensors"),
    ("analyze nets:build --weights pickled.pt", MODEL, "pickled.pt"),
    ("analyze nets:build --weights checkpoint.pt", MODEL, "state, epoch"),
    ("analyze nets:build --weights other.pt", MODEL, "does not fit"),
    ("shrink nets:build o.pt2 --ratio 0.99", Exit.RATIO, "structprune explain nets:build --frozen"),
    ("shrink net.onnx o.onnx --ratio 0.5 --exclude second.weight", Exit.RATIO, "structprune explain net.onnx --frozen"),
    ("apply nothing.json nets:build o.pt2", Exit.PLAN, "nothing.json"),
    ("apply text.txt nets:build o.pt2", Exit.PLAN, "not a whole plan"),
    ("apply cut.json nets:build o.pt2", Exit.PLAN, "cut.json"),
    ("apply edited.json nets:build o.pt2", Exit.PLAN, "edited.json"),
    ("apply plan.json zoo:resnet20 o.pt2", Exit.PLAN, "made for a Net"),
    ("apply plan.json net.onnx o.onnx", Exit.PLAN, "made for"),
    ("shrink nets:build none/o.pt2 --ratio 0.5", Exit.OUTPUT, "no folder"),
    ("shrink nets:build text.txt/o.pt2 --ratio 0.5", Exit.OUTPUT, "no folder"),
    ("shrink nets:build folder.pt2 --ratio 0.5", Exit.OUTPUT, "not a file"),
    ("shrink nets:build o.pt2 --ratio 0.5 --plan none/plan.json", Exit.OUTPUT, "none/plan.json"),
    ("shrink nets:build o.pt2 --ratio 0.5 --report none/report.txt", Exit.OUTPUT, "none/report.txt"),
    (f"shrink nets:build {'o' * 300}.pt2 --ratio 0.5", Exit.OUTPUT, "too long"),
]


def save_wrong_onnx(folder: Path) -> None:
    """Copies of net.onnx, each with something wrong."""
    import onnx

    def changed(name: str) -> Any:
        made[name] = onnx.load(str(folder / "net.onnx"))
        return made[name]

    made: dict[str, Any] = {}
    changed("ranks").graph.input[0].type.tensor_type.ClearField("shape")
    changed("future").opset_import[0].version = 999
    bare = changed("bare").graph
    del bare.node[2:], bare.node[0], bare.initializer[:]
    bare.node[0].input[0], bare.output[0].name = "x", "b"
    for name, location in (("lost", "lost.bin"), ("outside", "../outside.bin")):
        tensor = changed(name).graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
    (folder.parent / "outside.bin").write_bytes(bytes(10000))
    for name, model in made.items():
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())


class Opened:
    """What no weights may do."""

    def __reduce__(self) -> Any:
        return open, ("pickle_ran", "w")


@pytest.fixture
def clutter(here: Path) -> Path:
    """Every kind of wrong file."""
    save_onnx(here / "net.onnx")
    save_wrong_onnx(here)
    (here / "link.onnx").symlink_to("net.onnx")
    (here / "cut.onnx").write_bytes((here / "net.onnx").read_bytes()[:5000])
    for name in ("text.txt", "text.onnx", "text.pt2", "text.safetensors"):
        (here / name).write_text("This is a text.", encoding="utf-8")
    for name in ("folder.onnx", "folder.pt2"):
        (here / name).mkdir()
    torch.save({"w": Opened()}, here / "pickled.pt")
    torch.save({"state": {}, "epoch": 3}, here / "checkpoint.pt")
    torch.save({"first.weight": torch.ones(2, 2)}, here / "other.pt")
    torch.save(net().state_dict(), here / "weights.pt")
    structprune.plan(net(), 0.5).save(here / "plan.json")
    text = (here / "plan.json").read_text()
    (here / "cut.json").write_text(text[: len(text) // 2], encoding="utf-8")
    (here / "edited.json").write_text(text.replace('"of": "params"', '"of": "wishes"'), encoding="utf-8")
    return here


@pytest.mark.parametrize("line, code, part", WRONG, ids=[line[:70] or "nothing" for line, _, _ in WRONG])
def test_wrong_input_gives_one_line_and_leaves_nothing(
    line: str, code: Exit, part: str, call: Any, clutter: Path
) -> None:
    before = {name: (clutter / name).stat().st_mtime_ns for name in names(clutter)}
    found, out, error = call(*line.split())
    assert (found, out) == (code, ""), error
    ours = [text for text in error.splitlines() if "that talks" not in text]
    assert len(ours) == 1 and ours[0].startswith("structprune: "), error
    assert part in ours[0]
    assert {name: (clutter / name).stat().st_mtime_ns for name in names(clutter)} == before


def test_errors_as_json(call: Any) -> None:
    code, out, error = call("shrink", "nets:build", "o.pt2", "--ratio", 0.99, "--json")
    found = json.loads(out)["error"]
    assert code == found["code"] == Exit.RATIO and found["kind"] == "UnsupportedRatio"
    assert found["message"] in error and "Largest reachable ratio" in found["message"]


def test_json_alone_on_standard_output(call: Any) -> None:
    _, out, error = call("analyze", "nets:build", "--json")
    assert json.loads(out) and "a factory that talks" in error


def test_progress_on_a_terminal_alone(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "exporting" not in call("shrink", "nets:build", "small.pt2", "--ratio", 0.5)[2]
    monkeypatch.setattr(progress, "is_terminal", lambda stream: True)
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    monkeypatch.setattr(progress, "PAUSE", 0.0)
    code, out, error = call("shrink", "nets:build", "small.pt2", "--ratio", 0.5, "--json")
    assert code == 0 and json.loads(out)
    assert "reading nets:build" in error and "recording operator 2" in error and "exporting" in error
    assert error.endswith("\r"), "the line is erased"


def test_a_failed_verification(call: Any, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from structprune.frontends.torch.front import TorchFrontend
    from structprune.passes.verify import Trial

    def apart(*details: Any) -> list[Trial]:
        return [Trial("x", "float64", 1e-9, lambda seed: {"y": np.ones(2)}, lambda: {"y": np.full(2, 0.5)})]

    monkeypatch.setattr(TorchFrontend, "trials", apart)
    code, out, error = call("shrink", "nets:build", "o.pt2", "--ratio", 0.5)
    assert (code, out, names(here)) == (Exit.VERIFICATION, "", set()) and "0.5" in error


def test_a_missing_package(call: Any, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package, target in (("onnxscript", "o.onnx"), ("safetensors", "o.safetensors")):
        monkeypatch.setitem(sys.modules, package, None)
        code, _, error = call("shrink", "nets:build", target, "--ratio", 0.5)
        assert code == Exit.PACKAGE and f"pip install {package}" in error and not names(here)
    save_onnx(here / "net.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert call("analyze", "net.onnx")[0] == Exit.PACKAGE


def test_a_model_that_torch_cannot_export(call: Any, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*details: Any, **more: Any) -> Any:
        raise RuntimeError("many\nlines")

    monkeypatch.setattr(torch.export, "export", refuse)
    code, _, error = call("shrink", "nets:build", "o.pt2", "--ratio", 0.5)
    assert code == Exit.MODEL and "many lines" in error and "OUT.safetensors" in error and not names(here)
    assert call("shrink", "nets:build", "o.safetensors", "--ratio", 0.5)[0] == 0


def test_a_batch_that_cannot_be_open_is_fixed(call: Any, here: Path) -> None:
    (here / "fixed.py").write_text(
        "import torch\n"
        "class Fixed(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.first, self.second = torch.nn.Linear(6, 64), torch.nn.Linear(64, 3)\n"
        "    def forward(self, x):\n"
        "        return self.second(self.first(x.view(4, 6)))\n",
        encoding="utf-8",
    )
    found = answer(call("shrink", "fixed:Fixed", "small.pt2", "--ratio", 0.5, "--input", "4,6", "--json"))
    assert found["note"].startswith("the batch size is that of the example inputs: ")
    assert torch.export.load(here / "small.pt2").module()(X[:4]).shape == (4, 3)


def test_unexpected_failures(call: Any, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*details: Any, **more: Any) -> Any:
        return 1 / 0

    monkeypatch.setattr(cli_shrink, "decide", fail)
    command = ("shrink", "nets:model", "o.pt2", "--ratio", 0.5)
    code, out, error = call(*command)
    assert (code, out, names(here)) == (Exit.BUG, "", set())
    assert "ZeroDivisionError" in error and "please report" in error and "Traceback" not in error
    assert "Traceback" in call(*command, "--traceback")[2]
    monkeypatch.setenv("STRUCTPRUNE_DEBUG", "1")
    assert "Traceback" in call(*command)[2]


def test_interrupted(call: Any, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*details: Any, **more: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_shrink, "decide", interrupt)
    code, out, error = call("shrink", "nets:model", "o.pt2", "--ratio", 0.5)
    assert (code, out, names(here)) == (Exit.INTERRUPTED, "", set()) and error.endswith("structprune: interrupted\n")


def test_warnings_are_one_line(call: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        _, _, error = call("analyze", "nets:warns")
    assert "structprune: warning: two lines\n" in error


# -- whole or not at all ------------------------------------------------------------------------------


def test_the_input_is_replaced_only_by_force(call: Any, here: Path) -> None:
    save_onnx(here / "net.onnx")
    os.link(here / "net.onnx", here / "hard.onnx")
    before = (here / "net.onnx").read_bytes()
    assert call("shrink", "net.onnx", "hard.onnx", "--ratio", 0.5)[0] == Exit.USAGE
    assert answer(call("shrink", "net.onnx", "net.onnx", "--ratio", 0.5, "--force", "--json"))["files"]
    assert len((here / "net.onnx").read_bytes()) < 0.6 * len(before)
    assert (here / "hard.onnx").read_bytes() == before, "the old file itself is untouched"


def test_external_data_of_the_input_is_not_written_over(call: Any, here: Path) -> None:
    import onnx

    save_onnx(here / "net.onnx")
    model = onnx.load(str(here / "net.onnx"))
    onnx.save(model, "other.onnx", save_as_external_data=True, location="small.onnx.data", size_threshold=0)
    before = (here / "small.onnx.data").read_bytes()
    found = answer(call("shrink", "other.onnx", "small.onnx", "--ratio", 0.5, "--json"))
    data, model_file = (each["path"] for each in found["files"])
    assert re.fullmatch(r"small\.onnx\.[0-9a-f]{16}\.data", data) and model_file == "small.onnx"
    assert (here / "small.onnx.data").read_bytes() == before
    assert names(here) == {"net.onnx", "other.onnx", "small.onnx.data", "small.onnx", data}
    again = answer(call("shrink", "other.onnx", "small.onnx", "--ratio", 0.6, "--json"))
    assert names(here) == {"net.onnx", "other.onnx", "small.onnx.data", "small.onnx", again["files"][0]["path"]}
    assert again["files"][0]["path"] != data, "the data of the model that was replaced are gone, with it"
    answer(call("shrink", "other.onnx", "fine.onnx", "--ratio", 0.5, "--json"))
    compared = answer(call("compare", "other.onnx", "fine.onnx", "--runs", 1, "--json"))
    assert compared["a"]["file_bytes"] == len(before) + (here / "other.onnx").stat().st_size


def test_the_plan_beside_the_weights_is_an_input_too(call: Any, here: Path) -> None:
    call("shrink", "nets:build", "small.safetensors", "--ratio", 0.5)
    before = (here / "small.plan.json").read_bytes()
    command = ("apply", "small.plan.json", "nets:build", "small.safetensors", "--verify", "numeric")
    code, _, error = call(*command)
    assert code == Exit.USAGE and "small.plan.json is read by this command" in error
    assert (here / "small.plan.json").read_bytes() == before
    assert call(*command, "--force")[0] == 0


def test_an_older_output_is_replaced_whole(call: Any, here: Path) -> None:
    (here / "real").mkdir()
    (here / "real" / "old.pt2").write_text("old", encoding="utf-8")
    (here / "small.pt2").symlink_to("real/old.pt2")
    assert call("shrink", "nets:build", "small.pt2", "--ratio", 0.5)[0] == 0
    assert (here / "small.pt2").is_symlink() and (here / "real" / "old.pt2").stat().st_size > 1000
    mask = os.umask(0)
    os.umask(mask)
    assert (here / "real" / "old.pt2").stat().st_mode & 0o777 == 0o666 & ~mask


def limited() -> None:
    """No file may grow beyond 2,000 bytes: what a full disk does to a writer, halfway through."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_FSIZE")
@pytest.mark.parametrize("ending", ["onnx", "pt2", "safetensors", "onnx from onnx"])
def test_a_full_disk(ending: str, here: Path) -> None:
    model, target = ("net.onnx" if " " in ending else "nets:build"), f"o.{ending.split()[0]}"
    save_onnx(here / "net.onnx")
    (here / target).write_text("old", encoding="utf-8")
    before = names(here)
    done = process("shrink", model, target, "--ratio", "0.1", cwd=here, preexec_fn=limited)
    assert done.returncode == Exit.OUTPUT, done.stderr
    assert done.stdout == "" and f"structprune: shrink: {target} cannot be written: " in done.stderr
    assert names(here) == before and (here / target).read_text() == "old"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a file system that refuses")
def test_a_folder_that_refuses(call: Any) -> None:
    assert call("shrink", "nets:build", "/proc/o.pt2", "--ratio", 0.5)[0] == Exit.OUTPUT
    code, _, error = call("shrink", "nets:build", "/dev/full", "--ratio", 0.5)
    assert code == Exit.USAGE and Path("/dev/full").is_char_device(), error


def test_what_is_moved_and_when(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that was asked for comes last; a failure before that leaves it as it was."""
    moved: list[str] = []
    replace = os.replace

    def watched(source: Any, target: Any) -> None:
        moved.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(cli_outputs.os, "replace", watched)
    with Outputs((), force=False) as outputs:
        path = outputs.place(str(tmp_path / "a.onnx"))
        path.write_text("main")
        path.with_name("a.onnx.data").write_text("data")
        assert {each for each in names(tmp_path) if not each.startswith(".")} == set()
    assert moved == ["a.onnx.data", "a.onnx"] and names(tmp_path) == {"a.onnx", "a.onnx.data"}

    (tmp_path / "b.onnx.data").mkdir()
    with pytest.raises(OutputError, match="folder"), Outputs((), force=False) as outputs:
        path = outputs.place(str(tmp_path / "b.onnx"))
        path.write_text("main")
        path.with_name("b.onnx.data").write_text("data")
    with pytest.raises(InvalidArgument, match="two outputs"), Outputs((), force=False) as outputs:
        outputs.place(str(tmp_path / "c.onnx"))
        outputs.place(str(tmp_path / "." / "c.onnx"))
    assert names(tmp_path) == {"a.onnx", "a.onnx.data", "b.onnx.data"}


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_termination_leaves_nothing(here: Path) -> None:
    code = "import pathlib, time\n\n\ndef build():\n    pathlib.Path('started').touch()\n    time.sleep(60)\n"
    (here / "slow.py").write_text(code, encoding="utf-8")
    running = subprocess.Popen(
        [sys.executable, "-m", "structprune", "shrink", "slow:build", "o.pt2", "--ratio", "0.5"],
        cwd=here, env=environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for _ in range(600):
        if (here / "started").exists():
            break
        time.sleep(0.1)
    assert any(name.startswith(".o.pt2.") for name in names(here)), "the folder in which the output is prepared"
    running.send_signal(signal.SIGTERM)
    _, error = running.communicate(timeout=60)
    assert running.returncode == Exit.INTERRUPTED and "structprune: interrupted" in error
    assert names(here) == {"slow.py", "started"}


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_while_an_onnx_file_is_written(
    number: signal.Signals, call: Any, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from structprune.frontends.onnx.write import file

    save_onnx(here / "net.onnx")
    seen: list[Path] = []

    def stopped(model: Any, path: Path) -> None:
        path.write_bytes(b"half of")
        seen.append(path)
        os.kill(os.getpid(), number)
        time.sleep(5)

    monkeypatch.setattr(file, "write_graph", stopped)
    # A shell starts what runs in the background with interrupts ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code, out, error = call("shrink", "net.onnx", "o.onnx", "--ratio", 0.5, "--plan", "p.json")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (code, out, error) == (Exit.INTERRUPTED, "", "structprune: interrupted\n")
    assert seen and names(here) == {"net.onnx"}


@pytest.mark.skipif(os.name != "posix", reason="needs pipes")
def test_a_reader_that_has_had_enough(here: Path) -> None:
    save_onnx(here / "net.onnx")
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "structprune", "analyze", "net.onnx"],
        cwd=here, stdout=writing, stderr=subprocess.PIPE, text=True, env=environment(), check=False,
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_answer_that_cannot_be_written(here: Path) -> None:
    save_onnx(here / "net.onnx")
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "structprune", "analyze", "net.onnx", "--json"],
            cwd=here, stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), check=False,
        )  # fmt: skip
    assert done.returncode == Exit.OUTPUT
    assert done.stderr == "structprune: the answer cannot be written: No space left on device\n"


# -- installed ----------------------------------------------------------------------------------------


def test_the_script_is_the_function() -> None:
    assert 'structprune = "structprune.cli:main"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    done = process("--version", cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, f"structprune {structprune.__version__}\n")


def test_the_zoo_is_in_a_checkout_alone(call: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from structprune.cli import torch_source

    monkeypatch.setattr(torch_source, "CHECKOUT", tmp_path)
    code, _, error = call("analyze", "zoo:resnet20")
    assert code == Exit.MODEL and "checkout" in error
