"""Conversions of weight decay against what torch's optimisers do."""

import math

import pytest
import torch

from villani.errors import InputError
from villani.theory.conventions import conventions, convert, memory


def stepped(optimizer, theta, gradients):
    for g in gradients:
        theta.grad = g.clone()
        optimizer.step()
    return theta.detach().clone()


def test_decoupled_sgd_with_momentum_is_l2_with_less_decay():
    """Fixed points of L = ½‖θ − 1‖²: torch's L2 at λ = wd(1 − μ), decoupled decay wd outside the buffer."""
    rate, mu, decay = 0.1, 0.5, 0.4
    theta = torch.zeros(1, dtype=torch.float64)
    buffer = torch.zeros_like(theta)
    for _ in range(500):
        buffer = mu * buffer + (theta - 1)
        theta = (1 - rate * decay) * theta - rate * buffer
    found = convert(decay, "decoupled-sgd", "objective", momentum=mu)
    assert found == pytest.approx(decay * (1 - mu))
    assert float(theta) == pytest.approx(1 / (1 + found))
    unscaled = convert(rate * decay, "unscaled-sgd", "sgd", learning_rate=rate, momentum=mu)
    assert unscaled == pytest.approx(found)


def test_conversion_of_sgd_without_momentum_is_that_of_torch():
    start = torch.tensor([1.0, -2.0], dtype=torch.float64)
    gradients = [torch.tensor([0.3, 0.1], dtype=torch.float64)] * 3
    l2 = start.clone().requires_grad_()
    ours = start.clone()
    found = stepped(torch.optim.SGD([l2], lr=0.1, weight_decay=0.2), l2, gradients)
    each = convert(0.2, "sgd", "unscaled-sgd", learning_rate=0.1)
    for g in gradients:
        ours = ours - each * ours - 0.1 * g
    torch.testing.assert_close(found, ours)


def test_there_is_no_way_between_adam_and_f():
    for source, target in (("adamw", "objective"), ("sgd", "adamw"), ("adam-l2", "objective"), ("adamw", "adam-l2")):
        with pytest.raises(InputError, match="divided by √v̂"):
            convert(0.1, source, target, learning_rate=0.1)
    with pytest.raises(InputError, match="give the learning rate"):
        convert(0.1, "adamw", "unscaled-adamw")
    assert convert(1e-4, "unscaled-adamw", "adamw", learning_rate=1e-3) == pytest.approx(0.1)
    rows = {name: value for name, value, _ in conventions("adamw", 0.1, 1e-3)}
    assert rows["AdamW as published"] == pytest.approx(1e-4)
    assert rows["λ of F = L + (λ/2)‖θ‖²"] is None
    assert conventions("sgd", 0.1, 0.1, 0.9)[2][1] == pytest.approx(1.0)
    assert memory(0.0, 0.1) == math.inf


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_conversions_are_undone_by_their_inverse(momentum):
    families = [("objective", "sgd", "decoupled-sgd", "unscaled-sgd"), ("adamw", "unscaled-adamw"), ("adam-l2",)]
    for family in families:
        for source in family:
            for target in family:
                there = convert(0.3, source, target, learning_rate=0.02, momentum=momentum)
                back = convert(there, target, source, learning_rate=0.02, momentum=momentum)
                assert back == pytest.approx(0.3)


def test_weights_remember_as_many_steps_as_their_decay_takes_to_shrink_them_by_e():
    """Of plain SGD and of heavy balls, without a gradient."""
    for momentum in (0.0, 0.8):
        theta = torch.ones(1, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([theta], lr=0.01, momentum=momentum, weight_decay=0.1)
        steps = 0
        while float(theta.detach()) > math.exp(-1):
            theta.grad = torch.zeros_like(theta)
            optimizer.step()
            steps += 1
        assert memory(0.1, 0.01, momentum) == pytest.approx(steps, rel=0.02)
    with pytest.raises(InputError, match="momentum=1"):
        convert(0.1, "sgd", "sgd", momentum=1.0)
