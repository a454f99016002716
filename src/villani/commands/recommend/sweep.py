"""A sweep over weight decay: the same start and batches at every λ, a cell for each optimiser, λ and training seed.

A cell is a unit of work, which processes share out; what a kill breaks off goes on from the state that it left. Its
weights go into a safetensors file before the ledger has its row, which knows their checksum, and stay there where they
were asked for. A cell that diverges is a result, and has no weights.
"""

import hashlib
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count, product
from math import ceil
from pathlib import Path

import numpy as np
import torch

from villani.commands.certify.certified_text import smoothed_losses
from villani.commands.recommend.settings import CellKey as CellKey
from villani.commands.recommend.settings import SweepSettings, TrainedName, run_of
from villani.commands.running import versions
from villani.commands.subject import begin, load, load_blocks, load_text, load_tokenizer_of, outputs, timed_forward
from villani.dynamics.chain import label_probabilities
from villani.dynamics.interrupted import clear
from villani.dynamics.schedules import DecaySchedule
from villani.dynamics.steered import StartDecay
from villani.dynamics.training import Diverged, train
from villani.errors import InputError
from villani.inputs.models import LoadedModel
from villani.inputs.text import Blocks, check_context, part_of, text_record
from villani.objective.evaluation import same_threads
from villani.objective.objective import MICRO_TOKENS, Objective
from villani.objective.parameters import ParameterSpace, double_dot
from villani.statistics import Array, Estimate, mean_per_token
from villani.streams import Purpose, word
from villani.work.budget import Needs, Shape
from villani.work.records import TextRecord
from villani.work.stretches import checksum, read_state, write_state
from villani.work.team import Rows
from villani.work.work import Work

Look = Callable[[CellKey, LoadedModel], Mapping[str, Array]]  # at a trained model, before it is gone
SWEEP = "sweep"  # stage
HELD_OUT = 0.1  # of the blocks, at the end, where no other text is given
_LOOKED = "looked."  # how the names begin of what a `Look` leaves in a row
_STATE = 3  # vectors of θ's size that a state has at most: θ, and two of the optimiser


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


def read_sweep_text(settings: SweepSettings, work: Work) -> SweepText:
    """The text of a sweep, read and cut once.

    Raises:
        InputError: no such text, or one that does not fit the model or is too short.
    """
    key = ("sweep text", settings.text, settings.held_out, settings.block, settings.train_blocks)
    return work.loaded((*key, settings.held_out_blocks), lambda: _read_text(settings, work))


def _read_text(settings: SweepSettings, work: Work) -> SweepText:
    corpus = load_text(settings.text, work)
    judging = load_text(settings.held_out, work) if settings.held_out else corpus
    loaded = load(settings, work)
    check_context(settings.block, loaded.record.context)
    tokenizer = load_tokenizer_of(settings, work, loaded)
    whole, owners = load_blocks(settings.text, settings, work, loaded)
    end, start, other = len(whole.ids), 0, whole
    judged = owners
    if settings.held_out:
        other, judged = load_blocks(settings.held_out, settings, work, loaded)
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
    return SweepText(train_part, held_part, whole_documents(judged, start, stop), (records[0], records[1]))


@same_threads()
def sweep(
    settings: SweepSettings, work: Work, cells: Sequence[CellKey] | None = None, stage: str = SWEEP, *,
    keep: Callable[[CellKey], bool] | bool = True, look: Look | None = None,
) -> list[SweepCell]:  # fmt: skip
    """Train cells, or take them from the ledger.

    Args:
        settings: what to train; checked here.
        work: a unit is a cell; weights go to the folder `models` of its directory. One scope of it for one model, text
            and training.
        cells: on the grid or off it; by default all of the grid: optimisers in order, λ in its order, then seeds. Those
            that are one run (`run_of`) are trained once.
        stage: of the work, among those that the command declared.
        keep: of which cells the weights stay; where they are not, a cell is trained again, to the same bits.
        look: at every model that was trained, part of its unit; what it does depends on is for the caller to key.

    Raises:
        InputError: settings or input that cannot be used, or a ledger that was begun with others.
    """
    settings.check()
    if cells is None:
        cells = [*product(settings.optimizers, settings.weight_decay, settings.training_seeds)]
    begin(settings)
    text = read_sweep_text(settings, work)
    directory = work.folder()
    _same_work(settings, text, work)
    work.stage("training runs", stage)
    runs = dict.fromkeys(map(run_of, cells))
    lasting = {cell for cell in runs if (keep(cell) if callable(keep) else keep)}
    in_order = sorted(runs, key=lambda cell: cell[2])  # one start is held at a time, and a part of them is of use
    rows = _trained(settings, text, work, in_order, lasting, stage, look)
    gone = [c for c in in_order if c in lasting and not rows[c]["diverged"] and not _weights(directory, *c).exists()]
    gone = [(optimizer, decay, seed) for optimizer, decay, seed in work.team.broadcast(gone)]
    for cell, row in _trained(settings, text, work, gone, lasting, stage, again=True).items():
        if not np.array_equal(row.get("weights", np.zeros(0)), rows[cell]["weights"]):
            weights = _weights(directory, *cell)
            weights.unlink(missing_ok=True)
            raise InputError(f"{weights}: training this cell again led to other weights than before: use another --run")
    return [cell_of(directory, cell, text, rows[run_of(cell)]) for cell in cells]


def _trained(
    settings: SweepSettings, text: SweepText, work: Work, cells: Sequence[CellKey], lasting: Set[CellKey], stage: str,
    look: Look | None = None, *, again: bool = False,
) -> dict[CellKey, Rows]:  # fmt: skip
    """The rows of cells: what the ledger has, or what they are trained to here; `again` asks no ledger."""
    missing = [cell for cell in cells if again or work.get(_key(*cell)) is None]
    of, rest = Counter(cell[0] for cell in missing), count(len(cells) - len(missing), work.team.size)
    earlier: list[Path] = []  # of this process; the ledger has their cells by the time that the next is begun

    def make(cell: CellKey) -> Rows:
        while earlier:
            clear(earlier.pop())
        loaded = load(settings, work, start_spec(settings, cell[2]), train=True)
        work.stage(f"{cell[0]}: {of[cell[0]]} training runs", stage)
        weights = _weights(work.folder(), *cell)
        earlier.append(weights.with_name(f"{weights.stem}-state"))
        row = train_cell(settings, text, cell, loaded, weights, earlier[0], work.part(next(rest), len(cells)))
        if look and not row["diverged"]:
            row |= {f"{_LOOKED}{name}": value for name, value in look(cell, loaded).items()}
        if cell not in lasting:
            weights.unlink(missing_ok=True)
        return row

    units = {_key(*cell): partial(make, cell) for cell in cells}
    rows = work.team.map(units) if again else work.map(units)
    while earlier:
        clear(earlier.pop())
    return dict(zip(cells, rows, strict=True))


def needs_of(
    settings: SweepSettings, objective: Objective, cells: int, text: SweepText,
    more: Mapping[str, float | None] | None = None, *, kept: int | None = None, processes: int = 1, looked: float = 0.0,
    graphs: float = 1.0, alone: frozenset[str] | None = None,
) -> Needs:  # fmt: skip
    """Of so many cells, `looked` at over so many tokens in all, and of `more` stages; a loss is a third of a gradient.

    Stages named `alone` are not shared by processes; without that name, none of `more` is. To train and to look takes
    `graphs` times what a forward pass keeps, at the most. Weights of `kept` cells lie on disk, and of each process two
    states of the cell that it trains.
    """
    judged = ceil(settings.steps / settings.evaluate_every) if settings.evaluate_every else 1
    points = 3 + judged  # at the start, after the training, and a sample of what is trained on
    blocks = cells * (settings.steps * settings.batch + points * len(text.held_out.ids) / 3)
    starts = settings.from_scratch and any(settings.training_seeds)  # others than the model's own
    vectors = (cells if kept is None else kept) + 2 * _STATE * min(processes, cells)
    needs = Shape.of(objective.model, timed_forward(objective)).work(
        {SWEEP: blocks * settings.block + looked, **(more or {})},
        at_once=max(settings.block, min(MICRO_TOKENS, settings.batch * settings.block)),
        block=settings.block, vectors=7 if starts else 5, kept=vectors, graphs=graphs, device=settings.device,
    )  # fmt: skip
    memory = needs.memory + 16.0 * settings.batch * settings.block
    return replace(needs, memory=memory, alone=frozenset(more or {}) if alone is None else alone)


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
        weights=_weights(directory, *run_of(key)), diverged=diverged, checksum=row.get("weights"),
        looked={name.removeprefix(_LOOKED): value for name, value in row.items() if name.startswith(_LOOKED)},
    )  # fmt: skip


def whole_documents(owners: Array, start: int, stop: int) -> Array:
    """(M,) the document of each block from `start` to `stop`; −1 where it began before or goes on after."""
    part = np.asarray(owners[start:stop]).copy()
    for inside, outside in ((start, start - 1), (stop - 1, stop)):
        if 0 <= outside < len(owners) and owners[inside] == owners[outside]:
            part[owners[start:stop] == owners[inside]] = -1
    return part


def _key(optimizer: TrainedName, decay: float, seed: int) -> str:
    return f"cell/{optimizer}/{decay!r}/{seed}"


def _weights(directory: Path, optimizer: TrainedName, decay: float, seed: int) -> Path:
    return directory / "models" / f"{optimizer}-{decay!r}-{seed}.safetensors"


# what tells cells apart, or is told otherwise
_OF_A_CELL = {"optimizers", "weight_decay", "seeds", "threads", "allow_unused", "adapter", "trust_remote_code"}


def _same_work(settings: SweepSettings, text: SweepText, work: Work) -> None:
    """Refuse a ledger whose cells are of another model, text or training."""
    trained = SweepSettings.model_fields.keys() - _OF_A_CELL  # and not what else a command asks
    digest = hashlib.sha256(settings.model_dump_json(include=trained).encode())
    space = ParameterSpace(load(settings, work).model, settings.decay)
    digest.update(space.checksum().encode())
    if space.mask != settings.decay:
        digest.update(space.mask.encode())
    for part in (text.train, text.held_out):
        digest.update(part.ids.numpy().tobytes() + part.labels.numpy().tobytes())
    packages = versions("villani", "torch", "transformers", "numpy")
    digest.update(repr((sorted(packages.items()), platform.python_version(), torch.get_num_threads())).encode())
    row = work.once("sweep", lambda: {"work": np.array(digest.hexdigest())})
    if str(row["work"]) != digest.hexdigest():
        raise InputError(
            "this run's sweep was begun with another model, text, training, library version or number of threads: use "
            "the same, or another --run"
        )


def by_decay(cells: Iterable[SweepCell], optimizer: TrainedName) -> dict[float, list[SweepCell]]:
    """λ → cells of its seeds, in the order of the cells."""
    own = [cell for cell in cells if cell.optimizer == optimizer]
    return {decay: [c for c in own if c.weight_decay == decay] for decay in dict.fromkeys(c.weight_decay for c in own)}
