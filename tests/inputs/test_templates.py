"""What transformers is shown of a tokenizer's folder: vocabularies, and settings that choose no class and no file."""

import json
import sys

import pytest

from tests.inputs.conftest import refused
from tests.inputs.test_tokenizers import NAMES, saved
from villani.inputs.templates import settings, transformers_tokenizer
from villani.inputs.tokenizers import load_tokenizer

ANYWHERE = [
    {"gguf_file": "SECRET"},
    {"vocab_file": "SECRET", "tokenizer_file": "SECRET", "vocab": "SECRET", "merges_file": "SECRET"},
    {"tokenizer_class": "AutoModelForCausalLM"},
    {"tokenizer_class": ["GPT2Tokenizer"]},
    {"tokenizer_class": "BertJapaneseTokenizer", "mecab_kwargs": {"mecab_option": "-r SECRET"}},
    {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}},
    {"init_inputs": ["SECRET"], "tokenizer_object": "SECRET", "from_pretrained": 1, "cls": 1},
    {"cache_dir": "SECRET", "subfolder": "..", "proxies": {"http": "SECRET"}},
    {"extra_ids": 10**12, "tokenizer_truncation": {"max_length": -1}},
    {"added_tokens_decoder": {str(10**12): {"content": "q"}, "-1": {"content": "r"}, "x": 1}},
    {"truncation_side": "nowhere", "extra_special_tokens": {"x_token": ["a"]}, "pad_token": 7},
]
opened: list[str] = []
sys.addaudithook(lambda event, given: opened.append(str(given[0])) if event == "open" else None)


@pytest.mark.parametrize("added", ANYWHERE)
def test_settings_of_a_tokenizer_choose_no_class_and_no_file(tmp_path, added):
    secret = tmp_path / "secret"
    secret.write_text("a 0\n")
    told = json.loads(json.dumps(NAMES | added).replace("SECRET", str(secret)))
    folder = saved(tmp_path / "model", template="<s> $A", config=told)
    (tmp_path / "model" / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    (tmp_path / "model" / "config.json").write_text(
        json.dumps({"model_type": "gpt2", "auto_map": {"AutoConfig": "evil.E"}})
    )
    opened.clear()
    assert load_tokenizer(folder).prefix == (0,)
    assert str(secret) not in opened
    assert not any(file.endswith("evil.py") for file in opened)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "file", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]
)
def test_files_of_a_tokenizer_lie_in_its_folder(tmp_path, file):
    folder = saved(tmp_path / "model", template="<s> $A", config=NAMES)
    (tmp_path / "model" / file).unlink(missing_ok=True)
    (tmp_path / "outside.json").write_text("{}")
    (tmp_path / "model" / file).symlink_to(tmp_path / "outside.json")
    refused("leads out of the folder", load_tokenizer, folder)
    refused("leads out of the folder", load_tokenizer, folder, special_tokens="bos")


def test_a_plain_folder_is_what_transformers_makes_of_it(tmp_path):
    from pathlib import Path

    from transformers import AutoTokenizer

    folder = saved(tmp_path / "model", template="<s> $A </s>", config=NAMES)
    ours, theirs = transformers_tokenizer(Path(folder)), AutoTokenizer.from_pretrained(folder)
    for text in ("a b", "b ? a", "", "unknown words"):
        assert ours(text).input_ids == theirs(text).input_ids
    assert (ours.bos_token, ours.eos_token) == ("<s>", "</s>")


def test_settings_that_are_not_there_are_empty(tmp_path):
    assert settings(tmp_path, "tokenizer_config.json") == {}
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "x"}')
    assert settings(tmp_path, "tokenizer_config.json") == {"bos_token": "x"}
    (tmp_path / "tokenizer_config.json").write_text("[]")
    refused("expected a JSON object", settings, tmp_path, "tokenizer_config.json")
