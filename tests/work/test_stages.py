"""One time left for all stages of a command, on a clock that tests turn by hand."""

from itertools import pairwise

import numpy as np
import pytest

from villani.work import stages as module
from villani.work.budget import Needs
from villani.work.stages import Left, Stages
from villani.work.work import PAGE, Work


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

    monkeypatch.setattr(module.time, "monotonic", lambda: Clock.now)
    return Clock


def simulated(clock, plan, costs, seed):
    """(time, left, truth) after every unit; a plan has name → (units, declared size), costs the seconds of a unit."""
    rng = np.random.default_rng(seed)
    course = Stages()
    course.declare({name: size for name, (_, size) in plan.items()})
    durations = {name: costs[name] * (1 + 0.2 * rng.uniform(-1, 1, units)) for name, (units, _) in plan.items()}
    truth = sum(float(d.sum()) for d in durations.values())
    began, rows = clock.now, []
    for name, (units, _) in plan.items():
        course.begin(name)
        for unit in range(units):
            clock.now += durations[name][unit]
            course.advance(unit + 1, units)
            rows.append((clock.now - began, course.left(), truth - (clock.now - began)))
    return truth, rows


PLANS = {
    "few long units after many short ones": (
        {"a": (100, 30.0), "b": (4, 30.0), "c": (20, 60.0)}, {"a": 1.0, "b": 25.0, "c": 10.0},
    ),
    "declared sizes that are all ten times too small": ({"a": (10, 1.0), "b": (10, 2.0)}, {"a": 1.0, "b": 2.0}),
    "declared sizes off by 15 % either way": (
        {"a": (9, 9.0), "b": (12, 24.0 * 1.15), "c": (3, 15.0 / 1.15)}, {"a": 1.0, "b": 2.0, "c": 5.0},
    ),
    "a single stage": ({"a": (30, 1.0)}, {"a": 3.0}),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("seed", range(5))
def test_what_is_left_is_right_after_a_third(clock, name, seed):
    plan, costs = PLANS[name]
    truth, rows = simulated(clock, plan, costs, seed)
    late = [(left, rest) for at, left, rest in rows if at > truth / 3 and rest > 0.02 * truth]
    assert late
    for left, rest in late:
        assert left.whole
        assert rest / 1.5 <= left.seconds <= 1.5 * rest
    shown = [left.seconds for left, _ in late]
    assert all(later <= earlier + 0.15 * truth for earlier, later in pairwise(shown))
    assert rows[-1][1].seconds == pytest.approx(0, abs=1e-9)


def test_nothing_is_said_before_something_is_done(clock):
    stages = Stages()
    assert stages.left() is None
    stages.declare({"a": 5.0, "b": 5.0})
    stages.begin("a")
    clock.now += 3
    assert stages.left() is None
    stages.advance(1, 2)
    assert stages.left() == Left(3.0 + 6.0, True)
    clock.now += 2
    assert stages.left() == Left(1.0 + 6.0, True)  # the clock runs on within a unit
    clock.now += 30
    assert stages.left() == Left(6.0, False)  # a unit that takes far longer than it should: at least


def test_what_cannot_be_known_makes_a_lower_bound(clock):
    stages = Stages()
    stages.declare({"a": 1.0, "unknown: 1": None, "unknown: 2": None, "none": 0.0})
    stages.begin("a")
    clock.now += 4
    stages.advance(1, 2)
    assert stages.left() == Left(4.0, False)
    assert str(stages.left()) == "at least 4 s left in all"
    clock.now += 4
    stages.begin("unknown: 1")
    assert stages.left() is None  # nothing that is to come can be estimated
    clock.now += 7
    stages.begin("unknown: 2")
    assert stages.left() == Left(7.0, True)  # as long as the other of its kind
    assert str(stages.left()) == "about 7 s left in all"


def test_a_resumed_stage_was_not_a_fast_one(clock, tmp_path):
    """Eight of ten units are kept by a first process; the second one sees their seconds, not its own."""

    def begun():
        work = Work(tmp_path / "run")
        work.open("toy", "", {}, {}, needs=Needs(stages={"a": 1.0, "b": 2.0}))
        work.stage("a")
        return work

    def unit():
        clock.now += 5.0
        return {"x": np.zeros(1)}

    with begun() as work:
        for number in range(8):
            work.put(f"u/{number}", {"x": np.zeros(1)}, seconds=5.0)
    with begun() as work:
        seen = []
        work.progress.advance = lambda done, total: seen.append((done, work.stages.left().seconds))
        work.map({f"u/{number}": unit for number in range(10)})
        page = work.stages.left().seconds - 100.0
        assert 0 < page < 100  # writing it
        assert seen[7:] == [(8 + i, pytest.approx(110 - 5 * i + page)) for i in range(3)]
        assert work.stages.seconds()["a"] == pytest.approx(50.0)  # what it took over both
        work.get("u/3")
        assert work.stages.left().seconds == pytest.approx(100 + page)  # a unit counts once


def test_a_command_inside_another_reports_into_it(clock, tmp_path):
    with Work(tmp_path / "run") as work:
        work.open("outer", "", {}, {}, needs=Needs(stages={"sweep": 10.0, "inside": 10.0, "last": 10.0}))
        work.stage("sweep")
        clock.now += 20
        work.advance(1, 1)
        with work.inner("inside") as inner:
            work.stage("inside")
            inner.stage("loading")
            clock.now += 1
            inner.open("inner", "", {}, {}, needs=Needs(seconds=30.0, stages={"x": 1.0, "y": 2.0}))
            inner.stage("x")
            clock.now += 40
            inner.advance(2, 4)
            left = work.stages.left()
            rest = 40 + 160 + 20 * 60 / 20  # half of x, y at x's or at everything's pace, last
            assert left.whole
            assert rest / 1.6 < left.seconds < 1.6 * rest
            clock.now += 40
            inner.stage("y")
            clock.now += 160
            inner.stage(PAGE)
            clock.now += 2
        work.stage("last")
        last = work.stages.left().seconds
        clock.now += 30
        assert work.stages.left().seconds == pytest.approx(max(last - 30, 0), abs=3)
        assert inner.stages.seconds()["y"] == 160
        assert work.stages.seconds()["inside"] == pytest.approx(1 + 40 + 40 + 160 + 2)


def test_parts_of_a_stage_add_up(clock):
    shown = []
    work = Work()
    work.progress.advance = lambda done, total: shown.append((done, total))
    work.stages.declare({"rays": 1.0, "chains": 1.0})
    work.stage("rays")
    for ray in range(2):
        for radius in range(3):
            part = work.part(ray, 2).part(radius, 3)
            clock.now += 1
            part.advance(1, 1)
    assert shown == [(i, 6) for i in range(1, 7)]
    assert work.stages.left() == Left(6.0, True)
    shown.clear()
    for chain in range(2):
        part = work.part(chain, 2)
        part.stage(f"chain {chain}", "chains")
        clock.now += 4
        part.advance(10, 20)
        assert work.stages.left().seconds == pytest.approx([12, 4][chain])
        clock.now += 4
        part.advance(20, 20)
    assert shown == [(10, 20), (20, 20)] * 2  # each says how far it is itself
    part.stage("judging")  # belongs to the stage that it is in
    part.advance(1, 9)
    assert work.stages.left() == Left(0.0, True)


def test_what_is_prepared_for_units_is_not_their_cost(clock):
    def unit():
        clock.now += 1
        if not seen:
            seen.append(work.stages.left())
        return {}

    seen, work = [], Work()
    work.stages.declare({"a": 1.0})
    work.stage("a")
    clock.now += 60  # a graph is traced
    work.progress.advance = lambda done, total: seen.append(work.stages.left())
    work.map({str(number): unit for number in range(4)})
    assert seen == [None, *(Left(float(rest), True) for rest in (3, 2, 1, 0))]


def test_without_a_plan_a_stage_speaks_for_itself_only(clock):
    work = Work()
    clock.now += 5
    work.advance(0, 4)
    clock.now += 2
    work.advance(1, 4)
    assert work.progress.remaining() == "at least 6 s left in all"
