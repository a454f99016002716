"""Wall time of two processes of one thread each against one process of one thread, alternating; medians of three.

python benchmarks/ranks.py                            (on an idle machine of two cores; minutes)
python benchmarks/ranks.py MODEL GROUPS ROUNDS        (another model, number of groups, or of repetitions)

`measuring` counts from the first unit of work to the finished record, without imports and loading; `whole` is the
command. `ideal` is half the time of one process, `ratio` what two took of it. All records must be the same bytes. With
an odd GROUPS one process idles in the last round. Writes docs/results/ranks.json.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PATH = Path(__file__).parents[1] / "docs" / "results" / "ranks.json"
TIMED = """
import sys, time
from villani import cli
from villani.work.team import rank
from villani.commands.measure import run as study
measured = study.measured
def timed(*arguments, **named):
    start = time.perf_counter()
    found = measured(*arguments, **named)
    if rank() == 0:
        sys.stderr.write(f"measuring took {time.perf_counter() - start}\\n")
    return found
study.measured = timed
cli.main()
"""


def seconds(processes: int, model: str, groups: int) -> tuple[float, float, bytes]:
    """(measuring, whole command, records.json) of one run."""
    with tempfile.TemporaryDirectory() as folder:
        script, run = Path(folder) / "timed.py", Path(folder) / "run"
        script.write_text(TIMED)
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "--"]
        words = [sys.executable, *(launch if processes > 1 else []), str(script), "measure", model, "--run", str(run)]
        words += [
            "--tokenizer",
            "builtin",
            "--threads",
            "1",
            "--groups",
            str(groups),
            "--sequences",
            "4",
            "--block",
            "128",
        ]
        start = time.perf_counter()
        done = subprocess.run(
            words, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        whole = time.perf_counter() - start
        line = next(line for line in done.stderr.splitlines() if line.startswith("measuring took "))
        return float(line.split()[-1]), whole, (run / "records.json").read_bytes()


def main(model: str = "config:gpt-neo-125m?layers=4&width=256", groups: str = "16", rounds: str = "3") -> None:
    found: dict[int, list[tuple[float, float, bytes]]] = {1: [], 2: []}
    for _ in range(int(rounds)):
        for processes, runs in found.items():
            runs.append(seconds(processes, model, int(groups)))
            print(processes, [round(x, 2) for x in runs[-1][:2]], f"load {os.getloadavg()[0]:.1f}", flush=True)
    assert len({run[2] for runs in found.values() for run in runs}) == 1, "the records differ"
    table = {}
    for index, name in enumerate(("measuring", "whole")):
        one, two = (statistics.median(run[index] for run in found[processes]) for processes in (1, 2))
        table[name] = {"one": one, "two": two, "ideal": one / 2, "ratio": two / (one / 2)}
    result = {"model": model, "groups": int(groups), "tokens": 4 * 128, "cores": os.cpu_count(), "seconds": table}
    PATH.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
