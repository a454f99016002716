"""Curvature as a matrix, against dense ones; what may be kept of its graphs."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import dense, make_model, make_pool
from villani.curvature.operators import Budget, Curvature
from villani.errors import InputError
from villani.objective.objective import Objective
from villani.work.memory import resident


def mean_matrices(model, pool):
    oracles = [dense(model, group, second=True) for group in pool]
    tokens = sum(o.tokens for o in oracles)
    return sum(o.hessian for o in oracles) / tokens, sum(o.gauss_newton for o in oracles) / tokens


def test_products_equal_the_dense_matrices(model):
    """Hessian, Gauss–Newton, ∇²F under a mask, and a block, over groups of unequal size, tied weights and all."""
    pool = make_pool(2)
    objective = Objective(model, pool, decay="hf")
    hessian, gauss_newton = mean_matrices(model, pool)
    space = objective.parameters
    mask = np.repeat(space.decayed, space.sizes)
    blocks = ([0, 3], [3], [0], [len(space.sizes) - 1])  # with the head's weight, without it, alone
    inside = [np.repeat(np.isin(np.arange(len(space.sizes)), block), space.sizes) for block in blocks]
    cases = [
        (Curvature(objective), hessian),
        (Curvature(objective, groups=[1]), dense(model, pool[1], second=True)),
        (Curvature(objective, "gauss-newton"), gauss_newton),
        (Curvature(objective, weight_decay=0.3), hessian + 0.3 * np.diag(mask)),
        *((Curvature(objective, tensors=b), hessian[np.ix_(i, i)]) for b, i in zip(blocks, inside, strict=True)),
        *(
            (Curvature(objective, "gauss-newton", tensors=b), gauss_newton[np.ix_(i, i)])
            for b, i in zip(blocks, inside, strict=True)
        ),
    ]
    for operator, oracle in cases:
        if not isinstance(oracle, np.ndarray):
            oracle = oracle.hessian / oracle.tokens
        v = np.random.default_rng(0).normal(size=operator.size)
        assert 0 < mask.sum() < space.size
        assert np.allclose(operator(torch.from_numpy(v)).numpy(), oracle @ v, atol=1e-8)


def test_kept_graphs_change_no_bit_and_other_roundings_do():
    objective = Objective(make_model("gpt2").float(), make_pool(3))
    plain, kept = Curvature(objective), Curvature(objective, budget=Budget())
    v = torch.randn(plain.size, generator=torch.Generator().manual_seed(0))
    first = plain(v)
    assert torch.equal(first, kept(v))
    assert kept.graphs == 3
    assert torch.equal(first, kept(v))
    error = torch.linalg.vector_norm(plain.otherwise(v) - first) / torch.linalg.vector_norm(first)
    assert 1e-9 < error < 1e-5


def test_what_fits_a_budget():
    assert Budget().fits(10**30)
    assert Budget(100, lambda: 40).fits(60)
    assert not Budget(100, lambda: 40).fits(61)
    coming = Budget(10**15, lambda: 0, working=10**15)  # what is held now, and a product on top
    assert not coming.fits(0)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    assert resident() == pytest.approx(1024 * int(status["VmRSS"].split()[0]), rel=0.02)


def test_graphs_are_kept_only_where_they_fit():
    objective = Objective(make_model("gpt2").float(), make_pool(3))
    v = torch.ones(objective.parameters.size)
    none = Curvature(objective, budget=Budget(0))
    assert torch.equal(none(v), Curvature(objective)(v))
    assert none.graphs == 0


def test_a_block_of_a_custom_loss_is_its_dense_block():
    """L = Σ sin(w_i·u_i)·x: tensors by index, symmetric to rounding, linear, and λ on what decays."""

    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.u = (torch.nn.Parameter(torch.arange(1.0, 4).double() / s) for s in (1, 3))

    objective = Objective(Two(), [1.0, 2.0], 0.1, "match:w", loss_fn=lambda m, x: (m.w * m.u).sin().sum() * x)

    def loss(t):
        return (t[:3] * t[3:]).sin().sum() * 1.5

    exact = torch.func.hessian(loss)(torch.cat([t.detach() for t in objective.parameters.tensors]))
    eye = torch.eye(6, dtype=torch.float64)
    whole = Curvature(objective, weight_decay=0.5)
    columns = torch.stack([whole(v) for v in eye])
    assert torch.allclose(columns, exact + 0.5 * torch.diag(torch.tensor([1.0] * 3 + [0.0] * 3)), atol=1e-12)
    block = Curvature(objective, tensors=[1])
    assert torch.allclose(torch.stack([block(v) for v in eye[:3, :3]]), exact[3:, 3:], atol=1e-12)
    assert [p.name for p in block.parameters] == ["u"]
    assert [tuple(v.shape) for v in whole.views(eye[0])] == [(3,), (3,)]
    with pytest.raises(InputError, match="operator='jacobian'"):
        Curvature(objective, "jacobian")
