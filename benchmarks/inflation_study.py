"""What weight decay does to the Hessian's spectrum: the shift that is there by definition, and what training changes.

python benchmarks/inflation_study.py                                      (runs/ptb-gpt-neo-7m, PTB; VILLANI_DATA)
python benchmarks/inflation_study.py --model "builtin:tiny?layers=2&width=32" --text builtin --steps 300

At a fixed θ the spectrum of ∇²F = ∇²L + λI is that of ∇²L moved by λ, for any loss: "spectral inflation" in that sense
is a tautology. Here the same start is trained at several λ with the same batches and budget, by torch's SGD with
momentum 0.9 and L2 (`weight_decay=λ` there is exactly this λ; every parameter decays; no dropout), and the spectra of
∇²L and of ∇²F at the ends are worked out by `villani spectrum` on the same groups of text. For the largest eigenvalue

    λ₁(∇²F at θ_λ) − λ₁(∇²L at θ_0) = λ  +  (λ₁(∇²L at θ_λ) − λ₁(∇²L at θ_0)),

the shift, and what was learned differently (θ_0 is trained without decay). One seed: the learned part has no error
bar over training runs; `--seeds` repeats it. Models and spectra go to runs/inflation, figures to
docs/results/inflation.json; run it again and it goes on.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from villani.landscape.corpora import load_corpus
from villani.landscape.models import load_model
from villani.landscape.objective import Objective
from villani.landscape.parameters import ParameterSpace
from villani.landscape.text import cut_blocks
from villani.landscape.tokenizers import load_tokenizer
from villani.streams import Purpose, stream
from villani.studies.spectrum_model import SpectrumSettings, spectrum_model

ROOT = Path(__file__).parents[1]
PATH = ROOT / "docs" / "results" / "inflation.json"
BLOCK, MOMENTUM = 128, 0.9


def train(asked: argparse.Namespace, weight_decay: float, seed: int, folder: Path) -> list[float]:
    """SGD with L2 from the start model to `folder`; the loss of every batch."""
    loaded = load_model(asked.model)
    model: Any = loaded.model
    corpus = load_corpus(asked.text)
    blocks = cut_blocks(
        load_tokenizer(asked.tokenizer or loaded.tokenizer).encode(corpus.documents),
        BLOCK,
        boundaries=corpus.boundaries,
    )
    draws = stream(seed, Purpose.BATCHES, 0).integers(len(blocks.ids), size=(asked.steps, asked.batch))
    optimiser = torch.optim.SGD(
        model.parameters(), lr=asked.learning_rate, momentum=MOMENTUM, weight_decay=weight_decay
    )
    losses = []
    objective = Objective(model, [blocks.ids[:1]])
    with objective.evaluating():
        for step, rows in enumerate(draws):
            for group in optimiser.param_groups:
                group["lr"] = asked.learning_rate * min(1.0, (step + 1) / 20)
            batch = Objective(model, [{"input_ids": blocks.ids[rows], "labels": blocks.labels[rows]}])
            forward = batch.forward(next(batch.batches(0)))
            loss = forward.loss / forward.tokens
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
            if not losses[-1] < 50:
                raise SystemExit(f"diverged at step {step} (λ = {weight_decay:g}): use a smaller --learning-rate")
            if step % 50 == 0:
                print(f"λ = {weight_decay:g}: step {step} of {asked.steps}, {losses[-1]:.3f} nats", flush=True)
    model.save_pretrained(folder)
    return losses


def measured(asked: argparse.Namespace, weight_decay: float, seed: int) -> dict[str, Any]:
    """Train if it has not been done, work out the spectrum, and give what is kept of both."""
    place = ROOT / "runs" / "inflation" / f"{asked.name}-{weight_decay:g}-{seed}"
    done = place / "losses.json"
    if not done.exists():
        place.mkdir(parents=True, exist_ok=True)
        losses = train(asked, weight_decay, seed, place / "model")
        done.write_text(json.dumps(losses))
    losses = json.loads(done.read_text())
    tokenizer = asked.tokenizer or load_model(asked.model).tokenizer
    settings = SpectrumSettings(
        model=str(place / "model"), text=asked.text, tokenizer=tokenizer, groups=asked.groups, sequences=4, block=BLOCK,
        weight_decay=weight_decay, top=asked.top, bottom=asked.bottom, tolerance=asked.tolerance,
        density_probes=asked.probes, density_steps=asked.density_steps, held_out=asked.held_out,
        learning_rate=asked.learning_rate, memory=asked.memory, threads=asked.threads, seed=0,
    )  # fmt: skip
    _, record = spectrum_model(settings, place / "spectrum")
    model = load_model(str(place / "model")).model
    assert record.density is not None
    return {
        "weight_decay": weight_decay,
        "seed": seed,
        "last_batches_loss": sum(losses[-20:]) / len(losses[-20:]),
        "norm_squared": float(ParameterSpace(model).norms_squared().sum()),
        "eigenvalues_of_loss": [e.model_dump() for e in record.eigenvalues],
        "eigenvalues_of_objective": [e.value + weight_decay for e in record.eigenvalues],
        "trace": record.density.trace.model_dump(),
        "frobenius_squared": record.density.frobenius_squared.model_dump(),
        "effective_rank": record.density.effective_rank.model_dump(),
        "negative_share": record.density.negative_share.model_dump(),
        "density": {"grid": record.density.grid, "density": record.density.density, "sem": record.density.sem},
        "products": record.products,
        "converged": record.converged,
    }


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """λ₁(∇²F at θ_λ) − λ₁(∇²L at θ_0) in its two parts, seed by seed."""
    without = {row["seed"]: row["eigenvalues_of_loss"][0] for row in rows if row["weight_decay"] == 0}
    found = []
    for row in rows:
        first, base = row["eigenvalues_of_loss"][0], without[row["seed"]]
        found.append(
            {
                "weight_decay": row["weight_decay"],
                "seed": row["seed"],
                "shift": row["weight_decay"],
                "learned": first["value"] - base["value"],
                "learned_bound": first["bound"] + base["bound"],  # of the numerics alone
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="runs/ptb-gpt-neo-7m", help="where training starts")
    parser.add_argument("--text", default="ptb")
    parser.add_argument("--tokenizer", default=None)
    parser.add_argument("--weight-decays", default="0,0.001,0.01,0.03,0.1", help="0 must be among them")
    parser.add_argument("--seeds", default="0", help="of the batches; several with commas")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=0.02)
    parser.add_argument("--groups", type=int, default=2)
    parser.add_argument("--top", type=int, default=5)
    parser.add_argument("--bottom", type=int, default=2)
    parser.add_argument("--tolerance", type=float, default=1e-2)
    parser.add_argument("--probes", type=int, default=2)
    parser.add_argument("--density-steps", type=int, default=15)
    parser.add_argument("--held-out", type=int, default=4)
    parser.add_argument("--memory", type=float, default=8.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=PATH)
    asked = parser.parse_args()
    decays = [float(x) for x in asked.weight_decays.split(",")]
    if 0 not in decays or min(decays) < 0:
        parser.error("--weight-decays: expected numbers ≥ 0, 0 among them")
    torch.set_num_threads(asked.threads)
    asked.name = "".join(c if c.isalnum() else "-" for c in asked.model)[-40:]
    rows = [measured(asked, decay, int(seed)) for seed in asked.seeds.split(",") for decay in decays]
    parts = compared(rows)
    print(
        "| λ | seed | loss | ‖θ‖² | λ₁(∇²L) | λ₁(∇²F) | shift | learned | smallest of ∇²L | tr ∇²L | effective rank |"
    )
    for row, part in zip(rows, parts, strict=True):
        first, last = row["eigenvalues_of_loss"][0], row["eigenvalues_of_loss"][asked.top]
        cells = [
            f"{row['weight_decay']:g}", f"{row['seed']}", f"{row['last_batches_loss']:.3f}",
            f"{row['norm_squared']:.4g}",
            f"{first['value']:.4g} ± {first['bound']:.1g}", f"{first['value'] + row['weight_decay']:.4g}",
            f"{part['shift']:g}", f"{part['learned']:.3g}", f"{last['value']:.3g}",
            f"{row['trace']['value']:.4g} ± {row['trace']['sem']:.2g}",
            f"{row['effective_rank']['value']:.3g} ± {row['effective_rank']['sem']:.2g}",
        ]  # fmt: skip
        print("| " + " | ".join(cells) + " |")
    asked.output.write_text(
        json.dumps(
            {
                "model": asked.model, "text": asked.text, "optimizer": f"SGD, momentum {MOMENTUM}, L2",
                "learning_rate": asked.learning_rate, "steps": asked.steps, "batch": asked.batch, "block": BLOCK,
                "groups": asked.groups, "rows": rows, "parts": parts,
            },
            indent=1,
        ) + "\n"
    )  # fmt: skip


if __name__ == "__main__":
    main()
