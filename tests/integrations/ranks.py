"""Processes of one gloo group, forked from a test, with a hard limit of time; and a small network that they cut."""

import os
import pickle
import signal
import sys
import time
import traceback
from datetime import timedelta

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

SECONDS = 100.0  # what takes longer hangs


def run_ranks(size, work, folder, *, seconds=SECONDS):
    """What `work(rank, size)` returns in each of `size` forked processes, in order of rank."""
    torch.set_num_threads(1)  # forking is only safe without a thread pool
    store = folder / f"store-{time.monotonic_ns()}"
    pids = [_fork(rank, size, work, store) for rank in range(size)]
    codes, deadline = {}, time.monotonic() + seconds
    while len(codes) < size:
        for rank, pid in enumerate(pids):
            if rank not in codes and (ended := os.waitpid(pid, os.WNOHANG))[0]:
                codes[rank] = os.waitstatus_to_exitcode(ended[1])
        if time.monotonic() > deadline or any(codes.values()):
            for rank in set(range(size)) - set(codes):
                os.kill(pids[rank], signal.SIGKILL)
                os.waitpid(pids[rank], 0)
            told = [path.read_text() for path in sorted(folder.glob(f"{store.name}-error-*"))]
            pytest.fail(f"exit codes {codes}; {'it hangs' if not any(codes.values()) else ''}\n" + "\n".join(told))
        time.sleep(0.005)
    return [pickle.loads((folder / f"{store.name}-{rank}").read_bytes()) for rank in range(size)]


def _fork(rank, size, work, store):
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ |= {
            "RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(size),
        }
        distributed.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=SECONDS)
        )
        result = pickle.dumps(work(rank, size))
        store.with_name(f"{store.name}-{rank}").write_bytes(result)
        distributed.barrier()
        code = 0
    except BaseException:
        store.with_name(f"{store.name}-error-{rank}").write_text(traceback.format_exc())
    finally:
        sys.stdout.flush()
        os._exit(code)


def own(tensor):
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def network():
    """The same in every process; in four, some have no part of a bias."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def inputs():
    """Groups for `mean_square`."""
    return [torch.randn(4, 3, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(3)]


def cut_network(size):
    model = network()
    mesh = init_device_mesh("cpu", (size,))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def mean_square(model, x):
    return model(x).square().mean()
