"""Word of long work: passes say what they are doing, and whoever listens shows it.

A pass prints nothing. It calls `doing` (or `walk`s its items), which costs next to nothing
where nobody listens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Item = TypeVar("Item")
Listener = Callable[[str, int, int], None]
_listener: ContextVar[Listener | None] = ContextVar("structprune's listener", default=None)


def doing(what: str, number: int = 0, total: int = 0) -> None:
    """Say what is being done: `doing("scoring group", 3, 40)`. Zero stands for a number that is not known."""
    listener = _listener.get()
    if listener is not None:
        listener(what, number, total)


def walk(items: Sequence[Item], what: str) -> Iterable[Item]:
    """The items, with word of each before it is handed out."""
    return items if _listener.get() is None else _walk(items, what)


def _walk(items: Sequence[Item], what: str) -> Iterator[Item]:
    for number, item in enumerate(items, start=1):
        doing(what, number, len(items))
        yield item


@contextmanager
def within(what: str) -> Iterator[None]:
    """All that is done inside is part of this: `attempt 3: recording operator 512`."""
    outer = _listener.get()
    if outer is None:
        yield
        return

    def listener(inner: str, number: int, total: int) -> None:
        outer(f"{what}: {inner}", number, total)

    with listening(listener):
        yield


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Every word of what is done inside goes to the listener."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def is_heard() -> bool:
    """Somebody listens already."""
    return _listener.get() is not None
