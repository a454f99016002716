"""How the time of the search for symmetries grows with layers, on Llamas of random weights.

python benchmarks/symmetry_scaling.py [--layers 8,16,32,64] [--width 48] [--model FOLDER] [--out FILE]

CPU seconds of tracing, of the search (degrees, generators, orbits) and of checking all orbits on the loss, each depth
in a process of its own; the exponent is that of a fit of log seconds of search and check against log layers. With
--model the same for a pretrained model. Writes docs/results/symmetry-scaling.json.
"""

import argparse
import gc
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from villani.criteria.degrees import Degrees
from villani.criteria.differential import short_batch
from villani.criteria.orbits import orbits_of
from villani.criteria.rounding import Drift
from villani.criteria.symmetries import generators
from villani.inputs.models import load_model
from villani.objective.graph import trace_loss
from villani.objective.objective import Objective


def llama(layers: int, width: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=64, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=3 * width, max_position_embeddings=32, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def measured(model: torch.nn.Module) -> dict[str, float]:
    """CPU seconds, and how much was found."""
    objective = Objective(model, torch.randint(0, 64, (4, 2, 8), generator=torch.Generator().manual_seed(0)))
    clock = [time.process_time()]
    graph = trace_loss(objective, short_batch(objective))
    clock.append(time.process_time())
    gc.collect()  # of what tracing left behind: else it falls on the search of some depths and not of others
    start = time.process_time()
    degrees = Degrees(graph)
    basis = generators(degrees)
    orbits = orbits_of(basis, objective.parameters)
    clock.append(time.process_time())
    drift = Drift(graph, [t.detach() for t in objective.parameters.tensors])
    held = sum(moved <= allowed for moved, allowed in map(drift.along, orbits))
    clock.append(time.process_time())
    traced, checked = clock[1] - clock[0], clock[3] - clock[2]
    searched = clock[2] - start
    return {
        "trace_seconds": traced, "search_seconds": searched, "check_seconds": checked, "operations": len(graph.nodes),
        "symmetries": len(basis), "orbits": len(orbits), "orbits_that_hold": held,
        "skipped_operations": len(degrees.skipped.all()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", default="8,16,32,64")
    parser.add_argument("--width", type=int, default=48)
    parser.add_argument("--model", help="folder of a pretrained model, measured as well")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    results = Path(__file__).parents[1] / "docs" / "results"
    parser.add_argument("--out", type=Path, default=results / "symmetry-scaling.json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.one:
        model = llama(int(asked.one), asked.width) if asked.one.isdigit() else load_model(asked.one).model
        measured(llama(1, 16))  # what is done once in a process is not counted
        print(json.dumps(measured(model)))
        return

    def fresh(which: str) -> dict[str, float]:
        worker = [sys.executable, __file__, "--one", which, "--width", str(asked.width)]
        done = subprocess.run(worker, check=True, stdout=subprocess.PIPE, text=True)
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        print(f"{Path(which).name:>12}", {k: float(f"{v:.3g}") for k, v in found.items()}, flush=True)
        return found

    rows = [{"layers": int(layers), **fresh(layers)} for layers in asked.layers.split(",")]
    depths = np.log([row["layers"] for row in rows])
    seconds = np.log([row["search_seconds"] + row["check_seconds"] for row in rows])
    exponent = float(np.polyfit(depths, seconds, 1)[0])
    print(f"search and check grow with the power {exponent:.2f} of layers")
    result = {"width": asked.width, "exponent": exponent, "rows": rows}
    if asked.model:
        result["model"] = {"name": Path(asked.model).name, **fresh(asked.model)}
    asked.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
