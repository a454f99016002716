"""Means over training seeds and units of text, and their changes from one λ to another, in pairs.

Losses are compared on the same held-out units and at the same training seeds, so that what all λ share cancels. A
standard error covers both, seeds and units: σ² ≤ s²_seeds/K + s²_units/U, which counts what is left of the two twice,
and is therefore a little too large. Each of the two variances enters an interval with the quantile of its own degrees
of freedom, so that levels hold with two seeds, too (`half_width`). No torch.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import chdtri, ndtr, stdtrit

from villani.results import Content
from villani.statistics import Array, Estimate, Limits

LEVEL, POWER = 0.95, 0.8
_QUANTILES = 200  # of each of two laws


def half_width(of_seeds: float, of_units: float, seeds: int, units: int, level: float) -> float:
    """√(t²_{K−1} s²_seeds/K + t²_{U−1} s²_units/U), of a two-sided interval at `level` (Banerjee, Sankhyā 22, 1960).

    Of normal noise it covers with at least `level`, whatever the shares of the two: given both s², a normal error is
    within h with probability G(h²/σ²), G the law of χ²₁, which is concave, so that with shares ρ and 1 − ρ of σ²

        E G(ρ t₁² s₁²/σ₁² + (1 − ρ) t₂² s₂²/σ₂²) ≥ ρ E G(t₁² s₁²/σ₁²) + (1 − ρ) E G(t₂² s₂²/σ₂²) = level.

    Degrees of freedom estimated from the two s² (Satterthwaite) have no such bound: where few seeds happen to agree
    they say that seeds do not matter.

    Args:
        of_seeds: s²_seeds/K; 0 with one seed.
        of_units: s²_units/U.
        seeds: K.
        units: U.
        level: in [0, 1).
    """
    of_all = float(stdtrit(units - 1, 0.5 + level / 2)) ** 2 * of_units
    if seeds > 1:
        of_all += float(stdtrit(seeds - 1, 0.5 + level / 2)) ** 2 * of_seeds
    return math.sqrt(of_all)


def detectable(
    of_seeds: float, of_units: float, seeds: int, units: int, *, level: float = LEVEL, power: float = POWER
) -> float:
    """The least |δ| that `half_width` tells from 0 with probability `power`, if errors are what was seen.

    An estimate N(δ, of_seeds + of_units) is held against h, whose two variances have χ² laws of K − 1 and U − 1 degrees
    of freedom about these: P(|estimate| > h) is averaged over quantiles of both, and solved for δ. What was seen stands
    in for the true errors, so that with few seeds this is a rough number.

    Args:
        of_seeds, of_units, seeds, units: as of `half_width`.
        level: of the interval.
        power: in (0, 1).

    Returns:
        δ > 0; 0 where there is no error at all.
    """
    sigma = math.sqrt(of_units + (of_seeds if seeds > 1 else 0.0))
    if sigma == 0:
        return 0.0
    at = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    share = np.zeros((2, _QUANTILES))
    for row, variance, count in zip(share, (of_seeds, of_units), (seeds, units), strict=True):
        if count > 1 and variance > 0:
            quantile = float(stdtrit(count - 1, 0.5 + level / 2))
            row[:] = quantile**2 * variance * chdtri(count - 1, 1 - at) / (count - 1)
    half = np.sqrt(share[0][:, None] + share[1][None, :]) / sigma

    def lacking(shift: float) -> float:
        return float((ndtr(shift - half) + ndtr(-shift - half)).mean()) - power

    highest = float(half.max()) + 9.0
    return sigma * float(brentq(lacking, 0.0, highest)) if lacking(0.0) < 0 else 0.0


@dataclass(frozen=True, eq=False, repr=False)
class PairedLimits(Content, Limits):
    """Of a mean over seeds and units, by `half_width`, whose arguments these are."""

    value: float
    of_seeds: float
    of_units: float
    seeds: int
    units: int

    def __call__(self, level: float) -> tuple[float, float]:
        """Two-sided limits."""
        half = half_width(self.of_seeds, self.of_units, self.seeds, self.units, level)
        return self.value - half, self.value + half


def paired(sums: Array, counts: Array) -> Estimate:
    """Mean per token of (K, U) sums, with the error over seeds and units; its interval is of `half_width`.

    With one seed the error is over units alone: it is about the models that were trained, not about training.
    """
    seeds, units = sums.shape
    tokens = float(counts.sum())
    each = sums.sum(axis=1) / tokens  # (K,)
    value = float(each.mean())
    residual = sums.mean(axis=0) - value * counts  # (U,) what a unit moves the ratio by, times tokens
    of_units = float((residual**2).sum()) * units / (units - 1) / tokens**2
    of_seeds = float(each.var(ddof=1)) / seeds if seeds > 1 else 0.0
    limits = PairedLimits(value, of_seeds, of_units, seeds, units)
    freedom = float(min(seeds, units) - 1 if of_seeds else units - 1)  # the lesser: safe beside the standard error
    sem = math.sqrt(of_units + of_seeds)
    return Estimate(value, sem, seeds * units, "statistical", freedom, limits=limits)


@dataclass(frozen=True)
class Change:
    """A change held against 0, as one of several that are told at once.

    Attributes:
        estimate: of it.
        level: of the interval that it is held against 0 by.
        detectable: the least |change| that would have been beyond that interval with probability `POWER`.
    """

    estimate: Estimate
    level: float
    detectable: float

    @classmethod
    def of(cls, estimate: Estimate, comparisons: int) -> "Change":
        """Of so many, any of which is told apart from 0 wrongly with probability 1 − `LEVEL` at most (Bonferroni)."""
        level = 1 - (1 - LEVEL) / max(comparisons, 1)
        limits = estimate.limits
        errors = (
            (limits.of_seeds, limits.of_units, limits.seeds, limits.units)
            if isinstance(limits, PairedLimits) else (estimate.sem**2, 0.0, estimate.n, 2)
        )  # fmt: skip
        return cls(estimate, level, detectable(*errors, level=level))

    @property
    def interval(self) -> tuple[float, float]:
        """At `level`."""
        return self.estimate.interval(self.level)

    @property
    def resolved(self) -> int:
        """−1 or 1, its sign where it is beyond that interval; else 0."""
        low, high = self.interval
        return int(low > 0) - int(high < 0)
