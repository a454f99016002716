"""Text as a model sees it: blocks of tokens, and the groups of blocks that are the unit of data noise."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from villani.errors import InputError
from villani.inputs.corpora import Corpus
from villani.inputs.tokenizers import Tokenizer
from villani.objective.objective import IGNORED
from villani.streams import Purpose, stream
from villani.work.budget import Needs, hold
from villani.work.records import TextRecord


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

    @property
    def counts(self) -> np.ndarray:
        """(M,) predicted tokens of each block."""
        return np.asarray((self.labels[:, 1:] != IGNORED).sum(dim=1).numpy())


def cut_blocks(
    documents: Sequence[np.ndarray],
    block: int,
    *,
    boundaries: str = "documents are given",
    prefix: Sequence[int] = (),
) -> Blocks:
    """Cut documents into consecutive, non-overlapping blocks that cross no boundary.

    A tail shorter than `block` is padded on the right with id 0, which no real token attends to, and label -100. Labels
    are otherwise the ids: models shift them, so that a block of T tokens predicts T − 1.

    Special tokens of `prefix` stand before every block, since a model is given each block alone. Nothing predicts them,
    and they predict the first token of a document only: where a block begins inside one, its first token has no past.

    Args:
        documents: token ids, one int64 array each.
        block: T, tokens in a block with its prefix, at least 2 more than that.
        boundaries: in words, what counts as a document.
        prefix: ids of special tokens.

    Raises:
        InputError: `block` is too short, or no document has two tokens (one, with a prefix).
    """
    if block < 2 + len(prefix):
        raise InputError(
            f"block={block}: expected at least {2 + len(prefix)} tokens, since the first is not predicted"
            + (f" and {len(prefix)} are special" if prefix else "")
        )
    width = block - len(prefix)
    counts = [-(-len(document) // width) for document in documents]
    hold(
        Needs(memory=16.0 * block * sum(counts)), what=f"text in blocks of {block:,} tokens",
        instead="lower --block",
    )  # fmt: skip
    rows = [_rows(document, width, bool(prefix)) for document in documents]
    if not any(map(len, rows)):
        raise InputError("the text has no two tokens in a row: there is nothing to predict")
    ids = np.concatenate([_framed(pieces, prefix, 0) for pieces in rows])  # (M, T)
    labels = np.concatenate([_framed(pieces, [IGNORED] * len(prefix), IGNORED) for pieces in rows])  # (M, T)
    if prefix:
        starts = np.cumsum([0, *(len(pieces) for pieces in rows)])[:-1]
        inside = np.setdiff1d(np.arange(len(ids)), starts)
        labels[inside, len(prefix)] = IGNORED
    short = sum(bool(len(pieces)) and (pieces[-1] < 0).any() for pieces in rows)
    dropped = sum(len(document) for document in documents) - sum(int((pieces >= 0).sum()) for pieces in rows)
    return Blocks(
        ids=torch.from_numpy(ids),
        labels=torch.from_numpy(labels),
        documents=len(documents),
        tokens=sum(len(document) for document in documents),
        cut=(
            f"consecutive blocks of {block} tokens that do not overlap or cross documents ({boundaries}); a block "
            f"predicts all its tokens but the first; {short} shorter tails are padded on the right, where nothing is "
            f"predicted; {dropped} tails of one token are dropped"
        ),
    )


def _rows(document: np.ndarray, width: int, prefixed: bool) -> np.ndarray:
    """Rows of `width` tokens, (m, width) int64, the last filled up with −1.

    A last row of one token is dropped where nothing predicts it: always, but for a document of one token with a prefix.
    """
    whole, tail = divmod(len(document), width)
    kept = tail > 1 or (tail == 1 and prefixed and not whole)
    rows = np.full((whole + kept, width), -1, dtype=np.int64)
    used = min(len(document), rows.size)
    rows.reshape(-1)[:used] = document[:used]
    return rows


def _framed(rows: np.ndarray, prefix: Sequence[int], fill: int) -> np.ndarray:
    """(m, T): the rows behind a prefix, with `fill` where they are not filled."""
    columns = np.tile(np.asarray(prefix, dtype=np.int64), (len(rows), 1))
    return np.hstack([columns.reshape(len(rows), len(prefix)), np.where(rows < 0, fill, rows)])


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


def check_context(block: int, context: int | None) -> None:
    """Refuse blocks that are longer than what the model accepts."""
    if context is not None and block > context:
        raise InputError(f"block={block}: the model accepts at most {context} tokens: choose a shorter block")


def cut_corpus(corpus: Corpus, tokenizer: Tokenizer, block: int, vocabulary: int) -> tuple[Blocks, np.ndarray]:
    """The blocks of a text as `cut_blocks` cuts it, and (M,) the document that each is of.

    Raises:
        InputError: the tokenizer gives ids that the model does not know, or as `cut_blocks`.
    """
    documents = tokenizer.encode(corpus.documents)
    largest = max([0, *tokenizer.prefix, *(int(document.max()) for document in documents if len(document))])
    if largest >= vocabulary:
        raise InputError(
            f"tokenizer {tokenizer.name} gives ids up to {largest}, and the model knows {vocabulary}: choose another "
            f"--tokenizer, or config:NAME?vocab={tokenizer.vocabulary} for random weights"
        )
    blocks = cut_blocks(documents, block, boundaries=corpus.boundaries, prefix=tokenizer.prefix)
    width = block - len(tokenizer.prefix)
    counts = [len(_rows(document, width, bool(tokenizer.prefix))) for document in documents]
    return blocks, np.repeat(np.arange(len(counts)), counts)


def part_of(blocks: Blocks, documents: np.ndarray, start: int, stop: int, words: str) -> Blocks:
    """Some of the blocks; documents are counted that have at least one of them."""
    ids, labels = blocks.ids[start:stop], blocks.labels[start:stop]
    count = len(np.unique(documents[start:stop]))
    return Blocks(ids, labels, count, int((labels >= 0).sum()), f"{blocks.cut}; {words}")


def text_record(
    corpus: Corpus, tokenizer: Tokenizer, blocks: Blocks, ids: torch.Tensor, labels: torch.Tensor
) -> TextRecord:
    """Where measured tokens come from, and their checksum."""
    return TextRecord(
        spec=corpus.spec,
        sources=list(corpus.sources),
        tokenizer=tokenizer.name,
        tokenizer_sources=list(tokenizer.sources),
        documents=blocks.documents,
        tokens=blocks.tokens,
        blocks=len(blocks.ids),
        cut=blocks.cut,
        special_tokens=tokenizer.special_tokens,
        remarks=remarks(corpus, tokenizer),
        token_checksum=hashlib.sha256(ids.numpy().tobytes() + labels.numpy().tobytes()).hexdigest(),
    )


def remarks(corpus: Corpus, tokenizer: Tokenizer) -> list[str]:
    """What a reader of a text might not expect to be in it: carriage returns, byte order marks, special tokens.

    Nothing is changed in the text but a byte order mark at its start, which `load_corpus` leaves out.
    """
    found = list(corpus.remarks)
    for characters, words in (("\r\n", "CRLF line ends"), ("\ufeff", "byte order marks inside")):
        count = sum(document.count(characters) for document in corpus.documents)
        if count:
            found.append(f"{words} ({count:,}) are part of the text")
    names = {"<unk>", *tokenizer.specials}
    for name in sorted(names):
        count = sum(document.count(name) for document in corpus.documents)
        if count:
            pieces = len(tokenizer.encode([name])[0])
            how = "a special token" if name in tokenizer.specials else f"plain text, {pieces} tokens"
            found.append(f"{name!r} stands {count:,} times in the text and is read as {how}")
    return found
