"""Selection: the ratio is hit on the result itself, constraints hold together, nothing collapses."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import models_zoo
import structprune
from structprune import Analysis
from structprune.api import aim
from structprune.errors import UnsupportedRatio
from structprune.frontends.names import matching
from structprune.options import Options
from structprune.passes.align import movable
from structprune.passes.group import Group
from structprune.passes.rewrite import Rewrite
from structprune.passes.select import select

# Torch counts no operations inside recurrent layers.
COUNTED = tuple(name for name in models_zoo.names() if name != "recurrent")
RATIOS = tuple(k / 10 for k in range(1, 10))
TOLERANCE = 0.01


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the result is a torch.fx.GraphModule")
        yield


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def flops(model: nn.Module, inputs: Tensor) -> int:
    """Multiply-accumulates by torch's own counter."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # On the meta device: torch picks no fused kernel that its counter does not know.
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            copy.deepcopy(model).requires_grad_(False).to("meta")(inputs.to("meta"))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    total = counter.get_total_flops()
    assert total % 2 == 0
    return total // 2


@lru_cache(maxsize=32)
def analyzed(name: str) -> Analysis:
    return structprune.analyze(*models_zoo.build(name))


def chosen(analysis: Analysis, ratio: float, of: str = "params", scope: str = "global", align: int = 1) -> Rewrite:
    target = aim(analysis, Options(ratio, of, scope=scope, align=align))
    return Rewrite(analysis.solution, select(target).kept)


def entries_left(model: nn.Module, rewrite: Rewrite) -> int:
    """What the edits really leave: counted on the tensors, not on the engine's terms."""
    edits = rewrite.slices()
    total = 0
    for name, parameter in model.named_parameters():
        shape = list(parameter.shape)
        for axis, kept in edits.get(name, {}).items():
            assert kept.tolist() == sorted(set(kept.tolist())), "kept indices lost their order"
            shape[axis] = len(kept)
        assert all(shape), f"{name} has collapsed to {shape}"
        total += torch.Size(shape).numel()
    return total


# -- the ratio ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["global", "uniform"])
@pytest.mark.parametrize("name", models_zoo.names())
def test_every_ratio_of_the_parameters(name: str, scope: str) -> None:
    analysis, (model, _) = analyzed(name), models_zoo.build(name)
    for ratio in RATIOS:
        try:
            rewrite = chosen(analysis, ratio, scope=scope)
        except UnsupportedRatio as error:
            true_limit(str(error), ratio, lambda asked: chosen(analysis, asked, scope=scope))
            continue
        assert abs(1 - entries_left(model, rewrite) / count(model) - ratio) <= TOLERANCE, ratio


def true_limit(text: str, ratio: float, choose: Callable[[float], Any]) -> None:
    """A refusal gives a number; what lies within it can be reached."""
    found = re.search(r"Largest reachable ratio: ([0-9.]+[0-9])", text)
    assert found is not None, text
    largest = float(found.group(1))
    assert largest < ratio - TOLERANCE / 2, text
    # No refusal of half of a model of the zoo.
    assert largest > 0.5, text
    choose(largest - TOLERANCE)


@pytest.mark.parametrize("of", ["params", "macs", "channels"])
@pytest.mark.parametrize("name", models_zoo.names())
def test_the_result_itself(name: str, of: str) -> None:
    """In its own class, measured from outside."""
    model, inputs = models_zoo.build(name)
    plan = structprune.plan(model, 0.5, inputs, of=of)
    small = plan.apply(model)
    assert plan.report is not None
    assert small(inputs).shape == model(inputs).shape
    report = plan.report
    assert report.parameters == (count(model), count(small))
    share = {"params": 1 - count(small) / count(model)}
    if name in COUNTED:
        before, after = flops(model, inputs), flops(small, inputs)
        assert report.macs == (before, after)
        share["macs"] = 1 - after / before
    if of in share:
        assert abs(share[of] - 0.5) <= TOLERANCE
        assert report.reached == pytest.approx(share[of], abs=1e-12)


@pytest.mark.parametrize(("ratio", "scope"), [(0.2, "global"), (0.7, "uniform")])
@pytest.mark.parametrize("name", COUNTED)
def test_ratios_of_the_operations(name: str, ratio: float, scope: str) -> None:
    model, inputs = models_zoo.build(name)
    small = structprune.shrink(model, ratio, inputs, of="macs", scope=scope, output="graph")
    assert abs(1 - flops(small, inputs) / flops(model, inputs) - ratio) <= TOLERANCE


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("name", ["resnet20", "unet", "vit", "recurrent"])
def test_of_channels_takes_the_same_share_of_each_width(name: str, ratio: float) -> None:
    analysis = analyzed(name)
    rewrite = chosen(analysis, ratio, of="channels")
    axes = [axis for value in analysis.solution.graph.parameters.values() for axis in analysis.solution.expanded(value)]
    can_move = movable(axes, analysis.solution.system.frozen)
    assert len(can_move) >= 2
    for group in (each for each in analysis.groups if each.dim in can_move):
        left = len(rewrite.kept[group.dim]) if group.dim in rewrite.kept else group.size
        # To the nearest index that there is.
        assert abs(1 - left / group.size - ratio) <= 1 / group.size + TOLERANCE, group.name


def test_a_share_of_channels_of_every_removable_width_in_the_result() -> None:
    model, inputs = models_zoo.build("unet")
    small = structprune.shrink(model, 0.5, inputs, of="channels")
    changed = 0
    for name, before in model.named_parameters():
        old, new = before.shape[0], small.get_parameter(name).shape[0]
        changed += old != new
        assert old == new or abs(new / old - 0.5) <= 0.02, name
    assert changed > 10


def test_uniform_takes_the_same_share_of_each_layer() -> None:
    analysis = analyzed("resnet20")
    rewrite = chosen(analysis, 0.6, scope="uniform")
    shares = [1 - len(rewrite.kept.get(g.dim, range(g.size))) / g.size for g in analysis.groups]
    # A step of the narrowest layer apart.
    assert max(shares) - min(shares) <= 2 / min(group.size for group in analysis.groups)


@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_more_is_less(scope: str) -> None:
    """A larger ratio leaves fewer parameters."""
    analysis, (model, _) = analyzed("vit"), models_zoo.build("vit")
    left = [entries_left(model, chosen(analysis, ratio, scope=scope)) for ratio in (0, 0.1, 0.3, 0.5, 0.7, 0.8)]
    assert left == sorted(left, reverse=True) and len(set(left)) == len(left)
    assert left[0] == count(model)


@pytest.mark.parametrize("name", ["mobilenet", "vit"])
def test_the_choice_is_the_same_every_time(name: str) -> None:
    model, inputs = models_zoo.build(name)
    assert structprune.plan(model, 0.5, inputs).keep == structprune.plan(model, 0.5, inputs).keep


@pytest.mark.parametrize("name", models_zoo.names())
def test_no_layer_collapses(name: str) -> None:
    """With half of the parameters gone, every width keeps a tenth; with 0.9 gone, something is left of each."""
    analysis, (model, _) = analyzed(name), models_zoo.build(name)
    for ratio, floor in ((0.5, 0.1), (0.8, 0.0)):
        try:
            rewrite = chosen(analysis, ratio)
        except UnsupportedRatio:
            assert ratio > 0.5
            continue
        entries_left(model, rewrite)
        for group in analysis.groups:
            left = len(rewrite.kept.get(group.dim, range(group.size)))
            assert left >= max(1, floor * group.size), group.name


def test_no_layer_collapses_though_its_weights_are_tiny() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(40, 40) for _ in range(5))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x).relu()
            return x

    model = Deep()
    with torch.no_grad():
        for parameter in model.layers[2].parameters():
            parameter.mul_(1e-9)
    small = structprune.shrink(model, 0.5, torch.randn(2, 40))
    assert min(layer.out_features for layer in small.layers) >= 4


# -- alignment and other constraints ------------------------------------------------------------------


def plain() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 96, 3, padding=1), nn.BatchNorm2d(96), nn.ReLU()),
        *(nn.Conv2d(96, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU()),
        *(nn.Conv2d(128, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
    )


@pytest.mark.parametrize("scope", ["global", "uniform"])
@pytest.mark.parametrize("of", ["params", "macs", "channels"])
@pytest.mark.parametrize("align", [4, 8, 16])
def test_align(align: int, of: str, scope: str) -> None:
    model = plain()
    small = structprune.shrink(model, 0.5, torch.randn(1, 3, 8, 8), align=align, of=of, scope=scope)
    for layer in small:
        if isinstance(layer, nn.Conv2d):
            assert layer.out_channels % align == 0 and layer.out_channels > 0
    if of == "params":
        assert abs(1 - count(small) / count(model) - 0.5) <= TOLERANCE


@pytest.mark.parametrize("align", [4, 8])
@pytest.mark.parametrize("name", ["resnet20", "bottleneck", "convnext", "vit", "swin", "decoder", "encoder", "moe"])
def test_align_on_the_zoo(name: str, align: int) -> None:
    model, inputs = models_zoo.build(name)
    small = structprune.shrink(model, 0.4, inputs, align=align)
    assert abs(1 - count(small) / count(model) - 0.4) <= TOLERANCE
    for (path, before), after in zip(model.named_parameters(), small.parameters(), strict=True):
        for old, new in zip(before.shape, after.shape, strict=True):
            if old != new and old % align == 0:
                assert new % align == 0, f"{path}: {old} -> {new}"


@pytest.mark.parametrize("seed", range(3))
def test_align_on_a_width_that_is_no_multiple(seed: int) -> None:
    """30 is no multiple of 8: what is cut of it ends on one, or it stays."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 4))
    small = structprune.shrink(model, 0.5, torch.randn(2, 20), align=8)
    assert small[0].out_features in (8, 16, 24, 30)
    assert small[2].out_features % 8 == 0


def test_align_wider_than_a_layer() -> None:
    """A layer of 8 cannot hold a multiple of 16, and need not be cut; the others can."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 2048), nn.ReLU(), nn.Linear(2048, 4))
    small = structprune.shrink(model, 0.4, torch.randn(2, 20), align=16)
    assert small[2].out_features % 16 == 0
    assert small[0].out_features == 8


class Sliced(nn.Module):
    """A width of 64, cut by slices at 12 and at 40: no part is a multiple of 8, their sum is."""

    def __init__(self, own_layers: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 64), nn.Linear(64, 4)
        self.filler = nn.Sequential(nn.Linear(6, 2048), nn.ReLU(), nn.Linear(2048, 4))
        self.own = nn.ModuleList([nn.Linear(size, 4) for size in (12, 28, 24)]) if own_layers else None

    def forward(self, x: Tensor) -> Tensor:
        parts = self.first(x).tensor_split((12, 40), 1)
        y = torch.cat([part.sigmoid() if k else part.relu() for k, part in enumerate(parts)], 1)
        result = self.last(y) + self.filler(x)
        return result if self.own is None else result + sum(own(p) for own, p in zip(self.own, parts, strict=True))


# With 16, the part of 12 alone could be no multiple.
@pytest.mark.parametrize(("align", "own_layers"), [(4, False), (8, False), (16, False), (4, True), (8, True)])
@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.7])
def test_align_on_parts_that_are_no_multiples(align: int, ratio: float, own_layers: bool) -> None:
    torch.manual_seed(0)
    model = Sliced(own_layers).double()
    x = torch.randn(3, 6, dtype=torch.float64)

    def cheap_parts(group: Group, weights: Sequence[Tensor]) -> Tensor:
        """Of the parts all that matters is the first index; of the filler all matters alike."""
        return torch.arange(group.size) == 0 if "first" in group.name else torch.ones(group.size)

    small = structprune.shrink(model, ratio, x, score=cheap_parts, align=align, verify="numeric", output="graph")
    width = small.get_parameter("first.weight").shape[0]
    assert abs(1 - count(small) / count(model) - ratio) <= TOLERANCE
    assert width < 64 and width % align == 0 and width == small.get_parameter("last.weight").shape[1]
    if own_layers:
        parts = [small.get_parameter(f"own.{k}.weight").shape[1] for k in range(3)]
        assert sum(parts) == width
        assert all(new % align == 0 or new == old for new, old in zip(parts, (12, 28, 24), strict=True))


class Doubled(nn.Module):
    """A width that is met by itself, and with its sine behind it, as in ghost modules."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, size), nn.Linear(2 * size, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        result: Tensor = self.last(torch.cat([y, y.sin()], 1))
        return result


@pytest.mark.parametrize(("size", "kept", "ratio"), [(20, 16, 0.2), (12, 8, 0.33)])
def test_align_on_a_part_that_occurs_twice(size: int, kept: int, ratio: float) -> None:
    """Neither 40 nor 24 is a multiple of 16: the part is cut to a count whose double is one."""
    torch.manual_seed(0)
    small = structprune.shrink(Doubled(size), ratio, torch.randn(3, 6), align=16, verify="numeric")
    assert (small.first.out_features, small.last.in_features) == (kept, 2 * kept)


class Together(nn.Module):
    """One width under attention heads, a group norm and a grouped convolution; another one to fill the gap."""

    def __init__(self, width: int, heads: int, norm_groups: int, conv_groups: int) -> None:
        super().__init__()
        self.heads = heads
        self.enter = nn.Conv1d(3, width, 1)
        self.norm = nn.GroupNorm(norm_groups, width)
        self.mix = nn.Conv1d(width, width, 3, padding=1, groups=conv_groups)
        self.q, self.k, self.v = (nn.Conv1d(width, width, 1) for _ in range(3))
        self.up, self.down = nn.Conv1d(width, 4 * width, 1), nn.Conv1d(4 * width, width, 1)
        self.head = nn.Conv1d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        x = x + self.mix(self.norm(x))
        q, k, v = (layer(x).unflatten(1, (self.heads, -1)).mT for layer in (self.q, self.k, self.v))
        x = x + F.scaled_dot_product_attention(q, k, v, scale=0.25).mT.flatten(1, 2)
        return self.head(x + self.down(self.up(x).relu()))


@pytest.mark.parametrize("align", [1, 4, 8])
@pytest.mark.parametrize("output", ["module", "graph"])
@pytest.mark.parametrize(("heads", "norm_groups", "conv_groups"), [(4, 8, 2), (8, 8, 8), (2, 4, 8)])
def test_heads_norm_groups_conv_groups_and_alignment(
    heads: int, norm_groups: int, conv_groups: int, output: str, align: int
) -> None:
    torch.manual_seed(0)
    model = Together(96, heads, norm_groups, conv_groups).double().eval()
    x = torch.randn(2, 3, 10, dtype=torch.float64)
    # The other widths alone do not hold so much: the one in question has to give way.
    small = structprune.shrink(model, 0.8, x, output=output, align=align, verify="numeric")
    assert abs(1 - count(small) / count(model) - 0.8) <= TOLERANCE
    width = small.get_parameter("norm.weight").shape[0]
    assert width < 96 and width % align == 0
    for name in ("enter", "mix", "v", "down"):
        assert small.get_parameter(f"{name}.weight").shape[0] == width, name
    assert width % small.get_parameter("mix.weight").shape[1] == 0
    assert small.get_parameter("q.weight").shape[0] % align == 0
    assert small.get_parameter("up.weight").shape[0] % align == 0
    assert small(torch.cat([x, x])).shape == (4, 4, 10)
    if output == "module":
        assert width % small.norm.num_groups == 0 and width % small.mix.groups == 0 and width % small.heads == 0
        assert small.norm.num_channels == small.mix.in_channels == width


@pytest.mark.parametrize(("heads", "norm_groups", "conv_groups"), [(6, 4, 3), (4, 6, 12), (3, 32, 1)])
def test_constraints_that_do_not_nest(heads: int, norm_groups: int, conv_groups: int) -> None:
    """Where six heads lie across four norm groups nothing may be cut unevenly; the rest still shrinks."""
    torch.manual_seed(0)
    model = Together(96, heads, norm_groups, conv_groups).double().eval()
    x = torch.randn(2, 3, 10, dtype=torch.float64)
    small = structprune.shrink(model, 0.3, x, verify="numeric")
    assert abs(1 - count(small) / count(model) - 0.3) <= TOLERANCE
    assert small(x).shape == (2, 4, 10)


@pytest.mark.parametrize("groups", [1, 2, 4, 8, 16])
def test_norm_groups_are_cut_evenly(groups: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 1), nn.GroupNorm(groups, 32), nn.ReLU(), nn.Conv2d(32, 8, 1)).double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    small = structprune.shrink(model, 0.5, x, of="channels", verify="numeric")
    kept = [
        index for index in range(32) if any(torch.equal(model[0].weight[index], row) for row in small[0].weight)
    ]
    per_group = {sum(index // (32 // groups) == g for index in kept) for g in range(groups)}
    assert len(kept) == small[1].num_channels
    assert len(per_group - {0}) == 1, f"uneven: {per_group}"
    # The width, which is what a user sees, loses the share: not each of its factors.
    assert small[1].num_channels == 16


# -- exclude and only ---------------------------------------------------------------------------------


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    "patterns", [["stage1"], ["stage1.*"], "stage1", ["stage1.0.conv1.weight"], ["stage2.*.conv?.*"]]
)
def test_excluded_parameters_keep_their_shapes(patterns: Any) -> None:
    """Inputs too: a peer pruned what was ignored, because its inputs changed."""
    model, inputs = models_zoo.build("resnet20")
    small = structprune.shrink(model, 0.2, inputs, exclude=patterns)
    before, after = shapes(model), shapes(small)
    known = structprune.analyze(model, inputs).frontend.shapes()
    names = matching(known, [patterns] if isinstance(patterns, str) else patterns)
    assert names and any(before[name] != after[name] for name in before)
    for name in names & set(before):
        assert after[name] == before[name], name
        assert torch.equal(small.get_parameter(name), model.get_parameter(name)), name
    assert abs(1 - count(small) / count(model) - 0.2) <= TOLERANCE


def test_only_some_layers() -> None:
    model, inputs = models_zoo.build("resnet20")
    small = structprune.shrink(model, 0.2, inputs, only=["stage3.*.conv1"])
    before, after = shapes(model), shapes(small)
    changed = {name for name in before if before[name] != after[name]}
    assert changed
    # The convolution itself, its norm, and the layer that reads it.
    assert all(re.match(r"stage3\.\d+\.(conv1|bn1|norm1|conv2)\.", name) for name in changed), changed


def test_only_and_exclude_together() -> None:
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    small = structprune.shrink(model, 0.3, torch.randn(2, 8), only=["0", "2"], exclude=["4"])
    assert small[0].out_features < 64 and small[2].out_features == 64
    small = structprune.shrink(model, 0.3, torch.randn(2, 8), only=["2"])
    assert small[0].out_features == 64 and small[2].out_features < 64
    with pytest.raises(UnsupportedRatio):
        structprune.shrink(model, 0.3, torch.randn(2, 8), only=["4"])


def test_a_width_that_reaches_an_excluded_layer_through_a_residual_stays() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 64), nn.Linear(64, 32)
            self.head = nn.Linear(32, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.enter(x)
            return self.head(x + self.down(self.up(x).relu()))

    model = Residual()
    small = structprune.shrink(model, 0.4, torch.randn(2, 8), exclude=["head"])
    assert small.enter.out_features == small.down.out_features == 32 and small.up.out_features < 64


def test_the_outputs_are_never_cut() -> None:
    for name in models_zoo.names():
        analysis = analyzed(name)
        rewrite = chosen(analysis, 0.5)
        for value in analysis.solution.graph.outputs:
            assert rewrite.shape(value) == value.shape, name


# -- counting -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", models_zoo.names())
def test_counts_agree_with_torchs_counter(name: str) -> None:
    model, inputs = models_zoo.build(name)
    analysis = analyzed(name)
    assert analysis.measure("params").whole == count(model)
    if name in COUNTED:
        assert analysis.measure("macs").whole == flops(model, inputs)


VISION = ("resnet18", "resnext50_32x4d", "mobilenet_v3_small", "shufflenet_v2_x0_5", "vit_b_16", "swin_t")


@pytest.mark.parametrize("name", VISION)
def test_counts_agree_on_torchvision(name: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.get_model(name).eval()
    x = torch.zeros(1, 3, 224, 224)
    analysis = structprune.analyze(model, x)
    assert analysis.measure("params").whole == count(model)
    assert analysis.measure("macs").whole == flops(model, x)


def test_counts_of_transposed_grouped_and_batched() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter = nn.Conv2d(4, 12, 3, stride=2, groups=2)
            self.up = nn.ConvTranspose2d(12, 8, 3, stride=2, groups=4)
            self.deep = nn.Conv2d(8, 8, 3, groups=8, padding=1)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.deep(self.up(self.enter(x)).relu()).flatten(2)
            mixed = torch.bmm(x, x.mT) + torch.einsum("bip,bjp->bij", x, x)
            return self.head(mixed @ x.mean(-1, keepdim=True).mT.new_ones(8, 8))

    model, x = Mixed().eval(), torch.randn(3, 4, 9, 9)
    assert structprune.analyze(model, x).measure("macs").whole == flops(model, x)


def test_a_parameter_used_twice_counts_once_and_its_operations_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.shared = nn.Linear(8, 64), nn.Linear(64, 64)
            self.head = nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.shared(self.shared(self.enter(x)).relu()))

    model, x = Twice(), torch.randn(2, 8)
    measured = structprune.analyze(model, x)
    assert measured.measure("params").whole == count(model)
    assert measured.measure("macs").whole == 2 * (8 * 64 + 2 * 64 * 64 + 64 * 3)
    small = structprune.shrink(model, 0.5, x)
    assert abs(1 - count(small) / count(model) - 0.5) <= TOLERANCE


def test_unused_parameters_count() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.idle = nn.Linear(8, 64), nn.Linear(64, 3), nn.Linear(20, 20)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).relu())

    model, x = Idle(), torch.randn(2, 8)
    assert structprune.analyze(model, x).measure("params").whole == count(model)
    small = structprune.shrink(model, 0.4, x)
    assert abs(1 - count(small) / count(model) - 0.4) <= TOLERANCE
    with pytest.raises(UnsupportedRatio, match=r"Largest reachable ratio: 0\.6"):
        structprune.shrink(model, 0.9, x)
