"""Runs of several processes, whose weights are cut (FSDP2, HSDP) or copied (DDP): gloo on the CPU."""

import logging
import random
import re
import time
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from tests.conftest import make_model, make_pool
from tests.integrations.ranks import run_ranks
from villani.curvature.probes import rademacher, rademacher_probe
from villani.errors import InputError
from villani.integrations.live import PREFIX, Live
from villani.integrations.passes import Passes
from villani.integrations.shards import Shard as Part
from villani.objective.objective import Objective
from villani.objective.parameters import ParameterSpace
from villani.streams import Purpose, stream, word

DECAY, SEED = 0.2, 7
KINDS = {"fsdp": 2, "fsdp 4": 4, "hsdp": 4, "layers": 2, "ignored": 2, "second dimension": 2, "ddp": 2, "bf16": 2}
Shared = nn.parallel.DistributedDataParallel


def wrapped(kind, size, architecture="gpt2"):
    """A model of conftest as a run would have it; in float32 where it is trained in bfloat16."""
    model = make_model(architecture)
    layers = model.transformer.h if architecture == "gpt2" else model.model.layers
    if kind == "ddp":
        return Shared(model)
    settings = {"mesh": init_device_mesh("cpu", (size,))}
    if kind == "hsdp":
        settings["mesh"] = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("copies", "parts"))
    if kind == "second dimension":
        settings["shard_placement_fn"] = lambda p: Shard(1) if p.dim() > 1 and p.shape[1] % size == 0 else Shard(0)
    if kind == "ignored":
        settings["ignored_params"] = {model.transformer.wpe.weight}
    if kind == "bf16":
        model = model.float()
        settings["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    for layer in layers:
        fully_shard(layer, **settings)
    return model if kind == "layers" else fully_shard(model, **settings)


def own(tensor):
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def whole(tensor):
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def parameters(model):
    return dict((model.module if isinstance(model, Shared) else model).named_parameters())


def train(model, rank, steps, after=lambda step, optimizer: None):
    """Momentum, dropout, and batches that differ between processes; two batches a step, only the last is exchanged."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=DECAY)
    torch.manual_seed(rank)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    after(0, optimizer)
    for step in range(1, steps + 1):
        for half in range(2):
            generator = torch.Generator().manual_seed(100 * step + 10 * half + rank)
            ids = torch.randint(0, 11, (2, 6), generator=generator)
            if isinstance(model, FSDPModule):
                model.set_requires_gradient_sync(half == 1)
            model(input_ids=ids, labels=ids).loss.backward()
        for p in model.parameters():
            if p.grad is not None and not isinstance(model, Shared) and not isinstance(p, DTensor):
                torch.distributed.all_reduce(p.grad)  # what fully_shard leaves whole is the user's to reduce
        optimizer.step()
        optimizer.zero_grad()
        after(step, optimizer)
    return optimizer


def watched_run(kind, rank, size):
    """A run with a measurement after every step, the same run without, and the figures with the θ that they are of."""
    figures = []
    ends = []
    for watched in (False, True):
        model = wrapped(kind, size)
        live = Live(model, make_pool(4, 3), temperature=0.1, trace="hutchinson", seed=SEED) if watched else None

        def after(step, optimizer, live=live, model=model):
            if live is None:
                return
            if step == 0:
                live.start(optimizer)
                return
            theta = {name: whole(p) for name, p in parameters(model).items()}
            figures.append((step, theta, live.measure(step)))

        train(model, rank, 2, after)
        ends.append([own(p).clone() for p in model.parameters()] + [torch.get_rng_state()])
    return figures, all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def plain_statistics(theta, step, dtype):
    """Loss, ‖∇L‖², ⟨∇L, θ⟩ and a trace with the same probes, by plain autograd of one whole model."""
    model = make_model("gpt2").to(dtype).eval()
    model.load_state_dict(theta, strict=False)
    model.tie_weights()
    pool = Objective(model, make_pool(4, 3)).groups
    space, tensors = ParameterSpace(model), list(model.parameters())
    losses, gradients, traces, tokens = [], [], [], []
    for index, group in enumerate(pool):
        logits = model(**group.inputs).logits[:, :-1].flatten(0, 1)
        loss = nn.functional.cross_entropy(logits, group.labels[:, 1:].flatten(), reduction="sum")
        slopes = torch.autograd.grad(loss, tensors, create_graph=True)
        probe = rademacher_probe(space, word(SEED, Purpose.LIVE, step), index, 0)
        inner = sum((g * v).sum() for g, v in zip(slopes, probe, strict=True))
        curved = torch.autograd.grad(inner, tensors)
        traces.append(sum(float((c * v).sum()) for c, v in zip(curved, probe, strict=True)))
        losses.append(float(loss.detach()))
        gradients.append(torch.cat([g.detach().flatten() for g in slopes]).double().numpy())
        tokens.append(group.tokens)
    flat = torch.cat([t.detach().flatten() for t in tensors]).double().numpy()

    def of(chosen):
        count = sum(tokens[i] for i in chosen)
        pairs = [(i, j) for i in chosen for j in chosen if i != j]
        dots = sum(gradients[i] @ gradients[j] for i, j in pairs) / sum(tokens[i] * tokens[j] for i, j in pairs)
        return np.array(
            [
                sum(losses[i] for i in chosen) / count, dots, sum(gradients[i] @ flat for i in chosen) / count,
                sum(traces[i] for i in chosen) / count,
            ]
        )  # fmt: skip

    rest = np.mean([of([j for j in range(4) if j != i]) for i in range(4)], axis=0)  # a ratio's bias, by the jackknife
    names = ("loss", "gradient_norm_squared", "gradient_dot_parameters", "hessian_trace")
    return dict(zip(names, 4 * of(range(4)) - 3 * rest, strict=True)) | {"decayed_norm_squared": flat @ flat}


@pytest.mark.parametrize("kind", list(KINDS))
def test_figures_are_those_of_the_whole_model_and_the_run_keeps_its_bits(kind, tmp_path):
    results = run_ranks(KINDS[kind], partial(watched_run, kind), tmp_path)
    dtype = torch.float32 if kind == "bf16" else torch.float64
    for figures, same in results:
        assert same
        assert len(figures) == 2
        for (step, _, found), (_, _, first) in zip(figures, results[0][0], strict=True):
            assert found == first  # the same bits in every process
            assert found[PREFIX + "lambda"] == DECAY
            assert found[PREFIX + "lambda_is_of_F"] == 0.0
    rounding = 1e-5 if kind == "bf16" else 1e-9
    for step, theta, found in results[0][0][1:]:
        expected = plain_statistics(theta, step, dtype)
        scale = max(abs(expected["hessian_trace"]), 1.0)
        assert found[PREFIX + "hessian_trace"] == pytest.approx(expected.pop("hessian_trace"), abs=1e-3 * scale)
        for name, value in expected.items():
            assert found[PREFIX + name] == pytest.approx(value, rel=rounding, abs=rounding), name


@pytest.mark.parametrize(("shape", "dim", "size"), [((7, 3), 0, 4), ((5, 6, 4), 1, 2), ((2, 3, 8), 2, 4), ((3,), 0, 5)])
def test_signs_and_places_of_parts_are_those_of_the_whole(shape, dim, size):
    tensor = torch.arange(np.prod(shape), dtype=torch.float32).reshape(shape)
    signs = rademacher(tensor.numel(), stream(3, Purpose.PROBE, 1), torch.float32).reshape(shape)
    inner = int(np.prod(shape[dim + 1 :]))
    seen, start = [], 0
    for part, cut in zip(tensor.chunk(size, dim), signs.chunk(size, dim), strict=False):
        stop = start + part.shape[dim] * inner
        own = Part(part, start, stop, shape[dim] * inner, True)
        assert own.places(0, part.numel()).tolist() == part.flatten().tolist()
        assert torch.equal(own.signs(tensor.numel(), stream(3, Purpose.PROBE, 1)), cut.flatten())
        seen += part.flatten().tolist()
        start = stop
    assert sorted(seen) == list(range(tensor.numel()))
    long = Part(torch.zeros(0), 3 << 20, (3 << 20) + 5, 1 << 23, True)  # several pieces, most of which are skipped
    first = rademacher(1 << 23, stream(3, Purpose.PROBE, 1), torch.float32)[3 << 20 :][:5]
    assert torch.equal(long.signs(1 << 23, stream(3, Purpose.PROBE, 1)), first)
