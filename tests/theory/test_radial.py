"""Radial laws in any dimension against Gaussians, products and the line."""

import pytest

from villani.theory.exact import solve
from villani.theory.potential import potential


@pytest.mark.parametrize("dimension", [2, 3, 9, 13, 24, 25, 100, 2000])
def test_gaussians(dimension):
    truth = solve(potential("c*r**2/2", weight_decay=0.5, beta=2, parameters={"c": 1.0}, dimension=dimension,
                            shape="radial"))  # fmt: skip
    assert truth.gaps == pytest.approx((3.0, 6.0), rel=1e-8)
    assert truth.moments.norm_squared == pytest.approx(dimension / 3, rel=1e-10)
    assert truth.moments.top_variance == pytest.approx(1 / 3, rel=1e-10)


def test_the_gap_of_a_thick_shell_tends_to_that_of_the_sphere():
    """exp(−βF) at large β lives on the sphere of radius 1, whose Laplacian has gap d − 1."""
    for dimension in (2, 3, 6):
        case = potential("(r**2-1)**2/4", weight_decay=0.0, beta=4000.0, dimension=dimension, shape="radial")
        assert solve(case, digits=6).gaps[0] == pytest.approx(dimension - 1, rel=3e-3)
