"""A spectrum on the page and in the terminal: eigenvalues with bounds, the density, and where eigenvectors live."""

import math
from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go
from rich.console import Console
from rich.table import Table

from villani.commands.spectrum.record import DensityRecord, EigenvalueRecord, SpectrumRecord
from villani.outwards import UNAVAILABLE, lower, upper
from villani.report.elements import badge, facts, note, section, table
from villani.report.figures import DENSITY_FLOOR, NEGATIVE, POSITIVE, REMAINDER, SignedLog, themed
from villani.report.numbers import format_bounded, format_count, format_interval, format_number, format_uncertain
from villani.report.origin import origin_rows
from villani.report.page import Pictures
from villani.report.terminal import estimate_cells, print_findings, print_page


def show(record: SpectrumRecord, directory: Path, console: Console) -> None:
    """The eigenvalues with their bounds, what the whole spectrum comes to, and where the page is."""
    print_findings(console, headline(record), findings(record))
    rows = Table("rank", "eigenvalue", "residual", "bound", "of that rank", "on fresh groups")
    for e in record.eigenvalues:
        held = "" if e.held_out is None else estimate_cells(e.held_out)[0]
        rows.add_row(
            str(e.rank), format_number(e.value, 7), upper(e.residual, 2), upper(e.bound, 2), rank_limit(e), held
        )
    console.print(rows)
    if record.cost:
        console.print(
            f"{record.products} products; {record.cost.seconds:.1f} s in all, peak memory "
            f"{record.cost.peak_memory_bytes / 2**30:.2f} GiB"
        )
    print_page(console, directory)


def matrix(record: SpectrumRecord) -> str:
    """What the matrix is called."""
    name = "∇²L" if record.design.operator == "hessian" else "the Gauss–Newton matrix"
    return name if record.design.matrix == "loss" else ("∇²F" if name == "∇²L" else f"{name} + λM")


def headline(record: SpectrumRecord) -> str:
    """One sentence a practitioner understands."""
    sharp = record.sharpness
    if sharp and sharp.unstable:
        return (
            f"A step of η = {format_number(sharp.learning_rate)} is too long here: λ₁(∇²F) is at least "
            f"{lower(sharp.low, 4)}, above 2/η = {format_number(sharp.threshold, 4)}."
        )
    if sharp and sharp.unstable is False:
        return (
            f"A step of η = {format_number(sharp.learning_rate)} is stable here as far as was seen: λ₁(∇²F) is about "
            f"{format_number(sharp.low, 4)}, below 2/η = {format_number(sharp.threshold, 4)}."
        )
    first, last = record.eigenvalues[0], record.eigenvalues[-1]
    ends = f"λ = {value(first)}" if first is last else f"from {value(last)} to {value(first)}"
    return (
        f"The eigenvalues of {matrix(record)} that were sought: {ends}, on {record.objective.parameters:,} parameters."
    )


def findings(record: SpectrumRecord) -> dict[str, str]:
    """Title → paragraph."""
    first = record.eigenvalues[0]
    design = record.design
    paragraphs = {
        "What the bounds say": "An eigenvalue lies within each bound: the residual of a product made for the purpose, "
        f"plus {upper(record.rounding, 2)} for the rounding of products, which is estimated. A residual does not "
        "say which eigenvalue that is: of the rank it is proved, up to rounding, that the i-th largest is at least the "
        "i-th value shown, and no more. That none was missed beyond is not proved."
        + ("" if record.converged else " Not all residuals came down to the wanted tolerance.")
    }
    if record.sharpness:
        paragraphs["Sharpness against 2/η"] = _sharpness(record)
    paragraphs["Weight decay"] = _decay(record)
    layer = max(range(len(first.shares)), key=first.shares.__getitem__)
    paragraphs["Where the first eigenvector lives"] = (
        f"{100 * first.shares[layer]:.0f} % of it is in {_layer(record.layer_names[layer])}."
    )
    if record.density:
        d = record.density
        paragraphs["How many directions count"] = (
            f"The effective rank (Σ|λ|)²/Σλ² is {format_uncertain(d.effective_rank.value, d.effective_rank.sem)} of "
            f"{record.objective.parameters:,}; ‖H‖_F = {format_number(math.sqrt(d.frobenius_squared.value), 4)}, "
            f"tr H = {format_uncertain(d.trace.value, d.trace.sem)}. What the quadrature misses of |λ| about 0 is not "
            f"in the error of the rank. Below 0 lie between {lower(100 * d.negative_share.interval[0], 3)} and "
            f"{upper(100 * d.negative_share.interval[1], 3)} % of the eigenvalues."
        )
    if not record.objective.finite:
        held = first.held_out
        paragraphs["Beyond these data"] = (
            f"The largest eigenvalue of the matrix of {format_count(design.groups, 'group')} is on average larger "
            "than the population's, since its vector fits their noise."
            + (
                f" On {format_count(held.n, 'fresh group')} the first vector has uᵀHu = "
                f"{format_uncertain(held.value, held.sem)}, an unbiased estimate of what the population's λ₁ is at "
                "least."
                if held and first.rank == 1
                else ""
            )
        )
    return paragraphs


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


def _sharpness(record: SpectrumRecord) -> str:
    sharp = record.sharpness
    assert sharp is not None
    means = (
        f"Gradient descent with the step η = {format_number(sharp.learning_rate)} runs away, to first order, along an "
        f"eigenvector of ∇²F above 2/η = {format_number(sharp.threshold, 4)}. "
    )
    if sharp.unstable:
        return means + f"λ₁(∇²F) ≥ {lower(sharp.low, 5)} is: the step is locally unstable on these data."
    if sharp.unstable is False:
        return means + f"λ₁(∇²F) ≤ {upper(sharp.high, 5)} is not, if no eigenvalue was missed."
    return means + "The bounds do not tell on which side λ₁(∇²F) is."


def value(eigenvalue: EigenvalueRecord) -> str:
    """An eigenvalue with its bound."""
    return format_bounded(eigenvalue.value, eigenvalue.bound)


def rank_limit(eigenvalue: EigenvalueRecord) -> str:
    """What is proved of the eigenvalue of that rank, up to rounding."""
    if eigenvalue.rank_limit is None:
        return UNAVAILABLE
    if eigenvalue.rank > 0:
        return f"≥ {lower(eigenvalue.rank_limit, 7)}"
    return f"≤ {upper(eigenvalue.rank_limit, 7)}"


def pictures(record: SpectrumRecord) -> Pictures:
    """Name → title, figure, caption."""
    shown: Pictures = {
        "eigenvalues": (
            "Eigenvalues at both ends",
            _ends(record),
            "Bars are bounds: an eigenvalue lies within each."
            + (" Crosses: uᵀHu of the same vectors on fresh groups." if record.eigenvalues[0].held_out else ""),
        )
    }
    if record.density:
        shown["density"] = (
            "The density of all eigenvalues",
            _density(record.density),
            "Logarithmic upwards; sideways logarithmic on either side of 0. The band is one standard error over "
            f"{'probes' if record.density.shares == 1 else 'shares of the data and their probes'}. Every eigenvalue is "
            f"drawn as a Gaussian of standard deviation {format_number(record.density.resolution, 2)}; nothing finer "
            "is resolved, the neighbourhood of 0 least of all.",
        )
    if len(record.layer_names) > 1:
        shown["layers"] = (
            "Where the eigenvectors live",
            _layers(record),
            "‖u‖² of each eigenvector, layer by layer; every row sums to 1.",
        )
    if record.layers:
        shown["blocks"] = (
            "Blocks of layers by themselves",
            _blocks(record),
            "The largest and smallest eigenvalue of each layer's diagonal block; bars are residuals.",
        )
    return shown


def _ends(record: SpectrumRecord) -> go.Figure:
    values = record.eigenvalues
    up = SignedLog(max(abs(e.value) for e in values) or 1.0)
    places = list(range(len(values)))
    heights = [up(e.value) for e in values]
    traces = [
        go.Scatter(
            x=places, y=heights, mode="markers", name="eigenvalue",
            marker={"size": 9, "color": [POSITIVE if e.value > 0 else NEGATIVE for e in values]},
            error_y={
                "type": "data", "symmetric": False, "thickness": 1.6, "width": 5, "color": "#7a8494",
                "array": [up(e.value + e.bound) - h for e, h in zip(values, heights, strict=True)],
                "arrayminus": [h - up(e.value - e.bound) for e, h in zip(values, heights, strict=True)],
            },
            text=[value(e) for e in values], hovertemplate="%{text}<extra></extra>",
        )
    ]  # fmt: skip
    held = [(i, e.held_out) for i, e in zip(places, values, strict=True) if e.held_out]
    if held:
        traces.append(
            go.Scatter(
                x=[i for i, _ in held], y=[up(h.value) for _, h in held], mode="markers", name="fresh groups",
                marker={"size": 9, "symbol": "x", "color": REMAINDER},
                text=[format_uncertain(h.value, h.sem) for _, h in held], hovertemplate="%{text}<extra></extra>",
            )
        )  # fmt: skip
    figure = themed(traces, 380)
    figure.update_xaxes(
        title="rank: from the largest, from the smallest",
        tickvals=places,
        ticktext=[format_number(e.rank) for e in values],
    )
    figure.update_yaxes(zeroline=True, **up.ticks([e.value for e in values]))
    return figure


def _density(density: DensityRecord) -> go.Figure:
    across = SignedLog(max(abs(x) for x in density.grid), threshold=max(density.resolution, 1e-300))
    floor = DENSITY_FLOOR * max(density.density)
    middle = [max(y, floor) for y in density.density]
    high = [max(y + e, floor) for y, e in zip(density.density, density.sem, strict=True)]
    low = [max(y - e, floor) for y, e in zip(density.density, density.sem, strict=True)]
    x = [across(point) for point in density.grid]
    traces = [
        go.Scatter(x=x, y=high, mode="lines", line={"width": 0}, hoverinfo="skip"),
        go.Scatter(x=x, y=low, mode="lines", line={"width": 0}, fill="tonexty", fillcolor="rgba(139,147,161,0.35)",
                   hoverinfo="skip"),
        go.Scatter(
            x=x, y=middle, mode="lines", line={"color": POSITIVE, "width": 2},
            text=[f"{point:.4g}: {y:.3g}" for point, y in zip(density.grid, density.density, strict=True)],
            hovertemplate="%{text}<extra></extra>",
        ),
    ]  # fmt: skip
    figure = themed(traces, 380)
    figure.update_xaxes(title="eigenvalue", **across.ticks(density.grid))
    figure.update_yaxes(type="log", title="density", exponentformat="power")
    return figure


def _layers(record: SpectrumRecord) -> go.Figure:
    values = record.eigenvalues
    trace = go.Heatmap(
        x=[_layer(name) for name in record.layer_names],
        y=[f"{format_number(e.rank)}: {format_number(e.value, 3)}" for e in values],
        z=[e.shares for e in values],
        zmin=0,
        zmax=max(share for e in values for share in e.shares),
        colorscale=[[0, "rgba(139,147,161,0.08)"], [1, POSITIVE]],
        hovertemplate="%{x}, %{y}: %{z:.3f}<extra></extra>",
        xgap=2,
        ygap=2,
    )
    figure = themed([trace], 170 + 26 * len(values))
    figure.update_xaxes(type="category", tickangle=-45)
    figure.update_yaxes(type="category", autorange="reversed", title="eigenvalue")
    return figure


def _blocks(record: SpectrumRecord) -> go.Figure:
    names = [_layer(block.name) for block in record.layers]
    ends = (
        [(b.largest, b.largest_residual) for b in record.layers],
        [(b.smallest, b.smallest_residual) for b in record.layers],
    )
    up = SignedLog(max((abs(x) for end in ends for x, _ in end), default=1.0) or 1.0)
    traces = [
        go.Scatter(
            x=names, y=[up(x) for x, _ in end], mode="markers", name=name, marker={"size": 9, "color": colour},
            error_y={
                "type": "data", "symmetric": False, "thickness": 1.6, "width": 5, "color": "#7a8494",
                "array": [up(x + r) - up(x) for x, r in end], "arrayminus": [up(x) - up(x - r) for x, r in end],
            },
            text=[format_bounded(x, r) for x, r in end],
            hovertemplate="%{text}<extra></extra>",
        )
        for name, colour, end in (("largest", POSITIVE, ends[0]), ("smallest", NEGATIVE, ends[1]))
    ]  # fmt: skip
    figure = themed(traces, 400)
    figure.update_xaxes(type="category", tickangle=-45)
    figure.update_yaxes(zeroline=True, **up.ticks([x for end in ends for x, _ in end]))
    return figure


def tables(record: SpectrumRecord) -> str:
    """Sections of tables, as HTML."""
    header = [
        "rank", "value", "residual", "bound", "of that rank", "residual²/gap", "status", "fresh groups", "95 % interval"
    ]  # fmt: skip
    rows = [
        [
            format_number(e.rank), format_number(e.value, 8), upper(e.residual, 2), upper(e.bound, 2), rank_limit(e),
            "" if e.quadratic is None else upper(e.quadratic, 2), badge(e.status),
            "" if e.held_out is None else format_uncertain(e.held_out.value, e.held_out.sem),
            "" if e.held_out is None else format_interval(*e.held_out.interval),
        ]
        for e in record.eigenvalues
    ]  # fmt: skip
    text = (
        "An eigenvalue lies within the bound of a value; which one is not proved. Of that rank: the i-th largest is at "
        "least, the i-th smallest at most the number given, up to rounding; it may be further out where eigenvalues "
        "lie closer together than residuals. residual²/gap is closer than the bound, and holds only if no eigenvalue "
        "was missed in between."
    )
    sections = [section(f"Eigenvalues of {matrix(record)}", table(header, rows) + note(text))]
    if record.density:
        d = record.density
        named = {
            "tr H": d.trace, "‖H‖_F²": d.frobenius_squared, "effective rank (Σ|λ|)²/Σλ²": d.effective_rank,
            "share of negative eigenvalues": d.negative_share,
        }  # fmt: skip
        body = [
            [name, format_uncertain(e.value, e.sem), format_interval(*e.interval), badge(e.status)]
            for name, e in named.items()
        ]
        what = "all the data" if d.shares == 1 else f"one of {d.shares} shares of the data, on average"
        words = (
            f"{format_count(d.probes, 'probe')} × {format_count(d.steps, 'product')} for the matrix of {what}. The "
            "trace and ‖H‖_F² are exact but for the probes, and their intervals allow for the worst spectrum. The "
            "effective rank and the curve have an error of the quadrature too, which is not in their intervals; of the "
            "share below 0 the interval holds all that the quadrature leaves open."
        )
        sections.append(
            section("Over the whole spectrum", table(["", "estimate", "interval", "status"], body) + note(words))
        )
    if record.layers:
        blocks = [
            [
                _layer(b.name), f"{b.parameters:,}", format_bounded(b.largest, b.largest_residual),
                format_bounded(b.smallest, b.smallest_residual), format_uncertain(b.trace.value, b.trace.sem),
            ]
            for b in record.layers
        ]  # fmt: skip
        header = ["layer", "parameters", "largest ± residual", "smallest ± residual", "trace"]
        sections.append(section("Blocks of layers", table(header, blocks)))
    return "".join([*sections, section("How it was worked out", _how(record))])


def _how(record: SpectrumRecord) -> str:
    design = record.design
    rows = {
        "model": f"{record.model.spec}: {record.model.description}",
        "matrix": f"{matrix(record)}, {design.operator}",
        "decay": f"{record.objective.decay}, {record.objective.decayed_parameters:,} of "
        f"{record.objective.parameters:,} parameters, λ = {format_number(record.objective.weight_decay)}",
        "text": f"{record.text.spec}, {format_count(record.text.documents, 'document')}, tokens "
        f"{record.text.token_checksum[:12]}…",
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
