"""Which value each tensor of a recording is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from structprune.errors import UnsupportedModel
from structprune.frontends.torch.record.ghost import Ghost
from structprune.frontends.torch.record.memory import overlap, storage_of
from structprune.frontends.torch.record.record import Call, Capture
from structprune.graph.graph import Shape, Value, Where

Place = tuple[int, Shape, tuple[int, ...]]


class Values:
    """Parameters by their names, constants, and the results of operators.

    What happened out of the recorder's sight (detaching, a tensor in the memory of a stored one) is added to `calls`.
    """

    def __init__(
        self,
        modules: Sequence[tuple[str, nn.Module]],
        calls: list[Call],
        where: Callable[[], Where],
        known: Capture | None,
    ) -> None:
        self.calls = calls
        self.where = where
        self.parameters: dict[str, Value] = dict(known.parameters) if known else {}
        self.aliases: dict[str, str] = {}
        self.constants: dict[Value, Tensor] = {}
        self.dtypes: dict[Value, torch.dtype] = dict(known.dtypes) if known else {}
        self.strides: dict[Value, tuple[int, ...]] = {}
        self._unread: dict[str, Value] = {}
        self._stored: dict[int, tuple[Tensor, str]] = {}
        # The stored tensors in each piece of memory.
        self._storages: dict[int, list[Tensor]] = {}
        # Stored tensors that lie in the memory of another one.
        self._within: dict[int, Tensor] = {}
        self._made: dict[Place, Value] = {}
        self._values: dict[int, tuple[Tensor, Value]] = {}
        self._trained: set[str] = set()
        for store, is_trained in (("_parameters", True), ("_buffers", False)):
            for path, module in modules:
                for name, tensor in vars(module)[store].items():
                    if tensor is not None:
                        self._register(f"{path}.{name}" if path else name, tensor, is_trained)

    def _register(self, name: str, tensor: Tensor, is_trained: bool) -> None:
        known = self._stored.get(id(tensor))
        self.aliases[name] = known[1] if known else name
        if known is None:
            self._stored[id(tensor)] = (tensor, name)
            if is_trained:
                self._trained.add(name)
            if tensor.numel() and tensor.device.type != "meta":
                others = self._storages.setdefault(tensor.untyped_storage().data_ptr(), [])
                base = self._base(tensor) if others else None
                if base is not None:
                    self._within[id(tensor)] = base
                else:
                    others.append(tensor)

    def _base(self, tensor: Tensor) -> Tensor | None:
        """The stored tensor in whose memory another one lies, if there is one."""
        storage = storage_of(tensor)
        others = self._storages.get(storage.data_ptr()) if storage is not None and tensor.numel() else None
        return next((base for base in others or () if base is not tensor and overlap(base, tensor)), None)

    # -- the model's own memory ----------------------------------------------------------------

    def is_stored(self, tensor: Tensor) -> bool:
        """The tensor is one that the model stores, or lies in its memory."""
        return id(tensor) in self._stored or self._base(tensor) is not None

    def is_in_storage(self, tensor: Tensor) -> bool:
        """The tensor lies in a piece of memory in which the model stores something."""
        return not isinstance(tensor, Ghost) and tensor.untyped_storage().data_ptr() in self._storages

    # -- values --------------------------------------------------------------------------------

    def tensors(self) -> Iterable[Tensor]:
        return (tensor for tensor, _ in self._values.values())

    def new(self, tensor: Tensor, name: str) -> Value:
        value = Value(name, tuple(Tensor.size(tensor)), is_mask=tensor.dtype == torch.bool)
        self._values[id(tensor)] = (tensor, value)
        self.dtypes[value] = tensor.dtype
        if type(tensor) is Ghost or tensor.layout is torch.strided:
            self.strides[value] = tensor.stride()
        return value

    def name(self, tensor: Tensor, value: Value) -> None:
        """From now on, the tensor is this value."""
        self._values[id(tensor)] = tensor, value

    def result(self, tensor: Tensor, name: str) -> Value:
        """The value of an operator's result."""
        value = self.new(tensor, name)
        if pointer(tensor):
            self._made[place(tensor)] = value
        return value

    def of(self, tensor: Tensor) -> Value:
        known = self._values.get(id(tensor))
        if known is not None:
            return known[1]
        if isinstance(tensor, Ghost) and tensor._origin_of_ghost is not None:
            return self._detached(tensor, tensor._origin_of_ghost)
        stored = self._stored.get(id(tensor))
        if id(tensor) in self._within:
            return self._view(tensor, self._within[id(tensor)])
        base = None if stored else self._base(tensor)
        if base is not None and place(base) == place(tensor):
            stored, base = self._stored[id(base)], None
        # Factory functions hand the caller another tensor over the memory that was recorded.
        made = self._made.get(place(tensor)) if stored is None else None
        if made is not None:
            self._values[id(tensor)] = (tensor, made)
            return made
        if base is not None:
            return self._view(tensor, base)
        if stored is None:
            value = self.new(tensor, f"constant_{len(self.constants)}")
            self.constants[value] = tensor
            return value
        return self._parameter(tensor, stored[1])

    def _parameter(self, tensor: Tensor, name: str) -> Value:
        parameter = self.parameters.get(name)
        if parameter is None:
            parameter = self._unread.get(name) or self.new(tensor, name)
            self.parameters[name] = parameter
            self.dtypes[parameter] = tensor.dtype
            parameter.parameter = name
            parameter.is_trained = name in self._trained
        self._values[id(tensor)] = (tensor, parameter)
        return parameter

    def for_size(self, tensor: Tensor) -> Value:
        """The value of a tensor; a parameter of which only the sizes are asked for is not read by that."""
        stored = self._stored.get(id(tensor))
        if stored is None or stored[1] in self.parameters:
            return self.of(tensor)
        name = stored[1]
        if name not in self._unread:
            self._unread[name] = Value(name, tuple(Tensor.size(tensor)), is_mask=tensor.dtype == torch.bool)
        return self._unread[name]

    def _detached(self, tensor: Tensor, origin: Tensor) -> Value:
        """Record the detaching that happened out of sight."""
        call = Call(torch.ops.aten.detach.default, (self.of(origin),), {}, [], self.where())
        call.outputs.append(self.new(tensor, f"detach_{len(self.calls)}"))
        self.calls.append(call)
        return call.outputs[0]

    def _view(self, tensor: Tensor, base: Tensor) -> Value:
        """Record how a tensor lies in the memory of a stored one: both change at once."""
        form = tuple(tensor.shape), tensor.stride(), tensor.storage_offset()
        if base.storage_offset():
            raise UnsupportedModel(
                f"{self._stored[id(base)][1]} lies in one piece of memory with other tensors, and is read there as "
                f"another tensor of shape {list(tensor.shape)}: give it memory of its own"
            )
        call = Call(torch.ops.aten.as_strided.default, (self.of(base), *form), {}, [], self.where())
        call.outputs.append(self.new(tensor, f"as_strided_{len(self.calls)}"))
        self.calls.append(call)
        return call.outputs[0]


def pointer(tensor: Tensor) -> int:
    is_without = isinstance(tensor, Ghost) or tensor.device.type == "meta" or tensor.layout is not torch.strided
    return 0 if is_without else tensor.data_ptr()


def place(tensor: Tensor) -> Place:
    return pointer(tensor), tuple(Tensor.size(tensor)), tensor.stride()
