"""What a witness claims of an orbit, held against what a replay finds: every number of it.

A claimed bound of s* comes from a third of an audit's groups, a replay's from all of them, with other probes: two
honest ones differ. A claim counts as reproduced where the replay's bound is at most twice the claimed one, and its best
estimate of s* is not above it. What is refuted again is refuted above the replay's own bound, never the claimed one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from villani.commands.audit.record import ThresholdRecord
from villani.criteria.orbits import Threshold
from villani.outwards import upper
from villani.statistics import Estimate
from villani.work.records import EstimateRecord

_FACTOR = 2.0  # between a claimed bound that was sampled and the one that is found
_EXACT = 1e-3  # of numbers that should be the same: s* is searched for to one in a thousand
_APART = 2.0  # times both half-widths of 95 %, between a claimed figure and the one that is found


@dataclass(frozen=True)
class Check:
    """One thing that was looked at, and whether it is as claimed."""

    sentence: str
    holds: bool


def scale_checks(
    claimed: Sequence[float], otherwise: Sequence[float], furthest: float
) -> tuple[list[Check], Sequence[float]]:
    """The R to walk at: those claimed if they are ascending powers of two from 2 to `furthest`, or else some others."""
    powers = all(2 <= scale <= furthest and math.frexp(scale)[0] == 0.5 for scale in claimed)
    ascending = all(a < b for a, b in pairwise(claimed))
    if claimed and powers and ascending:
        return [], list(claimed)
    words = f"The witness was not walked at powers of two that ascend from 2 to at most {furthest:g}: others are taken."
    return [Check(words, False)], list(otherwise)


def bound_checks(claimed: ThresholdRecord, replayed: Threshold) -> list[Check]:
    """The bound of s*, and the figures that it is made of."""
    again = math.isfinite(replayed.upper)
    bound = f"s* < {upper(replayed.upper, 3)} {_surety(replayed.level)}" if again else "no finite bound of s*"
    stated = "no bound" if claimed.upper is None else f"s* < {upper(claimed.upper, 3)} {_surety(claimed.level)}"
    outcome = "refuted again for every s above that" if again else "not refuted again"
    checks = [Check(f"The audit claimed {stated}; these groups give {bound}: criterion (iv) is {outcome}.", again)]
    if again:
        checks += _bound(claimed, replayed)
    wrong = _wrong_figures(claimed, replayed)
    if wrong:
        checks.append(Check(f"Of the figures behind the claim {', '.join(wrong)}.", False))
    return checks


def _surety(level: float) -> str:
    return "up to rounding" if level == 1 else f"at confidence {level:.0%}"


def _bound(claimed: ThresholdRecord, replayed: Threshold) -> list[Check]:
    """Whether the claimed bound, too, is borne out."""
    if claimed.upper is None:
        return [Check("The witness claims no bound.", False)]
    if claimed.level > replayed.level:
        return [Check(f"The claim is at confidence {claimed.level:.0%}, and these groups reach less.", False)]
    slack = 1 + _EXACT if replayed.level == 1 else _FACTOR
    if replayed.upper > slack * claimed.upper or replayed.value > (1 + _EXACT) * claimed.upper:
        here = f"these groups put s* at {replayed.value:.3g}, below {upper(replayed.upper, 3)}"
        return [Check(f"The claimed bound is not borne out: {here}.", False)]
    return []


def _wrong_figures(claimed: ThresholdRecord, replayed: Threshold) -> list[str]:
    gradient, trace = claimed.gradient_norm_squared, claimed.laplacian
    implied = (claimed.norm_squared + max(gradient.value, 0.0)) / trace.value if trace.value > 0 else math.inf
    stated = math.inf if claimed.value is None else claimed.value
    wrong = []
    if not _close(stated, implied):
        wrong.append(f"s* = {stated:.3g} does not follow from the others")
    if claimed.upper is not None and claimed.upper < stated * (1 - _EXACT):
        wrong.append("the bound lies below the estimate")
    if not _close(claimed.norm_squared, replayed.norm_squared):
        wrong.append(f"λ²‖A‖² is {replayed.norm_squared:.3g} and not {claimed.norm_squared:.3g}")
    if not _agree(gradient, replayed.gradient_norm_squared):
        wrong.append(f"‖∇_B L‖² is {replayed.gradient_norm_squared.value:.3g} and not {gradient.value:.3g}")
    if not _agree(trace, replayed.laplacian):
        wrong.append(f"Δ_B L is {replayed.laplacian.value:.3g} and not {trace.value:.3g}")
    return wrong


def _close(a: float, b: float) -> bool:
    return a == b or math.isclose(a, b, rel_tol=_EXACT)


def _agree(claimed: EstimateRecord, replayed: Estimate) -> bool:
    widths = [(high - low) / 2 for low, high in (claimed.interval, replayed.interval())]
    return abs(claimed.value - replayed.value) <= _APART * sum(widths) or _close(claimed.value, replayed.value)
