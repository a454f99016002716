"""How parts of a tensor's gradient and products add up, against dense arithmetic."""

import numpy as np
import torch

from villani.objective.pieces import Piece, Rows, added, lookup


def normal(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_rows_of_a_table_are_looked_up_as_in_the_whole_of_it():
    table, ids = normal(7, 3, seed=0), torch.tensor([[5, 1, 5], [2, 2, 1]])
    numbers = ids.unique()
    rows = Rows(numbers, table[numbers].requires_grad_())
    assert torch.equal(lookup(rows, ids), table[ids])
    assert torch.equal(lookup(table, ids), table[ids])
    weights = normal(2, 3, 3, seed=1)
    whole = table.clone().requires_grad_()
    (expected,) = torch.autograd.grad((whole[ids] * weights).sum(), whole)
    (slope,) = torch.autograd.grad((lookup(rows, ids) * weights).sum(), rows.values)
    zero = Piece(0, table, torch.zeros_like(table), {}, np.zeros(0))
    for waiting in (None, zero):
        total = added(waiting, Piece(0, table, slope, {}, np.zeros(0)), numbers)
        torch.testing.assert_close(total.gradient, expected, rtol=1e-15, atol=0)


def test_dense_parts_and_rows_add_up_and_nothing_is_written_to():
    v, dense, curved = normal(6, 2, seed=2), normal(6, 2, seed=3), normal(6, 2, seed=4)
    numbers = torch.tensor([0, 4])
    rows, bent = normal(2, 2, seed=5), normal(2, 2, seed=6)
    waiting = Piece(1, torch.empty(0), dense, {2: (v, curved)}, np.array([1.0, 2.0]))
    before = dense.clone(), curved.clone()
    piece = Piece(1, normal(6, 2, seed=7), rows, {2: (v, bent)}, np.array([0.5, 0.25]))
    total = added(waiting, piece, numbers)
    assert total.value is piece.value
    spread = torch.zeros(6, 2, 2, dtype=torch.float64)
    for place, number in enumerate(numbers.tolist()):
        spread[number, :, 0], spread[number, :, 1] = rows[place], bent[place]
    assert torch.equal(total.gradient, dense + spread[..., 0])
    assert torch.equal(total.products[2][1], curved + spread[..., 1])
    assert total.products[2][0] is v
    assert total.curvatures.tolist() == [1.5, 2.25]
    assert torch.equal(dense, before[0])
    assert torch.equal(curved, before[1])
    twice = added(total, total)
    assert torch.equal(twice.gradient, 2 * total.gradient)
