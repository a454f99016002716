"""Train the 7-million-parameter GPT-Neo that benchmarks measure: Penn Treebank, GPT-2 tokens, blocks of 128.

python benchmarks/train_ptb.py                            (VILLANI_DATA; a quarter of an hour a round, one idle core)

Rounds of `train`, each as long as one pass over the text with its own warm-up and cosine to zero, so that every
round ends annealed and rounds can be compared. Training is over when a whole round more has moved neither the training
loss nor the validation loss by 0.1 nats, or has made the validation loss worse. Dropout is 0, there is no weight decay,
and matrix products are taken in bfloat16 (the weights and the losses below are float32).

The model goes to runs/ptb-gpt-neo-7m after every round, the losses to docs/results/ptb-model.json. Run it again and it
goes on after the last finished round. On Linux, MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 in the
environment saves a third of the time: logits of 200 MB are then not given back to the system at every step.
"""

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from villani.dynamics.training import train
from villani.inputs.corpora import load_corpus
from villani.inputs.models import load_model
from villani.inputs.text import Blocks, cut_blocks
from villani.inputs.tokenizers import load_tokenizer
from villani.objective.objective import Objective
from villani.report.terminal import Lines
from villani.streams import Purpose, stream
from villani.work.work import Work

ROOT = Path(__file__).parents[1]
SPEC = "config:gpt-neo-125m?layers=4&width=128&heads=4&context=128"
FOLDER = ROOT / "runs" / "ptb-gpt-neo-7m"
PATH = ROOT / "docs" / "results" / "ptb-model.json"
BATCH, LEARNING_RATE, MOST_ROUNDS = 4, 2e-3, 8
PLATEAU = 0.1  # nats
EVERY = 50  # steps in a point of the curve
SHOWN = 256  # training blocks, fixed, that the training loss is taken on


def blocks_of(split: str) -> Blocks:
    """The blocks of 128 tokens of one split that have no padding."""
    corpus = load_corpus(f"ptb:{split}")
    blocks = cut_blocks(load_tokenizer("gpt2").encode(corpus.documents), 128, boundaries=corpus.boundaries)
    full = (blocks.labels >= 0).all(dim=1)
    return Blocks(blocks.ids[full], blocks.labels[full], blocks.documents, blocks.tokens, blocks.cut)


def loss(model: torch.nn.Module, ids: torch.Tensor) -> float:
    """Mean nats per predicted token, in float32."""
    return Objective(model, [ids]).loss()


def plateau(rounds: list[dict[str, Any]]) -> bool:
    """Whether the last round was not worth it."""
    if len(rounds) < 2:
        return False
    before, after = rounds[-2:]
    level = all(abs(before[key] - after[key]) < PLATEAU for key in ("training_loss", "validation_loss"))
    return level or after["validation_loss"] > before["validation_loss"]


def save(model: Any) -> None:
    partial = FOLDER.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    shutil.rmtree(FOLDER, ignore_errors=True)
    partial.replace(FOLDER)


def main() -> None:
    torch.set_num_threads(1)
    text, valid = blocks_of("train"), blocks_of("valid")
    shown = text.ids[stream(0, Purpose.GROUPS).choice(len(text.ids), size=SHOWN, replace=False)]
    steps = len(text.ids) // BATCH
    record: dict[str, Any] = json.loads(PATH.read_text()) if PATH.exists() and FOLDER.is_dir() else {"rounds": []}
    rounds = record["rounds"]
    model = load_model(str(FOLDER) if rounds else SPEC).model
    record |= {
        "model": SPEC,
        "parameters": sum(p.numel() for p in model.parameters()),
        "text": "ptb:train and ptb:valid, GPT-2 BPE, blocks of 128",
        "training_blocks": len(text.ids),
        "validation_blocks": len(valid.ids),
        "batch": BATCH,
        "learning_rate": LEARNING_RATE,
        "optimizer": "AdamW, beta 0.9 and 0.95, no weight decay, gradient norm clipped at 1; moments start afresh",
    }
    while len(rounds) < MOST_ROUNDS and not plateau(rounds):
        start = time.perf_counter()

        # autocast would keep its bfloat16 copies of the weights until it ends, and train on those of the first step
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
            losses = train(
                model, text.ids, text.labels, steps=steps, batch=BATCH, learning_rate=LEARNING_RATE,
                seed=len(rounds), work=Work(progress=Lines(sys.stderr)),
            ).losses  # fmt: skip
        seconds = time.perf_counter() - start
        points = [float(np.mean(losses[i : i + EVERY])) for i in range(0, len(losses), EVERY)]
        rounds.append(
            {
                "steps": steps,
                "seconds": round(seconds),
                "training_loss": loss(model, shown),
                "validation_loss": loss(model, valid.ids),
                f"batch_loss_every_{EVERY}_steps": [round(point, 4) for point in points],
            }
        )
        if abs(rounds[-1]["training_loss"] - points[-1]) > 1:
            raise SystemExit(f"trained at {points[-1]:.2f} nats but measured {rounds[-1]['training_loss']:.2f}")
        save(model)
        PATH.write_text(json.dumps(record, indent=1) + "\n")
        print({key: rounds[-1][key] for key in ("training_loss", "validation_loss", "seconds")}, flush=True)


if __name__ == "__main__":
    main()
