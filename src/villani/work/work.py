"""What a piece of work is done with: a ledger of finished units, the processes that share them, and progress.

`Work()` keeps finished units in memory, so that a call from Python and a command run the same code; a command's `Work`
opens a run directory as soon as it is known what determines the run.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from copy import copy
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from pydantic import TypeAdapter

from villani.statistics import Array
from villani.work.budget import LESS, Needs, agree, hold
from villani.work.ledger import Ledger, write_settings
from villani.work.memory import peak_memory
from villani.work.progress import Progress
from villani.work.records import Cost
from villani.work.stages import Stages
from villani.work.team import EARLIER, Rows, Team

T = TypeVar("T")
PAGE = "writing the page"
_PAGE_SECONDS = 0.5
_SLUG = 40  # characters of what a run is about, in the name of its folder


class InMemory:
    """Units that end with the process."""

    def __init__(self) -> None:
        self._units: dict[str, tuple[Rows, float, int]] = {}

    def get(self, key: str) -> Rows | None:
        """See `Ledger.get`."""
        unit = self._units.get(key)
        return unit[0] if unit else None

    def put(self, key: str, arrays: Rows, *, seconds: float, peak_memory_bytes: int) -> None:
        """See `Ledger.put`."""
        self._units[key] = (arrays, seconds, peak_memory_bytes)

    def seconds_of(self, key: str) -> float:
        """See `Ledger.seconds_of`."""
        return self._units[key][1]

    def spent(self, prefix: str = "") -> tuple[float, int, int]:
        """See `Ledger.spent`."""
        chosen = [unit for key, unit in self._units.items() if key.startswith(prefix)]
        return sum(u[1] for u in chosen), max((u[2] for u in chosen), default=0), len(chosen)


class Work:
    """Units of work, each done once.

    Args:
        run: the run directory; made from the settings when None.
        data: folder of text and tokenizer files; the environment variable VILLANI_DATA by default.
        progress: told where the work is.
        team: the processes that share units; this one alone by default.

    Attributes:
        directory: the run directory, once it is open.
        device: where the work is done, and its memory is looked at.
        shared: what is loaded once for all parts of a command, by whatever determines it; see `loaded`.
        stages: what the stages took so far, and the time left.
    """

    def __init__(
        self, run: Path | None = None, data: Path | None = None, progress: Progress | None = None,
        team: Team | None = None,
    ) -> None:  # fmt: skip
        self.run = run
        self.data = data
        self.progress: Progress = progress or Progress()
        self.team = team or Team()
        self.directory: Path | None = None
        self.device = "cpu"
        self.shared: dict[Any, Any] = {}
        self.stages = Stages()
        self.progress.remaining = self.stages.words
        self._places: tuple[tuple[int, int], ...] = ()
        self._ledger: Ledger | InMemory = InMemory()
        self._settings: Mapping[str, Any] = {}
        self._resumed = [0.0]  # seconds, of all copies
        self._prefix = ""
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def open(
        self, name: str, about: str, determining: Mapping[str, Any], settings: Mapping[str, Any], *,
        named: Mapping[str, Any] | None = None, needs: Needs | None = None, what: str = "this run",
        instead: str = LESS, device: str = "cpu", most: float | None = None, agreed: bool = True,
    ) -> Path:  # fmt: skip
        """Open the run directory: from now on finished units are kept there, and those of an interrupted run are used.

        Args:
            name: of the command.
            about: what it is about, for the name of the directory.
            determining: what determines the units; a run that was begun with anything else is refused.
            settings: for settings.toml, which people read.
            named: what a directory of its own is named by, if not by what determines the units.
            needs: what the work will take; refused if it does not fit, else told.
            what: the subject of that sentence.
            instead: what to change if it does not fit.
            device: where it is done.
            most: GiB that the process may take, if that is stated.
            agreed: whether it may begin unasked; else somebody has to agree to what is long or large, once.

        Raises:
            InputError: it does not fit, or nobody agreed; the directory is another run's, damaged or in use; or
                processes differ.
        """
        self.device = device
        self.team.agree({**determining, **(named or {})})
        directory = self.run or Path("runs") / default_name(name, about, named or determining)
        self.directory = directory
        needs = needs and needs.among(self.team.size, self.team.here)
        if self.team.main:
            begun = (directory / "ledger.sqlite").exists()
            if needs is not None:
                hold(needs, directory, what=what, instead=instead, device=device, most=most)
                self.progress.stage(f"{needs}, for all of it: what is kept is not done again" if begun else f"{needs}")
            if begun:
                self._ledger = self._stack.enter_context(Ledger(directory, determining))
            question = f"agreed/{_digest(named or determining)}"  # a run that is named by more may be asked for more
            known = begun and (named is None or self.get(question) is not None)
            if needs and not (agreed or known):
                agree(needs, self.progress.confirm, what=what, instead=instead)
            if not begun:
                self._ledger = self._stack.enter_context(Ledger(directory, determining))
            if needs and needs.large and named and not known:
                self.put(question, {})
            self._settings = settings
            if not (directory / "settings.toml").exists():
                self.write_settings()
        self.stages.declare((needs.sizes() if needs else {}) | {PAGE: _PAGE_SECONDS})
        return directory

    def write_settings(self) -> None:
        """Write `settings.toml`, once a run is begun and with each of its records: so that both tell of one thing."""
        write_settings(self.folder(), self._settings)

    def inner(self, folder: str) -> "Work":
        """The work of another command inside this run, in a folder and ledger of its own; shares what is loaded."""
        assert self.directory is not None
        other = Work(self.directory / folder, self.data, None, self.team)
        other.progress, other.shared, other.stages = self.progress, self.shared, Stages(self.stages)
        return other

    def alone(self) -> "Work":
        """The same work by this process alone, of a team whose others are at work of their own, or have none left."""
        other = copy(self)
        other.team = Team()
        return other

    def unkept(self) -> "Work":
        """The same work with units of its own that end with the process: pieces of a unit that is kept as a whole."""
        other = copy(self)
        other._ledger = InMemory()
        return other

    def folder(self, name: str = "") -> Path:
        """A folder of the run directory, which must be open."""
        assert self.directory is not None
        return self.directory / name

    def scratch(self, name: str) -> Path | None:
        """A folder of this scope for what a killed run goes on from; None where nothing outlives the process."""
        return self.directory / "scratch" / self._prefix / name if self.directory else None

    def scope(self, prefix: str) -> "Work":
        """The same work with all keys under `prefix/`."""
        other = copy(self)
        other._prefix = f"{self._prefix}{prefix}/"
        return other

    def part(self, index: int, count: int) -> "Work":
        """The same work as part `index` of `count` equal ones of the present stage."""
        other = copy(self)
        other._places = (*self._places, (index, count))
        return other

    def stage(self, text: str, name: str | None = None) -> None:
        """A new piece of work begins, of the stage of that name; the text itself by default."""
        self.stages.begin(name or text)
        self.stages.depth = len(self._places)
        self.progress.stage(text)

    def advance(self, done: int, total: int) -> None:
        """`done` of `total` steps of this piece are finished."""
        self.stages.advance(*_within(self._places, done, total))
        self.progress.advance(*_within(self._places[self.stages.depth :], done, total))

    def once(self, key: str, make: Callable[[], Mapping[str, Array]]) -> Rows:
        """The arrays of a unit: those that are kept, or else made now, timed and kept."""
        rows = self.get(key)
        if rows is None:
            start, before = time.perf_counter(), self._resumed[0]
            rows = make()
            self.put(key, rows, seconds=time.perf_counter() - start + self._resumed[0] - before)
        return rows

    def once_record(self, key: str, kind: Any, make: Callable[[], T]) -> T:
        """As `once`, for a unit whose result pydantic can write as JSON: a record, or a list of some."""
        adapter: TypeAdapter[T] = TypeAdapter(kind)
        return _read(adapter, self.once(key, partial(_written, adapter, make)))

    def map(self, units: Mapping[str, Callable[[], Rows]]) -> list[Rows]:
        """The arrays of all units, in their order, in every process; those that are missing are dealt out.

        See `Team.map` for what units are, and for what it raises.
        """
        self.stages.advance(*_within(self._places, 0, len(units)))  # what was prepared for them is not theirs
        if self.team.main:
            again = [self._prefix + key for key in units if self.stages.clock.counted(self._unit(key))]
            self.stages.recall(sum(map(self._ledger.seconds_of, again)) / self.team.size)
        whole = {key: partial(self._whole, make) for key, make in units.items()}
        return self.team.map(whole, self if self.team.main else None, self.advance, self._memory)

    def _whole(self, make: Callable[[], Rows]) -> Rows:
        before = self._resumed[0]
        rows = make()
        earlier = self._resumed[0] - before
        return {**rows, EARLIER: np.array(earlier)} if earlier else rows

    def resumed(self, seconds: float) -> None:
        """The present unit goes on from what a process before it left, which took so long there: its own time, too."""
        self._resumed[0] += seconds
        self.stages.recall(seconds)

    def map_records(self, kind: Any, units: Mapping[str, Callable[[], T]]) -> list[T]:
        """As `map`, for units whose results pydantic can write as JSON."""
        adapter: TypeAdapter[T] = TypeAdapter(kind)
        return [_read(adapter, row) for row in self.map({k: partial(_written, adapter, m) for k, m in units.items()})]

    def kept(self, key: str) -> Rows | None:
        """As `get`, to look a unit up, whichever stage it belongs to: the clock of the present one does not go on."""
        return self._ledger.get(self._prefix + key)

    def get(self, key: str) -> Rows | None:
        """The arrays of a finished unit, or None; it belongs to the present stage."""
        rows = self.kept(key)
        if rows is not None:
            self._count(key, self._ledger.seconds_of(self._prefix + key) / self.team.size)
        return rows

    def put(self, key: str, arrays: Rows, *, seconds: float = 0.0, peak_memory_bytes: int | None = None) -> None:
        """Keep a finished unit; in a run directory it then survives a kill."""
        peak = self._memory() if peak_memory_bytes is None else peak_memory_bytes
        self._ledger.put(self._prefix + key, arrays, seconds=seconds, peak_memory_bytes=peak)
        self._count(key)

    def _count(self, key: str, seconds: float | None = None) -> None:
        """A unit is there: the clock of the stages goes on by what it took, if an earlier process made it."""
        self.stages.clock.count(self._unit(key), seconds)

    def _unit(self, key: str) -> str:
        return f"{self.directory}:{self._prefix}{key}"

    def spent(self, prefix: str = "") -> tuple[float, int, int]:
        """Seconds in all, largest peak memory in bytes, and number of units, under a key prefix; in every process."""
        own = self._ledger.spent(self._prefix + prefix) if self.team.main else None
        seconds, peak, units = self.team.broadcast(own)
        return seconds, peak, units

    def cost(self, tokens: int, probes: int = 0, *, shares: int | None = None, **more: Any) -> Cost:
        """What the units took in all.

        Args:
            tokens: predicted tokens in them.
            probes: probes in them.
            shares: what `seconds_per_group` is per; the number of units by default.
            more: other fields of the cost.
        """
        seconds, peak, units = self.spent()
        each = seconds / max(units if shares is None else shares, 1)
        return Cost(
            seconds=seconds, seconds_per_group=each, peak_memory_bytes=peak, tokens=tokens, probes=probes, **more
        )

    def _memory(self) -> int:
        return peak_memory(self.device)

    def loaded(self, key: Any, make: Callable[[], T]) -> T:
        """What is loaded once and used by every part of a command that names the same key."""
        if key not in self.shared:
            self.shared[key] = make()
        value: T = self.shared[key]
        return value


def _written(adapter: TypeAdapter[T], make: Callable[[], T]) -> Rows:
    return {"record": np.array(adapter.dump_json(make()).decode())}


def _read(adapter: TypeAdapter[T], row: Rows) -> T:
    record = row["record"]
    return adapter.validate_json(record.tobytes() if record.dtype == np.uint8 else str(record))  # bytes: of older runs


def _within(places: tuple[tuple[int, int], ...], done: int, total: int) -> tuple[int, int]:
    """Steps of a part as steps of the whole."""
    for index, count in reversed(places):
        done, total = index * total + done, max(count, index + 1) * total
    return done, total


def default_name(command: str, about: str, determining: Mapping[str, Any]) -> str:
    """A directory name from what was asked: readable, and the same for the same settings."""
    words = re.sub(r"[^A-Za-z0-9.]+", "-", about).strip("-.").split("-")
    while len(words) > 1 and len("-".join(words)) > _SLUG:
        words.pop(0)  # whole words; the end of a path tells more than its beginning
    slug = "-".join(words)[:_SLUG].strip("-.")
    return f"{command}-{slug}-{_digest(determining)}"


def _digest(question: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:8]
