"""Random vectors over θ: fair, independent, keyed, and tensor by tensor."""

import numpy as np
import pytest
import torch

from tests.conftest import make_model
from villani.curvature.probes import rademacher, rademacher_probe, random_direction
from villani.objective.parameters import ParameterSpace
from villani.streams import Purpose, stream


def test_probes_depend_on_nothing_but_their_key():
    space = ParameterSpace(make_model("gpt2"))
    first = rademacher_probe(space, 1, 2, 3)
    rademacher_probe(space, 1, 2, 4)
    again = rademacher_probe(space, 1, 2, 3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    others = [rademacher_probe(space, *key) for key in ((2, 2, 3), (1, 3, 3), (1, 2, 4))]
    assert all(not torch.equal(first[0], other[0]) for other in others)


def test_signs_are_fair_and_independent():
    signs = torch.stack([rademacher(1000, stream(0, Purpose.PROBE, i), torch.float64) for i in range(500)])
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 4 / (1000 * 500) ** 0.5
    correlation = signs.T @ signs / 500 - torch.eye(1000)
    assert float(correlation.abs().max()) < 6.5 / 500**0.5  # half a million pairs


def test_random_direction_is_a_unit_vector():
    space = ParameterSpace(make_model("gpt2"))
    direction = random_direction(space, 0)
    assert sum(float(u.square().sum()) for u in direction) == pytest.approx(1)


@pytest.mark.parametrize("size", [1, 7, 8, 9, 1001])
def test_signs_are_the_bits_of_the_stream(size):
    """Eight to a byte, the highest first: numpy unpacks the same bytes."""
    packed = np.frombuffer(stream(5, Purpose.PROBE, 1).bytes((size + 7) // 8), dtype=np.uint8)
    expected = np.unpackbits(packed).astype(int)[:size] * 2 - 1
    for dtype in (torch.float32, torch.float64):
        signs = rademacher(size, stream(5, Purpose.PROBE, 1), dtype)
        assert signs.dtype == dtype
        assert signs.tolist() == expected.tolist()


def test_directions_of_one_seed_are_nearly_orthogonal():
    """Of d = 1,000 coordinates: inner products of size 1/√d."""
    space = ParameterSpace(make_model("gpt2"))
    flat = torch.stack([torch.cat([u.flatten() for u in random_direction(space, 3, i)]) for i in range(6)])
    gram = flat @ flat.T
    assert gram.diagonal().tolist() == pytest.approx([1] * 6)
    assert float((gram - torch.eye(6)).abs().max()) < 5 / space.size**0.5
