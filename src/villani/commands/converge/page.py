"""Langevin chains on the page and in the terminal: what curves show, what they prove, and every rate beside them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from rich.console import Console

from villani.commands.converge.record import (
    ChainsRecord,
    ConvergenceRecord,
    CoupledRecord,
    CurveRecord,
    FitRecord,
    RateRecord,
)
from villani.commands.exact.ladder import power
from villani.outwards import lower, upper
from villani.report import elements
from villani.report.colours import NEGATIVE, POSITIVE, STATUSES, UNRESOLVED
from villani.report.elements import Row, note, prose, section
from villani.report.estimates import Columns, at, interval, rows_of, uncertain
from villani.report.figures import Rung, ladder, line, themed
from villani.report.numbers import format_number, format_plain
from villani.report.page import Picture, Pictures
from villani.report.terminal import print_findings, table

_NAMES = {
    "loss": "L", "objective": "F", "norm_squared": "‖θ‖²", "radial_force": "⟨θ, ∇F⟩", "gradient_squared": "‖∇F‖²",
    "laplacian": "ΔF", "psi": "Ψ_s",
}  # fmt: skip
_SHOWN = ("loss", "objective", "norm_squared", "linear_0")
_REACH = 12  # orders of magnitude below all that was seen that the picture shows; promises below stand at its edge
_SIDES = {  # in tables and in the picture
    "at least": ("≥ (promised)", "triangle-right"), "at most": ("≤ (seen)", "triangle-left"), "equal": ("=", "diamond"),
    "fitted": ("fitted", "circle-open"), "reference": ("(reference)", "line-ns-open"),
}  # fmt: skip
_VERDICTS = {
    "not contradicted": "Nothing contradicts it.", "contradicted": "No.", "unknown": "It cannot be told.",
}  # fmt: skip
_RATES_CAPTION = (
    "Triangles to the right are promises (the gap is at least that; the faintest stand at the edge), to the left "
    "bounds that the run found (at most), diamonds exact, open circles fits to a transient, which bound nothing for "
    "sure; bars: references. Green is certified, blue statistical, amber estimated, grey as claimed, red refuted."
)
_LIMITS = (
    "No constant, claimed or certified, is confirmed by anything here. The strongest words are “refuted” and “not "
    "contradicted”.",
    "A bound from an autocorrelation or a variance is for a reversible chain at equilibrium; that the chain is "
    "there can be contradicted by R̂, effective samples and the identities, never shown by them.",
    "Rates are those of the discrete chain in time Σ η; they differ from the diffusion's by O(η × curvature). A "
    "refutation asks for a factor of 1.25 because of that.",
    "Intervals of fits are over independent chains and over windows; a sum of two exponentials on a short window "
    "may pass for one.",
)
_TRANSFORMER = (
    "No number of steps follows for a Transformer with rescaling pairs, whose ∇F has no Lipschitz constant "
    "(THEORY.md §4). SGD without injected noise has no temperature; s_eff is a heuristic."
)


def show(record: ConvergenceRecord, _: Path, console: Console) -> None:
    """What came out in words, and every rate at every λ and s with its verdict."""
    print_findings(console, headline(record), findings(record))
    for point in record.points:
        console.print(table(_rate_rows(point), without=["why"], title=at(point)))
    if record.cost:
        console.print(f"{record.cost.seconds:.1f} s, {record.cost.seconds_per_group:.3g} s a step")


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
    fitted = any(fit.name == "loss" and fit.rate for fit in first.fits)
    what = "That this observable, from this start, went down at the fitted rate." if fitted else "No rate was fitted."
    return {
        "What the loss does not see": "" if first.trap in headline(record) else first.trap,
        "Has it reached equilibrium?": _equilibrium(first),
        "What the loss curve proves": f"{what} {_CURVE}",
        "Diverged": _diverged(record),
        "Mini-batches": _batches(record),
        "Without decay": f"{record.undecayed:,} {_UNDECAYED}" if record.undecayed else "",
        "Elsewhere": " ".join(point.sentence for point in record.points[1:]),
    }


_CURVE = (
    "Nearly every observable ends at the gap, the slowest rate of all, so that an asymptotic rate bounds the gap from "
    "above and a constant from below; no curve bounds a constant from above. Exponential decay of the loss is "
    "therefore no confirmation of a log-Sobolev constant."
)
_UNDECAYED = (
    "coordinates do not decay. They are moved and shaken like the others, but exp(−2F/s) need not be integrable over "
    "them, so that there may be no law to converge to (THEORY.md §2.1)."
)


def _diverged(record: ConvergenceRecord) -> str:
    left = [one for point in record.points for one in point.diverged]
    if not left:
        return ""
    worst = min(left, key=lambda one: one.step)
    curved = f", from a curvature of about {format_number(worst.curvature, 2)}"
    return (
        f"{len(left)} of {record.design.chains * len(record.points)} chains left, the first at step {worst.step}; "
        f"what was measured before is kept. Try --learning-rate {format_number(worst.learning_rate, 2)}"
        f"{'' if worst.curvature is None else curved} (estimated)."
    )


def _batches(record: ConvergenceRecord) -> str:
    noise = record.points[0].gradient_noise
    if not noise:
        return ""
    return (
        f"Steps take gradients of {record.design.batch} of {record.design.blocks} blocks. Beside the injected noise, "
        f"theirs is at most {upper(noise.isotropic, 2)} of s spread over all directions, and at most "
        f"{upper(noise.worst_direction, 2)} of s in one (heuristic: the chain's law is not exactly the Gibbs law, and "
        "‖∇F‖² of a batch is biased upwards)."
    )


def _equilibrium(point: ChainsRecord) -> str:
    known = [m for m in point.mixing if m.rhat is not None and m.ess is not None]
    words = _VERDICTS[point.equilibrium]
    if known:
        worst = max(known, key=lambda m: m.rhat or 0)
        least = min(known, key=lambda m: m.ess or 0)
        words += (
            f" Over the second half R̂ is at most {upper(worst.rhat or 0, 4)} ({named(worst.name)}), the "
            f"effective sample size at least {lower(least.ess or 0, 3)} ({named(least.name)})."
        )
    for identity in point.identities:
        if identity.ratio:
            words += f" {identity.name}: {identity.verdict} (ratio {uncertain(identity.ratio)})."
    return words + " Chains that begin alike agree alike: a mode that none of them visited stays unseen."


def pictures(record: ConvergenceRecord) -> Pictures:
    """Name → title, figure, caption; the rates of the first λ and s stand first, over the whole width."""
    first = record.points[0]
    shown = {"truth": (f"Rates at {at(first)}", rates(first.rates) if first.rates else None, _RATES_CAPTION)}
    for index, point in enumerate(record.points):
        where, fits = at(point), {fit.name: fit for fit in point.fits}
        for curve in point.curves:
            if curve.name in _SHOWN and len({value for value in curve.mean if value is not None}) > 1:
                fit, title = fits.get(curve.name), f"{named(curve.name)} at {where}"
                picture = title, trajectory(point.times, curve, fit), _caption(curve.name, fit)
                shown[f"curve{index}{curve.name}"] = picture
        if point.coupled and len(point.coupled.times) > 1:
            shown[f"coupled{index}"] = _coupled(point.coupled, where)
    return shown


def _coupled(pair: CoupledRecord, where: str) -> Picture:
    what = f"Contraction rate {uncertain(pair.rate)}." if pair.rate else "Too short for a rate."
    trace = line(pair.times, pair.log_distance, "", POSITIVE, "lines")
    figure = themed([trace], 300, {"title": "time of the diffusion"}, {"title": "ln ‖θ_a − θ_b‖"})
    caption = (
        f"Two chains from different starts with the same noise and batches. {what} A positive rate on one path is an "
        "estimate of contraction there, and proves none elsewhere."
    )
    return f"Common noise at {where}", figure, caption


def rates(rows: Sequence[RateRecord]) -> go.Figure:
    """One rate a row on a logarithmic axis of any length."""
    edge = min((row.log10 for row in rows if row.side != "at least"), default=-math.inf) - _REACH
    rungs = [
        Rung(
            max(row.log10, edge), row.name, _rate(row).partition(" (")[0], row.verdict or row.status,
            STATUSES[row.status], _SIDES[row.side][1], 2,
        )
        for row in sorted(rows, key=lambda row: row.log10)
    ]  # fmt: skip
    return ladder(rungs, "rate, per unit of diffusion time (logarithmic)")


def trajectory(times: Sequence[float], curve: CurveRecord, fit: FitRecord | None) -> go.Figure:
    """Chains thin, their mean thick, and the fit of the last usable window."""
    thin: dict[str, Any] = {"opacity": 0.55, "hoverinfo": "skip", "line_width": 1}
    traces = [line(times, y, f"chain {i}", UNRESOLVED, "lines", **thin) for i, y in enumerate(curve.chains)]
    thick: dict[str, Any] = {"hovertemplate": "t = %{x:.4g}: %{y:.5g}<extra></extra>", "line_width": 2.5}
    traces.append(line(times, curve.mean, "mean", POSITIVE, "lines", **thick))
    usable = [window for window in fit.windows if not window.problem] if fit else []
    for window in usable[-1:]:
        ahead = [t for t in times if t >= window.start]
        fitted = [window.level + window.amplitude * math.exp(-window.rate * (t - window.start)) for t in ahead]
        traces.append(line(ahead, fitted, "fit", NEGATIVE, "lines", "dash", hoverinfo="skip"))
    return themed(traces, 300, {"title": "time of the diffusion, Σ η/(1 − μ)"}, {"title": named(curve.name)})


def _caption(name: str, fit: FitRecord | None) -> str:
    words = "Grey: chains; blue: their mean"
    if fit is None:
        return f"{words}."
    if fit.rate is None:
        return f"{words}. No rate: {fit.why}."
    what = f"{words}; red: c + A·e^(−rt) with r = {uncertain(fit.rate)}, windows and noise together "
    what += f"{interval(fit.rate)}. {fit.verdict}: {fit.why}."
    return what + (" A linear observable, which sees odd modes." if name.startswith("linear") else "")


def tables(record: ConvergenceRecord) -> str:
    """Sections of tables, as HTML."""
    design = record.design
    batch = "full gradients" if design.batch is None else f"{design.batch} of {design.blocks} blocks a step"
    words = (
        f"{design.chains} chains of {design.steps:,} steps by {design.method}, η = "
        f"{format_number(design.learning_rate)} ({design.schedule}), momentum {format_number(design.momentum)}, "
        f"{batch}, seed {design.seed}; start: {design.start}; logged every {design.log_every} steps, each a mean over "
        f"{design.walkers} walkers. Noise, batches and acceptance are functions of (seed, chain, step)."
    )
    if record.cost:
        cost = record.cost
        words += f" {cost.seconds:.1f} s ({cost.seconds_per_group:.3g} s a step)"
        if cost.observing_seconds is not None and cost.seconds:
            words += f", of which observables took {100 * cost.observing_seconds / cost.seconds:.1f} %"
        words += f"; peak memory {cost.peak_memory_bytes / 2**30:.2f} GiB." if cost.peak_memory_bytes else "."
    return "".join(map(_point, record.points)) + section("How it was run", note(words))


_RATES: Columns = {
    "rate": "name", "the gap is": lambda rate: _SIDES[rate.side][0], "value": lambda rate: _rate(rate),
    "status": "status", "verdict": "verdict", "why": "sentence",
}  # fmt: skip
_FITS: Columns = {
    "fit of": lambda fit: named(fit.name), "rate": "rate", "interval over windows": "rate.interval",
    "": "verdict", "why": "why",
}  # fmt: skip
_IDENTITIES: Columns = {
    "identity": "name", "left over right": "ratio", "interval": "ratio.interval", "": "verdict",
    "how": "note",
}  # fmt: skip
_MIXING: Columns = {
    "second half": lambda one: named(one.name), "R̂": lambda one: format_number(one.rhat, 4),
    "effective samples": lambda one: format_plain(one.ess, ",.0f"),
}  # fmt: skip


def _rate_rows(point: ChainsRecord) -> list[Row]:
    return rows_of(sorted(point.rates, key=lambda rate: rate.log10), _RATES)


def _point(point: ChainsRecord) -> str:
    listed = (_rate_rows(point), rows_of(point.fits, _FITS), rows_of(point.identities, _IDENTITIES))
    made = "".join(prose(elements.table(rows)) for rows in listed)
    mixing = elements.table(rows_of(point.mixing, _MIXING))
    accepted = "" if point.acceptance is None else note(f"Accepted: {100 * point.acceptance:.1f} % of proposals.")
    return section(at(point), note(point.sentence) + made + mixing + accepted)


def limits(record: ConvergenceRecord) -> list[str]:
    """What the page does not prove."""
    return [*_LIMITS, _TRANSFORMER] if record.model else [*_LIMITS]


def _rate(row: RateRecord) -> str:
    value = power(row.log10, 3, -1 if row.side == "at least" else 0)
    if row.limit_log10 is None:
        return value
    return f"{value} (at most {power(row.limit_log10, 3, 1)}: 95 %, all such bounds at once)"
