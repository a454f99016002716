"""Limits of quadratures' estimates against χ² laws."""

import numpy as np
import pytest
from scipy.stats import chi2

from villani.curvature.limits import square_limits, trace_quantile


def test_limits_of_one_eigenvalue_are_those_of_a_chi_square():
    """Rank one from m probes: mS is a χ² of m degrees of freedom, for ‖H‖_F² both ways and for the trace in all."""
    low, high = square_limits(2.0, 50.0, 4, 0.95)  # none near the largest that is allowed
    assert low == pytest.approx(2.0 * 4 / chi2.ppf(0.975, 4))
    assert high == pytest.approx(2.0 * 4 / chi2.ppf(0.025, 4))
    assert square_limits(2.0, 1e-3, 4, 0.95) == pytest.approx((1.938, 2.062), abs=1e-3)  # 2 (1 ± 1.96 √(2/8000))
    c = trace_quantile(4, 0.95)
    s = np.random.default_rng(0).chisquare(4, size=400_000) / 4
    assert (np.abs(s - 1) > c * np.sqrt(2 * s / 4)).mean() == pytest.approx(0.05, abs=0.0015)
    assert trace_quantile(10**6, 0.95) == pytest.approx(1.96, abs=1e-3)
