"""Upper bounds on KL(ρ‖π), the complexity term of PAC-Bayes: THEORY.md §5(b), (c1)–(c4), (d), and two that go further.

The prior is Gaussian: N(centre, I/(βλ)) for c1–c3, or the stationary law N(centre, vI) of decay and noise for c4. The
centre may be any point that the certified data had no part in, such as a checkpoint trained on other data, if decay
pulls towards it. Nats throughout.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from villani.errors import InputError, check_nonnegative, check_positive
from villani.statistics import Array, Status


@dataclass(frozen=True)
class Complexity:
    """An upper bound on KL(ρ‖π), or for `path` the log-ratio that stands in its place.

    Attributes:
        id: b | c1 | c2 | c3 | c4 | path.
        name: in words.
        value: nats.
        hypotheses: what has to hold.
        status: certified | statistical | estimated, by its inputs.
        source: where the formula comes from.
    """

    id: str
    name: str
    value: float
    hypotheses: str
    status: Status
    source: str


def gaussian(dimension: int, deviation: float, prior_variance: float, distance_squared: float) -> Complexity:
    """KL(N(θ, σ²I)‖N(θ₀, wI)) = ½[(‖θ − θ₀‖² + dσ²)/w − d − d ln(σ²/w)], exactly: §5(b)."""
    check_positive(dimension=dimension, deviation=deviation, prior_variance=prior_variance)
    check_nonnegative(distance_squared=distance_squared)
    ratio = deviation**2 / prior_variance
    value = 0.5 * (distance_squared / prior_variance + dimension * (ratio - 1 - math.log(ratio)))
    return Complexity("b", "Gaussian", value, "ρ and π are these Gaussians", "certified", "THEORY.md §5(b)")


def log_sobolev(weight_decay: float, beta: float, gradient_squared: float, status: Status) -> Complexity:
    """c1: KL ≤ (β/2λ) E_ρ‖∇L‖² for ρ ∝ e^{−βL}π; L locally Lipschitz."""
    check_positive(weight_decay=weight_decay, beta=beta)
    check_nonnegative(gradient_squared=gradient_squared)
    value = beta / (2 * weight_decay) * gradient_squared
    return Complexity("c1", "log-Sobolev", value, "ρ is the Gibbs law, L locally Lipschitz", status, "THEORY.md §5(c)")


def stam(
    weight_decay: float, beta: float, norm_squared: float, hessian_eigenvalues: ArrayLike | None = None, *,
    dimension: int | None = None, laplacian: float | None = None, status: Status,
) -> Complexity:  # fmt: skip
    """c2: KL ≤ (βλ/2)E_ρ‖θ‖² − d/2 + ½ ln det(I + E_ρ∇²L/λ), or its weaker trace form from E_ρ ΔL.

    Args:
        norm_squared: E_ρ‖θ‖².
        hessian_eigenvalues: of E_ρ∇²L, all d of them; else give `dimension` and `laplacian`.
        status: of the inputs.

    Raises:
        InputError: an eigenvalue of I + E_ρ∇²L/λ that is not positive, which no Gibbs law has: inputs are wrong.
    """
    check_positive(weight_decay=weight_decay, beta=beta)
    check_nonnegative(norm_squared=norm_squared)
    if hessian_eigenvalues is not None:
        factors = 1 + np.asarray(hessian_eigenvalues, dtype=float) / weight_decay
        d = factors.size
    else:
        if dimension is None or laplacian is None:
            raise InputError("stam: expected hessian_eigenvalues, or dimension and laplacian")
        d, factors = dimension, np.array([1 + laplacian / (dimension * weight_decay)])
    if not (factors > 0).all():
        raise InputError("stam: E_ρ∇²F is not positive, which no Gibbs law allows; its inputs are too noisy or wrong")
    volume = float(np.log(factors).sum()) * (d / factors.size)
    value = beta * weight_decay / 2 * norm_squared - d / 2 + volume / 2
    return Complexity("c2", "Stam", value, "ρ is the Gibbs law, L twice differentiable", status, "THEORY.md §5(c)")


def jeffreys(beta: float, prior_loss: float, posterior_loss: float, status: Status) -> Complexity:
    """c3: KL ≤ β(E_π L − E_ρ L) for the Gibbs law, and for p_t of a ρ-invariant chain started from π. Not ULA or SGD.

    Raises:
        InputError: E_ρ L > E_π L, which cannot be.
    """
    check_positive(beta=beta)
    if posterior_loss > prior_loss + 1e-9 * (1 + abs(prior_loss)):
        raise InputError(f"posterior_loss={posterior_loss:g}: above prior_loss={prior_loss:g}, which cannot be")
    value = beta * max(prior_loss - posterior_loss, 0.0)
    hypotheses = "ρ is the Gibbs law, or that of a ρ-invariant chain started from the prior"
    return Complexity("c3", "Jeffreys", value, hypotheses, status, "THEORY.md §5(c); Harel et al. 2025")


def thermodynamic_integration(times: Sequence[float], energies: Sequence[float]) -> tuple[float, float]:
    """A bracket (lower, upper) of KL(ρ‖π) = ∫₀¹ E_{ρ_t}[βL] dt − E_ρ[βL], ρ_t ∝ e^{−tβL}π: §5(d).

    Args:
        times: t from 0 to 1, increasing.
        energies: E_{ρ_t}[βL] there; non-increasing in t, since its derivative is a variance with a minus sign.

    Raises:
        InputError: times do not run from 0 to 1, or energies increase: too noisy to bracket anything.
    """
    t, energy = np.asarray(times, dtype=float), np.asarray(energies, dtype=float)
    if len(t) != len(energy) or len(t) < 2 or t[0] != 0 or t[-1] != 1 or not (np.diff(t) > 0).all():
        raise InputError("times: expected an increasing sequence from 0 to 1, with an energy at each")
    if not (np.diff(energy) <= 0).all():
        raise InputError("energies increase with t, which no exact expectation does: use more samples")
    steps = np.diff(t)
    return float(steps @ energy[1:] - energy[-1]), float(steps @ energy[:-1] - energy[-1])


def least(found: Iterable[Complexity]) -> Complexity:
    """The least of several bounds on one KL: all hold at once, so that choosing costs nothing."""
    return min(found, key=lambda one: one.value)


@dataclass(frozen=True, eq=False)
class NoisyDescent:
    """Noisy SGD θ ← aθ − ηg + τξ about its prior's centre, with the decay and noise that leave N(0, vI) as it is: c4.

    a_k = 1 − η_kλ and τ_k² = v(1 − a_k²); g_k is any random direction such that ξ_k is independent of (θ_k, g_k).

    Attributes:
        weight_decay: λ > 0, or (K,) λ_k > 0 of a schedule fixed before the data: with v held, every step leaves
            N(0, vI) as it is whatever its λ_k.
        variance: v > 0, of each coordinate of the prior.
        rates: (K,) η_k > 0, fixed before the data, with |1 − η_kλ_k| < 1.

    Raises:
        InputError: numbers out of range, or a rate that makes |a| ≥ 1.
    """

    weight_decay: float | Array
    variance: float
    rates: Array

    def __post_init__(self) -> None:
        check_positive(variance=self.variance)
        rates = np.asarray(self.rates, dtype=float)
        if rates.ndim != 1 or not rates.size or not (np.isfinite(rates).all() and (rates > 0).all()):
            raise InputError("rates: expected a sequence of finite learning rates > 0")
        decays = np.asarray(self.weight_decay, dtype=float)
        if decays.ndim:
            if decays.shape != rates.shape:
                raise InputError(f"weight_decay: {decays.shape} of them for {rates.shape} rates")
            object.__setattr__(self, "weight_decay", decays)
        for value in (decays.min(), decays.max()):
            check_positive(weight_decay=float(value))
        steepest = int(np.argmax(rates * decays))
        if (rates * decays)[steepest] >= 2:
            limit = 2 / np.broadcast_to(decays, rates.shape)[steepest]
            raise InputError(f"rate {rates[steepest]:g}: c4 needs η < 2/λ = {limit:g}")
        object.__setattr__(self, "rates", rates)

    @classmethod
    def constant(cls, weight_decay: float, beta: float, rate: float, steps: int) -> "NoisyDescent":
        """The chain of §5(c4): noise √(2η/β), so that v = (2η/β)/(1 − a²)."""
        check_positive(weight_decay=weight_decay, beta=beta, rate=rate, steps=steps)
        if rate * weight_decay >= 2:
            raise InputError(f"rate {rate:g}: c4 needs η < 2/λ = {2 / weight_decay:g}")
        variance = 2 * rate / beta / float(_lost(rate * weight_decay))
        return cls(weight_decay, variance, np.full(steps, rate))

    @property
    def contractions(self) -> Array:
        """(K,) a_k."""
        return np.asarray(1 - self.rates * self.weight_decay, dtype=np.float64)

    @property
    def noises(self) -> Array:
        """(K,) τ_k."""
        return np.asarray(np.sqrt(self.variance * self._losses), dtype=np.float64)

    @property
    def _losses(self) -> Array:
        """(K,) 1 − a_k²."""
        return _lost(self.rates * self.weight_decay)

    @property
    def steps(self) -> int:
        """K."""
        return len(self.rates)

    def bounds(self, gradient_squared: ArrayLike, shares: ArrayLike | None = None) -> Array:
        """(K,) upper bounds on KL(law of θ_{k+1}‖N(0, vI)), all along: KL₊ ≤ (u/v)(KL + η²E‖g‖²/(2pτ²)).

        The share p of the noise hides the shift ηg, the rest contracts, u = a²v + pτ². p = ½ is c4 as THEORY.md has it.

        Args:
            gradient_squared: (K,) E‖g_k‖² or upper bounds on them, or one number for all.
            shares: (K,) p_k in (0, 1]; the best ones when None, which is free since the bound holds for every p. It
                gives √KL₊ ≤ a√KL + η√(E‖g‖²)/√(2v) once KL is large enough: the KL of N(0, vI) shifted that far.
        """
        squares = np.broadcast_to(np.asarray(gradient_squared, dtype=float), self.rates.shape)
        if not (np.isfinite(squares).all() and (squares >= 0).all()):
            raise InputError("gradient_squared: expected finite numbers ≥ 0")
        chosen = None if shares is None else np.broadcast_to(np.asarray(shares, dtype=float), self.rates.shape)
        found, kl = np.empty(self.steps), 0.0
        shifts = self.rates**2 * squares / self.noises**2
        for k, (lost, shift) in enumerate(zip(self._losses, shifts, strict=True)):
            share = _best_share(lost, shift, kl) if chosen is None else float(chosen[k])
            kl = (1 - lost + share * lost) * (kl + shift / (2 * share))
            found[k] = kl
        return found

    def best_shares(self, gradient_squared: ArrayLike) -> Array:
        """(K,) the p_k that `bounds` would choose for these E‖g_k‖²: data-free if they are, as with a clip."""
        squares = np.broadcast_to(np.asarray(gradient_squared, dtype=float), self.rates.shape)
        shares = np.empty(self.steps)
        kl = 0.0
        shifts = self.rates**2 * squares / self.noises**2
        for k, (lost, shift) in enumerate(zip(self._losses, shifts, strict=True)):
            shares[k] = _best_share(lost, shift, kl)
            kl = (1 - lost + shares[k] * lost) * (kl + shift / (2 * shares[k]))
        return shares

    def weights(self, shares: ArrayLike) -> Array:
        """(K,) w_k with KL ≤ Σ w_k E‖g_k‖² at the end, for shares fixed before the data: what a run adds up."""
        p = np.broadcast_to(np.asarray(shares, dtype=float), self.rates.shape)
        if not ((p > 0) & (p <= 1)).all():
            raise InputError("shares: expected numbers in (0, 1]")
        factors = 1 - (1 - p) * self._losses
        after = np.cumprod(factors[::-1])[::-1]  # contraction from step k to the end, its own included
        return np.asarray(self.rates**2 / (2 * p * self.noises**2) * after, dtype=np.float64)

    def clipped(self, clip: float) -> Complexity:
        """c4 from ‖g_k‖ ≤ clip alone: certified, and the same for all data. Tends to clip²/(2λ²v) ≈ β clip²/(2λ)."""
        check_positive(clip=clip)
        value = float(self.bounds(clip**2)[-1])
        hypotheses = f"started from its prior, decay and noise as given, ‖g‖ ≤ {clip:g} at all {self.steps} steps"
        return Complexity("c4", "chain, clipped", value, hypotheses, "certified", "THEORY.md §5(c4)")

    def path_cost(self, gradient_squared: ArrayLike) -> float:
        """E ln dQ/dP over whole paths, Σ η_k²E‖g_k‖²/(2τ_k²): what `path` pays on average."""
        return float((self.rates**2 * np.asarray(gradient_squared) / (2 * self.noises**2)).sum())


def certificate_decay(rates: ArrayLike, weight_decay: float) -> Array:
    """(K,) the λ_k of the least c4 among schedules that shrink θ by the same Π(1 − η_kλ) in all, to first order in ηλ.

    With E_k what a step's θ_k is divided by until the end, c4 (p = ½) is Σ η_k²/(2η_kλ_k E_k) up to (G²/v)(1 + O(ηλ)),
    and η_kλ_k = (E_k − E_{k+1})/E_k. Its least value at given E_0 and E_K = 1 has E_k − E_{k+1} = Cη_k, that is

        λ_k = C/(1 + C·R_k),  R_k = η_k + … + η_{K−1} the rate still to come,  C = (1/Π(1 − η_kλ) − 1)/R_0.

    Neither G nor v nor the data are in it. With H = −ln Π(1 − η_kλ), c4 becomes (H/2)²/sinh²(H/2) of what it is at
    constant λ. But so does Σ η_k/E_{k+1}, the weight with which the end remembers gradients: less is learned, too.
    Without the constraint there is no optimum: at fixed v, c4 falls in every λ_k down to 1 − η_kλ_k = 0, where all is
    forgotten. The path's own Σ η_k²G²/(2τ_k²) is least, to first order and at given Σ η_kλ_k, at constant λ_k.

    Args:
        rates: (K,) η_k > 0.
        weight_decay: the constant λ > 0 to compare with.

    Raises:
        InputError: numbers out of range, or ηλ ≥ 1.
    """
    eta = np.asarray(rates, dtype=float)
    check_positive(weight_decay=weight_decay)
    if eta.ndim != 1 or not eta.size or not (np.isfinite(eta).all() and (eta > 0).all()):
        raise InputError("rates: expected a sequence of finite learning rates > 0")
    if eta.max() * weight_decay >= 1:
        raise InputError(f"rate {eta.max():g}: expected η < 1/λ = {1 / weight_decay:g}")
    to_come = np.cumsum(eta[::-1])[::-1]
    total = -float(np.log1p(-eta * weight_decay).sum())  # H
    if total > 700:
        raise InputError(f"Σ ηλ = {total:.4g}: e^Σηλ is beyond floats, the start is long forgotten; use fewer steps")
    scale = math.expm1(total) / to_come[0]
    return np.asarray(scale / (1 + scale * to_come), dtype=np.float64)


def path(log_ratio: float, steps: int, *, moving_reference: bool = False) -> Complexity:
    """ln dQ/dP of the realised path, Σ_k [‖η_k g_k‖²/(2τ_k²) − ⟨η_k g_k, ξ_k⟩/τ_k], in the place of KL.

    With a reference that moves by h_k, g_k is the direction less h_k, and h_k a function of the path so far and of data
    that are not certified: THEORY.md §5 (c′).

    For the one θ_K that training ended at, with probability over data, batches and noise together; any start that the
    data had no part in, with or without decay, no clip and no expectation. Proof: docs/certificate-proofs.md. The
    value has a floor at 0: a path that was luckier than its prior's typical ones is charged as one that learned
    nothing.
    """
    if not math.isfinite(log_ratio):
        raise InputError(f"log_ratio={log_ratio:g}: expected a finite number")
    hypotheses = (
        f"Gaussian noise independent of state and direction at all {steps} steps, start independent of the data"
    )
    if moving_reference:
        hypotheses += ", the reference's directions functions of the path so far and of the prior's text alone"
    return Complexity("path", "path", max(log_ratio, 0.0), hypotheses, "certified", "docs/certificates.md")


def _lost(decayed: ArrayLike) -> Array:
    """1 − a² of a = 1 − x, without the cancellation that a small x = ηλ would meet."""
    x = np.asarray(decayed, dtype=np.float64)
    return np.asarray(x * (2 - x))


def _best_share(lost: float, shift: float, kl: float) -> float:
    """The p in (0, 1] with the least (a² + p(1 − a²))(KL + c/(2p)), c = η²E‖g‖²/τ²; `lost` is 1 − a²."""
    if kl * lost <= 0:
        return 1.0
    # at a² = 0 nothing of the old law is left, and any share is as good; 1e-6 keeps p positive where g = 0
    return min(1.0, max(math.sqrt((1 - lost) * shift / (2 * lost * kl)), 1e-6))
