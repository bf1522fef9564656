"""Random graphs of random operators: what must hold of every model.

The examples are the same on every run; PROPERTIES=500 tries as many new ones.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import structprune
from structprune.algebra.axis import Sum
from structprune.errors import UnsupportedRatio
from structprune.passes.rewrite import Rewrite
from structprune.testing import check

TOLERANCE = 1e-9  # a share of the largest output, in float64
NEAR = 0.01  # how far the ratio may be missed
WIDTHS = (8, 12, 16, 24)
MORE = int(os.environ.get("PROPERTIES", "0"))
steady = settings(
    max_examples=MORE or 30,
    derandomize=not MORE,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

Spec = tuple[str, int, int]


def activation(which: int) -> nn.Module:
    return (nn.ReLU(), nn.GELU(), nn.Sigmoid(), nn.SiLU(), nn.Tanh(), nn.Softplus())[which % 6]


def divisor(width: int, which: int) -> int:
    found = [each for each in (2, 4, 3, 8, width) if width % each == 0]
    return found[which % len(found)]


class Block(nn.Module):
    """One random operator on `width` features (the last axis) or channels (the second). `out` is what it leaves."""

    def __init__(self, spec: Spec, width: int, is_image: bool) -> None:
        super().__init__()
        self.kind, self.option, out = spec
        self.width, self.out, self.axis = width, width, 1 if is_image else -1
        self.is_image = is_image
        option = self.option

        def layer(inner: int, outer: int) -> nn.Module:
            if is_image:
                return nn.Conv2d(inner, outer, 1 + 2 * (option % 2), padding=option % 2)
            return nn.Linear(inner, outer)

        match self.kind:
            case "layer":
                self.one, self.out = layer(width, out), out
            case "norm" if is_image:
                grouped = nn.GroupNorm(divisor(width, option), width)
                norms = nn.BatchNorm2d(width), grouped, nn.InstanceNorm2d(width, affine=True)
                self.one = norms[option % 3]
            case "norm":
                norms = nn.LayerNorm(width), nn.RMSNorm(width), nn.LayerNorm(width, elementwise_affine=False)
                self.one = norms[option % 3]
            case "activation":
                self.one = activation(option)
            case "residual":
                self.one = nn.Sequential(layer(width, out), activation(option), layer(out, width))
            case "concat":
                self.one, self.out = layer(width, out), width + out
            case "split":
                self.one, self.out = layer(width // 2, width // 2), width
            case "gate":
                self.one, self.out = layer(width, 2 * out), out
            case "slice" if width > 4:
                self.out = width - width // (2 + option % 3)
            case "shuffle" | "heads":
                self.groups = divisor(width, option)
            case "grouped" if is_image:
                self.out = 2 * width if option % 2 else width
                self.one = nn.Conv2d(width, self.out, 3, padding=1, groups=divisor(width, option))
            case "attention" if not is_image:
                self.groups = divisor(width, option)
                self.one, self.two = nn.Linear(width, 3 * width), nn.Linear(width, width)
            case "excite" if is_image:
                self.one = nn.Sequential(nn.Conv2d(width, out, 1), nn.ReLU(), nn.Conv2d(out, width, 1), nn.Sigmoid())
            case "flip" | "roll":
                pass
            case "scale":
                self.scale = nn.Parameter(torch.randn(width, 1, 1) if is_image else torch.randn(width))
            case "pad":
                self.out = width + 1 + option % 3
            case "gather":
                generator = torch.Generator().manual_seed(option)
                self.out = width if option % 2 else out
                index = torch.randperm(width, generator=generator)
                self.register_buffer("index", index if option % 2 else index[torch.randint(0, width, (out,))])
            case "stride" if width > 4:
                self.out = len(range(option % 3, width, 2 + option % 4))
            case _:
                self.kind = "nothing"

    def extra_repr(self) -> str:
        return f"{self.kind} {self.option}, {self.width} -> {self.out}"

    def forward(self, x: Tensor) -> Tensor:
        match self.kind:
            case "layer" | "norm" | "activation" | "grouped":
                return self.one(x)
            case "residual":
                return x + self.one(x)
            case "concat":
                parts = [x, self.one(x)]
                return torch.cat(parts[:: -1 if self.option % 2 else 1], self.axis)
            case "split":
                first, second, *rest = x.split([self.width // 2] * 2 + [self.width % 2] * (self.width % 2), self.axis)
                return torch.cat([second + self.one(first), first, *rest], self.axis)
            case "gate":
                first, second = self.one(x).chunk(2, self.axis)
                return first * second.sigmoid()
            case "slice":
                return x.narrow(self.axis, (self.width - self.out) // (1 + self.option % 2), self.out)
            case "shuffle":
                axis = self.axis % x.dim()
                y = x.unflatten(axis, (self.groups, -1)).transpose(axis, axis + 1)
                return y.flatten(axis, axis + 1)
            case "heads":
                axis = self.axis % x.dim()
                y = x.unflatten(axis, (self.groups, -1))
                return (y * y.sigmoid().sum(axis, keepdim=True)).flatten(axis, axis + 1)
            case "attention":
                b, n, c = x.shape
                q, k, v = self.one(x).reshape(b, n, 3, self.groups, c // self.groups).permute(2, 0, 3, 1, 4)
                y = F.scaled_dot_product_attention(q, k, v)
                return x + self.two(y.transpose(1, 2).flatten(2))
            case "excite":
                return x * self.one(x.mean((2, 3), keepdim=True))
            case "scale":
                return x * self.scale
            case "flip":
                return x.flip(self.axis) if self.option % 2 else x + x.flip(self.axis)
            case "roll":
                y = x.roll(self.option - 5, self.axis)
                return y if self.option % 3 else x * y.sigmoid()
            case "gather":
                return x.index_select(self.axis % x.dim(), self.index)
            case "stride":
                return x[:, self.option % 3 :: 2 + self.option % 4] if self.is_image else (
                    x[..., self.option % 3 :: 2 + self.option % 4])
            case "pad":
                count = self.out - self.width
                return F.pad(x, [0, 0, 0, 0, 0, count] if self.is_image else [count, 0])
        return x


class Net(nn.Module):
    """A stem, random blocks, and a head over the mean of the positions."""

    def __init__(self, specs: list[Spec], width: int, is_image: bool) -> None:
        super().__init__()
        self.is_image = is_image
        self.stem = nn.Conv2d(3, width, 3) if is_image else nn.Linear(6, width)
        blocks: list[Block] = []
        for spec in specs:
            blocks.append(Block(spec, width, is_image))
            width = blocks[-1].out
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)) if self.is_image else x.mean(1))


KINDS = ("layer", "norm", "activation", "residual", "concat", "split", "gate", "slice", "shuffle", "heads", "grouped",
         "attention", "excite", "scale", "pad", "flip", "roll", "gather", "stride")  # fmt: skip
specs = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, 11), st.sampled_from(WIDTHS)), min_size=1, max_size=6
)


@st.composite
def models(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    drawn, width, is_image = draw(specs), draw(st.sampled_from(WIDTHS)), draw(st.booleans())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw(st.integers(0, 3)))
        model = Net(drawn, width, is_image).double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            for name, buffer in model.named_buffers():
                if buffer.is_floating_point():
                    buffer.uniform_(0.5, 1.5) if "var" in name else buffer.normal_()
        inputs = torch.randn(2, 3, 6, 6) if is_image else torch.randn(2, 5, 6)
    return model, inputs.double()


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@steady
@given(models())
def test_removing_is_zeroing(drawn: tuple[nn.Module, Tensor]) -> None:
    """Law 2, for each group alone and for all together; and the stem's width can nearly always go."""
    model, inputs = drawn
    analysis = check(model, inputs, tolerance=TOLERANCE)
    sizes = {name: tuple(shape) for name, shape in analysis.frontend.shapes().items()}
    assert {name: tuple(each.shape) for name, each in model.state_dict().items()} == sizes
    for group in analysis.groups:
        assert group.size > 1
        assert any(member.is_trained for member in group.members)


@steady
@given(models())
def test_ratio_zero_is_the_identity(drawn: tuple[nn.Module, Tensor]) -> None:
    model, inputs = drawn
    small = structprune.shrink(model, 0, inputs)
    assert type(small) is type(model) and small is not model
    before, after = model.state_dict(), small.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    with torch.no_grad():
        assert torch.equal(small(inputs), model(inputs))


@steady
@given(models(), st.sampled_from([0.1, 0.25, 0.5, 0.7]), st.sampled_from(["params", "macs"]), st.booleans())
def test_the_ratio_is_hit_or_refused(drawn: tuple[nn.Module, Tensor], ratio: float, of: str, is_uniform: bool) -> None:
    """The result runs at another batch size, keeps its output's shape, and equals the zeroed original."""
    model, inputs = drawn
    options: dict[str, Any] = {"of": of, "scope": "uniform" if is_uniform else "global"}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        plan = structprune.plan(model, ratio, inputs, verify="numeric", **options)
    except UnsupportedRatio as error:
        note(str(error))
        assert str(error).startswith(f"{ratio:g} of the {of} cannot be removed. ")
        assert "reach" in str(error)
        return
    small = plan.apply(model)
    assert plan.report.parameters == (count(model), count(small))
    assert abs(plan.report.reached - ratio) <= NEAR
    if of == "params":
        assert abs(1 - count(small) / count(model) - ratio) <= NEAR
    else:
        fewer = structprune.analyze(small, inputs).measure("macs").whole
        assert fewer == plan.report.macs[1]
    with torch.no_grad():
        assert small(inputs).shape == model(inputs).shape
        more = torch.cat([inputs, inputs[:1]])
        assert small(more).shape[0] == 3
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    # Each tensor of the result is a slice of the original, in order; an index has its new numbers.
    analysis = structprune.analyze(model, inputs)
    rewrite = Rewrite(analysis.solution, plan.kept(analysis))
    edits, numbers = rewrite.slices(), rewrite.numbers()
    for name, tensor in small.state_dict().items():
        expected = before[name]
        for axis, kept in edits.get(name, {}).items():
            expected = expected.index_select(axis, torch.from_numpy(kept))
        if name in numbers:
            expected = torch.from_numpy(numbers[name])[expected]
        assert torch.equal(tensor, expected), name


def misaligned(model: nn.Module, inputs: Tensor, align: int, is_cut: bool) -> list[str]:
    """Widths that were a multiple and are none now. `is_cut`: those too that a slice cuts off the raster."""
    small = structprune.shrink(model, 0.17, inputs, align=align, output="graph")
    parameters = structprune.analyze(model, inputs).solution
    found = []
    for name, value in parameters.graph.parameters.items():
        for axis, expression in enumerate(parameters.expanded(value)):
            parts = expression.parts if isinstance(expression, Sum) else (expression,)
            if is_cut or not any(part.size % align for part in parts):
                old, new = value.shape[axis], small.get_parameter(name).shape[axis] if value.is_trained else 0
                if old % align == 0 and new % align:
                    found.append(f"{name}: {old} -> {new}")
    return found


@steady
@given(models(), st.sampled_from([2, 4]))
def test_widths_are_aligned(drawn: tuple[nn.Module, Tensor], align: int) -> None:
    """A width that was a multiple of `align` stays one."""
    try:
        assert misaligned(*drawn, align, is_cut=False) == []
    except UnsupportedRatio as error:
        assert "cannot be removed" in str(error)


def test_widths_cut_off_the_raster_are_aligned() -> None:
    """Eight as 5 + 3, because a slice ends there: the counts of both together can still be even."""
    torch.manual_seed(0)
    model = Net([("layer", 0, 8), ("concat", 0, 8), ("slice", 1, 8)], 8, is_image=False).double()
    assert misaligned(model, torch.randn(2, 5, 6).double(), 2, is_cut=True) == []
