"""Ways tried on a few groups, against losses whose Hessians are known; and rehearsed on others."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import make_model, make_pool
from villani.curvature.ways import Way
from villani.measurement.pilot import FORWARD, pilot, rehearse, ways_for
from villani.measurement.plan import PILOT, Plan, rehearsal_size
from villani.measurement.target import Target
from villani.objective.objective import Objective


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


def test_ways_are_those_that_the_model_allows():
    assert ways_for(Objective(make_model("gpt2"), make_pool(3))) == (FORWARD, "")
    ways, note = ways_for(bowls(3)[0])
    assert ways == (Way("hutchinson"),)
    assert "custom loss_fn" in note


@pytest.mark.parametrize("coupled", [0.0, 1.0])
def test_trials_hold_two_independent_samples_of_every_group(coupled):
    """vᵀHv = c(3 + coupled·v_1v_2): exact where nothing is coupled, ± c·coupled else."""
    objective, scales = bowls(PILOT + 4, coupled)
    [way] = ways_for(objective)[0]
    [trial] = pilot(objective, (way,), 5, Target(0.1)).values()
    assert trial.values.shape == (2, PILOT)
    samples = trial.values / scales[:PILOT]
    assert set(np.round(samples - 3, 9).flatten().tolist()) <= {0.0, coupled, -coupled}
    if coupled:
        assert len(set(np.round(samples.flatten(), 9).tolist())) == 2
        assert not np.allclose(samples[0], samples[1])
    else:
        assert trial.probe_variance == pytest.approx(0, abs=1e-20)
        assert trial.figure == pytest.approx(3 * scales[:PILOT].mean())
    assert trial.seconds > 0
    assert trial.more_seconds >= 0.1 * trial.seconds


def test_a_rehearsal_needs_groups_of_its_own():
    plan = Plan(Way("hutchinson"), 1, 40, PILOT, 0.0, 1.0, 1.0, 0.5)
    few, _ = bowls(PILOT + 10)
    assert rehearse(few, plan, 0, Target(0.1), least=8) is plan
    many, scales = bowls(PILOT + 60)
    settled = rehearse(many, plan, 0, Target(0.05, relative=False), least=8)
    size = rehearsal_size(40)
    assert settled.first == PILOT + size, "what was rehearsed is not measured"
    own = 3 * scales[PILOT : PILOT + size]
    assert settled.groups == pytest.approx(own.var(ddof=1) / 0.05**2, rel=0.3)
    assert settled.seconds_per_group < 1
