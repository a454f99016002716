"""Models whose weights are streamed: the same commands as with the weights in memory, under a limit of memory.

python benchmarks/streamed.py make llama-1.1b --folder models            (random bf16 weights in shards)
python benchmarks/streamed.py run llama-1.1b measure --limit 3 --folder models -- --groups 4 --sequences 4
python benchmarks/streamed.py run llama-1.1b measure --folder models -- --groups 4 --sequences 4 --streamed no
python benchmarks/streamed.py compare llama-1.1b                                  (the last two runs of a command)

A run is a process of its own. `--limit` GiB is RLIMIT_DATA, which the kernel holds heap and private anonymous memory
to, resident or not: it is stricter than a limit on what is resident. What the process had in memory at most is VmHWM of
/proc/PID/status, all of its pages, those of files included; villani maps no file of weights, so that the file pages are
those of libraries (RssFile, sampled every half second, is told apart). The page cache of the system, which holds files
that were read as long as nobody needs the memory, is not the process's. Figures are appended to
docs/results/streamed.json.
"""

import argparse
import json
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
PATH = ROOT / "docs" / "results" / "streamed.json"
_LLAMA = {"vocab_size": 32000, "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-1.1b": ("LlamaConfig", _LLAMA | {
        "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
        "num_key_value_heads": 4}),
    "llama-7b": ("LlamaConfig", _LLAMA | {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32}),
    "gpt-neo-125m": ("GPTNeoConfig", {
        "vocab_size": 50257, "hidden_size": 768, "num_layers": 12, "num_heads": 12, "window_size": 256,
        "attention_types": [[["global", "local"], 6]], "max_position_embeddings": 2048}),
}  # fmt: skip
SHARD = 1 << 30  # bytes of a shard, about


def make(name: str, folder: Path) -> None:
    """Random weights, one tensor in memory at a time: matrices of standard deviation 0.02, gains of 1, biases of 0."""
    import transformers
    from safetensors.torch import save_file

    from villani.inputs.streaming import valueless_parameters

    kind, sizes = SHAPES[name]
    config = getattr(transformers, kind)(**sizes)
    with valueless_parameters():
        model: Any = transformers.AutoModelForCausalLM.from_config(config)
    folder.mkdir(parents=True)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    shards: list[dict[str, torch.Tensor]] = [{}]
    places: dict[str, str] = {}

    def write() -> None:
        file = f"model-{len(places):05d}.safetensors"
        save_file(shards[-1], folder / file, {"format": "pt"})
        places.update(dict.fromkeys(shards[-1], file))
        shards[-1] = {}

    for key, tensor in model.named_parameters():
        value = torch.empty(tensor.shape, dtype=torch.bfloat16)
        if tensor.dim() > 1:
            for rows in value.split(1024):
                rows.copy_(0.02 * torch.randn(rows.shape, generator=generator))
        else:
            value.fill_(0.0 if key.endswith("bias") else 1.0)
        shards[-1][key] = value
        if sum(t.numel() * 2 for t in shards[-1].values()) > SHARD:
            write()
    if shards[-1]:
        write()
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def run(name: str, command: str, limit: float | None, folder: Path, options: list[str]) -> dict[str, Any]:
    """One command; what it took and what came out."""
    words = [
        sys.executable, "-m", "villani", command, str(folder / name), "--tokenizer", "builtin", "--run",
        str(folder / f"run-{name}-{command}-{time.time_ns()}"), "--json", *options,
    ]  # fmt: skip

    def limited() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (int(limit * 2**30), int(limit * 2**30)))

    began = time.perf_counter()
    child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, preexec_fn=limited)
    seen: dict[str, int] = {}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            try:
                status = Path(f"/proc/{child.pid}/status").read_text()
            except OSError:
                return
            for line in status.splitlines():
                key, _, value = line.partition(":")
                if key in ("VmHWM", "RssAnon", "RssFile", "RssShmem"):
                    seen[key] = max(seen.get(key, 0), int(value.split()[0]) * 1024)

    threading.Thread(target=watch, daemon=True).start()
    output, _ = child.communicate()
    done.set()
    seconds = time.perf_counter() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    if child.returncode:
        raise SystemExit(f"{' '.join(words)}: exit code {child.returncode}")
    record = json.loads(output.replace(str(folder / name), name))
    return {
        "model": name, "command": command, "options": options, "limit_gib": limit, "seconds": round(seconds, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_gib": {key: round(value / 2**30, 3) for key, value in seen.items()},
        "cost": record.get("cost"), "figures": figures(record),
        "versions": record["provenance"]["versions"], "threads": record["provenance"]["threads"],
    }  # fmt: skip


def figures(record: dict[str, Any]) -> dict[str, Any]:
    """Every estimate of a record by its path, but for times."""
    found: dict[str, Any] = {}

    def look(value: Any, path: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                if key not in ("cost", "provenance", "design"):
                    look(inner, f"{path}/{key}" if path else key)
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                look(inner, f"{path}/{index}")
        elif isinstance(value, float | int) and not isinstance(value, bool):
            found[path] = value

    look(record, "")
    return found


def compare(runs: list[dict[str, Any]], name: str) -> None:
    """Of the last streamed and last resident run of each command: the largest difference, and times."""
    own = [r for r in runs if r["model"] == name]
    for command in sorted({r["command"] for r in own}):
        of = [r for r in own if r["command"] == command]
        resident = [r for r in of if "no" in r["options"]]
        streamed = [r for r in of if "no" not in r["options"]]
        if not (resident and streamed):
            continue
        a, b = resident[-1]["figures"], streamed[-1]["figures"]
        worst = max(
            (abs(a[k] - b[k]) / max(abs(a[k]), abs(b[k])), k) for k in a.keys() & b.keys() if a[k] != b[k]
        )  # fmt: skip
        print(
            f"{command}: largest relative difference {worst[0]:.2g} ({worst[1]}) of {len(a.keys() & b.keys())} figures;"
        )
        print(f"  only in one: {sorted(a.keys() ^ b.keys())[:5]}")
        for key in ("seconds", "cpu_seconds"):
            print(f"  {key}: {streamed[-1][key]} streamed, {resident[-1][key]} resident")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "run", "compare"])
    parser.add_argument("model", choices=SHAPES)
    parser.add_argument("command", nargs="?", default="measure")
    parser.add_argument("--limit", type=float)
    parser.add_argument("--folder", type=Path, default=Path("runs/streamed"))
    parser.add_argument("--keep", action="store_true", help="append the run to docs/results/streamed.json")
    arguments, options = parser.parse_known_args()
    runs = json.loads(PATH.read_text()) if PATH.exists() else []
    if arguments.what == "make":
        make(arguments.model, arguments.folder / arguments.model)
    elif arguments.what == "run":
        done = run(
            arguments.model, arguments.command, arguments.limit, arguments.folder, [o for o in options if o != "--"]
        )
        print(json.dumps({k: v for k, v in done.items() if k != "figures"}, indent=1))
        if arguments.keep:
            runs = json.loads(PATH.read_text()) if PATH.exists() else []  # another run may have ended meanwhile
            PATH.write_text(json.dumps([*runs, done], indent=1) + "\n")
    else:
        compare(runs, arguments.model)


if __name__ == "__main__":
    main()
