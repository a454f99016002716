"""Several processes share the units of one piece of work: `torchrun --nproc-per-node N -m villani …`.

All talk is one exchange: every process gives a message or an `InputError`, and every process gets everybody's. A unit's
row is a pure function of its key, so neither the rows nor what is computed from them depend on the number of processes.
Process 0 alone keeps the ledger. torch is imported only where torchrun started the process.
"""

import io
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from types import FrameType
from typing import Any, Protocol

import numpy as np

from villani.errors import InputError, LostProcess
from villani.statistics import Array
from villani.work import foreign

Rows = Mapping[str, Array]
Message = tuple[Any, Rows]  # what JSON holds, and arrays
Exchange = Callable[[Message], list[Message]]

EARLIER = "earlier seconds"  # of a unit's rows: what it took in a process that was stopped; kept as part of its time
_PATIENCE = timedelta(days=30)  # a slow unit is no failure; torchrun ends the others when a process dies
_POLL = 0.001  # seconds


class Ledger(Protocol):
    """Where finished units of work are kept; `villani.work.ledger.Ledger` is one."""

    def get(self, key: str) -> Rows | None:
        """The arrays of a finished unit, or None."""

    def put(self, key: str, arrays: Rows, *, seconds: float, peak_memory_bytes: int) -> None:
        """Keep a finished unit; on return it survives a kill."""


class Team:
    """Processes that do the same work together; `Team()` is this one alone, `join()` those that torchrun started.

    Every process must make the same calls in the same order. An `InputError` of one is raised by all: at once inside a
    unit, elsewhere when the others next call.

    Args:
        rank: of this process, from 0.
        size: how many there are.
        exchange: gives everybody's messages, in order of rank, for one's own; may raise `LostProcess`.
    """

    def __init__(self, rank: int = 0, size: int = 1, exchange: Exchange = lambda message: [message]) -> None:
        self.rank = rank
        self.size = size
        self._exchange = exchange
        self._failed = False  # an error was told to everybody

    @property
    def here(self) -> int:
        """How many of them are on this machine."""
        text = os.environ.get("LOCAL_WORLD_SIZE", "")
        return min(self.size, int(text)) if self.size > 1 and text.isdecimal() else self.size

    @property
    def main(self) -> bool:
        """Whether this is process 0, which alone prints and writes."""
        return self.rank == 0

    def map(
        self,
        units: Mapping[str, Callable[[], Rows]],
        ledger: Ledger | None = None,
        progress: Callable[[int, int], None] | None = None,
        peak_memory: Callable[[], int] = lambda: 0,
    ) -> list[Rows]:
        """The rows of all units, in the order of `units`, in every process.

        What the ledger has is not worked out again. The rest is dealt out in rounds of one unit a process, and is kept
        round by round: a kill loses no more than the units in flight.

        Args:
            units: key → the work, a pure function. Its arrays hold no Python objects.
            ledger: used by process 0 only.
            progress: called with (finished, total) units.
            peak_memory: largest memory of this process so far, in bytes; asked after each unit.

        Raises:
            InputError: the first failed unit's; the others of its round are kept.
            LostProcess: another process is gone.
        """
        kept: dict[str, Rows] = {}
        if self.main and ledger is not None:
            kept = {key: rows for key in units if (rows := ledger.get(key)) is not None}
        found: dict[str, Rows] = {}

        def finished(key: str, rows: Rows) -> None:
            found[key] = rows
            if progress:
                progress(len(found), len(units))

        for key in self.broadcast(list(kept)):
            finished(key, self._told((None, kept.get(key, {})))[0][1])
        missing = [key for key in units if key not in found]
        for first in range(0, len(missing), self.size):
            dealt = missing[first : first + self.size]
            own = units[dealt[self.rank]] if self.rank < len(dealt) else None
            heard = self._share(partial(_worked, own, peak_memory))
            for key, message in zip(dealt, heard, strict=False):
                if isinstance(message, InputError):
                    continue
                cost, rows = message
                if self.main and ledger is not None:
                    ledger.put(key, rows, **cost)
                finished(key, rows)
            _without_errors(heard)
        return [found[key] for key in units]

    def broadcast(self, value: Any) -> Any:
        """Process 0's value, which JSON must be able to hold, in every process; tuples come back as lists."""
        return json.loads(json.dumps(self._told((value if self.main else None, {}))[0][0]))

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Refuse processes that differ in what determines a row, such as their threads or their processor.

        Raises:
            InputError: names the first fact (a JSON value) that differs.
        """
        first, *others = (told for told, _ in self._told((dict(facts), {})))
        for rank, other in enumerate(others, 1):
            for name in first | other:
                value, theirs = first.get(name), other.get(name)
                if theirs != value:
                    self._failed = True  # everybody sees it
                    raise InputError(
                        f"process {rank} has {name} = {theirs!r}, process 0 has {value!r}: start them alike"
                    )

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that every process leaves when all have, and with the same `InputError` if one of them had it."""
        own: InputError | None = None
        try:
            yield
        except InputError as error:
            if self._failed:
                raise
            own = error
        _without_errors(self._share(partial(_outcome, own)))

    def _told(self, message: Message) -> list[Message]:
        return _without_errors(self._share(lambda: message))

    def _share(self, work: Callable[[], Message]) -> list[Message | InputError]:
        """What came of everybody's work."""
        own: InputError | None = None
        note, arrays = None, {}  # type: Any, Rows
        try:
            note, arrays = work()
        except InputError as error:
            own = error
        everybody = self._exchange(([str(own) if own else None, note], arrays))
        heard: list[Message | InputError] = [
            (told, rows) if problem is None else InputError(problem) for (problem, told), rows in everybody
        ]
        if own:
            heard[self.rank] = own  # with its traceback
        self._failed = any(isinstance(message, InputError) for message in heard)
        return heard


def _worked(work: Callable[[], Rows] | None, peak_memory: Callable[[], int]) -> Message:
    """A unit's rows and what they cost; nothing where there is no unit left."""
    if work is None:
        return None, {}
    start = time.perf_counter()
    rows = dict(work())
    seconds = time.perf_counter() - start + float(rows.pop(EARLIER, 0.0))
    return {"seconds": seconds, "peak_memory_bytes": peak_memory()}, rows


def _outcome(error: InputError | None) -> Message:
    if error:
        raise error
    return None, {}


def _without_errors(heard: list[Message | InputError]) -> list[Message]:
    """What was heard; raises the first error in it."""
    for message in heard:
        if isinstance(message, InputError):
            raise message
    return [message for message in heard if not isinstance(message, InputError)]


def rank() -> int:
    """This process's number: from torchrun's environment, or 0."""
    return int(os.environ["RANK"]) if _launched() else 0


def alone(command: str) -> None:
    """Refuse to run a command that does not share its work in several processes, which would all do the same.

    Raises:
        InputError: torchrun started more than one.
    """
    if _launched() and int(os.environ["WORLD_SIZE"]) > 1:
        raise InputError(f"{command} does not share its work among processes: run it without torchrun")


@contextmanager
def join(device: str = "cpu") -> Iterator[Team]:
    """The team that torchrun started, over gloo or, with `device` cuda, NCCL; without torchrun, this process alone.

    On GPUs each process takes the one of its LOCAL_RANK as torch's current device. Other processes that fall away, or
    torchrun's SIGTERM, raise `LostProcess` in process 0.

    Raises:
        InputError: a GPU is named by its index, or there are too few.
    """
    if not _launched():
        yield Team()
        return
    import torch
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    if device.startswith("cuda"):
        _check_gpus(device, int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count())
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend, place = "nccl", "cuda"
    else:
        backend, place = "gloo", "cpu"
    before = signal.signal(signal.SIGTERM, _terminated) if rank() == 0 else None
    try:
        store, number, size = next(rendezvous("env://", timeout=_PATIENCE))
        fresh = distributed.PrefixStore(f"villani/{_attempt()}", store)  # type: ignore[attr-defined]
        distributed.init_process_group(backend, store=fresh, rank=number, world_size=size, timeout=_PATIENCE)
        team = Team(number, size, partial(exchange, place))
        with team.together():
            yield team
        distributed.destroy_process_group()  # not after an error: the others may be gone, and NCCL would wait for them
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def exchange(place: str, message: Message) -> list[Message]:
    """Everybody's messages over the default process group, as bytes in tensors on `place`; nothing is unpickled.

    Raises:
        LostProcess: another process is gone.
    """
    import torch
    from torch import distributed

    own = torch.frombuffer(bytearray(_pack(message)), dtype=torch.uint8).to(place)
    sizes = [torch.zeros(1, dtype=torch.int64, device=place) for _ in range(distributed.get_world_size())]
    _finish(distributed.all_gather(sizes, torch.tensor([len(own)], device=place), async_op=True))
    heard = []
    for source, size in enumerate(sizes):
        buffer = own if source == rank() else torch.empty(int(size), dtype=torch.uint8, device=place)
        _finish(distributed.broadcast(buffer, source, async_op=True))
        heard.append(_unpack(buffer.cpu().numpy().tobytes()))
    return heard


def _finish(work: Any) -> None:
    """Wait for a collective in Python, where a signal is acted on at once."""
    while not work.is_completed():
        time.sleep(_POLL)
    try:
        work.wait()
    except RuntimeError as error:
        raise LostProcess from error


def _pack(message: Message) -> bytes:
    note, arrays = message
    buffer = io.BytesIO()
    if arrays:
        np.savez(buffer, allow_pickle=False, **arrays)
    return json.dumps(note).encode() + b"\n" + buffer.getvalue()


def _unpack(packed: bytes) -> Message:
    note, _, archived = packed.partition(b"\n")
    return json.loads(note), foreign.arrays(archived) if archived else {}


def _launched() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def _attempt() -> str:
    """Tells apart the times that `--max-restarts` starts the processes, since one store serves them all on a node.

    Nodes count restarts each for itself, so that among several the count says nothing.
    """
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if os.environ.get("GROUP_WORLD_SIZE", "1") == "1" else "0"


def _check_gpus(device: str, processes: int, gpus: int) -> None:
    if device != "cuda":
        raise InputError(f"device {device!r}: under torchrun give --device cuda, and each process takes its own GPU")
    if processes > gpus:
        raise InputError(
            f"{processes} processes and {gpus} GPUs: give torchrun --nproc-per-node {max(gpus, 1)} or less"
        )


def _terminated(_number: int, _frame: FrameType | None) -> None:
    raise LostProcess
