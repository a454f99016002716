"""Steps of a chain against closed forms on potentials, and on models: masks, cuts, divergence."""

import math

import numpy as np
import pytest
import torch

from tests.dynamics.test_network import network
from villani.dynamics.advice import largest_curvature, smaller_step
from villani.dynamics.kernel import Kernel
from villani.dynamics.langevin import STANDARD, advance
from villani.dynamics.noise import gaussian
from villani.dynamics.potential import PotentialTarget
from villani.streams import Purpose
from villani.theory.catalogue import named
from villani.theory.exact import solve
from villani.theory.potential import potential
from villani.theory.rates import GaussianLaw, gaussian_ula, gaussian_ula_limit, gibbs_quadratic


def quadratic(decay=0.5, beta=4.0, d=2):
    return potential("0*w", weight_decay=decay, beta=beta, dimension=d)


def run(case, kernel, walkers, seed=0, start=None, **options):
    target = PotentialTarget(case, walkers, start=start)
    target.reset(0)
    return advance(target, kernel, seed=seed, chain=0, **options), target.tensors[0].numpy()


def fitted(theta):
    """The Gaussian of the same mean and variance, over all coordinates, and standard errors of both."""
    n = theta.size
    mean, variance = float(theta.mean()), float(theta.var(ddof=1))
    return GaussianLaw(mean, variance), math.sqrt(variance / n), variance * math.sqrt(2 / (n - 1))


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_ula_has_the_closed_form_of_a_gaussian_at_every_step(steps):
    decay, beta, step = 0.5, 4.0, 0.8
    kernel = Kernel(decay, 2 / beta, step, steps)
    _, theta = run(quadratic(decay, beta), kernel, 20_000, start=np.array([3.0, 3.0]))
    law = gaussian_ula(GaussianLaw(3.0, 0.0), decay, beta, step, steps)
    found, mean_error, variance_error = fitted(theta)
    assert abs(found.mean - law.mean) < 4 * mean_error
    assert abs(found.variance - law.variance) < 4 * variance_error


def test_step_size_bias_of_the_stationary_law_and_its_kl():
    decay, beta, step = 0.5, 4.0, 1.0
    _, theta = run(quadratic(decay, beta), Kernel(decay, 2 / beta, step, 40), 20_000)
    biased, target = gaussian_ula_limit(decay, beta, step), gibbs_quadratic(decay, beta)
    found, _, error = fitted(theta)
    assert abs(found.variance - biased.variance) < 4 * error
    assert abs(found.variance - target.variance) > 10 * error  # the bias is seen
    assert found.kl(target) == pytest.approx(biased.kl(target), rel=0.1)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_matched_noise_keeps_the_prior_whatever_the_steps(schedule):
    decay, beta = 0.5, 4.0
    kernel = Kernel(decay, 2 / beta, 1.5, 40, "matched", schedule=schedule)
    _, theta = run(quadratic(decay, beta), kernel, 20_000)
    found, _, error = fitted(theta)
    assert abs(found.variance - gibbs_quadratic(decay, beta).variance) < 4 * error


def test_momentum_has_the_variance_of_its_closed_form():
    decay, beta, step, mu = 0.5, 4.0, 0.8, 0.6
    kernel = Kernel(decay, 2 / beta, step, 120, momentum=mu)
    velocity = [torch.zeros(20_000, 2, dtype=torch.float64)]
    _, theta = run(quadratic(decay, beta), kernel, 20_000, velocity=velocity)
    found, _, error = fitted(theta)
    # an AR(2) process with φ₁ = 1 + μ − ηλ, φ₂ = −μ and innovations of variance (1 − μ)ηs
    expected = (1 / (beta * decay)) / (1 - step * decay / (2 * (1 + mu)))
    assert abs(found.variance - expected) < 4 * error
    assert kernel.times([1])[0] == pytest.approx(step / (1 - mu))


@pytest.mark.parametrize(
    ("name", "changes", "step", "steps"),
    [("double-well", {"beta": 4.0}, 0.25, 120), ("mixture", {}, 1.0, 150), ("binary-ce", {}, 3.0, 60)],
)
def test_mala_recovers_moments_with_steps_that_bias_ula(name, changes, step, steps):
    case = named(name, **changes).potential
    truth = solve(case, sobolev=False).moments
    spread = np.sqrt(truth.norm_squared)
    kernel = Kernel(case.weight_decay, 2 / case.beta, step, steps, "mala")
    target = PotentialTarget(case, 6000, 2, spread=True, start=np.array([spread]))
    target.reset(0)
    piece = advance(target, kernel, seed=1, chain=0, log_every=10)
    theta = target.tensors[0].numpy()[:, 0]
    for values, exact in ((theta**2, truth.norm_squared), (case.loss(theta[None]), truth.loss)):
        assert abs(values.mean() - exact) < 4 * values.std() / math.sqrt(len(values))
    assert 0.3 < piece.accepted / (steps * target.walkers) < 0.97
    plain, there = run(case, Kernel(case.weight_decay, 2 / case.beta, step, steps), 12_000, start=np.array([spread]))
    biased = there[:, 0] ** 2
    left = plain.diverged is not None  # the same step is too long for the chain without acceptance
    assert left or abs(biased.mean() - truth.norm_squared) > 4 * biased.std() / math.sqrt(len(biased))


def test_mala_keeps_the_law_under_a_schedule():
    decay, beta = 0.5, 4.0
    _, theta = run(quadratic(decay, beta, 1), Kernel(decay, 2 / beta, 2.0, 60, "mala", schedule="cosine"), 20_000)
    found, _, error = fitted(theta)
    assert abs(found.variance - gibbs_quadratic(decay, beta).variance) < 4 * error


def test_a_step_of_a_model_is_the_formula_with_masks():
    target = network(decay="nanogpt")
    kernel = Kernel(0.3, 1e-2, 0.05, 2)
    before = [t.detach().clone() for t in target.tensors]
    gradient, loss = target.objective.gradient(), target.objective.loss()
    with target.running():
        piece = advance(target, kernel, seed=0, chain=3, enough=lambda step: step == 1)
    assert not all(target.decayed)
    for i, (old, new, g, decayed) in enumerate(zip(before, target.tensors, gradient, target.decayed, strict=True)):
        noise = gaussian(old, 0, Purpose.NOISE, 3, 0, i)
        expected = old - 0.05 * (g + 0.3 * decayed * old) + math.sqrt(0.05 * 1e-2) * noise
        torch.testing.assert_close(new.detach(), expected, rtol=1e-9, atol=1e-12)
    row = dict(zip((*STANDARD, *target.extras), piece.rows[0][:, 0], strict=True))
    theta, slope = (torch.cat([t.reshape(-1) for t in ts]) for ts in (before, gradient))
    mask = torch.cat([torch.full((t.numel(),), float(m)) for t, m in zip(before, target.decayed, strict=True)])
    full = slope + 0.3 * mask * theta
    assert row["loss"] == pytest.approx(loss, rel=1e-6)
    assert row["objective"] == pytest.approx(row["loss"] + 0.15 * float((mask * theta**2).sum()), rel=1e-9)
    assert row["norm_squared"] == pytest.approx(float(theta @ theta), rel=1e-9)
    assert row["radial_force"] == pytest.approx(float(theta @ full), rel=1e-6)
    assert row["gradient_squared"] == pytest.approx(float(full @ full), rel=1e-6)
    assert all(t.grad is None for t in target.tensors)


def test_a_cut_chain_has_the_same_bits_and_chains_differ():
    kernel = Kernel(0.1, 1e-2, 0.01, 6)
    ends = []
    for cuts in ((6,), (2, 5, 6)):
        target = network(batch=2)
        start, rows = 0, []
        with target.running():
            for cut in cuts:
                piece = advance(
                    target, kernel, seed=0, chain=1, start=start, ceiling=math.inf if start else None,
                    enough=lambda step, cut=cut: step == cut,
                )  # fmt: skip
                rows += piece.rows
                start = piece.stop
        ends.append((np.array(rows), [t.detach().clone() for t in target.tensors]))
    np.testing.assert_array_equal(ends[0][0], ends[1][0])
    assert all(torch.equal(a, b) for a, b in zip(ends[0][1], ends[1][1], strict=True))
    other = network(batch=2)
    with other.running():
        advance(other, kernel, seed=0, chain=2)
    assert not torch.equal(other.tensors[0], ends[0][1][0])


def test_divergence_is_found_and_told_with_a_step_that_works():
    case = named("double-well").potential
    kernel = Kernel(0.0, 2 / case.beta, 2.0, 200)
    piece, _ = run(case, kernel, 50, log_every=1)
    assert piece.diverged is not None
    assert piece.stop == piece.diverged
    assert np.isfinite(np.array(piece.rows)).all()
    assert len(piece.rows) == piece.diverged  # what was measured before stays
    target = PotentialTarget(case, 50)
    curvature = largest_curvature(target, kernel, 0)
    assert 2 < curvature < 12  # F″ = 3w² − 1 at the start, w = 1.5
    again, _ = run(case, Kernel(0.0, 2 / case.beta, smaller_step(kernel, curvature), 200), 50)
    assert again.diverged is None


def test_a_model_that_diverges_stops():
    target = network()
    with target.running():
        piece = advance(target, Kernel(0.1, 1e-3, 15.0, 400), seed=0, chain=0)
    assert piece.diverged is not None
    assert 0 < piece.diverged < 400
