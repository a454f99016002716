"""What people see in a terminal: progress on stderr, and the pieces that results on stdout are made of."""

import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TextIO

from rich import progress as bars
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from villani.report.elements import Row
from villani.work.progress import Progress

_QUIET = 60.0  # seconds between two lines of a stage


class Lines(Progress):
    """Progress where nobody watches: a line for each stage, and at most one a minute."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._stage, self._told = "", 0.0

    def stage(self, text: str) -> None:
        """Begin a stage of unknown length, or go on with it."""
        if text != self._stage:
            self._stage = text
            self._say(text)

    def advance(self, done: int, total: int) -> None:
        """Show `done` of `total`."""
        if time.monotonic() - self._told >= _QUIET and done < total:
            self._say(f"{self._stage}: {done} of {total}")

    def _say(self, text: str) -> None:
        self._told = time.monotonic()
        left = self.remaining()
        with suppress(OSError, ValueError):  # nobody reads any more: no reason to stop the work
            line = f"{time.strftime('%H:%M:%S')} {text}{', ' if left else ''}{left}"
            print(line, file=self._stream, flush=True)


class Bar(Progress):
    """Progress on a terminal: one line a stage, and what the whole command still takes at the present one."""

    def __init__(self, shown: bars.Progress) -> None:
        self._bars = shown
        self._task: bars.TaskID | None = None
        self._stage = ""

    def stage(self, text: str) -> None:
        """Begin a stage of unknown length, or go on with it."""
        if text == self._stage and self._task is not None:
            return
        self._close()
        self._stage = text
        self._task = self._bars.add_task(text, total=None)

    def advance(self, done: int, total: int) -> None:
        """Show `done` of `total`."""
        if self._task is None:
            self.stage(self._stage or "working")
        assert self._task is not None
        self._bars.update(self._task, completed=done, total=total)

    def words(self, task: bars.Task) -> str:
        """What stands beside a bar."""
        return self.remaining() if task.id == self._task else ""

    def _close(self) -> None:
        if self._task is not None:
            self._bars.update(self._task, total=1, completed=1) if self._total() is None else None
            self._bars.stop_task(self._task)

    def _total(self) -> float | None:
        return next(task.total for task in self._bars.tasks if task.id == self._task)


class _Remaining(bars.ProgressColumn):
    """A column of words."""

    def __init__(self) -> None:
        super().__init__()
        self.words: Callable[[bars.Task], str] = lambda _: ""

    def render(self, task: bars.Task) -> Text:
        """See `rich.progress.ProgressColumn.render`."""
        return Text(self.words(task), style="progress.remaining")


@contextmanager
def progress() -> Iterator[Progress]:
    """Bars on stderr while the block runs; lines where stderr is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines(sys.stderr)
        return
    remaining = _Remaining()
    columns = (
        bars.SpinnerColumn(), bars.TextColumn("{task.description}"), bars.BarColumn(), bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(), remaining,
    )  # fmt: skip
    with bars.Progress(*columns, console=console) as shown:
        bar = Bar(shown)
        remaining.words = bar.words
        yield bar


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
