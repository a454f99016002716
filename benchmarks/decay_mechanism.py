"""Why does weight decay help, where it does? Runs with one of its effects and without the others; each can say no.

python benchmarks/decay_mechanism.py RUN --decay 1 --seeds 3        (about 5 h of a core; the same command goes on)
python benchmarks/decay_mechanism.py RUN --model builtin:tiny --text builtin --tokenizer builtin --block 32 \\
    --train-blocks 60 --steps 40 --batch 4 --seeds 2                (a minute)

AdamW with a warm-up and a cosine to zero; the same start and batches in every arm of a seed:

none       no decay.
decay      λ at every step, on all tensors.
step       no decay; each tensor's step is rescaled so that ‖step‖/‖θ‖ is what the gradient's part of it is in `decay`:
           all there is to the effective step size, and no pull towards zero. A tensor that is 0 moves as it would.
norm       no decay; after each step each tensor is rescaled to the norm that it has in `decay`.
late       λ in the last quarter of the steps alone: a regulariser of where training ends would need no more.
readout    λ on the output layer alone: what shrinks logits, and nothing inside the network.

An arm recovers (none − arm)/(none − decay) of the gain in held-out loss at the end. It explains the gain where it
recovers more than half of it beyond error over seeds, and does not where it recovers less than half; else seeds leave
it open. Arms are no parts of a sum: two can each recover all.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student_t

from villani.commands.recommend.cells import start_spec
from villani.commands.recommend.settings import SweepSettings
from villani.commands.recommend.sweep_text import read_sweep_text
from villani.commands.subject import load
from villani.dynamics.training import learning_rates
from villani.objective.objective import IGNORED, Objective
from villani.streams import Purpose, stream
from villani.work.work import Work

ARMS = ("none", "decay", "step", "norm", "late", "readout")
LATE = 0.25  # of the steps
CLIP = 1.0
Trace = dict[str, np.ndarray]


def train_arm(
    model: Any, ids: torch.Tensor, labels: torch.Tensor, arm: str, *, steps: int, batch: int, rate: float,
    decay: float, seed: int, reference: Trace | None = None, work: Work | None = None,
) -> Trace:  # fmt: skip
    """Train in place; (K, tensors) norms after each step, and sizes of the gradient's part of it relative to ‖θ‖.

    Args:
        model: a causal language model.
        ids: (M, T) blocks.
        labels: (M, T), −100 where not predicted.
        arm: of `ARMS`.
        steps: K.
        batch: blocks in a step.
        rate: η at its peak.
        decay: λ.
        seed: of the batches.
        reference: the trace of `decay`, for `step` and `norm`.
        work: told of every step.
    """
    tensors = [p for p in model.parameters() if p.requires_grad]
    output = model.get_output_embeddings().weight
    decayed = [p is output if arm == "readout" else True for p in tensors]
    stepper = torch.optim.AdamW(tensors, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    norms, sizes = np.zeros((steps, len(tensors))), np.zeros((steps, len(tensors)))
    model.train()
    for step, size in enumerate(learning_rates("warm-up-cosine", rate, steps)):
        rows = torch.from_numpy(stream(seed, Purpose.BATCHES, step).integers(len(ids), size=batch))
        logits = model(input_ids=ids[rows], use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[rows][:, 1:].flatten(), ignore_index=IGNORED
        )
        stepper.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tensors, CLIP)
        shrink = size * decay if arm in ("decay", "readout") or (arm == "late" and step >= (1 - LATE) * steps) else 0.0
        stepper.param_groups[0]["lr"] = size
        before = [p.detach().clone() for p in tensors]
        stepper.step()
        with torch.no_grad():
            for k, (tensor, old) in enumerate(zip(tensors, before, strict=True)):
                moved = tensor - old
                length, norm = float(moved.norm()), float(old.norm())
                if arm == "step" and reference is not None and length and norm:
                    moved *= reference["sizes"][step, k] * norm / length
                tensor.copy_(old * (1 - shrink * decayed[k]) + moved)
                sizes[step, k] = length / norm if norm else 0.0
                if arm == "norm" and reference is not None and (now := float(tensor.norm())) > 0:
                    tensor.mul_(reference["norms"][step, k] / now)
                norms[step, k] = float(tensor.norm())
        if work:
            work.advance(step + 1, steps)
    model.eval()
    return {"norms": norms, "sizes": sizes}


def interval(values: list[float]) -> dict[str, Any]:
    """Mean and 95 % t-interval."""
    x = np.array(values)
    half = float(student_t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5)
    return {"mean": float(x.mean()), "interval": [float(x.mean()) - half, float(x.mean()) + half]}


def verdicts(losses: dict[str, list[float]]) -> dict[str, Any]:
    """For every arm, what it recovers of the gain and whether it explains it; losses by arm, in one order of seeds."""
    none, decay = np.array(losses["none"]), np.array(losses["decay"])
    gain = interval([*(none - decay)])
    told: dict[str, Any] = {"gain": gain, "arms": {}}
    for arm in ARMS[2:]:
        own = none - np.array(losses[arm])
        beyond = interval([*(own - 0.5 * (none - decay))])
        if gain["interval"][0] <= 0:
            words = "no gain beyond error: nothing to explain"
        elif beyond["interval"][0] > 0:
            words = "explains it: more than half is recovered"
        elif beyond["interval"][1] < 0:
            words = "no: less than half is recovered"
        else:
            words = "open"
        share = float(own.mean() / gain["mean"]) if gain["interval"][0] > 0 else None
        told["arms"][arm] = {"recovered": interval([*own]), "share": share, "verdict": words}
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder that finished arms are kept in")
    parser.add_argument("--model", default="config:gpt-neo-125m?layers=4&width=192&heads=4&context=128&vocab=2048")
    parser.add_argument("--text", default="ptb:train")
    parser.add_argument("--held-out", default=None, help="the text's last tenth by default; ptb:valid for ptb:train")
    parser.add_argument("--tokenizer", default="builtin")
    for name, value in (
        ("block", 128),
        ("train-blocks", 1600),
        ("held-out-blocks", 256),
        ("steps", 2000),
        ("batch", 16),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--seeds", type=int, default=3, help="training seeds")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--decay", type=float, default=1.0, help="λ: one that helped in the grid")
    asked = parser.parse_args()
    held_out = asked.held_out or ("ptb:valid" if asked.text == "ptb:train" else None)
    settings = SweepSettings(
        model=asked.model, text=asked.text, held_out=held_out, tokenizer=asked.tokenizer, block=asked.block,
        optimizers=["adamw"], weight_decay=[0.0, asked.decay], seeds=asked.seeds, seed=asked.first_seed,
        steps=asked.steps, batch=asked.batch, learning_rate={"adamw": asked.rate}, train_blocks=asked.train_blocks,
        held_out_blocks=asked.held_out_blocks, threads=1,
    )  # fmt: skip
    settings.check()
    torch.set_num_threads(1)
    keyed = settings.model_dump(mode="json", exclude={"seeds", "threads", "trust_remote_code", "adapter"})
    losses: dict[str, list[float]] = {arm: [] for arm in ARMS}
    with Work(asked.run) as work:
        text = read_sweep_text(settings, work)
        work.open("decay-mechanism", settings.model, keyed, settings.model_dump())
        judged = [{"input_ids": text.held_out.ids, "labels": text.held_out.labels}]
        for seed in settings.training_seeds:
            reference: Trace | None = None
            for arm in ARMS:

                def unit(arm: str = arm, seed: int = seed, reference: Trace | None = reference) -> Trace:
                    model = load(settings, work, start_spec(settings, seed), train=True).model
                    trace = train_arm(
                        model, text.train.ids, text.train.labels, arm, steps=asked.steps, batch=asked.batch,
                        rate=asked.rate, decay=asked.decay, seed=seed, reference=reference,
                    )  # fmt: skip
                    return trace | {"held_out": np.array(Objective(model, judged).loss())}

                row = work.once(f"{arm}/{seed}", unit)
                if arm == "decay":
                    reference = {name: row[name] for name in ("norms", "sizes")}
                losses[arm].append(float(row["held_out"]))
                print(f"seed {seed}, {arm}: held out {losses[arm][-1]:.4f}", flush=True)
    result: dict[str, Any] = {"settings": keyed, "seeds": asked.seeds, "held_out": losses}
    if asked.seeds > 1:
        result |= verdicts(losses)
    (asked.run / "mechanism.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "settings"}, indent=1))


if __name__ == "__main__":
    main()
