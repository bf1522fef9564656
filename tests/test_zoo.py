"""The zoo: exact in float64, in its own class, and its analysis reviewed as text.

REGENERATE_GOLDENS=1 pytest tests/test_zoo.py writes the goldens anew.
"""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

import pytest
import torch

import structprune
from models_zoo import build, names
from structprune.plan import prove, realize

TOLERANCE = 1e-9  # a share of the largest output, in float64
RATIO, NEAR = 0.5, 0.01
GOLDENS = Path(__file__).parent / "goldens"
ROOT = Path(__file__).parents[1]

# The parameter whose explanation is reviewed; else one of the group in the middle.
EXPLAINED = {"plain_cnn": "hidden.weight", "resnet20": "stage1.1.conv2.weight"}


def normalised(text: str) -> str:
    """Without where the checkout lies, and without line numbers, which every edit of a model moves."""
    text = text.replace(f"{ROOT}{os.sep}", "").replace(os.sep, "/")
    return re.sub(r"(\.py):\d+", r"\1", text)


@pytest.mark.parametrize("name", names())
def test_half_goes_exactly(name: str) -> None:
    model, inputs = build(name)
    model, inputs = model.double(), inputs.double() if inputs.is_floating_point() else inputs
    plan = structprune.plan(model, RATIO, inputs, verify="numeric")
    with torch.no_grad():
        before = model(inputs)
    total = sum(parameter.numel() for parameter in model.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small = structprune.shrink(model, RATIO, inputs, verify="numeric")
    kept = sum(parameter.numel() for parameter in small.parameters())
    assert abs(1 - kept / total - RATIO) <= NEAR
    assert plan.report.parameters == (total, kept)
    assert abs(plan.report.reached - (1 - kept / total)) < 1e-12
    analysis = structprune.analyze(model, inputs)
    asked = analysis.frontend.constraints(analysis.solution, "auto")
    realized = realize(analysis, plan.kept(analysis), asked)
    found = prove(analysis, realized, small)
    assert found.error is not None and found.error <= TOLERANCE
    with torch.no_grad():
        assert small(inputs).shape == before.shape
        assert torch.isfinite(small(inputs)).all()
        assert torch.equal(model(inputs), before)
    assert set(small.state_dict()) == set(model.state_dict())
    assert type(small) is type(model)


def test_a_literal_in_forward_is_named() -> None:
    """Where only a width that forward spells out may go, no class can be mended; the warning says which line."""
    model, inputs = build("plain_cnn")
    model, inputs = model.double(), inputs.double()
    with pytest.warns(UserWarning, match="torch.fx.GraphModule") as caught:
        small = structprune.shrink(model, 0.2, inputs, only=["features.4"], verify="numeric")
    assert isinstance(small, torch.fx.GraphModule)
    (warning,) = [str(each.message) for each in caught]
    place = re.search(r"plain_cnn\.py:(\d+)", warning)
    assert place is not None
    line = (ROOT / "models_zoo" / "plain_cnn.py").read_text(encoding="utf-8").splitlines()[int(place.group(1)) - 1]
    assert line.strip() == "x = x.view(-1, 32 * 4 * 4)"
    assert set(small.state_dict()) == set(model.state_dict())
    with pytest.raises(structprune.errors.UnsupportedModel, match=r"plain_cnn\.py:\d+"):
        structprune.shrink(model, 0.2, inputs, only=["features.4"], output="module")


@pytest.mark.parametrize("name", names())
def test_analysis_is_as_reviewed(name: str) -> None:
    model, inputs = build(name)
    analysis = structprune.analyze(model, inputs)
    explained = EXPLAINED.get(name) or analysis.groups[len(analysis.groups) // 2].members[0].parameter
    text = normalised(f"{analysis}\n\n{analysis.explain(explained)}\n")
    golden = GOLDENS / f"{name}.txt"
    if os.environ.get("REGENERATE_GOLDENS"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text, encoding="utf-8")
    assert golden.exists(), "REGENERATE_GOLDENS=1 writes it"
    assert text == golden.read_text(encoding="utf-8")


def test_no_golden_without_a_model() -> None:
    assert {path.stem for path in GOLDENS.glob("*.txt")} == set(names())
