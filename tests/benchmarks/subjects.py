"""The models that the benchmarks measure, and how each tool is called on them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

Built = tuple[nn.Module, Any]


@dataclass(frozen=True, slots=True)
class Subject:
    """A model in eval mode with its example inputs, and what a user of Torch-Pruning would tell it besides."""

    name: str
    build: Callable[[], Built]
    hints: Callable[[nn.Module], dict[str, Any]] = lambda model: {}
    after: Callable[[nn.Module], None] = lambda model: None


def vision(name: str) -> Built:
    import torchvision

    extra = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    return getattr(torchvision.models, name)(weights=None, **extra), torch.randn(1, 3, 224, 224)


def small_bert() -> Built:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=1000,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
        num_labels=10,  # type: ignore[call-arg]
    )
    return BertForSequenceClassification(config), {"input_ids": torch.randint(0, 1000, (1, 32))}


def decoder(layers: int) -> Built:
    """Grouped queries, rotary embeddings, SwiGLU, RMS norm."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=2,
        use_cache=False,
    )
    return LlamaForCausalLM(config), {"input_ids": torch.randint(0, 1000, (1, 32))}


class Residual(nn.Module):
    """Linear layers of one width, each added to its input."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.stem = nn.Linear(64, width)  # without it, the width is that of the input, and nothing can be removed
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = x + torch.relu(layer(x))
        result: Tensor = self.head(x)
        return result


def chain() -> Built:
    return Residual(4096, 16), torch.randn(1, 64)


# What the examples that come with Torch-Pruning tell it of models of the same kind, and mend afterwards.


def vit_heads(model: Any) -> dict[str, Any]:
    return {"num_heads": {m: m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)}}


def mend_vit(model: Any) -> None:
    model.hidden_dim = model.conv_proj.out_channels


def bert_heads(model: Any) -> dict[str, Any]:
    heads: dict[Any, int] = {}
    for module in model.modules():
        if hasattr(module, "query") and hasattr(module, "num_attention_heads"):
            heads.update(dict.fromkeys((module.query, module.key, module.value), module.num_attention_heads))
    return {"num_heads": heads, "prune_head_dims": True, "prune_num_heads": False}


def mend_bert(model: Any) -> None:
    for module in model.modules():
        if hasattr(module, "query") and hasattr(module, "num_attention_heads"):
            module.attention_head_size = module.query.out_features // module.num_attention_heads
            module.all_head_size = module.query.out_features


def llama_heads(model: Any) -> dict[str, Any]:
    heads: dict[Any, int] = {}
    for module in model.modules():
        if hasattr(module, "q_proj"):
            heads[module.q_proj] = model.config.num_attention_heads
            heads.update(dict.fromkeys((module.k_proj, module.v_proj), model.config.num_key_value_heads))
    return {"num_heads": heads, "prune_head_dims": False, "prune_num_heads": True, "head_pruning_ratio": 0.5}


def mend_llama(model: Any) -> None:
    for module in model.modules():
        if hasattr(module, "q_proj"):
            module.num_heads = module.q_proj.out_features // module.head_dim
            module.num_key_value_groups = module.q_proj.out_features // module.k_proj.out_features


VISION = (
    "resnet18",
    "resnet50",
    "resnet152",
    "densenet121",
    "densenet201",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "convnext_tiny",
    "regnet_y_400mf",
    "shufflenet_v2_x1_0",
    "googlenet",
    "vgg16_bn",
    "vit_b_16",
    "swin_t",
    "maxvit_t",
)


def subjects(pattern: str | None = None) -> list[Subject]:
    """All subjects, or those in whose names the regular expression is found."""
    everything = [
        *(Subject(name, partial(vision, name)) for name in VISION),
        Subject("vit_b_16, heads told", partial(vision, "vit_b_16"), vit_heads, mend_vit),
        Subject("bert_4_layers", small_bert),
        Subject("bert_4_layers, heads told", small_bert, bert_heads, mend_bert),
        Subject("llama_2_layers_gqa", partial(decoder, 2)),
        Subject("llama_2_layers_gqa, heads told", partial(decoder, 2), llama_heads, mend_llama),
        Subject("residual_16x4096", chain),
    ]
    return [each for each in everything if pattern is None or re.search(pattern, each.name)]


def build(subject: Subject) -> Built:
    torch.manual_seed(0)
    model, inputs = subject.build()
    return model.eval(), inputs


def call(model: nn.Module, inputs: Any) -> Any:
    return model(**inputs) if isinstance(inputs, dict) else model(inputs)


# -- the two tools -----------------------------------------------------------------------------------


def by_structprune(subject: Subject, model: nn.Module, inputs: Any, ratio: float) -> nn.Module:
    import structprune

    small: nn.Module = structprune.shrink(model, ratio, inputs)
    return small


def by_structprune_without_numbers(subject: Subject, model: nn.Module, inputs: Any, ratio: float) -> nn.Module:
    import structprune

    small: nn.Module = structprune.shrink(model, ratio, inputs, verify="shapes")
    return small


def by_torch_pruning(subject: Subject, model: nn.Module, inputs: Any, ratio: float) -> nn.Module:
    """As its README says: magnitude of whole groups, the same share of every width, the classifier left alone.

    It takes a share of the channels: what a weight keeps goes with the square.
    """
    import torch_pruning as tp

    classifiers = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features in (10, 1000)]
    pruner = tp.pruner.BasePruner(
        model,
        inputs,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=1 - (1 - ratio) ** 0.5,
        ignored_layers=classifiers,
        **subject.hints(model),
    )
    pruner.step()
    subject.after(model)
    return model


TOOLS: dict[str, Callable[[Subject, nn.Module, Any, float], nn.Module]] = {
    "structprune": by_structprune,
    "structprune, shapes": by_structprune_without_numbers,
    "torch-pruning": by_torch_pruning,
}


def warm_up(tool: str) -> None:
    """One tiny model, so that what a library imports on its first call is not counted."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    ).eval()
    TOOLS[tool](Subject("warm-up", lambda: (model, None)), model, torch.randn(1, 3, 16, 16), 0.3)
