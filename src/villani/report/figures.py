"""What pictures of all pages share, as plotly figures. Colours of axes and text are set by the page."""

import math
from collections.abc import Iterable, Sequence

import plotly.graph_objects as go

from villani.report.numbers import format_number, format_uncertain
from villani.work.records import EstimateRecord, PsiParts, PsiRecord

POSITIVE, NEGATIVE, UNRESOLVED = "#3b82f6", "#e4572e", "#8b93a1"
EXACT, TOTAL, REMAINDER = "#a78bfa", "#10b981", "#f59e0b"
STATUS_COLOURS = {
    "certified": "#10b981", "statistical": "#3b82f6", "estimated": "#f59e0b", "as-claimed": "#8b93a1",
    "refuted": "#e4572e",
}  # fmt: skip
PART_LABELS = {
    "decay_norm": "λ²‖mθ‖²/s",
    "cross": "2λ⟨∇L, mθ⟩/s",
    "gradient_norm": "‖∇L‖²/s",
    "decay_laplacian": "−λ·d_m",
    "hessian_trace": "−tr ∇²L",
}
_BAR = {"thickness": 1.6, "width": 5}
_BAR_COLOUR = "#7a8494"  # legible on light and dark
DENSITY_FLOOR = 1e-6  # of the largest density: what is drawn below it would be noise of a few nodes
_DECADES = 4  # of a signed logarithmic axis, either side of zero


class SignedLog:
    """x ↦ sign(x)·log₁₀(1 + |x|/c): linear near 0, logarithmic beyond c, `_DECADES` below the largest size."""

    def __init__(self, largest: float, threshold: float | None = None) -> None:
        self.top = math.floor(math.log10(largest)) if largest > 0 else 0
        self.threshold = threshold or 10.0 ** (self.top - _DECADES)

    def __call__(self, value: float) -> float:
        """Height of `value` on the axis."""
        return math.copysign(math.log10(1 + abs(value) / self.threshold), value)

    def ticks(self, values: Iterable[float]) -> dict[str, list[float] | list[str]]:
        """Plotly tick settings: zero and the decades that the values reach."""
        low, high = min(values := list(values)), max(values)
        decades = [10.0**power for power in range(math.ceil(math.log10(self.threshold)) + 1, self.top + 2)]
        below = [-size for size in reversed(decades) if low < 0 and size <= 2 * abs(low)]
        shown = [*below, 0.0, *[size for size in decades if high > 0 and size <= 2 * high]]
        return {"tickvals": [self(value) for value in shown], "ticktext": [decade(value) for value in shown]}


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


def decade(value: float) -> str:
    """A power of ten as a label of an axis."""
    if 0.01 <= abs(value) < 1000 or value == 0:
        return format_number(value)
    return f"{'−' if value < 0 else ''}10<sup>{round(math.log10(abs(value)))}</sup>"


def curve(
    radii: Sequence[float], across: SignedLog | None, up: SignedLog, name: str, colour: str, dash: str,
    estimates: Sequence[EstimateRecord],
) -> go.Scatter:  # fmt: skip
    """Estimates with their intervals over radii; `across` and `up` map values to places on the axes."""
    heights = [up(e.value) for e in estimates]
    return go.Scatter(
        x=[across(radius) for radius in radii] if across else list(radii),
        y=heights,
        error_y=error_bars(
            [height - up(e.interval[0]) for height, e in zip(heights, estimates, strict=True)],
            [up(e.interval[1]) - height for height, e in zip(heights, estimates, strict=True)],
            colour,
        ),
        name=name,
        mode="lines+markers",
        line={"color": colour, "dash": dash, "width": 2.5 if dash == "solid" else 1.5},
        text=[
            f"r = {format_number(r)}: {format_uncertain(e.value, e.sem)}" for r, e in zip(radii, estimates, strict=True)
        ],
        hovertemplate="%{text}",
    )


def sign_colour(estimate: EstimateRecord) -> str:
    """Of an estimate: by its sign, or none where its interval holds 0."""
    low, high = estimate.interval
    if low <= 0 <= high:
        return UNRESOLVED
    return POSITIVE if low > 0 else NEGATIVE


def error_bars(minus: list[float], plus: list[float], colour: str = _BAR_COLOUR) -> dict[str, object]:
    """Plotly's description of bars that reach so far below and above their marks."""
    return {"type": "data", "symmetric": False, "array": plus, "arrayminus": minus, "color": colour, **_BAR}


def themed(traces: list[go.Scatter] | list[go.Heatmap], height: int) -> go.Figure:
    """A figure of the given traces and height in pixels, without colours of its own for axes and text."""
    figure = go.Figure(traces)
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 16, "r": 24, "t": 24, "b": 16},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        showlegend=False,
        dragmode=False,
    )
    figure.update_xaxes(automargin=True, fixedrange=True, zeroline=False, title_font_size=13, tickfont_size=12)
    figure.update_yaxes(automargin=True, fixedrange=True, zeroline=False, title_font_size=13, tickfont_size=12)
    return figure
