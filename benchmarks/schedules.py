"""Weight-decay schedules against constant λ on a small model and Python's documentation; paired differences over seeds.

python benchmarks/schedules.py                    (about a minute on an idle core)
python benchmarks/schedules.py --seeds 10 --steps 600

Held-out losses are means over the same blocks; a difference is that of two runs of one seed, which share initial
weights and batches, and its 95 % t-interval is over seeds. Noisy chains also report c4 from the clip (the same for all
data) and the path's own log-ratio. One model, one text, one λ₀ per optimiser: an illustration, not a ranking. Writes
docs/results/schedules.json.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from scipy.stats import t as student_t

from villani.commands.demo.run import split
from villani.criteria.guard import GuardMeter
from villani.dynamics.certificate import ChainPlan
from villani.dynamics.chain import Moving, run_chain
from villani.dynamics.schedules import ConstantMemory, DecaySchedule, GuardFollowing, LeastCertificate
from villani.dynamics.training import train
from villani.inputs.corpora import load_corpus
from villani.inputs.models import load_model
from villani.inputs.text import cut_blocks
from villani.inputs.tokenizers import load_tokenizer
from villani.objective.objective import Objective

PATH = Path(__file__).parents[1] / "docs" / "results" / "schedules.json"
MODEL = "builtin:tiny?layers=1&width=32&context=32"
BATCH, HELD_OUT = 4, 64
SGD = {"optimizer": "sgd", "learning_rate": 0.3, "momentum": 0.9, "weight_decay": 0.01, "clip": None}
ADAMW = {"optimizer": "adamw", "learning_rate": 5e-3, "weight_decay": 0.1}
GUARD_TEMPERATURE, GUARD_EVERY = 0.1, 40
CHAIN = {"rate": 0.5, "temperature": 1e-5, "clip": 1.0, "shrinkage": 2.0}  # Σ ηλ


def interval(values: list[float]) -> dict[str, object]:
    """Mean and 95 % t-interval."""
    x = np.array(values)
    half = float(student_t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5)
    return {"mean": float(x.mean()), "interval": [float(x.mean()) - half, float(x.mean()) + half], "values": values}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120)
    asked = parser.parse_args()
    corpus = load_corpus("builtin")
    blocks = cut_blocks(load_tokenizer("builtin").encode(corpus.documents), 32, boundaries=corpus.boundaries)
    kept, rest = split(blocks, 0)
    held_out = rest.ids[:HELD_OUT], rest.labels[:HELD_OUT]
    probes = [{"input_ids": kept.ids[i : i + 2], "labels": kept.labels[i : i + 2]} for i in range(0, 8, 2)]
    losses: dict[str, list[float]] = {}
    ends: dict[str, list[float]] = {}
    chains: dict[str, dict[str, list[float]]] = {}
    for seed in range(asked.seeds):
        for optimizer, settings in (("sgd", SGD), ("adamw", ADAMW)):
            for arm in ("constant", "memory", "guard") if optimizer == "sgd" else ("constant", "memory"):
                model = load_model(f"{MODEL}&seed={seed}").model
                start = float(settings["weight_decay"])
                schedule: DecaySchedule | None = None
                if arm == "memory":
                    schedule = ConstantMemory(cap=20 * start)
                if arm == "guard":
                    meter = GuardMeter(Objective(model, probes, start), GUARD_TEMPERATURE, seed=seed)
                    schedule = GuardFollowing(meter.values, every=GUARD_EVERY, cap=20 * start)
                found = train(
                    model, kept.ids, kept.labels, steps=asked.steps, batch=BATCH, seed=seed, held_out=held_out,
                    decay_schedule=schedule, **settings,
                )  # fmt: skip
                losses.setdefault(f"{optimizer} {arm}", []).append(found.held_out[-1][1])
                ends.setdefault(f"{optimizer} {arm}", []).append(schedule.current[0] if schedule else start)
        rates = np.full(asked.steps, CHAIN["rate"])
        decay = CHAIN["shrinkage"] / rates.sum()
        for arm, decays in (("constant", None), ("certificate", LeastCertificate(rates.tolist()).decays(decay))):
            model = load_model(f"{MODEL}&seed={seed}").model
            plan = ChainPlan(rates, decay, CHAIN["temperature"], CHAIN["clip"], "prior", decays)
            out = run_chain(Moving(model), kept.ids, kept.labels, plan, batch=BATCH, seed=seed)
            row = chains.setdefault(arm, {"held_out": [], "path": [], "c4": []})
            row["held_out"].append(Objective(model, [{"input_ids": held_out[0], "labels": held_out[1]}]).loss())
            row["path"].append(out.account.path().value)
            row["c4"].append(plan.descent.clipped(CHAIN["clip"]).value)
        print(f"seed {seed} done, {time.process_time():.0f} s of CPU", flush=True)

    def against(arms: dict[str, list[float]], name: str, base: str) -> dict[str, object]:
        return interval([a - b for a, b in zip(arms[name], arms[base], strict=True)])

    result = {
        "model": MODEL, "text": "builtin", "steps": asked.steps, "batch": BATCH, "seeds": asked.seeds,
        "settings": {"sgd": SGD, "adamw": ADAMW, "chain": CHAIN, "guard_temperature": GUARD_TEMPERATURE},
        "held_out_nats_per_token": {name: interval(values) for name, values in losses.items()},
        "difference_to_constant": {
            name: against(losses, name, f"{name.split()[0]} constant") for name in losses if "constant" not in name
        },
        "last_weight_decay": ends,
        "chains": {arm: {name: interval(values) for name, values in row.items() if name != "c4"} | {"c4": row["c4"][0]}
                   for arm, row in chains.items()},
        "chain_difference": {
            name: interval([a - b for a, b in zip(chains["certificate"][name], chains["constant"][name], strict=True)])
            for name in ("held_out", "path")
        },
        "cpu_seconds": round(time.process_time()),
    }  # fmt: skip
    PATH.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: result[k] for k in ("difference_to_constant", "chain_difference")}, indent=1))


if __name__ == "__main__":
    main()
