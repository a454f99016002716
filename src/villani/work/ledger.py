"""The run directory: a ledger of finished work in SQLite, settings, records, and the rules that keep them honest.

One row per finished unit, one transaction per unit. The ledger remembers the settings that determine its rows; a run of
other settings is refused, never reused. Every row carries a checksum over itself and those settings, and all are held
against it before any is used. An exclusive SQLite lock keeps a second writer out and dies with its process.
"""

import errno
import hashlib
import io
import json
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import tomli_w
from numpy.typing import NDArray
from pydantic import BaseModel

from villani.errors import InputError
from villani.statistics import Array
from villani.work import foreign
from villani.work.records import Cost

Settings = Mapping[str, Any]
_SCHEMA = """
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS units (
    key TEXT PRIMARY KEY, arrays BLOB NOT NULL, seconds REAL NOT NULL, peak_memory_bytes INTEGER NOT NULL,
    checksum TEXT NOT NULL
);
"""
_ROWS = "SELECT key, arrays, seconds, peak_memory_bytes, checksum FROM units"
_DISK = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}
_REMEDY = "delete that run folder and run the command again, or choose another --run"


class Ledger:
    """Finished units of work under a run directory; a context manager.

    Args:
        directory: made if missing; must be empty or a run.
        settings: whatever determines the rows, as flat JSON values; compared with what the run was begun with.

    Raises:
        InputError: the directory is something else, belongs to other settings, is damaged, leads elsewhere by a link,
            is in use by another process, or cannot be written.
    """

    def __init__(self, directory: Path, settings: Settings) -> None:
        self.directory = directory
        self._file = directory / "ledger.sqlite"
        with writing(directory):
            self._begun = _claim(directory)
            self._connection = sqlite3.connect(self._file, timeout=0.0, isolation_level=None)
        try:
            self._open(settings)
        except BaseException:
            self._connection.close()
            raise
        with writing(directory):
            _sweep(directory)

    def _open(self, settings: Settings) -> None:
        execute = self._connection.execute
        with self._reading():
            execute("PRAGMA trusted_schema=OFF")
            execute("PRAGMA locking_mode=EXCLUSIVE")
            try:
                execute("PRAGMA journal_mode=WAL")
                execute("PRAGMA synchronous=FULL")
                execute("BEGIN EXCLUSIVE")
            except sqlite3.OperationalError as error:
                if "locked" in str(error):
                    raise InputError(
                        f"run {self.directory} is being written by another process: wait, or choose --run"
                    ) from None
                raise
            kept = self._checked()
        _compare(self.directory, kept, settings)
        belonging = json.dumps(kept or dict(settings), sort_keys=True)
        self._digest = hashlib.sha256(belonging.encode()).digest()
        with writing(self.directory):
            for statement in _SCHEMA.split(";"):
                execute(statement)
            if not kept:
                rows = [(name, json.dumps(value, sort_keys=True)) for name, value in settings.items()]
                self._connection.executemany("INSERT INTO settings VALUES (?, ?)", rows)
            execute("COMMIT")
        with self._reading():
            for row in execute(_ROWS):
                self._check(*row)

    def _checked(self) -> Settings:
        """The settings that the run was begun with, of tables that are as villani makes them."""
        found = _tables(self._connection)
        if found and found != _MADE:
            older = "checksum" not in next((sql for kind, name, sql in found if name == "units"), "checksum")
            why = "its rows carry no checksum, as those of older versions" if older else "its tables are not villani's"
            raise InputError(f"{self._file}: {why}; {_REMEDY} (villani report still opens the old one)")
        rows = self._connection.execute("SELECT name, value FROM settings") if found else ()
        return {name: json.loads(value) for name, value in rows}

    def _check(self, key: Any, content: Any, seconds: Any, peak: Any, checksum: Any) -> None:
        whole = isinstance(key, str) and isinstance(content, bytes) and isinstance(peak, int)
        if not (whole and isinstance(seconds, float) and checksum == self._checksum(key, content, seconds, peak)):
            name = foreign.clipped(repr(key))
            raise InputError(f"{self._file}: the row {name} is damaged, or of other settings; {_REMEDY}")

    def _checksum(self, key: str, content: bytes, seconds: float, peak: int) -> str:
        """Of a row and of the settings that it belongs to."""
        digest = hashlib.sha256(self._digest)
        digest.update(f"{key!r} {seconds!r} {peak!r} ".encode())
        digest.update(content)
        return digest.hexdigest()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with foreign.reading(self._file, _REMEDY):
            try:
                yield
            except sqlite3.Error as error:
                code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
                if code in _DISK:
                    raise InputError(f"cannot write to {self._file}: {error}") from None
                raise ValueError(str(error)) from error

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        refused = isinstance(error, InputError) and self._begun is not None and not self.spent()[2]
        self._connection.close()
        if refused and self._begun is not None:
            _withdraw(self.directory, self._begun)

    def get(self, key: str) -> dict[str, Array] | None:
        """The arrays of a finished unit, or None."""
        with self._reading():  # checked again: an index of the database might lead to another row
            found = self._connection.execute(f"{_ROWS} WHERE key = ?", (key,)).fetchone()
            if found is None:
                return None
            self._check(*found)
            return _Row(self._file, key, foreign.arrays(found[1]))

    def put(self, key: str, arrays: Mapping[str, NDArray[Any]], *, seconds: float, peak_memory_bytes: int) -> None:
        """Keep a finished unit in one transaction; on return it survives a kill."""
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        row = (key, buffer.getvalue(), float(seconds), int(peak_memory_bytes))
        with writing(self.directory):
            self._connection.execute("INSERT INTO units VALUES (?, ?, ?, ?, ?)", (*row, self._checksum(*row)))

    def seconds_of(self, key: str) -> float:
        """What a finished unit took."""
        return float(self._connection.execute("SELECT seconds FROM units WHERE key = ?", (key,)).fetchone()[0])

    def spent(self, prefix: str = "") -> tuple[float, int, int]:
        """Seconds in all, largest peak memory in bytes, and number of units, under a key prefix."""
        seconds, peak, count = self._connection.execute(
            "SELECT COALESCE(SUM(seconds), 0), COALESCE(MAX(peak_memory_bytes), 0), COUNT(*) FROM units "
            "WHERE substr(key, 1, ?) = ?",
            (len(prefix), prefix),
        ).fetchone()
        return float(seconds), int(peak), int(count)


class _Row(dict[str, Array]):
    """The arrays of a unit; one that is not there is the file's fault."""

    def __init__(self, file: Path, key: str, arrays: Mapping[str, Array]) -> None:
        super().__init__(arrays)
        self._of = f"{file}: the row {foreign.clipped(repr(key))}"

    def __missing__(self, name: str) -> Array:
        raise InputError(f"{self._of} has no {name!r}; {_REMEDY}")


def _tables(connection: sqlite3.Connection) -> set[tuple[str, str, str]]:
    """What a database is made of: kinds, names and definitions."""
    return set(connection.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL"))


def _made() -> set[tuple[str, str, str]]:
    with closing(sqlite3.connect(":memory:")) as fresh:
        fresh.executescript(_SCHEMA)
        return _tables(fresh)


_MADE = _made()


def _claim(directory: Path) -> list[Path] | None:
    """Make the directory if need be; gives the folders that were made, the outermost last, or None where a run is."""
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    ledger = directory / "ledger.sqlite"
    if not ledger.exists() and any(directory.iterdir()):
        raise InputError(f"run directory {directory} holds other files and no ledger.sqlite: choose another --run")
    for folder, folders, files in os.walk(directory):
        for link in (Path(folder) / name for name in (*folders, *files)):
            if link.is_symlink():
                raise InputError(f"{link} is a link, and what is written there would lie elsewhere; {_REMEDY}")
    if ledger.exists() and not ledger.is_file():
        raise InputError(f"{ledger} is not a regular file: choose another --run")
    return None if ledger.exists() else made


def _withdraw(directory: Path, made: list[Path]) -> None:
    """Take back a run that was refused before any of it was finished, and the folders that were made for it."""
    for path in directory.iterdir():
        _remove(path)
    for path in made:
        with suppress(OSError):  # somebody else's by now
            path.rmdir()


_TEMPORARY = re.compile(r"\..+\.\d+(\.\d+)?|.+\.partial")  # names that writers give to what is not yet whole


def _sweep(directory: Path) -> None:
    """Remove what killed writers left half-written; the lock says that nobody else writes here."""
    for path in directory.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            _remove(path)
        elif path.is_dir() and not (path / "ledger.sqlite").exists():  # else a run with a lock of its own
            for inner in path.iterdir():
                if _TEMPORARY.fullmatch(inner.name):
                    _remove(inner)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _compare(directory: Path, kept: Settings, asked: Settings) -> None:
    for name in sorted(kept.keys() | asked.keys()) if kept else ():
        if kept.get(name) == json.loads(json.dumps(asked.get(name))):
            continue
        was = f"with {name} = {kept[name]!r}" if name in kept else f"without {name}"
        now = repr(asked[name]) if name in asked else "without it"
        raise InputError(f"run {directory} was begun {was}, now {now}: use the same settings or another --run")


def write_settings(directory: Path, settings: Settings) -> None:
    """`settings.toml`, for people; the ledger has its own copy of what determines its rows."""
    write_atomically(directory / "settings.toml", tomli_w.dumps(_without_none(settings)))


def _without_none(value: Any) -> Any:
    """TOML has no null: what is not given is left out."""
    if isinstance(value, Mapping):
        return {str(k): _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, list | tuple) else value


def write_records(directory: Path, records: BaseModel, costs: Mapping[int, Cost]) -> None:
    """`records.json`, the same bytes for the same work, and `cost.json`, which no two runs share."""
    write_atomically(directory / "records.json", _content(records))
    write_costs(directory, costs)


def has_records(directory: Path, records: BaseModel) -> bool:
    """Whether these are the records of a run, to the last byte."""
    try:
        return (directory / "records.json").read_bytes() == _content(records).encode()
    except OSError:
        return False


def _content(records: BaseModel) -> str:
    return records.model_dump_json(indent=1) + "\n"


def write_costs(directory: Path, costs: Mapping[int, Cost]) -> None:
    """`cost.json`, by the numbers of records."""
    cost = {str(index): entry.model_dump(mode="json") for index, entry in costs.items()}
    write_atomically(directory / "cost.json", json.dumps(cost, indent=1) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that readers see the old one or the new one, never half of it."""
    write_bytes(path, [text.encode("utf-8")])


def check_writable(path: Path) -> None:
    """Refuse to write where something else than a regular file is, or no folder to put one in.

    Raises:
        InputError: a folder, device, pipe or socket has that name, or a link leads to one; or there is no such folder.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder: give a file in it")
    if os.path.lexists(path) and not path.is_file():
        raise InputError(f"{path} is not a regular file: choose another")
    if not path.parent.is_dir():
        raise InputError(f"{path}: no such folder; make it, or choose another")


def write_bytes(path: Path, content: Iterable[bytes | memoryview]) -> None:
    """As `write_atomically`, bytes, piece by piece; into regular files only."""
    check_writable(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    with writing(path.parent):
        try:
            with temporary.open("wb") as file:
                file.writelines(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


_UNWRITABLE = {
    errno.ENOSPC: "the disk is full: free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up: free some space and run the same command again",
    errno.EFBIG: "the file grew past the size limit: raise it and run the same command again",
    errno.EROFS: "the file system is read-only: choose another --run",
    errno.EACCES: "permission denied: choose another --run",
    errno.EPERM: "permission denied: choose another --run",
    errno.ENOENT: "no such folder can be made there: choose another --run",
    errno.ENOTDIR: "a part of the path is a file: choose another --run",
    errno.EEXIST: "a file of that name is in the way: choose another --run",
    errno.EISDIR: "a folder of that name is in the way: choose another --run",
    errno.ENAMETOOLONG: "the name is too long: choose another --run",
    errno.ELOOP: "links lead in a circle: choose another --run",
}


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Turn a full or read-only disk into one line; what was kept before stays."""
    try:
        yield
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        raise InputError(f"cannot write to {directory}: {_UNWRITABLE[error.errno]}") from None
    except sqlite3.DatabaseError as error:
        raise InputError(f"cannot write to {directory / 'ledger.sqlite'}: {error}; finished groups are kept") from None
