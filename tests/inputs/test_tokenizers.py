import json
import subprocess
import sys

import numpy as np
import pytest
from transformers import AutoTokenizer

from tests.inputs.conftest import refused
from villani.inputs.tokenizers import load_tokenizer


def test_builtin_tokenizer_is_the_same_in_every_process():
    code = "from villani.inputs.tokenizers import load_tokenizer as t; print(t('builtin').encode(['A landscape'])[0])"
    environments = [{"PYTHONHASHSEED": "1", "RAYON_NUM_THREADS": "1"}, {"PYTHONHASHSEED": "2"}]
    ids = str(load_tokenizer("builtin").encode(["A landscape"])[0])
    for environment in environments:
        environment["PYTHONPATH"] = ":".join(sys.path)
        result = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
        )
        assert result.stdout.strip() == ids


def test_builtin_tokenizer_encodes_any_text_without_special_tokens():
    tokenizer = load_tokenizer("builtin")
    empty, greek = tokenizer.encode(["", "Ψ is λ\n"])
    assert tokenizer.vocabulary == 2048
    assert len(empty) == 0
    assert empty.dtype == greek.dtype == np.int64
    assert 0 <= greek.min() <= greek.max() < 2048
    assert tokenizer.sources[0].name == "pydoc_data.topics"


def test_tokenizer_folder_ignores_saved_truncation(tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    backend = Tokenizer(WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    backend.pre_tokenizer = Whitespace()
    backend.enable_truncation(2)
    backend.enable_padding(length=9)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.encode(["a b c a b"])[0].tolist() == [0, 1, 2, 0, 1]
    assert (tokenizer.name, tokenizer.vocabulary) == (tmp_path.name, 3)
    assert tokenizer.sources[0].name == "tokenizer.json"


def test_bad_tokenizers_are_refused(tmp_path, no_data):
    refused("set VILLANI_DATA or --data to it, or use --tokenizer builtin", load_tokenizer, "gpt2")
    refused("no gpt2-bpe/vocab.json", load_tokenizer, "gpt2", data=tmp_path)
    refused("is not a folder", load_tokenizer, "gpt2", data=tmp_path / "absent")
    refused("no such folder", load_tokenizer, "./absent")
    refused("no tokenizer.json there", load_tokenizer, str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{")
    refused("cannot be read", load_tokenizer, str(tmp_path))
    refused("is a file", load_tokenizer, str(tmp_path / "tokenizer.json"))


def saved(folder, *, template=None, config=None):
    """A word-level tokenizer with <s> and </s>, saved as a checkpoint has it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    backend = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "?": 2, "a": 3, "b": 4}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<s>", "</s>"])
    if template:
        backend.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return str(folder)


NAMES = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}


@pytest.mark.parametrize(
    ("template", "config", "prefix"),
    [
        (None, None, ()),
        ("<s> $A", None, (0,)),
        ("<s> $A </s>", None, (0,)),
        ("$A </s>", None, ()),
        ("<s> </s> $A", None, (0, 1)),
        ("<s> $A", NAMES, (0,)),
        (None, NAMES, ()),
        # transformers 5 goes by tokenizer.json where both are there
        (None, NAMES | {"add_bos_token": True}, ()),
        ("<s> $A", NAMES | {"add_bos_token": False}, (0,)),
    ],
)
def test_auto_is_what_transformers_puts_at_the_start_of_a_document(tmp_path, template, config, prefix):
    from transformers import AutoTokenizer

    folder = saved(tmp_path / "model", template=template, config=config)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.prefix == prefix
    if config is not None:
        theirs = AutoTokenizer.from_pretrained(folder)("a b").input_ids
        ours = [*tokenizer.prefix, *tokenizer.encode(["a b"])[0].tolist()]
        assert theirs[: len(ours)] == ours
        assert len(theirs) - len(ours) == (template or "").count("</s>")
    assert "no chat template is applied" in tokenizer.special_tokens
    assert load_tokenizer(folder, special_tokens="none").prefix == ()


def test_bos_is_the_token_that_the_tokenizer_names(tmp_path):
    named = load_tokenizer(saved(tmp_path / "named", config=NAMES), special_tokens="bos")
    assert named.prefix == (0,)
    assert "begins with '<s>' (id 0), as asked" in named.special_tokens
    (tmp_path / "map").mkdir()
    (tmp_path / "map" / "special_tokens_map.json").write_text(json.dumps({"bos_token": {"content": "</s>"}}))
    assert load_tokenizer(saved(tmp_path / "map"), special_tokens="bos").prefix == (1,)
    classed = saved(tmp_path / "classed", config={"tokenizer_class": "LlamaTokenizer"})  # whose own it is
    assert load_tokenizer(classed, special_tokens="bos").prefix == (
        AutoTokenizer.from_pretrained(classed).bos_token_id,
    )
    refused("names no token for the beginning", load_tokenizer, "builtin", special_tokens="bos")
    refused("names no token", load_tokenizer, saved(tmp_path / "bare"), special_tokens="bos")
    refused("special_tokens=eos: expected auto, none, bos", load_tokenizer, "builtin", special_tokens="eos")


def test_a_tokenizer_cuts_the_same_text_in_the_same_way_whatever_its_training_left_on(tmp_path):
    from tokenizers import Tokenizer, models

    words = {"a": 0, "b": 1, "ab": 2}
    Tokenizer(models.BPE(words, [("a", "b")], dropout=0.5)).save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(str(tmp_path)).encode(["ab" * 50])[0].tolist() == [2] * 50


@pytest.mark.parametrize(
    "steps",
    [
        [{"type": "Replace", "pattern": {"Regex": "."}, "content": "aaaaaaaaaa"}] * 4,
        [{"type": "Prepend", "prepend": "a" * 1000}],
        [{"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "a" * 1000}]}],
    ],
)
def test_a_normalizer_that_makes_texts_much_longer_is_refused(tmp_path, steps):
    folder = saved(tmp_path / "model")
    content = json.loads((tmp_path / "model" / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Sequence", "normalizers": steps}
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(content))
    refused("more than 64 times as long", load_tokenizer, folder)
