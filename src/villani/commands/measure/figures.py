"""The pictures of the page of a measurement."""

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from villani.commands.measure.record import MeasurementRecord, TrainingRecord
from villani.report.figures import (
    EXACT,
    NEGATIVE,
    PART_LABELS,
    POSITIVE,
    REMAINDER,
    TOTAL,
    UNRESOLVED,
    SignedLog,
    curve,
    data_part,
    error_bars,
    named_parts,
    sign_colour,
    themed,
)
from villani.report.numbers import format_number, format_uncertain
from villani.work.records import EstimateRecord, PsiRecord


def psi_parts(psi: PsiRecord) -> go.Figure:
    """Ψ and its five parts: |value| on a logarithmic axis, colour for the sign. The page's sliders move the marks."""
    rows = {"Ψ": psi, **named_parts(psi.parts)}
    marks = [_mark(estimate) for estimate in rows.values()]
    trace = go.Scatter(
        x=[size for size, *_ in marks],
        y=list(rows),
        error_x=error_bars([minus for _, minus, _, _ in marks], [plus for _, _, plus, _ in marks]),
        marker={"size": 12, "color": [colour for *_, colour in marks]},
        mode="markers+text",
        text=[format_uncertain(row.value, row.sem) for row in rows.values()],
        textposition="top center",
        cliponaxis=False,
        hoverinfo="text",
    )
    figure = themed([trace], 400)
    figure.update_layout(margin_r=56)
    figure.update_xaxes(type="log", title="size (logarithmic)", exponentformat="power")
    figure.update_yaxes(autorange="reversed", categoryorder="array", categoryarray=list(rows))
    return figure


def psi_grid(psis: Sequence[PsiRecord]) -> go.Figure:
    """Ψ over the asked λ × s: a cell's colour is the sign and the logarithm of the size, grey where 0 is inside."""
    decays = sorted({psi.weight_decay for psi in psis})
    temperatures = sorted({psi.temperature for psi in psis})
    cells = {(psi.temperature, psi.weight_decay): psi for psi in psis}
    rows = [[cells.get((s, decay)) for decay in decays] for s in temperatures]
    smallest = min((abs(psi.value) for psi in psis if psi.value), default=1.0)
    shade = [[None if psi is None else _shade(psi, smallest) for psi in row] for row in rows]
    reach = max((abs(value) for row in shade for value in row if value is not None), default=1.0) or 1.0
    trace = go.Heatmap(
        x=[format_number(decay) for decay in decays],
        y=[format_number(s) for s in temperatures],
        z=shade,
        zmin=-reach,
        zmax=reach,
        colorscale=[[0, NEGATIVE], [0.5, "#c9ced6"], [1, POSITIVE]],
        text=[["" if psi is None else _two_lines(psi) for psi in row] for row in rows],
        texttemplate="%{text}",
        textfont={"color": "#10131a"},
        hovertemplate="λ = %{x}, s = %{y}: %{text}<extra></extra>",
        showscale=False,
        xgap=3,
        ygap=3,
    )
    figure = themed([trace], 150 + 62 * len(rows))
    figure.update_xaxes(type="category", title="weight decay λ")
    figure.update_yaxes(type="category", title="temperature s")
    return figure


def tensor_traces(record: MeasurementRecord, most: int = 14) -> go.Figure | None:
    """The tensors with the largest |trace of their Hessian block|, and the interval of each; None if not told apart."""
    known = [(tensor.name, tensor.hessian_trace) for tensor in record.tensors if tensor.hessian_trace]
    if not known:
        return None
    largest = sorted(known, key=lambda pair: -abs(pair[1].value))[:most]
    labels = [name for name, _ in largest]
    estimates = [estimate for _, estimate in largest]
    figure = _intervals(labels, estimates, "share of tr ∇²L", 38)
    # Names are long and phones narrow: they stand above their mark, inside the plot.
    figure.update_yaxes(showticklabels=False, ticks="")
    for row, label in enumerate(labels):
        figure.add_annotation(
            text=label, x=0, xref="x domain", xanchor="left", y=row, yshift=15, showarrow=False, font={"size": 12}
        )
    return figure


def layer_traces(record: MeasurementRecord) -> go.Figure | None:
    """The trace of each numbered layer's diagonal block of ∇²L; None if fewer than two are known."""
    known = {int(layer.name): layer.hessian_trace for layer in record.layers if layer.name.isdecimal()}
    layers = {number: estimate for number, estimate in sorted(known.items()) if estimate}
    if len(layers) < 2:
        return None
    trace = go.Scatter(
        x=list(layers),
        y=[e.value for e in layers.values()],
        error_y=error_bars(
            [e.interval[1] - e.value for e in layers.values()], [e.value - e.interval[0] for e in layers.values()]
        ),
        mode="markers+lines",
        line={"width": 1, "color": UNRESOLVED},
        marker={"size": 9, "color": POSITIVE},
        hovertemplate="layer %{x}: %{y:.4g}<extra></extra>",
    )
    figure = themed([trace], 320)
    figure.update_xaxes(title="layer", **({"dtick": 1} if len(layers) <= 16 else {}))
    figure.update_yaxes(title="trace", rangemode="tozero")
    return figure


def gradient_norms(record: MeasurementRecord) -> go.Figure:
    """The mini-batch figure for ‖∇L‖² against the unbiased one."""
    labels = ["mini-batch,<br>biased", "unbiased"]
    estimates = [record.naive_gradient_norm_squared, record.gradient_norm_squared]
    return _intervals(labels, estimates, "‖∇L‖²", 62)


def training_loss(training: TrainingRecord) -> go.Figure:
    """Loss against step, and the held-out loss if there is one."""
    trace = go.Scatter(
        x=training.steps,
        y=training.loss,
        mode="lines+markers" if len(training.steps) < 40 else "lines",
        line={"color": POSITIVE, "width": 2},
        name="training batch",
        hovertemplate="step %{x}: %{y:.4f}<extra></extra>",
    )
    figure = themed([trace], 320)
    if training.held_out_loss is not None:
        label = f"held out: {format_number(training.held_out_loss, 4)}"
        figure.add_hline(y=training.held_out_loss, line={"color": NEGATIVE, "dash": "dash"}, annotation_text=label)
    figure.update_xaxes(title="step")
    figure.update_yaxes(title="loss, nats per token")
    return figure


def ray(points: Sequence[tuple[float, PsiRecord]]) -> go.Figure:
    """Ψ along a ray, the exact λ²‖mθ‖²/s, and what depends on the data, on a signed logarithmic axis."""
    points = sorted(points, key=lambda point: point[0])
    psis = [psi for _, psi in points]
    radii = [radius for radius, _ in points]
    across = _radius_axis(radii)
    parts = [named_parts(psi.parts) for psi in psis]
    curves: list[tuple[str, str, str, Sequence[EstimateRecord]]] = [
        ("Ψ", TOTAL, "solid", psis),
        ("λ²‖mθ‖²/s, exact", EXACT, "dash", [psi.parts.decay_norm for psi in psis]),
        ("data-dependent part", REMAINDER, "solid", [data_part(psi) for psi in psis]),
        *[
            (PART_LABELS[name], colour, "dot", [part[PART_LABELS[name]] for part in parts])
            for name, colour in (("cross", "#ec4899"), ("gradient_norm", POSITIVE), ("hessian_trace", NEGATIVE))
        ],
    ]
    up = SignedLog(max((abs(e.value) for *_, series in curves for e in series), default=1.0))
    figure = themed([curve(radii, across, up, *each) for each in curves], 520)
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": -0.2, "x": 0, "entrywidth": 140})
    figure.update_xaxes(title="radius r", **(across.ticks(radii) if across else {}))
    figure.update_yaxes(
        title="signed logarithmic scale", zeroline=True, **up.ticks([e.value for *_, series in curves for e in series])
    )
    return figure


def _radius_axis(radii: Sequence[float]) -> SignedLog | None:
    positive = [radius for radius in radii if radius > 0]
    if not positive or max(positive) <= 30 * min(positive):
        return None
    return SignedLog(max(positive), threshold=min(positive))


def _intervals(labels: list[str], estimates: Sequence[EstimateRecord], title: str, row: int) -> go.Figure:
    """One mark and interval per row, on a linear axis that shows zero."""
    trace = go.Scatter(
        x=[e.value for e in estimates],
        y=list(range(len(labels))),
        error_x=error_bars([e.value - e.interval[0] for e in estimates], [e.interval[1] - e.value for e in estimates]),
        mode="markers",
        marker={"size": 10, "color": [sign_colour(e) for e in estimates]},
        text=[format_uncertain(e.value, e.sem) for e in estimates],
        hovertemplate="%{text}<extra></extra>",
    )
    figure = themed([trace], 110 + row * len(labels))
    figure.update_xaxes(
        title=title, zeroline=True, zerolinewidth=2, rangemode="tozero", exponentformat="power", nticks=6
    )
    figure.update_yaxes(
        tickvals=list(range(len(labels))), ticktext=labels, range=[len(labels) - 0.4, -0.9], showgrid=False
    )
    return figure


def _mark(estimate: EstimateRecord) -> tuple[float | None, float, float, str]:
    """Place, lower and upper bar, and colour on a logarithmic axis, where a bar that reaches 0 has to be cut."""
    size = abs(estimate.value)
    half = (estimate.interval[1] - estimate.interval[0]) / 2
    return (size or None, min(half, 0.9 * size), half, sign_colour(estimate))


def _shade(psi: PsiRecord, smallest: float) -> float:
    if sign_colour(psi) == UNRESOLVED:
        return 0.0
    return math.copysign(1 + math.log10(abs(psi.value) / smallest), psi.value)


def _two_lines(estimate: EstimateRecord) -> str:
    """For a cell that has to fit on a phone."""
    return format_uncertain(estimate.value, estimate.sem).replace(" ± ", "<br>± ")
