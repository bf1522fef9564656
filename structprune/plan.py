"""A plan: the decision, not yet carried out. Print it, edit it, compare it, save it, load it, apply it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Any

from structprune.algebra.axis import Dim, Kept
from structprune.algebra.order import Indices
from structprune.errors import PlanMismatch, printed
from structprune.frontends import check_output, neutral, plain, read, stored_shapes
from structprune.frontends.names import called, stored_numbers
from structprune.frontends.protocol import Constraints, Described, Realized
from structprune.graph.plan_file import (
    VERSION,
    check_inputs,
    indices_kept,
    problem_of,
    read_plan,
    whole_numbers,
    write_plan,
)
from structprune.graph.progress import doing
from structprune.graph.selection import Selection
from structprune.operators.routing import Pick
from structprune.options import Options
from structprune.passes.rewrite import Rewrite
from structprune.passes.verify import Verification, verify
from structprune.views.analysis import Analysis
from structprune.views.progress import shown
from structprune.views.report import Report, make_report


@dataclass(slots=True, eq=False)
class Plan:
    """Which indices of which group stay: data alone.

    `keep` may be edited before the plan is applied: lists, ranges, sets and arrays of whole numbers will do. They stay
    in the order in which they are given.
    `indices` are the numbers of the stored indices by which the model reads what the groups run through.
    """

    model: str
    shapes: dict[str, tuple[int, ...]]
    inputs: Any
    keep: dict[str, Any]
    sizes: dict[str, int]
    options: dict[str, Any]
    output: str = "auto"
    verify: str | None = "numeric"
    indices: dict[str, list[int]] = field(default_factory=dict)
    report: Report | None = None

    def apply(
        self,
        model: Any,
        example_inputs: Any = None,
        *,
        progress: bool | None = None,
        output_path: str | os.PathLike[str] | None = None,
        force: bool = False,
    ) -> Any:
        """The smaller model. The model given is left untouched; that of an ONNX file is written to `output_path`.

        `example_inputs` take the place of inputs of the shapes that the plan describes.
        """
        model, _ = plain(model)
        check_output(model, output_path, force)
        if (problem := problem_of(self.as_dict())) is not None:
            raise PlanMismatch(f"the plan {problem}")
        self.check(model)
        self.check_indices(model)
        if example_inputs is None:
            check_inputs(self.inputs)
            example_inputs = Described(self.inputs)
        with shown(progress), neutral(model):
            analysis = Analysis(read(model, example_inputs))
            asked = analysis.frontend.constraints(analysis.solution, self.output)
            realized = realize(analysis, self.kept(analysis), asked)
            # A loaded plan has no report yet, and that of an edited one says what was decided before.
            of, ratio = self.options["of"], self.options["ratio"]
            made = make_report(analysis, realized.rewrite, of, ratio, realized.kind, realized.note)
            is_described = isinstance(example_inputs, Described)
            self.report = replace(made, inputs=self.report.inputs) if self.report and is_described else made
            small = self.made(analysis, realized)
        return analysis.frontend.deliver(small, output_path, force)

    def made(self, analysis: Analysis, realized: Realized) -> Any:
        """The smaller model, checked."""
        doing("slicing")
        small = make(analysis, realized)
        if self.verify == "numeric":
            found = prove(analysis, realized, small)
            if self.report is not None:
                self.report = replace(self.report, error=found.error, verification=str(found))
        return small

    def kept(self, analysis: Analysis) -> Selection:
        """What stays of each dimension of a model."""
        groups = {group.name: group for group in analysis.groups}
        kept: dict[Dim, Indices] = {}
        for name, given in self.keep.items():
            group = groups.get(name)
            if group is None:
                raise PlanMismatch(f"the plan keeps indices of the group {name!r}, which this model does not have")
            if self.sizes.get(name, group.size) != group.size:
                raise PlanMismatch(f"the group {name!r} has {group.size} indices, but {self.sizes[name]} in the plan")
            try:
                kept[group.dim] = indices_kept(given, group.size)
            except ValueError as error:
                raise PlanMismatch(f"the plan's indices of {name!r} {error}") from error
        return Selection(kept)

    def check(self, model: Any) -> None:
        """Refuse a model that the plan was not made for, naming the first difference."""
        shapes = stored_shapes(model)
        for name, planned in self.shapes.items():
            if name not in shapes:
                raise PlanMismatch(f"the plan was made for a {self.model} with {name!r}; {called(model)} has none")
            if tuple(shapes[name]) != tuple(planned):
                raise PlanMismatch(
                    f"{name!r} has shape {list(shapes[name])}, but the plan was made for {list(planned)}"
                )
        for name in shapes:
            if name not in self.shapes:
                raise PlanMismatch(f"{called(model)} has {name!r}, which the plan does not know")

    def check_indices(self, model: Any) -> None:
        """Refuse a model whose stored indices read other entries than the plan was made for."""
        for name, numbers in stored_numbers(model, self.indices).items():
            if numbers != self.indices[name]:
                raise PlanMismatch(
                    f"the index {name!r} of {called(model)} has other numbers than the plan was made for. "
                    "Load the model's state first, or make a plan for this one."
                )

    # -- as data -------------------------------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        """What a plan file holds; the report, which follows from it, is left out."""

        def numbers(given: Any) -> Any:
            found = whole_numbers(given)
            return given if found is None else found.tolist()

        return {
            "structprune_plan": VERSION,
            "model": self.model,
            "options": self.options,
            "output": self.output,
            "verify": self.verify,
            "inputs": self.inputs,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "indices": self.indices,
            "groups": {
                # A group that was added by hand has no size until the model is known.
                name: {"size": self.sizes.get(name), "keep": numbers(given)}
                for name, given in self.keep.items()
            },
        }

    def __eq__(self, other: object) -> bool:
        return self.as_dict() == other.as_dict() if isinstance(other, Plan) else NotImplemented

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON, whole or not at all."""
        write_plan(path, self.as_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str] | Plan) -> Plan:
        """Read a plan. It is data alone: safe to load from strangers."""
        if isinstance(path, Plan):
            return path
        data = read_plan(path)
        groups = data["groups"]
        return cls(
            model=data["model"],
            shapes={name: tuple(shape) for name, shape in data["shapes"].items()},
            inputs=data["inputs"],
            keep={name: group["keep"] for name, group in groups.items()},
            sizes={name: group["size"] for name, group in groups.items() if group["size"] is not None},
            options=data["options"],
            output=data["output"],
            verify=data["verify"],
            indices=data.get("indices", {}),
        )

    def __str__(self) -> str:
        if self.report is not None:
            return str(self.report)
        settings = ", ".join(f"{name}={value!r}" for name, value in self.options.items() if value not in ([], None))
        lines = [f"a plan for a {self.model} ({settings}): {len(self.keep)} groups cut"]
        lines += [f"  {name}: {self.sizes.get(name, '?')} -> {len(indices)}" for name, indices in self.keep.items()]
        return printed(lines)


def realize(analysis: Analysis, kept: Kept, asked: Constraints) -> Realized:
    """A choice that is made, in the first form that can take it."""
    rewrite = Rewrite(analysis.solution, kept)
    while not isinstance(found := analysis.frontend.realize(rewrite, asked), Realized):
        asked = found
    return found


def make(analysis: Analysis, realized: Realized) -> Any:
    """All that is to be done to what the model stores, and then the small model."""
    rewrite = realized.rewrite
    additions = analysis.folding(rewrite.solution).additions(rewrite, analysis.frontend.arrays)
    return analysis.frontend.make(realized, [*rewrite.edits(), *additions])


def prove(analysis: Analysis, realized: Realized, small: Any, tolerance: float | None = None) -> Verification:
    """Compare a small model with the original whose removed slices are zeroed."""
    frontend, rewrite = analysis.frontend, realized.rewrite
    alive = analysis.folding(rewrite.solution).alive(rewrite.kept)
    zeros = list(Rewrite(rewrite.solution, alive).zeroing())
    trials = frontend.trials(realized, small, zeros)
    given = trials if tolerance is None else (replace(trial, tolerance=tolerance) for trial in trials)
    return verify(given, frontend.model_name)


def indices_that_matter(analysis: Analysis) -> list[str]:
    """The stored indices that read an axis which can lose entries."""
    solution = analysis.solution
    found = [
        op.operator.stored
        for op in solution.graph.ops
        if isinstance(op.operator, Pick)
        and op.operator.stored is not None
        and op.inputs[0] is not None
        and not all(map(solution.is_held, solution.expanded(op.inputs[0])))
    ]
    return list(dict.fromkeys(found))


def make_plan(analysis: Analysis, realized: Realized, model: Any, options: Options) -> Plan:
    keep = {
        group.name: realized.rewrite.kept[group.dim].tolist()
        for group in analysis.groups
        if group.dim in realized.rewrite.kept
    }
    report = make_report(analysis, realized.rewrite, options.of, options.ratio, realized.kind, realized.note)
    return Plan(
        model=analysis.frontend.model_name,
        shapes=dict(analysis.frontend.shapes()),
        inputs=analysis.frontend.inputs(),
        keep=keep,
        sizes={group.name: group.size for group in analysis.groups if group.name in keep},
        options=options.as_dict(),
        output=options.output,
        verify=options.verify,
        indices=stored_numbers(model, indices_that_matter(analysis)),
        report=report,
    )


