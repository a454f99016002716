"""The page of exact truths and of the reference values of the theory."""

from pathlib import Path

import plotly.graph_objects as go
from rich.console import Console

from villani.commands.exact.ladder import LEGEND, PREPRINT, SYMBOLS, colour, constant_rows, label, ladder, value
from villani.commands.exact.record import ExactRecord, PointRecord, ReferenceRecord
from villani.outwards import lower, upper
from villani.report import elements
from villani.report.colours import EXACT, UNRESOLVED
from villani.report.elements import Row, note, prose, section
from villani.report.estimates import Columns, at, rows_of
from villani.report.figures import log_axis, themed
from villani.report.numbers import format_number
from villani.report.page import Pictures
from villani.report.terminal import say, table
from villani.theory.catalogue import CATALOGUE

_AXES = {"weight_decay": "weight decay λ", "temperature": "temperature s", "dimension": "dimension d"}
_REACH = 12  # orders of magnitude above the largest truth that a sweep draws; what is further stands at the edge

_CHECKS: Columns = {
    "row": "row", "quantity": "quantity", "printed": "printed", "computed": lambda check: f"{check.computed:.12g}",
    "": lambda check: "reproduced" if check.passes else "NOT REPRODUCED",
}  # fmt: skip


def headline(record: ExactRecord | ReferenceRecord) -> str:
    """One sentence, about the last point of a sweep."""
    if isinstance(record, ReferenceRecord):
        whole = record.passed + record.failed
        return f"{record.passed} of {whole} reference values are reproduced to the printed digits."
    return f"{_where(record.points[-1])}: {record.points[-1].verdict}."


def findings(record: ExactRecord | ReferenceRecord) -> dict[str, str]:
    """Title → paragraph."""
    if isinstance(record, ReferenceRecord):
        wrong = [f"{check.row}, {check.quantity}" for check in record.checks if not check.passes]
        return {"Not reproduced": f"{'; '.join(wrong)}."} if wrong else {}
    return {
        "The potential": f"L = {record.expression}, {record.about}; shape: {record.shape}.",
        "What makes inputs certified": f"{record.proved}." if record.proved else "",
        "Along the sweep": _sweep_words(record) if record.varied else "",
    }


def pictures(record: ExactRecord | ReferenceRecord) -> Pictures:
    """Name → title, figure, caption; the one named `truth` is given the whole width."""
    if isinstance(record, ReferenceRecord):
        return {}
    if record.varied is None:
        figure, caption = ladder(record.points[0].constants), f"{LEGEND}; violet: computed."
    else:
        figure = sweep(record)
        caption = (
            f"{LEGEND} at that point; violet: computed. Triangles at the upper edge point to what lies beyond "
            "the picture; their values are in the tables."
        )
    return {"truth": ("Constants, and the truth", figure, caption)}


def tables(record: ExactRecord | ReferenceRecord) -> str:
    """Sections of tables, as HTML."""
    if isinstance(record, ExactRecord):
        return "".join(section(_where(point), _point(point)) for point in record.points)
    return section("Reference values", elements.table(rows_of(record.checks, _CHECKS)))


def limits(record: ExactRecord | ReferenceRecord) -> list[str]:
    """What the page does not prove."""
    if isinstance(record, ReferenceRecord):
        return ["That the theory is right: only that its printed figures follow from its definitions."]
    return [
        "A certified C_P holds within the stated error: intervals show that the grid sees all of the potential "
        "and that nothing beyond it counts, and two solutions agree; the spectrum is floating point. An "
        "estimated one is only what two boxes and grids agree on.",
        "An estimated bound rests on a search on a grid out to 10⁶, a certified one on a closed form or on "
        "intervals. No theorem is refuted by a truth: where its bound lies below, its hypothesis fails.",
        "“Everywhere” is as far as squares stay in the range of floats, |w| ≤ 10¹⁰⁰.",
        PREPRINT,
    ]


def show(record: ExactRecord | ReferenceRecord, _: Path, console: Console) -> None:
    """For every point the truth, every bound in order, and what does not apply; or every reference value."""
    if isinstance(record, ReferenceRecord):
        console.print(table(rows_of(record.checks, _CHECKS)))
        console.print(headline(record))
        return
    say(console, f"{record.potential}: L = {record.expression} ({record.about})")
    for point in record.points:
        say(console, f"{_where(point)}: {point.verdict}.", "bold")
        console.print(table(constant_rows(point.constants)))
        for remark in _remarks(point):
            say(console, remark)


def show_names(console: Console) -> None:
    """The named potentials."""
    rows: list[Row] = [
        {
            "name": name,
            "L": entry.text,
            "parameters": ", ".join(f"{key}={default:g}" for key, default in entry.parameters.items()),
            "λ": f"{entry.weight_decay:g}",
            "β": f"{entry.beta:g}",
            "d": str(entry.dimension or ("2" if "*x*y" in entry.text else "1")),
            "what": entry.about,
        }
        for name, entry in CATALOGUE.items()
    ]
    console.print(table(rows))


def exit_code(record: ExactRecord | ReferenceRecord) -> int:
    """1 where a reference value is not reproduced."""
    return int(isinstance(record, ReferenceRecord) and record.failed > 0)


def sweep(record: ExactRecord) -> go.Figure:
    """Every constant against what was varied; a mark's colour is the status there."""
    axis = record.varied
    assert axis is not None
    across: list[float] = [getattr(point, axis) for point in record.points]
    top = max(c.log10 for point in record.points for c in point.constants if c.id == "truth") + _REACH
    names = dict.fromkeys((c.id, c.name) for point in record.points for c in point.constants)
    curves, heights = [], []
    for id, name in names:
        marks = [
            (x, c) for x, point in zip(across, record.points, strict=True) for c in point.constants
            if (c.id, c.name) == (id, name)
        ]  # fmt: skip
        places, constants = zip(*marks, strict=True)
        own = [min(c.log10, top) for c in constants]
        heights += own
        style = {"color": EXACT, "width": 2} if id == "truth" else {"color": UNRESOLVED, "width": 1}
        own_symbol = SYMBOLS[id] + ("-open" if (id, constants[0].kind) == ("truth", "log-Sobolev") else "")
        symbols = ["triangle-up" if c.log10 > top else own_symbol for c in constants]
        curves.append(
            go.Scatter(
                x=places, y=own, name=label(constants[0]), line=style, cliponaxis=False,
                mode="lines+markers" if any(c.log10 <= top for c in constants) else "markers",
                marker={"color": [colour(c) for c in constants], "size": 11, "symbol": symbols},
                text=[f"{label(c)}: {value(c)} ({c.status})" for c in constants],
                hovertemplate="%{text}<extra></extra>",
            )
        )  # fmt: skip
    kind = "log" if axis != "dimension" and min(across) > 0 else "linear"
    ticks = {"tickvals": across, "ticktext": [format_number(x) for x in across]} if len(across) <= 12 else {}
    up = {"title_text": "constant (logarithmic)", **log_axis(min(heights), max(heights))}
    legend = {"orientation": "h", "y": -0.18, "x": 0, "entrywidth": 250}
    return themed(curves, 560, {"title_text": _AXES[axis], "type": kind, **ticks}, up, legend)


def _remarks(point: PointRecord) -> list[str]:
    """How certain the truth is, the spectrum that it comes from, and what does not apply."""
    certain = f"C_P is certified within {upper(point.error, 1)} (relative)."
    if point.status != "certified":
        agree = "agree to rounding" if point.error < 1e-15 else f"differ by {upper(point.error, 1)} (relative)"
        certain = f"Two grids and boxes {agree}; nothing proves that they see all of the potential."
        if point.floor:
            certain += f" Certified is C_P ≥ {lower(point.floor, 4)}."
    first, *others = point.gaps
    gaps = ", ".join([f"{first:.{point.digits}g}", *(f"{gap:.{min(point.digits, 6)}g}" for gap in others)])
    plural = "s" * bool(others)
    of = f"Gap{plural} of Δ − ∇U·∇" if point.dimension > 1 else f"Lowest gap{plural} of Δ − ∇U·∇"
    between = " (sums of them, and others, may lie between)" if point.dimension > 1 and others else ""
    spectrum = (
        f"{of}: {gaps}{between}; "
        f"gap of the diffusion: {point.diffusion_gap:.{point.digits}g}; "
        f"the identities fail by at most {upper(max(point.identities.values()), 1)}."
    )
    return [f"{certain} {spectrum}", *(f"{gone.id} does not apply: {gone.reason}" for gone in point.missing)]


def _point(point: PointRecord) -> str:
    notes = "".join(map(note, _remarks(point)))
    return note(f"{point.verdict}.") + prose(elements.table(constant_rows(point.constants))) + notes


def _sweep_words(record: ExactRecord) -> str:
    assert record.varied is not None
    places = [format_number(getattr(point, record.varied)) for point in record.points]
    truths = [format_number(point.poincare) for point in record.points]
    words = (
        f"As the {_AXES[record.varied]} goes from {places[0]} to {places[-1]}, C_P goes from {truths[0]} to "
        f"{truths[-1]}."
    )
    refuted: dict[str, list[str]] = {}
    for place, point in zip(places, record.points, strict=True):
        for id in dict.fromkeys(c.id for c in point.constants if c.status == "refuted"):
            refuted.setdefault(id, []).append(place)
    return words + "".join(f" {id} is refuted at {', '.join(where)}." for id, where in refuted.items())


def _where(point: PointRecord) -> str:
    return f"{at(point)} (β = {format_number(point.beta)}), d = {point.dimension}"
