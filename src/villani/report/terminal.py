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
from rich.text import Text

from villani.report.elements import Row
from villani.report.numbers import readable
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
    """Progress on a terminal: one line a stage, and at the present one what the whole command still takes."""

    def __init__(self, console: Console) -> None:
        self.bars = bars.Progress(
            bars.SpinnerColumn(), bars.TextColumn("{task.description}"), bars.BarColumn(), bars.MofNCompleteColumn(),
            bars.TimeElapsedColumn(), _Remaining(self), console=console,
        )  # fmt: skip
        self.present: bars.Task | None = None

    def stage(self, text: str) -> None:
        """Begin a stage of unknown length, or go on with it."""
        if self.present:
            if text == self.present.description:
                return
            if self.present.total is None:
                self.bars.update(self.present.id, total=1, completed=1)
            self.bars.stop_task(self.present.id)
        number = self.bars.add_task(text, total=None)
        self.present = next(task for task in self.bars.tasks if task.id == number)

    def advance(self, done: int, total: int) -> None:
        """Show `done` of `total`."""
        if self.present is None:
            self.stage("working")
        assert self.present is not None
        self.bars.update(self.present.id, completed=done, total=total)

    def confirm(self, question: str) -> bool | None:
        """Ask whoever sits at the terminal; anything but yes is no."""
        if not sys.stdin.isatty():
            return None
        self.bars.stop()
        try:
            self.bars.console.print(f"{question} [y/N] ", end="", markup=False, highlight=False, soft_wrap=True)
            answer = sys.stdin.readline()
        finally:
            self.bars.start()
        return answer.strip().lower() in ("y", "yes") if answer else None


class _Remaining(bars.ProgressColumn):
    def __init__(self, bar: Bar) -> None:
        super().__init__()
        self._bar = bar

    def render(self, task: bars.Task) -> Text:
        return Text(self._bar.remaining() if task is self._bar.present else "", style="progress.remaining")


@contextmanager
def progress() -> Iterator[Progress]:
    """Bars on stderr while the block runs; lines where stderr is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines(sys.stderr)
        return
    bar = Bar(console)
    with bar.bars:
        yield bar


def say(console: Console, text: str, style: str | None = None, path: object = "") -> None:
    """A paragraph with the numbers of a page, then a path as it is: no markup, and lines that the terminal breaks."""
    console.print(f"{readable(text)}{path}", style=style, markup=False, soft_wrap=True)


def print_findings(console: Console, headline: str, findings: Mapping[str, str] | None = None) -> None:
    """The answer in bold, and what else was found, a paragraph each."""
    say(console, headline, "bold")
    for title, paragraph in (findings or {}).items():
        if paragraph:
            say(console, f"{title}{'' if title.endswith('?') else '.'} {paragraph}")


def table(rows: Sequence[Row], without: Collection[str] = (), title: str | None = None) -> Table:
    """Rows as a page has them, but for the columns that a terminal has no room for."""
    shown = [{name: cell for name, cell in row.items() if name not in without} for row in rows]
    made = Table(*(shown[0] if shown else ()), title=title and escape(title), title_justify="left")
    for row in shown:
        made.add_row(*(escape(readable(cell)) for cell in row.values()))
    return made
