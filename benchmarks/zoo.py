"""Every causal language model that transformers has, built tiny and held against independent calculations in float64.

python benchmarks/zoo.py [--only REGEX] [--resume] [--table] [--seconds 120] [--memory 3]

For each type, in a process of its own: villani's loss against transformers'; Hv against differences of gradients;
Taylor against reverse over reverse, tensor by tensor; every symmetry against its own rescaling by 2 and 1.37; and how
many symmetries there are against a null space of gradients (`tests/zoo_checks.py`, `tests/zoo_symmetries.py`). Rows go
to docs/results/zoo.json as they come; with --resume types that have one, and did not crash, are
left out. --table writes docs/architectures.md from the rows alone.
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
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import transformers
from tests.zoo_checks import FACTORS, LIMITS, Row, examine
from tests.zoo_models import EPSILON, KINDS

DOCS = Path(__file__).parents[1] / "docs"
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
    parser.add_argument(
        "--resume", action="store_true", help="leave out types that have a row with figures or a refusal"
    )
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
        done = options.resume and rows.get(kind, {"stage": "not measured"})["stage"] != "not measured"
        if re.search(options.only, kind) and not done:
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
    """docs/architectures.md."""
    built = [row for row in rows if row["stage"] != "not built"]
    measured = [row for row in rows if "product" in row]
    traced = [row for row in measured if row["stage"] == "traced"]
    taylor = [row for row in traced if "taylor" in row]
    counted = [row for row in traced if "complete" in row]
    complete = [row for row in counted if row["complete"]]
    wholes = [row for row in counted if row["tensors"][0] == row["tensors"][1]]
    wrong = [row for row in measured if row["wrong"]]
    figures = [
        (f"types of `AutoModelForCausalLM` in transformers {content['transformers']}", len(KINDS)),
        *([("… tried so far", len(rows))] if len(rows) < len(KINDS) else []),
        ("… built tiny", len(built)),
        ("… measured: loss, gradient, Hv", len(measured)),
        ("… traced", len(traced)),
        ("… of these with Taylor sweeps", _share(taylor, traced)),
        ("… of these with every rescaling symmetry of rows, columns and entries", _share(complete, traced)),
        ("… of these with every rescaling symmetry of whole tensors", _share(wholes, traced)),
        ("types with a wrong number", f"{len(wrong)} {', '.join(row['type'] for row in wrong)}".strip()),
    ]
    errors = [(name, LIMITS[name], max((row[name], row["type"]) for row in measured if name in row)) for name in LIMITS]
    other = [row["type"] for row in measured if isinstance(row["own_loss"], str) or row["own_loss"] > LIMITS["loss"]]
    lines = [
        _HEAD.format(factors=" and ".join(f"{f:g}" for f in FACTORS), epsilon=f"{EPSILON:g}", torch=content["torch"]),
        *_table(("", "types"), figures),
        "",
        *_table(
            ("largest relative error", "of", "counts as wrong above"),
            [(f"{_CHECKS[name]}: {worst:.0e}", kind, f"{limit:.0e}") for name, limit, (worst, kind) in errors],
        ),
        f"\nThe `loss` that transformers returns is another one, or fails, for: {', '.join(other) or 'none'}.",
        "\n## What is refused, and why\n",
        *_grouped([(f"{row['stage']}: {_kind_of(row['reason'])}", row["type"]) for row in rows if row.get("reason")]),
        *_grouped([(f"no Taylor: {_kind_of(row['taylor_refused'])}", row["type"])
                   for row in traced if "taylor_refused" in row]),
        *_grouped([(f"symmetries not searched: {_kind_of(row['symmetries_refused'])}", row["type"])
                   for row in traced if "symmetries_refused" in row]),
        "\n## Symmetries that are not found\n",
        *_grouped([(_hidden(row), row["type"]) for row in counted if not row["complete"]]),
        "\n## Type by type\n",
        _COLUMNS,
        *_table(("type", "class", "attention", "Hv", "Taylor", "whole tensors", "rows and columns"),
                [_cells(row) for row in measured]),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


_HEAD = """# Architectures

<!-- made by `python benchmarks/zoo.py --table` -->

Every causal language model that transformers has, as a tiny one (one layer of each kind, width 16, random weights, its
default attention), against independent calculations in float64: `python benchmarks/zoo.py`,
[all rows](results/zoo.json), torch {torch}. The same functions run on a sample of the types in `make test`.

- **Loss**: transformers' own forward and torch's cross-entropy.
- **Hv**: differences of gradients of that loss, the best of three steps.
- **Taylor**: first and second derivatives of the loss along a vector in each tensor, against reverse over reverse.
- **Symmetries**: each one that is found rescales other weights by {factors}, and no token's loss may change. How many
  there are is counted again without villani: rates g·θ of all tokens' losses at many random θ, summed over rows and
  columns of every tensor; what has no effect on any is their null space. Weights on which no loss depends are left out.
  Where more are found than counted (inkling2_text), each that is found passed its check: the count falls short there.

What models compute in float32 on purpose is computed in float64 here, norms have an ε of {epsilon} (a smaller one
leaves what is nearly a symmetry), limits on gated units are such that they bite (a count at random θ knows none that
it does not reach, such as the 10⁻⁵ below which gemma3n's magnitudes are not taken), and of models with several parts
the text's is taken. Random weights at one shape say nothing of large models' rounding, of options that are not the
default, or of code that other shapes reach.
"""
_COLUMNS = """Errors are relative. Of symmetries the number that villani finds and the number that there are: of whole
tensors, and of rows, columns and entries. "—": refused, see above.
"""
_CHECKS = {
    "loss": "loss", "product": "Hv", "taylor": "Taylor, any tensor", "rescaling": "a token's loss under a rescaling",
    "violation": "rate along a symmetry, over its parts'",
}  # fmt: skip


def _share(part: list[Row], whole: list[Row]) -> str:
    return f"{len(part)} of {len(whole)} ({100 * len(part) / max(1, len(whole)):.0f} %)"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    return [_line(head), _line(["---"] * len(head)), *map(_line, rows)]


def _line(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _grouped(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """One item for each reason, with the types that it holds of."""
    types = defaultdict(list)
    for reason, kind in pairs:
        types[reason].append(kind)
    return [f"- {reason}: {', '.join(kinds)}" for reason, kinds in sorted(types.items(), key=lambda i: -len(i[1]))]


def _kind_of(reason: str) -> str:
    """A reason without what differs from type to type: names of classes, places, figures."""
    reason = re.sub(r"^\w+(?:ForCausalLM|LMHeadModel|Decoder\w*|ForConditionalGeneration)\b", "it", reason)
    reason = re.sub(r"^\w+'s (gradient is not that of its loss).*", r"its \1", reason)
    reason = re.sub(r"(is not causal).*", r"\1: an earlier token's logits move with a later token", reason)
    reason = re.sub(r"^(no Taylor rule for \S+) .*", r"\1", reason)
    return reason.replace("<", "‹").replace(">", "›")[:160]


def _hidden(row: Row) -> str:
    skipped = list(dict.fromkeys(operation for operation, _ in row["skipped"]))
    return f"named as skipped: {', '.join(f'`{s}`' for s in skipped)}" if skipped else "nothing is named as skipped"


def _cells(row: Row) -> list[str]:
    pairs = [f"{row[name][0]} of {row[name][1]}" if name in row else "—" for name in ("tensors", "channels")]
    taylor = f"{row['taylor']:.0e}" if "taylor" in row else "—"
    return [row["type"], row["class"], row["attention"] or "", f"{row['product']:.0e}", taylor, *pairs]


if __name__ == "__main__":
    main()
