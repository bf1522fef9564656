"""python -m models_zoo.train [name ...] [--epochs N] [--out DIR]: trains the zoo on the digits."""

import argparse
import sys
import time
from pathlib import Path

from safetensors.torch import save_file

from models_zoo import build, digits, names

EPOCHS = {
    "plain_cnn": 10,
    "resnet20": 10,
    "bottleneck": 10,
    "mobilenet": 15,
    "densenet": 10,
    "shufflenet": 15,
    "unet": 10,
    "convnext": 20,
    "vit": 20,
    "swin": 20,
    "encoder": 20,
    "decoder": 28,
    "recurrent": 20,
    "moe": 20,
}


def train(name: str, epochs: int, out: Path | None) -> str:
    """Trains one model, saves it where asked, and returns its row of the table."""
    model, example_inputs = build(name)
    data = digits.load(example_inputs)

    def show(epoch: int, loss: float) -> None:
        if sys.stderr.isatty():
            print(f"\r{name:<12} epoch {epoch}/{epochs}  loss {loss:.4f}\033[K", end="\r", file=sys.stderr, flush=True)

    start = time.perf_counter()
    digits.fit(model, data, epochs, on_epoch=show)
    seconds = time.perf_counter() - start
    train_x, train_y, test_x, test_y = data
    if out is not None:
        save_file(model.state_dict(), out / f"{name}.safetensors")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    on_train, on_test = digits.accuracy(model, train_x, train_y), digits.accuracy(model, test_x, test_y)
    return f"{name:<12}{parameters:>12,}{epochs:>8}{seconds:>9.1f}{on_train:>9.2%}{on_test:>10.2%}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m models_zoo.train", description="Train the zoo on the digits.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"any of: {', '.join(names())} (default: all)")
    parser.add_argument("--epochs", type=int, help="instead of each model's own number")
    parser.add_argument("--out", type=Path, metavar="DIR", help="save the state dicts here as NAME.safetensors")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in names()]
    if unknown:
        parser.error(f"no model {', '.join(unknown)}; choose from: {', '.join(names())}")
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)

    print(f"{'model':<12}{'parameters':>12}{'epochs':>8}{'seconds':>9}{'train':>9}{'held out':>10}", flush=True)
    for name in arguments.names or names():
        print(train(name, arguments.epochs or EPOCHS[name], arguments.out), flush=True)


if __name__ == "__main__":
    main()
