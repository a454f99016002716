"""The pictures of an audit: Ψ along rays and along an orbit, and the s* of the orbits."""

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from villani.commands.audit.record import OrbitRecord, RayRecord, StepRecord
from villani.commands.audit.words import threshold_words
from villani.outwards import upper
from villani.report.colours import NEGATIVE, POSITIVE, REMAINDER, TOTAL, UNRESOLVED
from villani.report.estimates import uncertain
from villani.report.figures import LEGEND, SignedLog, curve, error_bars, rows, themed
from villani.report.numbers import format_number

_PALETTE = (TOTAL, POSITIVE, REMAINDER, "#a78bfa", "#ec4899", "#14b8a6", "#eab308")
_SHOWN = 12  # orbits in the picture


def rays(rays: Sequence[RayRecord]) -> go.Figure:
    """Ψ along every ray."""
    values = [psi.value for ray in rays for psi in ray.psi]
    up = SignedLog(max(map(abs, values)))
    traces = [
        curve(
            ray.radii, ray.psi, ray.direction, _PALETTE[i % len(_PALETTE)], scale=up,
            text=[f"r = {format_number(r)}: {uncertain(psi)}" for r, psi in zip(ray.radii, ray.psi, strict=True)],
        )
        for i, ray in enumerate(rays)
    ]  # fmt: skip
    return themed(traces, 430, {"title": "radius r"}, {"title": "Ψ", "zeroline": True, **up.ticks(values)}, LEGEND)


def orbit(walk: Sequence[StepRecord], temperature: float) -> tuple[str, go.Figure, str]:
    """Title, figure and caption of Ψ along an orbit."""
    predicted, measured = [step.predicted for step in walk], [step.measured for step in walk]
    values = [estimate.value for estimate in (*predicted, *measured)]
    up = SignedLog(max(map(abs, values)))
    scales, places = [f"{step.scale:g}" for step in walk], [math.log2(step.scale) for step in walk]
    traces = [
        curve(
            places, series, name, colour, dash, up,
            text=[f"R = {scale}: {uncertain(e)}" for scale, e in zip(scales, series, strict=True)],
        )
        for series, name, colour, dash in (
            (predicted, "predicted from R = 1", UNRESOLVED, "dash"), (measured, "measured", NEGATIVE, "solid"),
        )
    ]  # fmt: skip
    across = {"title": "scale R", "tickvals": places, "ticktext": scales}
    figure = themed(traces, 430, across, {"title": "Ψ", "zeroline": True, **up.ticks(values)}, LEGEND)
    drift = max(step.loss_change for step in walk)
    loss = "the loss is the same to the last bit" if drift == 0 else f"the loss changes by up to {upper(drift, 1)} nats"
    caption = f"Ψ along the orbit with the smallest s*, at s = {format_number(temperature)}; on all of it {loss}."
    return "On a rescaling orbit: the same loss", figure, caption


def thresholds(orbits: Sequence[OrbitRecord], temperature: float) -> go.Figure:
    """s* of the orbits, with how far their bounds reach."""
    shown = [orbit for orbit in orbits if orbit.threshold.value is not None][:_SHOWN]
    values = [max(orbit.threshold.value or 0.0, 1e-12) for orbit in shown]
    reach = [
        max((orbit.threshold.upper or value) - value, 0.0) if orbit.confirmed else 0.0
        for orbit, value in zip(shown, values, strict=True)
    ]
    axis = {"type": "log", "title": "temperature s", "exponentformat": "power", "nticks": 5}
    marker = {"size": 10, "color": [TOTAL if orbit.confirmed else UNRESOLVED for orbit in shown]}
    texts = [f"{orbit.name}: {threshold_words(orbit.threshold)}" for orbit in shown]
    names = [_short(orbit.name) for orbit in shown]
    bars = error_bars([0.0] * len(shown), reach)
    figure = rows(values, names, texts, marker, 150 + 34 * len(shown), axis, inside=False, error_x=bars)
    return figure.add_vline(x=temperature, line={"color": REMAINDER, "dash": "dot"}, annotation_text="s of this audit")


def _short(name: str) -> str:
    return name if len(name) <= 44 else f"{name[:21]}…{name[-21:]}"
