"""The account of a run, against plans that it keeps and breaks, and the bounds of what it adds up to."""

import math

import numpy as np
import pytest

from villani.dynamics.certificate import Account, ChainPlan, Moments, chain_complexity, token_bound
from villani.errors import InputError
from villani.theory.complexity import NoisyDescent
from villani.theory.constants import Smoothing

STEPS = 6


def plan(**changed):
    settings = {"rates": np.full(STEPS, 0.1), "weight_decay": 0.5, "temperature": 1e-3, "clip": 1.0, "start": "prior"}
    return ChainPlan(**settings | changed)


def kept(account, **changed):
    """A run that keeps to the plan, but for what is changed at step 3."""
    p = account.plan
    for k in range(len(p.rates)):
        step = {"rate": p.rates[k], "noise": p.noises[k], "contraction": p.contractions[k]}
        step |= {"squared": 0.25, "inner": 0.1}
        if k == 3:
            step |= changed
        account.step(step.pop("squared"), step.pop("inner"), **step)
    return account


def test_the_log_ratio_is_that_of_two_gaussians():
    """ln dQ/dP of a path, from the densities of its steps."""
    p, generator = plan(), np.random.default_rng(0)
    account, theta, expected = Account(p), generator.normal(size=4), 0.0
    for rate, a, noise in zip(p.rates, p.contractions, p.noises, strict=True):
        g, xi = 0.3 * generator.normal(size=4), generator.normal(size=4)
        after = a * theta - rate * g + noise * xi
        expected += ((after - a * theta) ** 2 - (after - a * theta + rate * g) ** 2).sum() / (2 * noise**2)
        account.step(float(g @ g), float(g @ xi), rate=rate, noise=noise, contraction=a)
        theta = after
    assert account.path().value == pytest.approx(expected, rel=1e-10)
    assert account.path().status == "certified"


def test_a_plan_leaves_its_prior_as_it_is():
    p = plan(rates=np.array([0.1, 0.3, 0.05]))
    assert p.variance == pytest.approx(1e-3)
    assert p.contractions**2 * p.variance + p.noises**2 == pytest.approx(np.full(3, p.variance))
    free = plan(weight_decay=0.0, start="centre")
    assert free.noises == pytest.approx(np.full(STEPS, math.sqrt(1e-4)))
    assert (free.contractions == 1).all()
    assert free.variance == math.inf


@pytest.mark.parametrize(
    ("changed", "fragment"),
    [
        ({"noise": 0.0}, "step 3: the noise was switched off"),
        ({"noise": 0.02}, "in place of the planned"),
        ({"contraction": 1.0}, "decay left 1 of θ in place of the planned 0.95"),
        ({"rate": 0.2}, "learning rate 0.2 in place of the planned 0.1"),
        ({"squared": 1.1}, "above the clip 1"),
        ({"sees_noise": True}, "computed from this step's own noise"),
        ({"inner": math.nan}, "not finite"),
    ],
)
def test_a_run_that_breaks_a_hypothesis_gets_no_certificate(changed, fragment):
    assert math.isfinite(kept(Account(plan())).path().value)
    with pytest.raises(InputError, match=fragment):
        kept(Account(plan()), **changed).path()


def test_an_unfinished_or_prolonged_run_gets_none():
    account = Account(plan())
    with pytest.raises(InputError, match="0 of 6 planned steps"):
        account.path()
    kept(account)
    account.step(0.1, 0.0, rate=0.1, noise=plan().noises[0], contraction=0.95)
    with pytest.raises(InputError, match="more steps than the 6 planned"):
        account.path()


@pytest.mark.parametrize(
    ("changed", "fragment"),
    [
        ({"temperature": 0.0}, "temperature=0"), ({"weight_decay": -1.0}, "weight_decay=-1"),
        ({"clip": 0.0}, "clip=0"), ({"weight_decay": 30.0}, "η < 2/λ"), ({"weight_decay": 0.0}, "no prior to start in"),
        ({"rates": np.array([0.1, np.nan])}, "learning rates"),
    ],
)  # fmt: skip
def test_plans_that_no_theorem_is_about(changed, fragment):
    with pytest.raises(InputError, match=fragment):
        plan(**changed)


def test_c4_is_certified_by_the_clip_and_lowered_by_many_chains():
    p = plan()
    certified = NoisyDescent(0.5, p.variance, p.rates).clipped(1.0).value
    few = chain_complexity(p, [np.full(STEPS, 0.9)] * 2, 0.01)
    many = chain_complexity(p, [np.full(STEPS, 0.04)] * 400, 0.01)
    assert 0.9 * certified < few.value <= certified * (1 + 1e-12)
    assert many.status == "statistical"
    assert 0.04 * certified < many.value < 0.1 * certified


@pytest.mark.parametrize(
    ("changed", "fragment"),
    [
        ({"weight_decay": 0.0, "start": "centre"}, "λ = 0"), ({"start": "centre"}, "--start prior"),
        ({"clip": None}, "without a clip"),
    ],
)  # fmt: skip
def test_c4_says_which_hypothesis_is_missing(changed, fragment):
    with pytest.raises(InputError, match=fragment):
        chain_complexity(plan(**changed), [np.ones(STEPS)] * 5, 0.01)


def test_token_bound_takes_the_better_kind():
    smoothing = Smoothing(50257, 0.01)
    spread = token_bound(Moments(smoothing, 5.0, 32.0), 10**6, 300.0, 0.05)
    assert spread.name == "Bernstein"
    assert math.sqrt(2 * 7 * 300 / 1e6) < spread.excess < 1.3 * math.sqrt(2 * 7 * 310 / 1e6)
    assert token_bound(Moments(smoothing, 5.0, 32.0), 10**6, 1e9, 0.05).value == pytest.approx(smoothing.highest)
