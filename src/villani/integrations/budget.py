"""When a run may measure: a share of its own seconds, at most."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

from villani.errors import InputError

TRIALS = 2  # forward passes to know what one takes
MARGIN = 1.25  # times the dearest of the last three measurements is what the next is expected to take
_LONGEST = 32  # steps without looking at the clock, at most
_AGAIN = 4.0  # times the length of the run between trials, and before a measurement that failed is tried again


class Budget:
    """Keeps measuring ≤ `max_overhead` × everything else, in seconds, from what measuring was seen to take.

    Args:
        max_overhead: in (0, 1).
        clock: seconds.

    Raises:
        InputError: `max_overhead` out of range.
    """

    def __init__(self, max_overhead: float = 0.03, clock: Callable[[], float] = time.perf_counter) -> None:
        if not 0 < max_overhead < 1:
            raise InputError(f"max_overhead={max_overhead:g}: expected a number between 0 and 1, such as 0.03")
        self.max_overhead, self._clock = max_overhead, clock
        self.measuring = 0.0  # seconds
        self._start = self._last_step = clock()
        self._steps: list[float] = []
        self._guess: float | None = None
        self._tried = self._not_before = 0.0  # seconds into the run
        self._recent: list[float] = []

    @property
    def total(self) -> float:
        """Seconds since the start, measuring included."""
        return self._clock() - self._start

    @property
    def overhead(self) -> float:
        """Seconds of measuring for each second of everything else."""
        other = self.total - self.measuring
        return self.measuring / other if other > 0 else 0.0

    def step(self) -> None:
        """An optimiser step is over."""
        now = self._clock()
        self._steps = [*self._steps[-31:], now - self._last_step]
        self._last_step = now

    def affords(self, seconds: float) -> bool:
        """Whether so many seconds of measuring, now, keep to the budget."""
        return self.measuring + seconds <= self.max_overhead * (self.total - self.measuring)

    @property
    def due(self) -> bool:
        """Whether a measurement, a little dearer than the dearest of the last three, keeps to the budget."""
        return self.expected is not None and self.total >= self._not_before and self.affords(self.expected)

    @property
    def expected(self) -> float | None:
        """Seconds that the next measurement is taken to need; None before a trial told."""
        return MARGIN * max(self._recent) if self._recent else self._guess

    @property
    def may_try(self) -> bool:
        """Whether to try out what measuring takes: none was made yet, two training steps are affordable, and the run is
        four times as long as at the last trial, which may have met a busy moment.
        """
        again = not self._recent and self.total >= _AGAIN * self._tried
        return again and bool(self._steps) and self.affords(TRIALS * median(self._steps))

    @property
    def steps_to_wait(self) -> int:
        """For how many steps, as long as the shortest of late, nothing becomes affordable; none where it may."""
        needed = self.expected if self.expected is not None else TRIALS * median(self._steps or [0.0])
        other = (self.measuring + needed) / self.max_overhead
        seconds = other - (self.total - self.measuring)
        shortest = min(self._steps, default=0.0)
        return 0 if shortest <= 0 else max(0, min(_LONGEST, int(seconds / shortest) - 1))

    def expect(self, seconds: float) -> None:
        """What a measurement is going to take, until one has been made; of several trials the least counts."""
        self._guess = min(seconds, self._guess or seconds)
        self._tried = self.total

    def failed(self, *, whole: bool = False) -> None:
        """A trial, or a `whole` measurement, came to nothing: its seconds tell nothing, and the next one is put off."""
        if whole:
            self._recent = self._recent[:-1]
            self._not_before = _AGAIN * self.total
        self._tried = self.total

    @contextmanager
    def spending(self, *, whole: bool = False) -> Iterator[None]:
        """Seconds that count as measuring; of a `whole` measurement they tell what the next will take."""
        before = self._clock()
        try:
            yield
        finally:
            now = self._clock()
            self.measuring += now - before
            self._last_step += now - before  # the time of a step is without them
            if whole:
                self._recent = [*self._recent[-2:], now - before]
