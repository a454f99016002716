"""A spectrum on the page and in the terminal: eigenvalues with bounds, the density, and where eigenvectors live."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import plotly.graph_objects as go
from rich.console import Console

from villani.commands.spectrum.record import DensityRecord, EigenvalueRecord, SharpnessRecord, SpectrumRecord
from villani.outwards import UNAVAILABLE, lower, upper
from villani.report import elements
from villani.report.colours import NEGATIVE, POSITIVE, REMAINDER
from villani.report.elements import Row, Status, facts, note, sections
from villani.report.estimates import interval, uncertain
from villani.report.figures import DENSITY_FLOOR, SignedLog, band, error_bars, line, themed
from villani.report.numbers import format_bounded, format_count, format_number
from villani.report.origin import cost_words, decay_words, origin_rows, text_words
from villani.report.page import Picture, Pictures
from villani.report.terminal import print_findings, say, table


def show(record: SpectrumRecord, _: Path, console: Console) -> None:
    """The eigenvalues with their bounds, and what the whole spectrum comes to."""
    print_findings(console, headline(record), findings(record))
    console.print(table(_eigenvalue_rows(record), without=["residual²/gap", "status", "95 % interval"]))
    say(console, f"{record.products} products; {cost_words(record.cost)}")


def matrix(record: SpectrumRecord) -> str:
    """What the matrix is called."""
    name = "∇²L" if record.design.operator == "hessian" else "the Gauss–Newton matrix"
    return name if record.design.matrix == "loss" else ("∇²F" if name == "∇²L" else f"{name} + λM")


def headline(record: SpectrumRecord) -> str:
    """One sentence a practitioner understands."""
    sharp = record.sharpness
    if sharp and sharp.unstable is not None:
        state = "too long here" if sharp.unstable else "stable here as far as was seen"
        value = (
            f"at least {lower(sharp.low, 4)}, above"
            if sharp.unstable
            else f"about {format_number(sharp.low, 4)}, below"
        )
        return (
            f"A step of η = {format_number(sharp.learning_rate)} is {state}: λ₁(∇²F) is {value} 2/η = "
            f"{format_number(sharp.threshold, 4)}."
        )
    first, last = record.eigenvalues[0], record.eigenvalues[-1]
    ends = f"λ = {_value(first)}" if first is last else f"from {_value(last)} to {_value(first)}"
    return (
        f"The eigenvalues of {matrix(record)} that were sought: {ends}, on {record.objective.parameters:,} parameters."
    )


def findings(record: SpectrumRecord) -> dict[str, str]:
    """Title → paragraph."""
    first = record.eigenvalues[0]
    layer = max(range(len(first.shares)), key=first.shares.__getitem__)
    return {
        "What the bounds say": "An eigenvalue lies within each bound: the residual of a product made for the purpose, "
        f"plus {upper(record.rounding, 2)} for the rounding of products, which is estimated. {_BOUNDS}"
        + ("" if record.converged else " Not all residuals came down to the wanted tolerance."),
        "Sharpness against 2/η": _sharpness(record.sharpness) if record.sharpness else "",
        "Weight decay": _decay(record),
        "Where the first eigenvector lives": f"{100 * first.shares[layer]:.0f} % of it is in "
        f"{_layer(record.layer_names[layer])}.",
        "How many directions count": _rank_words(record, record.density) if record.density else "",
        "Beyond these data": "" if record.objective.finite else _beyond(record),
    }


_BOUNDS = (
    "A residual does not say which eigenvalue that is: of the rank it is proved, up to rounding, that the i-th largest "
    "is at least the i-th value shown, and no more. That none was missed beyond is not proved."
)


def _rank_words(record: SpectrumRecord, density: DensityRecord) -> str:
    low, high = density.negative_share.interval
    return (
        f"The effective rank (Σ|λ|)²/Σλ² is {uncertain(density.effective_rank)} of "
        f"{record.objective.parameters:,}; ‖H‖_F = {format_number(math.sqrt(density.frobenius_squared.value), 4)}, "
        f"tr H = {uncertain(density.trace)}. What the quadrature misses of |λ| about 0 is not in the error of the "
        f"rank. Below 0 lie between {lower(100 * low, 3)} and {upper(100 * high, 3)} % of the eigenvalues."
    )


def _beyond(record: SpectrumRecord) -> str:
    first = record.eigenvalues[0]
    held = first.held_out
    words = (
        f"The largest eigenvalue of the matrix of {format_count(record.design.groups, 'group')} is on average larger "
        "than the population's, since its vector fits their noise."
    )
    if not held or first.rank != 1:
        return words
    return (
        f"{words} On {format_count(held.n, 'fresh group')} the first vector has uᵀHu = {uncertain(held)}, an unbiased "
        "estimate of what the population's λ₁ is at least."
    )


def _decay(record: SpectrumRecord) -> str:
    decay, space = record.objective.weight_decay, record.objective
    whole = "∇²F" if record.design.operator == "hessian" else "this matrix plus λM"
    if record.design.matrix == "objective":
        return f"λ = {format_number(decay)} is in these figures, on {space.decayed_parameters:,} decayed coordinates."
    if space.decayed_parameters == space.parameters:
        return (
            f"Every parameter decays: the eigenvalues of {whole} are these plus λ = {format_number(decay)}, exactly. "
            "That shift holds for any loss at a fixed θ, and is no evidence of anything."
        )
    return (
        f"Of {space.parameters:,} parameters {space.decayed_parameters:,} decay: each eigenvalue of {whole} is "
        f"this one plus between 0 and λ = {format_number(decay)} (Weyl). For the exact ones give --matrix objective."
    )


def _sharpness(sharp: SharpnessRecord) -> str:
    means = (
        f"Gradient descent with the step η = {format_number(sharp.learning_rate)} runs away, to first order, along an "
        f"eigenvector of ∇²F above 2/η = {format_number(sharp.threshold, 4)}. "
    )
    if sharp.unstable:
        return means + f"λ₁(∇²F) ≥ {lower(sharp.low, 5)} is: the step is locally unstable on these data."
    if sharp.unstable is False:
        return means + f"λ₁(∇²F) ≤ {upper(sharp.high, 5)} is not, if no eigenvalue was missed."
    return means + "The bounds do not tell on which side λ₁(∇²F) is."


def _value(eigenvalue: EigenvalueRecord) -> str:
    """An eigenvalue with its bound."""
    return format_bounded(eigenvalue.value, eigenvalue.bound)


def _rank_limit(eigenvalue: EigenvalueRecord) -> str:
    """What is proved of the eigenvalue of that rank, up to rounding."""
    limit = eigenvalue.rank_limit
    if limit is None:
        return UNAVAILABLE
    return f"≥ {lower(limit, 7)}" if eigenvalue.rank > 0 else f"≤ {upper(limit, 7)}"


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
    return themed(traces, 380, across, {"zeroline": True, **up.ticks([e.value for e in values])})


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
    points = [(x + by, max(y, floor)) for x, y in zip(density.grid, density.density, strict=True)]
    text = [f"{x:.4g}: {y:.3g}" for x, y in points]
    return line([across(x) for x, _ in points], [y for _, y in points], name, colour, "lines", dash, text=text)


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
        x=[_layer(name) for name in record.layer_names],
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
    names = [_layer(block.name) for block in record.layers]
    traces = [_bounded(names, pairs, up, name, colour) for name, (colour, pairs) in ends.items()]
    return themed(traces, 400, {"type": "category", "tickangle": -45}, {"zeroline": True, **up.ticks(values)})


def tables(record: SpectrumRecord) -> str:
    """Sections of tables, as HTML."""
    blocks: list[Row] = [
        {
            "layer": _layer(b.name), "parameters": f"{b.parameters:,}",
            "largest ± residual": format_bounded(b.largest, b.largest_residual),
            "smallest ± residual": format_bounded(b.smallest, b.smallest_residual), "trace": uncertain(b.trace),
        }
        for b in record.layers
    ]  # fmt: skip
    return sections(
        {
            f"Eigenvalues of {matrix(record)}": elements.table(_eigenvalue_rows(record)) + note(_EIGENVALUE_NOTE),
            "Over the whole spectrum": _whole(record.density) if record.density else "",
            "Blocks of layers": elements.table(blocks),
            "How it was worked out": _how(record),
        }
    )


_EIGENVALUE_NOTE = (
    "An eigenvalue lies within the bound of a value; which one is not proved. Of that rank: the i-th largest is at "
    "least, the i-th smallest at most the number given, up to rounding; it may be further out where eigenvalues lie "
    "closer together than residuals. residual²/gap is closer than the bound, and holds only if no eigenvalue was "
    "missed in between."
)


def _eigenvalue_rows(record: SpectrumRecord) -> list[Row]:
    return [
        {
            "rank": format_number(e.rank), "value": format_number(e.value, 8), "residual": upper(e.residual, 2),
            "bound": upper(e.bound, 2), "of that rank": _rank_limit(e),
            "residual²/gap": "" if e.quadratic is None else upper(e.quadratic, 2), "status": Status(e.status),
            "fresh groups": uncertain(e.held_out) if e.held_out else "",
            "95 % interval": interval(e.held_out) if e.held_out else "",
        }
        for e in record.eigenvalues
    ]  # fmt: skip


def _whole(density: DensityRecord) -> str:
    named = {
        "tr H": density.trace, "‖H‖_F²": density.frobenius_squared,
        "effective rank (Σ|λ|)²/Σλ²": density.effective_rank,
        "share of negative eigenvalues": density.negative_share,
    }  # fmt: skip
    rows = [
        {"": name, "estimate": uncertain(e), "interval": interval(e), "status": Status(e.status)}
        for name, e in named.items()
    ]
    what = "all the data" if density.shares == 1 else f"one of {density.shares} shares of the data, on average"
    words = (
        f"{format_count(density.probes, 'probe')} × {format_count(density.steps, 'product')} for the matrix of {what}. "
        "The trace and ‖H‖_F² are exact but for the probes, and their intervals allow for the worst spectrum. The "
        "effective rank and the curve have an error of the quadrature too, which is not in their intervals; of the "
        "share below 0 the interval holds all that the quadrature leaves open."
    )
    return elements.table(rows) + note(words)


def _how(record: SpectrumRecord) -> str:
    design = record.design
    rows = {
        "model": f"{record.model.spec}: {record.model.description}",
        "matrix": f"{matrix(record)}, {design.operator}",
        "decay": f"{decay_words(record.objective)}, λ = {format_number(record.objective.weight_decay)}",
        "text": text_words(record.text),
        "groups": f"{design.groups} of {design.sequences} × {design.block} tokens, and {design.held_out} held out",
        "products": f"{record.products} for residuals of {design.tolerance:g} of the largest |eigenvalue| of each end: "
        + ("reached" if record.converged else "not reached"),
    }
    return facts(rows | origin_rows(record.provenance, record.cost))


def limits(record: SpectrumRecord) -> Sequence[str]:
    """What the page does not prove."""
    return (
        "That no eigenvalue lies outside those shown. Lanczos finds what its start vector has a part in; that part is "
        "random, so that missing one is improbable, and no bound on the probability is computed.",
        f"This is the matrix of {format_count(record.design.groups, 'group')} of text at one θ; the population's "
        "differs, and so does that of any other θ. At a fixed θ weight decay adds λ on decayed coordinates whatever "
        "the loss: to see what training with λ changes, compare models that were trained.",
        "Sharpness above 2/η says that gradient descent on these data moves away along one direction, to first order. "
        "Training with such steps may still go down, and momentum or Adam have other thresholds.",
        "The density is broadened, and the quadrature tells eigenvalues near 0 apart only down to its resolution.",
    )


def _layer(name: str) -> str:
    return f"layer {name}" if name.isdecimal() else name
