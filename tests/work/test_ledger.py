import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from villani.errors import InputError
from villani.work.ledger import Ledger, write_atomically, write_settings, writing

ARRAYS = {"a": np.arange(3.0), "b": np.eye(2)}


def put(ledger, key, arrays=ARRAYS):
    ledger.put(key, arrays, seconds=0.5, peak_memory_bytes=7)


def test_units_come_back_as_they_were(tmp_path):
    with Ledger(tmp_path, {"seed": 0}) as ledger:
        assert ledger.get("group/0") is None
        put(ledger, "group/0")
        put(ledger, "ray/group/0", {"a": np.array([9.0])})
    with Ledger(tmp_path, {"seed": 0}) as ledger:
        assert all(np.array_equal(ledger.get("group/0")[name], ARRAYS[name]) for name in ARRAYS)
        assert ledger.get("ray/group/0")["a"] == 9.0
        assert ledger.spent() == (1.0, 7, 2)
        assert ledger.spent("ray/") == (0.5, 7, 1)


def test_a_run_of_other_settings_is_refused_and_named(tmp_path):
    with Ledger(tmp_path, {"seed": 0, "model": "x", "tokenizer": None}):
        pass
    with pytest.raises(InputError, match=r"begun with seed = 0, now 1: use the same settings or another --run"):
        Ledger(tmp_path, {"seed": 1, "model": "x", "tokenizer": None})
    with pytest.raises(InputError, match="begun with seed = 0, now without it"):
        Ledger(tmp_path, {"model": "x", "tokenizer": None})
    with Ledger(tmp_path, {"seed": 0, "model": "x", "tokenizer": None}) as ledger:
        assert ledger.get("group/0") is None


def test_a_second_writer_is_refused_while_the_first_lives(tmp_path):
    with Ledger(tmp_path, {}) as ledger:
        put(ledger, "group/0")
        with pytest.raises(InputError, match="being written by another process"):
            Ledger(tmp_path, {})
    with Ledger(tmp_path, {}) as ledger:
        assert ledger.get("group/0")


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("…")
    with pytest.raises(InputError, match=r"holds other files and no ledger.sqlite"):
        Ledger(tmp_path, {})
    with pytest.raises(InputError, match="a file"):
        Ledger(tmp_path / "thesis.tex", {})
    with pytest.raises(InputError, match="a file"):
        Ledger(tmp_path / "thesis.tex" / "run", {})


def test_a_damaged_ledger_is_refused(tmp_path):
    (tmp_path / "ledger.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(InputError, match=r"ledger.sqlite: file is not a database"):
        Ledger(tmp_path, {})


def test_a_kill_loses_no_finished_unit(tmp_path):
    """SIGKILL between two units: the first is there, the lock is gone."""
    program = """
        import os, signal, sys
        from pathlib import Path
        import numpy as np
        from villani.work.ledger import Ledger
        ledger = Ledger(Path(sys.argv[1]), {})
        ledger.put("group/0", {"a": np.arange(3.0)}, seconds=1.0, peak_memory_bytes=1)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    with Ledger(tmp_path, {}) as ledger:
        assert np.array_equal(ledger.get("group/0")["a"], np.arange(3.0))


def test_a_full_disk_keeps_what_was_finished(tmp_path):
    """A file size limit stands in for a full disk; SQLite and plain files both say so in one line."""
    program = """
        import sys
        from pathlib import Path
        import numpy as np
        from villani.errors import InputError
        from villani.work.ledger import Ledger, write_atomically
        run = Path(sys.argv[1])
        ledger = Ledger(run, {})
        try:
            for index in range(100):
                noise = np.random.default_rng(index).random(10_000)
                ledger.put(f"group/{index}", {"a": noise}, seconds=1.0, peak_memory_bytes=1)
        except InputError as error:
            print(index, error)
        try:
            write_atomically(run / "records.json", "x" * 5_000_000)
        except InputError as error:
            print(error, [p.name for p in run.iterdir() if "records" in p.name])
    """

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)],
        check=True, capture_output=True, text=True, preexec_fn=limit,
    )  # fmt: skip
    first, second = done.stdout.splitlines()
    count = int(first.split()[0])
    assert "cannot write to" in first
    assert "finished groups are kept" in first
    assert second.endswith("[]")
    assert "cannot write to" in second
    assert 0 < count < 100
    with Ledger(tmp_path, {}) as ledger:
        assert ledger.get(f"group/{count - 1}") is not None
        assert ledger.get(f"group/{count}") is None


def test_os_errors_become_one_line(tmp_path):
    with pytest.raises(InputError, match="read-only"), writing(tmp_path):
        raise OSError(30, "Read-only file system")
    with pytest.raises(OSError, match="strange"), writing(tmp_path):
        raise OSError(5, "strange")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="permission denied"):
        Ledger(tmp_path / "run", {})


def test_settings_are_toml(tmp_path):
    import tomllib

    values = {"model": 'a "b" \\ λ', "weight_decay": [0.1, 1e-5], "finite": False, "groups": 3, "tokenizer": None}
    write_settings(tmp_path, values)
    kept = tomllib.loads((tmp_path / "settings.toml").read_text())
    assert kept == {name: value for name, value in values.items() if value is not None}


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "records.json"
    write_atomically(path, "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(InputError, match="disk is full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["records.json"]


def test_ledger_holds_no_pickle(tmp_path):
    with Ledger(tmp_path, {}) as ledger:
        with pytest.raises(ValueError, match="allow_pickle"):
            put(ledger, "x", {"a": np.array([{"b": 1}], dtype=object)})
        assert ledger.get("x") is None
    rows = sqlite3.connect(tmp_path / "ledger.sqlite").execute("SELECT COUNT(*) FROM units").fetchone()
    assert json.dumps(rows) == "[0]"


def damaged(folder, *statements):
    with sqlite3.connect(folder / "ledger.sqlite") as connection:
        for statement in statements:
            connection.execute(*statement if isinstance(statement, tuple) else (statement,))
    connection.close()


def begun(folder, settings=None):
    with Ledger(folder, {"seed": 0} if settings is None else settings) as ledger:
        put(ledger, "group/0")
        put(ledger, "group/1")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE units SET arrays = (SELECT arrays || x'00' FROM units) WHERE key = 'group/1'",
        "UPDATE units SET arrays = x''",
        "UPDATE units SET arrays = 'text'",
        "UPDATE units SET seconds = 1e300",
        "UPDATE units SET seconds = 'long'",
        "UPDATE units SET peak_memory_bytes = -1",
        "UPDATE units SET peak_memory_bytes = 1.5",
        "UPDATE units SET key = 'group/2' WHERE key = 'group/1'",
        "UPDATE units SET key = 7 WHERE key = 'group/1'",
        "UPDATE units SET checksum = ''",
        "UPDATE units SET checksum = (SELECT checksum FROM units WHERE key = 'group/0') WHERE key = 'group/1'",
        "UPDATE settings SET value = '{'",
        "UPDATE settings SET value = x'ff'",
        "ALTER TABLE units RENAME COLUMN arrays TO content",
        "ALTER TABLE units ADD COLUMN more TEXT",
        "DROP TABLE settings",
        "CREATE TRIGGER t AFTER INSERT ON units BEGIN DELETE FROM units; END",
        "CREATE TABLE other (x)",
    ],
)
def test_a_changed_ledger_is_refused_in_one_line(tmp_path, statement):
    begun(tmp_path)
    damaged(tmp_path, statement)
    with pytest.raises(InputError) as caught:
        Ledger(tmp_path, {"seed": 0})
    assert str(tmp_path / "ledger.sqlite") in str(caught.value)
    assert "delete that run folder" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rows_of_other_settings_are_never_taken(tmp_path):
    """Whoever deletes or rewrites the settings does not thereby own the rows."""
    begun(tmp_path)
    damaged(tmp_path, "DELETE FROM settings")
    with pytest.raises(InputError, match="of other settings"):
        Ledger(tmp_path, {"seed": 1})
    begun(tmp_path / "b", {"seed": 0})
    damaged(tmp_path / "b", ("UPDATE settings SET value = ? WHERE name = 'seed'", ("1",)))
    with pytest.raises(InputError, match="of other settings"):
        Ledger(tmp_path / "b", {"seed": 1})
    begun(tmp_path / "c", {"seed": 0})
    damaged(tmp_path / "c", "DELETE FROM settings")
    with Ledger(tmp_path / "c", {"seed": 0}) as ledger:  # nothing is lost with the settings that the rows are of
        assert ledger.spent()[2] == 2


def test_a_ledger_without_checksums_is_refused(tmp_path):
    old = (
        "CREATE TABLE units (key TEXT PRIMARY KEY, arrays BLOB NOT NULL, seconds REAL NOT NULL, "
        "peak_memory_bytes INTEGER NOT NULL)"
    )
    damaged(tmp_path, "CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL)", old)
    with pytest.raises(InputError, match="carry no checksum, as those of older versions"):
        Ledger(tmp_path, {})


def test_an_array_that_a_row_lacks_is_told(tmp_path):
    begun(tmp_path)
    with Ledger(tmp_path, {"seed": 0}) as ledger, pytest.raises(InputError, match=r"'group/0' has no 'traces'"):
        ledger.get("group/0")["traces"]


def test_links_in_a_run_folder_are_refused(tmp_path):
    """They would lead what is written out of it."""
    elsewhere = tmp_path / "elsewhere"
    begun(elsewhere)
    before = (elsewhere / "ledger.sqlite").read_bytes()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "ledger.sqlite").symlink_to(elsewhere / "ledger.sqlite")
    with pytest.raises(InputError, match="is a link"):
        Ledger(tmp_path / "run", {"seed": 0})
    begun(tmp_path / "r")
    (tmp_path / "r" / "state").symlink_to(elsewhere)
    with pytest.raises(InputError, match="is a link"):
        Ledger(tmp_path / "r", {"seed": 0})
    assert (elsewhere / "ledger.sqlite").read_bytes() == before


def refused(directory, *, unit=False):
    """Refuse work in a run, before or after a unit of it."""
    with Ledger(directory, {"x": 1}) as ledger:
        (directory / "settings.toml").write_text("")
        (directory / "state").mkdir(exist_ok=True)
        (directory / "state" / "file").write_text("")
        if unit:
            put(ledger, "u")
        raise InputError("no")


def test_a_run_that_is_refused_before_anything_is_finished_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match="no"):
        refused(tmp_path / "a" / "b" / "run")
    assert not (tmp_path / "a").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no"):
        refused(tmp_path / "empty")
    assert not list((tmp_path / "empty").iterdir())


def test_a_run_with_finished_units_or_an_interruption_stays(tmp_path):
    for unit in (True, False):  # refused after one, and then again when it is resumed
        with pytest.raises(InputError, match="no"):
            refused(tmp_path / "run", unit=unit)
    with Ledger(tmp_path / "run", {"x": 1}) as ledger:
        assert ledger.get("u") is not None
    with pytest.raises(KeyboardInterrupt), Ledger(tmp_path / "stopped", {"x": 1}):
        raise KeyboardInterrupt
    assert (tmp_path / "stopped" / "ledger.sqlite").exists()


def test_what_killed_writers_left_is_swept_and_nothing_else(tmp_path):
    run = tmp_path / "run"
    with Ledger(run, {"x": 1}):
        pass
    (tmp_path / "outside").write_text("kept")
    inner = Ledger(run / "certificates", {"y": 1})  # in use by somebody else
    (run / "models").mkdir()
    stale = [run / ".records.json.123.456", run / ".settings.toml.7.8", run / "models" / ".sgd-0.1-0.safetensors.99"]
    keep = [run / "records.json", run / "models" / "sgd-0.1-0.safetensors", run / "certificates" / ".records.json.1.2"]
    for path in stale + keep:
        path.write_text("x")
    (run / "model.partial").mkdir()
    (run / "model.partial" / "config.json").write_text("x")
    with Ledger(run, {"x": 1}):
        assert not any(path.exists() for path in [*stale, run / "model.partial"])
        assert all(path.exists() for path in [*keep, tmp_path / "outside"])
    inner.__exit__(None, None, None)


@pytest.mark.parametrize("kind", ["device", "pipe", "folder", "link to a device", "link to nothing"])
def test_only_regular_files_are_written_over(tmp_path, kind):
    path = tmp_path / "page.html"
    make = {
        "device": lambda: None, "pipe": lambda: os.mkfifo(path), "folder": path.mkdir,
        "link to a device": lambda: path.symlink_to("/dev/null"), "link to nothing": lambda: path.symlink_to("nothing"),
    }  # fmt: skip
    make[kind]()
    target = Path("/dev/full") if kind == "device" else path
    before = os.lstat(target).st_mode
    with pytest.raises(InputError, match=r"is not a regular file|is a folder"):
        write_atomically(target, "text")
    assert os.lstat(target).st_mode == before
