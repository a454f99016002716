"""A pass over a text: scores from before training, torch's own optimisers as oracles, and what the bounds promise."""

import math

import numpy as np
import pytest
import torch

from tests.conftest import BLOCK, VOCABULARY, make_model
from villani.dynamics.certificate import Moments, gain_bound, token_bound
from villani.dynamics.prequential import Learner, UpdateRule, advance, step_edges
from villani.errors import InputError
from villani.theory.constants import Smoothing

BLOCKS, BATCH = 7, 2
EDGES = step_edges(BLOCKS, BATCH)


def text(seed=0):
    """Blocks with a padded tail and one in which nothing is predicted."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY, (BLOCKS, BLOCK), generator=generator)
    labels = ids.clone()
    labels[1, 3:] = -100
    labels[4] = -100
    return ids, labels


def passed(rule, ids, labels, *, micro_tokens=10**6, **more):
    model = make_model("gpt2")
    learner = Learner(rule, list(model.parameters())) if rule else None
    return advance(model, learner, ids, labels, start=0, edges=EDGES, micro_tokens=micro_tokens, **more), model


def plain(optimizer, ids, labels, decay=None):
    """The textbook loop in plain torch: forward, keep the losses, then step."""
    model = make_model("gpt2").eval()
    stepper, centre = optimizer(model.parameters()), [p.detach().clone() for p in model.parameters()]
    logs = []
    for first in range(0, len(ids), BATCH):
        logits = model(input_ids=ids[first : first + BATCH]).logits[:, :-1]
        targets = labels[first : first + BATCH, 1:]
        found = torch.log_softmax(logits, -1)[targets >= 0].gather(1, targets[targets >= 0][:, None])[:, 0]
        logs.append(found.detach())
        stepper.zero_grad()
        (-found.mean()).backward()
        with torch.no_grad():
            for p, c in zip(model.parameters(), centre, strict=True):
                if decay:
                    p.sub_(decay * (p - c))
        stepper.step()
    return torch.cat(logs).numpy(), model


@pytest.mark.parametrize(
    ("rule", "optimizer", "decay"),
    [
        (UpdateRule(0.3), lambda p: torch.optim.SGD(p, lr=0.3), None),
        (UpdateRule(0.3, 0.5), lambda p: torch.optim.SGD(p, lr=0.3), 0.15),
        (
            UpdateRule(0.01, 0.7, "adam", "zero"),
            lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.9, 0.95), weight_decay=0.7), None,
        ),
        (
            UpdateRule(0.01, 0.7, "adam"),
            lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.9, 0.95), weight_decay=0), 0.007,
        ),
    ],
)  # fmt: skip
def test_scores_and_last_weights_are_those_of_a_plain_loop(rule, optimizer, decay):
    ids, labels = text()
    expected, other = plain(optimizer, ids, labels, decay)
    for micro_tokens in (10**6, BLOCK):  # whole batches, or block by block
        found, model = passed(rule, ids, labels, micro_tokens=micro_tokens)
        assert found.stop == len(EDGES) - 1 == 4
        assert found.logs == pytest.approx(expected, abs=1e-9)
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_momentum_is_an_average_of_gradients():
    theta = torch.tensor([2.0], dtype=torch.float64)
    learner, average, expected = Learner(UpdateRule(0.1, direction="momentum"), [theta]), 0.0, 2.0
    for k in range(5):
        g = float(k + 1)
        average = 0.9 * average + 0.1 * g
        expected -= 0.1 * average / (1 - 0.9 ** (k + 1))
        learner.step([torch.tensor([g], dtype=torch.float64)], k)
    assert float(theta) == pytest.approx(expected)


def test_warm_up_and_clip():
    rule = UpdateRule(0.4, clip=1.0, warm_up=3)
    assert [rule.at(k) for k in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])
    theta = torch.zeros(2, dtype=torch.float64)
    learner = Learner(rule, [theta])
    assert learner.step([torch.tensor([3.0, 4.0], dtype=torch.float64)], 0)
    assert theta.tolist() == pytest.approx([-0.06, -0.08])
    assert not learner.step([torch.tensor([0.3, 0.4], dtype=torch.float64)], 1)
    assert learner.moved() == pytest.approx(0.2)


@pytest.mark.parametrize("block", [0, 2, 3, 6])
def test_what_comes_later_changes_no_score(block):
    """A block's last tokens change: of the scores up to its batch's end, theirs alone do. Training first would show."""
    ids, labels = text()
    labels = torch.where(labels == -100, labels, ids)
    other_ids, other = ids.clone(), labels.clone()
    other_ids[block, -2:] = (ids[block, -2:] + 3) % VOCABULARY
    other[block] = torch.where(labels[block] == -100, -100, other_ids[block])
    rule = UpdateRule(0.5, 0.1, "momentum")
    (one, _), (two, _) = passed(rule, ids, labels), passed(rule, other_ids, other)
    ends = np.cumsum((labels[:, 1:] >= 0).sum(1).numpy())
    before, end = ends[block] - 2, ends[min((block // BATCH + 1) * BATCH, BLOCKS) - 1]
    assert np.array_equal(one.logs[:before], two.logs[:before])
    assert np.array_equal(one.logs[ends[block] : end], two.logs[ends[block] : end])  # same weights in the batch
    assert (one.logs[before : ends[block]] != two.logs[before : ends[block]]).all()
    if end < ends[-1]:
        assert (one.logs[end:] != two.logs[end:]).any()  # and afterwards it was trained on


def test_the_first_batch_is_scored_by_the_start():
    ids, labels = text()
    start, _ = passed(None, ids, labels)
    trained, _ = passed(UpdateRule(0.5), ids, labels)
    first = int((labels[:BATCH, 1:] >= 0).sum())
    assert np.array_equal(start.logs[:first], trained.logs[:first])
    assert not np.array_equal(start.logs, trained.logs)
    assert len(start.logs) == len(trained.logs) == int((labels[:, 1:] >= 0).sum())


def test_a_pass_in_stretches_is_the_same_pass():
    ids, labels = text()
    rule = UpdateRule(0.02, 0.3, "adam")
    whole, _ = passed(rule, ids, labels)
    model, logs, step = make_model("gpt2"), [], 0
    learner = Learner(rule, list(model.parameters()))
    while step < whole.stop:
        kept = [t.detach().clone() for t in learner.state]  # what a file would hold
        model = make_model("gpt2")
        learner = Learner(rule, list(model.parameters()))
        with torch.no_grad():
            for tensor, value in zip(learner.state, kept, strict=True):
                tensor.copy_(value)
        stretch = advance(
            model, learner, ids, labels, start=step, edges=EDGES, micro_tokens=10**6, enough=lambda _: True
        )
        logs.append(stretch.logs)
        step = stretch.stop
    assert len(logs) == 4
    assert np.array_equal(np.concatenate(logs), whole.logs)


def test_bad_rules_and_divergence():
    for words, fragment in (
        ({"rate": 0.0}, "learning_rate=0"), ({"rate": 0.1, "weight_decay": -1.0}, "weight_decay=-1"),
        ({"rate": 0.5, "weight_decay": 3.0}, "more than all"), ({"rate": 0.1, "clip": 0.0}, "clip=0"),
        ({"rate": 0.1, "warm_up": -1}, "warm_up=-1"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=fragment):
            UpdateRule(**words)
    with pytest.raises(InputError, match="diverged at step"):
        passed(UpdateRule(1e30), *text())


# Coverage: an online learner of a coin whose law an adversary chooses from all the past, the learner's weights included


SETS, TOKENS, DELTA, ALPHA = 2000, 400, 0.1, 0.05
SMOOTHING = Smoothing(2, ALPHA)


def smoothed(probability):
    return -np.log((1 - ALPHA) * probability + ALPHA / 2)


def games(cheat, sets=SETS, seed=0):
    """(S,) moments of losses and of differences from a frozen start, and the conditional means of both."""
    generator = np.random.default_rng(seed)
    theta, state, surprise = np.zeros(sets), np.zeros(sets), np.zeros(sets)
    sums = np.zeros((6, sets))
    for step in range(TOKENS):
        q = 1 / (1 + np.exp(-theta))  # of a one, from the past alone
        # the adversary: against the learner after lucky tokens; else the last token lasts, or a fair coin
        ones = np.where(surprise < 0, 1 - q, np.where(step % 3 == 0, 0.15 + 0.7 * state, 0.5))
        x = (generator.random(sets) < ones).astype(float)
        after = theta + 1.5 * (x - q)
        used = 1 / (1 + np.exp(-after)) if cheat else q
        loss = np.where(x > 0, smoothed(used), smoothed(1 - used))
        mean = ones * smoothed(used) + (1 - ones) * smoothed(1 - used)
        start = np.full(sets, smoothed(0.5))
        sums += loss, loss**2, mean, loss - start, (loss - start) ** 2, mean - start
        surprise += loss - mean
        theta, state = 0.9 * after, x
    return sums / TOKENS


def violations(sums):
    first, second, mean, difference, squares, gain = sums
    wrong = [
        m > token_bound(Moments(SMOOTHING, f, s), TOKENS, 0.0, DELTA).value
        for f, s, m in zip(first, second, mean, strict=True)
    ]
    paired = [
        g > gain_bound(f, s, TOKENS, SMOOTHING, DELTA).value for f, s, g in zip(difference, squares, gain, strict=True)
    ]
    return np.mean(wrong), np.mean(paired)


@pytest.mark.thorough
def test_coverage_against_an_adversary_who_sees_the_past():
    sums = games(cheat=False)
    allowed = DELTA + 4 * math.sqrt(DELTA * (1 - DELTA) / SETS)
    assert (sums[2] > sums[0]).mean() > 0.2  # the empirical risk alone is no bound
    assert max(violations(sums)) <= allowed


def test_scoring_after_training_loses_the_coverage():
    assert min(violations(games(cheat=True, sets=200))) > 0.9
