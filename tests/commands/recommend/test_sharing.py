"""Processes share the training runs of `villani recommend` and `villani study paper`: the same bytes, kills and all."""

import json
import os
import signal
import sqlite3
from collections import Counter
from contextlib import closing
from functools import partial

import pytest

from tests.commands.paper.test_settings import GRIDS, QUICK, empty_folder, write  # noqa: F401
from tests.work.test_team import one_thread, team_of  # noqa: F401
from villani.commands.paper import points
from villani.commands.paper.settings import PaperOptions
from villani.commands.recommend import cells
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

EXPERIMENTS = """
[landscape]
seeds = 1
groups = 8
sequences = 1
ray_groups = 3
rays = ["parameters"]
radii = [1.0, 2.0, 3.0]
[spectra]
seeds = 1
groups = 1
sequences = 1
top = 1
bottom = 0
most = 6
density_probes = 0
[estimators]
groups = 1
sequences = 1
repeats = 2
ways = ["taylor"]
reference_probes = 3
exact = 0
[pathologies]
blocks = 3
"""


def asked(command):
    return RecommendSettings(**RECOMMEND) if command == "recommend" else PaperOptions(config=write(STUDY))


def together(settings, run):
    with join() as team:
        execute(settings, run, team=team)


@pytest.mark.parametrize(("command", "count", "finished"), [("recommend", 12, 6), ("study", 10, 4)])
def test_a_kill_amid_shared_training_runs_loses_nothing(team_of, tmp_path, monkeypatch, command, count, finished):  # noqa: F811
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
        patch.setattr(cells, "train", killed)
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
        patch.setattr(cells, "train", watched)
        codes, errors = team_of(2, lambda: together(settings, run))
        assert codes == [0, 0], errors
    again = [tuple(line.split()[1:]) for line in log.read_text().splitlines()]
    assert len(set(again)) == len(again) == count - before  # none twice, and none of those that were finished
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


@pytest.mark.thorough
def test_experiments_at_single_models_are_shared_too(team_of, tmp_path, monkeypatch):  # noqa: F811
    """Killed amid a spectrum, then gone on with: one process's bytes, no model looked at twice, and both had some."""
    config = (QUICK + EXPERIMENTS).replace("seeds = 2", "seeds = 2\nthreads = 1", 1)
    run, log = tmp_path / "run", tmp_path / "log"
    kinds = ("criteria", "landscape_point", "spectrum_point", "estimator_row", "reference_trace", "pathology_point")

    def watched(kind, real, lethal, *args, **named):
        if lethal and kind == "spectrum_point" and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        made = real(*args, **named)
        with log.open("a") as file:
            file.write(f"{os.environ['RANK']} {kind}\n")
        return made

    reals = {kind: getattr(points, kind) for kind in kinds}
    for lethal, wanted in ((True, [1, -9]), (False, [0, 0])):
        with monkeypatch.context() as patch:
            for kind, real in reals.items():
                patch.setattr(points, kind, partial(watched, kind, real, lethal))
            codes, errors = team_of(2, lambda: together(PaperOptions(config=write(config)), run))
        assert codes == wanted, errors
    done = Counter(tuple(line.split()) for line in log.read_text().splitlines())
    execute(PaperOptions(config=write(config)), tmp_path / "alone")
    records = [path.read_bytes() for path in (run / "records.json", tmp_path / "alone" / "records.json")]
    assert records[0] == records[1]
    of = {kind: sorted(count for (_, name), count in done.items() if name == kind) for kind in kinds}
    # the first two spectra were one round, of which the one that was finished is lost with the other
    assert of.pop("spectrum_point") in ([1, 1], [1, 2])
    assert of == {
        "criteria": [1], "landscape_point": [1, 1], "reference_trace": [1], "estimator_row": [1, 1],
        "pathology_point": [2, 2],
    }  # fmt: skip
