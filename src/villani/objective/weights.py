"""Values of a θ that is larger than memory: read when they are asked for, gone after their last use.

A model built on the meta device has shapes and no values. What reads them is here: one tensor at a time comes from
whatever stores it, in the precision of θ, and nothing keeps it but whoever asked. A rescaled or displaced θ is the
stored one with a change on its way in, since there is no copy that could be written to.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from villani.errors import InputError

Change = Callable[[torch.Tensor], torch.Tensor]


class Weights:
    """Tensors by name, each read anew unless somebody still holds it.

    Args:
        readers: name → what reads the tensor's values, on the CPU and in θ's precision.
        device: where they are wanted.

    Attributes:
        live: bytes of the tensors that somebody holds, or a view of them.
        peak: the largest `live` so far.
        reads: how many tensors have been read.
    """

    def __init__(self, readers: Mapping[str, Callable[[], torch.Tensor]], device: torch.device) -> None:
        self.device = device
        self.live = self.peak = self.reads = 0
        self._readers = dict(readers)
        self._held: dict[str, weakref.ref[torch.Tensor]] = {}
        self._storages: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        self._changes: list[Mapping[str, Change]] = []

    @property
    def changed(self) -> bool:
        """Whether values are other than those that are stored."""
        return bool(self._changes)

    def __getitem__(self, name: str) -> torch.Tensor:
        """A tensor's values, which nobody may write to."""
        held = self._held.get(name)
        tensor = held() if held is not None else None
        if tensor is None:
            tensor = self._read(name)
            self._held[name] = weakref.ref(tensor)
        return tensor

    def _read(self, name: str) -> torch.Tensor:
        tensor = self._readers[name]().to(self.device)
        for changes in self._changes:
            if name in changes:
                tensor = changes[name](tensor)
        self.reads += 1
        storage = tensor.untyped_storage()
        if storage not in self._storages:
            self._storages.add(storage)
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._dropped, storage.nbytes()).atexit = False
        return tensor

    def _dropped(self, size: int) -> None:
        self.live -= size

    @contextmanager
    def changing(self, changes: Mapping[str, Change]) -> Iterator[None]:
        """Other values for a while: each change is applied to what is read, after those around it."""
        self._changes.append(changes)
        self._held.clear()
        try:
            yield
        finally:
            self._changes.pop()
            self._held.clear()


class Values(Sequence[torch.Tensor]):
    """The values of some of the tensors, in an order, as a sequence that holds none of them.

    Args:
        weights: what reads them.
        names: which.
    """

    def __init__(self, weights: Weights, names: Sequence[str]) -> None:
        self._weights, self._names = weights, names

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Values(self._weights, self._names[index])
        return self._weights[self._names[index]]


def streamed_weights(model: torch.nn.Module) -> Weights | None:
    """What reads the values of a model that holds none, as `inputs/streaming.py` makes it; None of other models."""
    weights = getattr(model, "streamed_weights", None)
    return weights if isinstance(weights, Weights) else None


def refuse_streamed(model: torch.nn.Module, what: str, instead: str) -> None:
    """Refuse what needs all of θ in memory.

    Raises:
        InputError: the model's weights are streamed.
    """
    if streamed_weights(model) is not None:
        raise InputError(f"{what} needs all of θ in memory, and the weights are streamed from disk: {instead}")
