"""The pictures of the page of a measurement."""

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from villani.commands.measure.record import MeasurementRecord, TrainingRecord
from villani.report.colours import EXACT, NEGATIVE, POSITIVE, REMAINDER, TOTAL, UNRESOLVED, sign_colour
from villani.report.estimates import uncertain
from villani.report.figures import LEGEND, SignedLog, curve, error_bars, interval_bars, line, rows, signed, themed
from villani.report.numbers import format_number
from villani.work.records import EstimateRecord, PsiParts, PsiRecord

PART_LABELS = {
    "decay_norm": "λ²‖mθ‖²/s",
    "cross": "2λ⟨∇L, mθ⟩/s",
    "gradient_norm": "‖∇L‖²/s",
    "decay_laplacian": "−λ·d_m",
    "hessian_trace": "−tr ∇²L",
}


def named_parts(parts: PsiParts) -> dict[str, EstimateRecord]:
    """The five parts under the labels of the page."""
    return {label: getattr(parts, name) for name, label in PART_LABELS.items()}


def data_part(psi: PsiRecord) -> EstimateRecord:
    """Ψ − λ²‖mθ‖²/s + λ·d_m, THEORY.md §6: what is left when the exact terms, which see no data, are taken away.

    The error is Ψ's own. The sampled parts are added up, since a difference of large numbers would lose digits.
    """
    value = psi.parts.cross.value + psi.parts.gradient_norm.value + psi.parts.hessian_trace.value
    low, high = psi.interval
    shifted = (value - (psi.value - low), value + (high - psi.value))
    return EstimateRecord(value=value, sem=psi.sem, n=psi.n, interval=shifted, status=psi.status)


def psi_parts(psi: PsiRecord) -> go.Figure:
    """Ψ and its five parts: |value| on a logarithmic axis, colour for the sign. The page's sliders move the marks."""
    parts = {"Ψ": psi, **named_parts(psi.parts)}
    sizes = [abs(part.value) for part in parts.values()]
    halves = [(part.interval[1] - part.interval[0]) / 2 for part in parts.values()]
    cut = [min(half, 0.9 * size) for half, size in zip(halves, sizes, strict=True)]  # a logarithmic axis has no 0
    marker = {"size": 12, "color": [sign_colour(part) for part in parts.values()]}
    trace = line(
        [size or None for size in sizes], parts, "", UNRESOLVED, "markers+text", marker=marker,
        error_x=error_bars(cut, halves), text=[uncertain(part) for part in parts.values()],
        textposition="top center", cliponaxis=False,
    )  # fmt: skip
    across = {"type": "log", "title": "size (logarithmic)", "exponentformat": "power"}
    up = {"autorange": "reversed", "categoryorder": "array", "categoryarray": list(parts)}
    return themed([trace], 400, across, up, right=56)


def psi_grid(psis: Sequence[PsiRecord]) -> go.Figure:
    """Ψ over the asked λ × s: a cell's colour is the sign and the logarithm of the size, grey where 0 is inside."""
    decays = sorted({psi.weight_decay for psi in psis})
    temperatures = sorted({psi.temperature for psi in psis})
    cells = {(psi.temperature, psi.weight_decay): psi for psi in psis}
    grid = [[cells.get((s, decay)) for decay in decays] for s in temperatures]
    smallest = min((abs(psi.value) for psi in psis if psi.value), default=1.0)
    shade = [[None if psi is None else _shade(psi, smallest) for psi in row] for row in grid]
    reach = max((abs(value) for row in shade for value in row if value is not None), default=1.0) or 1.0
    trace = go.Heatmap(
        x=[format_number(decay) for decay in decays], y=[format_number(s) for s in temperatures],
        z=shade, zmin=-reach, zmax=reach, colorscale=[[0, NEGATIVE], [0.5, "#c9ced6"], [1, POSITIVE]],
        text=[["" if psi is None else uncertain(psi).replace(" ± ", "<br>± ") for psi in row] for row in grid],
        texttemplate="%{text}", textfont={"color": "#10131a"}, showscale=False, xgap=3, ygap=3,
        hovertemplate="λ = %{x}, s = %{y}: %{text}<extra></extra>",
    )  # fmt: skip
    across, up = ({"type": "category", "title": title} for title in ("weight decay λ", "temperature s"))
    return themed([trace], 150 + 62 * len(grid), across, up)


def tensor_traces(record: MeasurementRecord, most: int = 14) -> go.Figure | None:
    """The tensors with the largest |trace of their Hessian block|, and the interval of each; None if not told apart."""
    known = [(tensor.name, tensor.hessian_trace) for tensor in record.tensors if tensor.hessian_trace]
    largest = sorted(known, key=lambda pair: -abs(pair[1].value))[:most]
    return _intervals(dict(largest), "share of tr ∇²L", 38, inside=True) if known else None


def layer_traces(record: MeasurementRecord) -> go.Figure | None:
    """The trace of each numbered layer's diagonal block of ∇²L; None if fewer than two are known."""
    known = {int(layer.name): layer.hessian_trace for layer in record.layers if layer.name.isdecimal()}
    layers = {number: estimate for number, estimate in sorted(known.items()) if estimate}
    if len(layers) < 2:
        return None
    trace = curve(layers, [*layers.values()], "trace", POSITIVE)
    across = {"title": "layer", **({"dtick": 1} if len(layers) <= 16 else {})}
    return themed([trace], 320, across, {"title": "trace", "rangemode": "tozero"})


def gradient_norms(record: MeasurementRecord) -> go.Figure:
    """The mini-batch figure for ‖∇L‖² against the unbiased one."""
    both = {"mini-batch,<br>biased": record.naive_gradient_norm_squared, "unbiased": record.gradient_norm_squared}
    return _intervals(both, "‖∇L‖²", 62, inside=False)


def training_loss(training: TrainingRecord) -> go.Figure:
    """Loss against step, and the held-out loss if there is one."""
    mode = "lines+markers" if len(training.steps) < 40 else "lines"
    hover = "step %{x}: %{y:.4f}<extra></extra>"
    trace = line(training.steps, training.loss, "training batch", POSITIVE, mode, hovertemplate=hover)
    figure = themed([trace], 320, {"title": "step"}, {"title": "loss, nats per token"})
    if training.held_out_loss is not None:
        label = f"held out: {format_number(training.held_out_loss, 4)}"
        figure.add_hline(y=training.held_out_loss, line={"color": NEGATIVE, "dash": "dash"}, annotation_text=label)
    return figure


def ray(points: Sequence[tuple[float, PsiRecord]]) -> go.Figure:
    """Ψ along a ray, the exact λ²‖mθ‖²/s, and what depends on the data, on a signed logarithmic axis."""
    points = sorted(points, key=lambda point: point[0])
    psis = [psi for _, psi in points]
    radii = [radius for radius, _ in points]
    across = _radius_axis(radii)
    shown: list[tuple[Sequence[EstimateRecord], str, str, str]] = [
        (psis, "Ψ", TOTAL, "solid"),
        ([psi.parts.decay_norm for psi in psis], "λ²‖mθ‖²/s, exact", EXACT, "dash"),
        ([data_part(psi) for psi in psis], "data-dependent part", REMAINDER, "solid"),
        *[
            ([getattr(psi.parts, name) for psi in psis], PART_LABELS[name], colour, "dot")
            for name, colour in (("cross", "#ec4899"), ("gradient_norm", POSITIVE), ("hessian_trace", NEGATIVE))
        ],
    ]
    x, where = [across(radius) if across else radius for radius in radii], [f"r = {format_number(r)}" for r in radii]
    curves = [(x, *one, where) for one in shown]
    below = {"title": "radius r", **(across.ticks(radii) if across else {})}
    return signed(curves, 520, below, "signed logarithmic scale", {**LEGEND, "entrywidth": 140})


def _radius_axis(radii: Sequence[float]) -> SignedLog | None:
    positive = [radius for radius in radii if radius > 0]
    if not positive or max(positive) <= 30 * min(positive):
        return None
    return SignedLog(max(positive), threshold=min(positive))


def _intervals(estimates: dict[str, EstimateRecord], title: str, row: int, inside: bool) -> go.Figure:
    """One mark and interval per row, on a linear axis that shows zero."""
    axis = {
        "title": title, "zeroline": True, "zerolinewidth": 2, "rangemode": "tozero", "exponentformat": "power",
        "nticks": 6,
    }  # fmt: skip
    shown = [*estimates.values()]
    marker = {"size": 10, "color": [sign_colour(e) for e in shown]}
    texts = [uncertain(e) for e in shown]
    height = 110 + row * len(shown)
    bars = interval_bars(shown)
    return rows([e.value for e in shown], [*estimates], texts, marker, height, axis, inside, error_x=bars)


def _shade(psi: PsiRecord, smallest: float) -> float:
    if sign_colour(psi) == UNRESOLVED:
        return 0.0
    return math.copysign(1 + math.log10(abs(psi.value) / smallest), psi.value)
