"""Units are done once: in memory, in a run directory, in scopes, and by whoever has them."""

from types import SimpleNamespace

import numpy as np
import pytest

from villani.errors import InputError
from villani.work.budget import Needs
from villani.work.records import SourceFile
from villani.work.work import InMemory, Work, default_name


class Told:
    def __init__(self):
        self.words, self.steps = [], []

    def stage(self, text):
        self.words.append(text)

    def advance(self, done, total):
        self.steps.append((done, total))


def counted(calls, value):
    def make():
        calls.append(value)
        return {"x": np.array(float(value))}

    return make


@pytest.mark.parametrize("kept", [False, True])
def test_a_unit_is_made_once(tmp_path, kept):
    calls, work = [], Work(tmp_path / "run")
    with work:
        if kept:
            work.open("toy", "model", {"seed": 1}, {"seed": 1})
        assert float(work.once("a", counted(calls, 1))["x"]) == 1
        assert float(work.once("a", counted(calls, 2))["x"]) == 1
        assert float(work.scope("s").once("a", counted(calls, 3))["x"]) == 3
        assert float(work.get("s/a")["x"]) == 3
        seconds, peak, units = work.spent("s/")
        assert (seconds >= 0, peak > 2**20, units) == (True, True, 1)
        assert work.spent()[2] == 2
    assert calls == [1, 3]
    if kept:
        with Work(tmp_path / "run") as again:
            again.open("toy", "model", {"seed": 1}, {"seed": 1})
            assert float(again.once("a", counted(calls, 9))["x"]) == 1
        with Work(tmp_path / "run") as other, pytest.raises(InputError, match="begun with seed = 1, now 2"):
            other.open("toy", "model", {"seed": 2}, {"seed": 2})


def test_units_are_mapped_in_order_and_told():
    progress = Told()
    work, calls = Work(progress=progress), []
    work.once("b", counted(calls, 2))
    rows = work.map({"a": counted(calls, 1), "b": counted(calls, 5), "c": counted(calls, 3)})
    assert [float(row["x"]) for row in rows] == [1, 2, 3]
    assert calls == [2, 1, 3]
    assert progress.steps[-1] == (3, 3)


def test_a_result_that_is_json_is_a_unit(tmp_path):
    with Work(tmp_path / "run") as work:
        work.open("toy", "", {}, {})
        assert work.once_record("r", list[int], lambda: [1, 2]) == [1, 2]
        assert work.once_record("r", list[int], lambda: [3]) == [1, 2]


def test_what_is_loaded_is_shared_with_inner_work(tmp_path):
    with Work(tmp_path / "run") as work:
        work.open("toy", "", {}, {})
        work.loaded("model", lambda: "weights")
        with work.inner("audit") as inner:
            assert inner.loaded("model", lambda: pytest.fail("loaded twice")) == "weights"
            assert inner.open("audit", "", {}, {}) == tmp_path / "run" / "audit"
            inner.put("a", {"x": np.zeros(1)})
        assert work.get("a") is None


def test_a_folder_is_named_after_what_determines_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {default_name("measure", "a/b?c=1", {"seed": seed}) for seed in (0, 0, 1)}
    assert len(names) == 2
    assert all(name.startswith("measure-a-b-c-1-") for name in names)


@pytest.mark.parametrize(
    ("about", "slug"),
    [
        ("builtin:tiny?layers=1&width=8&context=16&seed=3", "tiny-layers-1-width-8-context-16-seed-3"),
        ("/home/someone/checkpoints/of-a-long-study/step-2000", "checkpoints-of-a-long-study-step-2000"),
        ("x" * 60, "x" * 40), ("gpt2", "gpt2"),
    ],
)  # fmt: skip
def test_the_name_of_a_folder_has_whole_words(about, slug):
    assert default_name("recommend", about, {}).rsplit("-", 1)[0] == f"recommend-{slug}"


def test_memory_counts_what_is_under_a_prefix():
    units = InMemory()
    units.put("a/1", {}, seconds=1.0, peak_memory_bytes=5)
    units.put("b/1", {}, seconds=2.0, peak_memory_bytes=9)
    assert units.spent("a/") == (1.0, 5, 1)
    assert units.spent() == (3.0, 9, 2)
    assert units.spent("c") == (0, 0, 0)


def test_what_is_expected_is_told_or_refused_before_a_folder_is_made(tmp_path):
    lines = []
    told = SimpleNamespace(stage=lines.append, advance=None)
    with Work(tmp_path / "a", progress=told) as work:
        work.open("x", "y", {}, {}, needs=Needs(memory=1e6, disk=3 * 2**20, seconds=100.0))
    assert lines[0].startswith("expecting roughly 1.7 min, ")
    assert lines[0].endswith("of memory, 3 MiB on disk")
    with pytest.raises(InputError, match="of memory"), Work(tmp_path / "b", progress=told) as work:
        work.open("x", "y", {}, {}, needs=Needs(memory=1e18))
    assert len(lines) == 1
    assert not (tmp_path / "b").exists()
    with Work(tmp_path / "a", progress=told) as work:  # again, where some of it may be done
        work.open("x", "y", {}, {}, needs=Needs(memory=1e6, disk=3 * 2**20, seconds=100.0))
    assert lines[1] == f"{lines[0]}, for all of it: what is kept is not done again"


def test_a_question_that_is_large_is_agreed_to_once_and_a_larger_one_of_the_same_run_again(tmp_path):
    """A run whose folder is named by more than what determines its units may be asked for more."""
    large, small = Needs(seconds=1e6, memory=1.0, disk=1.0), Needs(seconds=1.0, memory=1.0, disk=1.0)

    def asked(question, needs, agreed=False):
        with Work(tmp_path / "run") as work:
            work.progress.confirm = lambda _: None  # nobody is there
            work.open("toy", "m", {"a": 1}, {}, named={"a": 1, "grid": question}, needs=needs, agreed=agreed)

    asked("small", small)
    with pytest.raises(InputError, match="to begin all the same"):
        asked("large", large)
    asked("large", large, agreed=True)
    asked("large", large)  # which was interrupted
    asked("small", small)
    with pytest.raises(InputError, match="to begin all the same"):
        asked("another", large)


def test_settings_are_those_of_the_records_beside_them(tmp_path):
    for value, written in ((1, 1), (2, 1)):
        with Work(tmp_path / "run") as work:
            work.open("toy", "m", {"a": 1}, {"b": value})
            assert (tmp_path / "run" / "settings.toml").read_text() == f"b = {written}\n"
    work.write_settings()
    assert (tmp_path / "run" / "settings.toml").read_text() == "b = 2\n"


def test_a_cost_is_that_of_the_units_of_all_scopes():
    work = Work()
    for key, seconds, peak in (("a", 3.0, 7), ("b", 5.0, 11)):
        work.scope(key).put("unit", {}, seconds=seconds, peak_memory_bytes=peak)
    cost = work.cost(tokens=40, probes=2, pilot_seconds=1.0)
    assert (cost.seconds, cost.seconds_per_group, cost.peak_memory_bytes) == (8.0, 4.0, 11)
    assert (cost.tokens, cost.probes, cost.pilot_seconds) == (40, 2, 1.0)
    assert work.cost(0, shares=16).seconds_per_group == 0.5
    assert work.scope("b").cost(0).seconds == 5.0
    assert Work().cost(0).seconds_per_group == 0.0


def test_a_record_is_made_once_and_read_from_either_form_of_row():
    work, made = Work(), []
    record = SourceFile(name="Ψ", bytes=1, md5="m")

    def make():
        made.append(1)
        return record

    assert [work.once_record("r", SourceFile, make) for _ in range(2)] == [record, record]
    assert made == [1]
    work.put("older", {"record": np.frombuffer(record.model_dump_json().encode(), dtype=np.uint8)})
    assert work.once_record("older", SourceFile, make) == record
    assert made == [1]
