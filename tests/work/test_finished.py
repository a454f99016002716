"""A run that somebody else may have made is read as it stands, and nothing in its folder changes."""

import shutil
import sqlite3

import numpy as np
import pytest

from villani.errors import InputError
from villani.work.finished import Finished
from villani.work.ledger import Ledger


@pytest.fixture
def run(tmp_path):
    with Ledger(tmp_path / "it's a run?#1", {"seed": 3}) as ledger:
        for group in range(3):
            ledger.put(f"group/{group}", {"loss": np.array([float(group)])}, seconds=0.5, peak_memory_bytes=7)
    return tmp_path / "it's a run?#1"


def content(run):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.iterdir()}


def test_rows_are_read_and_nothing_is_written(run):
    before = content(run)
    run.chmod(0o555)
    with Finished(run) as ledger:
        assert [ledger.get(f"group/{group}")["loss"][0] for group in range(3)] == [0, 1, 2]
        assert ledger.get("group/3") is None
        assert ledger.settings == {"seed": 3}
        with pytest.raises(InputError, match="readonly"):
            ledger.put("group/3", {"loss": np.zeros(1)}, seconds=0.0, peak_memory_bytes=0)
    run.chmod(0o755)
    assert content(run) == before


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("UPDATE units SET arrays = x'00' WHERE key = 'group/1'", "damaged, or of other settings"),
        ("UPDATE settings SET value = '4'", "damaged, or of other settings"),
        ("CREATE TABLE more (x)", "its tables are not villani's"),
    ],
)
def test_what_was_changed_is_refused(run, change, reason):
    with sqlite3.connect(run / "ledger.sqlite") as connection:
        connection.execute(change)
    connection.close()
    with pytest.raises(InputError, match=reason) as caught, Finished(run) as ledger:
        ledger.get("group/1")
    assert "\n" not in str(caught.value)


def test_a_run_that_is_written_is_refused(run):
    with Ledger(run, {"seed": 3}) as writer:
        writer.put("group/3", {"loss": np.zeros(1)}, seconds=0.0, peak_memory_bytes=0)
        with pytest.raises(InputError, match="is being written, or was interrupted"):
            Finished(run)
    with Finished(run) as ledger:
        assert ledger.get("group/3") is not None


@pytest.mark.parametrize("make", ["link", "folder", "nothing", "text", "empty"])
def test_what_is_no_ledger_is_refused(run, tmp_path, make):
    other = tmp_path / "other"
    other.mkdir()
    place = other / "ledger.sqlite"
    if make == "link":
        place.symlink_to(run / "ledger.sqlite")
    elif make == "folder":
        shutil.copytree(run, place)
    elif make == "text":
        place.write_text("no database at all, and long enough to be looked at" * 9)
    elif make == "empty":
        place.touch()
        with Finished(other) as ledger, pytest.raises(InputError):
            ledger.get("group/0")
        return
    with pytest.raises(InputError, match=r"ledger\.sqlite"):
        Finished(other)
