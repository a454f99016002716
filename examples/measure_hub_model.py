"""Measure Ψ_s of a model from the Hugging Face hub, and ask the same measurement about other λ and s.

python examples/measure_hub_model.py EleutherAI/pythia-70m --text builtin
python examples/measure_hub_model.py 'config:pythia-70m?layers=1&width=32&vocab=2048' --tokenizer builtin   (no network)
"""

import argparse

import villani


def main() -> None:
    """Load, measure once, and ask for several λ and s."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--text", default="builtin", help="builtin, ptb, wikitext-103, hub:NAME, or files")
    parser.add_argument("--tokenizer", default=None, help="default: the model's own")
    parser.add_argument("--groups", type=int, default=12)
    parser.add_argument("--block", type=int, default=64)
    options = parser.parse_args()

    loaded = villani.load_model(options.model)  # float32, dropout off, eager attention
    groups = villani.groups_from_text(
        options.text, loaded, tokenizer=options.tokenizer, block=options.block, groups=options.groups, sequences=2
    )
    objective = villani.Objective(loaded.model, groups, weight_decay=0.1, decay="all")
    measurement = villani.measure(objective, seed=0)

    loss, trace = measurement.loss, measurement.hessian_trace
    print(f"{loaded.record.description}, on {measurement.tokens} tokens of {options.text}")
    print(f"loss {loss.value:.4f} ± {loss.sem:.4f} nats per token")
    print(f"tr ∇²L {trace.value:.4g} ± {trace.sem:.2g}")
    for weight_decay in (0.01, 0.1):  # neither λ nor s entered the measurement
        for temperature in (1e-3, 1.0):
            psi = measurement.psi(weight_decay, temperature=temperature)
            low, high = psi.interval()
            print(f"λ = {weight_decay:g}, s = {temperature:g}: Ψ = {psi.value:.4g}, 95 % [{low:.4g}, {high:.4g}]")


if __name__ == "__main__":
    main()
