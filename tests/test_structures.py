"""Three hundred small models, each with one thing in the middle that a structural pruner can get wrong."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import structprune
from structprune.errors import UnsupportedModel, UnsupportedRatio
from structprune.frontends.torch.record.record import tensors_in
from structprune.passes.rewrite import Rewrite
from structprune.testing import check
from tests.structures import STRUCTURES, Structure

TOLERANCE = 1e-9  # a share of the largest output, in float64
RATIO, NEAR = 0.5, 0.01

# Right, but a graph module may stand in for the model's own class.
GRAPHS = {
    "class_token": "the code scales by the root of a width that is also the residual one; kept, only 0.17 can go",
    "fused_grouped_layout": "the sizes of a view are written in forward",
    "fused_heads_three_width": "one integer stands for the residual width and for heads x head width",
    "fused_heads_width_three": "one integer stands for the residual width and for heads x head width",
    "grid_sample": "the size given to affine_grid has the channels in it, and the rewritten graph keeps the old ones",
    "multihead_functional": "torch's function is given the width and the heads as plain numbers",
    "patches_local_attention": "one integer stands for two widths",
    "sum_factor": "the sizes of a view are written in forward",
}
# The ratio cannot be reached, and the error says so.
COARSE = {"tied_embedding": "one width of twelve holds nearly everything: its steps are wider than the tolerance"}
# The oracle itself cannot run.
UNCHECKED = {"vector_quantised": "torch.fx.GraphModule takes a name that the model calls a buffer: 'code'"}
# Nothing in it is trained or prunable.
EMPTY = {"nothing_to_prune"}

ALL = [pytest.param(structure, id=name) for name, structure in STRUCTURES.items()]
PRUNABLE = [pytest.param(structure, id=name) for name, structure in STRUCTURES.items() if structure.prunable]


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    with torch.no_grad():
        if isinstance(inputs, dict):
            return list(tensors_in(model(**inputs)))
        return list(tensors_in(model(inputs) if isinstance(inputs, Tensor) else model(*inputs)))


def test_the_exceptions_are_structures() -> None:
    assert (GRAPHS.keys() | COARSE.keys() | UNCHECKED.keys() | EMPTY) <= STRUCTURES.keys()


@pytest.mark.parametrize("structure", ALL)
def test_removing_is_zeroing(structure: Structure) -> None:
    """Each group alone, and all of them together."""
    model, inputs = structure.build()
    if structure.name in UNCHECKED:
        with pytest.raises(UnsupportedModel):
            check(model, inputs, tolerance=TOLERANCE)
        return
    analysis = check(model, inputs, tolerance=TOLERANCE)
    assert bool(analysis.groups) == (structure.name not in EMPTY)


@pytest.mark.parametrize("structure", PRUNABLE)
def test_half_of_the_parameters_go(structure: Structure) -> None:
    """The ratio is hit, the own class comes back, and the outputs are those of the zeroed model."""
    model, inputs = structure.build()
    before = outputs(model, inputs)
    state = copy.deepcopy(model.state_dict())
    if structure.name in COARSE:
        with pytest.raises(UnsupportedRatio, match="The nearest ratio that can be reached"):
            structprune.shrink(model, RATIO, inputs)
        return
    plan = structprune.plan(model, RATIO, inputs, verify="numeric")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = plan.apply(model)
    assert abs(1 - count(small) / count(model) - RATIO) <= NEAR
    assert type(small) is type(model) or (isinstance(small, torch.fx.GraphModule) and structure.name in GRAPHS)
    after = outputs(small, inputs)
    assert [each.shape for each in after] == [each.shape for each in before]
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert set(small.state_dict()) == set(state)
    assert plan.report is not None
    if all(cut.exact for cut in plan.report.cuts):
        compare_with_zeroed(model, plan, inputs, after)


def compare_with_zeroed(model: nn.Module, plan: structprune.Plan, inputs: object, found: list[Tensor]) -> None:
    """The model's own code on zeroed parameters: neither the recorded graph nor the rewritten one has a part in it."""
    analysis = structprune.analyze(model, inputs)
    # A constant that was removed must show all the same: it lives on in a bias.
    free = analysis.folding(analysis.solution).free
    left = {dim: np.union1d(kept, np.flatnonzero(free.get(dim, []))) for dim, kept in plan.kept(analysis).items()}
    rewrite = Rewrite(analysis.solution, left)
    if analysis.solution.singular:
        return
    twin = copy.deepcopy(model)
    stored = dict(twin.named_parameters()) | dict(twin.named_buffers())
    with torch.no_grad():
        for name, axes in rewrite.slices().items():
            for axis, kept in axes.items():
                is_removed = torch.ones(stored[name].shape[axis], dtype=torch.bool)
                is_removed[torch.from_numpy(kept)] = False
                stored[name].index_fill_(axis, is_removed.nonzero().flatten(), 0)
    for a, b in zip(outputs(twin, inputs), found, strict=True):
        if a.is_floating_point() and a.numel():
            assert (a - b).abs().max() <= TOLERANCE * a.abs().max()


@pytest.mark.parametrize(
    "structure", [pytest.param(each, id=name) for name, each in STRUCTURES.items() if not each.prunable]
)
def test_what_is_rightly_frozen_is_said(structure: Structure) -> None:
    """Where half cannot go, the error says how much can; and that much goes."""
    model, inputs = structure.build()
    try:
        small = structprune.shrink(model, RATIO, inputs, output="graph")
    except UnsupportedRatio as error:
        assert "cannot be removed" in str(error) and "Largest reachable ratio" in str(error)
        return
    assert abs(1 - count(small) / count(model) - RATIO) <= NEAR
