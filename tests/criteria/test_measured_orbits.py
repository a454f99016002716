"""Groups of an audit have one purpose each: those that choose an orbit have no part in confirming it."""

import numpy as np
import pytest
import torch

from tests.criteria.test_orbits import Separate
from villani.criteria.differential import audit_differential
from villani.objective.objective import Objective


def audited(finite, search):
    """Which groups were evaluated at the given θ, and at others, and the audit."""
    here, elsewhere, slopes = set(), set(), np.linspace(-1, 1, 12)
    model = Separate(0.3, 3.0)

    def loss(m, group):
        values = (float(m.w[0].detach()), float(m.w[1].detach())) if not torch.compiler.is_compiling() else (0.3, 3.0)
        (here if values == (0.3, 3.0) else elsewhere).add(int(group))
        product = m.w[0] * m.w[1]
        return torch.nn.functional.softplus(product) - product / 2 + 0.01 * slopes[int(group)] * product

    objective = Objective(model, list(range(12)), 0.1, finite=finite, loss_fn=loss)
    return here, elsewhere, audit_differential(objective, 0.1, search=search, scales=(2.0,), confirmed=2)


@pytest.mark.parametrize(("search", "fresh"), [(0, range(6, 12)), (1, range(8, 12))])
def test_a_threshold_is_that_of_the_groups_that_confirm(search, fresh):
    """∇_B L, ∇²_B L of the last groups alone: a half of them, or a third where a search has its own."""
    _, _, found = audited(False, search)
    [confirmed] = [f for f in found.findings if f.confirmed and not f.moved and f.orbit.name.startswith("w.1")]
    t, slopes = 0.9, np.linspace(-1, 1, 12)[list(fresh)]
    sigma = 1 / (1 + np.exp(-t))
    gradients = 3.0 * (sigma - 0.5 + 0.01 * slopes)  # ∂L/∂w.0, what shrinks as w.1 grows
    pairs = (gradients.sum() ** 2 - np.square(gradients).sum()) / (len(fresh) * (len(fresh) - 1))
    assert confirmed.threshold.gradient_norm_squared.value == pytest.approx(pairs)
    assert confirmed.threshold.laplacian.value == pytest.approx(9 * sigma * (1 - sigma))
    assert confirmed.threshold.gradient_norm_squared.n == len(fresh)
    screened = [f for f in found.findings if not f.confirmed]
    assert all(f.threshold.gradient_norm_squared.n == (4 if search else 6) for f in screened)


def test_groups_that_are_all_the_data_serve_every_purpose():
    here, _, found = audited(True, 0)
    assert here == set(range(12))
    sigma = 1 / (1 + np.exp(-0.9))
    [first] = [f for f in found.findings if f.orbit.name.startswith("w.1")]
    assert first.threshold.gradient_norm_squared.value == pytest.approx((3 * (sigma - 0.5)) ** 2)
    assert first.confirmed
    assert first.threshold.level == 1
