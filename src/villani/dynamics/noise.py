"""Gaussian noise for large tensors, drawn piece by piece and added in place: no second copy of θ, no global state.

The bits of a piece depend on (seed, purpose, chain, step, tensor, piece) only, so that threads may share the pieces.
torch's generator is seeded, not numpy's: its normals cost less than half as much, and for 125M parameters the noise of
a step has to be cheap beside a gradient (benchmarks/langevin_step.py). It keeps 32 bits of a seed: among the 10⁵ pieces
of a run two may be alike, at different steps and in different places, which no figure here can notice.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

from villani.streams import Purpose, word

PIECE = 1 << 18  # entries; the buffer of a thread stays in its cache


def gaussian(like: torch.Tensor, seed: int, purpose: Purpose, *indices: int) -> torch.Tensor:
    """Standard normals of the shape and dtype of `like`, on its device, of (seed, purpose, indices)."""
    noise = torch.empty_like(like, memory_format=torch.contiguous_format)
    flat = noise.view(-1)
    for number, piece in enumerate(flat.split(PIECE)):
        piece.copy_(_draw(piece, seed, purpose, *indices, number))
    return noise


def add_gaussian(
    tensors: list[torch.Tensor], scales: list[float], seed: int, chain: int, step: int,
    before: Callable[[int, slice], None] | None = None,
) -> None:  # fmt: skip
    """tensors[i] += scales[i]·ξ in place, the noise of (seed, chain, step).

    Args:
        tensors: contiguous, all on one device.
        scales: one for each tensor; none is drawn for 0.
        before: called with (i, entries) before the noise is added to these entries of tensor i, while they are in
            cache; may run in several threads at once, each with other entries.
    """

    def piece(index: int, number: int) -> None:
        flat = tensors[index].view(-1)
        part = slice(number * PIECE, min((number + 1) * PIECE, len(flat)))
        if before:
            before(index, part)
        if scales[index]:
            flat[part].add_(_draw(flat[part], seed, Purpose.NOISE, chain, step, index, number), alpha=scales[index])

    work = [(i, number) for i, tensor in enumerate(tensors) for number in range(-(-tensor.numel() // PIECE))]
    if len(work) == len(tensors) or tensors[0].is_cuda or torch.get_num_threads() == 1:
        for index, number in work:
            piece(index, number)
        return
    for _ in _pool(os.getpid()).map(lambda pair: piece(*pair), work):
        pass


def _draw(like: torch.Tensor, seed: int, purpose: Purpose, *indices: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(word(seed, purpose, *indices))
    noise = torch.empty(like.shape, dtype=like.dtype).normal_(generator=generator)
    return noise if like.device.type == "cpu" else noise.to(like.device)


@cache
def _pool(_process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=torch.get_num_threads(), thread_name_prefix="noise")
