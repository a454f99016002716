"""A sweep over weight decay: the same start and batches at every λ, a cell for each optimiser, λ and training seed.

A cell is a unit of work, which processes share out; what a kill breaks off goes on from the state that it left. Its
weights go into a safetensors file before the ledger has its row, which knows their checksum, and stay there where they
were asked for. A cell that diverges is a result, and has no weights.
"""

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from functools import partial
from itertools import count, product
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from villani.commands.recommend.cells import LOOKED, SweepCell, cell_of, start_spec, train_cell, weights_of
from villani.commands.recommend.settings import CellKey, SweepSettings, TrainedName, run_of
from villani.commands.recommend.sweep_text import SweepText, read_sweep_text
from villani.commands.running import versions
from villani.commands.subject import begin, load, timed_forward
from villani.dynamics.interrupted import clear
from villani.errors import InputError
from villani.inputs.models import LoadedModel
from villani.objective.evaluation import same_threads
from villani.objective.objective import MICRO_TOKENS, Objective
from villani.objective.parameters import ParameterSpace
from villani.statistics import Array
from villani.work.budget import Needs, Shape
from villani.work.team import Rows
from villani.work.work import Work

Look = Callable[[CellKey, LoadedModel], Mapping[str, Array]]  # at a trained model, before it is gone
SWEEP = "sweep"  # stage
_STATE = 3  # vectors of θ's size that a state has at most: θ, and two of the optimiser


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
    runs = dict.fromkeys(map(run_of, cells))
    trainings = _trainings(settings, text, work, {optimizer for optimizer, _, _ in runs})
    for cell in runs:
        _same_training(cell, work.kept(cell_key(*cell)), trainings[cell[0]])
    work.stage("training runs", stage)
    lasting = {cell for cell in runs if (keep(cell) if callable(keep) else keep)}
    in_order = sorted(runs, key=lambda cell: cell[2])  # one start is held at a time, and a part of them is of use
    train = partial(_trained, settings, text, work, trainings, lasting, stage)
    rows = train(in_order, look)
    gone = [c for c in in_order if c in lasting and not rows[c]["diverged"] and not weights_of(directory, *c).exists()]
    gone = [(optimizer, decay, seed) for optimizer, decay, seed in work.team.broadcast(gone)]
    for cell, row in train(gone, again=True).items():
        if not np.array_equal(row.get("weights", np.zeros(0)), rows[cell]["weights"]):
            weights = weights_of(directory, *cell)
            weights.unlink(missing_ok=True)
            raise InputError(f"{weights}: training this cell again led to other weights than before: use another --run")
    return [cell_of(directory, cell, text, rows[run_of(cell)]) for cell in cells]


def _trained(
    settings: SweepSettings, text: SweepText, work: Work, trainings: Mapping[str, str], lasting: Set[CellKey],
    stage: str, cells: Sequence[CellKey], look: Look | None = None, *, again: bool = False,
) -> dict[CellKey, Rows]:  # fmt: skip
    """The rows of cells: what the ledger has, or what they are trained to here; `again` asks no ledger."""
    missing = [cell for cell in cells if again or work.kept(cell_key(*cell)) is None]
    of, rest = Counter(cell[0] for cell in missing), count(len(cells) - len(missing), work.team.size)
    earlier: list[Path] = []  # of this process; the ledger has their cells by the time that the next is begun

    def make(cell: CellKey) -> Rows:
        while earlier:
            clear(earlier.pop())
        loaded = load(settings, work, start_spec(settings, cell[2]), train=True)
        work.stage(f"{cell[0]}: {of[cell[0]]} training runs", stage)
        weights = weights_of(work.folder(), *cell)
        mark = hashlib.sha256(trainings[cell[0]].encode()).hexdigest()[:8]  # nothing goes on from another training's
        earlier.append(weights.with_name(f"{weights.stem}-{mark}-state"))
        row = train_cell(settings, text, cell, loaded, weights, earlier[0], work.part(next(rest), len(cells)))
        if look and not row["diverged"]:
            row |= {f"{LOOKED}{name}": value for name, value in look(cell, loaded).items()}
        if cell not in lasting:
            weights.unlink(missing_ok=True)
        return row | {_TRAINING: np.array(trainings[cell[0]])}

    units = {cell_key(*cell): partial(make, cell) for cell in cells}
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


def cell_key(optimizer: TrainedName, decay: float, seed: int) -> str:
    """Of a cell, among the units of its sweep."""
    return f"cell/{optimizer}/{decay!r}/{seed}"


# of a sweep: what tells its cells apart, or is told of each optimiser; a run may grow by it
GRID_FIELDS = {"optimizers", "weight_decay", "seeds", "learning_rate", "momentum", "temperature"}
_TRAINING, _REST = "training", "all else"
_ASIDE = {"threads", "allow_unused", "adapter", "trust_remote_code"}  # told otherwise, or of no weight


def _trainings(settings: SweepSettings, text: SweepText, work: Work, optimizers: Set[str]) -> dict[str, str]:
    """Optimiser → what determines the rows of its cells, as JSON."""
    trained = SweepSettings.model_fields.keys() - GRID_FIELDS - _ASIDE  # and not what else a command asks
    digest = hashlib.sha256(settings.model_dump_json(include=trained).encode())
    space = ParameterSpace(load(settings, work).model, settings.decay)
    digest.update(space.checksum().encode())
    if space.mask != settings.decay:
        digest.update(space.mask.encode())
    for part in (text.train, text.held_out):
        digest.update(part.ids.numpy().tobytes() + part.labels.numpy().tobytes())
    packages = versions("villani", "torch", "transformers", "numpy")
    digest.update(repr((sorted(packages.items()), platform.python_version(), torch.get_num_threads())).encode())
    made = {}
    for name in sorted(optimizers):
        own: dict[str, Any] = {"learning rate": settings.learning_rate[name]}
        own |= {"momentum": settings.momentum} if name == "sgd" else {}
        own |= {"temperature": settings.temperature} if name == "noisy-sgd" else {}
        made[name] = json.dumps(own | {_REST: digest.hexdigest()})
    return made


def _same_training(cell: CellKey, row: Rows | None, now: str) -> None:
    """Refuse a ledger whose cell was trained otherwise."""
    if row is None or (was := str(row[_TRAINING])) == now:
        return
    before, after = json.loads(was), json.loads(now)
    name = next(name for name in after if before.get(name) != after[name])
    differs = "with another model, text, library version or number of threads"
    if name != _REST:
        differs = f"at {name} {before.get(name)!r}, now {after[name]!r}"
    raise InputError(
        f"this run has {cell[0]}, λ = {cell[1]:g}, trained {differs}: use the same settings or another --run"
    )


def told_before(work: Work, cells: Sequence[CellKey]) -> str:
    """A sentence where this run told results of other cells before it was asked for these; else nothing.

    For the process that writes. What was told is a unit of the run, so that the sentence stays the same.
    """
    mark = hashlib.sha256(repr(sorted(cells)).encode()).hexdigest()[:8]
    row = work.once(f"told/{mark}", lambda: {"earlier": np.array(work.spent("told/")[2])})
    if not (earlier := int(row["earlier"])):
        return ""
    others = "another grid" if earlier == 1 else f"{earlier} other grids"
    return (
        f"This grid was asked for after results of {others} had been told in this run: intervals and bounds are those "
        "of a grid that is fixed beforehand, and the cost is of all that the run has."
    )
