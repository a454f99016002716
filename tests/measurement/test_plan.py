import numpy as np
import pytest

from tests.conftest import dense, make_model, make_pool
from villani.curvature.rules import RULES
from villani.errors import InputError
from villani.measurement.measure_to import measure_to
from villani.measurement.pilot import FORWARD, REVERSE, ways_for
from villani.measurement.plan import (
    PILOT,
    Trial,
    data_variance,
    make_plan,
    more_groups,
    rehearsal_size,
    settle,
)
from villani.measurement.target import Target
from villani.objective.graph import aten
from villani.objective.objective import Objective
from villani.statistics import Estimate, GroupSums, sampled_statistics
from villani.work.work import Work

WHOLE, LAYER, SPLIT = FORWARD


def trial(rng, *, data=1.0, probe=1.0, groups=4000, seconds=1.0, more=0.5, mean=10.0):
    values = mean + data * rng.normal(size=groups) + probe * rng.normal(size=(2, groups))
    return Trial(values=values, figure=mean, other=0.0, seconds=seconds, more_seconds=more)


def test_variances_are_told_apart():
    found = trial(np.random.default_rng(0), data=2.0, probe=3.0)
    assert found.probe_variance == pytest.approx(9.0, rel=0.1)
    assert data_variance(found.values) == pytest.approx(4.0, rel=0.2)


def test_the_plan_minimises_variance_times_seconds():
    """σ_b² = 1, σ_w² = 16, a = 1, c = 0.1: m* = √(σ_w²(a − c)/(σ_b² c)) = 12, so 1 + 16/12 over ε²."""
    found = {WHOLE: trial(np.random.default_rng(1), probe=4.0, more=0.1)}
    plan = make_plan(found, Target(0.05), least=3)
    assert plan.probes == 12
    assert plan.groups == pytest.approx((1 + 16 / 12) / 0.5**2, rel=0.1)
    assert plan.seconds == pytest.approx(plan.groups * 2.1, rel=1e-6)
    absolute = make_plan(found, Target(0.5, relative=False), least=3)
    assert absolute.groups == plan.groups


def test_a_way_wins_by_its_noise_or_by_its_cost():
    rng = np.random.default_rng(2)
    quiet, noisy = trial(rng, probe=0.1, seconds=2.0), trial(rng, probe=3.0, seconds=1.0)
    assert (make_plan({WHOLE: noisy, LAYER: quiet}, Target(0.01), least=3).way.blocks) == "layer"
    dear = trial(rng, probe=0.1, seconds=200.0)
    assert (make_plan({WHOLE: noisy, LAYER: dear}, Target(0.01), least=3).way.blocks) == "whole"


def test_groups_are_added_only_where_the_error_is_too_large():
    target = Target(0.1)
    assert more_groups(20, Estimate(5.0, 0.5, 20, "statistical"), target) == 20
    assert more_groups(20, Estimate(5.0, 0.6, 20, "statistical"), target) == 31  # 20 · 1.2² · 1.05
    assert more_groups(20, Estimate(5.0, 1.0, 20, "statistical"), target) == 40  # not 20 · 2² · 1.05: at most twice
    assert more_groups(20, Estimate(5.0, 0.5000001, 20, "statistical"), target) > 20
    with pytest.raises(InputError, match="give an absolute one"):
        more_groups(20, Estimate(0.0, 1.0, 20, "statistical"), target)


def estimated(traces):
    zeros = np.zeros(len(traces))
    return sampled_statistics(GroupSums(zeros + 1, zeros, zeros[:, None], zeros, traces)).component(3)


def simulate(rng, noise, error=0.05, data=0.3, probe=0.3):
    """A planned measurement of synthetic traces with mean 1; whether its interval holds 1."""

    def groups(count, probes):
        return 1 + data * noise(count)[:, None] + probe * rng.normal(size=(count, probes))

    target = Target(error)
    values = groups(PILOT, 2).T
    plan = make_plan({WHOLE: Trial(values, values.mean(), 0.0, 1.0, 0.5)}, target, least=16)
    plan = settle(plan, target, estimated(groups(rehearsal_size(plan.groups), plan.probes)), 1.0, least=16)
    traces = groups(plan.groups, plan.probes)
    while True:
        estimate = estimated(traces)
        wanted = more_groups(len(traces), estimate, target)
        if wanted == len(traces):
            low, high = estimate.interval(0.95)
            return low <= 1 <= high, estimate.sem <= error * abs(estimate.value)
        traces = np.concatenate([traces, groups(wanted - len(traces), plan.probes)])


@pytest.mark.parametrize("shape", ["normal", "skewed"])
def test_intervals_cover_with_the_plan_in_the_loop(shape):
    rng = np.random.default_rng(3)
    noise = rng.standard_normal if shape == "normal" else lambda n: rng.exponential(size=n) - 1
    found = np.array([simulate(rng, noise) for _ in range(1500)])
    assert 0.93 <= found[:, 0].mean() <= 0.97
    assert found[:, 1].all()


def objective_of(model, count=400):
    pool = make_pool(6)
    draws = np.random.default_rng(5).integers(6, size=count)
    return Objective(model, [pool[i] for i in draws], weight_decay=0.1), pool


@pytest.mark.parametrize("quantity", ["hessian_trace", "psi"])
def test_measuring_to_an_error_reaches_it_and_holds_the_truth(quantity):
    model = make_model("gpt2")
    objective, pool = objective_of(model)
    oracles = [dense(model, group, second=True) for group in pool]
    tokens = sum(o.tokens for o in oracles)
    trace = sum(np.trace(o.hessian) for o in oracles) / tokens
    error = 25.0  # absolute: which way and how many probes a plan takes depends on timings, and so does a figure
    target = Target(error, relative=False, quantity=quantity, weight_decay=0.1, temperature=10.0)
    plans = []
    found, plan = measure_to(objective, target, seed=1, least=8, on_plan=plans.append)
    assert target.estimate(found).sem <= error
    assert abs(found.hessian_trace.value - trace) < 4 * found.hessian_trace.sem
    assert plans == [plan]
    assert plan.first >= PILOT
    assert found.loss.n >= plan.groups >= 8
    assert all(layer.hessian_trace for layer in found.layers)
    assert all(tensor.hessian_trace for tensor in found.tensors)


def test_a_resumed_run_keeps_to_its_plan_and_measures_nothing_twice():
    objective, _ = objective_of(make_model("gpt2"))

    work = Work()
    first, plan = measure_to(objective, Target(40.0, relative=False), least=8, work=work)
    spent = work.spent()
    again, same = measure_to(objective, Target(40.0, relative=False), least=8, work=work)
    assert (plan, spent) == (same, work.spent())
    assert np.array_equal(first.joint.covariance, again.joint.covariance)


def test_what_cannot_be_planned_is_refused():
    model = make_model("gpt2")
    objective, pool = objective_of(model, 20)
    with pytest.raises(InputError, match="raise max_groups, or ask for about"):
        measure_to(objective, Target(1e-3), least=3)
    with pytest.raises(InputError, match="needs 24 or more"):
        measure_to(Objective(model, pool), Target(0.1))
    with pytest.raises(InputError, match="finite=True"):
        measure_to(Objective(model, pool, finite=True), Target(0.1))
    for error in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="target_error"):
            Target(error)


def test_a_model_without_rules_falls_back_with_a_note(monkeypatch):
    objective, _ = objective_of(make_model("gpt2"))
    assert ways_for(objective) == (FORWARD, "")
    monkeypatch.delitem(RULES, aten.gelu.default)
    ways, note = ways_for(objective)
    assert ways == REVERSE
    assert "no Taylor rule for aten.gelu.default" in note
    _, plan = measure_to(objective, Target(2.0), least=3)
    assert plan.way.trace in ("gauss-newton", "hutchinson")
    assert plan.note == note
