"""Measuring until an error is reached, on losses whose traces are known."""

import numpy as np
import pytest

from tests.measurement.test_pilot import bowls
from villani.errors import InputError
from villani.measurement.measure import measure
from villani.measurement.measure_to import measure_to
from villani.measurement.plan import START
from villani.measurement.target import Target
from villani.objective.objective import Objective
from villani.work.progress import Progress
from villani.work.work import Work


@pytest.mark.parametrize("error", [0.12, 0.05])
def test_the_error_is_reached_with_groups_of_the_plan(error):
    """tr ∇²L = 3E[c], c uniform on (1, 3): a relative error ε takes about (0.577/2)²/ε² groups."""
    objective, scales = bowls(400)
    plans = []
    measurement, plan = measure_to(objective, Target(error), seed=2, least=4, on_plan=plans.append)
    trace = measurement.hessian_trace
    assert trace.sem <= error * trace.value
    assert plans == [plan]
    assert trace.value == pytest.approx(3 * scales[: trace.n].mean())
    assert trace.n >= plan.groups >= plan.start == START
    assert trace.n == pytest.approx(max((0.577 / 2) ** 2 / error**2, START), rel=0.8)
    assert plan.note


def test_a_smaller_error_takes_more_groups_and_seeds_decide():
    objective, _ = bowls(300)
    coarse, fine = (measure_to(objective, Target(e), seed=1, least=4)[0] for e in (0.2, 0.05))
    assert fine.hessian_trace.n > 2 * coarse.hessian_trace.n
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
    with pytest.raises(InputError, match="9 groups: a target error needs 16 or more"):
        measure_to(bowls(9)[0], Target(0.1))


def test_a_plan_costs_a_small_share_and_its_groups_count():
    """Every group is measured once, and at most an eighth of them again; the figures are those of `measure`."""
    objective, _ = bowls(400)
    for error in (0.12, 0.05):
        work = Work()
        measurement, plan = measure_to(objective, Target(error), seed=2, work=work)
        count = measurement.loss.n
        assert work.spent("group/")[2] == count
        assert 2 <= work.spent("pilot/")[2] <= max(2, plan.groups / 8)
        assert work.spent()[2] == work.spent("group/")[2] + work.spent("pilot/")[2]
        plain = measure(objective, 1, 2, trace=plan.way.trace, groups=range(count))
        assert np.array_equal(plain.joint.values, measurement.joint.values)
        assert np.array_equal(plain.joint.covariance, measurement.joint.covariance)


def test_what_is_left_takes_no_group_for_free(monkeypatch):
    """A second a group: those that the plan was made on are part of the measuring, so that 10 left take 10 s."""
    clock = [0.0]
    monkeypatch.setattr("villani.work.stages.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("villani.work.work.time.perf_counter", lambda: clock[0])
    monkeypatch.setattr("villani.work.team.time.perf_counter", lambda: clock[0])
    objective, _ = bowls(400)
    loss_fn = objective.loss_fn

    def slow(model, group):
        clock[0] += 1.0
        return loss_fn(model, group)

    left = []

    class Told(Progress):
        def advance(self, done, total):
            left.append((done, total, self.remaining()))

    objective = Objective(objective.model, objective.groups, loss_fn=slow)
    work = Work(progress=Told())
    clock[0] = 0.0
    measure_to(objective, Target(0.05), seed=2, work=work)
    done, total, words = left[-11]
    assert total - done == 10
    assert "10 s left" in words
