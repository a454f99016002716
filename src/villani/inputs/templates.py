"""What transformers makes of a tokenizer, without being shown its folder.

transformers reads more than a vocabulary: `tokenizer_config.json` may name any class of the library, files anywhere,
and arguments of constructors. It is shown a folder of its own instead, for as long as it reads: copies of the
vocabularies, and of the settings only what says how text is cut and what stands around it.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from villani.inputs.folders import inside, json_object
from villani.inputs.hub import closed, quiet

VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model")
SETTINGS = "tokenizer_config.json"
_NAMED = {f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")}
_SWITCHES = {
    "add_bos_token", "add_eos_token", "add_prefix_space", "legacy", "do_lower_case", "strip_accents",
    "tokenize_chinese_chars", "keep_accents", "remove_space",
}  # fmt: skip
_WORDS = {"src_lang", "tgt_lang"}
_TOKEN = {"content", "single_word", "lstrip", "rstrip", "normalized", "special"}
_IDS = 1 << 24  # of added tokens: gaps below them are filled
_ANY = "TokenizersBackend"  # the class of transformers that goes by the vocabulary alone


def transformers_tokenizer(folder: Path) -> Any:
    """The tokenizer that transformers makes of a folder's vocabularies and settings.

    Raises:
        InputError: a file of the folder leads elsewhere, or is no JSON object.
        Exception: whatever transformers makes of the rest.
    """
    from transformers import AutoTokenizer

    with _copied(folder) as copy, quiet(), closed():
        return AutoTokenizer.from_pretrained(copy, local_files_only=True, trust_remote_code=False)


@contextmanager
def _copied(folder: Path) -> Iterator[Path]:
    """A temporary folder with what transformers may see."""
    with tempfile.TemporaryDirectory(prefix="villani-tokenizer-") as name:
        copy = Path(name)
        for file in VOCABULARIES:
            if (folder / file).is_file():
                shutil.copyfile(inside(folder, file), copy / file)
        config = settings(folder, "config.json")
        kind = config.get("model_type")
        found = {
            SETTINGS: _settings(settings(folder, SETTINGS)),
            "special_tokens_map.json": _tokens(settings(folder, "special_tokens_map.json")),
            "added_tokens.json": _numbers(settings(folder, "added_tokens.json")),
            "config.json": _class(config) | ({"model_type": kind} if isinstance(kind, str) else {}),
        }
        for file, content in found.items():
            if content:
                (copy / file).write_text(json.dumps(content), encoding="utf-8")
        yield copy


def settings(folder: Path, file: str) -> dict[str, Any]:
    """A JSON object of a folder, or nothing where there is no such file."""
    return json_object(folder, file) if (folder / file).is_file() or (folder / file).is_symlink() else {}


def _settings(content: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that say how text is cut."""
    found = _tokens(content) | _class(content)
    found |= {name: value for name, value in content.items() if name in _SWITCHES and isinstance(value, bool)}
    found |= {name: value for name, value in content.items() if name in _WORDS and isinstance(value, str)}
    added = content.get("added_tokens_decoder")
    if isinstance(added, dict):
        numbered = {number: _token(token) for number, token in added.items() if _number(number)}
        found["added_tokens_decoder"] = {number: token for number, token in numbered.items() if token}
    return found


def _tokens(content: Mapping[str, Any]) -> dict[str, Any]:
    """The special tokens that have names."""
    found = {name: _token(value) for name, value in content.items() if name in _NAMED}
    return {name: value for name, value in found.items() if value}


def _token(value: Any) -> Any:
    """A token as text, or as transformers writes one down; None where it is neither."""
    if isinstance(value, str):
        return value
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        return None
    return {
        "__type": "AddedToken", **{name: value[name] for name in _TOKEN if isinstance(value.get(name), str | bool)},
    }  # fmt: skip


def _numbers(content: Mapping[str, Any]) -> dict[str, int]:
    return {name: value for name, value in content.items() if isinstance(value, int) and 0 <= value < _IDS}


def _number(text: str) -> bool:
    return len(text) < 9 and text.isascii() and text.isdigit() and int(text) < _IDS


def _class(content: Mapping[str, Any]) -> dict[str, str]:
    """The tokenizer class that is asked for, if it is one for vocabularies of the tokenizers library."""
    from transformers import TokenizersBackend
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name

    asked = content.get("tokenizer_class")
    if asked is None:
        return {}
    known = {name for name in TOKENIZER_MAPPING_NAMES.values() if name}
    if isinstance(asked, str) and {asked, asked.removesuffix("Fast"), f"{asked}Fast"} & known:
        named = (tokenizer_class_from_name(name) for name in (asked, asked.removesuffix("Fast"), f"{asked}Fast"))
        kind = next((one for one in named if one is not None), None)
        if isinstance(kind, type) and issubclass(kind, TokenizersBackend):
            return {"tokenizer_class": asked}
    return {"tokenizer_class": _ANY}
