import pytest
import torch

from villani.dynamics.training import train_adamw
from villani.errors import InputError
from villani.landscape.models import load_model


def tokens(seed=0):
    ids = torch.randint(0, 50, (20, 16), generator=torch.Generator().manual_seed(seed))
    return ids, ids.clone()


def trained(seed, **changes):
    model = load_model("builtin:tiny?width=8&layers=1").model
    arguments = {"steps": 30, "batch": 8, "learning_rate": 1e-2, "seed": seed} | changes
    return model, train_adamw(model, *tokens(), **arguments)


def test_loss_falls_and_the_model_is_left_in_eval_mode():
    calls = []
    model, losses = trained(0, progress=lambda *call: calls.append(call))
    assert losses[-1] < losses[0] - 0.5
    assert calls[-1] == (30, 30)
    assert not model.training
    assert all(p.grad is None for p in model.parameters())


def test_same_seed_same_bits():
    (a, first), (b, again), (_, other) = trained(0), trained(0), trained(1)
    assert first == again != other
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_batches_leave_out_what_is_not_predicted():
    ids, labels = tokens()
    labels[:, 8:] = -100
    ids[:, 8:] = 3  # never seen by an earlier position, never predicted
    arguments = {"steps": 3, "batch": 4, "learning_rate": 1e-3, "seed": 0}
    short = []
    for x, y in ((ids, labels), (ids[:, :8], labels[:, :8])):
        short.append(train_adamw(load_model("builtin:tiny?width=8&layers=1").model, x, y, **arguments))
    assert short[0] == pytest.approx(short[1], rel=1e-5)


def test_divergence_and_bad_steps_are_told():
    with pytest.raises(InputError, match="steps=0"):
        trained(0, steps=0)
    with pytest.raises(InputError, match=r"diverged at step \d+ .*lower the learning rate"):
        trained(0, learning_rate=1e30)
