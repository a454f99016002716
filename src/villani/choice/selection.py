"""Choosing a weight decay on a grid: which λ cannot be told apart from the best, how far others are from it, bounds.

Losses are compared in pairs, on the same held-out units and at the same training seeds, so that what all λ share
cancels. A standard error covers both, seeds and units: σ² ≤ s²_seeds/K + s²_units/U, which counts what is left of the
two twice, and is therefore a little too large. Each of the two variances enters an interval with the quantile of its
own degrees of freedom, so that levels hold with two seeds, too (`half_width`). No torch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import chdtri, ndtr, stdtrit

from villani.dynamics.certificate import Moments, token_bound
from villani.errors import InputError
from villani.results import Content
from villani.statistics import Array, Estimate, Limits
from villani.theory.constants import Smoothing
from villani.theory.pac_bayes import kl_inverse

LEVEL = 0.95
_QUANTILES = 200  # of each of two laws


@dataclass(frozen=True, eq=False)
class GridLosses:
    """Held-out losses over a grid of λ.

    Attributes:
        weight_decay: J values of λ, increasing.
        sums: (J, K, U) nats of unit u at training seed k; nan at a λ where some seed diverged.
        counts: (U,) predicted tokens of each unit, an independent piece of text.

    Raises:
        InputError: shapes that do not fit, values of λ that repeat, or fewer than two units.
    """

    weight_decay: tuple[float, ...]
    sums: Array
    counts: Array

    def __post_init__(self) -> None:
        grid = self.weight_decay
        if list(grid) != sorted(set(grid)):
            raise InputError(f"weight_decay={grid}: expected increasing values")
        if self.sums.ndim != 3 or len(self.sums) != len(grid) or self.sums.shape[2] != len(self.counts):
            raise InputError(f"sums has shape {self.sums.shape}: expected ({len(grid)}, seeds, {len(self.counts)})")
        if len(self.counts) < 2 or not (self.counts > 0).all():
            raise InputError(f"held-out text has {len(self.counts)} units: expected at least 2, each with tokens")

    @property
    def seeds(self) -> int:
        """K."""
        return int(self.sums.shape[1])

    @property
    def finite(self) -> list[int]:
        """Indices of λ at which no seed diverged."""
        return [j for j, of in enumerate(self.sums) if np.isfinite(of).all()]

    @property
    def best(self) -> int:
        """Index of the least mean loss.

        Raises:
            InputError: every λ diverged.
        """
        if not self.finite:
            raise InputError("training diverged at every λ: lower the learning rate")
        return min(self.finite, key=lambda j: float(self.sums[j].sum()))

    def mean(self, index: int) -> Estimate:
        """Mean nats per token at one λ, over seeds."""
        return paired(self.sums[index], self.counts)

    def difference(self, index: int, other: int) -> Estimate:
        """Mean loss at one λ minus that at another."""
        return paired(self.sums[index] - self.sums[other], self.counts)


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
    of_seeds: float, of_units: float, seeds: int, units: int, *, level: float = LEVEL, power: float = 0.8
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


def indistinguishable(losses: GridLosses, level: float = LEVEL) -> list[int]:
    """Indices of λ that may be the best: a set that holds the true best with probability ≥ `level`.

    λ that diverged at some seed are out. See `may_be_best`.
    """
    candidates = losses.finite
    return [candidates[j] for j in may_be_best(losses.sums[candidates], losses.counts, level)]


def may_be_best(sums: Array, counts: Array, level: float = LEVEL) -> list[int]:
    """Indices of J ways to train that may be the best, of (J, K, U) sums: `indistinguishable`.

    j is left out if it is worse than some other i by a one-sided paired test at (1 − level)/(J − 1). The true best is
    left out only if one of its J − 1 comparisons fails, whatever came out best, and however many are as good.
    """
    both = 1 - 2 * (1 - level) / max(len(sums) - 1, 1)  # level of the two-sided interval with that lower end

    def beaten(j: int, i: int) -> bool:
        return paired(sums[j] - sums[i], counts).interval(both)[0] > 0

    return [j for j in range(len(sums)) if not any(beaten(j, i) for i in range(len(sums)) if i != j)]


@dataclass(frozen=True)
class Margin:
    """How much worse a λ is than the grid's best, nats per token; `low` and `high` at simultaneous confidence."""

    value: float
    low: float
    high: float


def margin(losses: GridLosses, sums: Array, level: float = LEVEL, own: int | None = None) -> Margin:
    """μ − min_i μ_i for a λ with the given (K, U) sums, on the grid (`own`, its index) or off it.

    The interval holds for the true best, not only for the one that came out best: the differences to all λ of the grid
    are covered at once, by Bonferroni, and so is the largest of them (after Hsu 1981).
    """
    others = [i for i in losses.finite if i != own]
    if not others:
        return Margin(0.0, 0.0, 0.0)
    values, lows, highs = [], [], []
    for i in others:
        found = paired(sums - losses.sums[i], losses.counts)
        low, high = found.interval(1 - (1 - level) / len(others))
        values.append(found.value)
        lows.append(low)
        highs.append(high)
    if own is None:  # off the grid a margin may be negative: better than all of the grid
        return Margin(max(values), max(lows), max(highs))
    return Margin(max(0.0, *values), max(0.0, *lows), max(0.0, *highs))


def nearest(grid: Sequence[float], weight_decay: float) -> int | None:
    """Index of the grid value nearest on a logarithmic scale; 0 is near to 0 alone. None where there is none."""
    if weight_decay == 0:
        return list(grid).index(0.0) if 0.0 in grid else None
    positive = [j for j, value in enumerate(grid) if value > 0]
    return min(positive, key=lambda j: abs(math.log(grid[j] / weight_decay)), default=None)


# Bounds


@dataclass(frozen=True)
class HeldOutBound:
    """Upper bounds on the smoothed risk of one trained model, nats per token.

    Attributes:
        tokens: on the mean of E[loss of a token | everything before it] on the held-out contexts.
        documents: on new documents of the same law; None with fewer than two whole ones.
        delta: both hold at once but with this probability.
    """

    tokens: float
    documents: float | None
    delta: float


def held_out_bound(
    smoothed: Array, counts: Array, documents: Array, smoothing: Smoothing, delta: float
) -> HeldOutBound:
    """Bounds on one model that never saw the text, δ/2 each: §8 (3).

    Tokens: the best of Hoeffding and Bernstein. Documents: kl⁻¹ of the mean over whole documents (Chernoff).

    Args:
        smoothed: (2, M) sums over each block of the smoothed losses, and of their squares.
        counts: (M,) predicted tokens of each block.
        documents: (M,) which document; −1 where a part of it is missing.
        smoothing: of the losses.
        delta: for this model; a grid of J models takes δ/J each.
    """
    tokens = int(counts.sum())
    first, second = (float(row.sum()) / tokens for row in smoothed)
    of_tokens = token_bound(Moments(smoothing, first, second), tokens, 0.0, delta / 2).value
    means = [
        float(smoothed[0][documents == d].sum() / counts[documents == d].sum())
        for d in np.unique(documents[documents >= 0])
        if counts[documents == d].sum() > 0
    ]  # fmt: skip
    of_documents = None
    if len(means) > 1:
        share = min(max((float(np.mean(means)) - smoothing.lowest) / smoothing.oscillation, 0.0), 1.0)
        found = kl_inverse(share, math.log(2 / delta) / len(means))
        of_documents = smoothing.lowest + smoothing.oscillation * found
    return HeldOutBound(of_tokens, of_documents, delta)


def joined(sums: Array, counts: Array, documents: Array, least: int = 12) -> tuple[Array, Array]:
    """Blocks (…, M) added up to documents (…, U) if there are `least` of them, else as they are; the same of counts.

    Runs of neighbouring blocks with one number are a document. Blocks of one document are not independent: with fewer
    documents than `least` errors are over blocks, and too small by what neighbours share.
    """
    starts = np.flatnonzero(np.concatenate([[True], documents[1:] != documents[:-1]]))
    if len(starts) < least:
        return sums, counts
    return np.add.reduceat(sums, starts, axis=-1), np.add.reduceat(counts, starts)
