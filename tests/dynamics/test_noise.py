"""Noise drawn piece by piece: its law, its keys, and the same bits on any number of threads."""

import math

import torch
from scipy.stats import kstest

from villani.dynamics.noise import PIECE, add_gaussian, gaussian
from villani.streams import Purpose


def test_noise_depends_on_its_key_and_not_on_threads():
    like = torch.zeros(PIECE + 3)
    once = gaussian(like, 0, Purpose.NOISE, 1, 2, 0)
    assert abs(float(once.mean())) < 4 / math.sqrt(PIECE)
    assert abs(float(once.var()) - 1) < 4 * math.sqrt(2 / PIECE)
    seen = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        tensor = torch.zeros(PIECE + 3)
        add_gaussian([tensor], [1.0], 0, 1, 2)
        seen.append(tensor)
    torch.set_num_threads(before)
    assert torch.equal(seen[0], once)
    assert torch.equal(seen[1], once)
    for other in ((1, 3), (2, 2)):
        tensor = torch.zeros(9)
        add_gaussian([tensor], [1.0], 0, *other)
        assert not torch.equal(tensor, once[:9])
    assert not torch.equal(once[:3], once[PIECE:])


def test_the_law_is_normal():
    drawn = gaussian(torch.zeros(20_000, dtype=torch.float64), 3, Purpose.START, 0)
    assert kstest(drawn.numpy(), "norm").pvalue > 1e-3
    assert gaussian(torch.zeros(2, 3), 3, Purpose.START, 0).dtype == torch.float32


def test_scales_are_of_tensors_and_what_comes_before_is_seen_in_pieces():
    """None is drawn for 0, and the callback may write the entries that noise is about to be added to."""
    tensors, seen = [torch.zeros(PIECE + 5), torch.zeros(7)], []

    def before(index, part):
        seen.append((index, part.start, part.stop))
        tensors[index][part] = 10.0

    add_gaussian(tensors, [0.0, 2.0], 1, 0, 4, before)
    assert sorted(seen) == [(0, 0, PIECE), (0, PIECE, PIECE + 5), (1, 0, 7)]
    assert (tensors[0] == 10).all()
    expected = 10 + 2 * gaussian(torch.zeros(7), 1, Purpose.NOISE, 0, 4, 1)
    assert torch.equal(tensors[1], expected)
