"""A partition of θ into sets of entries that every orbit scales alike."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from villani.curvature.probes import rademacher
from villani.objective.parameters import ParameterSpace
from villani.statistics import Array
from villani.streams import Purpose, stream

PIECE = 1 << 18  # entries that are summed or sketched at a time, which the cache holds

Exponents = Mapping[int, torch.Tensor]
"""Index of a tensor in θ → integers that broadcast to its shape; zero for tensors left out."""


@dataclass(frozen=True, eq=False)
class Parts:
    """A partition of θ.

    Attributes:
        labels: of every tensor, integers 0 … count − 1 that broadcast to its shape.
        exponents: (orbits, count) of every part under every given rescaling.
        count: how many parts there are.
    """

    labels: tuple[torch.Tensor, ...]
    exponents: Array
    count: int

    def sums(self, tensors: Sequence[torch.Tensor]) -> Array:
        """(count,) sums over the parts of tensors of θ's shapes, in float64."""
        totals = np.zeros(self.count)
        for index, tensor in enumerate(tensors):
            self.add(totals, index, tensor)
        return totals

    def add(self, totals: Array, index: int, tensor: torch.Tensor) -> None:
        """Add the sums over the parts of one tensor of θ's shape to `totals` (count,)."""
        for part, labels in self.rows(index, tensor.shape):
            self._add(totals, labels, tensor[part])

    def add_product(self, totals: Array, index: int, a: torch.Tensor, b: torch.Tensor) -> None:
        """The same of a·b in float64."""
        for part, labels in self.rows(index, a.shape):
            wide = a[part].double()
            self._add(totals, labels, wide * b[part] if wide.dtype == a.dtype else wide.mul_(b[part]))

    def add_terms(self, totals: tuple[Array, Array, Array], index: int, a: torch.Tensor, b: torch.Tensor) -> None:
        """The same of a·b as it is, of its squares and of its absolute values, each to its own."""
        for part, labels in self.rows(index, a.shape):
            terms = a[part] * b[part]
            self._add(totals[0], labels, terms)
            self._add(totals[2], labels, terms.abs_())
            self._add(totals[1], labels, terms.square_())

    def rows(self, index: int, shape: torch.Size) -> Iterator[tuple[Any, torch.Tensor]]:
        """Some rows of a tensor of this shape at a time, and their labels: no wide copy of a large one is made."""
        labels = self.labels[index]
        if not shape:
            yield (), labels
            return
        step = max(1, PIECE // max(shape[1:].numel(), 1))
        for start in range(0, shape[0], step):
            part = slice(start, min(start + step, shape[0]))
            yield part, labels[part] if labels.shape[0] > 1 else labels

    def _add(self, totals: Array, labels: torch.Tensor, tensor: torch.Tensor) -> None:
        if labels.numel() == 1:
            totals[int(labels)] += float(tensor.sum(dtype=torch.float64))
            return
        flat = labels.to(tensor.device).expand(tensor.shape).reshape(-1)
        sums = torch.zeros(self.count, dtype=torch.float64, device=tensor.device)
        totals += sums.index_add_(0, flat, tensor.detach().reshape(-1).double()).cpu().numpy()

    def flat_labels(self, index: int, shape: torch.Size) -> torch.Tensor:
        """(n,) the part of every entry of one tensor of this shape, or (1,) where it is one part."""
        labels = self.labels[index]
        return labels.reshape(1) if labels.numel() == 1 else labels.expand(shape).reshape(-1)

    def add_rows(self, totals: Array, labels: torch.Tensor, values: torch.Tensor) -> None:
        """Add values (G, n) in float64 of entries with these `flat_labels` to `totals` (G, count)."""
        if len(labels) == 1:
            totals[:, int(labels)] += values.sum(dim=1).cpu().numpy()
        else:
            sums = torch.zeros(len(values), self.count, dtype=torch.float64, device=values.device)
            totals += sums.index_add_(1, labels.to(values.device), values).cpu().numpy()

    def confine(self, tensors: Sequence[torch.Tensor], chosen: Sequence[int]) -> list[torch.Tensor]:
        """Tensors of θ's shapes with zeros outside the chosen parts."""
        wanted = self.mask(chosen)
        return [t * wanted[labels].to(t) for labels, t in zip(self.labels, tensors, strict=True)]

    def mask(self, chosen: Sequence[int]) -> torch.Tensor:
        """(count,) bool: which parts are chosen."""
        wanted = torch.zeros(self.count, dtype=torch.bool)
        wanted[list(chosen)] = True
        return wanted


def parts_of(space: ParameterSpace, rescalings: Sequence[Exponents]) -> Parts:
    """The coarsest partition whose parts lie in one tensor each and are scaled alike by every rescaling."""
    labels: list[torch.Tensor] = []
    columns: list[Array] = []
    for index, p in enumerate(space.parameters):
        values = [e.get(index, torch.zeros(())).to(torch.float64) for e in rescalings]
        values = [v.reshape((1,) * (p.tensor.dim() - v.dim()) + tuple(v.shape)) for v in values]
        stacked = torch.stack(torch.broadcast_tensors(*values)) if values else torch.zeros(0, *(1,) * p.tensor.dim())
        if stacked.shape[0] == 0:
            labels.append(torch.full(stacked.shape[1:], len(columns)))
            columns.append(np.zeros(0))
            continue
        kinds, back = stacked.reshape(len(values), -1).unique(dim=1, return_inverse=True)
        labels.append(back.reshape(stacked.shape[1:]) + len(columns))
        columns += [*kinds.T.numpy()]
    return Parts(tuple(labels), np.stack(columns, axis=1), len(columns))


def sketch_into(total: torch.Tensor, parts: Parts, index: int, tensor: torch.Tensor, buckets: int) -> None:
    """Add the entries of one tensor, with random signs, to `total` (A·k,): k buckets for every part."""
    signs = sketch_signs(index, tensor.numel()).to(tensor.device)
    start = 0
    for part, labels in parts.rows(index, tensor.shape):
        values = tensor[part].detach()
        own = labels.reshape(1) if labels.numel() == 1 else labels.expand(values.shape).reshape(-1)
        flat = values.reshape(1, -1).double()
        fold_into(total[None], own, flat * signs[start : start + flat.shape[1]], start, buckets)
        start += flat.shape[1]


def sketch_signs(index: int, size: int) -> torch.Tensor:
    """(n,) the signs of one tensor's entries in sketches, the same for every group."""
    return rademacher(size, stream(0, Purpose.SKETCH, index), torch.float32)


def fold_into(totals: torch.Tensor, labels: torch.Tensor, signed: torch.Tensor, start: int, buckets: int) -> None:
    """Add entries of one tensor, from `start` on and with their signs, to sketches.

    Args:
        totals: (G, A·k).
        labels: (n,) the part of each entry, or (1,) that of all.
        signed: (G, n) in float64.
        start: place of the first entry in its tensor; entry i goes to bucket i mod k.
        buckets: k.
    """
    if len(labels) > 1:
        places = torch.arange(start, start + signed.shape[1]) % buckets + buckets * labels
        totals.index_add_(1, places.to(signed.device), signed)
        return
    own = totals[:, buckets * int(labels) : buckets * (int(labels) + 1)]
    head = min(-start % buckets, signed.shape[1])
    whole = (signed.shape[1] - head) // buckets * buckets
    first = start % buckets
    own[:, first : first + head] += signed[:, :head]
    own += signed[:, head : head + whole].unflatten(1, (-1, buckets)).sum(dim=1)
    tail = signed[:, head + whole :]
    own[:, : tail.shape[1]] += tail
