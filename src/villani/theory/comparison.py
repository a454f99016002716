"""All constants that apply to one law, ranked; which are refuted; how far apart they are."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from villani import outwards
from villani.errors import InputError
from villani.outwards import lower_power, upper, upper_power
from villani.results import Result
from villani.theory.constants import (
    Constant,
    Smoothing,
    bakry_emery,
    lipschitz,
    preprint,
    smoothed_cross_entropy,
)

_SOLID = ("certified", "statistical")
_ROUNDING = 1e-9  # relative: closer constants do not contradict each other


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Result):
    """Constants of one law.

    Attributes:
        constants: upper bounds in increasing order, then lower bounds in decreasing order; a refuted claim says so.
        log_looseness: ln of (best upper bound that may be used) / (largest lower bound on the same constant), if both
            are known. "May be used" is certified, and failing that estimated; as-claimed and refuted ones never are.
        failed: bounds of theorems that a lower bound contradicts, so that their hypotheses fail; not among `constants`.
    """

    constants: tuple[Constant, ...]
    log_looseness: float | None
    failed: tuple[Constant, ...] = ()

    def __repr__(self) -> str:
        shown = "\n           ".join(map(str, self.constants))
        return f"Comparison({shown})"

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
        """Claims that a lower bound contradicts."""
        return tuple(constant for constant in self.constants if constant.status == "refuted")


def compare(constants: Iterable[Constant]) -> Comparison:
    """Rank constants of one and the same law.

    An upper bound is contradicted by a larger lower bound on the same constant, or by one on Poincaré if it bounds
    log-Sobolev (C_P ≤ C_LS). A claim (C8) is then refuted, if the lower bound is certified or statistical; one that
    is only estimated refutes nothing. A theorem is never refuted: its hypothesis fails, or the lower bound is wrong;
    of two estimates that contradict each other the hypothesis, which a search may have missed, is said to fail.
    """
    constants = list(constants)
    lower = sorted((c for c in constants if c.direction == "lower"), key=lambda c: -c.log_value)
    upper, failed = [], []
    for constant in sorted((c for c in constants if c.direction == "upper"), key=lambda c: c.log_value):
        claim = constant.id == "C8"
        against = [c for c in lower if contradicts(c, constant) and (not claim or c.status in _SOLID)]
        if not against:
            upper.append(constant)
        elif claim:
            upper.append(replace(constant, status="refuted"))
        elif constant.status == "certified" and all(c.status == "estimated" for c in against):
            upper.append(constant)  # the estimate is what is wrong
        else:
            failed.append(constant)
    best = _best(upper)
    below = [c for c in lower if best and (c.kind == best.kind or c.kind == "Poincaré")]
    looseness = best.log_value - below[0].log_value if best and below else None
    return Comparison((*upper, *lower), looseness, tuple(failed))


def contradicts(lower: Constant, upper: Constant) -> bool:
    """Whether a lower bound lies above an upper bound on the same constant, or on a larger one."""
    return lower.kind in (upper.kind, "Poincaré") and lower.log_value > upper.log_value + _ROUNDING


def _best(constants: Sequence[Constant]) -> Constant | None:
    upper = [c for c in constants if c.direction == "upper"]
    for status in ("certified", "estimated"):
        usable = [c for c in upper if c.status == status]
        if usable:
            return min(usable, key=lambda c: c.log_value)
    return None


@dataclass(frozen=True, eq=False, repr=False)
class ModelConstants(Result):
    """What can be said of a model's Gibbs law, and the sentence that says it.

    Attributes:
        comparison: the constants.
        smoothing: of the certified one.
        visible: the largest constant that a run of length `time` can have seen; None without one.
        sentence: in words.
        dimension: d.
        weight_decay: λ.
        temperature: s.
        time: length of a run, the sum of its learning rates, if one was given.
    """

    comparison: Comparison
    smoothing: Smoothing
    visible: float | None
    sentence: str
    dimension: int
    weight_decay: float
    temperature: float
    time: float | None

    def __repr__(self) -> str:
        return f"ModelConstants({self.sentence})"


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
    # samples above a theorem whose hypothesis is proved are wrong, or of another law: they refute nothing
    wrong = [c for c in lower if contradicts(c, certified)]
    comparison = compare([c for c in found if c not in wrong])
    comparison = replace(comparison, constants=(*comparison.constants, *wrong))
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
    if wrong:
        words += (
            f" Samples of {powers(max(wrong, key=lambda c: c.log_value))} contradict the certified constant, whose "
            "hypothesis is proved, so that they are wrong, or of another law: they refute nothing."
        )
    for constant in comparison.failed:
        words += f" They show that the hypothesis of {constant.id} fails ({constant.hypotheses})."
    return ModelConstants(
        comparison, smoothing, visible, words, int(dimension), float(weight_decay), float(temperature), time
    )


def powers(constant: Constant) -> str:
    """The value for people, rounded outwards: 0.12, 3010, 4.53·10⁶, 10^1,234.5 beyond floats, or 10^(7.17·10⁹)."""
    return upper_power(constant.log10, 3) if constant.direction == "upper" else lower_power(constant.log10, 3)


def _beyond(constant: Constant, visible: float) -> str:
    orders = constant.log10 - math.log10(visible)
    return f"{abs(orders):,.1f} orders of magnitude {'short of' if orders > 0 else 'beyond'}"
