"""Ritz pairs examined: their values, residuals and shares, against dense eigenvalues and numpy."""

import numpy as np
import pytest
import torch

from tests.conftest import make_pool
from tests.curvature.test_lanczos import matrix, solve
from tests.curvature.test_operators import mean_matrices
from villani.curvature.basis import Basis
from villani.curvature.lanczos import Ends, krylov
from villani.curvature.operators import Budget, Curvature
from villani.curvature.pairs import examine, ritz_pairs, save_vector
from villani.objective.objective import Objective


def test_ten_at_each_end_equal_the_dense_eigenvalues(model):
    pool = make_pool(2)
    operator = Curvature(Objective(model, pool), budget=Budget())
    oracle, _ = mean_matrices(model, pool)
    truth = np.linalg.eigvalsh(oracle)
    pairs, ritz = ritz_pairs(operator, operator.size, operator.dtype, Ends(10, 10, 1e-5, length=90))
    wanted = np.concatenate([truth[::-1][:10], truth[:10]])
    found = np.array([pair.value for pair in pairs])
    assert ritz.converged
    assert (np.abs(found - wanted) <= 1e-6 * np.abs(wanted)).all()
    assert (np.abs(found - wanted) <= [pair.residual + 1e-12 for pair in pairs]).all()
    for pair in pairs[::7]:
        u = pair.vector.numpy()
        assert np.linalg.norm(oracle @ u - pair.value * u) == pytest.approx(pair.residual, abs=1e-9)


def test_quadratic_bounds_hold_where_they_are_given():
    truth = np.sort([4, 3, 2.5, *np.linspace(-1, 1, 100)])
    pairs, _ = solve(matrix(truth), Ends(3, 0, 1e-2))
    assert all(pair.quadratic is not None for pair in pairs)
    for pair in pairs:
        assert np.abs(truth - pair.value).min() <= pair.quadratic + 1e-12


def test_a_pair_is_what_numpy_makes_of_its_vector(tmp_path):
    """However far from converged: ρ = uᵀHu, ‖Hu − ρu‖, shares of each tensor, and the rounding of one product."""
    h = matrix(np.linspace(-1, 2, 60))
    tensor = torch.from_numpy(h)
    with Basis(60, torch.float64) as basis:
        ritz = krylov(lambda v: tensor @ v, basis, Ends(2, 1, 1e-9, most=8))
        pairs = examine(
            lambda v: tensor @ v, basis, ritz, [10, 50], rounding=lambda u, w: 0.125, directory=tmp_path,
        )  # fmt: skip
    values = [pair.value for pair in pairs]
    for i, pair in enumerate(pairs):
        u = np.load(pair.vector)
        assert np.linalg.norm(u) == pytest.approx(1)
        assert pair.value == pytest.approx(u @ h @ u)
        assert pair.residual == pytest.approx(np.linalg.norm(h @ u - pair.value * u))
        assert pair.bound == pair.residual + 0.125
        assert pair.shares == pytest.approx([(u[:10] ** 2).sum(), (u[10:] ** 2).sum()])
        gap = min(abs(pair.value - other) for k, other in enumerate(values) if k != i)
        assert pair.quadratic == (pytest.approx(pair.residual**2 / gap) if gap > pair.residual else None)


def test_a_vector_is_written_whole(tmp_path):
    v = torch.randn(7)
    save_vector(tmp_path / "deep" / "vector-00.npy", v)
    assert np.load(tmp_path / "deep" / "vector-00.npy").tolist() == v.tolist()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["vector-00.npy"]
