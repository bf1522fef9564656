"""`nn.MultiheadAttention` with heads and head widths cut, compared with torch's own on zeroed weights."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import structprune
from structprune.frontends.torch.write.attention import ShrunkAttention

HEADS, WIDTH = 4, 8
EMBED = HEADS * WIDTH
BATCH, PLACES, SOURCES = 3, 5, 6
KEPT_HEADS, KEPT_WIDTH, KEPT_VALUES = [1, 3], [0, 2, 3, 5, 7], [1, 2, 6]
EXACT = 1e-12  # float64 rounding of one layer

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch_first": {"batch_first": True},
    "without_bias": {"bias": False},
    "bias_kv": {"add_bias_kv": True},
    "zero_attention": {"add_zero_attn": True, "batch_first": True},
    "own_widths": {"kdim": 12, "vdim": 20},
    "everything": {"add_bias_kv": True, "add_zero_attn": True, "kdim": 12, "vdim": 20, "batch_first": True},
}
CALLS = ("self", "memory", "separate", "unbatched")
CASES = [
    pytest.param(options, how, id=f"{name}-{how}")
    for name, options in OPTIONS.items()
    for how in CALLS
    # One tensor for keys and values has one width.
    if "kdim" not in options or how not in ("self", "memory")
]


class Calling(nn.Module):
    """The ways to call attention; torch's code asks which of its arguments are one tensor."""

    def __init__(self, attention: nn.Module, how: str) -> None:
        super().__init__()
        self.attention, self.how = attention, how

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> Any:
        key = query if self.how == "self" else key
        value = key if self.how in ("self", "memory") else value
        return self.attention(
            query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
        )


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(how: str = "self", kind: type[nn.MultiheadAttention] = nn.MultiheadAttention, **options: Any) -> Calling:
    attention = kind(EMBED, HEADS, **options).double().eval()
    with torch.no_grad():
        for seed, parameter in enumerate(attention.parameters()):
            parameter.copy_(noise(*parameter.shape, seed=seed) / 3)
    return Calling(attention, how)


def inputs(model: Calling) -> dict[str, Tensor]:
    attention = model.attention

    def tensor(places: int, width: int, seed: int) -> Tensor:
        batch = (BATCH, places) if attention.batch_first else (places, BATCH)
        return noise(*((places,) if model.how == "unbatched" else batch), width, seed=seed)

    # One tensor for all three has one length.
    sources = PLACES if model.how == "self" else SOURCES
    return {
        "query": tensor(PLACES, EMBED, 1),
        "key": tensor(sources, attention.kdim, 2),
        "value": tensor(sources, attention.vdim, 3),
    }


def shrunk(model: Calling, heads: list[int], widths: list[int], values: list[int], **options: Any) -> Calling:
    """Exactly these heads and widths stay."""
    given = {**inputs(model), **options}
    plan = structprune.plan(model, 0.0, given, output="module", verify="numeric")
    for group in structprune.analyze(model, given).groups:
        is_values = any(member.parameter.endswith("out_proj.weight") for member in group.members)
        plan.keep[group.name] = heads if group.size == HEADS else values if is_values else widths
    small = plan.apply(model)
    assert isinstance(small, Calling)
    assert type(small.attention) is ShrunkAttention
    return small


def zeroed(model: Calling, heads: list[int], widths: list[int], values: list[int]) -> Calling:
    """Torch's own module; what is cut from the other is zero in it."""
    twin = copy.deepcopy(model)
    attention = twin.attention
    looked_at, carried = (
        torch.zeros(HEADS, WIDTH, dtype=torch.float64).index_put((torch.tensor(heads)[:, None], torch.tensor(kept)),
                                                                torch.tensor(1.0, dtype=torch.float64)).flatten()
        for kept in (widths, values)
    )  # fmt: skip
    with torch.no_grad():
        rows = torch.cat([looked_at, looked_at, carried])
        for weight, stay in (
            (attention.in_proj_weight, rows),
            (attention.q_proj_weight, looked_at),
            (attention.k_proj_weight, looked_at),
            (attention.v_proj_weight, carried),
        ):
            if weight is not None:
                weight *= stay[:, None]
        for weight, stay in (
            (attention.in_proj_bias, rows),
            (attention.bias_k, looked_at),
            (attention.bias_v, carried),
            (attention.out_proj.weight, carried),
        ):
            if weight is not None:
                weight *= stay
    return twin


def masks(model: Calling) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every kind of mask: the arguments for all heads, and those for the heads that stay."""
    batch = 1 if model.how == "unbatched" else BATCH
    sources = PLACES if model.how == "self" else SOURCES
    padding = torch.arange(sources).expand(batch, -1) >= torch.tensor([[4], [6], [2]])[:batch]
    padding = padding[0] if model.how == "unbatched" else padding
    causal = torch.ones(PLACES, sources, dtype=torch.bool).triu(1)
    for_heads = noise(batch, HEADS, PLACES, sources, seed=4)
    is_hidden = (for_heads > 0.5).index_fill(-1, torch.tensor([0]), False)
    for both in (
        {},
        {"key_padding_mask": padding},
        {"key_padding_mask": noise(*padding.shape)},
        {"attn_mask": causal},
        {"attn_mask": noise(PLACES, sources)},
        {"attn_mask": causal, "is_causal": True},
        {"attn_mask": causal, "key_padding_mask": padding},
        {"attn_mask": causal, "key_padding_mask": padding, "is_causal": True},
    ):
        yield both, both
    for each in (for_heads, is_hidden):
        whole, left = each.flatten(0, 1), each[:, KEPT_HEADS].flatten(0, 1)
        yield {"attn_mask": whole}, {"attn_mask": left}
        if each.dtype == torch.bool:
            yield (
                {"attn_mask": whole, "key_padding_mask": padding},
                {"attn_mask": left, "key_padding_mask": padding},
            )


def close(a: Tensor, b: Tensor, tolerance: float = EXACT) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# -- what it computes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize(("options", "how"), CASES)
def test_it_is_torchs_own_with_zeroed_heads(options: dict[str, Any], how: str, need_weights: bool) -> None:
    """Recorded with or without weights, it answers every kind of call."""
    model = made(how, **options)
    has_widths_of_values = how == "separate" or how == "unbatched" or "kdim" in options
    values = KEPT_VALUES if has_widths_of_values else KEPT_WIDTH
    small = shrunk(model, KEPT_HEADS, KEPT_WIDTH, values, need_weights=need_weights)
    whole = zeroed(model, KEPT_HEADS, KEPT_WIDTH, values)
    assert small.state_dict().keys() == model.state_dict().keys()
    assert (small.attention.num_heads, small.attention.head_dim) == (2, 5)
    given = inputs(model)
    with torch.no_grad():
        for for_all, for_left in masks(model):
            expected, weights = whole(**given, **for_all, average_attn_weights=False)
            weights = weights[..., KEPT_HEADS, :, :]
            found, per_head = small(**given, **for_left, average_attn_weights=False)
            close(found, expected)
            close(per_head, weights)
            found, average = small(**given, **for_left)
            close(found, expected)
            close(average, weights.mean(-3))
            # Torch's own may take a fused kernel here.
            expected, _ = whole(**given, **for_all, need_weights=False)
            found, nothing = small(**given, **for_left, need_weights=False)
            close(found, expected)
            assert nothing is None


def test_gradients_are_those_of_the_slices_that_stay() -> None:
    model = made("self", batch_first=True)
    small = shrunk(model, KEPT_HEADS, KEPT_WIDTH, KEPT_WIDTH, need_weights=False).train()
    whole = zeroed(model, KEPT_HEADS, KEPT_WIDTH, KEPT_WIDTH).train()
    for each in (small, whole):
        each(**inputs(model), need_weights=False)[0].square().sum().backward()
    rows = [head * WIDTH + place for head in KEPT_HEADS for place in KEPT_WIDTH]
    expected = whole.attention.in_proj_weight.grad.unflatten(0, (3, EMBED))[:, rows].flatten(0, 1)
    close(small.attention.in_proj_weight.grad, expected)
    close(small.attention.out_proj.weight.grad, whole.attention.out_proj.weight.grad[:, rows])


@pytest.mark.parametrize("need_weights", [False, True])
def test_dropout_in_training(need_weights: bool) -> None:
    """With all heads kept, both draw the same random numbers."""
    model = made("self", dropout=0.4)
    every = list(range(HEADS))
    small, whole = shrunk(model, every, KEPT_WIDTH, KEPT_WIDTH), zeroed(model, every, KEPT_WIDTH, KEPT_WIDTH)
    given = {**inputs(model), "need_weights": need_weights}

    def result(each: Calling) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            output: Tensor = each(**given)[0]
            return output

    calm = result(small)
    small.train()
    whole.train()
    close(result(small), result(whole))
    assert not torch.allclose(result(small), calm)
    assert torch.equal(result(small.eval()), calm)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype: torch.dtype, need_weights: bool) -> None:
    """Shrunk in that type; the reference computes in float64."""
    model = made("self", batch_first=True)
    low = copy.deepcopy(model).to(dtype)
    whole = zeroed(copy.deepcopy(low).double(), KEPT_HEADS, KEPT_WIDTH, KEPT_WIDTH)
    given = {name: tensor.to(dtype) for name, tensor in inputs(model).items()}
    small = shrunk(model, KEPT_HEADS, KEPT_WIDTH, KEPT_WIDTH).to(dtype)
    padding = torch.arange(PLACES).expand(BATCH, -1) >= 4
    for mask in ({}, {"key_padding_mask": padding}):
        found = small(**given, **mask, need_weights=need_weights)[0]
        assert found.dtype == dtype
        wide = {name: tensor.double() for name, tensor in given.items()}
        expected = whole(**wide, **mask)[0]
        assert (found.double() - expected).abs().max() <= 8 * torch.finfo(dtype).eps * expected.abs().max()


def test_wrong_arguments_are_refused() -> None:
    small = shrunk(made("self", batch_first=True), KEPT_HEADS, KEPT_WIDTH, KEPT_WIDTH)
    given = inputs(made("self", batch_first=True))
    with pytest.raises(RuntimeError, match=r"attn_mask has shape \(12, 5, 5\).*\(6, 5, 5\), for 2 heads"):
        small(**given, attn_mask=torch.zeros(HEADS * BATCH, PLACES, PLACES))
    with pytest.raises(RuntimeError, match="give the mask too"):
        small(**given, is_causal=True)
    nested = torch.nested.nested_tensor([noise(3, EMBED), noise(5, EMBED)])
    with pytest.raises(TypeError, match="no nested tensors"):
        small.attention(nested, nested, nested)


# -- what it is ---------------------------------------------------------------------------------------


class Named(nn.MultiheadAttention):
    """A class of the user's; it keeps its name and what it adds."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.calls = 0

    def forward(self, *args: Any, **options: Any) -> Any:
        self.calls += 1
        return super().forward(*args, **options)

    def greeting(self) -> str:
        return f"{self.num_heads} heads"


class Silent(nn.MultiheadAttention):
    """A subclass that adds nothing to forward."""


@pytest.mark.parametrize("kind", [nn.MultiheadAttention, Named, Silent])
def test_it_is_copied_pickled_and_saved(kind: type[nn.MultiheadAttention]) -> None:
    model = made("self", kind, batch_first=True)
    given = inputs(model)
    seen: list[int] = []
    model.attention.register_forward_pre_hook(lambda module, args: seen.append(1))
    small = structprune.shrink(model, 0.5, given, output="module")
    expected = small(**given)
    assert seen, "the hooks stay"
    small.attention._forward_pre_hooks.clear()
    buffer = io.BytesIO()
    torch.save(small, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(small), pickle.loads(pickle.dumps(small)), torch.load(buffer, weights_only=False)]
    for each in copies:
        attention = each.attention
        assert isinstance(attention, ShrunkAttention) and isinstance(attention, kind)
        assert type(attention) is type(small.attention)
        assert all(torch.equal(a, b) for a, b in zip(each(**given), expected, strict=True))
        assert attention.in_proj_weight is not small.attention.in_proj_weight
        if isinstance(attention, Named):
            assert attention.greeting() == f"{small.attention.num_heads} heads"
            assert attention.calls == small.attention.calls + 1
    assert f"num_heads={small.attention.num_heads}, head_dim={small.attention.head_dim}" in repr(small)


@pytest.mark.parametrize("how", ["self", "memory", "separate"])
@pytest.mark.parametrize("need_weights", [False, True])
def test_it_exports_and_compiles(how: str, need_weights: bool) -> None:
    model = made(how, batch_first=True).float()
    given: dict[str, Any] = {name: tensor.float() for name, tensor in inputs(model).items()}
    sources = given["key"].shape[1]
    given["attn_mask"] = torch.full((PLACES, sources), float("-inf")).triu(1)
    given["key_padding_mask"] = torch.zeros(BATCH, sources).index_fill(1, torch.tensor([4]), float("-inf"))
    given["need_weights"] = need_weights
    small = structprune.shrink(model, 0.5, given, output="module")
    assert type(small.attention) is ShrunkAttention
    expected = small(**given)[0]
    batch = torch.export.Dim("batch", min=2, max=64)
    shapes = {
        name: {0: batch} if name in ("query", "key", "value", "key_padding_mask") else None for name in given
    }
    program = torch.export.export(small, (), given, dynamic_shapes=shapes, strict=False)
    close(program.module()(**given)[0], expected, 1e-5)
    longer = {name: x if shapes[name] is None else torch.cat([x, x]) for name, x in given.items()}
    close(program.module()(**longer)[0], small(**longer)[0], 1e-5)
    torch._dynamo.reset()
    compiled = torch.compile(small, backend="aot_eager", fullgraph=True)
    close(compiled(**given)[0], expected, 1e-5)


def test_symbolic_tracing_leaves_it_whole() -> None:
    """As torch's own: torchvision's feature extraction traces its models so."""
    small = shrunk(made("self", batch_first=True), KEPT_HEADS, KEPT_WIDTH, KEPT_WIDTH)
    given = inputs(small)
    traced = torch.fx.symbolic_trace(small)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["attention"]
    assert all(torch.equal(a, b) for a, b in zip(traced(**given), small(**given), strict=True))


def test_its_parameters_can_be_drawn_anew() -> None:
    attention = shrunk(made("self", batch_first=True), KEPT_HEADS, KEPT_WIDTH, KEPT_WIDTH).attention
    before = attention.in_proj_weight.detach().clone()
    attention._reset_parameters()
    assert not torch.equal(attention.in_proj_weight, before) and not attention.in_proj_bias.any()
    assert not attention._qkv_same_embed_dim


def test_a_plan_and_a_state_dict_rebuild_it(tmp_path: Path) -> None:
    model = made("self", batch_first=True)
    given = inputs(model)
    plan = structprune.plan(model, 0.5, given, output="module")
    small = plan.apply(model)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.add_(0.01)
    plan.save(tmp_path / "plan.json")
    save_file(small.state_dict(), tmp_path / "small.safetensors")
    fresh = Calling(nn.MultiheadAttention(EMBED, HEADS, batch_first=True).double(), "self").eval()
    loaded = structprune.load(fresh, tmp_path / "plan.json", load_file(tmp_path / "small.safetensors"))
    assert type(loaded.attention) is ShrunkAttention
    assert all(torch.equal(a, b) for a, b in zip(loaded(**given), small(**given), strict=True))


@pytest.mark.parametrize("need_weights", [False, True])
def test_it_is_shrunk_again(need_weights: bool) -> None:
    """The scale stays that of the first width; both cuts together are one."""
    model = made("separate")
    given = {**inputs(model), "need_weights": need_weights}
    once = shrunk(model, [0, 1, 3], [0, 2, 3, 5, 7], [1, 2, 4, 6], need_weights=need_weights)
    plan = structprune.plan(once, 0.0, given, output="module", verify="numeric")
    for group in structprune.analyze(once, given).groups:
        plan.keep[group.name] = {3: [1, 2], 5: [1, 2, 4], 4: [0, 3]}[group.size]
    twice = plan.apply(once)
    attention = twice.attention
    assert (attention.num_heads, attention.head_dim, attention.value_dim) == (2, 3, 2)
    whole = zeroed(model, [1, 3], [2, 3, 7], [1, 6])
    close(twice(**given)[0], whole(**given)[0])


def test_torchs_own_stays_where_it_fits() -> None:
    """Heads that go together with the model's width leave the stock class, and its fused kernels."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave = nn.Linear(6, EMBED), nn.Linear(EMBED, 3)
            self.attention = nn.MultiheadAttention(EMBED, HEADS, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.enter(x)
            x = x + self.attention(x, x, x, need_weights=False)[0]
            out: Tensor = self.leave(x)
            return out

    model, x = Model().double().eval(), noise(2, 5, 6)
    plan = structprune.plan(model, 0.0, x, output="module", verify="numeric")
    groups = {group.size: group.name for group in structprune.analyze(model, x).groups}
    plan.keep[groups[EMBED]], plan.keep[groups[HEADS]] = list(range(16)), KEPT_HEADS
    attention = plan.apply(model).attention
    assert type(attention) is nn.MultiheadAttention
    assert (attention.embed_dim, attention.kdim, attention.num_heads, attention.head_dim) == (16, 16, 2, 8)
    assert attention._qkv_same_embed_dim
    plan.keep[groups[EMBED]] = list(range(15))
    attention = plan.apply(model).attention
    assert type(attention) is ShrunkAttention
    assert (attention.embed_dim, attention.kdim, attention.num_heads, attention.head_dim) == (15, 15, 2, 8)


# -- inside torch's own layers ------------------------------------------------------------------------


def layer(**options: Any) -> nn.TransformerEncoderLayer:
    made = nn.TransformerEncoderLayer(EMBED, HEADS, 48, batch_first=True, dtype=torch.float64, **options).eval()
    with torch.no_grad():
        for seed, parameter in enumerate(made.parameters()):
            parameter.copy_(noise(*parameter.shape, seed=seed) / 3)
    return made


def without_heads(module: nn.Module) -> nn.Module:
    """The first and the third head of every attention module are zero."""
    twin = copy.deepcopy(module)
    for each in twin.modules():
        if isinstance(each, nn.MultiheadAttention):
            with torch.no_grad():
                each.in_proj_weight.unflatten(0, (3, HEADS, WIDTH))[:, [0, 2]] = 0
                each.in_proj_bias.unflatten(0, (3, HEADS, WIDTH))[:, [0, 2]] = 0
                each.out_proj.weight.unflatten(1, (HEADS, WIDTH))[:, [0, 2]] = 0
    return twin


def with_heads_cut(module: nn.Module, given: Any) -> nn.Module:
    plan = structprune.plan(module, 0.0, given, output="module", verify="numeric")
    for group in structprune.analyze(module, given).groups:
        if group.size == HEADS:
            plan.keep[group.name] = KEPT_HEADS
    small: nn.Module = plan.apply(module)
    return small


@pytest.mark.parametrize("options", [{}, {"norm_first": True}, {"activation": "gelu"}])
def test_an_encoder_layer_keeps_off_the_fused_kernel(options: dict[str, Any]) -> None:
    """Torch's kernel reads one width from the weights; the layer must not hand it others, nor fail."""
    whole, x = layer(**options), noise(2, PLACES, EMBED)
    small = with_heads_cut(whole, x)
    assert type(small) is nn.TransformerEncoderLayer
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    causal = nn.Transformer.generate_square_subsequent_mask(PLACES, dtype=torch.float64)
    for mask in ({}, {"src_key_padding_mask": padding}, {"src_mask": causal}, {"src_mask": causal, "is_causal": True}):
        with torch.no_grad():
            expected, found = without_heads(whole)(x, **mask), small(x, **mask)
        close(found, expected)
        close(small(x, **mask).detach(), expected)


@pytest.mark.parametrize("depth", [1, 2])
def test_an_encoder_with_nested_tensors(depth: int) -> None:
    """Padded places are packed away by torch's encoder where its layers can take that: these cannot."""
    with torch.random.fork_rng():
        whole = nn.TransformerEncoder(layer(), depth, enable_nested_tensor=True).eval()
    assert whole.use_nested_tensor
    x = noise(2, PLACES, EMBED)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    small = with_heads_cut(whole, {"src": x, "src_key_padding_mask": padding})
    assert whole.use_nested_tensor and not small.use_nested_tensor
    for module in (small, copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        with torch.no_grad():
            expected = without_heads(whole)(x, src_key_padding_mask=padding)
            found = module(x, src_key_padding_mask=padding)
        close(found[~padding], expected[~padding])


def test_a_whole_transformer() -> None:
    whole = nn.Transformer(EMBED, HEADS, 1, 2, 48, batch_first=True, dtype=torch.float64).eval()
    source, target = noise(2, SOURCES, EMBED), noise(2, PLACES, EMBED, seed=2)
    mask = nn.Transformer.generate_square_subsequent_mask(PLACES, dtype=torch.float64)
    given = {"src": source, "tgt": target, "tgt_mask": mask}
    small = with_heads_cut(whole, given)
    assert sum(isinstance(each, ShrunkAttention) for each in small.modules()) == 5
    with torch.no_grad():
        close(small(**given), without_heads(whole)(**given))


def test_a_model_of_torchvision_is_free_to_choose() -> None:
    """Heads, their widths and the model's width are three choices, not one."""
    vision_transformer = pytest.importorskip("torchvision").models.vision_transformer
    model = vision_transformer.VisionTransformer(24, 8, 2, 4, 32, 64, num_classes=5).double().eval()
    x = noise(2, 3, 24, 24)
    with torch.no_grad():
        model.heads.head.weight.normal_()
    for ratio in (0.25, 0.5, 0.75):
        small = structprune.shrink(model, ratio, x, output="module", verify="numeric")
        left = sum(each.numel() for each in small.parameters()) / sum(each.numel() for each in model.parameters())
        assert abs(1 - left - ratio) <= 0.01
    assert any(isinstance(each, ShrunkAttention) for each in small.modules())
    assert small(noise(3, 3, 24, 24)).shape == (3, 5)
