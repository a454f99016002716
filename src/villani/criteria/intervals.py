"""Interval arithmetic: what `ranges` reckons with.

Float64 end points are not rounded outwards: a bound may be off in its last digits.
"""

import math
from dataclasses import dataclass

import torch

INFINITY = math.inf
_MASK = 1e30  # a constant of this size stands for infinity


@dataclass(frozen=True)
class Range:
    """All entries of a tensor lie in [low, high].

    Attributes:
        low: lower bound, possibly −∞.
        high: upper bound, possibly ∞.
        positive: every entry is > 0 at every finite θ, though its infimum `low` may be 0.
        finite: every entry is a number at every finite θ; −∞ of a mask, written as −3·10³⁸ or not, or log 0, is none.
    """

    low: float
    high: float
    positive: bool = False
    finite: bool = True

    @property
    def bounded(self) -> bool:
        """Whether neither bound is infinite."""
        return self.low > -INFINITY and self.high < INFINITY

    def avoids_zero(self) -> bool:
        """Whether no entry is ever 0."""
        return self.low > 0 or self.high < 0 or self.positive


ANYTHING = Range(-INFINITY, INFINITY)
UNKNOWN = Range(-INFINITY, INFINITY, finite=False)


def of_number(x: float) -> Range:
    """The range of one number."""
    return Range(float(x), float(x), x > 0, abs(x) < _MASK)


def of_tensor(tensor: torch.Tensor) -> Range:
    """The range of a tensor that does not change; {0} of an empty one."""
    if tensor.is_complex():
        return UNKNOWN
    if tensor.numel() == 0:
        return Range(0.0, 0.0)
    low, high = float(tensor.min()), float(tensor.max())
    if math.isnan(low) or math.isnan(high):
        return UNKNOWN
    return Range(low, high, low > 0, max(abs(low), abs(high)) < _MASK)


def plus(a: Range, b: Range) -> Range:
    """All sums."""
    positive = a.low >= 0 and b.low >= 0 and (a.positive or b.positive)
    return Range(a.low + b.low, a.high + b.high, positive, a.finite and b.finite)


def minus(a: Range) -> Range:
    """The range of −x."""
    return Range(-a.high, -a.low, False, a.finite)


def times(a: Range, b: Range) -> Range:
    """All products; entries are numbers, so that 0·∞ is 0 here."""
    corners = [0.0 if x == 0 or y == 0 else x * y for x in (a.low, a.high) for y in (b.low, b.high)]
    return Range(min(corners), max(corners), a.positive and b.positive, a.finite and b.finite)


def total(a: Range, count: int) -> Range:
    """Sums of `count` entries, count ≥ 1."""
    return Range(a.low * count, a.high * count, a.positive, a.finite)


def union(*parts: Range) -> Range:
    """Either of several."""
    return Range(
        min(p.low for p in parts),
        max(p.high for p in parts),
        all(p.positive for p in parts),
        all(p.finite for p in parts),
    )


def reciprocal(a: Range) -> Range:
    """The range of 1/x; unknown where x may be 0."""
    if not a.avoids_zero():
        return UNKNOWN
    if a.high < 0:
        return minus(reciprocal(minus(a)))
    low, high = (1 / x if x > 0 else INFINITY for x in (a.high, a.low))
    return Range(low, high, True, a.finite)


def absolute(a: Range) -> Range:
    """The range of |x|."""
    low = 0.0 if a.low <= 0 <= a.high else min(abs(a.low), abs(a.high))
    return Range(low, max(abs(a.low), abs(a.high)), a.avoids_zero(), a.finite)


def power(a: Range, n: float) -> Range:
    """The range of xⁿ; unknown where that is no real number."""
    if n < 0:
        return reciprocal(power(a, -n))
    if n % 2 == 0:
        b = absolute(a)
        return Range(_raise(b.low, n), _raise(b.high, n), b.positive or n == 0, a.finite)
    if n % 1 and a.low < 0:
        return UNKNOWN
    return Range(_raise(a.low, n), _raise(a.high, n), a.positive, a.finite)


def _raise(x: float, n: float) -> float:
    try:
        return float(math.copysign(abs(x) ** n, x)) if n % 2 else float(abs(x) ** n)
    except OverflowError:
        return math.copysign(INFINITY, x) if n % 2 else INFINITY
