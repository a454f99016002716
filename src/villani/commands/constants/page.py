"""What theory offers, on the page: constants on logarithmic scales with their status, truths, reference values."""

import math
from collections.abc import Mapping, Sequence
from itertools import chain

import plotly.graph_objects as go

from villani.commands.constants.record import ModelConstants, ModelConstantsRecord, ModelPointRecord
from villani.commands.exact.record import ConstantRecord, ExactRecord, PointRecord, ReferenceRecord
from villani.outwards import lower, lower_power, upper, upper_power
from villani.report.elements import Markup, badge, html, note, section, table
from villani.report.figures import themed
from villani.report.numbers import format_number

TheoryRecord = ExactRecord | ReferenceRecord | ModelConstantsRecord
Pictures = dict[str, tuple[str, go.Figure, str]]
STATUS_COLOURS = {
    "certified": "#10b981", "statistical": "#3b82f6", "estimated": "#f59e0b", "as-claimed": "#8b93a1",
    "refuted": "#e4572e",
}  # fmt: skip
_COMPUTED = "#a78bfa"
_SYMBOLS = {
    "C1": "hexagon", "C2": "square", "C3": "circle", "C4": "bowtie", "C5": "cross", "C6": "x", "C7": "pentagon",
    "C8": "star", "C9": "triangle-down", "truth": "diamond",
}  # fmt: skip
_AXES = {"weight_decay": "weight decay λ", "temperature": "temperature s", "dimension": "dimension d"}
_REACH = 12  # orders of magnitude above the largest truth that a sweep draws; what is further stands at the edge
_COLOURS = "Green is certified, blue statistical, amber estimated, grey as claimed, red refuted"


def headline(record: TheoryRecord) -> str:
    """One sentence, about the last point of a sweep."""
    match record:
        case ExactRecord():
            return f"{_where(record.points[-1])}: {record.points[-1].verdict}."
        case ReferenceRecord():
            whole = record.passed + record.failed
            return f"{record.passed} of {whole} reference values are reproduced to the printed digits."
        case ModelConstantsRecord():
            return _in_short(record.points[0])


def findings(record: TheoryRecord) -> dict[str, str]:
    """Title → paragraph."""
    match record:
        case ExactRecord():
            found = {"The potential": f"L = {record.expression}, {record.about}; shape: {record.shape}."}
            if record.proved:
                found["What makes inputs certified"] = f"{record.proved}."
            if record.varied:
                found["Along the sweep"] = _sweep_words(record)
            return found
        case ReferenceRecord():
            wrong = [f"{check.row}, {check.quantity}" for check in record.checks if not check.passes]
            return {"Not reproduced": f"{'; '.join(wrong)}."} if wrong else {}
        case ModelConstantsRecord():
            first = record.points[0]
            gap = {"Without smoothing": first.spectral_gap.text} if first.spectral_gap else {}
            return {"In full": first.sentence, "What it costs": _price(record)} | gap


def model_finding(constants: ModelConstants) -> str:
    """For the page of a measurement: the sentence at the first λ and s, and what was measured that does not enter."""
    return (
        f"{constants.points[0].sentence} Nothing measured here enters. An estimate from curvature (C2) would need the "
        "least eigenvalue of ∇²L, of which a trace tells only that it is at most tr ∇²L/d; one from gradients (C4) the "
        "largest ‖∇L‖ that there is, which the one at this point only bounds from below."
    )


def pictures(record: TheoryRecord) -> Pictures:
    """Name → title, figure, caption; the one named `truth` is given the whole width."""
    match record:
        case ExactRecord(varied=None):
            point = record.points[0]
            return {"truth": ("Constants, and the truth", ladder(point.constants), f"{_COLOURS}; violet: computed.")}
        case ExactRecord():
            caption = (
                f"{_COLOURS} at that point; violet: computed. Triangles at the upper edge point to what lies beyond "
                "the picture; their values are in the tables."
            )
            return {"truth": ("Constants, and the truth", sweep(record), caption)}
        case ModelConstantsRecord():
            return {"truth": model_picture(record)}
        case _:
            return {}


def model_picture(record: ModelConstants) -> tuple[str, go.Figure, str]:
    """Title, figure and caption: the constants of a model at its first λ and s."""
    point = record.points[0]
    marks = {"decay alone, 1/(βλ)": _decay_alone(point)}
    if point.visible is not None:
        marks[f"a run of length {format_number(record.time or 0)} can see"] = math.log10(point.visible)
    where = f"λ = {format_number(point.weight_decay)}, s = {format_number(point.temperature)}"
    return (
        f"Log-Sobolev constants at {where}",
        ladder(point.constants, marks),
        f"{_COLOURS}; violet: for comparison. The axis is logarithmic.",
    )


def tables(record: TheoryRecord) -> str:
    """Sections of tables, as HTML."""
    match record:
        case ExactRecord():
            return "".join(section(_where(point), _point(point)) for point in record.points)
        case ReferenceRecord():
            rows = [
                [c.row, c.quantity, c.printed, f"{c.computed:.12g}", "reproduced" if c.passes else "NOT REPRODUCED"]
                for c in record.checks
            ]
            return section("Reference values", table(["row", "quantity", "printed", "computed", ""], rows))
        case ModelConstantsRecord():
            each = [
                section(
                    f"λ = {format_number(p.weight_decay)}, s = {format_number(p.temperature)}",
                    (note(p.sentence) if len(record.points) > 1 else "")
                    + _constants(p.constants)
                    + (note(p.spectral_gap.text) if p.spectral_gap else ""),
                )
                for p in record.points
            ]
            return section("Every λ and s", model_table(record)) + "".join(each)


def model_table(record: ModelConstants) -> str:
    """One row for each λ and s: as claimed, certified, what decay alone has and what a run can see."""
    rows = []
    for point in record.points:
        known = {constant.id: constant for constant in point.constants}
        claimed, certified = known["C8"], known["C3"]
        apart = certified.log10 - claimed.log10
        rows.append(
            [
                format_number(point.weight_decay), format_number(point.temperature), _with_badge(claimed),
                _with_badge(certified), f"{abs(apart):,.1f} {'more' if apart > 0 else 'less'}",
                _power(_decay_alone(point)), "—" if point.visible is None else lower(point.visible, 3),
            ]
        )  # fmt: skip
    header = ["λ", "s", "claimed (C8)", "certified (C3)", "orders of magnitude", "decay alone", "visible to a run"]
    return table(header, rows) + note(_price(record))


def limits(record: TheoryRecord) -> list[str]:
    """What the page does not prove."""
    claim = "C8 is the preprint's formula read at β = 1, that is with βλ for λ. Nothing is ever derived from it."
    match record:
        case ExactRecord():
            return [
                "A certified C_P holds within the stated error: intervals show that the grid sees all of the potential "
                "and that nothing beyond it counts, and two solutions agree; the spectrum is floating point. An "
                "estimated one is only what two boxes and grids agree on.",
                "An estimated bound rests on a search on a grid out to 10⁶, a certified one on a closed form or on "
                "intervals. No theorem is refuted by a truth: where its bound lies below, its hypothesis fails.",
                "“Everywhere” is as far as squares stay in the range of floats, |w| ≤ 10¹⁰⁰.",
                claim,
            ]
        case ReferenceRecord():
            return ["That the theory is right: only that its printed figures follow from its definitions."]
        case ModelConstantsRecord():
            return [
                "The certified constant is that of the loss with smoothed predictions and decay on every parameter. It "
                "says nothing about the unsmoothed loss, for which a finite constant is open.",
                "A constant bounds how fast a diffusion in continuous time forgets where it began. No number of steps "
                "follows: rescaling pairs make the Lipschitz constant of ∇F infinite (THEORY.md §4).",
                claim,
            ]


def ladder(constants: Sequence[ConstantRecord], marks: Mapping[str, float] | None = None) -> go.Figure:
    """One constant a row, least first, on a logarithmic scale of any length; `marks` are logarithms to base 10."""
    rungs: list[tuple[float, str, str, str, str, str]] = [
        (c.log10, _label(c), value(c), c.status, _colour(c), _SYMBOLS[c.id]) for c in constants
    ]
    rungs += [(log, name, _power(log), "", _COMPUTED, "line-ns-open") for name, log in (marks or {}).items()]
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
    figure.update_xaxes(title_text="constant (logarithmic)", zeroline=False, **_powers(min(logs), max(logs)))
    figure.update_yaxes(showticklabels=False, ticks="", showgrid=False, range=[len(rungs) - 0.5, -0.9])
    return figure


def sweep(record: ExactRecord) -> go.Figure:
    """Every constant against what was varied; a mark's colour is the status there."""
    axis = record.varied
    assert axis is not None
    across: list[float] = [getattr(point, axis) for point in record.points]
    top = max(c.log10 for point in record.points for c in point.constants if c.id == "truth") + _REACH
    names = dict.fromkeys((c.id, c.name) for point in record.points for c in point.constants)
    curves, drawn = [], []
    for id, name in names:
        found = [
            (x, c)
            for x, point in zip(across, record.points, strict=True)
            for c in point.constants
            if (c.id, c.name) == (id, name)
        ]
        heights = [min(c.log10, top) for _, c in found]
        drawn += heights
        curves.append(
            go.Scatter(
                x=[x for x, _ in found],
                y=heights,
                name=_label(found[0][1]),
                mode="lines+markers" if any(c.log10 <= top for _, c in found) else "markers",
                line={"color": _COMPUTED if id == "truth" else "#8b93a1", "width": 2 if id == "truth" else 1},
                marker={
                    "color": [_colour(c) for _, c in found],
                    "symbol": ["triangle-up" if c.log10 > top else _symbol(c) for _, c in found],
                    "size": 11,
                },
                text=[f"{_label(c)}: {value(c)} ({c.status})" for _, c in found],
                hovertemplate="%{text}<extra></extra>",
                cliponaxis=False,
            )
        )
    figure = themed(curves, 560)
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": -0.18, "x": 0, "entrywidth": 250})
    logarithmic = axis != "dimension" and min(across) > 0
    ticks = {"tickvals": across, "ticktext": [format_number(x) for x in across]} if len(across) <= 12 else {}
    figure.update_xaxes(title_text=_AXES[axis], type="log" if logarithmic else "linear", **ticks)
    figure.update_yaxes(title_text="constant (logarithmic)", **_powers(min(drawn), max(drawn)))
    return figure


def value(constant: ConstantRecord) -> str:
    """A constant for people, as a power of ten beyond floats; bounds are rounded outwards."""
    if constant.id == "truth":
        return _power(constant.log10)
    return upper_power(constant.log10) if constant.direction == "upper" else lower_power(constant.log10)


def sign(constant: ConstantRecord) -> str:
    """= for a computed truth, ≤ or ≥ for a bound."""
    return "=" if constant.id == "truth" else "≤" if constant.direction == "upper" else "≥"


def _point(point: PointRecord) -> str:
    agree = "agree to rounding" if point.error < 1e-15 else f"differ by {format_number(point.error, 1)}"
    if point.status == "certified":
        certain = f"C_P is certified within {format_number(point.error, 2)} (relative)."
    else:
        certain = f"Two grids and boxes {agree}; nothing proves that they see all of the potential."
        if point.floor:
            certain += f" Certified is C_P ≥ {_rounded_down(point.floor)}."
    words = note(f"{point.verdict}. {certain}")
    gone = "; ".join(f"{missing.id}, since {missing.reason}" for missing in point.missing)
    return words + _constants(point.constants) + (note(f"What does not apply: {gone}.") if gone else "")


def _rounded_down(value: float) -> str:
    """Four digits, towards 0."""
    exponent = math.floor(math.log10(value)) - 3
    return format_number(math.floor(value / 10.0**exponent) * 10.0**exponent, 4)


def _constants(constants: Sequence[ConstantRecord]) -> str:
    rows = [
        [_label(c), f"{sign(c)} {value(c)}", c.kind, badge(c.status), "—" if c.id == "truth" else c.hypotheses]
        for c in constants
    ]
    return f'<div class="prose">{table(["bound", "value", "on", "status", "if"], rows)}</div>'


def _sweep_words(record: ExactRecord) -> str:
    assert record.varied is not None
    name = _AXES[record.varied]
    first, last = record.points[0], record.points[-1]
    words = (
        f"As the {name} goes from {format_number(getattr(first, record.varied))} to "
        f"{format_number(getattr(last, record.varied))}, C_P goes from {format_number(first.poincare)} to "
        f"{format_number(last.poincare)}."
    )
    refuted = dict.fromkeys(c.id for c in chain(*(p.constants for p in record.points)) if c.status == "refuted")
    for id in refuted:
        where = [p for p in record.points if any(c.id == id and c.status == "refuted" for c in p.constants)]
        words += f" {id} is refuted at {', '.join(format_number(getattr(p, record.varied)) for p in where)}."
    return words


def _in_short(point: ModelPointRecord) -> str:
    known = {constant.id: constant for constant in point.constants}
    apart = known["C3"].log10 - known["C8"].log10
    return (
        f"At λ = {format_number(point.weight_decay)}, s = {format_number(point.temperature)} the preprint claims a "
        f"log-Sobolev constant of {_doubted(known['C8'])}; certified is {_doubted(known['C3'])}, {abs(apart):,.1f} "
        f"orders of magnitude {'above' if apart > 0 else 'below'} it."
    )


def _doubted(constant: ConstantRecord) -> str:
    return value(constant) + (", refuted by the lower bound given" if constant.status == "refuted" else "")


def _with_badge(constant: ConstantRecord) -> Markup:
    return Markup(f"{html(value(constant))} {badge(constant.status)}")


def _price(record: ModelConstants) -> str:
    return (
        f"Smoothing the predictions with α = {format_number(record.alpha)} over V = {record.vocabulary:,} adds at most "
        f"{upper(record.smoothing_cost, 3)} nats to a token's loss."
    )


def _where(point: PointRecord) -> str:
    return (
        f"λ = {format_number(point.weight_decay)}, s = {format_number(point.temperature)} "
        f"(β = {format_number(point.beta)}), d = {point.dimension}"
    )


def _label(constant: ConstantRecord) -> str:
    return constant.name if constant.id == "truth" else f"{constant.id} {constant.name}"


def _colour(constant: ConstantRecord) -> str:
    return _COMPUTED if constant.id == "truth" else STATUS_COLOURS[constant.status]


def _symbol(constant: ConstantRecord) -> str:
    open_ = constant.id == "truth" and constant.kind == "log-Sobolev"
    return _SYMBOLS[constant.id] + ("-open" if open_ else "")


def _decay_alone(point: ModelPointRecord) -> float:
    """log₁₀ 1/(βλ)."""
    return math.log10(point.temperature / 2) - math.log10(point.weight_decay)


def _power(log10: float) -> str:
    if abs(log10) >= 300:
        return f"10^{log10:,.1f}"
    return f"{format_number(10 ** (log10 - 6))}·10⁶" if 6 <= log10 < 7 else format_number(10**log10)


def _powers(low: float, high: float) -> dict[str, object]:
    """Range and ticks of an axis of logarithms, at most eight of them."""
    step = next(n * 10**k for k in range(9) for n in (1, 2, 5) if (high - low) / (n * 10**k) <= 7)
    first, last = math.floor(low / step), math.ceil(high / step)
    ticks = [step * i for i in range(first, max(last, first + 1) + 1)]
    edge = 0.03 * (ticks[-1] - ticks[0])
    labels = ["1" if tick == 0 else f"10<sup>{tick}</sup>".replace("-", "−") for tick in ticks]
    return {"tickvals": ticks, "ticktext": labels, "range": [ticks[0] - edge, ticks[-1] + edge]}
