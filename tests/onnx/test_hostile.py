"""Files of strangers: nothing outside their folder is read, nothing hangs, one sentence says what is wrong."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import structprune
from structprune.errors import OutputError, UnsupportedModel
from structprune.frontends import beside
from structprune.frontends.onnx.write import file as written
from tests.onnx.build import constant, weights
from tests.onnx.test_files import ROOT, data_of, left, net, raised, save_external

SECRET = np.arange(6 * 64, dtype=np.float32) + 0.25


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """What hangs fails."""

    def stop(number: int, frame: object) -> None:
        raise AssertionError(f"not done within {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def external(name: str, location: str, shape: tuple[int, ...] = (6, 64), **more: Any) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


# -- every place where a tensor can stand ----------------------------------------------------------


def in_initializer(tensor: TensorProto) -> onnx.ModelProto:
    model = net()
    next(each for each in model.graph.initializer if each.name == "w0").CopyFrom(tensor)
    model.graph.initializer[0].name = "w0"
    return model


def without_w0() -> onnx.ModelProto:
    model = net()
    del model.graph.initializer[0]
    return model


def in_constant(tensor: TensorProto) -> onnx.ModelProto:
    model = without_w0()
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w0"], value=tensor))
    return model


def with_odd_node(value: Any) -> onnx.ModelProto:
    model = net()
    model.graph.node.append(helper.make_node("Odd", ["x"], ["unused"], domain="own", odd=value))
    model.opset_import.append(helper.make_opsetid("own", 1))
    return model


def in_attribute(tensor: TensorProto) -> onnx.ModelProto:
    return with_odd_node(tensor)


def in_attributes(tensor: TensorProto) -> onnx.ModelProto:
    return with_odd_node([tensor, tensor])


def branch(tensor: TensorProto, is_initializer: bool) -> onnx.GraphProto:
    node = helper.make_node("Gemm", ["x", "inner", "b0"], ["h_inner"])
    output = helper.make_tensor_value_info("h_inner", TensorProto.FLOAT, ["N", 64])
    if not is_initializer:
        return helper.make_graph([helper.make_node("Constant", [], ["inner"], value=tensor), node], "b", [], [output])
    inner = TensorProto()
    inner.CopyFrom(tensor)
    inner.name = "inner"
    return helper.make_graph([node], "b", [], [output], [inner])


def in_subgraph(tensor: TensorProto, is_initializer: bool = False) -> onnx.ModelProto:
    model = without_w0()
    branches = {f"{way}_branch": branch(tensor, is_initializer) for way in ("then", "else")}
    model.graph.node[0].CopyFrom(helper.make_node("If", ["c"], ["h"], **branches))
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    return model


def in_initializer_of_subgraph(tensor: TensorProto) -> onnx.ModelProto:
    return in_subgraph(tensor, is_initializer=True)


def with_function(nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    model = without_w0()
    imports = [helper.make_opsetid("", 20)]
    model.functions.append(helper.make_function("own", "Linear", ["x", "b0"], ["h"], nodes, imports))
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node[0].CopyFrom(helper.make_node("Linear", ["x", "b0"], ["h"], domain="own"))
    return model


def in_function(tensor: TensorProto) -> onnx.ModelProto:
    value = helper.make_node("Constant", [], ["w0"], value=tensor)
    return with_function([value, helper.make_node("Gemm", ["x", "w0", "b0"], ["h"])])


def in_subgraph_of_function(tensor: TensorProto) -> onnx.ModelProto:
    branches = {f"{way}_branch": branch(tensor, False) for way in ("then", "else")}
    yes = constant(np.array(True), "c")
    return with_function([yes, helper.make_node("If", ["c"], ["h"], **branches)])


def in_default_of_function(tensor: TensorProto) -> onnx.ModelProto:
    model = in_function(numpy_helper.from_array(SECRET.reshape(6, 64)))
    model.functions[0].attribute_proto.append(helper.make_attribute("odd", tensor))
    return model


READ = (in_initializer, in_constant, in_subgraph, in_initializer_of_subgraph, in_function, in_subgraph_of_function)
PLACES = (*READ, in_attribute, in_attributes, in_default_of_function)
Place = Callable[[TensorProto], onnx.ModelProto]


def outside(folder: Path) -> str:
    SECRET.tofile(folder.parent / "secret.bin")
    return "../secret.bin"


def absolute(folder: Path) -> str:
    outside(folder)
    return str(folder.parent / "secret.bin")


def link_out(folder: Path) -> str:
    outside(folder)
    (folder / "link.bin").symlink_to(folder.parent / "secret.bin")
    return "link.bin"


def folder_link_out(folder: Path) -> str:
    outside(folder)
    (folder / "sub").symlink_to(folder.parent)
    return "sub/secret.bin"


def hard_link(folder: Path) -> str:
    outside(folder)
    os.link(folder.parent / "secret.bin", folder / "hard.bin")
    return "hard.bin"


def pipe(folder: Path) -> str:
    os.mkfifo(folder / "pipe")
    return "pipe"


def device(folder: Path) -> str:
    (folder / "zero").symlink_to("/dev/zero")
    return "zero"


def a_socket(folder: Path) -> str:
    with socket.socket(socket.AF_UNIX) as made:
        here = os.getcwd()
        os.chdir(folder)
        made.bind("talk")
        os.chdir(here)
    return "talk"


def a_folder(folder: Path) -> str:
    (folder / "inner").mkdir()
    return "inner"


def loop_of_links(folder: Path) -> str:
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")
    return "a"


def nothing_there(folder: Path) -> str:
    return "missing.bin"


LOCATIONS = {
    outside: "outside",
    absolute: "outside",
    link_out: "outside",
    folder_link_out: "outside",
    hard_link: "hard link",
    pipe: "a named pipe",
    device: "outside",
    a_socket: "a socket",
    a_folder: "a folder",
    loop_of_links: "'a'",
    nothing_there: "is missing",
    lambda folder: "": "no name of a file",
    lambda folder: ".": "a folder",
    lambda folder: "a\0b": "no name of a file",
    lambda folder: "x" * 5000: "cannot be read",
    lambda folder: "*/_ORT_MEM_ADDR_/*": "is missing",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("location", LOCATIONS, ids=lambda each: each.__name__)
def test_data_are_looked_for_in_the_folder_alone(place: Place, location: Callable[[Path], str], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "net.onnx"
    path.write_bytes(place(external("w", location(folder))).SerializeToString())
    with within(20):
        raised(UnsupportedModel, lambda: structprune.analyze(path), str(path), LOCATIONS[location])
        out = folder / "small.onnx"
        raised(UnsupportedModel, lambda: structprune.shrink(path, 0.5, output_path=out), LOCATIONS[location])
    assert not out.exists()


@pytest.mark.parametrize("place", PLACES)
def test_offsets_and_lengths_fit_the_tensor_and_the_file(place: Place, tmp_path: Path) -> None:
    SECRET.tofile(tmp_path / "w.bin")
    path = tmp_path / "net.onnx"
    size = SECRET.nbytes
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"offset": -4}, "impossible offset '-4'"),
        ({"offset": 4}, "ends before"),
        ({"offset": 2**63}, "ends before"),
        ({"offset": "9" * 40}, "impossible offset"),
        ({"length": -1}, "impossible length '-1'"),
        ({"length": size - 1}, f"needs {size:,} bytes of 'w.bin', but is given {size - 1:,}"),
        ({"length": 0}, "but is given 0"),
        ({"length": size + 1}, "ends before"),
        ({"length": "1_536"}, "impossible length"),
        ({"offset": " 0"}, "impossible offset"),
        ({"offset": "\u0664"}, "impossible offset"),
    ]
    for more, why in wrong:
        path.write_bytes(place(external("w", "w.bin", **more)).SerializeToString())
        raised(UnsupportedModel, lambda: structprune.analyze(path), why)
    twice = external("w", "w.bin")
    twice.external_data.add(key="location", value="v.bin")
    path.write_bytes(place(twice).SerializeToString())
    raised(UnsupportedModel, lambda: structprune.analyze(path), "says twice")


def test_names_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    model = in_initializer(external("w", "w-name-of-data.bin"))
    model.metadata_props.add(key="key-of-metadata", value="v")
    content = model.SerializeToString()
    for name in (b"w-name-of-data.bin", b"Gemm", b"b1", b"made", b"key-of-metadata"):
        path.write_bytes(content.replace(name, b"\xff" + name[1:]))
        raised(UnsupportedModel, lambda: structprune.analyze(path), str(path), "no UTF-8", "\\xff")


def test_an_ir_model_is_held_to_the_rule(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    os.mkfifo(folder / "pipe")
    for place in READ:
        for location, why in (("pipe", "a named pipe"), (outside(folder), "outside")):
            (folder / "net.onnx").write_bytes(place(external("w", location)).SerializeToString())
            model = ir.load(folder / "net.onnx")
            for function in model.functions.values():
                ir.external_data.set_base_dir(function.graph, folder)
            with within(20):
                raised(UnsupportedModel, lambda model=model: structprune.analyze(model), why)


@pytest.mark.parametrize("place", PLACES)
def test_data_travel_with_the_result(place: Place, tmp_path: Path) -> None:
    """The result is whole in a folder of its own."""
    source, other = tmp_path / "source", tmp_path / "other"
    source.mkdir()
    other.mkdir()
    array = weights({"w": (6, 64)})["w"]
    array.tofile(source / "w.bin")
    (source / "net.onnx").write_bytes(place(external("w", "w.bin")).SerializeToString())
    # What an If reads stays whole.
    for ratio in (0.0,) if "subgraph" in place.__name__ else (0.0, 0.3):
        out = structprune.shrink(source / "net.onnx", ratio, output_path=other / "small.onnx", align=1)
        if place in READ:
            feeds = {"x": np.ones((2, 6), dtype=np.float32)}
            if "subgraph" in place.__name__ and "function" not in place.__name__:
                feeds["c"] = np.array(True)
            before = onnxruntime.InferenceSession(str(source / "net.onnx")).run(None, feeds)[0]
            after = onnxruntime.InferenceSession(str(out)).run(None, feeds)[0]
            assert ratio > 0 or np.array_equal(before, after)
            assert after.shape == (2, 5)
        # Whatever stands anywhere in it: onnx finds all data beside the file.
        onnx.load(out)
        structprune.analyze(out)


# -- a pair of files is one ------------------------------------------------------------------------


def runs(path: Path) -> bool:
    session = onnxruntime.InferenceSession(str(path))
    return bool(session.run(None, {"x": np.ones((3, 6), dtype=np.float32)})[0].shape == (3, 5))


KILLED = """
import os, sys
count, stop = 0, int(sys.argv[4])
def step(*args):
    global count
    count += 1
    if count == stop:
        os.kill(os.getpid(), 9)
for name in ("replace", "fsync", "unlink", "chmod", "mkdir", "rmdir"):
    def before(*args, original=getattr(os, name), **more):
        step()
        return original(*args, **more)
    setattr(os, name, before)
import structprune
structprune.shrink(sys.argv[1], float(sys.argv[3]), output_path=sys.argv[2], force=True)
print(count)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_killed_at_any_step_the_pair_is_whole(tmp_path: Path) -> None:
    """Killed before each change of the folder in turn, then finished: one of the two pairs is always there, whole."""
    save_external(net(512), tmp_path / "net.onnx")
    target = tmp_path / "small.onnx"
    old = onnx.load(structprune.shrink(tmp_path / "net.onnx", 0.2, output_path=target)).SerializeToString()
    new = onnx.load(structprune.shrink(tmp_path / "net.onnx", 0.6, output_path=tmp_path / "new.onnx"))
    seen = set()
    for stop in range(1, 30):
        command = [sys.executable, "-c", KILLED, str(tmp_path / "net.onnx"), str(target), "0.6", str(stop)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        content = onnx.load(target).SerializeToString()
        is_old = content == old
        assert is_old or content_of(onnx.load(target)) == content_of(new), "a mixture of both"
        seen.add(is_old)
        assert runs(target)
        if done.returncode == 0:
            break
        structprune.shrink(tmp_path / "net.onnx", 0.2, output_path=target)
        assert left(tmp_path) == {"net.onnx", "net.onnx.data", "small.onnx", data_of(target).name,
                                  "new.onnx", data_of(tmp_path / "new.onnx").name}, "leftovers"  # fmt: skip
        assert onnx.load(target).SerializeToString() == old
    else:
        raise AssertionError("it never came to its end")
    assert seen == {True, False}


def content_of(model: onnx.ModelProto) -> list[bytes]:
    return [numpy_helper.to_array(each).tobytes() for each in model.graph.initializer]


def test_leftovers_of_the_living_and_of_others_stay(tmp_path: Path) -> None:
    onnx.save(net(), tmp_path / "net.onnx")
    target = tmp_path / "small.onnx"
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    mine, here = beside.make_folder(target), f".{os.getpid()}."
    gone = Path(str(mine).replace(here, f".{int(dead.stdout)}.") + "x").with_suffix(".structprune")
    others = beside.make_folder(tmp_path / "other.onnx")
    far = Path(str(mine).replace(beside.digest(socket.gethostname(), 4), "0" * 8))
    living = Path(str(mine).replace(here, f".{os.getppid()}."))
    ours = tmp_path / "small.onnx.structprune"
    for folder in (gone, far, living, ours):
        folder.mkdir()
    (gone / "half").write_bytes(b"half")
    # Its list of what it moved names other people's files too: those stay.
    for name in ("small.onnx.0123456789abcdef.data", "precious.txt"):
        (tmp_path / name).write_bytes(b"data")
    beside.note_moved_first(gone, ["small.onnx.0123456789abcdef.data", "precious.txt", "../precious.txt", "net.onnx"])
    structprune.shrink(tmp_path / "net.onnx", 0.5, output_path=target)
    kept = {mine, others, far, living, ours, tmp_path / "net.onnx", target, tmp_path / "precious.txt"}
    assert set(tmp_path.iterdir()) == kept
    month = time.time() - 30 * 24 * 3600
    for folder in (far, living, mine):
        os.utime(folder, (month, month))
    structprune.shrink(tmp_path / "net.onnx", 0.5, output_path=target)
    assert set(tmp_path.iterdir()) == kept - {far, living, mine}


def test_data_that_others_read_stay(tmp_path: Path) -> None:
    """The model that is replaced was written with its own data; the model that is read may read them too."""
    save_external(net(512), tmp_path / "small.onnx")
    other = onnx.load(tmp_path / "small.onnx", load_external_data=False)
    (tmp_path / "net.onnx").write_bytes(other.SerializeToString())
    before = (tmp_path / "small.onnx.data").read_bytes()
    structprune.shrink(tmp_path / "net.onnx", 0.5, output_path=tmp_path / "small.onnx")
    assert (tmp_path / "small.onnx.data").read_bytes() == before
    assert runs(tmp_path / "net.onnx") and runs(tmp_path / "small.onnx")


@pytest.mark.skipif(os.name != "posix", reason="needs modes")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_the_mode_of_what_is_replaced_stays(mode: int, tmp_path: Path) -> None:
    save_external(net(512), tmp_path / "net.onnx")
    out = structprune.shrink(tmp_path / "net.onnx", 0.3, output_path=tmp_path / "small.onnx")
    mask = os.umask(0)
    os.umask(mask)
    assert {each.stat().st_mode & 0o777 for each in (out, data_of(out))} == {0o666 & ~mask}
    out.chmod(mode)
    structprune.shrink(tmp_path / "net.onnx", 0.5, output_path=out)
    assert {each.stat().st_mode & 0o777 for each in (out, data_of(out))} == {mode}


@pytest.mark.parametrize("name", ["x" * 250 + ".onnx", "漢" * 83 + ".onnx", "ä" * 125 + ".onnx"])
def test_names_as_long_as_the_system_allows(name: str, tmp_path: Path) -> None:
    save_external(net(512), tmp_path / "net.onnx")
    for _ in range(2):
        out = structprune.shrink(tmp_path / "net.onnx", 0.3, output_path=tmp_path / name)
        assert runs(out) and len(left(tmp_path)) == 4
    too_long = tmp_path / ("x" * 256)
    raised(OutputError, lambda: structprune.shrink(tmp_path / "net.onnx", 0.3, output_path=too_long), "too long")


def test_what_is_written_stays_as_it_was(tmp_path: Path) -> None:
    """Writing a model with its data apart changes nothing of the model."""
    model = ir.from_proto(net(512))
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    written.save(model, tmp_path / "net.onnx", is_external=True)
    assert {name: value.const_value for name, value in model.graph.initializers.items()} == before
    assert data_of(tmp_path / "net.onnx").stat().st_size >= 512 * 4 * 12
    assert content_of(onnx.load(tmp_path / "net.onnx")) == content_of(net(512))


# -- what is no file -------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="needs pipes and devices")
def test_only_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    a_socket(tmp_path)
    with (tmp_path / "large.onnx").open("wb") as large:
        large.truncate(2**31 + 5)
    onnx.save(net(), tmp_path / "net.onnx")
    out = tmp_path / "small.onnx"
    for path, why in (
        (tmp_path / "pipe.onnx", "a named pipe"),
        (Path("/dev/zero"), "a device"),
        (tmp_path / "talk", "a socket"),
        (tmp_path / "large.onnx", "2 GiB"),
        (tmp_path / "net.onnx" / "x", "cannot be read"),
        (Path(str(tmp_path / "a\0b")), "cannot be read"),
        (Path("x" * 5000), "cannot be read"),
    ):
        with within(20):
            raised(UnsupportedModel, lambda path=path: structprune.shrink(path, 0.5, output_path=out), why)
    raised(OutputError, lambda: structprune.shrink(net(), 0.5, output_path=tmp_path / "pipe.onnx"), "a named pipe")
    raised(OutputError, lambda: structprune.shrink(net(), 0.5, output_path=Path("/dev/null")), "a device")
    raised(OutputError, lambda: structprune.shrink(net(), 0.5, output_path=tmp_path / "a\0b"), "cannot be written")
