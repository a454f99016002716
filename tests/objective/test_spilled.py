"""Sums on disk: exact in float64, tensor by tensor, and refused where they do not fit."""

import pytest
import torch
from torch import nn

from villani.errors import InputError
from villani.objective.objective import Objective
from villani.objective.spilled import Spilled


class Three(nn.Module):
    """A scalar, a tensor of more entries than are read at a time, and a vector."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(1.0))
        self.b = nn.Parameter(torch.ones(3, 2**20))
        self.c = nn.Parameter(torch.ones(5))


@pytest.fixture(scope="module")
def space():
    return Objective(Three(), [0.0], loss_fn=lambda m, _: m.a + m.b[0, 0] + m.c.sum()).parameters


def test_sums_are_those_in_float64_and_each_tensor_has_its_own(space):
    draw = torch.Generator().manual_seed(0)
    first = [torch.randn(p.tensor.shape, generator=draw) for p in space.parameters]
    with Spilled(space, "a sum") as total:
        assert all(torch.count_nonzero(total.part(i)) == 0 for i in range(3))
        for index, tensor in enumerate(first):
            total.add(index, tensor)
        total.add(1, 2.0**-40 * first[1].T.contiguous().view(3, -1))
        for index, tensor in enumerate(first):
            wanted = tensor.double()
            if index == 1:
                wanted = wanted + 2.0**-40 * first[1].T.contiguous().view(3, -1).double()
            part = total.part(index)
            assert part.dtype == torch.float64
            assert torch.equal(part, wanted)


def test_a_tensor_in_another_order_of_memory_is_added_entry_by_entry(space):
    turned = torch.arange(3.0 * 2**20).view(2**20, 3).T
    with Spilled(space, "a sum") as total:
        total.add(1, turned)
        assert torch.equal(total.part(1), turned.double())
        assert torch.count_nonzero(total.part(2)) == 0


def test_what_does_not_fit_on_disk_is_refused_in_a_line(space, monkeypatch):
    """About 24 MiB."""
    monkeypatch.setenv("VILLANI_DISK_GIB", "0.02")
    with pytest.raises(
        InputError, match=r"^a sum would keep about 24 MiB on disk, and the limit is 20\.5 MiB"
    ) as caught:
        Spilled(space, "a sum")
    assert "\n" not in str(caught.value)
