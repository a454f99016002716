"""Statistics part by part against dense gradients and Hessians; directions of the noise."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.conftest import dense, flat_parameters, make_model, make_pool
from tests.criteria.models import loss_of, make, two
from villani.criteria.partition import parts_of
from villani.criteria.parts import EXACT, PartStatistics, group_traces, part_statistics
from villani.criteria.symmetries import generators
from villani.objective.graph import trace_loss
from villani.objective.objective import Objective
from villani.work.work import Work


def found(objective):
    return generators(trace_loss(objective, next(objective.batches(0))))


def synthetic(gradients, traces):
    """Two parts, A of unit norm and B, whose gradients (G, k) and traces (G,) are given."""
    count = len(traces)
    zeros, total = np.zeros(count), gradients.sum(axis=0)
    return PartStatistics(
        tokens=np.ones(count), losses=zeros, norms=np.array([1.0, 0.0]), dots=np.zeros((count, 2)),
        squares=np.stack([zeros, (gradients**2).sum(axis=1)], axis=1),
        products=np.stack([zeros, gradients @ total], axis=1), totals=np.array([0.0, total @ total]),
        traces=np.stack([zeros, traces], axis=1)[:, None], finite=False, exact=False,
        gram=np.stack([np.zeros((count, count)), gradients @ gradients.T], axis=2),
    )  # fmt: skip


@pytest.mark.parametrize(("rank", "groups", "tolerance"), [(1, 4, 1e-9), (3, 12, 0.4), (30, 12, 0.5), (100, 24, 0.3)])
def test_directions_of_the_noise_are_counted(rank, groups, tolerance):
    """(tr Σ)²/tr Σ² of r equal directions is r, whatever the mean; groups of unequal size are put on one scale."""
    rng = np.random.default_rng(rank)
    found = []
    for _ in range(20):
        gradients = 5 + rng.normal(size=(groups, rank))
        found.append(synthetic(gradients, np.ones(groups)).directions(np.array([False, True])))
    assert np.median(found) == pytest.approx(rank, rel=tolerance)
    sizes = rng.uniform(1, 3, groups)
    scaled = replace(synthetic(gradients * sizes[:, None], np.ones(groups)), tokens=sizes)
    assert scaled.directions(np.array([False, True])) == pytest.approx(found[-1])


def test_sketches_of_gradients_give_their_products():
    objective = Objective(make_model("gpt2"), make_pool(5))
    basis = found(objective)
    parts = parts_of(objective.parameters, [g.exponents for g in basis])
    statistics = part_statistics(objective, parts, range(5))
    gradients = [objective.gradient_sum([group])[0] for group in range(5)]
    sums = np.array([[parts.sums([a * b for a, b in zip(x, y, strict=True)]) for y in gradients] for x in gradients])
    assert statistics.gram.shape == sums.shape
    assert np.allclose(np.einsum("gga->ga", statistics.gram), statistics.squares, rtol=0.2)
    exact = np.array([labels.numel() == 1 and t.numel() <= 1021 for labels, t in
                      zip(parts.labels, objective.parameters.tensors, strict=True)])  # fmt: skip
    whole = [int(labels) for labels, sure in zip(parts.labels, exact, strict=True) if sure]
    assert whole
    assert np.allclose(statistics.gram[:, :, whole], sums[:, :, whole], rtol=1e-5, atol=1e-12)


def test_a_unit_of_work_that_is_kept_is_not_done_again():
    keys = []

    class Counted(Work):
        def put(self, key, arrays, **cost):
            keys.append(key)
            super().put(key, arrays, **cost)

    objective = make("gpt2")
    parts = parts_of(objective.parameters, [g.exponents for g in found(objective)])
    work = Counted()
    first = part_statistics(objective, parts, [0, 1], work=work)
    assert keys == ["gradient/0", "gradient/1", "trace/0", "trace/1", "gradients"]
    again = part_statistics(objective, parts, [0, 1], work=work)
    assert len(keys) == 5
    assert np.array_equal(first.traces, again.traces)
    assert np.array_equal(first.gradient_norms(), again.gradient_norms())


BY_COLUMN = {0: torch.tensor([1.0, 1.0, -1.0])}  # the first two columns of a are scaled alike


@pytest.mark.parametrize("finite", [False, True])
def test_exact_statistics_are_those_of_autograd(finite):
    objective = two(finite)
    parts = parts_of(objective.parameters, [BY_COLUMN])
    statistics = part_statistics(objective, parts, range(4))
    assert statistics.exact
    labels = np.concatenate([p.expand(s).flatten().numpy() for p, s in zip(parts.labels, ((2, 3), (3,)), strict=True)])
    theta = torch.cat([t.detach().flatten() for t in objective.parameters.tensors])
    oracles = []
    for x in objective.groups:

        def flat(t, x=x):
            return loss_of(t[:6].view(2, 3), t[6:], x)

        oracles.append((torch.func.grad(flat)(theta).numpy(), torch.func.hessian(flat)(theta).diagonal().numpy()))
    gradients, diagonals = (np.array(rows) for rows in zip(*oracles, strict=True))
    total = gradients.sum(axis=0)

    def by_part(x):
        return np.stack([x[..., labels == k].sum(axis=-1) for k in range(parts.count)], axis=-1)

    decayed = (np.arange(9) < 6) * theta.numpy()
    assert statistics.norms == pytest.approx(by_part(decayed**2))
    assert statistics.dots == pytest.approx(by_part(gradients * decayed))
    assert statistics.squares == pytest.approx(by_part(gradients**2))
    assert statistics.totals == pytest.approx(by_part(total**2))
    assert statistics.traces[:, 0] == pytest.approx(by_part(diagonals))
    assert statistics.mean_traces() == pytest.approx(by_part(diagonals.mean(axis=0)))
    if finite:
        assert statistics.gradient_norms() == pytest.approx(by_part(total**2) / 16)
        return
    assert statistics.products == pytest.approx(by_part(gradients * total))
    pairs = [gradients[i] * gradients[j] for i in range(4) for j in range(4) if i != j]
    assert statistics.gradient_norms() == pytest.approx(by_part(np.mean(pairs, axis=0)))
    fewer = [gradients[i] * gradients[j] for i in range(4) for j in range(4) if i != j and 2 not in (i, j)]
    assert statistics.gradient_norms(2) == pytest.approx(by_part(np.mean(fewer, axis=0)))
    assert statistics.mean_dots(2) == pytest.approx(by_part((gradients * decayed)[[0, 1, 3]].mean(axis=0)))
    chosen = np.array([True, False, True])
    inside = gradients[:, chosen[labels]]
    square, noise = statistics.mean_gradient(chosen)
    assert square == pytest.approx(np.square(inside.mean(axis=0)).sum())
    assert noise == pytest.approx(inside.var(axis=0, ddof=1).sum() / 4)


def test_sampled_traces_are_unbiased_part_by_part():
    """Of a model too large for exact traces, with a probe for all or for each of two parts."""
    model, pool = make_model("gpt2"), make_pool(1)
    objective = Objective(model, pool)
    assert objective.parameters.size > EXACT
    parts = parts_of(objective.parameters, [])
    diagonal = np.diag(dense(model, pool[0], second=True).hessian)
    sizes = [t.numel() for t in objective.parameters.tensors]
    exact = np.array([piece.sum() for piece in np.split(diagonal, np.cumsum(sizes)[:-1])])
    assert len(flat_parameters(model)) == sum(sizes)
    whole = group_traces(objective, parts, 0, seed=1, probes=60)["traces"]
    errors = whole.std(axis=0, ddof=1) / np.sqrt(60) + 1e-12
    assert np.all(np.abs(whole.mean(axis=0) - exact) < 5 * errors)
    alone = group_traces(objective, parts, 0, seed=1, probes=60, blocks=[[2, 4], [5]])["traces"]
    assert np.isfinite(alone).any(axis=0).nonzero()[0].tolist() == [2, 4, 5]
    sets = np.stack([alone[:, 2] + alone[:, 4], alone[:, 5]], axis=1)
    expected = np.array([exact[2] + exact[4], exact[5]])
    assert np.all(np.abs(sets.mean(axis=0) - expected) < 5 * sets.std(axis=0, ddof=1) / np.sqrt(60) + 1e-12)
