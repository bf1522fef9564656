"""Real models by other people, built small and without weights, on which the pruner is tested in float64 on the CPU.

Three tables (torchvision, timm, transformers) say what to build; `cases` turns rows into builders. No row is imported until built.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

Built = tuple[nn.Module, object]
"""A model in eval mode (float32, CPU) and its example inputs: a tensor, a tuple, or a dict of keyword arguments."""


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    library: str
    family: str
    build: Callable[[], Built]
    fast: bool


def cases(library: str | None = None, fast: bool = False, pattern: str | None = None) -> list[Case]:
    """The catalogue, narrowed to one library, to the CI subset, or to names in which the regular expression is found."""
    return [
        case
        for case in (*_torchvision_cases(), *_timm_cases(), *_transformers_cases())
        if library in (None, case.library) and (case.fast or not fast) and (pattern is None or re.search(pattern, case.name))
    ]


def one_of_each_family(found: Iterable[Case]) -> list[Case]:
    """Architectures, not sizes of one."""
    first: dict[tuple[str, str], Case] = {}
    for case in found:
        first.setdefault((case.library, case.family), case)
    return list(first.values())


def randomize(model: nn.Module) -> nn.Module:
    """Spread what initialisation leaves constant: a zero gamma or a layer scale of 1e-6 would hide a wrong edit behind it."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and _is_degenerate(parameter):
                parameter.add_(_normal(parameter, generator))
        for module in model.modules():
            buffers = dict(module.named_buffers(recurse=False))
            if "running_var" not in buffers:
                continue
            if "running_mean" in buffers:
                buffers["running_mean"].copy_(_normal(buffers["running_mean"], generator))
            buffers["running_var"].copy_(_uniform(buffers["running_var"], generator))
            for name in ("weight", "bias"):  # FrozenBatchNorm2d keeps its affine part in buffers
                if name in buffers:
                    buffers[name] += _normal(buffers[name], generator)
    return model


def calibrate(model: nn.Module, inputs: object) -> Built:
    """Centre and scale the running statistics on what flows through, keeping their random spread; `model` in eval mode.

    Without this, efficientnet_b0 lets a relative 1e-12 of its input through and inception_v3 answers 1e10: law 2 to 1e-9 says nothing.
    """
    generator = torch.Generator().manual_seed(0)

    def observe(norm: Any, args: tuple[Any, ...]) -> None:
        x = args[0].transpose(0, 1).flatten(1)
        scale = x.var(dim=1, correction=0).mean()
        if scale > 0:
            norm.running_mean.copy_(x.mean(dim=1) + scale.sqrt() * _normal(norm.running_mean, generator))
            norm.running_var.copy_(scale * _uniform(norm.running_var, generator))

    norms = [module for module in model.modules() if getattr(module, "running_mean", None) is not None]
    handles = [norm.register_forward_pre_hook(observe) for norm in norms]
    with torch.no_grad():
        call(model, inputs)
    for handle in handles:
        handle.remove()
    return model, inputs


def call(model: nn.Module, inputs: Any) -> Any:
    """Run `model` on example inputs of any of the three shapes."""
    match inputs:
        case dict():
            return model(**inputs)
        case tuple():
            return model(*inputs)
        case _:
            return model(inputs)


def _is_degenerate(parameter: Tensor) -> bool:
    return parameter.numel() > 0 and bool(parameter.min() == parameter.max() or parameter.abs().max() < 1e-3)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator).to(like) * 0.1


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(like.shape, generator=generator).to(like) + 0.5


# ---------------------------------------------------------------- torchvision

_VIT_B = {"image_size": 64, "patch_size": 16, "num_layers": 3, "num_heads": 3, "hidden_dim": 96, "mlp_dim": 192}
_MAXVIT_T = {"input_size": (64, 64), "stem_channels": 32, "partition_size": 4, "block_channels": [32, 64], "block_layers": [1, 2],
             "head_dim": 16, "stochastic_depth_prob": 0.0}  # fmt: skip
_MVIT_BLOCKS = [
    {"num_heads": 1, "input_channels": 32, "output_channels": 64, "stride_q": [], "kernel_q": [], "stride_kv": [1, 4, 4]},
    {"num_heads": 2, "input_channels": 64, "output_channels": 64, "stride_q": [1, 2, 2], "kernel_q": [3, 3, 3], "stride_kv": [1, 2, 2]},
    {"num_heads": 2, "input_channels": 64, "output_channels": 64, "stride_q": [], "kernel_q": [], "stride_kv": [1, 2, 2]},
]  # fmt: skip
_MVIT_V1 = {"spatial_size": (32, 32), "temporal_size": 8, "block_setting": _MVIT_BLOCKS, "residual_pool": False,
            "residual_with_cls_embed": False, "rel_pos_embed": False, "proj_after_attn": False}  # fmt: skip
_MVIT_V2 = {**_MVIT_V1, "residual_pool": True, "rel_pos_embed": True, "proj_after_attn": True}
_FROM_SCRATCH = {"weights_backbone": None}
_TWO_STAGES = {**_FROM_SCRATCH, "box_score_thresh": 0.0, "box_detections_per_img": 6, "rpn_post_nms_top_n_test": 24,
               "min_size": 96, "max_size": 96}  # fmt: skip
_ONE_STAGE = {**_FROM_SCRATCH, "score_thresh": 0.0, "detections_per_img": 20, "topk_candidates": 50}

# (family, image size, builders under torchvision.models, options); after the dash, the name of the variant that the options make
_TORCHVISION: tuple[tuple[str, int, str, dict[str, Any]], ...] = (
    ("alexnet", 64, "alexnet", {}),
    ("vgg", 32, "vgg11 vgg11_bn", {}),
    ("resnet", 64, "resnet18 resnet50 wide_resnet50_2 resnext50_32x4d", {}),
    ("densenet", 64, "densenet121", {}),
    ("googlenet", 64, "googlenet", {"aux_logits": False, "init_weights": True}),
    ("googlenet", 64, "googlenet-aux", {"aux_logits": True, "init_weights": True}),
    ("inception", 96, "inception_v3", {"aux_logits": False, "init_weights": True}),
    ("inception", 96, "inception_v3-aux", {"aux_logits": True, "init_weights": True}),
    ("squeezenet", 64, "squeezenet1_0 squeezenet1_1", {}),
    ("mobilenet", 64, "mobilenet_v2 mobilenet_v3_small", {}),
    ("mnasnet", 64, "mnasnet0_5", {}),
    ("shufflenet", 64, "shufflenet_v2_x0_5", {}),
    ("efficientnet", 64, "efficientnet_b0 efficientnet_v2_s", {}),
    ("regnet", 64, "regnet_x_400mf regnet_y_400mf", {}),
    ("convnext", 64, "convnext_tiny", {}),
    ("vision_transformer", 64, "VisionTransformer", _VIT_B),
    ("swin_transformer", 64, "swin_t swin_v2_t", {}),
    ("maxvit", 64, "maxvit.MaxVit", _MAXVIT_T),
    ("segmentation", 64, "segmentation.fcn_resnet50 segmentation.deeplabv3_resnet50", _FROM_SCRATCH),
    ("segmentation", 64, "segmentation.fcn_resnet50-aux", {**_FROM_SCRATCH, "aux_loss": True}),
    ("segmentation", 64, "segmentation.deeplabv3_mobilenet_v3_large segmentation.lraspp_mobilenet_v3_large", _FROM_SCRATCH),
    ("video", 32, "video.r3d_18 video.mc3_18 video.r2plus1d_18", {}),
    ("video", 224, "video.s3d", {}),  # its last pooling wants 7 x 7
    ("video", 64, "video.swin3d_t", {}),
    ("video", 32, "video.MViT-v1", _MVIT_V1),
    ("video", 32, "video.MViT-v2", _MVIT_V2),
    ("optical_flow", 128, "optical_flow.raft_small", {}),
    ("detection", 96, "detection.fasterrcnn_mobilenet_v3_large_320_fpn", _TWO_STAGES),
    ("detection", 96, "detection.maskrcnn_resnet50_fpn detection.keypointrcnn_resnet50_fpn", _TWO_STAGES),
    ("detection", 96, "detection.retinanet_resnet50_fpn detection.fcos_resnet50_fpn", {"min_size": 96, **_ONE_STAGE}),
    ("detection", 96, "detection.ssdlite320_mobilenet_v3_large detection.ssd300_vgg16", _ONE_STAGE),
)


def _torchvision_cases() -> Iterator[Case]:
    for family, size, paths, options in _TORCHVISION:
        for path in paths.split():
            name = f"torchvision/{path.rpartition('.')[2]}"
            build = partial(_build_torchvision, path.partition("-")[0], family, size, options)
            yield Case(name, "torchvision", family, build, name in _FAST)


def _build_torchvision(path: str, family: str, size: int, options: dict[str, Any]) -> Built:
    import torchvision.models
    from torchvision.models.video.mvit import MSBlockConfig

    torch.manual_seed(0)
    if path == "optical_flow.raft_small":
        images = (torch.rand(1, 3, size, size) * 2 - 1, torch.rand(1, 3, size, size) * 2 - 1)
        return calibrate(randomize(_raft_small()).eval(), images)
    if path == "video.MViT":
        blocks = [MSBlockConfig(**{"kernel_kv": [3, 3, 3], **block}) for block in options["block_setting"]]
        options = {**options, "block_setting": blocks}
    builder = torchvision.models
    for part in path.split("."):
        builder = getattr(builder, part)
    model = randomize(builder(num_classes=10, **options)).eval()
    if family == "detection":
        return calibrate(model, ([torch.rand(3, size, size)],))
    if family == "video":
        return calibrate(model, torch.randn(1, 3, 16 if path == "video.s3d" else 8, size, size))
    return calibrate(model, torch.randn(2, 3, size, size))


def _raft_small() -> nn.Module:
    """RAFT makes its coordinates in float32, whatever its weights are: cast them where they meet the weights."""
    from torchvision.models.optical_flow import raft, raft_small

    class Correlation(raft.CorrBlock):
        def index_pyramid(self, centroids_coords: Tensor) -> Tensor:
            return super().index_pyramid(centroids_coords.to(self.corr_pyramid[0].dtype))

    class Update(raft.UpdateBlock):
        def forward(self, hidden: Tensor, context: Tensor, correlation: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(hidden, context, correlation, flow.to(hidden.dtype))

    model = raft_small(corr_block=Correlation(num_levels=4, radius=3))
    parts = ("motion_encoder", "recurrent_block", "flow_head")
    model.update_block = Update(**{part: getattr(model.update_block, part) for part in parts})
    return model


# ----------------------------------------------------------------------- timm

# module of timm.models -> models as "name@image size"; a star says that the constructor must be told the image size
_TIMM: dict[str, str] = {
    "beit": "beit_base_patch16_224@64* beitv2_base_patch16_224@64*",
    "byoanet": "botnet26t_256@64* eca_halonext26ts@256 lambda_resnet26t@64 lambda_resnet26rpt_256@64* sehalonet33ts@256",
    "byobnet": "gernet_s@64 mobileone_s0@64 repvgg_a0@64 regnetz_b16@64 gcresnext26ts@64 bat_resnext26ts@256 resnet50_clip@64 resnet51q@64",
    "cait": "cait_xxs24_224@64*",
    "coat": "coat_lite_tiny@64* coat_tiny@64*",
    "convit": "convit_tiny@64*",
    "convmixer": "convmixer_768_32@64",
    "convnext": "convnext_atto@64 convnext_zepto_rms@64 convnextv2_atto@64",
    "cpubone": "cpubone_nano@64",
    "crossvit": "crossvit_9_240@240 crossvit_9_dagger_240@240",
    "csatv2": "csatv2@512",
    "cspnet": "cs3darknet_focus_s@64 cspresnet50@64 cspresnext50@64 cspdarknet53@64 sedarknet21@64",
    "cspnext": "cspnext_tiny@64",
    "davit": "davit_tiny@64",
    "deepseek_vit": "deepseek_vit_412m@56",
    "deit": "deit_tiny_patch16_224@64* deit_tiny_distilled_patch16_224@64* deit3_small_patch16_224@64*",
    "densenet": "densenet121@64 densenetblur121d@64",
    "dla": "dla46_c@64 dla60_res2net@64 dla46x_c@64",
    "dpn": "dpn48b@64 dpn68@64",
    "edgenext": "edgenext_xx_small@64",
    "efficientformer": "efficientformer_l1@224",
    "efficientformer_v2": "efficientformerv2_s0@224",
    "efficientnet": "efficientnet_b0@64 efficientnet_es@64 efficientnetv2_rw_t@64 efficientnet_cc_b0_4e@64 efficientnet_b0_gn@64 "
    "fbnetc_100@64 mixnet_s@64 mnasnet_small@64 mobilenetv2_035@64 mobilenet_edgetpu_v2_xs@64 spnasnet_100@64 tinynet_e@64 "
    "tf_efficientnet_lite0@64 tf_mixnet_s@64",
    "efficientvim": "efficientvim_m1@64",
    "efficientvit_mit": "efficientvit_b0@64 efficientvit_l1@64",
    "efficientvit_msra": "efficientvit_m0@224",
    "eva": "eva02_tiny_patch14_224@56* vit_small_patch16_rope_mixed_224@64* vit_small_patch16_dinov3@64",
    "fasternet": "fasternet_t0@64",
    "fastvit": "fastvit_t8@64 fastvit_sa12@64",
    "focalnet": "focalnet_tiny_srf@64",
    "gcvit": "gcvit_xxtiny@224",
    "gemma4_vit": "gemma4_vit_167m@64",
    "ghostnet": "ghostnet_050@64 ghostnetv2_100@64 ghostnetv3_050@64",
    "hardcorenas": "hardcorenas_a@64",
    "hgnet": "hgnet_tiny@64 hgnetv2_b0@64",
    "hiera": "hiera_tiny_224@64*",
    "hieradet_sam2": "sam2_hiera_tiny@64",
    "hrnet": "hrnet_w18_small@64",
    "iformer": "iformer_t@64",
    "inception_next": "inception_next_atto@64",
    "inception_resnet_v2": "inception_resnet_v2@96",
    "inception_v3": "inception_v3@96",
    "inception_v4": "inception_v4@96",
    "lcnetv2": "lcnetv2_small@64",
    "levit": "levit_128s@224 levit_conv_128s@224",
    "lowformer": "lowformer_b0@64",
    "mambaout": "mambaout_femto@64",
    "maxxvit": "coatnet_nano_rw_224@64* coatnext_nano_rw_224@224 maxvit_pico_rw_256@64* maxxvit_rmlp_nano_rw_256@64*",
    "metaformer": "poolformer_s12@64 poolformerv2_s12@64 caformer_s18@64 convformer_s18@64",
    "mlp_mixer": "mixer_s32_224@64* gmixer_12_224@64* gmlp_ti16_224@64* resmlp_12_224@64*",
    "mobilenetv3": "mobilenetv3_small_050@64 lcnet_035@64 fbnetv3_b@64 mobilenetv4_conv_small_035@64 mobilenetv4_hybrid_medium_075@64",
    "mobilenetv5": "mobilenetv5_base@64",
    "mobilevit": "mobilevit_xxs@64 mobilevitv2_050@64",
    "mvitv2": "mvitv2_tiny@64 mvitv2_small_cls@64",
    "naflexvit": "naflexvit_base_patch16_gap@64",
    "nasnet": "nasnetalarge@96",
    "nest": "nest_tiny@64*",
    "nextvit": "nextvit_small@64",
    "nfnet": "eca_nfnet_l0@64 nf_regnet_b0@64 nf_resnet26@64 dm_nfnet_f0@64",
    "pit": "pit_ti_224@64* pit_ti_distilled_224@64*",
    "pnasnet": "pnasnet5large@96",
    "pvt_v2": "pvt_v2_b0@64 pvt_v2_b2_li@64",
    "qwen3_vit": "qwen3_vit_88m@64",
    "rdnet": "rdnet_tiny@64",
    "regnet": "regnetx_002@64 regnety_002@64 regnetz_005@64 regnetv_040@64",
    "repghost": "repghostnet_050@64",
    "repvit": "repvit_m0_9@64",
    "res2net": "res2net50_14w_8s@64 res2next50@64",
    "resnest": "resnest14d@64 resnest50d_4s2x40d@64",
    "resnet": "resnet10t@64 resnet26d@64 resnet50_gn@64 ecaresnet26t@64 seresnet18@64 resnetblur18@64 resnetaa34d@64 resnetrs50@64 "
    "senet154@64",
    "resnetv2": "resnetv2_18@64 resnetv2_50x1_bit@64 resnetv2_50d_evos@64 resnetv2_50d_frn@64",
    "rexnet": "rexnet_100@64 rexnetr_100@64",
    "selecsls": "selecsls42b@64",
    "senet": "legacy_seresnet18@64 legacy_seresnext26_32x4d@64",
    "sequencer": "sequencer2d_s@64",
    "shvit": "shvit_s1@64",
    "sknet": "skresnet18@64 skresnext50_32x4d@64",
    "starnet": "starnet_s050@64",
    "swiftformer": "swiftformer_xs@64",
    "swin_transformer": "swin_tiny_patch4_window7_224@64* swin_s3_tiny_224@64*",
    "swin_transformer_v2": "swinv2_tiny_window8_256@64*",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_ns_224@64*",
    "tiny_vit": "tiny_vit_5m_224@64",
    "tnt": "tnt_s_patch16_224@64* tnt_s_legacy_patch16_224@64*",
    "tresnet": "tresnet_m@64",
    "twins": "twins_pcpvt_small@64 twins_svt_small@64",
    "vgg": "vgg11@32 vgg11_bn@32",
    "visformer": "visformer_tiny@64*",
    "vision_transformer": "vit_tiny_patch16_224@64* vit_tiny_r_s16_p8_224@64* vit_base_patch16_siglip_224@64* "
    "vit_medium_patch16_gap_240@64* vit_base_patch16_18x2_224@64* vit_small_patch14_dinov2@56* flexivit_small@64* "
    "vit_base_patch16_xp_224@64* aimv2_large_patch14_224@56* vit_little_patch16_reg4_gap_256@64* vit_pwee_patch16_reg1_gap_256@64*",
    "vision_transformer_hybrid": "vit_small_resnet26d_224@64*",
    "vision_transformer_relpos": "vit_relpos_small_patch16_224@64* vit_srelpos_small_patch16_224@64*",
    "vision_transformer_sam": "samvit_base_patch16_224@64",
    "vitamin": "vitamin_small_224@64*",
    "volo": "volo_d1_224@64*",
    "vovnet": "ese_vovnet19b_slim@64 ese_vovnet19b_dw@64 eca_vovnet39b@64",
    "xception": "legacy_xception@64",
    "xception_aligned": "xception41@64 xception41p@64",
    "xcit": "xcit_nano_12_p16_224@64",
}  # fmt: skip

# Depth and width of the large ones, cut where the constructor lets us.
_TIMM_OPTIONS: dict[str, dict[str, Any]] = {
    name: {"depth": 3}
    for name in ("aimv2_large_patch14_224", "beit_base_patch16_224", "beitv2_base_patch16_224", "deepseek_vit_412m", "gemma4_vit_167m",
                 "naflexvit_base_patch16_gap", "qwen3_vit_88m", "vit_base_patch16_18x2_224", "vit_base_patch16_siglip_224",
                 "vit_base_patch16_xp_224")
}  # fmt: skip
_TIMM_OPTIONS["samvit_base_patch16_224"] = {"depth": 3, "global_attn_indexes": (2,)}


def _timm_cases() -> Iterator[Case]:
    for family, models in _TIMM.items():
        for model in models.split():
            name, _, size = model.rstrip("*").partition("@")
            build = partial(_build_timm, name, int(size), model.endswith("*"))
            yield Case(f"timm/{name}", "timm", family, build, f"timm/{name}" in _FAST)


def _build_timm(name: str, size: int, is_told_size: bool) -> Built:
    import timm

    torch.manual_seed(0)
    options = {"img_size": size} if is_told_size else {}
    model = timm.create_model(name, pretrained=False, **{"num_classes": 10, **options, **_TIMM_OPTIONS.get(name, {})})
    return calibrate(randomize(model).eval(), torch.randn(2, 3, size, size))


# --------------------------------------------------------------- transformers

_SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
          "initializer_range": 0.1, "num_labels": 10}  # fmt: skip
_TEXT = {**_SMALL, "vocab_size": 100, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
         "use_cache": False}  # fmt: skip
_SPLIT = {**_TEXT, "embedding_size": 32}
_DISENTANGLED = {**_TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
_GROUPED = {**_TEXT, "num_key_value_heads": 2}
_HEADS = {**_GROUPED, "head_dim": 16}
_SLIDING = {**_HEADS, "sliding_window": 8}
_BATCHED = {"experts_implementation": "batched_mm"}  # the default, grouped_mm, has no float64
_EXPERTS = {"moe_intermediate_size": 32, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, **_BATCHED}
_LATENT = {"num_key_value_heads": 4, "moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2,
           "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
           "qk_nope_head_dim": 16, "v_head_dim": 16, **_BATCHED}  # fmt: skip
_DELTA = {"shared_expert_intermediate_size": 32, "linear_key_head_dim": 8, "linear_value_head_dim": 16, "linear_num_key_heads": 2,
          "linear_num_value_heads": 4, "layer_types": ["linear_attention", "full_attention"]}  # fmt: skip
_BART = {**_TEXT, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
         "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "decoder_start_token_id": 2, "forced_eos_token_id": 2,
         "init_std": 0.1}  # fmt: skip
_T5 = {"vocab_size": 100, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "use_cache": False, "num_labels": 10,
       "decoder_start_token_id": 0}  # fmt: skip
_NAMED_OTHERWISE = {"vocab_size": 100, "d_model": 64, "use_cache": False, "num_labels": 10, "initializer_range": 0.1}
_FUNNEL = {**_NAMED_OTHERWISE, "block_sizes": [1, 1], "n_head": 4, "d_head": 16, "d_inner": 128, "initializer_std": 0.1}
_XLNET = {**_NAMED_OTHERWISE, "n_layer": 2, "n_head": 4, "d_inner": 128, "use_mems_eval": False}
_MPT = {**_NAMED_OTHERWISE, "n_heads": 4, "n_layers": 2, "max_seq_len": 64}
_PERCEIVER = {**_NAMED_OTHERWISE, "d_latents": 48, "num_latents": 6, "num_self_attends_per_block": 2, "num_self_attention_heads": 4,
              "num_cross_attention_heads": 4, "qk_channels": 32, "v_channels": 48, "max_position_embeddings": 64}  # fmt: skip
_BOTTLENECK = {**_SPLIT, "intra_bottleneck_size": 32, "num_feedforward_networks": 2}
_MAMBA = {**_TEXT, "state_size": 8}
_MAMBA2 = {**_MAMBA, "num_heads": 8, "head_dim": 16, "n_groups": 2, "chunk_size": 8}
_VIT = {**_SMALL, "image_size": 32, "patch_size": 8}
_DPT = {**_VIT, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [16, 32, 48, 64],
        "fusion_hidden_size": 32}  # fmt: skip
_STAGES = {"depths": [1, 1, 2, 1], "hidden_sizes": [16, 32, 48, 64], "embedding_size": 16, "num_labels": 10, "initializer_range": 0.1}
_PYRAMID = {**_STAGES, "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 3, 4], "decoder_hidden_size": 32}
_SWIN = {"image_size": 64, "patch_size": 4, "embed_dim": 16, "depths": [1, 2, 1], "num_heads": [1, 2, 4], "window_size": 4,
         "num_labels": 10, "initializer_range": 0.1}  # fmt: skip
_FOCAL = {**_SWIN, "hidden_sizes": [16, 32, 64], "focal_levels": [2, 2, 2], "focal_windows": [3, 3, 3]}
_CVT = {"embed_dim": [16, 32, 64], "num_heads": [1, 2, 4], "depth": [1, 2, 3], "num_labels": 10, "initializer_range": 0.1}
_HIERA = {"embed_dim": 16, "image_size": [64, 64], "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8], "num_labels": 10}
_LEVIT = {"image_size": 64, "hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1], "key_dim": [8, 8, 8],
          "down_ops": [["Subsample", 8, 4, 4, 2, 2], ["Subsample", 8, 6, 4, 2, 2]], "num_labels": 10}  # fmt: skip
_MOBILEVIT = {"image_size": 64, "hidden_sizes": [24, 32, 40], "neck_hidden_sizes": [8, 16, 16, 24, 32, 40, 80], "num_labels": 10,
              "initializer_range": 0.2}  # fmt: skip
_HALF = {"image_size": 64, "width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640, "num_labels": 10,
         "initializer_range": 0.2}  # fmt: skip
_SPEECH = {**_SMALL, "vocab_size": 32, "conv_dim": (32, 32, 32), "conv_stride": (5, 2, 2), "conv_kernel": (10, 3, 3),
           "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "classifier_proj_size": 32}  # fmt: skip
_WHISPER = {**_BART, "num_mel_bins": 16, "max_source_positions": 16, "max_target_positions": 32}
_CLIP = {"text_config": {**_TEXT, "hidden_size": 32, "projection_dim": 24}, "vision_config": {**_VIT, "projection_dim": 24},
         "projection_dim": 24}  # fmt: skip
_SIGLIP = {"text_config": {**_TEXT, "projection_size": 64}, "vision_config": _VIT}

# (kind of input, its size, model classes, options)
_TRANSFORMERS: tuple[tuple[str, int, str, dict[str, Any]], ...] = (
    ("text", 12, "BertForSequenceClassification BertForMaskedLM RobertaForSequenceClassification", _TEXT),
    ("text", 12, "MPNetForSequenceClassification IBertForSequenceClassification XLMRobertaForTokenClassification", _TEXT),
    ("text", 12, "AlbertForSequenceClassification ConvBertForSequenceClassification ElectraForSequenceClassification", _SPLIT),
    ("text", 12, "RoFormerForSequenceClassification SqueezeBertForSequenceClassification", {**_TEXT, "embedding_size": 64}),
    ("text", 12, "DebertaForSequenceClassification DebertaV2ForSequenceClassification", _DISENTANGLED),
    ("text", 12, "BigBirdForSequenceClassification", {**_TEXT, "attention_type": "original_full"}),
    ("text", 12, "DistilBertForSequenceClassification", {**_TEXT, "hidden_dim": 128}),
    ("text", 12, "EsmForSequenceClassification", {**_TEXT, "mask_token_id": 3, "position_embedding_type": "rotary"}),
    ("text", 12, "ModernBertForSequenceClassification", {**_TEXT, "cls_token_id": 1, "sep_token_id": 2}),
    ("text", 12, "MobileBertForSequenceClassification", _BOTTLENECK),
    ("text", 12, "FunnelForSequenceClassification", _FUNNEL),
    ("text", 12, "XLNetForSequenceClassification", _XLNET),
    ("text", 12, "PerceiverForSequenceClassification", _PERCEIVER),
    ("text", 12, "T5EncoderModel", _T5),
    ("text", 16, "LongformerForSequenceClassification", {**_TEXT, "attention_window": 8}),
    ("ids", 12, "FNetForSequenceClassification", _TEXT),
    ("ids", 12, "NystromformerForSequenceClassification", {**_TEXT, "num_landmarks": 4, "segment_means_seq_len": 12}),
    ("ended", 12, "BartForSequenceClassification", _BART),
    ("seq2seq", 12, "BartForConditionalGeneration M2M100ForConditionalGeneration PegasusForConditionalGeneration", _BART),
    ("seq2seq", 12, "MarianMTModel", {**_BART, "decoder_vocab_size": 100}),
    ("seq2seq", 16, "LEDForConditionalGeneration", {**_BART, "attention_window": 8, "max_encoder_position_embeddings": 64}),
    ("seq2seq", 12, "T5ForConditionalGeneration", _T5),
    ("seq2seq", 12, "MT5ForConditionalGeneration", {**_T5, "feed_forward_proj": "gated-gelu"}),
    ("seq2seq", 12, "SwitchTransformersForConditionalGeneration", {**_T5, "num_experts": 4, "num_decoder_layers": 2}),
    ("ids", 12, "BloomForCausalLM GPT2LMHeadModel GPT2ForSequenceClassification GPTBigCodeForCausalLM GPTNeoXForCausalLM", _TEXT),
    ("ids", 12, "CohereForCausalLM GraniteForCausalLM LlamaForCausalLM LlamaForSequenceClassification NemotronForCausalLM", _GROUPED),
    ("ids", 12, "OlmoForCausalLM Olmo2ForCausalLM PhiForCausalLM Phi3ForCausalLM Qwen2ForCausalLM", _GROUPED),
    ("ids", 12, "StableLmForCausalLM Starcoder2ForCausalLM", _GROUPED),
    ("ids", 12, "GemmaForCausalLM GlmForCausalLM Qwen3ForCausalLM", _HEADS),
    ("ids", 12, "Gemma2ForCausalLM Gemma3ForCausalLM MistralForCausalLM", _SLIDING),
    ("ids", 12, "CodeGenForCausalLM GPTJForCausalLM", {**_TEXT, "rotary_dim": 8}),
    ("ids", 12, "GPTNeoForCausalLM", {**_TEXT, "attention_types": [[["global", "local"], 1]], "window_size": 4}),
    ("ids", 12, "FalconForCausalLM", {**_TEXT, "new_decoder_architecture": True, "num_kv_heads": 2}),
    ("ids", 12, "OPTForCausalLM", {**_TEXT, "ffn_dim": 128, "word_embed_proj_dim": 32}),
    ("ids", 12, "MptForCausalLM", _MPT),
    ("ids", 12, "MixtralForCausalLM Qwen3MoeForCausalLM", {**_HEADS, **_EXPERTS}),
    ("ids", 12, "OlmoeForCausalLM", {**_HEADS, **_EXPERTS, "experts_implementation": "eager"}),
    ("ids", 12, "Qwen2MoeForCausalLM", {**_HEADS, **_EXPERTS, "shared_expert_intermediate_size": 64}),
    ("ids", 12, "GptOssForCausalLM", {**_SLIDING, **_EXPERTS}),
    ("ids", 12, "DeepseekV3ForCausalLM", {**_TEXT, **_LATENT}),
    ("ids", 12, "Qwen3NextForCausalLM", {**_HEADS, **_EXPERTS, **_DELTA}),
    ("ids", 12, "Lfm2ForCausalLM", {**_GROUPED, "layer_types": ["conv", "full_attention"]}),
    ("ids", 12, "RecurrentGemmaForCausalLM", {**_GROUPED, "lru_width": 64, "attention_window_size": 8, "num_hidden_layers": 3}),
    ("ids", 12, "MambaForCausalLM", _MAMBA),
    ("ids", 12, "Mamba2ForCausalLM", _MAMBA2),
    ("image", 32, "DeiTForImageClassification Dinov2ForImageClassification ViTForImageClassification", _VIT),
    ("image", 32, "BeitForImageClassification", {**_VIT, "use_relative_position_bias": True}),
    ("image", 32, "Dinov2WithRegistersForImageClassification", {**_VIT, "num_register_tokens": 2}),
    ("image", 32, "DPTForSemanticSegmentation", _DPT),
    ("image", 32, "YolosForObjectDetection", {**_VIT, "image_size": [32, 32], "num_detection_tokens": 5}),
    ("image", 64, "ConvNextForImageClassification ConvNextV2ForImageClassification", _STAGES),
    ("image", 64, "PoolFormerForImageClassification ResNetForImageClassification", _STAGES),
    ("image", 64, "BitForImageClassification", {**_STAGES, "num_groups": 4}),
    ("image", 64, "RegNetForImageClassification", {**_STAGES, "groups_width": 8}),
    ("image", 64, "PvtV2ForImageClassification SegformerForSemanticSegmentation", _PYRAMID),
    ("image", 64, "SwinForImageClassification Swinv2ForImageClassification", _SWIN),
    ("image", 64, "FocalNetForImageClassification", _FOCAL),
    ("image", 64, "CvtForImageClassification", _CVT),
    ("image", 64, "EfficientNetForImageClassification", _HALF),
    ("image", 64, "HieraForImageClassification", _HIERA),
    ("image", 64, "LevitForImageClassification", _LEVIT),
    ("image", 64, "MobileNetV1ForImageClassification MobileNetV2ForImageClassification", {"depth_multiplier": 0.35, "num_labels": 10}),
    ("image", 64, "MobileViTForSemanticSegmentation", _MOBILEVIT),
    ("sound", 800, "HubertForSequenceClassification Wav2Vec2ForCTC WavLMForSequenceClassification", _SPEECH),
    ("mel", 32, "WhisperForConditionalGeneration", _WHISPER),
    ("spectrum", 32, "ASTForAudioClassification", {**_SMALL, "patch_size": 8, "max_length": 32, "num_mel_bins": 16}),
    ("pair", 32, "CLIPModel", _CLIP),
    ("pair", 32, "SiglipModel", _SIGLIP),
)  # fmt: skip


def _transformers_cases() -> Iterator[Case]:
    for kind, size, models, options in _TRANSFORMERS:
        for model in models.split():
            name, family = f"transformers/{model}", re.split("For|LMHead|MTModel|Encoder|Model", model)[0].lower()
            yield Case(name, "transformers", family, partial(_build_transformers, model, kind, size, options), name in _FAST)


def _build_transformers(name: str, kind: str, size: int, options: dict[str, Any]) -> Built:
    import transformers

    torch.manual_seed(0)
    model_class = getattr(transformers, name)
    # A copy, since configurations keep and change the dicts they are given.
    model = randomize(model_class(model_class.config_class(**deepcopy(options)))).eval()
    return calibrate(model, _transformers_inputs(kind, size))


def _transformers_inputs(kind: str, size: int) -> dict[str, Tensor]:
    """Keyword arguments for a batch of two; tokens avoid the special ones, 0 to 3."""
    tokens = torch.randint(4, 100, (2, size))
    mask = torch.ones_like(tokens)
    mask[1, -2:] = 0
    image = torch.randn(2, 3, size, size)
    match kind:
        case "ids":
            return {"input_ids": tokens}
        case "text":
            return {"input_ids": tokens, "attention_mask": mask}
        case "ended":
            return {"input_ids": torch.cat([tokens, torch.full((2, 1), 2)], dim=1)}
        case "seq2seq":
            return {"input_ids": tokens, "attention_mask": mask, "decoder_input_ids": torch.randint(4, 100, (2, 7))}
        case "image":
            return {"pixel_values": image}
        case "pair":
            return {"input_ids": torch.randint(4, 100, (2, 12)), "pixel_values": image}
        case "sound":
            return {"input_values": torch.randn(2, size)}
        case "mel":
            return {"input_features": torch.randn(2, 16, size), "decoder_input_ids": torch.randint(4, 100, (2, 7))}
        case "spectrum":
            return {"input_values": torch.randn(2, size, 16)}
    raise ValueError(kind)


# Quick, and each of another structure: what CI runs.
_FAST = frozenset(
    [
        *("torchvision/resnet18", "torchvision/densenet121", "torchvision/googlenet", "torchvision/mobilenet_v3_small"),
        *("torchvision/shufflenet_v2_x0_5", "torchvision/regnet_y_400mf", "torchvision/VisionTransformer", "torchvision/MaxVit"),
        *("torchvision/lraspp_mobilenet_v3_large", "torchvision/MViT-v2", "timm/resnest14d", "timm/skresnet18", "timm/repghostnet_050"),
        *("timm/xcit_nano_12_p16_224", "timm/lambda_resnet26t", "timm/convnext_zepto_rms", "timm/mobilevitv2_050", "timm/starnet_s050"),
        *("transformers/BertForSequenceClassification", "transformers/T5ForConditionalGeneration", "transformers/LlamaForCausalLM"),
        *("transformers/GPT2LMHeadModel", "transformers/MixtralForCausalLM", "transformers/SwinForImageClassification"),
        *("transformers/Wav2Vec2ForCTC", "transformers/CLIPModel"),
    ]
)
