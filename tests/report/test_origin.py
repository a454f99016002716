"""Where a record comes from, as a page lists it."""

import pytest

from tests.records import build_cost, build_measurement, text_record
from villani.report.origin import decay_words, origin_rows, text_words


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
    assert rows["cost"] == "41 s, 0.79 GiB at most"
    assert "cost" not in origin_rows(origin, None)
