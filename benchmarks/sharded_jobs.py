"""`Live` in training runs of several processes: bits of the weights, figures beside the whole model's, and deadlocks.

python benchmarks/sharded_jobs.py                      (gloo on the CPU; 10 minutes on two busy cores)
python benchmarks/sharded_jobs.py --steps 20 --runs 4  (a small version)

Each layout trains a Llama of 2 layers and width 32 twice from the same start, with `Live.step` after every step and
without it. `same_bits` compares each process's part of every weight. At the end one more measurement is held against
`measure` on a whole copy of the weights with the same groups, probes and way to the trace (`relative` differences), and
against the way that is usual for a whole model (whether their 95 % intervals overlap). Then runs with random delays in
each process, every second of which has an exception at a random place of one process: in the forward or backward pass
of a layer, in the clock, or after the whole forward pass. `hung` counts runs that were killed after a minute.

accelerate gives FSDP on GPUs alone: for `accelerate fsdp` its own preparation of a model (`Accelerator.prepare`) is run
on the CPU by setting its `distributed_type`. Writes docs/results/sharded-jobs.json.
"""

import argparse
import json
import os
import random
import tempfile
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

from villani.integrations.figures import PREFIX
from villani.integrations.live import Live
from villani.measurement.measure import measure
from villani.objective.objective import Objective
from villani.streams import Purpose, word

PATH = Path(__file__).parents[1] / "docs" / "results" / "sharded-jobs.json"
LAYOUTS = {"fsdp": (2, 4), "ddp": (2,), "hsdp": (4,), "accelerate ddp": (2,), "accelerate fsdp": (2,)}
DECAY, SEED, VOCABULARY, BLOCK = 1e-3, 5, 37, 12
NAMES = ("loss", "gradient_norm_squared", "gradient_dot_parameters", "hessian_trace")


def whole_model() -> nn.Module:
    """The same in every process."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=48, max_position_embeddings=BLOCK, tie_word_embeddings=False, bos_token_id=None,
            eos_token_id=None, attn_implementation="eager",
        )
    )  # fmt: skip


def groups() -> torch.Tensor:
    """6 groups of 3 rows: what 2 or 4 processes cannot share evenly."""
    return torch.randint(0, VOCABULARY, (6, 3, BLOCK), generator=torch.Generator().manual_seed(9))


def prepared(layout: str, size: int) -> tuple[Any, Any]:
    """A model and its optimiser, as a run has them."""
    model = whole_model()
    optimizer = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=DECAY)
    if layout.startswith("accelerate"):
        from accelerate import Accelerator, FullyShardedDataParallelPlugin
        from accelerate.utils import DistributedType

        accelerator = Accelerator(cpu=True)
        if layout == "accelerate fsdp":
            accelerator.state._shared_state["distributed_type"] = DistributedType.FSDP
            accelerator.state.distributed_type = DistributedType.FSDP
            accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
                fsdp_version=2, auto_wrap_policy="transformer_based_wrap",
                transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
            )  # fmt: skip
        return accelerator.prepare(model, optimizer(model.parameters()))
    if layout == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    else:
        copies = {"mesh_dim_names": ("copies", "parts")} if layout == "hsdp" else {}
        mesh = init_device_mesh("cpu", (2, size // 2) if copies else (size,), **copies)
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model, optimizer(model.parameters())


def step(model: Any, optimizer: Any, number: int, rank: int) -> None:
    """One optimiser step on a batch of this process's own."""
    ids = torch.randint(0, VOCABULARY, (2, BLOCK), generator=torch.Generator().manual_seed(1000 * rank + number))
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def parts(model: Any) -> list[torch.Tensor]:
    """What this process has of each weight."""
    return [(p.to_local() if isinstance(p, DTensor) else p).detach().clone() for p in model.parameters()]


def trained(layout: str, steps: int, rank: int, size: int) -> dict[str, Any]:
    """Two runs, and their comparison."""
    ends, seconds, measured = [], [], 0
    for watched in (False, True):
        model, optimizer = prepared(layout, size)
        live = None
        if watched:
            live = Live(model, groups(), temperature=0.1, trace="hutchinson", seed=SEED, max_overhead=0.5)
            live.start(optimizer)
        start = time.perf_counter()
        for number in range(1, steps + 1):
            step(model, optimizer, number, rank)
            measured += bool(live and PREFIX + "psi" in live.step(number))
        seconds.append(time.perf_counter() - start)
        ends.append(parts(model))
    assert live is not None
    found = live.measure(steps)
    inner = live.model
    theta = {
        n: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone() for n, p in inner.named_parameters()
    }
    same = [torch.tensor([all(torch.equal(a, b) for a, b in zip(*ends, strict=True))]) for _ in range(size)]
    distributed.all_gather(same, same[rank].clone())
    return {
        "same_bits": all(bool(s) for s in same), "measurements": measured, "seconds_without": round(seconds[0], 1),
        "seconds_with": round(seconds[1], 1), **(compared(found, theta, steps) if rank == 0 else {}),
    }  # fmt: skip


def compared(found: dict[str, float], theta: dict[str, torch.Tensor], steps: int) -> dict[str, Any]:
    """Figures beside those of the whole model."""
    model = whole_model()
    model.load_state_dict(theta)
    objective, seed = Objective(model, groups(), DECAY), word(SEED, Purpose.LIVE, steps)
    same_way = measure(objective, 1, seed, trace="hutchinson", products="finite-differences", shares=0)
    usual = measure(objective, 1, seed, shares=0)
    relative, overlap = {}, {}
    for name in NAMES:
        value, whole, other = found[PREFIX + name], getattr(same_way, name), getattr(usual, name)
        relative[name] = abs(value - whole.value) / abs(whole.value)
        low, high = other.interval()
        half = (whole.interval()[1] - whole.interval()[0]) / 2
        overlap[name] = low <= value + half and value - half <= high
    return {"relative": relative, "intervals_overlap": overlap}


class Trouble(RuntimeError):
    """An exception that a run was given."""


class Clock:
    """Measuring is free, so that every step affords it; fails when it is told to."""

    def __init__(self) -> None:
        self.now, self.fails_in = 0.0, -1

    def __call__(self) -> float:
        self.fails_in -= 1
        if self.fails_in == 0:
            raise Trouble("the clock")
        self.now += 1e-9
        return self.now


class Place:
    """Fails in the forward or the backward pass of a module, at one of its next calls."""

    def __init__(self, module: nn.Module, way: str) -> None:
        self.way, self.fails_in = way, -1
        module.register_forward_hook(self)

    def __call__(self, _module: nn.Module, _given: Any, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        if self.way == "forward":
            self.count()
        elif isinstance(tensor, torch.Tensor) and tensor.requires_grad:
            tensor.register_hook(lambda _: self.count())

    def count(self) -> None:
        """One call less to go."""
        self.fails_in -= 1
        if self.fails_in == 0:
            raise Trouble(f"the {self.way} pass")


def troubled(layout: str, seed: int, rank: int, size: int) -> dict[str, Any]:
    """A run with delays, and with one exception in one process if `seed` is odd; and the same run in peace."""
    plan, own = random.Random(seed), random.Random(f"{seed} {rank}")
    where = plan.choice(["forward", "backward", "clock", "loss"]) if seed % 2 else "nowhere"
    victim, at, calls, layer = plan.randrange(size), plan.randrange(1, 4), plan.randrange(1, 9), plan.randrange(2)
    ends, failed, measured = [], 0, 0
    for watched in (False, True):
        model, optimizer = prepared(layout, size)
        inner = getattr(model, "module", model)
        place, clock = Place(inner.model.layers[layer], where), Clock()
        troubles = {"clock": clock, "forward": place, "backward": place, "loss": Place(inner, "forward")}
        live = None
        if watched:
            live = Live(model, groups()[:3], temperature=0.1, trace="hutchinson", clock=clock)
            live.start(optimizer)
            assert live.budget
            live.budget.expect(1e-6)
        for number in range(1, 5):
            step(model, optimizer, number, rank)
            clock.now += 1.0
            if live:
                time.sleep(own.random() * 0.02)
                if rank == victim and number == at and where in troubles:
                    troubles[where].fails_in = calls  # type: ignore[attr-defined]
                found = live.step(number)
                for trouble in troubles.values():
                    trouble.fails_in = -1  # type: ignore[attr-defined]
                failed += PREFIX + "failed" in found
                measured += PREFIX + "psi" in found
        ends.append(parts(model))
    return {
        "same_bits": all(torch.equal(a, b) for a, b in zip(*ends, strict=True)), "failed": failed, "measured": measured
    }  # fmt: skip


def process(rank: int, size: int, work: Any, folder: str) -> None:
    """One process of a run."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)}
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size, timeout=timedelta(minutes=10)
    )
    Path(folder, str(rank)).write_text(json.dumps(work(rank, size)))
    distributed.barrier()


def run(size: int, work: Any, seconds: float) -> list[dict[str, Any]] | None:
    """What each process gives; None where they hang, and are killed."""
    with tempfile.TemporaryDirectory() as folder:
        started: Any = multiprocessing.start_processes(
            process, args=(size, work, folder), nprocs=size, join=False, start_method="fork"
        )
        deadline = time.monotonic() + seconds
        while not started.join(timeout=1):
            if time.monotonic() > deadline:
                for one in started.processes:
                    one.kill()
                return None
        return [json.loads(Path(folder, str(rank)).read_text()) for rank in range(size)]


def main() -> None:
    """All layouts, then delays and exceptions."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--runs", type=int, default=50)
    options = parser.parse_args()
    torch.set_num_threads(1)
    layouts: dict[str, Any] = {}
    for layout, sizes in LAYOUTS.items():
        for size in sizes:
            told = run(size, partial(trained, layout, options.steps), 1200)
            layouts[f"{layout}, {size} processes"] = told[0] if told else {"hung": True}
            print(f"{layout} {size}: {told[0] if told else 'hung'}", flush=True)
    runs: list[dict[str, Any]] = []
    for seed in range(options.runs):
        layout, size = [("fsdp", 2), ("ddp", 2), ("hsdp", 4), ("fsdp", 2)][seed // 2 % 4]
        told = run(size, partial(troubled, layout, seed), 60)
        runs.append({"layout": layout, "exception": bool(seed % 2), "processes": told})
        print(f"run {seed}, {layout}: {told[0] if told else 'hung'}", flush=True)
    ended = [r for r in runs if r["processes"]]
    ends = [p for r in ended for p in r["processes"]]
    alike = all(len({(p["failed"], p["measured"]) for p in r["processes"]}) == 1 for r in ended)
    result = {
        "model": "Llama, 2 layers, width 32", "steps": options.steps, "torch": torch.__version__, "layouts": layouts,
        "delays": {
            "runs": len(runs), "hung": len(runs) - len(ended), "same_bits": all(p["same_bits"] for p in ends),
            "runs_with_an_exception": sum(r["exception"] for r in runs),
            "runs_that_told_a_failure": sum(r["processes"][0]["failed"] > 0 for r in ended),
            "all_processes_decided_alike": alike,
        },
    }  # fmt: skip
    print(json.dumps(result, indent=2))
    if (options.steps, options.runs) == (parser.get_default("steps"), parser.get_default("runs")):
        PATH.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
