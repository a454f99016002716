"""Eigenpairs and densities of an objective against a dense float64 matrix."""

import numpy as np
import pytest
import torch

from tests.conftest import dense, make_model, make_pool
from villani import InputError, Objective, eigenpairs, spectrum


@pytest.fixture(scope="module")
def oracle():
    model, pool = make_model("gpt2"), make_pool(3)
    objective = Objective(model, pool, weight_decay=0.3, decay="hf")
    parts = [dense(model, group, second=True) for group in pool]
    tokens = sum(part.tokens for part in parts)
    matrices = {"hessian": sum(p.hessian for p in parts) / tokens}
    matrices["gauss-newton"] = sum(p.gauss_newton for p in parts) / tokens
    return objective, matrices, 0.3 * np.diag(np.repeat(objective.parameters.decayed, objective.parameters.sizes))


@pytest.mark.parametrize(
    ("operator", "matrix", "bottom"),
    [("hessian", "loss", 2), ("hessian", "objective", 2), ("gauss-newton", "loss", 0)],  # the last has a null space
)
def test_ends_equal_those_of_the_dense_matrix(oracle, operator, matrix, bottom):
    objective, matrices, decay = oracle
    whole = matrices[operator] + (decay if matrix == "objective" else 0)
    truth = np.linalg.eigvalsh(whole)
    theta = [t.detach().clone() for t in objective.parameters.tensors]
    pairs = eigenpairs(objective, operator=operator, matrix=matrix, top=3, bottom=bottom, tolerance=1e-7)
    assert pairs.converged
    assert 0 < pairs.products < len(whole)
    np.testing.assert_allclose([p.value for p in pairs.largest], truth[:-4:-1], rtol=1e-9)
    np.testing.assert_allclose([p.value for p in pairs.smallest], truth[:bottom], rtol=1e-9, atol=1e-9 * truth[-1])
    for pair in (*pairs.largest, *pairs.smallest):
        u = pair.vector.numpy()
        residual = np.linalg.norm(whole @ u - pair.value * u)
        assert np.linalg.norm(u) == pytest.approx(1)
        assert residual == pytest.approx(pair.residual, abs=1e-9 * truth[-1])
        assert np.abs(truth - pair.value).min() <= pair.bound + 1e-12
        np.testing.assert_allclose(
            pair.shares, [float((part**2).sum()) for part in np.split(u, np.cumsum(objective.parameters.sizes)[:-1])]
        )
    assert all(torch.equal(a, b) for a, b in zip(theta, objective.parameters.tensors, strict=True))


def test_too_few_products_are_told(oracle):
    objective, *_ = oracle
    assert not eigenpairs(objective, top=3, bottom=2, tolerance=1e-9, most=8).converged


def test_density_has_the_trace_and_the_norm_of_the_matrix(oracle):
    """Within 99.99 % intervals, of the width that probes have; what memory there is moves no bit."""
    objective, matrices, _ = oracle
    h = matrices["hessian"]
    options = {"top": 1, "bottom": 1, "density_probes": 4, "density_steps": 12, "seed": 3, "tolerance": 1e-2}
    found = spectrum(objective, **options)
    for estimate, truth in (
        (found.density.trace, np.trace(h)), (found.density.frobenius_squared, (h**2).sum()),
    ):  # fmt: skip
        low, high = estimate.interval(0.9999)
        assert low < truth < high
    scatter = (h**2).sum() - np.trace(h) ** 2 / len(h)  # of one probe on the sphere: twice this is its variance
    assert found.density.trace.sem == pytest.approx((2 * scatter / 4) ** 0.5, rel=0.5)
    low, high = found.density.negative_share().interval(0.9999)
    assert low <= (np.linalg.eigvalsh(h) < 0).mean() <= high
    assert found.eigenpairs.largest[0].value == pytest.approx(np.linalg.eigvalsh(h)[-1], rel=1e-2)
    again = spectrum(
        objective, top=1, bottom=1, density_probes=4, density_steps=12, seed=3, tolerance=1e-2, memory=1e-6
    )
    assert again.density.trace.value == found.density.trace.value
    assert again.eigenpairs.largest[0].value == found.eigenpairs.largest[0].value


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top": -1}, "top=-1"), ({"top": 0, "bottom": 0}, "top=0, bottom=0"), ({"top": 2.5}, "top=2.5"),
        ({"tolerance": 0.0}, "tolerance=0.0"), ({"most": 0}, "most=0"), ({"seed": -1}, "seed=-1"),
        ({"memory": 0.0}, "memory=0"), ({"operator": "fisher"}, "operator='fisher'"), ({"matrix": "x"}, "matrix='x'"),
        ({"density_probes": 0}, "density_probes=0"), ({"density_steps": 0}, "density_steps=0"),
    ],
)  # fmt: skip
def test_bad_options_are_refused(oracle, options, words):
    objective, *_ = oracle
    with pytest.raises(InputError, match=words):
        spectrum(objective, **options)


def test_what_is_no_objective_is_refused():
    with pytest.raises(InputError, match="objective is a Linear"):
        eigenpairs(torch.nn.Linear(2, 2))
