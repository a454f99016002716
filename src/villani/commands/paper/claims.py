"""The abstract of the preprint, claim by claim: what `villani study paper` measured, and what follows. Never more.

The claims are audited as the abstract states them. The proofs were not available to us: if the theorems carry further
hypotheses, a verdict is about the statement without them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from villani.commands.certify.record import CertificatePoint
from villani.commands.paper.record import (
    ClaimRecord,
    ConvergencePoint,
    CriteriaRecord,
    EstimatorsRecord,
    LandscapePoint,
    SpectrumPoint,
    TrainingPoint,
    TrendRecord,
    Verdict,
)
from villani.commands.recommend.record import OptimizerRecord, RuleRecord
from villani.outwards import lower, upper
from villani.statistics import resolved_sign
from villani.theory.catalogue import case
from villani.theory.constants import preprint
from villani.theory.exact import solve
from villani.work.records import EstimateRecord, Status

READ = "as read at β = 1"  # how the names of the preprint's promises begin, as `villani converge` translates them
_RISE = 0.05  # nats by which a bound has to rise with λ: far above what one run's noise does to it
_HUNDRED_MILLION = 10**8
_OF_CRITERIA: dict[str, Verdict] = {"holds": "consistent", "refuted": "refuted"}


@dataclass(frozen=True)
class Found:
    """All that claims are judged by; empty where an experiment was left out."""

    parameters: int
    criteria: Sequence[CriteriaRecord]
    landscape: Sequence[LandscapePoint]
    spectra: Sequence[SpectrumPoint]
    learned: Sequence[TrendRecord]
    convergence: Sequence[ConvergencePoint]
    training: Sequence[TrainingPoint]
    certificates: Sequence[CertificatePoint]
    estimators: EstimatorsRecord | None


def claims(found: Found) -> list[ClaimRecord]:
    """Every claim that something was measured of, in the order of the abstract."""
    judged = [
        *_criteria(found), _growth_everywhere(found), _constant_here(found), counterexample(), _exponential(found),
        _bounds(found), loosening_bound(), _hutchinson(found), _rays(found), _inflation(found), _generalisation(found),
    ]  # fmt: skip
    return [claim for claim in judged if claim is not None]


def counterexample() -> ClaimRecord:
    """The constant against an exact gap: a potential on a line that satisfies (i) to (iv) for every s."""
    one = case("tied", weight_decay=1.0, beta=1.0, parameters={"a": 200.0, "n": 10.0})
    truth = solve(one.potential, sobolev=False)
    claimed = preprint(1.0, 1.0, 1).value
    refuted = truth.floor > claimed
    return ClaimRecord(
        claim="C_LS ≤ 1/λ + d/λ² follows from smoothness, quadratic growth, Gaussian tails and Ψ_s → ∞ for all s > 0.",
        measured=f"F(w) = 10·log(1 + exp(−20 w²)) + w²/2 has all four properties and d = λ = β = 1, so that the claim "
        f"is {claimed:g}. Its Poincaré constant, which C_LS is at least, is {truth.poincare:.6g}, to 8 digits.",
        verdict="refuted" if refuted else "not identifiable", status=truth.status, experiment="exact",
    )  # fmt: skip


def linear_gaussian_bound(weight_decay: float, beta: float) -> float:
    """E_ρL + KL(ρ‖π)/β of L(θ) = ½(θ − 1)², prior π = N(0, 1/(βλ)), ρ ∝ e^{−βL}π: −(1/β) ln E_π e^{−βL}, exactly."""
    return 0.5 * weight_decay / (1 + weight_decay) + math.log1p(1 / weight_decay) / (2 * beta)


def loosening_bound() -> ClaimRecord:
    """A loss whose exact PAC-Bayes bound grows with λ (THEORY.md §5)."""
    beta, grid = 100.0, (0.01, 0.1, 1.0, 10.0)
    values = [linear_gaussian_bound(decay, beta) for decay in grid]
    told = ", ".join(f"{value:.4f} at {decay:g}" for decay, value in zip(grid, values, strict=True))
    return ClaimRecord(
        claim="PAC-Bayesian bounds tighten as λ increases, for any loss with these properties.",
        measured="For L(θ) = ½(θ − 1)² on a line and β = 100 all is exact: what the linear bound consists of beside "
        f"its constant, E_ρL + KL(ρ‖π)/β at the Gibbs law ρ and its prior π, by λ: {told}. It loosens.",
        verdict="refuted" if all(a < b for a, b in pairwise(values)) else "not identifiable", status="certified",
        experiment="exact",
    )  # fmt: skip


def _criteria(found: Found) -> list[ClaimRecord]:
    if not found.criteria:
        return []
    own, *others = found.criteria
    words = {
        "smoothness": "F = L + (λ/2)‖θ‖² is infinitely differentiable.",
        "growth": "F grows at least quadratically.",
        "tails": "exp(−2F/s) has Gaussian-integrable tails.",
    }
    made = []
    for name, claim in words.items():
        outcome = getattr(own, name)
        measured = f"Decay on {_mask(own.decay)}: {outcome.verdict}. {_sentence(outcome.reason)}"
        for other in others:
            there = getattr(other, name)
            if there.verdict != outcome.verdict:
                measured += f" Decay on {_mask(other.decay)}: {there.verdict}. {_sentence(there.reason)}"
        verdict = _OF_CRITERIA.get(outcome.verdict, "not identifiable")
        status: Status = "certified" if outcome.verdict in _OF_CRITERIA else "estimated"
        made.append(ClaimRecord(claim=claim, measured=measured, verdict=verdict, status=status, experiment="E1"))
    return made


def _growth_everywhere(found: Found) -> ClaimRecord | None:
    points = [p for p in found.landscape if p.weight_decay > 0]
    if not points:
        return None
    above = sorted((p for p in points if p.refuted_above is not None), key=lambda p: p.refuted_above or 0.0)
    claim = "Ψ_s → ∞ as ‖θ‖ → ∞, for every s > 0."
    if not above:
        return ClaimRecord(
            claim=claim, verdict="not identifiable", status="statistical", experiment="E1",
            measured=f"No orbit on which Ψ_s falls was resolved through {len(points)} models, which proves nothing.",
        )  # fmt: skip
    middle = above[len(above) // 2]
    first = above[0]
    name = first.orbit.name if first.orbit else "an orbit"
    fallen = ""
    steepest = max(above, key=_fall)
    if steepest.orbit and _fall(steepest) > 0:
        walk, change = steepest.orbit.walk, max(step.loss_change for step in steepest.orbit.walk)
        fallen = (
            f" Through the model where Ψ falls most (λ = {steepest.weight_decay:g}) it goes from "
            f"{walk[0].measured.value:.3g} at R = {walk[0].scale:g} to {walk[-1].measured.value:.3g} at "
            f"R = {walk[-1].scale:g} at the largest s, while the loss "
            + (f"changes by at most {upper(change, 1)} nats." if change else "keeps its last bit.")
        )
    return ClaimRecord(
        claim=claim, verdict="refuted", status="statistical", experiment="E1",
        measured=f"At {len(above)} of {len(points)} trained models an orbit of constant loss was resolved on which Ψ_s "
        f"→ −∞ for every s above a bound, each at confidence {first.level:.0%}: "
        f"{upper(middle.refuted_above or 0.0, 3)} at the median model, {upper(first.refuted_above or 0.0, 3)} at the "
        f"one where it is smallest (λ = {first.weight_decay:g}, {name})."
        + fallen,
    )  # fmt: skip


def _fall(point: LandscapePoint) -> float:
    """How far Ψ fell along an orbit, in units of its size at the start."""
    walk = point.orbit.walk if point.orbit else []
    return (walk[0].measured.value - walk[-1].measured.value) / abs(walk[0].measured.value) if walk else 0.0


def _constant_here(found: Found) -> ClaimRecord | None:
    promises = [(p, r) for p in found.convergence for r in p.promises if r.name.startswith(READ)]
    if not promises:
        return None
    verdicts = {r.verdict for _, r in promises}
    verdict: Verdict = (
        "refuted" if "refuted" in verdicts else "consistent" if "consistent" in verdicts else "not identifiable"
    )
    shown, rate = next(pair for pair in promises if pair[1].verdict == verdict)
    logs = [r.log10 for _, r in promises]
    return ClaimRecord(
        claim="C_LS ≤ 1/λ + d/λ² for this objective, and with it convergence of noisy SGD in finite time.",
        measured=f"At {len(promises)} values of λ the constant promises a gap of 10^{min(logs):.1f} to "
        f"10^{max(logs):.1f} per unit of diffusion time. At λ = {shown.weight_decay:g}: {rate.sentence}",
        verdict=verdict, status="refuted" if verdict == "refuted" else "estimated", experiment="E3",
    )  # fmt: skip


def _exponential(found: Found) -> ClaimRecord | None:
    if not found.convergence:
        return None
    fits = [(p, next((f for f in p.fits if f.name == "loss"), None)) for p in found.convergence]
    known = [(p, f) for p, f in fits if f is not None and f.rate is not None]
    single = [p for p, f in known if f.verdict == "identified"]
    words = f"The loss of noisy SGD decays like one exponential at {len(single)} of {len(fits)} values of λ"
    if known:
        rates = [f.rate.value for _, f in known if f.rate]
        words += f"; fitted rates run from {min(rates):.3g} to {max(rates):.3g} per unit of diffusion time"
    return ClaimRecord(
        claim="Training shows exponential convergence, consistent with the log-Sobolev analysis.",
        measured=f"{words}. A rate fitted to a transient is that of one observable from one start: it bounds the gap "
        "neither way, and says nothing of a log-Sobolev constant.",
        verdict="not identifiable", status="estimated", experiment="E3",
    )  # fmt: skip


def _bounds(found: Found) -> ClaimRecord | None:
    rows = sorted((p.weight_decay, p.path.value) for p in found.certificates if p.path and p.weight_decay > 0)
    if len(rows) < 2:
        return None
    rises = [(b - a, x, y) for i, (x, a) in enumerate(rows) for y, b in rows[i + 1 :]]
    most, low, high = max(rises)
    falls = all(b <= a for (_, a), (_, b) in pairwise(rows))
    values = ", ".join(f"{value:.3f} at {decay:g}" for decay, value in rows)
    verdict: Verdict = "refuted" if most > _RISE else "consistent" if falls else "not identifiable"
    rise = f" From λ = {low:g} to {high:g} the certified risk rises by {most:.3f} nats." if most > 0 else ""
    return ClaimRecord(
        claim="PAC-Bayesian bounds tighten as λ increases.",
        measured=f"Certified risk of noisy SGD, nats per token, by λ: {values}.{rise} One run at each λ. These are "
        "this project's certificates; of the preprint's own bound only the abstract was available.",
        verdict=verdict, status="estimated", experiment="E4",
    )  # fmt: skip


def _hutchinson(found: Found) -> ClaimRecord | None:
    ways = found.estimators.points if found.estimators else []
    plain = next((p for p in ways if p.way == "hutchinson"), None)
    if plain is None or found.estimators is None:
        return None
    others = "; ".join(f"{p.way} {p.relative_error.value:.1%}" for p in ways if p is not plain)
    large = found.parameters > _HUNDRED_MILLION
    return ClaimRecord(
        claim="Hutchinson probes estimate Ψ_s efficiently in models with over 100M parameters.",
        measured=f"{found.estimators.probes} probes on each of {found.estimators.groups} groups, d = "
        f"{found.parameters:,}: a root mean square error of {plain.relative_error.value:.1%} of tr ∇²L for plain "
        f"Hutchinson ({others}); {plain.covered} of {plain.repeats} of its intervals hold the reference."
        + ("" if large else " This model is smaller than those that the claim is about."),
        verdict="consistent" if large and plain.relative_error.value < 1 else "not identifiable",
        status="statistical", experiment="E5",
    )  # fmt: skip


def _rays(found: Found) -> ClaimRecord | None:
    rays = [r for p in found.landscape if p.weight_decay > 0 for r in p.rays]
    if not rays:
        return None
    signs = [_sign(r.fit.quadratic, len(rays)) for r in rays]
    up, down = signs.count(1), signs.count(-1)
    data = sum(_sign(r.data_fit.quadratic, len(rays)) > 0 for r in rays)
    shares = sorted(r.exact_quadratic / r.fit.quadratic.value for r, sign in zip(rays, signs, strict=True) if sign > 0)
    reach = max(r.radii[-1] / p.norm for p in found.landscape for r in p.rays if p.norm)
    middle = ""
    if shares:
        share = shares[len(shares) // 2]
        middle = f" The term λ²/s, which is there for any loss, makes up {share:.0%} of it at the median."
    verdict: Verdict = "refuted" if down else "consistent" if up == len(rays) else "not identifiable"
    return ClaimRecord(
        claim="Ψ_s grows quadratically along rays, as experiments show.",
        measured=f"Of {len(rays)} series of Ψ_s (models with λ > 0 × rays × s, up to r = {reach:.3g}‖θ‖) {up} have a "
        f"positive quadratic coefficient beyond their error, all at once, and {down} a negative one.{middle} The part "
        f"that depends on data has a positive one in {data}. Growth on rays is no evidence for Ψ_s → ∞: orbits through "
        "the same models decide that.",
        verdict=verdict, status="statistical", experiment="E1",
    )  # fmt: skip


def _inflation(found: Found) -> ClaimRecord | None:
    changes = [t for t in found.learned if t.change is not None and t.weight_decay > 0]
    if not changes:
        return None
    checked = [
        abs(p.objective_largest.value - p.largest.value - p.weight_decay) for p in found.spectra if p.objective_largest
    ]  # fmt: skip
    signs = [_sign(t.change, len(changes), t.weight_decay) for t in changes if t.change]
    up, down = signs.count(1), signs.count(-1)
    verdict: Verdict = "refuted" if down else "consistent" if up == len(signs) else "not identifiable"
    least = min(changes, key=lambda t: t.change.value if t.change else 0.0)
    assert least.change is not None
    same = f" Worked out twice, they differ from that by at most {upper(max(checked), 2)}." if checked else ""
    return ClaimRecord(
        claim="Weight decay inflates the spectrum of the Hessian.",
        measured=f"At a fixed θ every eigenvalue of ∇²F is one of ∇²L plus λ, whatever the loss.{same} Between trained "
        f"models λ₁(∇²F), the shift included, rises beyond its error over seeds at {up} of {len(signs)} values of λ "
        f"and falls at {down}; the learned part is lowest at λ = {least.weight_decay:g}: {_told(least.change)}.",
        verdict=verdict, status="statistical", experiment="E2",
    )  # fmt: skip


def _generalisation(found: Found) -> ClaimRecord | None:
    changes = [p for p in found.training if p.held_out_change is not None and p.weight_decay > 0]
    base = {p.optimizer for p in found.training if p.weight_decay == 0}
    changes = [p for p in changes if p.optimizer in base]
    if not changes:
        return None
    signs = [_sign(p.held_out_change, len(changes)) for p in changes if p.held_out_change]
    better, worse = signs.count(-1), signs.count(1)
    best = min(changes, key=lambda p: p.held_out_change.value if p.held_out_change else 0.0)
    assert best.held_out_change is not None
    verdict: Verdict = "consistent" if better else "refuted" if worse == len(changes) else "not identifiable"
    return ClaimRecord(
        claim="Weight decay improves generalisation empirically.",
        measured=f"Held-out loss against no decay, seed by seed, beyond its error: better at {better} of "
        f"{len(changes)} pairs of optimiser and λ, worse at {worse}. Lowest change: {best.optimizer}, "
        f"λ = {best.weight_decay:g}, {_told(best.held_out_change)} nats per token.",
        verdict=verdict, status="statistical", experiment="E4",
    )  # fmt: skip


def decay_sentence(training: Sequence[TrainingPoint]) -> str:
    """D'Angelo et al. (2024): does decay act as a regulariser, or through the dynamics? Read off losses and gaps.

    A regulariser trades training loss for a smaller gap. Where decay helps and the training loss falls as well, it has
    helped to optimise. Intervals are over training seeds; what they leave open is said to be open.
    """
    words = []
    for name in dict.fromkeys(p.optimizer for p in training):
        changes = [p for p in training if p.optimizer == name and p.held_out_change and p.weight_decay > 0]
        if not changes or not any(p.weight_decay == 0 for p in training if p.optimizer == name):
            continue
        many = len(changes)
        helped = [p for p in changes if p.held_out_change and _sign(p.held_out_change, many) < 0]
        if not helped:
            words.append(f"{name}: no λ lowers the held-out loss beyond its error, so there is no effect to explain")
            continue
        dynamics = [p for p in helped if p.train_change and _sign(p.train_change, many) < 0]
        regularised = [
            p for p in helped
            if p.train_change and p.gap_change
            and _sign(p.train_change, many) > 0 and _sign(p.gap_change, many) < 0
        ]  # fmt: skip
        best = min(helped, key=lambda p: p.held_out_change.value if p.held_out_change else 0.0)
        open_ = len(helped) - len(dynamics) - len(regularised)
        words.append(
            f"{name}: of {len(helped)} values of λ that help, the training loss falls too at {len(dynamics)} (a matter "
            f"of the dynamics), it rises while the gap shrinks at {len(regularised)} (a regulariser), and seeds leave "
            f"it open at {open_}; at the best, λ = {best.weight_decay:g}, training {_told(best.train_change)}, held "
            f"out {_told(best.held_out_change)}, gap {_told(best.gap_change)} nats"
        )
    if not words:
        return ""
    return "Regulariser, or dynamics (D'Angelo et al.)? Changes from no decay. " + "; ".join(words) + "."


def choice_sentence(choices: Sequence[OptimizerRecord]) -> str:
    """E6 in short: within what margin of the grid's best does each rule land, at what share of its cost."""
    words = []
    for of in choices:
        named = [r for r in of.rules if r.id != "held-out" and r.weight_decay is not None and r.margin and r.share]
        ranked = sorted(named, key=lambda r: r.margin.value if r.margin else 0.0)
        told = ", ".join(f"{r.name} {_margin(r)}" for r in ranked) or "none"
        others = sum(r.id != "held-out" for r in of.rules) - len(named)
        words.append(f"{of.optimizer}: {told}; {others} more rules name no λ that can be used")
    if not words:
        return ""
    return (
        "Held-out nats above the grid's best λ [an interval], at the λ of the grid nearest to what a rule names, "
        "and the share of the grid's training that it takes. " + ". ".join(words) + "."
    )


def _margin(rule: RuleRecord) -> str:
    assert rule.margin is not None
    return f"+{rule.margin.value:.3g} [{lower(rule.margin.low, 2)}, {upper(rule.margin.high, 2)}] for {rule.share:.0%}"


def sentence(judged: Sequence[ClaimRecord]) -> str:
    """How many claims came out how."""
    counts = {v: sum(c.verdict == v for c in judged) for v in ("refuted", "consistent", "not identifiable")}
    refuted = "; ".join(c.claim.rstrip(".") for c in judged if c.verdict == "refuted")
    words = (
        f"Of the abstract of arXiv 2605.06599, read as {len(judged)} statements, {counts['refuted']} are refuted, "
        f"{counts['consistent']} are consistent with what was measured, which confirms none of them, and "
        f"{counts['not identifiable']} cannot be told by measurements like these."
    )
    return words + (f" Refuted: {refuted}." if refuted else "")


def _sign(estimate: EstimateRecord, comparisons: int, shift: float = 0.0) -> int:
    """The sign of estimate + shift where it is beyond its error, allowing for all comparisons; else 0."""
    return resolved_sign(estimate.value + shift, estimate.sem, estimate.n - 1, comparisons)


def _told(estimate: EstimateRecord | None) -> str:
    if estimate is None:
        return "unknown"
    low, high = estimate.interval
    return f"{estimate.value:+.3g} [{lower(low, 2)}, {upper(high, 2)}]" if estimate.sem else f"{estimate.value:.3g}"


def _mask(decay: str) -> str:
    return "everything" if decay == "all" else f"what mask {decay!r} names"


def _sentence(text: str) -> str:
    text = text.strip()
    return text if not text else text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")
