"""All constants that apply to one law, ranked; which are refuted; how far apart they are."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from villani import outwards
from villani.errors import InputError
from villani.outwards import lower_power, upper, upper_power
from villani.theory.constants import (
    Constant,
    Smoothing,
    bakry_emery,
    lipschitz,
    preprint,
    smoothed_cross_entropy,
)

_ROUNDING = 1e-9  # relative: closer constants do not contradict each other


@dataclass(frozen=True)
class Comparison:
    """Constants of one law.

    Attributes:
        constants: upper bounds in increasing order, then lower bounds in decreasing order; refuted ones say so.
        log_looseness: ln of (best upper bound that may be used) / (largest lower bound on the same constant), if both
            are known. "May be used" is certified, and failing that estimated; as-claimed and refuted ones never are.
    """

    constants: tuple[Constant, ...]
    log_looseness: float | None

    @property
    def best(self) -> Constant | None:
        """The least upper bound that may be used: certified if there is one, else estimated."""
        return _best(self.constants)

    @property
    def floor(self) -> Constant | None:
        """The largest lower bound."""
        return next((constant for constant in self.constants if constant.direction == "lower"), None)

    @property
    def refuted(self) -> tuple[Constant, ...]:
        """Upper bounds that a lower bound contradicts."""
        return tuple(constant for constant in self.constants if constant.status == "refuted")


def compare(constants: Iterable[Constant]) -> Comparison:
    """Rank constants of one and the same law.

    An upper bound is refuted by a larger lower bound on the same constant, or by one on Poincaré if it bounds
    log-Sobolev (C_P ≤ C_LS). A lower bound that is only estimated refutes nothing. If something certified is refuted,
    an input was wrong: that is said, not hidden.
    """
    constants = list(constants)
    lower = sorted((c for c in constants if c.direction == "lower"), key=lambda c: -c.log_value)
    solid = [c for c in lower if c.status in ("certified", "statistical")]
    upper = []
    for constant in sorted((c for c in constants if c.direction == "upper"), key=lambda c: c.log_value):
        against = [c for c in solid if c.kind == constant.kind or c.kind == "Poincaré"]
        worst = max((c.log_value for c in against), default=-math.inf)
        refuted = worst > constant.log_value + _ROUNDING
        upper.append(replace(constant, status="refuted") if refuted else constant)
    best = _best(upper)
    below = [c for c in lower if best and (c.kind == best.kind or c.kind == "Poincaré")]
    looseness = best.log_value - below[0].log_value if best and below else None
    return Comparison((*upper, *lower), looseness)


def _best(constants: Sequence[Constant]) -> Constant | None:
    upper = [c for c in constants if c.direction == "upper"]
    for status in ("certified", "estimated"):
        usable = [c for c in upper if c.status == status]
        if usable:
            return min(usable, key=lambda c: c.log_value)
    return None


@dataclass(frozen=True)
class ModelConstants:
    """What can be said of a model's Gibbs law, and the sentence that says it."""

    comparison: Comparison
    smoothing: Smoothing
    visible: float | None
    sentence: str


def model_constants(
    dimension: int, weight_decay: float, temperature: float, vocabulary: int, alpha: float = 0.1, *,
    curvature: float | None = None, gradient_norms: Sequence[float] = (), lower: Sequence[Constant] = (),
    time: float | None = None,
) -> ModelConstants:  # fmt: skip
    """As-claimed, certified and estimated constants for a model with cross-entropy loss and decay on every parameter.

    All are about one law, that of the *smoothed* loss: curvature, gradients and samples have to be taken of it too.

    Args:
        dimension: d.
        weight_decay: λ > 0.
        temperature: s > 0; β = 2/s.
        vocabulary: V.
        alpha: prediction smoothing of the certified constant.
        curvature: κ with ∇²L ⪰ −κI at the points looked at (Lanczos); makes C2 "estimated", where κ < λ.
        gradient_norms: ‖∇L‖ at sampled points; their maximum makes C4 "estimated".
        lower: lower bounds from samples (C9).
        time: length of a training run in SDE time, Σ learning rates. Relaxation takes βC, so that the run can have seen
            constants up to time/β and no larger.
    """
    if not 0 < temperature < math.inf:
        raise InputError(f"temperature={temperature:g}: expected a finite number > 0")
    if dimension < 1:
        raise InputError(f"dimension={dimension}: expected at least 1")
    if time is not None and not 0 < time < math.inf:
        raise InputError(f"time={time:g}: expected a finite number > 0, the sum of learning rates")
    if curvature is not None and not math.isfinite(curvature):
        raise InputError(f"curvature={curvature:g}: expected a finite number κ with ∇²L ⪰ −κI")
    beta = 2 / temperature
    smoothing = Smoothing(vocabulary, alpha)
    claimed = preprint(weight_decay, beta, dimension)
    certified = smoothed_cross_entropy(weight_decay, beta, smoothing)
    found = [claimed, certified, *lower]
    if curvature is not None and curvature < weight_decay:
        found.append(bakry_emery(weight_decay, beta, curvature, proved=False))
    if gradient_norms:
        found.append(lipschitz(weight_decay, beta, max(gradient_norms), proved=False))
    comparison = compare(found)
    claimed = next(c for c in comparison.constants if c.id == "C8")
    visible = None if time is None else time / beta
    apart = certified.log10 - claimed.log10
    words = (
        f"At λ = {weight_decay:g}, s = {temperature:g} and d = {dimension:,} the preprint claims "
        f"C_LS ≤ {powers(claimed)} ({claimed.status}). Certified is C_LS ≤ {powers(certified)}, for predictions "
        f"smoothed with α = {alpha:g} at a cost of at most {upper(smoothing.cost, 3)} nats a token: {abs(apart):,.1f} "
        f"orders of magnitude {'above' if apart > 0 else 'below'} the claim. The decay alone, without a loss, has "
        f"1/(βλ) = {1 / (beta * weight_decay):.3g}."
    )
    if visible is not None:
        words += (
            f" A run whose learning rates add up to {time:g} can see constants up to {outwards.lower(visible, 3)}: "
            f"{_beyond(claimed, visible)} "
            f"the claimed one and {_beyond(certified, visible)} the certified one."
        )
    if curvature is not None and curvature >= weight_decay:
        words += f" The curvature that was seen, κ = {curvature:g} ≥ λ, rules C2 out."
    if comparison.floor:
        words += f" Samples show at least {powers(comparison.floor)}"
        if comparison.best and comparison.log_looseness is not None:
            orders = comparison.log_looseness / math.log(10)
            words += f", so that {comparison.best.id} is loose by at most {upper(orders, places=1)} orders of magnitude"
        words += "."
    if any(constant.id == "C3" for constant in comparison.refuted):
        words += " They contradict the certified constant, so that they are wrong, or of another law."
    return ModelConstants(comparison, smoothing, visible, words)


def powers(constant: Constant) -> str:
    """The value for people, rounded outwards: 0.12, 3010, 4.53·10⁶, 10^1,234.5 beyond floats, or 10^(7.17·10⁹)."""
    return upper_power(constant.log10, 3) if constant.direction == "upper" else lower_power(constant.log10, 3)


def _beyond(constant: Constant, visible: float) -> str:
    orders = constant.log10 - math.log10(visible)
    return f"{abs(orders):,.1f} orders of magnitude {'short of' if orders > 0 else 'beyond'}"
