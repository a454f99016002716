"""The wanted error: what is allowed, and the figure that it is of, from groups and from a measurement."""

import math

import numpy as np
import pytest
import torch

from tests.conftest import make_model, make_pool
from villani.errors import InputError
from villani.measurement.measure import measure
from villani.measurement.target import Target
from villani.objective.objective import Objective
from villani.statistics import GroupSums


def test_what_is_allowed_is_a_share_or_a_number():
    assert Target(0.05).allowed(-200.0) == pytest.approx(10)
    assert Target(0.05, relative=False).allowed(-200.0) == 0.05


@pytest.mark.parametrize("quantity", ["hessian_trace", "psi"])
def test_the_figure_of_groups_is_that_of_a_measurement(quantity):
    """The same rows, by `measure` and by hand from gradients and traces of the groups, whole and unsketched."""
    # as many tokens in each: no ratio has a bias
    pool = [group for i, group in enumerate(make_pool(7)) if i not in (1, 2, 3)]
    objective = Objective(make_model("gpt2"), pool, 0.3, decay="nanogpt")
    target = Target(0.1, quantity=quantity, weight_decay=0.7, temperature=0.01)
    measured = target.estimate(measure(objective, probes=1, seed=3, trace="hutchinson"))
    gradients = [objective.gradient_sum([g]) for g in range(4)]
    flat = np.array([torch.cat([t.flatten() for t in g]).numpy() for g, _, _ in gradients])
    mask = np.repeat(objective.parameters.decayed, objective.parameters.sizes)
    theta = torch.cat([t.detach().flatten() for t in objective.parameters.tensors]).numpy()
    tokens = np.array([n for _, n, _ in gradients])
    dots = flat[:, mask] @ theta[mask]
    losses = np.array([loss for _, _, loss in gradients])
    traces = measured.value  # of tr ∇²L only the probes know; take it from the measurement where it is the figure
    figure = target.figure(objective, GroupSums(tokens, losses, flat, dots, tokens[:, None] * 2.0))
    if quantity == "hessian_trace":
        assert figure.value == pytest.approx(2)
        assert figure.sem == pytest.approx(0, abs=1e-12)
        return
    pairs = (np.square(flat.sum(axis=0)).sum() - np.square(flat).sum()) / (tokens.sum() ** 2 - (tokens**2).sum())
    squared = pairs + 2 * 0.7 * dots.sum() / tokens.sum() + 0.49 * (theta[mask] ** 2).sum()
    assert figure.value == pytest.approx(squared / 0.01 - 2 - 0.7 * mask.sum())
    whole = measure(objective, probes=1, seed=3, trace="hutchinson")
    assert traces == pytest.approx(figure.value + 2 - whole.hessian_trace.value)


@pytest.mark.parametrize(
    ("error", "options"),
    [(0.0, {}), (-1.0, {}), (math.nan, {}), (math.inf, {}), (0.1, {"weight_decay": -1.0}),
     (0.1, {"temperature": 0.0})],
)  # fmt: skip
def test_bad_targets_are_refused(error, options):
    with pytest.raises(InputError, match=r"target_error|weight_decay|temperature"):
        Target(error, **options)
