"""The kernel of a chain: steps, times and noise in closed form, and what does not go together."""

import math

import numpy as np
import pytest

from villani.dynamics.kernel import FLOOR, Kernel
from villani.errors import InputError

GOOD = {"weight_decay": 0.1, "temperature": 1e-3, "learning_rate": 1e-2, "steps": 10}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_rate": 0.0}, "learning_rate=0"),
        ({"learning_rate": math.nan}, "learning_rate=nan"),
        ({"learning_rate": 30.0}, "diverges for ηλ ≥ 2"),
        ({"steps": 0}, "steps=0"),
        ({"momentum": 1.0}, "momentum=1"),
        ({"momentum": 0.5, "method": "mala"}, "not with mala"),
        ({"weight_decay": -1.0}, "weight_decay=-1"),
        ({"temperature": 0.0}, "temperature=0"),
    ],
)
def test_rules_refuse(changes, words):
    with pytest.raises(InputError, match=words):
        Kernel(**GOOD | changes)


def test_a_cosine_falls_from_the_learning_rate_to_a_tenth_of_it():
    kernel = Kernel(**GOOD | {"schedule": "cosine", "steps": 1000})
    sizes = [kernel.step_size(step) for step in range(1000)]
    assert sizes[0] == 1e-2
    assert sizes == sorted(sizes, reverse=True)
    assert kernel.step_size(1000) == pytest.approx(FLOOR * 1e-2)
    assert np.mean(sizes) == pytest.approx(1e-2 * (1 + FLOOR) / 2, rel=2e-3)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_time_is_the_sum_of_steps(momentum):
    kernel = Kernel(**GOOD | {"schedule": "cosine", "momentum": momentum})
    expected = [sum(kernel.step_size(k) for k in range(step)) / (1 - momentum) for step in (0, 3, 10)]
    assert kernel.times([0, 3, 10]) == pytest.approx(expected)
    assert kernel.beta == 2000


def test_matched_noise_has_the_variance_that_keeps_the_prior():
    """(1 − ηλ)²v + σ² = v at v = s/(2λ); what does not decay gets ηs."""
    kernel = Kernel(**GOOD | {"method": "matched", "learning_rate": 3.0})
    prior = 1e-3 / (2 * 0.1)
    assert (1 - 3.0 * 0.1) ** 2 * prior + kernel.noise(0, True) ** 2 == pytest.approx(prior)
    assert kernel.noise(0, False) == pytest.approx(math.sqrt(3.0 * 1e-3))
    heavy = Kernel(**GOOD | {"momentum": 0.75})
    assert heavy.noise(4, True) ** 2 == pytest.approx(0.25 * 1e-2 * 1e-3)
