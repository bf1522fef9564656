"""Files in, files out: written whole or not at all, refused with one clear error, streamed."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

import structprune
from structprune.errors import (
    CaptureError,
    InvalidArgument,
    OutputError,
    PlanMismatch,
    StructpruneError,
    UnsupportedModel,
    UnsupportedRatio,
)
from tests.onnx.build import build, weights

ROOT = Path(__file__).parents[2]
SIGNATURE = "(float[N, 6] x) => (float[N, 5] y)"
BODY = "h = Gemm (x, w0, b0)\nr = Relu (h)\ny = Gemm (r, w1, b1)"


def net(width: int = 64) -> onnx.ModelProto:
    return build(SIGNATURE, BODY, weights({"w0": (6, width), "b0": (width,), "w1": (width, 5), "b1": (5,)}))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(net(), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def raised(kind: type[StructpruneError], call: Any, *parts: str) -> None:
    with pytest.raises(StructpruneError) as caught:
        call()
    assert type(caught.value) is kind, repr(caught.value)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


def left(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir()}


# -- what comes back -------------------------------------------------------------------------------


def test_a_path_gives_a_file(path: Path) -> None:
    before = path.read_bytes()
    written = structprune.shrink(path, 0.5, output_path=path.parent / "small.onnx", verify="numeric")
    assert written == path.parent / "small.onnx"
    assert path.read_bytes() == before
    assert left(path.parent) == {"net.onnx", "small.onnx"}
    assert written.stat().st_size < 0.7 * path.stat().st_size
    onnx.checker.check_model(onnx.load(written), full_check=True)
    assert structprune.shrink(str(path), 0.5, output_path=str(path.parent / "again.onnx")).read_bytes() == (
        written.read_bytes()
    )


def test_a_proto_gives_a_proto_and_an_ir_model_an_ir_model() -> None:
    assert isinstance(structprune.shrink(net(), 0.5), onnx.ModelProto)
    model = ir.from_proto(net())
    before = {name: value.const_value.numpy().copy() for name, value in model.graph.initializers.items()}
    small = structprune.shrink(model, 0.5)
    assert isinstance(small, ir.Model)
    assert all(np.array_equal(before[name], v.const_value.numpy()) for name, v in model.graph.initializers.items())
    assert ir.to_proto(small).ByteSize() < 0.7 * net().ByteSize()


def test_nothing_asked_nothing_changed() -> None:
    model = net()
    same = structprune.shrink(model, 0)
    assert list(same.graph.initializer) == list(model.graph.initializer)
    x = np.ones((2, 6), dtype=np.float32)
    sessions = [onnxruntime.InferenceSession(each.SerializeToString()) for each in (model, same)]
    first, second = (session.run(None, {"x": x}) for session in sessions)
    assert np.array_equal(first[0], second[0])


def test_a_plan_is_carried_out_again_on_other_weights(path: Path, tmp_path: Path) -> None:
    plan = structprune.plan(path, 0.5)
    assert plan.report is not None and "an ONNX model" in str(plan)
    plan.save(tmp_path / "plan.json")
    other = build(SIGNATURE, BODY, weights({"w0": (6, 64), "b0": (64,), "w1": (64, 5), "b1": (5,)}, seed=1))
    small = structprune.Plan.load(tmp_path / "plan.json").apply(other)
    kept = plan.keep["w0:1"]
    arrays = {each.name: onnx.numpy_helper.to_array(each) for each in (*small.graph.initializer,)}
    whole = {each.name: onnx.numpy_helper.to_array(each) for each in other.graph.initializer}
    assert np.array_equal(arrays["w0"], whole["w0"][:, kept]) and np.array_equal(arrays["w1"], whole["w1"][kept])


def test_a_plan_follows_the_file(path: Path, tmp_path: Path) -> None:
    """Between the plan and its application the weights were trained on."""
    plan = structprune.plan(path, 0.5)
    onnx.save(build(SIGNATURE, BODY, weights({"w0": (6, 64), "b0": (64,), "w1": (64, 5), "b1": (5,)}, seed=1)), path)
    small = onnx.load(plan.apply(path, output_path=tmp_path / "small.onnx"))
    arrays = {each.name: onnx.numpy_helper.to_array(each) for each in small.graph.initializer}
    whole = {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}
    assert np.array_equal(arrays["w0"], whole["w0"][:, plan.keep["w0:1"]])


def test_a_plan_for_another_model_is_refused(path: Path) -> None:
    plan = structprune.plan(path, 0.5)
    raised(PlanMismatch, lambda: plan.apply(net(128)), "w0", "[6, 128]", "[6, 64]")


def test_examples_as_arrays_shapes_and_names(path: Path) -> None:
    x = np.ones((4, 6), dtype=np.float32)
    for given in (x, (x,), {"x": x}, {"x": (4, 6)}):
        assert structprune.analyze(path, given).frontend.inputs() == {
            "tuple": [{"tuple": []}, {"dict": {"x": {"tensor": [4, 6], "dtype": "float32"}}}]
        }
    raised(InvalidArgument, lambda: structprune.analyze(path, {"z": x}), "no input 'z'", "it has x")
    raised(InvalidArgument, lambda: structprune.analyze(path, np.ones((4, 7))), "[4, 7]", "6")
    raised(InvalidArgument, lambda: structprune.analyze(path, (x, x)), "2 example inputs", "1")


# -- alignment -------------------------------------------------------------------------------------


def image_net() -> onnx.ModelProto:
    body = (
        "h = Conv <kernel_shape = [3, 3]> (x, w0)\nr = Relu (h)\nk = Conv <kernel_shape = [3, 3]> (r, w1)\n"
        "p = GlobalAveragePool (k)\nf = Flatten (p)\nl = Gemm <transB = 1> (f, w2)\nm = Relu (l)\ny = Gemm (m, w3)"
    )
    shapes = {"w0": (128, 3, 3, 3), "w1": (128, 128, 3, 3), "w2": (250, 128), "w3": (250, 5)}
    return build("(float[N, 3, 9, 9] x) => (float[N, 5] y)", body, weights(shapes))


def widths(model: onnx.ModelProto) -> tuple[int, int, int]:
    dims = {each.name: each.dims for each in model.graph.initializer}
    return dims["w0"][0], dims["w1"][0], dims["w2"][0]


def test_convolutions_keep_multiples_of_sixteen_and_linear_layers_are_free() -> None:
    plan = structprune.plan(image_net(), 0.47)
    assert plan.report is not None and "multiples of 16" in plan.report.note and "align=1" in str(plan)
    first, second, linear = widths(structprune.shrink(image_net(), 0.47))
    assert first % 16 == second % 16 == 0 and linear % 16
    assert any(width % 16 for width in widths(structprune.shrink(image_net(), 0.47, align=1))[:2])
    assert all(width % 32 == 0 for width in widths(structprune.shrink(image_net(), 0.47, align=32))[:2])


# -- bad input -------------------------------------------------------------------------------------


def test_files_that_are_not_models(tmp_path: Path, path: Path) -> None:
    out = tmp_path / "small.onnx"
    junk, part, empty = tmp_path / "junk.onnx", tmp_path / "part.onnx", tmp_path / "empty.onnx"
    junk.write_bytes(b"this is not a model at all" * 9)
    part.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    empty.write_bytes(b"")
    for wrong in (junk, part, empty):
        raised(UnsupportedModel, lambda wrong=wrong: structprune.shrink(wrong, 0.5, output_path=out), wrong.name)
    raised(UnsupportedModel, lambda: structprune.shrink(tmp_path / "no.onnx", 0.5, output_path=out), "No such file")
    raised(UnsupportedModel, lambda: structprune.shrink(tmp_path, 0.5, output_path=out), "folder")
    assert not out.exists()


def test_operator_sets_of_the_future() -> None:
    model = net()
    model.opset_import[0].version = 999
    assert structprune.shrink(model, 0).graph.initializer == model.graph.initializer
    raised(UnsupportedRatio, lambda: structprune.shrink(model, 0.5), "operators of version 999", "up to ")


def test_a_value_that_nothing_gives() -> None:
    model = net()
    model.graph.node[2].input[2] = "nowhere"
    raised(UnsupportedModel, lambda: structprune.shrink(model, 0.5), "'nowhere'", "Gemm")


def test_a_graph_without_weights() -> None:
    model = build("(float[2, 6] x) => (float[2, 6] y)", "y = Relu (x)", {})
    raised(UnsupportedModel, lambda: structprune.shrink(model, 0.5), "no weights")


def test_an_input_of_unknown_rank() -> None:
    model = net()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    raised(CaptureError, lambda: structprune.shrink(model, 0.5), "'x'", "example_inputs")
    assert structprune.shrink(model, 0.5, {"x": (2, 6)}).graph.input[0] == model.graph.input[0]


def test_what_cannot_be_reached_says_why(path: Path) -> None:
    raised(UnsupportedRatio, lambda: structprune.plan(path, 0.5, exclude=["w0"]), "exclude and only")
    raised(InvalidArgument, lambda: structprune.shrink(net(), 0.5, exclude=["nothing"]), "'nothing'")
    raised(InvalidArgument, lambda: structprune.shrink(net(), 0.5, output="module"), "torch")


# -- writing ---------------------------------------------------------------------------------------


def test_outputs_that_cannot_be(path: Path, tmp_path: Path) -> None:
    raised(InvalidArgument, lambda: structprune.shrink(path, 0.5), "output_path=")
    raised(OutputError, lambda: structprune.shrink(path, 0.5, output_path=tmp_path / "no" / "x.onnx"), "no folder")
    raised(OutputError, lambda: structprune.shrink(path, 0.5, output_path=tmp_path), "folder")
    assert left(tmp_path) == {"net.onnx"}


def test_a_folder_without_permission(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    if os.geteuid() == 0:
        # Root may write everywhere: it gets the answer that the system gives others.
        allowed = os.access
        monkeypatch.setattr(os, "access", lambda where, mode: Path(where) != folder and allowed(where, mode))
    raised(OutputError, lambda: structprune.shrink(path, 0.5, output_path=folder / "x.onnx"), "permission")


def test_the_input_is_replaced_only_by_force(path: Path, tmp_path: Path) -> None:
    before = path.read_bytes()
    link = tmp_path / "link.onnx"
    link.symlink_to(path)
    for same in (path, link):
        raised(OutputError, lambda same=same: structprune.shrink(path, 0.5, output_path=same), "force=True")
    assert path.read_bytes() == before
    structprune.shrink(path, 0.5, output_path=path, force=True)
    assert 0 < path.stat().st_size < len(before)


def test_a_write_that_fails_leaves_nothing(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "small.onnx"
    out.write_bytes(b"what was there before")

    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    raised(OutputError, lambda: structprune.shrink(path, 0.5, output_path=out), "No space left on device")
    assert out.read_bytes() == b"what was there before"
    assert left(tmp_path) == {"net.onnx", "small.onnx"}


def test_an_interrupted_write_leaves_nothing(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        structprune.shrink(path, 0.5, output_path=tmp_path / "small.onnx")
    assert left(tmp_path) == {"net.onnx"}


# -- external data ---------------------------------------------------------------------------------


def save_external(model: onnx.ModelProto, path: Path) -> None:
    onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=0)


def data_of(path: Path) -> Path:
    """The one file with a model's data; its name says what is in it."""
    found = [each for each in path.parent.iterdir() if re.fullmatch(rf"{path.name}\.[0-9a-f]{{16}}\.data", each.name)]
    assert len(found) == 1, left(path.parent)
    return found[0]


def test_external_data_stays_external(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    save_external(net(512), path)
    out = structprune.shrink(path, 0.5, output_path=tmp_path / "small.onnx", verify="numeric")
    data = data_of(out)
    assert left(tmp_path) == {"net.onnx", "net.onnx.data", "small.onnx", data.name}
    assert data.stat().st_size < 0.6 * (tmp_path / "net.onnx.data").stat().st_size
    session = onnxruntime.InferenceSession(str(out))
    assert session.run(None, {"x": np.ones((3, 6), dtype=np.float32)})[0].shape == (3, 5)


def test_external_data_in_place(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    save_external(net(512), path)
    before = (tmp_path / "net.onnx.data").stat().st_size
    structprune.shrink(path, 0.5, output_path=path, force=True)
    assert left(tmp_path) == {"net.onnx", data_of(path).name}
    assert data_of(path).stat().st_size < 0.6 * before
    onnxruntime.InferenceSession(str(path))


def test_external_data_that_is_wrong(tmp_path: Path) -> None:
    path, data = tmp_path / "net.onnx", tmp_path / "net.onnx.data"
    save_external(net(), path)
    whole = data.read_bytes()
    out = tmp_path / "small.onnx"
    data.write_bytes(whole[: len(whole) // 2])
    raised(UnsupportedModel, lambda: structprune.shrink(path, 0.5, output_path=out), "ends before")
    data.unlink()
    raised(UnsupportedModel, lambda: structprune.shrink(path, 0.5, output_path=out), "missing", "net.onnx.data")
    (tmp_path.parent / "secret.bin").write_bytes(whole)
    for where in ("../secret.bin", str(tmp_path.parent / "secret.bin")):
        proto = onnx.load(path, load_external_data=False)
        for tensor in proto.graph.initializer:
            next(each for each in tensor.external_data if each.key == "location").value = where
        wrong = tmp_path / "wrong.onnx"
        wrong.write_bytes(proto.SerializeToString())
        raised(UnsupportedModel, lambda wrong=wrong: structprune.shrink(wrong, 0.5, output_path=out), "outside")
    (tmp_path / "hidden").symlink_to(tmp_path.parent / "secret.bin")
    for tensor in proto.graph.initializer:
        next(each for each in tensor.external_data if each.key == "location").value = "hidden"
    wrong.write_bytes(proto.SerializeToString())
    raised(UnsupportedModel, lambda: structprune.shrink(wrong, 0.5, output_path=out), "outside")
    assert not out.exists()


STREAM = """
import sys, threading, time
import onnx, onnx_ir, onnxruntime, structprune

# Memory of our own: pages of the mapped file do not count, the machine takes them back when it needs them.
def own():
    lines = open("/proc/self/status", encoding="ascii").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) // 1024

before, seen, stop = own(), [0], threading.Event()
def watch():
    while not stop.wait(0.005):
        seen[0] = max(seen[0], own())
threading.Thread(target=watch, daemon=True).start()
structprune.shrink(sys.argv[1], 0.5, output_path=sys.argv[2], verify="shapes")
stop.set()
print(seen[0] - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_weights_are_streamed(tmp_path: Path) -> None:
    """A model of 800 MB in layers of 64 MB: a few layers are held at a time, never a second copy."""
    body = "".join(f"h{k} = MatMul ({'x' if k == 0 else f'r{k - 1}'}, w{k})\nr{k} = Relu (h{k})\n" for k in range(13))
    model = build("(float[N, 64] x) => (float[N, 5] y)", body + "y = MatMul (r12, last)", {})
    generator = np.random.default_rng(0)
    for k in range(13):
        array = generator.standard_normal((64 if k == 0 else 4096, 4096), dtype=np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, f"w{k}"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((4096, 5), dtype=np.float32), "last"))
    path = tmp_path / "net.onnx"
    save_external(model, path)
    del model
    command = [sys.executable, "-c", STREAM, str(path), str(tmp_path / "small.onnx")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert data_of(tmp_path / "small.onnx").stat().st_size < 410e6
    assert int(done.stdout) < 250


# -- what is imported -------------------------------------------------------------------------------


def modules_after(code: str) -> set[str]:
    code = f"import sys\n{code}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_onnx_models_never_load_torch(path: Path) -> None:
    loaded = modules_after(
        f"import structprune\nstructprune.shrink({str(path)!r}, 0.5, output_path={str(path.parent / 'small.onnx')!r}, "
        "score='fpgm', verify='numeric')"
    )
    assert "onnxruntime" in loaded and "torch" not in loaded


def test_torch_models_never_load_onnx() -> None:
    loaded = modules_after(
        "import torch, structprune\nfrom torch import nn\n"
        "model = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 3))\n"
        "structprune.shrink(model, 0.5, torch.ones(2, 6), verify='numeric')"
    )
    assert "torch" in loaded and not loaded & {"onnx", "onnx_ir", "onnxruntime", "onnxscript"}


def test_a_missing_package_is_named(path: Path) -> None:
    code = f"""
import sys
sys.modules["onnxruntime"] = None
import structprune
try:
    structprune.analyze({str(path)!r})
except structprune.errors.MissingPackage as error:
    assert "onnxruntime" in str(error) and "structprune[onnx]" in str(error)
else:
    raise SystemExit("nothing was raised")
"""
    modules_after(code)
