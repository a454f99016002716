"""The page of a model's constants, and what other pages show of them: as claimed, certified, and how far apart."""

import math
from pathlib import Path

import plotly.graph_objects as go
from rich.console import Console

from villani.commands.constants.record import ModelConstants, ModelConstantsRecord, ModelPointRecord
from villani.commands.exact.ladder import LEGEND, PREPRINT, constant_rows, ladder, power, value
from villani.commands.exact.record import ConstantRecord
from villani.outwards import lower, upper
from villani.report import elements
from villani.report.elements import Markup, Row, Status, html, note, prose, section
from villani.report.estimates import at
from villani.report.numbers import format_number
from villani.report.page import Pictures
from villani.report.terminal import say, table

NEXT = "What to do next about λ"


def headline(record: ModelConstantsRecord) -> str:
    """One sentence, about the first λ and s."""
    point = record.points[0]
    claimed, certified, apart = _both(point)
    return (
        f"At {at(point)} the preprint claims a log-Sobolev constant of {_doubted(claimed)}; certified is "
        f"{_doubted(certified)}, {abs(apart):,.1f} orders of magnitude {'above' if apart > 0 else 'below'} it."
    )


def findings(record: ModelConstantsRecord) -> dict[str, str]:
    """Title → paragraph."""
    first = record.points[0]
    gap = first.spectral_gap.text if first.spectral_gap else ""
    return {
        "In full": first.sentence, "What it costs": _price(record), "Without smoothing": gap,
        NEXT: record.next_step,
    }  # fmt: skip


def pictures(record: ModelConstantsRecord) -> Pictures:
    """Name → title, figure, caption; the one named `truth` is given the whole width."""
    return {"truth": model_picture(record)}


def tables(record: ModelConstantsRecord) -> str:
    """Sections of tables, as HTML."""
    made = section("Every λ and s", model_table(record))
    for p in record.points:
        first = note(p.sentence) if len(record.points) > 1 else ""
        last = note(p.spectral_gap.text) if p.spectral_gap else ""
        made += section(at(p), first + prose(elements.table(constant_rows(p.constants))) + last)
    return made


def limits(_: ModelConstantsRecord) -> list[str]:
    """What the page does not prove."""
    return [
        "The certified constant is that of the loss with smoothed predictions and decay on every parameter. It "
        "says nothing about the unsmoothed loss, for which a finite constant is open.",
        "A constant bounds how fast a diffusion in continuous time forgets where it began. No number of steps "
        "follows: rescaling pairs make the Lipschitz constant of ∇F infinite (THEORY.md §4).",
        PREPRINT,
    ]


def show(record: ModelConstantsRecord, _: Path, console: Console) -> None:
    """For every λ and s: the sentence, and the constants in order."""
    say(console, f"{record.model.description}: {record.parameters:,} parameters, V = {record.vocabulary:,}")
    for point in record.points:
        say(console, point.sentence, "bold")
        console.print(table(constant_rows(point.constants)))
        if point.spectral_gap:
            say(console, point.spectral_gap.text)
    if record.next_step:
        say(console, f"{NEXT}: {record.next_step}")


def model_finding(constants: ModelConstants) -> str:
    """For the page of a measurement: the sentence at the first λ and s, and what was measured that does not enter."""
    return (
        f"{constants.points[0].sentence} Nothing measured here enters. An estimate from curvature (C2) would need the "
        "least eigenvalue of ∇²L, of which a trace tells only that it is at most tr ∇²L/d; one from gradients (C4) the "
        "largest ‖∇L‖ that there is, which the one at this point only bounds from below."
    )


def model_picture(record: ModelConstants) -> tuple[str, go.Figure, str]:
    """Title, figure and caption: the constants of a model at its first λ and s."""
    point = record.points[0]
    marks = {"decay alone, 1/(βλ)": _decay_alone(point)}
    if point.visible is not None:
        marks[f"a run of length {format_number(record.time or 0)} can see"] = math.log10(point.visible)
    return (
        f"Log-Sobolev constants at {at(point)}",
        ladder(point.constants, marks),
        f"{LEGEND}; violet: for comparison. The axis is logarithmic.",
    )


def model_table(record: ModelConstants) -> str:
    """One row for each λ and s: as claimed, certified, what decay alone has and what a run can see."""
    rows: list[Row] = []
    for point in record.points:
        claimed, certified, apart = _both(point)
        rows.append(
            {
                "λ": format_number(point.weight_decay), "s": format_number(point.temperature),
                "claimed (C8)": _with_badge(claimed), "certified (C3)": _with_badge(certified),
                "orders of magnitude": f"{abs(apart):,.1f} {'more' if apart > 0 else 'less'}",
                "decay alone": power(_decay_alone(point)), "visible to a run": lower(point.visible, 3),
            }
        )  # fmt: skip
    return elements.table(rows) + note(_price(record))


def _both(point: ModelPointRecord) -> tuple[ConstantRecord, ConstantRecord, float]:
    """What is claimed, what is certified, and by how many orders of magnitude this is more."""
    known = {constant.id: constant for constant in point.constants}
    return known["C8"], known["C3"], known["C3"].log10 - known["C8"].log10


def _doubted(constant: ConstantRecord) -> str:
    return value(constant) + (", refuted by the lower bound given" if constant.status == "refuted" else "")


def _with_badge(constant: ConstantRecord) -> Markup:
    return Markup(f"{html(value(constant))} {html(Status(constant.status))}")


def _price(record: ModelConstants) -> str:
    return (
        f"Smoothing the predictions with α = {format_number(record.alpha)} over V = {record.vocabulary:,} adds at most "
        f"{upper(record.smoothing_cost, 3)} nats to a token's loss."
    )


def _decay_alone(point: ModelPointRecord) -> float:
    """log₁₀ 1/(βλ)."""
    return math.log10(point.temperature / 2) - math.log10(point.weight_decay)
