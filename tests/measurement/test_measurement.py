"""Ψ_s from five statistics: the formula, its covariance, and what it does with λ and s."""

import math

import numpy as np
import pytest

from villani.errors import InputError
from villani.measurement.measurement import Measurement
from villani.statistics import Estimate, JointEstimate

VALUES = np.array([3.0, 0.04, 1.7, 250.0])
ROOT = np.random.default_rng(0).normal(size=(4, 4)) * np.array([[0.1], [0.01], [0.3], [20.0]])
NORM, DECAYED = 48.0, 900


@pytest.fixture
def measurement():
    joint = JointEstimate(VALUES, ROOT @ ROOT.T, 12, 11.0, ROOT)
    return Measurement(
        joint=joint, naive_gradient_norm_squared=Estimate(0.1, 0.01, 12, "estimated"), gauss_newton_trace=None,
        decayed_norm_squared=NORM, parameters=1000, decayed_parameters=DECAYED, weight_decay=0.2, tokens=100,
        tensors=(), layers=(), sketch=None,
    )  # fmt: skip


@pytest.mark.parametrize("decay", [0.0, 0.2, 3.0])
@pytest.mark.parametrize("s", [1e-4, 2.0])
def test_psi_is_its_formula_with_the_variance_of_a_linear_map(decay, s, measurement):
    """‖∇F‖²/s − ΔF with ∇F = ∇L + λmθ and ΔF = tr ∇²L + λd_m."""
    psi = measurement.psi(decay, temperature=s)
    squared = VALUES[1] + 2 * decay * VALUES[2] + decay**2 * NORM
    assert psi.value == pytest.approx(squared / s - VALUES[3] - decay * DECAYED)
    weights = np.array([0.0, 1 / s, 2 * decay / s, -1.0])
    assert psi.sem == pytest.approx(math.sqrt(weights @ ROOT @ ROOT.T @ weights))
    assert sum(part.value for part in psi.parts.values()) == pytest.approx(psi.value)
    assert (psi.parts["decay_norm"].sem, psi.parts["decay_laplacian"].sem) == (0, 0)
    assert psi.parts["cross"].sem == pytest.approx(2 * decay / s * np.linalg.norm(ROOT[2]))


def test_the_objectives_decay_is_the_default(measurement):
    assert measurement.psi(temperature=0.5) == measurement.psi(0.2, temperature=0.5)


def test_components_have_their_own_errors(measurement):
    names = ("loss", "gradient_norm_squared", "gradient_dot_parameters", "hessian_trace")
    for row, value, name in zip(ROOT, VALUES, names, strict=True):
        estimate = getattr(measurement, name)
        assert estimate.value == value
        assert estimate.sem == pytest.approx(np.linalg.norm(row))


def test_a_smooth_function_goes_by_the_delta_method(measurement):
    found = measurement.propagate(lambda x: math.log(x[0]) * x[1])
    slope = np.array([VALUES[1] / VALUES[0], math.log(VALUES[0]), 0, 0])
    assert found.value == pytest.approx(math.log(3) * 0.04)
    assert found.sem == pytest.approx(np.linalg.norm(slope @ ROOT), rel=1e-4)


@pytest.mark.parametrize(
    ("decay", "s", "words"),
    [(-1.0, 1.0, "weight_decay=-1"), (math.nan, 1.0, "weight_decay=nan"), (0.1, 0.0, "temperature=0"),
     (0.1, math.inf, "temperature=inf")],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(decay, s, words, measurement):
    with pytest.raises(InputError, match=words):
        measurement.psi(decay, temperature=s)
