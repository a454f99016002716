"""Which models count positions from what is real in a row, against positions that the test counts."""

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

from tests.objective.test_batches import counting, make
from villani.objective.positions import counts_positions

PADDING, VOCABULARY = 1, 23
OPTIONS = {"use_cache": False}


def rows():
    """Padding of every length on the left of texts of every length."""
    generator = torch.Generator().manual_seed(2)
    for padding in (1, 2, 5):
        for length in (2, 6):
            text = torch.randint(2, VOCABULARY, (length,), generator=generator)
            mask = torch.cat([torch.zeros(padding), torch.ones(length)]).long()
            yield torch.cat([torch.full((padding,), PADDING), text]), mask


def counted(ids, mask):
    """What OPT takes: the number of real tokens before each."""
    return [int(mask[:i].sum()) for i in range(len(mask))]


def places(ids, mask):
    """What GPT-2 takes: the place in the row."""
    return list(range(len(ids)))


def by_token(ids, mask):
    """What RoBERTa takes, which does not look at the mask."""
    return [PADDING + int((ids[: i + 1] != PADDING).sum()) if ids[i] != PADDING else PADDING for i in range(len(ids))]


@pytest.mark.parametrize(
    ("name", "count", "expected"),
    [("OPT", counted, True), ("Roberta", by_token, True), ("XLMRoberta", by_token, True), ("GPT2", places, False)],
)
def test_models_take_the_positions_that_the_answer_says(name, count, expected):
    model = counting(name) if name != "GPT2" else make(name)
    for ids, mask in rows():
        assert counts_positions(model, ids, mask, OPTIONS) is expected
        options = OPTIONS | {"input_ids": ids[None], "attention_mask": mask[None]}
        with torch.no_grad():
            own = model(**options).logits
            given = model(**options, position_ids=torch.tensor([count(ids, mask)])).logits
        assert torch.allclose(own[:, mask == 1], given[:, mask == 1], atol=1e-5), (name, mask)


@pytest.mark.parametrize("name", ["Llama", "Qwen3", "GPTNeo"])
def test_models_that_are_told_positions_do_not_count(name):
    """Rotary ones give the same logits either way, so that their places are up to whoever gives them."""
    model = make(name)
    assert not any(counts_positions(model, ids, mask, OPTIONS) for ids, mask in rows())


class Positioned(nn.Module):
    """Logits from a token and its position alone, with `count` for positions that it is not given."""

    def __init__(self, count, *, dropout=0.0, weight=1.0):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.words = nn.Parameter(torch.randn(VOCABULARY, VOCABULARY, generator=generator))
        self.places = nn.Parameter(weight * torch.randn(32, VOCABULARY, generator=generator))
        self.dropout, self.count = nn.Dropout(dropout), count

    def forward(self, input_ids, attention_mask=None, position_ids=None):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if position_ids is None:
            position_ids = torch.tensor([self.count(*row) for row in zip(input_ids, mask, strict=True)])
        return CausalLMOutput(logits=self.dropout(self.words[input_ids] + self.places[position_ids]))


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (counted, True),
        (by_token, True),
        (places, False),
        (lambda ids, mask: [i + 1 for i in counted(ids, mask)], True),  # from 1
        (lambda ids, mask: [0] * len(ids), True),  # no order at all, unless it is told one
        (lambda ids, mask: [i % 2 for i in places(ids, mask)], None),  # as good as counting where padding is even
        (lambda ids, mask: [len(ids) - 1 - i for i in range(len(ids))], True),  # from the end
    ],
)
def test_counting_is_that_padding_moves_nothing(count, expected):
    model = Positioned(count)
    for ids, mask in rows():
        padding = int((mask == 0).sum())
        assert counts_positions(model, ids, mask, {}) is (padding % 2 == 0 if expected is None else expected)


def test_a_model_that_has_no_use_for_positions_does_not_count():
    assert not any(counts_positions(Positioned(counted, weight=0.0), ids, mask, {}) for ids, mask in rows())


def test_dropout_and_generators_stay_out_of_it():
    model = Positioned(counted, dropout=0.5).train()
    before = torch.get_rng_state()
    for ids, mask in rows():
        assert counts_positions(model, ids, mask, {})
    assert model.training
    assert model.dropout.training
    assert torch.equal(torch.get_rng_state(), before)
    assert model.words.grad is None


@pytest.mark.parametrize("error", [IndexError, RuntimeError, TypeError, ZeroDivisionError])
def test_a_model_that_fails_does_not_count(error):
    def fail(ids, mask):
        raise error("no")

    assert not any(counts_positions(Positioned(fail), ids, mask, {}) for ids, mask in rows())
    assert not counts_positions(nn.Linear(2, 2), *next(rows()), {})
