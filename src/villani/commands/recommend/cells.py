"""A cell of a sweep: one training run, what is kept of it, and its weights, which come back bit by bit."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from villani.commands.certify.certified_text import smoothed_losses
from villani.commands.recommend.settings import CellKey, SweepSettings, TrainedName, run_of
from villani.commands.recommend.sweep_text import SweepText
from villani.commands.subject import load, outputs
from villani.dynamics.chain import label_probabilities
from villani.dynamics.schedules import DecaySchedule
from villani.dynamics.steered import StartDecay
from villani.dynamics.training import Diverged, train
from villani.errors import InputError
from villani.inputs.models import LoadedModel
from villani.inputs.text import Blocks
from villani.objective.parameters import ParameterSpace, double_dot
from villani.statistics import Array, Estimate, mean_per_token
from villani.streams import Purpose, word
from villani.work.stretches import checksum, read_state, write_state
from villani.work.team import Rows
from villani.work.work import Work

LOOKED = "looked."  # how the names begin of what a `Look` leaves in a row


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
        distance_squared: ‖θ − θ₀‖² at the end, θ₀ where training began; nan where it diverged.
        weights: where they are.
        diverged: whether a loss or a weight was not finite.
        checksum: (32,) of the file of weights; None where nobody told.
        looked: what a `Look` saw at the end.
    """

    optimizer: TrainedName
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
    weights: Path
    diverged: bool
    checksum: Array | None = None
    distance_squared: float = float("nan")
    looked: Rows = field(default_factory=dict)


def load_cell(settings: SweepSettings, cell: SweepCell, work: Work) -> LoadedModel:
    """The model of a cell, as `load_model` gives it, with the weights that it was trained to.

    Raises:
        InputError: the cell diverged, or its file was not kept, is gone or damaged.
    """
    if cell.diverged:
        raise InputError(f"{cell.optimizer}, λ = {cell.weight_decay:g}, seed {cell.seed} diverged: it has no weights")
    loaded = load(settings, work, train=True)  # of whatever start: all of θ is read
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


def train_cell(
    settings: SweepSettings, text: SweepText, cell: CellKey, loaded: LoadedModel, weights: Path, state: Path,
    work: Work, decay_schedule: DecaySchedule | None = None,
) -> dict[str, Array]:  # fmt: skip
    """Train a cell, write its weights, and give its row; `state` is what a kill leaves, see `train`."""
    (optimizer, decay, seed), device, model = cell, torch.device(settings.device), loaded.model
    towards_start = StartDecay(model.parameters(), loaded.start) if optimizer == "adamw-start" and decay else None
    tensors: list[torch.Tensor] = list(model.parameters())
    blocks = [(part.ids.to(device), part.labels.to(device)) for part in (text.train, text.held_out)]
    first, _, _ = _judge(model, text.held_out, settings.alpha)
    curve, diverged = [(0, float(first.sum() / text.held_out.counts.sum()))], False
    # a checkpoint's dropout draws from torch's global state
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        torch.manual_seed(word(seed, Purpose.DROPOUT))
        try:
            curve += train(
                model, *blocks[0], steps=settings.steps, batch=settings.batch,
                learning_rate=settings.learning_rate[optimizer], seed=seed,
                optimizer="adamw" if optimizer == "adamw-start" else optimizer, weight_decay=decay,
                decay=settings.decay, momentum=settings.momentum if optimizer == "sgd" else 0.0,
                temperature=settings.temperature if optimizer == "noisy-sgd" else None, schedule=settings.schedule,
                clip=settings.clip, held_out=blocks[1], evaluate_every=settings.evaluate_every, work=work,
                state=state, decay_schedule=towards_start or decay_schedule,
            ).held_out  # fmt: skip
        except Diverged as error:
            curve, diverged = curve + error.held_out, True
    if towards_start:
        towards_start.detach()
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
    moved = (a.detach() - b for a, b in zip(tensors, loaded.start, strict=True))
    distance = sum(double_dot(part, part) for part in moved)
    return row | {
        "sums": held, "smoothed": smoothed, "train_sums": seen, "train_counts": sample.counts.astype(float),
        "norm_squared": np.array(float(norms.sum())), "distance_squared": np.array(distance),
        "weights": checksum(weights),
    }  # fmt: skip


def _judge(model: torch.nn.Module, blocks: Blocks, alpha: float) -> tuple[Array, Array, Array]:
    """(M,) nats of each block; (2, M) sums of smoothed losses and of their squares; (m,) ln p of each token."""
    logs, counts = label_probabilities(model, blocks.ids, blocks.labels)
    smooth = smoothed_losses(logs, alpha, outputs(model))
    owner = np.repeat(np.arange(len(counts)), counts.astype(int))
    found = np.zeros((3, len(counts)))
    for row, values in zip(found, (-logs, smooth, smooth**2), strict=True):
        np.add.at(row, owner, values)
    return found[0], found[1:], logs


def _sample(blocks: Blocks, most: int) -> Blocks:
    """At most `most` of the blocks, evenly spread."""
    rows = np.unique(np.linspace(0, len(blocks.ids) - 1, min(most, len(blocks.ids))).round().astype(int))
    return Blocks(blocks.ids[rows], blocks.labels[rows], blocks.documents, blocks.tokens, blocks.cut)


def cell_of(directory: Path, key: CellKey, text: SweepText, row: Rows) -> SweepCell:
    """The cell that a row tells of."""
    diverged = bool(row["diverged"])
    counts, empty = text.held_out.counts.astype(float), np.zeros(0)
    return SweepCell(
        *key,
        curve=[(int(step), float(loss)) for step, loss in row["curve"]],
        train_loss=None if diverged else mean_per_token(row["train_sums"], row["train_counts"]),
        held_out=None if diverged else mean_per_token(row["sums"], counts),
        sums=row.get("sums", empty), smoothed=row.get("smoothed", empty), counts=counts, documents=text.documents,
        norm_squared=float(row.get("norm_squared", np.array(np.nan))),
        distance_squared=float(row.get("distance_squared", np.array(np.nan))),
        weights=weights_of(directory, *run_of(key)), diverged=diverged, checksum=row.get("weights"),
        looked={name.removeprefix(LOOKED): value for name, value in row.items() if name.startswith(LOOKED)},
    )  # fmt: skip


def weights_of(directory: Path, optimizer: TrainedName, decay: float, seed: int) -> Path:
    """The file of a cell's weights, below the run directory."""
    return directory / "models" / f"{optimizer}-{decay!r}-{seed}.safetensors"


def by_decay(cells: Iterable[SweepCell], optimizer: TrainedName) -> dict[float, list[SweepCell]]:
    """λ → cells of its seeds, in the order of the cells."""
    own = [cell for cell in cells if cell.optimizer == optimizer]
    return {decay: [c for c in own if c.weight_decay == decay] for decay in dict.fromkeys(c.weight_decay for c in own)}
