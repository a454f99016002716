"""Measuring until an error is reached, on losses whose traces are known."""

import numpy as np
import pytest

from tests.measurement.test_pilot import bowls
from villani.errors import InputError
from villani.measurement.measure_to import measure_to
from villani.measurement.plan import PILOT
from villani.measurement.target import Target
from villani.objective.objective import Objective


@pytest.mark.parametrize("error", [0.12, 0.05])
def test_the_error_is_reached_with_groups_of_the_plan(error):
    """tr ∇²L = 3E[c], c uniform on (1, 3): a relative error ε takes about (0.577/2)²/ε² groups."""
    objective, scales = bowls(400)
    plans = []
    measurement, plan = measure_to(objective, Target(error), seed=2, least=4, on_plan=plans.append)
    trace = measurement.hessian_trace
    assert trace.sem <= error * trace.value
    assert plans == [plan]
    assert plan.first >= PILOT
    used = scales[plan.first : plan.first + trace.n]
    assert trace.value == pytest.approx(3 * used.mean())
    assert trace.n == pytest.approx((0.577 / 2) ** 2 / error**2, rel=0.8)
    assert plan.note


def test_a_smaller_error_takes_more_groups_and_seeds_decide():
    objective, _ = bowls(300)
    coarse, fine = (measure_to(objective, Target(e), seed=1, least=4)[0] for e in (0.2, 0.05))
    assert fine.hessian_trace.n > 4 * coarse.hessian_trace.n
    again = measure_to(objective, Target(0.2), seed=1, least=4)[0]
    assert np.array_equal(again.joint.values, coarse.joint.values)


def test_supplies_that_cannot_do_are_refused_in_a_line():
    objective, _ = bowls(30)
    with pytest.raises(InputError, match="ask for about") as error:
        measure_to(objective, Target(1e-3), least=4)
    assert "\n" not in str(error.value)
    finite = Objective(objective.model, objective.groups, finite=True, loss_fn=objective.loss_fn)
    with pytest.raises(InputError, match="with finite=True, set probes"):
        measure_to(finite, Target(0.1))
    with pytest.raises(InputError, match="groups: a target error needs"):
        measure_to(bowls(9)[0], Target(0.1))
