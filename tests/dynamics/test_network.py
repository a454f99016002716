"""A model as a target of dynamics: its data set, batches and sums, against plain torch."""

import math

import numpy as np
import pytest
import torch

from tests.conftest import make_model
from villani.dynamics.network import LINEAR, NetworkTarget
from villani.errors import InputError
from villani.objective.objective import Objective


def network(batch=None, decay="all", blocks=4, **options):
    ids = torch.randint(0, 11, (blocks, 1, 6), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[0, 0, 3:] = -100  # blocks of unequal length
    groups = [{"input_ids": i, "labels": y} for i, y in zip(ids, labels, strict=True)]
    objective = Objective(make_model("gpt_neo"), groups, decay=decay, finite=True)
    return NetworkTarget(objective, batch=batch, seed=0, **options)


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


def test_prior_draws_for_spread_chains_have_the_prior_s_size():
    target = network(spread=True, prior=0.5)
    target.reset(0)
    first = [t.detach().clone() for t in target.tensors]
    target.reset(1)
    draws = torch.cat([t.detach().reshape(-1) for t in target.tensors])
    assert not torch.equal(first[0], target.tensors[0])
    assert abs(float(draws.square().mean()) - 0.25) < 4 * 0.25 * math.sqrt(2 / len(draws))


def test_sums_and_linear_observables_are_products_of_flat_vectors():
    target = network(decay="nanogpt")
    with target.running():
        gradient = target.evaluate(0, 0).gradient
        sums = target.sums(gradient)
        theta, slope = (torch.cat([t.detach().flatten() for t in ts]).numpy() for ts in (target.tensors, gradient))
    mask = np.repeat(target.decayed, [t.numel() for t in target.tensors])
    expected = (theta @ theta, theta[mask] @ theta[mask], theta @ slope, theta[mask] @ slope[mask], slope @ slope)
    assert [float(value[0]) for value in vars(sums).values()] == pytest.approx(expected)
    linear = target.extra(0.1)[:, 0]
    assert len(linear) == LINEAR == len(target.extras)
    with torch.no_grad():
        for t in target.tensors:
            t.mul_(-2)
    assert target.extra(0.1)[:, 0] == pytest.approx(-2 * linear), "odd in θ"
    assert (linear > 0).all(), "unit vectors along the start"


def test_independent_groups_are_drawn_of_the_data_set():
    target = network(batch=2, blocks=5)
    groups = target.sample(4, chain=1, step=7)
    assert len(groups) == 4
    rows = {tuple(row) for group in target.objective.groups for row in group.ids.tolist()}
    assert all({tuple(row) for row in group.ids.tolist()} <= rows for group in groups)
    again = target.sample(4, chain=1, step=7)
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(groups, again, strict=True))
    assert (target.blocks, target.tokens) == (5, 4 * 5 + 2)


def test_what_dynamics_cannot_run_on_is_refused():
    with pytest.raises(InputError, match="batch=9: expected 1 to 4"):
        network(batch=9)
    model = make_model("gpt2")
    ids = torch.zeros((1, 6), dtype=torch.int64)
    places = torch.tensor([[0, 1, 2, 0, 1, 2]])
    for groups, words in (
        ([{"input_ids": ids, "position_ids": places}], "padded on the right"),
        ([ids, ids[:, :4]], "blocks of 4 to 6 tokens"),
    ):
        with pytest.raises(InputError, match=words):
            NetworkTarget(Objective(model, groups), batch=None, seed=0)
    custom = Objective(model, [ids], loss_fn=lambda m, g: m(g).logits.sum())
    with pytest.raises(InputError, match="need token blocks"):
        NetworkTarget(custom, batch=None, seed=0)
