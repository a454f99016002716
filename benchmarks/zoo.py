"""Every causal language model that transformers has, built tiny and held against independent calculations in float64.

python benchmarks/zoo.py [--only REGEX] [--resume] [--table] [--seconds 120] [--memory 3]

For each type, in a process of its own: villani's loss against transformers'; Hv against differences of gradients; Taylor
against reverse over reverse, tensor by tensor; every symmetry against its own rescaling by 2 and 1.37; and how many
symmetries there are against a null space of gradients (`tests/zoo_checks.py`, `tests/zoo_symmetries.py`). Rows go to
docs/results/zoo.json as they come; with --resume types that have one are left out. --table writes docs/architectures.md
from the rows alone.
"""

import argparse
import json
import multiprocessing
import os
import re
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import transformers
from tests.zoo_checks import FACTORS, LIMITS, Row, examine
from tests.zoo_models import EPSILON, KINDS

DOCS = Path(__file__).parents[1] / "docs"
_SHOWN = 4  # names in a cell
_PATIENCE = 10  # seconds on the clock for one of CPU


def isolated(kind: str, seconds: float, memory: float) -> Row:
    """A type's row; what ends its process early is the reason of a row of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "row.json"
        child = multiprocessing.get_context("fork").Process(target=_write_row, args=(kind, seconds, memory, file))
        child.start()
        child.join(_PATIENCE * seconds)
        if child.is_alive():
            child.kill()
            child.join()
        if not file.exists():
            late = child.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
            reason = f"takes longer than {seconds:g} s of CPU" if late else f"its process ended with {child.exitcode}"
            return {"type": kind, "stage": "not measured", "reason": reason}
        row: Row = json.loads(file.read_text())
        return row


def _write_row(kind: str, seconds: float, memory: float, file: Path) -> None:
    limit = int(memory * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 1))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    start = time.process_time()
    try:
        row = examine(kind)
    except BaseException as error:
        text = " ".join(str(error).split())[:300]
        row = {"type": kind, "stage": "not measured", "reason": f"{type(error).__name__}: {text}"}
    row["cpu_seconds"] = round(time.process_time() - start, 2)
    file.write_text(json.dumps(row, default=list))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="types whose names contain a match")
    parser.add_argument("--resume", action="store_true", help="leave out types that have a row")
    parser.add_argument("--table", action="store_true", help="write docs/architectures.md from the rows, and stop")
    parser.add_argument("--seconds", type=float, default=120, help="of CPU for one type")
    parser.add_argument("--memory", type=float, default=3, help="GiB of address space for one type")
    parser.add_argument("--out", type=Path, default=DOCS / "results" / "zoo.json")
    options = parser.parse_args()
    content = json.loads(options.out.read_text()) if options.out.exists() else {"rows": []}
    rows = {row["type"]: row for row in content["rows"]}
    if options.table:
        (DOCS / "architectures.md").write_text(page([rows[kind] for kind in KINDS if kind in rows], content))
        return
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    examine("llama")  # what torch imports and prepares once is inherited by the processes of types
    for kind in KINDS:
        if re.search(options.only, kind) and not (options.resume and kind in rows):
            rows[kind] = row = isolated(kind, options.seconds, options.memory)
            print(summary(row), flush=True)
            known = [json.dumps(rows[k]) for k in KINDS if k in rows]
            head = json.dumps({"transformers": transformers.__version__, "torch": torch.__version__})[:-1]
            options.out.write_text(f'{head}, "rows": [\n' + ",\n".join(known) + "\n]}\n")


def summary(row: Row) -> str:
    parts = [row["type"], row["stage"], row.get("reason", "")]
    parts += ["WRONG " + ", ".join(row["wrong"])] if row.get("wrong") else []
    parts += [f"no Taylor: {row['taylor_refused']}"] if "taylor_refused" in row else []
    if "complete" in row and not row["complete"]:
        counts = "; ".join(f"{name} {row[name][0]} of {row[name][1]}" for name in ("tensors", "channels"))
        skipped = ", ".join(operation for operation, _ in row["skipped"])
        parts.append(
            f"symmetries: {counts}; missing in {', '.join(row['missing'][:8])}; skipped {skipped or 'nothing'}"
        )
    return " | ".join(filter(None, parts)) + f" | {row.get('cpu_seconds', 0)} s"


def page(rows: list[Row], content: dict[str, Any]) -> str:
    return ""


if __name__ == "__main__":
    main()
