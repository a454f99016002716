"""How fast Langevin dynamics and its discretisations forget where they began: THEORY.md §4.

dθ = −∇F dt + √(2/β) dW, Gibbs law exp(−βF). Rates need a log-Sobolev or Poincaré constant in the normalisation of §1;
what they are worth is what that constant is worth. Step counts need M = Lip(∇F) too, and no Transformer has one.
"""

import math
from dataclasses import dataclass

from villani.errors import InputError, check_nonnegative, check_positive


def kl_at(time: float, log_sobolev: float, beta: float, start: float) -> float:
    """KL(law at `time` ‖ Gibbs law) ≤ e^{−2t/(βC_LS)} KL₀."""
    check_positive(log_sobolev=log_sobolev, beta=beta)
    check_nonnegative(time=time, start=start)
    return start * math.exp(-2 * time / (beta * log_sobolev))


def chi_squared_at(time: float, poincare: float, beta: float, start: float) -> float:
    """χ²(law at `time` ‖ Gibbs law) ≤ e^{−2t/(βC_P)} χ²₀."""
    check_positive(poincare=poincare, beta=beta)
    check_nonnegative(time=time, start=start)
    return start * math.exp(-2 * time / (beta * poincare))


def diffusion_gap(poincare: float, beta: float) -> float:
    """Spectral gap of −𝓛, 1/(βC_P): the slowest rate of any observable. λ for the pure quadratic."""
    check_positive(poincare=poincare, beta=beta)
    return 1 / (beta * poincare)


@dataclass(frozen=True)
class Chain:
    """A discrete chain to which the bounds of §4 are applied.

    Attributes:
        dimension: d.
        beta: β.
        log_sobolev: C_LS of the Gibbs law, or an upper bound.
        smoothness: M = Lip(∇F), globally.
        noise: σ² ≥ E‖g − ∇F‖² of unbiased gradients; 0 for ULA.
        rescaling_pair: name of two blocks with L(RA, B/R) = L for all R, if the model has any.

    Raises:
        InputError: a rescaling pair, for then M = ∞ (Theorem C: ‖∇²L(θ_R)‖ ≥ R²Δ_B L/dim B); or numbers out of range.
    """

    dimension: int
    beta: float
    log_sobolev: float
    smoothness: float
    noise: float = 0.0
    rescaling_pair: str | None = None

    def __post_init__(self) -> None:
        if self.rescaling_pair is not None:
            raise InputError(
                f"no certified steps: the rescaling pair {self.rescaling_pair} makes the Lipschitz constant of ∇F "
                "infinite (THEORY.md §4); only continuous-time rates and the chain certificate of §5 apply"
            )
        if self.smoothness == math.inf:
            raise InputError("smoothness=inf: no certified steps without a finite Lipschitz constant of ∇F")
        check_positive(
            dimension=self.dimension, beta=self.beta, log_sobolev=self.log_sobolev, smoothness=self.smoothness
        )  # fmt: skip
        check_nonnegative(noise=self.noise)

    @property
    def largest_step(self) -> float:
        """η ≤ 1/(4βC_LS M²) for ULA, half of it with noisy gradients."""
        return 1 / ((8 if self.noise else 4) * self.beta * self.log_sobolev * self.smoothness**2)

    def kl_after(self, steps: int, step: float, start: float) -> float:
        """Bound on KL(law after `steps` ‖ Gibbs law), from KL₀ = `start`.

        ULA (Vempala–Wibisono): e^{−ηk/(βC)}KL₀ + 8ηβdM²C. SGLD: e^{−ηk/(βC)}KL₀ + 5ηβdM²C + 2.2β²σ²C.

        Raises:
            InputError: the step condition fails.
        """
        if not 0 < step <= self.largest_step * (1 + 1e-12):
            raise InputError(f"step={step:g}: the bound needs 0 < η ≤ {self.largest_step:.6g}")
        check_nonnegative(steps=steps, start=start)
        decay = math.exp(-step * steps / (self.beta * self.log_sobolev))
        return decay * start + self._per_step() * step + self.noise_floor

    @property
    def noise_floor(self) -> float:
        """2.2β²σ²C_LS: what gradient noise leaves in this bound however small the step; the truth is usually O(η)."""
        return 2.2 * self.beta**2 * self.noise * self.log_sobolev

    def steps_to(self, accuracy: float, start: float) -> "Steps":
        """A step size and a number of steps with KL ≤ `accuracy`: half for the bias, half for the memory of the start.

        Raises:
            InputError: the noise floor alone exceeds the accuracy.
        """
        check_positive(accuracy=accuracy, start=start)
        room = accuracy - self.noise_floor
        if room <= 0:
            raise InputError(
                f"accuracy={accuracy:g}: gradient noise alone leaves {self.noise_floor:.3g} in the bound; use larger "
                "batches, or a larger accuracy"
            )
        step = min(self.largest_step, room / 2 / self._per_step())
        count = math.ceil(max(self.beta * self.log_sobolev / step * math.log(2 * start / room), 0.0))
        return Steps(step, count, self.kl_after(count, step, start), self.largest_step)

    def _per_step(self) -> float:
        """Bias in KL per unit of step size."""
        return (5 if self.noise else 8) * self.beta * self.dimension * self.smoothness**2 * self.log_sobolev


@dataclass(frozen=True)
class Steps:
    """What a chain needs: step size, number of steps, the bound reached, and the largest step allowed."""

    step: float
    count: int
    kl: float
    largest_step: float


@dataclass(frozen=True)
class GaussianLaw:
    """N(mean, variance·I) in d dimensions: an exact truth for the bounds above."""

    mean: float
    variance: float
    dimension: int = 1

    def kl(self, other: "GaussianLaw") -> float:
        """KL(self ‖ other)."""
        ratio = self.variance / other.variance
        shift = (self.mean - other.mean) ** 2 / other.variance
        return self.dimension / 2 * (ratio - 1 - math.log(ratio) + shift)


def gibbs_quadratic(weight_decay: float, beta: float, dimension: int = 1) -> GaussianLaw:
    """The Gibbs law of (λ/2)‖θ‖²."""
    check_positive(weight_decay=weight_decay, beta=beta)
    return GaussianLaw(0.0, 1 / (beta * weight_decay), dimension)


def ornstein_uhlenbeck(start: GaussianLaw, weight_decay: float, beta: float, time: float) -> GaussianLaw:
    """Law at `time` of dθ = −λθ dt + √(2/β) dW from a Gaussian start."""
    target = gibbs_quadratic(weight_decay, beta).variance
    decay = math.exp(-weight_decay * time)
    return GaussianLaw(decay * start.mean, target + decay**2 * (start.variance - target), start.dimension)


def gaussian_ula(start: GaussianLaw, weight_decay: float, beta: float, step: float, steps: int) -> GaussianLaw:
    """Law after `steps` of θ ← (1 − ηλ)θ + √(2η/β)ξ from a Gaussian start: mean (1 − ηλ)^k m₀."""
    target = gaussian_ula_limit(weight_decay, beta, step).variance
    decay = (1 - step * weight_decay) ** steps
    return GaussianLaw(decay * start.mean, target + decay**2 * (start.variance - target), start.dimension)


def gaussian_ula_limit(weight_decay: float, beta: float, step: float, dimension: int = 1) -> GaussianLaw:
    """Stationary law of that chain: variance (1/βλ)/(1 − ηλ/2).

    Raises:
        InputError: ηλ ≥ 2, where the chain diverges.
    """
    check_positive(weight_decay=weight_decay, beta=beta, step=step)
    if step * weight_decay >= 2:
        raise InputError(f"step={step:g}: the chain diverges for ηλ ≥ 2; use η < {2 / weight_decay:g}")
    return GaussianLaw(0.0, 1 / (beta * weight_decay) / (1 - step * weight_decay / 2), dimension)


@dataclass(frozen=True)
class Asymptotic:
    """A leading-order formula, with no error bound at any finite β: never a certificate."""

    value: float
    label: str = "asymptotic"


def eyring_kramers(beta: float, barrier: float, top_curvature: float, well_curvature: float) -> Asymptotic:
    """Gap of Δ − U′∂ for symmetric wells on a line: (β/π)√(|F″(0)|F″(m)) e^{−βΔF}, as β → ∞.

    Args:
        beta: β.
        barrier: ΔF = F(0) − F(m).
        top_curvature: F″(0) < 0 at the top, or its size.
        well_curvature: F″(m) > 0.
    """
    check_positive(beta=beta, barrier=barrier, well_curvature=well_curvature, top_curvature=abs(top_curvature))
    return Asymptotic(beta / math.pi * math.sqrt(abs(top_curvature) * well_curvature) * math.exp(-beta * barrier))
