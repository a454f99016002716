"""A sweep over weight decay: the same start and batches at every λ, a cell for each optimiser, λ and training seed.

A cell is a unit of work: a kill loses one. Its weights go into a safetensors file before the ledger has its row, so
that a row without weights means that somebody removed them. A cell that diverges is a result, and has no weights.
"""

import hashlib
import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Literal, cast, get_args

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from villani.commands.constants.run import outputs
from villani.commands.converge.chains import checksum, read_state, write_state
from villani.commands.subject import vocabulary
from villani.dynamics.chain import label_probabilities
from villani.dynamics.training import Diverged, Optimizer, Schedule, train
from villani.errors import InputError, check_positive
from villani.inputs.corpora import load_corpus
from villani.inputs.models import LoadedModel, load_model
from villani.inputs.text import Blocks, cut_corpus, part_of, text_record
from villani.inputs.tokenizers import load_tokenizer
from villani.objective.evaluation import same_threads
from villani.objective.objective import MICRO_TOKENS, check_weight_decay
from villani.objective.parameters import ParameterSpace
from villani.statistics import Array, Estimate, ratio_estimates
from villani.streams import Purpose, word
from villani.theory.constants import Smoothing
from villani.work.budget import Needs, Shape
from villani.work.ledger import Ledger, ScopedLedger
from villani.work.memory import peak_memory
from villani.work.progress import Progress
from villani.work.records import TextRecord

HELD_OUT = 0.1  # of the blocks, at the end, where no other text is given
OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)


class SweepSettings(BaseModel):
    """What is trained, on what, and how. λ is what torch's optimiser calls weight_decay.

    Attributes:
        model: see `load_model`; random weights are drawn anew for every training seed.
        text: trained on; without `held_out`, all but its last tenth.
        held_out: another text to judge by.
        weight_decay: the grid, fixed beforehand.
        seeds: training seeds seed, seed + 1, …: order of batches, noise, and initial weights where they are random.
        batch: blocks in a step.
        learning_rate: at its peak, by optimiser.
        momentum: of sgd; the others have none, or their own.
        temperature: s of noisy-sgd.
        clip: largest norm of a step's gradient, or None.
        evaluate_every: steps between points of the curves; 0 for start and end only.
        train_blocks: train on this many, the first ones; None for all.
        held_out_blocks: judge by this many, the first ones; None for all.
        alpha: prediction smoothing of the bounded losses.
        allow_unused: see `load_model`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: ClassVar[str] = "sweep"

    model: str
    text: str = "builtin"
    held_out: str | None = None
    tokenizer: str | None = None
    block: int = 128
    optimizers: list[Optimizer] = ["sgd", "noisy-sgd", "adamw"]
    weight_decay: list[float]
    seeds: int = 3
    steps: int
    batch: int
    learning_rate: dict[str, float]
    momentum: float = 0.9
    temperature: float | None = None
    clip: float | None = 1.0
    decay: str = "all"
    schedule: Schedule = "warm-up-cosine"
    evaluate_every: int = 0
    train_blocks: int | None = None
    held_out_blocks: int | None = 256
    alpha: float = 0.1
    seed: int = 0
    special_tokens: Literal["auto", "none", "bos"] = "auto"
    device: str = "cpu"
    threads: int | None = None
    allow_unused: str | None = None

    def check(self) -> None:
        """Refuse what cannot be swept, before anything is loaded.

        Raises:
            InputError: it is one of these.
        """
        for name, least in (
            ("block", 2), ("seeds", 1), ("steps", 1), ("batch", 1), ("evaluate_every", 0), ("train_blocks", 1),
            ("held_out_blocks", 2), ("seed", 0), ("threads", 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name}={value}: expected at least {least}")
        grid = self.weight_decay
        if len(grid) < 2:
            raise InputError(f"weight_decay={grid}: a grid needs at least 2 values")
        if repeated := [value for value in grid if grid.count(value) > 1]:
            raise InputError(f"weight_decay: {repeated[0]:g} is given twice")
        for value in grid:
            check_weight_decay(value)
        if not self.optimizers or len(set(self.optimizers)) < len(self.optimizers):
            raise InputError(f"optimizers={self.optimizers}: expected different ones of {', '.join(OPTIMIZERS)}")
        if stray := self.learning_rate.keys() - set(self.optimizers):
            raise InputError(f"learning_rate: one for {sorted(stray)[0]!r}, which is not among the optimizers")
        for name in self.optimizers:
            if name not in self.learning_rate:
                raise InputError(f"learning_rate: none for {name}")
            check_positive(**{f"learning rate of {name}": self.learning_rate[name]})
        if not 0 <= self.momentum < 1:
            raise InputError(f"momentum={self.momentum:g}: expected a number in [0, 1)")
        if self.held_out == self.text:
            raise InputError(f"held_out={self.held_out!r}: that is the text that is trained on; give another, or none")
        if ("noisy-sgd" in self.optimizers) is (self.temperature is None):
            raise InputError(f"temperature={self.temperature}: goes with noisy-sgd, which needs one")
        if self.temperature is not None:
            check_positive(temperature=self.temperature)
        if self.clip is not None:
            check_positive(clip=self.clip)
        Smoothing(2, self.alpha)

    @property
    def from_scratch(self) -> bool:
        """Whether training starts at random weights."""
        return self.model.startswith(("config:", "builtin:"))


@dataclass(frozen=True, eq=False)
class SweepCell:
    """One training run and what it led to.

    Attributes:
        optimizer: which.
        weight_decay: λ, as torch's optimiser takes it.
        seed: the training seed.
        curve: (step, held-out mean nats per predicted token), from step 0; up to where it diverged.
        train_loss: of a fixed sample of the training blocks, with its error over blocks; None where it diverged.
        held_out: mean nats per predicted token, with its error over blocks; None where it diverged.
        sums: (M,) nats of each held-out block.
        smoothed: (2, M) sums of the smoothed losses of its tokens, and of their squares.
        counts: (M,) predicted tokens of each held-out block.
        documents: (M,) the document that each block is of; −1 where a part of it is missing.
        norm_squared: ‖θ‖² at the end; nan where it diverged.
        seconds: what it took.
        weights: where they are.
        diverged: whether a loss or a weight was not finite.
        checksum: (32,) of the file of weights; None where nobody told.
    """

    optimizer: Optimizer
    weight_decay: float
    seed: int
    curve: list[tuple[int, float]]
    train_loss: Estimate | None
    held_out: Estimate | None
    sums: Array
    smoothed: Array
    counts: Array
    documents: Array
    norm_squared: float
    seconds: float
    weights: Path
    diverged: bool
    checksum: Array | None = None


@dataclass(frozen=True, eq=False)
class SweepText:
    """What is trained on and what is judged by.

    Attributes:
        train: blocks.
        held_out: blocks.
        documents: (M,) the document of each held-out block; −1 where a part of it is missing.
        records: of both.
    """

    train: Blocks
    held_out: Blocks
    documents: Array
    records: tuple[TextRecord, TextRecord]


def read_sweep_text(settings: SweepSettings, data: Path | None = None) -> SweepText:
    """Read and cut the text of a sweep.

    Raises:
        InputError: no such text, or one that does not fit the model or is too short.
    """
    corpus = load_corpus(settings.text, data=data)
    judging = load_corpus(settings.held_out, data=data) if settings.held_out else corpus
    loaded = load_model(settings.model, allow_unused=settings.allow_unused)
    if loaded.record.context is not None and settings.block > loaded.record.context:
        raise InputError(f"block={settings.block}: the model accepts at most {loaded.record.context} tokens")
    tokenizer = load_tokenizer(
        settings.tokenizer or loaded.tokenizer, data=data, special_tokens=settings.special_tokens
    )
    known = vocabulary(loaded.model)
    whole, owners = cut_corpus(corpus, tokenizer, settings.block, known)
    end, start, other = len(whole.ids), 0, whole
    judged = owners
    if settings.held_out:
        other, judged = cut_corpus(judging, tokenizer, settings.block, known)
    else:
        end -= max(2, round(HELD_OUT * end))
        start = end
    stop = len(other.ids) if settings.held_out_blocks is None else min(len(other.ids), start + settings.held_out_blocks)
    end = end if settings.train_blocks is None else min(end, settings.train_blocks)
    if end < 1 or stop - start < 2:
        raise InputError(
            f"text has {len(whole.ids)} blocks of {settings.block} tokens to train on and judge by: too few; give more "
            "text, or shorter blocks"
        )
    train_part = part_of(whole, owners, 0, end, f"blocks 0 to {end - 1} are trained on")
    held_part = part_of(other, judged, start, stop, f"blocks {start} to {stop - 1} are judged by")
    records = [
        text_record(source, tokenizer, blocks, blocks.ids, blocks.labels)
        for source, blocks in ((corpus, train_part), (judging, held_part))
    ]
    return SweepText(train_part, held_part, _whole_documents(judged, start, stop), (records[0], records[1]))


def sweep(
    settings: SweepSettings, directory: Path, ledger: Ledger | ScopedLedger, data: Path | None, progress: Progress
) -> list[SweepCell]:
    """Train every cell, or take it from the ledger: optimisers in order, λ in the order of the grid, then seeds.

    Args:
        settings: what to train; checked here.
        directory: weights go to its folder `models`.
        ledger: a row for each cell; one ledger (or scope of it) and one directory for one model, text and training.
        data: folder of text and tokenizer files; the environment variable VILLANI_DATA by default.
        progress: told where the work is; counts steps.

    Raises:
        InputError: settings or input that cannot be used, or a ledger that was begun with others.
    """
    settings.check()
    seeds = range(settings.seed, settings.seed + settings.seeds)
    asked = list(product(settings.optimizers, settings.weight_decay, seeds))
    return run_cells(settings, asked, directory, ledger, data, progress)


@same_threads()
def run_cells(
    settings: SweepSettings, asked: Sequence[tuple[Optimizer, float, int]], directory: Path,
    ledger: Ledger | ScopedLedger, data: Path | None, progress: Progress, text: SweepText | None = None,
) -> list[SweepCell]:  # fmt: skip
    """As `sweep`, for the cells that are asked for, on the grid or off it: (optimiser, λ, training seed).

    `text` is what `read_sweep_text` gives, where it has been read already.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if text is None:
        progress.stage(f"reading {settings.text}")
        text = read_sweep_text(settings, data)
    _same_work(settings, text, ledger)
    missing = [cell for cell in asked if ledger.get(_key(*cell)) is None]
    before = 0
    for number, (optimizer, decay, seed) in enumerate(missing):
        if not number or missing[number - 1][0] != optimizer:
            progress.stage(f"{optimizer}: {sum(cell[0] == optimizer for cell in missing)} training runs")
            before = number
        ahead = (number - before) * settings.steps
        whole = sum(cell[0] == optimizer for cell in missing) * settings.steps
        began = time.perf_counter()

        def show(done: int, _: int, ahead: int = ahead, whole: int = whole) -> None:
            progress.advance(ahead + done, whole)

        row = _train_cell(settings, text, optimizer, decay, seed, _weights(directory, optimizer, decay, seed), show)
        row["seconds"] = np.array(time.perf_counter() - began)
        peak = peak_memory(torch.device(settings.device))
        ledger.put(_key(optimizer, decay, seed), row, seconds=float(row["seconds"]), peak_memory_bytes=peak)
    return [_cell(directory, cell, text, cast(dict[str, Array], ledger.get(_key(*cell)))) for cell in asked]


def needs_of(settings: SweepSettings, model: Any, cells: int, text: SweepText) -> Needs:
    """Of so many cells: a gradient a step, a third of one over the held-out blocks at every point; weights on disk."""
    points = 2 + (settings.steps // settings.evaluate_every if settings.evaluate_every else 0)
    blocks = cells * (settings.steps * settings.batch + points * len(text.held_out.ids) / 3)
    needs = Shape.of(model).work(
        blocks * settings.block, at_once=max(settings.block, min(MICRO_TOKENS, settings.batch * settings.block)),
        block=settings.block, vectors=5, kept=cells, device=settings.device,
    )  # fmt: skip
    return replace(needs, memory=needs.memory + 16.0 * settings.batch * settings.block)


def load_cell(settings: SweepSettings, cell: SweepCell) -> LoadedModel:
    """The model of a cell, as `load_model` gives it, with the weights that it was trained to.

    Raises:
        InputError: the cell diverged, or its file is gone or damaged.
    """
    if cell.diverged:
        raise InputError(f"{cell.optimizer}, λ = {cell.weight_decay:g}, seed {cell.seed} diverged: it has no weights")
    loaded = _start(settings, cell.seed)
    read_state(cell.weights, list(loaded.model.parameters()), cell.checksum)
    return loaded


def start_spec(settings: SweepSettings, seed: int) -> str:
    """The model that training seed `seed` starts from: random weights of their own, or the same checkpoint for all."""
    if not settings.from_scratch or seed == 0:
        return settings.model
    name, _, query = settings.model.partition("?")
    options = dict(pair.split("=", 1) for pair in query.split("&")) if query else {}
    options["seed"] = str(int(options.get("seed", 0)) + seed)
    return f"{name}?" + "&".join(f"{key}={value}" for key, value in options.items())


def _start(settings: SweepSettings, seed: int) -> LoadedModel:
    return load_model(start_spec(settings, seed), device=settings.device, allow_unused=settings.allow_unused)


def _train_cell(
    settings: SweepSettings, text: SweepText, optimizer: Optimizer, decay: float, seed: int, weights: Path, show: Any
) -> dict[str, Array]:
    loaded = _start(settings, seed)
    model, device = loaded.model, torch.device(settings.device)
    tensors: list[torch.Tensor] = list(model.parameters())
    blocks = [(part.ids.to(device), part.labels.to(device)) for part in (text.train, text.held_out)]
    first, _, _ = _judge(model, text.held_out, settings.alpha)
    curve, diverged = [(0, float(first.sum() / _predicted(text.held_out).sum()))], False
    # a checkpoint's dropout draws from torch's global state
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        torch.manual_seed(word(seed, Purpose.DROPOUT))
        try:
            curve += train(
                model, *blocks[0], steps=settings.steps, batch=settings.batch,
                learning_rate=settings.learning_rate[optimizer], seed=seed, optimizer=optimizer, weight_decay=decay,
                decay=settings.decay, momentum=settings.momentum if optimizer == "sgd" else 0.0,
                temperature=settings.temperature if optimizer == "noisy-sgd" else None, schedule=settings.schedule,
                clip=settings.clip, held_out=blocks[1], evaluate_every=settings.evaluate_every, progress=show,
            ).held_out  # fmt: skip
        except Diverged as error:
            curve, diverged = curve + error.held_out, True
    if not diverged:
        held, smoothed, logs = _judge(model, text.held_out, settings.alpha)
        sample = _sample(text.train, len(text.held_out.ids))
        seen, _, more = _judge(model, sample, settings.alpha)
        finite = all(bool(torch.isfinite(t).all()) for t in tensors)
        diverged = not (finite and np.isfinite(logs).all() and np.isfinite(more).all())
    curve = [(step, loss) for step, loss in curve if np.isfinite(loss)]
    row = {"curve": np.array(curve, dtype=float).reshape(-1, 2), "diverged": np.array(float(diverged))}
    if diverged:
        return row
    write_state(weights, tensors)
    norms = ParameterSpace(model).norms_squared()
    return row | {
        "sums": held, "smoothed": smoothed, "train_sums": seen, "train_counts": _predicted(sample),
        "norm_squared": np.array(float(norms.sum())), "weights": checksum(weights),
    }  # fmt: skip


def _judge(model: torch.nn.Module, blocks: Blocks, alpha: float) -> tuple[Array, Array, Array]:
    """(M,) nats of each block; (2, M) sums of smoothed losses and of their squares; (m,) ln p of each token."""
    logs, counts = label_probabilities(model, blocks.ids, blocks.labels)
    size = outputs(model)
    smooth = -np.log((1 - alpha) * np.exp(logs) + alpha / size)
    owner = np.repeat(np.arange(len(counts)), counts.astype(int))
    found = np.zeros((3, len(counts)))
    for row, values in zip(found, (-logs, smooth, smooth**2), strict=True):
        np.add.at(row, owner, values)
    return found[0], found[1:], logs


def _sample(blocks: Blocks, most: int) -> Blocks:
    """At most `most` of the blocks, evenly spread."""
    rows = np.unique(np.linspace(0, len(blocks.ids) - 1, min(most, len(blocks.ids))).round().astype(int))
    return Blocks(blocks.ids[rows], blocks.labels[rows], blocks.documents, blocks.tokens, blocks.cut)


def _predicted(blocks: Blocks) -> Array:
    """(M,) predicted tokens of each block."""
    return np.asarray((blocks.labels[:, 1:] >= 0).sum(dim=1).numpy(), dtype=np.float64)


def _cell(directory: Path, asked: tuple[Optimizer, float, int], text: SweepText, row: dict[str, Array]) -> SweepCell:
    diverged = bool(row["diverged"])
    counts, empty = _predicted(text.held_out), np.zeros(0)
    return SweepCell(
        *asked,
        curve=[(int(step), float(loss)) for step, loss in row["curve"]],
        train_loss=None if diverged else _mean(row["train_sums"], row["train_counts"]),
        held_out=None if diverged else _mean(row["sums"], counts),
        sums=row.get("sums", empty), smoothed=row.get("smoothed", empty), counts=counts, documents=text.documents,
        norm_squared=float(row.get("norm_squared", np.array(np.nan))), seconds=float(row["seconds"]),
        weights=_weights(directory, *asked), diverged=diverged, checksum=row.get("weights"),
    )  # fmt: skip


def _mean(sums: Array, counts: Array) -> Estimate:
    """Nats per token, with the jackknife's error over blocks; of one block, an error that is not known."""
    if len(counts) < 2:
        return Estimate(float(sums.sum() / counts.sum()), float("nan"), 1, "estimated")
    value, sem = ratio_estimates(sums[:, None], counts)
    return Estimate(float(value[0]), float(sem[0]), len(counts), "statistical")


def _whole_documents(owners: Array, start: int, stop: int) -> Array:
    """(M,) the document of each block from `start` to `stop`; −1 where it began before or goes on after."""
    part = np.asarray(owners[start:stop]).copy()
    for inside, outside in ((start, start - 1), (stop - 1, stop)):
        if 0 <= outside < len(owners) and owners[inside] == owners[outside]:
            part[owners[start:stop] == owners[inside]] = -1
    return part


def _key(optimizer: Optimizer, decay: float, seed: int) -> str:
    return f"cell/{optimizer}/{decay!r}/{seed}"


def _weights(directory: Path, optimizer: Optimizer, decay: float, seed: int) -> Path:
    return directory / "models" / f"{optimizer}-{decay!r}-{seed}.safetensors"


_OF_A_CELL = {
    "optimizers",
    "weight_decay",
    "seeds",
    "threads",
    "allow_unused",
}  # what tells cells apart, or is told otherwise


def _same_work(settings: SweepSettings, text: SweepText, ledger: Ledger | ScopedLedger) -> None:
    """Refuse a ledger whose cells are of another model, text or training."""
    trained = SweepSettings.model_fields.keys() - _OF_A_CELL  # and not what else a command asks
    digest = hashlib.sha256(settings.model_dump_json(include=trained).encode())
    space = ParameterSpace(load_model(settings.model, allow_unused=settings.allow_unused).model, settings.decay)
    digest.update(space.checksum().encode())
    if space.mask != settings.decay:
        digest.update(space.mask.encode())
    for part in (text.train, text.held_out):
        digest.update(part.ids.numpy().tobytes() + part.labels.numpy().tobytes())
    versions = {name: version(name) for name in ("villani", "torch", "transformers", "numpy")}
    digest.update(repr((sorted(versions.items()), platform.python_version(), torch.get_num_threads())).encode())
    found = ledger.get("sweep")
    if found is None:
        ledger.put("sweep", {"work": np.array(digest.hexdigest())}, seconds=0.0, peak_memory_bytes=0)
    elif str(found["work"]) != digest.hexdigest():
        raise InputError(
            "this run's sweep was begun with another model, text, training, library version or number of threads: use "
            "the same, or another --run"
        )


def by_decay(cells: Iterable[SweepCell], optimizer: Optimizer) -> dict[float, list[SweepCell]]:
    """λ → cells of its seeds, in the order of the cells."""
    found: dict[float, list[SweepCell]] = {}
    for cell in cells:
        if cell.optimizer == optimizer:
            found.setdefault(cell.weight_decay, []).append(cell)
    return found
