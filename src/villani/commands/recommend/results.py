"""From the cells of a sweep and what rules say to a record: the choice on the grid, where rules land, and the words."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from villani.choice import selection
from villani.choice.paired import LEVEL, paired
from villani.choice.rules import RULES, Rule, Training
from villani.choice.selection import GridLosses
from villani.commands.recommend.cells import SweepCell
from villani.commands.recommend.effect import Effect, effect_sentence, effects, stopping_sentence
from villani.commands.recommend.record import (
    NAMES,
    ConventionRecord,
    GridPoint,
    MarginRecord,
    OptimizerRecord,
    RuleRecord,
)
from villani.commands.recommend.settings import RecommendSettings
from villani.outwards import lower, upper
from villani.statistics import Array, Estimate
from villani.theory.constants import Smoothing
from villani.theory.conventions import conventions, memory
from villani.theory.guidance import ACTS, acting_from, forgotten

SHARED_START = "All training began at the same weights: seeds that share a start speak of that start only."
_MEANING = {
    "adamw": (
        "AdamW is no gradient descent on F = L + (λ/2)‖θ‖²: no λ of F belongs to its weight_decay (THEORY.md §8)."
    ),
    "sgd": "Torch's SGD adds weight_decay·θ to the gradient: it is the λ of F exactly, for any fixed momentum.",
    "noisy-sgd": "The decay is the λ of F exactly; the noise makes it a Langevin chain at temperature s.",
}


@dataclass(frozen=True)
class Certificates:
    """λ → certified risk of a noisy run, nats per token, and why others have none."""

    bounds: dict[float, float]
    refusals: list[str]


Cells = Mapping[float, Sequence[SweepCell]]  # λ → its seeds


def _losses(cells: Cells) -> GridLosses:
    grid = tuple(sorted(cells))
    first = cells[grid[0]][0]
    _, counts = selection.joined(first.counts, first.counts, first.documents)
    return GridLosses(grid, np.stack([_sums(cells[decay], len(counts)) for decay in grid]), counts)


def _sums(cells: Sequence[SweepCell], units: int) -> Array:
    """(K, U) nats of each unit at each seed; nan where training diverged."""
    rows = [np.full(units, np.nan) if c.diverged else selection.joined(c.sums, c.counts, c.documents)[0] for c in cells]
    return np.stack(rows)


def optimizer_record(
    settings: RecommendSettings, run: Training, grid: Cells, beyond: Cells, rules: Sequence[Rule],
    certificates: Certificates, smoothing: Smoothing, level: float, source: str = "",
    epochs: float = 0.0,
) -> OptimizerRecord:  # fmt: skip
    """What was found with one optimiser.

    Args:
        settings: what was asked.
        run: how it trained.
        grid: the cells of the grid.
        beyond: those of λ that only a rule named; empty without --verify-rules.
        rules: what they said.
        certificates: of noisy runs.
        smoothing: of the bounds.
        level: δ of each bound on held-out text.
        source: who says at which learning rate.
        epochs: passes over the training blocks.
    """
    losses = _losses(grid)
    noisy = run.optimizer == "noisy-sgd"
    changed = effects(losses, {decay: [c.train_loss.value for c in row if c.train_loss] for decay, row in grid.items()})
    by = {effect.weight_decay: effect for effect in changed}
    points = [
        GridPoint.of(
            point, forgotten=forgotten(point.weight_decay, run.time, run.momentum),
            **(_effect_fields(by[point.weight_decay]) if point.weight_decay in by else {}),
        )
        for point in _points(grid, losses, certificates.bounds if noisy else {}, smoothing, level)
    ]  # fmt: skip
    held = [point for point in points if not point.diverged]
    best = losses.weight_decay[losses.best] if losses.finite else None
    bounded = [p for p in points if p.held_out_bound is not None]
    judged = [_judged(rule, losses, beyond, len(certificates.bounds)) for rule in rules]
    if "held-out" in settings.rules:
        judged.append(_held_out(losses, best))
    record = OptimizerRecord.of(
        run, meaning=_meaning(run), learning_rate_source=source, recommended=best,
        undecided=len(held) > 1 and all(point.kept for point in held), action=action(run, sorted(grid)),
        effect=effect_sentence(changed),
        stopping=stopping_sentence({p.weight_decay: [c.curve for c in grid[p.weight_decay]] for p in held}, epochs),
        kept=[point.weight_decay for point in points if point.kept],
        least_bound=min(bounded, key=lambda p: p.held_out_bound or 0.0).weight_decay if bounded else None,
        memory=memory(best, run.learning_rate, run.momentum) if best else None, points=points, rules=judged,
        conventions=[
            ConventionRecord(name=name, weight_decay=value, note=words)
            for name, value, words in conventions(run.optimizer, best, run.learning_rate, run.momentum)
        ] if best is not None else [],
        refusals=certificates.refusals if noisy else [], sentence="",
    )  # fmt: skip
    words = "" if settings.from_scratch else f" {SHARED_START}"
    return record.model_copy(update={"sentence": _sentence(record) + words})


def _effect_fields(effect: Effect) -> dict[str, Any]:
    return {
        "change": effect.change.estimate, "resolved": effect.change.resolved, "detectable": effect.change.detectable,
        "train_change": effect.trained,
    }  # fmt: skip


def action(run: Training, grid: Sequence[float]) -> str:
    """Whether decay can act in a run at all, at which λ of a grid, and over how many steps it forgets: what decides."""
    positive = [decay for decay in grid if decay > 0]
    if not positive:
        return ""

    def over(decay: float) -> str:
        formula = "(1 − μ)/(ηλ)" if run.momentum else "1/(ηλ)"
        steps = memory(decay, run.learning_rate, run.momentum)
        return f"at λ = {decay:g} decay forgets over {formula} = {steps:,.3g} steps"

    acting = [decay for decay in positive if forgotten(decay, run.time, run.momentum) >= ACTS]
    steps = f"{run.steps:,}"
    if not acting:
        least = acting_from(run.time, run.momentum)
        return (
            f"at η = {run.learning_rate:g} decay cannot act: even {over(positive[-1])}, of which {steps} are done; to "
            f"take {ACTS:.0%} of the weights away in them needs λ ≥ {upper(least, 2)}"
        )
    share = forgotten(acting[0], run.time, run.momentum)
    takes = f"{over(acting[0])}, and takes {share:.2g} of the weights away in {steps}"
    if acting == positive:
        return f"at η = {run.learning_rate:g} decay acts at every λ > 0 of the grid: {takes}"
    return f"at η = {run.learning_rate:g} decay acts from λ = {acting[0]:g} on, and cannot below: {takes}"


def _meaning(run: Training) -> str:
    clipped = run.clipped and run.optimizer != "adamw"
    words = " Clipping acts on ∇L alone: where it does, the drift is not ∇F." if clipped else ""
    return _MEANING[run.optimizer] + words


def _points(
    grid: Cells, losses: GridLosses, certified: Mapping[float, float], smoothing: Smoothing, level: float
) -> list[GridPoint]:
    kept = selection.indistinguishable(losses)
    points = []
    for index, decay in enumerate(losses.weight_decay):
        cells = grid[decay]
        fields: dict[str, Any] = dict.fromkeys(GridPoint.model_fields) | {
            "weight_decay": decay, "diverged": sum(cell.diverged for cell in cells), "kept": index in kept, "curve": [],
            "certified": certified.get(decay), "resolved": 0,
        }  # fmt: skip
        if not fields["diverged"]:
            bounds = [selection.held_out_bound(c.smoothed, c.counts, c.documents, smoothing, level) for c in cells]
            documents = [bound.documents for bound in bounds if bound.documents is not None]
            losses_on_the_way = np.mean([[loss for _, loss in c.curve] for c in cells], axis=0).tolist()
            fields |= {
                "held_out": losses.mean(index), "train_loss": _trained(cells),
                "norm_squared": float(np.mean([c.norm_squared for c in cells])),
                "margin": selection.margin(losses, losses.sums[index], own=index),
                "held_out_bound": float(np.mean([bound.tokens for bound in bounds])),
                "document_bound": float(np.mean(documents)) if documents else None,
                "curve": [(step, loss) for (step, _), loss in zip(cells[0].curve, losses_on_the_way, strict=True)],
            }  # fmt: skip
        points.append(GridPoint.of(**fields))
    return points


def _trained(cells: Sequence[SweepCell]) -> Estimate:
    """Mean training loss over seeds; its error adds that over seeds to the largest that one model has over blocks."""
    losses = [cell.train_loss for cell in cells if cell.train_loss is not None]
    values = np.array([one.value for one in losses])
    of_seeds = float(values.var(ddof=1)) / len(values) if len(values) > 1 else 0.0
    sem = math.sqrt(of_seeds + max(one.sem for one in losses) ** 2)
    return Estimate(float(values.mean()), sem, losses[0].n, "statistical")


def _judged(rule: Rule, losses: GridLosses, beyond: Cells, certificates: int) -> RuleRecord:
    """How a rule would have done: at its own λ where that was trained, else at the nearest of the grid."""
    decay, count = rule.weight_decay, len(losses.weight_decay)
    if decay is None:
        return _placed(rule)
    share = 1 / count
    if rule.id == "certificate":  # a run at every λ that has one, besides
        share += certificates / (count * losses.seeds)
    if decay in beyond:
        return _placed(rule, losses, _sums(beyond[decay], len(losses.counts)), decay, None, share)
    index = selection.nearest(losses.weight_decay, decay)
    if index is None:
        return _placed(_flagged(rule, "not judged: 0 is not in the grid"))
    if (trained := losses.weight_decay[index]) != decay:
        rule = _flagged(rule, f"judged at the nearest λ of the grid, {trained:g}")
    return _placed(rule, losses, losses.sums[index], trained, index, share)


def _held_out(losses: GridLosses, best: float | None) -> RuleRecord:
    """The grid search itself."""
    rule = Rule(
        "held-out", RULES["held-out"], best, "everywhere; costs the whole grid", "statistical", "THEORY.md §8 (3), (4)"
    )
    if best is None:
        return _placed(replace(rule, refused="training diverged at every λ"))
    return _placed(rule, losses, losses.sums[losses.best], best, losses.best, 1.0)


def _placed(
    rule: Rule, losses: GridLosses | None = None, sums: Array | None = None, judged_at: float | None = None,
    own: int | None = None, share: float | None = None,
) -> RuleRecord:  # fmt: skip
    """A rule with the losses where it is judged, if it is, and how far they are from the grid's best."""
    held_out = apart = None
    if losses is not None and sums is not None:
        if not np.isfinite(sums).all():
            rule = _flagged(rule, "training diverged there")
        else:
            held_out = paired(sums, losses.counts)
            apart = selection.margin(losses, sums, own=own) if losses.finite else None
    return RuleRecord.of(rule, judged_at=judged_at, held_out=held_out, margin=apart, share=share)


def _flagged(rule: Rule, words: str) -> Rule:
    return replace(rule, flags=(*rule.flags, words))


def _sentence(record: OptimizerRecord) -> str:
    """What to use, what cannot be told apart from it, and where rules landed."""
    words = f"{NAMES[record.optimizer]}:"
    if record.recommended is None:
        return f"{words} training diverged at every λ of the grid; lower the learning rate."
    by = {point.weight_decay: point for point in record.points}
    best = by[record.recommended]
    assert best.held_out is not None
    least = f"λ = {record.recommended:g} has the least held-out loss, {best.held_out.value:.4f} nats per token"
    words += f" {'undecided' if record.undecided else least};"
    others = [value for value in record.kept if value != record.recommended]
    if not others:
        words += f" no other λ of the grid is within what {LEVEL:.0%} confidence allows."
    elif record.undecided:
        words += (
            f" no λ at which training held can be told from another at {LEVEL:.0%}, so that this sweep shows no "
            f"effect of decay. That {least}, says nothing."
        )
    else:
        words += f" {_listed(others)} cannot be told apart from it at {LEVEL:.0%}."
    if gone := [point.weight_decay for point in record.points if point.diverged]:
        words += f" Training diverged at {_listed(gone)}."
    if record.recommended and record.recommended in (min(by), max(by)) and not record.undecided:
        words += " It lies at an end of the grid: the best may be beyond."
    tried = [rule for rule in record.rules if rule.margin is not None and rule.id != "held-out"]
    if record.undecided and tried and not any(rule.margin and rule.margin.low > 0 for rule in tried):
        words += f" Nor can it tell apart the {len(tried)} rules that name a λ."
    elif tried:
        first = min(tried, key=lambda rule: rule.margin.value if rule.margin else math.inf)
        last = max(tried, key=lambda rule: rule.margin.value if rule.margin else -math.inf)
        assert first.margin is not None
        assert last.margin is not None
        words += (
            f" Of {len(tried)} rules that name a λ, {first.name} lands {_apart(first.margin)}, at {first.share:.0%} of "
            f"the grid's training"
        )
        words += f", and {last.name} {_apart(last.margin)}." if last is not first else "."
    if refused := sum(rule.weight_decay is None for rule in record.rules):
        words += f" {refused} refuse."
    return words


def _apart(one: MarginRecord) -> str:
    if one.value == 0:
        return "on the grid's best"
    return f"{one.value:.4f} nats from the grid's best ({lower(one.low, places=4)} to {upper(one.high, places=4)})"


def _listed(values: Sequence[float]) -> str:
    return "λ = " + ", ".join(f"{value:g}" for value in values)
