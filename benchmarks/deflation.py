"""Does deflating Hutchinson by known eigenvectors pay? Probe noise, data noise and seconds, with k = 0, 1, … vectors.

villani spectrum runs/demo/model --tokenizer builtin --top 8 --bottom 2 --tolerance 1e-2 --run runs/deflation --seed 1
python benchmarks/deflation.py runs/demo/model runs/deflation --tokenizer builtin --text builtin --groups 24   (minutes)

Every group of fresh text gets two probes by each way, the same probes in all of them. With x_gm the sample of group g
by probe m, the probe variance is the mean of ½(x_g1 − x_g2)², the data variance what the groups' means vary beyond it.
`cost` is the variance of one group with one probe times its seconds (its product and the k exact ones), over that of
k = 0: below 1, deflation pays. Vectors count by |eigenvalue|, largest first. Spreads are jackknives over groups. Prints
JSON, and with --output writes it.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from villani.curvature.deflation import Deflation
from villani.curvature.group import group_statistics
from villani.curvature.sketch import GradientSketch
from villani.curvature.trace import sampler_for
from villani.curvature.ways import Way
from villani.inputs.corpora import load_corpus
from villani.inputs.models import load_model
from villani.inputs.text import choose_groups, cut_blocks
from villani.inputs.tokenizers import load_tokenizer
from villani.objective.objective import Objective

SEED = 7


def variances(samples: np.ndarray) -> np.ndarray:
    """(probe variance, data variance) of (G, 2) samples, unbiased where groups and probes are independent."""
    probe = float(np.mean((samples[:, 0] - samples[:, 1]) ** 2) / 2)
    return np.array([probe, float(samples.mean(axis=1).var(ddof=1)) - probe / 2])


def jackknife(samples: np.ndarray) -> np.ndarray:
    """Standard errors of `variances`, leaving out one group at a time."""
    without = np.stack([variances(np.delete(samples, g, axis=0)) for g in range(len(samples))])
    count = len(samples)
    return np.sqrt((count - 1) * without.var(axis=0))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("run", type=Path, help="of villani spectrum, on other groups")
    parser.add_argument("--text", default="ptb")
    parser.add_argument("--tokenizer", default=None)
    parser.add_argument("--counts", default="0,1,2,5,10")
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--block", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    loaded = load_model(asked.model)
    corpus = load_corpus(asked.text)
    tokenizer = load_tokenizer(asked.tokenizer or loaded.tokenizer)
    blocks = cut_blocks(tokenizer.encode(corpus.documents), asked.block, boundaries=corpus.boundaries)
    ids, labels = choose_groups(blocks, asked.groups, asked.sequences, SEED)
    groups = [{"input_ids": i, "labels": y} for i, y in zip(ids, labels, strict=True)]
    objective = Objective(loaded.model, groups, micro_tokens=asked.sequences * asked.block)
    space = objective.parameters
    record = json.loads((asked.run / "records.json").read_text())["records"][0]
    eigenvalues = [pair["value"] for pair in record["eigenvalues"]]
    paths = sorted(asked.run.glob("vector-*.npy"))
    order = np.argsort(-np.abs(eigenvalues))
    vectors = [torch.from_numpy(np.load(paths[i], allow_pickle=False)) for i in order]
    sketch = GradientSketch(space, SEED, 1)
    rows = []
    for count in [int(k) for k in asked.counts.split(",") if int(k) <= len(vectors)]:
        deflation = Deflation(space, vectors[:count]) if count else None
        sampler = sampler_for(objective, Way("hutchinson", deflated=bool(count)), deflation)
        samples, seconds = [], []
        for group in range(asked.groups):
            statistics = group_statistics(objective, group, 2, SEED, sampler, sketch)
            samples.append(statistics.traces.sum(axis=1) / statistics.tokens)
            start = time.perf_counter()
            group_statistics(objective, group, 1, SEED, sampler, sketch)
            seconds.append(time.perf_counter() - start)
        table = np.array(samples)  # (G, 2)
        probe, data = variances(table)
        errors = jackknife(table)
        rows.append(
            {
                "vectors": count, "trace": float(table.mean()), "probe_variance": probe,
                "probe_variance_sem": float(errors[0]), "data_variance": data, "data_variance_sem": float(errors[1]),
                "seconds": float(np.median(seconds)),
            }
        )  # fmt: skip
    base = (rows[0]["probe_variance"] + rows[0]["data_variance"]) * rows[0]["seconds"]
    for row in rows:
        row["cost"] = (row["probe_variance"] + row["data_variance"]) * row["seconds"] / base
    text = json.dumps(
        {
            "model": asked.model, "text": asked.text, "groups": asked.groups, "sequences": asked.sequences,
            "block": asked.block, "threads": asked.threads, "eigenvalues": [eigenvalues[i] for i in order],
            "rows": rows,
        },
        indent=1,
    )  # fmt: skip
    print(text)
    if asked.output:
        asked.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
