"""The kernel against closed forms on potentials, and on models: masks, unbiased batches, divergence."""

import math

import numpy as np
import pytest
import torch

from tests.conftest import make_model
from villani.dynamics.advice import largest_curvature, smaller_step
from villani.dynamics.kernel import Kernel
from villani.dynamics.langevin import STANDARD, advance
from villani.dynamics.network import NetworkTarget
from villani.dynamics.noise import PIECE, add_gaussian, gaussian
from villani.dynamics.potential import PotentialTarget
from villani.dynamics.start import far_start
from villani.errors import InputError
from villani.objective.objective import Objective
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


def test_noise_depends_on_its_key_and_not_on_threads():
    like = torch.zeros(PIECE + 3)
    once = gaussian(like, 0, Purpose.NOISE, 1, 2, 0)
    assert abs(float(once.mean())) < 4 / math.sqrt(PIECE)
    assert abs(float(once.var()) - 1) < 4 * math.sqrt(2 / PIECE)
    seen = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        tensor = torch.zeros(PIECE + 3)
        add_gaussian([tensor], [1.0], 0, 1, 2)
        seen.append(tensor)
    torch.set_num_threads(before)
    assert torch.equal(seen[0], once)
    assert torch.equal(seen[1], once)
    for other in ((1, 3), (2, 2)):
        tensor = torch.zeros(9)
        add_gaussian([tensor], [1.0], 0, *other)
        assert not torch.equal(tensor, once[:9])
    assert not torch.equal(once[:3], once[PIECE:])


def network(batch=None, decay="all", blocks=4, **options):
    ids = torch.randint(0, 11, (blocks, 1, 6), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[0, 0, 3:] = -100  # blocks of unequal length
    groups = [{"input_ids": i, "labels": y} for i, y in zip(ids, labels, strict=True)]
    objective = Objective(make_model("gpt_neo"), groups, decay=decay, finite=True)
    return NetworkTarget(objective, batch=batch, seed=0, **options)


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


def test_mini_batches_are_unbiased_for_blocks_of_unequal_length():
    """With one block a step, the mean over all blocks is the whole data set's, exactly."""
    target = network(batch=1)
    whole = network()
    with target.running(), whole.running():
        exact = [g.clone() for g in whole.evaluate(0, 0).gradient]
        seen: dict[float, list[torch.Tensor]] = {}
        step = 0
        while len(seen) < target.blocks and step < 200:
            now = target.evaluate(0, step)
            seen[float(now.loss[0])] = [g.clone() for g in now.gradient]
            step += 1
    assert len(seen) == target.blocks
    assert np.mean(list(seen)) == pytest.approx(whole.objective.loss(), rel=1e-6)
    for i, g in enumerate(exact):
        torch.testing.assert_close(sum(found[i] for found in seen.values()) / len(seen), g, rtol=1e-6, atol=1e-9)


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


def test_prior_draws_for_spread_chains_have_the_prior_s_size():
    target = network(spread=True, prior=0.5)
    target.reset(0)
    first = [t.detach().clone() for t in target.tensors]
    target.reset(1)
    draws = torch.cat([t.detach().reshape(-1) for t in target.tensors])
    assert not torch.equal(first[0], target.tensors[0])
    assert abs(float(draws.square().mean()) - 0.25) < 4 * 0.25 * math.sqrt(2 / len(draws))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_rate": 0.0}, "learning_rate=0"),
        ({"learning_rate": math.nan}, "learning_rate=nan"),
        ({"learning_rate": 30.0}, "diverges for ηλ ≥ 2"),
        ({"steps": 0}, "steps=0"),
        ({"momentum": 1.0}, "momentum=1"),
        ({"momentum": 0.5, "method": "mala"}, "not with mala"),
        ({"weight_decay": -1.0}, "weight_decay=-1"),
        ({"temperature": 0.0}, "temperature=0"),
    ],
)
def test_rules_refuse(changes, words):
    good = {"weight_decay": 0.1, "temperature": 1e-3, "learning_rate": 1e-2, "steps": 10}
    with pytest.raises(InputError, match=words):
        Kernel(**good | changes)
