"""Top eigenpairs by a peer: eigen_worker.py TOOL FOLDER IDS THREADS TOP ACCURACY OUTPUT, in the peer's environment.

TOOL is pyhessian or eigenthings. Asks for the TOP eigenpairs (pyhessian: largest in size, by power iteration with
deflation, the only way it has; eigenthings: Lanczos, `which=LA`), so accurately as ACCURACY says in the tool's own
terms: pyhessian's relative change of an eigenvalue; the number of Lanczos steps of eigenthings. Writes the vectors as
(k, d) .npy to OUTPUT, and prints a line of JSON {seconds, cpu_seconds, peak_rss_bytes, values, version}.
"""

import json
import sys
import time
from importlib.metadata import version

import numpy as np
import torch
from common import Logits, following, load, peak_memory


def pyhessian(model: torch.nn.Module, ids: torch.Tensor, top: int, accuracy: float) -> tuple[list[float], np.ndarray]:
    from pyhessian import hessian

    found = hessian(Logits(model), torch.nn.CrossEntropyLoss(), data=(ids, following(ids)), cuda=False)
    values, vectors = found.eigenvalues(maxIter=1000, tol=accuracy, top_n=top)
    return values, np.stack([torch.cat([v.reshape(-1) for v in vector]).numpy() for vector in vectors])


def eigenthings(model: torch.nn.Module, ids: torch.Tensor, top: int, accuracy: float) -> tuple[list[float], np.ndarray]:
    from hessian_eigenthings import HessianOperator, hf_lm_loss
    from hessian_eigenthings.algorithms.lanczos import lanczos

    operator = HessianOperator(model, [{"input_ids": ids, "labels": ids}], hf_lm_loss())
    found = lanczos(operator, k=top, max_iter=int(accuracy), which="LA", seed=0, reorthogonalize=True)
    return found.eigenvalues.tolist(), found.eigenvectors.numpy()


def main(tool: str, folder: str, ids: str, threads: str, top: str, accuracy: str, output: str) -> None:
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    out, sys.stdout = sys.stdout, sys.stderr
    model, tokens = load(folder), torch.from_numpy(np.load(ids))
    start, busy = time.perf_counter(), time.process_time()
    values, vectors = {"pyhessian": pyhessian, "eigenthings": eigenthings}[tool](
        model, tokens, int(top), float(accuracy)
    )
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    peak = peak_memory()
    np.save(output, vectors)
    package = {"pyhessian": "pyhessian", "eigenthings": "hessian-eigenthings"}[tool]
    found = {
        "seconds": seconds,
        "cpu_seconds": busy,
        "peak_rss_bytes": peak,
        "values": values,
        "version": version(package),
    }
    out.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
