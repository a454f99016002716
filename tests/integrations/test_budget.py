"""Seconds of measuring beside those of a run, on a clock of the test's own."""

import pytest

from villani.errors import InputError
from villani.integrations.budget import Budget


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(("step", "cost", "limit"), [(1.0, 5.0, 0.03), (1.0, 0.01, 0.03), (0.2, 60.0, 0.1)])
def test_the_budget_is_kept_at_every_step_and_used(step, cost, limit):
    clock = Clock()
    budget = Budget(limit, clock)
    budget.expect(3 * cost)  # a first guess that is too dear
    taken, first = 0, None
    steps = int(20 * cost / limit / step) + 100
    for k in range(steps):
        clock.now += step
        budget.step()
        if budget.due:
            first = k if first is None else first
            taken += 1
            with budget.spending(whole=True):
                clock.now += cost * (0.8 + 0.2 * (k % 2))
        assert budget.overhead <= limit
    assert first * step >= 3 * cost / limit - step  # not before the first guess was affordable
    most = min(1, limit * step / (0.9 * cost))  # measurements a step
    assert most * steps - 5 <= taken + (first if most == 1 else 0) <= most * steps + 1


def test_a_dear_measurement_is_waited_for_and_the_dearest_of_three_is_expected():
    clock = Clock()
    budget = Budget(0.1, clock)
    assert not budget.due
    assert not budget.may_try
    budget.expect(1.0)
    for cost in (1.0, 5.0):
        while not budget.due:
            clock.now += 1
            budget.step()
        with budget.spending(whole=True):
            clock.now += cost
    assert budget.overhead > 0.1  # 5 s came where 1 s was expected: told, and made up for
    while not budget.due:
        clock.now += 1
        budget.step()
    assert budget.measuring == 6
    assert not budget.may_try  # what it takes has been seen
    assert (6 + 1.25 * 5) / 0.1 <= clock.now - 6 < (6 + 1.25 * 5) / 0.1 + 1


def test_a_trial_that_met_a_busy_moment_is_made_again():
    """Else one slow forward pass could put the first measurement off beyond the end of a run."""
    clock = Clock()
    budget = Budget(0.1, clock)
    tried = []
    for _ in range(128):
        clock.now += 1
        budget.step()
        if budget.may_try:
            tried.append(clock.now)
            budget.expect(1000.0 if len(tried) == 1 else 2.0)
        if budget.due:
            break
    assert len(tried) == 2
    assert tried[1] == 4 * tried[0]
    assert budget.due
    assert clock.now < 128


def test_a_measurement_that_failed_tells_nothing_and_is_put_off():
    clock = Clock()
    budget = Budget(0.5, clock)
    budget.expect(1.0)
    clock.now = 10.0
    budget.step()
    assert budget.due
    with budget.spending(whole=True):
        clock.now += 3.0
    assert budget.expected == pytest.approx(1.25 * 3)
    budget.failed(whole=True)
    assert budget.expected == 1.0, "what it took is not what a measurement takes"
    assert budget.measuring == 3, "but its seconds count"
    clock.now = 51.0
    assert not budget.due, "not before four times the length of the run"
    clock.now = 52.0
    assert budget.due


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 2.0])
def test_a_share_is_between_0_and_1(share):
    with pytest.raises(InputError, match="max_overhead="):
        Budget(share)
