"""The partition of θ by how orbits scale it: the coarsest one, its sums by hand, and sketches that keep products."""

import numpy as np
import pytest
import torch

from tests.criteria.models import two
from villani.criteria.partition import Parts, parts_of, sketch_into

BY_COLUMN = {0: torch.tensor([1.0, 1.0, -1.0])}  # the first two columns of a are scaled alike


def test_the_partition_is_the_coarsest_one():
    parts = parts_of(two().parameters, [BY_COLUMN, {1: torch.tensor(2.0)}])
    assert parts.count == 3
    a, b = (labels.expand(shape) for labels, shape in zip(parts.labels, ((2, 3), (3,)), strict=True))
    assert len(set(a[:, :2].flatten().tolist())) == 1
    assert len({int(a[0, 0]), int(a[0, 2]), int(b[0])}) == 3
    assert b.unique().numel() == 1
    assert parts.exponents[:, int(a[0, 0])].tolist() == [1, 0]
    assert parts.exponents[:, int(a[1, 2])].tolist() == [-1, 0]
    assert parts.exponents[:, int(b[1])].tolist() == [0, 2]
    assert parts_of(two().parameters, []).count == 2, "one a tensor where nothing is told apart"


def test_rescalings_cut_rows_and_columns_at_once():
    """Rows by the one, columns by the other: (2, 2) kinds in a; entries that both leave alone are in no other part."""
    parts = parts_of(two().parameters, [BY_COLUMN, {0: torch.tensor([[3.0], [0.0]])}])
    labels = parts.labels[0].expand(2, 3)
    kinds = [tuple(parts.exponents[:, int(k)]) for k in labels.flatten()]
    assert kinds == [(1, 3), (1, 3), (-1, 3), (1, 0), (1, 0), (-1, 0)]
    assert parts.count == 4 + 1
    assert parts.exponents[:, int(parts.labels[1].flatten()[0])].tolist() == [0, 0]


def test_sums_and_confinement_by_hand():
    parts = parts_of(two().parameters, [BY_COLUMN])
    a, b = torch.arange(6.0).view(2, 3), torch.tensor([10.0, 20.0, 40.0])
    left, right, rest = int(parts.labels[0].expand(2, 3)[0, 0]), int(parts.labels[0].expand(2, 3)[0, 2]), 2
    assert parts.sums([a, b])[[left, right, rest]].tolist() == [0 + 1 + 3 + 4, 2 + 5, 70]
    inside = parts.confine([a, b], [right, rest])
    assert inside[0].tolist() == [[0, 0, 2], [0, 0, 5]]
    assert inside[1].tolist() == b.tolist()
    assert parts.mask([right]).tolist() == [k == right for k in range(3)]


@pytest.mark.parametrize(
    ("labels", "shape"),
    [
        (torch.zeros(1, 1, dtype=torch.long), (3, 5)), (torch.tensor([[0, 1, 0, 1, 1]]), (3, 5)),
        (torch.tensor([[1], [0], [1]]), (3, 5)), (torch.tensor([[0], [1], [0]]), (3, 2**21 + 1)),
        (torch.tensor([0, 1, 1]), (3,)),
    ],
    ids=["whole", "columns", "rows", "more than is done at a time", "vector"],
)  # fmt: skip
def test_sums_of_products_are_those_in_float64(labels, shape):
    """Of float32 tensors: a million entries of 1.1·0.3 would lose their last digits there."""
    draw = torch.Generator().manual_seed(3)
    a, b = 1.1 + torch.rand(shape, generator=draw), torch.rand(shape, generator=draw)
    parts = Parts((labels,), np.zeros((0, 2)), 2)
    totals = np.full(2, 7.0)
    parts.add_product(totals, 0, a, b)
    product, where = a.double().numpy() * b.double().numpy(), np.broadcast_to(labels.numpy(), shape)
    assert totals == pytest.approx([7 + product[where == k].sum() for k in (0, 1)], rel=1e-12)


def sketched(parts, tensor, buckets):
    total = torch.zeros(parts.count * buckets, dtype=torch.float64)
    sketch_into(total, parts, 0, tensor, buckets)
    return total.view(parts.count, buckets)


def test_a_sketch_with_a_bucket_for_every_entry_keeps_all_products():
    """Signs cancel: the product of two sketches is that of the tensors, part by part; and sketches add up."""
    parts = parts_of(two().parameters, [BY_COLUMN])
    a, b = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    one, other = (sketched(parts, t, 6) for t in (a, b))
    assert (one * other).sum(dim=1).numpy() == pytest.approx(parts.sums([a * b, torch.zeros(3)]))
    assert torch.allclose(sketched(parts, a + 2 * b, 6), one + 2 * other)
    assert sorted(one.abs().flatten().tolist())[-6:] == pytest.approx(sorted(a.abs().flatten().tolist()))


def test_entries_share_buckets_in_turn_within_their_part():
    """Of entries 0 … 5 and two buckets, even ones are in the first: column 2 has the entries 2 and 5."""
    parts = parts_of(two().parameters, [BY_COLUMN])
    right = int(parts.labels[0].expand(2, 3)[0, 2])
    alone = parts.confine([torch.arange(6.0, dtype=torch.float64).view(2, 3), torch.zeros(3)], [right])[0]
    assert sketched(parts, alone, 2).abs()[right].tolist() == [2, 5]


def test_a_large_tensor_is_sketched_as_if_at_once():
    size = (1 << 22) + 3
    parts = Parts((torch.zeros(1, dtype=torch.long),), np.zeros((0, 1)), 1)
    own = sketched(parts, torch.arange(size, dtype=torch.float32), size)[0]
    assert torch.equal(own.abs(), torch.arange(size, dtype=torch.float64))
