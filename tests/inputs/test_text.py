import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.inputs.conftest import refused
from villani.inputs.corpora import load_corpus
from villani.inputs.models import load_model
from villani.inputs.text import check_context, choose_groups, cut_blocks, cut_corpus, remarks, text_record
from villani.inputs.tokenizers import load_tokenizer


def arrays(*lengths):
    """Documents whose every token is different."""
    starts = np.cumsum([1, *lengths[:-1]])
    return [np.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)]


def test_blocks_cross_no_boundary_and_pad_only_tails():
    blocks = cut_blocks(arrays(5, 4, 0, 1, 2), 4, boundaries="a verse is a document")
    assert blocks.ids.tolist() == [[1, 2, 3, 4], [6, 7, 8, 9], [11, 12, 0, 0]]
    assert blocks.labels.tolist() == [[1, 2, 3, 4], [6, 7, 8, 9], [11, 12, -100, -100]]
    assert (blocks.documents, blocks.tokens) == (5, 12)
    assert blocks.ids.dtype == blocks.labels.dtype == torch.int64
    assert "1 shorter tails are padded" in blocks.cut
    assert "2 tails of one token are dropped" in blocks.cut
    assert "a verse is a document" in blocks.cut


def test_padding_on_the_right_does_not_change_the_loss():
    model = load_model("builtin:tiny").model
    blocks = cut_blocks(arrays(40), 64)
    tail = torch.arange(1, 41)[None]
    padded = model(input_ids=blocks.ids, labels=blocks.labels).loss
    torch.testing.assert_close(padded, model(input_ids=tail, labels=tail).loss, rtol=1e-6, atol=0)


def test_bad_blocks_are_refused():
    refused("block=1: expected at least 2", cut_blocks, arrays(5), 1)
    refused("nothing to predict", cut_blocks, arrays(1, 0, 1), 4)
    refused("nothing to predict", cut_blocks, [], 4)


@pytest.mark.parametrize("disjoint", [False, True])
def test_groups_are_a_seeded_choice(disjoint):
    blocks = cut_blocks(arrays(40), 4)
    ids, labels = choose_groups(blocks, 3, 2, seed=7, disjoint=disjoint)
    assert ids.shape == labels.shape == (3, 2, 4)
    assert torch.equal(ids, labels)
    assert all(len(group.reshape(-1).unique()) == 8 for group in ids)
    assert torch.equal(ids, choose_groups(blocks, 3, 2, seed=7, disjoint=disjoint)[0])
    assert torch.equal(ids[:2], choose_groups(blocks, 2, 2, seed=7, disjoint=disjoint)[0])
    assert not torch.equal(ids, choose_groups(blocks, 3, 2, seed=8, disjoint=disjoint)[0])


def test_disjoint_groups_cover_the_text_once():
    ids, _ = choose_groups(cut_blocks(arrays(40), 4), 5, 2, seed=0, disjoint=True)
    assert torch.equal(ids.reshape(-1).sort().values, torch.arange(1, 41))


def test_groups_are_independent_draws_so_that_products_between_them_are_unbiased():
    """A vector of mean zero and one entry a block: disjoint groups would put its squared mean at −variance/(M − 1)."""
    blocks = cut_blocks(arrays(40), 4)  # 10 blocks
    values = np.array([3.0, -3, 1, -1, 2, -2, 4, -4, 0, 0])
    found = []
    for seed in range(3000):
        ids, _ = choose_groups(blocks, 4, 2, seed)
        means = values[ids[:, :, 0] // 4].mean(axis=1)
        found.append((means.sum() ** 2 - (means**2).sum()) / 12)
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(3000)
    assert 4 * np.std(found) / np.sqrt(3000) < values.var() / 9  # sharp enough to see the bias of disjoint groups


def test_every_block_is_equally_likely_in_the_first_place():
    blocks = cut_blocks(arrays(20), 4)
    counts = np.bincount([int(choose_groups(blocks, 1, 1, seed)[0][0, 0, 0]) // 4 for seed in range(1000)], minlength=5)
    assert (np.abs(counts - 200) < 5 * np.sqrt(160)).all()


def test_too_little_text_is_refused_with_the_counts():
    blocks = cut_blocks(arrays(20), 4)
    refused("text has 5 blocks of 4 tokens; 3 groups × 2 sequences need 6", choose_groups, blocks, 3, 2, 0)
    refused("groups=0", choose_groups, blocks, 0, 2, 0)
    refused("seed=-1", choose_groups, blocks, 1, 2, -1)


def groups(**changes):
    made = {"block": 64, "groups": 4, "sequences": 2, "seed": 0, "vocabulary": 2048, "context": 256} | changes
    corpus, tokenizer = load_corpus("builtin"), load_tokenizer("builtin")
    check_context(made["block"], made["context"])
    blocks, _ = cut_corpus(corpus, tokenizer, made["block"], made["vocabulary"])
    ids, labels = choose_groups(blocks, made["groups"], made["sequences"], made["seed"])
    return ids, labels, text_record(corpus, tokenizer, blocks, ids, labels)


def test_groups_of_builtin_text_are_reproducible_and_recorded():
    ids, labels, record = groups()
    again = groups()
    assert ids.shape == labels.shape == (4, 2, 64)
    assert torch.equal(ids, again[0])
    assert record == again[2]
    assert record.token_checksum != groups(seed=1)[2].token_checksum
    assert record.documents == len(load_corpus("builtin").documents)
    assert record.tokenizer == "builtin"


def test_groups_must_fit_the_model():
    refused("ids up to 20[0-9]+, and the model knows 100: .*vocab=2048", groups, vocabulary=100)
    refused("the model accepts at most 32 tokens", groups, context=32)
    assert groups(context=None)[0].shape == (4, 2, 64)


def test_a_prefix_stands_before_every_block_and_predicts_the_first_token_of_documents_only():
    blocks = cut_blocks([np.arange(10, 20), np.array([5]), np.arange(30, 34)], 4, prefix=(1,))
    assert blocks.ids.tolist() == [
        [1, 10, 11, 12], [1, 13, 14, 15], [1, 16, 17, 18], [1, 5, 0, 0], [1, 30, 31, 32],
    ]  # fmt: skip
    assert blocks.labels.tolist() == [
        [-100, 10, 11, 12], [-100, -100, 14, 15], [-100, -100, 17, 18], [-100, 5, -100, -100], [-100, 30, 31, 32],
    ]  # fmt: skip
    assert "1 shorter tails are padded" in blocks.cut
    assert "2 tails of one token" in blocks.cut
    refused("block=2: expected at least 3 tokens.*1 are special", cut_blocks, arrays(9), 2, prefix=(1,))


@given(
    lengths=st.lists(st.integers(0, 13), min_size=1, max_size=4),
    block=st.integers(4, 6),
    prefix=st.lists(st.integers(90, 99), max_size=2),
)
def test_every_token_stands_in_one_block_and_is_predicted_unless_it_has_no_past(lengths, block, prefix):
    """Against a slow count, token by token."""
    documents, start = [], 100
    for length in lengths:
        documents.append(np.arange(start, start + length))
        start += length
    width = block - len(prefix)
    wanted = []
    for document in documents:
        for place, token in enumerate(document.tolist()):
            past = place % width > 0 or (place == 0 and prefix)
            if past:
                wanted.append(token)
    if not wanted:
        refused("nothing to predict", cut_blocks, documents, block, prefix=prefix)
        return
    blocks = cut_blocks(documents, block, prefix=prefix)
    assert (blocks.ids[:, : len(prefix)] == torch.tensor(prefix, dtype=torch.int64)).all()
    predicted = blocks.labels[:, 1:]
    assert sorted(predicted[predicted >= 0].tolist()) == wanted
    kept = blocks.labels >= 0
    assert torch.equal(blocks.ids[kept], blocks.labels[kept])


def test_carriage_returns_byte_order_marks_and_special_tokens_are_told(tmp_path):
    file = tmp_path / "text.txt"
    file.write_bytes("\ufeffone\r\ntwo <unk> \ufeff three <unk>\r\n".encode())
    corpus = load_corpus(str(file))
    assert corpus.documents[0].startswith("one\r\n")
    assert corpus.sources[0].bytes == file.stat().st_size
    told = remarks(corpus, load_tokenizer("builtin"))
    assert told[0] == "1 byte order marks at the start were left out"
    assert "CRLF line ends (2) are part of the text" in told
    assert "byte order marks inside (1) are part of the text" in told
    pieces = len(load_tokenizer("builtin").encode(["<unk>"])[0])
    assert f"'<unk>' stands 2 times in the text and is read as plain text, {pieces} tokens" in told
    assert remarks(load_corpus("builtin"), load_tokenizer("builtin")) == []
