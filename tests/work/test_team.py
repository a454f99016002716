"""Several processes: the same bytes whatever their number, errors told once, kills that lose only units in flight."""

import os
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed

from villani import cli
from villani.commands.measure.settings import MeasureSettings
from villani.commands.running import execute
from villani.commands.subject import streaming
from villani.errors import InputError, LostProcess
from villani.measurement import measure as measuring
from villani.work.ledger import Ledger
from villani.work.team import alone, join
from villani.work.work import Work

SETTINGS = MeasureSettings(
    model="builtin:tiny?layers=1&width=16", groups=7, sequences=1, block=32, trace="gauss-newton", threads=1
)  # fmt: skip
SECONDS = 240.0  # what takes longer hangs


@pytest.fixture(autouse=True)
def one_thread():
    """Forking is only safe without a thread pool."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def team_of(tmp_path):
    """Fork processes that believe torchrun started them; gives their exit codes and what each wrote on stderr."""

    def run(size, work):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        errors = [tmp_path / f"stderr-{port}-{rank}" for rank in range(size)]
        pids = [_forked(rank, size, port, work, errors[rank]) for rank in range(size)]
        codes: dict[int, int] = {}
        deadline = time.monotonic() + SECONDS
        while len(codes) < size:
            for rank, pid in enumerate(pids):
                if rank not in codes and (ended := os.waitpid(pid, os.WNOHANG))[0]:
                    codes[rank] = os.waitstatus_to_exitcode(ended[1])
            if time.monotonic() > deadline:
                for rank in range(size):
                    if rank not in codes:
                        os.kill(pids[rank], signal.SIGKILL)
                pytest.fail(f"a process hangs: {codes}, {[path.read_text() for path in errors]}")
            time.sleep(0.01)
        return [codes[rank] for rank in range(size)], [path.read_text() for path in errors]

    return run


def _forked(rank, size, port, work, errors: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        os.environ |= {
            "TORCHELASTIC_RUN_ID": "test", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
        }  # fmt: skip
        sys.stderr = errors.open("w", buffering=1)
        work()
        code = 0
    except InputError as error:
        sys.stderr.write(str(error))
        code = 2
    except LostProcess as error:
        sys.stderr.write(str(error))
        code = 1
    except SystemExit as stopped:
        code = stopped.code
    finally:
        sys.stderr.flush()
        os._exit(code)


def row(value):
    return {"value": np.array([value]), "names": np.array(["θ", "β"])}


def measure_together(run):
    with join() as team:
        execute(SETTINGS, run, team=team)


def bytes_of(run):
    return (run / "records.json").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What one process records."""
    run = tmp_path_factory.mktemp("whole") / "run"
    execute(SETTINGS, run)
    return bytes_of(run)


def test_one_process_touches_no_process_group(tmp_path):
    with join() as team:
        assert (team.rank, team.size, team.main) == (0, 1, True)
        assert not distributed.is_initialized()
        assert team.broadcast({"a": (1, 0.1)}) == {"a": [1, 0.1]}
        team.agree({"threads": 1})
    alone("villani demo")


def test_rows_come_in_order_to_everybody_and_into_one_ledger(team_of, tmp_path):
    units = {f"unit/{i}": lambda i=i: row(i / 3) for i in range(7)}
    with Ledger(tmp_path / "run", {}) as ledger:
        ledger.put("unit/4", row(-1.0), seconds=1.0, peak_memory_bytes=1)

    def work():
        with join() as team:
            ledger = Ledger(tmp_path / "run", {}) if team.main else None
            calls = []
            rows = team.map(units, ledger, lambda *call: calls.append(call), lambda: 5 + team.rank)
            assert [float(r["value"][0]) for r in rows] == [0 / 3, 1 / 3, 2 / 3, 3 / 3, -1.0, 5 / 3, 6 / 3]
            assert rows[0]["names"].tolist() == ["θ", "β"]
            assert calls == [(i + 1, 7) for i in range(7)]
            assert team.broadcast(team.rank if team.main else "mine") == 0
            team.agree({"threads": 1})

    assert team_of(3, work) == ([0, 0, 0], ["", "", ""])
    with Ledger(tmp_path / "run", {}) as ledger:
        assert ledger.spent()[1:] == (7, 7)
        assert float(ledger.get("unit/6")["value"][0]) == 2.0


def test_a_failed_unit_is_told_by_all_and_the_others_of_its_round_are_kept(team_of, tmp_path):
    def fail():
        raise InputError("unit 1 is bad")

    def work():
        with join() as team:
            ledger = Ledger(tmp_path / "run", {}) if team.main else None
            team.map({"0": lambda: row(0.0), "1": fail, "2": lambda: row(2.0), "3": fail}, ledger)

    assert team_of(3, work) == ([2, 2, 2], ["unit 1 is bad"] * 3)
    with Ledger(tmp_path / "run", {}) as ledger:
        assert [ledger.get(key) is not None for key in "0123"] == [True, False, True, False]


def test_processes_are_asked_the_same(team_of, tmp_path):
    """Also of what no unit depends on: units are dealt out by their place in the list of those asked for."""

    def work():
        with join() as team, Work(tmp_path / "run", team=team) as opened:
            opened.open("toy", "m", {"a": 1}, {}, named={"a": 1, "grid": team.rank})

    line = "process 1 has grid = 1, process 0 has 0: start them alike"
    codes, errors = team_of(2, work)
    assert codes == [2, 2]
    assert line in errors


@pytest.mark.parametrize("guilty", [0, 1])
def test_an_error_of_one_process_anywhere_stops_all(team_of, guilty):
    """Before, between and after units: the others are told whenever they next listen."""

    def work(place):
        with join() as team:
            for step in range(3):
                if step == place and team.rank == guilty:
                    raise InputError(f"process {guilty} failed at {step}")
                if step < 2:
                    team.map({f"{step}/{i}": lambda: row(0.0) for i in range(3)})

    for place in range(3):
        codes, errors = team_of(2, lambda place=place: work(place))
        assert codes == [2, 2]
        assert errors == [f"process {guilty} failed at {place}"] * 2


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (({"threads": 1}, {"threads": 2}), "threads = 2, process 0 has 1"),
        (({}, {"streamed": True}), "streamed = True, process 0 has None"),
        (({"streamed": True}, {}), "streamed = None, process 0 has True"),
    ],
)
def test_processes_that_differ_are_refused(team_of, facts, words):
    def work():
        with join() as team:
            team.agree({"seed": 0} | facts[team.rank])

    assert team_of(2, work) == ([2, 2], [f"process 1 has {words}: start them alike"] * 2)


def test_process_0_decides_for_all_whether_weights_are_streamed(team_of, tmp_path):
    """The others have far less memory, and do as it does."""

    def work():
        with join() as team, Work(team=team) as shared:
            if not team.main:
                os.environ["VILLANI_MEMORY_GIB"] = "0.0001"
            decide = streaming(SETTINGS, 5.0, "cpu", shared)
            (tmp_path / str(team.rank)).write_text(f"{decide(1e3)} {decide(1e18)} {team.here}")

    assert team_of(2, work)[0] == [0, 0]
    assert [(tmp_path / str(rank)).read_text() for rank in (0, 1)] == ["False True 2"] * 2


@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_process_is_noticed_and_the_rest_is_resumed(team_of, tmp_path, whole, lost, monkeypatch):
    """SIGKILL after two rounds; then the same settings with one process, and with three."""
    run = tmp_path / "run"
    statistics, groups = measuring.group_statistics, set()

    def killed_in_the_third_round(objective, group, *rest):
        groups.add(group)
        if len(groups) == 3 and os.environ["RANK"] == str(lost):
            os.kill(os.getpid(), signal.SIGKILL)
        return statistics(objective, group, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(measuring, "group_statistics", killed_in_the_third_round)
        codes, errors = team_of(2, lambda: measure_together(run))
    assert codes == ([-9, 1] if lost == 0 else [1, -9])
    assert errors[1 - lost] == (
        "another process of this run was lost; what was finished is kept, and the same command resumes"
    )
    assert not (run / "records.json").exists()
    with closing(sqlite3.connect(run / "ledger.sqlite")) as ledger:
        assert ledger.execute("SELECT COUNT(*) FROM units").fetchone() == (4,)
    if lost:
        execute(SETTINGS, run)
    else:
        assert team_of(3, lambda: measure_together(run))[0] == [0, 0, 0]
    assert bytes_of(run) == whole


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["measure", "./nowhere"], "no such folder"),
        (["measure", "builtin:tiny", "--groups", "2"], "groups=2"),
        (["measure", "builtin:tiny", "--groups", "many"], "valid integer"),
        (["measure", "builtin:tiny", "--device", "cuda"], "2 processes and 0 GPUs"),
        (["measure", "builtin:tiny", "--device", "cuda:1"], "give --device cuda"),
        (["demo"], "run it without torchrun"),
    ],
)
def test_bad_input_is_told_in_one_line_by_one_process(team_of, monkeypatch, words, line):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(sys, "argv", ["villani", *words])
    codes, errors = team_of(2, cli.main)
    assert codes == [2, 2]
    assert [text.count("villani: ") for text in errors] == [1, 0]
    assert line in errors[0]
    assert "Traceback" not in "".join(errors)


def test_a_second_team_on_the_same_run_is_refused(team_of, tmp_path, monkeypatch):
    run = tmp_path / "run"
    words = ["measure", SETTINGS.model, "--groups", "3", "--sequences", "1", "--block", "16", "--run", str(run)]
    monkeypatch.setattr(sys, "argv", ["villani", *words])
    holder = os.fork()
    if holder == 0:
        with Ledger(run, {}):
            (tmp_path / "held").touch()
            time.sleep(SECONDS)
        os._exit(0)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    codes, errors = team_of(2, cli.main)
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    assert codes == [2, 2]
    assert [text.count("is being written by another process") for text in errors] == [1, 0]


@pytest.mark.thorough
def test_torchrun_as_a_user_types_it(tmp_path, whole):
    """A process is killed amid the work, torchrun starts all of them again, and the record is the same."""
    run = tmp_path / "run"
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1", "-m", "--"]
    words += [*shlex.split(SETTINGS.command()), "--run", str(run), "--json"]
    child = subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + SECONDS
    while not (run / "ledger.sqlite").exists():
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    pids = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    os.kill(int(pids[-1]), signal.SIGKILL)
    out, err = child.communicate(timeout=SECONDS)
    assert child.returncode == 0, err
    assert out.count("\n") == 1
    assert out.startswith("{")
    assert bytes_of(run) == whole
    assert "src/villani/" not in err  # no traceback of ours


@pytest.mark.thorough
def test_two_nodes_give_the_same_bytes(tmp_path, whole):
    """Each is a torchrun of its own with a process group that meets the other's over TCP; node 0 alone writes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    nodes = []
    for node in range(2):
        folder = tmp_path / f"node-{node}"
        folder.mkdir()
        words = ["-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(node), "--nproc-per-node", "1"]
        words += ["--master-addr", "localhost", "--master-port", str(port), "-m", "--"]
        words += [*shlex.split(SETTINGS.command()), "--run", "run", "--json"]
        nodes.append(
            subprocess.Popen(
                [sys.executable, *words], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        )  # fmt: skip
    ends = [node.communicate(timeout=SECONDS) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], ends
    assert [out.count("\n") for out, _ in ends] == [1, 0]
    assert bytes_of(tmp_path / "node-0" / "run") == whole
    assert not (tmp_path / "node-1" / "run").exists()
