"""The solver on the plane: its polynomials, its box and grid, and radial laws."""

import numpy as np
import pytest

from villani.theory.exact import solve
from villani.theory.plane import grade, lobatto, solve_plane
from villani.theory.potential import potential


def truth(text, **options):
    return solve(potential(text, **options), sobolev=False)


def test_lobatto_integrates_and_differentiates_polynomials():
    nodes, weights, derivative = lobatto(7)
    for power in range(14):
        assert weights @ nodes**power == pytest.approx((1 + (-1) ** power) / (power + 1), abs=1e-14)
    assert derivative @ nodes**7 == pytest.approx(7 * nodes**6, abs=1e-12)


def test_a_radial_law_has_the_gaps_of_the_radial_solver():
    plane = truth("(x**2+y**2-1)**2/4", weight_decay=0.1, beta=3)
    radial = truth("(r**2-1)**2/4", weight_decay=0.1, beta=3, dimension=2, shape="radial")
    assert plane.poincare == pytest.approx(radial.poincare, rel=1e-9)
    assert plane.moments.psi == pytest.approx(radial.moments.psi, rel=1e-9)
    assert plane.log_normaliser == pytest.approx(radial.log_normaliser, abs=1e-9)


def test_box_and_grid_do_not_matter():
    case = potential("log(1+exp(-10*x*y))", weight_decay=1, beta=1)

    def energy(points):
        return case.energy(points), case.beta / 2 * case.local(points).psi(case.beta)

    values = []
    for reach, degree, depth in ((8.5, 8, 35.0), (9.7, 9, 45.0)):
        corners = np.array([-reach, -1.1 * reach]), np.array([1.05 * reach, reach])
        values.append(solve_plane(energy, grade(case.energy, corners, degree), degree, depth, 1).gaps[0])
    assert values[0] == pytest.approx(values[1], rel=1e-6)
