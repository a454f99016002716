"""The squared gradient norm that a mini-batch reports, against the unbiased one and the truth.

python benchmarks/gradient_norm_bias.py runs/demo    (after `make demo`; a minute)

On the demo's trained model, over all blocks that it was trained on: the truth is ‖∇L‖² of the whole text, exact. For
groups of 1 to 32 blocks it compares the mean of ‖∇L_g‖² with the U-statistic over 16 groups. Writes
docs/results/gradient-norm-bias.json, and the picture as HTML beside it for a screenshot.
"""

import json
import sys
from pathlib import Path

import plotly.graph_objects as go
import torch

from villani.landscape.corpora import load_corpus
from villani.landscape.models import load_model
from villani.landscape.objective import Objective
from villani.landscape.text import choose_groups, cut_blocks
from villani.landscape.tokenizers import load_tokenizer
from villani.measurement import measure
from villani.studies.demo import split
from villani.studies.measure_model import as_groups

GROUPS, SIZES = 16, (1, 2, 4, 8, 16, 32)
RESULTS = Path(__file__).parents[1] / "docs" / "results"


def main(run: str) -> None:
    torch.set_num_threads(2)
    model = load_model(f"{run}/model").model
    corpus = load_corpus("builtin")
    blocks = cut_blocks(load_tokenizer("builtin").encode(corpus.documents), 128, boundaries=corpus.boundaries)
    kept, _ = split(blocks, 0)
    whole = Objective(model, [{"input_ids": kept.ids, "labels": kept.labels}])
    truth = sum(float(g.square().sum()) for g in whole.gradient())
    rows = []
    for size in SIZES:
        ids, labels = choose_groups(kept, GROUPS, size, seed=1)
        found = measure(Objective(model, as_groups(ids, labels)), trace="hutchinson")
        naive, ours = found.naive_gradient_norm_squared, found.gradient_norm_squared
        rows.append({"blocks": size, "naive": [naive.value, naive.sem], "unbiased": [ours.value, ours.sem],
                     "interval": ours.interval()})  # fmt: skip
        print(
            f"{size:3} blocks: naive {naive.value:.4g}, unbiased {ours.value:.3g} ± {ours.sem:.1g}, truth {truth:.3g}"
        )
    record = {"truth": truth, "groups": GROUPS, "block": 128, "total_blocks": len(kept.ids), "rows": rows}
    (RESULTS / "gradient-norm-bias.json").write_text(json.dumps(record, indent=1) + "\n")
    draw(record).write_html(Path(run) / "gradient-norm-bias.html", include_plotlyjs=True)


def draw(record: dict) -> go.Figure:
    sizes = [row["blocks"] for row in record["rows"]]
    figure = go.Figure()
    for name, key, colour in (("as a mini-batch reports it", "naive", "#dc2626"), ("unbiased", "unbiased", "#2563eb")):
        values, errors = zip(*(row[key] for row in record["rows"]), strict=True)
        figure.add_scatter(x=sizes, y=values, error_y={"array": [2.13 * e for e in errors]}, name=name,
                           mode="lines+markers", line={"color": colour})  # fmt: skip
    figure.add_hline(y=record["truth"], line_dash="dash", annotation_text="‖∇L‖² of the whole text, exact")
    figure.update_xaxes(type="log", title="blocks in a group", tickvals=sizes)
    figure.update_yaxes(title="squared gradient norm")
    figure.update_layout(template="plotly_white", width=760, height=420, margin={"l": 70, "r": 20, "t": 30, "b": 60},
                         legend={"x": 0.6, "y": 0.95})  # fmt: skip
    return figure


if __name__ == "__main__":
    main(sys.argv[1])
