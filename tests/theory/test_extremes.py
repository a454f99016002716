"""Suprema over a line: above what is seen, and the closed forms of losses that are known."""

import math

import numpy as np
import pytest

from villani.theory.extremes import Line
from villani.theory.potential import potential


def line(text, **options):
    return Line(potential(text, **{"weight_decay": 0.1, "beta": 1.0, **options}))


@pytest.mark.parametrize(
    ("text", "high", "low", "slope", "concavity"),
    [
        ("sin(w)", 1.0, -1.0, 1.0, 1.0),
        ("tanh(3*w)", 1.0, -1.0, 3.0, 9 * 4 / 3**1.5),  # |tanh″| = 2tanh·sech² is 4/3^{3/2} at most
        ("1/(1+w**2)", 1.0, 0.0, 3**1.5 / 8, 2.0),
        ("exp(-(w-0.30001)**2/(2*0.001**2))", 1.0, 0.0, 1000 * math.exp(-0.5), 1e6),  # a spike
    ],
)
def test_bounds_close_on_the_closed_form(text, high, low, slope, concavity):
    found = line(text)
    top, bottom = found.oscillation
    for supremum, exact in ((top, high), (bottom, -low), (found.slope, slope), (found.concavity, concavity)):
        assert supremum.closed
        assert supremum.bound >= exact * (1 - 1e-12) - 1e-12
        assert supremum.bound == pytest.approx(exact, rel=3e-6, abs=2e-9)
        assert supremum.seen <= supremum.bound


def test_what_grows_without_end_has_no_bound():
    found = line("w**4")
    assert found.slope.bound == math.inf
    assert found.slope.closed, "which is told, and not a search that gave up"
    assert found.oscillation[1].bound == pytest.approx(0, abs=1e-6)
    assert found.concavity.bound == pytest.approx(0, abs=1e-6)


def test_a_radius_is_looked_at_on_its_own_side_and_needs_a_slope_that_points_outwards():
    bowl = line("(r-2)**2*exp(-r)", dimension=2, shape="radial")
    assert bowl.concavity.bound == math.inf, "L′(0) < 0, so that L′/r is unbounded below"
    hat = line("-exp(-r**2)", dimension=2, shape="radial")
    r = np.linspace(0, 5, 200_001)
    exact = -((2 - 4 * r**2) * np.exp(-(r**2))).min()
    assert hat.concavity.bound == pytest.approx(exact, rel=1e-5)
    assert all(point >= 0 for point in hat.concavity.points)
