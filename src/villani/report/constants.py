"""The page of `villani exact --output`: constants on a logarithmic scale with their status, read off the record."""

from html import escape
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from villani.report.numbers import format_number
from villani.runs.exact import ConstantRecord, ExactRecord, PointRecord
from villani.runs.store import write_atomically

_STATUS = {
    "certified": "#10b981", "statistical": "#3b82f6", "estimated": "#f59e0b", "as-claimed": "#8b93a1",
    "refuted": "#e4572e",
}  # fmt: skip
_DASH = {
    "C1": "solid",
    "C2": "dash",
    "C3": "solid",
    "C4": "dot",
    "C5": "dashdot",
    "C6": "longdash",
    "C7": "longdashdot",
}
_AXES = {"weight_decay": "weight decay λ", "temperature": "temperature s", "dimension": "dimension d"}
_REACH = 30  # orders of magnitude above the truth that are drawn; what is further is written at the edge
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#10131a;"
    "background:#fff}table{border-collapse:collapse;width:100%;font-size:14px}td,th{text-align:left;padding:.3rem "
    ".6rem;border-bottom:1px solid #d8dce3;vertical-align:top}.wide{overflow-x:auto}"
)


def constants_figure(record: ExactRecord) -> go.Figure:
    """Every constant against what was varied, or in one column if nothing was; the colour is the status."""
    figure = go.Figure()
    axis = record.varied
    across = [getattr(point, axis) if axis else record.potential for point in record.points]
    top = max(_truth(point).log10 for point in record.points) + _REACH
    names = {(c.id, c.name): None for point in record.points for c in point.constants}
    for id, name in names:
        found = [next((c for c in point.constants if (c.id, c.name) == (id, name)), None) for point in record.points]
        shown = [(x, c) for x, c in zip(across, found, strict=True) if c is not None]
        figure.add_scatter(
            x=[x for x, _ in shown],
            y=[10 ** min(c.log10, top) for _, c in shown],
            name=f"{id} {name}" if id != "truth" else name,
            mode="lines+markers" if axis else "markers",
            line={"color": "#10131a" if id == "truth" else "#8b93a1", "dash": _DASH.get(id, "solid"), "width": 2},
            marker={
                "color": ["#10131a" if id == "truth" else _STATUS[c.status] for _, c in shown],
                "symbol": [_symbol(c, top) for _, c in shown],
                "size": 11,
            },
            text=[f"{c.id} {c.name}: {value(c)} ({c.status})" for _, c in shown],
            hovertemplate="%{text}<extra></extra>",
        )
    figure.update_layout(template="simple_white", height=520, legend={"orientation": "h", "y": -0.2}, margin={"t": 20})
    figure.update_yaxes(type="log", title="constant (logarithmic)", exponentformat="power", showgrid=True)
    if axis:
        figure.update_xaxes(title=_AXES[axis], type="linear" if axis == "dimension" else "log")
    return figure


def write_page(record: ExactRecord, path: Path) -> None:
    """One self-contained HTML file: the verdict, the picture, and the table of each point."""
    picture = constants_figure(record).to_html(full_html=False, include_plotlyjs=False)
    sections = "".join(_section(point) for point in record.points)
    legend = ", ".join(f'<span style="color:{colour}">●</span> {status}' for status, colour in _STATUS.items())
    last = record.points[-1]
    title = escape(record.potential)
    write_atomically(
        path,
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style><script>{get_plotlyjs()}</script></head><body>"
        f"<h1>{title}</h1><p>{escape(record.about)}: L = <code>{escape(record.expression)}</code> "
        f"({escape(record.shape)}).</p><p><strong>{escape(_where(last))}: {escape(last.verdict)}.</strong></p>"
        f"<p>{legend}; black: computed. Triangles point beyond the picture.</p>{picture}{sections}</body></html>\n",
    )


def value(constant: ConstantRecord) -> str:
    """A constant for people, as a power of ten beyond floats."""
    return format_number(constant.value) if constant.value is not None else f"10^{constant.log10:.1f}"


def _section(point: PointRecord) -> str:
    rows = "".join(
        f"<tr><td>{escape(c.id)}</td><td>{escape(c.name)}</td><td>{'≥' if c.direction == 'lower' else '≤'} "
        f"{escape(value(c))}</td><td>{escape(c.kind)}</td><td>{escape(c.status)}</td><td>{escape(c.hypotheses)}</td></tr>"
        for c in point.constants
    ) + "".join(
        f'<tr><td>{escape(gone.id)}</td><td colspan="5">does not apply: {escape(gone.reason)}</td></tr>'
        for gone in point.missing
    )
    return (
        f"<h2>{escape(_where(point))}</h2><p>{escape(point.verdict)}. Two grids and boxes differ by "
        f'{point.error:.0e}.</p><div class="wide"><table><tr><th></th><th>bound</th><th>value</th><th>on</th>'
        f"<th>status</th><th>if</th></tr>{rows}</table></div>"
    )


def _where(point: PointRecord) -> str:
    return (
        f"λ = {format_number(point.weight_decay)}, s = {format_number(point.temperature)} "
        f"(β = {format_number(point.beta)}), d = {point.dimension}"
    )


def _truth(point: PointRecord) -> ConstantRecord:
    return next(c for c in point.constants if c.id == "truth")


def _symbol(constant: ConstantRecord, top: float) -> str:
    if constant.log10 > top:
        return "triangle-up"
    return "circle" if constant.direction == "upper" else "line-ew-open" if constant.id == "C9" else "diamond"
