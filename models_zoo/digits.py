"""Scikit-learn's handwritten digits in the form that a model of the zoo takes; training and measuring on them."""

from collections.abc import Callable

import torch
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn import functional as F

Data = tuple[Tensor, Tensor, Tensor, Tensor]

BRIGHTEST = 16
MEAN, DEVIATION = 0.305, 0.376


def load(example_inputs: Tensor) -> Data:
    """train_x, train_y, test_x, test_y: a fixed, stratified split of 1347 and 450 digits."""
    digits = load_digits()
    x = shaped_like(torch.tensor(digits.images, dtype=torch.float32), example_inputs)
    y = torch.tensor(digits.target, dtype=torch.int64)
    train, test = train_test_split(range(len(y)), test_size=0.25, random_state=0, stratify=digits.target)
    return x[train], y[train], x[test], y[test]


def shaped_like(images: Tensor, example_inputs: Tensor) -> Tensor:
    """Integers are the pixels as tokens; three dimensions are rows of pixels; four are maps of the example's size."""
    if example_inputs.dtype == torch.int64:
        return images.flatten(1).long()
    images = (images / BRIGHTEST - MEAN) / DEVIATION
    images = images.to(example_inputs.dtype)
    if example_inputs.dim() == 3:
        return images
    if example_inputs.dim() == 4:
        height, width = example_inputs.shape[2:]
        return F.interpolate(images.unsqueeze(1), size=(height, width), mode="bilinear")
    raise ValueError(
        f"No form of the digits for inputs of shape {tuple(example_inputs.shape)} and {example_inputs.dtype}: "
        "give int64 tokens (batch, 64), rows (batch, 8, 8) or images (batch, 1, height, width)."
    )


def fit(
    model: nn.Module,
    data: Data,
    epochs: int,
    *,
    rate: float = 5e-3,
    batch_size: int = 64,
    seed: int = 0,
    on_epoch: Callable[[int, float], None] | None = None,
) -> None:
    """Trains in place by AdamW on a one-cycle schedule and leaves the model in evaluation mode.

    `on_epoch` is told the number of finished epochs and the mean loss of the last.
    """
    x, y, _, _ = data
    steps = -(-len(x) // batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=epochs * steps)
    model.train()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for epoch in range(epochs):
            total = 0.0
            for batch in torch.split(torch.randperm(len(x)), batch_size):
                loss = F.cross_entropy(model(x[batch]), y[batch])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                total += loss.item() * len(batch)
            if on_epoch is not None:
                on_epoch(epoch + 1, total / len(x))
    model.eval()


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The fraction that the model in evaluation mode gets right; its mode is restored."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        guesses = torch.cat([model(part).argmax(1) for part in torch.split(x, 256)])
    model.train(was_training)
    return (guesses == y).double().mean().item()
