"""Traces over sets of parts by sweeps, against dense Hessians; what sweeps cannot do is left to products."""

import numpy as np
import pytest
import torch

from tests.conftest import dense, make_model, make_pool
from tests.criteria.models import closed
from villani.criteria.partition import parts_of
from villani.criteria.parts import group_traces, part_statistics
from villani.criteria.swept_parts import sweeps
from villani.objective.objective import Objective

PROBES = 150


def halves(tensor):
    """Exponents that cut a tensor into the upper and the lower half of its last dimension."""
    size = tensor.shape[-1]
    return torch.cat([torch.ones(size // 2), -torch.ones(size - size // 2)])


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_sets_are_sampled_without_bias(architecture):
    """Whole tensors, halves of one, a bias and its matrix in sets of their own, the head: each set against ∇²L."""
    model, pool = make_model(architecture), make_pool(1)
    objective = Objective(model, pool)
    space = objective.parameters
    names = [p.name for p in space.parameters]
    cut = next(i for i, p in enumerate(space.parameters) if p.tensor.dim() == 2 and ".0." in p.name)
    parts = parts_of(space, [{cut: halves(space.tensors[cut])}])
    inside = {i: sorted(set(labels.flatten().tolist())) for i, labels in enumerate(parts.labels)}
    rest = [i for i in range(len(names)) if i != cut]
    head = next(i for i, name in enumerate(names) if "lm_head" in name or "wte" in name or "embed" in name)
    upper, lower = inside[cut]
    spread = [i for i in rest if i != head]
    blocks = [[upper, *inside[spread[0]]], [lower], inside[head]]
    blocks += [[k for i in spread[1::2] for k in inside[i]], [k for i in spread[2::2] for k in inside[i]]]
    swept = sweeps(objective)
    assert swept is not None
    assert swept.serves(parts, blocks)
    labels = torch.cat([label.expand(t.shape).flatten() for label, t in zip(parts.labels, space.tensors, strict=True)])
    diagonal = np.diag(dense(model, pool[0], second=True).hessian)
    exact = np.array([diagonal[torch.isin(labels, torch.tensor(block)).numpy()].sum() for block in blocks])
    found = group_traces(objective, parts, 0, seed=3, probes=PROBES, blocks=blocks)
    sums = np.stack([found["traces"][:, block].sum(axis=1) for block in blocks], axis=1)  # (m, sets)
    errors = sums.std(axis=0, ddof=1) / PROBES**0.5 + 1e-12
    assert np.all(np.abs(sums.mean(axis=0) - exact) < 4.5 * errors)
    assert np.all(found["rounding"][[block[0] for block in blocks]] > 0)
    assert np.all(found["rounding"] < 1e-10 * (1 + np.abs(exact).max()))


def test_one_set_of_everything_is_the_whole_trace():
    model, pool = make_model("gpt2"), make_pool(1)
    objective = Objective(model, pool)
    parts = parts_of(objective.parameters, [])
    found = group_traces(objective, parts, 0, seed=1, probes=PROBES, blocks=[range(parts.count)])["traces"]
    totals = found.sum(axis=2)[:, None] if found.ndim == 3 else found.sum(axis=1)
    exact = np.trace(dense(model, pool[0], second=True).hessian)
    assert abs(totals.mean() - exact) < 4.5 * totals.std(ddof=1) / PROBES**0.5


def test_parts_of_no_set_are_not_numbers():
    objective = Objective(make_model("gpt2"), make_pool(1))
    parts = parts_of(objective.parameters, [])
    found = group_traces(objective, parts, 0, seed=1, probes=2, blocks=[[1, 4], [3]])["traces"]
    assert np.isfinite(found).all(axis=0).nonzero()[0].tolist() == [1, 3, 4]
    assert np.all(found[:, 4] == 0)


def test_the_same_draws_give_the_same_numbers_on_an_orbit():
    """vᵀ∇²L v of a set that shrinks as R⁻¹ is R² times as large at θ_R: to rounding, of the same draws."""
    objective = Objective(make_model("gpt2"), make_pool(1))
    names = [p.name for p in objective.parameters.parameters]
    up, down = (next(i for i, n in enumerate(names) if n.endswith(end)) for end in ("c_attn.weight", "c_proj.weight"))
    width = objective.parameters.tensors[up].shape[1] // 3
    values = torch.cat([torch.zeros(2 * width), torch.ones(width)])
    bias = next(i for i, n in enumerate(names) if n.endswith("c_attn.bias"))
    orbit = {up: values, bias: values, down: torch.tensor(-1.0)}
    parts = parts_of(objective.parameters, [orbit])
    block = sorted(set(parts.labels[down].flatten().tolist()))
    before = group_traces(objective, parts, 0, seed=1, probes=3, blocks=[block])["traces"][:, block].sum(axis=1)
    with torch.no_grad():
        for index, e in orbit.items():
            objective.parameters.tensors[index].mul_(1.1 ** e.double())
    after = group_traces(objective, parts, 0, seed=1, probes=3, blocks=[block])["traces"][:, block].sum(axis=1)
    assert after == pytest.approx(1.21 * before, rel=1e-9)


def test_half_of_a_head_and_a_custom_loss_are_left_to_products():
    objective = Objective(make_model("gpt2"), make_pool(1))
    parts = parts_of(objective.parameters, [{0: halves(objective.parameters.tensors[0])}])
    assert not sweeps(objective).serves(parts, [[0]])
    diagonal = np.diag(dense(objective.model, make_pool(1)[0], second=True).hessian)
    shape = objective.parameters.tensors[0].shape
    own = next(k for k in (0, 1) if bool((parts.labels[0].expand(shape)[:, 0] == k).all()))
    found = group_traces(objective, parts, 0, seed=1, probes=PROBES, blocks=[[own]])["traces"][:, own]
    exact = diagonal[: shape.numel()].reshape(shape)[:, : shape[1] // 2].sum()
    assert abs(found.mean() - exact) < 4.5 * found.std(ddof=1) / PROBES**0.5
    assert sweeps(closed(lambda w: (w**2).sum())) is None


def test_gradients_that_are_known_are_not_measured_again():
    objective = Objective(make_model("gpt2"), make_pool(4))
    parts = parts_of(objective.parameters, [])
    given = part_statistics(objective, parts, range(4))
    again = part_statistics(objective, parts, range(4), blocks=[range(parts.count)], gradients=given)
    assert again.totals is given.totals
    assert again.mean_traces().sum() == pytest.approx(given.mean_traces().sum(), abs=5 * given.traces.sum(2).std())
