"""Which loaders go over their data once and in order."""

import pytest
import torch
from accelerate.data_loader import SkipBatchSampler
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, Sampler, SequentialSampler

from villani.errors import InputError
from villani.integrations.order import check_loader

DATA = list(range(10))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(DATA)


class Backwards(Sampler):
    def __iter__(self):
        return iter(range(9, -1, -1))

    def __len__(self):
        return 10


class Lengths(BatchSampler):
    """Batches of its own."""


@pytest.mark.parametrize("loader", [
    DataLoader(DATA, batch_size=3),
    DataLoader(DATA, batch_size=None),
    DataLoader(Stream(), batch_size=2),
    DataLoader(DATA, batch_sampler=BatchSampler(SequentialSampler(DATA), 2, drop_last=False)),
    DataLoader(DATA, batch_sampler=SkipBatchSampler(BatchSampler(SequentialSampler(DATA), 2, False), skip_batches=2)),
])  # fmt: skip
def test_in_order(loader):
    check_loader(loader)
    read = torch.cat([torch.as_tensor(batch).reshape(-1) for batch in loader]).tolist()
    assert read == sorted(set(read))


@pytest.mark.parametrize(("loader", "fragment"), [
    (DataLoader(DATA, batch_size=3, shuffle=True), "RandomSampler"),
    (DataLoader(DATA, batch_size=None, sampler=Backwards()), "Backwards"),
    (DataLoader(DATA, batch_sampler=Lengths(SequentialSampler(DATA), 2, False)), "Lengths, whose order is not known"),
    (DataLoader(DATA, batch_sampler=SkipBatchSampler(BatchSampler(RandomSampler(DATA), 2, False))), "RandomSampler"),
])  # fmt: skip
def test_out_of_order(loader, fragment):
    with pytest.raises(InputError, match=fragment):
        check_loader(loader)
