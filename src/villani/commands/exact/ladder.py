"""Bounds on the constants of a law, for people: a ladder on a logarithmic scale, tables, and numbers beyond floats."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from villani.commands.exact.record import ConstantRecord
from villani.outwards import lower_power, upper_power
from villani.report import figures
from villani.report.colours import EXACT, STATUSES
from villani.report.elements import Row
from villani.report.estimates import Columns, rows_of
from villani.report.figures import Rung
from villani.report.numbers import BEYOND, format_number, format_power

SYMBOLS = {
    "C1": "hexagon", "C2": "square", "C3": "circle", "C4": "bowtie", "C5": "cross", "C6": "x", "C7": "pentagon",
    "C8": "star", "C9": "triangle-down", "truth": "diamond",
}  # fmt: skip
PREPRINT = "C8 is the preprint's formula read at β = 1, that is with βλ for λ. Nothing is ever derived from it."
LEGEND = (
    "Green is certified, blue statistical, amber estimated, grey as claimed, red refuted; an arrow at an edge: beyond "
    "the picture"
)


def ladder(constants: Sequence[ConstantRecord], marks: Mapping[str, float] | None = None) -> go.Figure:
    """One constant a row, least first, on a logarithmic scale of any length; `marks` are logarithms to base 10."""
    rungs = [Rung(c.log10, label(c), value(c), c.status, colour(c), SYMBOLS[c.id], 0) for c in constants]
    rungs += [Rung(log, name, power(log), "", EXACT, "line-ns-open", 3) for name, log in (marks or {}).items()]
    return figures.ladder(rungs, "constant (logarithmic)")


def value(constant: ConstantRecord) -> str:
    """A constant for people, as a power of ten beyond floats; bounds are rounded outwards."""
    return power(constant.log10, way=0 if constant.id == "truth" else 1 if constant.direction == "upper" else -1)


def sign(constant: ConstantRecord) -> str:
    """= for a computed truth, ≤ or ≥ for a bound."""
    return "=" if constant.id == "truth" else "≤" if constant.direction == "upper" else "≥"


def label(constant: ConstantRecord) -> str:
    """Its number and name."""
    return constant.name if constant.id == "truth" else f"{constant.id} {constant.name}"


def colour(constant: ConstantRecord) -> str:
    """Of its status."""
    return EXACT if constant.id == "truth" else STATUSES[constant.status]


def constant_rows(constants: Sequence[ConstantRecord]) -> list[Row]:
    """One constant a row, on a page and in a terminal."""
    return rows_of(constants, _COLUMNS)


_COLUMNS: Columns = {
    "bound": label, "value": lambda c: f"{sign(c)} {value(c)}", "on": "kind", "status": "status",
    "if": lambda c: "—" if c.id == "truth" else c.hypotheses,
}  # fmt: skip


def power(log10: float, digits: int = 6, way: int = 0) -> str:
    """A number by its logarithm to base 10; `way` is 1 for an upper bound, −1 for a lower one, 0 for the nearest."""
    if abs(log10) >= BEYOND:
        return format_power(log10, way)
    if way:
        return upper_power(log10, digits) if way > 0 else lower_power(log10, digits)
    return f"{format_number(10 ** (log10 - 6))}·10⁶" if 6 <= log10 < 7 else format_number(10**log10, digits)
