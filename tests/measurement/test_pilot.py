"""Second samples of groups, against losses whose Hessians are known."""

import numpy as np
import pytest
import torch
from torch import nn

from villani.curvature.ways import Way
from villani.measurement.measure import measure
from villani.measurement.pilot import probe_variance
from villani.objective.objective import Objective
from villani.work.work import Work


class Bowl(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))


def bowls(count, coupled=0.0):
    """L_g = c_g(Σ w_i² + coupled·w_1w_2)/2 for random c_g: tr ∇²L_g = 3c_g; probes err by the coupling alone."""
    scales = [float(c) for c in np.random.default_rng(0).uniform(1, 3, count)]

    def loss(m, c):
        return c * (m.w.square().sum() + coupled * m.w[0] * m.w[1]) / 2

    return Objective(Bowl(), scales, 0.1, loss_fn=loss), np.array(scales)


@pytest.mark.parametrize("coupled", [0.0, 1.0])
def test_the_variance_of_a_probe_is_told_from_that_of_the_text(coupled):
    """vᵀHv = c(3 + coupled·v_1v_2): exact where nothing is coupled, of variance (c·coupled)² else."""
    objective, scales = bowls(200, coupled)
    work = Work()
    measure(objective, 1, 3, trace="hutchinson", work=work)
    before = work.spent()[2]
    variance = probe_variance(objective, Way("hutchinson"), len(scales), 3, work)
    assert variance == pytest.approx(np.mean(scales**2) * coupled**2, rel=0.25, abs=1e-20)
    assert work.spent()[2] == before + len(scales)
