"""Passes through weights that `fully_shard` cut: gradients, failures of one process, and a run that does not notice."""

import random

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from tests.integrations.ranks import cut_network, inputs, mean_square, network, own, run_ranks
from villani.errors import InputError
from villani.integrations.figures import PREFIX
from villani.integrations.live import Live
from villani.integrations.passes import Passes

SIZE, SECONDS = 2, 60.0
PLACES = [None, "before", "after", "forward 0", "forward 2", "backward 2", "backward 0", None]


def passes_of(rank, size):
    """This process's parts of the gradient after each pass; process 1 fails in all but the first and the last."""
    model, groups = cut_network(size), inputs()
    passes, parameters = Passes(model), list(model.parameters())
    armed = []

    def fail(place):
        if place in armed:
            armed.remove(place)
            raise ZeroDivisionError(place)

    for index, layer in enumerate(model):
        layer.register_forward_hook(lambda m, i, o, k=index: (
            fail(f"forward {k}"), o.requires_grad and o.register_hook(lambda _: fail(f"backward {k}")), None)[2]
        )  # fmt: skip

    def loss():
        fail("before")
        value = mean_square(model, groups[rank])
        fail("after")
        return value

    for p in parameters:
        p.grad = torch.ones_like(p)  # the run's
    kept = [p.grad for p in parameters]
    gradients, errors = [], []
    with passes.lent():
        for place in PLACES:
            armed = [place] if rank == 1 and place else []
            try:
                passes.backward(loss)
                errors.append(None)
            except ZeroDivisionError as error:
                errors.append(str(error))
            gradients.append([None if p.grad is None else own(p.grad).clone() for p in parameters])
            for p in parameters:
                p.grad = None
    same = all(a is p.grad for a, p in zip(kept, parameters, strict=True))
    outer = nn.Sequential(fully_shard(nn.Sequential(nn.Linear(3, 5)), mesh=init_device_mesh("cpu", (size,))))
    fully_shard(outer, mesh=init_device_mesh("cpu", (size,)))(torch.zeros(1, 3))
    try:
        with Passes(outer[0]).lent():
            refused = "nothing"
    except InputError as error:
        refused = str(error)
    return gradients, errors, same, refused


def whole_gradients(rank):
    model = network()
    return torch.autograd.grad(mean_square(model, inputs()[rank]), list(model.parameters()))


def test_a_pass_gives_means_over_processes_and_one_that_fails_gives_zeros_and_keeps_nobody_waiting(tmp_path):
    results = run_ranks(SIZE, passes_of, tmp_path, seconds=SECONDS)
    (_, errors, same, refused), (_, failed, same_too, _) = results
    assert errors == [None] * len(PLACES)  # the other process's pass goes well
    assert failed == PLACES
    assert same
    assert same_too
    assert "give that whole module" in refused
    first, second = map(whole_gradients, range(SIZE))
    for number, place in enumerate(PLACES):
        for t, (mine, theirs) in enumerate(zip(first, second, strict=True)):
            parts = [gradients[number][t] for gradients, *_ in results]
            both = place is None or (place == "backward 0" and t >= 2)  # the upper layer was reduced before it
            expected = (mine + theirs) / 2 if both else mine / 2
            # a process whose pass failed may have no gradient; nobody looks at it
            pieces = expected.chunk(SIZE) if len(expected) > 1 else (expected, expected[:0])
            for rank, (part, piece) in enumerate(zip(parts, pieces, strict=True)):
                if rank == 0 or place is None:
                    assert part is not None
                if part is not None:
                    assert torch.allclose(part, piece, rtol=1e-12, atol=0), (place, t, rank)


def first_passes(rank, size):
    """What is raised where process 1 fails in the first pass, and what training and measuring give after it."""
    model, groups = cut_network(size), inputs()
    armed, told = [], []

    def fail(place):
        if place in armed:
            armed.remove(place)
            raise ZeroDivisionError(place)

    for index, layer in enumerate(model):
        layer.register_forward_hook(lambda m, i, o, k=index: (
            fail(f"forward {k}"), o.requires_grad and o.register_hook(lambda _: fail(f"backward {k}")), None)[2]
        )  # fmt: skip

    def loss(module, group):
        fail("before")
        value = mean_square(module, group)
        fail("after")
        return value

    for place in filter(None, PLACES):
        armed = [place] if rank == 1 else []
        try:
            Live(model, groups, temperature=1.0, loss_fn=loss)
            told.append("nothing")
        except InputError as error:
            told.append(str(error))
        mean_square(model, groups[rank]).backward()
        told.append([own(p.grad).tolist() for p in model.parameters()])
        for p in model.parameters():
            p.grad = None
    live = Live(model, groups, temperature=1.0, loss_fn=loss)
    return told, live.measure(1)[PREFIX + "loss"]


def test_a_process_that_fails_in_the_first_pass_stops_all_at_the_same_place(tmp_path):
    (told, measured), (other, measured_too) = run_ranks(SIZE, first_passes, tmp_path, seconds=SECONDS)
    assert told[::2] == other[::2]
    assert told[::2] == [f"process 1: ZeroDivisionError: {place}" for place in PLACES if place]
    means = [(a + b) / 2 for a, b in zip(*map(whole_gradients, range(SIZE)), strict=True)]
    for mine, theirs in zip(told[1::2], other[1::2], strict=True):
        for first, second, mean in zip(mine, theirs, means, strict=True):
            whole = torch.cat([torch.tensor(part, dtype=mean.dtype).reshape(-1) for part in (first, second)])
            assert torch.allclose(whole, mean.reshape(-1), rtol=1e-12, atol=1e-15)
    model = network()
    assert measured == measured_too
    assert abs(measured - float(torch.stack([mean_square(model, g) for g in inputs()]).detach().mean())) < 1e-12


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
    model, groups = cut_network(size), inputs()
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
