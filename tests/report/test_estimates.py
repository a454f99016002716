"""Estimates in cells: their own rounding, and a dash where there is none; colours by what an interval holds."""

import pytest

from tests.records import estimate
from villani.report.colours import NEGATIVE, POSITIVE, UNRESOLVED, sign_colour
from villani.report.estimates import interval, uncertain


def test_values_have_the_digits_of_their_error():
    given = estimate(1234.567, 12.0)
    assert uncertain(given) == "1235 ± 12"
    low, high = (float(end.strip()) for end in interval(given).strip("[]").replace(" to ", ",").split(","))
    assert (low, high) == pytest.approx(given.interval, abs=1.5)


def test_nothing_is_a_dash():
    assert uncertain(None) == interval(None)
    assert len(uncertain(None)) == 1


@pytest.mark.parametrize(
    ("value", "colour"), [(5.0, POSITIVE), (-5.0, NEGATIVE), (0.5, UNRESOLVED), (-0.5, UNRESOLVED)]
)
def test_colours_go_by_the_interval_and_not_by_the_value(value, colour):
    assert sign_colour(estimate(value, 1.0)) == colour
