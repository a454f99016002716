"""Kill every command at random moments, resume it by the same command, and compare its records with an undisturbed run.

    python benchmarks/kill_campaign.py --kills 200 --minutes 120 --output docs/results/kill-campaign.json

Every command of the table below is run once in peace, at a tiny size. Then rounds go through the table: a command is
started, gets SIGKILL after a time drawn from the seed, uniform over what the undisturbed run took, and is started again
by the same command; after its last kill of the round it runs to its end. Its `records.json`, and those of every run
inside its folder, must be the bytes of the undisturbed run, and nothing half-written may be left.
Figures go to stdout and, as JSON, into the file of --output; it is written anew after every round, so that a campaign
that is stopped leaves what it has. Exit code 1 says that a run differed or failed, or that fewer were killed than
asked.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODEL = "builtin:tiny?width=8&layers=1&context=32"
SMALL = ["--sequences", "2", "--block", "16"]
STUDY = """
temperature = [1e-3]

[sweep]
model = "{model}"
block = 16
optimizers = ["sgd"]
weight_decay = [0.0, 0.1]
seeds = 2
steps = 20
batch = 2
train_blocks = 64
held_out_blocks = 16
learning_rate = {{ sgd = 0.1 }}

[landscape]
groups = 8
sequences = 1
ray_groups = 3
confirmed = 1

[spectra]
groups = 1
sequences = 1
top = 1
bottom = 1
density_probes = 0

[convergence]
steps = 20
chains = 2
groups = 8

[certificates]
weight_decay = [0.1]
steps = 10
batch = 2
blocks = 16

[pathologies]
blocks = 4
"""
COMMANDS = {
    "measure": ["measure", MODEL, "--groups", "12", *SMALL],
    "measure taylor": ["measure", MODEL, "--groups", "12", *SMALL, "--trace", "taylor"],
    "measure --target-error": ["measure", MODEL, "--groups", "4", *SMALL, "--target-error", "abs:200"],
    "audit": ["audit", MODEL, "--groups", "12", *SMALL, "--search", "1", "--confirmed", "1", "--decay", "hf"],
    "audit --replay": ["audit", "--replay", "{witness}"],
    "spectrum": ["spectrum", MODEL, *SMALL, "--top", "2", "--bottom", "1", "--density-steps", "6", "--layers"],
    "converge": ["converge", MODEL, "--groups", "8", *SMALL, "--steps", "40", "--chains", "2", "--weight-decay", "1,2"],
    "converge exact": ["converge", "exact:tied", "--steps", "400", "--chains", "2", "--walkers", "8"],
    "certify": ["certify", MODEL, "--block", "16", "--blocks", "32", "--steps", "20", "--chains", "2"],
    "recommend": [
        "recommend", MODEL, "--block", "16", "--optimizers", "sgd,noisy-sgd", "--weight-decay", "0,0.1", "--seeds", "2",
        "--steps", "20", "--batch", "2", "--train-blocks", "64", "--held-out-blocks", "16",
    ],
    "demo": ["demo", "--steps", "20"],
    "exact": ["exact", "double-well", "--weight-decay", "0.5,1,2"],
    "constants": ["constants", MODEL, "--weight-decay", "0.1,1"],
    "study paper": ["study", "paper", "--config", "{study}"],
}  # fmt: skip
_HALF_WRITTEN = re.compile(r"\..+\.\d+(\.\d+)?|.+\.partial")


def run(words: list[str], directory: Path, seconds: float | None = None) -> tuple[str, str]:
    """Run a command, killed after so many seconds: ("done" | "killed" | "failed", what it said)."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "-m", "villani", *words, "--run", str(directory)], env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8",
    )  # fmt: skip
    try:
        out, _ = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGKILL)
        out, _ = child.communicate()
    state = {0: "done", -signal.SIGKILL: "killed"}.get(child.returncode, "failed")
    return state, out


def records(directory: Path) -> dict[str, str]:
    """Every records.json under a run, by its place, as a checksum of its bytes."""
    return {
        str(file.relative_to(directory)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(directory.rglob("records.json"))
    }


def half_written(directory: Path) -> list[str]:
    """Files that a killed writer left."""
    return [str(path.relative_to(directory)) for path in directory.rglob("*") if _HALF_WRITTEN.fullmatch(path.name)]


def told(
    asked: argparse.Namespace, kills: dict[str, int], runs: dict[str, int], wrong: list[str], began: float
) -> None:
    """Write the figures so far."""
    found = {
        "kills": sum(kills.values()), "runs": sum(runs.values()), "not_identical": wrong, "seed": asked.seed,
        "most_kills_of_one_run": asked.most, "seconds": round(time.monotonic() - began, 1),
        "commands": {name: {"kills": kills.get(name, 0), "runs": count} for name, count in runs.items()},
    }  # fmt: skip
    if asked.output:
        asked.output.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most", type=int, default=3, help="kills of one run")
    parser.add_argument("--only", help="commands with this in their name")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    asked = parser.parse_args()
    if asked.output and not asked.output.resolve().parent.is_dir():
        parser.error(f"--output {asked.output}: no such folder")
    draw, began = random.Random(asked.seed), time.monotonic()
    kills: dict[str, int] = {}
    runs: dict[str, int] = {}
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        study = base / "study.toml"
        study.write_text(STUDY.format(model=MODEL), encoding="utf-8")
        witness = base / "peace-audit" / "witness.safetensors"
        peace: dict[str, tuple[list[str], dict[str, str], float]] = {}
        for name, words in COMMANDS.items():
            if asked.only and asked.only not in name and not (name == "audit" and "replay" in asked.only):
                continue
            words = [word.format(witness=witness, study=study) if "{" in word else word for word in words]
            directory = base / f"peace-{name.replace(' ', '-')}"
            start = time.monotonic()
            state, said = run(words, directory)
            peace[name] = (words, records(directory), time.monotonic() - start)
            print(f"{name}: {peace[name][2]:.1f} s undisturbed, {len(peace[name][1])} records", flush=True)
            if state != "done":
                print(said)
                return 1
        while sum(kills.values()) < asked.kills and time.monotonic() - began < 60 * asked.minutes:
            for name, (words, expected, seconds) in peace.items():
                if sum(kills.values()) >= asked.kills or time.monotonic() - began >= 60 * asked.minutes:
                    break
                directory = base / "run"
                shutil.rmtree(directory, ignore_errors=True)
                for _ in range(draw.randint(1, asked.most)):
                    state, said = run(words, directory, draw.uniform(0.1, 1.0) * seconds)
                    kills[name] = kills.get(name, 0) + (state == "killed")
                    if state == "failed":
                        wrong.append(f"{name}: failed: {said.strip().splitlines()[-1:]}")
                state, said = run(words, directory)
                runs[name] = runs.get(name, 0) + 1
                if state != "done":
                    wrong.append(f"{name}: does not resume: {said.strip().splitlines()[-1:]}")
                elif records(directory) != expected:
                    wrong.append(f"{name}: other records")
                elif left := half_written(directory):
                    wrong.append(f"{name}: left half-written {left}")
            told(asked, kills, runs, wrong, began)
    for name in runs:
        print(f"{name}: {kills.get(name, 0)} kills in {runs[name]} runs")
    print(f"{sum(kills.values())} kills in {sum(runs.values())} runs, {len(wrong)} not identical")
    print("\n".join(wrong))
    return 1 if wrong or sum(kills.values()) < asked.kills else 0


if __name__ == "__main__":
    sys.exit(main())
