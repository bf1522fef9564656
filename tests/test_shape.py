"""Quick shapes against torch: shape, strides and type of the real result, in every memory layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from structprune.frontends.torch.record.shape import CONTIGUOUS, POINTWISE, SAME_ORDER, SHAPES, quick_shape

aten = torch.ops.aten


def layouts() -> dict[str, Tensor]:
    torch.manual_seed(0)
    x = torch.rand(2, 6, 4, 6) + 0.5
    return {
        "plain": x,
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "permuted": x.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0),
        "transposed": x.transpose(1, 3).contiguous().transpose(1, 3),
        "sliced": torch.rand(2, 8, 4, 6)[:, :6],
        "expanded": torch.rand(2, 1, 4, 6).expand(2, 6, 4, 6),
    }


def agree(function: Any, *args: Any) -> bool:
    """Whether the quick shape answered; where it did, it must be right."""
    found = quick_shape(function, args, {})
    if found is None:
        return False
    real = function(*args)
    assert (found.shape, found.dtype) == (real.shape, real.dtype)
    # The layout of attention depends on the kernel that torch chooses when it runs.
    assert strides(found) == strides(real) or function is aten.scaled_dot_product_attention.default
    return True


def strides(tensor: Tensor) -> list[int]:
    """Of axes with one entry torch gives any."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size != 1]


ONE = {"clamp": (0.1, 0.9), "clamp_min": (0.1,), "clamp_max": (0.9,), "pow": (2.0,), "hardtanh": (-1.0, 1.0)}
TWO = ("add", "div", "maximum", "minimum", "mul", "sub")
OVERLOADS = {"clamp_min": "default", "clamp_max": "default", "pow": "Tensor_Scalar"}


def overload(name: str, two: bool = False) -> Any:
    packet = getattr(aten, name)
    return getattr(packet, "Tensor" if two and "Tensor" in packet.overloads() else OVERLOADS.get(name, "default"))


@pytest.mark.parametrize("layout", layouts())
@pytest.mark.parametrize("name", sorted(POINTWISE - set(TWO) - {"addcmul"}))
def test_pointwise_of_one(name: str, layout: str) -> None:
    answered = agree(overload(name), layouts()[layout], *ONE.get(name, ()))
    assert answered or layout in ("sliced", "expanded")


@pytest.mark.parametrize("second", [*layouts(), "row", "column", "number"])
@pytest.mark.parametrize("first", layouts())
@pytest.mark.parametrize("name", TWO)
def test_pointwise_of_two(name: str, first: str, second: str) -> None:
    smaller = {"row": torch.rand(6), "column": torch.rand(6, 1, 1), "number": torch.rand(())}
    x, y = layouts()[first], {**layouts(), **smaller}[second]
    answered = [agree(overload(name, two=True), x, y), agree(overload(name, two=True), y, x)]
    assert all(answered) or (first, second) != ("plain", "plain")


@pytest.mark.parametrize("layout", layouts())
def test_addcmul(layout: str) -> None:
    x = layouts()[layout]
    assert agree(aten.addcmul.default, x, x, x) or layout != "plain"


@pytest.mark.parametrize("layout", layouts())
@pytest.mark.parametrize("name", sorted(CONTIGUOUS | SAME_ORDER))
def test_same_shape(name: str, layout: str) -> None:
    x = layouts()[layout]
    gamma = torch.ones(6)
    arguments = {
        "batch_norm": (x, gamma, gamma, gamma, gamma, False, 0.1, 1e-5, False),
        "instance_norm": (x, gamma, gamma, None, None, True, 0.1, 1e-5, False),
        "group_norm": (x, 2, gamma, gamma),
        "layer_norm": (x, [6], gamma, gamma),
        "rms_norm": (x, [6], gamma),
        "softmax": (x, 1),
        "log_softmax": (x, 1),
        "dropout": (x, 0.5, False),
    }[name]
    function = getattr(getattr(aten, name), "int" if "softmax" in name else "default")
    assert agree(function, *arguments) or layout != "plain"


@pytest.mark.parametrize("layout", layouts())
@pytest.mark.parametrize("name", sorted(SHAPES))
def test_own_shapes(name: str, layout: str) -> None:
    x = layouts()[layout]
    calls = {
        "conv2d": [(aten.conv2d.default, x, torch.rand(4, 3, 3, 3), None, [2], [1], [1], 2)],
        "linear": [(aten.linear.default, x, torch.rand(5, 6), *bias) for bias in ((), (torch.rand(5),))],
        "cat": [(aten.cat.default, [x, x], 1), (aten.cat.default, [x, layouts()["plain"]], -1)],
        "adaptive_avg_pool2d": [(aten.adaptive_avg_pool2d.default, x, [2, 3])],
        "scaled_dot_product_attention": [(aten.scaled_dot_product_attention.default, x, x, x)],
        "roll": [(aten.roll.default, x, [1, -2], [2, 3])],
        "masked_fill": [
            (aten.masked_fill.Scalar, x, x > 0.7, 0.0),
            (aten.masked_fill.Scalar, x, x[:1, :1] > 0.7, 0.0),
        ],
        "linalg_vector_norm": [
            (aten.linalg_vector_norm.default, x, 2, [-1], True),
            (aten.linalg_vector_norm.default, x, 1.0, [1, 2], False),
        ],
        "matmul": [(aten.matmul.default, x, x.transpose(-1, -2)), (aten.matmul.default, x[0], x[0].mT)],
    }[name]
    assert all([agree(*call) for call in calls]) or layout != "plain"
