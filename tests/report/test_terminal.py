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
    ("text", "shown"),
    [
        ("at most 10^11,289.3 here", "at most 2·10¹¹²⁸⁹ here"),  # 10^0.3 = 1.995
        ("a gap of 10^-43.5", "a gap of 3·10⁻⁴⁴"),  # 10^0.5 = 3.16, and a rate is rounded down
        ("by 9.46e-06 nats", "by 9.46·10⁻⁶ nats"),
    ],
)
def test_sizes_read_as_on_pages_and_paths_stay_as_they_are(text, shown):
    stream = io.StringIO()
    console = Console(file=stream, width=100, highlight=False)
    terminal.print_findings(console, text, {"Why": text, "None": ""})
    console.print(terminal.table([{"size": text}], title="runs/1e-05"))
    terminal.say(console, "The page: ", path="runs/1e-05/10^11,289.3")
    lines = stream.getvalue().splitlines()
    assert lines[:2] == [shown, f"Why. {shown}"]
    assert lines[-1] == "The page: runs/1e-05/10^11,289.3"
    assert sum(shown in line for line in lines) == 3
    assert lines[2].strip() == "runs/1e-05"


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
