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
from plotly.subplots import make_subplots

from villani.commands.demo.run import split
from villani.commands.subject import as_groups
from villani.inputs.corpora import load_corpus
from villani.inputs.models import load_model
from villani.inputs.text import choose_groups, cut_blocks
from villani.inputs.tokenizers import load_tokenizer
from villani.measurement.measure import measure
from villani.objective.objective import Objective

GROUPS, SIZES = 16, (1, 2, 4, 8, 16, 32)
PATH = Path(__file__).parents[1] / "docs" / "results" / "gradient-norm-bias.json"


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
    (PATH).write_text(json.dumps(record, indent=1) + "\n")
    draw(record).write_html(
        Path(run) / "gradient-norm-bias.html", include_plotlyjs=True, config={"displayModeBar": False}
    )


def draw(record: dict) -> go.Figure:
    sizes = [row["blocks"] for row in record["rows"]]
    figure = make_subplots(1, 2, subplot_titles=("both, logarithmic", "unbiased alone, linear, with 95 % intervals"))
    naive, errors = zip(*(row["naive"] for row in record["rows"]), strict=True)
    figure.add_scatter(x=sizes, y=naive, error_y={"array": errors}, name="as a mini-batch reports it",
                       mode="lines+markers", line={"color": "#dc2626"}, row=1, col=1)  # fmt: skip
    values = [row["unbiased"][0] for row in record["rows"]]
    upper = [row["interval"][1] for row in record["rows"]]
    half = [u - v for u, v in zip(upper, values, strict=True)]
    figure.add_scatter(x=sizes, y=upper, name="unbiased: top of its interval", mode="lines+markers",
                       line={"color": "#2563eb", "dash": "dot"}, row=1, col=1)  # fmt: skip
    figure.add_scatter(x=sizes, y=values, name="unbiased", mode="markers", line={"color": "#2563eb"},
                       error_y={"array": half}, row=1, col=2)  # fmt: skip
    for column in (1, 2):
        figure.add_scatter(x=[1, 32], y=[record["truth"]] * 2, mode="lines", line={"color": "#111827", "dash": "dash"},
                           name="truth: the whole text, exact", showlegend=column == 1, row=1, col=column)  # fmt: skip
    figure.update_xaxes(type="log", title="blocks in a group", tickvals=sizes)
    figure.update_yaxes(type="log", title="squared gradient norm", row=1, col=1)
    figure.update_layout(template="plotly_white", width=980, height=430, margin={"l": 70, "r": 20, "t": 40, "b": 60},
                         legend={"orientation": "h", "y": -0.25})  # fmt: skip
    return figure


if __name__ == "__main__":
    main(sys.argv[1])
