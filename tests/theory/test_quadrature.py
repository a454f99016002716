"""Certified lower bounds on C_P: below the exact constant, and near it where the test function is the mode."""

import numpy as np
import pytest

from villani.theory.exact import solve
from villani.theory.potential import potential
from villani.theory.quadrature import poincare_floor


@pytest.mark.parametrize(("decay", "beta"), [(0.5, 4.0), (2.0, 0.1)])
def test_a_gaussian_has_its_variance(decay, beta):
    """C_P = 1/(βλ), which f = w attains."""
    case = potential("0*w", weight_decay=decay, beta=beta)
    box = 9 / np.sqrt(beta * decay)
    floor = poincare_floor(case, np.array([1.0]), (np.array([-box]), np.array([box])))
    exact = 1 / (beta * decay)
    assert exact * (1 - 1e-3) < floor <= exact


@pytest.mark.parametrize("text", ["(w**2-1)**2", "3*exp(-w**2)", "log(1+exp(3*w))"])
def test_it_never_exceeds_the_constant_and_comes_near_it(text):
    case = potential(text, weight_decay=1.0, beta=3.0)
    truth = solve(case, sobolev=False).poincare
    floor = poincare_floor(case, np.array([1.0]), (np.array([-6.0]), np.array([6.0])))
    assert 0.8 * truth < floor <= truth


def test_a_box_that_cuts_the_law_is_paid_for():
    """Mass beyond the box lowers the bound, down to none at all; it stays a bound."""
    case = potential("0*w", weight_decay=1.0, beta=1.0)
    floors = [poincare_floor(case, np.array([1.0]), (np.array([-b]), np.array([b]))) for b in (8.0, 3.0, 1.0)]
    assert 1 >= floors[0] > floors[1] >= floors[2] >= 0


def test_a_plane_along_its_slow_direction():
    case = potential("y**2/2 + 0*x", weight_decay=0.5, beta=2.0)  # C_P = 1/(2·½) along x, 1/(2·1.5) along y
    box = np.array([-7.0, -6.0]), np.array([7.0, 6.0])
    along = poincare_floor(case, np.array([1.0, 0.0]), box)
    across = poincare_floor(case, np.array([0.0, 1.0]), box)
    assert 0.99 < along <= 1
    assert 0.99 / 3 < across <= 1 / 3


def test_laws_that_it_cannot_bound_get_none():
    everything = (np.array([-9.0]), np.array([9.0]))
    assert poincare_floor(potential("w**2", weight_decay=0.0, beta=1.0), np.array([1.0]), everything) == 0
    shell = potential("r**2", weight_decay=1.0, beta=1.0, dimension=2, shape="radial")
    assert poincare_floor(shell, np.array([1.0]), everything) == 0
