"""Stochastic Lanczos quadrature against dense float64 matrices, and the coverage of its intervals."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from scipy.stats import beta

from tests.conftest import dense, make_model, make_pool
from villani.curvature.operators import Budget, Curvature
from villani.curvature.spectrum import Density, Quadrature, quadrature, sphere_probe
from villani.errors import InputError
from villani.objective.objective import Objective


@pytest.fixture(scope="module")
def spread() -> np.ndarray:
    """A matrix with eigenvalues of both signs over three decades."""
    rng = np.random.default_rng(0)
    values = np.concatenate([np.logspace(1, -2, 60), -np.logspace(0, -2, 40), np.zeros(50)])
    q, _ = np.linalg.qr(rng.normal(size=(150, 150)))
    return (q * values) @ q.T


def probe(size, seed):
    v = np.random.default_rng(seed).normal(size=size)
    return torch.from_numpy(v * size**0.5 / np.linalg.norm(v))


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


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("shift", [0.0, 0.37, 2.0], ids=str)
def test_what_is_left_open_of_absolute_values_is_what_moments_leave_open(steps, shift):
    """By linear programming over measures on a fine grid with the same moments of degree 0 to 2k."""
    rng = np.random.default_rng(steps)
    values = np.sort(rng.standard_normal(40)) + shift
    v, h = torch.from_numpy(rng.standard_normal(40)), torch.diag(torch.from_numpy(values))
    found = quadrature(lambda x: h @ x, v, steps)
    low, high = found.absolute()
    weights = v.numpy() ** 2 / (v.numpy() ** 2).sum()
    for inside in (weights @ np.abs(values), found.weights @ np.abs(found.nodes)):
        assert low - 1e-12 <= inside <= high + 1e-12
    far = np.geomspace(5, 1e3 if steps == 1 else 40.0, 1500)  # what measures may have out there
    grid = np.unique(np.concatenate([-far, np.linspace(-5, 5, 2001), values, far]))
    powers = np.polynomial.chebyshev.chebvander(np.concatenate([values, grid]) / 5, 2 * steps)
    triangle = np.linalg.qr(np.sqrt(weights)[:, None] * powers[: len(values)])[1]
    polynomials = powers @ np.linalg.inv(triangle)  # orthonormal: the program is well scaled
    moments, rows = weights @ polynomials[: len(values)], polynomials[len(values) :]
    scale = 1 / np.abs(rows).max(axis=1)
    exact = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    for sign, bound in ((1, low), (-1, high)):
        cost, equal = sign * np.abs(grid) * scale, (rows * scale[:, None]).T
        best = sign * linprog(cost, A_eq=equal, b_eq=moments, options=exact).fun
        assert best == pytest.approx(bound, rel=1e-5, abs=1e-6)
        assert sign * best >= sign * bound - 1e-9  # a grid has fewer measures


def test_nothing_is_left_open_where_krylov_s_space_ends(spread):
    h = torch.diag(torch.tensor([2.0, 2.0, 0.0, -1.0]).double())
    found = quadrature(lambda x: h @ x, torch.ones(4).double(), 10)
    assert found.absolute() == pytest.approx((1.25, 1.25))
    centred = quadrature(
        lambda x: torch.diag(torch.tensor([1.0, -1.0, 2.0, -2.0]).double()) @ x, torch.ones(4).double(), 1
    )
    assert centred.absolute()[0] == pytest.approx(0.0)  # a node at 0: its mean is all that is known
    assert centred.absolute()[1] <= 2.5**0.5 + 1e-9


@pytest.mark.parametrize(("probes", "steps"), [(1, 4), (1, 40), (3, 6), (8, 10)])
def test_the_effective_rank_of_few_probes_and_steps_is_in_its_interval(spread, probes, steps):
    """One probe has an error too, and few steps leave much of |λ| open."""
    truth = np.linalg.eigvalsh(spread)
    rank = np.abs(truth).sum() ** 2 / (truth**2).sum()
    hits = 0
    for found in densities(spread, probes, steps, range(40)):
        estimate = found.effective_rank
        low, high = estimate.interval(0.95)
        assert 1 <= low <= estimate.value <= high <= len(truth)
        assert estimate.sem > 0
        assert estimate.status == "statistical"
        hits += low <= rank <= high
    assert hits >= 36


@pytest.mark.thorough
def test_intervals_cover_the_dense_moments(spread):
    """Trace, Frobenius norm and the share of negative eigenvalues: 95 % intervals from 8 probes, 80 times."""
    truth = np.linalg.eigvalsh(spread)
    wanted = {"trace": truth.sum(), "frobenius_squared": (truth**2).sum()}
    hits = dict.fromkeys(wanted, 0)
    ranks = []
    for found in densities(spread, 8, 20, range(80)):
        for name, value in wanted.items():
            low, high = getattr(found, name).interval(0.95)
            hits[name] += low <= value <= high
        low, high = found.effective_rank.interval(0.95)
        ranks.append(low <= np.abs(truth).sum() ** 2 / (truth**2).sum() <= high)
    for count in (*hits.values(), sum(ranks)):
        assert count >= 0.95 * 80 - 4 * (80 * 0.05 * 0.95) ** 0.5


@pytest.mark.parametrize("probes", [2, 4, 10])
@pytest.mark.parametrize("values", [[1.0], [1.0, 0.7], [1.0] * 10, [1.0, -1.0], [3.0, *[-0.3] * 40]], ids=len)
def test_intervals_of_few_probes_cover_where_few_eigenvalues_count(values, probes):
    """The exact quadrature of diagonal matrices of size 200; t-intervals of 4 probes cover in 83 % of the first."""
    rng = np.random.default_rng(probes)
    nodes = np.sort(np.concatenate([values, np.zeros(200 - len(values))]))
    truths, hits, tries = (nodes.sum(), (nodes**2).sum()), np.zeros(2), 150
    for _ in range(tries):
        weights = rng.normal(size=(probes, 200)) ** 2
        weights /= weights.sum(axis=1, keepdims=True)
        found = Density(200, [[Quadrature(nodes, w, np.zeros(200)) for w in weights]])
        assert {found.trace.status, found.frobenius_squared.status} == {"statistical"}
        for i, (estimate, truth) in enumerate(zip((found.trace, found.frobenius_squared), truths, strict=True)):
            low, high = estimate.interval(0.95)
            assert low <= estimate.value <= high
            hits[i] += low <= truth <= high
    assert (hits / tries >= 0.95 - 4 * (0.05 * 0.95 / tries) ** 0.5).all()


def test_the_curve_is_the_broadened_dense_density(spread):
    found = next(densities(spread, 60, 40, [7]))
    grid, density, sem, sigma = found.curve(broadening=0.03)
    truth = np.linalg.eigvalsh(spread)
    exact = np.exp(-(((grid[:, None] - truth) / sigma) ** 2) / 2).mean(axis=1) / (sigma * np.sqrt(2 * np.pi))
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=1e-3)
    assert (np.abs(density - exact) <= 4.5 * sem + 1e-3 * exact.max()).all()


def test_negative_share():
    """With as many steps as there are distinct eigenvalues nothing is left open: Beta(r/2, (d − r)/2) of the probes."""
    h = np.diag([3.0, 2.0, 1.0, -1.0, -2.0] * 4)
    found = [next(densities(h, 4, 5, [seed])).negative_share() for seed in range(200)]
    assert np.mean([f.value for f in found]) == pytest.approx(0.4, abs=0.015)
    assert np.std([f.value for f in found]) == pytest.approx(beta(4, 6).std() / 2, rel=0.2)
    assert np.mean([f.interval()[0] <= 0.4 <= f.interval()[1] for f in found]) > 0.95


@pytest.mark.parametrize("steps", [5, 20, 80])
@pytest.mark.parametrize("near", [1e-1, 1e-4, 1e-12])
def test_the_negative_share_is_bounded_where_eigenvalues_crowd_at_0(steps, near):
    """Nodes do not follow a step, and 4 probes of 80 steps were off by more than their interval in 9 runs of 10."""
    rng = np.random.default_rng(1)
    values = np.concatenate([[5.0, 3.0, -1.0], near * rng.normal(size=197)])
    h = torch.from_numpy(values)
    truth = (values < 0).mean()
    for seed in range(12):
        samples = [[quadrature(lambda v: h * v, probe(200, (seed, i)), steps) for i in range(4)]]
        found = Density(200, samples, 2**-52).negative_share()
        assert found.interval(0.95)[0] <= truth <= found.interval(0.95)[1]
        exact = [float((q.weights[q.nodes < 0]).sum()) for q in samples[0]]
        assert found.value - found.sem <= np.mean(exact) <= found.value + found.sem
        weights = [(probe(200, (seed, i)).numpy()[values < 0] ** 2).sum() / 200 for i in range(4)]
        for q, weight in zip(samples[0], weights, strict=True):  # of each probe, not on average alone
            low, high = q.below(1e-12)
            assert low - 1e-9 <= weight <= high + 1e-9


def test_zeros_are_not_counted_as_negative():
    h = torch.tensor([2.0, -1.0, *[0.0] * 98])
    samples = [[quadrature(lambda v: h * v, probe(100, i).float(), 20) for i in range(4)]]
    low, high = Density(100, samples).negative_share().interval(0.95)
    assert low == 0
    assert high == 1  # which side of 0 they are on is not seen


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
        probes = [sphere_probe(operator.parameters, 3, 0, i) for i in range(50)]
        found = Density(operator.size, [[quadrature(operator, v, 2) for v in probes]])
        for estimate, truth in ((found.trace, np.trace(block)), (found.frobenius_squared, (block**2).sum())):
            assert abs(estimate.value - truth) < 4 * estimate.sem + 1e-9 * abs(truth)
        for q, v in zip(found.samples[0], probes, strict=True):
            assert operator.size * q.moment(1) == pytest.approx(float(v @ torch.from_numpy(block) @ v), abs=1e-7)


def test_no_steps_are_refused():
    with pytest.raises(InputError, match="density_steps=0"):
        quadrature(lambda v: v, torch.ones(3), 0)
