"""Chains that survive a kill: observables in the ledger, θ in a file of its own, and the order in which they change.

A stretch of a chain is a unit of work, kept under the step that it begins with. Its end depends on the clock, its
content does not: a chain may be cut anywhere. First the state at its end is written, under the name of that step;
then the unit is kept with the state's checksum, in one transaction; then the state before it is removed. Whatever
moment a kill comes at, the last unit has its state. θ of a 125M model does not belong into SQLite.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from villani.dynamics.kernel import Kernel
from villani.dynamics.langevin import LangevinTarget, advance
from villani.statistics import Array
from villani.work import foreign
from villani.work.ledger import writing
from villani.work.team import Rows
from villani.work.work import Work

PATIENCE = 120.0  # seconds in a unit: what a kill may lose; writing 0.5 GB after that long costs about a percent
_DTYPES = {torch.float32: "F32", torch.float64: "F64"}


@dataclass(frozen=True)
class Chain:
    """A whole chain, or as much as there is of one that left.

    Attributes:
        steps: (n,) logged.
        rows: (n, k, R), see `langevin.Piece`.
        inspected: (i,) and
        findings: (i, j), what `inspect` gave at these steps.
        accepted: moves of walkers that were accepted.
        diverged: the step at which it left, or None.
        observing: seconds that observables took.
    """

    steps: Array
    rows: Array
    inspected: Array
    findings: Array
    accepted: int
    diverged: int | None
    observing: float


def run_chain(
    target: LangevinTarget, kernel: Kernel, work: Work, states: Path, *, seed: int, chain: int, log_every: int,
    inspect: Callable[[int], Array] | None = None, inspect_every: int = 0,
) -> Chain:  # fmt: skip
    """Run a chain to its end, or take it up where it was stopped.

    Args:
        target: at the start that all chains are reset from.
        kernel: how to move.
        work: of this λ and s; its units are stretches of chains.
        states: name of the files of θ, without what tells their step.
        seed: of everything random.
        chain: which.
        log_every: steps between rows.
        inspect: see `langevin.advance`.
        inspect_every: see there.

    Raises:
        InputError: the file of θ that a unit left is gone or damaged; or the disk is full.
    """
    rows: list[Rows] = []
    done = 0
    while (row := work.get(f"{chain}/{done}")) is not None:
        rows.append(row)
        done = int(row["stop"])
        if done == kernel.steps or row["diverged"] >= 0:
            return _joined(rows)
    velocity = [torch.zeros_like(t) for t in target.tensors] if kernel.momentum else None
    moving = [*target.tensors, *(velocity or [])]
    if done:
        read_state(_at(states, chain, done), moving, rows[-1]["state"])
    else:
        target.reset(chain)

    def stretch() -> dict[str, Array]:
        """From step `done` on, until it has taken long enough; θ at its end is written if the chain goes on."""
        began = time.perf_counter()

        def enough(step: int) -> bool:
            work.advance(step, kernel.steps)
            return time.perf_counter() - began > PATIENCE

        piece = advance(
            target, kernel, seed=seed, chain=chain, start=done, velocity=velocity, log_every=log_every,
            ceiling=float(rows[-1]["ceiling"]) if rows else None, enough=enough, inspect=inspect,
            inspect_every=inspect_every,
        )  # fmt: skip
        state: Array = np.zeros(0, dtype=np.uint8)
        if piece.stop < kernel.steps and piece.diverged is None:
            for tensor in target.tensors:
                tensor.grad = None
            write_state(_at(states, chain, piece.stop), moving)
            state = checksum(_at(states, chain, piece.stop))
        return {
            "stop": np.array(piece.stop), "ceiling": np.array(piece.ceiling), "observing": np.array(piece.observing),
            "steps": np.array(piece.steps, dtype=int), "rows": np.array(piece.rows, dtype=float),
            "inspected": np.array(piece.inspected, dtype=int), "findings": np.array(piece.findings, dtype=float),
            "accepted": np.array(piece.accepted), "state": state,
            "diverged": np.array(-1 if piece.diverged is None else piece.diverged),
        }  # fmt: skip

    while not rows or len(rows[-1]["state"]):
        row = work.once(f"{chain}/{done}", stretch)
        _at(states, chain, done).unlink(missing_ok=True)
        rows.append(row)
        done = int(row["stop"])
    return _joined(rows)


def _at(states: Path, chain: int, step: int) -> Path:
    return states.with_name(f"{states.name}-{chain}-{step}.safetensors")


def _joined(stretches: list[Rows]) -> Chain:
    def whole(name: str) -> Array:
        parts = [row[name] for row in stretches if len(row[name])]
        return np.concatenate(parts) if parts else np.zeros((0, 0))

    diverged = int(stretches[-1]["diverged"])
    return Chain(
        whole("steps").astype(int), whole("rows"), whole("inspected").astype(int), whole("findings"),
        sum(int(row["accepted"]) for row in stretches), None if diverged < 0 else diverged,
        sum(float(row["observing"]) for row in stretches),
    )  # fmt: skip


def write_state(path: Path, tensors: Sequence[torch.Tensor]) -> None:
    """Tensors as a safetensors file, streamed: unlike that library's own writer it holds no copy of them.

    Written under another name, synchronised and then renamed.
    """
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
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(path.parent):
        path.parent.mkdir(exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                for tensor in tensors:
                    file.write(tensor.detach().cpu().contiguous().numpy().reshape(-1).view(np.uint8).data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


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
    remedy = "the weights that the chain stopped at are not there; use another --run"
    with foreign.reading(path, remedy):
        if expected is not None and not np.array_equal(checksum(path), expected):
            raise ValueError("not the file that the run left")
        with safe_open(path, framework="pt") as file, torch.no_grad():
            for index, tensor in enumerate(tensors):
                stored = file.get_tensor(str(index))
                if stored.shape != tensor.shape or stored.dtype != tensor.dtype:
                    raise ValueError(f"tensor {index} is {tuple(stored.shape)}, expected {tuple(tensor.shape)}")
                tensor.copy_(stored)
