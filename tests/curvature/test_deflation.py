"""Directions that the trace takes exactly, against dense matrices."""

import numpy as np
import pytest
import torch

from tests.conftest import dense, make_model, make_pool
from villani.curvature.deflation import Deflation, deflation_from
from villani.curvature.group import group_statistics
from villani.curvature.lanczos import Ends
from villani.curvature.operators import Budget, Curvature
from villani.curvature.pairs import ritz_pairs, save_vector
from villani.curvature.probes import rademacher_probe
from villani.curvature.sketch import GradientSketch
from villani.curvature.trace import sampler_for
from villani.curvature.ways import Way
from villani.errors import InputError
from villani.measurement.measure import measure
from villani.objective.objective import Objective
from villani.objective.parameters import ParameterSpace


def flat(tensors) -> np.ndarray:
    return torch.cat([t.detach().reshape(-1) for t in tensors]).numpy()


def deflated(objective, deflation, draws):
    sampler = sampler_for(objective, Way("hutchinson", deflated=True), deflation)
    sketch = GradientSketch(objective.parameters, 0)
    return np.stack([group_statistics(objective, 1, 1, s, sampler, sketch).traces[0] for s in range(draws)])


def test_deflation_is_unbiased_tensor_by_tensor_and_removes_variance():
    """Ritz vectors of other data; variance of what is left: 2(‖PHP‖_F² − Σ diag²) by the closed form."""
    model = make_model("gpt2")
    pool = make_pool()
    objective = Objective(model, pool)
    space = objective.parameters
    oracle = dense(model, pool[1], second=True)
    other = Curvature(objective, groups=[0], budget=Budget())
    pairs, _ = ritz_pairs(other, other.size, other.dtype, Ends(6, 4, 3e-2))
    deflation = Deflation(space, [pair.vector for pair in pairs])
    draws = deflated(objective, deflation, 60)
    q = deflation.rows.numpy()
    projector = np.eye(space.size) - q.T @ q
    left = projector @ oracle.hessian @ projector
    for seed in range(3):
        v = flat(rademacher_probe(space, seed, 1, 0))
        exact = np.trace(q @ oracle.hessian @ q.T) + v @ left @ v
        assert draws[seed].sum() == pytest.approx(exact, rel=1e-9)
    errors = draws.mean(axis=0) - [b.sum() for b in np.split(np.diag(oracle.hessian), np.cumsum(space.sizes)[:-1])]
    assert np.abs(errors / (draws.std(axis=0) / 60**0.5 + 1e-12)).max() < 4.5
    plain = 2 * ((oracle.hessian**2).sum() - (np.diag(oracle.hessian) ** 2).sum())
    variance = 2 * ((left**2).sum() - (np.diag(left) ** 2).sum())
    assert variance < 0.7 * plain
    assert draws.sum(axis=1).var(ddof=1) == pytest.approx(variance, rel=4 * (2 / 59) ** 0.5)


def test_deflation_refuses_what_is_not_orthonormal():
    objective = Objective(make_model("gpt2"), make_pool(4))
    space = objective.parameters
    v = torch.ones(space.size, dtype=torch.float64)
    with pytest.raises(InputError, match="not orthonormal"):
        Deflation(space, [v])
    with pytest.raises(InputError, match="coordinates"):
        Deflation(space, [v[:-1]])
    with pytest.raises(InputError, match="at least one"):
        Deflation(space, [])
    with pytest.raises(InputError, match="deflate goes with"):
        measure(objective, trace="taylor", deflate=Deflation(space, [v / space.size**0.5]))


def test_vectors_that_are_nearly_orthonormal_are_made_so(tmp_path):
    """And come back from the folder of a spectrum; a probe's projection is orthogonal to all of them."""
    space = ParameterSpace(make_model("gpt2"))
    random = np.random.default_rng(0)
    q, _ = np.linalg.qr(random.normal(size=(space.size, 3)))
    off = q + 1e-6 * random.normal(size=q.shape)
    for i, column in enumerate(off.T):
        save_vector(tmp_path / f"vector-{i:02d}.npy", torch.from_numpy(column.copy()))
    deflation = deflation_from(tmp_path, space)
    rows = deflation.rows.numpy()
    assert rows @ rows.T == pytest.approx(np.eye(3), abs=1e-12)
    assert np.abs(rows @ q - np.eye(3)).max() < 1e-3
    assert deflation.checksum == Deflation(space, list(torch.from_numpy(off.T.copy()))).checksum
    assert [t.shape for t in deflation.vectors[0]] == [t.shape for t in space.tensors]
    probe = rademacher_probe(space, 0, 0, 0)
    left = flat(deflation.project(probe))
    v = flat(probe)
    assert left == pytest.approx(v - rows.T @ (rows @ v))
    assert rows @ left == pytest.approx(np.zeros(3), abs=1e-12)
    with pytest.raises(InputError, match="no eigenvectors there"):
        deflation_from(tmp_path / "none", space)
