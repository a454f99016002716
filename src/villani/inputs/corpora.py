"""Text to measure on: corpora by name, files and hub data sets, as documents."""

import os
import re
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from villani.errors import InputError, first_line
from villani.inputs.folders import is_regular, local_path, shortened
from villani.inputs.hub import hub_files
from villani.inputs.tokenizers import builtin_documents, builtin_source, data_folder, text_source
from villani.work.budget import Needs, hold
from villani.work.records import SourceFile

_PER_BYTE = 12  # bytes of memory for a byte of text: it, its copy, and up to a token of 8 bytes for every few
_PTB = ("train", "valid", "test")
_WIKITEXT = ("valid", "test", "train")
_WIKITEXT_HUB = "hub:Salesforce/wikitext?config=wikitext-103-raw-v1&split=train&column=text"
_NAMED = "builtin, ptb[:train|valid|test], wikitext-103[:valid|test|train], hub:OWNER/NAME?config=&split=&column="
_BYTE_ORDER_MARK = "\ufeff"
# A heading stands between blank lines: some equations in WikiText look like one otherwise.
_HEADING = re.compile(r"(?:\A|(?<=\n)) ?\n = (?!= )[^\n]*(?<! =) = \n(?= ?\n)")


@dataclass(frozen=True)
class Corpus:
    """Documents of text as they stand, the files they came from, and in words what counts as a document.

    `remarks` tell what was left out of a file.
    """

    spec: str
    documents: tuple[str, ...]
    sources: tuple[SourceFile, ...]
    boundaries: str
    remarks: tuple[str, ...] = ()


def load_corpus(spec: str, *, data: Path | None = None) -> Corpus:
    """Text for `builtin`, `ptb[:SPLIT]`, `wikitext-103[:SPLIT]`, `hub:NAME?...`, or UTF-8 files joined with commas.

    Args:
        spec: which text. `hub:owner/name?config=C&split=S&column=text` reads a hub data set; a row is a document.
        data: folder that holds `ptb/` and `wikitext-103/`; the environment variable VILLANI_DATA by default.

    Raises:
        InputError: no such text, not readable, empty, or not UTF-8.
    """
    corpus = _load(spec, data)
    marked = sum(document.startswith(_BYTE_ORDER_MARK) for document in corpus.documents)
    if not marked:
        return corpus
    documents = tuple(document.removeprefix(_BYTE_ORDER_MARK) for document in corpus.documents)
    return replace(corpus, documents=documents, remarks=(f"{marked} byte order marks at the start were left out",))


def _load(spec: str, data: Path | None) -> Corpus:
    name, _, split = spec.partition(":")
    if spec == "builtin":
        texts = tuple(text for _, text in builtin_documents())
        return Corpus(spec, texts, (builtin_source(),), "a topic of Python's documentation is a document")
    if name == "ptb":
        return _load_ptb(spec, _split(spec, split, _PTB), data)
    if name in ("wikitext-103", "wikitext"):
        return _load_wikitext(spec, _split(spec, split, _WIKITEXT), data)
    if name == "hub":
        rows, source = _load_hub(spec)
        return Corpus(spec, _not_blank(tuple(rows), spec), (source,), "a row of the data set is a document")
    return _load_files(spec)


def _split(spec: str, split: str, known: tuple[str, ...]) -> str:
    if split and split not in known:
        raise InputError(f"text {spec!r}: unknown split {split!r}; known: {', '.join(known)}")
    return split or known[0]


def _load_ptb(spec: str, split: str, data: Path | None) -> Corpus:
    text, source = _read_data(f"ptb/ptb.{split}.txt", spec, data)
    return Corpus(spec, (text,), (source,), "the file is one document, since it does not mark where articles begin")


def _load_wikitext(spec: str, split: str, data: Path | None) -> Corpus:
    if split == "train":
        rows, source = _load_hub(_WIKITEXT_HUB)
        text = "".join(row or " \n" for row in rows)  # the data set has emptied the blank lines
    else:
        text, source = _read_data(f"wikitext-103/{split}.txt", spec, data)
    return Corpus(spec, split_articles(text), (source,), "an article, which begins at ' = Title = ', is a document")


def split_articles(text: str) -> tuple[str, ...]:
    """Cut WikiText before the lines that are level-one headings; together the articles are the text, unchanged."""
    starts = [match.start() for match in _HEADING.finditer(text)]
    edges = [0, *(start for start in starts if text[:start].strip()), len(text)]
    return tuple(text[a:b] for a, b in pairwise(edges))


def _load_files(spec: str) -> Corpus:
    alone = os.path.exists(os.path.expanduser(spec))  # a file may have a comma in its name; no list is too long to ask
    names = [spec] if alone else [part.strip() for part in spec.split(",")]
    texts, sources = [], []
    for name in names:
        if not name:
            raise InputError(
                f"text {shortened(spec)!r}: an empty file name; give files joined with commas, or one of: {_NAMED}"
            )
        path = local_path(name, "text")
        if not path.exists():
            raise InputError(f"text {shortened(name)!r}: no such file, and not one of: {_NAMED}")
        text, source = _read_text(path, path.name)
        texts.append(text)
        sources.append(source)
    return Corpus(spec, tuple(texts), tuple(sources), "a file is one document")


def _read_data(name: str, spec: str, data: Path | None) -> tuple[str, SourceFile]:
    folder = data_folder(data, f"text {spec} reads {name}", "use --text builtin or a file")
    if not (folder / name).exists():
        raise InputError(f"text {spec}: no {name} in the data folder (--data or VILLANI_DATA)")
    return _read_text(folder / name, name)


def _read_text(path: Path, name: str) -> tuple[str, SourceFile]:
    if path.is_dir():
        raise InputError(f"text {name!r} is a folder: give files, joined with commas")
    if not is_regular(path):
        raise InputError(f"text {name!r} is a device, pipe or socket: give regular files")
    try:
        hold(
            Needs(memory=float(_PER_BYTE * path.stat().st_size)), what=f"text {name!r}", instead="give a part of it"
        )  # fmt: skip
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"text {name!r} cannot be read: {error.strerror}") from error
    if b"\0" in content:
        raise InputError(f"text {name!r} has a NUL byte at offset {content.index(0)}: give text encoded in UTF-8")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"text {name!r} is not UTF-8 at byte {error.start}: re-encode it, as with iconv") from error
    _not_blank((text,), name)
    return text, text_source(name, text)


def _not_blank(documents: tuple[str, ...], name: str) -> tuple[str, ...]:
    if not any(document.replace(_BYTE_ORDER_MARK, "").strip() for document in documents):
        raise InputError(f"text {name!r} is empty, or white space only")
    return documents


def _load_hub(spec: str) -> tuple[list[str], SourceFile]:
    """Rows of a hub data set's text column, and their size and checksum joined end to end."""
    name, config, split, column = _hub_parts(spec)
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"text {name!r} is a hub data set: to install, run: pip install 'villani[hub]'") from error
    if not datasets.config.HF_HUB_OFFLINE:
        hub_files(name, "dataset")  # without a network, fail here at once rather than after many retries
    try:
        rows: Any = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the errors of `datasets` have no common base
        raise InputError(f"text {spec!r} cannot be loaded: {first_line(error)}") from error
    if column not in rows.column_names:
        raise InputError(f"text {spec!r}: no column {column!r}; there are: {', '.join(rows.column_names)}")
    texts = list(rows[column])
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"text {spec!r}: column {column!r} does not hold text")
    return texts, text_source(spec, "".join(texts))


def _hub_parts(spec: str) -> tuple[str, str | None, str, str]:
    name, _, query = spec.removeprefix("hub:").partition("?")
    try:
        options = dict(parse_qsl(query, strict_parsing=True)) if query else {}
    except ValueError as error:
        raise InputError(f"text {spec!r}: options must read ?config=C&split=S&column=text") from error
    unknown = options.keys() - {"config", "split", "column"}
    if unknown or not name:
        raise InputError(f"text {spec!r}: expected hub:OWNER/NAME?config=C&split=S&column=text")
    return name, options.get("config"), options.get("split", "train"), options.get("column", "text")
