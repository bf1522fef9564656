"""What holds the package together: import order, the wheel's contents, public names, one rule for a kind."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import structprune
import structprune.operators
from structprune.errors import DuplicateRule, StructpruneError
from structprune.graph.operator import RULES, rule

ROOT = Path(__file__).resolve().parent.parent

# From the ground up; what stands in one row may import each other.
LAYERS: list[set[str]] = [
    {"errors"},
    {"algebra"},
    {"graph"},
    {"operators"},
    {"passes", "frontends"},
    {"views", "options"},
    {"plan", "testing"},
    {"api"},
    {"structprune"},
    {"cli", "__main__"},
]
FRAMEWORKS = {"torch", "torchvision", "timm", "transformers", "onnx", "onnx_ir", "onnxscript", "onnxruntime"}


def sources() -> dict[str, Path]:
    """Every module of the package under its one name."""
    found: dict[str, Path] = {}
    for folder, package in ((ROOT / "structprune", "structprune"), (ROOT / "passes", "structprune.passes")):
        for path in sorted(folder.rglob("*.py")):
            inside = path.relative_to(folder).with_suffix("").parts
            if folder.name == "structprune" and inside[0] == "passes":
                continue
            found[".".join((package, *(part for part in inside if part != "__init__")))] = path
    return found


SOURCES = sources()


def imports(module: str) -> Iterator[str]:
    """What a module imports, at the top, in a function or for its types; `from a import b` is a.b where that is one."""
    path = SOURCES[module]
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            origin = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                yield inner if inner in SOURCES else origin


def layer(module: str) -> int:
    _, *inside = module.split(".")
    name = inside[0] if inside else "structprune"
    return next(index for index, names in enumerate(LAYERS) if name in names)


def reached(module: str) -> dict[str, str]:
    """All that a module imports, directly or through others of ours, each with the module that imports it."""
    found: dict[str, str] = {}
    left = [module]
    while left:
        here = left.pop()
        for name in imports(here):
            if name not in found:
                found[name] = here
                if name in SOURCES:
                    left.append(name)
    return found


def test_every_source_file_is_read():
    assert {"structprune.algebra.axis", "structprune.operators.linear", "structprune.passes.group"} <= set(
        SOURCES
    )
    assert len(set(SOURCES.values())) == len(SOURCES)


def test_imports_run_one_way():
    against = [
        f"{module} imports {name}"
        for module in SOURCES
        for name in imports(module)
        if name.partition(".")[0] == "structprune" and layer(name) > layer(module)
    ]
    assert not against


def test_passes_are_imported_under_one_name():
    assert not [module for module in SOURCES for name in imports(module) if name.partition(".")[0] == "passes"]


@pytest.mark.parametrize("module", [module for module in SOURCES if layer(module) < layer("structprune.frontends")])
def test_no_framework_below_the_front_ends(module):
    found = {name: through for name, through in reached(module).items() if name.partition(".")[0] in FRAMEWORKS}
    assert not found


@pytest.mark.parametrize("module", [module for module in SOURCES if module.startswith("structprune.passes")])
def test_passes_reach_no_framework(module):
    found = {name: through for name, through in reached(module).items() if name.partition(".")[0] in FRAMEWORKS}
    assert not found


def test_a_front_end_never_chooses_and_a_pass_never_calls_a_front_end():
    """Data flows one way: the pipeline selects; a front end is told the choice and answers with data."""
    choosing = {f"structprune.passes.{name}" for name in ("select", "rank", "align", "score")}
    found = [
        f"{module} imports {name}"
        for module in SOURCES
        for name in imports(module)
        if (module.startswith("structprune.frontends") and name in choosing)
        or (module.startswith("structprune.passes") and name.startswith("structprune.frontends"))
    ]
    assert not found


def run(code: str, *options: str, cwd: Path = ROOT) -> str:
    done = subprocess.run([sys.executable, *options, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_loads_nothing_that_is_not_needed():
    loaded = set(run("import sys, structprune; print(*{name.partition('.')[0] for name in sys.modules})").split())
    assert "structprune" in loaded
    assert not loaded & FRAMEWORKS


# -- the wheel -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a build can see, so that no build leaves anything in the real one."""
    copy = tmp_path_factory.mktemp("checkout")
    left_out = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("structprune", "passes", "models_zoo", "tests"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=left_out)
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy)
    return copy


def build(kind: str, source: Path, out: Path) -> Path:
    """What the build front ends do, without their isolated environment: it would need a network."""
    out.mkdir(parents=True, exist_ok=True)
    code = f"from setuptools import build_meta; print(); print(build_meta.build_{kind}({str(out)!r}))"
    return out / run(code, cwd=source).splitlines()[-1]


def unpacked(archive: Path, out: Path) -> Path:
    with tarfile.open(archive) as file:
        if hasattr(tarfile, "data_filter"):
            file.extractall(out, filter="data")
        else:
            file.extractall(out)
    (folder,) = out.iterdir()
    return folder


@pytest.mark.parametrize("origin", ["checkout", "sdist"])
def test_the_wheel_holds_the_package_and_nothing_else(checkout, tmp_path, origin):
    source = checkout
    if origin == "sdist":
        source = unpacked(build("sdist", checkout, tmp_path / "sdist"), tmp_path / "source")
    with zipfile.ZipFile(build("wheel", source, tmp_path / "wheel")) as wheel:
        names = wheel.namelist()
        tops = {name.partition("/")[0] for name in names}
        (metadata,) = (wheel.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    assert tops == {"structprune", "structprune-0.1.0.dist-info"}
    assert len(set(names)) == len(names)
    expected = {
        Path(*module.split("."), path.name) if path.stem == "__init__" else Path(*module.split(".")[:-1], path.name)
        for module, path in SOURCES.items()
    }
    held = {Path(name) for name in names if name.startswith("structprune/")}
    assert held == expected | {Path("structprune/py.typed")}
    assert "structprune-0.1.0.dist-info/licenses/LICENSE" in names
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.10" in metadata


def test_an_editable_install_adds_one_name(checkout, tmp_path):
    with zipfile.ZipFile(build("editable", checkout, tmp_path / "wheel")) as wheel:
        wheel.extractall(tmp_path / "site")
    # Without `site`, an editable install of this very checkout stays unseen; what it depends on is added by hand.
    code = f"""
import importlib.util, site, sys
site.addsitedir({str(tmp_path / "site")!r})
sys.path += {[path for path in sys.path if path.endswith("-packages")]!r}
import structprune.passes.group
print(structprune.passes.group.__file__)
print(*(name for name in ("passes", "models_zoo", "tests") if importlib.util.find_spec(name)))
"""
    path, others = run(code, "-I", "-S", cwd=tmp_path).splitlines()
    assert Path(path).resolve() == checkout / "passes" / "group.py"
    assert others == ""


# -- names -----------------------------------------------------------------------------------------


def test_every_public_name_exists_and_explains_itself():
    assert {"shrink", "plan", "analyze", "load"} <= set(structprune.__all__)
    assert len(set(structprune.__all__)) == len(structprune.__all__)
    for name in structprune.__all__:
        public = getattr(structprune, name)
        if inspect.isclass(public) or inspect.isroutine(public) or inspect.ismodule(public):
            text = vars(public).get("__doc__") if inspect.isclass(public) else inspect.getdoc(public)
            assert text and not text.startswith(f"{name}("), f"{name} has no docstring of its own"


def test_every_error_has_one_root_and_one_sentence():
    from structprune import errors

    classes = [each for _, each in inspect.getmembers(errors, inspect.isclass) if each.__module__ == errors.__name__]
    assert len(classes) > 5
    for each in classes:
        assert issubclass(each, StructpruneError)
        assert each.__doc__ and each.__doc__.partition("\n")[0].endswith(".")


def test_a_second_rule_for_a_kind_is_refused():
    """Which also catches a file that is loaded under two names."""
    kind, first = next(iter(RULES.items()))
    with pytest.raises(DuplicateRule, match=f"two rules for '{kind}': {first.__module__}, {__name__}"):

        @rule(kind)
        def second(op, *operands):
            raise AssertionError("never called")

    assert RULES[kind] is first


def test_a_rule_file_loaded_under_a_second_name_is_refused(monkeypatch):
    import structprune.operators.linear as linear

    spec = importlib.util.spec_from_file_location("second_name", linear.__file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "second_name", module)
    with pytest.raises(DuplicateRule):
        spec.loader.exec_module(module)
