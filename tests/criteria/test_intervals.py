"""Interval arithmetic holds what exact rational arithmetic gives, and is no wider than two floats at each end."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from villani.criteria.intervals import (
    ANYTHING,
    UNKNOWN,
    Range,
    absolute,
    minus,
    nearest,
    of_number,
    of_tensor,
    plus,
    power,
    reciprocal,
    rounded,
    times,
    total,
    union,
)

NUMBERS = st.floats(-1e150, 1e150, allow_nan=False) | st.integers(-9, 9).map(float) | st.sampled_from([5e-324, -1e-310])
CHECKED = settings(max_examples=150, deadline=None, derandomize=True, database=None)


def ends(x, y):
    low, high = sorted((x, y))
    return Range(low, high, low > 0)


def two_floats(low, high):
    """What may lie between a bound and what it bounds."""
    for _ in range(2):
        low, high = math.nextafter(low, -math.inf), math.nextafter(high, math.inf)
    return low, high


def is_hull(found, exact):
    """Whether a range holds these rationals, and ends within two floats of the extremes."""
    low, high = min(exact), max(exact)
    inside = found.low <= low and high <= found.high
    least, most = two_floats(float(low), float(high))
    return inside and least <= found.low and found.high <= most


def test_arithmetic():
    assert times(Range(-2, 3), Range(-1, 5)) == Range(-10, 15)
    assert times(Range(0, 0), ANYTHING) == Range(0, 0)
    assert power(Range(-2, 1), 2) == Range(0, 4)
    assert power(Range(-2, 1), 3) == Range(-8, 1)
    assert reciprocal(Range(2, 4, True)) == Range(0.25, 0.5, True)
    assert reciprocal(Range(-4, -2)) == Range(-0.5, -0.25)
    assert not reciprocal(Range(-1, 1)).finite


@CHECKED
@given(NUMBERS, NUMBERS, NUMBERS, NUMBERS)
def test_sums_and_products_are_hulls_of_exact_ones(a, b, c, d):
    x, y = ends(a, b), ends(c, d)
    corners = [(Fraction(p), Fraction(q)) for p in (a, b) for q in (c, d)]
    assert is_hull(plus(x, y), [p + q for p, q in corners])
    assert is_hull(times(x, y), [p * q for p, q in corners])
    assert is_hull(plus(x, minus(y)), [p - q for p, q in corners])
    assert times(x, y).positive == (min(p * q for p, q in corners) > 0)


@CHECKED
@given(st.floats(-1e30, 1e30), st.floats(-1e30, 1e30), st.integers(0, 5))
def test_powers_totals_and_moduli_are_hulls_of_exact_ones(a, b, n):
    x = ends(a, b)
    values = [Fraction(a), Fraction(b)] + ([Fraction(0)] if x.low <= 0 <= x.high else [])
    assume(all(v == 0 or abs(v) > Fraction(1, 10**40) for v in values))
    assert is_hull(power(x, n), [v**n for v in values])
    assert is_hull(absolute(x), [abs(v) for v in values])
    assert is_hull(total(x, n), [n * v for v in (values[:2] if n else [Fraction(0)])])
    if not x.low <= 0 <= x.high:
        assert is_hull(reciprocal(x), [1 / v for v in values])
        inverse = power(x, -2)
        assert inverse.low <= min(1 / v**2 for v in values)
        assert inverse.high >= max(1 / v**2 for v in values)
    else:
        assert reciprocal(x) is UNKNOWN


@pytest.mark.parametrize("n", [0.5, 1.5, 0.1])
def test_roots_are_bounded_by_their_inverse(n):
    """(x^n)^(1/n) = x: the bounds taken back enclose what went in."""
    found = power(Range(2.0, 1e10), n)
    assert found.low ** (1 / n) <= 2.0 * (1 + 1e-13)
    assert found.high ** (1 / n) >= 1e10 * (1 - 1e-13)
    assert power(Range(-1.0, 1.0), n) is UNKNOWN
    assert power(Range(-1.0, 1.0), math.nan) is UNKNOWN


def test_infinite_entries_give_no_number_where_arithmetic_has_none():
    """∞ − ∞ and 0·∞ of what a mask may hold; bounds that are never attained are another thing."""
    mask = of_tensor(torch.tensor([0.0, -math.inf]))
    assert not mask.finite
    assert plus(mask, ANYTHING).defined
    assert not plus(mask, minus(mask)).defined
    assert not times(mask, Range(-1.0, 1.0)).defined
    assert times(mask, Range(1.0, 2.0, True)).defined
    assert times(ANYTHING, Range(-1.0, 1.0)).defined
    assert of_number(math.nan) is UNKNOWN
    assert of_tensor(torch.tensor([1.0, math.nan])) is UNKNOWN
    assert of_tensor(torch.zeros(0)) == Range(0.0, 0.0)
    assert not union(Range(0, 1), UNKNOWN).defined
    assert Range(-3.0, 5.0).within(0.0, 1.0) == Range(0.0, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_in_a_precision_is_enclosed(dtype):
    """A sum of n products worked out in the precision itself, in the worst order, from exactly known terms."""
    draw = torch.Generator().manual_seed(0)
    for size in (1e-3, 1.0, 30.0):
        x = (size * torch.rand(200, generator=draw, dtype=torch.float64)).to(dtype)
        exact, sum_so_far = float(x.double().sum()), torch.zeros((), dtype=dtype)
        for term in x:
            sum_so_far = sum_so_far + term
        found = rounded(Range(exact, exact), 200, dtype)
        assert found.low <= float(sum_so_far) <= found.high
        assert found.high - found.low < 1e3 * torch.finfo(dtype).eps * exact
        one = nearest(Range(exact, exact), dtype)
        assert one.low <= float(torch.tensor(exact, dtype=torch.float64).to(dtype)) <= one.high
    assert rounded(Range(0.0, 0.0), 100, dtype) == Range(0.0, 0.0), "roundings do not change a sign"
    assert rounded(Range(1.0, torch.finfo(dtype).max), 1, dtype).high == math.inf
    assert rounded(Range(torch.finfo(dtype).tiny / 2, 1.0), 1, dtype).low == 0
