"""What can be removed from a model, what ties it together, what is frozen and why."""

from __future__ import annotations

import os
from difflib import get_close_matches
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structprune.algebra.axis import Axis, Dim, Product, Reordered, Sum, variables
from structprune.algebra.system import Freeze
from structprune.errors import InvalidArgument, OutputError, printable, printed, short
from structprune.frontends.protocol import Frontend
from structprune.graph.graph import Op, Value
from structprune.passes import measure
from structprune.passes.fold import Folding, fold
from structprune.passes.group import Group, group
from structprune.passes.measure import Measure
from structprune.passes.propagate import Solution, propagate
from structprune.views.drawing import svg
from structprune.views.explanation import ExplainedAxis, Explanation, Held, HeldAxis, Tied, Width

if TYPE_CHECKING:
    import networkx


class Analysis:
    """The solved model. Print it, ask it to `explain` a parameter, or draw it."""

    def __init__(self, frontend: Frontend) -> None:
        self.frontend = frontend
        self.solution: Solution = propagate(frontend.graph)
        self.groups: list[Group] = group(self.solution)
        self._measures: dict[str, Measure] = {}

    def measure(self, of: str) -> Measure:
        """A fresh count of parameters, multiply-accumulates or channels."""
        if of not in self._measures:
            self._measures[of] = self._measured(of)
        return self._measures[of].fresh()

    def _measured(self, of: str) -> Measure:
        match of:
            case "params":
                return measure.parameters(self.solution, self.frontend.total)
            case "macs":
                return measure.macs(self.solution)
            case "channels":
                return measure.channels(self.groups)
        raise InvalidArgument(f"of={of!r} is unknown; count 'params', 'macs' or 'channels'")

    def folding(self, solution: Solution) -> Folding:
        """The constants of this solution, or of one that holds in training too."""
        return self._folding if solution is self.solution else fold(solution, self.frontend.constants)

    @cached_property
    def _folding(self) -> Folding:
        return fold(self.solution, self.frontend.constants)

    @cached_property
    def frozen(self) -> list[tuple[Freeze, int]]:
        """Why dimensions are frozen, each cause with the parameter entries that it alone or with others holds."""
        shares: dict[tuple[str, str], tuple[Freeze, int]] = {}
        for value in self.solution.graph.parameters.values():
            leaves = [leaf for axis in self.solution.expanded(value) for leaf in self.solution.system.leaves(axis)]
            if not value.is_trained or any(leaf not in self.solution.system.frozen for leaf in leaves):
                continue
            causes = [self.solution.system.frozen[leaf] for leaf in leaves]
            # Several widths of one parameter may be held by one reason: its entries count once.
            for key, cause in {(cause.reason, str(cause.where)): cause for cause in causes}.items():
                shares[key] = (cause, shares.get(key, (cause, 0))[1] + prod(value.shape))
        return sorted(shares.values(), key=lambda item: -item[1])

    @property
    def unread(self) -> int:
        """The entries of trained parameters that no operator reads on these inputs: they are not cut."""
        read = (value for value in self.solution.graph.parameters.values() if value.is_trained)
        return self.frontend.total - sum(prod(value.shape) for value in read)

    @property
    def unread_names(self) -> tuple[str, ...]:
        """Their names."""
        read = self.solution.graph.parameters
        return tuple(name for name in self.frontend.trained() if name not in read)

    @cached_property
    def partly_frozen(self) -> list[tuple[Freeze, int]]:
        """Causes that hold one width of a parameter whose other width is free, with its entries."""
        shares: dict[str, tuple[Freeze, int]] = {}
        for value in self.solution.graph.parameters.values():
            axes = self.solution.expanded(value)
            held = [axis for axis in axes[:2] if axis.size > 1 and self.solution.is_held(axis)]
            if not value.is_trained or len(axes) < 2 or not held:
                continue
            causes = [self.solution.system.frozen[leaf] for axis in held for leaf in variables(axis)]
            for reason, cause in {cause.reason: cause for cause in causes}.items():
                shares[reason] = (cause, shares.get(reason, (cause, 0))[1] + prod(value.shape))
        return sorted(shares.values(), key=lambda item: -item[1])

    def removable(self, of: str) -> float:
        """The share that would be gone if one index of every group were left: no choice removes more."""
        counted = self.measure(of)
        counted.set({group.dim: 1 for group in self.groups})
        return counted.removed

    def as_dict(self) -> dict[str, Any]:
        """What is printed, and the members of each group, as data."""
        return {
            "model": self.frontend.model_name,
            "parameters": self.frontend.total,
            "macs": self.measure("macs").whole,
            "removable": {of: self.removable(of) for of in ("params", "macs")},
            "groups": [
                {
                    "name": group.name,
                    "size": group.size,
                    "exact": group.exact,
                    "statistics": list(dict.fromkeys(op.name for op in group.inexact)),
                    "members": [{"parameter": member.parameter, "axis": member.axis} for member in group.members],
                }
                for group in self.groups
            ],
            "frozen": [
                {"reason": cause.reason, "where": described(cause), "entries": entries}
                for cause, entries in self.frozen
            ],
        }

    # -- explanations --------------------------------------------------------------------------

    def explain(self, name: str) -> str:
        """What is tied to a parameter and through which operators; what is frozen, and why."""
        return str(self.explanation(name))

    def explanation(self, name: str) -> Explanation:
        """The same as data."""
        if not isinstance(name, str):
            raise InvalidArgument(f"{short(name)} is no name: give that of a parameter, as a text")
        value = self.solution.graph.parameters.get(name)
        if value is None:
            shapes = self.frontend.shapes()
            if name in shapes:
                return Explanation(name, tuple(shapes[name]), (), is_used=False)
            known = list(self.solution.graph.parameters)
            close = [each for each in known if name in each][:5] or get_close_matches(name, known, 5)
            hint = f"; did you mean {', '.join(close)}?" if close else ""
            raise InvalidArgument(f"the model has no parameter {name!r}{hint}")
        return Explanation(
            name,
            value.shape,
            tuple(
                ExplainedAxis(
                    self.show(axis),
                    tuple(self.width(leaf, value) for leaf in dict.fromkeys(self.solution.system.leaves(axis))),
                )
                for axis in self.solution.expanded(value)
            ),
        )

    def width(self, dim: Dim, start: Value) -> Width:
        cause = self.solution.system.frozen.get(dim)
        if cause is not None:
            return Width(self.label(dim), dim.size, cause.reason, described(cause))
        inexact = self._group_of[dim].inexact if dim in self._group_of else ()
        return Width(
            self.label(dim),
            dim.size,
            tied=tuple(
                Tied(target, names) for target, names in self.paths(dim, start)
            ),
            statistics=tuple(dict.fromkeys(op.name for op in inexact)),
        )

    @cached_property
    def held(self) -> list[Held]:
        """Every reason for which an axis of a trained parameter cannot change, the weightiest first."""
        axes: dict[str, dict[HeldAxis, None]] = {}
        entries: dict[str, int] = {}
        frozen = self.solution.system.frozen
        for name, value in self.solution.graph.parameters.items():
            if not value.is_trained:
                continue
            reasons: set[str] = set()
            is_whole = True
            for position, axis in enumerate(self.solution.expanded(value)):
                for leaf in self.solution.system.leaves(axis):
                    if leaf not in frozen:
                        is_whole = False
                    elif leaf.size > 1:
                        cause = frozen[leaf]
                        reasons.add(cause.reason)
                        axes.setdefault(cause.reason, {})[HeldAxis(name, position, described(cause))] = None
            for reason in reasons if is_whole else ():
                entries[reason] = entries.get(reason, 0) + prod(value.shape)
        found = [Held(reason, entries.get(reason, 0), tuple(each)) for reason, each in axes.items()]
        return sorted(found, key=lambda each: (-each.entries, -len(each.axes)))

    def paths(self, dim: Dim, start: Value) -> list[tuple[str, tuple[str, ...]]]:
        """Every parameter tied by a dimension, with the names of the operators on the shortest way to it."""
        touching: dict[Op, list[Value]] = {}
        readers: dict[Value, list[Op]] = {}
        for op in self.solution.graph.ops:
            found = [v for v in dict.fromkeys((*op.inputs, *op.outputs)) if v is not None and self.touches(v, dim)]
            if len(found) > 1:
                touching[op] = found
                for value in found:
                    readers.setdefault(value, []).append(op)
        ways: dict[Value, tuple[str, ...]] = {start: ()}
        queue = [start]
        for value in queue:
            for op in readers.get(value, ()):
                # Whatever an operator reaches, it has reached after it was met for the first time.
                for other in touching.pop(op, ()):
                    if other not in ways:
                        way = ways[value]
                        ways[other] = way if op.name in way else (*way, op.name)
                        queue.append(other)
        return [(value.parameter, ways[value]) for value in queue[1:] if value.parameter is not None]

    def touches(self, value: Value, dim: Dim) -> bool:
        if value not in self.solution.axes:
            return False
        return any(dim in self.solution.variables(axis) for axis in self.solution.expanded(value))

    @cached_property
    def _group_of(self) -> dict[Dim, Group]:
        return {group.dim: group for group in self.groups}

    def label(self, dim: Dim) -> str:
        return self._group_of[dim].name if dim in self._group_of else f"a dimension of {dim.size}"

    def show(self, axis: Axis) -> str:
        """An axis in the notation of the rules, with sizes for names; `~` where its entries are in another order."""
        match axis:
            case Dim():
                return f"{axis.size}{'!' if axis in self.solution.system.frozen else ''}"
            case Product(factors):
                return f"({' '.join(map(self.show, factors))})" if factors else "1"
            case Sum(parts):
                return f"({' + '.join(map(self.show, parts))})"
            case Reordered(inner):
                return f"~{self.show(inner)}"

    # -- pictures ------------------------------------------------------------------------------

    def to_networkx(self) -> networkx.MultiGraph[str]:
        """Parameters and groups as nodes; an edge says along which axis a group runs."""
        import networkx

        graph: networkx.MultiGraph[str] = networkx.MultiGraph()
        for name, value in self.solution.graph.parameters.items():
            graph.add_node(name, kind="parameter", shape=value.shape)
        for each in self.groups:
            graph.add_node(f"group {each.name}", kind="group", size=each.size, exact=each.exact)
            for member in each.members:
                graph.add_edge(f"group {each.name}", member.parameter, axis=member.axis)
        return graph

    def to_dot(self) -> str:
        """The same picture in the DOT language, for graphviz and others."""
        lines = ["graph groups {", "  rankdir=LR;", "  node [shape=box, fontsize=10];"]
        for number, each in enumerate(self.groups):
            shape = "ellipse" if each.exact else "ellipse, style=dashed"
            lines.append(f'  g{number} [label="{quoted(each.name)}\\n{each.size}", shape={shape}];')
            lines.extend(f'  g{number} -- "{quoted(m.parameter)}" [label="{m.axis}"];' for m in each.members)
        return "\n".join([*lines, "}"])

    def draw(self, path: str | Path) -> None:
        """Write a picture to a file: a drawing of the layers for .svg, the groups alone for .dot or .gv."""
        if not isinstance(path, str | os.PathLike):
            raise InvalidArgument(f"cannot draw into {short(path)}: give a path")
        kind = Path(path).suffix.lower()
        if kind not in (".svg", ".dot", ".gv"):
            raise InvalidArgument(f"cannot draw into {str(path)!r}: the name must end in .svg, or in .dot for graphviz")
        text = svg(self) if kind == ".svg" else self.to_dot()
        try:
            Path(path).write_text(text, encoding="utf-8", errors="replace")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise OutputError(f"{path} cannot be written: {reason}") from error

    def __str__(self) -> str:
        total = max(self.frontend.total, 1)
        lines = [
            f"{self.frontend.model_name}: {self.frontend.total:,} parameters, "
            f"{self.measure('macs').whole:,} multiply-accumulates, {len(self.groups)} groups"
        ]
        width = max((len(each.name) for each in self.groups), default=0)
        for each in self.groups:
            note = "" if each.exact else f"  changes the statistics of {each.inexact[0].name}"
            lines.append(f"  {each.name:<{width}}  {each.size:>6} x {len(each.members)} slices{note}")
        for cause, entries in self.frozen:
            if entries / total >= 0.001:
                where = f" ({cause.where})" if cause.where is not None else ""
                lines.append(f"  frozen: {entries / total:.1%} of the parameters, {cause.reason}{where}")
        if self.unread / total >= 0.001:
            lines.append(f"  unread: {self.unread / total:.1%} of the parameters, by any operator on these inputs")
        return printed(lines)


def quoted(name: str) -> str:
    """A name as it stands between quotes in the DOT language."""
    return printable(name, len(name)).replace("\\", "\\\\").replace('"', '\\"')


def described(cause: Freeze) -> str:
    """The operator that gives the reason."""
    return "" if cause.where is None else str(cause.where)
