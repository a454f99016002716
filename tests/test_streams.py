"""Keyed randomness: the same key, the same bits; another key, others."""

import itertools

import numpy as np

from villani.streams import Purpose, stream, word


def test_a_draw_is_a_function_of_its_key_alone():
    first = stream(3, Purpose.PROBE, 1, 2)
    first.standard_normal(100)
    stream(3, Purpose.PROBE, 1, 3).standard_normal(7)
    again = stream(3, Purpose.PROBE, 1, 2).standard_normal(100)
    assert np.array_equal(again, stream(3, Purpose.PROBE, 1, 2).standard_normal(100))
    assert not np.array_equal(again, first.standard_normal(100))


def test_no_two_keys_share_bits():
    """Purposes, seeds, indices, their order and their number."""
    keys = [(seed, purpose, *rest) for seed in (0, 1, 2**40) for purpose in Purpose
            for rest in ((), (0,), (0, 0), (1, 2), (2, 1), (12,))]  # fmt: skip
    words = {word(*key) for key in keys}
    assert len(words) == len(keys)
    assert all(0 <= w < 2**63 for w in words), "torch takes no larger seed"
    drawn = {stream(*key).bytes(16) for key in keys}
    assert len(drawn) == len(keys)


def test_streams_are_those_of_numpys_seed_sequence():
    """So that other programs can draw them too."""
    sequence = np.random.SeedSequence(5, spawn_key=(int(Purpose.LABELS), 4))
    expected = np.random.Generator(np.random.Philox(sequence)).integers(1 << 30, size=8)
    assert np.array_equal(stream(5, Purpose.LABELS, 4).integers(1 << 30, size=8), expected)


def test_neighbouring_streams_are_uncorrelated():
    rows = np.array([stream(0, Purpose.NOISE, k).standard_normal(4000) for k in range(20)])
    correlation = np.corrcoef(rows)
    off = [abs(correlation[i, j]) for i, j in itertools.combinations(range(20), 2)]
    assert max(off) < 5 / 4000**0.5
