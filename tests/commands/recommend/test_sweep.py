"""A sweep: a cell for everything, resuming, what is held at a time, refusals, and what is told beforehand."""

import json

import numpy as np
import pytest

from villani.commands import subject
from villani.commands.recommend import cells as study
from villani.commands.recommend import sweep as sweeping
from villani.commands.recommend.cells import start_spec
from villani.commands.recommend.settings import SweepSettings
from villani.commands.recommend.sweep import needs_of, sweep
from villani.commands.recommend.sweep_text import read_sweep_text
from villani.dynamics import interrupted
from villani.errors import InputError
from villani.objective.objective import Objective
from villani.work.budget import Needs
from villani.work.work import Work

SMALL = {
    "model": "builtin:tiny?layers=1&width=8&context=16", "block": 16, "train_blocks": 30, "held_out_blocks": 12,
    "weight_decay": [0.0, 0.5], "seeds": 2, "steps": 4, "batch": 2, "evaluate_every": 2,
    "temperature": 1e-8, "momentum": 0.0,
    "learning_rate": {"sgd": 0.1, "noisy-sgd": 0.1, "adamw": 0.01},
}  # fmt: skip


def settings(**changes):
    return SweepSettings(**SMALL | changes)


def swept(asked, directory):
    with Work(directory) as work:
        work.open("sweep", "", {}, {})
        return sweep(asked, work)


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    return swept(settings(), tmp_path_factory.mktemp("sweep"))


def test_every_optimiser_decay_and_seed_has_a_cell(cells):
    assert [(c.optimizer, c.weight_decay, c.seed) for c in cells] == [
        (o, d, k) for o in ("sgd", "noisy-sgd", "adamw") for d in (0.0, 0.5) for k in (0, 1)
    ]
    for cell in cells:
        assert [step for step, _ in cell.curve] == [0, 2, 4]
        assert cell.curve[-1][1] == pytest.approx(cell.sums.sum() / cell.counts.sum(), rel=1e-5)
        assert cell.held_out.value == pytest.approx(cell.curve[-1][1], rel=1e-3)
        assert cell.held_out.sem > 0
        assert cell.train_loss.value < cell.curve[0][1] + 0.1
        assert not cell.diverged
    start = {(c.seed, c.curve[0][1]) for c in cells}
    assert len(start) == 2  # the same start at every λ, and another for every seed
    by = {(c.optimizer, c.weight_decay, c.seed): c for c in cells}
    for optimizer, rate in (("sgd", 0.1), ("adamw", 0.01)):
        without, decayed = by[optimizer, 0.0, 0], by[optimizer, 0.5, 0]
        assert (1 - 0.5 * rate) ** 8 * 0.99 < decayed.norm_squared / without.norm_squared < 1 - 0.5 * rate


def test_a_killed_sweep_resumes_to_the_same_bits(cells, tmp_path, monkeypatch):
    train, calls = study.train, []

    def dies(*args, **named):
        calls.append(named["seed"])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return train(*args, **named)

    monkeypatch.setattr(study, "train", dies)
    one = settings(optimizers=["adamw"], learning_rate={"adamw": 0.01}, temperature=None)
    with pytest.raises(KeyboardInterrupt):
        swept(one, tmp_path)
    found = swept(one, tmp_path)
    assert calls == [0, 0, 1, 1, 1]  # seed by seed, so that one start is held at a time
    for a, b in zip(found, cells[-4:], strict=True):
        np.testing.assert_array_equal(a.sums, b.sums)
        assert a.weights.read_bytes() == b.weights.read_bytes()
    with pytest.raises(InputError, match="adamw, λ = 0, trained with another model, text, library version"):
        swept(one.model_copy(update={"steps": 5}), tmp_path)
    with Work(tmp_path) as work:  # another λ in the same run
        work.open("sweep", "", {}, {})
        (more,) = sweep(one, work, [("adamw", 0.25, 0)])
    assert found[2].norm_squared < more.norm_squared < found[0].norm_squared


def test_a_run_grows_by_optimisers_seeds_and_decays(cells, tmp_path, monkeypatch):
    """What tells cells apart is in their keys; each optimiser has a rate, momentum and temperature of its own."""
    one = settings(optimizers=["adamw"], learning_rate={"adamw": 0.01}, temperature=None, seeds=1)
    swept(one, tmp_path)
    trained, train = [], study.train
    monkeypatch.setattr(study, "train", lambda *a, **k: trained.append(k["optimizer"]) or train(*a, **k))
    for a, b in zip(swept(settings(), tmp_path), cells, strict=True):
        np.testing.assert_array_equal(a.sums, b.sums)
    assert trained.count("adamw") == 2  # of the second seed
    assert len(trained) == len(cells) - 2
    others = {
        "sgd, λ = 0, trained at momentum 0.0, now 0.5": {"momentum": 0.5},
        "noisy-sgd, λ = 0, trained at temperature 1e-08, now 0.001": {"temperature": 1e-3},
        "adamw, λ = 0, trained at learning rate 0.01, now 0.02": {
            "learning_rate": {**SMALL["learning_rate"], "adamw": 0.02}
        },
    }
    for line, changes in others.items():
        with pytest.raises(InputError, match=line):
            swept(settings(**changes), tmp_path)


def test_a_run_that_goes_on_took_what_it_took_before_too(tmp_path, monkeypatch):
    """In the cost of its cell, and in the time that is left of the others."""
    monkeypatch.setattr(interrupted, "PATIENCE", -1.0)
    one = settings(optimizers=["adamw"], learning_rate={"adamw": 0.01}, temperature=None, seeds=1)
    write = interrupted.Interrupted.write

    def stops(self, step, rest):
        write(self, step, rest)
        if step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(interrupted.Interrupted, "write", stops)
        with pytest.raises(KeyboardInterrupt):
            swept(one, tmp_path)
    (told,) = tmp_path.glob("models/*-state.json")
    content = json.loads(told.read_text())
    assert content["seconds"] > 0
    told.write_text(json.dumps(content | {"seconds": 1000.0}))
    lefts = []
    with Work(tmp_path) as work:
        work.open("sweep", "", {}, {}, needs=Needs(seconds=1.0, stages={"sweep": 1.0}))
        advance = work.stages.advance
        monkeypatch.setattr(work.stages, "advance", lambda *a: advance(*a) or lefts.append(work.stages.left()))
        sweep(one, work)
        assert 1000 < work.spent("cell/adamw/0.0/0")[0] < 1100
        assert work.spent("cell/adamw/0.5/0")[0] < 100
        assert "earlier seconds" not in work.get("cell/adamw/0.0/0")
    first = next(left for left in lefts if left)  # two of eight steps took 1000 s, and more
    assert 1000 < first.seconds < 4000


def test_what_was_refused_or_broken_off_leaves_no_mark_on_an_optimiser(tmp_path, monkeypatch):
    """A rate that was mistyped: refused for another optimiser's sake, or stopped amid the first run at it."""
    monkeypatch.setattr(interrupted, "PATIENCE", -1.0)
    adam = settings(optimizers=["adamw"], learning_rate={"adamw": 0.01}, temperature=None, seeds=1)
    right = settings(seeds=1)
    wrong = right.model_copy(update={"learning_rate": right.learning_rate | {"sgd": 0.7}})
    swept(adam, tmp_path)
    with pytest.raises(InputError, match="adamw"):
        swept(wrong.model_copy(update={"learning_rate": wrong.learning_rate | {"adamw": 0.1}}), tmp_path)
    write = interrupted.Interrupted.write

    def stops(self, *arguments):
        write(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(interrupted.Interrupted, "write", stops)
        with pytest.raises(KeyboardInterrupt):
            swept(wrong, tmp_path)
    assert [*tmp_path.glob("models/sgd-0.0-0-*-state*")]
    for a, b in zip(swept(right, tmp_path), swept(right, tmp_path / "fresh"), strict=True):
        np.testing.assert_array_equal(a.sums, b.sums)


def test_the_start_of_one_seed_is_held_at_a_time(tmp_path):
    """Beside the model that is named: memory does not grow with the number of seeds."""
    one = settings(optimizers=["sgd", "adamw"], learning_rate={"sgd": 0.1, "adamw": 0.01}, temperature=None, seeds=4)
    loads, held = [], []

    class Watched(dict):
        def __setitem__(self, key, value):
            new = key not in self
            super().__setitem__(key, value)
            if key[0] == "model" and new:
                loads.append(key[1])
                held.append(sum(name[0] == "model" for name in self))

    with Work(tmp_path) as work:
        work.shared = Watched()
        work.open("sweep", "", {}, {})
        sweep(one.model_copy(update={"steps": 1, "evaluate_every": 0}), work)
        assert sum(name[0] == "start" for name in work.shared) == 2
    assert loads == [one.model, *[start_spec(one, seed) for seed in (1, 2, 3)]]  # for both optimisers
    assert max(held) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weight_decay": [0.1]}, "at least 2 values"),
        ({"weight_decay": [0.1, 0.2, 0.1]}, "0.1 is given twice"),
        ({"weight_decay": [0.1, -1.0]}, "weight_decay=-1"),
        ({"learning_rate": {"sgd": 0.1, "adamw": 0.1}}, "none for noisy-sgd"),
        ({"learning_rate": {"sgd": 0.1, "noisy-sgd": 0.0, "adamw": 0.1}}, "learning rate of noisy-sgd=0"),
        ({"temperature": None}, "noisy-sgd, which needs one"),
        ({"optimizers": ["sgd"]}, "not among the optimizers"),
        ({"text": "nowhere.txt"}, "no such file"),
        ({"block": 64}, "at most 16"),
        ({"seeds": 0}, "seeds=0"),
        ({"held_out": "builtin"}, "that is the text that is trained on"),
    ],
)
def test_what_cannot_be_swept_is_told_in_a_line(changes, words, tmp_path):
    with pytest.raises(InputError, match=words) as error:
        swept(settings(**changes), tmp_path)
    assert "\n" not in str(error.value)


def test_time_told_is_that_of_a_forward_pass_and_disk_has_the_states_of_each_process(monkeypatch):
    """A row of 16 tokens takes a second, so a gradient of a token 0.2, and a loss 0.2/3."""
    monkeypatch.setattr(sweeping, "timed_forward", lambda objective: (16, 1.0))
    asked = settings(steps=10, batch=4, evaluate_every=5)
    text = read_sweep_text(asked, Work())
    objective = Objective(subject.load(asked, Work()).model, text.train.ids[:1][None])
    one, two = (needs_of(asked, objective, 6, text, kept=1, processes=processes) for processes in (1, 2))
    gradients = 6 * (10 * 4 + (3 + 2) * len(text.held_out.ids) / 3) * asked.block
    assert one.seconds == pytest.approx(0.2 * gradients, rel=0.1)
    size = 4 * objective.parameters.size
    assert two.disk - one.disk == pytest.approx(2 * 3 * size)  # the state before is there until the next one is whole
    assert one.disk == pytest.approx((1 + 2 * 3) * size + 5e6)
    more = dict.fromkeys(("audit", "schedules"), gradients * asked.block)
    whole = needs_of(asked, objective, 6, text, more, graphs=3.0)
    assert whole.memory > one.memory
    for alone, others in ((None, {"audit", "schedules"}), (frozenset({"audit"}), {"audit"})):
        needs = needs_of(asked, objective, 6, text, more, alone=alone)
        sizes = {name: size / (1 if name in others else 2) for name, size in needs.sizes().items()}
        assert needs.among(2).sizes() == pytest.approx(sizes)
