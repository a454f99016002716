"""Orthonormal vectors of θ's size: as many in memory as a budget allows, all of them in a file if they must survive.

Whatever lies where, the arithmetic is done on the same chunks in the same order, so that no bit depends on the budget.
Inner products with columns serve to take off what rounding left. They are summed in the columns' dtype within a chunk
and in float64 over chunks, which leaves a vector as orthogonal as it can be stored, in half the time. Files are read
with `pread`, never mapped, so that what is read does not count as memory of the process.
"""

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray

from villani.curvature.operators import Budget
from villani.statistics import Array
from villani.work.ledger import writing

_CHUNK = 1 << 16  # entries of a vector that are worked on at a time: what stays in a processor's cache
_ALIGNED = 16  # entries: BLAS adds in another order where memory is not aligned


class Basis:
    """Columns (d, k) in θ's dtype; a context manager, which closes its file.

    Args:
        size: d.
        dtype: of the columns: float32 or float64.
        device: of the columns that are held in memory.
        directory: where the columns are kept, so that they survive a kill; without one, a temporary file takes what
            does not fit.
        budget: what may be held in memory.

    Raises:
        InputError: the disk is full or cannot be written.
    """

    def __init__(
        self,
        size: int,
        dtype: torch.dtype,
        device: torch.device | None = None,
        directory: Path | None = None,
        budget: Budget | None = None,
    ) -> None:
        self.size = size
        self.dtype = dtype
        self.device = device or torch.device("cpu")
        self.directory = directory
        self.generation = 0
        self.budget = budget or Budget()
        self._held: list[torch.Tensor | None] = []
        self._file: int | None = None
        self._numpy: type[np.floating] = np.float64 if dtype == torch.float64 else np.float32
        self._bytes = size * np.dtype(self._numpy).itemsize

    def __enter__(self) -> "Basis":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            os.close(self._file)

    def __len__(self) -> int:
        return len(self._held)

    @property
    def in_memory(self) -> int:
        """How many of the columns are held in memory."""
        return sum(column is not None for column in self._held)

    def append(self, column: torch.Tensor) -> None:
        """One more column; on return it is on disk, where there is a directory."""
        holds = self.budget.fits(2 * self._bytes)  # this one, and the copy that makes the next
        if self.directory is not None or not holds:
            self._write(self._open(), len(self), 0, column)
            if self.directory is not None:
                os.fsync(self._open())
        self._held.append(column.clone() if holds else None)

    def column(self, index: int) -> torch.Tensor:
        """A copy of one column, (d,)."""
        held = self._held[index]
        return held.clone() if held is not None else self._whole(index)

    def release(self, count: int) -> None:
        """Keep the last `count` of the columns in memory on disk alone."""
        held = [index for index, column in enumerate(self._held) if column is not None]
        for index in held[max(0, len(held) - count) :]:
            column = self._held[index]
            if self.directory is None and column is not None:
                self._write(self._open(), index, 0, column)
            self._held[index] = None

    def dots(self, vector: torch.Tensor, first: int = 0) -> Array:
        """(k − first,) inner products with the columns from `first` on; see the module for their precision."""
        total = torch.zeros(len(self) - first, dtype=torch.float64, device=self.device)
        for start, stop, block in self._blocks(first):
            part = vector[start:stop]
            total += torch.stack([torch.dot(column, part) for column in block]).double()
        result: Array = total.cpu().numpy()
        return result

    def subtract(self, vector: torch.Tensor, weights: Array, first: int = 0) -> None:
        """Take Σ_i weights_i·column_{first + i} off a vector, in place."""
        for start, stop, block in self._blocks(first, first + len(weights)):
            part = vector[start:stop]
            for weight, column in zip(weights, block, strict=True):
                part.sub_(column, alpha=float(weight))

    def combination(self, weights: Array) -> torch.Tensor:
        """Σ_i weights_i·column_i over the first columns, scaled to length 1, in the columns' dtype."""
        result = torch.zeros(self.size, dtype=self.dtype, device=self.device)
        self.subtract(result, -weights)
        return result.div_(norm(result))

    def turn(self, weights: Array) -> None:
        """Replace the columns (d, k) by their combinations with weights (k, j), as a new generation on disk.

        The old generation's file stays until `settle`, so that a kill in between leaves one that is whole.
        """
        w = torch.from_numpy(np.ascontiguousarray(weights.T)).to(self.device)  # (j, k)
        keep = w.shape[0]
        on_disk = self.directory is not None or any(held is None for held in self._held)
        old, self.generation = self._file, self.generation + 1
        new = self._create(self.generation) if on_disk else None
        held = [column is not None for column in self._held[:keep]]
        for start, stop, block in self._blocks(0):
            made = (w @ torch.stack(block).double()).to(self.dtype)
            for i in range(keep):
                if new is not None:
                    self._write(new, i, start, made[i])
                column = self._held[i]
                if column is not None:
                    column[start:stop] = made[i]
        self._held = [self._held[i] if held[i] else None for i in range(keep)]
        if new is not None:
            os.fsync(new)
        self._file = new
        if old is not None:
            os.close(old)

    def settle(self) -> None:
        """Forget the files of generations past."""
        if self.directory is not None:
            for path in self.directory.glob("basis-*"):
                if path != self._path(self.generation):
                    with suppress(FileNotFoundError):
                        path.unlink()

    def restore(self, generation: int, count: int) -> None:
        """Take up `count` columns of a generation that an interrupted run left; what came after them is forgotten.

        Raises:
            OSError: the file is missing or too short.
        """
        assert self.directory is not None
        self.generation = generation
        self._file = os.open(self._path(generation), os.O_RDWR)
        if os.fstat(self._file).st_size < count * self._bytes:
            raise FileNotFoundError(str(self._path(generation)))
        self._held = []
        for index in range(count):
            self._held.append(self._whole(index) if self.budget.fits(3 * self._bytes) else None)
        self.settle()

    def _blocks(self, first: int, last: int | None = None) -> Iterator[tuple[int, int, list[torch.Tensor]]]:
        """(start, stop, the entries `start` to `stop` of the columns `first` to `last`), over all entries."""
        indices = range(first, len(self) if last is None else last)
        if not indices:
            return
        away = sum(self._held[index] is None for index in indices)
        width = -(-min(_CHUNK, self.size) // _ALIGNED) * _ALIGNED  # where a row begins decides on bits of a product
        buffers = np.empty((away, width), dtype=self._numpy)
        for start in range(0, self.size, _CHUNK):
            stop = min(start + _CHUNK, self.size)
            block, free = [], iter(buffers)
            for index in indices:
                held = self._held[index]
                block.append(self._read(index, start, next(free)[: stop - start]) if held is None else held[start:stop])
            yield start, stop, block

    def _whole(self, index: int) -> torch.Tensor:
        return self._read(index, 0, np.empty(self.size, dtype=self._numpy))

    def _path(self, generation: int) -> Path:
        assert self.directory is not None
        return self.directory / f"basis-{generation}"

    def _open(self) -> int:
        if self._file is None:
            self._file = self._create(self.generation)
        return self._file

    def _create(self, generation: int) -> int:
        if self.directory is None:
            file, name = tempfile.mkstemp(prefix="villani-")
            os.unlink(name)  # it goes with the process
            return file
        with writing(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            return os.open(self._path(generation), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)

    def _write(self, file: int, index: int, start: int, values: torch.Tensor) -> None:
        content = memoryview(values.detach().cpu().contiguous().numpy().data).cast("B")
        offset = index * self._bytes + start * self._bytes // self.size
        with writing(self.directory or Path(tempfile.gettempdir())):
            while content:
                done = os.pwrite(file, content, offset)
                content, offset = content[done:], offset + done

    def _read(self, index: int, start: int, values: NDArray[np.floating]) -> torch.Tensor:
        """Fill `values` with a column's entries from `start` on; a tensor that may share their memory."""
        content = memoryview(values.data).cast("B")
        offset = index * self._bytes + start * self._bytes // self.size
        while content:
            done = os.preadv(self._open(), [content], offset)
            if not done:
                raise OSError(f"basis file ends before column {index}")
            content, offset = content[done:], offset + done
        return torch.from_numpy(values).to(self.device)


def norm(vector: torch.Tensor) -> float:
    """‖v‖, accumulated in float64, a chunk at a time: no copy of it in float64 is made."""
    total = torch.zeros((), dtype=torch.float64, device=vector.device)
    for piece in vector.detach().reshape(-1).split(_CHUNK):
        wide = piece.double()
        total += torch.dot(wide, wide)
    return math.sqrt(float(total))


def dot(a: torch.Tensor, b: torch.Tensor) -> float:
    """⟨a, b⟩ in float64, a chunk at a time."""
    total = torch.zeros((), dtype=torch.float64, device=a.device)
    for x, y in zip(a.split(_CHUNK), b.split(_CHUNK), strict=True):
        total += torch.dot(x.double(), y.double())
    return float(total)
