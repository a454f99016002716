"""Processes share the training runs of `villani recommend` and `villani study paper`: the same bytes, kills and all."""

import json
import os
import signal
import sqlite3
from contextlib import closing

import pytest

from tests.commands.paper.test_settings import GRIDS, empty_folder, write  # noqa: F401
from tests.work.test_team import one_thread, team_of  # noqa: F401
from villani.commands.paper.settings import PaperOptions
from villani.commands.recommend import sweep as sweeping
from villani.commands.recommend.settings import RecommendSettings
from villani.commands.running import execute
from villani.dynamics import interrupted, training
from villani.work.team import join

RECOMMEND = {
    "model": "builtin:tiny?layers=1&width=8&context=16", "block": 16, "train_blocks": 30, "held_out_blocks": 8,
    "weight_decay": [0.0, 0.1, 1.0], "seeds": 2, "steps": 4, "batch": 2, "optimizers": ["adamw", "sgd"],
    "rules": ["constants", "ema"], "threads": 1,
}  # fmt: skip
STUDY = GRIDS.replace("seeds = 2", "seeds = 2\nthreads = 1") + "[grids]\nadamw = [0.0, 0.5, 2.0]\n"


def asked(command):
    return RecommendSettings(**RECOMMEND) if command == "recommend" else PaperOptions(config=write(STUDY))


def together(settings, run):
    with join() as team:
        execute(settings, run, team=team)


@pytest.mark.parametrize(("command", "cells", "finished"), [("recommend", 12, 6), ("study", 10, 4)])
def test_a_kill_amid_shared_training_runs_loses_nothing(team_of, tmp_path, monkeypatch, command, cells, finished):  # noqa: F811
    """SIGKILL of one process amid a run; then both again, which share the rest and end with one process's bytes."""
    settings, run, log = asked(command), tmp_path / "run", tmp_path / "log"
    train = training.train
    monkeypatch.setattr(interrupted, "PATIENCE", -1.0)

    def watched(*args, **named):
        with log.open("a") as file:
            file.write(f"{os.environ['RANK']} {named['optimizer']} {named['weight_decay']} {named['seed']}\n")
        return train(*args, **named)

    def killed(*args, **named):
        work = named["work"]
        if os.environ["RANK"] == "1" and named["seed"] == 1:
            advance = work.advance
            work.advance = lambda *at: os.kill(os.getpid(), signal.SIGKILL) if at[0] == 2 else advance(*at)
        return watched(*args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(sweeping, "train", killed)
        codes, errors = team_of(2, lambda: together(settings, run))
        assert codes == [1, -9], errors
    states = [path.stem.removesuffix("-state") for path in (run / "models").glob("*.json")]
    assert len(states) >= 1  # of the run that was broken off
    with closing(sqlite3.connect(run / "ledger.sqlite")) as ledger:
        before = ledger.execute("SELECT COUNT(*) FROM units WHERE key LIKE '%cell/%'").fetchone()[0]
    assert before == finished  # of the first seed; the round that was broken off is not
    assert not (run / "records.json").exists()
    first = log.read_text().split("\n")[:before]
    assert {line.split()[-1] for line in first} == {"0"}  # seeds are outermost
    assert {line.split()[0] for line in first} == {"0", "1"}  # and both had some
    log.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(sweeping, "train", watched)
        codes, errors = team_of(2, lambda: together(settings, run))
        assert codes == [0, 0], errors
    again = [tuple(line.split()[1:]) for line in log.read_text().splitlines()]
    assert len(set(again)) == len(again) == cells - before  # none twice, and none of those that were finished
    assert not [*run.rglob("*-state*")]
    execute(settings, tmp_path / "alone")
    records = [path.read_bytes() for path in (run / "records.json", tmp_path / "alone" / "records.json")]
    assert records[0] == records[1]
    if command == "study":
        (record,) = json.loads(records[0])["records"]
        assert record["grid"] == [0.0, 0.1, 0.5, 2.0]
        assert [(p["optimizer"], p["weight_decay"]) for p in record["training"]] == [
            ("sgd", 0.0), ("sgd", 0.1), ("adamw", 0.0), ("adamw", 0.5), ("adamw", 2.0),
        ]  # fmt: skip
        page = (run / "report.html").read_text(encoding="utf-8")
        assert "2 seeds at 2 (SGD with L2), 3 (AdamW) values of λ" in page
        assert [p["held_out_change"] is None for p in record["training"]] == [True, False, True, False, False]
