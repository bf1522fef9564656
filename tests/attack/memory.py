"""Small models that copy widths, and that reach the memory of tensors past all operators: numpy, dlpack, threads.

`h` is [2, 8]; what nobody can follow stays whole or is refused, and is never wrong.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.attack.oracle import Case

CASES: dict[str, Case] = {}
Body = Callable[[Any, Tensor], Tensor]
POOL = ThreadPoolExecutor(1)


class Net(nn.Module):
    def __init__(self, body: Body, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.body = body
        for name, shape in {"inner": (6, 8), "out": (8, 3), "row": (3,), **shapes}.items():
            setattr(self, name, nn.Parameter(torch.randn(shape)))
        self.register_buffer("count", torch.zeros(1))
        self.held = torch.linspace(0.5, 1.5, 8, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x @ self.inner)


def add(name: str, body: Body, shrinks: bool = False, **shapes: tuple[int, ...]) -> None:
    if name in CASES:
        raise ValueError(f"{name!r} stands here twice")

    def inputs(batch: int) -> Callable[[], tuple[Tensor]]:
        return lambda: (torch.randn(batch, 6, dtype=torch.float64),)

    CASES[name] = Case(name, lambda: Net(body, shapes), inputs(2), (inputs(5),), shrinks=shrinks, area="memory")


def summed(m: Any, h: Tensor) -> Tensor:
    """The bare sum sees what is not zero."""
    return h.sum(-1, keepdim=True) * m.row


# -- copies of a width: an index of the copies is one whole copy -----------------------------------------------------------

COPIES: dict[str, Callable[[Tensor], Tensor]] = {
    "repeat": lambda h: h.repeat(1, 3),
    "tile": lambda h: torch.tile(h, (1, 3)),
    "tile_of_last": lambda h: torch.tile(h, (3,)),
    "expand": lambda h: h[:, None].expand(-1, 3, -1).reshape(-1, 24),
    "cat": lambda h: torch.cat([h] * 3, 1),
    "stack": lambda h: torch.stack([h] * 3, 1).flatten(1),
    "kron": lambda h: torch.kron(torch.ones(1, 3, dtype=h.dtype), h),
    "gathered": lambda h: h[:, torch.arange(24) % 8],
    "circular": lambda h: F.pad(h[:, None], (8, 8), mode="circular")[:, 0],
    "strided": lambda h: h.contiguous().as_strided((len(h), 3, 8), (8, 0, 1)).reshape(-1, 24),
}
SPREAD: dict[str, Callable[[Tensor], Tensor]] = {
    "interleave": lambda h: h.repeat_interleave(3, 1),
    "interleave_by_tensor": lambda h: h.repeat_interleave(torch.tensor([3] * 8), 1),
    "expand_last": lambda h: h[:, :, None].expand(-1, -1, 3).reshape(-1, 24),
    "interpolate": lambda h: F.interpolate(h[:, None], scale_factor=3, mode="nearest")[:, 0],
    "selected": lambda h: h.index_select(1, torch.arange(24) // 3),
    "times_ones": lambda h: (h[:, :, None] * torch.ones(3, dtype=h.dtype)).flatten(1),
}
for _name, _copy in COPIES.items():
    add(f"{_name}_add", lambda m, h, f=_copy: (f(h) + m.bias) @ m.last, bias=(24,), last=(24, 3))
    add(f"{_name}_add_sum", lambda m, h, f=_copy: summed(m, (f(h) + m.bias).tanh()), bias=(24,))
    add(f"{_name}_apart", lambda m, h, f=_copy: (f(h) + m.bias).view(-1, 3, 8).tanh().sum(1) @ m.out, bias=(24,))
    add(f"{_name}_scaled", lambda m, h, f=_copy: summed(m, (f(h) * m.bias).view(-1, 3, 8).cos().sum(1)), bias=(24,))
for _name, _copy in SPREAD.items():
    add(f"{_name}_add", lambda m, h, f=_copy: (f(h) + m.bias) @ m.last, bias=(24,), last=(24, 3))
    add(f"{_name}_add_sum", lambda m, h, f=_copy: summed(m, (f(h) + m.bias).tanh()), bias=(24,))
    add(f"{_name}_apart", lambda m, h, f=_copy: (f(h) + m.bias).view(-1, 8, 3).tanh().sum(2) @ m.out, bias=(24,))
add("repeat_before", lambda m, h: summed(m, (h.repeat(3, 1, 1) + m.bias[:, None, None]).tanh().sum(0)), bias=(3,))
add("expand_before", lambda m, h: summed(m, (h.expand(3, -1, -1) + m.bias[:, None, None]).tanh().sum(0)), bias=(3,))
add("repeat_one", lambda m, h: summed(m, (h.sum(1, keepdim=True).repeat(1, 5) + m.bias).cos()), bias=(5,))
add("repeat_parameter", lambda m, h: summed(m, h * m.bias.repeat(2) + m.bias.repeat_interleave(2)), bias=(4,))
add("repeat_and_parameter", lambda m, h: summed(m, (h.repeat(1, 3) * m.bias.repeat(3) + m.more).tanh()), bias=(8,), more=(24,))
add("repeat_middle", lambda m, h: summed(m, (h[:, None].repeat(1, 4, 1) + m.bias).tanh().sum(1)), bias=(4, 8))
add("broadcast", lambda m, h: summed(m, torch.broadcast_tensors(h[:, None], m.bias)[0].cos().sum(1)), bias=(4, 8))
add("meshgrid", lambda m, h: torch.meshgrid(h.sum(0), m.bias, indexing="ij")[0].tanh().sum(1) @ m.out, bias=(5,))

# -- memory that is written past all operators ---------------------------------------------------------------------------------


def after(write: Callable[[Tensor], Any]) -> Body:
    """What is written is seen by a bare sum."""

    def body(m: Any, h: Tensor) -> Tensor:
        write(h)
        return summed(m, h)

    return body


def by_address(h: Tensor) -> None:
    ctypes.cast(h.data_ptr(), ctypes.POINTER(ctypes.c_double))[0] = 7.0


WRITES: dict[str, Callable[[Tensor], Any]] = {
    "numpy": lambda h: h.detach().numpy().__iadd__(1),
    "numpy_slice": lambda h: h.detach().numpy()[:, 1:3].fill(2.0),
    "asarray": lambda h: np.asarray(h.detach()).__iadd__(1),
    "from_numpy": lambda h: torch.from_numpy(h.detach().numpy()).add_(1),
    "dlpack": lambda h: torch.from_dlpack(h.detach()).add_(1),
    "to_dlpack": lambda h: torch.from_dlpack(torch.utils.dlpack.to_dlpack(h.detach())).add_(1),
    "numpy_from_dlpack": lambda h: torch.from_numpy(np.from_dlpack(h.detach()).copy()).add_(1),
    "storage": lambda h: h.untyped_storage().fill_(7),
    "typed_storage": lambda h: h.detach().storage().fill_(7),
    "data": lambda h: h.data.add_(1),
    "data_slice": lambda h: h.data[:, :2].fill_(1.0),
    "data_set": lambda h: setattr(h, "data", h.data * 2 + 1),
    "data_set_to_ones": lambda h: setattr(h, "data", torch.ones_like(h)),
    "data_set_by_half": lambda h: setattr(h, "data", h.data[:, :4]),
    "set": lambda h: h.detach().set_(torch.ones_like(h)),
    "address": by_address,
    "apply": lambda h: h.detach().apply_(lambda value: value + 1),
    "map": lambda h: h.detach().map_(torch.ones_like(h), lambda a, b: a + b),
    "view_of_numpy": lambda h: memoryview(h.detach().numpy()),
    "shared": lambda h: torch.empty(0, dtype=h.dtype).set_(h.detach().untyped_storage()).add_(1),
    "shared_memory": lambda h: h.detach().share_memory_().add_(1),
}
for _name, _write in WRITES.items():
    add(f"write_by_{_name}", after(_write))
    add(f"write_by_{_name}_then_linear", lambda m, h, f=_write: (f(h), h.tanh()[:, :8] @ m.out[: h.shape[1]])[1])


def early(m: Any, h: Tensor) -> Tensor:
    """The array is taken first, and written after an operator."""
    array = h.detach().numpy()
    h = h.mul_(2)
    array += 1
    return summed(m, h)


def constant_written(m: Any, h: Tensor) -> Tensor:
    scale = torch.ones(8, dtype=h.dtype)
    scale.numpy()[3] = -2.0
    return (h * scale) @ m.out


def set_and_used(write: Callable[[Any], Any]) -> Body:
    return lambda m, h: (write(m), h @ m.out)[1]


add("write_by_numpy_early", early)
add("constant_written_by_numpy", constant_written)
add("constant_read_by_numpy", lambda m, h: (h * torch.from_numpy(np.sqrt(torch.arange(1, 9).numpy())).to(h)) @ m.out)
add("constant_read_as_list", lambda m, h: (h * sum(torch.arange(1, 9).tolist())) @ m.out, shrinks=True)
add("buffer_by_numpy", set_and_used(lambda m: m.count.numpy().fill(3)), shrinks=True)
add("buffer_by_data", set_and_used(lambda m: m.count.data.fill_(3)), shrinks=True)
add("held_by_numpy", set_and_used(lambda m: m.held.numpy().fill(3)), shrinks=True)
add("held_counts", set_and_used(lambda m: m.held.clamp_(max=0.7)), shrinks=True)
add("parameter_by_numpy", set_and_used(lambda m: m.inner.detach().numpy().__imul__(1.0)))
add("parameter_data_set", set_and_used(lambda m: setattr(m.out, "data", m.out.data * 1.0)))
add("resized_in_place", lambda m, h: summed(m, h.detach().clone().resize_(len(h), 4)))
add("bytes_and_back", lambda m, h: torch.frombuffer(bytearray(h.detach().numpy().tobytes()), dtype=h.dtype).view(h.shape) @ m.out)
add("read_as_list", lambda m, h: (h * h.detach().sum(0).tolist()[0]) @ m.out)

# -- what is tried and caught --------------------------------------------------------------------------------------------------


def caught(act: Callable[[Tensor], Tensor]) -> Body:
    def body(m: Any, h: Tensor) -> Tensor:
        try:
            h = act(h)
        except Exception:  # the model's own way: it goes on without
            h = h * 1.0
        return h @ m.out

    return body


def branched(h: Tensor) -> Tensor:
    return h * 2 if h.sum() > -1e9 else h


add("caught_item", caught(lambda h: h * h.sum().item()))
add("caught_float", caught(lambda h: h * float(h.sum())))
add("caught_branch", caught(branched))
add("caught_numpy", caught(lambda h: h + float(h.detach().numpy().mean())))
add("caught_list", caught(lambda h: h * h.detach().tolist()[0][0]))
add("caught_nonzero", caught(lambda h: h * h.nonzero().shape[0]))
add("caught_nothing", caught(lambda h: h * 3), shrinks=True)

# -- other threads -------------------------------------------------------------------------------------------------------------


def started(function: Callable[[Tensor], Tensor], h: Tensor, default: Tensor | None = None) -> Tensor:
    found: dict[str, Tensor] = {}

    def work() -> None:
        try:
            found["y"] = function(h)
        except Exception:  # the caller looks whether there is a result
            found.pop("y", None)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return found.get("y", h if default is None else default)


add("pool", lambda m, h: POOL.submit(torch.tanh, h.detach()).result() @ m.out)
add("pool_of_its_own", lambda m, h: next(ThreadPoolExecutor(2).map(torch.tanh, [h.detach()])) @ m.out)
add("pool_for_weight", lambda m, h: h @ POOL.submit(lambda w: w * 2, m.out.detach()).result())
add("pool_for_norm", lambda m, h: (h / POOL.submit(torch.norm, m.inner.detach()).result()) @ m.out)
add("thread_with_default", lambda m, h: started(torch.tanh, h.detach()) @ m.out)
add("thread_for_norm", lambda m, h: (h * started(torch.norm, m.inner.detach())) @ m.out)
add("thread_for_constant", lambda m, h: (h * started(torch.cos, torch.arange(8, dtype=h.dtype))) @ m.out)
add("thread_for_nothing", lambda m, h: (started(lambda v: v, h.detach()), h @ m.out)[1])
add("fork", lambda m, h: torch.jit.wait(torch.jit.fork(torch.tanh, h)) @ m.out, shrinks=True)
