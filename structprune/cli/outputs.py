"""Outputs appear whole or not at all: written into a folder beside their place, then moved there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from structprune.cli.source import files_of
from structprune.errors import InvalidArgument, OutputError, StructpruneError
from structprune.frontends.beside import make_folder, move, note_moved_first, remove_leftovers
from structprune.graph.plan_file import current_umask


class Outputs:
    """The files that a command writes.

    `place` gives the path to write a target to, in a folder of its own: what a writer puts beside it (external
    data) moves along. It fails at once where the target cannot be written, before the long work. Nothing
    takes its place unless the `with` block ends well.
    """

    def __init__(self, inputs: Iterable[str | None], force: bool) -> None:
        self.inputs = [name for name in inputs if name is not None]
        self.force = force
        self.folders: dict[Path, Path] = {}
        self.names: dict[Path, Path] = {}
        self.written: list[Path] = []

    def place(self, name: str) -> Path:
        with explained(name):
            target = Path(os.path.realpath(name))
            self.check(target, name, map(Path, self.inputs))
            if target in self.folders:
                raise InvalidArgument(f"{name} is to hold two outputs: give them different names")
            if target.exists() and not target.is_file():
                raise OSError(None, "it exists and is not a file")
            if not target.parent.is_dir():
                raise OSError(None, f"there is no folder {target.parent}")
            self.folders[target] = make_folder(target)
        self.names[target] = Path(name)
        return self.folders[target] / target.name

    def check(self, target: Path, name: str, files: Iterable[Path]) -> None:
        """Inputs are not written over by accident."""
        is_input = target.exists() and any(each.exists() and target.samefile(each) for each in files)
        if is_input and not self.force:
            raise InvalidArgument(f"{name} is read by this command: give another name, or --force to replace it")

    def __enter__(self) -> Outputs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.move()
        finally:
            for folder in self.folders.values():
                shutil.rmtree(folder, ignore_errors=True)

    def move(self) -> None:
        moves: list[tuple[Path, Path, Path]] = []
        replaced: list[Path] = []
        for target, folder in self.folders.items():
            before = data_beside(target)
            remove_leftovers(target, {path.name for path in before})
            # The target itself comes last: where it is, what belongs to it is there too.
            paths = sorted(folder.iterdir(), key=lambda path: path.name == target.name)
            for path in paths:
                place = target.parent / path.name
                if place != target and place.exists():
                    self.check(place, str(place), [file for name in self.inputs for file in files_of(name)])
                if place.is_dir():
                    raise OutputError(f"{place} cannot be written: it is a folder")
                with explained(str(place)):
                    finish(path)
                moves.append((path, place, target))
            others = [path.name for path in paths if path.name != target.name]
            note_moved_first(folder, others)
            replaced += [path for path in before if path.name not in others]
        needed = {file.resolve() for name in self.inputs for file in self.needed(name)} if replaced else set()
        for path, place, target in moves:
            with explained(str(place)):
                move(path, place, target)
            is_target, name = place == target, self.names[target]
            # What lies beside a link's target does not lie beside the link.
            self.written.append(name if is_target else place if name.is_symlink() else name.with_name(path.name))
        for path in replaced:
            if path.resolve() not in needed:
                path.unlink(missing_ok=True)

    def needed(self, name: str) -> list[Path]:
        """The files of an input, unless that is replaced itself."""
        is_replaced = any(target.exists() and Path(name).exists() and target.samefile(name) for target in self.folders)
        return [] if is_replaced else files_of(name)


def data_beside(target: Path) -> list[Path]:
    """The data of an ONNX model that is to be replaced."""
    if target.suffix != ".onnx" or not target.exists():
        return []
    from structprune.frontends.onnx.write.file import data_of

    return [target.parent / name for name in data_of(target)]


def write(target: str, path: Path, writer: Callable[[Path], object]) -> None:
    """Run a writer on a placed path; whatever stops it is an error about the target."""
    with explained(target):
        writer(path)


@contextmanager
def explained(target: str) -> Iterator[None]:
    """Writers of other libraries raise what they like when a disk is full."""
    try:
        yield
    except (StructpruneError, MemoryError):
        raise
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
        raise OutputError(f"{target} cannot be written: {reason}") from error


def finish(path: Path) -> None:
    """A full disk shows at the latest now, before anything takes its place. Some writers let nobody else read."""
    os.chmod(path, 0o666 & ~current_umask())
    with path.open("rb") as file:
        os.fsync(file.fileno())
