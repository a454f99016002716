"""How parts of a tensor's gradient and products add up, against dense arithmetic."""

import numpy as np
import torch

from villani.objective.pieces import Piece, Rows, added, lookup, to_wait


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


def test_dense_parts_and_rows_add_up_in_what_waits_and_nothing_else_is_written_to():
    v, dense, curved = normal(6, 2, seed=2), normal(6, 2, seed=3), normal(6, 2, seed=4)
    numbers = torch.tensor([0, 4])
    rows, bent = normal(2, 2, seed=5), normal(2, 2, seed=6)
    waiting = Piece(1, torch.empty(0), dense, {2: (v, curved)}, np.array([1.0, 2.0]))
    one = to_wait(waiting, shared=True)
    assert torch.equal(one.gradient, dense)
    assert torch.equal(one.products[2][1], curved)
    assert one.products[2][0].numel() == one.value.numel() == 0
    sums = one.gradient, one.products[2][1]
    before = [t.clone() for t in (dense, curved, rows, bent, v)]
    piece = Piece(1, normal(6, 2, seed=7), rows, {2: (v, bent)}, np.array([0.5, 0.25]))
    total = added(one, piece, numbers)
    assert total.value is piece.value
    spread = torch.zeros(6, 2, 2, dtype=torch.float64)
    for place, number in enumerate(numbers.tolist()):
        spread[number, :, 0], spread[number, :, 1] = rows[place], bent[place]
    assert torch.equal(total.gradient, dense + spread[..., 0])
    assert torch.equal(total.products[2][1], curved + spread[..., 1])
    assert total.products[2][0] is v
    assert total.curvatures.tolist() == [1.5, 2.25]
    assert total.gradient is sums[0]
    assert total.products[2][1] is sums[1]
    assert all(torch.equal(a, b) for a, b in zip((dense, curved, rows, bent, v), before, strict=True))
    more = Piece(1, piece.value, normal(6, 2, seed=8), {2: (v, normal(6, 2, seed=9))}, np.zeros(2))
    expected = total.gradient + more.gradient, total.products[2][1] + more.products[2][1]
    twice = added(to_wait(total, shared=False), more)
    assert torch.equal(twice.gradient, expected[0])
    assert torch.equal(twice.products[2][1], expected[1])
    assert twice.gradient is sums[0]
