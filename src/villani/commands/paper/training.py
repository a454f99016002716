"""E4, E6 and what is averaged over training seeds: from the cells of a sweep to gaps, speeds and trends."""

from collections.abc import Mapping, Sequence

import numpy as np

from villani.commands.paper.record import PathologyPoint, SpectrumPoint, TrainingPoint, TrendRecord
from villani.commands.recommend.cells import SweepCell, by_decay
from villani.commands.recommend.settings import TrainedName
from villani.statistics import over_seeds

SHARE = 0.9  # of the way from the start to the grid's best held-out loss: what `steps` counts towards


def losses(cell: SweepCell) -> dict[str, float]:
    """What is averaged over seeds, by the names of `TrainingPoint`; {} of a cell that diverged."""
    if cell.diverged or cell.held_out is None or cell.train_loss is None:
        return {}
    held, seen = cell.held_out.value, cell.train_loss.value
    return {"held_out": held, "train_loss": seen, "gap": held - seen, "norm_squared": cell.norm_squared}


def training_points(cells: Sequence[SweepCell], optimizer: TrainedName) -> tuple[list[TrainingPoint], float | None]:
    """E4 of one optimiser, in the order of the grid, and the common loss that steps are counted towards."""
    grid = by_decay(cells, optimizer)
    best = best_decay(cells, optimizer)
    common = None if best is None else _common_loss(grid, best)
    known = {(optimizer, c.weight_decay, c.seed): values for row in grid.values() for c in row if (values := losses(c))}
    trends = {
        name: {t.weight_decay: t for t in trend({k: v[name] for k, v in known.items()}, [optimizer], [*grid])}
        for name in ("train_loss", "held_out", "gap", "norm_squared")
    }
    points = []
    for decay, row in grid.items():
        own = {name: of.get(decay) for name, of in trends.items()}
        reached = [] if common is None else [steps_to(c.curve, common) for c in row if not c.diverged]
        steps = [step for step in reached if step is not None]
        diverged = sum(not losses(c) for c in row)
        points.append(
            TrainingPoint(
                optimizer=optimizer, weight_decay=decay, seeds=len(row) - diverged, diverged=diverged,
                **{name: one.value if one else None for name, one in own.items()},
                **{
                    f"{name.removesuffix('_loss')}_change": one.change if one else None
                    for name, one in own.items() if name != "norm_squared"
                },
                steps=float(np.mean(steps)) if len(steps) == len(row) else None,
            )
        )  # fmt: skip
    return points, common


def best_decay(cells: Sequence[SweepCell], optimizer: TrainedName) -> float | None:
    """The λ of the least mean held-out loss among those where no seed diverged; None if all have."""
    means = {
        decay: float(np.mean([losses(c)["held_out"] for c in row]))
        for decay, row in by_decay(cells, optimizer).items()
        if all(losses(c) for c in row)
    }
    return min(means, key=lambda decay: means[decay], default=None)


def steps_to(curve: Sequence[tuple[int, float]], level: float) -> float | None:
    """The first step at which a held-out curve, taken as straight between its points, is at or below a level."""
    before: tuple[int, float] | None = None
    for step, loss in curve:
        if loss <= level:
            if before is None or before[1] == loss:
                return float(step)
            return before[0] + (step - before[0]) * (before[1] - level) / (before[1] - loss)
        before = (step, loss)
    return None


def trend(
    values: Mapping[tuple[str, float, int], float], optimizers: Sequence[str], grid: Sequence[float]
) -> list[TrendRecord]:
    """Means over training seeds of values by (optimiser, λ, seed), and their change from the first λ, seed by seed."""
    found = []
    for optimizer in optimizers:
        rows = {decay: {s: v for (o, d, s), v in values.items() if (o, d) == (optimizer, decay)} for decay in grid}
        first = rows[grid[0]]
        for decay, row in rows.items():
            if len(row) < 2:
                continue
            both = [row[s] - first[s] for s in row if s in first]
            changed = decay != grid[0] and len(both) >= 2
            found.append(
                TrendRecord.of(
                    optimizer=optimizer, weight_decay=decay, seeds=len(row),
                    value=over_seeds(list(row.values())),
                    change=over_seeds(both) if changed else None,
                )
            )  # fmt: skip
    return found


def pathology_trends(
    points: Sequence[PathologyPoint], optimizers: Sequence[str], grid: Sequence[float]
) -> dict[str, list[TrendRecord]]:
    """The three pathologies over seeds."""
    keyed = {(p.optimizer, p.weight_decay, p.seed): p for p in points}
    read = {
        "attention on the first token": {k: p.sink.value for k, p in keyed.items() if p.sink is not None},
        "massive activations": {k: p.activation.value for k, p in keyed.items()},
        "embedding superposition": {k: p.superposition for k, p in keyed.items()},
    }
    return {name: trend(values, optimizers, grid) for name, values in read.items() if values}


def learned_curvature(points: Sequence[SpectrumPoint], grid: Sequence[float]) -> list[TrendRecord]:
    """λ₁(∇²L) over seeds; its change from the first λ is what was learned differently, beside the shift by λ."""
    return trend({("sgd", p.weight_decay, p.seed): p.largest.value for p in points}, ["sgd"], grid)


def _common_loss(grid: Mapping[float, Sequence[SweepCell]], best: float) -> float:
    start = np.mean([cell.curve[0][1] for row in grid.values() for cell in row])
    end = np.mean([cell.curve[-1][1] for cell in grid[best]])
    return float(start + SHARE * (end - start))
