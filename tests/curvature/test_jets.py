"""Values with their tangents: maps of every order, and probes that are drawn where they are used."""

import pytest
import torch

from villani.curvature.jets import Jet, Probed, add_to, as_jet, mapped


def ones(probe, shape):
    return torch.full(tuple(shape), float(probe + 1))


def test_linear_maps_apply_to_every_order():
    a = Jet(torch.arange(3.0), {0: torch.ones(3), 4: 2 * torch.ones(3)}, {1: 3 * torch.ones(3)})
    m = torch.tensor([[1.0, 2.0, 3.0]])
    moved = mapped(a, lambda t: m @ t)
    assert moved.x.tolist() == [8]
    assert {k: t.tolist() for k, t in moved.first.items()} == {0: [6], 4: [12]}
    assert {k: t.tolist() for k, t in moved.second.items()} == {1: [18]}
    affine = mapped(a, lambda t: m @ t, torch.tensor([100.0]))
    assert affine.x.tolist() == [100]
    assert affine.first[0].tolist() == [6], "the constant part does not move"


def test_terms_are_added_and_not_in_place():
    term = torch.ones(2)
    sums = {}
    add_to(sums, 3, term)
    add_to(sums, 3, 2 * term)
    assert sums[3].tolist() == [3, 3]
    assert term.tolist() == [1, 1]


def test_what_does_not_move_has_no_tangents():
    jet = as_jet(torch.ones(2))
    assert (jet.first, jet.second) == ({}, {})
    assert as_jet(jet) is jet
    assert as_jet(2.0).x == 2.0


@pytest.mark.parametrize("shape", [(2, 3, 4), (6, 4)])
def test_a_vector_has_a_probe_for_every_sequence(shape):
    """Two sequences of three positions: rows of one sequence share the draw, those of the other have their own."""

    def numbered(probe, size):
        assert tuple(size) == (2, 1, 4)
        return torch.arange(8.0).view(2, 1, 4) + 100 * probe

    spread = Probed(torch.zeros(4), [0, 2], numbered).spread(2, torch.Size(shape))
    assert spread.first.keys() == {0, 2}
    rows = spread.first[2].reshape(2, 3, 4)
    assert rows[0].tolist() == [[200, 201, 202, 203]] * 3
    assert rows[1].tolist() == [[204, 205, 206, 207]] * 3
    assert tuple(spread.first[0].shape) == shape


def test_one_probe_for_all_sequences_has_the_shape_of_the_tensor():
    drawn = Probed(torch.zeros(2, 3), [1], ones).drawn()
    assert drawn.first[1].tolist() == [[2.0] * 3] * 2
    assert drawn.x.shape == (2, 3)
