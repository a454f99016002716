"""The training that a checkpoint came out of: JSON beside its weights, bounded and checked; nothing is unpickled."""

import pickle

import pytest

from villani.errors import InputError
from villani.inputs.past_training import past_training


def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    (tmp_path / "training_args.bin").write_bytes(pickle.dumps(Trap()))
    assert past_training(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"learning_rate": -1}', "learning_rate=-1: expected"),
        ('{"learning_rate": 50}', "learning_rate=50: expected"),
        ('{"learning_rate": "fast"}', "learning_rate='fast': expected"),
        ('{"learning_rate": true}', "learning_rate=True: expected"),
        ('{"learning_rate": NaN}', "NaN is no number of JSON"),
        ('{"learning_rate": 1, "learning_rate": 2}', "there twice"),
        ('{"learning_rate": [' + "1," * 60 + "1]}", "expected a number"),
        ("[" * 100_000, "JSON"),
        ("", "JSON"),
        ("[1]", "expected a JSON object"),
    ],
)
def test_a_damaged_file_is_a_line_that_says_what_to_do(tmp_path, text, line):
    (tmp_path / "training_args.json").write_text(text)
    with pytest.raises(InputError, match="give --learning-rate") as caught:
        past_training(str(tmp_path))
    assert line in str(caught.value)
    assert len(str(caught.value)) < 250


def test_a_link_leads_nowhere_else(tmp_path):
    (tmp_path / "secret.json").write_text('{"learning_rate": 1e-3}')
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "training_args.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(InputError, match="leads out of the folder"):
        past_training(str(folder))


def test_what_is_no_folder_says_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    for model in ("gpt2", "owner/name", str(tmp_path / "none"), str(tmp_path / "file"), str(tmp_path)):
        assert past_training(model) is None


@pytest.mark.parametrize("history", ["[]", "{}", "null", "[1, null]", '[{"loss": 2}]', '[{"learning_rate": 0}]'])
def test_a_state_without_a_rate_says_nothing(tmp_path, history):
    (tmp_path / "trainer_state.json").write_text(f'{{"log_history": {history}}}')
    assert past_training(str(tmp_path)) is None
