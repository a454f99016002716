"""The search for a non-vacuous certificate of a Transformer on Penn Treebank: every attempt, with its terms.

python benchmarks/certificates.py --list
python benchmarks/certificates.py NAME [NAME …]           (VILLANI_DATA; each resumes, under runs/certificates)
python benchmarks/certificates.py --overhead              (what the account costs, in per cent of a training step)
python benchmarks/certificates.py --overhead-trainer      (the same of the callback's certificate in a Trainer's run)
python benchmarks/certificates.py --exact                 (the complexity over λ where the true KL is known)
python benchmarks/certificates.py --decay                 (every kind of certificate along λ, over seeds)

Rows go to docs/results/certificates.json. Attempts may be chosen by the results of others, since δ = 0.05 is divided by
CANDIDATES, more than the settings that there are to choose from: η and s of {1, 2, 3, 5}·10^j with ten j, 32 numbers
of steps, 10 batches (powers of 2), λ = 0 or 30 others, 10 clips, 10 models with their tokens, 11 priors, 3 directions,
2 starts, 5 choices of tensors, 10 seeds: 5·10¹². It costs 30 nats of complexity.
"""

import argparse
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainingArguments

from villani.commands.certify.settings import CertifySettings
from villani.commands.running import execute
from villani.dynamics.chain import Moving, batch_loss, run_chain
from villani.inputs.models import load_model
from villani.integrations.huggingface import VillaniCallback
from villani.report.terminal import progress
from villani.statistics import over_seeds
from villani.theory.catalogue import named
from villani.theory.complexity import NoisyDescent
from villani.theory.exact import relative_entropy, solve
from villani.theory.rates import GaussianLaw

ROOT = Path(__file__).parents[1]
PATH = ROOT / "docs" / "results" / "certificates.json"
ALONG_PATH = ROOT / "docs" / "results" / "certificates-decay.json"
CANDIDATES = 10**13
SMALL = "config:gpt-neo-125m?layers=2&width=64&heads=4&context=128&vocab=2048"
LARGE = "config:gpt-neo-125m?layers=4&width=128&heads=4&context=128"
COMMON: dict[str, Any] = {
    "text": "ptb:train", "held_out": "ptb:test", "direction": "momentum", "start": "centre", "weight_decay": [0.0],
    "clip": None, "candidates": CANDIDATES, "alpha": [0.001, 0.01, 0.1], "threads": 2,
}  # fmt: skip
BUILTIN = {"model": SMALL, "tokenizer": "builtin"} | COMMON
BPE = {"model": LARGE, "tokenizer": "gpt2"} | COMMON
PRIOR = {"prior": "text", "prior_share": 0.5, "prior_steps": 5000}
ATTEMPTS: dict[str, dict[str, Any]] = {
    # minutes: the validation text alone
    "pilot-init": BUILTIN
    | {
        "text": "ptb:valid", "held_out": None, "learning_rate": [0.3], "temperature": 1e-3, "steps": 80, "batch": 8,
        "micro_tokens": 1024, "threads": 1,
    },
    "pilot-init-lambda": BUILTIN
    | {
        "text": "ptb:valid", "held_out": None, "learning_rate": [0.3], "temperature": 1e-3, "steps": 80, "batch": 32,
        "micro_tokens": 2048, "threads": 1, "weight_decay": [0.0, 0.002, 0.02, 0.05, 0.2],
    },
    "pilot-half": BUILTIN
    | PRIOR
    | {
        "text": "ptb:valid", "held_out": None, "prior_steps": 150, "learning_rate": [0.1], "temperature": 1e-4,
        "steps": 30, "batch": 8, "micro_tokens": 1024, "threads": 1,
    },
    "pilot-half-hot": BUILTIN
    | PRIOR
    | {
        "text": "ptb:valid", "held_out": None, "prior_steps": 150, "learning_rate": [0.1], "temperature": 3e-4,
        "steps": 30, "batch": 8, "micro_tokens": 1024, "threads": 1,
    },
    # settings chosen by certificates on ptb:valid, then used once on ptb:test: nothing to pay for a choice
    "test-init": BUILTIN
    | {
        "text": "ptb:test", "held_out": None, "learning_rate": [0.3], "temperature": 5e-4, "steps": 80, "batch": 64,
        "micro_tokens": 2048, "threads": 1, "candidates": 1, "alpha": [0.1],
    },
    "test-half": BUILTIN
    | PRIOR
    | {
        "text": "ptb:test", "held_out": None, "prior_steps": 150, "learning_rate": [0.1], "temperature": 5e-4,
        "steps": 20, "batch": 32, "micro_tokens": 2048, "threads": 1, "candidates": 1, "alpha": [0.01],
    },
    # the same two with a reference that moves with the gradients of the first half; the first from random weights
    "drift-init": BUILTIN
    | {
        "text": "ptb:test", "held_out": None, "prior": "text", "prior_steps": 0, "prior_drift": True, "drift_every": 2,
        "drift_batch": 128, "learning_rate": [0.3], "temperature": 5e-4, "steps": 80, "batch": 64, "micro_tokens": 2048,
        "threads": 1, "candidates": 1, "alpha": [0.1],
    },
    "drift-half": BUILTIN
    | PRIOR
    | {
        "text": "ptb:test", "held_out": None, "prior_steps": 150, "prior_drift": True, "drift_every": 2,
        "drift_batch": 64, "learning_rate": [0.1], "temperature": 5e-4, "steps": 20, "batch": 32, "micro_tokens": 2048,
        "threads": 1, "candidates": 1, "alpha": [0.01],
    },
    # weights of the norms and biases alone
    "pilot-half-norms": BUILTIN
    | PRIOR
    | {
        "text": "ptb:valid", "held_out": None, "prior_steps": 150, "learning_rate": [0.1], "temperature": 1e-3,
        "steps": 30, "batch": 64, "micro_tokens": 2048, "threads": 1, "train": r"ln_|bias",
    },
    # from random weights, 2,048 tokens: the sum of η·s·K sets the noise that the weights end with
    "init-a": BUILTIN | {"learning_rate": [0.3], "temperature": 2e-4, "steps": 600, "batch": 16},
    "init-b": BUILTIN | {"learning_rate": [0.3], "temperature": 1e-4, "steps": 1500, "batch": 16},
    "init-c": BUILTIN | {"learning_rate": [0.3], "temperature": 5e-5, "steps": 3000, "batch": 32},
    "init-d": BUILTIN | {"learning_rate": [0.1], "temperature": 2e-4, "steps": 1500, "batch": 32},
    "init-lambda": BUILTIN
    | {
        "learning_rate": [0.3], "temperature": 2e-4, "steps": 600, "batch": 16,
        "weight_decay": [0.0, 0.001, 0.003, 0.007, 0.02, 0.05],
    },
    # from random weights, GPT-2 tokens
    "init-bpe-a": BPE | {"learning_rate": [0.3], "temperature": 2e-4, "steps": 300, "batch": 16},
    "init-bpe-b": BPE | {"learning_rate": [0.3], "temperature": 1e-4, "steps": 800, "batch": 16},
    # from weights trained on the first half, certified on the second
    "half-a": BUILTIN | PRIOR | {"learning_rate": [0.1], "temperature": 1e-6, "steps": 300, "batch": 32},
    "half-b": BUILTIN | PRIOR | {"learning_rate": [0.1], "temperature": 1e-5, "steps": 300, "batch": 32},
    "half-c": BUILTIN | PRIOR | {"learning_rate": [0.1], "temperature": 1e-4, "steps": 300, "batch": 32},
    "half-bpe-a": BPE | PRIOR | {"learning_rate": [0.1], "temperature": 1e-5, "steps": 300, "batch": 16},
    # c4 with many short chains of a tiny model; decay and clip
    "c4-a": BUILTIN
    | {
        "model": "config:gpt-neo-125m?layers=1&width=16&heads=2&context=32&vocab=2048", "block": 32, "start": "prior",
        "weight_decay": [0.01, 0.03], "clip": 1.0, "learning_rate": [0.5], "temperature": 1e-3, "steps": 100,
        "batch": 64, "chains": 200,
    },
}  # fmt: skip

# every kind along λ, from random weights and at settings of its own that no result chose; four seeds
SEEDS = 4
ALONG: dict[str, Any] = {
    "model": "config:gpt-neo-125m?layers=1&width=32&heads=4&context=64&vocab=2048", "tokenizer": "builtin",
    "text": "ptb:valid", "block": 64, "blocks": 600, "threads": 1, "micro_tokens": 4096,
}  # fmt: skip
NOISY: dict[str, Any] = {"steps": 40, "batch": 16, "learning_rate": [0.3], "temperature": 1e-3}
BY_KIND: dict[str, dict[str, Any]] = {
    "path": ALONG | NOISY | {
        "direction": "momentum", "start": "centre", "clip": None, "weight_decay": [0.0, 0.02, 0.2, 2.0],
    },
    "drift": ALONG | NOISY | {
        "direction": "momentum", "start": "centre", "clip": None, "weight_decay": [0.0, 0.02, 0.2, 2.0],
        "prior": "text", "prior_steps": 0, "prior_drift": True, "drift_batch": 32,
    },
    "c4": ALONG | NOISY | {"start": "prior", "clip": 0.1, "weight_decay": [0.02, 0.2, 2.0], "chains": 10},
    "prequential": ALONG | {
        "kind": "prequential", "direction": "adam", "learning_rate": [3e-3], "weight_decay": [0.0, 1.0, 10.0, 100.0],
    },
}  # fmt: skip


def along_decay(runs: Path) -> dict[str, list[dict[str, Any]]]:
    """Kind → rows, one for every λ: each figure's mean over the seeds with its interval, and what the seeds gave."""
    table: dict[str, list[dict[str, Any]]] = {}
    for kind, own in BY_KIND.items():
        by_seed = []
        for seed in range(SEEDS):
            with progress() as bar:
                # a pass from random weights draws nothing but these
                weights = {"model": f"{own['model']}&seed={seed}"} if kind == "prequential" else {}
                settings = CertifySettings(**own | weights, seed=seed)
                _, record = execute(settings, runs / f"along-{kind}-{seed}", progress=bar)
            by_seed.append([terms(kind, point) for point in (record.prequential or record).points])
        table[kind] = [
            {"weight_decay": decay} | {
                name: {"mean": (mean := over_seeds([one[name] for one in points])).value,
                       "interval": mean.interval(0.95), "seeds": [one[name] for one in points]}
                for name in points[0]
            } for decay, points in zip(own["weight_decay"], zip(*by_seed, strict=True), strict=True)
        ]  # fmt: skip
    return table


def terms(kind: str, point: Any) -> dict[str, float]:
    """What moves with λ: certificate, its parts, and what it competes with."""
    bound = point.certificate if kind == "prequential" else point.chain if kind == "c4" else point.path
    return {
        "certified": bound.value, "empirical": bound.empirical, "excess": bound.excess, "complexity": bound.complexity,
        "held_out_loss": point.held_out_loss.value, "held_out_bound": point.held_out_bound, "moved": point.moved,
    }  # fmt: skip


def row(name: str, settings: CertifySettings, record: Any) -> dict[str, Any]:
    """An attempt and its terms."""
    points = [
        point.model_dump(exclude={"held_out_loss"}) | {"held_out_loss": point.held_out_loss.model_dump()}
        for point in record.points
    ]  # fmt: skip
    return {
        "attempt": name, "command": settings.command(), "log_vocabulary": record.log_vocabulary,
        "unigram_entropy": record.unigram_entropy, "tokens": record.tokens, "moving": record.moving,
        "prior": record.prior, "prior_loss": record.prior_loss, "prior_bound": record.prior_bound,
        "sentence": record.sentence, "points": points, "seconds": round(record.cost.seconds),
    }  # fmt: skip


def overhead(model: str, steps: int = 30) -> None:
    """Seconds of a step of noisy training, and of what the account adds: ⟨g, ξ⟩ and its own arithmetic."""
    loaded = load_model(model).model
    moving = Moving(loaded)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, loaded.config.vocab_size, (16, 128), generator=generator)  # type: ignore[union-attr]
    plan = CertifySettings(model=model, steps=steps, start="centre").plan(1.0)
    run_chain(moving, ids, ids, plan, batch=4, seed=0)  # warm
    start = time.perf_counter()
    out = run_chain(moving, ids, ids, plan, batch=4, seed=0)
    whole = (time.perf_counter() - start) / steps
    g = moving.gradient(batch_loss(loaded, ids[:4], ids[:4]))
    account, times = type(out.account)(plan), []
    for k in range(steps):
        start = time.perf_counter()
        inner = float(torch.dot(g, out.w))
        account.step(0.5, inner, rate=plan.rates[k], noise=plan.noises[k], contraction=plan.contractions[k])
        times.append(time.perf_counter() - start)
    added = float(np.median(times))
    print(
        f"{moving.size:,} parameters: {added * 1e3:.3f} ms of {whole * 1e3:.1f} ms a step, {100 * added / whole:.2f} %"
    )


def overhead_trainer(model: str, steps: int = 12, block: int = 128) -> None:
    """CPU seconds of a Trainer's run, and of those that its prequential certificate takes."""
    loaded = load_model(model).model
    size = loaded.config.vocab_size  # type: ignore[union-attr]
    ids = torch.randint(0, size, (8 * steps, block), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row, "labels": row} for row in ids]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, num_train_epochs=1, per_device_train_batch_size=8, train_sampling_strategy="sequential",
            save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        trainer = Trainer(loaded, arguments, train_dataset=rows)  # type: ignore[arg-type]
        callback = VillaniCallback(trainer, certificate="prequential")
        trainer.add_callback(callback)
        assert callback.scores
        times = dict.fromkeys(("_listen", "batch", "state_dict", "finish"), 0.0)

        def timed(name: str, own: Any) -> Any:
            def call(*args: Any, **named: Any) -> Any:
                start = time.process_time()
                try:
                    return own(*args, **named)
                finally:
                    times[name] += time.process_time() - start

            return call

        for name in times:
            setattr(callback.scores, name, timed(name, getattr(callback.scores, name)))
        start = time.process_time()
        trainer.train()
        whole, own = time.process_time() - start, sum(times.values())
    assert callback.scores.certificate
    print(
        f"{sum(p.numel() for p in loaded.parameters()):,} parameters, {size:,} tokens: {own * 1e3 / steps:.2f} ms of "
        f"{whole * 1e3 / steps:.0f} ms a step, {100 * own / whole:.2f} %"
    )


def known(beta: float = 100.0, step: float = 0.05, steps: int = 2000) -> list[dict[str, float]]:
    """KL of Gibbs laws over λ with its bounds, and of noisy gradient descent on ½(θ − 1)² from its prior with c4."""
    rows = []
    for name, decays in (("linear-gaussian", (0.01, 0.1, 1.0, 10.0)), ("binary-ce", (0.01, 0.1, 1.0, 10.0))):
        for decay in decays:
            case = named(name, weight_decay=decay).potential
            entropy = relative_entropy(case, solve(case, sobolev=False))
            row: dict[str, Any] = {"potential": name, "weight_decay": decay, "beta": case.beta, **asdict(entropy)}
            if name == "linear-gaussian":
                chain = NoisyDescent.constant(decay, beta, step, steps)
                law, squares, a = GaussianLaw(0.0, chain.variance), [], 1 - step * decay
                for _ in range(steps):
                    squares.append(law.variance + (law.mean - 1) ** 2)
                    law = GaussianLaw((a - step) * law.mean + step, (a - step) ** 2 * law.variance + 2 * step / beta)
                row["chain"] = law.kl(GaussianLaw(0.0, chain.variance))
                row["chain_bound_halves"] = float(chain.bounds(squares, 0.5)[-1])
                row["chain_bound"] = float(chain.bounds(squares)[-1])
            rows.append(row)
            print("  ".join(f"{k} {v:.6g}" if isinstance(v, float) else str(v) for k, v in row.items()))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--overhead", action="store_true")
    parser.add_argument("--overhead-trainer", action="store_true")
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--decay", action="store_true")
    options = parser.parse_args()
    if options.list:
        print("\n".join(f"{name}: {CertifySettings(**settings).command()}" for name, settings in ATTEMPTS.items()))
    if options.overhead:
        for model in ("builtin:tiny", SMALL, LARGE):
            overhead(model)
    if options.overhead_trainer:
        for model in ("builtin:tiny", SMALL, LARGE):
            overhead_trainer(model)
    if options.decay:
        table = along_decay(ROOT / "runs" / "certificates")
        commands = {kind: CertifySettings(**own).command() for kind, own in BY_KIND.items()}
        content = {"commands": commands, "seeds": SEEDS}
        ALONG_PATH.write_text(json.dumps(content | {"kinds": table}, indent=1, ensure_ascii=False) + "\n")
    if options.exact:
        rows = known()
        content = json.loads(PATH.read_text())
        PATH.write_text(json.dumps(content | {"exact-lambda": rows}, indent=1, ensure_ascii=False) + "\n")
    for name in options.names:
        settings = CertifySettings(**ATTEMPTS[name])
        with progress() as bar:
            _, record = execute(settings, ROOT / "runs" / "certificates" / name, progress=bar)
        content = json.loads(PATH.read_text()) if PATH.exists() else {}
        PATH.write_text(json.dumps(content | {name: row(name, settings, record)}, indent=1, ensure_ascii=False) + "\n")
        print(record.sentence)


if __name__ == "__main__":
    main()
