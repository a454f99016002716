"""What the workers share: one model, one loss, one way to be asked. Needs torch and transformers, not villani.

A worker is started as `worker.py FOLDER GROUPS THREADS WAY`: a model folder, a .npy of int64 token ids (G, B, T),
no padding, a thread count and what to sample with. It warms up once, says so in a line, and then answers every line
"group probe" with a line of JSON {value, seconds, peak_rss_bytes}: one sample of tr ∇²L of that group's mean loss.
"""

import gc
import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import nn

WARM_UP = 1 << 20  # a probe that nobody asks for


class Logits(nn.Module):
    """A language model as tools for (inputs, targets) see one: (B, T) ids to (B (T − 1), V) logits of what follows."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)


def following(ids: torch.Tensor) -> torch.Tensor:
    """(B (T − 1),) the targets of `Logits`."""
    return ids[:, 1:].flatten()


def load(folder: str) -> nn.Module:
    """float32, dropout off, attention that has a second derivative."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    model.config.use_cache = False
    return model.eval()


def seeded(tool: int, group: int, probe: int) -> int:
    """A seed of its own for every tool, group and probe, so that no two tools share probes."""
    return int(np.random.SeedSequence((tool, group, probe)).generate_state(1)[0])


def peak_memory() -> int:
    """Largest resident memory so far, in bytes; getrusage's would begin at what the parent had when it forked."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def serve(sample: Callable[[int, int], float], package: str) -> None:
    """Answer until the input ends. `sample(group, probe)` is timed whole; collecting what it leaves behind is not."""
    out, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints stays out of the answers
    sample(0, WARM_UP)
    out.write(json.dumps({package: version(package), "torch": torch.__version__}) + "\n")
    out.flush()
    for line in sys.stdin:
        group, probe = map(int, line.split())
        gc.collect()
        start = time.perf_counter()
        value = sample(group, probe)
        seconds = time.perf_counter() - start
        out.write(json.dumps({"value": value, "seconds": seconds, "peak_rss_bytes": peak_memory()}) + "\n")
        out.flush()
