"""Langevin chains on the page and in the terminal: what curves show, what they prove, and every rate beside them."""

import math
from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from villani.commands.converge.record import ChainsRecord, ConvergenceRecord, CurveRecord, FitRecord, RateRecord
from villani.outwards import lower, lower_power, upper, upper_power
from villani.report.elements import badge, note, section, table
from villani.report.figures import NEGATIVE, POSITIVE, REMAINDER, STATUS_COLOURS, TOTAL, UNRESOLVED, themed
from villani.report.numbers import format_interval, format_number, format_uncertain
from villani.report.page import Pictures
from villani.report.terminal import print_findings, print_page
from villani.work.records import EstimateRecord

_NAMES = {
    "loss": "L", "objective": "F", "norm_squared": "‖θ‖²", "radial_force": "⟨θ, ∇F⟩", "gradient_squared": "‖∇F‖²",
    "laplacian": "ΔF", "psi": "Ψ_s",
}  # fmt: skip
_SHOWN = ("loss", "objective", "norm_squared", "linear_0")
_COLOURS = (POSITIVE, TOTAL, REMAINDER, "#a78bfa", "#ec4899", "#14b8a6", "#eab308", "#8b93a1")
_REACH = 12  # orders of magnitude below all that was seen that the picture shows; promises below stand at its edge
_SIDES = {
    "at least": "≥ (promised)",
    "at most": "≤ (seen)",
    "equal": "=",
    "fitted": "fitted",
    "reference": "(reference)",
}


def show(record: ConvergenceRecord, directory: Path, console: Console) -> None:
    """What came out in words, and every rate at every λ and s with its verdict."""
    print_findings(console, headline(record), findings(record))
    for point in record.points:
        rows = Table("rate", "the gap is", "value", "status", "verdict", title=_where(point), title_justify="left")
        for row in sorted(point.rates, key=lambda row: row.log10):
            rows.add_row(escape(row.name), row.side, power(row.log10), row.status, row.verdict or "")
        console.print(rows)
    if record.cost:
        console.print(f"{record.cost.seconds:.1f} s, {record.cost.seconds_per_group:.3g} s a step")
    print_page(console, directory)


def named(name: str) -> str:
    """An observable in the field's notation."""
    return _NAMES.get(name, f"u{name.removeprefix('linear_')}·θ" if name.startswith("linear_") else name)


def headline(record: ConvergenceRecord) -> str:
    """One sentence, about the first λ and s; the trap goes first if there is one."""
    first = record.points[0]
    return f"{first.trap} {first.sentence}" if first.trap.startswith("The loss does not see the") else first.sentence


def findings(record: ConvergenceRecord) -> dict[str, str]:
    """Title → paragraph."""
    first = record.points[0]
    paragraphs = {}
    if first.trap and first.trap not in headline(record):
        paragraphs["What the loss does not see"] = first.trap
    paragraphs["Has it reached equilibrium?"] = _equilibrium(first)
    fitted = any(fit.name == "loss" and fit.rate for fit in first.fits)
    paragraphs["What the loss curve proves"] = (
        ("That this observable, from this start, went down at the fitted rate. " if fitted else "No rate was fitted. ")
        + "Nearly every observable ends at the gap, the slowest rate of all, so that an asymptotic rate bounds the gap "
        "from above and a constant from below; no curve bounds a constant from above. Exponential decay of the loss is "
        "therefore no confirmation of a log-Sobolev constant."
    )
    if left := [d for p in record.points for d in p.diverged]:
        worst = min(left, key=lambda d: d.step)
        curvature = (
            "" if worst.curvature is None else f", from a curvature of about {format_number(worst.curvature, 2)}"
        )
        paragraphs["Diverged"] = (
            f"{len(left)} of {record.design.chains * len(record.points)} chains left, the first at step {worst.step}; "
            f"what was measured before is kept. Try --learning-rate {format_number(worst.learning_rate, 2)}{curvature} "
            "(estimated)."
        )
    if noise := first.gradient_noise:
        paragraphs["Mini-batches"] = (
            f"Steps take gradients of {record.design.batch} of {record.design.blocks} blocks. Beside the injected "
            f"noise, theirs is at most {upper(noise.isotropic, 2)} of s spread over all directions, and at "
            f"most {upper(noise.worst_direction, 2)} of s in one (heuristic: the chain's law is not exactly "
            "the Gibbs law, and ‖∇F‖² of a batch is biased upwards)."
        )
    if record.undecayed:
        paragraphs["Without decay"] = (
            f"{record.undecayed:,} coordinates do not decay. They are moved and shaken like the others, but "
            "exp(−2F/s) need not be integrable over them, so that there may be no law to converge to (THEORY.md §2.1)."
        )
    if len(record.points) > 1:
        paragraphs["Elsewhere"] = " ".join(point.sentence for point in record.points[1:])
    return paragraphs


def _equilibrium(point: ChainsRecord) -> str:
    known = [m for m in point.mixing if m.rhat is not None and m.ess is not None]
    words = {
        "not contradicted": "Nothing contradicts it.",
        "contradicted": "No.",
        "unknown": "It cannot be told.",
    }[point.equilibrium]
    if known:
        worst = max(known, key=lambda m: m.rhat or 0)
        least = min(known, key=lambda m: m.ess or 0)
        words += (
            f" Over the second half R̂ is at most {upper(worst.rhat or 0, 4)} ({named(worst.name)}), the "
            f"effective sample size at least {lower(least.ess or 0, 3)} ({named(least.name)})."
        )
    for identity in point.identities:
        if identity.ratio:
            words += f" {identity.name}: {identity.verdict} (ratio {_value(identity.ratio)})."
    return words + " Chains that begin alike agree alike: a mode that none of them visited stays unseen."


def pictures(record: ConvergenceRecord) -> Pictures:
    """Name → title, figure, caption; the rates of the first λ and s stand first, over the whole width."""
    shown: Pictures = {}
    if record.points[0].rates:  # at λ = 0 nothing is promised, and a short run may fit nothing
        shown["truth"] = (
            f"Rates at {_where(record.points[0])}",
            rates(record.points[0].rates),
            "Triangles to the right are promises (the gap is at least that; the faintest stand at the edge), "
            "to the left bounds that the run found (at "
            "most), diamonds exact, open circles fits to a transient, which bound nothing for sure; bars: references. "
            "Green is certified, blue statistical, amber estimated, grey as claimed, red refuted.",
        )
    for index, point in enumerate(record.points):
        curves = {curve.name: curve for curve in point.curves}
        fits = {fit.name: fit for fit in point.fits}
        for name in _SHOWN:
            if name in curves and _varies(curves[name]):
                shown[f"curve{index}{name}"] = (
                    f"{named(name)} at {_where(point)}",
                    trajectory(point.times, curves[name], fits.get(name)),
                    _caption(name, fits.get(name)),
                )
        if point.coupled and len(point.coupled.times) > 1:
            rate = point.coupled.rate
            what = f"Contraction rate {_value(rate)}." if rate else "Too short for a rate."
            shown[f"coupled{index}"] = (
                f"Common noise at {_where(point)}",
                _line(point.coupled.times, point.coupled.log_distance, "ln ‖θ_a − θ_b‖"),
                f"Two chains from different starts with the same noise and batches. {what} A positive rate on one path "
                "is an estimate of contraction there, and proves none elsewhere.",
            )
    return shown


def rates(rows: Sequence[RateRecord]) -> go.Figure:
    """One rate a row on a logarithmic axis of any length."""
    ordered = sorted(rows, key=lambda row: row.log10)
    edge = min((row.log10 for row in rows if row.side != "at least"), default=-math.inf) - _REACH
    logs = [max(row.log10, edge) for row in ordered]
    symbols = {"at least": "triangle-right", "at most": "triangle-left", "equal": "diamond", "fitted": "circle-open"}
    symbols["reference"] = "line-ns-open"
    trace = go.Scatter(
        x=logs,
        y=list(range(len(ordered))),
        mode="markers",
        marker={
            "size": 13,
            "color": [STATUS_COLOURS[row.status] for row in ordered],
            "symbol": [symbols[row.side] for row in ordered],
            "line": {"width": 2},
        },
        text=[f"{row.name}: {_rate(row)}" for row in ordered],
        hovertemplate="%{text}<extra></extra>",
        cliponaxis=False,
    )
    figure = themed([trace], 110 + 44 * len(ordered))
    for index, row in enumerate(ordered):
        words = f"{row.name}: <b>{_rate(row)}</b> ({row.verdict or row.status})"
        figure.add_annotation(
            text=words, x=0, xref="x domain", xanchor="left", y=index, yshift=17, showarrow=False, font={"size": 12}
        )
    pad = max(0.06 * (max(logs) - min(logs)), 0.3)
    low, high = min(logs) - pad, max(logs) + pad
    step = max(1, math.ceil((high - low) / 8))
    ticks = list(range(math.floor(low), math.ceil(high) + 1, step))
    figure.update_xaxes(
        title_text="rate, per unit of diffusion time (logarithmic)", range=[low, high], tickvals=ticks,
        ticktext=[f"10<sup>{tick}</sup>".replace("-", "−") for tick in ticks],
    )  # fmt: skip
    figure.update_yaxes(showticklabels=False, ticks="", showgrid=False, range=[len(ordered) - 0.5, -0.9])
    return figure


def trajectory(times: Sequence[float], curve: CurveRecord, fit: FitRecord | None) -> go.Figure:
    """Chains thin, their mean thick, and the fit of the first window and of the last usable one."""
    traces = [
        go.Scatter(
            x=list(times), y=chain, mode="lines", line={"width": 1, "color": UNRESOLVED}, opacity=0.55,
            hoverinfo="skip", name=f"chain {index}",
        )
        for index, chain in enumerate(curve.chains)
    ]  # fmt: skip
    traces.append(
        go.Scatter(
            x=list(times), y=curve.mean, mode="lines", line={"width": 2.5, "color": POSITIVE}, name="mean",
            hovertemplate="t = %{x:.4g}: %{y:.5g}<extra></extra>",
        )
    )  # fmt: skip
    usable = [window for window in fit.windows if not window.problem] if fit else []
    for window in usable[-1:]:
        ahead = [t for t in times if t >= window.start]
        traces.append(
            go.Scatter(
                x=ahead,
                y=[window.level + window.amplitude * math.exp(-window.rate * (t - window.start)) for t in ahead],
                mode="lines", line={"width": 2, "color": NEGATIVE, "dash": "dash"}, name="fit", hoverinfo="skip",
            )
        )  # fmt: skip
    figure = themed(traces, 300)
    figure.update_xaxes(title="time of the diffusion, Σ η/(1 − μ)")
    figure.update_yaxes(title=named(curve.name))
    return figure


def _line(times: Sequence[float], values: Sequence[float], title: str) -> go.Figure:
    figure = themed([go.Scatter(x=list(times), y=list(values), mode="lines", line={"color": POSITIVE})], 300)
    figure.update_xaxes(title="time of the diffusion")
    figure.update_yaxes(title=title)
    return figure


def _caption(name: str, fit: FitRecord | None) -> str:
    words = "Grey: chains; blue: their mean"
    if fit is None:
        return f"{words}."
    if fit.rate is None:
        return f"{words}. No rate: {fit.why}."
    what = f"{words}; red: c + A·e^(−rt) with r = {_value(fit.rate)}, windows and noise together "
    what += f"{format_interval(*fit.rate.interval)}. {fit.verdict}: {fit.why}."
    return what + (" A linear observable, which sees odd modes." if name.startswith("linear") else "")


def tables(record: ConvergenceRecord) -> str:
    """Sections of tables, as HTML."""
    body = [_point(point) for point in record.points]
    design = record.design
    batch = "full gradients" if design.batch is None else f"{design.batch} of {design.blocks} blocks a step"
    words = (
        f"{design.chains} chains of {design.steps:,} steps by {design.method}, "
        f"η = {format_number(design.learning_rate)} ({design.schedule}), momentum "
        f"{format_number(design.momentum)}, {batch}, seed {design.seed}; start: {design.start}; logged every "
        f"{design.log_every} steps, each a mean over {design.walkers} walkers. Noise, "
        "batches and acceptance are functions of (seed, chain, step)."
    )
    if record.cost:
        cost = record.cost
        words += f" {cost.seconds:.1f} s ({cost.seconds_per_group:.3g} s a step)"
        if cost.observing_seconds is not None and cost.seconds:
            words += f", of which observables took {100 * cost.observing_seconds / cost.seconds:.1f} %"
        words += f"; peak memory {cost.peak_memory_bytes / 2**30:.2f} GiB." if cost.peak_memory_bytes else "."
    return "".join(body) + section("How it was run", note(words))


def _point(point: ChainsRecord) -> str:
    rows = [
        [html_row.name, _SIDES[html_row.side], _rate(html_row), badge(html_row.status), html_row.verdict or "—",
         html_row.sentence]
        for html_row in sorted(point.rates, key=lambda row: row.log10)
    ]  # fmt: skip
    made = f'<div class="prose">{table(["rate", "the gap is", "value", "status", "verdict", "why"], rows)}</div>'
    fits = [
        [named(fit.name), "—" if fit.rate is None else _value(fit.rate),
         "—" if fit.rate is None else format_interval(*fit.rate.interval), fit.verdict, fit.why]
        for fit in point.fits
    ]  # fmt: skip
    made += f'<div class="prose">{table(["fit of", "rate", "interval over windows", "", "why"], fits)}</div>'
    identities = [
        [i.name, "—" if i.ratio is None else _value(i.ratio),
         "—" if i.ratio is None else format_interval(*i.ratio.interval), i.verdict, i.note]
        for i in point.identities
    ]  # fmt: skip
    header = ["identity", "left over right", "interval", "", "how"]
    made += f'<div class="prose">{table(header, identities)}</div>'
    mixing = [
        [named(m.name), "—" if m.rhat is None else format_number(m.rhat, 4), "—" if m.ess is None else f"{m.ess:,.0f}"]
        for m in point.mixing
    ]
    made += table(["second half", "R̂", "effective samples"], mixing)
    if point.acceptance is not None:
        made += note(f"Accepted: {100 * point.acceptance:.1f} % of proposals.")
    return section(_where(point), note(point.sentence) + made)


def limits(record: ConvergenceRecord) -> list[str]:
    """What the page does not prove."""
    sentences = [
        "No constant, claimed or certified, is confirmed by anything here. The strongest words are “refuted” and “not "
        "contradicted”.",
        "A bound from an autocorrelation or a variance is for a reversible chain at equilibrium; that the chain is "
        "there can be contradicted by R̂, effective samples and the identities, never shown by them.",
        "Rates are those of the discrete chain in time Σ η; they differ from the diffusion's by O(η × curvature). A "
        "refutation asks for a factor of 1.25 because of that.",
        "Intervals of fits are over independent chains and over windows; a sum of two exponentials on a short window "
        "may pass for one.",
    ]
    if record.model:
        sentences.append(
            "No number of steps follows for a Transformer with rescaling pairs, whose ∇F has no Lipschitz constant "
            "(THEORY.md §4). SGD without injected noise has no temperature; s_eff is a heuristic."
        )
    return sentences


def _where(point: ChainsRecord) -> str:
    return f"λ = {format_number(point.weight_decay)}, s = {format_number(point.temperature)}"


def _rate(row: RateRecord) -> str:
    value = lower_power(row.log10, 3) if row.side == "at least" else power(row.log10)
    if row.limit_log10 is None:
        return value
    return f"{value} (at most {upper_power(row.limit_log10, 3)}: 95 %, all such bounds at once)"


def power(log10: float) -> str:
    """10^log10 for people, beyond floats too."""
    return format_number(10**log10, 3) if abs(log10) < 300 else f"10^{log10:,.1f}"


def _value(estimate: EstimateRecord) -> str:
    return format_uncertain(estimate.value, estimate.sem)


def _varies(curve: CurveRecord) -> bool:
    known = [value for value in curve.mean if value is not None]
    return len(known) > 1 and max(known) > min(known)
