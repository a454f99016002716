"""Intervals of what quadratures estimate, which no t-interval holds. No torch."""

import math
from dataclasses import dataclass

from scipy.optimize import brentq
from scipy.special import chdtr, chdtrc, chdtri, stdtrit

from villani.estimate import Limits
from villani.results import Content


@dataclass(frozen=True, eq=False, repr=False)
class TraceLimits(Content, Limits):
    """Of tr H, by `trace_quantile` for the probes and Student's t for shares of the data.

    Attributes:
        value: the estimate.
        probes: how many, over all shares.
        of_probes: their standard error.
        units: shares of the data, or probes of one share.
        of_data: the standard error that shares scatter by.
    """

    value: float
    probes: int
    of_probes: float
    units: int
    of_data: float

    def __call__(self, level: float) -> tuple[float, float]:
        """Two-sided limits."""
        half = math.hypot(
            trace_quantile(self.probes, level) * self.of_probes, quantile(self.units, level) * self.of_data
        )
        return self.value - half, self.value + half


@dataclass(frozen=True, eq=False, repr=False)
class SquareLimits(Content, Limits):
    """Of ‖H‖_F², by `square_limits` for the probes and Student's t for shares of the data; fields as `TraceLimits`."""

    value: float
    largest: float
    probes: int
    units: int
    of_data: float

    def __call__(self, level: float) -> tuple[float, float]:
        """Two-sided limits, none below 0."""
        value, more = self.value, quantile(self.units, level) * self.of_data
        low, high = square_limits(value, self.largest, self.probes, level)
        low, high = value - math.hypot(value - low, more), value + math.hypot(high - value, more)
        return max(low, 0.0), high


@dataclass(frozen=True, eq=False, repr=False)
class RankLimits(Content, Limits):
    """Of (Σ|λ|)²/Σλ²: Σ|λ| between `low` and `high` by quadratures; each sum may be missed half as often.

    Attributes:
        size: d.
        low, high: means of the bounds.
        probes: how many, over all shares.
        of_probes: their standard error of Σ|λ|.
        units: shares of the data.
        below, above: the standard errors that shares scatter `low` and `high` by.
        squares: of Σλ².
    """

    size: int
    low: float
    high: float
    probes: int
    of_probes: float
    units: int
    below: float
    above: float
    squares: SquareLimits

    def __call__(self, level: float) -> tuple[float, float]:
        """Two-sided limits within [1, d]."""
        each = (1 + level) / 2
        probes, shares = trace_quantile(self.probes, each) * self.of_probes, quantile(self.units, each)
        left, right = (math.hypot(probes, shares * scatter) for scatter in (self.below, self.above))
        least, most = self.squares(each)
        low = max(self.low - left, 0.0) ** 2 / most
        high = (self.high + right) ** 2 / least if least > 0 else math.inf
        return max(low, 1.0), min(high, float(self.size))


@dataclass(frozen=True, eq=False, repr=False)
class ShareLimits(Content, Limits):
    """Of the share below 0: what quadratures leave open between `low` and `high`, and what probes and shares add.

    Attributes:
        low, high: means of the bounds.
        weight: probes times (d + 2), by which the bound on a probe's weight shrinks.
        units: shares of the data.
        below, above: the standard errors that shares scatter `low` and `high` by.
    """

    low: float
    high: float
    weight: int
    units: int
    below: float
    above: float

    def __call__(self, level: float) -> tuple[float, float]:
        """Two-sided limits within [0, 1]."""
        of_probes = math.sqrt(math.log(2 / (1 - level)) / self.weight)
        left, right = (math.hypot(of_probes, quantile(self.units, level) * s) for s in (self.below, self.above))
        return max(self.low - left, 0.0), min(self.high + right, 1.0)


def trace_quantile(probes: int, level: float) -> float:
    """c such that |X̄ − tr H| ≤ c √(2 V̂/m) with probability ≥ `level`, V̂ the mean of ‖H̄v‖² over the m probes of X̄.

    The worst matrix has one eigenvalue apart from all others: X̄ − tr H is then as S − 1 and V̂ as S, mS a χ² of m
    degrees of freedom, and X̄ is far too small just where V̂ is small as well. S leaves the interval where √S or 1/√S is
    (a + √(a² + 4))/2, a = c√(2/m). That no matrix is worse is shown by simulation (docs/coverage.md), and not
    proved. 1.96 for many probes, 2.76 for four at 95 %.
    """

    def missed(c: float) -> float:
        a = c * math.sqrt(2 / probes)
        high = ((a + math.sqrt(a * a + 4)) / 2) ** 2
        low = 1 / high
        return float(chdtr(probes, probes * low) + chdtrc(probes, probes * high)) - (1 - level)

    return float(brentq(missed, 0.0, 1e9, xtol=1e-9))


def square_limits(value: float, largest: float, probes: int, level: float) -> tuple[float, float]:
    """Limits of ‖H‖_F² from the mean of ‖Hv‖² over probes, where no eigenvalue's square is above `largest`.

    The mean of Σ_i λ_i² g_i² scatters most, at a given ‖H‖_F² = F, where as many λ_i² as can be are as large as they
    may. For F ≥ `largest` it is then `largest`/m times a χ² of mF/`largest` degrees of freedom, and below that F/m
    times one of m; limits are the F at which what was seen is a quantile. `largest` is what quadratures saw: that
    nothing larger was missed is not proved, nor is that no matrix scatters more, which is shown by simulation.
    """
    if not value > 0:
        return 0.0, 0.0
    seen = probes * value / largest

    def limit(share: float) -> float:
        if chdtr(probes, seen) <= share:
            return float(value * probes / chdtri(probes, 1 - share))
        most = max(2 * seen, probes) + 100 * (1 + math.sqrt(seen))
        freedom = brentq(lambda freedom: float(chdtr(freedom, seen)) - share, probes, most)
        return float(freedom) * largest / probes

    return limit((1 + level) / 2), limit((1 - level) / 2)


def quantile(units: int, level: float) -> float:
    """Two-sided, of Student's t over so many units; 0 for one, which scatters by nothing that is known."""
    return float(stdtrit(units - 1, 0.5 + level / 2)) if units > 1 else 0.0
