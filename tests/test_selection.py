"""Kept indices in any order: a dimension means the same, however its indices are arranged."""

from __future__ import annotations

import random
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import models_zoo
import structprune
from structprune import Plan
from structprune.algebra.axis import Axis, Dim, Product, Reordered, Sum, kept_indices, kept_size, variables
from structprune.errors import UnsupportedModel
from structprune.frontends.torch.record.record import map_tensors, tensors_in
from structprune.graph.selection import Selection
from structprune.plan import make, prove, realize
from tests.onnx.exported import model_of
from tests.structures import STRUCTURES, Structure

EXACT = 1e-9  # a share of the largest output, in float64
# Their graphs cannot be copied, or hold sizes that no graph of theirs has (see test_structures.py).
UNFIT = {"vector_quantised"}
# What is computed in single precision inside is rounded in another order.
ROUNDED = {"casts_inside": 1e-6}


# -- the algebra --------------------------------------------------------------------------------------


def expression(draw: random.Random, dims: list[Dim], depth: int = 0) -> Axis:
    """A random axis over a few dimensions, each at most once in a product."""
    kind = draw.randrange(4) if depth < 3 else 0
    if kind == 0 or len(dims) < 2:
        return draw.choice(dims)
    if kind == 1:
        chosen = draw.sample(dims, 2)
        return Product(tuple(expression(draw, [each], depth + 1) for each in chosen))
    if kind == 2:
        return Sum(tuple(expression(draw, dims, depth + 1) for _ in range(draw.randrange(2, 4))))
    inner = expression(draw, dims, depth + 1)
    return Reordered(inner, np.asarray(draw.sample(range(inner.size), inner.size), dtype=np.int64))


def test_another_order_of_every_axis() -> None:
    """The same entries stay as in the old order; whatever was put in order again follows what stays."""
    draw = random.Random(4)
    for _ in range(400):
        dims = [Dim(draw.randrange(1, 5)) for _ in range(3)]
        axis = expression(draw, dims)
        if len(set(variables(axis))) < len(list(variables(axis))) and isinstance(axis, Product):
            continue
        kept = {dim: np.asarray(draw.sample(range(dim.size), draw.randrange(1, dim.size + 1))) for dim in dims}
        ordered = {dim: np.sort(each) for dim, each in kept.items()}
        found, before = kept_indices(axis, kept), kept_indices(axis, ordered)
        assert found is not None and before is not None
        assert sorted(found.tolist()) == before.tolist() == sorted(set(before.tolist()))
        assert len(found) == kept_size(axis, {dim: len(each) for dim, each in kept.items()})
        # In steps: first what stays in its old order, then the smaller dimensions in another one.
        smaller = {dim: Dim(len(each)) for dim, each in kept.items()}
        after = {smaller[dim]: np.argsort(np.argsort(each)) for dim, each in kept.items()}
        second = kept_indices(shrunk(axis, ordered, smaller), after)
        assert second is not None and before[second].tolist() == found.tolist()


def shrunk(axis: Axis, kept: dict[Dim, Any], smaller: dict[Dim, Dim]) -> Axis:
    """The expression of the smaller axis."""
    match axis:
        case Dim():
            return smaller[axis]
        case Product(inner):
            return Product(tuple(shrunk(each, kept, smaller) for each in inner))
        case Sum(inner):
            return Sum(tuple(shrunk(each, kept, smaller) for each in inner))
        case Reordered(whole, entries):
            stay = kept_indices(whole, kept)
            assert stay is not None
            left = [entry for entry in entries if entry in stay]
            return Reordered(shrunk(whole, kept, smaller), np.searchsorted(stay, left))


def test_what_a_selection_is() -> None:
    four, five = Dim(4), Dim(5)
    selection = Selection({four: np.array([3, 1]), five: np.arange(5)})
    assert dict(selection).keys() == {four} and len(selection) == 1 and selection[four].tolist() == [3, 1]
    assert repr(selection) == "Selection(2 of 4)"
    for wrong in ([], [4], [-1], [1, 1], [[1]]):
        with pytest.raises(ValueError, match="cannot be kept"):
            Selection({four: np.array(wrong, dtype=np.int64)})
    assert Selection({four: np.array([1, 0, 2, 3])}), "another order is a change, even where all stay"


# -- models -------------------------------------------------------------------------------------------


def orders(groups: Any, seed: int) -> dict[str, list[int]]:
    """Every index of each group, in another order."""
    generator = np.random.default_rng(seed)
    return {group.name: generator.permutation(group.size).tolist() for group in groups}


def outputs(model: Any, inputs: Any) -> list[torch.Tensor]:
    given = inputs if isinstance(inputs, tuple | dict) else (inputs,)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        return list(tensors_in(model(**given) if isinstance(given, dict) else model(*given)))


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float = EXACT) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        if b.is_floating_point() and b.numel():
            assert (a - b).abs().max() <= tolerance * max(b.abs().max(), 1e-300)
        else:
            assert torch.equal(a, b)


def in_another_order(model: Any, inputs: Any, tolerance: float = EXACT) -> None:
    """Every free dimension alone in the recorded graph, and all together in the model's own class where it can be."""
    expected = outputs(model, inputs)
    analysis = structprune.analyze(model, inputs)
    whole = orders(analysis.groups, 0)
    for group in analysis.groups[:8] if len(analysis.groups) > 1 else ():
        kept = Selection({group.dim: np.asarray(whole[group.name])})
        with suppress(UnsupportedModel):  # a path that follows data has no graph
            realized = realize(analysis, kept, analysis.frontend.constraints(analysis.solution, "graph"))
            assert_same(outputs(make(analysis, realized), inputs), expected, tolerance)
    plan = structprune.plan(model, 0, inputs)
    plan.keep = whole
    assert_same(outputs(plan.apply(model), inputs), expected, tolerance)


@pytest.mark.parametrize("structure", [pytest.param(each, id=name) for name, each in STRUCTURES.items()])
def test_structures_in_another_order(structure: Structure) -> None:
    if structure.name in UNFIT:
        pytest.skip("torch.fx.GraphModule takes a name that the model calls a buffer")
    model, inputs = structure.build()
    in_another_order(model, inputs, ROUNDED.get(structure.name, EXACT))


@pytest.mark.parametrize("name", models_zoo.names())
def test_the_zoo_in_another_order(name: str) -> None:
    model, inputs = models_zoo.build(name)
    model = model.double().eval()
    in_another_order(model, map_tensors(inputs, lambda t: t.double() if t.is_floating_point() else t))


@pytest.mark.parametrize("name", models_zoo.names())
def test_onnx_files_in_another_order(name: str) -> None:
    model = model_of(name, "dynamo")
    plan = structprune.plan(model, 0)
    analysis = structprune.analyze(model)
    plan.keep = orders(analysis.groups, 1)
    kept = plan.kept(analysis)
    realized = realize(analysis, kept, analysis.frontend.constraints(analysis.solution, "auto"))
    found = prove(analysis, realized, make(analysis, realized))
    assert found.error is not None and found.error <= 1e-5


def test_a_plan_keeps_its_order(tmp_path: Path) -> None:
    model, inputs = models_zoo.build("plain_cnn")
    plan = structprune.plan(model, 0.3, inputs)
    name = next(iter(plan.keep))
    plan.keep[name] = list(reversed(plan.keep[name]))
    plan.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded == plan and loaded.keep[name] == plan.keep[name]
    loaded.keep = {name: plan.keep[name]}
    parameter, axis = name.split(":")
    whole, small = (each.get_parameter(parameter) for each in (model, loaded.apply(model)))
    assert torch.equal(small, whole.index_select(int(axis), torch.tensor(plan.keep[name])))
