"""Potentials as targets of dynamics: gradients and observables against finite differences; starts."""

import numpy as np
import pytest
import torch

from villani.dynamics.potential import PotentialTarget
from villani.dynamics.start import far_start
from villani.errors import InputError
from villani.theory.catalogue import named


@pytest.mark.parametrize("name", ["quadratic", "wells", "shell", "two-factors", "binary-ce", "mixture", "radial-ce"])
def test_gradients_and_observables_of_potentials(name):
    case = named(name).potential
    target = PotentialTarget(case, 3)
    rng = np.random.default_rng(0)
    theta = far_start(case) * rng.uniform(0.5, 1.2, (3, case.dimension))
    target.tensors[0].copy_(torch.from_numpy(theta))
    now = target.evaluate(0, 0)
    slope, step = now.gradient[0].numpy().copy(), 1e-5
    laplacian = np.zeros(3)
    for i in range(case.dimension):
        sides = []
        for sign in (1, -1):
            moved = theta.copy()
            moved[:, i] += sign * step
            target.tensors[0].copy_(torch.from_numpy(moved))
            there = target.evaluate(0, 0)
            sides.append((there.loss.copy(), there.gradient[0].numpy()[:, i].copy()))
        np.testing.assert_allclose((sides[0][0] - sides[1][0]) / (2 * step), slope[:, i], rtol=1e-5, atol=1e-7)
        laplacian += (sides[0][1] - sides[1][1]) / (2 * step)
    target.tensors[0].copy_(torch.from_numpy(theta))
    decay = case.weight_decay
    linear, found, psi = target.extra(decay)
    np.testing.assert_allclose(found, laplacian + decay * case.dimension, rtol=1e-5, atol=1e-6)
    full = slope + decay * theta
    np.testing.assert_allclose(psi, case.beta / 2 * (full**2).sum(1) - found, rtol=1e-10)
    np.testing.assert_allclose(linear, theta @ far_start(case) / np.linalg.norm(far_start(case)))


def test_replicates_of_odd_number_begin_at_the_mirror_image():
    case = named("double-well").potential
    target = PotentialTarget(case, 3, 2, spread=True, start=np.array([1.5]))
    assert (target.walkers, target.replicates, target.dimension) == (6, 2, 1)
    target.reset(0)
    assert target.tensors[0][:, 0].tolist() == [1.5] * 3 + [-1.5] * 3
    target.reset(1)
    assert target.tensors[0][:, 0].tolist() == [-1.5] * 3 + [1.5] * 3


def test_sums_are_those_of_each_walker():
    case = named("quadratic", dimension=4).potential
    target = PotentialTarget(case, 5)
    theta = np.random.default_rng(0).normal(size=(5, 4))
    target.tensors[0].copy_(torch.from_numpy(theta))
    slope = np.random.default_rng(1).normal(size=(5, 4))
    sums = list(vars(target.sums([torch.from_numpy(slope)])).values())
    square, force, steep = (theta**2).sum(1), (theta * slope).sum(1), (slope**2).sum(1)
    for found, expected in zip(sums, (square, square, force, force, steep), strict=True):
        np.testing.assert_allclose(found, expected)


def test_kinks_have_no_laplacian_and_starts_have_a_length():
    assert PotentialTarget(named("kink").potential).extras == ("linear_0",)
    case = named("quadratic", dimension=2).potential
    with pytest.raises(InputError, match="start of 3 numbers: expected 2"):
        PotentialTarget(case, start=np.zeros(3))
    with pytest.raises(InputError, match="walkers=0"):
        PotentialTarget(case, 0)
