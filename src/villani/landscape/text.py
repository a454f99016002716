"""Text as a model sees it: blocks of tokens, and the groups of blocks that are the unit of data noise."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from villani.errors import InputError
from villani.landscape.corpora import Corpus, load_corpus
from villani.landscape.objective import IGNORED
from villani.landscape.tokenizers import Tokenizer
from villani.runs.budget import Needs, hold
from villani.runs.records import TextRecord
from villani.streams import Purpose, stream


@dataclass(frozen=True)
class Blocks:
    """Blocks of tokens: `ids` and `labels`, each (M, T) int64; a label of -100 is not predicted.

    `documents` and `tokens` count the text before it was cut; `cut` says in words how it was.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    documents: int
    tokens: int
    cut: str


def cut_blocks(documents: Sequence[np.ndarray], block: int, *, boundaries: str = "documents are given") -> Blocks:
    """Cut documents into consecutive, non-overlapping blocks that cross no boundary.

    A tail shorter than `block` is padded on the right with id 0, which no real token attends to, and label -100. Labels
    are otherwise the ids: models shift them, so that a block of T tokens predicts T − 1.

    Args:
        documents: token ids, one int64 array each.
        block: T, tokens in a block, at least 2.
        boundaries: in words, what counts as a document.

    Raises:
        InputError: `block` is below 2, or no document has two tokens.
    """
    if block < 2:
        raise InputError(f"block={block}: expected at least 2 tokens, since the first is not predicted")
    counts = [-(-len(document) // block) for document in documents]
    hold(
        Needs(memory=16.0 * block * sum(counts)), what=f"text in blocks of {block:,} tokens",
        instead="lower --block",
    )  # fmt: skip
    tails = [len(document) % block for document in documents]
    ids = [_padded(document, block, 0) for document in documents]
    labels = [_padded(document, block, IGNORED) for document in documents]
    count = sum(len(rows) for rows in ids)
    if not count:
        raise InputError("the text has no two tokens in a row: there is nothing to predict")
    padded, single = sum(tail > 1 for tail in tails), sum(tail == 1 for tail in tails)
    return Blocks(
        ids=torch.from_numpy(np.concatenate(ids)),  # (M, T)
        labels=torch.from_numpy(np.concatenate(labels)),  # (M, T)
        documents=len(documents),
        tokens=sum(len(document) for document in documents),
        cut=(
            f"consecutive blocks of {block} tokens that do not overlap or cross documents ({boundaries}); a block "
            f"predicts all its tokens but the first; {padded} shorter tails are padded on the right, where nothing is "
            f"predicted; {single} tails of one token are dropped"
        ),
    )


def _padded(document: np.ndarray, block: int, fill: int) -> np.ndarray:
    """Rows of `block` tokens, (m, T) int64, the last filled up; a last row of one token is dropped."""
    whole, tail = divmod(len(document), block)
    rows = np.full((whole + (tail > 1), block), fill, dtype=np.int64)
    used = min(len(document), rows.size)
    rows.reshape(-1)[:used] = document[:used]
    return rows


def choose_groups(
    blocks: Blocks, groups: int, sequences: int, seed: int, *, disjoint: bool = False, reuse: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """G groups of B blocks, a seeded random choice.

    As a sample of the text, groups are drawn independently of each other: they may share blocks. Disjoint groups would
    be negatively correlated, and the ‖∇L‖² of the text come out too small by the noise of a block over their number,
    which near a minimum is larger than ‖∇L‖² itself. As the whole data set (`disjoint`), they share none.

    With the same seed and B, the first groups are the same whatever G is.

    Returns:
        ids and labels, each (G, B, T) int64.

    Raises:
        InputError: the text has fewer than G·B blocks (fewer than B if independent groups may `reuse` the text), or a
            count is below 1.
    """
    for name, value, least in (("groups", groups, 1), ("sequences", sequences, 1), ("seed", seed, 0)):
        if value < least:
            raise InputError(f"{name}={value}: expected at least {least}")
    available, length = blocks.ids.shape
    if available < (sequences if reuse and not disjoint else groups * sequences):
        raise InputError(
            f"text has {available} blocks of {length} tokens; {groups} groups × {sequences} sequences need "
            f"{groups * sequences}: give more text, or fewer groups or shorter blocks"
        )
    hold(
        Needs(memory=16.0 * groups * sequences * length), what=f"{groups:,} groups of {sequences:,} blocks",
        instead="lower groups or sequences",
    )  # fmt: skip
    if disjoint:
        chosen = stream(seed, Purpose.GROUPS).permutation(available)[: groups * sequences].reshape(groups, sequences)
    else:
        draws = (stream(seed, Purpose.GROUPS, group) for group in range(groups))
        chosen = np.stack([draw.choice(available, size=sequences, replace=False) for draw in draws])
    return blocks.ids[chosen], blocks.labels[chosen]


def load_groups(
    text: str,
    tokenizer: Tokenizer,
    *,
    block: int,
    groups: int,
    sequences: int,
    seed: int,
    finite: bool = False,
    reuse: bool = False,
    vocabulary: int,
    context: int | None,
    data: Path | None = None,
) -> tuple[torch.Tensor, torch.Tensor, TextRecord]:
    """Read, tokenise, cut and choose: the token groups that a measurement is over.

    Args:
        text: corpus spec, see `load_corpus`.
        tokenizer: from `load_tokenizer`.
        block: T, tokens in a block.
        groups: G.
        sequences: B, blocks in a group.
        seed: of the choice of blocks.
        reuse: groups may come to more tokens than the text has, being independent draws from it.
        finite: the groups are the whole data set, so they share no block; else they are independent draws.
        vocabulary: token ids that the model knows.
        context: longest sequence that the model accepts, or None.
        data: see `load_corpus`.

    Returns:
        ids and labels, each (G, B, T) int64, and the record of where they come from.

    Raises:
        InputError: the text, its length, the block or the vocabulary does not fit.
    """
    if context is not None and block > context:
        raise InputError(f"block={block}: the model accepts at most {context} tokens: choose a shorter block")
    corpus = load_corpus(text, data=data)
    blocks, _ = cut_corpus(corpus, tokenizer, block, vocabulary)
    ids, labels = choose_groups(blocks, groups, sequences, seed, disjoint=finite, reuse=reuse)
    return ids, labels, text_record(text, tokenizer, corpus, blocks, ids, labels)


def cut_corpus(corpus: Corpus, tokenizer: Tokenizer, block: int, vocabulary: int) -> tuple[Blocks, np.ndarray]:
    """The blocks of a text as `cut_blocks` cuts it, and (M,) the document that each is of.

    Raises:
        InputError: the tokenizer gives ids that the model does not know, or as `cut_blocks`.
    """
    documents = tokenizer.encode(corpus.documents)
    largest = max((int(document.max()) for document in documents if len(document)), default=0)
    if largest >= vocabulary:
        raise InputError(
            f"tokenizer {tokenizer.name} gives ids up to {largest}, and the model knows {vocabulary}: choose another "
            f"--tokenizer, or config:NAME?vocab={tokenizer.vocabulary} for random weights"
        )
    counts = [len(document) // block + (len(document) % block > 1) for document in documents]
    return cut_blocks(documents, block, boundaries=corpus.boundaries), np.repeat(np.arange(len(counts)), counts)


def part_of(blocks: Blocks, documents: np.ndarray, start: int, stop: int, words: str) -> Blocks:
    """Some of the blocks; documents are counted that have at least one of them."""
    ids, labels = blocks.ids[start:stop], blocks.labels[start:stop]
    count = len(np.unique(documents[start:stop]))
    return Blocks(ids, labels, count, int((labels >= 0).sum()), f"{blocks.cut}; {words}")


def text_record(
    spec: str, tokenizer: Tokenizer, corpus: Corpus, blocks: Blocks, ids: torch.Tensor, labels: torch.Tensor
) -> TextRecord:
    """Where measured tokens come from, and their checksum."""
    return TextRecord(
        spec=spec,
        sources=list(corpus.sources),
        tokenizer=tokenizer.name,
        tokenizer_sources=list(tokenizer.sources),
        documents=blocks.documents,
        tokens=blocks.tokens,
        blocks=len(blocks.ids),
        cut=blocks.cut,
        token_checksum=hashlib.sha256(ids.numpy().tobytes() + labels.numpy().tobytes()).hexdigest(),
    )
