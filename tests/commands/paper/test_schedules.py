"""Schedules of weight decay in a study: fresh seeds, paired differences, and text for neither training nor judging."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.commands.paper.test_settings import GRIDS, empty_folder, write  # noqa: F401
from tests.work.test_team import bytes_of, one_thread, team_of  # noqa: F401
from villani.commands.paper import schedules
from villani.commands.paper.needs import tokens, units
from villani.commands.paper.settings import PaperOptions, read_settings
from villani.commands.recommend.sweep_text import read_sweep_text
from villani.commands.running import execute
from villani.dynamics import interrupted
from villani.dynamics.steered import CautiousDecay
from villani.dynamics.training import learning_rates, train
from villani.errors import InputError
from villani.inputs.models import load_model
from villani.objective.objective import Objective
from villani.work.team import join
from villani.work.work import Work

STUDY = (
    GRIDS.replace("[0.0, 0.1]", "[0.5, 2.0]").replace("seeds = 2", "seeds = 2\nthreads = 1")
    + "[schedules]\nblocks = 3\nevery = 2\ncap = 50.0\n"
)


@pytest.fixture
def whole(tmp_path):
    return execute(PaperOptions(config=write(STUDY)), tmp_path / "whole")


def loss_of(chosen, seed, **named):
    """Held-out loss by plain calls: the model that starts at a seed, trained, and judged on the held-out blocks."""
    study = read_settings(Path("study.toml"), None)
    text = read_sweep_text(study.sweep, Work())
    model = load_model(f"{study.sweep.model}&seed={seed}").model
    judged = [{"input_ids": text.held_out.ids, "labels": text.held_out.labels}]
    train(
        model, text.train.ids, text.train.labels, steps=4, batch=2, learning_rate=0.01, seed=seed, optimizer="adamw",
        weight_decay=chosen, decay=study.sweep.decay, **named,
    )  # fmt: skip
    return Objective(model, judged).loss()


def test_schedules_are_judged_on_fresh_seeds_against_the_constant_one(whole):
    directory, record = whole
    points = {p.schedule: p for p in record.schedules}
    assert [*points] == ["constant", "memory", "adamc", "cautious", "radial-gap"]
    means = {p.weight_decay: p.held_out.value for p in record.training if p.optimizer == "adamw"}
    chosen = min(means, key=means.get)
    assert {p.chosen for p in points.values()} == {chosen}
    assert all((p.seeds, p.diverged) == ([2, 3], 0) for p in points.values())
    constant = [loss_of(chosen, seed) for seed in (2, 3)]
    cautious = [loss_of(chosen, seed, decay_schedule=CautiousDecay()) for seed in (2, 3)]
    assert points["constant"].held_out.value == pytest.approx(np.mean(constant), rel=1e-6)
    assert points["cautious"].held_out.value == pytest.approx(np.mean(cautious), rel=1e-6)
    assert points["cautious"].change.value == pytest.approx(np.mean(np.subtract(cautious, constant)), rel=1e-3)
    assert points["cautious"].change.n == 2
    assert points["constant"].change is None
    rates = learning_rates("warm-up-cosine", 0.01, 4)
    assert points["memory"].weight_decay == pytest.approx(chosen * np.mean(rates) / 0.01)
    assert points["memory"].last[0] * rates[-1] == pytest.approx(points["memory"].weight_decay * 0.01)
    assert sum(points["memory"].last[0] * rates[-1] for _ in rates) == pytest.approx(chosen * sum(rates))
    page = (directory / "report.html").read_text(encoding="utf-8")
    assert "E6: schedules of weight decay" in page
    assert "on 2 fresh seeds, held-out nats from the grid" in page
    assert not [*directory.rglob("*.safetensors")]


def test_schedules_are_shared_and_a_finished_run_trains_nothing(whole, team_of, tmp_path, monkeypatch):  # noqa: F811
    bytes_of = [json.loads((whole[0] / "records.json").read_bytes())]

    def together():
        with join() as team:
            execute(PaperOptions(config="study.toml"), tmp_path / "shared", team=team)

    codes, errors = team_of(2, together)
    assert codes == [0, 0], errors
    bytes_of.append(json.loads((tmp_path / "shared" / "records.json").read_bytes()))
    assert bytes_of[0] == bytes_of[1]
    monkeypatch.setattr(schedules, "train_cell", None)
    again = execute(PaperOptions(config="study.toml"), whole[0])[1]
    assert again.schedules == whole[1].schedules
    more = read_settings(Path(write(STUDY.replace("[schedules]", "[schedules]\nseeds = 3"))), None)
    with pytest.raises(TypeError):  # one more seed: those that are finished stay, and the next is trained
        execute(PaperOptions(study=more), whole[0])


def test_a_schedule_that_is_changed_goes_on_from_no_state_of_another(tmp_path, monkeypatch):
    """Stopped amid the radial gap's first run; then its cap is another."""
    monkeypatch.setattr(interrupted, "PATIENCE", -1.0)
    study = STUDY + 'ways = ["constant", "radial-gap"]\n'
    write_state = interrupted.Interrupted.write

    def stops(self, *arguments):
        write_state(self, *arguments)
        if self._path.name.startswith("radial-gap"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(interrupted.Interrupted, "write", stops)
        with pytest.raises(KeyboardInterrupt):
            execute(PaperOptions(config=write(study)), tmp_path / "r")
    assert [*tmp_path.glob("r/models/radial-gap-*-state*")]
    changed = PaperOptions(config=write(study.replace("cap = 50.0", "cap = 1e-3")))
    for name in ("r", "fresh"):
        execute(changed, tmp_path / name)
    assert bytes_of(tmp_path / "r") == bytes_of(tmp_path / "fresh")


def test_the_radial_gap_reads_what_is_neither_trained_on_nor_judged_by(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(schedules, "Objective", lambda m, g, **named: seen.extend(g) or Objective(m, g, **named))
    asked = STUDY.replace("[schedules]", '[schedules]\nways = ["constant", "radial-gap"]')
    execute(PaperOptions(config=write(asked)), tmp_path / "run")
    study = read_settings(Path("study.toml"), None)
    text = read_sweep_text(study.sweep, Work())
    rows = [{tuple(block) for block in part.ids.tolist()} for part in (text.train, text.held_out)]
    blocks = [{tuple(block) for block in group["input_ids"].tolist()} for group in seen]
    assert [len(part) for part in blocks] == [3] * 4  # seen and unseen, of two seeds
    assert blocks[0] == blocks[2] <= rows[0]
    assert blocks[1] == blocks[3]
    assert not blocks[1] & (rows[0] | rows[1])


def test_without_decay_there_is_nothing_to_schedule(tmp_path, monkeypatch):
    monkeypatch.setattr(schedules, "best_decay", lambda *_: 0.0)
    _, record = execute(PaperOptions(config=write(STUDY)), tmp_path / "run")
    assert record.schedules == []


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ('ways = ["memory"]', "constant among them"),
        ('ways = ["constant", "constant"]', "expected different ones"),
        ('ways = ["constant", "cosine"]', "found 'cosine'"),
        ("seeds = 1", r"schedules\.seeds=1"),
        ("cap = 0.0", r"schedules\.cap"),
        ("blocks = 100000", "blocks that are neither trained on nor judged by"),
    ],
)
def test_schedules_that_cannot_be_are_refused(words, line, tmp_path):
    study = STUDY[: STUDY.index("[schedules]")] + "[schedules]\n" + words + "\n"
    with pytest.raises(InputError, match=line):
        execute(PaperOptions(config=write(study)), tmp_path / "run")


def test_schedules_are_told_in_what_a_study_takes():
    study = read_settings(Path(write(STUDY)), None)
    assert units(study)["schedules"] == 10
    assert tokens(study, 8, 60)["schedules"] == 4 * 16 * (10 * 2 + 2 * 2 * 3 / 2)
    without = read_settings(Path("study.toml"), None, without=["schedules"])
    assert units(without)["schedules"] == 0
    assert "schedules" not in tokens(without, 8, 60)
    assert without.cuts() == study.cuts()
