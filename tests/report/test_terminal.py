"""What people see where nobody watches."""

import io

import pytest
from rich.console import Console

from villani.report import terminal
from villani.work.work import Work


def test_lines_tell_stages_at_once_and_progress_once_a_minute(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    work = Work(progress=terminal.Lines(stream))
    work.stages.declare({"training": 300.0})
    work.stage("training")
    for step in range(1, 301):
        now[0] += 1.0
        work.advance(step, 300)
    told = [line.split(" ", 1)[1] for line in stream.getvalue().splitlines()]
    assert told == [
        "training",
        "training: 60 of 300, about 4 min left in all",
        "training: 120 of 300, about 3 min left in all",
        "training: 180 of 300, about 2 min left in all",
        "training: 240 of 300, about 60 s left in all",
    ]


def test_progress_is_lines_where_stderr_is_no_terminal(capsys):
    with terminal.progress() as shown:
        shown.stage("loading")
        shown.advance(1, 2)
    assert capsys.readouterr().err.endswith("loading\n")


@pytest.mark.parametrize(
    ("typed", "answer"), [("y\n", True), ("YES \n", True), ("\n", False), ("no\n", False), ("", None)]
)
def test_a_question_is_answered_at_a_terminal(monkeypatch, typed, answer):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = io.StringIO()
    bar = terminal.Bar(Console(file=stream, force_terminal=True, width=100))
    monkeypatch.setattr("sys.stdin", Terminal(typed))
    with bar.bars:
        bar.stage("working")
        assert bar.confirm("It would take 3 h [and more]. Begin?") is answer
        assert "It would take 3 h [and more]. Begin? [y/N]" in stream.getvalue()
        assert bar.bars.live.is_started
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))  # a pipe: nobody sits there
    assert bar.confirm("Begin?") is None
    assert terminal.Lines(stream).confirm("Begin?") is None
