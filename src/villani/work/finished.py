"""The finished units of a run that somebody else may have made: read, and never written."""

import hashlib
import json
import sqlite3
from pathlib import Path
from urllib.parse import quote

from villani.work import foreign
from villani.work.ledger import Ledger, Settings

_REMEDY = "run its command again"


class Finished(Ledger):
    """The ledger of a run as its last writer left it; a context manager.

    Nothing is locked, made or swept up in the folder. Rows are checked as `Ledger` checks them.

    Args:
        directory: of the run.

    Attributes:
        settings: that the run was begun with.

    Raises:
        InputError: no ledger there, or a link; one that is damaged, of an older version, or that somebody still writes.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._begun = None
        self._file = directory / "ledger.sqlite"
        with foreign.reading(self._file, _REMEDY):
            if self._file.is_symlink() or not self._file.is_file():
                raise ValueError("no such file")
            log = self._file.with_name(f"{self._file.name}-wal")
            if log.exists() and log.stat().st_size:
                raise ValueError("the run is being written, or was interrupted")
            where = f"file:{quote(str(self._file.resolve()))}?mode=ro&immutable=1"
            self._connection = sqlite3.connect(where, uri=True, isolation_level=None)
        try:
            with self._reading():
                self._connection.execute("PRAGMA trusted_schema=OFF")
                self.settings: Settings = self._checked()
        except BaseException:
            self._connection.close()
            raise
        self._digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).digest()

    def __enter__(self) -> "Finished":
        return self
