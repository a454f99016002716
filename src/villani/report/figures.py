"""What pictures of all pages share, as plotly figures. Colours of axes and text are set by the page."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

from villani.report.estimates import uncertain
from villani.report.numbers import format_number
from villani.work.records import EstimateRecord

_BAR = {"thickness": 1.6, "width": 5}
_BAR_COLOUR = "#7a8494"  # legible on light and dark
DENSITY_FLOOR = 1e-6  # of the largest density: what is drawn below it would be noise of a few nodes
LEGEND = {"orientation": "h", "y": -0.2, "x": 0}  # below the axis
_BAND = "rgba(139,147,161,0.35)"
_REACH = 30  # decades of a ladder; what is further stands at its edge
_DECADES = 4  # of a signed logarithmic axis, either side of zero
# of estimates: where they stand, what they are, name, colour, dash, and the words for each place
Curve = tuple[Sequence[float], Sequence[EstimateRecord], str, str, str, Sequence[str]]


class Rung(NamedTuple):
    """A number on a ladder: its logarithm, what is said of it, and its mark."""

    log10: float
    name: str
    value: str
    remark: str
    colour: str
    symbol: str
    width: float


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


def decade(value: float) -> str:
    """A power of ten as a label of an axis."""
    if 0.01 <= abs(value) < 1000 or value == 0:
        return format_number(value)
    return f"{'−' if value < 0 else ''}10<sup>{round(math.log10(abs(value)))}</sup>"


def log_axis(low: float, high: float) -> dict[str, object]:
    """Range and ticks of an axis of logarithms to base 10, at most eight of them."""
    step = next(n * 10**k for k in range(9) for n in (1, 2, 5) if (high - low) / (n * 10**k) <= 7)
    first, last = math.floor(low / step), math.ceil(high / step)
    ticks = [step * i for i in range(first, max(last, first + 1) + 1)]
    edge = 0.03 * (ticks[-1] - ticks[0])
    labels = ["1" if tick == 0 else f"10<sup>{tick}</sup>".replace("-", "−") for tick in ticks]
    return {"tickvals": ticks, "ticktext": labels, "range": [ticks[0] - edge, ticks[-1] + edge]}


def line(
    x: Iterable[object], y: Iterable[object], name: str, colour: str, mode: str = "lines+markers",
    dash: str = "solid", marker: Mapping[str, object] | None = None, text: Sequence[str] | None = None, **more: Any,
) -> go.Scatter:  # fmt: skip
    """Values over `x` as a line, as marks, or both; `text` is shown where a mark is pointed at, alone."""
    own: dict[str, Any] = {
        "x": [*x], "y": [*y], "name": name, "mode": mode, "line": {"color": colour, "dash": dash},
        "marker": {"color": colour, **(marker or {})},
    }  # fmt: skip
    if text is not None:
        own |= {"text": text, "hovertemplate": "%{text}<extra></extra>"}
    return go.Scatter(**own | more)


def curve(
    x: Iterable[object], estimates: Sequence[EstimateRecord], name: str, colour: str, dash: str = "solid",
    scale: Callable[[float], float] = float, **more: Any,
) -> go.Scatter:  # fmt: skip
    """Estimates with their intervals over `x`, at the heights that `scale` gives them."""
    width = 2.5 if dash == "solid" else 1.5
    shown = {
        "text": [f"{name}: {uncertain(e)}" for e in estimates], "error_y": interval_bars(estimates, colour, scale),
        "line": {"color": colour, "dash": dash, "width": width},
    }  # fmt: skip
    return line(x, [scale(e.value) for e in estimates], name, colour, **shown | more)


def signed(
    curves: Sequence[Curve], height: int, x: Mapping[str, object], title: str, legend: Mapping[str, object] = LEGEND
) -> go.Figure:
    """Estimates with their intervals, on a signed logarithmic axis that has room for all of them."""
    values = [estimate.value for _, estimates, *_ in curves for estimate in estimates]
    up = SignedLog(max(map(abs, values), default=1.0))
    traces = [
        curve(at, y, name, colour, dash, up, text=[f"{p}: {uncertain(e)}" for p, e in zip(places, y, strict=True)])
        for at, y, name, colour, dash, places in curves
    ]
    return themed(traces, height, x, {"title": title, "zeroline": True, **up.ticks(values)}, legend)


def band(x: Sequence[float], low: Sequence[float], high: Sequence[float]) -> list[go.Scatter]:
    """A grey band between two curves."""
    edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    return [go.Scatter(x=x, y=high, **edge), go.Scatter(x=x, y=low, fill="tonexty", fillcolor=_BAND, **edge)]


def error_bars(minus: list[float], plus: list[float], colour: str = _BAR_COLOUR) -> dict[str, object]:
    """Plotly's description of bars that reach so far below and above their marks."""
    return {"type": "data", "symmetric": False, "array": plus, "arrayminus": minus, "color": colour, **_BAR}


def interval_bars(
    estimates: Sequence[EstimateRecord], colour: str = _BAR_COLOUR, scale: Callable[[float], float] = float
) -> dict[str, object]:
    """Bars as far as intervals reach, at the heights that `scale` gives them."""
    ends = [(scale(e.interval[0]), scale(e.value), scale(e.interval[1])) for e in estimates]
    return error_bars([middle - low for low, middle, _ in ends], [high - middle for _, middle, high in ends], colour)


def rows(
    x: Sequence[float], labels: Sequence[str], texts: Sequence[str], marker: Mapping[str, object], height: int,
    axis: Mapping[str, object], inside: bool = True, **more: Any,
) -> go.Figure:  # fmt: skip
    """One mark a row, the first on top. Names are long and phones narrow: `inside`, they stand above their marks."""
    trace = go.Scatter(
        x=[*x], y=list(range(len(labels))), mode="markers", marker=marker, text=texts,
        hovertemplate="%{text}<extra></extra>", **more,
    )  # fmt: skip
    figure = themed([trace], height, axis, {"showgrid": False, "range": [len(labels) - (0.5 if inside else 0.4), -0.9]})
    if not inside:
        return figure.update_yaxes(tickvals=list(range(len(labels))), ticktext=labels)
    for row, text in enumerate(labels):
        place = {"x": 0, "xref": "x domain", "xanchor": "left", "y": row, "yshift": 17}
        figure.add_annotation(text=text, showarrow=False, font={"size": 12}, **place)
    return figure.update_yaxes(showticklabels=False, ticks="")


def ladder(rungs: Sequence[Rung], title: str) -> go.Figure:
    """One number a row, the least on top, on a logarithmic scale; what lies far beyond is an arrow at its edge."""
    rungs = sorted(rungs, key=lambda rung: rung.log10)
    logs = _within([rung.log10 for rung in rungs])
    rungs = [
        rung if rung.log10 == log else rung._replace(symbol=f"triangle-{'right' if rung.log10 > log else 'left'}")
        for rung, log in zip(rungs, logs, strict=True)
    ]
    labels = [f"{r.name}: <b>{r.value}</b>" + (f" ({r.remark})" if r.remark else "") for r in rungs]
    marker = {
        "size": 13, "color": [r.colour for r in rungs], "symbol": [r.symbol for r in rungs],
        "line": {"width": [r.width for r in rungs]},
    }  # fmt: skip
    axis = {"title_text": title, "zeroline": False, **log_axis(min(logs), max(logs))}
    texts = [f"{r.name}: {r.value}" for r in rungs]
    return rows(logs, labels, texts, marker, 110 + 44 * len(rungs), axis, cliponaxis=False)


def _within(logs: Sequence[float]) -> list[float]:
    """Sorted logarithms, with those that are further than `_REACH` from the middle one moved to 4 beyond the others."""
    middle = min(logs, key=lambda log: (abs(log) > _REACH, abs(log - logs[len(logs) // 2])))
    near = [log for log in logs if abs(log - middle) <= _REACH]
    return [min(max(log, near[0] - 4), near[-1] + 4) if log not in near else log for log in logs]


def themed(
    traces: Sequence[go.Scatter | go.Heatmap | go.Bar], height: int, x: Mapping[str, object] | None = None,
    y: Mapping[str, object] | None = None, legend: Mapping[str, object] | None = None, right: int = 24,
) -> go.Figure:  # fmt: skip
    """A figure without colours of its own for axes and text.

    Args:
        traces: of it.
        height: in pixels.
        x: what is to be said of the axis.
        y: of the other one.
        legend: where it stands, if there is to be one.
        right: margin, in pixels.
    """
    axes = {"automargin": True, "fixedrange": True, "zeroline": False, "title_font_size": 13, "tickfont_size": 12}
    figure = go.Figure([*traces])
    figure.update_layout(
        template="none", height=height, margin={"l": 16, "r": right, "t": 24, "b": 16}, paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)", font={"family": "system-ui, sans-serif", "size": 13}, dragmode=False,
        showlegend=legend is not None, **({"legend": legend} if legend else {}),
    )  # fmt: skip
    return figure.update_xaxes(**axes | dict(x or {})).update_yaxes(**axes | dict(y or {}))
