"""What work takes is held against what there is; limits are read from where the system keeps them."""

import math
import os
import resource
import subprocess
import sys

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from villani.errors import InputError
from villani.work import budget
from villani.work.budget import Needs, Shape, agree, available_disk, available_memory, hold, size

GIB = 2.0**30


def test_memory_is_what_the_system_says(monkeypatch):
    for name in ("VILLANI_MEMORY_GIB", "VILLANI_DISK_GIB"):
        monkeypatch.delenv(name, raising=False)
    have, source = available_memory()
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < have <= total
    assert source


def test_a_limit_on_addresses_is_seen():
    code = "from villani.work.budget import available_memory; print(*available_memory(), sep='|')"
    limit = 3 * 2**30
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )  # fmt: skip
    have, source = done.stdout.strip().split("|")
    assert source == "left under ulimit -v"
    assert 0.5 * limit < float(have) < limit


def test_a_stated_limit_is_held(monkeypatch, tmp_path):
    monkeypatch.setenv("VILLANI_MEMORY_GIB", "100000")
    monkeypatch.setenv("VILLANI_DISK_GIB", "1")
    with pytest.raises(InputError, match=r"^w would keep about 34 GiB on disk, and the limit is 1 GiB: c, or set VILL"):
        hold(Needs(disk=34 * GIB), tmp_path, what="w", instead="c")
    hold(Needs(disk=0.5 * GIB), what="w", instead="c")
    monkeypatch.setenv("VILLANI_MEMORY_GIB", "0.001")
    with pytest.raises(
        InputError, match=r"w would take about 1 GiB of memory, and .* are left of VILLANI_MEMORY_GIB: c"
    ):
        hold(Needs(memory=GIB), what="w", instead="c")
    monkeypatch.setenv("VILLANI_MEMORY_GIB", "much")
    with pytest.raises(InputError, match="VILLANI_MEMORY_GIB='much': expected a number of GiB > 0"):
        hold(Needs(), what="w", instead="c")


def test_disk_is_that_of_the_folder_to_be(tmp_path, monkeypatch):
    monkeypatch.setenv("VILLANI_DISK_GIB", "1e9")
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    assert available_disk(tmp_path / "a" / "b") == pytest.approx(free, rel=0.2)
    with pytest.raises(InputError, match="choose another --run"):
        hold(Needs(disk=1e18), tmp_path / "a" / "b", what="w", instead="c")


def test_sizes_are_those_of_the_model():
    config = GPT2Config(n_layer=2, n_embd=16, n_head=4, vocab_size=50, n_positions=32)
    model = GPT2LMHeadModel(config)
    shape = Shape.of(model)
    # tied head; per layer 12 w² + 13 w; final norm 2 w
    assert shape.parameters == 50 * 16 + 32 * 16 + 2 * (12 * 16**2 + 13 * 16) + 2 * 16
    assert (shape.layers, shape.width, shape.heads, shape.vocabulary, shape.itemsize) == (2, 16, 4, 50, 4)


def test_work_grows_as_it_should():
    shape = Shape(parameters=124_000_000, layers=12, width=768, heads=12, vocabulary=50257)
    one = shape.work(1e6, at_once=512, block=128, vectors=4, kept=68)
    two = shape.work(2e6, at_once=512, block=128, vectors=5, kept=68)
    theta = 4 * 124e6
    assert two.memory - one.memory == pytest.approx(theta)
    assert one.disk == pytest.approx(68 * theta, rel=0.01)  # 34 GB of cells
    assert one.memory > 4 * theta + 4 * 512 * 50257
    assert 1 < two.seconds / one.seconds < 4  # a timing: about 2


def test_a_graph_that_is_differentiated_again_takes_more():
    shape = Shape(parameters=124_000_000, layers=12, width=768, heads=12, vocabulary=50257)
    one, three = (shape.work(1e6, at_once=512, block=128, vectors=4, graphs=graphs) for graphs in (1.0, 3.0))
    assert three.memory - one.memory == pytest.approx(2 * shape.activations(512, 128))
    assert three.disk == one.disk


def test_processes_share_the_time_but_not_the_memory(monkeypatch):
    needs = Needs(
        memory=GIB, disk=GIB, seconds=700.0, stages={"a": 4.0, "b": 2.0, "c": 1.0, "d": None}, alone=frozenset({"b"})
    )
    assert needs.among(1).sizes() == pytest.approx(needs.sizes(), nan_ok=True)
    shared = needs.among(4, here=2)
    assert shared.sizes() == pytest.approx({"a": 100.0, "b": 200.0, "c": 25.0, "d": None})
    assert (shared.seconds, shared.memory, shared.disk) == (pytest.approx(325.0), GIB, GIB)
    assert Needs(seconds=8.0).among(4).seconds == 2.0
    assert Needs().among(4).seconds is None
    monkeypatch.setattr(budget, "resident", lambda: GIB)
    assert needs.words.startswith("12 min, 2 GiB of memory, 1 GiB")
    assert shared.words.startswith("5.4 min, 4 GiB of memory of 2 processes, 1 GiB")
    assert not shared.large
    assert needs.among(4, here=4).large


def test_what_is_free_is_shared_by_processes(monkeypatch, tmp_path):
    monkeypatch.delenv("VILLANI_MEMORY_GIB", raising=False)
    whole, source = available_memory()
    assert available_memory(processes=4) == (pytest.approx(whole / 4, rel=0.2), f"{source} for each of 4 processes")
    needs = Needs(memory=0.5 * whole)
    hold(needs, tmp_path, what="w", instead="c")
    with pytest.raises(InputError, match=r"are .* for each of 4 processes: c"):
        hold(needs.among(4, here=4), tmp_path, what="w", instead="c")
    hold(needs.among(4, here=1), tmp_path, what="w", instead="c")  # one on each of four machines


def test_time_is_that_of_a_forward_pass_where_one_was_timed():
    """100 ms for 50 tokens, 1.6 ms of them dispatch of two layers: a gradient takes 3.2 times the rest a token."""
    shape = Shape(parameters=10**6, layers=2, width=8, heads=2, vocabulary=50, forward=(50, 0.1))
    dispatch = 2 * 60 * 40e-6
    expected = 1000 * 3.2 * (0.1 - dispatch / 3) / 50 + 1000 / 250 * dispatch
    assert shape.seconds(1000, 250) == pytest.approx(expected)
    assert shape.work(1000, at_once=250, block=50, vectors=1).seconds == pytest.approx(expected)
    idle = Shape(parameters=10**6, layers=2, width=8, heads=2, vocabulary=50, forward=(50, 1e-6))
    assert idle.seconds(1000, 250) == pytest.approx(4 * dispatch)


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (10.0, "less than a MiB"),
        (3 * 2.0**20, "3 MiB"),
        (1.5 * GIB, "1.5 GiB"),
        (2.0**41, "2 TiB"),
        (1e24, "9.1e+11 TiB"),
    ],
)
def test_bytes_for_people(count, words):
    assert size(count) == words
    assert math.isfinite(count)


@pytest.mark.parametrize("needs", [Needs(seconds=3601.0), Needs(memory=5.1 * 2**30), Needs(disk=5.1 * 2**30)])
def test_long_and_large_work_is_agreed_to_or_refused(needs):
    asked = []

    def answering(answer):
        return lambda question: asked.append(question) or answer

    agree(needs, answering(True), what="it", instead="do less")
    assert asked[0].startswith("it would take roughly ")
    assert asked[0].endswith(". Begin?")
    with pytest.raises(InputError, match="give yes=True to begin all the same, or do less"):
        agree(needs, answering(None), what="it", instead="do less")
    with pytest.raises(InputError, match="was not agreed to: nothing was begun"):
        agree(needs, answering(False), what="it", instead="do less")


def test_short_and_small_work_is_begun_unasked():
    agree(Needs(seconds=3599.0, memory=2.0**30, disk=2.0**30), pytest.fail, what="it", instead="")
    agree(Needs(), pytest.fail, what="it", instead="")
