"""Where tensors lie in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, UntypedStorage, nn

from structprune.frontends.torch.record.record import PLAIN
from structprune.frontends.torch.record.tree import modules_of, stored


def storage_of(tensor: Tensor) -> UntypedStorage | None:
    """The memory of a tensor that has some of its own."""
    if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__ or tensor.layout is not torch.strided:
        return None
    storage = tensor.untyped_storage()
    return storage if storage.data_ptr() else None


def ends(tensor: Tensor) -> tuple[int, int]:
    """Where the memory of a tensor begins and ends."""
    length = sum((size - 1) * stride for size, stride in zip(Tensor.size(tensor), tensor.stride(), strict=True)) + 1
    return tensor.data_ptr(), tensor.data_ptr() + length * tensor.element_size()


def overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors in one piece of memory have some of it in common."""
    (first, last), (start, end) = ends(a), ends(b)
    return first < end and start < last


def tied(model: nn.Module) -> dict[int, Tensor]:
    """The tensors of a model, by their ids, that lie in the memory of others: to write one is to write both."""
    by_storage: dict[int, dict[int, Tensor]] = {}
    for tensor in tensors_of(model):
        storage = storage_of(tensor)
        if storage is not None and tensor.numel():
            by_storage.setdefault(storage.data_ptr(), {})[id(tensor)] = tensor
    found: dict[int, Tensor] = {}
    for tensors in by_storage.values():
        places = sorted((*ends(tensor), key) for key, tensor in tensors.items()) if len(tensors) > 1 else []
        furthest, owner = 0, 0
        for start, end, key in places:
            if start < furthest:
                found.update({owner: tensors[owner], key: tensors[key]})
            if end > furthest:
                furthest, owner = end, key
    return found


def copies_of(tensors: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Each tensor with a copy; the copies share memory as the tensors do."""
    storages: dict[int, UntypedStorage] = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in storages:
            storages[storage.data_ptr()] = storage.clone()  # type: ignore[no-untyped-call]
        made = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        made.set_(storages[storage.data_ptr()], tensor.storage_offset(), tensor.size(), tensor.stride())
        yield tensor, nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made


def tensors_of(model: nn.Module) -> Iterator[Tensor]:
    """What modules store, and the tensors that are plain attributes."""
    yield from (tensor for _, tensor in stored(model))
    for module in modules_of(model):
        yield from (each for each in vars(module).values() if type(each) not in PLAIN and isinstance(each, Tensor))
