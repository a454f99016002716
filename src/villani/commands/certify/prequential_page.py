"""A prequential certificate on the page: beside the frozen start, along the text, and at every λ and η."""

import plotly.graph_objects as go

from villani.commands.certify.record import CertificateRecord, PassPoint, PrequentialRecord
from villani.outwards import lower, upper
from villani.report.elements import badge, section, table
from villani.report.figures import EXACT, NEGATIVE, POSITIVE, TOTAL, UNRESOLVED, themed
from villani.report.numbers import format_number, format_uncertain

LIMITS = (
    "What is certified is the average over the pass of the conditional risk of each iterate on the blocks that came "
    "next. It is not about the last weights: for these, use the held-out bound.",
    "It needs the text's order as it is, settings fixed before the text, and blocks that are scored before they are "
    "trained on. A second epoch has no such certificate.",
    "The frozen start's certificate, the gain and the held-out bounds are statements at δ each, beside the iterates'.",
)
_COLOURS = (TOTAL, POSITIVE, NEGATIVE, EXACT)


def best(record: PrequentialRecord) -> PassPoint:
    """The least certificate of all λ and η."""
    return min(record.points, key=lambda point: point.certificate.value)


def pictures(record: CertificateRecord, passes: PrequentialRecord) -> dict[str, tuple[str, go.Figure, str]]:
    """Name → title, figure, caption."""
    return {
        "truth": ("Certified, and what it competes with", _bar(record, best(passes)), _BAR_CAPTION),
        "pass": ("Along the text", _curve(passes), _CURVE_CAPTION),
    }  # fmt: skip


def tables(record: PrequentialRecord) -> str:
    """Sections of tables, as HTML."""
    header = ["λ", "η", "nats per token", "bits", "empirical", "excess", "α", "bound", "below the start", "gain", ""]
    rows = [
        [
            format_number(p.weight_decay), format_number(p.learning_rate), upper(p.certificate.value, places=4),
            upper(p.certificate.bits, places=4), f"{p.certificate.empirical:.4f}",
            upper(p.certificate.excess, places=4), format_number(p.certificate.alpha), p.certificate.bound,
            lower(p.below_start, places=4), lower(p.gain.value, places=4), badge(p.certificate.status),
        ]
        for p in record.points
    ]  # fmt: skip
    columns = [
        "λ", "η", "loss before training on it", "last weights, held-out loss", "held-out bound", "‖θ − centre‖",
        "clipped",
    ]  # fmt: skip
    runs = [
        [
            format_number(p.weight_decay), format_number(p.learning_rate), f"{p.loss:.4f}",
            format_uncertain(p.held_out_loss.value, p.held_out_loss.sem), upper(p.held_out_bound, places=4),
            format_number(p.moved, 3), f"{p.clipped:.0%}",
        ]
        for p in record.points
    ]  # fmt: skip
    return section("Certificates", table(header, rows)) + section("The passes behind them", table(columns, runs))


_BAR_CAPTION = (
    "Nats per token, at the λ and η of the best certificate. Green: certified, on the same tokens at the same δ; blue: "
    "of the last weights on held-out text; grey: what is to be beaten."
)
_CURVE_CAPTION = (
    "Loss of each part of the text under the frozen start, and under the weights from before it was trained on. The "
    "certificate is about the average of the second."
)


def _bar(record: CertificateRecord, point: PassPoint) -> go.Figure:
    rows = [
        ("guessing, ln V", record.log_vocabulary, UNRESOLVED),
        ("unigram entropy, held out", record.unigram_entropy, UNRESOLVED),
        ("frozen start, certified", record.prior_bound, TOTAL),
        ("iterates, certified", point.certificate.value, TOTAL),
        ("last weights, held-out bound", point.held_out_bound, POSITIVE),
        ("last weights, held-out loss", point.held_out_loss.value, POSITIVE),
    ]
    trace = go.Bar(
        x=[value for _, value, _ in rows], y=[name for name, *_ in rows], orientation="h",
        marker={"color": [colour for *_, colour in rows]}, text=[f"{value:.3f}" for _, value, _ in rows],
        textposition="outside", cliponaxis=False, hoverinfo="text",
    )  # fmt: skip
    figure = themed([trace], 90 + 42 * len(rows))
    figure.update_layout(margin_r=64)
    figure.update_xaxes(title="nats per token", rangemode="tozero")
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure


def _curve(record: PrequentialRecord) -> go.Figure:
    x = [segment.tokens for segment in record.segments]
    lines = [("frozen start", [segment.start for segment in record.segments], UNRESOLVED)]
    for index, point in enumerate(record.points):
        name = f"λ = {point.weight_decay:g}, η = {point.learning_rate:g}"
        y = [segment.iterates[index] for segment in record.segments]
        lines.append((name, y, _COLOURS[index % len(_COLOURS)]))
    traces = [
        go.Scatter(x=x, y=y, name=name, mode="lines", line={"color": colour}) for name, y, colour in lines
    ]  # fmt: skip
    figure = themed(traces, 380)
    figure.update_layout(showlegend=True)
    figure.update_xaxes(title="tokens")
    figure.update_yaxes(title="nats per token")
    return figure
