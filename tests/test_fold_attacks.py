"""Constants that must not be folded, or only so: what draws, what follows sizes, what is written, is not finite."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import structprune
from tests.test_fold import EXACT, check_torch, without_constants

DEAD = [1, 2, 5]


class Between(nn.Module):
    """Eight channels, three of them dead, something done to them, and a layer behind."""

    def __init__(self, way: Callable[[Between, Tensor, Tensor], Tensor], bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 8, bias=bias), nn.Linear(8, 4)
        self.cap = nn.Parameter(torch.randn(8))
        self.slope = nn.Parameter(torch.rand(8))
        self.square = nn.Parameter(torch.randn(8, 8))
        self.register_buffer("count", torch.zeros(1))
        self.way = way
        with torch.no_grad():
            self.first.weight[DEAD] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.way(self, self.first(x), x))


def inputs(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(3, 6, dtype=dtype)


FOLDED: dict[str, Callable[[Between, Tensor, Tensor], Tensor]] = {
    "fmax of a vector": lambda net, h, x: torch.fmax(h, net.cap),
    "fmin of a vector": lambda net, h, x: torch.fmin(net.cap, h),
    "minimum of a vector": lambda net, h, x: torch.minimum(h, net.cap),
    "where by a vector": lambda net, h, x: torch.where(h > net.cap, h, net.cap),
    "clamp by vectors": lambda net, h, x: h.clamp(net.cap - 1, net.cap + 1),
    "nan_to_num": lambda net, h, x: h.nan_to_num(),
    "isnan": lambda net, h, x: h.isnan() + h,
    "a power of zero": lambda net, h, x: h**0 + h,
    "prelu": lambda net, h, x: F.prelu(h, net.slope),
    "prelu of one slope": lambda net, h, x: F.prelu(h, net.slope[:1]),
    "written by its own name": lambda net, h, x: h.sigmoid_().add_(1),
    "spread": lambda net, h, x: (h[:, None] + net.cap[None, None]).sum(1),
    "a bias that is added behind": lambda net, h, x: F.linear(h, net.square) + net.cap,
    "a bias in front of the sum": lambda net, h, x: (net.cap + F.linear(h, net.square)).relu(),
    "halves": lambda net, h, x: torch.cat([h[:, 4:], h[:, :4]], 1),
    "in half precision and back": lambda net, h, x: h.half().to(h) * 0 + h,
}


@pytest.mark.parametrize("name", FOLDED)
def test_constants_pass(name: str) -> None:
    # A sum over an axis that was made anew, and casts, are not followed: nothing is lost but the fold.
    is_followed = name not in ("spread", "in half precision and back")
    assert check_torch(Between(FOLDED[name]).double().eval(), inputs()) == 3 * is_followed


def counted(net: Between, h: Tensor, x: Tensor) -> Tensor:
    net.count.add_(1)
    return h + net.count


def seen_before(net: Between, h: Tensor, x: Tensor) -> Tensor:
    view = h.view(-1, 2, 4)
    h.mul_(x.mean())
    return view.reshape(h.shape)


def written_through(net: Between, h: Tensor, x: Tensor) -> Tensor:
    h.view(-1, 2, 4)[:, 0].add_(x[:, :4])
    return h


HELD: dict[str, Callable[[Between, Tensor, Tensor], Tensor]] = {
    "dropout that is always on": lambda net, h, x: F.dropout(h, 0.5, training=True),
    "slopes that are drawn": lambda net, h, x: F.rrelu(h - 2, training=True),
    "noise": lambda net, h, x: h + torch.randn_like(h),
    "drawn by it": lambda net, h, x: torch.bernoulli(h.sigmoid()),
    "fmax of what is not known": lambda net, h, x: torch.fmax(h, x.mean(1, keepdim=True)),
    "where by what is not known": lambda net, h, x: torch.where(x[:, :1] > 0, h, h + 1),
    "an expression in a size": lambda net, h, x: h / x.shape[0],
    "a size as a fraction": lambda net, h, x: h * float(x.shape[0]),
    "a size in a tensor": lambda net, h, x: h + torch.tensor(float(x.shape[0])),
    "sizes in a vector": lambda net, h, x: h + torch.tensor([float(x.shape[0])] * 8),
    "a count of calls": counted,
    "a view made before": seen_before,
    "a view written": written_through,
    "cast to whole numbers": lambda net, h, x: (h * 10).int().to(h),
    "a bias that is added twice over": lambda net, h, x: torch.add(F.linear(h, net.square), net.cap, alpha=2),
    "a bias for each row": lambda net, h, x: F.linear(h, net.square) + torch.stack([net.cap] * 3)[: x.shape[0]],
    "a bias that is read elsewhere": lambda net, h, x: F.linear(h, net.square) + net.cap + net.cap.relu(),
    "a product that comes in twice": lambda net, h, x: (lambda y: y + y)(F.linear(h, net.square)),
    "softmax": lambda net, h, x: h.softmax(1),
    "a sum over the batch": lambda net, h, x: h.sum(0, keepdim=True) + x[:, :1] * 0,
    "a cumulated sum": lambda net, h, x: h.cumsum(1),
    "multiplied by what is not finite": lambda net, h, x: h * (1 / torch.zeros_like(net.cap)),
}


@pytest.mark.parametrize("name", HELD)
def test_nothing_is_called_constant(name: str) -> None:
    plan, count = without_constants(Between(HELD[name]).double().eval(), inputs())
    assert count == 0 and not plan.keep


ZEROS: dict[str, Callable[[Between, Tensor, Tensor], Tensor]] = {
    "dropout": lambda net, h, x: F.dropout(h, 0.5, training=True) * 0 + h,
    "a factor": lambda net, h, x: h * x[:, :1],
    "a factor that follows sizes": lambda net, h, x: h * x.shape[0],
    "a sum of zeros": lambda net, h, x: h[:, None].sum(1),
    "another type": lambda net, h, x: h.half().to(h),
    "chosen by what is not known": lambda net, h, x: torch.where(x[:, :1] > 0, h, -h),
}


@pytest.mark.parametrize("name", ZEROS)
def test_zeros_pass_where_constants_do_not(name: str) -> None:
    model = Between(ZEROS[name], bias=False).double().eval()
    plan, count = without_constants(model, inputs())
    assert count == 3
    small, x = plan.apply(model), inputs()
    torch.manual_seed(1)
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x), **EXACT)


def test_shared_layers_share_their_bias() -> None:
    """A layer that is used twice cannot give its bias to either use, but for zeros."""
    model = Between(lambda net, h, x: h)
    model.forward = lambda x: model.last(model.first(x)) + model.last(model.first(x).relu())  # type: ignore[method-assign]
    assert check_torch(model.double().eval(), inputs()) == 0
    with torch.no_grad():
        model.first.bias[DEAD] = 0
    assert check_torch(model, inputs()) == 3


class Images(nn.Module):
    """Eight channels of images, three of them dead, and a body behind."""

    def __init__(self, *body: nn.Module, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 1, bias=bias)
        self.body = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(4))
        with torch.no_grad():
            self.first.weight[DEAD] = 0
            self.double().eval()(images())

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.first(x))


def images(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(3, 3, 6, 6, dtype=dtype)


class Pool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2, divisor_override=3)


class Moved(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)
        nn.init.uniform_(self.norm.running_mean)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x).sigmoid()


BODIES: dict[str, tuple[Callable[[], list[nn.Module]], int, int]] = {
    # What is behind, what can go with a bias in front, and what without: then it is zero.
    "a pool with another divisor": (lambda: [Pool()], 0, 3),
    "a pool that counts zeros": (lambda: [nn.AvgPool2d(3, 2, 1)], 0, 3),
    "a pool that does not": (lambda: [nn.AvgPool2d(3, 2, 1, count_include_pad=False)], 3, 3),
    "a padded pool of the largest": (lambda: [nn.MaxPool2d(3, 2, 1)], 3, 3),
    "borders by name": (lambda: [nn.Conv2d(8, 5, 3, padding="same")], 0, 3),
    "no borders by name": (lambda: [nn.Conv2d(8, 5, 3, padding="valid")], 3, 3),
    "zeros put around": (lambda: [nn.ZeroPad2d(1), nn.Conv2d(8, 5, 3)], 0, 3),
    "ones put around": (lambda: [nn.ConstantPad2d(1, 1.0), nn.Conv2d(8, 5, 3)], 0, 0),
    "cut by a padding": (lambda: [nn.ConstantPad2d(-1, 1.0), nn.Conv2d(8, 5, 3)], 3, 3),
    "mirrored borders": (lambda: [nn.ReflectionPad2d(1), nn.Conv2d(8, 5, 3)], 3, 3),
    "borders from the other side": (lambda: [nn.Conv2d(8, 5, 3, padding=1, padding_mode="circular")], 3, 3),
    "a transposed convolution": (lambda: [nn.ConvTranspose2d(8, 5, 3)], 0, 3),
    "groups": (lambda: [nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.Conv2d(8, 5, 1)], 3, 3),
    "groups with borders": (lambda: [nn.Conv2d(8, 8, 3, groups=8, padding=1), nn.Conv2d(8, 5, 1)], 0, 3),
    "no bias, a norm": (lambda: [nn.Conv2d(8, 5, 3, bias=False), Moved(5)], 3, 3),
    "no bias, a norm of the batch": (
        lambda: [nn.Conv2d(8, 5, 3, bias=False), nn.BatchNorm2d(5, track_running_stats=False)], 0, 3
    ),
    "a norm of groups": (lambda: [nn.GroupNorm(2, 8), nn.Conv2d(8, 5, 1)], 0, 0),
    "a norm of each sample": (lambda: [nn.InstanceNorm2d(8, affine=True), nn.Conv2d(8, 5, 1)], 0, 0),
    "an upsampling": (lambda: [nn.Upsample(scale_factor=2), nn.Conv2d(8, 5, 3)], 3, 3),
    "a norm without a scale": (lambda: [nn.BatchNorm2d(8, affine=False), nn.Conv2d(8, 5, 1)], 3, 3),
}  # fmt: skip


@pytest.mark.parametrize("output", ["auto", "graph"])
@pytest.mark.parametrize("name", BODIES)
def test_behind_images(name: str, output: str) -> None:
    body, with_bias, without = BODIES[name]
    assert check_torch(Images(*body()), images(), output=output) == with_bias
    assert check_torch(Images(*body(), bias=False), images(), output=output) == without


class Tokens(nn.Module):
    """The same for tokens (batch, n, 8), with a layer of any kind in front."""

    def __init__(self, way: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.way = nn.Linear(6, 8), nn.Linear(8, 6), way
        with torch.no_grad():
            self.first.weight[DEAD] = 0

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.way(self.first(x)))


@pytest.mark.parametrize(
    ("way", "count"),
    [
        (F.gelu, 3),
        (lambda h: h.view(*h.shape[:-1], 2, 4).transpose(1, 2).sigmoid().transpose(1, 2).reshape(h.shape), 1),
        (lambda h: h.transpose(1, 2).relu().transpose(1, 2), 3),
        (lambda h: h.flatten(0, 1).tanh().view(h.shape), 3),
        (lambda h: torch.stack([h, h]).mean(0), 0),
        (lambda h: h + h.mean(1, keepdim=True), 3),
        (lambda h: h - h.mean(2, keepdim=True), 0),
        (lambda h: h * h.softmax(1), 0),
        (lambda h: torch.cat([h[:, :1], h[:, 1:].relu()], 1), 0),
    ],
)  # fmt: skip
def test_behind_tokens(way: Callable[[Tensor], Tensor], count: int) -> None:
    assert check_torch(Tokens(way).double().eval(), torch.randn(3, 5, 6, dtype=torch.float64)) == count


class Volumes(nn.Module):
    """Convolutions over any number of axes, with a batch or without one."""

    def __init__(self, axes: int, groups: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
        self.first, self.middle, self.last = conv(3, 8, 2), conv(8, 8, 2, groups=groups), conv(8, 2, 1)
        with torch.no_grad():
            self.first.weight[DEAD] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x).sigmoid()).tanh())


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_convolutions_of_any_rank(axes: int, groups: int, batch: tuple[int, ...]) -> None:
    model, x = Volumes(axes, groups).double().eval(), torch.randn(*batch, 3, *[5] * axes, dtype=torch.float64)
    plan, count = without_constants(model, x)
    # Two groups stay alike: one index is dead in both.
    assert count == (1 if groups == 2 else 3)
    with torch.no_grad():
        torch.testing.assert_close(plan.apply(model)(x), model(x), **EXACT)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", ["first.weight", "first.bias", "body.0.weight", "body.0.bias"])
def test_what_is_not_finite_is_no_constant(number: float, place: str) -> None:
    model = Images(nn.Conv2d(8, 5, 1))
    with torch.no_grad():
        model.get_parameter(place).view(-1)[1] = number
    assert without_constants(model, images())[1] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_constants_are_what_the_model_computes_in_its_own_type(dtype: torch.dtype) -> None:
    """A number rounded to the type of the model is on the other side of a limit than in double precision."""
    model = Between(lambda net, h, x: (h > 0.1) + h.exp()).eval()
    with torch.no_grad():
        model.first.bias[DEAD] = 0.1
    model, x = model.to(dtype), inputs(dtype)
    plan, count = without_constants(model, x)
    assert count == 3
    with torch.no_grad():
        bound = 20 * torch.finfo(dtype).eps
        torch.testing.assert_close(plan.apply(model)(x), model(x), rtol=bound, atol=bound)


def test_a_model_in_training_is_folded_as_it_computes_in_evaluation() -> None:
    model, x = Images(nn.Conv2d(8, 5, 3, bias=False), Moved(5), nn.Dropout(0.5)), images()
    model.train()
    assert without_constants(model, x)[1] == 3
    small = without_constants(model, x)[0].apply(model)
    assert small.training
    with torch.no_grad():
        torch.testing.assert_close(small.eval()(x), model.eval()(x), **EXACT)


def test_dead_channels_go_first_and_the_report_says_so() -> None:
    model = Images(nn.ReLU(), nn.Conv2d(8, 5, 1))
    plan = structprune.plan(model, 3 / 8, images(), of="channels", only=["first"], score="random")
    assert plan.report is not None and plan.report.folded == 3
    with torch.no_grad():
        x = images()
        torch.testing.assert_close(plan.apply(model)(x), model(x), **EXACT)
