"""The whole way from a model to a run directory: resume after SIGKILL, Ctrl-C, and text at full size."""

import itertools
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import SHARING
from tests.inputs.conftest import needs_data
from villani.cli import main
from villani.commands.measure.settings import MeasureSettings
from villani.commands.running import execute
from villani.work.progress import Progress, duration

SMALLEST = "builtin:tiny?layers=1&width=8"
SETTINGS = MeasureSettings(model="builtin:tiny", groups=24, sequences=2, block=128, threads=1)


def killed_after(seconds: float, run: Path) -> bool:
    """Measure in a child process and SIGKILL it; whether it was still at work."""
    child = os.fork()
    if child == 0:
        execute(SETTINGS, run)
        os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


@pytest.mark.thorough
def test_six_kills_and_a_resume_give_the_same_bytes(tmp_path, monkeypatch):
    SHARING.refuse(monkeypatch)  # what is killed is to be killed while it traces, too
    assert torch.get_num_threads() == 1, "forking is only safe without a thread pool"
    execute(SETTINGS, tmp_path / "whole")
    chance = random.Random(0)
    kills = 0
    for _ in range(200):
        kills += killed_after(chance.uniform(0.0, 0.6), tmp_path / "killed")
        if kills == 6:
            break
    assert kills == 6
    execute(SETTINGS, tmp_path / "killed")
    whole, killed = ((tmp_path / name / "records.json").read_bytes() for name in ("whole", "killed"))
    assert whole == killed
    assert (tmp_path / "whole" / "settings.toml").read_bytes() == (tmp_path / "killed" / "settings.toml").read_bytes()


def test_control_c_keeps_what_was_finished(tmp_path):
    run = tmp_path / "run"
    words = ["measure", "builtin:tiny?layers=1&width=8&context=32", "--groups", "3000", "--sequences", "1"]
    words += ["--block", "16", "--trace", "gauss-newton", "--threads", "1", "--run", str(run)]
    said = tmp_path / "stderr"
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it
        sys.argv, sys.stderr = ["villani", *words], said.open("w", buffering=1)
        try:
            main()
        except SystemExit as ended:
            os._exit(ended.code)
        finally:
            os._exit(99)
    while not (run / "ledger.sqlite-wal").exists() or (run / "ledger.sqlite-wal").stat().st_size < 1e5:
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        time.sleep(0.05)
    os.kill(child, signal.SIGINT)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 1
    err = said.read_text()
    assert "interrupted; what was finished is kept, and the same command resumes" in err
    assert "Traceback" not in err
    assert not (run / "records.json").exists()


def test_settings_make_the_command():
    settings = MeasureSettings(
        model="config:gpt2?layers=1", weight_decay=[0.1, 1e-5], finite=True, probes=3, decay="hf"
    )
    assert settings.command() == (
        "villani measure 'config:gpt2?layers=1' --text builtin --decay hf --probes 3 --finite --weight-decay "
        "0.1,1e-05 --temperature 0.001"
    )


def test_constants_stand_beside_a_measurement_where_there_are_any(tmp_path):
    """At every λ > 0 and s, from shapes alone; none where some parameter does not decay."""
    settings = MeasureSettings(
        model="builtin:tiny?layers=1&width=8&context=32", groups=3, sequences=1, block=16, weight_decay=[0.0, 0.5],
        temperature=[2.0, 1e-3],
    )  # fmt: skip
    _, record = execute(settings, tmp_path / "run")
    points = record.constants.points
    assert [(point.weight_decay, point.temperature) for point in points] == [(0.5, 2.0), (0.5, 1e-3)]
    known = {constant.id: constant for constant in points[0].constants}
    assert known["C8"].value == pytest.approx(2 + 4 * record.objective.parameters)
    assert known["C3"].value == pytest.approx(2 * (1 + 9 * record.constants.vocabulary))
    assert (known["C3"].status, known["C8"].status) == ("certified", "as-claimed")
    _, partly = execute(settings.model_copy(update={"decay": "hf"}), tmp_path / "run")
    assert partly.constants is None


@pytest.mark.parametrize("text", [pytest.param(name, marks=needs_data) for name in ("ptb", "wikitext-103:valid")])
def test_real_text(text, tmp_path):
    """A shrunken GPT-Neo on PTB and WikiText with the GPT-2 BPE, with blocks longer than its local window."""
    settings = MeasureSettings(
        model="config:gpt-neo-125m?layers=2&width=32&window=64", text=text, groups=3, sequences=1, block=128
    )
    _, record = execute(settings, tmp_path / "run")
    assert record.loss.value == pytest.approx(10.8, abs=0.3)  # ln 50,257 at random weights
    assert record.text.sources[0].md5 in ("f26c4b92c5fdc7b3f8c7cdcb991d8420", "d756d22ab2310e7e60c094bea5c5a8eb")


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({}, 3 * (32 * 1.7 + 40)),  # a sweep there and back takes 1.7 gradients
        ({"trace": "hutchinson"}, 3 * (32 * 3 + 40)),
        ({"trace": "taylor"}, 3 * (32 * (1 + 4.1 / 3.2) + 40) + 3 * 32 * 3.7),  # with the shares of single tensors
        ({"target_error": "abs:1e9"}, 14 * (32 * 1.7 + 40)),  # 12 groups to begin with, two of them twice
    ],
)
def test_the_time_told_is_that_of_a_forward_pass_and_the_way(tmp_path, monkeypatch, options, tokens):
    """A clock that ticks when it is looked at: a row of 16 tokens takes a second, their gradient 3.2."""
    ticks, lines = itertools.count(), []

    class Told(Progress):
        def stage(self, text):
            lines.append(text)

    monkeypatch.setattr("villani.commands.subject.time.perf_counter", lambda: float(next(ticks)))
    settings = MeasureSettings(model=SMALLEST, groups=3, sequences=2, block=16, threads=1, **options)
    execute(settings, tmp_path / "run", progress=Told())
    told = next(line for line in lines if line.startswith("expecting roughly "))
    assert told.startswith(f"expecting roughly {duration(tokens * 3.2 / 16)}, ")
