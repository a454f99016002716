"""What a study of `villani study paper` says so far: the training runs that its ledger has, while it goes on.

python benchmarks/unfinished_study.py RUN [--json]

Reads a copy of the ledger, since the run holds a lock on it. λ by λ and optimiser by optimiser: seeds that are
finished, the held-out loss at the end and at the run's best step, how much it rose after that, training loss, ‖θ‖², and
the change of the held-out loss from the first λ, seed by seed (a 95 % t-interval from two seeds on). Nothing here is
final: a λ with one seed has no interval. Last come the training runs that are under way.
"""

import argparse
import json
import shutil
import sqlite3
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from villani.commands.paper.settings import PaperSettings
from villani.statistics import over_seeds
from villani.work.foreign import arrays

Cell = tuple[str, float, int]  # optimiser, λ, seed


def cells_of(run: Path) -> dict[Cell, dict[str, float]]:
    """Figures of every finished training run of the grid."""
    cells = {}
    for key, content, seconds in _rows(run):
        head, _, rest = key.partition("cell/")
        if head != "sweep/" or not rest:
            continue
        optimizer, decay, seed = rest.split("/")
        row = arrays(content)
        curve = {int(step): float(loss) for step, loss in row["curve"]}
        figures = {"seconds": seconds, "diverged": float(row["diverged"]), "start": curve.get(0, float("nan"))}
        if not figures["diverged"]:
            best = min(curve, key=lambda step: curve[step])
            figures |= {
                "held_out": curve[max(curve)], "best": curve[best], "best_step": best,
                "train": float(row["train_sums"].sum() / row["train_counts"].sum()),
                "norm_squared": float(row["norm_squared"]),
            }  # fmt: skip
        cells[optimizer, float(decay), int(seed)] = figures
    return cells


def summary(run: Path) -> dict[str, Any]:
    """All that is known of a run so far."""
    content = tomllib.loads((run / "settings.toml").read_text(encoding="utf-8"))
    study = PaperSettings.model_validate(content)
    cells, planned = cells_of(run), study.cells()
    points = []
    for optimizer in study.sweep.optimizers:
        grid = study.grid(optimizer)
        for decay in grid:
            own = {s: row for (o, d, s), row in cells.items() if (o, d) == (optimizer, decay) and not row["diverged"]}
            base = {s: row for (o, d, s), row in cells.items() if (o, d) == (optimizer, grid[0])}
            pairs = [row["held_out"] - base[s]["held_out"] for s, row in own.items() if "held_out" in base.get(s, {})]
            names = ("held_out", "best", "best_step", "train", "norm_squared")
            points.append(
                {
                    "optimizer": optimizer, "weight_decay": decay, "seeds": sorted(own),
                    **{name: _mean([row[name] for row in own.values()]) for name in names},
                    "change": _mean(pairs) if decay != grid[0] else None,
                    "interval": over_seeds(pairs).interval() if decay != grid[0] and len(pairs) > 1 else None,
                }
            )  # fmt: skip
    hours = [row["seconds"] / 3600 for row in cells.values()]
    return {
        "status": f"unfinished, {len(cells)} of {len(planned)} cells" if len(cells) < len(planned) else "finished",
        "hours_per_cell": _mean(hours), "points": points, "under_way": list(_under_way(run)),
    }  # fmt: skip


def _rows(run: Path) -> Iterator[tuple[str, bytes, float]]:
    with tempfile.TemporaryDirectory() as folder:
        for path in run.glob("ledger.sqlite*"):
            if not path.name.endswith("-shm"):
                shutil.copy(path, folder)
        connection = sqlite3.connect(Path(folder) / "ledger.sqlite")
        try:
            yield from connection.execute("SELECT key, arrays, seconds FROM units ORDER BY rowid")
        finally:
            connection.close()


def _under_way(run: Path) -> Iterator[dict[str, Any]]:
    for path in sorted((run / "models").glob("*-state.json")):
        state: Mapping[str, Any] = json.loads(path.read_text())
        held_out = [(step, float(loss)) for step, loss in state["rest"]["held_out"]]
        yield {"run": path.name.removesuffix("-state.json"), "step": state["step"], "held_out": held_out}


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _shown(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    told = summary(asked.run)
    if asked.json:
        print(json.dumps(told, indent=1))
        return
    print(f"{told['status']}; {_shown(told['hours_per_cell'], '.2f')} hours a cell")
    for p in told["points"]:
        low, high = p["interval"] or (None, None)
        rise = None if p["held_out"] is None else p["held_out"] - p["best"]
        print(
            f"{p['optimizer']:9} λ={p['weight_decay']:<8g} seeds {len(p['seeds'])}"
            f"  held out {_shown(p['held_out'], '.4f')}"
            f"  best {_shown(p['best'], '.4f')} at {_shown(p['best_step'], '.0f')}, then {_shown(rise, '+.4f')}"
            f"  training {_shown(p['train'], '.4f')}  ‖θ‖² {_shown(p['norm_squared'], '.0f')}"
            f"  change {_shown(p['change'], '+.4f')} [{_shown(low, '+.4f')}, {_shown(high, '+.4f')}]"
        )
    for one in told["under_way"]:
        curve = " ".join(f"{step}:{loss:.3f}" for step, loss in one["held_out"])
        print(f"under way: {one['run']} at step {one['step']}  {curve}")


if __name__ == "__main__":
    main()
