"""Output shapes of the commonest operators without running torch's own, which is ten times slower.

Each answers only where the result's strides are plain too; anywhere else torch is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from structprune.errors import DuplicateRule

Shape = Callable[..., Tensor | None]
SHAPES: dict[str, Shape] = {}

# Pointwise operators whose result has the type of their floating operands.
POINTWISE = frozenset(
    (
        *("abs", "add", "addcmul", "clamp", "clamp_max", "clamp_min", "cos", "div", "elu", "erf", "exp", "gelu"),
        *("hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "log", "maximum", "minimum", "mish", "mul", "neg"),
        *("pow", "reciprocal", "relu", "relu6", "rsqrt", "sigmoid", "silu", "sin", "softplus", "sqrt", "square"),
        *("sub", "tanh"),
    )
)
# Operators whose result has the shape of their first operand: in plain order, whatever the operand's, or in its order.
CONTIGUOUS = frozenset(("layer_norm", "log_softmax", "softmax"))
SAME_ORDER = frozenset(("batch_norm", "dropout", "group_norm", "instance_norm", "rms_norm"))


def quick_shape(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """A tensor like the result, where it is quick to tell."""
    name = function._opname
    if name.endswith("_") and name[:-1] in POINTWISE:
        return written(*args)
    if name in POINTWISE:
        return pointwise((*args, *kwargs.values()))
    if name in CONTIGUOUS or name in SAME_ORDER:
        x = args[0]
        if "dtype" in kwargs or not x.is_floating_point() or any(isinstance(each, torch.dtype) for each in args):
            return None
        keeps_order = name in SAME_ORDER and (x.is_contiguous() or (name != "instance_norm" and is_plain(x)))
        return like(x, x.shape) if name in CONTIGUOUS else x if keeps_order else None
    found = SHAPES.get(name)
    return found(*args, **kwargs) if found else None


def is_plain(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and (
        tensor.is_contiguous() or (tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last))
    )


def like(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.empty(tuple(shape), dtype=tensor.dtype, device="meta")


def fits(shape: Sequence[int], target: Sequence[int]) -> bool:
    """Broadcasting the first gives the second."""
    if shape == target:
        return True
    pairs = zip(reversed(shape), reversed(target), strict=False)
    return len(shape) <= len(target) and all(a in (1, b) for a, b in pairs)


def written(target: Tensor, *others: Any) -> Tensor | None:
    """In place, on a tensor at least as large as the others: the tensor itself."""
    is_fitting = all(fits(other.shape, target.shape) for other in others if isinstance(other, Tensor))
    return target if is_fitting and target.is_floating_point() else None


def is_dense(tensor: Tensor) -> bool:
    """Without gaps or overlaps, its axes in whatever order: pointwise results keep such strides."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return tensor.is_floating_point()


def pointwise(arguments: Sequence[Any]) -> Tensor | None:
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    largest = max(tensors, key=Tensor.numel)
    # Where a smaller operand that comes first is spread, its own strides have a say in the order of the axes.
    is_whole = is_dense if tensors[0] is largest else is_plain
    if not all(tensor.dtype == largest.dtype for tensor in tensors) or not is_whole(largest):
        return None
    if not all(fits(tensor.shape, largest.shape) for tensor in tensors):
        return None
    same_size = [tensor for tensor in tensors if tensor.shape == largest.shape]
    return largest if all(tensor.stride() == largest.stride() for tensor in same_size) else None


def shape_of(*names: str) -> Callable[[Shape], Shape]:
    """Register the quick shape of operators."""

    def register(function: Shape) -> Shape:
        for name in names:
            if name in SHAPES:
                raise DuplicateRule(f"two quick shapes for {name!r}")
            SHAPES[name] = function
        return function

    return register


def same_type(x: Tensor, weight: Tensor) -> None:
    """Shapes alone do not tell that real tensors would be refused."""
    if x.dtype != weight.dtype:
        raise RuntimeError(f"the input has type {x.dtype}, the weight {weight.dtype}")


@shape_of("conv2d")
def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = (1, 1),
    padding: Any = (0, 0),
    dilation: Any = (1, 1),
    groups: int = 1,
) -> Tensor | None:
    same_type(x, weight)
    if x.dim() != 4 or x.shape[1] != weight.shape[1] * groups:
        return None
    if not x.is_contiguous() or not weight.is_contiguous() or isinstance(padding, str):
        return None
    stride, padding, dilation = (each * 2 if len(each) == 1 else each for each in (stride, padding, dilation))
    size = [
        (x.shape[k + 2] + 2 * padding[k] - dilation[k] * (weight.shape[k + 2] - 1) - 1) // stride[k] + 1
        for k in range(2)
    ]
    return like(x, (x.shape[0], weight.shape[0], *size)) if min(size) > 0 else None


@shape_of("linear")
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    same_type(x, weight)
    if x.dim() < 2 or x.shape[-1] != weight.shape[-1] or weight.dim() != 2:
        return None
    return like(x, (*x.shape[:-1], weight.shape[0]))


@shape_of("cat")
def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor | None:
    first = tensors[0]
    dim %= max(first.dim(), 1)
    for each in tensors:
        if each.dtype != first.dtype or not each.is_contiguous() or each.dim() != first.dim():
            return None
        if each.shape[:dim] != first.shape[:dim] or each.shape[dim + 1 :] != first.shape[dim + 1 :]:
            return None
    return like(first, (*first.shape[:dim], sum(each.shape[dim] for each in tensors), *first.shape[dim + 1 :]))


@shape_of("adaptive_avg_pool2d")
def adaptive_avg_pool2d(x: Tensor, size: Sequence[int]) -> Tensor | None:
    return like(x, (*x.shape[:-2], *size)) if x.is_contiguous() and x.is_floating_point() else None


@shape_of("scaled_dot_product_attention")
def attention(query: Tensor, key: Tensor, value: Tensor, *mask: Any, **options: Any) -> Tensor | None:
    if query.dim() != 4 or key.dim() != 4 or query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        return None
    if query.shape[0] != key.shape[0] or (query.shape[1] != key.shape[1] and not options.get("enable_gqa")):
        return None
    batch, heads, rows, _ = query.shape
    # The layout of the fused kernels: heads inside rows.
    return like(query, (batch, rows, heads, value.shape[-1])).transpose(1, 2)


@shape_of("roll")
def roll(x: Tensor, *shifts: Any, **options: Any) -> Tensor | None:
    return x if x.is_contiguous() and x.is_floating_point() else None


@shape_of("masked_fill")
def masked_fill(x: Tensor, mask: Tensor, value: Any) -> Tensor | None:
    return x if x.is_contiguous() and x.is_floating_point() and fits(mask.shape, x.shape) else None


@shape_of("linalg_vector_norm")
def vector_norm(x: Tensor, order: float = 2, dim: Any = None, keepdim: bool = False, **options: Any) -> Tensor | None:
    if options or not x.is_floating_point() or not isinstance(dim, list | tuple) or not dim:
        return None
    axes = {axis % x.dim() for axis in dim}
    kept = [1 if axis in axes else size for axis, size in enumerate(x.shape) if keepdim or axis not in axes]
    return like(x, kept)


@shape_of("matmul")
def matmul(a: Tensor, b: Tensor) -> Tensor | None:
    if a.dim() != b.dim() or a.dim() < 3 or a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-2]:
        return None
    return like(a, (*a.shape[:-1], b.shape[-1])) if a.dtype == b.dtype and a.is_floating_point() else None
