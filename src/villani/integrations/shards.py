"""The part of θ that one process holds: where its entries are in the whole, and whether it counts them.

Random signs and buckets of the sketch belong to entries of θ, whoever holds them: those of a part are those of the
whole, at its places, so that figures do not depend on how θ is cut.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from villani.curvature.probes import rademacher
from villani.curvature.sketch import GradientSketch
from villani.errors import InputError
from villani.integrations.untouched import is_sharded, own_part
from villani.objective.parameters import ParameterSpace
from villani.streams import Purpose, stream

_PIECE = 1 << 20  # entries looked at at once; whole words of random bits


@dataclass(frozen=True)
class Shard:
    """One process's part of a tensor: columns `start` to `stop` of the tensor as rows of `period` entries.

    Attributes:
        tensor: the part itself, in the memory of the run's parameter.
        start: first column.
        stop: behind the last.
        period: entries in a row; the whole tensor where it is cut in its first dimension.
        counted: whether sums over processes take it from this one: of equal copies one counts.
    """

    tensor: torch.Tensor
    start: int
    stop: int
    period: int
    counted: bool

    def places(self, first: int, last: int) -> torch.Tensor:
        """(last − first,) where in the whole tensor its own entries are."""
        own, width = torch.arange(first, last), max(self.stop - self.start, 1)
        return own.div(width, rounding_mode="floor") * self.period + self.start + own % width

    def signs(self, numel: int, generator: np.random.Generator) -> torch.Tensor:
        """The part of `numel` random signs of the whole tensor, flat, on the CPU."""
        parts = []
        for first in range(0, numel, _PIECE):
            last = min(first + _PIECE, numel)
            if self.period == numel and not (first < self.stop and self.start < last):
                generator.bytes((last - first + 7) // 8)  # drawn, so that what follows is the same
                continue
            piece = rademacher(last - first, generator, self.tensor.dtype)
            column = torch.arange(first, last) % self.period
            parts.append(piece[(column >= self.start) & (column < self.stop)])
        return torch.cat(parts) if parts else torch.zeros(0, dtype=self.tensor.dtype)


class ShardedSpace(ParameterSpace):
    """θ of a model that `fully_shard` cut: names, shapes and sizes are the whole's, `tensors` this process's parts.

    Args:
        model: with its parameters sharded, not gathered.
        decay: see `ParameterSpace`.
        main: whether this process counts what all of them hold whole.
    """

    def __init__(self, model: nn.Module, decay: str, main: bool) -> None:
        super().__init__(model, decay)
        self.shards = tuple(_shard(p.name, p.tensor, main) for p in self.parameters)

    @property
    def tensors(self) -> list[Any]:
        """This process's parts, as plain tensors, in order."""
        return [shard.tensor for shard in self.shards]

    @property
    def counted(self) -> np.ndarray:
        """(P,) 1 where this process's part counts, else 0."""
        return np.array([float(shard.counted) for shard in self.shards])

    def norms_squared(self) -> np.ndarray:
        """(P,) this process's share of ‖θ_t‖², in float64."""
        own: np.ndarray = squared_norms(self.tensors) * self.counted
        return own

    def check(self) -> None:
        """Refuse a part that cannot be measured; see `ParameterSpace.check`."""
        for p, part in zip(self.parameters, self.tensors, strict=True):
            if part.dtype not in (torch.float32, torch.float64):
                raise InputError(f"parameter {p.name} is {part.dtype}: curvature needs float32 or float64")
            if part.dtype != self.dtype or part.device != self.tensors[0].device:
                raise InputError(f"parameter {p.name} is {part.dtype} on {part.device}: use one dtype and one device")
            if part.is_meta:
                raise InputError(f"parameter {p.name} is on the meta device, without values: load or make the weights")
            if not bool(torch.isfinite(part).all()):
                raise InputError(f"parameter {p.name} has non-finite entries: the checkpoint is damaged or diverged")

    def probe(self, seed: int, group: int, probe: int) -> list[torch.Tensor]:
        """This process's part of `rademacher_probe`."""
        return [
            shard.signs(p.tensor.numel(), stream(seed, Purpose.PROBE, group, probe, index))
            .to(shard.tensor.device).view(shard.tensor.shape)
            for index, (p, shard) in enumerate(zip(self.parameters, self.shards, strict=True))
        ]  # fmt: skip

    def sketch(self, sketch: GradientSketch, gradient: list[torch.Tensor]) -> torch.Tensor:
        """This process's share of a gradient's sketch, (min(d, k),) in float64 on the CPU; its sum is the whole's."""
        result = torch.zeros(min(self.size, sketch.buckets), dtype=torch.float64)
        for t, (p, shard, g) in enumerate(zip(self.parameters, self.shards, gradient, strict=True)):
            if not shard.counted:
                continue
            flat = g.detach().reshape(-1).double().cpu()
            if sketch.lossy:
                signs = shard.signs(p.tensor.numel(), stream(sketch.seed, Purpose.SKETCH, t))
                flat = flat * signs.double()  # not in place: it may be the gradient's own memory
            for first, last in _pieces(len(flat)):
                result.index_add_(0, (p.offset + shard.places(first, last)) % len(result), flat[first:last])
        return result


def squared_norms(tensors: list[torch.Tensor]) -> np.ndarray:
    """(P,) in float64, tensor by tensor."""
    return np.array([float(torch.linalg.vector_norm(t.detach(), dtype=torch.float64)) ** 2 for t in tensors])


def _pieces(length: int) -> Iterator[tuple[int, int]]:
    for first in range(0, length, _PIECE):
        yield first, min(first + _PIECE, length)


def _shard(name: str, tensor: Any, main: bool) -> Shard:
    if not is_sharded(tensor):
        flat = tensor.numel()
        return Shard(tensor.detach(), 0, flat, max(flat, 1), main)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    placements, mesh = tensor.placements, tensor.device_mesh
    cut = [p.dim for p in placements if p.is_shard()]
    if len(cut) > 1 or any(not (p.is_shard() or p.is_replicate()) for p in placements):
        raise InputError(f"parameter {name} lies as {placements}: expected one Shard, and Replicate")
    coordinate = mesh.get_coordinate()
    first = all(c == 0 for c, p in zip(coordinate, placements, strict=True) if p.is_replicate())
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, mesh, placements)
    local = own_part(tensor)
    if tuple(local.shape) != tuple(shape):
        raise InputError(f"parameter {name} has a part of shape {tuple(local.shape)}, where {tuple(shape)} is expected")
    dim = cut[0] if cut else 0
    inner = int(np.prod(tensor.shape[dim + 1 :], dtype=np.int64)) if tensor.dim() else 1
    period = (tensor.shape[dim] if tensor.dim() else 1) * inner
    start = offset[dim] * inner if local.numel() else 0
    stop = start + (shape[dim] if tensor.dim() else 1) * inner if local.numel() else 0
    return Shard(local, int(start), int(stop), max(int(period), 1), first)
