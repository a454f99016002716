"""Train a small GPT-Neo at several λ with the same batches, and see which λ cannot be told apart from the best.

python examples/sweep.py --steps 100                       (minutes; run it again after a kill, and it goes on)
"""

import argparse
from pathlib import Path

import villani


def main() -> None:
    """Train what is missing, then compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", default="builtin")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--run", type=Path, default=Path("runs/example-sweep"))
    options = parser.parse_args()
    record = villani.recommend(
        "builtin:tiny?layers=2&width=32", options.text, run=options.run, block=64, optimizers=["sgd", "adamw"],
        weight_decay=[0.0, 1e-3, 1e-1], seeds=2, steps=options.steps, batch=8, held_out_blocks=64,
        learning_rate={"sgd": 0.3, "adamw": 3e-3}, rules=["constants", "ema"],
    )  # fmt: skip
    for trained in record.optimizers:
        for point in trained.points:
            where = f"{trained.optimizer}, λ = {point.weight_decay:g}"
            if point.held_out is None:
                print(f"{where}: diverged")
                continue
            verdict = "cannot be told apart from the best" if point.kept else "worse than the best"
            print(f"{where}: held out {point.held_out.value:.4f} ± {point.held_out.sem:.4f} nats, {verdict}")
    print(record.sentence)


if __name__ == "__main__":
    main()
