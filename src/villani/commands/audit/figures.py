"""The pictures of an audit: Ψ along rays and along an orbit, and the s* of the orbits."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle

import plotly.graph_objects as go

from villani.commands.audit.record import OrbitRecord, RayRecord, StepRecord
from villani.commands.audit.tables import bounded, threshold_words
from villani.outwards import upper
from villani.report.colours import NEGATIVE, POSITIVE, REMAINDER, TOTAL, UNRESOLVED
from villani.report.estimates import uncertain
from villani.report.figures import LEGEND, SignedLog, curve, error_bars, line, rows, themed
from villani.report.numbers import format_number
from villani.report.page import Picture
from villani.work.records import EstimateRecord

_PALETTE = (TOTAL, POSITIVE, REMAINDER, "#a78bfa", "#ec4899", "#14b8a6", "#eab308")
_SHOWN = 12  # orbits in the picture
Curve = tuple[Sequence[float], Sequence[EstimateRecord], str, str, str, Sequence[str]]  # x, y, name, style, places


def rays(rays: Sequence[RayRecord]) -> go.Figure:
    """Ψ along every ray."""
    curves = [
        (ray.radii, ray.psi, ray.direction, colour, "solid", [f"r = {format_number(r)}" for r in ray.radii])
        for ray, colour in zip(rays, cycle(_PALETTE), strict=False)
    ]
    return _along(curves, {"title": "radius r"})


def orbit(walk: Sequence[StepRecord], temperature: float, own: OrbitRecord | None = None) -> Picture:
    """Title, figure and caption of Ψ along an orbit; `own` says whether it is evidence."""
    scales, places = [f"{step.scale:g}" for step in walk], [math.log2(step.scale) for step in walk]
    names = [f"R = {scale}" for scale in scales]
    curves = [
        (places, [step.predicted for step in walk], "predicted from R = 1", UNRESOLVED, "dash", names),
        (places, [step.measured for step in walk], "measured", NEGATIVE, "solid", names),
    ]
    figure = _along(curves, {"title": "scale R", "tickvals": places, "ticktext": scales})
    drift = max(step.loss_change for step in walk)
    loss = "the loss is the same to the last bit" if drift == 0 else f"the loss changes by up to {upper(drift, 1)} nats"
    caption = f"Ψ along the orbit with the smallest s*, at s = {format_number(temperature)}; on all of it {loss}."
    if own and not bounded(own):
        caption += " Its s* has no bound, so that it is no evidence against (iv)."
    return f"At s = {format_number(temperature)}: Ψ on an orbit of the same loss", figure, caption


def failure(orbit: OrbitRecord, above: float, temperature: float) -> Picture:
    """Title, figure and caption of what Ψ comes to far out on an orbit, at an s where it falls and at the audit's.

    Of Ψ_s(θ_R), R^(2k) times (λ²‖mA‖² + ‖∇_B L‖²)/s − Δ_B L is left as R grows, where B shrinks by R^−k (THEORY.md
    §2.2).
    """
    fails = _above(above)
    squares = orbit.threshold.norm_squared + orbit.threshold.gradient_norm_squared.value
    scales = [step.scale for step in orbit.walk] or [2.0**k for k in range(5)]
    places, words = [math.log2(scale) for scale in scales], [f"{scale:g}" for scale in scales]
    series = {
        s: [(squares / s - orbit.threshold.laplacian.value) * scale ** (2 * orbit.down) for scale in scales]
        for s in (fails, temperature)
    }
    values = [value for heights in series.values() for value in heights]
    up = SignedLog(max(map(abs, values)))
    styles = {fails: (NEGATIVE, "solid", "fails"), temperature: (UNRESOLVED, "dash", "yours")}
    traces = [
        line(
            places, map(up, heights), f"s = {format_number(s)}, {styles[s][2]}", styles[s][0], dash=styles[s][1],
            text=[f"R = {w}, s = {s:g}: {format_number(y, 3)}" for w, y in zip(words, heights, strict=True)],
        )
        for s, heights in series.items()
    ]  # fmt: skip
    across = {"title": "scale R", "tickvals": places, "ticktext": words}
    figure = themed(traces, 430, across, {"title": "leading part of Ψ", "zeroline": True, **up.ticks(values)}, LEGEND)
    caption = (
        f"What Ψ comes to as R grows, R^{2 * orbit.down}·((λ²‖mA‖² + ‖∇_B L‖²)/s − Δ_B L), from what was measured at "
        f"R = 1 on the orbit {orbit.name}. Its sign turns at s* = {threshold_words(orbit.threshold)}."
    )
    return f"At s = {format_number(fails)}: Ψ falls without end", figure, caption


def _above(s: float) -> float:
    """About twice `s`, to one digit."""
    place = 10.0 ** math.floor(math.log10(2 * s))
    return float(f"{math.ceil(2 * s / place) * place:.1g}")


def _along(curves: Sequence[Curve], across: Mapping[str, object]) -> go.Figure:
    values = [estimate.value for _, series, *_ in curves for estimate in series]
    up = SignedLog(max(map(abs, values)))
    traces = [
        curve(x, y, name, colour, dash, up, text=[f"{p}: {uncertain(e)}" for p, e in zip(places, y, strict=True)])
        for x, y, name, colour, dash, places in curves
    ]
    return themed(traces, 430, across, {"title": "Ψ", "zeroline": True, **up.ticks(values)}, LEGEND)


def thresholds(orbits: Sequence[OrbitRecord], temperature: float) -> go.Figure:
    """s* of the orbits, with how far their bounds reach."""
    shown = [orbit for orbit in orbits if orbit.threshold.value is not None][:_SHOWN]
    values = [max(orbit.threshold.value or 0.0, 1e-12) for orbit in shown]
    bounds = [orbit.threshold.upper or 0.0 if bounded(orbit) else 0.0 for orbit in shown]
    reach = [max(bound - value, 0.0) for bound, value in zip(bounds, values, strict=True)]
    axis = {"type": "log", "title": "temperature s", "exponentformat": "power", "nticks": 5}
    marker = {
        "size": 10, "color": [TOTAL if bounded(orbit) else UNRESOLVED for orbit in shown],
        "symbol": ["circle" if bounded(orbit) else "circle-open" for orbit in shown],
    }  # fmt: skip
    texts = [f"{orbit.name}: {threshold_words(orbit.threshold)}" for orbit in shown]
    names = [_short(orbit.name) for orbit in shown]
    bars = error_bars([0.0] * len(shown), reach)
    figure = rows(values, names, texts, marker, 150 + 34 * len(shown), axis, inside=False, error_x=bars)
    return figure.add_vline(x=temperature, line={"color": REMAINDER, "dash": "dot"}, annotation_text="s of this audit")


def _short(name: str) -> str:
    return name if len(name) <= 44 else f"{name[:21]}…{name[-21:]}"
