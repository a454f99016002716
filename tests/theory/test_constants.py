"""C1–C9: printed values, their proofs' special cases, what they refuse."""

import math

import numpy as np
import pytest
from scipy.integrate import quad

from villani.errors import InputError
from villani.theory.constants import (
    Smoothing,
    bakry_emery,
    dissipative,
    dissipative_radius,
    exact_quadratic,
    holley_stroock,
    lipschitz,
    lipschitz_growth,
    lyapunov_log_sobolev,
    lyapunov_poincare,
    preprint,
    smoothed_cross_entropy,
    variance_quotient,
)


def test_smoothing_reference_values():
    """T25, and C3 at β = 1: 4.52e5/λ."""
    smoothing = Smoothing(50257, 0.1)
    assert smoothing.oscillation == pytest.approx(13.0221319, abs=5e-8)
    assert smoothing.highest == pytest.approx(13.1274902, abs=5e-8)
    assert smoothing.lowest == pytest.approx(0.105358305, abs=5e-10)
    assert smoothing.highest - smoothing.lowest == pytest.approx(smoothing.oscillation, rel=1e-14)
    assert smoothed_cross_entropy(0.1, 1, smoothing).value == pytest.approx(4.523e6, rel=1e-3)
    assert smoothed_cross_entropy(0.1, 1, smoothing).status == "certified"


@pytest.mark.parametrize(("vocabulary", "alpha"), [(2, 0.5), (50257, 0.1), (128_000, 1e-6)])
def test_smoothed_losses_stay_in_range_and_cost_at_most_what_is_said(vocabulary, alpha):
    smoothing = Smoothing(vocabulary, alpha)
    for p in np.concatenate([[1e-300], np.geomspace(1e-12, 1, 200)]):
        loss = smoothing.loss(p)
        assert smoothing.lowest - 1e-12 <= loss <= smoothing.highest + 1e-12
        assert loss + math.log(p) <= smoothing.cost + 1e-12
        assert (loss < -math.log(p) + 1e-12) or p > 1 / vocabulary - 1e-9
    assert smoothing.loss(1.0) == pytest.approx(smoothing.cost, rel=1e-9)


def test_lipschitz_growth():
    """T26; and Λ is the integral of its proof, ∫₀^∞ (v − 1)(1 − σ²)/σ² dt, v = 1 + ℓσ√v, σ² = 1 − e^{−2t}."""
    for ell, printed in ((0.5, 0.567660563), (2.0, 3.29558715), (5.0, 14.6286872)):
        assert lipschitz_growth(ell) == pytest.approx(printed, rel=5e-9)
        assert lipschitz_growth(ell) <= ell**2 / 2 + ell

        def integrand(t, ell=ell):
            decay = math.exp(-2 * t)
            half = ell * math.sqrt(1 - decay) / 2
            return ((half + math.sqrt(1 + half**2)) ** 2 - 1) * decay / (1 - decay)

        assert quad(integrand, 0, 40, limit=400)[0] == pytest.approx(lipschitz_growth(ell), rel=1e-6)


def test_upper_bounds_meet_the_gaussian():
    assert exact_quadratic(0.1, 4).value == pytest.approx(2.5)
    assert bakry_emery(0.1, 4, 0.0, True).value == pytest.approx(2.5)
    assert bakry_emery(0.1, 4, -0.9, True).value == pytest.approx(0.25)
    assert holley_stroock(0.1, 4, 0.0, True).value == pytest.approx(2.5)
    assert lipschitz(0.1, 4, 0.0, True).value == pytest.approx(2.5)


def test_the_claim():
    assert preprint(1, 1, 1).value == pytest.approx(2)
    assert preprint(1, 10, 1).value == pytest.approx(0.11)
    assert preprint(10, 1, 2).value == pytest.approx(0.12)
    assert preprint(0.1, 1, 125_000_000).value == pytest.approx(1.25e10, rel=1e-8)
    assert preprint(1, 1, 1).status == "as-claimed"


def test_formulas_of_the_lyapunov_and_dissipative_constants():
    decay, beta, s = 0.3, 4.0, 0.5
    local = math.exp(beta * 0.7) / (beta * decay)
    fifth = lyapunov_poincare(decay, beta, outside=2.0, inside=1.5, oscillation=0.7, proved=True)
    assert fifth.value == pytest.approx(s / 2.0 * (1 + 3.5 * local / s))
    assert (fifth.kind, fifth.status) == ("Poincaré", "certified")
    c, b, k = 0.05 / s, 1.2 / s, 2 * 0.4 / s
    taus = np.geomspace(1e-4, 1e4, 200_001)
    expected = (1 / taus + (taus + k) / (2 * c) + (1 + (taus + k) * b / c) * fifth.value).min()
    sixth = lyapunov_log_sobolev(beta, 0.05, 1.2, 0.4, fifth, proved=True)
    assert sixth.value == pytest.approx(expected, rel=1e-6)
    estimated = lyapunov_poincare(decay, beta, outside=2.0, inside=1.5, oscillation=0.7, proved=False)
    assert lyapunov_log_sobolev(beta, 0.05, 1.2, 0.4, estimated, proved=True).status == "estimated"
    assert lyapunov_log_sobolev(beta, 0.05, 0.0, 0.0, fifth, proved=True).value > fifth.value
    seventh = dissipative(decay, beta, 3, 0.2, 1.1, 0.7, True)
    assert seventh.value == pytest.approx(2 / (beta * 0.2 * (3 + beta * 1.1)) + 2 * local)
    assert dissipative_radius(beta, 3, 0.2, 1.1) == pytest.approx(math.sqrt(4 * (3 + beta * 1.1) / (beta * 0.2)))


def test_values_beyond_floats_keep_their_size():
    constant = smoothed_cross_entropy(0.1, 2000, Smoothing(50257, 0.1))
    assert constant.value == math.inf
    assert constant.log10 == pytest.approx(2000 * 13.0221319 / math.log(10) - math.log10(200), rel=1e-8)


@pytest.mark.parametrize(
    "call",
    [
        lambda: exact_quadratic(0.0, 1),
        lambda: exact_quadratic(-1.0, 1),
        lambda: exact_quadratic(1.0, math.inf),
        lambda: bakry_emery(0.1, 1, 0.1, True),
        lambda: bakry_emery(0.1, 1, math.nan, True),
        lambda: holley_stroock(0.1, 1, -1, True),
        lambda: holley_stroock(0.1, 1, math.inf, True),
        lambda: lipschitz(0.1, 1, math.inf, True),
        lambda: lyapunov_poincare(0.1, 1, 0.0, 1.0, 1.0, True),
        lambda: lyapunov_log_sobolev(1, 0.0, 1.0, 1.0, exact_quadratic(1, 1), True),
        lambda: dissipative(0.1, 1, 2, 0.0, 1.0, 1.0, True),
        lambda: Smoothing(1, 0.1),
        lambda: Smoothing(10, 0.0),
        lambda: Smoothing(10, 1.0),
        lambda: variance_quotient(0.0, 1.0, "certified", "x"),
    ],
)
def test_hypotheses_that_fail_are_refused(call):
    with pytest.raises(InputError):
        call()
