"""What a measurement says, and what it does not, in plain sentences: for the page and for the terminal alike."""

import re

from villani.commands.constants.page import NEXT, model_finding
from villani.commands.measure.figures import data_part
from villani.commands.measure.record import MeasurementRecord
from villani.report.elements import Folded
from villani.report.estimates import uncertain
from villani.report.numbers import format_interval, format_number
from villani.theory.guidance import gradient_noise, next_step
from villani.work.records import EstimateRecord, PsiRecord

_FLAT_BIAS = re.compile(r"(attn|attention|mlp).*\b(c_proj|out_proj|o_proj|fc2|down_proj|dense|dense_4h_to_h)\.bias$")


def findings(record: MeasurementRecord) -> dict[str, str]:
    """Title → paragraph: what Ψ is made of, what its sign cannot decide, what decays, and how large ∇L is."""
    psi = record.psi[0]
    return {
        "What it is made of": _make_up(record, psi),
        "What that says about condition (iv)": _meaning(psi),
        "What decays": _coverage(record),
        "The gradient": _gradient(record),
        "The curvature": _curvature(record),
        NEXT: _next_step(record, psi),
        Folded("What theory offers"): _constants(record),
    }


def headline(record: MeasurementRecord) -> str:
    """One sentence: the sign of Ψ at the first λ and s, its value, and its interval."""
    psi = record.psi[0]
    where = f"at λ = {format_number(psi.weight_decay)}, s = {format_number(psi.temperature)}"
    if record.displacement:
        where += f" and radius {format_number(record.displacement.radius)} of a ray"
    value = uncertain(psi)
    percent = f"{100 * record.design.confidence:g} %"
    low, high = psi.interval
    if low == high:
        return f"Ψ is {_sign(psi)} {where}: {value}, without sampling error."
    if _sign(psi) == "undecided":
        return (
            f"The sign of Ψ is undecided {where}: {value}, "
            f"and the {percent} interval {format_interval(low, high)} contains 0."
        )
    return f"Ψ is {_sign(psi)} {where}: {value}, {percent} interval {format_interval(low, high)}."


def _next_step(record: MeasurementRecord, psi: PsiRecord) -> str:
    objective, design = record.objective, record.design
    words = next_step(
        psi.weight_decay, psi.temperature, dimension=objective.decayed_parameters,
        norm_squared=record.decayed_norm_squared,
    )  # fmt: skip
    if objective.finite:
        return words
    naive, unbiased = record.naive_gradient_norm_squared.value, record.gradient_norm_squared.value
    noise = gradient_noise(naive, unbiased, design.sequences * (design.block - 1))
    return (
        f"{words} Gradients of single tokens scatter by about {_digits(noise)} nats²; which s your SGD resembles: "
        f"villani constants MODEL --gradient-noise {_digits(noise)} --optimizer sgd --learning-rate η --batch-tokens B."
    )


def _digits(value: float) -> str:
    """Two significant digits that a command line takes, whatever a page makes of powers."""
    return f"{float(f'{value:.2g}'):.12f}".rstrip("0").rstrip(".")


def _sign(estimate: EstimateRecord) -> str:
    low, high = estimate.interval
    if low == high == 0:
        return "zero"
    if low <= 0 <= high:
        return "undecided"
    return "positive" if low > 0 else "negative"


def _make_up(record: MeasurementRecord, psi: PsiRecord) -> str:
    norm, count = psi.parts.decay_norm.value, psi.parts.decay_laplacian.value
    data = data_part(psi)
    exact = norm + count
    text = (
        f"The two exact decay terms, λ²‖mθ‖²/s = {format_number(norm)} and −λ·d_m = {format_number(count)}, follow "
        "from λ, s and the size of the weights alone and say nothing about the data. Together they come to "
        f"{format_number(exact)}{_share(exact, psi)}. What depends on the data comes to {uncertain(data)}."
    )
    curvature = record.hessian_trace
    if psi.weight_decay and curvature.interval[0] > 0:
        ratio = format_number(-count / curvature.value, 2)
        text += f" In the Laplacian, decay contributes {ratio} times what the loss does: λ·d_m against tr ∇²L."
    return text


def _share(exact: float, psi: PsiRecord) -> str:
    if _sign(psi) in ("undecided", "zero"):
        return ""
    share = exact / psi.value
    if share < 0:
        return ", of the opposite sign to Ψ, so that the data-dependent terms outweigh them"
    if share > 1.0005:
        return f", {format_number(100 * share, 3)} % of Ψ, so that the data-dependent terms pull the other way"
    return f", {format_number(100 * share, 3)} % of Ψ"


def _meaning(psi: PsiRecord) -> str:
    """Equilibrium identity of THEORY.md §1, and what a sign at one point can decide: nothing."""
    common = (
        "Condition (iv) asks whether Ψ grows without bound as the weights go to infinity; no value at a single point "
        "can answer that."
    )
    expected = (
        "at equilibrium, where there is one, the average of Ψ is −½ times the average of ΔF, which is below zero "
        "(THEORY.md §1)"
    )
    if _sign(psi) == "negative":
        return f"A negative Ψ is no evidence against (iv), and expected near a minimum: {expected}. {common}"
    if _sign(psi) == "positive":
        return f"A positive Ψ here is no evidence for (iv). {common} For comparison: {expected}."
    return f"With the sign undecided there is nothing to read into it, and a known sign would not help. {common}"


def _curvature(record: MeasurementRecord) -> str:
    whole, part = record.hessian_trace, record.gauss_newton_trace
    first = f"tr ∇²L is {uncertain(whole)}."
    if part is None:
        return first
    first += f" Its Gauss–Newton part alone is {uncertain(part)}"
    low, high = whole.interval
    if low <= part.value <= high:
        return f"{first}, which these groups cannot tell from the whole."
    return f"{first}, which is not a stand-in for the whole: the residual part, from Σ(p − y)·∇²z, is as real."


def _coverage(record: MeasurementRecord) -> str:
    """Coverage audit of THEORY.md §2.1."""
    objective = record.objective
    left = objective.parameters - objective.decayed_parameters
    if not left and not objective.weight_decay:
        return "λ = 0, so nothing decays here. For any λ > 0 this mask covers every parameter, and F ≥ (λ/2)‖θ‖² holds."
    if not left:
        return (
            "All parameters decay, so F ≥ (λ/2)‖θ‖² holds (certified, since cross-entropy is never negative): F grows "
            "at least quadratically (ii) and its Gibbs law has Gaussian tails (iii)."
        )
    text = (
        f"{left:,} of {objective.parameters:,} parameters ({format_number(100 * left / objective.parameters, 2)} %) "
        "do not decay. Decay does not make F coercive in those coordinates, so criteria (ii) and (iii) have no "
        "certificate. In a pre-LayerNorm network an undecayed attention-out or MLP-out bias even has an exactly flat "
        "direction (THEORY.md §2.1): then exp(−2F/s) cannot be normalised and there is no Gibbs law."
    )
    if flat := [tensor.name for tensor in objective.undecayed if _FLAT_BIAS.search(tensor.name)]:
        more = f" and {len(flat) - 1} more" if len(flat) > 1 else ""
        text += f" By its name, {flat[0]}{more} may be such a bias."
    return text


def _constants(record: MeasurementRecord) -> str:
    if record.constants:
        return model_finding(record.constants)
    if record.objective.weight_decay > 0 and record.objective.decayed_parameters == record.objective.parameters:
        return "No log-Sobolev constant is offered: that the outputs are predictions over a vocabulary is not known."
    return (
        "No log-Sobolev constant is offered: every one of them needs λ > 0 and decay on every parameter (THEORY.md §3)."
    )


def _gradient(record: MeasurementRecord) -> str:
    naive, true = record.naive_gradient_norm_squared, record.gradient_norm_squared
    low, high = true.interval
    first = (
        f"A mini-batch of this size reports ‖∇L‖² = {uncertain(naive)}, "
        f"which contains its own noise; without that bias it is {uncertain(true)}."
    )
    if high < 0:
        return f"{first} A squared norm cannot be negative: take it as zero within the noise, and use more groups."
    if low <= 0:
        bound = ""
        if high > 0:
            times = format_number(naive.value / high, 2)
            bound = f" The mini-batch figure is {times} times even the top of its interval."
        groups = record.design.groups
        return f"{first} The gradient cannot be told from zero with these {groups} groups.{bound}"
    return f"{first} The mini-batch figure is {format_number(naive.value / true.value, 3)} times the unbiased one."
