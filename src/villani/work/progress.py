"""Progress of long work; code that measures never prints."""

from collections.abc import Callable


class Progress:
    """Told what is going on, and shows nothing; `villani.report.terminal.progress` shows it.

    Attributes:
        remaining: what the whole command still takes, in words; "" while that is not known. Set by `Work`.
    """

    remaining: Callable[[], str] = staticmethod(lambda: "")

    def stage(self, text: str) -> None:
        """A new piece of work of unknown length begins."""

    def advance(self, done: int, total: int) -> None:
        """`done` of `total` steps of this piece are finished."""

    def confirm(self, question: str) -> bool | None:  # noqa: ARG002 - of those who show it
        """What somebody answers to a question; None where there is nobody to ask."""
        return None


def duration(seconds: float) -> str:
    """Seconds for people, to two digits."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds:.2g} s"
