"""What people see in a terminal: progress on stderr, and the pieces that results on stdout are made of."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

from villani.report.numbers import format_interval, format_uncertain
from villani.work.progress import Progress, duration
from villani.work.records import EstimateRecord

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

    def __init__(self, bars: RichProgress) -> None:
        self._bars = bars
        self._task: TaskID | None = None
        self._stage = ""

    def stage(self, text: str) -> None:
        """Begin a stage of unknown length."""
        self._close()
        self._stage = text
        self._task = self._bars.add_task(text, total=None)

    def advance(self, done: int, total: int) -> None:
        """Show `done` of `total`."""
        if self._task is None:
            self.stage(self._stage or "working")
        assert self._task is not None
        self._bars.update(self._task, completed=done, total=total)

    def _close(self) -> None:
        if self._task is not None:
            self._bars.update(self._task, total=1, completed=1) if self._total() is None else None
            self._bars.stop_task(self._task)

    def _total(self) -> float | None:
        return next(task.total for task in self._bars.tasks if task.id == self._task)


@contextmanager
def progress() -> Iterator[Progress]:
    """Bars on stderr while the block runs; lines where stderr is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines(sys.stderr)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=console, speed_estimate_period=3600) as bars:
        yield Bar(bars)


def print_findings(console: Console, headline: str, findings: Mapping[str, str]) -> None:
    """The answer in bold, and what else was found, a paragraph each."""
    console.print(headline, style="bold", markup=False, soft_wrap=True)
    for title, paragraph in findings.items():
        console.print(f"{title}{'' if title.endswith('?') else '.'} {paragraph}", markup=False, soft_wrap=True)


def estimate_cells(estimate: EstimateRecord) -> tuple[str, str, str]:
    """Value with its error, interval and status, for a row of a table."""
    return format_uncertain(estimate.value, estimate.sem), format_interval(*estimate.interval), estimate.status


def print_page(console: Console, directory: Path) -> None:
    """Where the page is."""
    console.print(f"The page: {directory / 'report.html'}", markup=False, soft_wrap=True)
