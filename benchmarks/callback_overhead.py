"""What the callback costs a real Trainer run, and whether the weights keep their bits: with and without it, in turns.

python benchmarks/callback_overhead.py                 (5 minutes on an idle core)

`overhead` is the callback's own account, seconds of measuring for each second of everything else, by the wall clock.
The CPU seconds of the whole `train()` with and without it are independent of that account: they have what it cannot
see, such as caches and memory, and are the better comparison on a machine that does other things. Writes
docs/results/callback-overhead.json.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainingArguments

from villani.inputs.models import load_model
from villani.integrations.huggingface import VillaniCallback

PATH = Path(__file__).parents[1] / "docs" / "results" / "callback-overhead.json"
MODEL = "builtin:tiny?layers=1&width=32&context=32"
GROUPS, BLOCK = 6, 32


class Rows(torch.utils.data.Dataset):
    """Random tokens: what they are does not matter for the time."""

    def __init__(self, count: int, vocabulary: int) -> None:
        self.ids = torch.randint(0, vocabulary, (count, BLOCK), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def one(steps: int, limit: float | None) -> tuple[dict[str, Any], list[torch.Tensor]]:
    """A training run, without the callback where `limit` is None."""
    model = load_model(MODEL).model
    vocabulary = model.get_input_embeddings().num_embeddings
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=16, learning_rate=1e-3, weight_decay=0.1,
            logging_steps=50, save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        trainer = Trainer(model, arguments, train_dataset=Rows(512, vocabulary))
        told: dict[str, Any] = {}
        if limit is not None:
            groups = torch.randint(0, vocabulary, (GROUPS, 1, BLOCK), generator=torch.Generator().manual_seed(1))
            trainer.add_callback(VillaniCallback(trainer, groups, temperature=1e-3, max_overhead=limit))
        cpu, wall = time.process_time(), time.perf_counter()
        trainer.train()
        told |= {"cpu_seconds": time.process_time() - cpu, "wall_seconds": time.perf_counter() - wall}
        if limit is not None:
            last = next(row for row in reversed(trainer.state.log_history) if "villani/measurements" in row)
            told |= {k: v for k, v in last.items() if k.startswith("villani/")}
            told["measured_at"] = [row["step"] for row in trainer.state.log_history if "villani/psi" in row]
    return told, [p.detach().clone() for p in model.parameters()]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-overhead", type=float, default=0.03)
    asked = parser.parse_args()
    one(20, None)  # what is slow once
    runs: dict[str, list[dict[str, Any]]] = {"without": [], "with": []}
    identical = True
    for _ in range(asked.repeats):
        weights = []
        for name, limit in (("without", None), ("with", asked.max_overhead)):
            told, found = one(asked.steps, limit)
            runs[name].append(told)
            weights.append(found)
            print(name, {k: v if isinstance(v, list) else round(v, 4) for k, v in told.items()}, flush=True)
        identical &= all(torch.equal(p, q) for p, q in zip(*weights, strict=True))
    if any(not run["villani/measurements"] for run in runs["with"]):
        raise SystemExit("a run was over before its first measurement: take more steps")
    cpu = {name: np.array([run["cpu_seconds"] for run in rows]) for name, rows in runs.items()}
    ratios = cpu["with"] / cpu["without"]
    sem = float(ratios.std(ddof=1)) / len(ratios) ** 0.5 if len(ratios) > 1 else None
    result = {
        "model": MODEL, "steps": asked.steps, "groups": GROUPS, "block": BLOCK, "max_overhead": asked.max_overhead,
        "threads": torch.get_num_threads(), "load": os.getloadavg()[0],
        "largest_overhead": max(run["villani/overhead"] for run in runs["with"]),
        "cpu_seconds_with_to_without": {"mean": float(ratios.mean()), "sem": sem},
        "weights_identical_to_the_bit": identical, "runs": runs,
    }  # fmt: skip
    PATH.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "runs"}, indent=1))


if __name__ == "__main__":
    main()
