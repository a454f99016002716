"""Work on tensors that survives a kill: stretches of its steps in the ledger, the tensors in a file beside it.

A stretch is a unit of work, kept under the step that it begins with. Its end depends on the clock, its content does
not: the work may be cut anywhere. First the state at its end is written, under the name of that step; then the unit is
kept with the state's checksum, in one transaction; then the state before it is removed. Whatever moment a kill comes
at, the last unit has its state. θ of a 125M model does not belong into SQLite.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from villani.statistics import Array
from villani.work import foreign
from villani.work.ledger import write_bytes, writing
from villani.work.team import Rows
from villani.work.work import Work

PATIENCE = 120.0  # seconds in a unit: what a kill may lose; writing 0.5 GB after that long costs about a percent
_DTYPES = {torch.float32: "F32", torch.float64: "F64"}
Enough = Callable[[int], bool]  # told the number of steps done; whether to stop there


def stretches(
    work: Work, states: Path, steps: int, tensors: Sequence[torch.Tensor],
    advance: Callable[[int, Rows | None, Enough], dict[str, Array]],
) -> list[Rows]:  # fmt: skip
    """Do all steps, or go on where they were stopped; the rows of all stretches.

    Args:
        work: its keys are steps, and nothing else.
        states: name of the state files, without what tells their step.
        steps: in all.
        tensors: what a step depends on, beside its number; none where nothing is left behind for the next.
        advance: does steps: from a first one, given the row before if there is one, until `Enough`. Its row has the
            `stop` that it came to, an empty `state`, and the step at which it `diverged`, where it can: −1 for none.

    Raises:
        InputError: the file that a unit left is gone or damaged; or the disk is full.
    """
    rows: list[Rows] = []
    done = reached = 0  # steps that rows are of, and that the tensors are at

    def stretch() -> Rows:
        nonlocal reached
        if tensors and reached < done:
            read_state(_at(states, done), tensors, rows[-1]["state"])
        began = time.perf_counter()

        def enough(step: int) -> bool:
            work.advance(step, steps)
            return time.perf_counter() - began > PATIENCE

        row = advance(done, rows[-1] if rows else None, enough)
        reached = int(row["stop"])
        if tensors and not _over(row, steps):
            write_state(_at(states, reached), tensors)
            row["state"] = checksum(_at(states, reached))
        return row

    while not rows or not _over(rows[-1], steps):
        rows.append(work.once(str(done), stretch))
        _at(states, done).unlink(missing_ok=True)
        done = int(rows[-1]["stop"])
    for left in states.parent.glob(f"{states.name}-*.safetensors"):  # of a kill between file and row
        left.unlink()
    return rows


def _over(row: Rows, steps: int) -> bool:
    return int(row["stop"]) == steps or int(row.get("diverged", np.array(-1))) >= 0


def _at(states: Path, step: int) -> Path:
    return states.with_name(f"{states.name}-{step}.safetensors")


def write_state(path: Path, tensors: Sequence[torch.Tensor]) -> None:
    """Tensors as a safetensors file, streamed: unlike that library's own writer it holds no copy of them."""
    header: dict[str, object] = {}
    offset = 0
    for index, tensor in enumerate(tensors):
        size = tensor.numel() * tensor.element_size()
        header[str(index)] = {
            "dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, offset + size],
        }  # fmt: skip
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with writing(path.parent):
        path.parent.mkdir(exist_ok=True)
    values = (t.detach().cpu().contiguous().numpy().reshape(-1).view(np.uint8).data for t in tensors)
    write_bytes(path, chain([len(text).to_bytes(8, "little"), text], values))


def checksum(*paths: Path) -> Array:
    """(32,) bytes: sha256 over the content of files."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    checksum: Array = np.frombuffer(digest.digest(), dtype=np.uint8)
    return checksum


def read_state(path: Path, tensors: Sequence[torch.Tensor], expected: Array | None = None) -> None:
    """Put what `write_state` wrote back into the tensors, one at a time.

    Raises:
        InputError: no such file, not one of these, or not of the checksum that is expected.
    """
    with foreign.reading(path, "the weights that the chain stopped at are not there; use another --run"):
        if expected is not None and not np.array_equal(checksum(path), expected):
            raise ValueError("not the file that the run left")
        with safe_open(path, framework="pt") as file, torch.no_grad():
            for index, tensor in enumerate(tensors):
                stored = file.get_tensor(str(index))
                if stored.shape != tensor.shape or stored.dtype != tensor.dtype:
                    raise ValueError(f"tensor {index} is {tuple(stored.shape)}, expected {tuple(tensor.shape)}")
                tensor.copy_(stored)
