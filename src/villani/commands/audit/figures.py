"""The pictures of an audit: Ψ along rays and along an orbit, and the s* of the orbits."""

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from villani.commands.audit.record import OrbitRecord, RayRecord, StepRecord
from villani.commands.audit.words import threshold_words
from villani.outwards import upper
from villani.report.figures import NEGATIVE, POSITIVE, REMAINDER, TOTAL, UNRESOLVED, SignedLog, curve, themed
from villani.report.numbers import format_number

_PALETTE = (TOTAL, POSITIVE, REMAINDER, "#a78bfa", "#ec4899", "#14b8a6", "#eab308")
_SHOWN = 12  # orbits in the picture


def rays(rays: Sequence[RayRecord]) -> go.Figure:
    """Ψ along every ray."""
    up = SignedLog(max(abs(psi.value) for ray in rays for psi in ray.psi))
    traces = [
        curve(ray.radii, None, up, ray.direction, _PALETTE[i % len(_PALETTE)], "solid", ray.psi)
        for i, ray in enumerate(rays)
    ]
    figure = themed(traces, 430)
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": -0.2, "x": 0})
    figure.update_xaxes(title="radius r")
    figure.update_yaxes(title="Ψ", zeroline=True, **up.ticks([psi.value for ray in rays for psi in ray.psi]))
    return figure


def orbit(walk: Sequence[StepRecord], temperature: float) -> tuple[str, go.Figure, str]:
    """Title, figure and caption of Ψ along an orbit."""
    values = [estimate for step in walk for estimate in (step.measured, step.predicted)]
    up = SignedLog(max(abs(e.value) for e in values))
    across = [math.log2(step.scale) for step in walk]
    figure = themed(
        [
            curve(across, None, up, "predicted from R = 1", UNRESOLVED, "dash", [step.predicted for step in walk]),
            curve(across, None, up, "measured", NEGATIVE, "solid", [step.measured for step in walk]),
        ],
        430,
    )
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": -0.2, "x": 0})
    figure.update_xaxes(title="scale R", tickvals=across, ticktext=[f"{step.scale:g}" for step in walk])
    figure.update_yaxes(title="Ψ", zeroline=True, **up.ticks([e.value for e in values]))
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
    trace = go.Scatter(
        x=values,
        y=list(range(len(shown))),
        mode="markers",
        marker={"size": 10, "color": [TOTAL if orbit.confirmed else UNRESOLVED for orbit in shown]},
        error_x={
            "type": "data", "symmetric": False, "array": reach, "arrayminus": [0.0] * len(shown), "color": "#7a8494",
            "thickness": 1.6, "width": 5,
        },
        text=[f"{orbit.name}: {threshold_words(orbit.threshold)}" for orbit in shown],
        hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip
    figure = themed([trace], 150 + 34 * len(shown))
    figure.add_vline(x=temperature, line={"color": REMAINDER, "dash": "dot"}, annotation_text="s of this audit")
    figure.update_xaxes(type="log", title="temperature s", exponentformat="power", nticks=5)
    figure.update_yaxes(
        tickvals=list(range(len(shown))), ticktext=[_short(orbit.name) for orbit in shown],
        range=[len(shown) - 0.4, -0.9], showgrid=False,
    )  # fmt: skip
    return figure


def _short(name: str) -> str:
    return name if len(name) <= 44 else f"{name[:21]}…{name[-21:]}"
