"""Where a record comes from, and what its work cost, as a page and a terminal say it."""

import pytest

from tests.records import build_cost, build_measurement, text_record
from villani.report.origin import cost_words, decay_words, origin_rows, text_words
from villani.work.records import Cost


def cost(**more):
    return Cost(seconds=41.2, seconds_per_group=2.575, peak_memory_bytes=812 * 2**20, tokens=1, probes=1, **more)


def test_what_work_cost_is_said_with_its_plan():
    assert cost_words(None) == "not recorded"
    assert cost_words(cost()) == "41.2 s, 812 MiB at the peak"
    planned = cost(pilot_seconds=1.2, predicted_seconds=50.0)
    assert cost_words(planned) == "41.2 s, 812 MiB at the peak; predicted 50 s, took 40 s, pilot 1.2 s"


def test_which_parameters_decay():
    record = build_measurement(undecayed=4)
    assert decay_words(record.objective) == "hf, 2,194,560 of 2,195,328 parameters"


@pytest.mark.parametrize(("documents", "words"), [(1, "1 document,"), (120, "120 documents,")])
def test_which_text(documents, words):
    text = text_record().model_copy(update={"documents": documents})
    assert words in text_words(text)
    assert text.token_checksum[:12] in text_words(text)


def test_bits_and_their_cost():
    origin = build_measurement().provenance
    rows = origin_rows(origin, build_cost(41.2))
    assert rows["command"] == origin.command
    assert rows["parameters"] == origin.parameter_checksum
    assert rows["versions"] == "villani 0.1.0, torch 2.13.0"
    assert rows["device"] == "cpu, 2 threads"
    assert rows["cost"] == "41.2 s, 812 MiB at the peak"
    assert origin_rows(origin, None)["cost"] == "not recorded"
