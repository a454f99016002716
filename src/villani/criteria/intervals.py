"""Interval arithmetic: what `ranges` reckons with.

End points are rounded outwards (`nextafter`) unless they are exact, so that the true result of an operation on real
numbers lies inside even where a float underflows to 0 or overflows. What a computer makes of it in a given precision is
added by `rounded`.
"""

import math
from dataclasses import dataclass

import torch

INFINITY = math.inf
_MASK = 1e30  # a constant of this size stands for infinity
_WHOLE = 2.0**53  # integers up to here are floats


@dataclass(frozen=True)
class Range:
    """All entries of a tensor lie in [low, high].

    Attributes:
        low: lower bound, possibly −∞.
        high: upper bound, possibly ∞.
        positive: every entry is > 0 at every finite θ, in real arithmetic, though its infimum `low` may be 0.
        finite: every entry is a number at every finite θ; −∞ of a mask, written as −3·10³⁸ or not, or log 0, is none.
        defined: no entry is NaN at a finite θ; where it may be, no operation on it is bounded.
    """

    low: float
    high: float
    positive: bool = False
    finite: bool = True
    defined: bool = True

    @property
    def bounded(self) -> bool:
        """Whether neither bound is infinite."""
        return self.low > -INFINITY and self.high < INFINITY

    def avoids_zero(self) -> bool:
        """Whether no entry is ever 0."""
        return self.low > 0 or self.high < 0 or self.positive

    def within(self, low: float, high: float) -> "Range":
        """Cut to what an operation never leaves, not even by rounding."""
        return Range(max(self.low, low), min(self.high, high), self.positive, self.finite, self.defined)


ANYTHING = Range(-INFINITY, INFINITY)
UNKNOWN = Range(-INFINITY, INFINITY, finite=False, defined=False)


def of_number(x: float) -> Range:
    """The range of one number."""
    x = float(x)
    return UNKNOWN if math.isnan(x) else Range(x, x, x > 0, abs(x) < _MASK)


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


def below(x: float) -> float:
    """The next float below, as a lower bound of what was rounded to x."""
    return math.nextafter(x, -INFINITY)


def above(x: float) -> float:
    """The next float above."""
    return math.nextafter(x, INFINITY)


def plus(a: Range, b: Range) -> Range:
    """All sums; ∞ − ∞ is none."""
    low, high = _sum(a.low, b.low), _sum(a.high, b.high)
    positive = (a.low >= 0 and b.low >= 0 and (a.positive or b.positive)) or low[0] > 0
    opposite = (_rises(a) and _falls(b)) or (_falls(a) and _rises(b))
    return Range(low[0], high[1], positive, a.finite and b.finite, a.defined and b.defined and not opposite)


def minus(a: Range) -> Range:
    """The range of −x."""
    return Range(0.0 - a.high, 0.0 - a.low, a.high < 0, a.finite, a.defined)


def times(a: Range, b: Range) -> Range:
    """All products. 0·∞ is 0 of a bound, which is not attained; of an entry that may be infinite it is no number."""
    corners = [_product(x, y) for x in (a.low, a.high) for y in (b.low, b.high)]
    void = any(not x.finite and not x.bounded and not y.avoids_zero() for x, y in ((a, b), (b, a)))
    return Range(
        min(low for low, _ in corners),
        max(high for _, high in corners),
        (a.positive and b.positive) or (a.high < 0 and b.high < 0),
        a.finite and b.finite,
        a.defined and b.defined and not void,
    )


def total(a: Range, count: int) -> Range:
    """Sums of `count` entries; 0 of none."""
    if count == 0:
        return Range(0.0, 0.0)
    low, high = _product(a.low, float(count))[0], _product(a.high, float(count))[1]
    return Range(low, high, a.positive, a.finite, a.defined and not (_rises(a) and _falls(a)))


def union(*parts: Range) -> Range:
    """Either of several."""
    return Range(
        min(p.low for p in parts),
        max(p.high for p in parts),
        all(p.positive for p in parts),
        all(p.finite for p in parts),
        all(p.defined for p in parts),
    )


def reciprocal(a: Range) -> Range:
    """The range of 1/x; unknown where x may be 0."""
    if not a.avoids_zero():
        return UNKNOWN
    if a.high < 0:
        return minus(reciprocal(minus(a)))
    return Range(_inverse(a.high)[0], _inverse(a.low)[1], a.finite, a.finite, a.defined)


def absolute(a: Range) -> Range:
    """The range of |x|."""
    low = 0.0 if a.low <= 0 <= a.high else min(abs(a.low), abs(a.high))
    return Range(low, max(abs(a.low), abs(a.high)), a.avoids_zero(), a.finite, a.defined)


def power(a: Range, n: float) -> Range:
    """The range of xⁿ; unknown where that is no real number."""
    if not math.isfinite(n):
        return UNKNOWN
    if n < 0:
        return reciprocal(power(a, -n))
    if n % 2 == 0:
        b = absolute(a)
        return Range(_raise(b.low, n)[0], _raise(b.high, n)[1], b.positive or n == 0, a.finite, a.defined)
    if n % 1 and a.low < 0:
        return UNKNOWN
    low = _raise(a.low, n)[0] if a.low >= 0 else -_raise(-a.low, n)[1]
    high = _raise(a.high, n)[1] if a.high >= 0 else -_raise(-a.high, n)[0]
    return Range(low, high, a.positive, a.finite, a.defined)


def nearest(a: Range, dtype: torch.dtype) -> Range:
    """What an operation that rounds correctly, which keeps order, makes of numbers in a range; and these themselves."""
    low, high = torch.tensor([a.low, a.high], dtype=torch.float64).to(dtype).tolist()
    return Range(min(a.low, low), max(a.high, high), a.positive, a.finite, a.defined)


def rounded(a: Range, steps: float, dtype: torch.dtype) -> Range:
    """What a sum of products, or a function, may come to with `steps` roundings by half a unit in the last place.

    0 stays 0: roundings do not change a sign. Below the smallest normal number anything may become 0, and beyond the
    largest one ∞.
    """
    limits = torch.finfo(dtype)
    grow = 1 + math.expm1(min(steps * limits.eps / 2, 700.0))
    step = steps * limits.tiny * limits.eps
    high = _outermost(a.high, grow, step, limits)
    return Range(0.0 - _outermost(-a.low, grow, step, limits), high, a.positive, a.finite, a.defined)


def _outermost(high: float, grow: float, step: float, limits: torch.finfo) -> float:
    if high < 0:
        high = above(high / grow)
        return 0.0 if high > -limits.tiny else high
    if high == 0:
        return 0.0
    high = above(high * grow + step)
    return INFINITY if high > limits.max else high


def _rises(a: Range) -> bool:
    """Whether an entry may be ∞ itself, as a mask may."""
    return not a.finite and a.high == INFINITY


def _falls(a: Range) -> bool:
    return not a.finite and a.low == -INFINITY


# Bounds from below and above of one number's worth of arithmetic


def _sum(x: float, y: float) -> tuple[float, float]:
    total = x + y
    if math.isinf(total):
        return (total if -INFINITY in (x, y) else below(total)), (total if INFINITY in (x, y) else above(total))
    part = total - x
    if (x - (total - part)) + (y - part) == 0:  # the rounding error itself, exactly
        return total, total
    return below(total), above(total)


def _product(x: float, y: float) -> tuple[float, float]:
    if x == 0 or y == 0:
        return 0.0, 0.0
    product = x * y
    if x % 1 == 0 and y % 1 == 0 and abs(product) <= _WHOLE:
        return product, product
    if (x > 0) == (y > 0):
        return max(below(product), 0.0), above(product)
    return below(product), min(above(product), 0.0)


def _inverse(x: float) -> tuple[float, float]:
    """Of x ≥ 0."""
    if x == 0:
        return INFINITY, INFINITY
    value = 1 / x
    if value == 0 or (math.frexp(x)[0] == 0.5 and value < INFINITY):
        return value, value
    return max(below(value), 0.0), above(value)


def _raise(x: float, n: float) -> tuple[float, float]:
    """xⁿ of x ≥ 0, n ≥ 0; libraries are off by less than two floats."""
    try:
        value = float(x**n)
    except OverflowError:
        value = INFINITY
    if x in (0, INFINITY) or n in (0, 1) or (x % 1 == 0 and n % 1 == 0 and value <= _WHOLE):
        return value, value
    return max(below(below(value)), 0.0), above(above(value))
