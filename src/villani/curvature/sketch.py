"""A linear sketch of gradients: inner products of G gradients without keeping G gradients.

Entry i of θ goes, with a random sign, into bucket i mod k (CountSketch with consecutive buckets). For fixed vectors a
and b: E⟨Sa, Sb⟩ = ⟨a, b⟩, and Var‖Sa‖² ≤ 2 Σ_b A_b² with A_b the energy of a in bucket b, so a relative error of about
√(2/k) when the energy is spread: 0.28 % here. k is prime, so that no row or column of a matrix falls into few buckets.
`statistics.sketch_variance` estimates this error and adds it to the reported one.
"""

import math

import torch

from villani.curvature.probes import rademacher
from villani.objective.parameters import ParameterSpace
from villani.streams import Purpose, stream

BUCKETS = 262_139  # the largest prime below 2¹⁸: 2 MiB a group
_PART = 1 << 21  # entries of a tensor at a time, so that no wide copy of a large one is made; of whole words of signs
_MEMORY = 1 << 28  # bytes that the sketches of all groups may take


def buckets_for(groups: int) -> int:
    """Buckets such that memory does not grow with the number of groups: fewer, still a prime, beyond 128 groups."""
    size = min(BUCKETS, max(_MEMORY // (8 * groups), 3))
    while any(size % k == 0 for k in range(2, math.isqrt(size) + 1)):
        size -= 1
    return size


class GradientSketch:
    """Maps a gradient, given tensor by tensor, to a vector of min(d, k) entries.

    With d ≤ k the map is the identity and nothing is lost.

    Args:
        space: the parameters.
        seed: of the signs, which are the same for every group.
        buckets: k.
    """

    def __init__(self, space: ParameterSpace, seed: int, buckets: int = BUCKETS) -> None:
        self.space = space
        self.seed = seed
        self.buckets = buckets
        self.lossy = space.size > buckets

    def __call__(self, gradient: list[torch.Tensor]) -> torch.Tensor:
        """The sketch (min(d, k),) in float64, on the CPU."""
        if not self.lossy:
            return torch.cat([g.detach().reshape(-1).double().cpu() for g in gradient])
        result = torch.zeros(self.buckets, dtype=torch.float64)
        for t, g in enumerate(gradient):
            self._add(result, t, g)
        return result

    def add(self, total: torch.Tensor, index: int, gradient: torch.Tensor) -> None:
        """Add the part of one tensor to a sketch (min(d, k),)."""
        if self.lossy:
            self._add(total, index, gradient)
            return
        offset = self.space.parameters[index].offset
        total[offset : offset + gradient.numel()] += gradient.detach().reshape(-1).double().cpu()

    def _add(self, total: torch.Tensor, index: int, gradient: torch.Tensor) -> None:
        """Of one that is lossy."""
        generator = stream(self.seed, Purpose.SKETCH, index)
        offset = self.space.parameters[index].offset
        for part in gradient.detach().reshape(-1).split(_PART):
            signed = rademacher(len(part), generator, part.dtype).to(part.device).mul_(part)
            total += _fold(signed, offset % self.buckets, self.buckets).cpu()
            offset += len(part)


def _fold(flat: torch.Tensor, start: int, buckets: int) -> torch.Tensor:
    """Sum entry i into bucket (start + i) mod buckets, in float64."""
    result = torch.zeros(buckets, dtype=torch.float64, device=flat.device)
    head = min(buckets - start, flat.numel())
    result[start : start + head] += flat[:head]
    body = flat[head:]
    whole = body.numel() // buckets * buckets
    if whole:
        result += body[:whole].view(-1, buckets).sum(dim=0, dtype=torch.float64)
    tail = body[whole:]
    result[: tail.numel()] += tail
    return result
