"""What people see in a terminal: progress on stderr, and the pieces that results on stdout are made of."""

import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TextIO

from rich import progress as bars
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from villani.report.elements import Row
from villani.work.progress import Progress, duration

_QUIET = 60.0  # seconds between two lines of a stage


class Lines:
    """A `villani.work.progress.Progress` where nobody watches: a line for each stage, and at most one a minute."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._stage, self._began, self._told, self._first = "", 0.0, 0.0, 0

    def stage(self, text: str) -> None:
        """Begin a stage of unknown length."""
        self._stage, self._began, self._first = text, time.monotonic(), -1
        self._say(text)

    def advance(self, done: int, total: int) -> None:
        """Show `done` of `total`."""
        now = time.monotonic()
        if self._first < 0:
            self._first, self._began = done, now
        if now - self._told >= _QUIET and done < total:
            each = (now - self._began) / (done - self._first) if done > self._first else None
            left = "" if each is None else f", about {duration(each * (total - done))} left"
            self._say(f"{self._stage}: {done} of {total}{left}")

    def _say(self, text: str) -> None:
        self._told = time.monotonic()
        with suppress(OSError, ValueError):  # nobody reads any more: no reason to stop the work
            print(f"{time.strftime('%H:%M:%S')} {text}", file=self._stream, flush=True)


class Bar:
    """A `villani.work.progress.Progress` on a terminal: one line a stage, with the time left where it is known."""

    def __init__(self, shown: bars.Progress) -> None:
        self._bars = shown

    def stage(self, text: str) -> None:
        """Begin a stage of unknown length."""
        for last in self._bars.tasks[-1:]:
            if last.total is None:
                self._bars.update(last.id, total=1, completed=1)
            self._bars.stop_task(last.id)
        self._bars.add_task(text, total=None)

    def advance(self, done: int, total: int) -> None:
        """Show `done` of `total`."""
        if not self._bars.tasks:
            self.stage("working")
        self._bars.update(self._bars.tasks[-1].id, completed=done, total=total)


@contextmanager
def progress() -> Iterator[Progress]:
    """Bars on stderr while the block runs; lines where stderr is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines(sys.stderr)
        return
    columns = (
        bars.SpinnerColumn(), bars.TextColumn("{task.description}"), bars.BarColumn(), bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(), bars.TextColumn("left"), bars.TimeRemainingColumn(),
    )  # fmt: skip
    with bars.Progress(*columns, console=console, speed_estimate_period=3600) as shown:
        yield Bar(shown)


def say(console: Console, text: str, style: str | None = None) -> None:
    """A paragraph as it is: no markup, and lines that the terminal breaks."""
    console.print(text, style=style, markup=False, soft_wrap=True)


def print_findings(console: Console, headline: str, findings: Mapping[str, str] | None = None) -> None:
    """The answer in bold, and what else was found, a paragraph each."""
    say(console, headline, "bold")
    for title, paragraph in (findings or {}).items():
        if paragraph:
            say(console, f"{title}{'' if title.endswith('?') else '.'} {paragraph}")


def table(rows: Sequence[Row], without: Collection[str] = (), title: str | None = None) -> Table:
    """Rows as a page has them, but for the columns that a terminal has no room for."""
    shown = [{name: cell for name, cell in row.items() if name not in without} for row in rows]
    made = Table(*(shown[0] if shown else ()), title=title, title_justify="left")
    for row in shown:
        made.add_row(*(escape(cell) for cell in row.values()))
    return made
