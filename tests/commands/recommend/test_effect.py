"""What decay changes in a sweep: told from no decay at its level, with its power, and with the training loss."""

import numpy as np
import pytest

from villani.choice import paired as pairs
from villani.choice.selection import GridLosses
from villani.commands.recommend.effect import effect_sentence, effects, stopping_sentence

GRID = (0.0, 0.1, 1.0, 10.0)
COUNTS = np.full(40, 25.0)


def losses(rng, shifts, *, of_seeds=0.01, of_units=0.02, seeds=3, grid=GRID):
    """Losses whose means are `shifts` above 3 nats, with own errors of seeds and units at every λ."""
    shape = (len(grid), seeds, len(COUNTS))
    means = 3 + np.array(shifts)[:, None, None] + of_seeds * rng.normal(size=(len(grid), seeds, 1))
    own = of_units * rng.normal(size=shape)
    return GridLosses(grid, (means + own) * COUNTS, COUNTS)


def trained(*levels, seeds=3):
    return {decay: [level + 0.01 * k for k in range(seeds)] for decay, level in zip(GRID, levels, strict=True)}


FLAT = trained(2.0, 2.0, 2.0, 2.0)


@pytest.mark.parametrize("seeds", [2, 3])
def test_where_decay_does_nothing_few_sweeps_say_otherwise(monkeypatch, seeds):
    monkeypatch.setattr(pairs, "detectable", lambda *_, **__: 0.0)  # the slow part
    rng = np.random.default_rng(0)
    flat = trained(2.0, 2.0, 2.0, 2.0, seeds=seeds)
    said = [any(e.change.resolved for e in effects(losses(rng, [0.0] * 4, seeds=seeds), flat)) for _ in range(1000)]
    assert np.mean(said) <= 0.05


def test_a_change_of_the_size_that_it_names_is_seen_as_often_as_it_says(monkeypatch):
    rng, many = np.random.default_rng(1), 6  # errors known well enough that what was seen stands in for them
    flat = trained(2.0, 2.0, 2.0, 2.0, seeds=many)
    size = np.median([effects(losses(rng, [0.0] * 4, seeds=many), flat)[1].change.detectable for _ in range(15)])
    monkeypatch.setattr(pairs, "detectable", lambda *_, **__: 0.0)
    seen = [effects(losses(rng, [0.0, 0.0, size, 0.0], seeds=many), flat)[1].change.resolved == 1 for _ in range(400)]
    assert 0.7 <= np.mean(seen) <= 0.9


@pytest.mark.parametrize(
    ("level", "words"),
    [
        (2.5, "the training loss rises by 0.5 there, so that decay acts as a regulariser"),
        (1.5, "the training loss falls too, by 0.5, so that decay helps to optimise"),
        (2.0, "seeds leave open"),
    ],
)
def test_a_gain_is_told_with_its_size_and_what_training_paid_for_it(level, words):
    found = effects(losses(np.random.default_rng(2), [0.0, 0.0, -0.5, 0.7]), trained(2.0, 2.0, level, 3.0))
    assert [e.change.resolved for e in found] == [0, -1, 1]
    told = effect_sentence(found)
    fall, rise = (abs(e.change.estimate.value) for e in found[1:])
    assert told.startswith(f"From no decay to λ = 1 the held-out loss falls by {fall:.3g} [0.4")
    assert words in told
    assert f"It rises by {rise:.3g} [0.6" in told
    assert told.endswith("at λ = 10.")


def test_harm_alone_and_nothing_at_all_are_told_as_such():
    rng = np.random.default_rng(3)
    harm = effect_sentence(effects(losses(rng, [0.0, 0.0, 0.4, 0.9]), FLAT))
    assert harm.startswith("Decay lowers the held-out loss at no λ beyond its error, and raises it by 0.")
    assert "at λ = 1, by 0." in harm
    mixed = effect_sentence(effects(losses(rng, [0.0, 0.4, -0.5, 0.0]), FLAT))
    assert "falls" in mixed.split("λ = 1 ")[1]
    assert mixed.endswith("at λ = 0.1.")  # and not from there on
    found = effects(losses(rng, [0.0] * 4), FLAT)
    nothing = effect_sentence(found)
    assert "at no λ of the grid beyond its error; a change of 0.0" in nothing
    assert "with probability 80%" in nothing


def test_nothing_is_said_without_no_decay_and_a_seed_alone_tells_nothing_of_training():
    rng = np.random.default_rng(4)
    assert effects(losses(rng, [0.0] * 3, grid=(0.1, 1.0, 10.0)), FLAT) == []
    one = effects(losses(rng, [0.0, -0.5, 0.0, 0.0], seeds=1), trained(2.0, 2.0, 2.0, 2.0, seeds=1))
    assert one[0].change.resolved == -1
    assert one[0].trained is None
    assert effect_sentence(one).endswith("nats.")
    diverged = losses(rng, [0.0, 0.0, np.nan, 0.0])
    assert [e.weight_decay for e in effects(diverged, FLAT)] == [0.1, 10.0]
    assert effects(losses(rng, [np.nan, 0.0, 0.0, 0.0]), FLAT) == []
    assert effect_sentence([]) == ""


def curves(*rows, seeds=3):
    """λ → curves of seeds that differ by a hundredth, at steps 0, 100, 200, 300."""
    steps = (0, 100, 200, 300)
    return {
        decay: [[(s, loss + 0.01 * k) for s, loss in zip(steps, row, strict=True)] for k in range(seeds)]
        for decay, row in zip(GRID, rows, strict=False)
    }


def test_stopping_earlier_is_weighed_against_decay():
    told = stopping_sentence(curves((7, 4.5, 5.0, 6.5), (7, 4.6, 4.4, 4.7)), 40.0)
    assert "least held-out loss on the way is 4.4100, at step 200 with λ = 0.1, 0.3 [" in told
    assert "that of λ = 0.1 (steps and λ chosen by the same text" in told
    assert "Without decay it is 4.5100, at step 100: of what λ does at the end, 0.1 [" in told
    assert "beyond its error" not in told
    plain = stopping_sentence(curves((7, 4.3, 5.0, 6.5), (7, 4.6, 4.4, 4.7)), 40.0)
    assert "at step 100 with λ = 0, 0.4 [" in plain
    assert "Without decay" not in plain


def test_what_is_left_of_decay_may_be_within_its_error():
    middle = {0.0: (4.4, 4.5, 4.3), 0.1: (4.39, 4.48, 4.32)}
    given = {decay: [[(0, 7.0), (100, loss), (200, 6.0)] for loss in row] for decay, row in middle.items()}
    told = stopping_sentence(given, 40.0)
    assert "with λ = 0.1" in told
    assert told.endswith("are left, not beyond its error.")


def test_where_the_end_is_best_nothing_is_said_and_unseen_curves_are_named_where_text_repeats():
    assert stopping_sentence(curves((7, 6, 5, 4), (7, 6, 5, 4.1)), 40.0) == ""
    ends = {decay: [[(0, 7.0), (300, 5.0)]] * 2 for decay in GRID}
    assert stopping_sentence(ends, 2.0) == ""
    assert stopping_sentence(ends, 43.0).startswith("Every block is seen 43 times")
    assert stopping_sentence({}, 43.0) == ""
    assert "0.5 nats below" in stopping_sentence(curves((7, 4, 4.2, 4.5), seeds=1), 40.0)
