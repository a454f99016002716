"""Parabolas through points with common noise: coverage, χ², and numpy's own least squares."""

import math

import numpy as np
import pytest

from villani.criteria.parabola import fit_quadratic
from villani.statistics import jackknife_deviations


def noisy(seed, groups=16):
    """Group means of parabolas 1 + 2r + 3r² with noise that the radii share, partly not of a parabola's shape."""
    rng = np.random.default_rng(seed)
    r = np.array([0.0, 1.0, 2.0, 3.0, 5.0, 8.0])
    e = rng.normal(size=(4, groups, 1))
    y = 1 + 2 * r + 3 * r**2 + e[0] * r**3 + e[1] * r**2 + e[2] + (1 + r**2) * rng.normal(size=(groups, 6)) / 10
    deviations = jackknife_deviations((y.sum(axis=0) - y) / (groups - 1))
    return r, y.mean(axis=0), deviations @ deviations.T, np.full(6, 1e-9), groups, groups - 1.0


def test_intervals_and_p_values_allow_for_shared_noise():
    fits = [fit_quadratic(*noisy(seed)) for seed in range(600)]
    covered = np.mean([fit.quadratic.interval()[0] <= 3 <= fit.quadratic.interval()[1] for fit in fits])
    assert 0.92 < covered < 0.98
    assert 0.02 < np.mean([fit.p_value < 0.05 for fit in fits]) < 0.09


def test_independent_points_give_the_textbook_chi_squared():
    rng = np.random.default_rng(0)
    r, sem = np.arange(6.0), np.array([1.0, 2.0, 1.0, 0.5, 3.0, 1.0])
    fit = fit_quadratic(r, rng.normal(size=6) * sem, np.diag(sem**2), np.full(6, 1e-9), 10**9, 1e9)
    assert fit.degrees_of_freedom == 3
    assert fit.p_value == pytest.approx(math.erfc((fit.chi_squared / 2) ** 0.5)
                                        + (2 * fit.chi_squared / math.pi) ** 0.5 * math.exp(-fit.chi_squared / 2),
                                        rel=1e-5)  # fmt: skip


def test_an_exact_point_is_met():
    r = np.arange(5.0)
    fit = fit_quadratic(r, r**2 + [0, 0.3, -0.2, 0.1, 0.2], np.diag([0, 1.0, 1, 1, 1]), np.full(5, 1e-9), 8, 7.0)
    assert fit.constant.value == pytest.approx(0, abs=1e-12)
    assert fit.constant.sem == pytest.approx(0, abs=1e-6)
    assert fit.quadratic.sem > 0
    assert fit.p_value > 0.5


def test_coefficients_are_those_of_weighted_least_squares():
    """Of any scale of r: numpy solves the same problem in r itself."""
    rng = np.random.default_rng(4)
    sem = np.array([1.0, 0.5, 2.0, 1.0, 0.3])
    values = rng.normal(size=5)
    for unit in (1e-3, 1.0, 1e4):
        r = unit * np.array([0.0, 1.0, 3.0, 4.0, -7.0])
        fit = fit_quadratic(r, values, np.diag(sem**2), np.full(5, 1e-12), 9, 8.0)
        expected, covariance = np.polyfit(r, values, 2, w=1 / sem, cov="unscaled")
        found = [fit.quadratic, fit.linear, fit.constant]
        assert [e.value for e in found] == pytest.approx(expected, rel=1e-8)
        assert [e.sem for e in found] == pytest.approx(np.sqrt(np.diag(covariance)), rel=1e-8)
        assert fit.chi_squared == pytest.approx(float(np.square((values - np.polyval(expected, r)) / sem).sum()))
