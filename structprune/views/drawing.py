"""Draw the groups of an analysed model as an SVG that a person can read.

From top to bottom run the layers, in the order in which the model uses them. Each group is a lane of
one colour on the left, with a dot in the row of every layer that loses slices with it, and a diamond
where an operator ties layers. What stays whole is grey, and says why when pointed at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from colorsys import hls_to_rgb
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from structprune.algebra.axis import Axis, Dim, Product, Reordered, Sum, variables
from structprune.views.layout import Row, lanes_of, rows_of

if TYPE_CHECKING:
    from structprune.views.analysis import Analysis

# All sizes in pixels; a letter is that wide in a monospaced font of size 11.
ROW, LANE, LETTER, MARGIN, TICK = 18, 10, 6.7, 12, 5
# An axis of more variables than this (dense connections) is drawn as ticks without their sizes.
MOST_CHIPS = 8
INK, FAINT, GREY, STRIPE, WHITE = "#222222", "#777777", "#e4e4e4", "#f7f7f7", "#ffffff"
TIMES = "\N{MULTIPLICATION SIGN}"
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
FONT = "ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace"
LEGEND = (
    "A colour is a group, its slices go together · ● the layer gives fewer channels · ○ it gets fewer",
    "◆ an operator ties layers · ┆ the statistics of a normalisation change · grey stays whole (point at it)",
)


def svg(analysis: Analysis) -> str:
    """The drawing as text."""
    return _Drawing(analysis).text()


def clean(text: str) -> str:
    """Text as XML can hold it."""
    return escape(NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text))


def colour(number: int, lightness: float) -> str:
    """Neighbours in number are far apart in hue."""
    red, green, blue = (round(255 * part) for part in hls_to_rgb(number * 0.618034 % 1, lightness, 0.65))
    return f"#{red:02x}{green:02x}{blue:02x}"


class _Drawing:
    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.rows = rows_of(analysis.solution, analysis.groups)
        self.lanes, self.spans = lanes_of(self.rows)
        self.groups = {group.dim: group for group in analysis.groups}
        self.numbers = {dim: number for number, dim in enumerate(self.spans)}
        self.ties: dict[Dim, list[str]] = {}
        for row in self.rows:
            for dim in row.dots if row.is_tie else ():
                self.ties.setdefault(dim, []).append(str(row.op))
        self.parts: list[str] = []
        self.width = 0.0

    def text(self) -> str:
        header = self.header()
        for number, line in enumerate(header):
            self.write(MARGIN, MARGIN + ROW * number, line, FAINT if number else INK)
        top = MARGIN + ROW * (len(header) + 1)
        stripes = (top + ROW * number for number in range(0, len(self.rows), 2))
        self.parts.extend(f'<rect y="{y}" width="100%" height="{ROW}" fill="{STRIPE}"/>' for y in stripes)
        for dim in self.lanes:
            self.lane(dim, top)
        module = MARGIN + LANE * (max(self.lanes.values(), default=0) + 1) + MARGIN
        operator = module + LETTER * max((len(self.module(row)) for row in self.rows), default=0) + MARGIN
        entries = operator + LETTER * max((len(operator_of(row)) for row in self.rows), default=0) + MARGIN
        for number, row in enumerate(self.rows):
            self.row(row, top + ROW * number, module, operator, entries)
        width, height = round(self.width) + MARGIN, top + ROW * len(self.rows) + MARGIN
        # Pointing at a group makes the others fade, where the viewer knows how.
        hover = "".join(f"svg:has(.g{n}:hover) .m:not(.g{n}){{opacity:.15}}" for n in self.numbers.values())
        return "\n".join(
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"',
                f' viewBox="0 0 {width} {height}" font-size="11" font-family="{FONT}">',
                f"<title>{clean(self.analysis.frontend.model_name)}: what goes together</title>",
                f"<style>{hover}</style>",
                f'<rect width="100%" height="100%" fill="{WHITE}"/>',
                *self.parts,
                "</svg>\n",
            )
        )

    def header(self) -> list[str]:
        analysis = self.analysis
        total = max(analysis.frontend.total, 1)
        frozen = [
            f"{entries / total:.1%} of the parameters are frozen: {cause.reason}"
            + (f" ({cause.where})" if cause.where is not None else "")
            for cause, entries in analysis.frozen[:5]
            if entries / total >= 0.001
        ]
        count = f"{analysis.frontend.total:,} parameters, {len(analysis.groups)} groups"
        return [f"{analysis.frontend.model_name}: {count}", *frozen, *LEGEND]

    def module(self, row: Row) -> str:
        name = row.op.where.module if row.is_tie else row.entries[0][0][0].rpartition(".")[0]
        return name or self.analysis.frontend.model_name

    def about(self, dim: Dim) -> str:
        """What shows when a variable is pointed at."""
        group = self.groups.get(dim)
        if group is None:
            cause = self.analysis.solution.system.frozen.get(dim)
            where = f" ({cause.where})" if cause is not None and cause.where is not None else ""
            return f"{dim.size}: stays whole, {cause.reason if cause else 'no trained parameter has it'}{where}"
        lines = [f"{group.name}: {group.size} indices, removed together from {len(group.members)} slices"]
        ties = self.ties.get(dim, [])
        lines.extend(f"tied by {op}" for op in ties[:6])
        lines.extend([f"and by {len(ties) - 6} more"] * (len(ties) > 6))
        lines.extend(f"removing changes the statistics of {op}" for op in list(dict.fromkeys(group.inexact))[:3])
        return "\n".join(lines)

    # -- pieces --------------------------------------------------------------------------------

    def write(self, x: float, y: float, text: str, fill: str) -> float:
        """A text in a row that starts at y; gives the place after it."""
        self.parts.append(f'<text x="{x:.1f}" y="{y + 13}" fill="{fill}">{clean(text)}</text>')
        self.width = max(self.width, x + LETTER * len(text))
        return x + LETTER * len(text)

    def lane(self, dim: Dim, top: float) -> None:
        """A group from its first row to its last, and a dot wherever it takes slices."""
        number, x = self.numbers[dim], MARGIN + LANE * self.lanes[dim] + LANE / 2
        strong = colour(number, 0.45)
        first, last = (top + ROW * place + ROW / 2 for place in self.spans[dim])
        dashes = "" if self.groups[dim].exact else ' stroke-dasharray="5 3"'
        self.parts.append(
            f'<g class="m g{number}" stroke="{strong}" stroke-width="1.5"><title>{clean(self.about(dim))}</title>'
            f'<path d="M{x} {first}V{last}" stroke-width="2.5"{dashes}/>'
        )
        for place, row in enumerate(self.rows):
            if dim in row.dots:
                y, fill = top + ROW * place + ROW / 2, strong if row.dots[dim] else WHITE
                diamond = f'<path d="M{x - 5} {y}L{x} {y - 5}L{x + 5} {y}L{x} {y + 5}Z" fill="{fill}"/>'
                self.parts.append(diamond if row.is_tie else f'<circle cx="{x}" cy="{y}" r="3.5" fill="{fill}"/>')
        self.parts.append("</g>")

    def row(self, row: Row, y: float, module: float, operator: float, entries: float) -> None:
        self.parts.append(f"<g><title>{clean(str(row.op))}</title>")
        self.write(module, y, self.module(row), FAINT if row.is_tie else INK)
        self.write(operator, y, operator_of(row), FAINT)
        self.parts.append("</g>")
        x = entries
        for names, axes in row.entries:
            x = self.write(x, y, " ".join(name.rpartition(".")[2] for name in names), INK)
            for position, axis in enumerate(axes):
                x = self.write(x, y, TIMES, FAINT) if position else x + LETTER
                x = self.axis(x, y, axis)
            x += 2 * LETTER

    def axis(self, x: float, y: float, axis: Axis) -> float:
        is_short = sum(1 for _ in variables(axis)) <= MOST_CHIPS
        for piece in pieces(axis):
            if isinstance(piece, Dim):
                x = self.chip(x, y, piece, f"{piece.size}" if is_short else "")
            elif is_short:
                # Spaces at the ends of a text are not drawn.
                x += LETTER / 2 * piece.startswith(" ")
                x = self.write(x, y, piece.strip(), FAINT) if piece.strip() else x
                x += LETTER / 2 * piece.endswith(" ")
        return x

    def chip(self, x: float, y: float, dim: Dim, text: str) -> float:
        number = self.numbers.get(dim)
        fill = GREY if number is None else colour(number, 0.82 if text else 0.6)
        width = LETTER * len(text) + 6 if text else TICK
        mark = "" if number is None else f' class="m g{number}"'
        self.parts.append(
            f"<g{mark}><title>{clean(self.about(dim))}</title>"
            f'<rect x="{x:.1f}" y="{y + 2}" width="{width:.1f}" height="{ROW - 4}" rx="3" fill="{fill}"/>'
        )
        if text:
            self.write(x + 3, y, text, INK)
        self.parts.append("</g>")
        self.width = max(self.width, x + width)
        return x + width + 1


def operator_of(row: Row) -> str:
    """The operator's name, in place or not."""
    return row.op.name.rstrip("_")


def pieces(axis: Axis) -> Iterator[str | Dim]:
    """An axis in the notation of the rules: variables, and the text between them."""
    match axis:
        case Dim():
            yield axis
        case Product(()):
            yield "1"
        case Product(inner) | Sum(inner):
            yield "("
            for number, each in enumerate(inner):
                if number:
                    yield " + " if isinstance(axis, Sum) else " "
                yield from pieces(each)
            yield ")"
        case Reordered(whole):
            yield "~"
            yield from pieces(whole)
