"""From chains to records: fits, mixing, identities, coupling, and every rate with its verdict."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from villani.commands.converge.chains import Ensemble, Theory
from villani.commands.converge.equilibrium import (
    ceilings_of,
    equilibrium_of,
    gradient_noise_of,
    identities_of,
    obstacle_of,
)
from villani.commands.converge.record import (
    ChainsRecord,
    CoupledRecord,
    CurveRecord,
    FitRecord,
    MixingRecord,
    RateRecord,
)
from villani.dynamics.convergence import Fit, contraction, fit_exponential, mixing
from villani.dynamics.verdicts import Claim, Evidence, Verdict, claims, judge
from villani.outwards import lower, upper
from villani.statistics import Array
from villani.theory.applicable import upper_bounds
from villani.theory.constants import Smoothing, preprint, smoothed_cross_entropy
from villani.work.records import EstimateRecord

ALPHA = 0.1  # prediction smoothing of the certified constant
_SHOWN = 160  # points of a curve in the record
_CHAINS = 8  # chains in the record, each
_TEN = math.log(10)
_JUDGED = {
    "refuted": "is refuted", "consistent": "is not contradicted, which confirms nothing",
    "not identifiable": "can be neither refuted nor supported by this run",
}  # fmt: skip
_FASTER = 3.0  # times: from here on the loss is said not to see a mode
Judged = tuple[Claim, Verdict, str]  # a promise, what came of it, and why


def chains_record(ensemble: Ensemble) -> ChainsRecord:
    """Everything that is said about one λ and s."""
    kernel, theory, curves = ensemble.kernel, ensemble.theory, ensemble.curves()
    times = kernel.times(ensemble.whole[0].steps if ensemble.whole else [])
    fitted = [name for name in ("loss", "objective", "norm_squared", *ensemble.names[5:]) if name != "laplacian"]
    fits = {name: fit_exponential(times, curves[name]) for name in fitted if len(times)}
    mixed = mixing(curves)
    noise = gradient_noise_of(ensemble, curves)
    identities = list(identities_of(ensemble, curves, noise))
    state = equilibrium_of(mixed, identities)
    length = float(kernel.times([kernel.steps])[0])
    evidence = Evidence(
        tuple(ceilings_of(ensemble, curves, times)), theory.gap, obstacle_of(ensemble, noise, state, mixed, identities),
        min((fit.rate.value for fit in fits.values() if fit.rate), default=None), length, theory.status, theory.ceiling,
    )  # fmt: skip
    judged = [(claim, *judge(claim, evidence)) for claim in _claims(ensemble)]
    shown_times, shown = _shown(ensemble)
    return ChainsRecord.of(
        kernel, time=length, exact_gap=theory.gap, exact_gap_status=None if theory.gap is None else theory.status,
        sentence=_sentence(ensemble, fits, judged), trap=_trap(fits, theory), equilibrium=state, times=shown_times,
        curves=shown, fits=[_fit_record(name, fit) for name, fit in fits.items()],
        mixing=[MixingRecord(name=n, rhat=mixed.rhat[n], ess=mixed.ess[n]) for n in curves], identities=identities,
        rates=list(_rates(ensemble, evidence, judged, fits)), acceptance=_acceptance(ensemble),
        diverged=ensemble.diverged, gradient_noise=noise, coupled=_coupled_record(ensemble),
    )  # fmt: skip


def _acceptance(ensemble: Ensemble) -> float | None:
    chains = ensemble.whole
    if ensemble.kernel.method != "mala" or not chains:
        return None
    return float(sum(c.accepted for c in chains) / (len(chains) * ensemble.kernel.steps * ensemble.target.walkers))


def _claims(ensemble: Ensemble) -> Iterator[Claim]:
    theory, decay, beta = ensemble.theory, ensemble.kernel.weight_decay, ensemble.kernel.beta
    if decay == 0:
        return
    no_law = f"{ensemble.undecayed:,} coordinates do not decay" if ensemble.undecayed else ""
    readings = {"as read at β = 1, translated: ": beta, "1/λ + d/λ² taken literally at this β: ": 1.0}
    for prefix, read_at in readings.items() if beta != 1 else [*readings.items()][:1]:
        yield claims(preprint(decay, read_at, ensemble.target.dimension), beta, prefix=prefix, obstacle=no_law)
    if theory.case is not None:
        for constant in upper_bounds(theory.case.potential, theory.case.proved)[0]:
            if constant.id != "C8":
                yield claims(constant, beta)
    elif theory.vocabulary is not None:
        constant = smoothed_cross_entropy(decay, beta, Smoothing(theory.vocabulary, ALPHA))
        yield claims(constant, beta, obstacle="It is about the loss with smoothed predictions, which was not run")


def _rates(ensemble: Ensemble, evidence: Evidence, judged: list[Judged], fits: dict[str, Fit]) -> Iterator[RateRecord]:
    theory, decay = ensemble.theory, ensemble.kernel.weight_decay
    if theory.gap is not None:
        words = "Computed by villani exact" + ("." if theory.status == "certified" else ", from two grids: no proof.")
        yield _rate("exact gap", "equal", math.log(theory.gap) / _TEN, theory.status, words)
        if theory.ceiling is not None:
            words = "The variance quotient (C9) of one function, by interval quadrature."
            yield _rate("gap, by intervals", "at most", math.log(theory.ceiling) / _TEN, "certified", words)
    if decay:
        words = "Of the law without a loss: linear observables decay at λ, F at 2λ. A reference, no promise."
        yield _rate("decay alone, λ", "reference", math.log(decay) / _TEN, "certified", words)
    for claim, verdict, words in judged:
        status = "refuted" if verdict == "refuted" else claim.status
        yield _rate(claim.name, "at least", claim.log_rate / _TEN, status, words, verdict=verdict)
    status, words = (
        "statistical",
        "At equilibrium, for a reversible chain; limits of all bounds at once, O(η) bias apart.",
    )
    if evidence.obstacle:
        status, words = "estimated", f"Of no use here: {evidence.obstacle}."
    for bound in evidence.ceilings:
        limit = math.log10(bound.limit)
        yield _rate(bound.name, "at most", math.log10(bound.value), status, words, limit_log10=limit)
    for name, fit in fits.items():
        if fit.rate:
            words = f"{fit.verdict}: {fit.why}. The rate of this observable from this start."
            yield _rate(f"fit of {name}", "fitted", math.log(fit.rate.value) / _TEN, "estimated", words)


def _rate(name: str, side: str, log10: float, status: str, sentence: str, **more: Any) -> RateRecord:
    return RateRecord.of(name=name, side=side, log10=log10, status=status, sentence=sentence, **more)


def _trap(fits: dict[str, Fit], theory: Theory) -> str:
    """What the loss does not see, if anything tells."""
    loss = next((fits[name] for name in ("objective", "loss") if name in fits and fits[name].rate), None)
    if loss is None or loss.rate is None or loss.interval is None:
        return ""
    words, truth = "", theory.gap
    if truth is not None and loss.interval[0] > _FASTER * truth:
        words = (
            f"The loss does not see the slow mode: F settles at a rate of {loss.rate.value:.3g}, while the gap is "
            f"{'exactly' if theory.status == 'certified' else 'estimated as'} {truth:.3g}, "
            f"{loss.rate.value / truth:.3g} times smaller. A constant read off the loss curve would be "
            "that many times too good."
        )
    for name, fit in fits.items():
        if not name.startswith("linear"):
            continue
        if fit.interval is not None and fit.interval[1] * _FASTER < loss.interval[0]:
            assert fit.rate is not None
            words = words or f"The loss does not see a slow mode: F settles at {loss.rate.value:.3g}."
            return f"{words} u·θ ({name}), from the same chains, moves at {fit.rate.value:.3g}."
        if fit.rate is None and "levelled off" in fit.why:
            words = words or f"The loss may not see a slow mode: F settles at {loss.rate.value:.3g}."
            return f"{words} u·θ ({name}) is still on its way when the run ends."
    return words


def _sentence(ensemble: Ensemble, fits: dict[str, Fit], judged: list[Judged]) -> str:
    where = f"At λ = {ensemble.kernel.weight_decay:g}, s = {ensemble.kernel.temperature:g}"
    if not ensemble.whole:
        return f"{where} every chain diverged, the first at step {min(d.step for d in ensemble.diverged)}."
    seen, what = ("loss", "the loss") if np.ptp(ensemble.curves()["loss"]) else ("objective", "F")
    fit = fits.get(seen)
    if fit is None or fit.rate is None or fit.interval is None:
        words = f"{where} {what} has no rate that could be fitted ({fit.why if fit else 'nothing was logged'})"
    else:
        within = f"{lower(fit.interval[0], 3)} to {upper(fit.interval[1], 3)}"
        words = f"{where} {what} decays at a rate of {fit.rate.value:.3g} ({within}; {fit.verdict})"
    for claim, verdict, _ in judged[:1]:
        promised = claim.log_rate / _TEN
        gap = f"{10**promised:.3g}" if -4 < promised < 6 else f"10^{promised:.1f}"
        words += f"; the preprint's constant, which promises a gap of {gap}, {_JUDGED[verdict]}"
    if ensemble.theory.unsolved:
        words += f"; the exact gap is not known ({ensemble.theory.unsolved})"
    return words + "."


def _fit_record(name: str, fit: Fit) -> FitRecord:
    rate = EstimateRecord.of(fit.rate, interval=fit.interval, status="estimated") if fit.rate and fit.interval else None
    return FitRecord.of(fit, name=name, rate=rate)


def _coupled_record(ensemble: Ensemble) -> CoupledRecord | None:
    if ensemble.pair is None or not len(ensemble.pair["steps"]):
        return None
    times, logs = ensemble.kernel.times(ensemble.pair["steps"]), ensemble.pair["logs"].T
    points = _thinned(len(times))
    return CoupledRecord.of(
        times=times[points].tolist(), log_distance=logs.mean(axis=0)[points].tolist(),
        rate=contraction(times, np.exp(logs)),
    )  # fmt: skip


def _shown(ensemble: Ensemble) -> tuple[list[float], list[CurveRecord]]:
    """Times and curves of all chains, thinned; those that left have nulls after."""
    longest = max(ensemble.chains, key=lambda chain: len(chain.steps))
    count = len(longest.steps)
    points = _thinned(count)
    curves = []
    for index, name in enumerate(ensemble.names):
        every: list[Array] = []
        for chain in ensemble.chains:
            padded = np.full((chain.rows.shape[2] if chain.rows.size else 1, count), np.nan)
            if chain.rows.size:
                padded[:, : len(chain.steps)] = chain.rows[:, index].T
            every.extend(padded)
        rows = np.array(every)[:, points]
        known = np.isfinite(rows).sum(axis=0)
        with np.errstate(all="ignore"):
            mean = np.where(known, np.nansum(rows, axis=0) / np.maximum(known, 1), np.nan)
            spread = np.nansum((rows - mean) ** 2, axis=0) / np.maximum(known - 1, 1)
            sem = np.where(known > 1, np.sqrt(spread / np.maximum(known, 1)), np.nan)
        curves.append(
            CurveRecord(name=name, mean=_nulls(mean), sem=_nulls(sem), chains=[_nulls(row) for row in rows[:_CHAINS]])
        )
    return ensemble.kernel.times(longest.steps[points]).tolist(), curves


def _thinned(count: int) -> Array:
    return np.unique(np.linspace(0, count - 1, min(count, _SHOWN)).round().astype(int))


def _nulls(values: Array) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in values]
