"""Choosing a weight decay on a grid: which λ cannot be told apart from the best, how far others are from it, bounds.

Losses are compared in pairs (`choice/paired.py`). No torch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from villani.choice.paired import LEVEL, paired
from villani.dynamics.certificate import Moments, token_bound
from villani.errors import InputError
from villani.statistics import Array, Estimate
from villani.theory.constants import Smoothing
from villani.theory.pac_bayes import kl_inverse


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
