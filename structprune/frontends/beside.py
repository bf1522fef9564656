"""Files appear whole or not at all: they are written into a folder beside their place, then moved there.

A run that is killed leaves its folder behind. The folder's name says for which target and by which process it was
made, so that the next run to the same target can tell that nobody works in it any more, and takes it away together
with what was moved out of it already.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

ENDING = ".structprune"
# The name of the list of files that are about to be moved to their place before the target itself is.
MOVED_FIRST = "moved first"
# A process of another machine cannot be asked whether it lives.
LONGEST_RUN = 7 * 24 * 3600


def digest(text: str, size: int = 8) -> str:
    return blake2b(os.fsencode(text), digest_size=size).hexdigest()


def make_folder(target: Path) -> Path:
    """A folder beside the target to prepare it in."""
    name = f"{beginning(target)}.{digest(socket.gethostname(), 4)}.{os.getpid()}."
    return Path(tempfile.mkdtemp(dir=target.parent, prefix=name, suffix=ENDING))


def beginning(target: Path) -> str:
    """How the names of folders for a target begin: short, however long the target's own name is."""
    return f".{target.name[:40]}.{digest(target.name)}"


@contextmanager
def folder_beside(target: Path) -> Iterator[Path]:
    folder = make_folder(target)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def is_data_of(target: Path, name: str) -> bool:
    """By its name a file holds data of the target: named by its content, or as exporters do."""
    names = f"{re.escape(target.name)}(\\.[0-9a-f]{{16}})?|{digest(target.name)}\\.[0-9a-f]{{16}}"
    return re.fullmatch(rf"({names})\.data", name) is not None


def note_moved_first(folder: Path, names: Iterable[str]) -> None:
    (folder / MOVED_FIRST).write_bytes(b"\0".join(map(os.fsencode, names)))


def move(path: Path, place: Path, target: Path) -> None:
    """Put a written file in its place. Who could read the target can read what replaces it, and nobody else."""
    if target.exists():
        os.chmod(path, stat.S_IMODE(target.stat().st_mode))
    with path.open("rb") as file:
        # A full disk shows at the latest now, before anything takes its place.
        os.fsync(file.fileno())
    os.replace(path, place)


def remove_leftovers(target: Path, in_use: Collection[str]) -> None:
    """What runs to this target left behind when they were killed; `in_use` are files that the target needs."""
    shape = re.compile(rf"{re.escape(beginning(target))}\.([0-9a-f]{{8}})\.(\d+)\.\w+{re.escape(ENDING)}")
    for folder in target.parent.iterdir():
        match = shape.fullmatch(folder.name)
        if match is None or folder.is_symlink() or not folder.is_dir() or is_alive(folder, match[1], int(match[2])):
            continue
        for name in moved_first(folder):
            orphan = target.parent / name
            if name not in in_use and orphan.name == name and is_data_of(target, name) and orphan.is_file():
                orphan.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


def moved_first(folder: Path) -> list[str]:
    try:
        return [os.fsdecode(name) for name in (folder / MOVED_FIRST).read_bytes().split(b"\0") if name]
    except OSError:
        return []


def is_alive(folder: Path, host: str, process: int) -> bool:
    """Somebody may still work in this folder."""
    try:
        age = time.time() - folder.lstat().st_mtime
    except OSError:
        return True  # gone this moment: its owner is alive
    if age > LONGEST_RUN:
        return False
    if host != digest(socket.gethostname(), 4) or process == os.getpid():
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def unreadable(path: Path) -> str | None:
    """Why a file cannot be opened. A pipe would be waited for, and a device never ends."""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            return "it is not a file"
        with path.open("rb"):
            return None
    except OSError as error:
        return error.strerror or str(error)
    except ValueError as error:  # a name with a null character
        return str(error)
