import numpy as np
import pytest

from tests.conftest import dense, make_model, make_pool
from villani.curvature.rules import RULES
from villani.curvature.ways import Way
from villani.errors import InputError
from villani.measurement.measure_to import measure_to
from villani.measurement.plan import GROWTH, START, groups_for, make_plan, more_groups, repeated
from villani.measurement.target import Target
from villani.objective.graph import aten
from villani.objective.objective import Objective
from villani.statistics import Estimate, GroupSums, sampled_statistics
from villani.work.work import Work

TAYLOR = Way("taylor")


def test_a_plan_says_what_its_groups_say():
    """Of 16 groups an error of 2.0, so 64 = σ_b² + σ_w² a group: 0.5 takes 16·4²·1.05 = 269 groups."""
    figure = Estimate(10.0, 2.0, 16, "statistical")
    plan = make_plan(TAYLOR, figure, Target(0.05), probe_variance=28.0, seconds_per_group=3.0)
    assert (plan.groups, plan.start, plan.probes) == (269, 16, 1)
    assert plan.seconds == pytest.approx(269 * 3.0)
    assert plan.probe_deviation**2 == pytest.approx(28.0)
    assert plan.data_deviation**2 == pytest.approx(64.0 - 28.0)
    assert plan.uncertainty == pytest.approx((2 / 15 + 4 * 0.2**2) ** 0.5)
    absolute = make_plan(TAYLOR, figure, Target(0.5, relative=False), probe_variance=99.0, seconds_per_group=3.0)
    assert absolute.groups == plan.groups
    assert absolute.data_deviation == 0.0
    assert absolute.uncertainty == pytest.approx((2 / 15) ** 0.5)


def test_few_groups_are_sampled_twice():
    assert [repeated(n) for n in (12, 16, 23, 24, 64, 1000)] == [2, 2, 2, 3, 8, 8]
    assert all(repeated(n) <= n / 8 for n in range(16, 2000))


def test_groups_are_added_only_where_the_error_is_too_large():
    target = Target(0.1)
    assert more_groups(Estimate(5.0, 0.5, 20, "statistical"), target) == 20
    assert more_groups(Estimate(5.0, 0.6, 20, "statistical"), target) == 31  # 20 · 1.2² · 1.05
    assert more_groups(Estimate(5.0, 1.0, 20, "statistical"), target) == 20 * GROWTH  # not 20 · 2² · 1.05
    assert groups_for(Estimate(5.0, 1.0, 20, "statistical"), target) == 84
    assert more_groups(Estimate(5.0, 0.5000001, 20, "statistical"), target) > 20
    with pytest.raises(InputError, match="give an absolute one"):
        more_groups(Estimate(0.0, 1.0, 20, "statistical"), target)


def estimated(traces):
    zeros = np.zeros(len(traces))
    sums = GroupSums(zeros + 1, zeros, zeros[:, None], zeros, traces[:, None])
    return sampled_statistics(sums).component(3)


def simulate(noise, error=0.05, deviation=0.42, start=16):
    """A planned measurement of synthetic traces with mean 1: whether its interval holds 1, error, groups, planned."""
    target = Target(error)
    traces = 1 + deviation * noise(start)
    planned = wanted = groups_for(estimated(traces), target)
    while wanted > len(traces):
        traces = np.concatenate([traces, 1 + deviation * noise(wanted - len(traces))])
        wanted = more_groups(estimated(traces), target)
    estimate = estimated(traces)
    low, high = estimate.interval(0.95)
    return low <= 1 <= high, estimate.sem <= error * abs(estimate.value), len(traces), planned


@pytest.mark.parametrize("shape", ["normal", "skewed"])
def test_intervals_cover_with_the_plan_in_the_loop(shape):
    """Skewed: half of the variance is that of an exponential, as of text, half normal, as of probes."""
    rng = np.random.default_rng(3)

    def skewed(n):
        return (rng.exponential(size=n) - 1 + rng.standard_normal(n)) / 2**0.5

    results = np.array([simulate(rng.standard_normal if shape == "normal" else skewed) for _ in range(1500)])
    covers, reached, groups, planned = results.T
    assert 0.93 <= covers.mean() <= 0.97
    assert reached.all()
    assert (groups >= planned).all()
    assert np.median(groups / planned) < 1.5


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
    error = 25.0
    target = Target(error, relative=False, quantity=quantity, weight_decay=0.1, temperature=10.0)
    plans = []
    found, plan = measure_to(objective, target, seed=1, least=8, on_plan=plans.append)
    assert target.estimate(found).sem <= error
    assert abs(found.hessian_trace.value - trace) < 4 * found.hessian_trace.sem
    assert plans == [plan]
    assert found.loss.n >= plan.groups >= plan.start == START
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
    with pytest.raises(InputError, match="needs 16 or more"):
        measure_to(Objective(model, pool), Target(0.1))
    with pytest.raises(InputError, match="finite=True"):
        measure_to(Objective(model, pool, finite=True), Target(0.1))
    for error in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="target_error"):
            Target(error)


def test_a_model_without_rules_falls_back_with_a_note(monkeypatch):
    _, plan = measure_to(objective_of(make_model("gpt2"))[0], Target(1e3, relative=False), least=3)
    assert (plan.way.trace, plan.note) == ("adjoint", "")
    objective, _ = objective_of(make_model("gpt2"))
    monkeypatch.delitem(RULES, aten.gelu.default)
    _, plan = measure_to(objective, Target(1e3, relative=False), least=3)
    assert plan.way.trace == "gauss-newton"
    assert "no Taylor rule for aten.gelu.default" in plan.note
