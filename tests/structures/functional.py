"""Raw parameters of many shapes, matrix products and functional calls on them."""

import torch
import torch.nn.functional as F
from torch import nn

from .parts import Image, Tokens, conv, embed, head, image, tail, tokens, vector
from .registry import structure


@structure(tokens)
def linear():
    """Widths that only linear layers hold."""
    return nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 32, bias=False), nn.Tanh(), nn.Linear(32, 5))


@structure(tokens)
class LinearFunctional(Tokens):
    """F.linear with raw weights."""

    out = 48

    def __init__(self):
        super().__init__()
        self.w, self.b = nn.Parameter(0.2 * torch.randn(48, 32)), nn.Parameter(torch.zeros(48))

    def middle(self, x):
        return F.linear(x, self.w, self.b).relu()


@structure(image)
class ConvFunctional(Image):
    """F.conv2d and F.conv_transpose2d with raw weights."""

    out = 20

    def __init__(self):
        super().__init__()
        self.w, self.b = nn.Parameter(0.1 * torch.randn(24, 16, 3, 3)), nn.Parameter(torch.zeros(24))
        self.back = nn.Parameter(0.1 * torch.randn(24, 20, 2, 2))

    def middle(self, x):
        return F.conv_transpose2d(F.conv2d(x, self.w, self.b, stride=2, padding=1).relu(), self.back, stride=2)


@structure(tokens)
class MatmulRaw(Tokens):
    """`x @ w + b` with the weight's inputs first, and then its transpose."""

    def __init__(self):
        super().__init__()
        self.w, self.b = nn.Parameter(0.2 * torch.randn(32, 48)), nn.Parameter(torch.zeros(48))

    def middle(self, x):
        return torch.tanh(x @ self.w + self.b) @ self.w.t()


@structure(vector)
class AddmmRaw(Tokens):
    """addmm (inputs first), with factors, and torch.mm."""

    def __init__(self):
        super().__init__()
        self.w, self.b = nn.Parameter(0.2 * torch.randn(32, 48)), nn.Parameter(torch.zeros(48))
        self.back = nn.Parameter(0.2 * torch.randn(48, 32))

    def middle(self, x):
        return torch.mm(torch.addmm(self.b, x, self.w, beta=0.5, alpha=2.0).relu(), self.back)


@structure(tokens)
class BmmPerPlace(Tokens):
    """bmm and baddbmm: each place has a matrix of its own."""

    out = 24

    def __init__(self):
        super().__init__()
        self.w, self.b = nn.Parameter(0.2 * torch.randn(6, 32, 24)), nn.Parameter(torch.zeros(6, 1, 24))
        self.back = nn.Parameter(0.2 * torch.randn(6, 24, 24))

    def middle(self, x):
        x = torch.baddbmm(self.b, x.transpose(0, 1), self.w).relu()
        return torch.bmm(x, self.back).transpose(0, 1)


@structure(tokens)
class MatmulBroadcast(Tokens):
    """A stack of matrices against one tensor: the factor is summed away afterwards."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(0.2 * torch.randn(3, 1, 32, 32))

    def middle(self, x):
        return (x @ self.w).relu().sum(0)


@structure(tokens)
class EinsumProjections(Tokens):
    """Projections with raw weights of (width, heads, head width) (T5X, Keras)."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Parameter(0.2 * torch.randn(32, 4, 8)) for _ in range(3))
        self.o = nn.Parameter(0.2 * torch.randn(4, 8, 32))

    def middle(self, x):
        q, k, v = (torch.einsum("bnd,dhk->bhnk", x, w) for w in (self.q, self.k, self.v))
        scores = torch.einsum("bhnk,bhmk->bhnm", q, k).softmax(-1)
        return x + torch.einsum("bhnm,bhmk,hkd->bnd", scores, v, self.o)


@structure(tokens)
class EinsumEllipsis(Tokens):
    """An ellipsis, and three operands that share the pruned letter."""

    def __init__(self):
        super().__init__()
        self.w, self.metric = nn.Parameter(0.2 * torch.randn(32, 32)), nn.Parameter(torch.randn(32))

    def middle(self, x):
        x = torch.einsum("...i,oi->...o", x, self.w)
        return x + torch.einsum("bnd,bmd,d->bnm", x, x, self.metric) @ x


@structure(lambda: (vector(), vector(8)))
class EinsumTrilinear(nn.Module):
    """`bi,bj,ijk->bk`."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.tail = embed(16), embed(12, 8), head(20)
        self.w = nn.Parameter(0.1 * torch.randn(16, 12, 20))

    def forward(self, x, y):
        return self.tail(torch.einsum("bi,bj,ijk->bk", self.left(x), self.right(y), self.w))


@structure(tokens)
class EinsumBlockDiagonal(Tokens):
    """A block-diagonal matrix: `(g i) -> (g o)` by view and einsum."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(0.2 * torch.randn(4, 8, 8))

    def middle(self, x):
        return torch.einsum("bngi,gio->bngo", x.view(*x.shape[:2], 4, 8), self.w).flatten(2)


@structure(tokens)
class TensordotLowRank(Tokens):
    """A weight that is the product of two parameters, and a tensordot."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Parameter(0.2 * torch.randn(32, 6)), nn.Parameter(0.2 * torch.randn(6, 32))
        self.core = nn.Parameter(0.2 * torch.randn(4, 8, 32))

    def middle(self, x):
        x = F.linear(x, torch.eye(32, device=x.device, dtype=x.dtype) + self.up @ self.down)
        return torch.tensordot(x.unflatten(-1, (4, 8)), self.core, dims=([2, 3], [0, 1]))


@structure(tokens)
class LowRankAdapter(Tokens):
    """A frozen layer plus a product of two thin ones (LoRA)."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(32, 32).requires_grad_(False)
        self.a, self.b = nn.Linear(32, 4, bias=False), nn.Linear(4, 32, bias=False)

    def middle(self, x):
        return (self.base(x) + 0.5 * self.b(self.a(x))).relu()


@structure(tokens)
class KroneckerWeight(Tokens):
    """A weight that is the Kronecker product of two: `(a c) x (b d)`."""

    def __init__(self):
        super().__init__()
        self.coarse, self.fine = nn.Parameter(torch.randn(4, 4)), nn.Parameter(0.2 * torch.randn(8, 8))

    def middle(self, x):
        return F.linear(x, torch.kron(self.coarse, self.fine))


@structure(image)
def prelu_one():
    """One slope for all channels: it has no axis to cut."""
    return nn.Sequential(conv(3, 16), nn.PReLU(), conv(16, 24), nn.PReLU(), tail(24))


@structure(image)
def prelu_per_channel():
    """A slope for each channel, on an image and on a vector."""
    return nn.Sequential(
        conv(3, 16), nn.PReLU(16), conv(16, 24), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(24, 32), nn.PReLU(32), nn.Linear(32, 5),
    )


@structure(image)
class ScaleShiftOnes(Image):
    """Scale and shift of (1, C, 1, 1) and (C, 1, 1)."""

    def __init__(self):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(1, 16, 1, 1)), nn.Parameter(torch.zeros(16, 1, 1))

    def middle(self, x):
        return x * self.scale + self.shift


@structure(image)
class ScaleShiftFlat(Image):
    """Scale and shift of (C,), given their axes in forward."""

    def __init__(self):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(16)), nn.Parameter(torch.zeros(16))

    def middle(self, x):
        return torch.addcmul(self.shift.view(1, -1, 1, 1), x, self.scale[None, :, None, None])


@structure(image)
class ShiftVolume(Image):
    """A parameter of (1, C, H, W) is added, another multiplies."""

    def __init__(self):
        super().__init__()
        self.shift, self.scale = nn.Parameter(torch.randn(1, 16, 8, 8)), nn.Parameter(torch.randn(16, 8, 8))

    def middle(self, x):
        return (x + self.shift) * self.scale


@structure(image)
class ScaleExpanded(Image):
    """Parameters take the shape of the image by expand_as and by repeat."""

    def __init__(self):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(1, 16, 1, 1)), nn.Parameter(torch.zeros(16))

    def middle(self, x):
        b, _, h, w = x.shape
        return x * self.scale.expand_as(x) + self.shift.view(1, 16, 1, 1).repeat(b, 1, h, w)


@structure(tokens)
class ScalePacked(Tokens):
    """Scale and shift are rows of one parameter (2, C), and one of (C, 2) is taken apart."""

    def __init__(self):
        super().__init__()
        self.rows, self.columns = nn.Parameter(torch.randn(2, 32)), nn.Parameter(torch.randn(32, 2))

    def middle(self, x):
        return (x * self.rows[0] + self.rows[1]).relu() * self.columns[:, 0] + self.columns.unbind(1)[1]


@structure(image)
class ScaleFromNothing(Image):
    """A learned bias that passes a nonlinearity before it is added: exp(0) is not 0."""

    def __init__(self):
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(16))

    def middle(self, x):
        return x + self.raw.exp()[:, None, None]


@structure(image)
class ParametersInLists(Image):
    """ParameterList and ParameterDict."""

    def __init__(self):
        super().__init__()
        self.scales = nn.ParameterList(torch.ones(16, 1, 1) for _ in range(2))
        self.weights = nn.ParameterDict({"mix": 0.2 * torch.randn(16, 16, 1, 1), "shift": torch.zeros(16)})

    def middle(self, x):
        for scale in self.scales:
            x = F.conv2d(x * scale, self.weights["mix"], self.weights["shift"]).relu()
        return x
