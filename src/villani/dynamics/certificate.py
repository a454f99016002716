"""The account of a noisy training run: what its complexity is, and whether the run kept to what the theorems need.

A `ChainPlan` is fixed before the data; an `Account` takes every step, compares it with the plan, and adds up the two
complexities of docs/certificate-proofs.md: ln dQ/dP of the realised path, and the weighted Σ w_k‖g_k‖² of c4.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from villani.errors import InputError, check_nonnegative, check_positive
from villani.statistics import Array
from villani.theory.complexity import Complexity, NoisyDescent, path
from villani.theory.constants import Smoothing
from villani.theory.pac_bayes import RiskBound, bernstein, bernstein_rates, best, linear, linear_rates, monte_carlo

Start = Literal["prior", "centre"]
_NEW = (
    "a new document: the mean loss of its tokens, every document counting alike, over the law that those seen are from"
)
_INDEPENDENT = (
    "independent documents of one law, n = {n}, which is fixed before; each scored whole by weights that only others "
    "determine; centres and t fixed before"
)
CENTRES = tuple(share / 10 for share in range(2, 10))  # of ln V: centres that the Bernstein bound may choose from


@dataclass(frozen=True, eq=False)
class ChainPlan:
    """θ ← aθ − ηg + τξ about a centre: everything about it that has to be fixed before the data.

    With λ > 0, a_k = 1 − η_kλ and τ_k² = v(1 − a_k²), v = s/(2λ), whatever the schedule. With λ = 0 there is no
    stationary law: a = 1, τ_k² = η_k s, and only the path bound applies.

    Attributes:
        rates: (K,) η_k.
        weight_decay: λ ≥ 0, of decay towards the centre.
        temperature: s > 0.
        clip: directions are scaled down to this norm, in the coordinates that the noise is isotropic in; None: never.
        start: from the prior N(centre, vI), or at the centre itself.
        decays: (K,) λ_k of a schedule of its own, fixed like the rates; `weight_decay` then stands for v alone.
        moving_reference: the reference makes steps h of its own, THEORY.md §5 (c′); g is then what is charged, the
            direction less h, and has a norm of at most twice the clip.

    Raises:
        InputError: numbers out of range, or a start in a prior that does not exist.
    """

    rates: Array
    weight_decay: float
    temperature: float
    clip: float | None
    start: Start
    decays: Array | None = None
    moving_reference: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise InputError(f"temperature={self.temperature:g}: a certificate needs noise, so a finite number > 0")
        check_nonnegative(weight_decay=self.weight_decay)
        if self.clip is not None:
            check_positive(clip=self.clip)
        rates = np.asarray(self.rates, dtype=float)
        if rates.ndim != 1 or not rates.size or not (np.isfinite(rates).all() and (rates > 0).all()):
            raise InputError("learning rates: expected finite numbers > 0")
        object.__setattr__(self, "rates", rates)
        if self.decays is not None and self.weight_decay == 0:
            raise InputError("decays: need weight_decay > 0, whose s/(2λ) is the variance of the prior")
        if self.weight_decay > 0:
            _ = self.descent  # refuses ηλ ≥ 2
        elif self.start == "prior":
            raise InputError("weight_decay=0: there is no prior to start in; use --start centre, or λ > 0")

    @property
    def variance(self) -> float:
        """v = s/(2λ), of each coordinate of the prior; inf without decay."""
        return self.temperature / (2 * self.weight_decay) if self.weight_decay else math.inf

    @property
    def descent(self) -> NoisyDescent | None:
        """The chain that c4 is about; None without decay."""
        if not self.weight_decay:
            return None
        decays = self.weight_decay if self.decays is None else self.decays
        return NoisyDescent(decays, self.variance, self.rates)

    @property
    def contractions(self) -> Array:
        """(K,) a_k."""
        chain = self.descent
        return np.ones(len(self.rates)) if chain is None else chain.contractions

    @property
    def noises(self) -> Array:
        """(K,) τ_k."""
        chain = self.descent
        return np.asarray(np.sqrt(self.rates * self.temperature)) if chain is None else chain.noises


class Account:
    """What one run of a plan adds up to. Costs two scalars a step: ‖g‖², which a clip needs anyway, and ⟨g, ξ⟩.

    Args:
        plan: what the run is going to do.
    """

    def __init__(self, plan: ChainPlan) -> None:
        self.plan = plan
        self.squares: list[float] = []  # ‖g_k‖²
        self.log_ratio = 0.0  # ln dQ/dP so far
        self.broken: list[str] = []
        self._noises, self._contractions = plan.noises, plan.contractions

    def step(
        self, gradient_squared: float, inner: float, *, rate: float, noise: float, contraction: float,
        sees_noise: bool = False,
    ) -> None:  # fmt: skip
        """One step that was made.

        Args:
            gradient_squared: ‖g‖² of the direction that was used, after clipping, less the reference's.
            inner: ⟨g, ξ⟩ of the same with the standard normal ξ of this step.
            rate: η that was used.
            noise: τ that was used.
            contraction: a that was used on every coordinate that moves; 1 where nothing decayed.
            sees_noise: whether g was computed from ξ, as after an update that had it.
        """
        k, plan = len(self.squares), self.plan
        self.squares.append(float(gradient_squared))
        if k >= len(plan.rates):
            self._break(k, f"more steps than the {len(plan.rates)} planned")
            return
        if not noise > 0:
            self._break(k, "the noise was switched off")
        elif not math.isclose(noise, self._noises[k], rel_tol=1e-6):
            self._break(k, f"noise {noise:g} in place of the planned {self._noises[k]:g}")
        if not math.isclose(contraction, self._contractions[k], rel_tol=1e-12):
            self._break(k, f"decay left {contraction:.9g} of θ in place of the planned {self._contractions[k]:.9g}")
        if not math.isclose(rate, plan.rates[k], rel_tol=1e-12):
            self._break(k, f"learning rate {rate:g} in place of the planned {plan.rates[k]:g}")
        if sees_noise:
            self._break(k, "the direction was computed from this step's own noise")
        if not (math.isfinite(gradient_squared) and math.isfinite(inner)):
            self._break(k, "the direction was not finite")
        most = math.inf if plan.clip is None else plan.clip * (2 if plan.moving_reference else 1)
        if gradient_squared > most**2 * (1 + 1e-5):
            self._break(k, f"‖g‖ = {gradient_squared**0.5:g} above the clip {most:g}")
        if noise > 0:
            self.log_ratio += rate**2 * gradient_squared / (2 * noise**2) - rate * inner / noise

    def _break(self, step: int, why: str) -> None:
        self.broken.append(f"step {step}: {why}")

    def check(self) -> None:
        """Refuse a run that broke a hypothesis, or that is not over.

        Raises:
            InputError: which step, and how.
        """
        if self.broken:
            more = f" (and {len(self.broken) - 1} more)" if len(self.broken) > 1 else ""
            raise InputError(f"no certificate: {self.broken[0]}{more}")
        if len(self.squares) < len(self.plan.rates):
            raise InputError(f"no certificate: {len(self.squares)} of {len(self.plan.rates)} planned steps were made")

    def path(self) -> Complexity:
        """The complexity of the θ that came out; see `villani.theory.complexity.path`."""
        self.check()
        return path(self.log_ratio, len(self.squares), moving_reference=self.plan.moving_reference)


def chain_complexity(plan: ChainPlan, squares: Sequence[Array], delta: float) -> Complexity:
    """c4 from J independent runs: the least of the clip's certified bound and, at δ, what the runs say.

    The weights of Σ w_k‖g_k‖² come from the clip, so that they are fixed before the data, and the sum has a range.

    Args:
        plan: of all runs; with a clip, started from the prior.
        squares: J arrays (K,) of ‖g_k‖².
        delta: probability that the statistical bound may fail with.

    Raises:
        InputError: a hypothesis that the plan does not meet.
    """
    descent = plan.descent
    if descent is None:
        raise InputError("c4: λ = 0, so that no prior is left as it is by decay and noise; use λ > 0")
    if plan.moving_reference:
        raise InputError("c4: the reference moves with the prior's gradients, so that its law is no Gaussian")
    if plan.start != "prior":
        raise InputError("c4: the chains start at the centre, not in the prior N(centre, vI); use --start prior")
    if plan.clip is None:
        raise InputError("c4: without a clip the sum of ‖g‖² has no range, so that no number of chains bounds it")
    certified = descent.clipped(plan.clip)
    weights = descent.weights(descent.best_shares(plan.clip**2))
    sums = np.array([float(weights @ (np.minimum(s, plan.clip**2))) for s in squares])
    span = float(weights.sum()) * plan.clip**2
    measured = monte_carlo(sums, delta, span=span, lowest=0.0)
    if measured >= certified.value:
        return certified
    hypotheses = f"{certified.hypotheses}; {len(squares)} independent chains"
    return Complexity("c4", "chain, measured", measured, hypotheses, "statistical", certified.source)


@dataclass(frozen=True)
class Moments:
    """E ℓ and E ℓ² of the smoothed losses over the m certified tokens, at one α."""

    smoothing: Smoothing
    first: float
    second: float


def token_bound(losses: Moments, m: int, kl: float, delta: float) -> RiskBound:
    """The best of all token-level bounds at one α, at δ in all: linear ones, and Bernstein's over centres and rates.

    The grids depend on V, α and m alone. A centre c = share·ln V has V̂ = E ℓ² − 2cE ℓ + c².
    """
    smoothing = losses.smoothing
    span = smoothing.oscillation
    betas = linear_rates(m, span)
    bounds = [
        linear(losses.first, m, kl, delta / 2 / len(betas), beta, span=span, lowest=smoothing.lowest, tokens=True)
        for beta in betas
    ]
    choices = [
        (share * math.log(smoothing.vocabulary), rate)
        for share in CENTRES
        for rate in bernstein_rates(smoothing.highest - share * math.log(smoothing.vocabulary))
    ]
    for centre, rate in choices:
        spread = max(losses.second - 2 * centre * losses.first + centre**2, 0.0)
        reach = smoothing.highest - centre
        level = delta / 2 / len(choices)
        bounds.append(bernstein(losses.first, spread, m, kl, level, rate, reach=reach, highest=smoothing.highest))
    return best(bounds)


def document_bound(losses: Moments, n: int, delta: float) -> RiskBound:
    """The best bound on the mean risk, on a new document, of weights that each document's past determines.

    Document Z_j is scored by weights θ_j that documents before it determine, and is independent of them: given these,
    ℓ(θ_j, Z_j) has the mean R(θ_j), so that the bounds on tokens hold with documents for tokens and no complexity.

    Args:
        losses: moments of the documents' mean losses at one α.
        n: documents.
        delta: δ in all.
    """
    return replace(token_bound(losses, n, 0.0, delta), about=_NEW, hypotheses=_INDEPENDENT.format(n=n))


def gain_bound(first: float, second: float, m: int, smoothing: Smoothing, delta: float) -> RiskBound:
    """An upper bound on the mean of E[ℓ_i(θ_i) − ℓ_i(θ_0) | past], both θ determined by the past; −it is a gain.

    Paired losses differ by at most Δ and as a rule by little, so that this is tighter than two bounds apart.

    Args:
        first: mean of the m differences at one α.
        second: mean of their squares.
        m: tokens.
        smoothing: of both.
        delta: δ in all.
    """
    rates = bernstein_rates(smoothing.oscillation)
    return best(
        bernstein(
            first, second, m, 0.0, delta / len(rates), rate, reach=smoothing.oscillation, highest=smoothing.oscillation
        )
        for rate in rates
    )
