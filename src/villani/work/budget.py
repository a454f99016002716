"""What work takes, held against what there is before anything is allocated: memory, disk and stated limits.

Figures are estimates from shapes and settings, meant to be right within a factor of about two for memory and disk, and
of a few for time; what is refused is far beyond what there is, or beyond a limit that one may set:
`VILLANI_MEMORY_GIB` (default: none) and `VILLANI_DISK_GIB` (default: 24).
"""

import os
import resource
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from villani.errors import InputError
from villani.work.memory import resident
from villani.work.progress import duration

LESS = "choose a smaller model, or lower --micro-tokens or --block"
LONG, LARGE = 3600.0, 5.0 * 2**30  # seconds, and bytes of memory or disk, beyond which consent is asked for
DISK_LIMIT = 24.0  # GiB that one command may keep, unless VILLANI_DISK_GIB says otherwise
_LIBRARIES = 1.5e8  # bytes that libraries take when they are first used
_PAGE = 5e6  # bytes of a page, at most
_TOUCH = 40e-6  # seconds that an operation takes however small it is: Python, autograd and dispatch
_OPERATIONS = 60  # of a layer, forward and backward
_BESIDE = 1.4  # times its products of matrices that a gradient takes: SmolLM2-135M, one thread, 256 tokens
_GRADIENT = 3.2  # forward passes that a gradient takes: the same


@dataclass(frozen=True)
class Needs:
    """What a command is going to take.

    Attributes:
        memory: bytes at the peak, beyond what the process has now.
        disk: bytes kept in the run directory.
        seconds: until it is done; None where that is not known.
        stages: of the work in order, by the names that `Work.stage` begins them with: what each takes in any one unit,
            or None where that is not known.
        alone: those of them that one process of a team does while the others wait.
        processes: how many do it on this machine.
    """

    memory: float = 0.0
    disk: float = 0.0
    seconds: float | None = None
    stages: Mapping[str, float | None] = field(default_factory=dict)
    alone: frozenset[str] = frozenset()
    processes: int = 1

    def among(self, processes: int, here: int = 1) -> "Needs":
        """The same work shared by so many processes, `here` of them on this machine; memory stays that of each."""
        sizes = self.sizes()
        shared = {
            name: size if size is None or name in self.alone else size / processes for name, size in sizes.items()
        }
        before, after = (sum(size or 0.0 for size in of.values()) for of in (sizes, shared))
        share = after / before if before else 1 / processes
        return replace(self, seconds=self.seconds and share * self.seconds, stages=shared, processes=here)

    def sizes(self) -> dict[str, float | None]:
        """Stages in seconds, as far as these are known."""
        known = sum(size or 0.0 for size in self.stages.values())
        scale = self.seconds / known if known and self.seconds else 1.0
        return {name: None if size is None else scale * size for name, size in self.stages.items()}

    @property
    def large(self) -> bool:
        """Whether somebody should agree to it before it begins."""
        return (self.seconds or 0.0) > LONG or max(self._resident, self.disk) > LARGE

    @property
    def _resident(self) -> float:
        """Bytes at the peak, of all processes on this machine."""
        return self.processes * (self.memory + resident())

    @property
    def words(self) -> str:
        """Time, memory and disk."""
        parts = [] if self.seconds is None else [duration(max(self.seconds, 1.0))]
        of = f" of {self.processes} processes" if self.processes > 1 else ""
        parts += [f"{size(self._resident)} of memory{of}", f"{size(self.disk)} on disk"]
        return ", ".join(parts)

    def __str__(self) -> str:
        return f"expecting roughly {self.words}"


@dataclass(frozen=True)
class Shape:
    """Sizes of a model that time and memory follow from.

    `forward` is a forward pass that was timed, as (tokens, seconds): time then follows from it, and else from the speed
    of products of matrices alone.
    """

    parameters: int
    layers: int
    width: int
    heads: int
    vocabulary: int
    itemsize: int = 4
    forward: tuple[int, float] | None = None

    @classmethod
    def of(cls, model: Any, forward: tuple[int, float] | None = None) -> "Shape":
        """Of a loaded model; sizes that its configuration does not tell are 1."""
        config = model.config.get_text_config()

        names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
        stated = [getattr(config, name, None) for name in names]
        layers, width, heads, vocabulary = (n if isinstance(n, int) and n > 0 else 1 for n in stated)
        tensors = list(model.parameters())
        size, itemsize = sum(p.numel() for p in tensors), max(p.element_size() for p in tensors)
        return cls(size, layers, width, heads, vocabulary, itemsize, forward)

    def work(
        self,
        tokens: float | Mapping[str, float | None],
        *,
        at_once: int,
        block: int,
        vectors: float,
        kept: float = 0.0,
        graphs: float = 1.0,
        device: str = "cpu",
    ) -> Needs:
        """What gradients take.

        Args:
            tokens: that gradients are taken over, in all or in each stage, see `Needs`; a product with the Hessian
                counts as about three.
            at_once: of them in one pass.
            block: in one sequence.
            vectors: arrays of the size of θ that are held at once, beside θ itself.
            kept: such arrays on disk.
            graphs: times what a forward pass keeps for its backward pass that is held at once.
            device: where.
        """
        size = float(self.parameters * self.itemsize)
        stages = tokens if isinstance(tokens, Mapping) else {}
        total = sum(each or 0.0 for each in stages.values()) if isinstance(tokens, Mapping) else tokens
        return Needs(
            memory=_LIBRARIES + vectors * size + graphs * self.activations(at_once, block), disk=_PAGE + kept * size,
            seconds=self.seconds(total, at_once, device), stages=stages,
        )  # fmt: skip

    def streamed(
        self, tokens: Mapping[str, float | None], *, at_once: int, block: int, largest: int, reading: float,
        graphs: float = 1.0,
    ) -> Needs:  # fmt: skip
        """What gradients take where weights are read as they are used.

        Args:
            tokens: of stages, as of `work`.
            at_once, block, graphs: as of `work`.
            largest: bytes of the largest tensor; what a segment holds is about as large (objective/segments.py).
            reading: seconds to read all of θ once.
        """
        total = sum(each or 0.0 for each in tokens.values())
        passes = total / max(at_once, 1)
        kept = 2.0 * self.layers * at_once * self.width * self.itemsize
        inside = graphs * self.activations(at_once, block) / self.layers
        return Needs(
            memory=_LIBRARIES + 6.0 * largest + kept + inside, disk=_PAGE,
            seconds=self.seconds(4 / 3 * total, at_once) + 2 * passes * reading, stages=tokens,
        )  # fmt: skip

    def activations(self, tokens: int, block: int) -> float:
        """Bytes kept by a forward pass over so many tokens in blocks, for its backward pass."""
        per_token = self.layers * (20 * self.width + 2 * self.heads * block) + 3 * self.vocabulary
        return float(self.itemsize) * tokens * per_token

    def seconds(self, tokens: float, at_once: int, device: str = "cpu") -> float:
        """Of gradients over so many tokens, `at_once` in one pass."""
        passes, dispatch = tokens / max(at_once, 1), self.layers * _OPERATIONS * _TOUCH
        if self.forward is None:
            each = _BESIDE * 6.0 * self.parameters / _speed(device)
        else:
            count, seconds = self.forward
            each = _GRADIENT * max(seconds - dispatch / 3, 0.0) / count
        return each * tokens + passes * dispatch


def hold(
    needs: Needs, directory: Path | None = None, *, what: str, instead: str, device: str = "cpu",
    most: float | None = None,
) -> None:  # fmt: skip
    """Refuse work that does not fit.

    Args:
        needs: what it takes.
        directory: where it would be kept.
        what: what takes it, the subject of the sentence.
        instead: what to change.
        device: where the memory is.
        most: GiB that the process may take, if that is stated.

    Raises:
        InputError: more memory or disk than there is, or than the limit.
    """
    have, source = available_memory(device, most, needs.processes)
    if needs.memory > have:
        raise InputError(
            f"{what} would take about {size(needs.memory)} of memory, and {size(have)} are {source}: {instead}"
        )
    limit = _stated("VILLANI_DISK_GIB", DISK_LIMIT)
    if needs.disk > limit:
        raise InputError(
            f"{what} would keep about {size(needs.disk)} on disk, and the limit is {size(limit)}: {instead}, or set "
            "VILLANI_DISK_GIB higher"
        )
    if directory is not None and needs.disk > (free := available_disk(directory)):
        raise InputError(
            f"{what} would keep about {size(needs.disk)} on disk, and {size(free)} are free at {directory}: {instead}, "
            "or choose another --run"
        )


def agree(needs: Needs, confirm: Callable[[str], bool | None], *, what: str, instead: str) -> None:
    """Have somebody agree to long or large work before it begins.

    Args:
        needs: what it takes.
        confirm: asks them, see `Progress.confirm`.
        what: what takes it, the subject of the sentence.
        instead: what to change.

    Raises:
        InputError: nobody is there to agree, or they do not.
    """
    if not needs.large:
        return
    cost = f"{what} would take roughly {needs.words}"
    answer = confirm(f"{cost}. Begin?")
    if answer is None:
        raise InputError(f"{cost}: give yes=True to begin all the same, or {instead}")
    if not answer:
        raise InputError(f"{cost}, and was not agreed to: nothing was begun; to need less, {instead}")


def available_memory(device: str = "cpu", most: float | None = None, processes: int = 1) -> tuple[float, str]:
    """Bytes that each of so many processes may still take, of `most` GiB in all, and in words what sets that bound."""
    if device.startswith("cuda"):
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return float(free), f"free on {device}"
    each = f" for each of {processes} processes" if processes > 1 else ""
    bounds = [(_free() / processes, f"free{each}")]
    pages = _fields("/proc/self/statm")
    for kind, used, name in ((resource.RLIMIT_AS, 0, "ulimit -v"), (resource.RLIMIT_DATA, 5, "ulimit -d")):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY and len(pages) > used:
            bounds.append((limit - pages[used] * resource.getpagesize(), f"left under {name}"))
    if (group := _control_group()) is not None:
        bounds.append((group / processes, f"left in the control group{each}"))
    stated = _stated("VILLANI_MEMORY_GIB", float("inf"))
    if stated < float("inf"):
        bounds.append((stated - resident(), "left of VILLANI_MEMORY_GIB"))
    if most is not None:
        bounds.append((most * 2**30 - resident(), "left of --memory"))
    have, source = min(bounds)
    return max(have, 0.0), source


def available_disk(directory: Path) -> float:
    """Bytes free where a directory is, or will be made."""
    there = directory.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    return float(shutil.disk_usage(there).free)


def size(count: float) -> str:
    """Bytes for people."""
    for unit, scale in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if count >= 0.95 * scale:
            return f"{count / scale:.3g} {unit}" if count < 1000 * scale else f"{count / scale:.1e} {unit}"
    return "less than a MiB" if count < 2**20 else f"{count / 2**20:.3g} MiB"


def _stated(name: str, default: float) -> float:
    """A limit in bytes from the environment, in GiB there."""
    text = os.environ.get(name, "")
    if not text:
        return default * 2**30
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value > 0:
        raise InputError(f"{name}={text!r}: expected a number of GiB > 0")
    return value * 2**30


def _free() -> float:
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return float(line.split()[1]) * 1024
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _control_group() -> float | None:
    """Bytes left under the tightest limit of this process's control groups (version 2, or 1); None without one."""
    left: list[float] = []
    for line in _lines("/proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers not in ("",) and "memory" not in controllers.split(","):
            continue
        root = Path("/sys/fs/cgroup" if not controllers else "/sys/fs/cgroup/memory")
        limit, used = (
            ("memory.max", "memory.current") if not controllers else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        here = root / path.strip("/")
        for folder in (here, *here.parents):
            if not folder.is_relative_to(root):
                break
            most, taken = _fields(str(folder / limit)), _fields(str(folder / used))
            if most and taken and most[0] < 2**60:
                cached = [
                    int(x.split()[1]) for x in _lines(str(folder / "memory.stat")) if x.startswith("inactive_file ")
                ]
                left.append(float(most[0] - taken[0] + sum(cached)))
    return min(left) if left else None


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []


def _fields(path: str) -> list[int]:
    """The whole numbers on the first line of a file; none where there is no such file, or it says `max`."""
    lines = _lines(path)
    words = lines[0].split() if lines else []
    return [int(word) for word in words] if words and all(word.isdigit() for word in words) else []


def _speed(device: str) -> float:
    """Multiplications and additions a second, from a few products of matrices; about a hundredth of a second."""
    import torch

    a = torch.ones(256, 256, device=device)
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        float((a @ a)[0, 0])
        best = min(best, time.perf_counter() - began)
    return 2 * 256**3 / max(best, 1e-6)
