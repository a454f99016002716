"""Degrees as linear forms: maps, sums and demands, with numbers put in for all unknowns that are left free."""

import itertools
import random
from fractions import Fraction

import pytest
import torch

from villani.criteria.forms import Forms, Weights


class Numbers:
    """Some number for each free unknown."""

    def __init__(self, forms, seed=0):
        self.forms, self.random, self.values = forms, random.Random(seed), {}

    def of(self, form):
        resolved = self.forms.equations.resolve(int(form))
        return sum(c * self.values.setdefault(u, self.random.randint(-99, 99)) for u, c in resolved.items())


def test_sums_broadcast_and_are_linear():
    forms = Forms({})
    a, b = forms.unknowns(torch.Size([2, 1])), forms.unknowns(torch.Size([3]))
    value = Numbers(forms)
    total, opposite, half = forms.pairs(a, b, Fraction(-2)), forms.negative(a), forms.scaled(a, Fraction(1, 2))
    for i, j in itertools.product(range(2), range(3)):
        assert value.of(total[i, j]) == value.of(a[i, 0]) - 2 * value.of(b[j])
        assert value.of(opposite[i, 0]) == -value.of(a[i, 0]) != 0
        assert value.of(half[i, 0]) == Fraction(value.of(a[i, 0]), 2)
    assert len({value.of(f) for f in [*a.flatten(), *b]}) == 5, "unknowns are told apart"


def test_demands_are_kept():
    forms = Forms({})
    a, b = forms.unknowns(torch.Size([2, 3])), forms.unknowns(torch.Size([3]))
    forms.demand_equal_along(a, 0)
    forms.merge(a[0], b)
    forms.demand_zero(b[:1])
    value = Numbers(forms)
    for j in range(3):
        assert value.of(a[0, j]) == value.of(a[1, j]) == value.of(b[j])
    assert value.of(b[0]) == 0
    assert value.of(b[1]) != value.of(b[2])


@pytest.mark.parametrize("outputs_first", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_a_matrix_maps_degrees_as_it_maps_numbers(outputs_first, transposed):
    """W_ij + x_j is the degree of y_i for every j, at the first use and at the second."""
    forms, outputs, inputs = Forms({}), 3, 2
    weights = Weights(
        0, torch.Size([outputs, inputs] if outputs_first != transposed else [inputs, outputs]), transposed
    )
    first, second = (forms.unknowns(torch.Size([inputs])) for _ in range(2))
    ys = [forms.map(x, weights, outputs_first, (4, outputs)) for x in (first.expand(4, inputs), second)]
    held = forms.plain(Weights(0, weights.shape))
    matrix = held if outputs_first != transposed else held.mT
    assert forms.plain(weights).shape == (held.mT.shape if transposed else held.shape)
    value = Numbers(forms)
    for x, y in zip((first, second), ys, strict=True):
        assert y.shape == (4, outputs)
        for i, j in itertools.product(range(outputs), range(inputs)):
            assert value.of(matrix[i, j]) + value.of(x[j]) == value.of(y[0, i])
    assert value.of(first[0]) != value.of(first[1]), "the first use demands nothing of its input"
    assert len({value.of(y) for y in ys[0][0]}) == outputs


def test_a_tensor_that_is_used_by_itself_has_an_unknown_for_each_entry_while_it_is_small():
    forms = Forms({})
    small, large = Weights(0, torch.Size([4, 5])), Weights(1, torch.Size([100, 50]))
    assert forms.plain(small).unique().numel() == 20
    columns = forms.plain(large)
    assert columns.shape == large.shape
    assert columns.unique().numel() == 50
    assert forms.coarse == {1}
    assert torch.equal(forms.plain(small), forms.plain(small)), "the same unknowns again"


def test_constants_that_are_void():
    nodes = [torch.fx.Graph().placeholder(name) for name in "abcd"]
    values = [torch.tensor([0.0, torch.inf, -torch.inf]), torch.tensor([0.0, 1.0]), torch.tensor([0, 0]), torch.ones(1)]
    forms = Forms(dict(zip(nodes, values, strict=True)))
    assert [forms.is_void(n) for n in nodes] == [True, False, False, False]
