"""The top eigenpairs of ∇²L by villani and by its peers: the same weights, tokens, loss, dtype and threads.

sh benchmarks/peers/install.sh
python benchmarks/eigen_against_peers.py --model "config:gpt-neo-125m?layers=4&width=128&heads=4&context=128"
python benchmarks/eigen_against_peers.py --model config:gpt-neo-125m --memory 12 --bottom 2 --graphs 0 --micro 128
python benchmarks/eigen_against_peers.py --oracle     curvlinops and SciPy's eigsh on a model of 2 million parameters

Each way runs in a process of its own, `--repeats` times in turn. Tools stop by rules of their own, so that what they
return is judged by one measure: the true residual ‖Hu − ρu‖ of every vector, by villani's products, over the largest
|λ| that villani found. Rows say what was asked, the worst of those residuals, the seconds and CPU seconds of every run
(loading apart), and the peak resident memory of the process. villani's seconds are those of finding, as the others';
`check_` are those of the products by which it measures its own residuals afterwards, which the others do not.
PyHessian seeks the eigenvalues largest in size, of either sign, and cannot be asked for the top ones. Appends to
docs/results/eigen-against-peers.json under `--name`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from villani.curvature.basis import Basis, dot, norm
from villani.curvature.lanczos import Ends, krylov
from villani.curvature.operators import Budget, Curvature
from villani.curvature.pairs import examine, ritz_pairs
from villani.inputs.corpora import load_corpus
from villani.inputs.models import load_model
from villani.inputs.text import Blocks, choose_groups, cut_blocks
from villani.inputs.tokenizers import load_tokenizer
from villani.objective.objective import Objective
from villani.work.memory import peak_memory

ROOT = Path(__file__).parents[1]
PATH = ROOT / "docs" / "results" / "eigen-against-peers.json"


def ours(folder: str, ids: str, asked: argparse.Namespace) -> dict[str, Any]:
    """villani in this process: eigenpairs with residuals, every vector multiplied once more."""
    torch.set_num_threads(asked.threads)
    objective = Objective(load_model(folder).model, [torch.from_numpy(np.load(ids))], micro_tokens=asked.micro)
    budget = Budget(int(asked.memory * 2**30), partial(peak_memory, torch.device("cpu")))
    operator = Curvature(objective, budget=budget if asked.graphs else None)
    with tempfile.TemporaryDirectory() as scratch, Basis(operator.size, operator.dtype, budget=budget) as basis:
        start, busy = time.perf_counter(), time.process_time()
        ends = Ends(asked.top, asked.bottom, asked.tolerance, length=asked.basis)
        ritz = krylov(operator, basis, ends)
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
        start, check = time.perf_counter(), time.process_time()
        found = examine(operator, basis, ritz, operator.sizes, directory=Path(scratch))
        check_seconds, check = time.perf_counter() - start, time.process_time() - check
    return {
        "seconds": seconds,
        "cpu_seconds": busy,
        "check_seconds": check_seconds,
        "check_cpu_seconds": check,
        "peak_rss_bytes": peak_memory(torch.device("cpu")),
        "values": [pair.value for pair in found],
        "residuals": [pair.residual for pair in found],
        "products": ritz.products,
        "graphs_kept": len(operator._kept),
    }


def in_a_process(words: list[str], peer: str | None, threads: int, installed: Path) -> dict[str, Any]:
    """What a script says in its last line."""
    python = installed / peer / "bin" / "python" if peer else Path(sys.executable)
    if not python.exists():
        raise SystemExit(f"{peer} is not installed: run sh benchmarks/peers/install.sh")
    environment = {k: v for k, v in os.environ.items() if not peer or k != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([str(python), *words], stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def in_all(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The first run's row, with what varies between runs as a list."""
    varying = [key for key in runs[0] if key.endswith("seconds") or key == "peak_rss_bytes"]
    return {**runs[0], **{key: [run[key] for run in runs] for key in varying}}


def rounded(found: Any) -> Any:
    """With six digits of every float."""
    if isinstance(found, dict):
        return {key: rounded(value) for key, value in found.items()}
    if isinstance(found, list):
        return [rounded(value) for value in found]
    return float(f"{found:.6g}") if isinstance(found, float) else found


def judged(operator: Curvature, vectors: np.ndarray) -> tuple[list[float], list[float]]:
    """Rayleigh quotients and true residuals by our products."""
    values, residuals = [], []
    for row in vectors:
        u = torch.from_numpy(np.array(row))
        u = u / norm(u)
        w = operator(u)
        values.append(dot(u, w))
        residuals.append(norm(w.sub_(u, alpha=values[-1])))
    return values, residuals


def tokens(text: str, tokenizer: str, sequences: int, vocabulary: int) -> torch.Tensor:
    """(sequences, 128) ids of text, or random ones where the text is `random`."""
    if text == "random":
        return torch.randint(0, vocabulary, (sequences, 128), generator=torch.Generator().manual_seed(0))
    corpus = load_corpus(text)
    blocks = cut_blocks(load_tokenizer(tokenizer).encode(corpus.documents), 128, boundaries=corpus.boundaries)
    full = (blocks.labels >= 0).all(dim=1)  # peers know no masks
    whole = Blocks(blocks.ids[full], blocks.labels[full], blocks.documents, blocks.tokens, blocks.cut)
    ids, _ = choose_groups(whole, 1, sequences, seed=0)
    return ids[0]


def oracle(asked: argparse.Namespace) -> dict[str, Any]:
    """curvlinops' Hessian under SciPy's ARPACK, on a GPT-2 of about 2 million parameters."""
    from curvlinops import HessianLinearOperator
    from scipy.sparse.linalg import eigsh
    from torch import nn

    torch.set_num_threads(asked.threads)
    model: Any = load_model("config:gpt2?layers=2&width=32&heads=2&context=64").model.eval()
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.randint(0, vocabulary, (2, 32), generator=torch.Generator().manual_seed(0))
    objective = Objective(model, [ids])

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x, use_cache=False).logits[:, :-1].flatten(0, 1)

    theirs = HessianLinearOperator(
        Logits(), nn.CrossEntropyLoss(), objective.parameters.tensors, [(ids, ids[:, 1:].flatten())],
        check_deterministic=False,
    )  # fmt: skip
    pairs, ritz = ritz_pairs(
        Curvature(objective, budget=Budget()), objective.parameters.size, torch.float32, Ends(5, 0, 1e-4)
    )
    wanted = eigsh(theirs.to_scipy(), k=5, which="LA", tol=1e-5, return_eigenvectors=False)[::-1]
    values = [pair.value for pair in pairs]
    return {
        "parameters": objective.parameters.size,
        "villani": values,
        "curvlinops_eigsh": wanted.tolist(),
        "largest_relative_difference": float(np.max(np.abs(wanted - values) / np.abs(wanted))),
        "products": ritz.products,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="config:gpt-neo-125m?layers=4&width=128&heads=4&context=128")
    parser.add_argument("--text", default="random", help="random ids, or a text such as ptb")
    parser.add_argument("--tokenizer", default="gpt2")
    parser.add_argument("--sequences", type=int, default=4, help="of 128 tokens")
    parser.add_argument("--top", type=int, default=5)
    parser.add_argument("--bottom", type=int, default=0)
    parser.add_argument("--tolerance", type=float, default=1e-2)
    parser.add_argument("--memory", type=float, default=12.0, help="GiB for villani")
    parser.add_argument("--micro", type=int, default=512, help="villani's tokens in one forward pass")
    parser.add_argument("--graphs", type=int, default=1, help="0: villani keeps no graphs between products")
    parser.add_argument("--basis", type=int, default=None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1, help="of every way, in turn")
    parser.add_argument("--name", help="in the record; by default the model's")
    parser.add_argument("--eigenthings-steps", default="20,30,40", help="Lanczos steps to try; none for none")
    parser.add_argument("--pyhessian-tolerances", default="1e-3", help="relative changes to try; none for none")
    parser.add_argument("--oracle", action="store_true", help="curvlinops and SciPy on a 2M model instead")
    parser.add_argument("--installed", type=Path, default=ROOT / ".peers", help="an environment for each peer")
    parser.add_argument("--output", type=Path, default=PATH)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        print(json.dumps(ours(*asked.worker, asked)))
        return
    kept = json.loads(asked.output.read_text()) if asked.output.exists() else {}
    if asked.oracle:
        kept["oracle"] = oracle(asked)
        print(json.dumps(kept["oracle"], indent=1))
        asked.output.write_text(json.dumps(kept, indent=1) + "\n")
        return
    torch.set_num_threads(asked.threads)
    runs: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder, ids, vectors = (str(Path(scratch, name)) for name in ("model", "ids.npy", "vectors.npy"))
        model: Any = load_model(asked.model).model
        model.save_pretrained(folder)
        np.save(ids, tokens(asked.text, asked.tokenizer, asked.sequences, model.get_input_embeddings().num_embeddings))
        del model
        ways = [("villani", "")]
        ways += [("eigenthings", s) for s in asked.eigenthings_steps.split(",") if s != "none"]
        ways += [("pyhessian", t) for t in asked.pyhessian_tolerances.split(",") if t != "none"]
        worker = str(ROOT / "benchmarks" / "peers" / "eigen_worker.py")
        for repeat in range(asked.repeats):
            for tool, accuracy in ways:
                name = f"{tool} {accuracy}".strip()
                if tool == "villani":
                    row = in_a_process(
                        [__file__, *sys.argv[1:], "--worker", folder, ids], None, asked.threads, asked.installed
                    )
                else:
                    words = [worker, tool, folder, ids, str(asked.threads), str(asked.top), accuracy, vectors]
                    row = in_a_process(words, tool, asked.threads, asked.installed)
                    if not repeat:  # the same seed gives the same vectors
                        objective = Objective(
                            load_model(folder).model, [torch.from_numpy(np.load(ids))], micro_tokens=asked.micro
                        )
                        found = np.load(vectors, mmap_mode="r")
                        row["judged_values"], row["residuals"] = judged(Curvature(objective), found)
                        del objective, found
                runs.setdefault(name, []).append(row)
                print(f"{name}: {row['seconds']:.1f} s, {row['cpu_seconds']:.1f} CPU s", file=sys.stderr)
    rows = {name: in_all(found) for name, found in runs.items()}
    scale = max(abs(x) for x in rows["villani"]["values"])
    print("| | seconds | CPU seconds | peak GiB | worst residual / |λ₁| | values |")
    for name, row in rows.items():
        row["worst_residual"] = max(row["residuals"]) / scale
        shown = " ".join(f"{x:.4g}" for x in row.get("judged_values", row["values"]))
        figures = " | ".join(f"{statistics.median(row[key]):.1f}" for key in ("seconds", "cpu_seconds"))
        figures += f" | {max(row['peak_rss_bytes']) / 2**30:.2f}"
        figures += f" | {row['worst_residual']:.1e}"
        print(f"| {name} | {figures} | {shown} |")
    kept[asked.name or (asked.model if ":" in asked.model else Path(asked.model).name)] = {
        "text": asked.text, "sequences": asked.sequences, "top": asked.top, "bottom": asked.bottom,
        "tolerance": asked.tolerance, "threads": asked.threads, "memory": asked.memory, "micro": asked.micro,
        "graphs": bool(asked.graphs), "cpu": torch.backends.cpu.get_cpu_capability(), "ways": rounded(rows),
    }  # fmt: skip
    asked.output.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
