"""Chains of `Langevin` against steps made by hand."""

import numpy as np
import pytest
import torch

from tests.conftest import BLOCK, VOCABULARY, dense, flat_parameters, make_model
from villani import InputError, Langevin, Objective

DECAY, TEMPERATURE, RATE = 0.3, 1e-4, 1e-2


def make(architecture="gpt2", **options):
    ids = torch.randint(0, VOCABULARY, (4, 2, BLOCK), generator=torch.Generator().manual_seed(0))
    model = make_model(architecture)
    objective = Objective(model, ids, weight_decay=DECAY, decay="hf")
    settings = {"temperature": TEMPERATURE, "learning_rate": RATE, "steps": 1} | options
    return model, objective, Langevin(objective, **settings)


def gradient(model, objective):
    """∇F (d,) and its parts, of the whole data set, by the dense oracle."""
    parts = [dense(model, {"input_ids": group.ids}) for group in objective.groups]
    tokens = sum(part.tokens for part in parts)
    mask = np.repeat(objective.parameters.decayed, objective.parameters.sizes)
    loss = sum(part.loss for part in parts) / tokens
    return loss, sum(part.gradient for part in parts) / tokens + DECAY * mask * flat_parameters(model), mask


@pytest.mark.parametrize("method", ["noisy-sgd", "matched"])
def test_one_step_is_drift_and_standard_noise(method):
    """(θ⁺ − θ + η∇F)/√(ηs…) is standard normal in every coordinate; what is logged is of θ before the step."""
    model, objective, langevin = make(method=method)
    theta = flat_parameters(model)
    loss, slope, mask = gradient(model, objective)
    chain = langevin.run()
    variance = RATE * TEMPERATURE * (1 - RATE * DECAY / 2 * mask if method == "matched" else 1)
    noise = (flat_parameters(model) - theta + RATE * slope) / np.sqrt(variance)
    d = len(theta)
    assert abs(noise.mean()) < 4 / d**0.5
    assert abs(noise.var() - 1) < 4 * (2 / d) ** 0.5
    assert chain.observables["loss"][0] == pytest.approx(loss, rel=1e-10)
    assert chain.observables["objective"][0] == pytest.approx(loss + DECAY / 2 * (mask * theta**2).sum(), rel=1e-10)
    assert chain.observables["norm_squared"][0] == pytest.approx((theta**2).sum(), rel=1e-10)
    assert chain.observables["gradient_squared"][0] == pytest.approx((slope**2).sum(), rel=1e-9)
    assert chain.observables["radial_force"][0] == pytest.approx(theta @ slope, rel=1e-9)
    assert (chain.accepted, chain.diverged) == (1.0, None)


def test_chains_are_of_seed_and_number_and_go_on_from_the_present_parameters():
    model, _, langevin = make(steps=7, batch=3, momentum=0.5)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    ends = []
    for number in (0, 0, 1):
        model.load_state_dict(start)
        chain = langevin.run(number, log_every=3)
        ends.append(flat_parameters(model))
    assert np.array_equal(ends[0], ends[1])
    assert not np.array_equal(ends[0], ends[2])
    assert chain.steps.tolist() == [0, 3, 6]
    np.testing.assert_allclose(chain.times, np.array([0, 3, 6]) * RATE / 0.5)
    assert all(values.shape == (3,) for values in chain.observables.values())
    before = flat_parameters(model)
    assert langevin.run().observables["norm_squared"][0] == pytest.approx((before**2).sum())
    assert model.training  # its mode is put back
    assert all(p.grad is None for p in model.parameters())


def test_mala_refuses_steps_that_are_too_long_and_divergence_is_told():
    model, _, langevin = make(method="mala", learning_rate=50.0, steps=3)
    theta = flat_parameters(model)
    assert langevin.run().accepted == 0
    assert np.array_equal(flat_parameters(model), theta)
    chain = make(learning_rate=6.0, temperature=1e6, steps=20)[2].run()
    assert chain.diverged is not None
    assert len(chain.steps) <= chain.diverged


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": 0.0}, "temperature=0"), ({"learning_rate": -1.0}, "learning_rate=-1"),
        ({"steps": 0}, "steps=0"), ({"steps": 1.5}, "steps=1.5"), ({"seed": -1}, "seed=-1"),
        ({"method": "hmc"}, "method='hmc'"), ({"schedule": "linear"}, "schedule='linear'"),
        ({"batch": 0}, "batch=0"), ({"batch": 99}, "batch=99"), ({"momentum": 1.0}, "momentum=1"),
        ({"method": "mala", "batch": 2}, "mala needs the gradient of the whole data set"),
        ({"method": "matched", "momentum": 0.5}, "goes with noisy-sgd"),
    ],
)  # fmt: skip
def test_bad_options_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        make(**options)


def test_bad_runs_and_objectives_are_refused():
    *_, langevin = make()
    for options, words in (({"chain": -1}, "chain=-1"), ({"log_every": 0}, "log_every=0")):
        with pytest.raises(InputError, match=words):
            langevin.run(**options)
    with pytest.raises(InputError, match="objective is a Linear"):
        Langevin(torch.nn.Linear(1, 1), temperature=1.0, learning_rate=0.1, steps=1)
