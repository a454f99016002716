"""Units are done once: in memory, in a run directory, in scopes, and by whoever has them."""

import numpy as np
import pytest

from villani.errors import InputError
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
        work.memory = lambda: 7
        assert float(work.once("a", counted(calls, 1))["x"]) == 1
        assert float(work.once("a", counted(calls, 2))["x"]) == 1
        assert float(work.scope("s").once("a", counted(calls, 3))["x"]) == 3
        assert float(work.get("s/a")["x"]) == 3
        seconds, peak, units = work.spent("s/")
        assert (seconds >= 0, peak, units) == (True, 7, 1)
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


def test_memory_counts_what_is_under_a_prefix():
    units = InMemory()
    units.put("a/1", {}, seconds=1.0, peak_memory_bytes=5)
    units.put("b/1", {}, seconds=2.0, peak_memory_bytes=9)
    assert units.spent("a/") == (1.0, 5, 1)
    assert units.spent() == (3.0, 9, 2)
    assert units.spent("c") == (0, 0, 0)
