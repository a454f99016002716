"""E6 of schedules: AdamW under schedules of weight decay, on training seeds that nothing was chosen by.

The λ they start from is the grid's best over the seeds of the sweep. A difference is from that λ held constant, seed by
seed: same start, same batches. `memory` begins at the λ that makes Σ η_tλ_t what it is at the constant one; `adamc` and
`cautious` take λ as it is, as their papers do; `radial-gap` takes nothing from the grid.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from villani.commands.paper.parts import ScheduleName, SchedulesPart
from villani.commands.paper.points import Study
from villani.commands.paper.record import SchedulePoint
from villani.commands.paper.training import best_decay, losses
from villani.commands.recommend.cells import SweepCell, cell_of, start_spec, train_cell
from villani.commands.recommend.settings import SweepSettings
from villani.commands.recommend.sweep_text import HELD_OUT
from villani.commands.subject import load, load_blocks
from villani.dynamics.interrupted import clear
from villani.dynamics.schedules import AdamC, ConstantMemory, DecaySchedule
from villani.dynamics.steered import CautiousDecay, RadialGap
from villani.dynamics.training import learning_rates
from villani.errors import InputError
from villani.inputs.models import LoadedModel
from villani.objective.objective import Objective
from villani.statistics import over_seeds
from villani.work.team import Rows
from villani.work.work import Work

_MARK = 1.0  # λ₀ of the radial gap, which only says that a group decays


def schedule_points(study: Study, cells: Sequence[SweepCell]) -> list[SchedulePoint]:
    """Every schedule on fresh seeds, which processes share; none where every λ diverged, or the best is 0."""
    part, sweep = study.settings.schedules, study.settings.sweep
    best = best_decay(cells, "adamw")
    if part is None or not best:
        return []
    study.work.stage("E6, schedules of weight decay", "schedules")
    mark, first = study.settings.digest("schedules"), sweep.training_seeds.stop
    keys = [(way, seed) for seed in range(first, first + part.seeds) for way in part.ways]
    units = {
        f"schedules/{mark}/{best!r}/{way}/{seed}": partial(
            _trained, study, part, way, best, seed, study.work.part(number, len(keys))
        )
        for number, (way, seed) in enumerate(keys)
    }
    rows = dict(zip(keys, study.work.map(units), strict=True))
    made = {
        (way, seed): cell_of(study.work.folder(), ("adamw", best, seed), study.text, row)
        for (way, seed), row in rows.items()
    }
    return [_point(way, best, rows, made) for way in part.ways]


def _trained(study: Study, part: SchedulesPart, way: ScheduleName, decay: float, seed: int, work: Work) -> Rows:
    sweep, folder = study.settings.sweep, study.work.folder("models")
    own = f"{way}-{decay!r}-{seed}-{study.settings.digest('schedules')}"
    weights, state = (folder / f"{own}{end}" for end in (".safetensors", "-state"))
    loaded = load(sweep, study.work, start_spec(sweep, seed), train=True)
    start, schedule = _schedule(study, part, way, decay, loaded)
    row = train_cell(sweep, study.text, ("adamw", start, seed), loaded, weights, state, work, schedule)
    weights.unlink(missing_ok=True)
    clear(state)
    last = max(schedule.current) if schedule else start
    if schedule:
        schedule.detach()
    return row | {"start": np.array(start), "last": np.array(last)}


def _schedule(
    study: Study, part: SchedulesPart, way: ScheduleName, decay: float, loaded: LoadedModel
) -> tuple[float, DecaySchedule | None]:
    """λ₀ and the schedule."""
    sweep = study.settings.sweep
    match way:
        case "memory":
            rates = learning_rates(sweep.schedule, sweep.learning_rate["adamw"], sweep.steps)
            return decay * float(np.mean(rates)) / max(rates), ConstantMemory(cap=part.cap)
        case "adamc":
            return decay, AdamC(_plain(loaded))
        case "cautious":
            return decay, CautiousDecay()
        case "radial-gap":
            return _MARK, RadialGap(*_texts(study, sweep, part, loaded), every=part.every, cap=part.cap)
        case "constant":
            return decay, None


def _plain(loaded: LoadedModel) -> list[object]:
    """What no normalisation undoes the size of: the output layer, and gains and biases."""
    model: Any = loaded.model
    output = model.get_output_embeddings()
    return [p for p in loaded.model.parameters() if p.dim() < 2 or (output is not None and p is output.weight)]


def _texts(
    study: Study, sweep: SweepSettings, part: SchedulesPart, loaded: LoadedModel
) -> tuple[Objective, Objective]:  # fmt: skip
    """As many blocks of what is trained on, evenly spread, and of the same text after it; none that judge."""
    whole, _ = load_blocks(sweep.text, sweep, study.work, loaded)
    trained = len(study.text.train.ids)
    last = len(whole.ids) - (0 if sweep.held_out else max(2, round(HELD_OUT * len(whole.ids))))
    if last - trained < part.blocks:
        raise InputError(
            f"schedules.blocks={part.blocks}: {sweep.text} has {last - trained} blocks that are neither trained on nor "
            "judged by; lower it, or sweep.train_blocks, or leave radial-gap out of schedules.ways"
        )
    seen = np.linspace(0, trained - 1, part.blocks).round().astype(int)
    rows = (seen, np.arange(trained, trained + part.blocks))
    seen_text, unseen_text = (
        Objective(loaded.model, [{"input_ids": whole.ids[row], "labels": whole.labels[row]}], decay=sweep.decay)
        for row in rows
    )
    return seen_text, unseen_text


def _point(
    way: ScheduleName, decay: float, rows: dict[tuple[ScheduleName, int], Rows],
    cells: dict[tuple[ScheduleName, int], SweepCell],
) -> SchedulePoint:  # fmt: skip
    own = {seed: cell for (name, seed), cell in cells.items() if name == way}
    known = {seed: values for seed, cell in own.items() if (values := losses(cell))}
    base = {seed: values for seed in known if (values := losses(cells["constant", seed]))}
    least = {key: min(loss for _, loss in cell.curve) for key, cell in cells.items()}
    finite = [float(rows[way, seed]["last"]) for seed in known]
    changes = [known[seed]["held_out"] - base[seed]["held_out"] for seed in base]
    at_best = [least[way, seed] - least["constant", seed] for seed in base]
    enough = way != "constant" and len(base) > 1
    return SchedulePoint.of(
        schedule=way, optimizer="adamw", chosen=decay, weight_decay=float(rows[way, next(iter(own))]["start"]),
        last=finite, seeds=[*own], diverged=len(own) - len(known),
        held_out=over_seeds([v["held_out"] for v in known.values()]) if len(known) > 1 else None,
        train_loss=over_seeds([v["train_loss"] for v in known.values()]) if len(known) > 1 else None,
        change=over_seeds(changes) if enough else None,
        best_change=over_seeds(at_best) if enough else None,
    )  # fmt: skip
