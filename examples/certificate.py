"""Certify what a noisy training run of a small Transformer will cost on the text that it was trained on.

python examples/certificate.py                             (about a minute; --text ptb with VILLANI_DATA set)
"""

import argparse
from pathlib import Path

import villani


def main() -> None:
    """Train, certify, and say what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", default="builtin")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--run", type=Path, default=Path("runs/example-certificate"))
    options = parser.parse_args()
    record = villani.certify(  # all of it is fixed before the certified tokens are looked at
        "builtin:tiny?layers=1&width=32", options.text, run=options.run, block=64, blocks=2000, start="centre",
        clip=None, direction="momentum", weight_decay=[1e-2, 1e-1], temperature=5e-4, learning_rate=0.3,
        steps=options.steps, batch=16,
    )  # fmt: skip
    print(record.sentence)
    print(options.run / "report.html")


if __name__ == "__main__":
    main()
