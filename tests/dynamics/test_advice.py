"""The step to take after a divergence: the curvature of quadratics, and half of what they allow."""

import math

import numpy as np
import pytest
import torch

from villani.dynamics.advice import largest_curvature, smaller_step
from villani.dynamics.kernel import Kernel
from villani.dynamics.potential import PotentialTarget
from villani.theory.potential import potential

KERNEL = Kernel(0.5, 1e-2, 0.1, 10)


def target(text, start, **options):
    return PotentialTarget(potential(text, beta=1.0, weight_decay=0.5, **options), start=np.array(start))


@pytest.mark.parametrize(("text", "exact"), [("5*w**2", 10.5), ("-w**2", 2.5), ("x**2/2 + 4*y**2", 8.5)])
def test_power_iterations_find_the_largest_size_from_below(text, exact):
    """|eigenvalues| of ∇²L, and λ on top; θ comes back."""
    start = [1.0, 1.0] if "x" in text else [1.0]
    case = target(text, start)
    found = largest_curvature(case, KERNEL, 0)
    assert found <= exact * (1 + 1e-6)
    assert found == pytest.approx(exact, rel=0.02)
    torch.testing.assert_close(case.tensors[0], torch.tensor([start], dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_no_curvature_without_slopes_and_none_where_they_are_not_finite():
    assert largest_curvature(target("0*w", [1.0]), KERNEL, 0) is None
    assert largest_curvature(target("exp(w**4)", [9.0]), KERNEL, 0) is None


def test_steps_get_smaller_by_four_at_least():
    assert smaller_step(KERNEL, 1000.0) == pytest.approx(1e-3)
    assert smaller_step(KERNEL, 1.0) == pytest.approx(0.025)
    assert smaller_step(KERNEL, None) == pytest.approx(0.025)
    assert math.isfinite(smaller_step(KERNEL, 0.0))
