"""The drawing of the groups: what stands in it, and that it can be read by programs too."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import models_zoo
import structprune
from structprune.algebra.axis import variables
from structprune.errors import InvalidArgument
from structprune.views.layout import lanes_of, rows_of

SVG = "{http://www.w3.org/2000/svg}"


class Residual(nn.Module):
    """One width through both branches, another inside; a layer norm at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(6, 16)
        self.wide, self.back = nn.Linear(16, 32), nn.Linear(32, 16)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return self.head(self.norm(x + self.back(self.wide(x).relu())))


def drawn(model: nn.Module, inputs: Tensor, tmp_path: Path) -> ElementTree.Element:
    structprune.analyze(model, inputs).draw(tmp_path / "groups.svg")
    return ElementTree.parse(tmp_path / "groups.svg").getroot()


def texts(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def titles(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}title")]


@pytest.mark.parametrize("name", models_zoo.names())
def test_every_parameter_and_every_frozen_axis_of_the_zoo(name: str, tmp_path: Path) -> None:
    model, inputs = models_zoo.build(name)
    analysis = structprune.analyze(model, inputs)
    analysis.draw(tmp_path / "groups.svg")
    root = ElementTree.parse(tmp_path / "groups.svg").getroot()
    rows = rows_of(analysis.solution, analysis.groups)
    shown = [parameter for row in rows for names, _ in row.entries for parameter in names]
    assert Counter(shown) == Counter(list(analysis.solution.graph.parameters))
    written = Counter(word for text in texts(root) for word in text.split())
    for parameter in shown:
        assert written[parameter.rpartition(".")[2]] > 0, parameter
    found = set(titles(root))
    for row in rows:
        for _, axes in row.entries:
            for dim in (dim for axis in axes for dim in variables(axis)):
                cause = analysis.solution.system.frozen.get(dim)
                if cause is not None:
                    assert any(cause.reason in title and f"{dim.size}: stays whole" in title for title in found)
    # A lane for each group, over all rows that it has a dot in.
    lanes, spans = lanes_of(rows)
    assert set(lanes) == {group.dim for group in analysis.groups}
    assert all(spans[dim][0] <= number <= spans[dim][1] for number, row in enumerate(rows) for dim in row.dots)
    taken = Counter((lane, number) for dim, lane in lanes.items() for number in range(spans[dim][0], spans[dim][1] + 1))
    assert max(taken.values()) == 1, "two groups in one place"


def test_layers_ties_and_dots() -> None:
    analysis = structprune.analyze(Residual(), torch.randn(2, 6))
    rows = rows_of(analysis.solution, analysis.groups)
    outer, inner = (next(g for g in analysis.groups if g.size == size).dim for size in (16, 32))
    found = [(row.op.name, [len(names) for names, _ in row.entries], row.dots) for row in rows]
    assert found == [
        ("linear", [1, 1], {outer: True}),
        ("linear", [1, 1], {inner: True, outer: False}),
        ("linear", [1, 1], {outer: True, inner: False}),
        ("add", [], {outer: True}),
        ("layer_norm", [2], {outer: True}),
        ("linear", [1, 1], {outer: False}),
    ]


def test_the_tie_is_labelled_and_inexact_groups_are_dashed(tmp_path: Path) -> None:
    root = drawn(Residual(), torch.randn(2, 6), tmp_path)
    assert "add" in texts(root)
    about = next(title for title in titles(root) if title.startswith("enter.weight:0: 16 indices"))
    assert "tied by add at" in about and "test_drawing.py" in about
    assert "changes the statistics of layer_norm" in about
    dashed = [path for path in root.iter(f"{SVG}path") if path.get("stroke-dasharray")]
    assert len(dashed) == 1


def test_a_zero_state_is_no_layer() -> None:
    """An LSTM that starts from zeros made in forward is not tied by itself."""
    model, inputs = models_zoo.build("recurrent")
    analysis = structprune.analyze(model, inputs)
    assert not [row for row in rows_of(analysis.solution, analysis.groups) if row.is_tie]


def test_a_shared_module_is_one_row_and_a_tie() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(6, 16), nn.Linear(6, 16)
            self.shared, self.head = nn.Linear(16, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.shared(self.left(x)) * self.shared(self.right(x)))

    analysis = structprune.analyze(Twice(), torch.randn(2, 6))
    rows = rows_of(analysis.solution, analysis.groups)
    assert [(row.op.name, row.is_tie) for row in rows] == [
        ("linear", False),
        ("linear", False),
        ("linear", False),
        ("linear", True),
        ("linear", False),
    ]


def test_names_that_mean_something_in_xml_and_dot(tmp_path: Path) -> None:
    name = 'a<b>&"c"\\\x01\ud800é'
    model = nn.Sequential()
    model.add_module(name, nn.Linear(6, 16))
    model.add_module("last]]>", nn.Linear(16, 3))
    root = drawn(model, torch.randn(2, 6), tmp_path)
    clean = 'a<b>&"c"\\\ufffd\ufffdé'
    assert clean in texts(root) and "last]]>" in texts(root)
    assert any(title.startswith(f"{clean}.weight:0: 16 indices") for title in titles(root))
    structprune.analyze(model, torch.randn(2, 6)).draw(tmp_path / "groups.dot")
    assert '-- "a<b>&\\"c\\"\\\\\\\\x01\\\\ud800é.weight"' in (tmp_path / "groups.dot").read_text(encoding="utf-8")


def test_other_endings_are_refused(tmp_path: Path) -> None:
    analysis = structprune.analyze(Residual(), torch.randn(2, 6))
    with pytest.raises(InvalidArgument, match=r"groups\.png.*\.svg.*\.dot"):
        analysis.draw(tmp_path / "groups.png")
    assert not list(tmp_path.iterdir())
    analysis.draw(f"{tmp_path}/GROUPS.SVG")
    ElementTree.parse(tmp_path / "GROUPS.SVG")


def test_everything_stands_inside_the_picture(tmp_path: Path) -> None:
    model, inputs = models_zoo.build("densenet")
    root = drawn(model, inputs, tmp_path)
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for element in root.iter():
        for place, limit in (("x", width), ("cx", width), ("y", height), ("cy", height)):
            value = element.get(place)
            assert value is None or 0 <= float(value) < limit, ElementTree.tostring(element)
