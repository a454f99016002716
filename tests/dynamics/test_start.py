"""Where chains begin, four nats above the least of U on the outer side, and the largest curvature on their way."""

import math

import numpy as np
import pytest

from villani.dynamics.start import far_start, largest_curvature
from villani.theory.catalogue import named
from villani.theory.potential import potential


@pytest.mark.parametrize("name", ["double-well", "binary-ce", "mixture", "tied", "two-factors", "shell"])
def test_a_start_is_four_nats_up_on_the_outer_side(name):
    case = named(name).potential
    start = far_start(case)
    assert start.shape == (case.dimension,)
    core = case.core
    direction = np.ones(core) / math.sqrt(core)
    radius = float(np.linalg.norm(start)) if case.shape == "radial" else float(start[:core] @ direction)

    line = np.array([radius, 1.1 * radius, *np.linspace(1e-3, 3 * radius, 20_000)])
    here, beyond, *others = case.energy(direction[:, None] * line)
    assert here - min(others) == pytest.approx(4, abs=0.05)
    assert beyond > here


def test_coordinates_that_only_decay_are_as_far_out():
    """(βλ/2)x² = 4 in each."""
    case = potential("log(1+exp(w))-w/2", weight_decay=0.2, beta=5.0, dimension=3)
    assert far_start(case)[1:] == pytest.approx([math.sqrt(2 * 4 / (5 * 0.2))] * 2)


@pytest.mark.parametrize(
    ("text", "options", "exact"),
    [
        ("3*w**2/2", {"weight_decay": 0.5}, 3.5),
        ("0*w", {"weight_decay": 0.7, "dimension": 4}, 0.7),
        ("x**2 + 3*x*y + y**2", {"weight_decay": 2.0}, 7.0),  # eigenvalues of [[2, 3], [3, 2]] are 5 and −1
        ("2*r**2", {"weight_decay": 1.0, "dimension": 3, "shape": "radial"}, 5.0),
    ],
)
def test_the_curvature_of_quadratics(text, options, exact):
    assert largest_curvature(potential(text, beta=1.0, **options)) == pytest.approx(exact)
