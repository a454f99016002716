"""Runs of several processes, whose weights are cut (FSDP2, HSDP) or copied (DDP): gloo on the CPU."""

import random
import re
import time
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
from villani.integrations.shards import Shard as Part
from villani.objective.objective import Objective
from villani.objective.parameters import ParameterSpace
from villani.streams import Purpose, stream, word

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


def mean_square(model, x):
    return model(x).square().mean()


def small(size, **settings):
    """A plain network, some of whose parts are empty, and groups for `mean_square`."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    for layer in model:
        fully_shard(layer, mesh=init_device_mesh("cpu", (size,)), **settings)
    fully_shard(model, mesh=init_device_mesh("cpu", (size,)))
    groups = [torch.randn(4, 3, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(3)]
    return model, groups


def state_of(model):
    """What FSDP keeps of a run, and what a run keeps of its model."""
    states = list(
        {id(m._get_fsdp_state()): m._get_fsdp_state() for m in model.modules() if isinstance(m, FSDPModule)}.values()
    )
    groups = [group for state in states for group in state._fsdp_param_groups]
    return (
        [(g.reduce_grads, g.all_reduce_grads, g.reshard_after_backward, g.gradient_divide_factor, g.is_unsharded,
          str(g.mp_policy), str(g._training_state)) for g in groups],
        [(s._state_ctx.is_last_backward, len(s._states_to_forward_prefetch), str(s._mp_policy)) for s in states],
        [(id(p), None if p.grad is None else own(p.grad).tolist(), own(p).tolist()) for p in model.parameters()],
        [(type(g._unsharded_param.grad), g._unsharded_param.grad.tolist()) for group in groups
         for g in group.fsdp_params if getattr(g, "_unsharded_param", None) is not None
         and g._unsharded_param.grad is not None],
        torch.get_rng_state().tolist(), random.getstate(), [m.training for m in model.modules()],
    )  # fmt: skip


def lent_in_the_middle(rank, size):
    """Measured while gradients wait, weights are gathered, and a hook would step an optimiser."""
    model, groups = small(size)
    live = Live(model, groups, temperature=1.0, loss_fn=mean_square)
    stepped, cut = [], list(model.parameters())
    for p in cut:
        p.register_post_accumulate_grad_hook(stepped.append)
    mean_square(model, groups[rank]).backward()  # a gradient that is there
    count = len(stepped)
    model.set_requires_gradient_sync(False)
    model.set_is_last_backward(False)
    model.set_reshard_after_backward(False)
    model.set_gradient_divide_factor(3.0)
    model.set_modules_to_forward_prefetch([model[0]])
    model[0].eval()
    mean_square(model, groups[rank]).backward()  # one that waits, in weights that stay gathered
    before = state_of(model)
    figures = live.measure(1)
    after = state_of(model)
    model.set_requires_gradient_sync(True)
    model.set_is_last_backward(True)
    mean_square(model, groups[rank]).backward()
    return (
        before == after,
        len(stepped) - count,
        figures[PREFIX + "loss"],
        [own(p.grad).tolist() for p in cut],
    )


def test_what_waits_in_a_run_is_put_back(tmp_path, monkeypatch):
    results = run_ranks(2, lent_in_the_middle, tmp_path)
    for same, hooks, _, _ in results:
        assert same
        assert hooks == 4  # of the last backward pass alone
    monkeypatch.setattr(Live, "measure", lambda self, step: {PREFIX + "loss": 0.0})
    for (*_, gradients), (*_, undisturbed) in zip(results, run_ranks(2, lent_in_the_middle, tmp_path), strict=True):
        assert gradients == undisturbed


def failing_run(rank, size):
    """Exceptions of one process, at every kind of place; what the others hear, and whether the run keeps its bits."""
    told = []
    ends = []
    for watched in (False, True):
        model, groups = small(size)
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
                told.append((place, PREFIX + "failed" in found, live._reason))
        ends.append([own(p).clone() for p in model.parameters()])
    return told, all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_an_exception_of_one_process_stops_the_measurement_of_all_and_nothing_else(tmp_path):
    results = run_ranks(2, failing_run, tmp_path)
    for told, same in results:
        assert same
        assert told == results[0][0]
        for step, (place, failed, reason) in enumerate(told):
            assert failed == (place is not None)
            assert place is None or reason == f"process {step % 2}: ZeroDivisionError: {place}"


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
            live.budget._not_before, clock.fails = 0.0, (step - 36) * (rank == 1)
        rows.append(live.step(step))
        clock.fails = 0
    return rows


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
    assert rows[-1][PREFIX + "seconds"] < 53


def refusals(rank, size):
    """What each of these is refused with, in every process."""
    mesh = init_device_mesh("cpu", (size,))

    def live(model, groups=None, **settings):
        settings = {"temperature": 1.0} | settings
        return Live(model, make_pool(3) if groups is None else groups, **settings)

    planes = init_device_mesh("cpu", (1, size), mesh_dim_names=("data", "tensors"))

    def tensor_parallel():
        model = make_model("llama")
        for layer in model.model.layers:
            parallelize_module(layer.mlp, planes["tensors"], {"gate_proj": ColwiseParallel()})
        return model

    def half_of_the_processes():
        alone = init_device_mesh("cpu", (2, 1), mesh_dim_names=("stage", "parts"))["parts"]
        return fully_shard(make_model("gpt2"), mesh=alone)

    def inner_part():
        inner = nn.Sequential(nn.Linear(3, 5))
        outer = nn.Sequential(fully_shard(inner, mesh=mesh), nn.Linear(5, 1))
        fully_shard(outer, mesh=mesh)(torch.zeros(1, 3))
        return inner

    tried = {
        "tensor": lambda: live(tensor_parallel()),
        "both": lambda: live(fully_shard(tensor_parallel(), mesh=planes["data"])),
        "pipeline": lambda: live(half_of_the_processes()),
        "narrow": lambda: live(fully_shard(make_model("gpt2").bfloat16(), mesh=mesh)),
        "groups": lambda: live(wrapped("fsdp", size), make_pool(3 + rank)),
        "copies": lambda: live(wrapped("ddp", size), [{"input_ids": torch.full((1, 4), rank)}] * 3),
        "bad group": lambda: live(wrapped("fsdp", size), [torch.full((1, 4), 99 if rank else 1)] * 3),
        "way": lambda: live(wrapped("fsdp", size), trace="taylor"),
        "objective": lambda: Objective(wrapped("fsdp", size), make_pool(3)),
        "part": lambda: live(nn.Sequential(wrapped("ddp", size))),
        "inner": lambda: live(inner_part()),
        "version": lambda: live(FullyShardedDataParallel(make_model("gpt2"), device_id=torch.device("cpu"))),
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
        "tensor": "is a DTensor that fully_shard did not make", "both": "was a DTensor before fully_shard",
        "pipeline": "1 of 2 processes", "narrow": "is torch.bfloat16", "groups": "process 1 has groups",
        "copies": "process 1 has groups", "bad group": "process 1 has groups", "way": "trace='taylor'",
        "objective": "is a DTensor, of which each process has a part", "part": "wrap the whole model",
        "inner": "give that whole module", "version": "FSDP1",
    }  # fmt: skip
    results = run_ranks(2, refusals, tmp_path)
    for told in results:
        assert set(told) == set(words)
        for name, line in told.items():
            assert re.search(re.escape(words[name]), line), (name, line)
            assert len(line.splitlines()) == 1


def quantised_dynamically():
    return torch.ao.quantization.quantize_dynamic(make_model("llama").float(), {nn.Linear})


def quantised_by_name():
    model = make_model("llama")
    model.is_quantized = True
    return model


def stored_as_bytes():
    model = make_model("llama")
    model.lm_head.weight = nn.Parameter(torch.zeros(11, 8, dtype=torch.uint8), requires_grad=False)
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [quantised_dynamically, quantised_by_name, stored_as_bytes])
def test_quantised_weights_are_refused_in_a_line(make):
    with pytest.raises(InputError, match="weights are quantised") as error:
        Live(make(), make_pool(3), temperature=1.0)
    assert len(str(error.value).splitlines()) == 1
