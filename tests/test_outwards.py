"""Printed bounds lie outside of what they bound, and hardly further than their digits make them."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from villani.outwards import lower, lower_power, upper, upper_power
from villani.report.numbers import format_bounded, format_interval

FLOATS = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e200, max_value=1e200)
_PLAIN = str.maketrans("−⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "--0123456789")


def read(text: str) -> Decimal:
    """The number that people read."""
    mantissa, _, power = text.translate(_PLAIN).replace(",", "").partition("·10")
    return Decimal(mantissa).scaleb(int(power or 0))


@given(FLOATS, st.integers(1, 12))
def test_bounds_are_rounded_outwards(value, digits):
    above, below, exact = read(upper(value, digits)), read(lower(value, digits)), Decimal(repr(value))
    assert below <= exact <= above
    assert above - below <= abs(exact).scaleb(1 - digits) * Decimal("1.0001")
    assert upper(-value, digits).replace("−", "") == lower(value, digits).replace("−", "")


@given(st.floats(-1e6, 1e6), st.integers(0, 6))
def test_places_behind_the_point(value, places):
    above, below, exact = read(upper(value, places=places)), read(lower(value, places=places)), Decimal(repr(value))
    assert below <= exact <= above
    assert above - below <= Decimal(1).scaleb(-places)


@given(st.floats(1e10, 1.7e308), st.integers(0, 6))
def test_places_of_a_number_that_has_none(value, places):
    above, below, exact = read(upper(value, places=places)), read(lower(value, places=places)), Decimal(repr(value))
    assert below <= exact <= above
    assert above - below <= max(Decimal(1).scaleb(-places), exact.scaleb(-5))


@given(st.floats(-250, 250), st.integers(1, 6))
def test_powers_of_ten(log10, digits):
    above, below = read(upper_power(log10, digits)), read(lower_power(log10, digits))
    exact = Decimal(10) ** Decimal(log10)
    assert below <= exact * (1 + Decimal("1e-11"))
    assert exact <= above * (1 + Decimal("1e-11"))
    assert above / below <= 1 + Decimal(10).scaleb(-digits) + Decimal("1e-9")


@given(FLOATS, FLOATS)
def test_intervals_hold_what_they_are_of(one, other):
    low, high = sorted((one, other))
    text = format_interval(low, high)
    if low == high:
        assert text == "no sampling error"
        return
    inside, _, power = text.strip("[").partition("]")
    left, right = (read(end + power) for end in inside.split(", "))
    assert left <= Decimal(repr(low))
    assert Decimal(repr(high)) <= right


@given(st.floats(-1e12, 1e12), st.floats(1e-12, 1e12))
def test_a_bounded_value_lies_within_what_is_printed(value, bound):
    inside, _, power = format_bounded(value, bound).replace("(", "").partition(")")
    centre, half = (read(part + power) for part in inside.split(" ± "))
    assert centre - half <= Decimal(repr(value)) - Decimal(repr(bound))
    assert Decimal(repr(value)) + Decimal(repr(bound)) <= centre + half


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (upper(4423690.0, 3), "4423690"), (upper(0.12341, 3), "0.124"), (lower(0.12349, 3), "0.123"),
        (upper_power(6.6457848, 3), "4.43·10⁶"), (lower_power(1.0), "10"), (upper_power(1.0), "10"),
        (upper_power(1234.501, 3), "10^1,234.6"), (lower_power(-1234.501, 3), "10^−1,234.6"), (upper(0.0), "0"),
        (upper(float("inf")), "—"), (upper(5.00001, places=4), "5.0001"), (lower(-1e-9, places=4), "−0.0001"),
        (upper(-1e-9, places=4), "0.0000"), (format_bounded(1.0, 0.0), "1"), (format_bounded(1.44, 0.1), "1.44 ± 0.10"),
        (format_bounded(1.234567890123456789, 1e-20), "1.234567890123 ± 0.000000000001"),
    ],
)  # fmt: skip
def test_how_it_looks(found, text):
    assert found == text
