"""A partition of θ into sets of entries that every orbit scales alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from villani.curvature.probes import rademacher
from villani.objective.parameters import ParameterSpace
from villani.statistics import Array
from villani.streams import Purpose, stream

_PIECE = 1 << 22  # entries that are sketched at a time

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
        self._add(totals, self.labels[index], tensor)

    def add_product(self, totals: Array, index: int, a: torch.Tensor, b: torch.Tensor) -> None:
        """The same of a·b in float64, some rows at a time, so that no float64 copy of a large tensor is made."""
        labels = self.labels[index]
        rows = max(1, _PIECE // max(a[0].numel(), 1))
        for start in range(0, len(a), rows):
            part = slice(start, start + rows)
            own = labels[part] if labels.shape[0] > 1 else labels
            self._add(totals, own, a[part].double() * b[part].double())

    def _add(self, totals: Array, labels: torch.Tensor, tensor: torch.Tensor) -> None:
        if labels.numel() == 1:
            totals[int(labels)] += float(tensor.sum(dtype=torch.float64))
            return
        flat = labels.to(tensor.device).expand(tensor.shape).reshape(-1)
        sums = torch.zeros(self.count, dtype=torch.float64, device=tensor.device)
        totals += sums.index_add_(0, flat, tensor.detach().reshape(-1).double()).cpu().numpy()

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
    labels, flat = parts.labels[index], tensor.detach().reshape(-1)
    signs = rademacher(len(flat), stream(0, Purpose.SKETCH, index), flat.dtype)
    where = labels.reshape(-1) if labels.numel() == 1 else labels.expand(tensor.shape).reshape(-1)
    for start in range(0, len(flat), _PIECE):
        piece = slice(start, min(start + _PIECE, len(flat)))
        part = where if len(where) == 1 else where[piece]
        places = torch.arange(piece.start, piece.stop) % buckets + buckets * part
        total.index_add_(0, places.to(flat.device), (flat[piece] * signs[piece].to(flat.device)).double())
