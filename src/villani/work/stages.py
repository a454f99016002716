"""The stages of a command, what each has taken, and one time left for all of them.

Stages are declared before they begin, with what they are expected to take: only ratios count, since what was measured
sets the scale. A unit that an earlier process finished counts with the seconds that it took there: the clock is put
forward by them. So a resumed stage has neither been fast nor has it taken no time.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from villani.work.progress import duration

_LATE = 1.5  # times what a step was expected to take, after which what is left is a lower bound only


class Clock:
    """Seconds of this process, and those that resumed units took when they were done.

    Attributes:
        made: whether a unit was made in this process.
    """

    def __init__(self) -> None:
        self.made = False
        self._resumed = 0.0
        self._counted: set[str] = set()

    def now(self) -> float:
        """Seconds since some moment."""
        return time.monotonic() + self._resumed

    def counted(self, unit: str) -> bool:
        """Whether the clock has gone on by what a unit took."""
        return unit in self._counted

    def count(self, unit: str, seconds: float | None = None) -> None:
        """Put the clock forward by what a unit took elsewhere, once; None for those that are made now."""
        self.made |= seconds is None
        if unit not in self._counted:
            self._counted.add(unit)
            self._resumed += seconds or 0.0


@dataclass
class Stage:
    """One stage.

    Attributes:
        name: which. What stands before a colon is its kind, as "chains" of "chains: λ = 0.1".
        size: seconds that it is expected to take, right but for a factor that all stages share; None: not known, but
            the same for all of its kind.
        seconds: until the last of its steps that are done.
        share: of it that is done.
        step: the share of its next step.
        over: whether it is.
        inner: the stages of a command that is run in it.
    """

    name: str
    size: float | None
    seconds: float = 0.0
    share: float = 0.0
    step: float = 1.0
    over: bool = False
    inner: "Stages | None" = None

    @property
    def kind(self) -> tuple[str, bool]:
        """Stages of one kind take as long as their sizes say."""
        return self.name.partition(":")[0], self.size is not None


@dataclass(frozen=True)
class Left:
    """Seconds that a command still takes, as far as they can be estimated, and whether that is the whole of it."""

    seconds: float
    whole: bool

    def __str__(self) -> str:
        return f"{'about' if self.whole else 'at least'} {duration(max(self.seconds, 1.0))} left in all"


class Stages:
    """Stages of a command in order; of one that is run inside another they belong to the stage that the other is at.

    Args:
        outer: stages of the command that this one is run in.

    Attributes:
        clock: of the whole command.
        depth: how many `Work.part`s deep the present stage began.
    """

    def __init__(self, outer: "Stages | None" = None) -> None:
        self.clock: Clock = outer.clock if outer else Clock()
        self.depth = 0
        self._outer = outer
        self._declared: list[Stage] | None = None
        self._present: Stage | None = None
        self._name = ""
        self._seconds: dict[str, float] = {}
        self._began = self._stepped = self.clock.now()

    def declare(self, sizes: Mapping[str, float | None]) -> None:
        """All stages from now on, in order, with their sizes."""
        self._declared, self._present = [Stage(name, size) for name, size in sizes.items()], None
        if self._outer and self._outer._present:
            self._outer._present.inner = self

    def begin(self, name: str) -> None:
        """A stage begins, and all before it are over; one that was not declared is part of the present one."""
        self.seconds()
        self._name = name
        if self._declared is None:
            self._present, self._stepped = Stage(name, None), self.clock.now()
            return
        names = [stage.name for stage in self._declared]
        if name in names and not (stage := self._declared[names.index(name)]).over and stage is not self._present:
            self._step(1.0)
            self._present = stage
            for earlier in self._declared[: names.index(name)]:
                earlier.over = True

    def advance(self, done: int, total: int) -> None:
        """So many of all steps of the present stage are done."""
        if self._declared is None and self._present is None:
            self._present = Stage(self._name, None)
        if self._present and self._name == self._present.name and total > 0:
            self._present.step = 1 / total
            self._step(done / total)

    def recall(self, seconds: float) -> None:
        """Units of earlier stages, which took so long there, are going to be steps of the present one."""
        self._stepped -= seconds

    def seconds(self) -> dict[str, float]:
        """What every kind of stage has taken until now, of those that were not declared too."""
        now, kind = self.clock.now(), self._name.partition(":")[0]
        if kind:
            self._seconds[kind] = self._seconds.get(kind, 0.0) + now - self._began
        self._began = now
        return self._seconds

    def left(self) -> Left | None:
        """What all stages still take; None before any of them has done something that tells of those to come."""
        leaves = list(self._leaves())
        rates: dict[tuple[str, bool], list[float]] = {}  # of a kind: seconds, and what was expected of as much
        for stage, _ in leaves:
            if stage.share and stage.size != 0:
                rate = rates.setdefault(stage.kind, [0.0, 0.0])
                rate[0] += stage.seconds
                rate[1] += stage.share * (stage.size or 1.0)
        overall = [sum(rate[i] for (_, sized), rate in rates.items() if sized) for i in (0, 1)]
        whole, total = self._declared is not None and bool(rates), 0.0
        for stage, since in leaves:
            if stage.over:
                continue
            seconds, expected = rates.get(stage.kind, [0.0, 0.0] if stage.size is None else overall)
            if not expected:
                whole &= stage.size == 0
                continue
            full = seconds / expected * (1.0 if stage.size is None else stage.size)
            step = min(stage.step, 1 - stage.share) * full
            whole &= stage.share >= 1 or since <= _LATE * step
            total += (1 - stage.share) * full - min(since, step)
        return Left(total, whole) if total or whole else None

    def words(self) -> str:
        """What is left, for people; "" while that is not known."""
        return str(self.left() or "")

    def _leaves(self) -> Iterator[tuple[Stage, float]]:
        """Stages without others in them, and the seconds since the last step of those that are at work."""
        stages = self._declared if self._declared is not None else [self._present] if self._present else []
        for stage in stages:
            if stage.inner is None:
                yield stage, self.clock.now() - self._stepped if stage is self._present else 0.0
            else:
                for inner, since in stage.inner._leaves():
                    inner.over |= stage.over
                    yield inner, since

    def _step(self, share: float) -> None:
        now = self.clock.now()
        if self._present:
            self._present.seconds += now - self._stepped if share else 0.0  # what comes before the first step is not it
            self._present.share = share
        self._stepped = now
