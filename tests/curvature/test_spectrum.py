"""Stochastic Lanczos quadrature against dense float64 matrices, and the coverage of its intervals."""

import numpy as np
import pytest
import torch

from tests.conftest import dense, make_model, make_pool
from villani.curvature.operators import Budget, Curvature
from villani.curvature.spectrum import Density, quadrature, sign_probe
from villani.errors import InputError
from villani.landscape.objective import Objective


@pytest.fixture(scope="module")
def spread() -> np.ndarray:
    """A matrix with eigenvalues of both signs over three decades."""
    rng = np.random.default_rng(0)
    values = np.concatenate([np.logspace(1, -2, 60), -np.logspace(0, -2, 40), np.zeros(50)])
    q, _ = np.linalg.qr(rng.normal(size=(150, 150)))
    return (q * values) @ q.T


def probe(size, seed):
    signs = np.random.default_rng(seed).integers(0, 2, size) * 2.0 - 1
    return torch.from_numpy(signs)


def densities(matrix, probes, steps, seeds):
    h = torch.from_numpy(matrix)
    for seed in seeds:
        yield Density(
            len(matrix), [[quadrature(lambda v: h @ v, probe(len(matrix), (seed, i)), steps) for i in range(probes)]]
        )


def test_moments_up_to_2k_minus_1_are_those_of_the_probe(spread):
    steps = 8
    h, v = torch.from_numpy(spread), probe(150, 1)
    found = quadrature(lambda x: h @ x, v, steps)
    assert len(found.nodes) == steps
    assert found.weights.sum() == pytest.approx(1, abs=1e-12)
    powers = v.numpy()
    for power in range(2 * steps):
        assert found.moment(power) == pytest.approx(v.numpy() @ powers / 150, rel=1e-8)
        powers = spread @ powers
    assert abs(found.moment(2 * steps) / (v.numpy() @ powers / 150) - 1) > 1e-10


def test_a_probe_s_krylov_space_may_end(spread):
    h = torch.diag(torch.tensor([2.0, 2.0, 2.0, -1.0]).double())
    found = quadrature(lambda x: h @ x, torch.ones(4).double(), 10)
    assert np.allclose(found.nodes, [-1, 2])
    assert np.allclose(found.weights, [0.25, 0.75])
    assert np.allclose(found.residuals, 0)


def test_intervals_cover_the_dense_moments(spread):
    """Trace, Frobenius norm and the share of negative eigenvalues: 95 % intervals from 8 probes, 120 times."""
    truth = np.linalg.eigvalsh(spread)
    wanted = {"trace": truth.sum(), "frobenius_squared": (truth**2).sum()}
    hits = dict.fromkeys(wanted, 0)
    ranks = []
    for found in densities(spread, 8, 20, range(120)):
        for name, value in wanted.items():
            low, high = getattr(found, name).interval(0.95)
            hits[name] += low <= value <= high
        low, high = found.effective_rank.interval(0.95)
        ranks.append(low <= np.abs(truth).sum() ** 2 / (truth**2).sum() <= high)
    for count in (*hits.values(), sum(ranks)):
        assert 0.95 * 120 - 4 * (120 * 0.05 * 0.95) ** 0.5 <= count <= 119


def test_the_curve_is_the_broadened_dense_density(spread):
    found = next(densities(spread, 60, 40, [7]))
    grid, density, sem, sigma = found.curve(broadening=0.03)
    truth = np.linalg.eigvalsh(spread)
    exact = np.exp(-(((grid[:, None] - truth) / sigma) ** 2) / 2).mean(axis=1) / (sigma * np.sqrt(2 * np.pi))
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=1e-3)
    assert (np.abs(density - exact) <= 4.5 * sem + 1e-3 * exact.max()).all()


def test_negative_share(spread):
    """With as many steps as there are distinct eigenvalues the count is exact on average."""
    h = np.diag([3.0, 2.0, 1.0, -1.0, -2.0] * 4)
    shares = [next(densities(h, 4, 5, [seed])).negative_share().value for seed in range(20)]
    assert np.mean(shares) == pytest.approx(0.4, abs=1e-9)  # signs weigh every coordinate alike


def test_shares_cover_data_noise():
    """Matrices that differ by data: the error over shares is that of their traces."""
    rng = np.random.default_rng(5)
    shifts = rng.normal(size=6)
    samples = []
    for s, shift in enumerate(shifts):
        h = torch.eye(20, dtype=torch.float64) * float(shift)
        samples.append([quadrature(lambda v, h=h: h @ v, probe(20, (s, i)), 3) for i in range(2)])
    found = Density(20, samples).trace
    assert found.n == 6
    assert found.value == pytest.approx(20 * shifts.mean())
    assert found.sem == pytest.approx(20 * shifts.std(ddof=1) / 6**0.5)


def test_moments_of_a_language_model():
    """From the same products: trace and Frobenius norm against the dense Hessian, block by block too."""
    model = make_model("gpt_neo")
    pool = make_pool(1)
    objective = Objective(model, pool)
    oracle = dense(model, pool[0], second=True)
    hessian = oracle.hessian / oracle.tokens
    for tensors in (None, [4, 5]):
        operator = Curvature(objective, tensors=tensors, budget=Budget())
        chosen = range(len(objective.parameters.sizes)) if tensors is None else tensors
        inside = np.repeat(np.isin(np.arange(len(objective.parameters.sizes)), chosen), objective.parameters.sizes)
        block = hessian[np.ix_(inside, inside)]
        probes = [sign_probe(operator.parameters, 3, 0, i) for i in range(50)]
        found = Density(operator.size, [[quadrature(operator, v, 2) for v in probes]])
        for estimate, truth in ((found.trace, np.trace(block)), (found.frobenius_squared, (block**2).sum())):
            assert abs(estimate.value - truth) < 4 * estimate.sem + 1e-9 * abs(truth)
        for q, v in zip(found.samples[0], probes, strict=True):
            assert operator.size * q.moment(1) == pytest.approx(float(v @ torch.from_numpy(block) @ v), abs=1e-7)


def test_no_steps_are_refused():
    with pytest.raises(InputError, match="density_steps=0"):
        quadrature(lambda v: v, torch.ones(3), 0)
