"""What tuning a model did to it: measured at the end of every training run, and changes from no decay, in pairs.

A run is looked at before its model is gone, so that no weights lie on disk for it. All models see the same blocks and
the same probes, and a change from no decay is taken seed by seed and block by block: what both have in common cancels.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from villani.choice.paired import Change, paired
from villani.choice.selection import joined, may_be_best
from villani.commands.paper.parts import ForgettingPart
from villani.commands.paper.record import EffectRecord
from villani.commands.paper.settings import PaperSettings
from villani.commands.recommend.cells import SweepCell
from villani.commands.recommend.settings import CellKey, TrainedName, run_of
from villani.commands.recommend.sweep_text import SweepText
from villani.commands.subject import as_groups, load_blocks, load_text, load_tokenizer_of
from villani.curvature.ways import Way
from villani.dynamics.chain import label_probabilities
from villani.errors import InputError
from villani.inputs.models import LoadedModel
from villani.inputs.text import Blocks, choose_groups, text_record
from villani.measurement.measure import measure
from villani.measurement.rows import samples
from villani.objective.objective import Objective
from villani.objective.pathologies import embedding_of, pathology_sums, superposition
from villani.statistics import Array, Estimate, exact, over_seeds
from villani.theory.conventions import memory
from villani.work.records import TextRecord
from villani.work.team import Rows
from villani.work.work import Work

HELD_OUT, FORGETTING, SHARPNESS = "held-out loss", "forgetting", "tr ∇²L"
SHARPNESS_BY = Way("hutchinson")  # smooth in θ, so that probes cancel in a difference
_MICRO_TOKENS = 512


@dataclass(frozen=True, eq=False)
class OtherText:
    """Text of another kind than what is trained on.

    Attributes:
        blocks: evenly spread over it.
        documents: (F,) the document of each.
        record: which text.
    """

    blocks: Blocks
    documents: Array
    record: TextRecord

    @property
    def counts(self) -> Array:
        """(F,) predicted tokens."""
        return self.blocks.counts.astype(float)


def read_other(
    settings: PaperSettings, part: ForgettingPart, text: SweepText, work: Work, loaded: LoadedModel
) -> OtherText:
    """The text that may be forgotten.

    Raises:
        InputError: no such text, too short, or from a file that is trained on or judged by.
    """
    corpus, tokenizer = load_text(part.text, work), load_tokenizer_of(settings.sweep, work, loaded)
    own = {source.md5 for source in corpus.sources}
    for record in text.records:
        if part.text == record.spec or own & {source.md5 for source in record.sources}:
            raise InputError(
                f"forgetting.text={part.text!r}: that is {record.spec}, which is trained on or judged by; give another"
            )
    whole, owners = load_blocks(part.text, settings.sweep, work, loaded)
    if len(whole.ids) < 2:
        raise InputError(
            f"forgetting.text={part.text!r}: {len(whole.ids)} blocks of {settings.sweep.block} tokens, too few"
        )
    rows = np.unique(np.linspace(0, len(whole.ids) - 1, min(part.blocks, len(whole.ids))).round().astype(int))
    ids, labels, documents = whole.ids[rows], whole.labels[rows], np.asarray(owners)[rows]
    words = f"{whole.cut}; {len(rows)} of them, evenly spread, tell what is forgotten"
    blocks = Blocks(ids, labels, len(np.unique(documents)), int((labels >= 0).sum()), words)
    return OtherText(blocks, documents, text_record(corpus, tokenizer, blocks, ids, labels))


def looked(
    settings: PaperSettings, part: ForgettingPart, text: SweepText, other: OtherText, cell: CellKey, loaded: LoadedModel
) -> dict[str, Array]:  # fmt: skip
    """What is measured of a trained model: sums over the blocks and groups that all models see.

    Of a model with a residual stream that is mostly 0, or curvature that is not finite, that part is missing.
    """
    row = {"forgetting": block_sums(loaded, other.blocks), "superposition": _crowding(loaded)}
    with suppress(InputError):
        row |= _attention(part, text, loaded)
    if cell[2] in settings.sweep.training_seeds[: part.seeds]:
        with suppress(InputError):
            row |= _sharpness(settings, part, text, loaded)
    return row


def looked_before(
    settings: PaperSettings, part: ForgettingPart, text: SweepText, other: OtherText, loaded: LoadedModel
) -> dict[str, Array]:  # fmt: skip
    """The same of the model that training begins at, before any; what cannot be measured there is refused.

    Raises:
        InputError: attention, activations or curvature that this model does not show.
    """
    row = {"forgetting": block_sums(loaded, other.blocks), "superposition": _crowding(loaded)}
    return row | _attention(part, text, loaded) | _sharpness(settings, part, text, loaded)


def _crowding(loaded: LoadedModel) -> Array:
    return np.array(superposition(embedding_of(loaded.model)))


def _attention(part: ForgettingPart, text: SweepText, loaded: LoadedModel) -> dict[str, Array]:
    """(B,) of the first held-out blocks: attention on the first token, over queries; the largest activation ratio."""
    if not part.pathologies:
        return {}
    ids, labels = (t[: part.pathologies] for t in (text.held_out.ids, text.held_out.labels))
    seen = pathology_sums(loaded.model, ids, labels, micro_tokens=_MICRO_TOKENS)
    sinks = {"sinks": seen.sinks.mean(axis=1)} if seen.sinks.shape[1] else {}
    return {"queries": seen.queries, "activations": seen.activations.max(axis=1), **sinks}


def _sharpness(settings: PaperSettings, part: ForgettingPart, text: SweepText, loaded: LoadedModel) -> dict[str, Array]:
    """(G,) tr ∇²(loss sum) of blocks of the training text, by one probe each, and their tokens."""
    if not part.groups:
        return {}
    sweep, units = settings.sweep, Work()
    groups = as_groups(*choose_groups(text.train, part.groups, 1, sweep.seed))
    objective = Objective(loaded.model, groups, 0.0, sweep.decay, micro_tokens=max(_MICRO_TOKENS, sweep.block))
    measure(objective, 1, sweep.seed, trace=SHARPNESS_BY.trace, shares=0, work=units)
    rows = [row for group in range(part.groups) if (row := units.get(f"group/{group}")) is not None]
    tokens, traces = samples(rows, "traces")
    return {"traces": traces.sum(axis=(1, 2)), "traced": tokens}


def block_sums(loaded: LoadedModel, blocks: Blocks) -> Array:
    """(F,) nats of each block."""
    logs, counts = label_probabilities(loaded.model, blocks.ids, blocks.labels, micro_tokens=_MICRO_TOKENS)
    owner = np.repeat(np.arange(len(counts)), counts.astype(int))
    sums: Array = np.bincount(owner, weights=-logs, minlength=len(counts)).astype(float)
    return sums


class _Quantity(NamedTuple):
    """Something told of every run: its (U,) sums and weights at a cell; None where it was not measured."""

    name: str
    read: Callable[[SweepCell], tuple[Array, Array] | None]
    less: bool = False  # whether less of it is better
    seeds: int = 2  # training seeds that a change is told from, at least; of one, errors would be over units alone


def effects(
    settings: PaperSettings, cells: Sequence[SweepCell], other: OtherText, start: Array
) -> list[EffectRecord]:  # fmt: skip
    """Every quantity at every optimiser and λ, with its change from the first λ; `start`: sums before training."""
    counts, documents = other.counts, other.documents

    def forgotten(cell: SweepCell) -> tuple[Array, Array] | None:
        return joined(cell.looked["forgetting"] - start, counts, documents)

    quantities = [
        _Quantity(HELD_OUT, lambda c: joined(c.sums, c.counts, c.documents), less=True),
        _Quantity(FORGETTING, forgotten, less=True),
        _Quantity("‖θ − θ₀‖", lambda c: _number(c.distance_squared**0.5)),
        _Quantity("‖θ‖", lambda c: _number(c.norm_squared**0.5)),
        _Quantity(SHARPNESS, lambda c: _pair(c.looked, "traces", "traced"), seeds=1),
        _Quantity("attention on the first token", lambda c: _pair(c.looked, "sinks", "queries")),
        _Quantity("massive activations", lambda c: _pair(c.looked, "activations")),
        _Quantity("crowded embeddings", lambda c: _number(float(c.looked["superposition"]))),
    ]
    return [effect for quantity in quantities for effect in _effects(settings, cells, quantity)]


def _number(value: float) -> tuple[Array, Array]:
    return np.array([value]), np.ones(1)


def _pair(row: Rows, sums: str, weights: str | None = None) -> tuple[Array, Array] | None:
    if sums not in row:
        return None
    return row[sums], row[weights] if weights else np.ones(len(row[sums]))


def _effects(settings: PaperSettings, cells: Sequence[SweepCell], quantity: _Quantity) -> list[EffectRecord]:
    read = {
        (cell.optimizer, cell.weight_decay, cell.seed): pair
        for cell in cells if not cell.diverged and (pair := quantity.read(cell)) is not None
    }  # fmt: skip
    if not read:
        return []
    weights = next(iter(read.values()))[1]
    sweep = settings.sweep
    rows = {
        (name, decay): {seed: read[key][0] for seed in sweep.training_seeds if (key := (name, decay, seed)) in read}
        for name in sweep.optimizers for decay in settings.grid(name)
    }  # fmt: skip
    changes = {}
    for (name, decay), row in rows.items():
        first = rows[name, settings.grid(name)[0]]
        both = [row[seed] - first[seed] for seed in row if seed in first]
        if decay != settings.grid(name)[0] and len(both) >= quantity.seeds:
            changes[name, decay] = _estimate(both, weights)
    told = {key: Change.of(change, len(changes)) for key, change in changes.items()}
    best = _best(rows, weights, sweep.seeds) if quantity.less else set()
    made = []
    for (name, decay), row in rows.items():
        change = told.get((name, decay))
        made.append(
            EffectRecord.of(
                quantity=quantity.name, optimizer=name, weight_decay=decay, memory=_memory(settings, name, decay),
                seeds=len(row), units=len(weights), value=_estimate([*row.values()], weights) if row else None,
                change=change.estimate if change else None, resolved=bool(change and change.resolved),
                detectable=change.detectable if change else None,
                kept=run_of((name, decay, 0))[:2] in best if quantity.less else None,
            )
        )  # fmt: skip
    return made


def _memory(settings: PaperSettings, optimizer: TrainedName, decay: float) -> float | None:
    """1/(ηλ) at the peak rate, in runs; None without decay."""
    sweep = settings.sweep
    momentum = sweep.momentum if optimizer == "sgd" else 0.0
    return memory(decay, sweep.learning_rate[optimizer], momentum) / sweep.steps if decay else None


def _estimate(sums: Sequence[Array], weights: Array) -> Estimate:
    """The mean over seeds of sums per weight, with errors over seeds and units; of a number alone over seeds."""
    if len(weights) > 1:
        return paired(np.stack(sums), weights)
    values = np.concatenate(sums) / weights
    return over_seeds(values) if len(values) > 1 else exact(float(values[0]))


def _best(
    rows: Mapping[tuple[TrainedName, float], Mapping[int, Array]], weights: Array, seeds: int
) -> set[tuple[TrainedName, float]]:
    """Which runs may be the best of all, whatever their decay goes towards; out are those that diverged at a seed."""
    whole = {run_of((*key, 0))[:2]: [*row.values()] for key, row in rows.items() if len(row) == seeds}
    kept = may_be_best(np.stack([np.stack(row) for row in whole.values()]), weights) if whole else []
    return {key for number, key in enumerate(whole) if number in kept}
