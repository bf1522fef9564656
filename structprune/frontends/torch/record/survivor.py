"""Tensors without data that outlive a recording: found, removed from caches, or named before they can hurt."""

from __future__ import annotations

import gc
import sys
import types
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from weakref import ref

from torch import Tensor, nn

from structprune.errors import CaptureError
from structprune.frontends.torch.record.outside import CACHE


def forget_frames(error: BaseException | None) -> None:
    """An exception keeps the local variables of all that it went through."""
    seen: set[int] = set()
    unread = [error]
    for each in unread:
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            each.__traceback__ = None
            unread += [each.__cause__, each.__context__]


def check_survivors(born: Sequence[ref[Tensor]], copy: nn.Module | None, name: str) -> None:
    """Raise where tensors of a recording are kept at a place from which they cannot be removed."""
    if not any(each() is not None for each in born):
        return
    for module in list(copy.modules()) if copy is not None else ():
        vars(module).clear()
    if not any(each() is not None for each in born):
        return
    gc.collect()
    for each in born:
        if each() is not None:
            remove(each)
    gc.collect()
    left = next((each for each in born if each() is not None), None)
    if left is not None:
        raise CaptureError(
            f"{name} keeps what it computes outside of itself, in {place_of(left)}: there are tensors without data "
            "now, left by the recording. Empty that place, and do not keep tensors there in forward."
        )


def holders(value: Any) -> Iterator[Any]:
    """The objects that refer to another; not the frames and lists of this search."""
    for each in gc.get_referrers(value):
        if not isinstance(each, types.FrameType | types.GeneratorType):
            yield each


def remove(survivor: ref[Tensor]) -> None:
    """Take it out of the caches that hold it, with the tuples and lists that it came in."""
    unread: list[Any] = [survivor()]
    seen: set[int] = {id(unread)}
    while unread:
        value = unread.pop()
        for holder in list(holders(value)):
            if id(holder) in seen:
                continue
            seen.add(id(holder))
            if isinstance(holder, CACHE):
                holder.cache_clear()
            elif isinstance(holder, tuple):
                unread.append(holder)
            elif isinstance(holder, dict) and not is_namespace(holder):
                for key in [key for key, each in holder.items() if each is value or key is value]:
                    del holder[key]
            elif isinstance(holder, list | deque) and all(isinstance(each, type(value)) for each in holder):
                while holder and any(each is value for each in holder):
                    holder.pop()
            elif isinstance(holder, set):
                holder.discard(value)


def is_namespace(found: dict[Any, Any]) -> bool:
    """Whether a dict holds the globals of a module or the attributes of an object."""
    return "__name__" in found or any(getattr(each, "__dict__", None) is found for each in holders(found))


def place_of(survivor: ref[Tensor]) -> str:
    """Where in the program it is kept, for a message."""
    for holder in holders(survivor()):
        for owner in (holder, *list(holders(holder))[:20]):
            found = name_of(owner, (holder, survivor()))
            if found:
                return found
    return "a place that was not found"


def name_of(owner: Any, held: Sequence[Any]) -> str | None:
    if isinstance(owner, types.ModuleType):
        return f"the module {owner.__name__}"
    if isinstance(owner, dict) and "__name__" in owner and owner["__name__"] in sys.modules:
        names = [key for key, value in owner.items() if any(value is each for each in held)]
        return f"the module {owner['__name__']}" + (f" ({names[0]})" if names else "")
    if isinstance(owner, type):
        return f"the class {owner.__qualname__}"
    if isinstance(owner, types.FunctionType):
        return f"the function {owner.__qualname__}"
    if isinstance(owner, types.CellType):
        return "a variable around a function"
    if isinstance(owner, Iterable | Tensor) or type(owner).__module__ == "builtins":
        return None
    return f"an object of class {type(owner).__qualname__}"
