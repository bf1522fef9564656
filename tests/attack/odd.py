"""Odd calls: each ends in a right result, or in an error of ours that says what to do.

A call gets a temporary folder; it gives (model, result, inputs) to be compared, or anything else.
"""

from __future__ import annotations

import array
import collections
import contextvars
import copy
import decimal
import enum
import fractions
import functools
import io
import json
import operator
import queue
import threading
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import structprune

Call = Callable[[Path], Any]
CALLS: dict[str, Call] = {}


def call(function: Call) -> Call:
    CALLS[function.__name__] = function
    return function


class Small(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.up = nn.Linear(6, width)
        self.down = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Any:
        return self.down(self.up(x).relu())


X = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def small() -> nn.Module:
    torch.manual_seed(0)
    return Small().double().eval()


def shrunk(model: nn.Module, *inputs: Any, ratio: float = 0.4, **options: Any) -> tuple[nn.Module, nn.Module, Any]:
    given = inputs or (X,)
    return model, structprune.shrink(model, ratio, given, **options), given


# -- where it is called ----------------------------------------------------------------------------------------------


@call
def with_device_meta(folder: Path) -> Any:
    model = small()
    with torch.device("meta"):
        return shrunk(model)


@call
def built_on_meta(folder: Path) -> Any:
    with torch.device("meta"):
        model = Small().double()
    return shrunk(model)


@call
def with_default_device_cpu(folder: Path) -> Any:
    model = small()
    with torch.device("cpu"):
        return shrunk(model)


@call
def with_default_dtype_half(folder: Path) -> Any:
    model = small()
    torch.set_default_dtype(torch.float16)
    try:
        return shrunk(model)
    finally:
        torch.set_default_dtype(torch.float32)


@call
def in_inference_mode(folder: Path) -> Any:
    model = small()
    with torch.inference_mode():
        structprune.shrink(model, 0.4, X)
    return shrunk(model)


@call
def model_made_in_inference_mode(folder: Path) -> Any:
    with torch.inference_mode():
        model = small()
    return shrunk(model)


@call
def in_fake_mode(folder: Path) -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = small()
    with FakeTensorMode(allow_non_fake_inputs=True):
        return shrunk(model)


@call
def in_make_fx(folder: Path) -> Any:
    from torch.fx.experimental.proxy_tensor import make_fx

    model = small()
    made: list[nn.Module] = []

    def function(x: Tensor) -> Tensor:
        made.append(structprune.shrink(model, 0.4, X))
        return x + 1

    make_fx(function)(X)
    return model, made[0], (X,)


@call
def in_vmap(folder: Path) -> Any:
    model = small()
    made: list[nn.Module] = []

    def function(x: Tensor) -> Tensor:
        made.append(structprune.shrink(model, 0.4, x[None]))
        return x

    torch.func.vmap(function)(X)
    return model, made[0], (X,)


@call
def in_autocast(folder: Path) -> Any:
    model = small()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = structprune.shrink(model, 0.4, X)
    return model, result, (X,)


@call
def in_detect_anomaly(folder: Path) -> Any:
    model = small()
    with torch.autograd.detect_anomaly():
        return shrunk(model)


@call
def in_saved_tensors_hooks(folder: Path) -> Any:
    model = small()
    with torch.autograd.graph.save_on_cpu():
        return shrunk(model)


@call
def in_profiler(folder: Path) -> Any:
    model = small()
    with torch.profiler.profile():
        return shrunk(model)


@call
def in_another_dispatch_mode(folder: Path) -> Any:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    model = small()
    with Counting():
        return shrunk(model)


@call
def inside_its_own_forward(folder: Path) -> Any:
    class Outer(Small):
        def forward(self, x: Tensor) -> Any:
            structprune.analyze(inner, X)
            return super().forward(x)

    inner = small()
    return shrunk(Outer().double())


# -- what is given as a model --------------------------------------------------------------------------------------------


@call
def a_parameter(folder: Path) -> Any:
    return structprune.shrink(nn.Parameter(torch.randn(3, 3)), 0.5, X)


@call
def a_tensor(folder: Path) -> Any:
    return structprune.shrink(torch.randn(3, 3), 0.5, X)


@call
def a_function(folder: Path) -> Any:
    return structprune.shrink(lambda x: x, 0.5, X)


@call
def a_class(folder: Path) -> Any:
    return structprune.shrink(Small, 0.5, X)


@call
def a_state_dict(folder: Path) -> Any:
    return structprune.shrink(small().state_dict(), 0.5, X)


@call
def nothing(folder: Path) -> Any:
    return structprune.shrink(None, 0.5, X)


@call
def an_exported_program(folder: Path) -> Any:
    model = small()
    program = torch.export.export(model, (X,))
    result = structprune.shrink(program, 0.4, X)
    result = result.module() if hasattr(result, "module") and not isinstance(result, nn.Module) else result
    assert sum(each.numel() for each in result.parameters()) < sum(each.numel() for each in model.parameters())
    return model, result, (X,)


@call
def a_graph_module(folder: Path) -> Any:
    return shrunk(torch.fx.symbolic_trace(small()))


@call
def an_exported_module(folder: Path) -> Any:
    return shrunk(torch.export.export(small(), (X,)).module())


@call
def a_compiled_model(folder: Path) -> Any:
    model = small()
    return model, structprune.shrink(torch.compile(model, backend="eager"), 0.4, X), (X,)


@call
def compiled_in_place(folder: Path) -> Any:
    model = small()
    model.compile(backend="eager")
    return shrunk(model)


@call
def a_scripted_model(folder: Path) -> Any:
    return structprune.shrink(torch.jit.trace(small(), X), 0.4, X)


@call
def a_partial_model(folder: Path) -> Any:
    return structprune.shrink(functools.partial(small()), 0.4, X)


@call
def a_module_list(folder: Path) -> Any:
    return structprune.shrink(nn.ModuleList([small()]), 0.4, X)


@call
def a_path_that_is_none(folder: Path) -> Any:
    return structprune.shrink(folder / "missing.onnx", 0.4, output_path=folder / "out.onnx")


@call
def a_path_of_weights(folder: Path) -> Any:
    torch.save(small().state_dict(), folder / "weights.pt")
    return structprune.shrink(folder / "weights.pt", 0.4)


# -- inputs -----------------------------------------------------------------------------------------------------------------


@call
def inputs_of_another_dtype(folder: Path) -> Any:
    return structprune.shrink(small(), 0.4, X.float())


@call
def inputs_of_another_size(folder: Path) -> Any:
    return structprune.shrink(small(), 0.4, torch.randn(4, 7, dtype=torch.float64))


@call
def a_nested_tensor(folder: Path) -> Any:
    nested = torch.nested.nested_tensor([X[:2], X[:3]], layout=torch.jagged)
    return structprune.shrink(small(), 0.4, nested)


@call
def a_sparse_input(folder: Path) -> Any:
    return structprune.shrink(small(), 0.4, X.to_sparse())


@call
def a_numpy_input(folder: Path) -> Any:
    return structprune.shrink(small(), 0.4, X.numpy())


@call
def a_meta_input(folder: Path) -> Any:
    return structprune.shrink(small(), 0.4, X.to("meta"))


@call
def an_input_that_wants_gradients(folder: Path) -> Any:
    return shrunk(small(), X.clone().requires_grad_())


@call
def an_input_that_is_a_parameter(folder: Path) -> Any:
    return shrunk(small(), nn.Parameter(X.clone()))


@call
def an_input_of_a_subclass(folder: Path) -> Any:
    class Marked(Tensor):
        pass

    return shrunk(small(), X.clone().as_subclass(Marked))


@call
def an_empty_batch(folder: Path) -> Any:
    return shrunk(small(), X[:0])


@call
def a_batch_of_one(folder: Path) -> Any:
    return shrunk(small(), X[:1])


@call
def no_batch(folder: Path) -> Any:
    return shrunk(small(), X[0])


@call
def inputs_that_are_not_finite(folder: Path) -> Any:
    structprune.shrink(small(), 0.4, torch.full_like(X, float("nan")), verify="numeric")
    return shrunk(small())


@call
def a_generator_of_inputs(folder: Path) -> Any:
    return structprune.shrink(small(), 0.4, (each for each in (X,)))


@call
def a_data_loader(folder: Path) -> Any:
    return structprune.shrink(small(), 0.4, torch.utils.data.DataLoader([X[0], X[1]]))


@call
def a_set_of_inputs(folder: Path) -> Any:
    return structprune.shrink(small(), 0.4, {X})


@call
def inputs_by_unknown_name(folder: Path) -> Any:
    return structprune.shrink(small(), 0.4, {"wrong": X})


@call
def inputs_by_whole_numbers(folder: Path) -> Any:
    return structprune.shrink(small(), 0.4, {0: X})


@call
def inputs_by_name(folder: Path) -> Any:
    model = small()
    return model, structprune.shrink(model, 0.4, {"x": X}), (X,)


@call
def an_ordered_dict_of_inputs(folder: Path) -> Any:
    model = small()
    return model, structprune.shrink(model, 0.4, collections.OrderedDict(x=X)), (X,)


@call
def a_packed_sequence(folder: Path) -> Any:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.down = nn.GRU(6, 16), nn.Linear(16, 3)

        def forward(self, x: Any) -> Any:
            return self.down(self.cell(x)[1][0])

    packed = nn.utils.rnn.pack_sequence([X[:3], X[:2]])
    return shrunk(Packed().double(), packed)


# -- results ------------------------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


@dataclass
class Record:
    """No pytree: nothing of torch looks into it."""

    wide: Tensor


class Plain:
    def __init__(self, wide: Tensor) -> None:
        self.wide = wide


class Slotted:
    __slots__ = ("wide",)

    def __init__(self, wide: Tensor) -> None:
        self.wide = wide


class OwnMapping(Mapping[str, Tensor]):
    def __init__(self, wide: Tensor) -> None:
        self.held = {"wide": wide}

    def __getitem__(self, key: str) -> Tensor:
        return self.held[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.held)

    def __len__(self) -> int:
        return 1


def with_attribute(h: Tensor) -> Tensor:
    y = h.sum(-1)
    y.wide = h  # type: ignore[attr-defined]
    return y


# What holds the wide activation: none of it may come back narrower.
CONTAINERS: dict[str, Callable[[Tensor], Any]] = {
    "namespace": lambda h: types.SimpleNamespace(wide=h),
    "plain": Plain,
    "slots": Slotted,
    "record": Record,
    "user_dict": lambda h: collections.UserDict(wide=h),
    "user_list": lambda h: collections.UserList([h]),
    "deque": lambda h: collections.deque([h]),
    "own_mapping": OwnMapping,
    "counter": lambda h: collections.Counter({"wide": h}),
    "chain_map": lambda h: collections.ChainMap({}, {"wide": h}),
    "default_dict": lambda h: collections.defaultdict(list, wide=[h]),
    "mapping_proxy": lambda h: types.MappingProxyType({"wide": h}),
    "pair": lambda h: Pair(h, h.sum(-1)),
    "set": lambda h: {h},
    "frozen_set": lambda h: frozenset([h]),
    "iterator": lambda h: iter([h]),
    "generator": lambda h: (each for each in [h]),
    "function": lambda h: lambda: h,
    "partial": lambda h: functools.partial(torch.add, h),
    "weird_tuple": lambda h: type("Own", (tuple,), {})([h]),
    "own_dict": lambda h: type("Own", (dict,), {})(wide=h),
    "nested": lambda h: [{"a": (types.SimpleNamespace(b=[h]),)}],
    "attribute_of_tensor": with_attribute,
    "numpy": lambda h: h.detach().numpy(),
    "numpy_of_objects": lambda h: np.array([h, None], dtype=object),
    "dataclass_in_list": lambda h: [Record(h)],
    "parameter": nn.Parameter,
    "distribution": lambda h: torch.distributions.Normal(h, torch.ones_like(h)),
    "packed": lambda h: nn.utils.rnn.pack_sequence([h[:2], h[:1]]),
    "sparse": lambda h: h.to_sparse(),
    "return_type": lambda h: h.max(0),
    "none": lambda h: None,
}


# Sizes and numbers of it, in forms that hold no tensor.
AS_NUMBERS: dict[str, Callable[[Tensor], Any]] = {
    "bound_method": lambda h: h.sum,
    "class": lambda h: type("Held", (), {"wide": h}),
    "list_of_numbers": lambda h: h.tolist(),
    "bytes": lambda h: h.detach().numpy().tobytes(),
    "shape": lambda h: h.shape,
    "size": lambda h: (h.sum(-1), h.shape[-1]),
    "text": lambda h: (h.sum(-1), str(tuple(h.shape))),
    "module": lambda h: nn.ParameterList([nn.Parameter(h)]),
    "instance_of_held": lambda h: type("Held", (), {"wide": h})(),
    "class_property": lambda h: type("Held", (), {"wide": property(lambda self: h)})(),
    "static_method": lambda h: type("Held", (), {"wide": staticmethod(lambda: h)}),
    "parameter_dict": lambda h: nn.ParameterDict({"wide": nn.Parameter(h)}),
    "module_with_attribute": lambda h: with_held(nn.Identity(), h),
    "module_with_buffer": lambda h: with_buffer(nn.Identity(), h),
    "number_of_entries": lambda h: h.numel(),
    "length": lambda h: len(h.T),
    "strides": lambda h: h.stride(),
    "range": lambda h: range(h.shape[-1]),
    "slice": lambda h: slice(0, h.shape[-1]),
    "float_of_size": lambda h: h.shape[-1] ** 0.5,
    "complex_of_size": lambda h: complex(h.shape[-1], 1),
    "fraction_of_size": lambda h: fractions.Fraction(h.shape[-1], 3),
    "decimal_of_size": lambda h: decimal.Decimal(int(h.shape[-1])),
    "text_of_size": lambda h: f"{h.shape[-1]} wide",
    "text_by_repr": repr,
    "bytes_of_size": lambda h: bytes(h.shape[-1]),
    "json_of_sizes": lambda h: json.dumps(list(h.shape)),
    "path_of_size": lambda h: Path(str(h.shape[-1])),
    "keys_of_sizes": lambda h: {h.shape[-1]: "wide"},
    "set_of_sizes": lambda h: {h.shape[-1]},
    "numpy_number": lambda h: np.int64(h.shape[-1]),
    "numpy_of_size": lambda h: np.zeros(h.shape[-1]),
    "empty_numpy": lambda h: np.array(h.shape[-1]),
    "array_of_numbers": lambda h: array.array("d", [0.0] * h.shape[-1]),
    "memory_view": lambda h: memoryview(b"x" * h.shape[-1]),
    "byte_array": lambda h: bytearray(h.shape[-1]),
    "bool_of_size": lambda h: h.shape[-1] > 10,
    "index_of_number": lambda h: [h.shape[-1] - 1],
    "enum_of_size": lambda h: Width(int(h.shape[-1])),
    "dtype_and_device": lambda h: (h.dtype, h.device, h.layout),
    "storage": lambda h: h.detach().clone().untyped_storage(),
    "sized_by_attribute": lambda h: types.SimpleNamespace(width=h.shape[-1]),
    "closure_over_size": lambda h: functools.partial(torch.zeros, h.shape[-1]),
    "lambda_over_size": lambda h: (lambda n: lambda: n)(h.shape[-1]),
    "default_of_lambda": lambda h: lambda n=h: n,
    "bound_to_own": lambda h: Record(h).__eq__,
    "weak_reference": lambda h: weakref.ref(h),
    "generator_function": lambda h: generated(h),
    "map": lambda h: map(abs, [h]),
    "zip": lambda h: zip([h], [h], strict=True),
    "dict_values": lambda h: {"wide": h}.values(),
    "dict_items": lambda h: {"wide": h}.items(),
    "keys_that_are_tensors": lambda h: {h: 1},
    "nested_function": lambda h: [lambda: (lambda: h)()],
    "property_of_slots": lambda h: OnlySlots(h),
    "exception": lambda h: ValueError(h),
    "thread_local": lambda h: local_with(h),
    "context_variable": lambda h: contextvars.ContextVar("held", default=h),
    "item_getter": lambda h: operator.itemgetter(int(h.shape[-1]) - 1),
    "autograd_node": lambda h: h.grad_fn,
    "future": lambda h: done(h),
    "queue": lambda h: queued(h),
    "io": lambda h: io.BytesIO(bytes(h.shape[-1])),
    "frozen_dataclass": lambda h: Width2(int(h.shape[-1]), h.sum(-1)),
    "numbers_in_tuple": lambda h: Pair(h.shape[-1], h.sum(-1)),
    "hash_of_size": lambda h: hash(int(h.shape[-1])),
    "is_size": lambda h: torch.Size([h.shape[-1]]),
    "range_listed": lambda h: list(range(h.shape[-1])),
    "torch_of_size": lambda h: torch.tensor(h.shape[-1]),
    "torch_arange": lambda h: torch.arange(h.shape[-1]),
    "torch_zeros": lambda h: torch.zeros(h.shape[-1]),
}
RESULTS = CONTAINERS | AS_NUMBERS


class Width(enum.IntEnum):
    NARROW = 8
    WIDE = 16


@dataclass(frozen=True)
class Width2:
    width: int
    total: Tensor


class OnlySlots:
    __slots__ = ("__dict__", "held")

    def __init__(self, wide: Tensor) -> None:
        self.held = (wide,)


def with_held(module: nn.Module, h: Tensor) -> nn.Module:
    module.wide = [h]
    return module


def with_buffer(module: nn.Module, h: Tensor) -> nn.Module:
    module.register_buffer("wide", h)
    return module


def generated(h: Tensor) -> Iterator[Tensor]:
    yield h


def local_with(h: Tensor) -> threading.local:
    made = threading.local()
    made.wide = h
    return made


def done(h: Tensor) -> Any:
    made: Any = torch.futures.Future()
    made.set_result(h)
    return made


def queued(h: Tensor) -> Any:
    made: Any = queue.SimpleQueue()
    made.put(h)
    return made


class Returns(nn.Module):
    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.wrap = wrap
        self.up, self.middle, self.down = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Any:
        h = self.middle(self.up(x).relu())
        return {"y": self.down(h.relu()), "held": self.wrap(h)}


def returns(name: str, output: str) -> None:
    def act(folder: Path) -> Any:
        torch.manual_seed(0)
        return shrunk(Returns(RESULTS[name]).double().eval(), output=output)

    CALLS[f"result_in_{name}_{output}"] = act


for _name in RESULTS:
    returns(_name, "auto")
    returns(_name, "graph")


# -- paths that depend on data, shown as graphs ----------------------------------------------------------------------------------

PATHS: dict[str, Callable[[Tensor], Tensor]] = {
    "item": lambda h: h * h.sum().item(),
    "if_sum": lambda h: h if h.sum() > 0 else -h,
    "tolist": lambda h: h * h.sum(0).tolist()[0],
    "numpy": lambda h: h * float(h.detach().numpy().mean()),
    "float": lambda h: h * float(h.mean()),
    "int": lambda h: h * int(h.abs().sum() * 10),
    "bool": lambda h: h * bool(h[0, 0] > 0),
    "format": lambda h: h * float(f"{h.mean():.3f}"),
    "index": lambda h: h[: int((h > 0).sum() % 3) + 1].sum(0, keepdim=True).expand_as(h),
    "loop": lambda h: sum(h for _ in range(int(h.abs().sum()) % 5 + 1)),
    "nonzero": lambda h: h * h.nonzero().shape[0],
    "unique": lambda h: h * (h > 0).unique().numel(),
    "masked": lambda h: h * h[h > 0].sum(),
    "assert": lambda h: h * 1 if torch.isfinite(h).all() else h,
    "max_of_two": lambda h: h * max(h[0, 0], h[1, 0]),
    "sorted": lambda h: h * sorted([h[0, 0], h[1, 0]])[0],
    "while": lambda h: _halved(h),
    "array": lambda h: h * torch.from_numpy(np.sign(h.detach().numpy())),
    "equal": lambda h: h if torch.equal(h, h * 2) else h * 3,
    "allclose": lambda h: h if torch.allclose(h, h * 2) else h * 3,
    "split_by_data": lambda h: h.split([int((h[:, 0] > 0).sum()), h.shape[0] - int((h[:, 0] > 0).sum())])[0].sum(0, keepdim=True).expand_as(h),
    "repeat_interleave": lambda h: h.repeat_interleave((h[:, 0] > 0).long() + 1, 0)[: len(h)],
}


def _halved(h: Tensor) -> Tensor:
    while h.abs().max() > 0.5:
        h = h / 2
    return h


class Follows(nn.Module):
    def __init__(self, path: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.path = path
        self.up, self.middle, self.down = nn.Linear(6, 16), nn.Linear(16, 4), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Any:
        h = self.up(x).relu()
        decides = self.middle(h)
        return self.down(h) * self.path(decides).sum(-1, keepdim=True), decides


def follows(name: str, output: str) -> None:
    def act(folder: Path) -> Any:
        torch.manual_seed(0)
        return shrunk(Follows(PATHS[name]).double().eval(), output=output)

    CALLS[f"path_by_{name}_{output}"] = act


for _name in PATHS:
    follows(_name, "auto")
    follows(_name, "graph")


# -- control flow and transforms inside forward -----------------------------------------------------------------------------------

INSIDE: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "vmap": lambda m, h: torch.func.vmap(lambda row: row.tanh() * 2)(h),
    "vmap_over_width": lambda m, h: torch.func.vmap(lambda column: column.tanh(), in_dims=1, out_dims=1)(h),
    "vmap_of_layer": lambda m, h: torch.func.vmap(lambda row: F.linear(row, m.middle.weight))(h),
    "grad": lambda m, h: torch.func.grad(lambda v: (v**3).sum())(h),
    "jvp": lambda m, h: torch.func.jvp(torch.sin, (h,), (torch.ones_like(h),))[1] * h,
    "functional_call": lambda m, h: torch.func.functional_call(m.middle, dict(m.middle.named_parameters()), h),
    "cond": lambda m, h: torch.cond(h.sum() > 0, lambda v: v * 2, lambda v: v - 1, (h,)),
    "while_loop": lambda m, h: torch._higher_order_ops.while_loop(lambda i, v: i < 3, lambda i, v: (i + 1, v * 1.5), (torch.tensor(0), h))[1],
    "checkpoint": lambda m, h: torch.utils.checkpoint.checkpoint(m.middle, h, use_reentrant=False),
    "checkpoint_reentrant": lambda m, h: torch.utils.checkpoint.checkpoint(m.middle, h, use_reentrant=True),
    "flex_attention": lambda m, h: _flex(h),
    "autograd_function": lambda m, h: Doubled.apply(h),
    "enable_grad": lambda m, h: _with_grad(h),
    "compiled": lambda m, h: COMPILED(h),
    "scripted": lambda m, h: SCRIPTED(h),
    "custom_op": lambda m, h: torch.ops.attacked_odd.double(h),
    "nested_jagged": lambda m, h: torch.nested.nested_tensor([h[:2], h[2:]]).to_padded_tensor(0.0).flatten(0, 1)[: len(h)],
    "futures": lambda m, h: torch.jit.wait(torch.jit.fork(torch.tanh, h)),
    "named": lambda m, h: h.refine_names("b", "c").rename(None).tanh(),
    "hooked": lambda m, h: _hooked(h),
    "subclass": lambda m, h: h.as_subclass(Marked).tanh().as_subclass(Tensor),
    "no_dispatch_name": lambda m, h: torch.Tensor.__torch_function__(torch.tanh, (Tensor,), (h,)),
    "dlpack": lambda m, h: torch.from_dlpack(h.detach()).tanh(),
    "pickled": lambda m, h: torch.load(_saved(h)).tanh(),
    "deep_copied": lambda m, h: copy.deepcopy(h.detach()).tanh(),
    "thread": lambda m, h: _in_thread(h),
}  # fmt: skip


class Marked(Tensor):
    pass


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2


def _hooked(h: Tensor) -> Tensor:
    if h.requires_grad:
        h.register_hook(lambda gradient: gradient * 0.5)
    return h * 2


def _with_grad(h: Tensor) -> Tensor:
    with torch.enable_grad():
        v = h.detach().requires_grad_()
        return torch.autograd.grad((v**2).sum(), v)[0]


def _flex(h: Tensor) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    q = h.view(1, 1, *h.shape)
    return flex_attention(q, q, q)[0, 0]


def _saved(h: Tensor) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(h.detach().clone(), file)
    file.seek(0)
    return file


def _in_thread(h: Tensor) -> Tensor:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.tanh, h.detach()).result()


def _double(h: Tensor) -> Tensor:
    return h * 2


COMPILED = torch.compile(_double, backend="eager")
SCRIPTED = torch.jit.script(_double)
LIBRARY = torch.library.Library("attacked_odd", "DEF")
LIBRARY.define("double(Tensor x) -> Tensor")
LIBRARY.impl("double", lambda x: x * 2, "CompositeExplicitAutograd")


class Inside(nn.Module):
    def __init__(self, middle: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.act = middle
        self.up, self.middle, self.down = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.last = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.down(self.act(self, self.up(x))).relu())


def inside(name: str, output: str) -> None:
    def act(folder: Path) -> Any:
        torch.manual_seed(0)
        return shrunk(Inside(INSIDE[name]).double().eval(), ratio=0.2, output=output)

    CALLS[f"{name}_inside_{output}"] = act


for _name in INSIDE:
    inside(_name, "auto")
    inside(_name, "graph")


# -- plans and weights -------------------------------------------------------------------------------------------------------------


def edited(**changes: Any) -> Callable[[Path], Any]:
    def act(folder: Path) -> Any:
        model = small()
        plan = structprune.plan(model, 0.4, X)
        name = next(iter(plan.keep))
        made = {key: value(plan, name) if callable(value) else value for key, value in changes.items()}
        return model, replaced(plan, **made).apply(model), (X,)

    return act


def kept_as(make: Callable[[list[int]], Any]) -> Callable[[Path], Any]:
    return edited(keep=lambda plan, name: {name: make(plan.keep[name])})


for _name, _make in {
    "array": np.array,
    "tensor": torch.tensor,
    "set": set,
    "tuple": tuple,
    "range": lambda kept: range(len(kept)),
    "number": len,
    "floats": lambda kept: [float(each) for each in kept],
    "halves": lambda kept: [each + 0.5 for each in kept],
    "text": str,
    "none": lambda kept: None,
    "empty": lambda kept: [],
    "nested": lambda kept: [kept],
    "negative": lambda kept: [-1, *kept[1:]],
    "too_large": lambda kept: [*kept[:-1], 99],
    "huge": lambda kept: [*kept[:-1], 10**30],
    "twice": lambda kept: [kept[0], *kept],
    "descending": lambda kept: kept[::-1],
    "booleans": lambda kept: [index in kept for index in range(16)],
    "numpy_numbers": lambda kept: [np.int64(each) for each in kept],
    "infinite": lambda kept: [float("inf")],
    "generator": lambda kept: (each for each in kept),
}.items():
    CALLS[f"keep_as_{_name}"] = kept_as(_make)

for _name, _changes in {
    "keep_is_none": {"keep": None},
    "keep_is_a_list": {"keep": [1, 2]},
    "keep_of_an_unknown_group": {"keep": {"nowhere.weight:0": [0, 1]}},
    "sizes_are_none": {"sizes": None},
    "sizes_are_text": {"sizes": lambda plan, name: {name: "16"}},
    "sizes_are_infinite": {"sizes": lambda plan, name: {name: float("inf")}},
    "inputs_are_none": {"inputs": None},
    "inputs_are_text": {"inputs": "x"},
    "inputs_are_tensors": {"inputs": X},
    "shapes_are_none": {"shapes": None},
    "shapes_of_another": {"shapes": {"up.weight": (16, 7)}},
    "output_unknown": {"output": "onnx"},
    "verify_unknown": {"verify": "maybe"},
    "options_are_empty": {"options": {}},
}.items():
    CALLS[f"plan_with_{_name}"] = edited(**_changes)


def on_disk(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def act(folder: Path) -> Any:
        model = small()
        plan = structprune.plan(model, 0.4, X)
        result = plan.apply(model)
        plan.save(folder / "plan.json")
        data = json.loads((folder / "plan.json").read_text())
        changed = change(data)
        (folder / "plan.json").write_text(json.dumps(data if changed is None else changed))
        return model, structprune.load(small(), folder / "plan.json", result.state_dict()), (X,)

    return act


for _name, _change in {
    "unchanged": lambda data: None,
    "a_list": lambda data: [data],
    "no_groups": lambda data: data.pop("groups") and None,
    "infinite_size": lambda data: next(iter(data["groups"].values())).update(size=float("inf")),
    "huge_size": lambda data: next(iter(data["groups"].values())).update(size=10**400),
    "nan_kept": lambda data: next(iter(data["groups"].values())).update(keep=[float("nan")]),
    "huge_input": lambda data: data.update(inputs={"tuple": [{"tuple": [{"tensor": [10**9, 6], "dtype": "float64"}]}, {"dict": {}}]}),
    "endless_input": lambda data: data.update(inputs={"tuple": [{"tuple": [{"tensor": [10**40], "dtype": "float64"}]}, {"dict": {}}]}),
    "many_axes": lambda data: data.update(inputs={"tuple": [{"tuple": [{"tensor": [1] * 5000, "dtype": "float64"}]}, {"dict": {}}]}),
    "input_of_text": lambda data: data.update(inputs="hello"),
    "huge_shape": lambda data: data["shapes"].update({"up.weight": [10**400, 6]}),
    "negative_shape": lambda data: data["shapes"].update({"up.weight": [-16, 6]}),
    "ratio_of_text": lambda data: data["options"].update(ratio="half"),
    "version_from_the_future": lambda data: data.update(structprune_plan=99),
    "names_with_escapes": lambda data: data.update(model="\x1b[31mred\x07", groups={"\x1b[2J": {"size": 3, "keep": [0]}}),
    "lone_surrogate": lambda data: data.update(model="\ud800"),
}.items():  # fmt: skip
    CALLS[f"plan_file_with_{_name}"] = on_disk(_change)


def stored(write: Callable[[Path], Any], suffix: str = "plan.json") -> Callable[[Path], Any]:
    def act(folder: Path) -> Any:
        path = folder / suffix
        write(path)
        return structprune.load(small(), path, {})

    return act


CALLS["plan_file_is_missing"] = stored(lambda path: None)
CALLS["plan_file_is_a_folder"] = stored(lambda path: path.mkdir())
CALLS["plan_file_is_empty"] = stored(lambda path: path.write_text(""))
CALLS["plan_file_is_binary"] = stored(lambda path: path.write_bytes(bytes(range(256))))
CALLS["plan_file_is_deep"] = stored(lambda path: path.write_text("[" * 100_000))
CALLS["plan_file_has_a_long_name"] = stored(lambda path: None, "x" * 300 + ".json")
CALLS["plan_file_has_nul"] = lambda folder: structprune.load(small(), "a\0b", {})
CALLS["plan_file_is_a_number"] = lambda folder: structprune.load(small(), 3, {})
CALLS["plan_file_is_none"] = lambda folder: structprune.load(small(), None, {})


def loaded(change: Callable[[dict[str, Tensor], Path], Any]) -> Callable[[Path], Any]:
    def act(folder: Path) -> Any:
        model = small()
        plan = structprune.plan(model, 0.4, X)
        result = plan.apply(model)
        plan.save(folder / "plan.json")
        return model, structprune.load(small(), folder / "plan.json", change(dict(result.state_dict()), folder)), (X,)

    return act


def saved(state: dict[str, Tensor], folder: Path, name: str) -> Path:
    torch.save(state, folder / name)
    return folder / name


for _name, _state in {
    "none": lambda state, folder: None,
    "a_list": lambda state, folder: list(state.values()),
    "the_original": lambda state, folder: small().state_dict(),
    "a_name_too_few": lambda state, folder: {name: value for name, value in state.items() if name != "up.bias"},
    "a_name_too_many": lambda state, folder: state | {"more": torch.zeros(1)},
    "numpy": lambda state, folder: {name: value.numpy() for name, value in state.items()},
    "numbers": lambda state, folder: dict.fromkeys(state, 1.0),
    "meta": lambda state, folder: {name: value.to("meta") for name, value in state.items()},
    "a_path": lambda state, folder: saved(state, folder, "weights.pt"),
    "a_path_as_text": lambda state, folder: str(saved(state, folder, "weights.pt")),
    "a_missing_path": lambda state, folder: folder / "nothing.pt",
    "a_module": lambda state, folder: small(),
}.items():
    CALLS[f"load_with_{_name}"] = loaded(_state)


# -- arguments ------------------------------------------------------------------------------------------------------------------------


def given(**options: Any) -> Callable[[Path], Any]:
    def act(folder: Path) -> Any:
        model, ratio = small(), options.get("ratio", 0.4)
        rest = {key: value for key, value in options.items() if key != "ratio"}
        return model, structprune.shrink(model, ratio, X, **rest), (X,)

    return act


for _name, _options in {
    "ratio_zero": {"ratio": 0},
    "ratio_one": {"ratio": 1},
    "ratio_percent": {"ratio": 40},
    "ratio_nan": {"ratio": float("nan")},
    "ratio_text": {"ratio": "0.4"},
    "ratio_numpy": {"ratio": np.float32(0.4)},
    "ratio_tensor": {"ratio": torch.tensor(0.4)},
    "ratio_true": {"ratio": True},
    "ratio_complex": {"ratio": 0.4j},
    "score_nan": {"score": lambda group, weights: np.full(group.size, np.nan)},
    "score_some_nan": {"score": lambda group, weights: np.where(np.arange(group.size) < 3, np.nan, 1.0)},
    "score_infinite": {"score": lambda group, weights: np.full(group.size, np.inf)},
    "score_of_wrong_length": {"score": lambda group, weights: np.ones(3)},
    "score_none": {"score": lambda group, weights: None},
    "score_of_text": {"score": lambda group, weights: ["a"] * group.size},
    "score_of_tensor": {"score": lambda group, weights: torch.arange(group.size)},
    "score_of_lists": {"score": lambda group, weights: list(range(group.size))},
    "score_complex": {"score": lambda group, weights: np.ones(group.size) * 1j},
    "score_two_dimensions": {"score": lambda group, weights: np.ones((group.size, 2))},
    "score_raises": {"score": lambda group, weights: 1 / 0},
    "score_changes_weights": {"score": lambda group, weights: [w.__imul__(0) for w in _arrays(weights)] and np.arange(group.size)},
    "score_with_too_few_arguments": {"score": lambda group: np.ones(group.size)},
    "score_number": {"score": 3},
    "align_zero": {"align": 0},
    "align_huge": {"align": 10**9},
    "align_float": {"align": 8.0},
    "align_numpy": {"align": np.int64(4)},
    "exclude_number": {"exclude": 3},
    "exclude_unknown": {"exclude": ["nowhere.*"]},
    "exclude_bytes": {"exclude": b"up*"},
    "exclude_module": {"exclude": [nn.Linear]},
    "exclude_everything": {"exclude": ["*"]},
    "exclude_broken_pattern": {"exclude": ["[up"]},
    "only_set": {"only": {"up.weight"}},
    "only_generator": {"only": (each for each in ["up.weight"])},
    "seed_float": {"seed": 1.5},
    "seed_huge": {"seed": 10**30, "score": "random"},
    "seed_numpy": {"seed": np.int64(3), "score": "random"},
    "scope_unknown": {"scope": "local"},
    "of_unknown": {"of": "flops"},
    "output_true": {"output": True},
    "verify_true": {"verify": True},
    "progress_text": {"progress": "yes"},
    "output_path": {"output_path": "somewhere.pt"},
}.items():  # fmt: skip
    CALLS[f"given_{_name}"] = given(**_options)


def _arrays(weights: Any) -> list[Any]:
    return list(weights.values()) if isinstance(weights, Mapping) else list(weights)


# -- models that copy, name or hold themselves oddly ----------------------------------------------------------------------------------------


class CopiesAsItself(nn.Linear):
    def __deepcopy__(self, memo: Any) -> nn.Module:
        return self


class CopiesNot(nn.Linear):
    def __deepcopy__(self, memo: Any) -> nn.Module:
        raise TypeError("not me")


class ComplainsAboutCopies(nn.Linear):
    def __deepcopy__(self, memo: Any) -> nn.Module:
        return nn.Linear(self.in_features, self.out_features).double()


class Conv1x1(nn.Module):
    """Its name is no sign of what it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())


def holding(make: Callable[[], nn.Module]) -> Callable[[Path], Any]:
    def act(folder: Path) -> Any:
        torch.manual_seed(0)
        model = make().double().eval()
        before = {
            name: tensor.clone() for name, tensor in model.state_dict().items() if not nn.parameter.is_lazy(tensor)
        }
        try:
            return shrunk(model)
        finally:
            for name, tensor in model.state_dict().items() if before else ():
                assert name not in before or (tensor.shape == before[name].shape and torch.equal(tensor, before[name])), f"{name} changed"

    return act


def _with_lambda() -> nn.Module:
    model = Small()
    model.forward = types.MethodType(lambda self, x: self.down(self.up(x).tanh()), model)  # type: ignore[method-assign]
    return model


def _with_itself() -> nn.Module:
    model = Small()
    model.__dict__["me"] = model
    return model


def _with_parent() -> nn.Module:
    model = nn.Sequential(Small())
    model[0].__dict__["parent"] = model
    return model


def _with_names(first: str, second: str) -> nn.Module:
    model = nn.Module()
    model.add_module(first, nn.Linear(6, 16))
    model.add_module(second, nn.Linear(16, 3))
    model.forward = types.MethodType(  # type: ignore[method-assign]
        lambda self, x: self._modules[second](self._modules[first](x).relu()), model
    )
    return model


for _name, _maker in {
    "a_layer_that_copies_as_itself": lambda: nn.Sequential(CopiesAsItself(6, 16), nn.ReLU(), nn.Linear(16, 3)),
    "both_layers_that_copy_as_themselves": lambda: nn.Sequential(CopiesAsItself(6, 16), nn.ReLU(), CopiesAsItself(16, 3)),
    "a_layer_that_does_not_copy": lambda: nn.Sequential(CopiesNot(6, 16), nn.ReLU(), nn.Linear(16, 3)),
    "a_layer_that_copies_as_another": lambda: nn.Sequential(ComplainsAboutCopies(6, 16), nn.ReLU(), nn.Linear(16, 3)),
    "a_misleading_name": Conv1x1,
    "its_forward_replaced": _with_lambda,
    "itself_as_an_attribute": _with_itself,
    "its_parent_as_an_attribute": _with_parent,
    "one_layer_twice": lambda: (lambda layer: nn.Sequential(nn.Linear(6, 16), layer, nn.ReLU(), layer, nn.Linear(16, 3)))(nn.Linear(16, 16)),
    "escapes_in_names": lambda: _with_names("\x1b[31mup", "down"),
    "spaces_in_names": lambda: _with_names("the first", "class"),
    "names_of_fx": lambda: _with_names("graph", "code"),
    "names_of_python": lambda: _with_names("self", "forward_"),
    "umlauts_in_names": lambda: _with_names("größe", "日本"),
    "an_empty_list_of_layers": lambda: nn.Sequential(Small(), nn.Sequential(), nn.ModuleList()),
    "a_lazy_layer": lambda: nn.Sequential(nn.LazyLinear(16), nn.Linear(16, 3)),
    "no_parameters": lambda: nn.Sequential(nn.ReLU()),
    "data_parallel": lambda: nn.DataParallel(Small()),
    "half_precision_inside": lambda: nn.Sequential(Small().half()),
    "integer_parameters": lambda: _with_integers(),
    "weights_that_share_memory": lambda: _with_shared_memory(),
    "weights_that_overlap": lambda: _with_overlap(),
    "an_expanded_weight": lambda: _with_expanded(),
    "an_optimizer": lambda: _with_optimizer(),
    "a_lock": lambda: _with_attribute("lock", __import__("threading").Lock()),
    "an_open_file": lambda: _with_attribute("file", open(__file__)),  # noqa: SIM115
    "a_generator": lambda: _with_attribute("generator", iter([1])),
    "a_python_module": lambda: _with_attribute("numpy", np),
    "a_pool_of_tensors": lambda: _with_attribute("others", [torch.zeros(16), {"a": torch.ones(3)}]),
    "an_activation_with_history": lambda: _with_attribute("history", torch.ones(3, requires_grad=True) * 2),
}.items():  # fmt: skip
    CALLS[f"holds_{_name}"] = holding(_maker)


def _with_attribute(name: str, value: Any) -> nn.Module:
    model = Small()
    model.__dict__[name] = value
    return model


def _with_optimizer() -> nn.Module:
    model = Small()
    return _with(model, "optimizer", torch.optim.SGD(model.parameters(), 0.1))


def _with(model: nn.Module, name: str, value: Any) -> nn.Module:
    model.__dict__[name] = value
    return model


def _with_integers() -> nn.Module:
    model = Small()
    model.count = nn.Parameter(torch.arange(16), requires_grad=False)
    return model


def _with_shared_memory() -> nn.Module:
    """Two layers of an autoencoder over one memory, one of them transposed."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 6)
            self.double()
            self.down.weight = nn.Parameter(self.up.weight.detach().t())

        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.up(x).relu())

        def double(self) -> nn.Module:
            return self if hasattr(self, "down") and self.up.weight.dtype == torch.float64 else super().double()

    return Tied()


def _with_overlap() -> nn.Module:
    class Overlap(Small):
        def __init__(self) -> None:
            super().__init__()
            super().double()
            memory = torch.randn(200, dtype=torch.float64)
            self.up.weight = nn.Parameter(memory[:96].view(16, 6))
            self.down.weight = nn.Parameter(memory[80:128].view(3, 16))

        def double(self) -> nn.Module:
            return self

    return Overlap()


def _with_expanded() -> nn.Module:
    class Expanded(Small):
        def __init__(self) -> None:
            super().__init__()
            super().double()
            self.up.weight = nn.Parameter(torch.randn(1, 6, dtype=torch.float64).expand(16, 6))

        def double(self) -> nn.Module:
            return self

    return Expanded()


@call
def an_error_that_is_no_exception(folder: Path) -> Any:
    class Leaves(Small):
        def forward(self, x: Tensor) -> Any:
            raise SystemExit("leaving")

    return structprune.shrink(Leaves().double(), 0.4, X)


@call
def forward_that_prints(folder: Path) -> Any:
    class Prints(Small):
        def forward(self, x: Tensor) -> Any:
            h = self.up(x)
            print(h, h.shape, f"{h.mean()}", file=io.StringIO())
            return self.down(h)

    return shrunk(Prints().double())


@call
def forward_without_arguments(folder: Path) -> Any:
    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seed, self.up, self.down = nn.Parameter(torch.randn(2, 6)), nn.Linear(6, 16), nn.Linear(16, 3)

        def forward(self) -> Tensor:
            return self.down(self.up(self.seed).relu())

    model = Alone().double()
    return model, structprune.shrink(model, 0.4, ()), ()


@call
def only_for_a_product_of_parameters(folder: Path) -> Any:
    """`only` names the width that the parameter makes, not the one that it reads."""

    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w1, self.w2, self.w3 = (nn.Parameter(torch.randn(*s)) for s in ((6, 16), (16, 12), (12, 3)))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.w1 @ self.w2 @ self.w3

    model = Products().double()
    result = structprune.shrink(model, 0.2, X, only=["w2"])
    assert tuple(result.w1.shape) == (6, 16), "only=['w2'] cut the width that w1 makes"
    return model, result, (X,)


# -- tensors without values, and those that are not dense ---------------------------------------------------------------------


def _fake(width: int = 16) -> tuple[nn.Module, Tensor]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return Small(width), torch.randn(4, 6)


@call
def a_fake_model_outside_of_its_mode(folder: Path) -> Any:
    return structprune.shrink(_fake()[0], 0.4, X.float())


@call
def a_fake_model_and_its_input(folder: Path) -> Any:
    return structprune.shrink(*(_fake()[0], 0.4, _fake()[1]))


@call
def a_fake_model_and_no_input(folder: Path) -> Any:
    return structprune.plan(_fake()[0], 0.4)


@call
def a_fake_input(folder: Path) -> Any:
    return structprune.shrink(small().float(), 0.4, _fake()[1])


for _name, _sparse in {
    "sparse": lambda m, h: m.middle(h).to_sparse().to_dense(),
    "sparse_rows": lambda m, h: m.middle(h).to_sparse_csr().to_dense(),
    "sparse_product": lambda m, h: torch.sparse.mm(h.to_sparse(), m.middle.weight),
    "sparse_sum": lambda m, h: torch.sparse.sum(h.to_sparse(), 1).to_dense()[:, None] * h,
    "gammainc": lambda m, h: torch.special.gammainc(h.abs() + 1, m.middle(h).abs()),
    "gammaincc": lambda m, h: torch.special.gammaincc(m.middle(h).abs() + 1, h.abs()),
    "zeta": lambda m, h: torch.special.zeta(h.abs() + 2, m.middle(h).abs() + 1),
    "polygamma": lambda m, h: torch.polygamma(1, h.abs() + 1),
    "chebyshev": lambda m, h: torch.special.chebyshev_polynomial_t(h.tanh(), 3),
}.items():
    INSIDE[f"inside_{_name}"] = _sparse
    for _output in ("auto", "graph"):
        inside(f"inside_{_name}", _output)
