"""Criterion (iv), Ψ_s → ∞ for every s > 0: what orbits say of it at one θ; THEORY.md §2.2.

Every rescaling symmetry that the traced loss shows is turned into orbits. Their s* is first looked at on some of the
groups; the few that come out smallest are measured again on groups that had no part in that choice, with probes of
their own, and along the worst of them Ψ_s is measured and held against its exact expansion. A finite s* refutes (iv)
for all s above it. Finding none proves nothing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from villani.criteria.orbits import Orbit, Threshold, exponents_of, orbits_of, predicted_psi, rescaled, threshold
from villani.criteria.parts import EXACT, PartStatistics, part_statistics, parts_of
from villani.criteria.symmetries import generators
from villani.criteria.verdicts import Outcome
from villani.errors import InputError
from villani.landscape.graph import trace_loss
from villani.landscape.objective import Batch, Objective
from villani.measurement import check_temperature
from villani.statistics import Estimate

CONFIRMED = 4  # orbits that are measured again
SCALES = (2.0, 4.0, 8.0, 16.0)
_TOKENS = 4  # of a block that symmetries are looked for on: they do not depend on its length
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Step:
    """One point θ_R of a walk.

    Attributes:
        scale: R.
        loss_change: L(θ_R) − L(θ), the largest over groups; 0 where all are the same bits.
        predicted: Ψ_s(θ_R) from what was measured at θ.
        measured: Ψ_s(θ_R).
    """

    scale: float
    loss_change: float
    predicted: Estimate
    measured: Estimate


@dataclass(frozen=True, eq=False)
class Finding:
    """One orbit and its s*.

    Attributes:
        orbit: the rescaling.
        threshold: of the groups that confirm, or of those that screen where it was not confirmed.
        confirmed: whether the groups had no part in choosing this orbit.
        guard: the smallest λ for which s* is above the temperature of the audit; ∞ where no λ helps, 0 where any does.
        walk: along the orbit, in order of R.
    """

    orbit: Orbit
    threshold: Threshold
    confirmed: bool
    guard: float
    walk: tuple[Step, ...] = ()


@dataclass(frozen=True, eq=False)
class Differential:
    """What was found of criterion (iv).

    Attributes:
        outcome: refuted for every s above `refuted_above`, or not refuted with what was tried.
        temperature: s of the audit.
        refuted_above: the smallest upper bound of s*; ∞ if there is none.
        symmetries: how many independent ones the graph shows.
        findings: confirmed ones first, smallest s* first.
    """

    outcome: Outcome
    temperature: float
    refuted_above: float
    symmetries: int
    findings: tuple[Finding, ...]


def audit_differential(
    objective: Objective,
    temperature: float,
    *,
    seed: int = 0,
    probes: int = 1,
    confirmed: int = CONFIRMED,
    scales: tuple[float, ...] = SCALES,
    progress: Progress | None = None,
) -> Differential:
    """Look for orbits, and for their s*, at the objective's θ, which is left as it was.

    Args:
        objective: with λ and mask.
        temperature: s > 0.
        seed: of probes.
        probes: in each group; 2 at least where `objective.finite` and θ is too large for exact traces.
        confirmed: how many orbits are measured again.
        scales: R of the walk, powers of two.
        progress: called with (what, done, all).

    Raises:
        InputError: s not positive, too few groups, or probes.
    """
    check_temperature(temperature)
    small = objective.parameters.size <= EXACT
    groups = list(range(len(objective.groups)))
    if not objective.finite and len(groups) < 6:
        raise InputError(f"groups={len(groups)}: expected at least 6, half to choose orbits and half to confirm them")
    if objective.finite and not small and probes < 2:
        raise InputError(f"probes={probes}: expected at least 2 with finite=True, where only probes tell the error")
    try:
        basis = generators(trace_loss(objective, _short(objective)))
    except InputError as error:
        outcome = Outcome("unknown", f"the loss could not be traced: {error}")
        return Differential(outcome, temperature, math.inf, 0, ())
    space, decay = objective.parameters, objective.weight_decay
    orbits = orbits_of(basis, space)
    if not orbits:
        reason = "no rescaling symmetry was found: sums, products, maps and norms of the traced loss were searched"
        return Differential(Outcome("not refuted", reason), temperature, math.inf, len(basis), ())
    parts = parts_of(space, [g.exponents for g in basis])
    exponents = {orbit.name: exponents_of(orbit, parts) for orbit in orbits}

    def statistics(what: str, chosen: list[int], kind: int, blocks: list[list[int]]) -> PartStatistics:
        def tell(done: int, total: int) -> None:
            if progress is not None:
                progress(what, done, total)

        return part_statistics(
            objective, parts, chosen, seed=2 * seed + kind, probes=probes, blocks=blocks, progress=tell
        )

    half = len(groups) // 2
    screening, fresh = (groups, groups) if objective.finite else (groups[:half], groups[half:])
    first = statistics("screening orbits", screening, 0, [])
    screened = {orbit.name: threshold(exponents[orbit.name], first, decay) for orbit in orbits}
    ranked = sorted(orbits, key=lambda orbit: _promise(screened[orbit.name]))
    chosen = [orbit for orbit in ranked if math.isfinite(screened[orbit.name].value)][:confirmed]
    if objective.finite and small:
        second, chosen = first, [orbit for orbit in ranked if math.isfinite(screened[orbit.name].value)]
    else:
        wanted = sorted({int(i) for o in chosen for i in np.flatnonzero(exponents[o.name] == -o.down)})
        second = statistics("confirming orbits", fresh, 1, [[i] for i in wanted])
    findings = []
    for orbit in chosen:
        found = threshold(exponents[orbit.name], second, decay, comparisons=len(chosen))
        findings.append(Finding(orbit, found, True, _guard(orbit, exponents[orbit.name], found, second, temperature)))
    findings.sort(key=lambda finding: (finding.threshold.upper, finding.threshold.value))
    if findings:
        worst = findings[0]
        walk = []
        base = second if second.exact else statistics("walking the orbit", fresh, 1, [])
        for scale in scales:
            with rescaled(objective, worst.orbit.exponents, scale):
                there = statistics("walking the orbit", fresh, 1, [])
            zeros = np.zeros(parts.count)
            along = exponents[worst.orbit.name]
            walk.append(
                Step(
                    scale,
                    float(np.max(np.abs(there.losses - base.losses) / base.tokens)),
                    predicted_psi(along, base, space, decay, temperature, scale),
                    predicted_psi(zeros, there, space, decay, temperature, 1.0),
                )
            )
        findings[0] = Finding(worst.orbit, worst.threshold, True, worst.guard, tuple(walk))
    rest = [Finding(o, screened[o.name], False, math.nan) for o in ranked if o not in chosen]
    above = min((f.threshold.upper for f in findings), default=math.inf)
    outcome = _outcome(above, findings, len(basis), temperature)
    return Differential(outcome, temperature, above, len(basis), (*findings, *rest))


def _short(objective: Objective) -> object:
    """A small piece of data that the loss is traced on."""
    batch = next(objective.batches(0))
    if not isinstance(batch, Batch):
        return batch
    attention = None if batch.attention is None else batch.attention[:1, :_TOKENS]
    return Batch(batch.ids[:1, :_TOKENS], batch.labels[:1, :_TOKENS], attention)


def _promise(found: Threshold) -> tuple[float, float]:
    """Small where an orbit is worth confirming: by the bound of s*, or by how clearly Δ_B L > 0 where there is none."""
    return found.upper, -found.laplacian.value / found.laplacian.sem if found.laplacian.sem else found.value


def _guard(
    orbit: Orbit, exponents: np.ndarray, found: Threshold, statistics: PartStatistics, temperature: float
) -> float:
    """λ² ≥ (sΔ_B L − ‖∇_B L‖²)/‖A‖², THEORY.md §8: necessary, not sufficient."""
    excess = temperature * found.laplacian.value - found.gradient_norm_squared.value
    norm = float(statistics.norms[exponents == exponents.max()].sum())
    if excess <= 0:
        return 0.0
    return math.sqrt(excess / norm) if orbit.theorem == "C" and norm else math.inf


def _outcome(above: float, findings: list[Finding], symmetries: int, temperature: float) -> Outcome:
    tried = f"{symmetries} rescaling symmetries"
    if math.isfinite(above):
        worst = findings[0]
        here = "which includes" if temperature > above else "which does not include"
        how = "exactly" if worst.threshold.level == 1 else f"at confidence {worst.threshold.level:.0%}"
        return Outcome(
            "refuted",
            f"for every s > {above:.3g} ({how}; {here} the s = {temperature:.3g} of this audit) Ψ_s falls to −∞ along "
            f"{worst.orbit.name}, on which the loss is constant. The smallest s* found among {tried}, at one θ.",
        )
    return Outcome("not refuted", f"{tried} were examined at one θ, and none showed Δ_B L > 0 beyond its error")
