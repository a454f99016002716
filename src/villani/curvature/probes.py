"""Random vectors over θ, drawn tensor by tensor where they are used."""

import numpy as np
import torch

from villani.objective.parameters import ParameterSpace
from villani.streams import Purpose, stream

_SIGNS = torch.from_numpy(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.int8) * 2 - 1)


def rademacher(size: int, generator: np.random.Generator, dtype: torch.dtype) -> torch.Tensor:
    """`size` independent signs ±1, on the CPU; one random bit each, eight at a time from a table."""
    packed = np.frombuffer(generator.bytes((size + 7) // 8), dtype=np.uint8)
    rows = torch.from_numpy(packed.astype(np.int32))
    return torch.index_select(_SIGNS.to(dtype), 0, rows).view(-1)[:size]


def rademacher_probe(space: ParameterSpace, seed: int, group: int, probe: int) -> list[torch.Tensor]:
    """A probe v ∈ {±1}^d, as tensors of θ's shapes, dtype and device; E vvᵀ = I."""
    pieces = []
    for index, p in enumerate(space.parameters):
        signs = rademacher(p.tensor.numel(), stream(seed, Purpose.PROBE, group, probe, index), p.tensor.dtype)
        pieces.append(signs.to(p.tensor.device).view(p.tensor.shape))
    return pieces


def random_direction(space: ParameterSpace, seed: int, index: int = 0) -> list[torch.Tensor]:
    """A direction u uniform on the unit sphere of R^d, in float64, as tensors of θ's shapes."""
    pieces = [
        torch.from_numpy(stream(seed, Purpose.DIRECTION, index, t).standard_normal(p.tensor.shape))
        for t, p in enumerate(space.parameters)
    ]
    norm = float(sum(float(piece.square().sum()) for piece in pieces)) ** 0.5
    return [piece.div_(norm).to(p.tensor.device) for piece, p in zip(pieces, space.parameters, strict=True)]
