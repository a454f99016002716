"""What decay does in a run, and which temperature a run resembles, beside plain simulations of both."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from villani.errors import InputError
from villani.theory.guidance import (
    ACTS,
    Run,
    acting_from,
    adamw_temperature,
    decay_width,
    forgotten,
    gradient_noise,
    next_step,
    sgd_temperature,
)


@pytest.mark.parametrize(("optimizer", "momentum"), [("adamw", 0.0), ("sgd", 0.0), ("sgd", 0.9)])
def test_torch_forgets_the_share_that_is_named(optimizer, momentum):
    """Without a gradient, torch's own optimisers shrink a weight by decay alone."""
    weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    rates, decay = [1e-3 * (1 + math.cos(math.pi * k / 4000)) for k in range(4000)], 0.2
    if optimizer == "adamw":
        stepper = torch.optim.AdamW([weight], lr=1.0, weight_decay=decay)
    else:
        stepper = torch.optim.SGD([weight], lr=1.0, weight_decay=decay, momentum=momentum)
    for rate in rates:
        stepper.param_groups[0]["lr"] = rate
        weight.grad = torch.zeros_like(weight)
        stepper.step()
    assert forgotten(decay, sum(rates), momentum) == pytest.approx(1 - float(weight.detach()), rel=0.01)


@given(st.floats(1e-6, 10), st.floats(0, 0.99))
def test_decay_acts_from_the_lambda_that_takes_the_share(time, momentum):
    assert forgotten(acting_from(time, momentum), time, momentum) == pytest.approx(ACTS)
    assert forgotten(0.0, time, momentum) == 0


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_sgd_is_as_wide_as_the_law_at_its_temperature(momentum):
    """Heavy balls in a quadratic of curvature λ alone with gradient noise Σ/B: their variance is s/(2λ)."""
    rng, walkers, rate, decay, noise, batch = np.random.default_rng(0), 20_000, 0.02, 0.5, 3.0, 4
    place, speed = np.zeros(walkers), np.zeros(walkers)
    for _ in range(round(5 * (1 - momentum) / (rate * decay))):
        gradient = decay * place + rng.normal(size=walkers) * math.sqrt(noise / batch)
        speed = momentum * speed + gradient
        place = place - rate * speed
    s = sgd_temperature(rate, noise, batch, 1, momentum)
    assert place.std() == pytest.approx(decay_width(decay, s), rel=0.03)


def test_adamw_of_noise_alone_is_as_wide_as_decay_at_s_equal_to_its_step():
    weight = torch.nn.Parameter(torch.zeros(4000, dtype=torch.float64))
    rate, decay, generator = 1e-2, 1.0, torch.Generator().manual_seed(0)
    stepper = torch.optim.AdamW([weight], lr=rate, weight_decay=decay, betas=(0.9, 0.95))
    for _ in range(400):
        weight.grad = torch.randn(4000, generator=generator, dtype=torch.float64) * 7
        stepper.step()
    assert float(weight.detach().std()) == pytest.approx(decay_width(decay, adamw_temperature(rate)), rel=0.1)


def test_noise_of_a_token_is_what_the_naive_square_has_too_much():
    """Σ of independent rows, from means of groups of T of them."""
    rng, tokens = np.random.default_rng(1), 8
    rows = 0.3 + rng.normal(size=(4000, tokens, 5)) * np.array([1, 2, 0.5, 1, 1])
    means = rows.mean(axis=1)
    naive = float((means**2).sum(axis=1).mean())
    true = float((rows.var(axis=(0, 1))).sum())
    assert gradient_noise(naive, 5 * 0.3**2, tokens) == pytest.approx(true, rel=0.05)
    assert gradient_noise(1.0, 2.0, tokens) == 0


def test_a_law_of_noise_is_told_from_one_of_these_weights():
    law = next_step(0.1, 2.0, dimension=400, norm_squared=4.0)  # rms 0.1; √(2/0.2) = 3.2
    assert "√(s/2λ) = 3.2, 32 times their rms of 0.1: where the loss does not hold them this law is about noise" in law
    assert "s ≤ 2λ·rms² = 0.002 is not" in law
    assert "about what they are" in next_step(0.1, 2e-3, dimension=400, norm_squared=4.0)
    assert "shrinks them to that" in next_step(0.1, 1e-6, dimension=400, norm_squared=4.0)
    assert "At λ = 0" in next_step(0.0, 1.0, dimension=4, norm_squared=1.0)
    assert "all 0" in next_step(0.1, 1.0, dimension=4, norm_squared=0.0)


def test_a_run_in_which_decay_cannot_act_is_told():
    """η = 1e-5, λ = 0.1: 10⁶ steps; 300 of them take 0.03 % away. 1 % goes from λ = 0.01005/0.003 on."""
    words = next_step(0.1, 1e-3, dimension=400, norm_squared=4.0, run=Run("adamw", 1e-5, steps=300))
    assert "forgets over 1/(ηλ) = 1e+06 steps: it cannot act in 300" in words
    assert "look from λ = 3.4 on" in words
    assert "resembles at most s = 1e-05 (heuristic), at which decay alone holds them at 0.071 times the rms" in words


def test_a_run_in_which_decay_acts_is_told():
    run = Run("sgd", 0.1, momentum=0.9, batch=100, noise=50.0, steps=1000)
    words = next_step(0.01, 1e-3, dimension=400, norm_squared=4.0, run=run)
    assert "resembles s = 0.00125 (heuristic)".replace("0.00125", f"{0.1 * 50 / (0.1 * 100 * 400):.2g}") in words
    assert "forgets over (1 − μ)/(ηλ) = 100 steps, and takes away up to 100% of the weights" in words
    assert "a grid about λ = 0.001" in words
    unknown = next_step(0.01, 1e-3, dimension=400, norm_squared=4.0, run=Run("sgd", 0.1))
    assert "takes the noise of its gradients and its batch" in unknown


@pytest.mark.parametrize(
    "values", [{"learning_rate": 0.0}, {"momentum": 1.0}, {"noise": -1.0}, {"steps": 0}, {"batch": math.inf}]
)
def test_a_run_that_cannot_be_is_refused(values):
    with pytest.raises(InputError):
        Run(**{"optimizer": "sgd", "learning_rate": 0.1} | values)


def test_adamw_takes_no_momentum():
    with pytest.raises(InputError, match="goes with sgd"):
        Run("adamw", 0.1, momentum=0.9)
