"""Units that are done once, what they cost, and what is told before they begin."""

from types import SimpleNamespace

import numpy as np
import pytest

from villani.errors import InputError
from villani.work.budget import Needs
from villani.work.records import SourceFile
from villani.work.work import Work


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
