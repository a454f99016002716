"""Train a small GPT-Neo at several λ with the same batches, and see which λ cannot be told apart from the best.

python examples/sweep.py --steps 100                       (minutes; run it again after a kill, and it goes on)
"""

import argparse
from pathlib import Path

from villani.commands.recommend.sweep import SweepSettings, by_decay, sweep
from villani.statistics import over_seeds
from villani.work.ledger import Ledger
from villani.work.progress import Silent


def main() -> None:
    """Train what is missing, then compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", default="builtin")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--run", type=Path, default=Path("runs/example-sweep"))
    asked = parser.parse_args()
    settings = SweepSettings(
        model="builtin:tiny?layers=2&width=32", text=asked.text, block=64, optimizers=["sgd", "adamw"],
        weight_decay=[0.0, 1e-3, 1e-1], seeds=2, steps=asked.steps, batch=8, held_out_blocks=64,
        learning_rate={"sgd": 0.3, "adamw": 3e-3},
    )  # fmt: skip
    with Ledger(asked.run, settings.model_dump(mode="json")) as ledger:
        cells = sweep(settings, asked.run, ledger, None, Silent())
    for optimizer in settings.optimizers:
        for decay, row in by_decay(cells, optimizer).items():
            losses = [cell.held_out.value for cell in row if cell.held_out is not None]
            if len(losses) < 2:
                print(f"{optimizer}, λ = {decay:g}: diverged")
                continue
            found = over_seeds(losses)
            print(f"{optimizer}, λ = {decay:g}: held out {found.value:.4f} ± {found.sem:.4f} nats over training seeds")


if __name__ == "__main__":
    main()
