"""Certificates on the page: a bar against what they compete with, their terms, λ, and in words what they are about."""

from collections.abc import Iterable

import plotly.graph_objects as go

from villani.commands.certify import prequential_page as prequential
from villani.commands.certify.record import BoundRecord, CertificatePoint, CertificateRecord
from villani.outwards import upper
from villani.report.elements import badge, facts, note, section, table
from villani.report.figures import EXACT, NEGATIVE, POSITIVE, REMAINDER, TOTAL, UNRESOLVED, themed
from villani.report.numbers import format_number, format_uncertain

Pictures = dict[str, tuple[str, go.Figure, str]]
_LIMITS = (
    "The risk that is bounded is the mean of E[loss of a token | everything before it] on the contexts of the "
    "certified text. It is not a statement about new documents, nor about the law that the text came from.",
    "A path certificate is about the weights that one run ended at, with probability over the text, the batches and "
    "the noise together. A c4 certificate is about weights drawn afresh, by a run with new noise, not a run seen.",
    "Every setting has to have been fixed before the certified tokens were looked at, or chosen from a grid that was, "
    "whose size δ is divided by (--candidates). Any other search is not paid for.",
    "Tokens may have any law. If their tokenizer was made from the certified text, as the builtin one was from the "
    "builtin text, the bound is under the joint law of text and tokenizer, and not of a text cut by given rules.",
    "Every bound on tokens needs causality: a model that sees what it is to predict makes it void. That was tried out, "
    "by changing tokens and looking at the logits before them, not proved.",
    "Losses are of smoothed predictions (1 − α)p + α/V, which is what makes them bounded.",
    "Held-out bounds use text that training never saw. They hold at the same δ, and they are usually better.",
    "Sums are taken in floating point; their rounding is not part of the certificate.",
)


def headline(record: CertificateRecord) -> str:
    """The best certificate, and what it beats."""
    return record.sentence


def findings(record: CertificateRecord) -> dict[str, str]:
    """Title → paragraph."""
    found = {"The prior": f"{record.prior}. {record.moving:,} coordinates move (tensors: {record.train})."}
    if record.prequential:
        gain = prequential.best(record.prequential).gain
        found["What the gain is about"] = (
            f"{gain.about}; α = {gain.alpha:g}. It holds with probability {1 - record.delta:g} on its own."
        )
    if best := _best(record):
        found["What the predictor is"] = f"{best.predictor}; predictions smoothed with α = {best.alpha:g}."
        found["What the bound is about"] = f"{best.about}."
        found["What has to hold"] = f"{best.hypotheses}."
    refused = [f"λ = {p.weight_decay:g}: {reason}" for p in record.points for reason in p.refusals]
    if refused:
        found["Not given"] = "; ".join(refused) + "."
    return found


def pictures(record: CertificateRecord) -> Pictures:
    """Name → title, figure, caption."""
    if record.prequential:
        return prequential.pictures(record, record.prequential)
    found = {"truth": ("Certified, and what it competes with", _bar(record), _BAR_CAPTION)}
    if len(record.points) > 1:
        found["decay"] = ("Along the weight decay λ", _curve(record), _CURVE_CAPTION)
    return found


def tables(record: CertificateRecord) -> str:
    """Sections of tables, as HTML."""
    return (prequential.tables(record.prequential) if record.prequential else _runs(record)) + _given(record)


def _runs(record: CertificateRecord) -> str:
    header = [
        "λ",
        "certificate",
        "nats per token",
        "bits",
        "empirical",
        "Monte Carlo",
        "excess",
        "complexity",
        "α",
        "bound",
        "",
    ]
    rows = [
        [
            format_number(point.weight_decay), bound.predictor, upper(bound.value, places=4),
            upper(bound.bits, places=4), f"{bound.empirical:.4f}", upper(bound.monte_carlo, places=4),
            upper(bound.excess, places=4), upper(bound.complexity, places=1),
            format_number(bound.alpha), bound.bound, badge(bound.status),
        ]
        for point in record.points for bound in (point.path, point.chain) if bound is not None
    ]  # fmt: skip
    runs = [
        [
            format_number(p.weight_decay), str(p.chains), f"{p.training_loss:.4f}",
            format_uncertain(p.held_out_loss.value, p.held_out_loss.sem), upper(p.held_out_bound, places=4),
            f"{p.path_cost:,.1f}", "—" if p.clip_complexity is None else upper(p.clip_complexity, places=1),
            format_number(p.noise, 3), format_number(p.moved, 3), f"{p.clipped:.0%}",
        ]
        for p in record.points
    ]  # fmt: skip
    columns = [
        "λ", "chains", "training loss", "held-out loss", "held-out bound", "path cost", "clip's c4", "noise", "‖w‖",
        "clipped",
    ]  # fmt: skip
    return section("Certificates", table(header, rows)) + section("The runs behind them", table(columns, runs))


def _given(record: CertificateRecord) -> str:
    spent = {name: format_number(value) for name, value in record.spending.items() if value}
    about = {
        "certified": f"{record.text.spec}: {record.tokens:,} tokens; {record.text.words}",
        "held out": f"{record.held_out.spec}; {record.held_out.words}",
        "prior's centre, loss": f"{record.prior_loss:.4f} on the certified tokens",
        "command": record.provenance.command,
    }
    words = (
        f"for a choice among {record.candidates:,} settings" if record.candidates > 1 else "for these settings alone"
    )
    one = "one λ, one η and one α" if record.prequential else "one λ and one α"
    note_of = note(f"δ = {record.delta:g} in all, {words}; at {one}:")
    return section("How δ is spent", note_of + facts(spent)) + section("What went in", facts(about))


def limits(record: CertificateRecord) -> Iterable[str]:
    """What does not follow."""
    return (*prequential.LIMITS, *(_LIMITS[k] for k in (0, 2, 3, 4, 5, 7))) if record.prequential else _LIMITS


def _best(record: CertificateRecord) -> BoundRecord | None:
    if record.prequential:
        return prequential.best(record.prequential).certificate
    found = [bound for point in record.points for bound in (point.path, point.chain) if bound is not None]
    return min(found, key=lambda bound: bound.value, default=None)


def _shown(record: CertificateRecord) -> CertificatePoint:
    """The λ of the best certificate, or the first."""
    best = _best(record)
    return next((p for p in record.points if best is not None and best in (p.path, p.chain)), record.points[0])


_BAR_CAPTION = (
    "Nats per token, at the λ of the best certificate. Green: certified; blue: with a confidence interval or bound of "
    "its own; grey: what is to be beaten. The training loss is of the same tokens, and is no bound on anything."
)
_CURVE_CAPTION = (
    "The certified risk and its parts. More decay shortens the way that training can go and lowers the complexity at a "
    "fixed clip, while the empirical risk rises: the sum need not be monotone in λ."
)


def _bar(record: CertificateRecord) -> go.Figure:
    point = _shown(record)
    rows: list[tuple[str, float, str]] = [
        ("guessing, ln V", record.log_vocabulary, UNRESOLVED),
        ("unigram entropy, held out", record.unigram_entropy, UNRESOLVED),
        ("prior's centre, certified", record.prior_bound, TOTAL),
    ]  # fmt: skip
    for name, bound in (("path certificate", point.path), ("c4 certificate", point.chain)):
        if bound is not None:
            rows.append((f"{name} ({bound.status})", bound.value, TOTAL if bound.status == "certified" else POSITIVE))
    rows += [
        ("held-out bound, same δ", point.held_out_bound, POSITIVE),
        ("held-out loss", point.held_out_loss.value, POSITIVE),
        ("training loss", point.training_loss, REMAINDER),
    ]
    low, high = point.held_out_loss.interval
    errors = [(high - low) / 2 if name == "held-out loss" else 0.0 for name, *_ in rows]
    trace = go.Bar(
        x=[value for _, value, _ in rows], y=[name for name, *_ in rows], orientation="h",
        marker={"color": [colour for *_, colour in rows]}, text=[f"{value:.3f}" for _, value, _ in rows],
        textposition="outside", cliponaxis=False, error_x={"type": "data", "array": errors}, hoverinfo="text",
    )  # fmt: skip
    figure = themed([trace], 90 + 42 * len(rows))
    figure.update_layout(margin_r=64)
    figure.update_xaxes(title="nats per token", rangemode="tozero")
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure


def _curve(record: CertificateRecord) -> go.Figure:
    points = sorted(record.points, key=lambda p: p.weight_decay)
    x = [format_number(p.weight_decay) for p in points]
    lines: list[tuple[str, list[float | None], str]] = [
        ("path certificate", [p.path.value if p.path else None for p in points], TOTAL),
        ("its empirical risk", [p.path.empirical if p.path else None for p in points], REMAINDER),
        ("its excess", [p.path.excess if p.path else None for p in points], NEGATIVE),
        ("c4 certificate", [p.chain.value if p.chain else None for p in points], POSITIVE),
        ("held-out loss", [p.held_out_loss.value for p in points], EXACT),
    ]
    traces = [
        go.Scatter(x=x, y=y, name=name, mode="lines+markers", marker={"color": colour}, line={"color": colour})
        for name, y, colour in lines
        if any(value is not None for value in y)
    ]
    figure = themed(traces, 380)
    figure.update_layout(showlegend=True)
    figure.update_xaxes(title="weight decay λ", type="category")
    figure.update_yaxes(title="nats per token", rangemode="tozero")
    return figure
