"""The head integrated out: its exact traces and the terms of probes upstream, against a dense Hessian."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from villani.curvature.head import LABELS, TiedRows, draw_labels, head_terms, logit_terms
from villani.curvature.jets import Jet

N, D, V = 150, 3, 5  # more positions than are worked on at a time


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


H, W, B = draw(0, N, D), draw(1, V, D), draw(2, V)
FIRST, SECOND = draw(3, N, D), draw(4, N, D)
Y = torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(5))


def loss(h, w, b):
    return F.cross_entropy(h @ w.T + b, Y, reduction="sum")


def terms(seed=6, tied=()):
    uniform = torch.rand(N, LABELS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return head_terms(Jet(H, {0: FIRST}, {0: SECOND}), Y, W, B, tied, uniform)


def test_traces_over_the_head_are_exact():
    found = terms()
    over_weight = torch.func.hessian(lambda w: loss(H, w, B))(W).reshape(V * D, V * D).trace()
    over_bias = torch.func.hessian(lambda b: loss(H, W, b))(B).trace()
    assert found.weight == pytest.approx(float(over_weight))
    assert found.bias == pytest.approx(float(over_bias))


def along(e):
    return loss(H + e * FIRST + e**2 / 2 * SECOND, W, B)


ZERO = torch.zeros((), dtype=torch.float64)


def test_residual_and_gauss_newton_terms_add_up_to_the_second_derivative():
    """On average over sampled labels; and the residual term alone is (p − y)ᵀ W h₂, exactly."""
    draws = [terms(seed) for seed in range(40)]
    p = torch.softmax(H @ W.T + B, 1)
    residual = float(((p - F.one_hot(Y, V)) * (SECOND @ W.T)).sum())
    assert draws[0].residual[0] == pytest.approx(residual)
    bend = float(torch.func.jacfwd(torch.func.jacfwd(along))(ZERO))
    samples = np.array([d.gauss_newton[0] for d in draws])
    assert abs(samples.mean() - (bend - residual)) < 5 * samples.std(ddof=1) / 40**0.5
    assert samples.std(ddof=1) < 0.1 * samples.mean()


def test_a_tied_head_moves_with_its_probe():
    """z = W h where both move: rows of W that occur in the input carry the probe, the others stand still."""
    values = draw(7, 2, D)
    tied = [TiedRows(0, torch.tensor([1, 4]), values)]
    moved = torch.zeros(V, D, dtype=torch.float64)
    moved[[1, 4]] = values

    def both(e):
        return loss(H + e * FIRST + e**2 / 2 * SECOND, W + e * moved, B)

    bend = float(torch.func.jacfwd(torch.func.jacfwd(both))(ZERO))
    over_rows = float(torch.func.jacfwd(torch.func.jacfwd(lambda e: loss(H, W + e * moved, B)))(ZERO))
    draws = [terms(seed, tied) for seed in range(60)]
    sums = np.array([d.residual[0] + d.tied_residual[0] + d.gauss_newton[0] for d in draws])
    # the probe's own square on the head is in the exact trace over its weight, and not here
    assert abs(sums.mean() - (bend - over_rows)) < 5 * sums.std(ddof=1) / 60**0.5


def test_without_a_head_all_is_exact():
    logits = Jet(H @ W.T + B, {0: FIRST @ W.T}, {0: SECOND @ W.T})
    found = logit_terms(logits, Y)
    bend = float(torch.func.jacfwd(torch.func.jacfwd(along))(ZERO))
    assert found.residual[0] + found.gauss_newton[0] == pytest.approx(bend)
    assert (found.weight, found.bias, found.tied_residual) == (0, 0, {})


@pytest.mark.parametrize("size", [3, 128, 300])
def test_labels_invert_the_distribution(size):
    """As numpy's search of the cumulated probabilities does; never one of probability 0."""
    p = torch.rand(20, size, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    p[:, ::3] = 0
    p /= p.sum(1, keepdim=True)
    uniform = torch.rand(20, 500, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    labels = draw_labels(p, uniform)
    ends = p.numpy().cumsum(axis=1)
    expected = [np.searchsorted(row / row[-1], u, side="right") for row, u in zip(ends, uniform.numpy(), strict=True)]
    assert (labels.numpy() != np.array(expected)).mean() < 1e-3  # but for ties of rounding
    assert bool((p.gather(1, labels) > 0).all())
