"""A plan: the decision, not yet carried out. Print it, edit it, save it, load it, apply it."""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from structprune.algebra.axis import Kept
from structprune.errors import PlanMismatch, VerificationError
from structprune.frontends import check_output, neutral, read, stored_shapes
from structprune.frontends.names import stored_numbers
from structprune.frontends.protocol import Constraints, Described, Realized
from structprune.graph.graph import Shape
from structprune.graph.progress import doing
from structprune.views.analysis import Analysis
from structprune.views.progress import shown
from structprune.views.report import Report, make_report

VERSION = 1
DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "complex64", "complex128"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
)
MEASURES = ("params", "macs", "channels")
OUTPUTS = ("auto", "module", "graph")
VERIFICATIONS = ("shapes", "numeric", None)


@dataclass(slots=True)
class Plan:
    """Which indices of which group stay. `keep` may be edited before the plan is applied.

    `indices` are the numbers of the stored indices by which the model reads what the groups run through.
    """

    model: str
    shapes: dict[str, tuple[int, ...]]
    inputs: Any
    keep: dict[str, list[int]]
    sizes: dict[str, int]
    options: dict[str, Any]
    output: str = "auto"
    verify: str | None = "shapes"
    indices: dict[str, list[int]] = field(default_factory=dict)
    report: Report | None = None
    _ready: tuple[Any, Analysis, Realized, dict[str, list[int]]] | None = field(default=None, repr=False)

    def apply(
        self,
        model: Any,
        *,
        progress: bool | None = None,
        output_path: str | os.PathLike[str] | None = None,
        force: bool = False,
    ) -> Any:
        """The smaller model. The model given is left untouched; that of an ONNX file is written to `output_path`."""
        check_output(model, output_path, force)
        with shown(progress):
            return self.carry_out(model, at_once=False, output_path=output_path, force=force)

    def carry_out(
        self, model: Any, at_once: bool, output_path: str | os.PathLike[str] | None = None, force: bool = False
    ) -> Any:
        """`at_once`: the plan was made this moment, so the model is still what it was."""
        if not at_once:
            self.check(model)
            self.check_indices(model)
        with neutral(model):
            analysis, small = self.made(model, at_once)
        return analysis.frontend.deliver(small, output_path, force)

    def made(self, model: Any, at_once: bool) -> tuple[Analysis, Any]:
        """The smaller model, checked."""
        analysis, realized = self.realized(model, at_once)
        doing("slicing")
        small = realized.finish(at_once)
        if self.verify == "numeric":
            doing("verifying")
            error = analysis.frontend.error(realized.rewrite, small)
            tolerance = analysis.frontend.tolerance
            if not error <= tolerance:
                raise VerificationError(
                    f"the smaller {self.model} differs from the original with the removed slices zeroed by {error:.3g} "
                    f"of its largest output (tolerance {tolerance:g}). This is a bug in structprune; please report it."
                )
            if self.report is not None:
                self.report = replace(self.report, error=error)
        return analysis, small

    def realized(self, model: Any, at_once: bool = False) -> tuple[Analysis, Realized]:
        if self._ready is not None:
            planned, analysis, realized, keep = self._ready
            self._ready = None
            if planned is model and keep == self.keep and (at_once or analysis.frontend.follows_the_model):
                return analysis, realized
        analysis = Analysis(read(model, Described(self.inputs)))
        kept = self.kept(analysis)

        def choose(constraints: Constraints) -> Kept:
            return kept

        realized = analysis.frontend.realize(analysis.solution, choose, self.output)
        # A loaded plan has no report yet, and that of an edited one says what was decided before.
        of, ratio = self.options["of"], self.options["ratio"]
        self.report = make_report(analysis, realized.rewrite, of, ratio, realized.kind, realized.note)
        return analysis, realized

    def kept(self, analysis: Analysis) -> Kept:
        groups = {group.name: group for group in analysis.groups}
        kept: Kept = {}
        for name, indices in self.keep.items():
            group = groups.get(name)
            if group is None:
                raise PlanMismatch(f"the plan keeps indices of the group {name!r}, which this model does not have")
            if self.sizes.get(name, group.size) != group.size:
                raise PlanMismatch(f"the group {name!r} has {group.size} indices, but {self.sizes[name]} in the plan")
            if not are_indices(indices, group.size):
                raise PlanMismatch(
                    f"the plan's indices of {name!r} must be whole numbers, different, ascending, "
                    f"and between 0 and {group.size - 1}"
                )
            if len(indices) < group.size:
                kept[group.dim] = np.asarray(indices, dtype=np.int64)
        return kept

    def check(self, model: Any) -> None:
        """Refuse a model that the plan was not made for, naming the first difference."""
        shapes = stored_shapes(model)
        for name, planned in self.shapes.items():
            if name not in shapes:
                raise PlanMismatch(
                    f"the plan was made for a {self.model} with {name!r}; this {type(model).__name__} has none"
                )
            if shapes[name] != planned:
                raise PlanMismatch(
                    f"{name!r} has shape {list(shapes[name])}, but the plan was made for {list(planned)}"
                )
        for name in shapes:
            if name not in self.shapes:
                raise PlanMismatch(f"this {type(model).__name__} has {name!r}, which the plan does not know")

    def check_indices(self, model: Any) -> None:
        """Refuse a model whose stored indices read other entries than the plan was made for."""
        for name, numbers in stored_numbers(model, self.indices).items():
            if numbers != self.indices[name]:
                raise PlanMismatch(
                    f"the index {name!r} of this {type(model).__name__} has other numbers than the plan was made for. "
                    "Load the model's state first, or make a plan for this one."
                )

    # -- files ---------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, whole or not at all."""
        data = {
            "structprune_plan": VERSION,
            "model": self.model,
            "options": self.options,
            "output": self.output,
            "verify": self.verify,
            "inputs": self.inputs,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "indices": self.indices,
            "groups": {name: {"size": self.sizes[name], "keep": indices} for name, indices in self.keep.items()},
        }
        path = Path(path)
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(data, file, indent=1)
            os.chmod(beside, 0o666 & ~current_umask())
            os.replace(beside, path)
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan. It is data alone: safe to load from strangers."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise PlanMismatch(f"the plan {path} cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise PlanMismatch(f"{path} is not a whole plan file: {error}") from error
        if not isinstance(data, dict) or "structprune_plan" not in data:
            raise PlanMismatch(f"{path} is not a structprune plan")
        if data["structprune_plan"] is True or data["structprune_plan"] != VERSION:
            raise PlanMismatch(
                f"{path} is a plan of version {data['structprune_plan']}; this structprune reads version {VERSION}"
            )
        try:
            made = cls(
                model=str(data["model"]),
                shapes={str(name): tuple(map(int, shape)) for name, shape in data["shapes"].items()},
                inputs=data["inputs"],
                keep={str(name): group["keep"] for name, group in data["groups"].items()},
                sizes={str(name): int(group["size"]) for name, group in data["groups"].items()},
                options=dict(data["options"]),
                output=str(data["output"]),
                verify=data["verify"],
                indices=dict(data.get("indices", {})),
            )
            for name, numbers in made.indices.items():
                if not are_numbers(numbers, made.shapes[name]):
                    raise PlanMismatch(f"{path}: the numbers of the index {name!r} are not usable")
            for name, indices in made.keep.items():
                if not isinstance(indices, list) or not are_indices(indices, made.sizes[name]):
                    raise PlanMismatch(f"{path}: the indices kept of {name!r} are not usable")
            if not describes_inputs(made.inputs):
                raise PlanMismatch(f"{path}: its description of the model's inputs is not usable")
            if made.options["of"] not in MEASURES or not 0 <= float(made.options["ratio"]) < 1:
                raise PlanMismatch(f"{path}: its options are not usable")
            if made.output not in OUTPUTS or made.verify not in VERIFICATIONS:
                raise PlanMismatch(f"{path}: output={made.output!r} or verify={made.verify!r} is unknown")
            return made
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanMismatch(f"{path} is not a whole plan: {type(error).__name__} at {error}") from error

    def __str__(self) -> str:
        if self.report is not None:
            return str(self.report)
        settings = ", ".join(f"{name}={value!r}" for name, value in self.options.items() if value not in ([], None))
        lines = [f"a plan for a {self.model} ({settings}): {len(self.keep)} groups cut"]
        lines += [f"  {name}: {self.sizes[name]} -> {len(indices)}" for name, indices in self.keep.items()]
        return "\n".join(lines)


def are_indices(indices: Sequence[Any], size: int) -> bool:
    """Whole numbers, different, ascending, inside the group; at least one."""
    if not indices or any(type(index) is not int for index in indices):
        return False
    ascending = all(a < b for a, b in itertools.pairwise(indices))
    return ascending and indices[0] >= 0 and indices[-1] < size


def are_numbers(numbers: Any, shape: Shape) -> bool:
    """Whole numbers that fill an index of that shape, none larger than any index can be."""
    is_list = isinstance(numbers, list) and all(type(number) is int for number in numbers)
    return is_list and len(numbers) == prod(shape) and all(abs(number) < 1 << 31 for number in numbers)


def describes_inputs(data: Any) -> bool:
    """(arguments, keywords), made of tensors' shapes and types, containers and plain values."""
    match data:
        case {"tuple": [{"tuple": list(arguments)}, {"dict": dict(keywords)}]}:
            return bool(arguments or keywords) and all(map(is_described, (*arguments, *keywords.values())))
    return False


def is_described(data: Any) -> bool:
    match data:
        case {"tensor": list(shape), "dtype": str(dtype)}:
            return dtype in DTYPES and all(type(size) is int and size >= 0 for size in shape)
        case {"tuple": list(items)} | {"list": list(items)}:
            return all(map(is_described, items))
        case {"dict": dict(items)}:
            return all(map(is_described, items.values()))
        case {"value": None | bool() | int() | float() | str()}:
            return True
    return False


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def indices_that_matter(analysis: Analysis) -> list[str]:
    """The stored indices that read an axis which can lose entries."""
    solution = analysis.solution
    found = [
        str(op.attributes["stored"])
        for op in solution.graph.ops
        if "stored" in op.attributes
        and op.inputs[0] is not None
        and not all(map(solution.is_held, solution.expanded(op.inputs[0])))
    ]
    return list(dict.fromkeys(found))


def make_plan(
    analysis: Analysis, realized: Realized, model: Any, options: dict[str, Any], output: str, verify: str | None
) -> Plan:
    keep = {
        group.name: realized.rewrite.kept[group.dim].tolist()
        for group in analysis.groups
        if group.dim in realized.rewrite.kept
    }
    report = make_report(analysis, realized.rewrite, options["of"], options["ratio"], realized.kind, realized.note)
    return Plan(
        model=analysis.frontend.model_name,
        shapes=dict(analysis.frontend.shapes()),
        inputs=analysis.frontend.inputs(),
        keep=keep,
        sizes={group.name: group.size for group in analysis.groups if group.name in keep},
        options=options,
        output=output,
        verify=verify,
        indices=stored_numbers(model, indices_that_matter(analysis)),
        report=report,
        _ready=(model, analysis, realized, {name: list(indices) for name, indices in keep.items()}),
    )
