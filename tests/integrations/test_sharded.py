"""Runs of several processes, whose weights are cut (FSDP2, HSDP) or copied (DDP): gloo on the CPU."""

import logging
import random
import time
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from tests.conftest import make_model, make_pool
from tests.integrations.ranks import cut_network, inputs, mean_square, own, run_ranks
from villani.curvature.probes import rademacher_probe
from villani.errors import InputError
from villani.integrations.figures import PREFIX
from villani.integrations.live import Live
from villani.objective.objective import Objective
from villani.objective.parameters import ParameterSpace
from villani.streams import Purpose, word

DECAY, SEED = 0.2, 7
KINDS = {"fsdp": 4, "hsdp": 4, "layers": 2, "second dimension": 2, "ddp": 2, "bf16": 2}
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
    if kind == "bf16":
        model = model.float()
        settings["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    for layer in layers:
        fully_shard(layer, **settings)
    return model if kind == "layers" else fully_shard(model, **settings)


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
        live = Live(model, make_pool(3), temperature=0.1, trace="hutchinson", seed=SEED) if watched else None

        def after(step, optimizer, live=live, model=model):
            if live is None or step == 2:
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
    pool = Objective(model, make_pool(3)).groups
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

    rest = np.mean([of([j for j in range(3) if j != i]) for i in range(3)], axis=0)  # a ratio's bias, by the jackknife
    names = ("loss", "gradient_norm_squared", "gradient_dot_parameters", "hessian_trace")
    return dict(zip(names, 3 * of(range(3)) - 2 * rest, strict=True)) | {"decayed_norm_squared": flat @ flat}


@pytest.mark.parametrize("kind", list(KINDS))
def test_figures_are_those_of_the_whole_model_and_the_run_keeps_its_bits(kind, tmp_path):
    results = run_ranks(KINDS[kind], partial(watched_run, kind), tmp_path)
    dtype = torch.float32 if kind == "bf16" else torch.float64
    for figures, same in results:
        assert same
        ((step, theta, found),) = figures
        assert found == results[0][0][0][2]  # in every process, to the bit
        assert found[PREFIX + "lambda"] == DECAY
        assert found[PREFIX + "lambda_is_of_F"] == 0.0
    rounding = 1e-5 if kind == "bf16" else 1e-9
    expected = plain_statistics(theta, step, dtype)
    scale = max(abs(expected["hessian_trace"]), 1.0)
    assert found[PREFIX + "hessian_trace"] == pytest.approx(expected.pop("hessian_trace"), abs=1e-3 * scale)
    for name, value in expected.items():
        assert found[PREFIX + name] == pytest.approx(value, rel=rounding, abs=rounding), name


def failing_run(rank, size):
    """Exceptions of one process, at every kind of place; what the others hear, and whether the run keeps its bits."""
    told = []
    ends = []
    heard = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    logging.getLogger("villani").addHandler(handler)
    for watched in (False, True):
        model, groups = cut_network(size), inputs()
        armed = {"place": None}

        def fail(place, armed=armed):
            if armed["place"] == place:
                armed["place"] = None
                raise ZeroDivisionError(place)

        def loss_fn(model, x, fail=fail):
            fail("loss before")
            loss = mean_square(model, x)
            fail("loss after")
            return loss

        for index, layer in enumerate(model):
            layer.register_forward_hook(lambda m, i, o, k=index, fail=fail: (
                fail(f"forward {k}"), o.requires_grad and o.register_hook(lambda _: fail(f"backward {k}")), None)[2]
            )  # fmt: skip
        live = Live(model, groups, temperature=1.0, loss_fn=loss_fn) if watched else None
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        if live:
            live.start(optimizer)
        places = ["loss before", "loss after", "forward 0", "forward 2", "backward 0", "backward 2", None]
        for step, place in enumerate(places):
            mean_square(model, groups[rank]).backward()
            optimizer.step()
            optimizer.zero_grad()
            if live:
                armed["place"] = place if rank == step % size else None
                found = live.measure(step)
                told.append((place, PREFIX + "failed" in found, heard[-1] if heard else ""))
        ends.append([own(p).clone() for p in model.parameters()])
    return told, all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_an_exception_of_one_process_stops_the_measurement_of_all_and_nothing_else(tmp_path):
    results = run_ranks(2, failing_run, tmp_path)
    for told, same in results:
        assert same
        assert told == results[0][0]
        for step, (place, failed, line) in enumerate(told):
            assert failed == (place is not None)
            assert place is None or line == f"step {step}: not measured: process {step % 2}: ZeroDivisionError: {place}"


def deciding_run(kind, rank, size):
    """Clocks that differ and one that fails, and delays; figures of every step."""
    model = wrapped(kind, size)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    class Clock:
        now, fails = 0.0, 0

        def __call__(self):
            self.fails -= 1
            if self.fails == 0:
                raise OSError("no time")
            self.now += 1e-9
            return self.now

    clock = Clock()
    live = Live(model, make_pool(3, 1), temperature=1.0, trace="hutchinson", clock=clock, max_overhead=0.1)
    live.start(optimizer)
    rows = []
    for step in range(1, 53):
        clock.now += 1.0 if rank == 0 else 100.0 * random.random()
        time.sleep(0.002 * random.random())
        live.budget.expect(0.05 if step > 20 else 10.0)
        if step > 36:  # at one of the calls of its clock that process 1 makes
            if PREFIX + "failed" in rows[-1]:
                clock.now *= 5.0  # what failed is put off to four times the length of the run
            clock.fails = (step - 36) * (rank == 1)
        rows.append(live.step(step))
        clock.fails = 0
    return rows


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["layers", "ddp"])
def test_process_0_decides_by_its_clock(kind, tmp_path):
    results = run_ranks(2, partial(deciding_run, kind), tmp_path)
    assert results[0] == results[1]  # accounts of time, too
    rows = results[0]
    measured = [step for step, row in enumerate(rows, 1) if PREFIX + "psi" in row]
    assert measured
    assert min(measured) > 20  # 10 s would not have been affordable, whatever process 1's clock says
    assert len([step for step in measured if step <= 36]) <= 4  # not asked about at every step before
    failed = [step for step, row in enumerate(rows, 1) if PREFIX + "failed" in row]
    assert len(failed) >= 5
    assert failed == list(range(37, 37 + len(failed)))
    assert measured[-(52 - failed[-1]) :] == list(range(failed[-1] + 1, 53))  # it goes on
    assert rows[measured[0] - 1][PREFIX + "seconds"] < measured[0] + 1


def refusals(rank, size):
    """What each of these is refused with, in every process."""
    mesh = init_device_mesh("cpu", (size,))
    tried = {
        "narrow": lambda: Live(fully_shard(make_model("gpt2").bfloat16(), mesh=mesh), make_pool(3), temperature=1.0),
        "groups": lambda: Live(wrapped("fsdp", size), make_pool(3 + rank), temperature=1.0),
        "objective": lambda: Objective(wrapped("fsdp", size), make_pool(3)),
    }
    told = {}
    for name, work in tried.items():
        try:
            work()
            told[name] = "nothing"
        except InputError as error:
            told[name] = str(error)
    return told


def test_what_cannot_work_is_refused_in_a_line_in_every_process(tmp_path):
    words = {
        "narrow": "is torch.bfloat16", "groups": "process 1 has groups",
        "objective": "is a DTensor, of which each process has a part",
    }  # fmt: skip
    for told in run_ranks(2, refusals, tmp_path):
        assert set(told) == set(words)
        for name, line in told.items():
            assert words[name] in line, (name, line)
            assert len(line.splitlines()) == 1
