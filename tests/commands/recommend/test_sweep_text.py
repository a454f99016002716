"""The text of a sweep: which blocks are trained on and judged by, and documents that are cut."""

import numpy as np
import pytest

from tests.commands.recommend.test_sweep import settings
from villani.commands.recommend.sweep_text import HELD_OUT, read_sweep_text, whole_documents
from villani.errors import InputError
from villani.work.work import Work


def test_the_last_blocks_are_judged_by_where_no_other_text_is_given():
    text = read_sweep_text(settings(train_blocks=None, held_out_blocks=None), Work())
    whole = len(text.train.ids) + len(text.held_out.ids)
    assert len(text.held_out.ids) == max(2, round(HELD_OUT * whole))
    assert [record.blocks for record in text.records] == [len(text.train.ids), len(text.held_out.ids)]
    assert len(text.documents) == len(text.held_out.ids)
    few = read_sweep_text(settings(), Work())
    assert (len(few.train.ids), len(few.held_out.ids)) == (30, 12)
    np.testing.assert_array_equal(few.train.ids, text.train.ids[:30])
    np.testing.assert_array_equal(few.held_out.ids, text.held_out.ids[:12])


def test_another_text_is_judged_by_from_its_start(tmp_path):
    (tmp_path / "other.txt").write_text("Words that nobody trains on. " * 40)
    text = read_sweep_text(settings(held_out=str(tmp_path / "other.txt"), train_blocks=None), Work())
    own = read_sweep_text(settings(train_blocks=None, held_out_blocks=None), Work())
    assert len(text.train.ids) == len(own.train.ids) + len(own.held_out.ids)
    assert len(text.held_out.ids) == 12
    with pytest.raises(InputError, match="too few; give more text"):
        read_sweep_text(settings(held_out_blocks=1), Work())


def test_documents_that_are_cut_count_for_none():
    owners = np.array([0, 0, 1, 2, 2, 3])
    assert whole_documents(owners, 1, 4).tolist() == [-1, 1, -1]
    assert whole_documents(owners, 0, 6).tolist() == owners.tolist()
    assert whole_documents(owners, 3, 4).tolist() == [-1]
