"""The token groups of a text for a model, in one call: what `Objective` takes."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from villani.errors import InputError, check_whole
from villani.inputs.corpora import Corpus, load_corpus
from villani.inputs.models import LoadedModel
from villani.inputs.text import check_context, choose_groups, cut_corpus
from villani.inputs.tokenizers import load_tokenizer, text_source


def groups_from_text(
    text: str | os.PathLike[str] | Sequence[str],
    model: LoadedModel | nn.Module,
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    groups: int = 16,
    sequences: int = 4,
    block: int = 128,
    seed: int = 0,
    finite: bool = False,
    special_tokens: str = "auto",
    data: str | os.PathLike[str] | None = None,
) -> list[dict[str, torch.Tensor]]:
    """Tokenise a text, cut it into blocks that cross no document, and choose groups of blocks at random.

        loaded = villani.load_model("builtin:tiny")
        groups = villani.groups_from_text("builtin", loaded, groups=12, block=64)
        objective = villani.Objective(loaded.model, groups, weight_decay=0.1)

    Args:
        text: which text: `builtin`, `ptb`, `wikitext-103`, `hub:NAME`, or a UTF-8 file, several joined with commas. A
            list or tuple is the documents themselves.
        model: from `load_model`, which names its tokenizer; of any other module, name `tokenizer` as well.
        tokenizer: `builtin`, `gpt2`, a folder or a hub id.
        groups: G, of which 12 or more give good intervals.
        sequences: B, blocks in a group.
        block: T, tokens in a block.
        seed: of the choice of blocks; with the same, the first groups are the same whatever G is.
        finite: the groups will be the whole data set, so they share no block; else they are independent draws.
        special_tokens: what stands before a block: `auto` (the tokenizer's own template), `none` or `bos`.
        data: folder of texts and tokenizers that have names; the environment variable VILLANI_DATA by default.

    Returns:
        G mappings, each with `input_ids` and `labels`, (B, T) int64 on the CPU; −100 in labels is not predicted.

    Raises:
        InputError: no such text or tokenizer, less text than G·B blocks, a block longer than the model takes, or token
            ids that it does not know.
    """
    check_whole(1, groups=groups, sequences=sequences, block=block)
    check_whole(0, seed=seed)
    module: Any = model.model if isinstance(model, LoadedModel) else model
    if not isinstance(module, nn.Module):
        raise InputError(f"model is a {type(module).__name__}: expected what load_model gives, or a torch.nn.Module")
    name = model.tokenizer if tokenizer is None and isinstance(model, LoadedModel) else tokenizer
    if name is None:
        raise InputError("tokenizer=None: expected builtin, gpt2, a folder or a hub id, where model is a plain module")
    folder = None if data is None else Path(data)
    corpus, cutter = _corpus(text, folder), load_tokenizer(os.fspath(name), data=folder, special_tokens=special_tokens)
    known = vocabulary(module)
    check_context(int(block), model.record.context if isinstance(model, LoadedModel) else None)
    blocks, _ = cut_corpus(corpus, cutter, int(block), known)
    ids, labels = choose_groups(blocks, int(groups), int(sequences), int(seed), disjoint=finite)
    return as_groups(ids, labels)


def as_groups(ids: torch.Tensor, labels: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """(G, B, T) ids and labels as the groups that `Objective` takes."""
    return [{"input_ids": i, "labels": y} for i, y in zip(ids, labels, strict=True)]


def _corpus(text: Any, data: Path | None) -> Corpus:
    if isinstance(text, str | os.PathLike):
        return load_corpus(os.fspath(text), data=data)
    if not isinstance(text, list | tuple) or not all(isinstance(document, str) for document in text):
        raise InputError(f"text is a {type(text).__name__}: expected the name of a text, or a list of documents (str)")
    try:
        source = text_source("documents", "".join(text))
    except UnicodeEncodeError as error:
        raise InputError(f"text has a lone surrogate at {error.start}, no character: decode it as UTF-8") from error
    return Corpus("documents", tuple(text), (source,), "documents are given")


def vocabulary(model: Any) -> int:
    """How many token ids a model knows."""
    find = getattr(model, "get_input_embeddings", None)
    size = getattr(find(), "num_embeddings", None) if callable(find) else None
    if size is None:
        raise InputError(f"{type(model).__name__} has no get_input_embeddings: give Objective token ids of your own")
    return int(size)
