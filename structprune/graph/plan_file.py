"""A plan as data: read from files of strangers, checked, and written whole or not at all.

Everything here is bounded: the size of a file, how deeply it nests, how many lists and objects it holds, and how large
the inputs are that it describes.
"""

from __future__ import annotations

import gc
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from math import prod
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from structprune.algebra.order import Indices
from structprune.errors import OutputError, PlanMismatch, short

VERSION = 1
DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "complex64", "complex128"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
)
MEASURES = ("params", "macs", "channels")
OUTPUTS = ("auto", "module", "graph")
VERIFICATIONS = ("shapes", "numeric", None)

# The plan of a model of 70 billion parameters has about 30 MB and 10,000 lists.
MOST_BYTES = 1 << 27
MOST_CONTAINERS = 1 << 20
MOST_LEVELS = 64
# Entries of all inputs that a plan describes together: half a gigabyte while they are drawn.
MOST_ENTRIES = 1 << 26
MOST_INPUTS = 1 << 16
# No index and no size of a tensor is larger.
LARGEST = 1 << 48

Check = Callable[[Any], str | None]


# -- files -----------------------------------------------------------------------------------------


def read_plan(path: Any) -> dict[str, Any]:
    """The data of a plan file, checked; a PlanMismatch names the file and what is wrong with it."""
    try:
        name = os.fspath(path)
    except TypeError as error:
        raise PlanMismatch(f"a {type(path).__name__} is no plan file: give its path, or a Plan") from error
    content = bytes_of(name)
    if max(content.count(b"["), content.count(b"{")) > MOST_CONTAINERS:
        raise PlanMismatch(f"{path} is no plan: it holds more than {MOST_CONTAINERS:,} lists")
    try:
        with no_collection():
            data = json.loads(content.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise PlanMismatch(f"{path} is not a whole plan file: {error}") from error
    problem = problem_of(data)
    if problem is not None:
        raise PlanMismatch(f"{path} {problem}")
    found: dict[str, Any] = data
    return found


def bytes_of(name: Any) -> bytes:
    """The content of a regular file: no pipe is waited for, and no device is read."""
    try:
        handle = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise PlanMismatch(f"the plan {name!s} cannot be read: {reason}") from error
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise PlanMismatch(f"the plan {name!s} cannot be read: it is not a file")
        with open(handle, "rb", closefd=False) as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise PlanMismatch(f"the plan {name!s} cannot be read: {error.strerror}") from error
    finally:
        os.close(handle)
    if len(content) > MOST_BYTES:
        raise PlanMismatch(f"{name!s} is no plan: it has more than {MOST_BYTES:,} bytes")
    return content


@contextmanager
def no_collection() -> Iterator[None]:
    """A file of many small lists would have them all looked through again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has {twice[:100]!r} twice in one place")
    return found


def write_plan(path: Any, data: Mapping[str, Any]) -> None:
    """Write a plan, whole or not at all."""
    problem = problem_of(data)
    if problem is not None:
        raise PlanMismatch(f"the plan {problem}")
    try:
        target = Path(path)
    except TypeError as error:
        raise OutputError(f"a plan cannot be written to a {type(path).__name__}: give a path") from error
    beside: str | None = None
    try:
        handle, beside = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:100]}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(data, file, indent=1)
        os.chmod(beside, rights_of(target))
        os.replace(beside, target)
        beside = None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise OutputError(f"the plan {target} cannot be written: {reason}") from error
    finally:
        if beside is not None:
            with suppress(OSError):
                os.unlink(beside)


def rights_of(target: Path) -> int:
    """Those of the file that is replaced, or of any new one."""
    try:
        return stat.S_IMODE(target.stat().st_mode)
    except OSError:
        return 0o666 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# -- what a plan must be ---------------------------------------------------------------------------


def problem_of(data: Any) -> str | None:
    """Why data are no plan, as the end of a sentence; None where they are one."""
    if not isinstance(data, Mapping) or "structprune_plan" not in data:
        return "is not a structprune plan"
    version = data["structprune_plan"]
    if type(version) is not int or version != VERSION:
        return f"is a plan of version {short(version)}; this structprune reads version {VERSION}"
    for name, (check, _) in ENTRIES.items():
        if name in data and (problem := check(data[name])) is not None:
            return f"is not a whole plan: {problem}"
    missing = [name for name, (_, is_needed) in ENTRIES.items() if is_needed and name not in data]
    unknown = [name for name in data if name not in ENTRIES and name != "structprune_plan"]
    if missing:
        return f"is not a whole plan: it has no {missing[0]!r}"
    if unknown:
        return f"is not a plan that this structprune reads: it does not know the entry {short(unknown[0])}"
    for name, numbers in data.get("indices", {}).items():
        if name not in data["shapes"] or len(numbers) != prod(data["shapes"][name]):
            return f"is not a whole plan: the numbers of the index {short(name)} do not fill a stored tensor"
    return None


def text_problem(name: str) -> Check:
    def check(value: Any) -> str | None:
        return None if isinstance(value, str) else f"its {name} is {short(value)}, not a text"

    return check


def choice_problem(name: str, known: Iterable[Any]) -> Check:
    def check(value: Any) -> str | None:
        is_known = any(type(each) is type(value) and each == value for each in known)
        return None if is_known else f"{name}={short(value)} is unknown"

    return check


def options_problem(options: Any) -> str | None:
    if not isinstance(options, Mapping):
        return f"its options are {short(options)}"
    if len(options) > 100 or not all(isinstance(name, str) for name in options):
        return "its options are not usable"
    ratio, of = options.get("ratio"), options.get("of")
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio < 1:
        return f"its options hold ratio={short(ratio)}"
    if not isinstance(of, str) or of not in MEASURES:
        return f"its options hold of={short(of)}"
    for name, value in options.items():
        plain = value if isinstance(value, list) else [value]
        if not all(each is None or type(each) in (str, int, float, bool) for each in plain):
            return f"its options hold {name[:100]}={short(value)}"
    return None


def shapes_problem(shapes: Any) -> str | None:
    if not isinstance(shapes, Mapping):
        return f"its shapes are {short(shapes)}"
    for name, shape in shapes.items():
        if not isinstance(name, str) or not is_shape(shape):
            return f"the shape of {short(name)} is {short(shape)}"
    return None


def is_shape(shape: Any) -> bool:
    return isinstance(shape, list | tuple) and all(type(size) is int and 0 <= size < LARGEST for size in shape)


def indices_problem(indices: Any) -> str | None:
    """Those of stored indices: whole numbers, none larger than any index can be."""
    if not isinstance(indices, Mapping):
        return f"its indices are {short(indices)}"
    for name, numbers in indices.items():
        if not isinstance(name, str) or not isinstance(numbers, list):
            return f"the numbers of the index {short(name)} are not usable"
        if not all(type(number) is int and abs(number) < 1 << 31 for number in numbers):
            return f"the numbers of the index {short(name)} are not usable"
    return None


def groups_problem(groups: Any) -> str | None:
    if not isinstance(groups, Mapping):
        return f"its groups are {short(groups)}"
    for name, group in groups.items():
        if not isinstance(name, str) or not isinstance(group, Mapping) or set(group) != {"size", "keep"}:
            return f"the group {short(name)} is {short(group)}, not a size and what to keep"
        size = group["size"]
        if size is not None and (type(size) is not int or not 0 < size < LARGEST):
            return f"the group {short(name)} has the size {short(size)}"
        try:
            indices_kept(group["keep"], LARGEST if size is None else size)
        except ValueError as error:
            return f"the indices kept of {short(name)} {error}"
    return None


def inputs_problem(data: Any) -> str | None:
    """(arguments, keywords), made of tensors' shapes and types, containers and plain values."""
    match data:
        case {"tuple": [{"tuple": list(arguments)}, {"dict": dict(keywords)}]}:
            pass
        case _:
            return "its description of the model's inputs is not usable"
    if not arguments and not keywords:
        return "it describes no input of the model"
    count = 0
    waiting = [(each, 0) for each in (*arguments, *keywords.values())]
    while waiting:
        each, level = waiting.pop()
        inner = described_inside(each)
        if inner is None or level > MOST_LEVELS:
            return f"its description of the model's inputs is not usable: {short(each)}"
        waiting.extend((item, level + 1) for item in inner)
        count += 1
        if count > MOST_INPUTS:
            return f"it describes more than {MOST_INPUTS:,} inputs"
    return None


def entries_of(inputs: Any) -> int:
    """How many numbers the inputs hold together that are described."""
    waiting, entries = [inputs], 0
    while waiting:
        each = waiting.pop()
        entries += prod(each.get("tensor", (0,)))
        waiting.extend(described_inside(each) or ())
    return entries


def check_inputs(inputs: Any) -> None:
    """Refuse to make inputs of any size that a file asks for."""
    if (entries := entries_of(inputs)) > MOST_ENTRIES:
        raise PlanMismatch(
            f"the plan describes inputs of {entries} numbers, and at most {MOST_ENTRIES:,} are made for a plan: "
            "give inputs of your own, plan.apply(model, example_inputs)"
        )


def described_inside(data: Any) -> list[Any] | None:
    """What a description holds: nothing for a tensor or a plain value; None where it is no description."""
    match data:
        case {"tensor": list(shape), "dtype": str(dtype), **more}:
            is_usable = dtype in DTYPES and len(shape) <= MOST_LEVELS and is_shape(shape)
            return [] if is_usable and are_values(more, dtype, prod(shape)) else None
        case {"tuple": list(items)} | {"list": list(items)} if len(data) == 1:
            return items
        case {"dict": dict(items)} if len(data) == 1:
            return list(items.values())
        case {"value": None | bool() | float() | str()} if len(data) == 1:
            return []
        case {"value": int(number)} if len(data) == 1:
            return [] if abs(number) < 1 << 63 else None
    return None


def are_values(more: Mapping[Any, Any], dtype: str, count: int) -> bool:
    """Nothing, or the numbers of a tensor on which the model's path depends."""
    if not more:
        return True
    values = more.get("values")
    if len(more) > 1 or not isinstance(values, list) or len(values) != count or "complex" in dtype:
        return False
    if "float" in dtype:
        return all(type(value) is float for value in values)
    return all(type(value) is int and abs(value) < 1 << 63 for value in values)


# Each entry of a plan: what is wrong with it, and whether a plan without it is none.
ENTRIES: dict[str, tuple[Check, bool]] = {
    "model": (text_problem("model"), True),
    "options": (options_problem, True),
    "output": (choice_problem("output", OUTPUTS), True),
    "verify": (choice_problem("verify", VERIFICATIONS), True),
    "inputs": (inputs_problem, True),
    "shapes": (shapes_problem, True),
    "indices": (indices_problem, False),
    "groups": (groups_problem, True),
}


# -- indices ---------------------------------------------------------------------------------------


def indices_kept(given: Any, size: int) -> Indices:
    """Which indices stay, in any order, from a list, a tuple, a range, a set or an array of whole numbers.

    Negative numbers are no indices here. A ValueError ends the sentence "the indices kept of 'a' ...".
    """
    numbers = whole_numbers(given)
    if numbers is None:
        raise ValueError(f"must be different whole numbers from 0 to {size - 1}, not {short(given)}")
    if not len(numbers):
        raise ValueError("are none: at least one must stay")
    if int(numbers.min()) < 0 or int(numbers.max()) >= size:
        raise ValueError(f"must be different whole numbers from 0 to {size - 1}: {short(given)}")
    if len(np.unique(numbers)) < len(numbers):
        raise ValueError(f"must be different whole numbers from 0 to {size - 1}: one comes twice in {short(given)}")
    return numbers


def whole_numbers(given: Any) -> Indices | None:
    """A flat list of numbers as an array; None for anything else, truth values among it."""
    if isinstance(given, str | bytes | Mapping) or not hasattr(given, "__iter__"):
        return None
    if hasattr(given, "detach"):
        given = given.detach().cpu().numpy()
    if isinstance(given, np.ndarray):
        is_whole = given.ndim == 1 and (given.dtype.kind in "iu" or not given.size)
        return given.astype(np.int64) if is_whole else None
    if isinstance(given, range):
        return np.arange(given.start, given.stop, given.step) if len(given[: MOST_BYTES + 1]) <= MOST_BYTES else None
    if not isinstance(given, list | tuple | set | frozenset):
        return None
    if not all(isinstance(each, Integral) and not isinstance(each, bool) for each in given):
        return None
    numbers = [int(each) for each in given]
    if not all(abs(each) < LARGEST for each in numbers):
        return None
    return np.asarray(sorted(numbers) if isinstance(given, set | frozenset) else numbers, np.int64)
