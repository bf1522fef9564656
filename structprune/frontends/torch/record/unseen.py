"""What passes no operator while a model is recorded: memory that is taken, other threads, errors that are caught."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import TYPE_CHECKING

import torch
from torch import Tensor, UntypedStorage

from structprune.frontends.torch.record import private
from structprune.frontends.torch.record.ghost import ESCAPES, Ghost, GhostEscaped
from structprune.frontends.torch.record.memory import storage_of
from structprune.frontends.torch.record.record import Stopped
from structprune.frontends.torch.record.surroundings import threads_noted

if TYPE_CHECKING:
    from structprune.frontends.torch.record.recorder import Recorder


class Unseen:
    """Watches one recording; nothing of the recording refers to it, or tensors would outlive their use."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.thread = get_ident()
        self.first_escape = len(ESCAPES)
        # Memory that was handed out, with what it held.
        self.handed: dict[int, tuple[UntypedStorage, UntypedStorage]] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        with private.handing_out(self.hand_out, self.assign), threads_noted(self.note_thread):
            try:
                yield
            except Stopped as stopped:
                stopped.is_threaded = self.is_threaded()
                raise
            finally:
                self.recorder.is_threaded = self.is_threaded()
                del ESCAPES[self.first_escape :]

    def is_threaded(self) -> bool:
        return self.recorder.is_threaded or any(thread != self.thread for thread in ESCAPES[self.first_escape :])

    def note_thread(self) -> None:
        self.recorder.is_threaded = True

    def hand_out(self, tensor: Tensor) -> None:
        """The code takes the memory of a tensor, to read it or to write it."""
        recorder = self.recorder
        if recorder.sizes.is_busy or tensor.layout is not torch.strided or tensor.is_nested:
            return
        if isinstance(tensor, Ghost):
            raise GhostEscaped("the model takes numbers past all operators")
        with private.no_python_dispatcher(), recorder.sizes.busy():
            storage = storage_of(tensor)
            if storage is not None and storage.data_ptr() not in self.handed:
                self.handed[storage.data_ptr()] = storage, storage.clone()  # type: ignore[no-untyped-call]
                recorder.save(storage)
        if recorder.is_real:
            recorder.reads_past = True
            recorder.handle(torch.ops.structprune.handed_out.default, (tensor,), {})

    def assign(self, tensor: Tensor, other: Tensor) -> None:
        """The code gives a tensor the memory of another one (`h.data = other`)."""
        if self.recorder.sizes.is_busy:
            return
        if not self.recorder.is_real:
            raise GhostEscaped("the model puts a tensor in the place of another")
        value = self.recorder.values.of(other)
        self.hand_out(tensor)
        self.recorder.values.name(tensor, value)

    def check(self) -> None:
        """Raise where a run without data has not seen all, even if the code caught the error."""
        if self.recorder.is_real:
            return
        if ESCAPES[self.first_escape :]:
            raise GhostEscaped("the model goes on after it was refused the numbers of a tensor")
        with private.no_python_dispatcher():
            for storage, before in self.handed.values():
                if not torch.equal(numbers_of(storage), numbers_of(before)):
                    raise GhostEscaped("the model writes numbers past all operators")


def numbers_of(storage: UntypedStorage) -> Tensor:
    """All that is in a piece of memory."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
