"""Features of a law on the plane that a grid misses: found where they are, and none where there are none."""

import numpy as np
import pytest

from villani.theory.potential import potential
from villani.theory.unseen import search

EDGES = [np.linspace(-6.0, 6.0, 13)] * 2  # cells of size 1, polynomials of degree 6 on each


@pytest.mark.parametrize("place", [(0.313, -0.271), (2.52, 1.47)])
def test_a_narrow_well_is_found_where_it_is(place):
    x, y = place
    case = potential(
        f"-4*exp(-((x-{x})**2+(y-{y})**2)/(2*0.01**2))".replace("--", "+"), weight_decay=1.0, beta=1.0
    )  # fmt: skip
    found = search(case, EDGES, 6)
    assert found.complete
    assert found.point is not None
    assert np.abs(found.point - place).max() < 0.1
    assert (found.size < 1).all()


def test_a_well_beyond_the_grid_is_found():
    found = search(potential("-900*exp(-((x-40)**2+y**2)/2)", weight_decay=1.0, beta=1.0), EDGES, 6)
    assert found.point is not None
    assert abs(found.point[0] - 40) < 8


@pytest.mark.parametrize("text", ["x**2/2 + y**4", "log(1+exp(-x*y))", "sin(x)*cos(y)"])
def test_what_the_grid_resolves_hides_nothing(text):
    found = search(potential(text, weight_decay=1.0, beta=1.0), EDGES, 8)
    assert found.complete
    assert found.point is None
