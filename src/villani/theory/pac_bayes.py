"""PAC-Bayes bounds on risk: THEORY.md §5(a) and (e), with grids that pay for choosing, and Monte-Carlo errors.

A prior π is fixed before the data; ρ is any law of θ that training leads to, and KL is KL(ρ‖π) (`complexity.py`). Every
bound holds with probability at least 1 − δ over the data, for all ρ at once, and is about the *randomised* predictor
θ ~ ρ. With a `Path` complexity, it is about the one θ that was drawn, with probability over data and training together.

Losses lie in [lowest, lowest + Δ]; smoothed predictions have such a range (`constants.Smoothing`). Nats throughout.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import rel_entr

from villani.errors import InputError, check_nonnegative, check_positive
from villani.statistics import Status
from villani.theory.complexity import (
    Complexity,
    NoisyDescent,
    gaussian,
    jeffreys,
    least,
    log_sobolev,
    path,
    stam,
    thermodynamic_integration,
)
from villani.theory.constants import Smoothing

__all__ = [
    "Complexity",
    "NoisyDescent",
    "RiskBound",
    "Smoothing",
    "bernstein",
    "bernstein_rates",
    "best",
    "catoni",
    "empirical_bernstein",
    "gaussian",
    "held_out",
    "hoeffding",
    "jeffreys",
    "kl_inverse",
    "least",
    "linear",
    "linear_rates",
    "log_sobolev",
    "maurer",
    "mcallester",
    "monte_carlo",
    "path",
    "stam",
    "thermodynamic_integration",
    "weaken",
]


@dataclass(frozen=True)
class RiskBound:
    """An upper bound on a risk, in nats, and what it is made of.

    Attributes:
        name: which bound.
        value: empirical + complexity + deviation for bounds that are sums; inf never, since a risk has a range.
        empirical: the empirical risk that went in.
        excess: value − empirical.
        about: what the bounded risk is the mean over.
        hypotheses: what has to hold.
        delta: the probability that this bound alone may fail with; a union over choices is already in it.
        choice: the parameter that a grid chose, such as β, or None.
        status: certified if all that went in is proved or computed without sampling; statistical if some of it is a
            confidence bound whose own δ is recorded beside; estimated if some of it is a plug-in figure.
    """

    name: str
    value: float
    empirical: float
    about: str
    hypotheses: str
    delta: float
    choice: float | None = None
    status: Status = "certified"

    @property
    def excess(self) -> float:
        """What the bound adds to the empirical risk."""
        return self.value - self.empirical


_IID = "new documents: n independent ones, all from the law of those seen"
_OBSERVED = "the observed contexts: the mean of E[loss of a token | everything before it] over the m tokens seen"
CAUSAL = "causality: the loss of a token depends on no later token"


def kl_inverse(risk: float, budget: float) -> float:
    """The largest r ≤ 1 with kl(risk‖r) ≤ budget, for Bernoulli laws; `risk` in [0, 1], `budget` ≥ 0."""
    if not 0 <= risk <= 1:
        raise InputError(f"risk={risk:g}: expected a number in [0, 1]")
    if budget <= 0 or risk == 1:
        return risk
    if budget == math.inf or _kl(risk, 1 - 1e-15) <= budget:
        return 1.0
    return float(brentq(lambda r: _kl(risk, r) - budget, risk, 1 - 1e-15, xtol=1e-15))


def _kl(p: float, q: float) -> float:
    return float(rel_entr(p, q) + rel_entr(1 - p, 1 - q))


def maurer(risk: float, n: int, kl: float, delta: float, *, span: float = 1.0, lowest: float = 0.0) -> RiskBound:
    """kl(R̂‖R) ≤ (KL + ln(2√n/δ))/n (Maurer 2004), inverted; n ≥ 8 independent documents, any span Δ of the loss.

    Raises:
        InputError: n < 8, KL < 0, or δ not in (0, 1); a risk outside its range.
    """
    _check(n, delta, span, least=8)
    check_nonnegative(kl=kl)
    budget = (kl + math.log(2 * math.sqrt(n) / delta)) / n
    value = lowest + span * kl_inverse(_unit(risk, span, lowest), budget)
    return RiskBound("Maurer", value, risk, _IID, f"independent documents, n = {n}", delta)


def mcallester(risk: float, n: int, kl: float, delta: float, *, span: float = 1.0, lowest: float = 0.0) -> RiskBound:
    """R ≤ R̂ + Δ√((KL + ln(2√n/δ))/2n): Maurer's bound by Pinsker, never better than it. Raises as `maurer`."""
    _check(n, delta, span, least=8)
    check_nonnegative(kl=kl)
    _unit(risk, span, lowest)
    value = risk + span * math.sqrt((kl + math.log(2 * math.sqrt(n) / delta)) / (2 * n))
    return _capped(RiskBound("McAllester", value, risk, _IID, f"independent documents, n = {n}", delta), lowest + span)


def catoni(
    risk: float, n: int, kl: float, delta: float, rate: float, *, span: float = 1.0, lowest: float = 0.0
) -> RiskBound:
    """R ≤ [1 − exp(−CR̂ − (KL + ln(1/δ))/n)]/(1 − e^{−C}) for a C = `rate` > 0 fixed before the data (Catoni 2007).

    Raises:
        InputError: C ≤ 0, or as `maurer` (with n ≥ 1).
    """
    _check(n, delta, span)
    check_nonnegative(kl=kl)
    check_positive(rate=rate)
    inner = rate * _unit(risk, span, lowest) + (kl - math.log(delta)) / n
    value = lowest + span * -math.expm1(-inner) / -math.expm1(-rate)
    bound = RiskBound("Catoni", value, risk, _IID, f"independent documents, n = {n}; C fixed before", delta, rate)
    return _capped(bound, lowest + span)


def linear(
    risk: float, n: int, kl: float, delta: float, beta: float, *, span: float = 1.0, lowest: float = 0.0,
    tokens: bool = False,
) -> RiskBound:  # fmt: skip
    """R ≤ R̂ + (KL + ln(1/δ))/β + βΔ²/(8n), β > 0 fixed before the data: §5(a), and with `tokens` §5(e).

    Args:
        risk: R̂, in [lowest, lowest + span].
        n: independent documents; with `tokens`, the tokens of one text.
        kl: KL(ρ‖π), or an upper bound; with a `Path`, its log-ratio, which may be negative.
        delta: δ.
        beta: β of the bound; not the β = 2/s of a chain.
        span: Δ.
        lowest: least loss.
        tokens: the bound is then on conditional risk on the observed contexts, by Hoeffding's lemma given the past.

    Raises:
        InputError: β ≤ 0, or as `maurer` (with n ≥ 1).
    """
    _check(n, delta, span)
    check_positive(beta=beta)
    _finite("kl", kl)
    _unit(risk, span, lowest)
    value = risk + (kl - math.log(delta)) / beta + beta * span**2 / (8 * n)
    what = f"tokens of one text, m = {n}; {CAUSAL}" if tokens else f"independent documents, n = {n}"
    about = _OBSERVED if tokens else _IID
    return _capped(RiskBound("linear", value, risk, about, f"{what}; β fixed before", delta, beta), lowest + span)


def bernstein(
    risk: float, second_moment: float, m: int, kl: float, delta: float, rate: float, *, reach: float, highest: float
) -> RiskBound:
    """Token-level bound with the observed spread of losses in place of their range (docs/certificate-proofs.md).

    R̄ ≤ R̂ + (KL + ln(1/δ))/(tm) + ψ(tB)/(tB²)·V̂, ψ(x) = −ln(1−x) − x, with V̂ = E_ρ (1/m)Σ(ℓ_i − c_i)². From
    exp(xξ − ψ(x)ξ²) ≤ 1 + xξ for ξ ≥ −1 and 0 ≤ x < 1 (Fan, Grama & Liu 2015) with ξ_i = (c_i − ℓ_i)/B.

    Args:
        risk: R̂.
        second_moment: V̂ about centres c_i that θ and the tokens before i determine, such as a constant.
        m: tokens.
        kl: as in `linear`.
        delta: δ.
        rate: t, per token, fixed before the data; tB < 1.
        reach: B > 0 with ℓ_i ≤ c_i + B always.
        highest: largest possible loss; a risk is never more.

    Raises:
        InputError: tB not in (0, 1), V̂ < 0, or as `linear`.
    """
    _check(m, delta, reach)
    _finite("kl", kl)
    check_nonnegative(second_moment=second_moment)
    x = rate * reach
    if not 0 < x < 1:
        raise InputError(f"rate={rate:g}: the bound needs 0 < tB < 1, B = {reach:g}")
    spread = (-math.log1p(-x) - x) / (x * reach)  # ψ(tB)/(tB²)
    value = risk + (kl - math.log(delta)) / (rate * m) + spread * second_moment
    what = f"tokens of one text, m = {m}; {CAUSAL}; centres that the past determines; t fixed before"
    return _capped(RiskBound("Bernstein", value, risk, _OBSERVED, what, delta, rate), highest)


def bernstein_rates(reach: float, count: int = 32) -> list[float]:
    """Rates t for `bernstein`: tB = 0.9·2^{−j/2}, j < `count`. It depends on nothing but the range of the loss."""
    check_positive(reach=reach)
    return [0.9 * 2 ** (-j / 2) / reach for j in range(count)]


def linear_rates(n: int, span: float, count: int = 32) -> list[float]:
    """β for `linear`: β = 4n/Δ·2^{−j/2}, j < `count`; between its ends, within 1.5 % of the best of all β."""
    _check(n, 0.5, span)
    return [4 * n / span * 2 ** (-j / 2) for j in range(count)]


def best(bounds: Iterable[RiskBound]) -> RiskBound:
    """The least of bounds that hold at once: each must have been made with δ divided by their number."""
    return min(bounds, key=lambda bound: bound.value)


def weaken(bound: RiskBound, status: Status, extra_delta: float = 0.0) -> RiskBound:
    """The same bound with an input that is only `status`, and the probability that this input fails."""
    return replace(bound, status=status, delta=bound.delta + extra_delta)


# Monte Carlo and held-out data


def hoeffding(mean: float, count: int, delta: float, span: float) -> float:
    """Upper confidence limit of a mean of `count` independent draws: mean + Δ√(ln(1/δ)/2J)."""
    _check(count, delta, span)
    return mean + span * math.sqrt(-math.log(delta) / (2 * count))


def empirical_bernstein(values: ArrayLike, delta: float, span: float) -> float:
    """Upper confidence limit x̄ + √(2V̂ ln(2/δ)/J) + 7Δ ln(2/δ)/(3(J−1)) (Maurer & Pontil 2009); J ≥ 2 draws."""
    draws = np.asarray(values, dtype=float)
    _check(len(draws), delta, span, least=2)
    level = math.log(2 / delta)
    spread = math.sqrt(2 * float(draws.var(ddof=1)) * level / len(draws))
    return float(draws.mean()) + spread + 7 * span * level / (3 * (len(draws) - 1))


def monte_carlo(values: ArrayLike, delta: float, *, span: float, lowest: float) -> float:
    """Upper confidence limit of the mean of independent draws from [lowest, lowest + Δ]; one draw is enough.

    The least of Chernoff's (kl⁻¹ at ln(1/δ)/J) and the empirical Bernstein limit, each at δ/2.
    """
    draws = np.asarray(values, dtype=float)
    _check(len(draws), delta, span)
    if draws.min() < lowest - 1e-6 * span or draws.max() > lowest + span * (1 + 1e-6):
        raise InputError(f"draws from {draws.min():g} to {draws.max():g}: expected [{lowest:g}, {lowest + span:g}]")
    share = min(max((float(draws.mean()) - lowest) / span, 0.0), 1.0)
    limits = [lowest + span * kl_inverse(share, math.log(2 / delta) / len(draws))]
    if len(draws) > 1:
        limits.append(empirical_bernstein(draws, delta / 2, span))
    return min(limits)


def held_out(risk: float, second_moment: float, m: int, delta: float, *, reach: float, highest: float) -> RiskBound:
    """The same Bernstein bound for θ that never saw the m tokens: KL = 0. What a certificate competes with."""
    rates = bernstein_rates(reach)
    found = best(
        bernstein(risk, second_moment, m, 0.0, delta / len(rates), rate, reach=reach, highest=highest) for rate in rates
    )
    return replace(found, name="held out", delta=delta)


# Checks


def _capped(bound: RiskBound, highest: float) -> RiskBound:
    """A risk is never above the range of its loss."""
    return replace(bound, value=min(bound.value, highest))


def _unit(risk: float, span: float, lowest: float) -> float:
    share = (risk - lowest) / span
    if not -1e-9 <= share <= 1 + 1e-9:
        raise InputError(f"risk={risk:g}: expected a number between {lowest:g} and {lowest + span:g}")
    return min(max(share, 0.0), 1.0)


def _check(n: int, delta: float, span: float, least: int = 1) -> None:
    if n < least:
        raise InputError(f"n={n}: expected at least {least}")
    if not 0 < delta < 1:
        raise InputError(f"delta={delta:g}: expected a number between 0 and 1")
    check_positive(span=span)


def _finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise InputError(f"{name}={value:g}: expected a finite number")
