"""The pictures of an audit: Ψ along rays and along an orbit, and the s* of the orbits."""

import math
from collections.abc import Sequence
from itertools import cycle

import plotly.graph_objects as go

from villani.commands.audit.record import OrbitRecord, RayRecord, StepRecord
from villani.commands.audit.tables import bounded, threshold_words
from villani.outwards import ten_to, upper
from villani.report.colours import NEGATIVE, POSITIVE, REMAINDER, TOTAL, UNRESOLVED
from villani.report.figures import LEGEND, SignedLog, error_bars, line, rows, signed, themed
from villani.report.numbers import format_number
from villani.report.page import Picture

_PALETTE = (TOTAL, POSITIVE, REMAINDER, "#a78bfa", "#ec4899", "#14b8a6", "#eab308")
_SHOWN = 12  # orbits in the picture


def rays(rays: Sequence[RayRecord]) -> go.Figure:
    """Ψ along every ray."""
    curves = [
        (ray.radii, ray.psi, ray.direction, colour, "solid", [f"r = {format_number(r)}" for r in ray.radii])
        for ray, colour in zip(rays, cycle(_PALETTE), strict=False)
    ]
    return signed(curves, 430, {"title": "radius r"}, "Ψ")


def orbit(walk: Sequence[StepRecord], temperature: float, own: OrbitRecord | None = None) -> Picture:
    """Title, figure and caption of Ψ along an orbit; `own` says whether it is evidence."""
    scales, places = [f"{step.scale:g}" for step in walk], [math.log2(step.scale) for step in walk]
    names = [f"R = {scale}" for scale in scales]
    curves = [
        (places, [step.predicted for step in walk], "predicted from R = 1", UNRESOLVED, "dash", names),
        (places, [step.measured for step in walk], "measured", NEGATIVE, "solid", names),
    ]
    figure = signed(curves, 430, {"title": "scale R", "tickvals": places, "ticktext": scales}, "Ψ")
    drift = max(step.loss_change for step in walk)
    loss = "the loss is the same to the last bit" if drift == 0 else f"the loss changes by up to {upper(drift, 1)} nats"
    caption = f"Ψ along the orbit with the smallest s*, at s = {format_number(temperature)}; on all of it {loss}."
    if own and not bounded(own):
        caption += " Its s* has no bound, so that it is no evidence against (iv)."
    return f"At s = {format_number(temperature)}: Ψ on an orbit of the same loss", figure, caption


def failure(orbit: OrbitRecord, above: float, temperature: float) -> Picture:
    """Title, figure and caption of what Ψ comes to far out on an orbit, at an s where it falls and at the audit's.

    Of Ψ_s(θ_R), Δ_B L·(s*/s − 1)·R^(2k) is left as R grows, where B shrinks by R^−k (THEORY.md §2.2). It may be as
    large as with the confidence bound of s* in place of s*: so far bars reach, and below 0 where (iv) is refuted.
    """
    fails, own, power = _above(above), orbit.threshold, 2 * orbit.down
    scales = [step.scale for step in orbit.walk] or [2.0**k for k in range(5)]
    places, words = [math.log2(scale) for scale in scales], [f"{scale:g}" for scale in scales]
    styles = {temperature: (UNRESOLVED, "dash", "yours"), fails: (NEGATIVE, "solid", "fails")}
    heights = {
        s: [
            tuple(own.laplacian.value * ((end or 0.0) / s - 1) * scale**power for end in (own.value, own.upper))
            for scale in scales
        ]
        for s in styles
    }  # fmt: skip
    values = [value for pairs in heights.values() for pair in pairs for value in pair]
    up = SignedLog(max(map(abs, values)))
    traces = [
        line(
            places, [up(value) for value, _ in heights[s]], f"s = {format_number(s)}, {name}", colour, dash=dash,
            error_y=error_bars([0.0] * len(scales), [up(most) - up(value) for value, most in heights[s]], colour),
            text=[
                f"R = {word}, s = {format_number(s)}: {format_number(value, 3)}, at most {upper(most, 3)}"
                for word, (value, most) in zip(words, heights[s], strict=True)
            ],
        )
        for s, (colour, dash, name) in styles.items()
    ]  # fmt: skip
    across = {"title": "scale R", "tickvals": places, "ticktext": words}
    figure = themed(traces, 430, across, {"title": "leading part of Ψ", "zeroline": True, **up.ticks(values)}, LEGEND)
    caption = (
        f"What Ψ comes to as R grows, Δ_B L·(s*/s − 1)·{ten_to(power).replace('10', 'R')}, from what was measured at "
        f"R = 1 on the orbit {orbit.name}: s* = {threshold_words(own)}. Bars reach as far as the bound of s* allows: "
        f"below 0 at s = {format_number(fails)}, and above it at s = {format_number(temperature)}, where "
        "nothing is decided."
    )
    return f"At s = {format_number(fails)}: Ψ falls without end", figure, caption


def _above(s: float) -> float:
    """About twice `s`, to one digit."""
    place = 10.0 ** math.floor(math.log10(2 * s))
    return float(f"{math.ceil(2 * s / place) * place:.1g}")


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
