"""What is seen of gradients between `backward` and the step: factors, bends, decays; nothing is changed."""

import pytest
import torch
from torch import nn

from villani.integrations.gradients import GradientWatch


def stepped(change=None, scale=None, steps=1):
    """What a watch saw of steps whose gradients were changed after `backward`."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    watch = GradientWatch(model, optimizer, None if scale is None else lambda: scale)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(torch.ones(2, 3)).square().sum() * (scale or 1.0)).backward()
        for p in model.parameters():
            if scale is not None:
                p.grad /= scale
            if change is not None:
                change(p)
        optimizer.step()
    return watch, model, optimizer


def test_untouched_gradients_have_no_factor():
    seen = stepped(steps=3)[0].take()
    assert (seen.taken, seen.unseen, seen.changed, seen.bent, seen.factor) == (3, 0, 0, 0, 1.0)
    assert not seen.uneven


@pytest.mark.parametrize("factor", [0.25, 3.0])
def test_a_factor_is_told(factor):
    seen = stepped(lambda p: p.grad.mul_(factor), steps=2)[0].take()
    assert (seen.changed, seen.bent) == (2, 0)
    assert seen.factor == pytest.approx(factor)


def test_a_factor_of_large_tensors_is_told_to_the_digits_of_float32():
    """Torch's dot on a CPU is not: of 135 million entries it is off by 10⁻², and a clip by 0.3 looked bent."""
    model = nn.Linear(1 << 12, 1 << 12, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = GradientWatch(model, optimizer)
    (model(torch.randn(2, 1 << 12)).square().sum()).backward()
    model.weight.grad.mul_(0.3)
    optimizer.step()
    seen = watch.take()
    assert (seen.changed, seen.bent) == (1, 0)
    assert seen.factor == pytest.approx(0.3, rel=1e-6)


def test_a_clip_by_norm_is_a_factor_and_a_clip_by_value_is_none():
    watch, model, optimizer = stepped()
    watch.take()
    optimizer.zero_grad()
    model(100 * torch.ones(2, 3)).square().sum().backward()
    whole = float(nn.utils.clip_grad_norm_(model.parameters(), 1e-3))
    optimizer.step()
    seen = watch.take()
    assert seen.factor == pytest.approx(1e-3 / whole, rel=1e-3)
    bent = stepped(lambda p: p.grad.clamp_(-0.01, 0.01))[0].take()
    assert bent.bent == 1


def test_a_scale_that_is_divided_out_again_is_no_change():
    seen = stepped(scale=1024.0)[0].take()
    assert (seen.changed, seen.factor) == (0, 1.0)


def test_a_decay_that_changes_is_noticed_and_taking_starts_anew():
    watch, model, optimizer = stepped()
    optimizer.param_groups[0]["weight_decay"] = 0.2
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    assert watch.take().varied
    assert watch.take().taken == 0


def test_hooks_come_off_and_weights_were_never_touched():
    watch, model, optimizer = stepped(steps=2)
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    descent = torch.optim.SGD(plain.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        descent.zero_grad()
        plain(torch.ones(2, 3)).square().sum().backward()
        descent.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    watch.close()
    watch.take()
    optimizer.step()
    assert watch.take().taken == 0
