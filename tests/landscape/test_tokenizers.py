import subprocess
import sys

import numpy as np

from tests.landscape.conftest import refused
from villani.landscape.tokenizers import load_tokenizer


def test_builtin_tokenizer_is_the_same_in_every_process():
    code = (
        "from villani.landscape.tokenizers import load_tokenizer as t; print(t('builtin').encode(['A landscape'])[0])"
    )
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
