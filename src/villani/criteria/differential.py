"""Criterion (iv), Ψ_s → ∞ for every s > 0: what orbits say of it; THEORY.md §2.2.

Every rescaling symmetry that the traced loss shows is turned into orbits. Their s* is first looked at on some of the
groups; a second share of the groups leads a descent to a θ where s* is smaller; and the few orbits that came out
smallest are measured again on groups that had no part in any choice, with probes of their own. Along the worst of them
Ψ_s is measured and held against its exact expansion. A finite s* refutes (iv) for all s above it. Finding none proves
nothing. What moves the loss beyond rounding is no orbit, whatever algebra says, and a Δ_B L that rounding explains is
none (`rounding`): no verdict comes from either.
"""

import gc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import torch

from villani.criteria.degrees import Degrees
from villani.criteria.measured_orbits import FRESH, SCREENING, MeasuredOrbit, OrbitMeasurements
from villani.criteria.orbits import (
    ENOUGH,
    Orbit,
    Threshold,
    orbits_of,
    replaced,
)
from villani.criteria.parts import EXACT, PartStatistics, parts_of
from villani.criteria.rounding import Drift
from villani.criteria.search import candidate, pool, promise
from villani.criteria.skipped import Skipped, incomplete
from villani.criteria.symmetries import Generator, generators
from villani.criteria.verdicts import Outcome
from villani.criteria.walks import Step, walk_orbit, walked_sets
from villani.errors import InputError, check_whole
from villani.measurement.design import check_temperature
from villani.objective.batches import Batch
from villani.objective.graph import LossGraph, trace_loss
from villani.objective.objective import Objective
from villani.outwards import upper
from villani.results import Content
from villani.work.memory import give_back
from villani.work.work import Work

CONFIRMED = 4  # orbits that are measured again
SCALES = (2.0, 4.0, 8.0, 16.0)
FURTHEST = 4096.0  # R up to which a walk goes on until Ψ has fallen
SEARCH = 3  # rounds of descent
_LEAST = 4  # groups for each purpose
_TOKENS = 4  # of a block that symmetries are looked for on: they do not depend on its length


@dataclass(frozen=True, eq=False, repr=False)
class Differential(Content):
    """What was found of criterion (iv).

    Attributes:
        outcome: refuted for every s above `refuted_above`, or not refuted with what was tried.
        temperature: s of the audit.
        refuted_above: the smallest upper bound of s*; ∞ if there is none.
        symmetries: how many independent ones the graph shows.
        findings: confirmed ones first, smallest s* first.
        skipped: operations that the search for symmetries did not understand; () where it is complete.
    """

    outcome: Outcome
    temperature: float
    refuted_above: float
    symmetries: int
    findings: tuple[MeasuredOrbit, ...]
    skipped: tuple[Skipped, ...] = ()


def audit_differential(
    objective: Objective,
    temperature: float,
    *,
    seed: int = 0,
    probes: int = 1,
    confirmed: int = CONFIRMED,
    scales: Sequence[float] = SCALES,
    search: int = SEARCH,
    work: Work | None = None,
) -> Differential:
    """Look for orbits, and for their s*, at the objective's θ, which is left as it was.

    Args:
        objective: with λ and mask.
        temperature: s > 0.
        seed: of probes.
        probes: in each group; 2 at least where `objective.finite` and θ is too large for exact traces.
        confirmed: how many orbits are measured again; at least 1.
        scales: R of the walk, powers of two.
        search: rounds of descent towards a θ of smaller s*; 0 for none, and then s* is that of the given θ.
        work: keeps finished units; in memory by default.

    Raises:
        InputError: s not positive, too few groups, or probes.
    """
    check_search(
        temperature, groups=len(objective.groups), probes=probes, confirmed=confirmed, search=search,
        finite=objective.finite, parameters=objective.parameters.size,
    )  # fmt: skip
    work = work or Work()
    work.stage("looking for symmetries")
    try:
        graph = trace_loss(objective, short_batch(objective))
    except InputError as error:
        outcome = Outcome("unknown", f"the loss could not be traced: {error}")
        return Differential(outcome, temperature, math.inf, 0, ())
    basis, skipped = _symmetries(graph, work)
    orbits, notes = _confirmed_by_loss(objective, graph, orbits_of(basis, objective.parameters), work)
    if skipped:
        notes.append(incomplete(skipped, [p.name for p in objective.parameters.parameters]))
    if not orbits:
        reason = "no rescaling symmetry was found: sums, products, maps and norms of the traced loss were searched"
        reason = f"{reason}. {' '.join(notes)}" if notes else reason
        return Differential(Outcome("not refuted", reason), temperature, math.inf, len(basis), (), skipped)
    parts = parts_of(objective.parameters, [g.exponents for g in basis])
    measured = OrbitMeasurements(objective, parts, probes, seed, bool(search), work)
    findings, rest, searched = _examine(measured, orbits, temperature, confirmed, search)
    findings, vetoed = _settled(measured, findings, temperature, scales, notes)
    above = min((f.threshold.upper for f in findings), default=math.inf)
    outcome = _outcome(above, findings, f"{len(basis)} rescaling symmetries{searched}", temperature)
    outcome = replace(outcome, reason=" ".join([outcome.reason, *notes]))
    return Differential(outcome, temperature, above, len(basis), (*findings, *vetoed, *rest), skipped)


def _symmetries(graph: LossGraph, work: Work) -> tuple[list[Generator], tuple[Skipped, ...]]:
    """A basis of the rescaling symmetries, and the operations that were not understood."""
    degrees = Degrees(graph, work)
    found = generators(degrees), degrees.skipped.all()
    del degrees
    gc.collect()  # forms of every entry of every value, which refer to themselves
    give_back()
    return found


def check_search(
    temperature: float, *, groups: int, probes: int, confirmed: int, search: int, finite: bool,
    parameters: int | None = None,
) -> None:  # fmt: skip
    """Refuse a search for orbits that could not be told from chance.

    Groups that choose an orbit favour it, so that others have to confirm it; and those that lead a search favour the θ
    that it leads to, so that a search needs a third share. Without one there are two, and fewer groups will do.

    Args:
        temperature, probes, confirmed, search: as of `audit_differential`.
        groups: how many there are.
        finite: whether they are all the data, so that no choice among them is one by chance.
        parameters: d, if it is known; traces of a small θ are exact, and need no probes.

    Raises:
        InputError: a number out of range, or too few groups or probes.
    """
    check_temperature(temperature)
    check_whole(1, confirmed=confirmed, probes=probes)
    check_whole(0, search=search)
    if not finite and search and groups < 3 * _LEAST:
        raise InputError(
            f"groups={groups}: expected at least {3 * _LEAST}: a third each search, choose and confirm; "
            f"{2 * _LEAST} will do with search=0"
        )
    if not finite and groups < 2 * _LEAST:
        raise InputError(f"groups={groups}: expected at least {2 * _LEAST}: a half each choose and confirm")
    if finite and parameters is not None and parameters > EXACT and probes < 2:
        raise InputError(f"probes={probes}: expected at least 2 with finite=True, where only probes tell the error")


def _confirmed_by_loss(
    objective: Objective, graph: LossGraph, orbits: Sequence[Orbit], work: Work
) -> tuple[list[Orbit], list[str]]:
    """Orbits on which the loss of a short batch does not move, and a sentence on those on which it does."""
    work.stage("checking orbits on the loss")
    moves = {}
    with objective.evaluating():
        drift = Drift(graph, objective.parameters.values)
        for number, orbit in enumerate(orbits, 1):
            moves[orbit.name] = drift.along(orbit)
            work.advance(number, len(orbits))
    kept = [orbit for orbit in orbits if moves[orbit.name][0] <= moves[orbit.name][1]]
    gone = [orbit for orbit in orbits if orbit not in kept]
    if not gone:
        return kept, []
    moved = moves[gone[0].name][0]
    return kept, [_vetoed(gone[0], moved, len(gone))]


def _vetoed(orbit: Orbit, moved: float, count: int) -> str:
    more = f" and {count - 1} more" if count > 1 else ""
    return (
        f"Dropped: {orbit.name}{more}, on which the loss moves by {moved:.2g}, beyond rounding, so that it is no "
        "orbit, whatever the graph says."
    )


def _settled(
    measured: OrbitMeasurements,
    findings: list[MeasuredOrbit],
    temperature: float,
    scales: Sequence[float],
    notes: list[str],
) -> tuple[list[MeasuredOrbit], list[MeasuredOrbit]]:
    """Findings whose first stands, with its walk; and those that rounding or the walk took the verdict from.

    Adds a sentence on each of the latter to `notes`.
    """
    gone: list[MeasuredOrbit] = []
    held: set[int] = set()  # what was told apart from rounding; an error may put another finding first
    while findings:
        worst = findings.pop(0)
        if math.isfinite(worst.threshold.upper) and id(worst) not in held:
            found = measured.beyond_rounding(worst)
            if math.isfinite(found.upper):
                worst = replace(worst, threshold=found)
                held.add(id(worst))
                findings = sorted([worst, *findings], key=_promise)
                continue
            gone.append(replace(worst, threshold=found))
            notes.append(
                f"Δ_B L = {worst.threshold.laplacian.value:.3g} along {worst.orbit.name} is no more than rounding, "
                f"which may be {found.rounding:.2g}."
            )
            continue
        walk = _walk(measured, worst, temperature, scales)
        moved = max(step.loss_change for step in walk)
        if moved <= measured.drift_allowed:
            return [replace(worst, walk=walk), *findings], gone
        gone.append(replace(worst, threshold=replace(worst.threshold, value=math.inf, upper=math.inf), walk=walk))
        notes.append(_vetoed(worst.orbit, moved, 1))
    return findings, gone


def _promise(finding: MeasuredOrbit) -> tuple[float, float]:
    return finding.threshold.upper, finding.threshold.value


def _examine(
    measured: OrbitMeasurements, orbits: list[Orbit], temperature: float, confirmed: int, search: int
) -> tuple[list[MeasuredOrbit], list[MeasuredOrbit], str]:
    """Orbits measured on fresh groups, the smallest s* first; those that were only screened; and what was searched."""
    objective, work = measured.objective, measured.work
    work.stage("screening orbits")
    first = measured.statistics(work.scope("screening"), measured.screening, SCREENING, [])
    screened = {orbit.name: measured.threshold(orbit, first) for orbit in orbits}
    ranked = sorted(orbits, key=lambda orbit: promise(screened[orbit.name]))
    visible = [orbit for orbit in ranked if math.isfinite(screened[orbit.name].value)]
    chosen = visible[:confirmed]
    exact = objective.finite and first.exact
    if exact:
        chosen = visible
    elif chosen and (together := pool(chosen[:1] + ranked, measured.exponents, first, objective)):
        chosen = [together, *chosen]
    further = candidate(visible, screened) if search else None
    moved = _descended(measured, further, screened, search) if further else {}
    searched = ""
    if further:
        helped = "led to a smaller s* on the groups that screen" if moved else "led to none that is smaller"
        searched = f", and a descent of L over the shrinking part of {further.name} {helped}"
    comparisons = len(chosen) + bool(moved)

    def finding(orbit: Orbit, statistics: PartStatistics, place: Mapping[int, torch.Tensor]) -> MeasuredOrbit:
        found = measured.threshold(orbit, statistics, comparisons)
        guard = _guard(orbit, measured.exponents(orbit), found, statistics, temperature)
        return MeasuredOrbit(orbit, found, True, guard, place)

    findings = []
    if chosen:
        work.stage("confirming orbits")
        second = first if exact else measured.statistics(
            work.scope("confirming"), measured.fresh, FRESH, _atoms([measured.shrinking(o) for o in chosen])
        )  # fmt: skip
        measured.confirmed[False] = second
        findings += [finding(orbit, second, {}) for orbit in chosen]
    if further and moved:
        work.stage("confirming the descent")
        with replaced(objective, moved):
            there = measured.statistics(
                work.scope("descended"), measured.fresh, FRESH, [measured.shrinking(further)]
            )  # fmt: skip
        measured.confirmed[True] = there
        findings.append(finding(further, there, moved))
    findings.sort(key=_promise)
    rest = [MeasuredOrbit(o, screened[o.name], False, math.nan, {}) for o in ranked if o not in chosen]
    return findings, rest, searched


def _descended(
    measured: OrbitMeasurements, orbit: Orbit, screened: Mapping[str, Threshold], rounds: int
) -> dict[int, torch.Tensor]:
    """Where s* of the orbit is smallest on the groups that screen, of what rounds of descent lead to; empty if here."""
    block = measured.shrinking(orbit)
    best = promise(screened[orbit.name])
    found: dict[int, torch.Tensor] = {}
    place: dict[int, torch.Tensor] = {}
    measured.work.stage("descending to a smaller s*")
    for index in range(rounds):
        work = measured.work.scope(f"descent/{index}").part(index, rounds)
        with replaced(measured.objective, place):
            place = measured.descent(work.part(0, 2), block)
        with replaced(measured.objective, place):
            there = measured.statistics(work.part(1, 2), measured.screening, SCREENING, [block])
        now = promise(measured.threshold(orbit, there))
        if now >= best:
            break
        best, found = now, place
    return found


def _walk(
    measured: OrbitMeasurements, worst: MeasuredOrbit, temperature: float, scales: Sequence[float]
) -> tuple[Step, ...]:
    """On the groups that confirmed the orbit, whose gradients at R = 1 are known."""

    measured.work.stage("walking the orbit")
    parts, along = count(), measured.exponents(worst.orbit)

    def at(scale: float) -> PartStatistics:
        work = measured.work.scope(f"walk/{scale:g}").part(next(parts), 1 + len(scales))
        known = measured.confirmed.get(bool(worst.moved)) if scale == 1 else None
        return measured.statistics(work, measured.fresh, FRESH, walked_sets(along, scale), known)

    with replaced(measured.objective, worst.moved):
        return walk_orbit(
            measured.objective, worst.orbit, along, at, temperature, scales,
            until=FURTHEST if temperature > worst.threshold.upper else 0.0,
        )  # fmt: skip


def _atoms(blocks: Sequence[Sequence[int]]) -> list[list[int]]:
    """The sets of parts that lie in the same blocks: each block is a union of some, no two share a part."""
    atoms: dict[tuple[int, ...], list[int]] = {}
    for part in sorted({part for block in blocks for part in block}):
        atoms.setdefault(tuple(n for n, block in enumerate(blocks) if part in block), []).append(part)
    return [*atoms.values()]


def short_batch(objective: Objective) -> object:
    """A small piece of data that the loss is traced on."""
    batch = next(objective.batches(0))
    if not isinstance(batch, Batch):
        return batch
    return batch.rows(0, 1).beginning(_TOKENS)


def _guard(
    orbit: Orbit, exponents: np.ndarray, found: Threshold, statistics: PartStatistics, temperature: float
) -> float:
    """λ² ≥ (sΔ_B L − ‖∇_B L‖²)/‖A‖², THEORY.md §8: necessary, not sufficient."""
    excess = temperature * found.laplacian.value - found.gradient_norm_squared.value
    norm = float(statistics.norms[exponents == exponents.max()].sum())
    if excess <= 0:
        return 0.0
    return math.sqrt(excess / norm) if orbit.theorem == "C" and norm else math.inf


def _noise(found: Threshold) -> str:
    """How many directions the noise has that the bound allows for, and what that means for it."""
    if found.directions is None:
        return ""
    few = ", so that a bound for any number of them is given" if found.directions < ENOUGH else ""
    return f" The noise of ∇_B L has about {found.directions:.0f} directions{few}."


def _outcome(above: float, findings: list[MeasuredOrbit], tried: str, temperature: float) -> Outcome:
    if math.isfinite(above):
        worst = findings[0]
        here = "which includes" if temperature > above else "which does not include"
        sure = worst.threshold
        how = "up to rounding" if sure.level == 1 else f"at confidence {sure.level:.0%}"
        where = "at a θ that the search led to" if worst.moved else "at the given θ"
        return Outcome(
            "refuted",
            f"for every s > {upper(above, 3)} ({how}; {here} the s = {temperature:.3g} of this audit) Ψ_s falls to −∞ "
            f"along {worst.orbit.name}, on which the loss is constant. This is the smallest s* found, {where}; "
            f"tried were {tried}.{_noise(worst.threshold)}",
        )
    return Outcome("not refuted", f"none of {tried} showed Δ_B L > 0 beyond its error")
