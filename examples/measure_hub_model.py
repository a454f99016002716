"""Measure Ψ_s of a model from the Hugging Face hub, and ask the same measurement about other λ and s.

python examples/measure_hub_model.py EleutherAI/pythia-70m --text builtin
python examples/measure_hub_model.py 'config:pythia-70m?layers=1&width=32&vocab=2048' --tokenizer builtin   (no network)
"""

import argparse

import villani
from villani.inputs.models import load_model
from villani.inputs.text import load_groups
from villani.inputs.tokenizers import load_tokenizer


def main() -> None:
    """Load, measure once, and ask for several λ and s."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--text", default="builtin", help="builtin, ptb, wikitext-103, hub:NAME, or files")
    parser.add_argument("--tokenizer", default=None, help="default: the model's own")
    parser.add_argument("--groups", type=int, default=12)
    parser.add_argument("--block", type=int, default=64)
    asked = parser.parse_args()

    loaded = load_model(asked.model)  # float32, dropout off, eager attention
    ids, labels, record = load_groups(
        asked.text, load_tokenizer(asked.tokenizer or loaded.tokenizer), block=asked.block, groups=asked.groups,
        sequences=2, seed=0, vocabulary=loaded.model.get_input_embeddings().num_embeddings,
        context=loaded.record.context,
    )  # fmt: skip
    groups = [{"input_ids": i, "labels": y} for i, y in zip(ids, labels, strict=True)]
    objective = villani.Objective(loaded.model, groups, weight_decay=0.1, decay="all")
    found = villani.measure(objective, seed=0)

    print(f"{loaded.record.description}, on {record.blocks} blocks of {record.spec}")
    print(f"loss {found.loss.value:.4f} ± {found.loss.sem:.4f} nats per token")
    print(f"tr ∇²L {found.hessian_trace.value:.4g} ± {found.hessian_trace.sem:.2g}")
    for weight_decay in (0.01, 0.1):  # neither λ nor s entered the measurement
        for temperature in (1e-3, 1.0):
            psi = found.psi(weight_decay, temperature=temperature)
            low, high = psi.interval()
            print(f"λ = {weight_decay:g}, s = {temperature:g}: Ψ = {psi.value:.4g}, 95 % [{low:.4g}, {high:.4g}]")


if __name__ == "__main__":
    main()
