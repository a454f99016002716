import numpy as np
import pytest
from scipy.optimize import minimize

from villani.dynamics.certificate import ChainPlan
from villani.errors import InputError
from villani.theory.complexity import NoisyDescent, certificate_decay


def certificate(rates, decays, share=0.5):
    """c4 at v = 1 and clip 1 with p = ½, by its recursion written out."""
    kl = 0.0
    for eta, decay in zip(rates, decays, strict=True):
        kept = (1 - eta * decay) ** 2
        kl = (1 + kept) / 2 * (kl + eta**2 / (1 - kept))
    return kl


def remembered(rates, decays):
    """The weight with which θ_K has the gradients, Σ η_k Π_{j>k} (1 − η_jλ_j)."""
    total = 0.0
    for eta, decay in zip(rates, decays, strict=True):
        total = (1 - eta * decay) * total + eta
    return total


@pytest.mark.parametrize("strength", [0.5, 2.0, 6.0])
def test_c4_and_memory_fall_as_the_closed_form_says(strength):
    steps = 4000
    rates = np.full(steps, 0.01)
    decay = strength / (steps * 0.01)
    ratio = (strength / 2) ** 2 / np.sinh(strength / 2) ** 2
    planned, constant = certificate_decay(rates, decay), np.full(steps, decay)
    first_order = (rates * planned).max()  # 0.02 % to 10 %
    assert certificate(rates, planned) / certificate(rates, constant) == pytest.approx(ratio, rel=first_order)
    assert remembered(rates, planned) / remembered(rates, constant) == pytest.approx(ratio, rel=first_order)
    assert NoisyDescent(planned, 1.0, rates).bounds(1.0, 0.5)[-1] == pytest.approx(certificate(rates, planned))


def test_no_schedule_of_equal_shrinkage_that_a_minimiser_finds_has_a_lower_c4():
    rates = 0.02 * np.linspace(2.0, 0.5, 40)  # a falling rate
    decay = 2.0
    planned = certificate_decay(rates, decay)
    shrinkage = np.log1p(-rates * decay).sum()

    def objective(logs):
        kept = np.exp(shrinkage * np.exp(logs) / np.exp(logs).sum())
        return np.log(certificate(rates, (1 - kept) / rates))

    found = minimize(objective, np.log(rates), method="L-BFGS-B", options={"maxiter": 300, "maxfun": 30000})
    best = np.exp(found.fun)
    assert certificate(rates, planned) < certificate(rates, np.full(40, decay))
    assert best <= certificate(rates, planned) < best * 1.01  # first order in ηλ


def test_the_path_pays_least_at_constant_decay_and_c4_falls_in_every_decay():
    generator = np.random.default_rng(0)
    rates = 0.01 * (1 + generator.random(50))
    even = NoisyDescent(np.full(50, 0.5), 1.0, rates)
    for _ in range(20):
        other = 0.5 * np.exp(0.3 * generator.standard_normal(50))
        other *= (rates * 0.5).sum() / (rates * other).sum()
        assert NoisyDescent(other, 1.0, rates).path_cost(1.0) > even.path_cost(1.0)
    more = np.full(50, 0.5)
    for k in (0, 20, 49):
        more = more.copy()
        more[k] *= 2
        assert NoisyDescent(more, 1.0, rates).clipped(1.0).value < even.clipped(1.0).value


def test_a_chain_with_a_schedule_leaves_its_prior_as_it_is():
    decays = certificate_decay(np.full(30, 0.1), 1.0)
    plan = ChainPlan(np.full(30, 0.1), 1.0, 0.4, None, "prior", decays)
    variance = plan.variance
    for kept, noise in zip(plan.contractions, plan.noises, strict=True):
        assert kept**2 * variance + noise**2 == pytest.approx(plan.variance, rel=1e-12)
    assert plan.contractions[-1] < plan.contractions[0] < 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: certificate_decay([0.1], 0.0), "weight_decay=0"),
        (lambda: certificate_decay([0.1], 10.0), "η < 1/λ"),
        (lambda: certificate_decay([[0.1]], 1.0), "rates"),
        (lambda: certificate_decay(np.full(10**4, 0.5), 1.0), "long forgotten"),
        (lambda: NoisyDescent(np.ones(3), 1.0, np.ones(2) * 0.1), "weight_decay"),
        (lambda: NoisyDescent(np.array([1.0, np.nan]), 1.0, np.ones(2) * 0.1), "weight_decay=nan"),
        (lambda: NoisyDescent(np.array([1.0, 30.0]), 1.0, np.ones(2) * 0.1), "η < 2/λ = 0.0666"),
        (lambda: ChainPlan(np.ones(2), 0.0, 1.0, None, "centre", np.ones(2)), "need weight_decay > 0"),
    ],
)
def test_bad_schedules_are_told(make, words):
    with pytest.raises(InputError, match=words):
        make()
