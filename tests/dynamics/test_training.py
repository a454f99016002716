import math
from types import SimpleNamespace

import pytest
import torch

from villani.dynamics.noise import gaussian
from villani.dynamics.training import Diverged, learning_rates, train
from villani.errors import InputError
from villani.inputs.models import load_model
from villani.objective.objective import Objective
from villani.streams import Purpose
from villani.work.work import Work


def tokens(seed=0):
    ids = torch.randint(0, 50, (20, 16), generator=torch.Generator().manual_seed(seed))
    return ids, ids.clone()


def trained(seed=0, **changes):
    model = load_model("builtin:tiny?width=8&layers=1").model
    arguments = {"steps": 30, "batch": 8, "learning_rate": 1e-2, "seed": seed} | changes
    return model, train(model, *tokens(), **arguments)


def test_loss_falls_and_the_model_is_left_in_eval_mode():
    calls = []
    work = Work(progress=SimpleNamespace(stage=None, advance=lambda *call: calls.append(call)))
    model, found = trained(0, work=work)
    assert found.losses[-1] < found.losses[0] - 0.5
    assert calls[-1] == (30, 30)
    assert not model.training
    assert all(p.grad is None for p in model.parameters())


def test_same_seed_same_bits():
    (a, first), (b, again), (_, other) = trained(0), trained(0), trained(1)
    assert first.losses == again.losses != other.losses
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_batches_leave_out_what_is_not_predicted():
    ids, labels = tokens()
    labels[:, 8:] = -100
    ids[:, 8:] = 3  # never seen by an earlier position, never predicted
    arguments = {"steps": 3, "batch": 4, "learning_rate": 1e-3, "seed": 0}
    short = []
    for x, y in ((ids, labels), (ids[:, :8], labels[:, :8])):
        short.append(train(load_model("builtin:tiny?width=8&layers=1").model, x, y, **arguments).losses)
    assert short[0] == pytest.approx(short[1], rel=1e-5)


def one_step(**changes):
    """θ before and after one step on the whole data, and ∇L."""
    model = load_model("builtin:tiny?width=8&layers=1").model
    ids, labels = (x[:1] for x in tokens())
    before = [p.detach().clone() for p in model.parameters()]
    gradient = Objective(model, [{"input_ids": ids, "labels": labels}]).gradient()
    arguments = {"steps": 1, "batch": 1, "learning_rate": 0.1, "seed": 0, "schedule": "constant", "clip": None}
    found = train(model, ids, labels, **arguments | changes)
    return before, list(model.parameters()), gradient, found


def test_the_decay_of_sgd_is_the_lambda_of_f():
    before, after, gradient, found = one_step(optimizer="sgd", weight_decay=0.3, decay="nanogpt")
    for old, new, g in zip(before, after, gradient, strict=True):
        decay = 0.3 if old.dim() >= 2 else 0.0
        torch.testing.assert_close(new.detach(), (old - 0.1 * (g + decay * old)).float(), rtol=1e-4, atol=1e-6)
    assert found.objective_weight_decay == 0.3


def test_a_clip_that_acts_leaves_no_one_lambda():
    before, after, gradient, found = one_step(optimizer="sgd", weight_decay=0.3, clip=0.01)
    factor = 0.01 / float(torch.cat([g.flatten() for g in gradient]).norm())
    for old, new, g in zip(before, after, gradient, strict=True):
        torch.testing.assert_close(new.detach(), (old - 0.1 * (factor * g + 0.3 * old)).float(), rtol=1e-4, atol=1e-6)
    assert found.objective_weight_decay is None
    assert "acted in 1 of 1 steps" in found.why
    assert one_step(optimizer="sgd", weight_decay=0.3, clip=1e6)[3].objective_weight_decay == 0.3


def test_noisy_sgd_adds_the_noise_of_its_temperature():
    _, quiet, _, _ = one_step(optimizer="sgd", weight_decay=0.3)
    _, noisy, _, found = one_step(optimizer="noisy-sgd", weight_decay=0.3, temperature=0.01)
    for i, (a, b) in enumerate(zip(quiet, noisy, strict=True)):
        noise = gaussian(a, 0, Purpose.NOISE, 0, 0, i)
        torch.testing.assert_close(b - a, (0.1 * 0.01) ** 0.5 * noise, rtol=1e-3, atol=1e-6)
    assert found.objective_weight_decay == 0.3


def test_adamw_has_no_lambda_and_says_why():
    found = trained(optimizer="adamw", weight_decay=0.1)[1]
    assert found.objective_weight_decay is None
    assert "frozen P" in found.why
    assert trained(optimizer="adamw")[1].objective_weight_decay == 0.0


def test_learning_rates_are_those_of_the_steps(monkeypatch):
    seen = []
    step = torch.optim.SGD.step

    def watched(self, *args, **named):
        seen.append(self.param_groups[0]["lr"])
        return step(self, *args, **named)

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    trained(optimizer="sgd", steps=20)
    used = seen[-20:]  # the steps before are of torch's schedule alone
    assert learning_rates("warm-up-cosine", 1e-2, 20) == used
    assert used[:2] == [0.5e-2, 0.75e-2]
    assert used[2:] == pytest.approx([0.5e-2 * (1 + math.cos(math.pi * k / 18)) for k in range(18)], rel=1e-12)
    assert learning_rates("constant", 0.5, 3) == [0.5] * 3


def test_a_diverged_run_tells_how_far_it_came():
    with pytest.raises(Diverged) as error:
        trained(learning_rate=1e30, held_out=tokens(1), evaluate_every=1)
    assert error.value.step == len(error.value.held_out) > 0


def test_held_out_loss_is_that_of_the_blocks():
    ids, labels = tokens(1)
    model, found = trained(held_out=(ids, labels), evaluate_every=15)
    assert [step for step, _ in found.held_out] == [15, 30]
    assert found.held_out[-1][1] == Objective(model, [{"input_ids": ids, "labels": labels}]).loss()
    assert found.losses == trained()[1].losses  # looking changes nothing


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "steps=0"),
        ({"learning_rate": 1e30}, r"diverged at step \d+ .*lower the learning rate"),
        ({"weight_decay": -1.0}, "weight_decay=-1"),
        ({"momentum": 0.9}, "with sgd only"),
        ({"optimizer": "noisy-sgd"}, "temperature=None"),
        ({"temperature": 1.0}, "temperature=1.0"),
        ({"decay": "nothing"}, "'nothing' is unknown"),
    ],
)
def test_divergence_and_bad_settings_are_told(changes, words):
    with pytest.raises(InputError, match=words):
        trained(**changes)
