"""Groups of a text in one call against tokens cut by hand."""

from pathlib import Path

import pytest
import torch
from torch import nn

from villani import InputError, Objective, groups_from_text, load_model
from villani.inputs.tokenizers import load_tokenizer

WORDS = "the loss of a model falls with its steps "


@pytest.fixture(scope="module")
def loaded():
    return load_model("builtin:tiny?layers=1&width=8&context=32")


def tokens(text):
    return load_tokenizer("builtin").encode([text])[0].tolist()


def test_one_block_of_each_document_and_all_of_them_once(loaded):
    """With `finite` every block is in one group: those are the documents' own tokens, padded on the right."""
    documents = [WORDS * 2, WORDS + "and rises"]
    own = [tokens(document) for document in documents]
    assert all(2 < len(row) <= 32 for row in own)
    groups = groups_from_text(documents, loaded, groups=2, sequences=1, block=32, finite=True)
    assert [group["input_ids"].shape for group in groups] == [(1, 32), (1, 32)]
    rows = [(group["input_ids"][0].tolist(), group["labels"][0].tolist()) for group in groups]
    padded = [(row + [0] * (32 - len(row)), row + [-100] * (32 - len(row))) for row in own]
    assert sorted(rows) == sorted(padded)
    losses = [Objective(loaded.model, groups).loss(g) for g in range(2)]
    with torch.no_grad():
        for row, loss in zip(rows, losses, strict=True):
            count = sum(label >= 0 for label in row[1])
            logits = loaded.model(torch.tensor([row[0][:count]])).logits[0, :-1]
            assert nn.functional.cross_entropy(logits, torch.tensor(row[0][1:count])).item() == pytest.approx(loss)


def test_a_file_is_its_text_and_a_name_is_no_text(loaded, tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text(WORDS * 40, encoding="utf-8")
    options = {"groups": 3, "sequences": 2, "block": 16, "seed": 5}
    of_file, of_words = (groups_from_text(text, loaded, **options) for text in (path, [WORDS * 40]))
    for one, other in zip(of_file, of_words, strict=True):
        assert torch.equal(one["input_ids"], other["input_ids"])
        assert torch.equal(one["labels"], other["labels"])
        assert one["input_ids"].dtype == torch.int64
    more = groups_from_text(path, loaded, **options | {"groups": 5})
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(of_file, more, strict=False))
    plain = groups_from_text(path, loaded.model, tokenizer="builtin", **options)
    assert torch.equal(plain[2]["input_ids"], of_file[2]["input_ids"])


class Bare(nn.Module):
    """A model that does not tell its vocabulary."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        (WORDS, {}, "no such file"), (Path("absent.txt"), {}, "no such file"), (3, {}, "text is a int"),
        ([WORDS, 3], {}, "text is a list"), ({"text": WORDS}, {}, "text is a dict"), ([], {}, "no two tokens"),
        (["\ud800"], {}, "lone surrogate"), ([""], {}, "no two tokens"), ("builtin", {"block": 64}, "at most 32"),
        ("builtin", {"block": 1}, "block=1"), ("builtin", {"groups": 0}, "groups=0"),
        ("builtin", {"groups": 2.0}, "groups=2.0"), ("builtin", {"seed": -1}, "seed=-1"),
        ("builtin", {"special_tokens": "eos"}, "special_tokens=eos"), ([WORDS], {"block": 16}, "give more text"),
        ("builtin", {"tokenizer": "./absent"}, "no such folder"),
    ],
)  # fmt: skip
def test_bad_texts_and_options_are_refused_in_a_line(loaded, text, options, words):
    with pytest.raises(InputError, match=words) as caught:
        groups_from_text(text, loaded, **{"block": 8} | options)
    assert "\n" not in str(caught.value)


def test_models_that_do_not_say_enough_are_refused(loaded):
    for model, options, words in (
        (loaded.model, {}, "tokenizer=None"),
        (Bare(), {"tokenizer": "builtin"}, "Bare has no get_input_embeddings"),
        ("builtin:tiny", {}, "model is a str"),
    ):
        with pytest.raises(InputError, match=words):
            groups_from_text("builtin", model, **options)


def test_load_model_takes_paths_and_refuses_other_dtypes(checkpoint):
    by_path, by_name = load_model(checkpoint), load_model(str(checkpoint))
    assert by_path.record == by_name.record
    for dtype in ("float64", torch.int64, None):
        with pytest.raises(InputError, match=r"expected torch\.float32 or torch\.float64"):
            load_model("builtin:tiny", dtype=dtype)
