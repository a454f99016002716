"""Radial laws: their moments, by direct integration."""

import numpy as np
import pytest

from villani.theory.exact import solve
from villani.theory.potential import potential


def test_moments_by_direct_integration():
    radial = solve(potential("r**4/4", weight_decay=1.0, beta=1.0, dimension=3, shape="radial"))
    r = np.linspace(0, 8, 200_001)
    weight = r**2 * np.exp(-(r**4) / 4 - r**2 / 2)
    assert radial.moments.radial_force == pytest.approx(3.0, rel=1e-12)
    assert radial.moments.norm_squared == pytest.approx((r**2 * weight).sum() / weight.sum(), rel=1e-9)
    assert radial.log_normaliser == pytest.approx(np.log(4 * np.pi * weight.sum() * (r[1] - r[0])), rel=1e-9)
