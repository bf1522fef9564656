"""Small classifiers of handwritten digits, one of every structural kind."""

from importlib import import_module

from torch import Tensor, nn

__all__ = ["build", "names"]

NAMES = (
    "plain_cnn",
    "resnet20",
    "bottleneck",
    "mobilenet",
    "densenet",
    "shufflenet",
    "unet",
    "convnext",
    "vit",
    "swin",
    "encoder",
    "decoder",
    "recurrent",
    "moe",
)


def names() -> list[str]:
    """Every model of the zoo, convolutional ones first."""
    return list(NAMES)


def build(name: str) -> tuple[nn.Module, Tensor]:
    """The untrained model in evaluation mode, the same on every call, and an example input of batch size two."""
    if name not in NAMES:
        raise ValueError(f"No model {name!r} in the zoo; choose one of: {', '.join(NAMES)}.")
    model, example_inputs = import_module(f"models_zoo.{name}").build()
    return model, example_inputs
