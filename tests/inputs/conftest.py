"""What the tests of models and text share."""

import os

import pytest
import torch

from villani.errors import InputError

TINY = "config:gpt2?layers=1&width=16&vocab=50&context=32"
DATA = os.environ.get("VILLANI_DATA")
needs_data = [
    pytest.mark.real_text,
    pytest.mark.skipif(not DATA, reason="VILLANI_DATA is not set: no PTB, WikiText or GPT-2 BPE"),
]


def parameters(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def refused(match, call, *args, **kwargs):
    with pytest.raises(InputError, match=match) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)


@pytest.fixture
def no_data(monkeypatch):
    monkeypatch.delenv("VILLANI_DATA", raising=False)
