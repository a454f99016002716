"""Is this machine ready? Versions, device, threads, attention and data, each looked at rather than assumed."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from rich.console import Console

from villani.errors import InputError, first_line
from villani.inputs.tokenizers import data_folder

_PACKAGES = ("villani", "torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy", "pydantic", "plotly")
_DATA = ("ptb/ptb.train.txt", "wikitext-103/valid.txt", "gpt2-bpe/vocab.json", "gpt2-bpe/merges.txt")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `ok` is false where measuring would not work."""

    name: str
    ok: bool
    text: str


def examine(data: Path | None = None) -> list[Finding]:
    """Look at everything that a measurement stands on; about two seconds."""
    return [_versions(), _device(), _attention(), _data(data), _hub_corpora()]


def show(findings: Sequence[Finding]) -> None:
    """One line a finding."""
    console = Console(highlight=False)
    for finding in findings:
        mark = "ok  " if finding.ok else "FAIL"
        console.print(f"{mark} {finding.name}: {finding.text}", markup=False, soft_wrap=True)


def _versions() -> Finding:
    present = [f"python {platform.python_version()}"]
    absent = []
    for name in _PACKAGES:
        try:
            present.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            absent.append(name)
    return Finding("versions", not absent, ", ".join(present) + (f"; missing: {', '.join(absent)}" if absent else ""))


def _device() -> Finding:
    text = f"cpu {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
    for index in range(torch.cuda.device_count()):
        text += f"; cuda:{index} {torch.cuda.get_device_name(index)}"
    return Finding("device", True, text)


def _attention() -> Finding:
    """A second derivative through eager attention, and through SDPA held to its composite form."""
    from villani.inputs.models import load_model
    from villani.measurement.measure import measure
    from villani.objective.objective import Objective

    ids = torch.arange(24).view(3, 1, 8)
    traces = {}
    try:
        for implementation in ("eager", "sdpa"):
            model = load_model("config:gpt2?layers=1&width=8&vocab=32").model
            model.set_attn_implementation(implementation)  # type: ignore[operator]
            traces[implementation] = measure(Objective(model, ids), trace="gauss-newton").hessian_trace.value
    except (RuntimeError, InputError) as error:
        return Finding("second derivatives", False, first_line(error))
    agree = abs(traces["eager"] - traces["sdpa"]) <= 1e-4 * abs(traces["eager"])
    text = "eager and SDPA attention agree" if agree else f"eager and SDPA attention differ: {traces}"
    return Finding("second derivatives", agree, text)


def _data(data: Path | None) -> Finding:
    try:
        folder = data_folder(data, "PTB, WikiText and GPT-2 BPE are read", "use --text builtin --tokenizer builtin")
    except InputError as error:
        return Finding("data (optional)", data is None, str(error))
    absent = [name for name in _DATA if not (folder / name).is_file()]
    text = f"{len(_DATA) - len(absent)} of {len(_DATA)} files found"
    return Finding("data (optional)", True, text + (f"; missing: {', '.join(absent)}" if absent else ""))


def _hub_corpora() -> Finding:
    try:
        return Finding("hub corpora (optional)", True, f"datasets {version('datasets')}")
    except PackageNotFoundError:
        return Finding("hub corpora (optional)", True, "to install, run: pip install 'villani[hub]'")
