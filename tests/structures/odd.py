"""Regions, outputs, inputs and operators out of the ordinary."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .parts import Image, conv, embed, head, image, stem, tail, tokens, vector
from .registry import structure


@torch.library.custom_op("structures::tangle", mutates_args=())
def tangle(x: Tensor, weight: Tensor) -> Tensor:
    """An operator that nobody has a rule for, and that mixes the channels."""
    return x.flip(1).cumsum(1) * weight.view(-1, 1, 1)


@tangle.register_fake
def _(x, weight):
    return torch.empty_like(x)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    x, weight = ctx.saved_tensors
    back = (grad * weight.view(-1, 1, 1)).flip(1).cumsum(1)
    return back, (grad * x.flip(1).cumsum(1)).sum((0, 2, 3))


tangle.register_autograd(_backward, setup_context=_save)


@structure(image)
class CustomOperator(Image):
    """An unknown operator freezes what it touches, and no more."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16))

    def middle(self, x):
        return tangle(x, self.weight)


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        return 3 * grad * ctx.saved_tensors[0] ** 2


@structure(image)
class CustomFunction(Image):
    """An autograd.Function, which capture may see through or not."""

    def middle(self, x):
        return Cube.apply(x)


@structure(image)
class OutputsTuple(nn.Module):
    """A classifier, and the features themselves: what reaches an output stays."""

    def __init__(self):
        super().__init__()
        self.stem, self.body, self.tail = stem(16), conv(16, 32), tail(32)

    def forward(self, x):
        x = self.stem(x)
        return self.tail(self.body(x).relu()), x


@structure(image)
class OutputsDict(nn.Module):
    """Several heads in a dictionary, with a list and a number inside."""

    def __init__(self):
        super().__init__()
        self.stem, self.main, self.auxiliary = stem(16), tail(16), nn.Conv2d(16, 5, 1)

    def forward(self, x):
        x = self.stem(x).relu()
        return {"out": self.main(x), "more": [self.auxiliary(x), x.mean(1)], "loss": x.square().mean(), "size": 5}


@structure(lambda: {"pixels": image(), "words": tokens()})
class KeywordsOnly(nn.Module):
    """Inputs by name alone, one of them left out."""

    def __init__(self):
        super().__init__()
        self.image, self.words, self.tail = stem(16), embed(16), head(32)

    def forward(self, *, words, mask=None, pixels):
        words = self.words(words).mean(1) if mask is None else (self.words(words) * mask).sum(1)
        return self.tail(torch.cat([self.image(pixels).mean((2, 3)), words], 1))


@structure(lambda: ({"a": vector(), "b": [vector(8), vector(6)]},))
class InputsNested(nn.Module):
    """One argument that is a dictionary with a list."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.tail = nn.Linear(12, 24), nn.Linear(8, 24), nn.Linear(6, 16), head(40)

    def forward(self, batch):
        first, second = batch["b"]
        return self.tail(torch.cat([self.a(batch["a"]) + self.b(first), self.c(second)], 1))


@structure(image)
class NoGradRegion(Image):
    """A teacher without gradients, whose result meets the student's."""

    def __init__(self):
        super().__init__()
        self.student, self.teacher = conv(16, 16), conv(16, 16)

    def middle(self, x):
        with torch.no_grad():
            target = self.teacher(x).relu()
        return self.student(x) + target


@structure(image)
class NoGradParts(Image):
    """A list of one part, and one of two, without gradients."""

    def middle(self, x):
        with torch.no_grad():
            (whole,) = x.chunk(1, dim=1)
            first, second = x.chunk(2, dim=3)
        return x + whole * torch.cat([second, first], 3)


@structure(image)
class Detached(Image):
    """detach is an identity to the pruner."""

    def __init__(self):
        super().__init__()
        self.branch = conv(16, 16)

    def middle(self, x):
        return x + self.branch(x.detach()).relu()


@structure(image)
class Checkpointed(Image):
    """A block under activation checkpointing."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(conv(16, 24), nn.BatchNorm2d(24), nn.ReLU(), conv(24, 16))

    def middle(self, x):
        return x + checkpoint(self.block, x, use_reentrant=False)


@structure(image)
class AutocastRegion(Image):
    """A region under autocast (which leaves float64 alone), and one that forbids it."""

    def __init__(self):
        super().__init__()
        self.one, self.two = conv(16, 24), conv(24, 16)

    def middle(self, x):
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            y = self.one(x).relu()
            with torch.autocast(x.device.type, enabled=False):
                return self.two(y.to(x.dtype))


@structure(image)
class CastsInside(Image):
    """A norm in float32 between layers of the model's type."""

    def __init__(self):
        super().__init__()
        self.norm = nn.GroupNorm(4, 16)

    def middle(self, x):
        weight, bias = self.norm.weight.float(), self.norm.bias.float()
        return F.group_norm(x.float(), 4, weight, bias).to(x.dtype)


@structure(image)
class Masks(Image):
    """torch.where, masked_fill, clamp and a comparison: what becomes of zero?"""

    def middle(self, x):
        x = torch.where(x > 0, x, x.exp() - 1)
        x = x.masked_fill(x.abs() < 0.05, 0.5)
        return x.clamp(-2, 2) * (x != 0.25)


@structure(image)
class Activations(Image):
    """Pointwise functions: those that keep zero, and those that don't."""

    def middle(self, x):
        return F.gelu(x) + F.softplus(x) + torch.cos(x) + F.leaky_relu(x).sign() * x.abs().sqrt() + F.hardtanh(x)


@structure(image)
class Hooked(nn.Module):
    """A forward hook that scales, and one that looks at the inputs."""

    def __init__(self):
        super().__init__()
        self.stem, self.body, self.tail = stem(16), conv(16, 24), tail(24)
        self.body.register_forward_hook(double_result)
        self.tail.register_forward_pre_hook(half_inputs)

    def forward(self, x):
        return self.tail(self.body(self.stem(x)).relu())


def double_result(module, inputs, output):
    return 2 * output


def half_inputs(module, inputs):
    return (0.5 * inputs[0],)


@structure(image)
class DropoutEverywhere(Image):
    """Dropout of elements, of channels and of a branch: identities in eval."""

    def __init__(self):
        super().__init__()
        self.elements, self.channels, self.branch = nn.Dropout(0.5), nn.Dropout2d(0.5), conv(16, 16)

    def middle(self, x):
        x = x + self.channels(self.branch(self.elements(x)))
        return F.dropout(x, 0.2, training=self.training)


@structure(image)
class ForwardMethods(nn.Module):
    """Work in methods other than forward, an attribute that is a function, layers kept in a plain list too."""

    def __init__(self):
        super().__init__()
        self.stem, self.body, self.tail = stem(16), conv(16, 24), tail(24)
        self.activation, self.plain = F.silu, [self.stem]

    def features(self, x, *layers):
        for layer in (*self.plain, *layers):
            x = self.activation(layer(x))
        return x

    def forward(self, x, scale: float = 1.0):
        return self.tail(scale * self.features(x, self.body))


@structure(image, prunable=False)
class NothingToPrune(nn.Module):
    """One layer from the input to the output: the whole model is frozen."""

    def __init__(self):
        super().__init__()
        self.only = conv(3, 5)

    def forward(self, x):
        return self.only(x)


@structure(image)
class EmptyBranch(Image):
    """A slice of no channels is concatenated, and a parameter has no elements."""

    def __init__(self):
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(0, 16))

    def middle(self, x):
        return torch.cat([x[:, :0], x], 1) + self.nothing.sum()
