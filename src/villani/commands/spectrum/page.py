"""A spectrum on the page and in the terminal: eigenvalues with bounds, the density, and where eigenvectors live."""

import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from villani.commands.spectrum.figures import layer_name
from villani.commands.spectrum.figures import pictures as pictures  # a page has them
from villani.commands.spectrum.record import DensityRecord, EigenvalueRecord, SharpnessRecord, SpectrumRecord
from villani.outwards import UNAVAILABLE, lower, upper
from villani.report import elements
from villani.report.elements import Status, facts, note, sections
from villani.report.estimates import Columns, interval, rows_of, uncertain
from villani.report.numbers import format_bounded, format_count, format_number
from villani.report.origin import cost_words, decay_words, origin_rows, text_words
from villani.report.terminal import print_findings, say, table


def show(record: SpectrumRecord, _: Path, console: Console) -> None:
    """The eigenvalues with their bounds, and what the whole spectrum comes to."""
    print_findings(console, headline(record), findings(record))
    console.print(
        table(rows_of(record.eigenvalues, _EIGENVALUES), without=["residual²/gap", "status", "95 % interval"])
    )
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
    least, largest = (end(record.eigenvalues, key=lambda e: e.value) for end in (min, max))
    ends = _value(largest) if least is largest else f"from {_value(least)} to {_value(largest)}"
    count = format_count(len(record.eigenvalues), "eigenvalue")
    return f"{count} of {matrix(record)} at its ends: {ends}, on {record.objective.parameters:,} parameters."


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
        f"{layer_name(record.layer_names[layer])}.",
        "How many directions count": _rank_words(record, record.density) if record.density else "",
        "Beyond these data": "" if record.objective.finite else _beyond(record),
    }


_BOUNDS = (
    "A residual does not say which eigenvalue that is: of the rank it is proved, up to rounding, that the i-th largest "
    "is at least the i-th value shown, and no more. That none was missed beyond is not proved."
)


def _rank_words(record: SpectrumRecord, density: DensityRecord) -> str:
    (least, most), (low, high) = density.effective_rank.interval, density.negative_share.interval
    return (
        f"The effective rank (Σ|λ|)²/Σλ² lies between {lower(least, 3)} and {upper(most, 3)} of "
        f"{record.objective.parameters:,}; ‖H‖_F = {format_number(math.sqrt(density.frobenius_squared.value), 4)}, "
        f"tr H = {uncertain(density.trace)}. "
        f"Below 0 lie between {lower(100 * low, 3)} and {upper(100 * high, 3)} % of the eigenvalues."
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


def tables(record: SpectrumRecord) -> str:
    """Sections of tables, as HTML."""
    return sections(
        {
            f"Eigenvalues of {matrix(record)}": elements.table(rows_of(record.eigenvalues, _EIGENVALUES))
            + note(_EIGENVALUE_NOTE),
            "Over the whole spectrum": _whole(record.density) if record.density else "",
            "Blocks of layers": elements.table(rows_of(record.layers, _BLOCKS)),
            "How it was worked out": _how(record),
        }
    )


_EIGENVALUE_NOTE = (
    "An eigenvalue lies within the bound of a value; which one is not proved. Of that rank: the i-th largest is at "
    "least, the i-th smallest at most the number given, up to rounding; it may be further out where eigenvalues lie "
    "closer together than residuals. residual²/gap is closer than the bound, and holds only if no eigenvalue was "
    "missed in between."
)


_EIGENVALUES: Columns = {
    "rank": lambda e: format_number(e.rank), "value": lambda e: format_number(e.value, 8),
    "residual": lambda e: upper(e.residual, 2), "bound": lambda e: upper(e.bound, 2), "of that rank": _rank_limit,
    "residual²/gap": lambda e: "" if e.quadratic is None else upper(e.quadratic, 2), "status": "status",
    "fresh groups": lambda e: uncertain(e.held_out) if e.held_out else "",
    "95 % interval": lambda e: interval(e.held_out) if e.held_out else "",
}  # fmt: skip
_BLOCKS: Columns = {
    "layer": lambda b: layer_name(b.name), "parameters": "parameters",
    "largest ± residual": lambda b: format_bounded(b.largest, b.largest_residual),
    "smallest ± residual": lambda b: format_bounded(b.smallest, b.smallest_residual), "trace": "trace",
}  # fmt: skip


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
        "The trace and ‖H‖_F² are exact but for the probes, and their intervals allow for the worst spectrum. Those of "
        "the effective rank and of the share below 0 hold all that the quadrature leaves open; the curve has an error "
        "of the quadrature that is not told."
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
