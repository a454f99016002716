import pytest

from villani.dynamics.training import train
from villani.inputs.corpora import load_corpus
from villani.inputs.models import load_model
from villani.inputs.text import cut_blocks
from villani.inputs.tokenizers import load_tokenizer


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A checkpoint of some training: at random weights Δ_B L is too near to 0 to tell its sign."""
    blocks = cut_blocks(load_tokenizer("builtin").encode(load_corpus("builtin").documents), 32)
    model = load_model("builtin:tiny?layers=1&width=32&context=32").model
    train(model, blocks.ids, blocks.labels, steps=300, batch=16, learning_rate=1e-2, seed=0)
    folder = tmp_path_factory.mktemp("models") / "trained"
    model.save_pretrained(folder)
    return folder
