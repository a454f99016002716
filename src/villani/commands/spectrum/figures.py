"""The pictures of a spectrum: eigenvalues with their bounds, the density, and where eigenvectors live."""

from collections.abc import Iterable, Sequence

import plotly.graph_objects as go

from villani.commands.spectrum.record import DensityRecord, SpectrumRecord
from villani.report.colours import NEGATIVE, POSITIVE, REMAINDER, UNRESOLVED
from villani.report.estimates import uncertain
from villani.report.figures import DENSITY_FLOOR, SignedLog, band, error_bars, line, themed
from villani.report.numbers import format_bounded, format_number
from villani.report.page import Picture, Pictures


def layer_name(name: str) -> str:
    """What a layer is called: those that have a number, and tensors that are in none."""
    return f"layer {name}" if name.isdecimal() else name


def pictures(record: SpectrumRecord) -> Pictures:
    """Name → title, figure, caption."""
    held = " Crosses: uᵀHu of the same vectors on fresh groups." if record.eigenvalues[0].held_out else ""
    return {
        "eigenvalues": ("Eigenvalues at both ends", _ends(record), f"{_ENDS_CAPTION}{held}"),
        "density": _density(record.density) if record.density else None,
        "layers": ("Where the eigenvectors live", _layers(record), _LAYERS_CAPTION),
        "blocks": ("Blocks of layers by themselves", _blocks(record), _BLOCKS_CAPTION),
    }


_ENDS_CAPTION = "Bars are bounds: an eigenvalue lies within each."
_LAYERS_CAPTION = "‖u‖² of each eigenvector, layer by layer; every row sums to 1."
_BLOCKS_CAPTION = "The largest and smallest eigenvalue of each layer's diagonal block; bars are residuals."


def _ends(record: SpectrumRecord) -> go.Figure:
    values = record.eigenvalues
    up = SignedLog(max(abs(e.value) for e in values) or 1.0)
    colours = [POSITIVE if e.value > 0 else NEGATIVE for e in values]
    traces = [_bounded(range(len(values)), [(e.value, e.bound) for e in values], up, "eigenvalue", colours)]
    if held := {i: e.held_out for i, e in enumerate(values) if e.held_out}:
        heights, text = [up(h.value) for h in held.values()], [uncertain(h) for h in held.values()]
        marker = {"size": 9, "symbol": "x"}
        traces.append(line(held, heights, "fresh groups", REMAINDER, "markers", marker=marker, text=text))
    ranks = [format_number(e.rank) for e in values]
    across = {"title": "rank: from the largest, from the smallest", "tickvals": [*range(len(ranks))], "ticktext": ranks}
    figure = themed(traces, 380, across, {"zeroline": True, **up.ticks([e.value for e in values])})
    sharp, space = record.sharpness, record.objective
    shift = 0.0 if record.design.matrix == "objective" else space.weight_decay
    if sharp is None or (shift and space.decayed_parameters < space.parameters):
        return figure
    label = f"2/η{' − λ' if shift else ''} = {format_number(sharp.threshold - shift, 4)}"
    line_of = {"color": UNRESOLVED, "dash": "dash"}
    return figure.add_hline(y=up(sharp.threshold - shift), line=line_of, annotation_text=label)


def _bounded(
    x: Iterable[object], ends: Sequence[tuple[float, float]], up: SignedLog, name: str, colour: str | list[str]
) -> go.Scatter:
    """Values with their bounds."""
    minus = [up(middle) - up(middle - bound) for middle, bound in ends]
    plus = [up(middle + bound) - up(middle) for middle, bound in ends]
    return line(
        x, [up(middle) for middle, _ in ends], name, POSITIVE, "markers", marker={"size": 9, "color": colour},
        error_y=error_bars(minus, plus), text=[format_bounded(*pair) for pair in ends],
    )  # fmt: skip


def density_axis(densities: Sequence[DensityRecord]) -> tuple[SignedLog, dict[str, object]]:
    """Places of eigenvalues on a signed logarithmic axis, and that axis."""
    grid = [x for density in densities for x in density.grid]
    finest = min(density.resolution for density in densities)
    across = SignedLog(max(map(abs, grid)), threshold=max(finest, 1e-300))
    return across, {"title": "eigenvalue", **across.ticks(grid)}


DENSITY_UP = {"type": "log", "title": "density", "exponentformat": "power"}


def density_line(
    density: DensityRecord, across: SignedLog, name: str, colour: str, dash: str = "solid", by: float = 0.0
) -> go.Scatter:
    """A density, moved by so much; above what would be noise of a few nodes."""
    floor = DENSITY_FLOOR * max(density.density)
    points = [(x + by, y) for x, y in zip(density.grid, density.density, strict=True)]
    text = [f"{x:.4g}: {y:.3g}" for x, y in points]
    heights = [max(y, floor) for _, y in points]
    return line([across(x) for x, _ in points], heights, name, colour, "lines", dash, text=text)


def _density(density: DensityRecord) -> Picture:
    across, axis = density_axis([density])
    floor = DENSITY_FLOOR * max(density.density)
    both = [*zip(density.density, density.sem, strict=True)]
    edges = [[max(y + sign * e, floor) for y, e in both] for sign in (-1, 1)]
    traces = [*band([*map(across, density.grid)], *edges), density_line(density, across, "density", POSITIVE)]
    over = "probes" if density.shares == 1 else "shares of the data and their probes"
    caption = (
        f"Logarithmic upwards; sideways logarithmic on either side of 0. The band is one standard error over {over}. "
        f"Every eigenvalue is drawn as a Gaussian of standard deviation {format_number(density.resolution, 2)}; "
        "nothing finer is resolved, the neighbourhood of 0 least of all."
    )
    return "The density of all eigenvalues", themed(traces, 380, axis, DENSITY_UP), caption


def _layers(record: SpectrumRecord) -> go.Figure | None:
    if len(record.layer_names) < 2:
        return None
    values = record.eigenvalues
    trace = go.Heatmap(
        x=[layer_name(name) for name in record.layer_names],
        y=[f"{format_number(e.rank)}: {format_number(e.value, 3)}" for e in values],
        z=[e.shares for e in values], zmin=0, zmax=max(share for e in values for share in e.shares),
        colorscale=[[0, "rgba(139,147,161,0.08)"], [1, POSITIVE]], hovertemplate="%{x}, %{y}: %{z:.3f}<extra></extra>",
        xgap=2, ygap=2,
    )  # fmt: skip
    up = {"type": "category", "autorange": "reversed", "title": "eigenvalue"}
    return themed([trace], 170 + 26 * len(values), {"type": "category", "tickangle": -45}, up)


def _blocks(record: SpectrumRecord) -> go.Figure | None:
    if not record.layers:
        return None
    ends = {
        "largest": (POSITIVE, [(block.largest, block.largest_residual) for block in record.layers]),
        "smallest": (NEGATIVE, [(block.smallest, block.smallest_residual) for block in record.layers]),
    }
    values = [x for _, pairs in ends.values() for x, _ in pairs]
    up = SignedLog(max(map(abs, values)) or 1.0)
    names = [layer_name(block.name) for block in record.layers]
    traces = [_bounded(names, pairs, up, name, colour) for name, (colour, pairs) in ends.items()]
    return themed(traces, 400, {"type": "category", "tickangle": -45}, {"zeroline": True, **up.ticks(values)})
