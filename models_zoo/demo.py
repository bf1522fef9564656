"""Train a model of the zoo on digits, shrink it to half, and show what happened: `python -m models_zoo.demo [name]`."""

import argparse
import time

import structprune
from models_zoo import build, names
from models_zoo.digits import accuracy, fit, load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", default="resnet20", choices=names())
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--of", default="params", choices=("params", "macs", "channels"))
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()

    model, example = build(options.name)
    data = load(example)
    print(f"training {options.name} on scikit-learn's digits, {options.epochs} epochs ...", flush=True)
    fit(model, data, options.epochs)
    print(f"accuracy on held-out digits: {accuracy(model, *data[2:]):.2%}\n")

    start = time.perf_counter()
    plan = structprune.plan(model, options.ratio, example, of=options.of, verify="numeric")
    small = plan.apply(model)
    print(f"{plan}\n  shrunk and checked against the zeroed original in {time.perf_counter() - start:.2f} s\n")

    print(f"accuracy right after: {accuracy(small, *data[2:]):.2%}")
    fit(small, data, max(1, options.epochs // 3), rate=2e-3)
    print(f"accuracy after {max(1, options.epochs // 3)} more epochs: {accuracy(small, *data[2:]):.2%}")


if __name__ == "__main__":
    main()
