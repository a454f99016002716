"""Bounds on the constants of a law, for people: a ladder on a logarithmic scale, tables, and numbers beyond floats."""

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from rich.markup import escape
from rich.table import Table

from villani.commands.exact.record import ConstantRecord
from villani.outwards import lower_power, upper_power
from villani.report.elements import badge, table
from villani.report.figures import STATUS_COLOURS, themed
from villani.report.numbers import format_number

COMPUTED = "#a78bfa"
SYMBOLS = {
    "C1": "hexagon", "C2": "square", "C3": "circle", "C4": "bowtie", "C5": "cross", "C6": "x", "C7": "pentagon",
    "C8": "star", "C9": "triangle-down", "truth": "diamond",
}  # fmt: skip
PREPRINT = "C8 is the preprint's formula read at β = 1, that is with βλ for λ. Nothing is ever derived from it."
LEGEND = "Green is certified, blue statistical, amber estimated, grey as claimed, red refuted"


def ladder(constants: Sequence[ConstantRecord], marks: Mapping[str, float] | None = None) -> go.Figure:
    """One constant a row, least first, on a logarithmic scale of any length; `marks` are logarithms to base 10."""
    rungs: list[tuple[float, str, str, str, str, str]] = [
        (c.log10, label(c), value(c), c.status, colour(c), SYMBOLS[c.id]) for c in constants
    ]
    rungs += [(log, name, power(log), "", COMPUTED, "line-ns-open") for name, log in (marks or {}).items()]
    rungs.sort(key=lambda rung: rung[0])
    trace = go.Scatter(
        x=[rung[0] for rung in rungs],
        y=list(range(len(rungs))),
        mode="markers",
        marker={
            "size": 13,
            "color": [r[4] for r in rungs],
            "symbol": [r[5] for r in rungs],
            "line": {"width": [0 if r[3] else 3 for r in rungs]},
        },
        text=[f"{name}: {shown}" for _, name, shown, *_ in rungs],
        hovertemplate="%{text}<extra></extra>",
        cliponaxis=False,
    )
    figure = themed([trace], 110 + 44 * len(rungs))
    for row, (_, name, shown, status, *_) in enumerate(rungs):
        words = f"{name}: <b>{shown}</b>" + (f" ({status})" if status else "")
        figure.add_annotation(
            text=words, x=0, xref="x domain", xanchor="left", y=row, yshift=17, showarrow=False, font={"size": 12}
        )
    logs = [rung[0] for rung in rungs]
    figure.update_xaxes(title_text="constant (logarithmic)", zeroline=False, **log_axis(min(logs), max(logs)))
    figure.update_yaxes(showticklabels=False, ticks="", showgrid=False, range=[len(rungs) - 0.5, -0.9])
    return figure


def value(constant: ConstantRecord) -> str:
    """A constant for people, as a power of ten beyond floats; bounds are rounded outwards."""
    if constant.id == "truth":
        return power(constant.log10)
    return upper_power(constant.log10) if constant.direction == "upper" else lower_power(constant.log10)


def sign(constant: ConstantRecord) -> str:
    """= for a computed truth, ≤ or ≥ for a bound."""
    return "=" if constant.id == "truth" else "≤" if constant.direction == "upper" else "≥"


def label(constant: ConstantRecord) -> str:
    """Its number and name."""
    return constant.name if constant.id == "truth" else f"{constant.id} {constant.name}"


def colour(constant: ConstantRecord) -> str:
    """Of its status."""
    return COMPUTED if constant.id == "truth" else STATUS_COLOURS[constant.status]


def constants_table(constants: Sequence[ConstantRecord]) -> str:
    """One constant a row, in HTML."""
    rows = [
        [label(c), f"{sign(c)} {value(c)}", c.kind, badge(c.status), "—" if c.id == "truth" else c.hypotheses]
        for c in constants
    ]
    return f'<div class="prose">{table(["bound", "value", "on", "status", "if"], rows)}</div>'


def power(log10: float) -> str:
    """A number by its logarithm to base 10, as a power of ten beyond floats."""
    if abs(log10) >= 300:
        return f"10^{log10:,.1f}"
    return f"{format_number(10 ** (log10 - 6))}·10⁶" if 6 <= log10 < 7 else format_number(10**log10)


def log_axis(low: float, high: float) -> dict[str, object]:
    """Range and ticks of an axis of logarithms, at most eight of them."""
    step = next(n * 10**k for k in range(9) for n in (1, 2, 5) if (high - low) / (n * 10**k) <= 7)
    first, last = math.floor(low / step), math.ceil(high / step)
    ticks = [step * i for i in range(first, max(last, first + 1) + 1)]
    edge = 0.03 * (ticks[-1] - ticks[0])
    labels = ["1" if tick == 0 else f"10<sup>{tick}</sup>".replace("-", "−") for tick in ticks]
    return {"tickvals": ticks, "ticktext": labels, "range": [ticks[0] - edge, ticks[-1] + edge]}


def terminal_table(constants: Sequence[ConstantRecord]) -> Table:
    """One constant a row, in a terminal."""
    rows = Table("", "bound", "value", "on", "status", "if")
    for c in constants:
        rows.add_row(c.id, escape(c.name), f"{sign(c)} {value(c)}", c.kind, c.status, escape(c.hypotheses))
    return rows
