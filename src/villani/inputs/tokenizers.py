"""Tokenizers by name, folder or hub id, and the data folder that some are read from."""

import contextlib
import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, trainers

from villani.errors import InputError
from villani.inputs.folders import inside, local_path, shortened
from villani.inputs.hub import hub_folder, looks_like_path
from villani.inputs.templates import SETTINGS, VOCABULARIES, settings, transformers_tokenizer
from villani.work import foreign
from villani.work.records import SourceFile

SPECIAL_TOKENS = ("auto", "none", "bos")
BUILTIN_VOCABULARY = 2048
_GROWTH = 64  # times that a normalizer may lengthen a text; a published one puts about one character for one
_LONGER = f"its normalizer makes texts more than {_GROWTH} times as long"
_SHORT = "".join(map(chr, range(32, 127)))
GPT2_VOCABULARY = 50257
_TOKENIZER_FILES = (*VOCABULARIES, SETTINGS, "special_tokens_map.json", "added_tokens.json")


@dataclass(frozen=True)
class Tokenizer:
    """Text to token ids: `encode` gives one int64 array a document, no special tokens added.

    `vocabulary` counts the ids; `sources` are the files that determine them; `specials` are the special tokens that it
    reads where they stand in a text. `prefix` holds the ids of special tokens that belong before a text, and
    `special_tokens` says in words which and why.
    """

    name: str
    vocabulary: int
    sources: tuple[SourceFile, ...]
    encode: Callable[[Sequence[str]], list[np.ndarray]]
    specials: frozenset[str] = frozenset()
    prefix: tuple[int, ...] = ()
    special_tokens: str = ""


def load_tokenizer(spec: str, *, data: Path | None = None, special_tokens: str = "auto") -> Tokenizer:
    """Tokenizer for `builtin`, `gpt2`, a folder with tokenizer files, or a hub id (`hub:ID` when the name is taken).

    Args:
        spec: which tokenizer.
        data: folder that holds `gpt2-bpe/`; the environment variable VILLANI_DATA by default.
        special_tokens: what stands before a text: `auto` (what the tokenizer's own template puts at the start of a
            document), `none`, or `bos` (its token for the beginning of a text).

    Raises:
        InputError: unknown, unreadable, or on the hub and out of reach; or `bos` where it names no such token.
    """
    check_special_tokens(special_tokens)
    tokenizer, backend, folder = _load(spec, data)
    return _with_prefix(tokenizer, backend, folder, special_tokens)


def check_special_tokens(special_tokens: str) -> None:
    """Refuse what is none of `auto`, `none` and `bos`."""
    if special_tokens not in SPECIAL_TOKENS:
        raise InputError(f"special_tokens={special_tokens}: expected {', '.join(SPECIAL_TOKENS)}")


def _load(spec: str, data: Path | None) -> tuple[Tokenizer, Backend, Path | None]:
    """A tokenizer, what does its work, and the folder that may say more about its special tokens."""
    if spec == "builtin":
        return _builtin()
    if spec == "gpt2":
        return _gpt2(data_folder(data, "tokenizer gpt2 reads gpt2-bpe/", "use --tokenizer builtin"))
    if spec.startswith("builtin:"):
        raise InputError(f"tokenizer {spec!r}: unknown; the built-in one is called 'builtin'")
    path = local_path(spec, "tokenizer")
    if path.is_file():
        raise InputError(f"tokenizer {spec!r} is a file: give the folder that holds it")
    if path.is_dir():
        return _from_folder(path, path.resolve().name)
    if looks_like_path(spec):
        raise InputError(f"tokenizer {shortened(spec)!r}: no such folder")
    repository = spec.removeprefix("hub:")
    return _from_folder(hub_folder(repository, _TOKENIZER_FILES, _has_tokenizer), spec)


def builtin_documents() -> list[tuple[str, str]]:
    """The (name, text) of each documentation topic of Python's standard library, sorted by name.

    They differ between versions of Python; the checksum in `SourceFile` says which was used.
    """
    from pydoc_data.topics import topics

    return sorted(topics.items())


def builtin_source() -> SourceFile:
    """What `builtin` text and tokenizer come from, as if it were one file."""
    return text_source("pydoc_data.topics", "".join(text for _, text in builtin_documents()))


def text_source(name: str, text: str) -> SourceFile:
    """Size and MD5 of the UTF-8 form of `text`."""
    return _source(name, text.encode())


def file_source(path: Path, name: str | None = None) -> SourceFile:
    """Size and MD5 of a file, under its own name unless `name` is given."""
    return _source(name or path.name, path.read_bytes())


def _source(name: str, content: bytes) -> SourceFile:
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    return SourceFile(name=name, bytes=len(content), md5=digest)


@functools.cache
def _builtin() -> tuple[Tokenizer, Backend, None]:
    """Byte-level BPE of 2,048 tokens trained on the built-in documents: 0.1 s, the same bytes in every process."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=BUILTIN_VOCABULARY,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator([text for _, text in builtin_documents()], trainer)
    return _wrap("builtin", backend, (builtin_source(),)), backend, None


def _gpt2(data: Path) -> tuple[Tokenizer, Backend, None]:
    vocab, merges = data / "gpt2-bpe" / "vocab.json", data / "gpt2-bpe" / "merges.txt"
    for file in (vocab, merges):
        if not file.is_file():
            raise InputError(f"tokenizer gpt2: no gpt2-bpe/{file.name} in the data folder; or use --tokenizer builtin")
    with _readable("gpt2"):
        backend = Backend(models.BPE.from_file(str(vocab), str(merges)))
        sources = tuple(file_source(file, f"gpt2-bpe/{file.name}") for file in (vocab, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return _wrap("gpt2", backend, sources), backend, None


def _has_tokenizer(folder: Path) -> bool:
    names = {file for file in _TOKENIZER_FILES if (folder / file).is_file()}
    return bool(names & {"tokenizer.json", "tokenizer.model", "vocab.txt"}) or {"vocab.json", "merges.txt"} <= names


def _from_folder(folder: Path, name: str) -> tuple[Tokenizer, Backend, Path]:
    if not _has_tokenizer(folder):
        raise InputError(f"tokenizer {name!r}: no tokenizer.json there; name another with --tokenizer, such as builtin")
    for file in _TOKENIZER_FILES:
        if (folder / file).exists() or (folder / file).is_symlink():
            inside(folder, file)
    with _readable(name):
        backend = _backend(folder)
        sources = tuple(file_source(folder / file) for file in VOCABULARIES if (folder / file).is_file())
    backend.no_truncation()  # both settings may be saved in tokenizer.json, and would change the text
    backend.no_padding()
    if getattr(backend.model, "dropout", None):
        backend.model.dropout = None  # it would cut the same text in another way each time
    return _wrap(name, backend, sources), backend, folder


def _backend(folder: Path) -> Backend:
    if (folder / "tokenizer.json").is_file():
        content = (folder / "tokenizer.json").read_bytes()
        _check_growth(foreign.json_value(content), folder.name)
        backend = Backend.from_buffer(content)
        if backend.normalizer and len(backend.normalizer.normalize_str(_SHORT)) > _GROWTH * len(_SHORT):
            raise InputError(f"tokenizer {folder.name!r}: {_LONGER}")
        return backend
    found = getattr(transformers_tokenizer(folder), "backend_tokenizer", None)
    if not isinstance(found, Backend):
        raise InputError(f"tokenizer {folder.name!r} has no fast form: save it as tokenizer.json first")
    return found


def _check_growth(content: Any, name: str) -> None:
    """Refuse a normalizer that makes much text of little, which could fill any memory."""
    steps = [content.get("normalizer")] if isinstance(content, dict) else []
    growth = 1
    while steps:
        step = steps.pop()
        if isinstance(step, dict):
            steps += step["normalizers"] if isinstance(step.get("normalizers"), list) else []
            growth *= max(1, *(len(step[key]) for key in ("content", "prepend") if isinstance(step.get(key), str)), 1)
        if growth > _GROWTH:
            raise InputError(f"tokenizer {name!r}: {_LONGER}")


@contextlib.contextmanager
def _readable(name: str) -> Any:
    """Turn whatever a broken tokenizer raises, at once or on a text that it has no token for, into one line."""
    with foreign.reading(f"tokenizer {name!r} cannot be read", "mend its files, or name another with --tokenizer"):
        yield


def _wrap(name: str, backend: Backend, sources: tuple[SourceFile, ...]) -> Tokenizer:
    def encode(documents: Sequence[str]) -> list[np.ndarray]:
        with _readable(name):
            batch = backend.encode_batch_fast(list(documents), add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=np.int64) for encoding in batch]

    specials = frozenset(token.content for token in backend.get_added_tokens_decoder().values() if token.special)
    return Tokenizer(name, backend.get_vocab_size(with_added_tokens=True), sources, encode, specials)


def _with_prefix(tokenizer: Tokenizer, backend: Backend, folder: Path | None, special_tokens: str) -> Tokenizer:
    """The tokenizer, told what stands before a text."""
    prefix: tuple[int, ...] = ()
    if special_tokens == "bos":
        bos = _bos(tokenizer, folder)
        number = None if bos is None else backend.token_to_id(bos)
        if number is None:
            raise InputError(
                f"special_tokens=bos: tokenizer {tokenizer.name} names no token for the beginning of a text; use none"
            )
        prefix, why = (number,), "as asked"
    elif special_tokens == "auto":
        prefix, why = _template_prefix(tokenizer, backend, folder), "as the tokenizer's template does at a start"
    if prefix:
        names = " ".join(repr(backend.id_to_token(number)) for number in prefix)
        words = (
            f"every block begins with {names} (id {', '.join(map(str, prefix))}), {why}; where a block begins inside "
        )
        words += "a document, its first token is not predicted"
    else:
        reason = "as asked" if special_tokens == "none" else "the tokenizer's template puts none at a start"
        words = f"no special token is put before a block ({reason})"
    return replace(tokenizer, prefix=prefix, special_tokens=f"{words}; no chat template is applied")


def _bos(tokenizer: Tokenizer, folder: Path | None) -> str | None:
    """The token for the beginning of a text, as text."""
    if tokenizer.name == "gpt2":
        return "<|endoftext|>"
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        entry = settings(folder, file).get("bos_token") if folder else None
        content = entry.get("content") if isinstance(entry, dict) else entry
        if isinstance(content, str):
            return content
    if folder is None or not (folder / SETTINGS).is_file():
        return None
    named = _as_transformers(tokenizer, folder).bos_token  # by the rules of its class, as GPT-2's
    return named if isinstance(named, str) else None


def _as_transformers(tokenizer: Tokenizer, folder: Path) -> Any:
    with _readable(tokenizer.name):
        return transformers_tokenizer(folder)


def _template_prefix(tokenizer: Tokenizer, backend: Backend, folder: Path | None) -> tuple[int, ...]:
    """Ids that a tokenizer's template puts before a text.

    Where tokenizer_config.json is there, transformers says: it changes what tokenizer.json has by settings such as
    add_bos_token, and by rules of its classes.
    """
    if backend.post_processor is None and folder is None:
        return ()
    plain = (token for token in ("a", *sorted(backend.get_vocab())) if token not in tokenizer.specials)
    probe = next((text for text in plain if len(tokenizer.encode([text])[0])), "")
    if folder is not None and (folder / SETTINGS).is_file():
        loaded = _as_transformers(tokenizer, folder)
        with _readable(tokenizer.name):
            whole = loaded(probe).input_ids
            bare = loaded(probe, add_special_tokens=False).input_ids
    else:
        whole = backend.encode(probe).ids
        bare = backend.encode(probe, add_special_tokens=False).ids
    starts = [k for k in range(len(whole) - len(bare) + 1) if whole[k : k + len(bare)] == bare]
    return tuple(whole[: starts[0]]) if starts else ()


def data_folder(data: Path | None, need: str, otherwise: str) -> Path:
    """The folder of text and tokenizer files: `data`, else VILLANI_DATA.

    Raises:
        InputError: neither is set or it is no folder; `need` and `otherwise` say what for and what else would do.
    """
    given = os.fspath(data) if data is not None else os.environ.get("VILLANI_DATA", "")
    if not given:
        raise InputError(f"{need} from the data folder: set VILLANI_DATA or --data to it, or {otherwise}")
    folder = local_path(given, "data folder")
    if not folder.is_dir():
        raise InputError(f"{need} from the data folder, but {given!r} (--data or VILLANI_DATA) is not a folder")
    return folder
