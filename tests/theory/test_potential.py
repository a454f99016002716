"""F in d dimensions: its local quantities against finite differences in all of them, and what is out of range."""

import numpy as np
import pytest

from villani.errors import InputError
from villani.theory.potential import potential

CASES = {
    "ridge": ("(w**2-1)**2/4 + w", {}, 1),
    "plane": ("x**2*y + sin(y)", {}, 2),
    "radial": ("(r**2-1)**2/4 + r**3", {"dimension": 3, "shape": "radial"}, 1),
}


@pytest.mark.parametrize("name", CASES)
def test_local_quantities_are_those_of_f(name):
    text, options, core = CASES[name]
    case = potential(text, weight_decay=0.3, beta=2.5, **options)
    rng, step = np.random.default_rng(0), 1e-4
    whole = 3 if name == "radial" else core

    def f(theta, decay=0.3):
        """F at points (n, whole), from the loss alone."""
        inner = np.linalg.norm(theta, axis=1)[None] if name == "radial" else theta.T
        return case.loss(inner) + decay / 2 * (theta**2).sum(1)

    theta = rng.normal(size=(4, whole))
    points = np.linalg.norm(theta, axis=1)[None] if name == "radial" else theta.T
    local = case.local(points)
    eye = step * np.eye(whole)
    for decay, squared, laplacian in (
        (0.3, local.gradient_squared, local.laplacian), (0.0, local.loss_gradient_squared, local.loss_laplacian)
    ):  # fmt: skip
        slopes = np.array([(f(theta + e, decay) - f(theta - e, decay)) / (2 * step) for e in eye])
        bends = [(f(theta + e, decay) - 2 * f(theta, decay) + f(theta - e, decay)) / step**2 for e in eye]
        np.testing.assert_allclose(squared, (slopes**2).sum(0), rtol=1e-5)
        np.testing.assert_allclose(laplacian, np.sum(bends, axis=0), rtol=1e-4, atol=1e-5)
        if decay:
            np.testing.assert_allclose(local.radial_force, (theta.T * slopes).sum(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(local.psi(2.5), 1.25 * local.gradient_squared - local.laplacian)
    np.testing.assert_allclose(case.energy(points), 2.5 * f(theta))
    np.testing.assert_allclose(local.norm_squared, (theta**2).sum(1))


def test_a_dimension_is_made_of_copies_or_of_gaussians():
    assert potential("x*y", weight_decay=1, beta=1, dimension=6, shape="copies").parts == (3, 0)
    assert potential("x*y", weight_decay=1, beta=1, dimension=6).parts == (1, 4)
    assert potential("r", weight_decay=1, beta=1, dimension=6, shape="radial").parts == (1, 0)
    assert potential("w*d", weight_decay=1, beta=1, dimension=3).loss(np.ones((1, 1)))[0] == 3
    assert potential("0*w + 2", weight_decay=1, beta=1).constant
    assert not potential("exp(-w**2)", weight_decay=1, beta=1).constant


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("w", {"weight_decay": -1.0}, "weight_decay=-1"),
        ("w", {"beta": 0.0}, "beta=0"),
        ("w", {"beta": float("inf")}, "beta=inf"),
        ("x*y*z", {}, "3 coordinates"),
        ("x*y", {"dimension": 1}, "dimension=1: expected at least 2"),
        ("w", {"dimension": 0}, "dimension=0"),
        ("x*y", {"dimension": 3, "shape": "copies"}, "multiple of 2"),
        ("r", {"shape": "radial"}, "a dimension of at least 2"),
        ("w", {"dimension": 2, "weight_decay": 0.0}, "1 of the coordinates without confinement"),
        ("abs(w)", {}, "abs has a kink"),
        ("w", {"shape": "cube"}, "shape=cube"),
    ],
)
def test_what_is_out_of_range_is_refused_in_a_line(text, options, words):
    with pytest.raises(InputError, match=words) as error:
        potential(text, **{"weight_decay": 1.0, "beta": 1.0, **options})
    assert "\n" not in str(error.value)
