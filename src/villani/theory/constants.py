"""Log-Sobolev and Poincaré constants of the Gibbs law exp(−βF), F = L + (λ/2)‖θ‖²: C1–C10 of THEORY.md §3.

Each function takes numbers that were proved or measured and returns a `Constant`: what it bounds, from which side,
under which hypotheses, and how it may be used; `comparison.py` ranks them. Values are kept as logarithms, since e^{βω}
leaves the range of floats long before it leaves the range of honest statements.

Normalisation (§1): Ent(f²) ≤ 2 C_LS E|∇f|², Var f ≤ C_P E|∇f|², C_P ≤ C_LS; the pure quadratic has 1/(βλ).
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from villani.errors import InputError, check_nonnegative
from villani.outwards import lower, lower_power, upper, upper_power
from villani.results import Result
from villani.statistics import Status

_LOG_ROUNDING = 1e-13  # relative, of a logarithm that a dozen operations give
Direction = Literal["upper", "lower"]
Kind = Literal["log-Sobolev", "Poincaré"]


@dataclass(frozen=True, eq=False, repr=False)
class Constant(Result):
    """One bound on a constant of the Gibbs law.

    Attributes:
        id: C1 … C10 of THEORY.md §3; "truth" for a computed value.
        name: in words.
        log_value: natural logarithm of the bound.
        direction: upper | lower.
        kind: which constant it bounds. An upper bound on log-Sobolev is one on Poincaré too; a lower bound on Poincaré
            is one on log-Sobolev.
        hypotheses: what has to hold globally.
        status: certified | statistical | estimated | as-claimed | refuted.
        source: where the formula comes from.
    """

    id: str
    name: str
    log_value: float
    direction: Direction
    kind: Kind
    hypotheses: str
    status: Status
    source: str

    def __repr__(self) -> str:
        return f"Constant({self})"

    def __str__(self) -> str:
        sign = "=" if self.id == "truth" else "≤" if self.direction == "upper" else "≥"
        size = upper_power(self.log10, 3) if self.direction == "upper" else lower_power(self.log10, 3)
        symbol = "C_LS" if self.kind == "log-Sobolev" else "C_P"
        return f"{self.id} {self.name}: {symbol} {sign} {size}, {self.status}"

    @property
    def value(self) -> float:
        """The bound; inf where a float cannot hold it."""
        return math.exp(self.log_value) if self.log_value < 709 else math.inf

    @property
    def log10(self) -> float:
        """Orders of magnitude."""
        return self.log_value / math.log(10)


@dataclass(frozen=True)
class Smoothing:
    """Prediction smoothing p̃ = (1 − α)p + α/V (THEORY.md §3, C3 and §5(a)), in nats per token.

    Attributes:
        vocabulary: V ≥ 2.
        alpha: α in (0, 1).
    """

    vocabulary: int
    alpha: float

    def __post_init__(self) -> None:
        if self.vocabulary < 2:
            raise InputError(f"vocabulary={self.vocabulary}: expected at least 2")
        if not 0 < self.alpha < 1:
            raise InputError(f"alpha={self.alpha:g}: expected a number between 0 and 1")

    @property
    def lowest(self) -> float:
        """Least loss, −ln(1 − α + α/V): certainty of the right token."""
        return -math.log1p(-self.alpha + self.alpha / self.vocabulary)

    @property
    def highest(self) -> float:
        """Largest loss, ln(V/α): no probability on the right token."""
        return math.log(self.vocabulary / self.alpha)

    @property
    def oscillation(self) -> float:
        """ω = highest − lowest = ln(1 + (1 − α)V/α)."""
        return math.log1p((1 - self.alpha) * self.vocabulary / self.alpha)

    @property
    def cost(self) -> float:
        """The most that smoothing adds to any token's loss: `lowest`, at p = 1. It lowers the loss where p < 1/V."""
        return self.lowest

    def loss(self, probability: float) -> float:
        """Smoothed loss of a token that had the given probability."""
        return -math.log((1 - self.alpha) * probability + self.alpha / self.vocabulary)


def exact_quadratic(weight_decay: float, beta: float) -> Constant:
    """C1: L constant; the law is Gaussian and C_LS = C_P = 1/(βλ), by an equality."""
    return _upper("C1", "exact, no loss", -_log_gaussian(weight_decay, beta), "L is constant", True, "Gross 1975")


def bakry_emery(weight_decay: float, beta: float, curvature: float, proved: bool) -> Constant:
    """C2: ∇²L ⪰ −κI everywhere with κ < λ; C_LS ≤ 1/(β(λ − κ)). κ < 0 is allowed: a strongly convex L.

    Raises:
        InputError: κ ≥ λ, where the theorem says nothing.
    """
    _log_gaussian(weight_decay, beta)
    if not curvature < weight_decay:
        raise InputError(f"curvature={curvature:g}: C2 needs κ < λ = {weight_decay:g}; use C3 or C7")
    value = -math.log(beta * (weight_decay - curvature))
    return _upper("C2", "Bakry–Émery", value, f"∇²L ⪰ {lower(-curvature, 4)}·I everywhere", proved, "Bakry–Émery 1985")


def holley_stroock(weight_decay: float, beta: float, oscillation: float, proved: bool) -> Constant:
    """C3: sup L − inf L ≤ ω, no smoothness needed; C_LS ≤ e^{βω}/(βλ)."""
    check_nonnegative(oscillation=oscillation)
    value = beta * oscillation - _log_gaussian(weight_decay, beta)
    return _upper("C3", "Holley–Stroock", value, f"sup L − inf L ≤ {upper(oscillation)}", proved, "Holley–Stroock 1987")


def smoothed_cross_entropy(weight_decay: float, beta: float, smoothing: Smoothing) -> Constant:
    """C3 for smoothed predictions: C_LS ≤ (1 + (1 − α)V/α)^β/(βλ), for any architecture, λ > 0 and s > 0.

    It holds for the Gibbs law of the *smoothed* loss with decay on every parameter, and costs at most −ln(1 − α + α/V)
    nats a token. It says nothing about the unsmoothed loss, for which C_LS < ∞ is open.
    """
    constant = holley_stroock(weight_decay, beta, smoothing.oscillation, proved=True)
    hypotheses = (
        f"predictions smoothed with α = {smoothing.alpha:g} over V = {smoothing.vocabulary} "
        f"(at most +{upper(smoothing.cost, 4)} nats a token); every parameter decays"
    )
    return replace(constant, name="smoothed cross-entropy", hypotheses=hypotheses, source="THEORY.md §3, C3")


def lipschitz_growth(ell: float) -> float:
    """Λ(ℓ) = ℓ²/4 + (ℓ/2)√(1 + ℓ²/4) + asinh(ℓ/2), THEORY.md §3, C4."""
    half = ell / 2
    return half**2 + half * math.sqrt(1 + half**2) + math.asinh(half)


def lipschitz(weight_decay: float, beta: float, gradient_bound: float, proved: bool) -> Constant:
    """C4: ‖∇L‖ ≤ G everywhere; C_LS ≤ e^{2Λ(G√(β/λ))}/(βλ). A maximum over samples is no proof."""
    check_nonnegative(gradient_bound=gradient_bound)
    prior = _log_gaussian(weight_decay, beta)
    value = 2 * lipschitz_growth(gradient_bound * math.sqrt(beta / weight_decay)) - prior
    return _upper(
        "C4", "Lipschitz loss", value, f"‖∇L‖ ≤ {upper(gradient_bound, 4)} everywhere", proved, "THEORY.md §3, C4"
    )


def local_poincare(weight_decay: float, beta: float, oscillation: float) -> float:
    """ln κ_R ≤ β osc_{B_R} L − ln(βλ): Bakry–Émery on a ball, then Holley–Stroock (natural logarithm)."""
    check_nonnegative(oscillation=oscillation)
    return beta * oscillation - _log_gaussian(weight_decay, beta)


def lyapunov_poincare(
    weight_decay: float, beta: float, outside: float, inside: float, oscillation: float, proved: bool
) -> Constant:  # fmt: skip
    """C5: Ψ_s ≥ ψ₀ > 0 off a ball B_R and Ψ_s ≥ −ψ₋ on it; C_P ≤ (s/ψ₀)[1 + (ψ₀ + ψ₋) κ_R/s].

    Args:
        outside: ψ₀.
        inside: ψ₋ ≥ 0.
        oscillation: of L on B_R.

    Raises:
        InputError: ψ₀ ≤ 0: Ψ_s is not positive outside the ball, and the theorem says nothing.
    """
    if not outside > 0:
        raise InputError(f"outside={outside:g}: C5 needs Ψ_s ≥ ψ₀ > 0 outside a ball")
    check_nonnegative(inside=inside)
    s = 2 / beta
    local = local_poincare(weight_decay, beta, oscillation)
    value = math.log(s / outside) + _log_sum(0.0, math.log((outside + inside) / s) + local)
    hypotheses = (
        f"Ψ_s ≥ {lower(outside, 4)} off a ball, ≥ {lower(-inside, 4)} on it, where L changes by at most "
        f"{upper(oscillation, 4)}"
    )
    return _upper("C5", "Lyapunov, from Ψ", value, hypotheses, proved, "THEORY.md §3, C5", "Poincaré")


def lyapunov_log_sobolev(
    beta: float, growth: float, offset: float, curvature: float, poincare: Constant, proved: bool
) -> Constant:
    """C6: from Ψ_s ≥ κ‖θ‖² − b₀, ∇²F ⪰ −k and an upper bound on C_P.

    With c = κ/s, b = b₀/s, K = 2k/s: C_LS ≤ 1/τ + (τ + K)/(2c) + [1 + (τ + K) b/c] C_P for all τ > 0; we use the best.

    Args:
        beta: β = 2/s.
        growth: κ > 0.
        offset: b₀ ≥ 0.
        curvature: k ≥ 0.
        poincare: an upper bound on C_P, whose own status limits this one's.
        proved: whether the other inputs are.
    """
    if not growth > 0:
        raise InputError(f"growth={growth:g}: C6 needs Ψ_s ≥ κ‖θ‖² − b₀ with κ > 0")
    check_nonnegative(offset=offset)
    check_nonnegative(curvature=curvature)
    s = 2 / beta
    c, b, k = growth / s, offset / s, 2 * curvature / s
    # 1/τ + τ·A + B is least at τ = A^{−1/2}
    log_rest = poincare.log_value
    log_slope = _log_sum(-math.log(2 * c), math.log(b / c) + log_rest if b > 0 else -math.inf)
    log_fixed = _log_sum(
        _log_sum(math.log(k / (2 * c)) if k > 0 else -math.inf, log_rest),
        math.log(k * b / c) + log_rest if k * b > 0 else -math.inf,
    )
    value = _log_sum(math.log(2) + log_slope / 2, log_fixed)
    hypotheses = (
        f"Ψ_s ≥ {lower(growth, 4)}‖θ‖² − {upper(offset, 4)}, ∇²F ⪰ {lower(-curvature, 4)}·I, and the C_P of "
        f"{poincare.id}"
    )
    usable = proved and poincare.status == "certified"
    return _upper("C6", "Lyapunov, log-Sobolev", value, hypotheses, usable, "THEORY.md §3, C6")


def dissipative(
    weight_decay: float, beta: float, dimension: int, growth: float, offset: float, oscillation: float, proved: bool
) -> Constant:  # fmt: skip
    """C7: ⟨θ, ∇F⟩ ≥ m‖θ‖² − b; C_P ≤ 2/(βm(d + βb)) + 2κ_R with R² = 4(d + βb)/(βm).

    Args:
        growth: m > 0; λ for homogeneous cross-entropy of degree K.
        offset: b ≥ 0; K ln V there.
        oscillation: of L on the ball of radius R, from `dissipative_radius`.
    """
    if not growth > 0:
        raise InputError(f"growth={growth:g}: C7 needs ⟨θ, ∇F⟩ ≥ m‖θ‖² − b with m > 0")
    check_nonnegative(offset=offset)
    local = local_poincare(weight_decay, beta, oscillation)
    value = _log_sum(math.log(2 / (beta * growth * (dimension + beta * offset))), math.log(2) + local)
    radius = dissipative_radius(beta, dimension, growth, offset)
    hypotheses = (
        f"⟨θ, ∇F⟩ ≥ {lower(growth, 4)}‖θ‖² − {upper(offset, 4)}; L changes by at most {upper(oscillation, 4)} within "
        f"‖θ‖ ≤ {upper(radius, 4)}"
    )
    return _upper("C7", "dissipative", value, hypotheses, proved, "THEORY.md §3, C7", "Poincaré")


def dissipative_radius(beta: float, dimension: int, growth: float, offset: float) -> float:
    """R of C7."""
    return math.sqrt(4 * (dimension + beta * offset) / (beta * growth))


def homogeneous_head(
    weight_decay: float, beta: float, *, dimension: int, classes: int, degree: int, slope: float, hypotheses: str,
    proved: bool = True,
) -> Constant:  # fmt: skip
    """C10: raw cross-entropy of logits that a block φ of θ, decayed and used nowhere else, makes of bounded features.

    Logits have degree K in φ ∈ R^{d_φ}, and no two differ by more than `slope`·‖φ‖^K, whatever the rest of θ. With
    A = d_φ + Kβ ln V, R² = 4A/(βλ), M = slope·R^K and ω = ln(1 + (V−1)e^M) − ln(1 + (V−1)e^{−M}):

        C_P ≤ 2/(βλA) + (2/(βλ)) e^{βω}.

    ⟨φ, ∇_φL⟩ = K·E[ℓ − H(p)] ≥ −K ln V makes e^{βλ‖φ‖²/4} a Lyapunov function; on the slab ‖φ‖ ≤ R, which is convex,
    L changes by at most ω. Nothing else of the network enters. It bounds no log-Sobolev constant, so that nothing about
    KL follows, and its size is no statement about any run.

    Args:
        weight_decay: λ, on every coordinate of θ.
        beta: β.
        dimension: d_φ.
        classes: V ≥ 2.
        degree: K.
        slope: as above.
        hypotheses: what was read off, in words.
        proved: whether it was.

    Raises:
        InputError: a number outside its range, or a bound whose logarithm is beyond floats.
    """
    prior = _log_gaussian(weight_decay, beta)
    if dimension < 1 or classes < 2 or degree < 1:
        raise InputError(f"dimension={dimension}, classes={classes}, degree={degree}: expected at least 1, 2 and 1")
    check_nonnegative(slope=slope)
    log_classes = math.log(classes)
    weight = dimension + degree * beta * log_classes  # A
    try:
        difference = slope * math.exp(degree / 2 * (math.log(4 * weight) - prior))  # M
    except OverflowError:
        difference = math.inf
    others = math.log(classes - 1)
    oscillation = _softplus(others + difference) - _softplus(others - difference)
    value = _log_sum(math.log(2 / weight) - prior, math.log(2) - prior + beta * oscillation)
    value += _LOG_ROUNDING * (1 + abs(prior) + beta * (difference + log_classes))  # upwards
    if not math.isfinite(value):
        raise InputError(f"weight_decay={weight_decay:g}, beta={beta:g}: even the logarithm of C10 is beyond floats")
    return _upper("C10", "bounded features, untied head", value, hypotheses, proved, "THEORY.md §3, C10", "Poincaré")


def preprint(weight_decay: float, beta: float, dimension: int) -> Constant:
    """C8: the preprint's 1/λ + d/λ², read at β = 1, that is with βλ for λ. Never certified; false in general (§2.3)."""
    scaled = _log_gaussian(weight_decay, beta)
    value = _log_sum(-scaled, math.log(dimension) - 2 * scaled)
    return Constant(
        "C8", "preprint", value, "upper", "log-Sobolev", "conditions (i)–(iv) of the preprint", "as-claimed",
        "arXiv 2605.06599, abstract",
    )  # fmt: skip


def variance_quotient(variance: float, energy: float, status: Status, what: str) -> Constant:
    """C9: C_P ≥ Var f / E‖∇f‖² for any f; the best f = u·θ gives the largest eigenvalue of Cov θ.

    Args:
        variance: Var f; pass a lower confidence limit with status "statistical".
        energy: E‖∇f‖²; 1 for u·θ with a unit direction u.
        status: certified (computed), statistical or estimated.
        what: f, in words.
    """
    if not (variance > 0 and energy > 0):
        raise InputError(f"variance={variance:g}, energy={energy:g}: C9 needs both to be positive")
    value = math.log(variance / energy)
    return Constant("C9", f"variance of {what}", value, "lower", "Poincaré", "none", status, "definition of C_P")


def _upper(
    id: str, name: str, log_value: float, hypotheses: str, proved: bool, source: str, kind: Kind = "log-Sobolev"
) -> Constant:
    status: Status = "certified" if proved else "estimated"
    return Constant(id, name, log_value, "upper", kind, hypotheses, status, source)


def _log_gaussian(weight_decay: float, beta: float) -> float:
    """ln(βλ), after checking both."""
    for name, value in (("weight_decay", weight_decay), ("beta", beta)):
        if not 0 < value < math.inf:
            raise InputError(f"{name}={value:g}: the constants of §3 need a finite number > 0")
    return math.log(beta) + math.log(weight_decay)


def _softplus(x: float) -> float:
    """ln(1 + e^x)."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _log_sum(left: float, right: float) -> float:
    """ln(e^left + e^right)."""
    top, rest = max(left, right), min(left, right)
    return top if rest == -math.inf else top + math.log1p(math.exp(rest - top))
