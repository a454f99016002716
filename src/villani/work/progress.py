"""How long work tells where it is; code that measures never prints."""

from typing import Protocol


class Progress(Protocol):
    """Told what is going on; `villani.report.terminal.progress` shows it."""

    def stage(self, text: str) -> None:
        """A new piece of work of unknown length begins."""

    def advance(self, done: int, total: int) -> None:
        """`done` of `total` steps of this piece are finished."""


class Silent:
    """Shows nothing."""

    def stage(self, text: str) -> None:
        """See `Progress.stage`."""

    def advance(self, done: int, total: int) -> None:
        """See `Progress.advance`."""


def duration(seconds: float) -> str:
    """Seconds for people, to two digits."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds:.2g} s"
