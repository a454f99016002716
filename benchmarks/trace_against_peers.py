"""tr ∇²L by villani and by its peers: the same weights, tokens, loss, dtype and threads, in one alternating run.

sh benchmarks/peers/install.sh
python benchmarks/trace_against_peers.py --model runs/ptb-gpt-neo-7m --samples 60               (see train_ptb.py)
python benchmarks/trace_against_peers.py --model config:gpt-neo-125m --samples 6

Every tool answers in a process of its own (benchmarks/peers/). Sample i is of group i, fresh data and a fresh probe; a
third of the groups get a second probe, which parts the noise of probes from that of data. `figure` is the variance of a
sample times its seconds: the seconds that a standard error of 1 takes. Lower is better.

A model of more than 20 million parameters is held by one process at a time: tools then take turns of `--turn` samples
and are started anew for each, load and warm up, which is not timed. Needs VILLANI_DATA for PTB. Appends to
docs/results/trace-against-peers.json under the model's name.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student

from villani.inputs.corpora import load_corpus
from villani.inputs.models import load_model
from villani.inputs.text import Blocks, choose_groups, cut_blocks
from villani.inputs.tokenizers import load_tokenizer

ROOT = Path(__file__).parents[1]
PATH = ROOT / "docs" / "results" / "trace-against-peers.json"
PEERS = {
    "PyHessian": ("pyhessian", "hutchinson"),
    "hessian-eigenthings": ("eigenthings", "hutchinson"),
    "hessian-eigenthings hutch++": ("eigenthings", "hutch++"),
    "curvlinops": ("curvlinops", "hutchinson"),
}
TOGETHER = 20_000_000  # parameters of a model that every tool may hold at once
CONFIDENCE = 0.95
FIRST, SECOND = 1, 2  # probes
Array = np.ndarray


class Worker:
    """One tool in one process, from its own environment; waits until it has warmed up."""

    def __init__(self, name: str, folder: str, groups: str, threads: int, installed: Path) -> None:
        peer, way = PEERS.get(name, ("villani", name))
        python = installed / peer / "bin" / "python" if name in PEERS else Path(sys.executable)
        if not python.exists():
            raise SystemExit(f"{name} is not installed: run sh benchmarks/peers/install.sh")
        environment = {k: v for k, v in os.environ.items() if name not in PEERS or k != "PYTHONPATH"}
        environment |= {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        script = ROOT / "benchmarks" / "peers" / f"{peer}_worker.py"
        self.name = name
        self.process = subprocess.Popen(
            [str(python), str(script), folder, groups, str(threads), way],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment,
        )  # fmt: skip
        self.versions = self._read()

    def sample(self, group: int, probe: int) -> dict[str, float]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{group} {probe}\n")
        return self._read()

    def close(self) -> None:
        self.process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with exit code {self.process.wait()}")
        return json.loads(line)


def full_blocks(text: str, tokenizer: str, block: int) -> Blocks:
    """Blocks without padding: peers know no masks."""
    corpus = load_corpus(text)
    blocks = cut_blocks(load_tokenizer(tokenizer).encode(corpus.documents), block, boundaries=corpus.boundaries)
    full = (blocks.labels >= 0).all(dim=1)
    return Blocks(blocks.ids[full], blocks.labels[full], blocks.documents, blocks.tokens, blocks.cut)


def run(
    names: list[str], folder: str, groups: str, samples: int, threads: int, turn: int, installed: Path
) -> dict[str, dict[str, Any]]:
    """All answers of every tool, which take turns of `turn` samples; 0: of one, and all processes live together."""
    answers: dict[str, dict[str, Any]] = {name: {"first": [], "second": []} for name in names}
    living = {name: Worker(name, folder, groups, threads, installed) for name in names} if not turn else {}
    step = turn or 1
    for start in range(0, samples, step):
        order = names if (start // step) % 2 == 0 else names[::-1]
        for name in order:
            worker = living[name] if living else Worker(name, folder, groups, threads, installed)
            answers[name]["versions"] = worker.versions
            for group in range(start, min(start + step, samples)):
                answers[name]["first"].append(worker.sample(group, FIRST))
                if group % 3 == 0:
                    answers[name]["second"].append(worker.sample(group, SECOND))
            if not living:
                worker.close()
        print(f"{min(start + step, samples)} of {samples} samples", file=sys.stderr, flush=True)
    for worker in living.values():
        worker.close()
    return answers


def figure(values: Array, seconds: Array) -> float:
    """Variance of a sample times its seconds."""
    return float(values.var(ddof=1) * np.median(seconds))


def interval(statistic: Callable[[Array], float], n: int) -> list[float]:
    """Of a positive statistic of samples `rows`: delete-one jackknife of its logarithm, Student's t."""
    rows = np.arange(n)
    log = np.log(statistic(rows))
    left_out = np.log([statistic(np.delete(rows, i)) for i in rows])
    error = ((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum()) ** 0.5
    half = student.ppf((1 + CONFIDENCE) / 2, n - 1) * error
    return [float(np.exp(log - half)), float(np.exp(log + half))]


def table(answers: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """A row for each tool; ratios are above 1 where a tool's figure is better than the best peer's."""
    values = {name: np.array([a["value"] for a in got["first"]]) for name, got in answers.items()}
    seconds = {name: np.array([a["seconds"] for a in got["first"]]) for name, got in answers.items()}
    n = len(next(iter(values.values())))
    figures = {name: figure(values[name], seconds[name]) for name in answers}
    ours = [name for name in answers if name not in PEERS]
    peers = [name for name in answers if name in PEERS]
    reference = min(ours, key=lambda name: values[name].var())
    rows: dict[str, dict[str, Any]] = {}
    for name, got in answers.items():
        v, s = values[name], seconds[name]
        pairs = np.array([[got["first"][3 * i]["value"], a["value"]] for i, a in enumerate(got["second"])])
        apart = v - values[reference]  # on the same groups, so that the noise of data drops out
        rows[name] = {
            "seconds": float(np.median(s)),
            "mean": float(v.mean()),
            "sem": float(v.std(ddof=1) / n**0.5),
            "variance": float(v.var(ddof=1)),
            "probe_variance": float(((pairs[:, 0] - pairs[:, 1]) ** 2).mean() / 2),
            "figure": figures[name],
            "figure_interval": interval(lambda rows, v=v, s=s: figure(v[rows], s[rows]), n),
            "z": 0.0 if name == reference else float(apart.mean() / (apart.std(ddof=1) / n**0.5)),
            "peak_rss_bytes": max(a["peak_rss_bytes"] for a in got["first"] + got["second"]),
            "versions": got["versions"],
            "values": [float(f"{x:.6g}") for x in v],
            "sample_seconds": [float(f"{x:.4g}") for x in s],
        }
        if peers:
            best = min(peers, key=figures.__getitem__)

            def ratio(rows: Array, name: str = name, best: str = best) -> float:
                return figure(values[best][rows], seconds[best][rows]) / figure(values[name][rows], seconds[name][rows])

            rows[name] |= {"best_peer": best, "ratio": figures[best] / figures[name]}
            rows[name]["ratio_interval"] = interval(ratio, n) if name != best else [1.0, 1.0]
    return rows


def show(rows: dict[str, dict[str, Any]]) -> None:
    print(
        "| | s | mean ± sem | z | deviation | of probes | peak GiB | figure [95 %] | best peer's figure / its [95 %] |"
    )
    for name, row in rows.items():
        cells = [name, f"{row['seconds']:.3g}", f"{row['mean']:.0f} ± {row['sem']:.0f}", f"{row['z']:.1f}"]
        cells += [f"{row[key] ** 0.5:.0f}" for key in ("variance", "probe_variance")]
        cells += [
            f"{row['peak_rss_bytes'] / 2**30:.2f}",
            "{:.3g} [{:.3g}, {:.3g}]".format(row["figure"], *row["figure_interval"]),
        ]
        if "ratio" in row:
            cells.append("{:.2f} [{:.2f}, {:.2f}]".format(row["ratio"], *row["ratio_interval"]))
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="runs/ptb-gpt-neo-7m", help="a folder or config:NAME")
    parser.add_argument("--text", default="ptb")
    parser.add_argument("--tokenizer", default="gpt2")
    parser.add_argument("--samples", type=int, default=60, help="groups, and samples of every tool")
    parser.add_argument("--ways", default="taylor-whole,taylor-layer,gauss-newton,hutchinson", help="villani's")
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turn", type=int, default=3, help="samples in a turn, where models are large")
    parser.add_argument("--installed", type=Path, default=ROOT / ".peers", help="an environment for each peer")
    parser.add_argument("--output", type=Path, default=PATH)
    asked = parser.parse_args()
    if asked.samples < 4:
        parser.error("--samples: expected at least 4")
    torch.set_num_threads(asked.threads)
    model: Any = load_model(asked.model).model
    size = sum(p.numel() for p in model.parameters())
    ids, _ = choose_groups(full_blocks(asked.text, asked.tokenizer, 128), asked.samples, 4, seed=0)
    names = [name for name in f"{asked.peers},{asked.ways}".split(",") if name]
    with tempfile.TemporaryDirectory() as scratch:
        folder, groups = Path(scratch, "model"), Path(scratch, "groups.npy")
        model.save_pretrained(folder)
        del model
        np.save(groups, ids.numpy())
        turn = asked.turn if size > TOGETHER else 0
        answers = run(names, str(folder), str(groups), asked.samples, asked.threads, turn, asked.installed)
    rows = table(answers)
    show(rows)
    kept = json.loads(asked.output.read_text()) if asked.output.exists() else {}
    name = asked.model if ":" in asked.model else Path(asked.model).name
    kept[name] = {
        "parameters": size,
        "text": asked.text,
        "tokenizer": asked.tokenizer,
        "tokens": ids[0].numel(),
        "samples": asked.samples,
        "threads": asked.threads,
        "turn": turn,
        "confidence": CONFIDENCE,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "tools": rows,
    }
    asked.output.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
