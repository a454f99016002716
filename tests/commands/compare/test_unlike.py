"""What two records do not share, in words."""

from types import SimpleNamespace

import pytest

from tests.commands.compare.records import record
from villani.commands.compare.unlike import clean, unlike


def test_records_of_the_same_differ_in_nothing():
    assert [*unlike(record(), record())] == []
    assert [*unlike(record(), record(design={"seed": 1}))] == [], "the method says what seeds mean"


@pytest.mark.parametrize(
    ("part", "fields", "phrase"),
    [
        ("text", {"spec": "b", "token_checksum": "y"}, "text: text:a (a.txt 01234567) and b (a.txt 01234567)"),
        ("text", {"sources": [], "token_checksum": "y"}, "text: text:a (a.txt 01234567) and text:a"),
        ("text", {"tokenizer": "other", "token_checksum": "y"}, "tokenizer: gpt2 and other"),
        ("text", {"special_tokens": "first"}, "special tokens: none and first"),
        ("design", {"block": 32}, "blocks: 1,024 tokens and 32 tokens"),
        ("design", {"groups": 5}, "groups: 6 of 1 blocks and 5 of 1 blocks"),
        ("design", {"sequences": 2000}, "groups: 6 of 1 blocks and 6 of 2,000 blocks"),
        ("model", {"architecture": "Llama"}, "architecture: GPT2LMHeadModel and Llama"),
        ("model", {"dtype": "float64"}, "precision: float32 and float64"),
        ("objective", {"parameters": 5}, "parameters: 1,234 and 5"),
        ("objective", {"decayed_parameters": 2}, "decayed parameters: 3 (all) and 2 (all)"),
        ("objective", {"decay": "match:w"}, "decayed parameters: 3 (all) and 3 (match:w)"),
        ("objective", {"weight_decay": 1e-3}, "λ of F: 0.1 and 0.001"),
        ("objective", {"finite": True}, "the groups are: a sample of the text and the whole data set"),
    ],
)  # fmt: skip
def test_a_fact_that_differs_is_one_phrase(part, fields, phrase):
    assert [*unlike(record(), record(**{part: fields}))] == [phrase]


def test_the_same_tokens_by_another_path_are_the_same_text():
    other = {"spec": "ids:b", "tokenizer": "other", "sources": [SimpleNamespace(name="b", md5="f" * 32)]}
    assert [*unlike(record(), record(text=other))] == []
    assert len([*unlike(record(), record(text=other | {"token_checksum": "y"}))]) == 2


def test_strings_of_others_are_short_and_of_printable_characters():
    assert clean("a\x1b[2J\nb\u202e") == "a�[2J�b�"
    assert clean("‖θ‖² of x") == "‖θ‖² of x"
    assert len(clean("a" * 5000)) <= 200
    assert clean("a" * 5000).endswith("a…")
    (phrase,) = unlike(record(), record(model={"architecture": "\x1b]0;x\x07"}))
    assert phrase == "architecture: GPT2LMHeadModel and �]0;x�"
