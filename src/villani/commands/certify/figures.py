"""Pictures of a certificate: beside what it competes with, along λ, and along the text."""

from collections.abc import Mapping

import plotly.graph_objects as go

from villani.commands.certify.record import CertificatePoint, CertificateRecord, PassPoint, PrequentialRecord
from villani.commands.certify.results import best_bound
from villani.report.colours import EXACT, NEGATIVE, POSITIVE, REMAINDER, TOTAL, UNRESOLVED
from villani.report.figures import line, themed
from villani.report.numbers import format_number
from villani.report.page import Pictures

_COLOURS = (TOTAL, POSITIVE, NEGATIVE, EXACT)
Rows = list[tuple[str, float, str]]  # name, nats, colour


def pictures(record: CertificateRecord) -> Pictures:
    """Name → title, figure, caption."""
    best = best_bound(record)
    point = best[0] if best else record.points[0]
    title = "Certified, and what it competes with"
    if isinstance(point, PassPoint):
        assert record.prequential is not None
        along = ("Along the text", _along_text(record.prequential), _PASS_CURVE_CAPTION)
        return {"truth": (title, _bar(record, _pass_rows(record, point)), _PASS_BAR_CAPTION), "pass": along}
    low, high = point.held_out_loss.interval
    figure = _bar(record, _path_rows(record, point), {"held-out loss": (high - low) / 2})
    many = len(record.points) > 1
    return {
        "truth": (title, figure, _BAR_CAPTION),
        "decay": ("Along the weight decay λ", _along_decay(record), _CURVE_CAPTION) if many else None,
    }


_BAR_CAPTION = (
    "Nats per token, at the λ of the best certificate. Green: certified; blue: with a confidence interval or bound of "
    "its own; grey: what is to be beaten. The training loss is of the same tokens, and is no bound on anything."
)
_CURVE_CAPTION = (
    "The certified risk and its parts. More decay shortens the way that training can go and lowers the complexity at a "
    "fixed clip, while the empirical risk rises: the sum need not be monotone in λ."
)
_PASS_BAR_CAPTION = (
    "Nats per token, at the λ and η of the best certificate. Green: certified, on the same tokens at the same δ; blue: "
    "of the last weights on held-out text; grey: what is to be beaten."
)
_PASS_CURVE_CAPTION = (
    "Loss of each part of the text under the frozen start, and under the weights from before it was trained on. The "
    "certificate is about the average of the second."
)


def _path_rows(record: CertificateRecord, point: CertificatePoint) -> Rows:
    colours = {name: TOTAL if bound.status == "certified" else POSITIVE for name, bound in point.bounds.items()}
    return [
        ("prior's centre, certified", record.prior_bound, TOTAL),
        *((f"{name} certificate ({b.status})", b.value, colours[name]) for name, b in point.bounds.items()),
        ("held-out bound, same δ", point.held_out_bound, POSITIVE),
        ("held-out loss", point.held_out_loss.value, POSITIVE),
        ("training loss", point.training_loss, REMAINDER),
    ]


def _pass_rows(record: CertificateRecord, point: PassPoint) -> Rows:
    return [
        ("frozen start, certified", record.prior_bound, TOTAL),
        ("iterates, certified", point.certificate.value, TOTAL),
        ("last weights, held-out bound", point.held_out_bound, POSITIVE),
        ("last weights, held-out loss", point.held_out_loss.value, POSITIVE),
    ]


def _bar(record: CertificateRecord, own: Rows, errors: Mapping[str, float] | None = None) -> go.Figure:
    rows: Rows = [
        ("guessing, ln V", record.log_vocabulary, UNRESOLVED),
        ("unigram entropy, held out", record.unigram_entropy, UNRESOLVED), *own,
    ]  # fmt: skip
    trace = go.Bar(
        x=[value for _, value, _ in rows], y=[name for name, *_ in rows], orientation="h",
        marker={"color": [colour for *_, colour in rows]}, text=[f"{value:.3f}" for _, value, _ in rows],
        textposition="outside", cliponaxis=False, hoverinfo="text",
    )  # fmt: skip
    if errors:
        trace.error_x = {"type": "data", "array": [errors.get(name, 0.0) for name, *_ in rows]}
    across = {"title": "nats per token", "rangemode": "tozero"}
    return themed([trace], 90 + 42 * len(rows), across, {"autorange": "reversed"}, right=64)


def _along_decay(record: CertificateRecord) -> go.Figure:
    points = sorted(record.points, key=lambda p: p.weight_decay)
    lines: list[tuple[str, list[float | None], str]] = [
        ("path certificate", [p.path.value if p.path else None for p in points], TOTAL),
        ("its empirical risk", [p.path.empirical if p.path else None for p in points], REMAINDER),
        ("its excess", [p.path.excess if p.path else None for p in points], NEGATIVE),
        ("c4 certificate", [p.chain.value if p.chain else None for p in points], POSITIVE),
        ("held-out loss", [p.held_out_loss.value for p in points], EXACT),
    ]
    x = [format_number(p.weight_decay) for p in points]
    traces = [line(x, y, name, colour) for name, y, colour in lines if any(value is not None for value in y)]
    across = {"title": "weight decay λ", "type": "category"}
    return themed(traces, 380, across, {"title": "nats per token", "rangemode": "tozero"}, {})


def _along_text(passes: PrequentialRecord) -> go.Figure:
    x = [segment.tokens for segment in passes.segments]
    traces = [line(x, [segment.start for segment in passes.segments], "frozen start", UNRESOLVED, "lines")]
    for index, point in enumerate(passes.points):
        name = f"λ = {point.weight_decay:g}, η = {point.learning_rate:g}"
        y = [segment.iterates[index] for segment in passes.segments]
        traces.append(line(x, y, name, _COLOURS[index % len(_COLOURS)], "lines"))
    return themed(traces, 380, {"title": "tokens"}, {"title": "nats per token"}, {})
