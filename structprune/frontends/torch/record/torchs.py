"""What torch's own modules keep of their sizes, beside their parameters."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

Sizes = Mapping[str, tuple[str, int]]
# Attributes that are sizes of a parameter: its name, and an axis. Inside a convolution, axis 1 is that of one group.
SIZES: tuple[tuple[type, Sizes], ...] = (
    (nn.Linear, {"out_features": ("weight", 0), "in_features": ("weight", 1)}),
    (nn.Bilinear, {"out_features": ("weight", 0), "in1_features": ("weight", 1), "in2_features": ("weight", 2)}),
    (nn.modules.conv._ConvTransposeNd, {"in_channels": ("weight", 0), "out_channels": ("weight", 1)}),
    (nn.modules.conv._ConvNd, {"out_channels": ("weight", 0), "in_channels": ("weight", 1)}),
    (nn.modules.batchnorm._NormBase, {"num_features": ("weight", 0)}),
    (nn.Embedding, {"num_embeddings": ("weight", 0), "embedding_dim": ("weight", 1)}),
    (nn.EmbeddingBag, {"num_embeddings": ("weight", 0), "embedding_dim": ("weight", 1)}),
    (nn.RNNBase, {"input_size": ("weight_ih_l0", 1), "hidden_size": ("weight_hh_l0", 1)}),
    (nn.RNNCellBase, {"input_size": ("weight_ih", 1), "hidden_size": ("weight_hh", 1)}),
    (nn.GroupNorm, {"num_channels": ("weight", 0)}),
    (nn.PReLU, {"num_parameters": ("weight", 0)}),
)
# Of a recurrent layer that projects what it gives.
PROJECTED: Sizes = {
    "input_size": ("weight_ih_l0", 1),
    "hidden_size": ("weight_hr_l0", 1),
    "proj_size": ("weight_hr_l0", 0),
}
# What says as much where a module has no weight.
INSTEAD = {"weight": "running_mean"}
# Of attention, the parts are fitted together.
FITTED = frozenset(("embed_dim", "kdim", "vdim", "num_heads", "head_dim"))
# Of torch's own modules, these pass numbers on that may be sizes.
PASSED_ON: tuple[tuple[type, frozenset[str]], ...] = (
    (nn.modules.conv._ConvNd, frozenset(("groups",))),
    (nn.GroupNorm, frozenset(("num_groups",))),
    (nn.LayerNorm, frozenset(("normalized_shape",))),
    (nn.RMSNorm, frozenset(("normalized_shape",))),
    (nn.ChannelShuffle, frozenset(("groups",))),
    (nn.Unflatten, frozenset(("unflattened_size",))),
)


def is_torchs(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


def sizes_of(module: nn.Module) -> Sizes:
    if isinstance(module, nn.RNNBase) and module.proj_size:
        return PROJECTED
    return next((sizes for kind, sizes in SIZES if isinstance(module, kind)), {})


def following(module: nn.Module) -> Sizes:
    """The attributes that are sizes of a parameter as they stand."""
    is_grouped = isinstance(module, nn.modules.conv._ConvNd) and module.groups != 1
    return {} if is_grouped else sizes_of(module)


def true_sizes(module: nn.Module) -> None:
    """Set the sizes that one of torch's own modules remembers to those of its parameters."""
    for name, (weight, axis) in sizes_of(module).items():
        parameter = getattr(module, weight, None)
        if parameter is None:
            parameter = getattr(module, INSTEAD.get(weight, ""), None)
        if isinstance(parameter, Tensor):
            times = module.groups if isinstance(module, nn.modules.conv._ConvNd) and axis == 1 else 1
            setattr(module, name, parameter.shape[axis] * times)


def passed_on(module: nn.Module) -> list[str]:
    """The attributes that one of torch's own modules gives its operators under the same names."""
    return [name for kind, names in PASSED_ON if isinstance(module, kind) for name in names]
