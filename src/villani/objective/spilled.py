"""A vector of θ's size on disk, in float64: sums of gradients, where weights are streamed."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from villani.objective.parameters import ParameterSpace
from villani.work.budget import Needs, hold

PIECE = 1 << 18  # entries that are read at a time


class Spilled:
    """Zeros at first; a file without a name, which goes with the process.

    Args:
        space: the tensors.
        what: what it is for, the subject of a sentence that refuses it.

    Raises:
        InputError: more than the limit of what may be kept on disk, or than is free.
    """

    def __init__(self, space: ParameterSpace, what: str) -> None:
        folder = Path(tempfile.gettempdir())
        hold(Needs(disk=8.0 * space.size), folder, what=what, instead="choose a smaller model, or set TMPDIR")
        self._space = space
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by __exit__)
        self._file.truncate(8 * space.size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def add(self, index: int, tensor: torch.Tensor) -> None:
        """Add to the part of one tensor of θ."""
        flat = tensor.detach().reshape(-1)
        for place, held in self._pieces(index):
            held += flat[place : place + len(held)].double().cpu()
            os.pwrite(self._file.fileno(), held.numpy().data, 8 * (self._offset(index) + place))

    def part(self, index: int) -> torch.Tensor:
        """That of one tensor, on θ's device and in its shape."""
        shape = self._space.parameters[index].tensor.shape
        whole = torch.empty(shape.numel(), dtype=torch.float64)
        for place, held in self._pieces(index):
            whole[place : place + len(held)] = held
        return whole.view(shape).to(self._space.device)

    def _offset(self, index: int) -> int:
        return self._space.parameters[index].offset

    def _pieces(self, index: int) -> Iterator[tuple[int, torch.Tensor]]:
        count = self._space.parameters[index].tensor.numel()
        for place in range(0, count, PIECE):
            held = torch.empty(min(PIECE, count - place), dtype=torch.float64)
            os.preadv(self._file.fileno(), [held.numpy().data], 8 * (self._offset(index) + place))
            yield place, held
