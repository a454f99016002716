"""The text of a sweep: what is trained on, what is judged by, and which document each judged block is of."""

from dataclasses import dataclass

import numpy as np

from villani.commands.recommend.settings import SweepSettings
from villani.commands.subject import load, load_blocks, load_text, load_tokenizer_of
from villani.errors import InputError
from villani.inputs.text import Blocks, check_context, part_of, text_record
from villani.statistics import Array
from villani.work.records import TextRecord
from villani.work.work import Work

HELD_OUT = 0.1  # of the blocks, at the end, where no other text is given


@dataclass(frozen=True, eq=False)
class SweepText:
    """What is trained on and what is judged by.

    Attributes:
        train: blocks.
        held_out: blocks.
        documents: (M,) the document of each held-out block; −1 where a part of it is missing.
        records: of both.
    """

    train: Blocks
    held_out: Blocks
    documents: Array
    records: tuple[TextRecord, TextRecord]


def read_sweep_text(settings: SweepSettings, work: Work) -> SweepText:
    """The text of a sweep, read and cut once.

    Raises:
        InputError: no such text, or one that does not fit the model or is too short.
    """
    key = ("sweep text", settings.text, settings.held_out, settings.block, settings.train_blocks)
    return work.loaded((*key, settings.held_out_blocks), lambda: _read_text(settings, work))


def _read_text(settings: SweepSettings, work: Work) -> SweepText:
    corpus = load_text(settings.text, work)
    judging = load_text(settings.held_out, work) if settings.held_out else corpus
    loaded = load(settings, work)
    check_context(settings.block, loaded.record.context)
    tokenizer = load_tokenizer_of(settings, work, loaded)
    whole, owners = load_blocks(settings.text, settings, work, loaded)
    end, start, other = len(whole.ids), 0, whole
    judged = owners
    if settings.held_out:
        other, judged = load_blocks(settings.held_out, settings, work, loaded)
    else:
        end -= max(2, round(HELD_OUT * end))
        start = end
    stop = len(other.ids) if settings.held_out_blocks is None else min(len(other.ids), start + settings.held_out_blocks)
    end = end if settings.train_blocks is None else min(end, settings.train_blocks)
    if end < 1 or stop - start < 2:
        raise InputError(
            f"text has {len(whole.ids)} blocks of {settings.block} tokens to train on and judge by: too few; give more "
            "text, or shorter blocks"
        )
    train_part = part_of(whole, owners, 0, end, f"blocks 0 to {end - 1} are trained on")
    held_part = part_of(other, judged, start, stop, f"blocks {start} to {stop - 1} are judged by")
    records = [
        text_record(source, tokenizer, blocks, blocks.ids, blocks.labels)
        for source, blocks in ((corpus, train_part), (judging, held_part))
    ]
    return SweepText(train_part, held_part, whole_documents(judged, start, stop), (records[0], records[1]))


def whole_documents(owners: Array, start: int, stop: int) -> Array:
    """(M,) the document of each block from `start` to `stop`; −1 where it began before or goes on after."""
    part = np.asarray(owners[start:stop]).copy()
    for inside, outside in ((start, start - 1), (stop - 1, stop)):
        if 0 <= outside < len(owners) and owners[inside] == owners[outside]:
            part[owners[start:stop] == owners[inside]] = -1
    return part
