"""The abstract of the preprint, claim by claim: what `villani study paper` measured, and what follows. Never more.

The claims are audited as the abstract states them. The proofs were not available to us: if the theorems carry further
hypotheses, a verdict is about the statement without them.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

from villani.commands.paper.record import ClaimRecord, LandscapePoint, PaperRecord, Verdict
from villani.commands.paper.sentences import change_words, sign
from villani.commands.recommend.record import NAMES
from villani.outwards import upper
from villani.report.numbers import format_uncertain
from villani.theory.catalogue import case
from villani.theory.constants import preprint
from villani.theory.exact import solve
from villani.work.records import Status

READ = "as read at β = 1"  # how the names of the preprint's promises begin, as `villani converge` translates them
_RISE = 0.05  # nats by which a bound has to rise with λ: far above what one run's noise does to it
_HUNDRED_MILLION = 10**8
_MATTERS = 0.01  # nats per token: what a change of the held-out loss has to be to be of use


class Judgement(NamedTuple):
    """What was measured of a claim, the verdict, and the status of its evidence."""

    measured: str
    verdict: Verdict
    status: Status


def claims(record: PaperRecord) -> list[ClaimRecord]:
    """Every claim that something was measured of, in the order of the abstract."""
    return [
        ClaimRecord(claim=claim, experiment=experiment, **judgement._asdict())
        for claim, experiment, judge in _CLAIMS
        if (judgement := judge(record))
    ]


def counterexample(_: PaperRecord | None = None) -> Judgement:
    """The constant against an exact gap: a potential on a line that satisfies (i) to (iv) for every s."""
    one = case("tied", weight_decay=1.0, beta=1.0, parameters={"a": 200.0, "n": 10.0})
    truth = solve(one.potential, sobolev=False)
    claimed = preprint(1.0, 1.0, 1).value
    measured = (
        f"F(w) = 10·log(1 + exp(−20 w²)) + w²/2 has all four properties and d = λ = β = 1, so that the claim "
        f"is {claimed:g}. Its Poincaré constant, which C_LS is at least, is {truth.poincare:.6g}, to 8 digits."
    )
    return Judgement(measured, "refuted" if truth.floor > claimed else "not identifiable", truth.status)


def linear_gaussian_bound(weight_decay: float, beta: float) -> float:
    """E_ρL + KL(ρ‖π)/β of L(θ) = ½(θ − 1)², prior π = N(0, 1/(βλ)), ρ ∝ e^{−βL}π: −(1/β) ln E_π e^{−βL}, exactly."""
    return 0.5 * weight_decay / (1 + weight_decay) + math.log1p(1 / weight_decay) / (2 * beta)


def loosening_bound(_: PaperRecord | None = None) -> Judgement:
    """A loss whose exact PAC-Bayes bound grows with λ (THEORY.md §5)."""
    bounds = {decay: linear_gaussian_bound(decay, 100.0) for decay in (0.01, 0.1, 1.0, 10.0)}
    measured = (
        "For L(θ) = ½(θ − 1)² on a line and β = 100 all is exact: what the linear bound consists of beside its "
        "constant, E_ρL + KL(ρ‖π)/β at the Gibbs law ρ and its prior π, by λ: "
        f"{', '.join(f'{value:.4f} at {decay:g}' for decay, value in bounds.items())}. It loosens."
    )
    rises = all(a < b for a, b in pairwise(bounds.values()))
    return Judgement(measured, "refuted" if rises else "not identifiable", "certified")


def _criterion(name: str, record: PaperRecord) -> Judgement | None:
    if not record.criteria:
        return None
    outcomes = {c.decay: getattr(c, name) for c in record.criteria}
    own = outcomes[record.criteria[0].decay]
    measured = " ".join(
        f"Decay on {_mask(decay)}: {outcome.verdict}. {_sentence(outcome.reason)}"
        for decay, outcome in outcomes.items()
        if outcome is own or outcome.verdict != own.verdict
    )
    verdicts: dict[str, Verdict] = {"holds": "consistent", "refuted": "refuted"}
    decided = own.verdict in verdicts
    return Judgement(measured, verdicts.get(own.verdict, "not identifiable"), "certified" if decided else "estimated")


def _growth_everywhere(record: PaperRecord) -> Judgement | None:
    points = [p for p in record.landscape if p.weight_decay > 0]
    bounded = sorted(((p.refuted_above, p) for p in points if p.refuted_above is not None), key=lambda pair: pair[0])
    if not points:
        return None
    if not bounded:
        words = f"No orbit on which Ψ_s falls was resolved through {len(points)} models, which proves nothing."
        return Judgement(words, "not identifiable", "statistical")
    least, first = bounded[0]
    middle, _ = bounded[len(bounded) // 2]
    name = first.orbit.name if first.orbit else "an orbit"
    steepest = max((p for _, p in bounded), key=_fall)
    fallen = ""
    if steepest.orbit and _fall(steepest) > 0:
        walk, change = steepest.orbit.walk, max(step.loss_change for step in steepest.orbit.walk)
        start, end = walk[0].measured, walk[-1].measured
        fallen = (
            f" Through the model where Ψ falls most beyond its error (λ = {steepest.weight_decay:g}) it goes from "
            f"{format_uncertain(start.value, start.sem)} at R = {walk[0].scale:g} to "
            f"{format_uncertain(end.value, end.sem)} at R = {walk[-1].scale:g} at the largest s, while the loss "
            + (f"changes by at most {upper(change, 1)} nats." if change else "keeps its last bit.")
        )
    elif any(p.orbit and p.orbit.walk for _, p in bounded):
        fallen = " On the way along them, as far as it was walked, Ψ falls at none beyond its own error."
    measured = (
        f"At {len(bounded)} of {len(points)} trained models an orbit of constant loss was resolved on which Ψ_s "
        f"→ −∞ for every s above a bound, each at confidence {first.level:.0%}: {upper(middle, 3)} at the median "
        f"model, {upper(least, 3)} at the one where it is smallest (λ = {first.weight_decay:g}, {name}).{fallen}"
    )
    return Judgement(measured, "refuted", "statistical")


def _fall(point: LandscapePoint) -> float:
    """How far Ψ fell along an orbit at the least, from interval to interval, in units of its size at the start."""
    walk = point.orbit.walk if point.orbit else []
    if not walk:
        return 0.0
    return (walk[0].measured.interval[0] - walk[-1].measured.interval[1]) / abs(walk[0].measured.value)


def _constant_here(record: PaperRecord) -> Judgement | None:
    promises = [(p, r) for p in record.convergence for r in p.promises if r.name.startswith(READ)]
    if not promises:
        return None
    verdicts = {r.verdict for _, r in promises}
    ranked: tuple[Verdict, ...] = ("refuted", "consistent")
    verdict: Verdict = next((v for v in ranked if v in verdicts), "not identifiable")
    shown, rate = next(pair for pair in promises if pair[1].verdict == verdict)
    logs = [r.log10 for _, r in promises]
    measured = (
        f"At {len(promises)} values of λ the constant promises a gap of 10^{min(logs):.1f} to 10^{max(logs):.1f} per "
        f"unit of diffusion time. At λ = {shown.weight_decay:g}: {rate.sentence}"
    )
    return Judgement(measured, verdict, "refuted" if verdict == "refuted" else "estimated")


def _exponential(record: PaperRecord) -> Judgement | None:
    if not record.convergence:
        return None
    fits = [f for p in record.convergence for f in p.fits if f.name == "loss" and f.rate]
    single = sum(f.verdict == "identified" for f in fits)
    words = f"The loss of noisy SGD decays like one exponential at {single} of {len(record.convergence)} values of λ"
    if rates := [f.rate.value for f in fits if f.rate]:
        words += f"; fitted rates run from {min(rates):.3g} to {max(rates):.3g} per unit of diffusion time"
    words += (
        ". A rate fitted to a transient is that of one observable from one start: it bounds the gap neither way, and "
        "says nothing of a log-Sobolev constant."
    )
    return Judgement(words, "not identifiable", "estimated")


def _bounds(record: PaperRecord) -> Judgement | None:
    rows = sorted((p.weight_decay, p.path.value) for p in record.certificates if p.path and p.weight_decay > 0)
    if len(rows) < 2:
        return None
    most, low, high = max((b - a, x, y) for i, (x, a) in enumerate(rows) for y, b in rows[i + 1 :])
    falls = all(b <= a for (_, a), (_, b) in pairwise(rows))
    values = ", ".join(f"{value:.3f} at {decay:g}" for decay, value in rows)
    rise = f" From λ = {low:g} to {high:g} the certified risk rises by {most:.3f} nats." if most > 0 else ""
    measured = (
        f"Certified risk of noisy SGD, nats per token, by λ: {values}.{rise} One run at each λ. These are this "
        "project's certificates; of the preprint's own bound only the abstract was available."
    )
    return Judgement(
        measured, "refuted" if most > _RISE else "consistent" if falls else "not identifiable", "estimated"
    )


def _hutchinson(record: PaperRecord) -> Judgement | None:
    of = record.estimators
    plain = next((p for p in of.points if p.way == "hutchinson"), None) if of else None
    if of is None or plain is None:
        return None
    others = "; ".join(f"{p.way} {p.relative_error.value:.1%}" for p in of.points if p is not plain)
    large = record.parameters > _HUNDRED_MILLION
    measured = (
        f"{of.probes} probes on each of {of.groups} groups, d = {record.parameters:,}: a root mean square error of "
        f"{plain.relative_error.value:.1%} of tr ∇²L for plain Hutchinson ({others}); {plain.covered} of "
        f"{plain.repeats} of its intervals hold the reference."
        + ("" if large else " This model is smaller than those that the claim is about.")
    )
    good = large and plain.relative_error.value < 1
    return Judgement(measured, "consistent" if good else "not identifiable", "statistical")


def _rays(record: PaperRecord) -> Judgement | None:
    rays = [r for p in record.landscape if p.weight_decay > 0 for r in p.rays]
    if not rays:
        return None
    signs = [sign(r.fit.quadratic, len(rays)) for r in rays]
    data = sum(sign(r.data_fit.quadratic, len(rays)) > 0 for r in rays)
    shares = sorted(r.exact_quadratic / r.fit.quadratic.value for r, sign in zip(rays, signs, strict=True) if sign > 0)
    reach = max(r.radii[-1] / p.norm for p in record.landscape for r in p.rays if p.norm)
    middle = ""
    if shares:
        share = shares[len(shares) // 2]
        middle = f" The term λ²/s, which is there for any loss, makes up {share:.0%} of it at the median."
    measured = (
        f"Of {len(rays)} series of Ψ_s (models with λ > 0 × rays × s, up to r = {reach:.3g}‖θ‖) {signs.count(1)} have "
        f"a positive quadratic coefficient beyond their error, all at once, and {signs.count(-1)} a negative "
        f"one.{middle} The part that depends on data has a positive one in {data}. Growth on rays is no evidence for "
        "Ψ_s → ∞: orbits through the same models decide that."
    )
    return Judgement(measured, _everywhere(signs), "statistical")


def _inflation(record: PaperRecord) -> Judgement | None:
    changes = {t.weight_decay: t.change for t in record.learned if t.change and t.weight_decay > 0}
    if not changes:
        return None
    checked = [
        abs(p.objective_largest.value - p.largest.value - p.weight_decay) for p in record.spectra if p.objective_largest
    ]  # fmt: skip
    signs = [sign(change, len(changes), decay) for decay, change in changes.items()]
    least = min(changes, key=lambda decay: changes[decay].value)
    same = f" Worked out twice, they differ from that by at most {upper(max(checked), 2)}." if checked else ""
    measured = (
        f"At a fixed θ every eigenvalue of ∇²F is one of ∇²L plus λ, whatever the loss.{same} Between trained models "
        f"λ₁(∇²F), the shift included, rises beyond its error over seeds at {signs.count(1)} of {len(signs)} values of "
        f"λ and falls at {signs.count(-1)}; the learned part is lowest at λ = {least:g}: "
        f"{change_words(changes[least])}."
    )
    return Judgement(measured, _everywhere(signs), "statistical")


def _generalisation(record: PaperRecord) -> Judgement | None:
    changes = [(p.change, p, of.optimizer) for of in record.choices for p in of.points if p.change]
    if not changes:
        return None
    gains, losses = ([c for c in changes if c[1].resolved == sign] for sign in (-1, 1))
    verdict: Verdict = "consistent" if gains else "refuted" if len(losses) == len(changes) else "not identifiable"
    change, point, optimizer = min(gains or changes, key=lambda c: c[0].value)
    measured = (
        "Held-out loss against no decay, in pairs of seed and text, beyond the error of both: better at "
        f"{len(gains)} of {len(changes)} pairs of optimiser and λ, worse at {len(losses)}. "
        f"{'Largest gain' if gains else 'Lowest change'}: {NAMES[optimizer]}, λ = {point.weight_decay:g}, "
        f"{change_words(change)} nats per token."
    )
    if not gains and point.detectable:
        measured += f" One of {upper(point.detectable, 2)} would have been seen with probability 80 %."
    elif gains and change.interval[0] > -_MATTERS:
        measured += f" That is less than {_MATTERS:g} nats, of no use to anybody who chooses λ."
    return Judgement(measured, verdict, "statistical")


_CLAIMS: tuple[tuple[str, str, Callable[[PaperRecord], Judgement | None]], ...] = (
    ("F = L + (λ/2)‖θ‖² is infinitely differentiable.", "E1", partial(_criterion, "smoothness")),
    ("F grows at least quadratically.", "E1", partial(_criterion, "growth")),
    ("exp(−2F/s) has Gaussian-integrable tails.", "E1", partial(_criterion, "tails")),
    ("Ψ_s → ∞ as ‖θ‖ → ∞, for every s > 0.", "E1", _growth_everywhere),
    (
        "C_LS ≤ 1/λ + d/λ² for this objective, and with it convergence of noisy SGD in finite time.", "E3",
        _constant_here,
    ),
    (
        "C_LS ≤ 1/λ + d/λ² follows from smoothness, quadratic growth, Gaussian tails and Ψ_s → ∞ for all s > 0.",
        "exact", counterexample,
    ),
    ("Training shows exponential convergence, consistent with the log-Sobolev analysis.", "E3", _exponential),
    ("PAC-Bayesian bounds tighten as λ increases.", "E4", _bounds),
    ("PAC-Bayesian bounds tighten as λ increases, for any loss with these properties.", "exact", loosening_bound),
    ("Hutchinson probes estimate Ψ_s efficiently in models with over 100M parameters.", "E5", _hutchinson),
    ("Ψ_s grows quadratically along rays, as experiments show.", "E1", _rays),
    ("Weight decay inflates the spectrum of the Hessian.", "E2", _inflation),
    ("Weight decay improves generalisation empirically.", "E4", _generalisation),
)  # fmt: skip


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


def _everywhere(signs: Sequence[int]) -> Verdict:
    """Of a claim that something is positive at all of so many points."""
    return "refuted" if -1 in signs else "not identifiable" if 0 in signs else "consistent"


def _mask(decay: str) -> str:
    return "everything" if decay == "all" else f"what mask {decay!r} names"


def _sentence(text: str) -> str:
    text = text.strip()
    return text if not text else text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")
