"""Removing equals zeroing for ONNX files: numpy zeroes the initializers, onnxruntime runs both."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

import structprune
from structprune.errors import StructpruneError, UnsupportedRatio, VerificationError
from tests.attack.onnx_structures import Structure
from tests.attack.oracle import Outcome, cuts, located

TOLERANCE = 3e-5  # float32, a share of the largest output


def run(model: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def initializers(model: onnx.ModelProto) -> dict[str, Any]:
    return {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}


def kept_slices(model: onnx.ModelProto, small: onnx.ModelProto) -> dict[str, dict[int, Any]]:
    import torch

    found, after = {}, initializers(small)
    for name, whole in initializers(model).items():
        part = after.get(name)
        if part is None or whole.shape == part.shape or whole.dtype.kind != "f":
            continue
        axes = located(name, torch.from_numpy(whole.copy()), torch.from_numpy(part.copy()))
        found[name] = {axis: stay.numpy() for axis, stay in axes.items()}
    return found


def zeroed(model: onnx.ModelProto, kept: dict[str, dict[int, Any]]) -> onnx.ModelProto:
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    for each in twin.graph.initializer:
        if each.name in kept:
            array = numpy_helper.to_array(each).copy()
            for axis, stay in kept[each.name].items():
                is_removed = np.ones(array.shape[axis], dtype=bool)
                is_removed[stay] = False
                np.moveaxis(array, axis, 0)[is_removed] = 0
            each.CopyFrom(numpy_helper.from_array(array, each.name))
    return twin


def inputs(case: Structure, batch: int, seed: int) -> dict[str, Any]:
    return {"x": np.random.default_rng(seed).normal(size=(batch, *case.sample)).astype(np.float32)}


def expected_of(model: onnx.ModelProto, kept: dict[str, dict[int, Any]], feeds: dict[str, Any], found: Any) -> list[Any]:
    """What the zeroed original gives; where that is 0 / 0, the one slice that annihilates is zeroed alone."""
    whole = run(zeroed(model, kept), feeds)
    if all(np.isfinite(each).all() for each in whole):
        return whole
    for name in kept:
        alone = run(zeroed(model, {name: kept[name]}), feeds)
        if all(a.shape == b.shape and np.allclose(a, b, 1e-4, 1e-5) for a, b in zip(alone, found, strict=True)):
            return alone
    return whole


def compare(case: Structure, model: onnx.ModelProto, small: onnx.ModelProto, is_exact: bool, what: str) -> None:
    kept = kept_slices(model, small)
    assert kept, f"{what}: no initializer is smaller"
    onnx.checker.check_model(small)
    for batch in case.batches:
        for seed in (1, 2):
            feeds = inputs(case, batch, seed)
            try:
                found = run(small, feeds)
            except Exception as error:
                raise AssertionError(f"{what}, batch {batch}: onnxruntime refuses the result: {error}") from error
            expected = expected_of(model, kept, feeds, found)
            for a, b in zip(expected, found, strict=True):
                assert a.shape == b.shape, f"{what}, batch {batch}: shape {b.shape}, not {a.shape}"
                if is_exact:
                    same = np.isfinite(a) == np.isfinite(b)
                    assert same.all(), f"{what}, batch {batch}: not finite in one of the two"
                    both = np.isfinite(a)
                    error, scale = np.abs(a - b)[both].max(initial=0), np.abs(a)[both].max(initial=0)
                    assert error <= TOLERANCE * max(scale, 1e-2), f"{what}, batch {batch}: {error:.2e} away of {scale:.2e}"


def attack(case: Structure) -> Outcome:
    model, outcome = case.build(), Outcome()
    whole = model.SerializeToString()
    run(model, inputs(case, case.batches[0], 0))
    analysis = structprune.analyze(model)
    outcome.groups = len(analysis.groups)
    assert analysis.groups or not case.shrinks, f"nothing can be removed: {analysis}"
    sizes = {group.name: group.size for group in analysis.groups}
    inexact = {group.name for group in analysis.groups if not group.exact}
    plan = structprune.plan(model, 0.0, verify=None)
    for what, keep in cuts(analysis.groups):
        edited = replace(plan, keep=dict(keep), sizes={name: sizes[name] for name in keep})
        try:
            small = edited.apply(model)
        except VerificationError:
            raise
        except StructpruneError as error:
            outcome.refusals.append(f"{type(error).__name__}: {error}")
            continue
        compare(case, model, small, not inexact & set(keep), f"{what} cut")
    for ratio in (0.5, 0.25):
        try:
            plan = structprune.plan(model, ratio, verify="numeric", align=1)
        except UnsupportedRatio as error:
            outcome.refusals.append(str(error))
            continue
        is_exact = plan.report is not None and all(cut.exact for cut in plan.report.cuts)
        compare(case, model, plan.apply(model), is_exact, f"{ratio} of it")
        break
    assert model.SerializeToString() == whole, "the model that was given changed"
    return outcome
