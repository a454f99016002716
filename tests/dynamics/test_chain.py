"""Noisy chains on a model, against the same arithmetic by hand, and directions against torch's optimisers."""

import numpy as np
import pytest
import torch

from tests.conftest import BLOCK, VOCABULARY, make_model
from tests.dynamics.test_certificate import plan
from villani.dynamics.chain import Moving, Turning, batch_loss, label_probabilities, matching, run_chain
from villani.errors import InputError
from villani.streams import Purpose, stream


@pytest.fixture
def tiny():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, VOCABULARY, (12, BLOCK), generator=generator)
    return make_model("gpt_neo"), ids, ids.clone()


@pytest.mark.parametrize("direction", ["sgd", "momentum", "adam"])
def test_a_chain_is_the_recursion_it_says(tiny, direction):
    """Without noise to speak of, the same steps by hand; the account agrees with them."""
    model, ids, labels = tiny
    moving = Moving(model, "wte|ln_f")
    p = plan(temperature=1e-24, start="centre", clip=0.4, rates=np.array([0.1, 0.2, 0.05]))
    out = run_chain(moving, ids, labels, p, batch=4, seed=1, direction=direction)
    assert out.account.path().value > 0
    assert 0 < max(out.account.squares) <= 0.16 * (1 + 1e-9)
    again = run_chain(moving, ids, labels, p, batch=4, seed=1, direction=direction)
    assert torch.equal(out.w, again.w)
    assert out.account.log_ratio == again.account.log_ratio
    other = run_chain(moving, ids, labels, p, batch=4, seed=1, index=1, direction=direction)
    assert not torch.equal(out.w, other.w)
    if direction == "sgd":
        w = torch.zeros_like(moving.centre)
        for k, (rate, a) in enumerate(zip(p.rates, p.contractions, strict=True)):
            moving.write(w)
            rows = torch.from_numpy(stream(1, Purpose.BATCHES, 0, k).integers(len(ids), size=4))
            g = moving.gradient(batch_loss(model, ids[rows], labels[rows]))
            w = a * w - rate * g * min(1.0, 0.4 / float(g.norm()))
        torch.testing.assert_close(out.w, w, rtol=1e-6, atol=1e-9)


def test_only_what_matches_moves_and_noise_has_its_variance(tiny):
    model, ids, labels = tiny
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    moving = Moving(model, "mlp", scale="relative")
    p = plan(start="prior", temperature=0.02, clip=1e-9, rates=np.full(3, 0.5))
    out = run_chain(moving, ids, labels, p, batch=2, seed=3)
    assert out.clipped == 1
    for name, now in model.named_parameters():
        assert torch.equal(now, before[name]) == ("mlp" not in name)
    share = float(out.w.square().mean()) / p.variance
    assert abs(share - 1) < 4 * (2 / moving.size) ** 0.5
    assert abs(out.account.log_ratio) < 1e-3


def test_probabilities_are_those_of_the_labels(tiny):
    model, ids, labels = tiny
    labels[0, 3:] = -100
    logs, counts = label_probabilities(model, ids, labels, micro_tokens=2 * BLOCK)
    assert list(counts) == [2, *[BLOCK - 1] * 11]
    assert -logs.mean() == pytest.approx(float(batch_loss(model, ids, labels).detach()), rel=1e-5)
    first = torch.log_softmax(model(input_ids=ids[:1]).logits[0, 0], -1)[ids[0, 1]]
    assert logs[0] == pytest.approx(float(first.detach()), rel=1e-5)


def test_patterns_that_match_nothing_are_refused(tiny):
    with pytest.raises(InputError, match="matches no parameter"):
        Moving(tiny[0], "nothing")
    with pytest.raises(InputError, match="not a regular expression"):
        Moving(tiny[0], "(")


@pytest.mark.parametrize("direction", ["sgd", "momentum", "adam"])
def test_directions_are_those_of_torchs_optimisers(direction):
    """Unit steps of each optimiser, undone: what it subtracts is the direction."""
    draw = torch.Generator().manual_seed(0)
    theta = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    turn, average = Turning(direction, theta.detach()), torch.zeros(5, dtype=torch.float64)
    optimizer = {
        "sgd": torch.optim.SGD([theta], lr=1.0),
        "momentum": None,
        "adam": torch.optim.Adam([theta], lr=1.0, betas=(0.9, 0.95), eps=1e-8),
    }[direction]
    for k in range(6):
        g = torch.randn(5, generator=draw, dtype=torch.float64)
        ours = turn(g.clone(), k)
        if optimizer is None:  # the mean of gradients with weights 0.9^age, which sum to 1
            average = 0.9 * average + 0.1 * g
            expected = average / (1 - 0.9 ** (k + 1))
        else:
            before, theta.grad = theta.detach().clone(), g.clone()
            optimizer.step()
            expected = before - theta.detach()
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


def test_scales_put_tensors_on_the_size_of_their_centre():
    """θ = θ₀ + S·w: w = 0 is the model, and a unit of w is the root mean square of each tensor's θ₀."""
    model = make_model("gpt2")
    moving = Moving(model, "mlp", "relative")
    names = [name for name, _ in matching(model, "mlp")]
    assert moving.names == names == [n for n, _ in model.named_parameters() if "mlp" in n]
    parameters = dict(model.named_parameters())
    before = {name: parameters[name].detach().clone() for name in names}
    moving.write(torch.ones(moving.size, dtype=torch.float64))
    for name in names:
        moved = parameters[name].detach() - before[name]
        size = float(before[name].square().mean()) ** 0.5
        assert moved.flatten().numpy() == pytest.approx(np.full(moved.numel(), size), rel=1e-9)
    moving.write(torch.zeros(moving.size, dtype=torch.float64))
    assert all(torch.equal(parameters[name], before[name]) for name in names)
